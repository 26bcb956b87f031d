"""The measuring instrument: interleaved arms, each repeated many times for a millisecond, in thread CPU time.

On a shared machine the same call takes twice as long a minute later, so two figures may be compared only
where their arms took turns. The minimum of many short repeats is what the code costs undisturbed; the
median says how it went. The first arm always runs twice, as two arms: how far their minima lie apart
(`control`) is what the run cannot tell.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from itertools import repeat
from os.path import dirname
from typing import TYPE_CHECKING, Any, NamedTuple

import memwarden.units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

# Long enough that reading the clock (60 ns) is nothing, short enough that most repeats see no neighbour.
REPEAT_NS = 1_000_000
# Where memwarden is imported from: fresh interpreters run isolated (-I) and are told.
SOURCE = dirname(dirname(memwarden.units.__file__))


class Cost(NamedTuple):
    """What one call of an arm cost, in ns of thread CPU time."""

    minimum_ns: float
    median_ns: float

    def __str__(self) -> str:
        return f"{self.minimum_ns:.0f} ns [median {self.median_ns:.0f}]"


class Race(NamedTuple):
    """The costs of arms that took turns, and the ratio of the minima of two equal arms in that run."""

    costs: dict[str, Cost]
    control: float

    def ratio(self, one: str, other: str) -> float:
        """How many times the other's minimum the one's is."""
        return self.costs[one].minimum_ns / self.costs[other].minimum_ns

    def beside(self, *names: str) -> str:
        """The named costs and the control, for a row."""
        return "; ".join(f"{name} {self.costs[name]}" for name in names) + f"; A/A {self.control:.3f}"


def race(arms: Mapping[str, Callable[[], object]], *, repeats: int = 120) -> Race:
    """Measure the arms in turns. The time per call includes the loop around it, some 10 ns, in every arm."""
    running = list(arms.items())
    running.append(("", running[0][1]))
    calls = {name: calls_per_repeat(arm) for name, arm in running}
    seen: dict[str, list[float]] = {name: [] for name, _ in running}
    with no_collection():
        for turn in range(repeats):
            for name, arm in running if turn % 2 else reversed(running):
                seen[name].append(cost_of(arm, calls=calls[name]))
    costs = {name: Cost(min(times), statistics.median(times)) for name, times in seen.items()}
    again, first = costs.pop(""), costs[running[0][0]]
    return Race(costs, again.minimum_ns / first.minimum_ns)


def cost_of(arm: Callable[[], object], *, calls: int) -> float:
    """Nanoseconds of thread CPU time of one call, in one repeat."""
    start = time.thread_time_ns()
    for _ in repeat(None, calls):
        arm()
    return (time.thread_time_ns() - start) / calls


def calls_per_repeat(arm: Callable[[], object]) -> int:
    """As many calls as take about one repeat; also warms the arm up."""
    cost_of(arm, calls=20)
    return max(3, int(REPEAT_NS / cost_of(arm, calls=20)))


class no_collection:  # noqa: N801  reads as a statement
    """No cyclic collection inside; it would be charged to whichever arm it hits."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *exc: object) -> None:
        gc.enable()


# --- other processes ---------------------------------------------------------------------------------------

PRELUDE = f"""
import sys
sys.path.insert(0, {SOURCE!r})
sys.path.append({dirname(dirname(__file__))!r})
import os
def rss_bytes():
    fd = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(fd, 200).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(fd)
def tell(**answer):
    import json
    print(json.dumps(answer), flush=True)
"""


def fresh(program: str) -> dict[str, Any]:
    """Run a program in a new isolated interpreter; what it told with `tell(name=value, ...)`."""
    command = [sys.executable, "-I", "-c", PRELUDE + program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fresh_medians(programs: Mapping[str, str], *, rounds: int = 7) -> dict[str, dict[str, float]]:
    """Each program in turns, in `rounds` fresh processes after one that writes byte code: medians by key."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, program in programs.items():
            answer = fresh(program)
            if turn:
                seen[name].append(answer)
    return {
        name: {key: statistics.median(each[key] for each in answers) for key in answers[0]}
        for name, answers in seen.items()
    }


class Worker:
    """A process that does one thing each time it is asked, so that several can take turns."""

    def __init__(self, setup: str, *, ask: str) -> None:
        program = f"{PRELUDE}{setup}\nfor line in sys.stdin:\n    tell(answer={ask})\n"
        command: Sequence[str] = [sys.executable, "-I", "-c", program]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> Any:
        """Have it done once; the answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the worker has no pipes")
        stdin.write("\n")
        stdin.flush()
        return json.loads(stdout.readline())["answer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: object, trace: TracebackType | None) -> None:
        self._process.communicate()
