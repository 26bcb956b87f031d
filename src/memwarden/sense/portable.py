"""Memory through psutil, where there is no /proc: macOS and Windows. It works on Linux too, with the same meanings.

No cgroups here, no pressure-stall information and no shared-page accounting: the limit is what was set or the memory
of the machine, and what psutil does not tell is None with its reason. Ten times the cost of a Linux `Sensor`.
"""

from __future__ import annotations

from os import getpid

from memwarden.errors import MissingExtraError, NotPermittedError, ProcessNotFoundError
from memwarden.facts import Candidate, Limit, Reading, Surroundings
from memwarden.sense.limit import Place
from memwarden.sense.machine import Machine, SystemClock
from memwarden.sense.platform import identify
from memwarden.sense.tree import Process, Usage

try:
    import psutil
except ImportError as error:
    raise MissingExtraError("reading memory on this system", "psutil") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from memwarden.ports import Clock
    from memwarden.ports import Machine as MachinePort

# As often as the Linux sensor: machines are resized while they run, and the slow part costs more than a reading.
REDISCOVER_S = 30.0
SLOW_S = 1.0
_NO_CGROUP = "control groups are a thing of Linux"
_STATES = {"zombie": "Z", "dead": "X"}


class PortableSensor:
    """Reads one process and its machine: the same port as `Sensor`, and the same meanings.

    `setting_bytes` is an explicit limit on this process, by `setting_source`; it can only lower the effective one.
    Raises ProcessNotFoundError at once where there is no process `pid`.
    """

    def __init__(
        self,
        machine: MachinePort | None = None,
        *,
        clock: Clock | None = None,
        pid: int | None = None,
        setting_bytes: int | None = None,
        setting_source: str = "setting",
        heap: bool = True,
    ) -> None:
        self.machine = machine if machine is not None else Machine()
        self.clock = clock if clock is not None else SystemClock()
        self.pid = pid
        self.setting_bytes = setting_bytes
        self.setting_source = setting_source
        self._heap = heap and pid is None
        self._open()

    def _open(self) -> None:
        """Bind to the process: our own again after a fork."""
        self._opened_by = getpid()
        self._process = _process(self.pid if self.pid is not None else self._opened_by)
        self._discover(self.clock.monotonic())

    def _discover(self, now_s: float) -> None:
        self._rediscover_s = now_s + REDISCOVER_S
        self._slow_due_s = now_s
        platform = identify(self.machine, None)
        chain = [Candidate(kind="cgroup", scope="container", bytes=None, source="cgroup", note=_NO_CGROUP)]
        if self.setting_bytes is not None:
            size, source = self.setting_bytes, self.setting_source
            chain.insert(0, Candidate(kind="setting", scope="process", bytes=size, source=source))
        if platform.limit_bytes is not None:
            size, source = platform.limit_bytes, platform.limit_source
            chain.append(Candidate(kind="platform", scope="machine", bytes=size, source=source))
        total = int(psutil.virtual_memory().total)
        source = "psutil.virtual_memory().total"
        chain.append(Candidate(kind="machine", scope="machine", bytes=total, source=source))
        won = min((each for each in chain if each.bytes is not None), key=lambda each: each.bytes or 0)
        limit = Limit(bytes=won.bytes, source=won.source, kind=won.kind, scope=won.scope, chain=tuple(chain))
        self.place = Place(limit=limit, cgroup=None, cgroup_reason=_NO_CGROUP, platform=platform)

    def limit(self) -> Limit:
        """The effective limit as last discovered (at most 30 s ago)."""
        return self.place.limit

    def set_limit(self, setting_bytes: int | None) -> Limit:
        """Change the explicit setting; discovered anew at once."""
        self.setting_bytes = setting_bytes
        self._discover(self.clock.monotonic())
        return self.place.limit

    def rss_bytes(self) -> int | None:
        """Resident bytes of the process; None where it has ended or is not ours to read."""
        if self._opened_by != getpid() and self.pid is None:
            self._open()
        try:
            return int(self._process.memory_info().rss)
        except psutil.Error:
            return None

    def glance(self, *, thrifty: bool = False) -> tuple[int | None, int | None]:
        """(resident bytes, bytes that count against the limit; None instead of the machine's where thrifty)."""
        rss = self.rss_bytes()
        if self.place.limit.scope != "machine":
            return rss, rss
        return rss, None if thrifty else self._used_of_machine()[0]

    def tick(self) -> tuple[int | None, int | None, int | None, int | None]:
        """(resident bytes, None, None, None): there is no container here and no PSI."""
        return self.rss_bytes(), None, None, None

    def read(self) -> Reading:
        """A whole reading. Raises ProcessNotFoundError where the process (not our own) has ended."""
        if self._opened_by != getpid() and self.pid is None:
            self._open()
        now_s = self.clock.monotonic()
        if now_s >= self._rediscover_s:
            self._discover(now_s)
        if now_s >= self._slow_due_s:
            self._read_slow(now_s)
        rss = self._rss_or_raise()
        limit = self.place.limit
        used, low = self._used_of_machine() if limit.scope == "machine" else (rss, None)
        size = limit.bytes
        known = size is not None and used is not None
        return Reading(
            monotonic_s=now_s,
            unix_s=self.clock.wall(),
            pid=self.pid if self.pid is not None else self._opened_by,
            rss_bytes=rss,
            used_bytes=used,
            used_low_bytes=low,
            limit_bytes=size,
            limit_source=limit.source,
            scope=limit.scope,
            headroom_bytes=size - used if known else None,  # type: ignore[operator]  # known: neither is None  # `known` says so
            pressure_ratio=used / size if known else None,  # type: ignore[operator]  # known: neither is None
            around=self._around,
        )

    def _rss_or_raise(self) -> int | None:
        try:
            return int(self._process.memory_info().rss)
        except psutil.NoSuchProcess as error:
            raise ProcessNotFoundError(self._process.pid) from error
        except psutil.Error:
            return None

    def _used_of_machine(self) -> tuple[int, int]:
        """Upper: what is not available without swapping. Lower: the same without what the system calls free."""
        memory = psutil.virtual_memory()
        upper = int(memory.total - memory.available)
        return upper, min(upper, int(memory.used))

    def _read_slow(self, now_s: float) -> None:
        self._slow_due_s = now_s + SLOW_S
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        self._around = Surroundings(
            monotonic_s=now_s,
            rss_peak_bytes=self._peak(),
            machine_total_bytes=int(memory.total),
            machine_available_bytes=int(memory.available),
            machine_swap_total_bytes=int(swap.total),
            machine_swap_free_bytes=int(swap.free),
            python_blocks=self.machine.python_blocks() if self._heap else None,
            sources={
                "rss_bytes": "psutil.Process.memory_info().rss",
                "limit_bytes": self.place.limit.source,
                "used_bytes": "psutil.virtual_memory()" if self.place.limit.scope == "machine" else "rss_bytes",
            },
            unknown=_UNKNOWN,
        )

    def _peak(self) -> int | None:
        """Windows tells a process's peak; macOS does not."""
        try:
            found = getattr(self._process.memory_info(), "peak_wset", None)
        except psutil.Error:
            return None
        return None if found is None else int(found)

    def close(self) -> None:
        """Nothing is kept open; here because every sensor has it."""


_UNKNOWN = tuple(
    (name, "psutil does not tell it")
    for name in ("anon_bytes", "shmem_bytes", "swap_bytes", "psi_some_total_us", "psi_full_total_us")
) + tuple((name, _NO_CGROUP) for name in ("usage_bytes", "container_peak_bytes", "oom_kills"))


def _process(pid: int) -> psutil.Process:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess as error:
        raise ProcessNotFoundError(pid) from error
    except psutil.AccessDenied as error:
        raise _not_ours(pid) from error


def _not_ours(pid: int) -> NotPermittedError:
    return NotPermittedError(f"process {pid} may not be read: it is another user's", mend="run memwarden as its user")


# --- many processes: what `tree` asks where there is no /proc ----------------------------------------------------


def processes() -> Iterator[Process]:
    """Every process that is there now."""
    for each in psutil.process_iter():
        try:
            yield _describe(each)
        except psutil.Error:
            continue  # it ended meanwhile


def find(pid: int) -> Process:
    """One process. Raises ProcessNotFoundError."""
    try:
        return _describe(_process(pid))
    except psutil.NoSuchProcess as error:
        raise ProcessNotFoundError(pid) from error


def _describe(process: psutil.Process) -> Process:
    with process.oneshot():
        try:
            words = process.cmdline()
        except (psutil.AccessDenied, psutil.ZombieProcess):
            words = []
        return Process(
            pid=process.pid,
            ppid=process.ppid() or 0,
            name=process.name(),
            cmdline=" ".join(" ".join(words).split()),
            start_ticks=int(process.create_time() * 100),
            state=_STATES.get(process.status(), "S"),
        )


def usage(pid: int) -> Usage:
    """Resident bytes of one process. Raises ProcessNotFoundError and NotPermittedError."""
    try:
        return Usage(pid=pid, rss_bytes=int(_process(pid).memory_info().rss))
    except psutil.NoSuchProcess as error:
        raise ProcessNotFoundError(pid) from error
    except psutil.AccessDenied as error:
        raise _not_ours(pid) from error
