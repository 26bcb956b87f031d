"""One program of the zoo as one process: paces its work by sleeping and writes what only it can know.

`python -m benchmarks.leaks.zoo.run NAME --mode leaky|fixed|healthy --rate weak --seed 3 --seconds 45 --probe FILE`.
The probe file gets a line each quarter of a second: seconds, work done, Python blocks, malloc in use, bytes of
declared caches, objects collected and uncollectable.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import math
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAMILIES = ("leaking", "lost", "packages", "healthy")
# By how much of its size at the start a leaking process grows over the run.
GROWTH = {"strong": 1.30, "medium": 0.35, "weak": 0.08}
TICK_S = 0.05
PAGE = os.sysconf("SC_PAGE_SIZE")
UNITS = os.path.join(os.path.dirname(__file__), "units.json")


class Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def rss_bytes() -> int:
    """The resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


class Run:
    """What a program of the zoo is given: its mode, its random numbers, and a paced loop."""

    def __init__(self, name: str, *, mode: str, rate: str, seed: int, seconds: float) -> None:
        self.name, self.mode, self.rate, self.seconds = name, mode, rate, seconds
        self.leaky = mode == "leaky"
        self.rng = random.Random(f"{seed}/{name.split(':', maxsplit=1)[0]}")
        self.serial = 0
        self.work_done = 0
        self.declared_bytes: Callable[[], int] | None = None
        self.start_s = time.monotonic()
        self.noise = self.rng.choice((0.0, 0.5, 1.0, 1.0, 1.0, 1.5, 2.0))
        self.traffic = self.rng.choice(("steady", "wave", "wave", "walk", "bursts", "rising"))
        self._blobs: list[tuple[float, object]] = []
        self._ballast = self._make_ballast(self.rng.choice((4, 12, 25, 30, 30, 30, 45)))

    def _make_ballast(self, mib: int) -> list[object]:
        """A data set read at start, so that the process has a realistic size: large buffers and small objects."""
        return [[bytes([i % 251]) * 65536 for i in range(mib * 8)], [f"row-{i:09d}" * 4 for i in range(mib * 5000)]]

    def elapsed_s(self) -> float:
        """Since the work began."""
        return time.monotonic() - self.start_s

    def text(self, length: int) -> str:
        """A new string of that many characters."""
        self.serial += 1
        return f"{self.serial:012d}" + "x" * max(0, length - 12)

    def weight(self) -> float:
        """How much traffic there is now, about 1 on average."""
        t = self.elapsed_s()
        if self.traffic == "steady":
            return self.rng.uniform(0.8, 1.2)
        if self.traffic == "wave":
            return (1 + 0.45 * math.sin(6.28 * t / self._period + self._phase)) * self.rng.uniform(0.4, 1.6)
        if self.traffic == "walk":
            self._level = min(max(self._level * self.rng.uniform(0.95, 1.055), 0.3), 2.5)
            return self._level
        if self.traffic == "rising":
            return (0.4 + 1.2 * t / self.seconds) * self.rng.uniform(0.7, 1.3)
        return 3.5 if self.rng.random() < 0.25 else 0.15

    def ticks(self) -> Iterator[tuple[float, float]]:
        """The share of the run that is over (0-1) and the traffic now, every 50 ms until the end."""
        self.start_s = time.monotonic()
        self._phase, self._period, self._level = self.rng.random() * 6.28, self.rng.uniform(7, 17), 1.0
        due_s = self.start_s
        while self.elapsed_s() < self.seconds:
            yield self.elapsed_s() / self.seconds, self.weight()
            self.churn()
            due_s = max(due_s + TICK_S, time.monotonic() - 1)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def churn(self) -> None:
        """The garbage of other requests: buffers and small objects that live for 0.1 to 3 seconds."""
        now = time.monotonic()
        self._blobs = [blob for blob in self._blobs if blob[0] > now]
        if self.noise and self.rng.random() < 0.3:
            mean = 0.006 * self.noise * self._base
            size = int(min(mean * 12, mean * self.rng.lognormvariate(0, 1)))
            blob: object = bytearray(max(size, 64))
            if self.rng.random() < 0.5:
                blob = [{"k": i, "v": str(i) * 4} for i in range(min(max(size // 350, 1), 4000))]
            self._blobs.append((now + self.rng.expovariate(1.2), blob))

    _base = 30e6

    def repeat(self, op: Callable[[], object], unit_bytes: float) -> None:
        """So many calls of `op` that a leak of `unit_bytes` a call grows the process by the rate's share."""
        self._base = rss_bytes()
        per_s = GROWTH[self.rate] * self._base / max(unit_bytes, 1.0) / self.seconds
        due, last_s = 0.0, time.monotonic()
        for _, weight in self.ticks():
            now_s = time.monotonic()
            due += weight * per_s * min(now_s - last_s, 0.5)
            last_s = now_s
            count = min(int(due), 20000)
            due -= count
            for _ in range(count):
                op()
            self.work_done += count

    def report(self, path: str) -> None:
        """Write the probe lines from a thread until the process ends."""
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = Mallinfo2
        with open(path, "w") as file:
            while True:
                info, stats = mallinfo2(), gc.get_stats()
                row = (
                    time.time(),
                    self.work_done,
                    sys.getallocatedblocks(),
                    info.uordblks + info.hblkhd,
                    self.declared_bytes() if self.declared_bytes else 0,
                    sum(each["collected"] for each in stats),
                    sum(each["uncollectable"] for each in stats),
                )
                file.write(json.dumps(row) + "\n")
                file.flush()
                time.sleep(0.25)


def programs() -> dict[str, Callable[[Run], object]]:
    """Every program by name: `family.function`."""
    found = {}
    for family in FAMILIES:
        module = importlib.import_module(f"benchmarks.leaks.zoo.{family}")
        found |= {f"{family}.{name}": make for name, make in module.PROGRAMS.items()}
    return found


def calibrate(op: Callable[[], object]) -> float:
    """Bytes of resident memory that one call leaves behind, over at least 20 MiB of them."""
    before, count, end_s = rss_bytes(), 0, time.monotonic() + 20
    while rss_bytes() - before < 5 << 20:  # what was free already is used up
        op()
    before = rss_bytes()
    while time.monotonic() < end_s and (count < 50 or rss_bytes() - before < 20 << 20):
        op()
        count += 1
    return (rss_bytes() - before) / count


def main() -> None:
    """Run one program to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--mode", default="leaky")
    parser.add_argument("--rate", default="medium")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--probe")
    parser.add_argument("--calibrate", action="store_true")
    args = parser.parse_args()
    run = Run(args.name, mode=args.mode, rate=args.rate, seed=args.seed, seconds=args.seconds)
    if args.probe:
        threading.Thread(target=run.report, args=(args.probe,), daemon=True).start()
    op = programs()[args.name](run)
    if args.calibrate:
        print(calibrate(op))
    elif op is not None:  # a leaking program; a healthy one has paced itself
        with open(UNITS) as file:
            run.repeat(op, json.load(file)[args.name])
    sys.stdout.flush()
    os._exit(0)  # what was leaked need not be torn down


if __name__ == "__main__":
    main()
