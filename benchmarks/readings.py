"""What a reading costs beside psutil's, and that it costs the same on a large heap."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psutil

from benchmarks import Figure
from benchmarks.arms import Worker, race
from memwarden.sense import Machine, Sensor, source

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_MIB, LARGE_MIB = 50, 2048


class PythonMachine(Machine):
    """The machine as it is read where the C reader is not built."""

    def number(self, path: str, *, index: int = 0, scale: int = 1) -> source.NumberFile:
        """A number read in Python."""
        return source.NumberFile(self.root + path, index=index, scale=scale)


def readers() -> dict[str, Sensor]:
    """One sensor by reader; both are the Python one where the C reader is not built."""
    return {"C": Sensor(Machine(), heap=False), "Python": Sensor(PythonMachine(), heap=False)}


def main() -> list[Figure]:
    """RSS, the column tick, a whole reading; then the same on 2 GB."""
    if isinstance(Machine().number("/proc/self/statm"), source.NumberFile):
        print("the C reader is not built: the rows that say C are the Python one")
    sensors = readers()
    return [*_rss(sensors), *_wholes(sensors), *_sizes()]


def _rss(sensors: dict[str, Sensor]) -> list[Figure]:
    kept = psutil.Process()
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    arms: dict[str, Callable[[], object]] = {
        "psutil": kept.memory_info,
        "C": sensors["C"].rss_bytes,
        "Python": sensors["Python"].rss_bytes,
        "unparsed os.pread": lambda: os.pread(statm, 256, 0),
    }
    found = race(arms)
    os.close(statm)
    return [
        Figure(
            f"RSS reading in {name}: times cheaper than a kept psutil Process",
            found.ratio("psutil", name),
            "x",
            at_least=bound,
            beside=found.beside(name, "psutil", "unparsed os.pread"),
        )
        for name, bound in (("C", 20.0), ("Python", 10.0))
    ]


def _wholes(sensors: dict[str, Sensor]) -> list[Figure]:
    arms: dict[str, Callable[[], object]] = {"psutil": psutil.virtual_memory}
    for name, sensor in sensors.items():
        arms[f"tick, {name}"] = sensor.tick
        arms[f"read, {name}"] = sensor.read
    found = race(arms)
    return [
        Figure(
            f"{what}, reader in {name}, over psutil.virtual_memory()",
            found.ratio(f"{arm}, {name}", "psutil"),
            "x",
            at_most=bound,
            beside=found.beside(f"{arm}, {name}", "psutil"),
        )
        for what, arm, bound in (
            ("column tick (RSS, usage, PSI)", "tick", 0.15),
            ("whole Sensor.read()", "read", 0.5),
        )
        for name in sensors
    ]


_SETUP = """
from benchmarks.arms import calls_per_repeat, cost_of
from benchmarks.readings import readers
ballast = bytearray(b"x") * ({mib} << 20)
methods = (("RSS reading", "rss_bytes"), ("column tick", "tick"), ("whole Sensor.read()", "read"))
arms = {{f"{{what}} in {{name}}": getattr(sensor, method) for name, sensor in readers().items()
        for what, method in methods}}
calls = {{name: calls_per_repeat(arm) for name, arm in arms.items()}}
"""
_ASK = "{name: cost_of(arm, calls=calls[name]) for name, arm in arms.items()}"


def _sizes(*, turns: int = 60) -> list[Figure]:
    """Two small processes beside the large one: the second small one is the control arm."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(_SETUP.format(mib=mib), ask=_ASK)) for mib in (SMALL_MIB, LARGE_MIB, SMALL_MIB)
        ]
        turns_seen = [[worker.ask() for worker in workers] for _ in range(turns)]
    figures = []
    for name in turns_seen[0][0]:
        small, large, again = (min(seen[at][name] for seen in turns_seen) for at in range(3))
        figures.append(
            Figure(
                f"{name}: at 2 GB over at 50 MB",
                large / small,
                "x",
                at_most=1.1,
                beside=f"{large:.0f} ns over {small:.0f} ns; A/A {again / small:.3f}",
            )
        )
    return figures
