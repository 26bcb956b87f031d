"""The throw-away processes of the checks: `python -m memwarden.cli._selftest.child NAME [OPTION=VALUE ...]`.

Each takes memory for real, measures, and prints its findings as one line of JSON. `broken=1` leaves out the very step
that the check is about, so that the check must fail: that is how the tests know that it can.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import TYPE_CHECKING, Any

from memwarden.sense import Machine, SystemClock, find_limit, make_sensor
from memwarden.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden import Warden

# What the C library hands out from its heaps: smaller is Python's own, from 128 KiB on each block is its own mapping.
SIZES = (4 * KIB, 9 * KIB, 16 * KIB, 27 * KIB, 40 * KIB, 64 * KIB)
STEP = 2 * MIB
# Units of work that the healthy process of `detection` keeps, and the leaking one begins with.
KEPT = 100


def limit(**_options: int) -> dict[str, Any]:
    """The limit as it is found here."""
    found = find_limit(Machine())
    return {"bytes": found.bytes, "source": found.source, "kind": found.kind}


def reading(*, size: int, broken: int = 0) -> dict[str, Any]:
    """What two sensors say before and after `size` bytes were taken and written."""
    sensor = make_sensor(Machine())
    before = sensor.tick()[:2]
    held = b"x" * (KIB if broken else size)
    after = sensor.tick()[:2]
    del held
    return {"before": before, "after": after}


class _TenASecond(SystemClock):
    """A clock on which ten readings are a second: what is read once a second, or more rarely, has its share."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        """Seconds, as far as the readings moved them."""
        return self.now_s


def cost(*, least_ms: int, broken: int = 0) -> dict[str, Any]:
    """Seconds of processor time for a glance and for a whole reading: the best of three, each over so many ms."""
    clock = _TenASecond()
    sensor = make_sensor(Machine(), clock=clock)

    def read() -> None:
        clock.now_s += 0.1
        if broken:
            sum(range(200_000))
        sensor.read()

    return {"glance_s": _best(sensor.glance, least_ms / 1000), "read_s": _best(read, least_ms / 1000)}


def _best(call: Callable[[], object], least_s: float) -> float:
    """By time and not by rounds: where processor time is counted in ticks of 10 ms, few rounds would cost nothing."""
    from time import thread_time

    best = float("inf")
    for _ in range(3):
        spent_s, calls, start_s = 0.0, 0, thread_time()
        while spent_s < least_s:
            for _ in range(50):
                call()
            calls += 50
            spent_s = thread_time() - start_s
        best = min(best, spent_s / calls)
    return best


def levels(*, size: int, setting: int = 0, broken: int = 0) -> dict[str, Any]:
    """Grow by small steps until EMERGENCY or until `size` bytes were taken; each change of level with both bounds."""
    warden = _warden(setting or None)
    held, changes, level = [], [], warden.check().level
    start = level.name
    for _ in range(1 if broken else size // STEP):
        held.append(b"x" * STEP)
        verdict = warden.check()
        if verdict.level is not level:
            level = verdict.level
            changes.append((level.name, verdict.reading.pressure_low_ratio, verdict.reading.pressure_ratio))
        if level.name == "EMERGENCY":
            break
    return {"start": start, "changes": changes, "limit_bytes": warden.limit.bytes}


def _warden(setting: int | None = None) -> Warden:
    from memwarden import Warden

    return Warden(setting, preset=None, dwell=0, blackbox=False, relieve=False)


class _Ring:
    """A cycle that holds one block: only a collection finds it."""

    def __init__(self, size: int) -> None:
        self.me = self
        self.block = b"x" * size


def collect(*, size: int, broken: int = 0) -> dict[str, Any]:
    """Cycles with the collector off, dropped (the control), then collected."""
    warden = _warden()
    warden.check()
    gc.disable()
    rss = make_sensor(Machine()).rss_bytes
    empty = rss()
    rings = [_Ring(512 * KIB) for _ in range(size // (512 * KIB))]
    count, full = len(rings), rss()
    del rings
    dropped = rss()
    outcome = None if broken else warden.collect("selftest")
    return {
        "empty": empty, "full": full, "dropped": dropped, "after": rss(), "rings": count,
        "objects": outcome.objects if outcome else 0, "seconds": outcome.duration_s if outcome else 0.0,
    }  # fmt: skip


def trim(*, size: int, broken: int = 0) -> dict[str, Any]:
    """Blocks of 4-64 KB under one that stays, freed (the control), then trimmed."""
    machine, clock = Machine(), SystemClock()
    rss = make_sensor(machine).rss_bytes
    blocks: list[bytes] = []
    empty, taken = rss(), 0
    while taken < size:
        blocks.append(b"x" * SIZES[len(blocks) % len(SIZES)])
        taken += len(blocks[-1])
    stays = b"x" * SIZES[0]  # on top of the heap, or the C library gives all of it back by itself
    full = rss()
    blocks.clear()
    freed, start_s = rss(), clock.monotonic()
    done = None if broken else machine.trim()
    seconds = clock.monotonic() - start_s
    return {
        "empty": empty, "full": full, "freed": freed, "after": rss(), "seconds": seconds, "trimmed": done,
        "stays": len(stays), "allocator": machine.allocator(),
    }  # fmt: skip


def blackbox(*, broken: int = 0) -> dict[str, Any]:
    """Run a Warden and an operation, say so, and wait to be killed."""
    import signal

    from memwarden import Warden

    warden = Warden(preset=None, interval="20ms", blackbox=not broken).start()
    with warden.operation("selftest operation"):
        _wait_for(lambda: warden.ticks >= 3)
        print(json.dumps({"ready": True}), flush=True)
        signal.pause()
    return {}


def _wait_for(condition: Callable[[], bool]) -> None:
    from threading import Event

    clock, event = SystemClock(), Event()
    while not condition():
        clock.wait(event, 0.01)


def detection(*, samples: int, every_ms: int, leaking: int) -> dict[str, Any]:
    """Work that keeps a little of each unit (the leak) or the last of them only, sampled and judged here."""
    from collections import deque
    from importlib import import_module
    from threading import Event

    leak, signs = import_module("memwarden.judge.leak"), import_module("memwarden.judge.signs")
    sensor, machine, clock, event = make_sensor(Machine()), Machine(), SystemClock(), Event()
    kept: deque[list[str]] = deque(maxlen=None if leaking else KEPT)
    kept.extend(_work(number) for number in range(KEPT))
    times: list[float] = []
    columns: dict[str, list[float]] = {
        name: [] for name in ("rss_bytes", "python_blocks", "native_in_use_bytes", "work_done")
    }
    for number in range(samples):
        kept.extend(_work(each) for each in range(8))
        row = (sensor.rss_bytes(), machine.python_blocks(), machine.native_in_use_bytes(), 8 * number)
        times.append(clock.monotonic())
        for name, value in zip(columns, row, strict=True):
            columns[name].append(float("nan") if value is None else value)
        clock.wait(event, every_ms / 1000)
    look = leak.judge(signs.Columns(times, columns))
    rss = columns["rss_bytes"]
    return {
        "accused": look.accused, "cause": look.cause, "confidence": look.confidence,
        "growth_ratio": (rss[-1] - rss[0]) / rss[0], "evidence": look.evidence,
    }  # fmt: skip


def _work(number: int) -> list[str]:
    return [f"{number} of some unit of work, and what it left behind: {each}" for each in range(150)]


def breaker(*, items: int, guarded: int) -> dict[str, Any]:
    """Items of 1 MiB each: in a guarded loop, or in a bare one (the control)."""
    if not guarded:
        return {"done": len([b"x" * MIB for _ in range(items)]), "why": None}
    from importlib import import_module

    partial = import_module("memwarden.breaker").Breaker().guard(range(items), lambda _: b"x" * MIB)
    return {"done": partial.done, "left": partial.left_count, "why": str(partial.why)}


def fence(*, size: int) -> dict[str, Any]:
    """Take memory until it is refused, and live on."""
    held: list[bytes] = []
    refused = False
    try:
        while len(held) * STEP < size:
            held.append(b"x" * STEP)
    except MemoryError:
        refused = True
    return {"refused": refused, "taken": len(held) * STEP}


def hog(**_options: int) -> dict[str, Any]:
    """Grow until somebody ends it."""
    held = []
    while True:
        held.append(b"x" * STEP)


def killed(*, size: int) -> dict[str, Any]:
    """Take this much and die of a plain SIGKILL, which is not the kernel's."""
    import os
    import signal

    held = b"x" * size
    os.kill(os.getpid(), signal.SIGKILL)
    return {"held": len(held)}


_ALL = (limit, reading, cost, levels, collect, trim, blackbox, detection, breaker, fence, hog, killed)
PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {each.__name__: each for each in _ALL}


def main(words: list[str]) -> None:
    """Run one program and print what it found."""
    options = {name: int(value) for name, _, value in (word.partition("=") for word in words[1:])}
    print(json.dumps(PROGRAMS[words[0]](**options)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
