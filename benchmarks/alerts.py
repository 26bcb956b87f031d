"""Alerts: what a tick costs with them, whether a dead receiver is felt, and how soon an EMERGENCY is on record.

The arms are Wardens on machines made of files, at a level that stands, so that a tick is all there is. The receiver
that is dead takes connections and never answers: its courier waits in it all the time.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from benchmarks import Figure
from benchmarks.arms import race
from memwarden import Warden
from memwarden.store import FILE_NAME
from memwarden.tell.outbox import Outbox
from memwarden.tell.settings import parse
from memwarden.tell.signals import Signal
from memwarden.testing import FakeClock, FakeMachine, RecordingChannel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.facts import Notice

MIB = 1 << 20
ROUNDS, LOCKED_ROUNDS = 50, 20
SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
EVENTS = 1_000_000 if SOAK else 20_000


def main() -> list[Figure]:
    """The tick, the emergency, the engine."""
    return [*_ticks(), *_emergency(), *_engine()]


class Dead(RecordingChannel):
    """A receiver that never answers."""

    def __init__(self) -> None:
        super().__init__("ops")
        self.over = threading.Event()

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """Hangs."""
        self.over.wait()


def _warden(stack: ExitStack, channel: RecordingChannel | None) -> tuple[Warden, FakeMachine]:
    machine = stack.enter_context(FakeMachine(used_bytes=50 * MIB))
    machine.live = True
    machine.environ = {"MEMWARDEN_DIR": stack.enter_context(tempfile.TemporaryDirectory())}
    alerts = {} if channel is None else {"channels": {"ops": channel}, "group_wait": "0s"}
    warden = Warden(machine=machine, clock=FakeClock(waits=0), alerts=alerts, preset=None, dwell=0, relieve=False)
    warden.start()
    if isinstance(channel, Dead):
        stack.callback(channel.over.set)
    stack.callback(warden.stop)
    return warden, machine


def _ticks() -> list[Figure]:
    with ExitStack() as stack:
        made = {
            "without": _warden(stack, None),
            "with alerts": _warden(stack, RecordingChannel("ops")),
            "dead receiver": _warden(stack, Dead()),
        }
        for warden, machine in made.values():
            machine.set_usage(int(0.97 * 512 * MIB))
            warden.clock.advance(20)  # type: ignore[attr-defined]  # it is a FakeClock
            warden.check()  # raised, and in the dead receiver's hands
        time.sleep(0.5)  # until its courier waits in it
        seen = race({name: warden.check for name, (warden, _) in made.items()})
    return [
        Figure("a tick with a dead receiver, to one with a receiver that answers",
               seen.ratio("dead receiver", "with alerts"), "x", at_most=1.05, beside=seen.beside("with alerts")),
    ] + [
        Figure(f"a tick of a Warden at EMERGENCY, {name}, to one without alerts", seen.ratio(name, "without"), "x",
               at_most=1.10, beside=seen.beside("without", name))
        for name in ("with alerts", "dead receiver")
    ]  # fmt: skip


def _emergency() -> list[Figure]:
    """From the beginning of the sample to the record, and to the channel; each in a Warden of its own."""
    records, wires = _emergencies(ROUNDS, locked=False)
    _, past = _emergencies(LOCKED_ROUNDS, locked=True)
    text = f"median of {ROUNDS}, worst {{:.2f}} ms: the machine's other work is in it"
    return [
        Figure("EMERGENCY: from before the sample to the record in the black box", statistics.median(records) * 1000,
               " ms", at_most=5.0, beside=text.format(max(records) * 1000)),
        Figure("EMERGENCY: from before the sample to the channel", max(wires) * 1000, " ms", at_most=1000.0,
               beside=f"worst of {ROUNDS}, median {statistics.median(wires) * 1000:.2f} ms"),
        Figure("the same while another process has the store locked", max(past) * 1000, " ms", at_most=1000.0,
               beside=f"worst of {LOCKED_ROUNDS}, median {statistics.median(past) * 1000:.2f} ms"),
    ]  # fmt: skip


def _emergencies(rounds: int, *, locked: bool) -> tuple[list[float], list[float]]:
    records, wires = [], []
    for _ in range(rounds):
        with ExitStack() as stack:
            ops = RecordingChannel("ops")
            warden, machine = _warden(stack, ops)
            while not ops.warmed:
                time.sleep(0.001)  # a real thread has to come to its next round
            if locked:
                path = os.path.join(machine.environ["MEMWARDEN_DIR"], FILE_NAME)
                other = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                other.execute("BEGIN EXCLUSIVE")
                stack.callback(other.execute, "ROLLBACK")
            machine.set_usage(int(0.98 * 512 * MIB))
            warden.clock.advance(20)  # type: ignore[attr-defined]  # it is a FakeClock
            start_s = time.monotonic()
            warden.check()
            records.append(time.monotonic() - start_s)
            ops.wait_for(1)
            wires.append(time.monotonic() - start_s)
    return records, wires


def _engine() -> list[Figure]:
    settings = parse({"channels": {"ops": {"kind": "slack"}}}, "benchmark")
    assert settings is not None
    clock, number = FakeClock(), 0
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(settings, folder=folder, clock=clock)
        start_s, sizes = time.thread_time(), []
        while number < EVENTS:
            batch = []
            for _ in range(100):
                number += 1
                what = "raised" if number % 2 else "cleared"
                target = f"t{number // 2 % 5000}"
                batch.append(Signal(
                    id=f"s{number}", key=f"high_usage:{target}", kind="high_usage", what=what, level=2, title="title",  # type: ignore[arg-type]  # keywords from a table
                    text="text", unix_s=clock.wall(), target=target, host="host", member="m",
                ))  # fmt: skip
            clock.advance(1)
            outbox.take(batch)
            if number in (EVENTS // 5, EVENTS):
                sizes.append(_resident())
        spent_s = time.thread_time() - start_s
        size = os.path.getsize(str(outbox.path)) / MIB
        outbox.close()
    return [
        Figure(f"engine and outbox, CPU of one of {EVENTS} signals", spent_s / EVENTS * 1e6, " us"),
        Figure(f"growth of memory from a fifth to the end of {EVENTS} signals", (sizes[1] - sizes[0]) / MIB, " MiB",
               at_most=4.0),
        Figure(f"the store after {EVENTS} signals", size, " MiB", at_most=64.0),
    ]  # fmt: skip


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096
