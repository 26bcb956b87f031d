"""What watching costs while it goes on: CPU of the thread at 10 Hz, and memory over many ticks.

The threads run side by side in one process for longer than the slowest thing that a sensor does (30 s),
each on its own CPU clock. Most of the cost is the wake-up (futex, GIL, cold caches), so this is what a host
pays and not the reading alone, which is in `readings`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from random import Random
from typing import TYPE_CHECKING

import psutil

from benchmarks import Figure
from benchmarks.arms import fresh
from memwarden import Warden
from memwarden.sense import Sensor
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 0.1
SETTLE_S, WINDOWS = 2.0, 35
SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
TICKS = 1_000_000 if SOAK else 100_000


def main() -> list[Figure]:
    """CPU at 10 Hz, then memory over the ticks of a clock that does not wait."""
    return [*_cpu(), *_leaks(), *_flat()]


class Reader:
    """A thread that reads at 10 Hz, with its CPU clock."""

    def __init__(self, read: Callable[[], object]) -> None:
        self._read = read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._read()

    def thread(self) -> threading.Thread:
        """The thread that works."""
        return self._thread

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()


class Guard:
    """A whole Warden at 10 Hz, in a folder of its own: one that shares it would not lead."""

    def __init__(self, folder: str, name: str, **config: object) -> None:
        before = set(threading.enumerate())
        self._warden = Warden(interval=INTERVAL_S, directory=os.path.join(folder, name), **config)
        self._warden.start()
        (self._thread,) = set(threading.enumerate()) - before
        self.stop = self._warden.stop

    def thread(self) -> threading.Thread:
        """The thread that works."""
        return self._thread


def _apart(make: Callable[[], Reader | Guard], *, of: int) -> Reader | Guard:
    """Start a thread a share of the interval after the one before: woken together they would warm each other."""
    made = make()
    time.sleep(INTERVAL_S * (1 + 1 / of))  # real threads at a real rate are measured
    return made


def _shares(clocks: dict[str, int]) -> dict[str, float]:
    """Per cent of a core by thread: the median of one-second windows, for neighbours come and go."""
    seen: dict[str, list[float]] = {name: [] for name in clocks}
    last = {name: time.clock_gettime_ns(clock) for name, clock in clocks.items()}
    for _ in range(WINDOWS):
        time.sleep(1.0)  # the window
        for name, clock in clocks.items():
            now = time.clock_gettime_ns(clock)
            seen[name].append((now - last[name]) / 1e7)
            last[name] = now
    return {name: statistics.median(shares) for name, shares in seen.items()}


def _side_by_side(makers: dict[str, Callable[[], Reader | Guard]]) -> dict[str, float]:
    """Per cent of a core of each of these threads, which live at the same time."""
    arms = {name: _apart(make, of=len(makers)) for name, make in makers.items()}
    clocks = {name: time.pthread_getcpuclockid(arm.thread().ident or 0) for name, arm in arms.items()}
    time.sleep(SETTLE_S)  # caches warm, files open
    share = _shares(clocks)
    for arm in arms.values():
        arm.stop()
    return share


def _cpu() -> list[Figure]:
    own, kept = Sensor(heap=False), psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        share = _side_by_side(
            {
                "psutil": lambda: Reader(kept.memory_info),
                "ours": lambda: Reader(own.rss_bytes),
                "Warden": lambda: Guard(folder, "on"),
                "psutil again": lambda: Reader(kept.memory_info),
                "nothing": lambda: Reader(lambda: None),
            }
        )
    beside = f"psutil {share['psutil']:.3f} % of a core, again {share['psutil again']:.3f} %"
    empty = f"; waking for nothing {share['nothing']:.3f} %"
    peer = (share["psutil"] + share["psutil again"]) / 2

    def over_psutil(what: str, name: str, bound: float) -> Figure:
        said = f"{share[name]:.3f} % of a core; {beside}{empty}"
        return Figure(what, share[name] / peer, "x", at_most=bound, beside=said)

    return [
        over_psutil("thread reading RSS at 10 Hz, over the same on psutil", "ours", 0.5),
        over_psutil("whole Warden at 10 Hz, over that psutil thread", "Warden", 1.2),
    ]


def _leaks() -> list[Figure]:
    """The whole Warden with and without leak detection. Four in one process are dearer each than one alone."""
    with tempfile.TemporaryDirectory() as folder:
        share = _side_by_side(
            {
                "off": lambda: Guard(folder, "off", leak_detection=False),
                "on": lambda: Guard(folder, "on"),
                "off again": lambda: Guard(folder, "off again", leak_detection=False),
                "at 4 Hz": lambda: Guard(folder, "at 4 Hz", leak_interval=0.25),
            }
        )
    peer = (share["off"] + share["off again"]) / 2
    beside = f"{share['on']:.3f} % of a core; without {share['off']:.3f} %, again {share['off again']:.3f} %"
    often = f"{share['at 4 Hz']:.3f} % of a core: samples and looks may take a hundredth there"
    return [
        Figure(
            "whole Warden with leak detection, over one without", share["on"] / peer, "x", at_most=1.1, beside=beside
        ),
        Figure("one that samples for leaks at 4 Hz, over one without", share["at 4 Hz"] / peer, "x", beside=often),
        _leak_share(),
    ]


def _leak_share() -> Figure:
    """Samples and looks of leak detection at its usual 15 s: all that is due over four hours."""
    clock = FakeClock()
    with tempfile.TemporaryDirectory() as folder:
        warden = Warden(clock=clock, directory=folder)
        warden.warm_up()
        findings, reading = warden._findings, warden.reading
        if findings is None:
            raise RuntimeError("leak detection is switched off here")
        began_s, rng = time.thread_time(), Random(1)
        for number in range(960):
            clock.advance(15.0)
            size = int((100 + 0.05 * number + rng.gauss(0, 1)) * 2**20)
            findings.sample(reading.replace(monotonic_s=clock.monotonic(), rss_bytes=size))
        spent_s = time.thread_time() - began_s
        said = f"{spent_s:.2f} s for 960 samples and their looks; {findings.leak.stage} at the end"
    return Figure("leak detection at 15 s, of one core", 100 * spent_s / (960 * 15), " %", at_most=0.05, beside=said)


_FLAT = """
import gc, memwarden, tempfile, threading
from memwarden.testing import FakeClock
marks = []
ticks = 0
def on_wait(seconds):
    global ticks
    ticks += 1
    if ticks in ({warm}, {ticks}):
        gc.collect()  # or free lists, which are bounded, look like growth
        marks.append((rss_bytes(), sys.getallocatedblocks()))
    if ticks == {ticks}:
        done.set()
done = threading.Event()
with tempfile.TemporaryDirectory() as folder:
    with memwarden.Warden(interval=1.0, directory=folder, clock=FakeClock(on_wait=on_wait)):
        done.wait()
(first_rss, first_blocks), (last_rss, last_blocks) = marks
tell(rss=last_rss - first_rss, blocks=last_blocks - first_blocks)
"""


def _flat() -> list[Figure]:
    """Growth from when every window is full (an hour of ticks) to the end."""
    grown = fresh(_FLAT.format(warm=TICKS // 4, ticks=TICKS))
    return [
        Figure(f"growth of resident memory over {TICKS:.0e} ticks", grown["rss"] / 1024, " KiB", at_most=64),
        Figure("growth of Python blocks over them", grown["blocks"], at_most=64),
    ]
