"""What `monitor` can look at: the machine or container we are in, one process, or several together.

Each target gives a `Sample`: a reading as `judge` wants it, and beside it what belongs to the target alone. The two
differ where the limit is a container's or the machine's: then what the kernel counts against the limit is more than
the process that is watched, and both are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from memwarden.config import settle
from memwarden.errors import MemwardenError, NotPermittedError, ProcessNotFoundError
from memwarden.facts import Candidate, Fact, Limit, Reading
from memwarden.judge import Lines
from memwarden.sense import find_cgroup, find_limit, identify, make_sensor, tree
from memwarden.units import MIB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from memwarden.ports import Clock, Machine
    from memwarden.sense import Sensor
    from memwarden.sense.portable import PortableSensor
    from memwarden.sense.tree import Process, Sum, Usage

# Who belongs to a group is looked up once a second at most: it reads a file of every process there is.
RESCAN_S = 1.0
SETTING = "--limit"


class Ended(Exception):  # noqa: N818  the end of what is watched, and no error
    """What was watched is gone; the message says so."""


class Sample(Fact):
    """One look: the reading that is judged, and what the target itself holds and held at most.

    `usage` is the target's own memory in detail, `parts` what each process of a group holds, with `names` by pid.
    """

    reading: Reading
    current_bytes: int | None
    peak_bytes: int | None
    usage: Usage | Sum | None = None
    parts: tuple[Usage, ...] = ()
    names: Mapping[int, str] = {}
    processes: int | None = None
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """Something to look at. `title` and `explain` say what it is and what its figures mean."""

    title: str
    explain: str
    is_group: bool
    pid: int | None

    def look(self) -> Sample:
        """How it is now. Raises Ended."""

    def limit(self) -> Limit:
        """The limit it is judged by, with the chain that it won against."""


class _Peak:
    """The most there ever was, as far as anybody saw it."""

    def __init__(self) -> None:
        self._most: int | None = None

    def with_(self, *sizes: int | None) -> int | None:
        for size in sizes:
            if size is not None and (self._most is None or size > self._most):
                self._most = size
        return self._most


class _Commons:
    """A machine without the resource limits of the process that looks: those bind nobody else."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self, path: str) -> bytes:
        return b"" if path.endswith("/limits") else self._machine.read(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)


def _common_sensor(machine: Machine, clock: Clock, pid: int | None) -> Sensor | PortableSensor:
    commons: Any = _Commons(machine)
    return make_sensor(commons, clock=clock, pid=pid, heap=False)


def _capped(reading: Reading, cap_bytes: int | None, used_bytes: int | None) -> Reading:
    """The reading with an explicit limit on `used_bytes`, where that is the tighter one."""
    if cap_bytes is None or (reading.limit_bytes is not None and reading.limit_bytes < cap_bytes):
        return reading
    headroom, ratio = reading.headroom_bytes, reading.pressure_ratio
    if used_bytes is not None:
        left, share = cap_bytes - used_bytes, used_bytes / cap_bytes
        headroom = left if headroom is None else min(left, headroom)
        ratio = share if ratio is None else max(share, ratio)
    low = reading.used_low_bytes if used_bytes == reading.used_bytes else used_bytes
    return reading.replace(
        used_bytes=used_bytes,
        used_low_bytes=low,
        limit_bytes=cap_bytes,
        limit_source=SETTING,
        headroom_bytes=headroom,
        pressure_ratio=ratio,
    )


def _capped_limit(limit: Limit, cap_bytes: int | None, scope: str) -> Limit:
    """The limit, with the explicit one in its chain and, where that is the tighter one, instead of it."""
    if cap_bytes is None:
        return limit
    ours = Candidate(kind="setting", scope=scope, bytes=cap_bytes, source=SETTING)
    chain = (ours, *limit.chain)
    if limit.bytes is not None and limit.bytes < cap_bytes:
        return limit.replace(chain=chain)
    return Limit(bytes=cap_bytes, source=SETTING, kind=ours.kind, scope=scope, chain=chain)


class Surroundings:
    """The container we are in, or the machine where there is none: what counts against its limit."""

    is_group = False
    pid: int | None = None

    def __init__(self, machine: Machine, clock: Clock, *, cap_bytes: int | None = None) -> None:
        self._sensor = _common_sensor(machine, clock, None)
        self._cap_bytes = cap_bytes
        self._peak = _Peak()
        container = self._sensor.limit().scope == "container"
        self.title = "the container we are in" if container else "this machine"
        self.explain = "current: what is used, without cache that can be dropped"

    def limit(self) -> Limit:
        """The limit of the container or the machine."""
        found = self._sensor.limit()
        return _capped_limit(found, self._cap_bytes, found.scope)

    def look(self) -> Sample:
        """How it is now."""
        reading = self._sensor.read()
        used = reading.used_bytes
        reading = _capped(reading, self._cap_bytes, used).replace(rss_bytes=used)
        return Sample(reading=reading, current_bytes=used, peak_bytes=self._peak.with_(used))


class OneProcess:
    """One process, by pid. Raises MemwardenError, one line, where there is none that could be watched."""

    is_group = False

    def __init__(self, machine: Machine, clock: Clock, pid: int, *, cap_bytes: int | None = None) -> None:
        self.pid: int | None = pid
        self._machine, self._pid = machine, pid
        self._process = _watchable(machine, pid)
        self._sensor = make_sensor(
            machine, clock=clock, pid=pid, setting_bytes=cap_bytes, setting_source=SETTING, heap=False
        )
        self._peak = _Peak()
        self.title = f"pid {pid} ({_short(self._process.title)})"
        self.explain = "current: its resident memory"

    def limit(self) -> Limit:
        """The limit that binds the process."""
        return self._sensor.limit()

    def look(self) -> Sample:
        """How it is now. Raises Ended."""
        self._check()
        try:
            reading = self._sensor.read()
        except ProcessNotFoundError as error:
            raise Ended(f"pid {self._pid} ended") from error
        rss, around = reading.rss_bytes, reading.around
        if not rss:
            self._check()  # it ended between the two looks
        usage = tree.Usage(
            pid=self._pid,
            rss_bytes=rss or 0,
            anon_bytes=around.anon_bytes,
            shmem_bytes=around.shmem_bytes,
            swap_bytes=around.swap_bytes,
        )
        swap = around.swap_bytes or 0
        return Sample(
            reading=reading,
            current_bytes=rss,
            peak_bytes=self._peak.with_(rss, around.rss_peak_bytes),
            usage=usage,
            notes=(f"and {format_bytes(swap)} swapped out",) if swap >= MIB else (),
        )

    def _check(self) -> None:
        """That the pid still is the process we began with: not a zombie, not a later one with its number."""
        try:
            now = tree.find(self._machine, self._pid)
        except (ProcessNotFoundError, NotPermittedError) as error:
            raise Ended(f"pid {self._pid} ended") from error
        if now.is_over or now.start_ticks != self._process.start_ticks:
            raise Ended(f"pid {self._pid} ended")


class Group:
    """Several processes together: a tree (`pid`), or all that match a name (`pattern`)."""

    is_group = True

    def __init__(
        self,
        machine: Machine,
        clock: Clock,
        *,
        pid: int | None = None,
        pattern: str = "",
        cap_bytes: int | None = None,
        pss: bool = False,
    ) -> None:
        self._machine, self._clock = machine, clock
        self.pid, self._pattern = pid, pattern
        self._cap_bytes, self._pss = cap_bytes, pss
        self._peak = _Peak()
        self._names: dict[int, str] = {}
        self._common: tuple[int | None, Sensor | PortableSensor] | None = None
        self._known_places: frozenset[bytes] = frozenset()
        self._root = _watchable(machine, pid) if pid is not None else None
        self._pids = self._find()
        self._rescan_s = clock.monotonic() + RESCAN_S
        if not self._pids:
            raise MemwardenError(
                f"no process matches {pattern!r}",
                where="--match",
                mend="it is looked for in names and command lines; `--pid` takes a number",
            )
        if self._root is not None:
            self.title = f"pid {pid} ({_short(self._root.title)}) and all it started"
        else:
            self.title = f"all processes that match {pattern!r}"
        self.explain = (
            "current: the PSS of all, which splits shared pages among those who share them"
            if pss
            else "current: anonymous memory, shared once (--pss splits what forks share)"
        )

    def limit(self) -> Limit:
        """The limit of what they have in common."""
        return _capped_limit(self._sensor().limit(), self._cap_bytes, "processes")

    def look(self) -> Sample:
        """How they are now. A tree raises Ended with its root; a name may come back, so nobody is a sum of zero."""
        now_s = self._clock.monotonic()
        if now_s >= self._rescan_s:
            self._rescan_s = now_s + RESCAN_S
            self._pids = self._find()
            if self._root is not None and self._known_places != frozenset(self._places()):
                self._common = None
        total = tree.add_up(self._machine, self._pids, pss=self._pss)
        if self._root is not None and all(each.pid != self._root.pid for each in total.parts):
            self._find()  # says that it ended
        held = total.held_bytes
        reading = self._read().replace(rss_bytes=total.rss_bytes)
        return Sample(
            reading=_capped(reading, self._cap_bytes, held).replace(
                scope="processes" if self._is_capped(reading) else reading.scope
            ),
            current_bytes=held,
            peak_bytes=self._peak.with_(held),
            usage=total,
            parts=tuple(sorted(total.parts, key=lambda each: -each.held_bytes)),
            names=self._names,
            processes=len(total.parts),
            notes=tuple(_notes(total, pss=self._pss)),
        )

    def _is_capped(self, reading: Reading) -> bool:
        return self._cap_bytes is not None and (reading.limit_bytes is None or reading.limit_bytes >= self._cap_bytes)

    def _read(self) -> Reading:
        try:
            return self._sensor().read()
        except ProcessNotFoundError:  # the one whose container we read by has ended: the next one
            self._common = None
            self._pids = self._find()
            return self._sensor().read()

    def _sensor(self) -> Sensor | PortableSensor:
        """Reads the container that they share, through one of them; else what we are in ourselves."""
        if self._common is None or self._common[0] not in (*self._pids, None):
            places = self._places()
            pid = self._tightest(places) if self._root is not None else min(self._pids) if len(places) == 1 else None
            self._common = (pid, _common_sensor(self._machine, self._clock, pid))
            self._known_places = frozenset(places)
        return self._common[1]

    def _places(self) -> dict[bytes, int]:
        """The cgroups that they live in, each with one who does."""
        found: dict[bytes, int] = {}
        for pid in self._pids:
            try:
                found.setdefault(self._machine.read(f"/proc/{pid}/cgroup"), pid)
            except OSError:
                continue
        return found

    def _tightest(self, places: Mapping[bytes, int]) -> int | None:
        """Who of a tree lives under the tightest limit: below `memwarden run` the command, and not the supervisor."""
        limits = [(find_limit(self._machine, pid=pid).bytes, pid) for pid in places.values()]
        return min(((size, pid) for size, pid in limits if size is not None), default=(None, min(self._pids)))[1]

    def _find(self) -> list[int]:
        if self._root is not None:
            found = tree.tree(self._machine, self._root.pid)
            if not found or tree.find(self._machine, self._root.pid).start_ticks != self._root.start_ticks:
                raise Ended(f"pid {self._root.pid} ended; what it started may live on")
            self._name(found)
            return found
        matched = tree.match(self._machine, self._pattern)
        self._names = {each.pid: each.title for each in matched}
        return [each.pid for each in matched]

    def _name(self, pids: Sequence[int]) -> None:
        known = {pid: self._names[pid] for pid in pids if pid in self._names}
        for pid in pids:
            if pid not in known:
                try:
                    known[pid] = tree.find(self._machine, pid).title
                except MemwardenError:
                    continue
        self._names = known


def _notes(total: Sum, *, pss: bool) -> Iterable[str]:
    for reason, count in total.unknown:
        yield f"{count} of them not read: {reason}"
    if pss and total.pss_bytes is None:
        yield "PSS not known of all: anonymous memory instead"
    if total.anon_bytes is None and total.pss_bytes is None:
        yield "this system does not tell shared pages apart: summed RSS"


def _watchable(machine: Machine, pid: int) -> Process:
    """The process, if it has memory that can be watched; else MemwardenError in one line."""
    process = tree.find(machine, pid)
    if process.is_over:
        raise MemwardenError(f"process {pid} has ended: a zombie, not yet reaped by its parent {process.ppid}")
    if not process.cmdline and not tree.usage(machine, pid).rss_bytes:
        raise MemwardenError(
            f"process {pid} ({process.name}) is a kernel thread", mend="it has no memory of its own to watch"
        )
    return process


def _short(text: str, size: int = 60) -> str:
    return text if len(text) <= size else text[: size - 3] + "..."


def lines_here(machine: Machine) -> Lines:
    """The lines of the levels as a Warden here would have them."""
    platform = identify(machine, find_cgroup(machine)[0]).name
    config = settle(environ=machine.environ, platform=platform).config
    return Lines.of(config)
