"""One sensor: a whole Reading on request, or the columns of a fast tick.

Both cost microseconds, whatever the size of the heap, because files stay open and only what the limit's scope asks
for is read each time. What moves slowly or costs more (swap, peaks, OOM counters, other limited ancestors) is read
once a second; the limit is discovered again every 30 s, because containers are resized while they run; the heap
figures, whose cost grows with the heap, have their own rate and stretch it until they cost a thousandth of the time.
"""

from __future__ import annotations

from os import getpid

from memwarden.errors import ProcessNotFoundError
from memwarden.facts import Reading, Surroundings
from memwarden.sense import parse
from memwarden.sense.cgroup import EVENTS, PEAK, USAGE
from memwarden.sense.limit import Place, find_place
from memwarden.sense.machine import Machine, SystemClock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.facts import Limit
    from memwarden.ports import Clock, NumberSource, Source
    from memwarden.ports import Machine as MachinePort
    from memwarden.sense.cgroup import Cgroup

    Pair = tuple[int | None, int | None]

# In-place resizing of pods and `systemctl set-property` change limits of running processes.
REDISCOVER_S = 30.0
SLOW_S = 1.0
HEAP_S = 30.0
# The heap figures may take this share of the time: they walk the heap.
HEAP_SHARE = 0.001

_STATUS = (b"RssAnon", b"RssShmem", b"VmSwap", b"VmHWM")
_MEMINFO = (b"MemTotal", b"MemAvailable", b"SReclaimable", b"Shmem", b"SwapTotal", b"SwapFree")
# What of memory.stat is file cache that can go (inactive, active) and what of that cannot go at once (dirty,
# writeback) or can go beside it (reclaimable slab, which v1 does not tell), by cgroup version.
_CACHE = {1: parse.needles((b"total_inactive_file", b"total_active_file")),
          2: parse.needles((b"inactive_file", b"active_file"))}  # fmt: skip
_STUCK = {
    1: (b"total_dirty", b"total_writeback", b""),
    2: (b"file_dirty", b"file_writeback", b"slab_reclaimable"),
}


class Sensor:
    """Reads one process and what it lives in.

    `pid` None is the process itself. `setting_bytes` is an explicit limit on this process, by `setting_source`; it
    can only lower the effective one. `heap` switches the slow figures of Python's and the C library's heap on.
    `rss_bytes()` gives the resident bytes alone: the cheapest reading there is.
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
        self._heap = _Heap(self.machine, self.clock) if heap and pid is None else None
        self._who: int | str = "self" if pid is None else pid
        self._statm = self.machine.open(f"/proc/{self._who}/statm")
        self._rss = self.machine.number(f"/proc/{self._who}/statm", index=1, scale=self.machine.page_size)
        self._status = self.machine.open(f"/proc/{self._who}/status")
        self._meminfo = self.machine.open("/proc/meminfo")
        self.rss_bytes: Callable[[], int | None] = self._rss.value
        self._page_size = self.machine.page_size
        self._opened_by = getpid()
        self._in_place: list[Source | NumberSource] = []
        self._discover(self.clock.monotonic())

    # --- discovery ---------------------------------------------------------------------------------------------

    def _discover(self, now_s: float) -> None:
        for each in self._in_place:
            each.close()
        self._rediscover_s = now_s + REDISCOVER_S
        self._slow_due_s = now_s
        place = self.place = find_place(
            self.machine, setting_bytes=self.setting_bytes, setting_source=self.setting_source, pid=self._who
        )
        self._reported_pid = self.pid if self.pid is not None else self.machine.getpid()
        folder = place.binding or (place.cgroup.folder if place.cgroup else None)
        self._open_cgroup(folder, place.cgroup)
        self._others = self._other_levels(place)
        by_scope = {"container": self._used_of_container, "machine": self._used_of_machine}
        of_process = self._used_of_setting if place.limit.kind == "setting" else self._used_of_rlimit
        self._used = by_scope.get(place.limit.scope, of_process)
        self._sources = self._say_sources()
        self._missing = _say_missing(place)

    def _open_cgroup(self, folder: str | None, cgroup: Cgroup | None) -> None:
        """Open what is read of the cgroup that binds, else of our own, else nothing."""
        machine, version = self.machine, cgroup.version if cgroup else 0
        psi = f"{folder}/memory.pressure"
        self._psi_path = psi if folder and machine.exists(psi) else "/proc/pressure/memory"
        self._psi = machine.open(self._psi_path)
        self._folder = folder
        self._cache_keys = _CACHE.get(version, ())
        self._usage = self._peak = self._stat = self._events = None
        self._in_place = [self._psi]
        if folder and cgroup:
            self._usage = machine.number(f"{folder}/{USAGE[version]}")
            self._peak = machine.number(f"{folder}/{PEAK[version]}")
            self._stat = machine.open(f"{folder}/memory.stat")
            # v1 counts an OOM kill at the victim's own cgroup only, whoever's limit it was; v2 there and upwards
            self._events = machine.open(f"{cgroup.folder}/{EVENTS[version]}")
            self._in_place += [self._usage, self._peak, self._stat, self._events]

    def _other_levels(self, place: Place) -> list[tuple[int, NumberSource, Source]]:
        """Limited levels other than the binding one, with their usage and memory.stat."""
        if place.cgroup is None:
            return []
        limits = {each.source.rpartition("/")[0]: each.bytes for each in place.limit.chain if each.kind == "cgroup"}
        name = USAGE[place.cgroup.version]
        found = [
            (size, self.machine.number(f"{folder}/{name}"), self.machine.open(f"{folder}/memory.stat"))
            for folder in place.cgroup.levels
            if folder != place.binding and (size := limits.get(folder)) is not None
        ]
        for _, usage, stat in found:
            self._in_place += [usage, stat]
        return found

    def _say_sources(self) -> dict[str, str]:
        process, limit = f"/proc/{self._who}", self.place.limit
        found = {
            "rss_bytes": f"{process}/statm",
            "anon_bytes": f"RssAnon in {process}/status",
            "limit_bytes": limit.source,
            "psi_some_total_us": self._psi_path,
            "machine_available_bytes": "MemAvailable in /proc/meminfo",
        }
        if limit.scope == "container":
            cache = self._cache_keys[0].decode().strip()
            found["used_bytes"] = f"{self._folder}/{USAGE[self._version()]} minus {cache} in memory.stat"
        elif limit.scope == "machine":
            found["used_bytes"] = "MemTotal minus MemAvailable in /proc/meminfo"
        elif limit.kind == "setting":
            found["used_bytes"] = f"{process}/statm resident plus VmSwap in {process}/status"
        else:
            found["used_bytes"] = f"{_rlimit_key(limit).decode()} in {process}/status"
        if self._heap:
            found["python_blocks"] = "sys.getallocatedblocks"
            found["native_in_use_bytes"] = "mallinfo2"
        return found

    def _version(self) -> int:
        return self.place.cgroup.version if self.place.cgroup else 0

    def limit(self) -> Limit:
        """The effective limit as last discovered (at most 30 s ago)."""
        return self.place.limit

    def set_limit(self, setting_bytes: int | None) -> Limit:
        """Change the explicit setting; discovered anew at once."""
        self.setting_bytes = setting_bytes
        self._discover(self.clock.monotonic())
        return self.place.limit

    # --- reading -----------------------------------------------------------------------------------------------

    def tick(self) -> tuple[int | None, int | None, int | None, int | None]:
        """(resident bytes, bytes in use of the container, PSI some and full totals in us): the fast columns.

        Without a cgroup the second is None. It is raw usage, file cache included: `read` knows what of it can go.
        """
        some, full = self._stalls()
        return self.rss_bytes(), self._usage.value() if self._usage is not None else None, some, full

    def glance(self, *, thrifty: bool = False) -> tuple[int | None, int | None]:
        """(resident bytes, raw bytes that count against the limit): has anything moved since the last reading?

        Raw: a container's usage with its cache, the machine without its available memory, else resident bytes.
        Thrifty: None instead of the machine's, which cost eight times as much as the rest.
        """
        rss, scope = self.rss_bytes(), self.place.limit.scope
        if scope == "container":
            return rss, self._usage.value() if self._usage is not None else None
        if scope == "process":
            return rss, rss
        if thrifty:
            return rss, None
        try:
            total, _, available, _ = parse.memory_head(self._meminfo.read())
        except OSError:
            return rss, None
        return rss, total - available if total is not None and available is not None else None

    def read(self) -> Reading:
        """A whole reading. Raises ProcessNotFoundError where the process (not our own) has ended."""
        if self._opened_by != getpid():
            self._after_fork()  # before the time is taken: what it finds due at once must not lie ahead
        now_s = self.clock.monotonic()
        if now_s >= self._rediscover_s:
            self._discover(now_s)
        rss = self.rss_bytes()
        if rss is None and self.pid is not None:
            raise ProcessNotFoundError(self.pid)
        if now_s >= self._slow_due_s:
            self._read_slow(now_s)
        usage = self._usage.value() if self._usage is not None else None
        some, full = self._stalls()
        used, low = self._used(rss, usage)
        limit = self.place.limit
        size = limit.bytes
        headroom = ratio = low_ratio = None
        if size is not None and used is not None:
            headroom, ratio = size - used, used / size
            low_ratio = ratio if low is None else low / size
            if self._slow_others:
                headroom, ratio, low_ratio = self._with_ancestors(headroom, ratio, low_ratio)
        return Reading(
            monotonic_s=now_s,
            unix_s=self.clock.wall(),
            pid=self._reported_pid,
            rss_bytes=rss,
            used_bytes=used,
            used_low_bytes=low,
            limit_bytes=size,
            limit_source=limit.source,
            scope=limit.scope,
            headroom_bytes=headroom,
            pressure_ratio=ratio,
            pressure_low_ratio=low_ratio,
            usage_bytes=usage,
            psi_some_total_us=some,
            psi_full_total_us=full,
            around=self._around,
        )

    def _stalls(self) -> Pair:
        try:
            return parse.stall_totals(self._psi.read())
        except OSError:
            return None, None

    # Each returns (upper, lower) bound of what counts against the limit, in the limit's own scope.

    def _used_of_container(self, rss: int | None, usage: int | None) -> Pair:
        if usage is None or self._stat is None:
            return usage, None
        try:
            inactive, active = parse.values(self._stat.read(), self._cache_keys)
        except OSError:
            return usage, None
        if inactive < 0:
            return usage, None
        used = usage - inactive if usage > inactive else 0
        low = used - max(active, 0) + self._stuck_bytes
        return used, low if 0 <= low <= used else max(0, min(low, used))

    def _used_of_machine(self, rss: int | None, usage: int | None) -> Pair:
        """Upper: what is not available without swapping. Lower: what is neither free nor cache (proc_meminfo(5))."""
        try:
            total, free, available, cache = parse.memory_head(self._meminfo.read())
        except OSError:
            return None, None
        if total is None or free is None:
            return None, None
        around = self._around
        reclaimable = cache + (around.machine_reclaimable_bytes or 0) - (around.machine_shmem_bytes or 0)
        low = max(0, total - free - reclaimable)
        used = total - available if available is not None else low
        return used, min(used, low)

    def _used_of_setting(self, rss: int | None, usage: int | None) -> Pair:
        try:
            pages = parse.statm(self._statm.read())
        except OSError:
            pages = None
        if rss is None or pages is None:
            return rss, None
        swap = self._around.swap_bytes or 0
        anon = (pages[1] - pages[2]) * self._page_size  # resident minus shared is RssAnon to the page
        return rss + swap, anon + swap + (self._around.shmem_bytes or 0)

    def _used_of_rlimit(self, rss: int | None, usage: int | None) -> Pair:
        key = _rlimit_key(self.place.limit)
        try:
            virtual = parse.sizes(self._status.read(), (key,)).get(key)
        except OSError:
            virtual = None
        return virtual, virtual

    def _with_ancestors(self, headroom: int, ratio: float, low_ratio: float) -> tuple[int, float, float]:
        for size, taken, low in self._slow_others:
            headroom = min(headroom, size - taken)
            ratio = max(ratio, taken / size)
            low_ratio = max(low_ratio, low / size)
        return headroom, ratio, low_ratio

    # --- the slow part -----------------------------------------------------------------------------------------

    def _read_slow(self, now_s: float) -> None:
        self._slow_due_s = now_s + SLOW_S
        own = _sizes(self._status, _STATUS)
        memory = _sizes(self._meminfo, _MEMINFO)
        psi = self._psi_averages()
        swap, swap_limit, high, kills = self._of_cgroup()
        blocks, native, heap_s = self._heap.values(now_s) if self._heap else (None, None, None)
        others = ((size, *self._bounds_of(usage, stat)) for size, usage, stat in self._others)
        self._slow_others = [(size, taken, low) for size, taken, low in others if taken is not None and low is not None]
        self._stuck_bytes = self._read_stuck()
        self._around = Surroundings(
            monotonic_s=now_s,
            anon_bytes=own.get(b"RssAnon"),
            shmem_bytes=own.get(b"RssShmem"),
            swap_bytes=own.get(b"VmSwap"),
            rss_peak_bytes=own.get(b"VmHWM"),
            container_peak_bytes=self._peak.value() if self._peak is not None else None,
            container_high_bytes=high,
            container_swap_bytes=swap,
            container_swap_limit_bytes=swap_limit,
            oom_kills=kills,
            machine_total_bytes=memory.get(b"MemTotal"),
            machine_available_bytes=memory.get(b"MemAvailable"),
            machine_reclaimable_bytes=memory.get(b"SReclaimable"),
            machine_shmem_bytes=memory.get(b"Shmem"),
            machine_swap_total_bytes=memory.get(b"SwapTotal"),
            machine_swap_free_bytes=memory.get(b"SwapFree"),
            psi_some_avg10_percent=psi[0],
            psi_full_avg10_percent=psi[1],
            python_blocks=blocks,
            native_in_use_bytes=native,
            heap_monotonic_s=heap_s,
            sources=self._sources,
            unknown=self._missing if own else (*self._missing, ("rss_bytes", f"/proc/{self._who} cannot be read")),
        )

    def _bounds_of(self, usage: NumberSource, stat: Source) -> Pair:
        """Upper and lower bound of what an ancestor uses."""
        taken = usage.value()
        try:
            inactive, active = parse.values(stat.read(), self._cache_keys)
        except OSError:
            return taken, taken
        if taken is None or inactive < 0:
            return taken, taken
        return max(0, taken - inactive), max(0, taken - inactive - max(active, 0))

    def _read_stuck(self) -> int:
        """Bytes of the file cache that cannot go at once, less the reclaimable slab, which can."""
        if self._stat is None:
            return 0
        dirty_key, writeback_key, slab_key = _STUCK[self._version()]
        try:
            stat = parse.keyed(self._stat.read(), (dirty_key, writeback_key, slab_key))
        except OSError:
            return 0
        return stat.get(dirty_key, 0) + stat.get(writeback_key, 0) - stat.get(slab_key, 0)

    def _psi_averages(self) -> tuple[float | None, float | None]:
        try:
            found = parse.pressure(self._psi.read())
        except OSError:
            return None, None
        unknown = (None, None)
        return found.get("some", unknown)[0], found.get("full", unknown)[0]

    def _of_cgroup(self) -> tuple[int | None, int | None, int | None, int | None]:
        """(swap used, swap limit, memory.high, OOM kills) of the cgroup that binds."""
        if self._folder is None or self._events is None:
            return None, None, None, None
        try:
            kills = parse.keyed(self._events.read(), (b"oom_kill",)).get(b"oom_kill")
        except OSError:
            kills = None
        if self._version() != 2:
            return None, None, None, kills
        swap = self._number_in("memory.swap.current")
        return swap, self._number_in("memory.swap.max"), self._number_in("memory.high"), kills

    def _number_in(self, name: str) -> int | None:
        try:
            value = parse.number(self.machine.read(f"{self._folder}/{name}"))
        except OSError:
            return None
        return value if value is None or value < parse.NO_LIMIT else None

    # --- the life of the sensor --------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """Every kept file opens itself again; whose pid is told and whose cgroup is read is found out here."""
        self._opened_by = getpid()
        self._discover(self.clock.monotonic())

    def close(self) -> None:
        """Give every descriptor back. The sensor still works afterwards and opens them again."""
        for each in (self._statm, self._rss, self._status, self._meminfo, *self._in_place):
            each.close()


class _Heap:
    """Python's and the C library's heap figures at a rate that their own cost sets."""

    def __init__(self, machine: MachinePort, clock: Clock) -> None:
        self._machine = machine
        self._clock = clock
        self._due_s = float("-inf")
        self._values: tuple[int | None, int | None, float | None] = (None, None, None)

    def values(self, now_s: float) -> tuple[int | None, int | None, float | None]:
        """(Python blocks, malloc bytes in use, when they were read)."""
        if now_s >= self._due_s:
            start_s = self._clock.monotonic()
            self._values = (self._machine.python_blocks(), self._machine.native_in_use_bytes(), now_s)
            cost_s = self._clock.monotonic() - start_s
            self._due_s = now_s + max(HEAP_S, cost_s / HEAP_SHARE)
        return self._values


def _sizes(file: Source, wanted: tuple[bytes, ...]) -> dict[bytes, int]:
    try:
        return parse.sizes(file.read(), wanted)
    except OSError:
        return {}


def _rlimit_key(limit: Limit) -> bytes:
    return b"VmData" if limit.source.startswith("RLIMIT_DATA") else b"VmSize"


def _say_missing(place: Place) -> tuple[tuple[str, str], ...]:
    missing = []
    if place.cgroup is None:
        missing += [(name, place.cgroup_reason) for name in ("usage_bytes", "container_peak_bytes", "oom_kills")]
    if place.limit.bytes is None:
        missing.append(("limit_bytes", "neither a cgroup nor /proc/meminfo could be read"))
    return tuple(missing)
