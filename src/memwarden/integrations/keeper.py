"""What the main process of any worker does beside its engine: sweep, tell deaths apart, hold back work under pressure.

Engine-neutral: the adapters call `Keeper.tick` every second or two from the thread that also forks their children, so
that no fork finds a lock of SQLite or of a broker's client taken. Nothing here waits for long or raises.
"""

from __future__ import annotations

import logging
import os
from collections import deque

from memwarden.blackbox import directory
from memwarden.clock import SystemClock
from memwarden.errors import MemwardenError, StoreError
from memwarden.facts import Level
from memwarden.jobs import sweep
from memwarden.jobs.ledger import Watch
from memwarden.jobs.port import LEASE_S
from memwarden.leader import Leader
from memwarden.sense import Machine
from memwarden.sense.cgroup import EVENTS, find_cgroup
from memwarden.supervise.deaths import MACHINE_COUNTER, KillCounter, signal_name
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.facts import Verdict
    from memwarden.jobs.ledger import Ledger
    from memwarden.jobs.port import Engine
    from memwarden.ports import Clock
    from memwarden.ports import Watch as PressureWatch

__all__ = ["Gate", "Keeper", "Kills", "gate_for"]

_log = logging.getLogger("memwarden.jobs")
SIGKILL, SIGTERM = 9, 15
# So long a dead child is left to the process that forked it.
PARENT_S = 5.0
# So long a victim of the kernel may take until it is reaped, on a busy machine.
SETTLE_S = 10.0
# How often lost and due parts are looked for. A part that waits for its next try starts up to so much later.
SWEEP_S = 2.0
# How often the broker is asked what waits in its queues.
COUNT_S = 10.0
# Held back for longer than this, work is let in again although memory did not come back: what holds it may only go
# when work goes on (no waiting state without a timed exit).
PAUSE_S = 60.0


class Kills:
    """Which SIGKILL was the kernel's: the count of OOM kills of the cgroup that the worker lives in.

    The kernel raises the count before it sends the signal, so it has moved when the victim is reaped. Each kill counted
    stands for one death; one that no death of ours was found for within SETTLE_S hit somebody else.
    """

    def __init__(self, machine: Machine | None = None, *, clock: Clock | None = None) -> None:
        found, _ = find_cgroup(machine or Machine())
        self.is_own = found is not None
        path = MACHINE_COUNTER if found is None else f"{found.folder}/{EVENTS[found.version]}"
        self._counter = KillCounter(path)
        self.source = self._counter.source
        self._now = (clock or SystemClock()).monotonic
        self._settled = self._counter.value()
        self._seen: deque[tuple[float, int]] = deque()

    def look(self) -> None:
        """Once every few seconds at least: kills of long ago are settled."""
        now, value = self._now(), self._counter.value()
        if value is None or self._settled is None:
            self._settled = value
            return
        if value > (self._seen[-1][1] if self._seen else self._settled):
            self._seen.append((now, value))
        while self._seen and now - self._seen[0][0] >= SETTLE_S:
            self._settled = max(self._settled, self._seen.popleft()[1])

    def is_kernels(self) -> bool | None:
        """Whether a death by SIGKILL that was just seen was the kernel's; None where there is no counter."""
        now = self._counter.value()
        if now is None or self._settled is None:
            return None
        if now > self._settled:
            self._settled += 1
            return True
        return False


class Keeper:
    """One per worker's main process. `folder` is where the machine's workers agree on who sweeps."""

    def __init__(
        self, engine: Engine, ledger: Ledger, *, folder: str | None = None, sweep_s: float = SWEEP_S,
        clock: Clock | None = None, kills: Kills | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._ledger = engine, ledger
        self._clock = clock or SystemClock()
        place = directory(folder, os.environ, os.geteuid())
        os.makedirs(place, mode=0o700, exist_ok=True)
        self._leader = Leader(place, f"jobs-{engine.name}")
        self._watch = Watch(clock, parent_s=PARENT_S)
        self.kills = kills or Kills()
        self._sweep_s = sweep_s
        self._due_s = self._count_s = float("-inf")

    def tick(self) -> int:
        """Sweep, and count what waits, when it is time and this process leads; how many messages were sent."""
        self.kills.look()
        now = self._clock.monotonic()
        if now < self._due_s or not self._leader.leads():
            return 0
        self._due_s = now + self._sweep_s
        sent = self._sweep()
        if now >= self._count_s and self._engine.can.counts:
            self._count_s = now + COUNT_S
            self._count()
        return sent

    def _count(self) -> None:
        try:
            counts = self._engine.statistics()
            if counts:
                self._ledger.note_queues(self._engine.name, counts)
        except (MemwardenError, OSError) as error:
            _log.warning("%s: what waits in its queues is not known: %s", self._engine.name, error)

    def _sweep(self) -> int:
        try:
            return sweep(self._engine, self._ledger, self._watch)
        except (MemwardenError, OSError) as error:
            _log.warning("%s: the sweep failed and is tried again: %s", self._engine.name, error)
            return 0

    def gone(self, pid: int, status: int | None, *, peak_bytes: int | None = None, timed_out: bool = False) -> int:
        """A child of this worker died with this exit code (or negated signal); of how many parts it was robbed."""
        try:
            claims = self._ledger.claims_of(pid)
            if not claims:
                return 0
            text = _in_words(pid, status, peak_bytes)
            for claimed, worker in claims:
                kind = worker.death(status)
                if timed_out:
                    kind = "timeout"
                elif status == -SIGTERM:
                    kind = "killed"
                elif status == -SIGKILL:
                    kernels = self.kills.is_kernels()
                    if kernels:
                        kind = "oom_kill"
                        text += f"; {self.kills.source} rose"
                    elif kernels is False and self.kills.is_own:
                        kind = "killed"
                if self._ledger.died(claimed, kind=kind, peak_bytes=peak_bytes, text=text):
                    _log.warning("job %s part %d: %s (%s); it goes on elsewhere", claimed[0], claimed[1], text, kind)
        except StoreError as error:
            _log.warning("the death of worker %d could not be written: %s; the sweep finds it", pid, error)
            return 0
        self._sweep()  # what goes on elsewhere is sent now
        return len(claims)

    @property
    def recovery(self) -> str:
        """How soon a part comes back, in words."""
        return (
            f"a child that dies: at once; a worker of this machine: within {self._sweep_s:g} s; another machine's: "
            f"within {LEASE_S + self._sweep_s:g} s"
        )

    def close(self) -> None:
        """Let another worker of the machine sweep."""
        self._leader.resign()


def _in_words(pid: int, status: int | None, peak_bytes: int | None) -> str:
    how = "died" if status is None else signal_name(-status) if status < 0 else f"exit code {status}"
    peak = f", at most {format_bytes(peak_bytes)}" if peak_bytes else ""
    return f"worker {pid}: {how}{peak}"


class Gate:
    """Whether to take more work: shut at CRITICAL, open again at NORMAL, or when it was shut for PAUSE_S.

    The verdict's own hysteresis keeps levels from flickering; the gap between the two lines is a second one.
    """

    def __init__(self, pressure: PressureWatch, *, clock: Clock | None = None, most_s: float = PAUSE_S) -> None:
        self._pressure = pressure
        self._now = (clock or SystemClock()).monotonic
        self._most_s = most_s
        self._since_s: float | None = None
        self._not_before_s = float("-inf")
        self.verdict: Verdict | None = None

    @property
    def is_shut(self) -> bool:
        """As at the last look."""
        return self._since_s is not None

    def look(self) -> bool:
        """Read and weigh now; whether it is shut."""
        now = self._now()
        try:
            self.verdict = verdict = self._pressure.check()
        except (MemwardenError, OSError) as error:
            _log.warning("memory cannot be read (%s): work is not held back", error)
            self._since_s = None
            return False
        if self._since_s is None:
            if verdict.level >= Level.CRITICAL and now >= self._not_before_s:
                self._since_s = now
        elif verdict.level is Level.NORMAL:
            self._since_s = None
        elif now - self._since_s >= self._most_s and verdict.level < Level.EMERGENCY:
            self._since_s = None
            self._not_before_s = now + self._most_s  # let some in before it shuts again
        return self.is_shut

    @property
    def words(self) -> str:
        """The figures of the last look."""
        if self.verdict is None:
            return "memory is not known"
        reading = self.verdict.reading
        used, limit = format_bytes(reading.used_bytes), format_bytes(reading.limit_bytes)
        return f"{self.verdict.level.name}: {used} of {limit}"


def gate_for(pressure: PressureWatch | bool | None) -> Gate | None:
    """The gate that a worker asks: over a Warden of its own for None and True, none at all for False."""
    if pressure is False:
        return None
    if pressure is None or pressure is True:
        from memwarden.warden import Warden

        return Gate(Warden())
    return Gate(pressure)
