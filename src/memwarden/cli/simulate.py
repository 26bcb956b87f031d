"""`memwarden simulate`: memory pressure or a leak, for real, in a throw-away child process.

The child is the one that takes the memory, and the kernel is told to choose it first; this process only watches it
and says how it ended. To try what a limit does: `--limit`, or `memwarden run --limit 300M -- memwarden simulate ...`.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from memwarden.cli import _burden
from memwarden.cli._output import write_output
from memwarden.errors import ConfigError, MemwardenError
from memwarden.facts import Fact
from memwarden.sense import Machine, SystemClock, make_sensor, parse, tree
from memwarden.units import MIB, format_bytes, format_duration, parse_bytes, parse_duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator
    from subprocess import Popen

    from memwarden.ports import Machine as MachinePort

SHAPES = ("python", "malloc", "mmap")
# What is taken for real must leave the machine usable: more than half of what is left is asked for with --force.
SAFE_SHARE = 0.5
# A bare interpreter has 8 MiB of RLIMIT_DATA in use; below this it cannot even start to say so.
SMALLEST_LIMIT = 24 * MIB
RATES = {"pressure": "50M/s", "leak": "10M/s"}

DESCRIPTION = (
    "Take memory for real in a throw-away process. pressure: grow, hold, give it back. leak: grow as leaks do, with "
    "three times as much garbage freed beside it, and never give back."
)
EPILOG = (
    "watch it from another terminal: memwarden monitor --pid PID. With the kernel's own limit: memwarden run --limit "
    "300M -- memwarden simulate pressure --size 400M --force"
)


class Plan(Fact):
    """What the child is to do. Sizes in bytes."""

    what: str
    shape: str
    size_bytes: int
    rate_bytes_per_s: int
    hold_s: float
    limit_bytes: int | None

    @property
    def needed_bytes(self) -> int:
        """The most it can take: not more than its limit lets it."""
        return self.size_bytes if self.limit_bytes is None else min(self.size_bytes, self.limit_bytes)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `simulate`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("what", choices=tuple(RATES), help="what to simulate")
    add("--size", metavar="SIZE", default="200M", help="how much in the end (default 200M)")
    add("--rate", metavar="SIZE/s", help="how fast (default 50M/s for pressure, 10M/s for a leak)")
    add("--hold", metavar="TIME", default="5s", help="how long to stay there (default 5s)")
    add("--shape", choices=SHAPES, default="python", help="small objects, malloc's heap, or one mapping a step")
    add("--limit", metavar="SIZE", help="a limit on the child (RLIMIT_DATA): it gets a MemoryError there")
    add("--force", action="store_true", help="even when that is more than half of what is available")
    add("--format", choices=("text", "json"), default="text", help="text as it goes, or one object at the end")


def run(args: Namespace) -> int:
    """Simulate and report. 0 however the child ended: a MemoryError or a kill is what one came to see."""
    plan = _plan(args)
    machine = Machine()
    if not args.force:
        check_room(machine, plan)
    story = Story(machine, plan, talk=args.format == "text")
    found = story.tell()
    if args.format == "json":
        import json

        write_output(json.dumps(found, indent=2) + "\n", None)
    return 0


def _plan(args: Namespace) -> Plan:
    limit = None if args.limit is None else parse_bytes(args.limit, where="--limit")
    if limit is not None and limit < SMALLEST_LIMIT:
        raise ConfigError(
            f"{format_bytes(limit)} is too small for any Python",
            where="--limit",
            mend=f"give {format_bytes(SMALLEST_LIMIT)} or more",
        )
    return Plan(
        what=args.what,
        shape=args.shape,
        size_bytes=parse_bytes(args.size, where="--size"),
        rate_bytes_per_s=parse_rate(args.rate if args.rate is not None else RATES[args.what]),
        hold_s=parse_duration(args.hold, where="--hold"),
        limit_bytes=limit,
    )


def parse_rate(text: str) -> int:
    """Bytes per second of "50M/s", and of "50M" too. Raises UnitError."""
    return parse_bytes(text.strip().removesuffix("/s"), where="--rate")


def check_room(machine: MachinePort, plan: Plan) -> None:
    """Raise MemwardenError where it would take more than half of what is left to us, here or on the machine."""
    reading = make_sensor(machine, heap=False).read()
    around = reading.around.machine_available_bytes
    left = min((each for each in (reading.headroom_bytes, around) if each is not None), default=None)
    if left is not None and plan.needed_bytes > left * SAFE_SHARE:
        raise MemwardenError(
            f"{format_bytes(plan.needed_bytes)} is more than half of the {format_bytes(left)} that are available",
            where="--size",
            mend="take less, set --limit, or say --force",
        )


class Story:
    """One child from start to end, told line by line."""

    def __init__(self, machine: MachinePort, plan: Plan, *, talk: bool) -> None:
        self._machine, self._plan, self._talk = machine, plan, talk
        self._clock = SystemClock()
        self._start_s = self._clock.monotonic()
        self._reached = 0
        self._peak: int | None = None
        self._state = ""

    def tell(self) -> dict[str, Any]:
        """Start it, follow it, and say how it ended. The child never outlives this."""
        kills = _oom_kills(self._machine)
        child = self._start()
        try:
            self._say(
                f"{self._plan.what}: {format_bytes(self._plan.size_bytes)} at "
                f"{format_bytes(self._plan.rate_bytes_per_s)}/s as {self._plan.shape} memory, pid {child.pid}; "
                f"watch it with: memwarden monitor --pid {child.pid}"
            )
            for state, taken in _lines(child):
                self._follow(child.pid, state, taken)
        finally:
            # Its standard input is its life line: closing it ends it within a step, whatever interrupted us.
            if child.stdin is not None:
                child.stdin.close()
            status = child.wait()
        found = self._outcome(child.pid, status, kills)
        self._say(found["text"])
        return found

    def _start(self) -> Popen[bytes]:
        from subprocess import PIPE, Popen

        plan = self._plan
        words = (plan.size_bytes, plan.rate_bytes_per_s, plan.hold_s, plan.limit_bytes or 0)
        script = [sys.executable, "-I", _burden.__file__, plan.what, plan.shape, *map(str, words)]
        return Popen(script, stdin=PIPE, stdout=PIPE)

    def _follow(self, pid: int, state: str, taken: int) -> None:
        resident = self._resident(pid)
        self._reached = max(self._reached, taken)
        self._state = state if state != "taken" else self._state
        shown = format_bytes(resident) if resident is not None else "unknown"
        passed = format_duration(self._clock.monotonic() - self._start_s)
        if state in ("growing", "reached", "holding"):
            self._say(f"{passed:>8}  {state:<8} {format_bytes(taken)} taken, {shown} resident")
        elif state == "released":
            self._say(f"{passed:>8}  released, {shown} still resident")

    def _resident(self, pid: int) -> int | None:
        try:
            resident = tree.usage(self._machine, pid).rss_bytes
        except MemwardenError:
            return None  # it was faster than we
        self._peak = max(resident, self._peak or 0)
        return resident

    def _outcome(self, pid: int, status: int, kills_before: int | None) -> dict[str, Any]:
        ended, why = self._ending(status, kills_before)
        self._peak = max(self._peak or 0, _peak_of_children()) or None
        peak = format_bytes(self._peak)
        return {
            "what": self._plan.what,
            "shape": self._plan.shape,
            "pid": pid,
            "ended": ended,
            "exit_status": status,
            "size_bytes": self._plan.size_bytes,
            "limit_bytes": self._plan.limit_bytes,
            "reached_bytes": self._reached,
            "peak_rss_bytes": self._peak,
            "duration_s": round(self._clock.monotonic() - self._start_s, 3),
            "text": f"{ended}: {why}; {format_bytes(self._reached)} reached, {peak} resident at most",
        }

    def _ending(self, status: int, kills_before: int | None) -> tuple[str, str]:
        if self._state == "refused":
            cause = (
                f"at its limit of {format_bytes(self._plan.limit_bytes)}" if self._plan.limit_bytes else "by the system"
            )
            return "MemoryError", f"the child was refused more memory {cause}, and ended by itself"
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            kills = _oom_kills(self._machine)
            if status == -signal.SIGKILL and kills is not None and kills_before is not None and kills > kills_before:
                return "killed", f"by {name}, and the kernel counted an OOM kill meanwhile"
            return "killed", f"by {name}"
        if status:
            return "failed", f"the child ended with exit code {status}"
        return "done", "the child did all of it" if self._state else "the child ended at once"

    def _say(self, text: str) -> None:
        if self._talk:
            print(text, flush=True)


def _lines(child: Popen[bytes]) -> Iterator[tuple[str, int]]:
    """What the child says, until it has ended."""
    if child.stdout is not None:
        for raw in child.stdout:
            state, _, taken = raw.decode("ascii", "replace").partition(" ")
            yield state, parse.number(taken.encode()) or 0


def _peak_of_children() -> int:
    """The most that the child ever had resident, by the kernel's own account; 0 where there is none."""
    try:
        from resource import RUSAGE_CHILDREN, getrusage
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of each
    return getrusage(RUSAGE_CHILDREN).ru_maxrss * unit


def _oom_kills(machine: MachinePort) -> int | None:
    """OOM kills of this kernel since it booted (/proc/vmstat, Linux 4.13); None where it does not count them."""
    try:
        return parse.keyed(machine.read("/proc/vmstat"), (b"oom_kill",)).get(b"oom_kill")
    except OSError:
        return None
