"""One look at the command's memory per tick, paced by headroom, and the brake on the alarm line.

A tick reads kept-open files only. Between ticks the supervisor sleeps as long as the headroom allows: never
so long that memory filled at full speed could be at the limit 90 ms before we look again, and never more
often than every 20 ms.

While nothing moves it only glances at that pace (`vigil`), which after a sleep that left the caches cold costs a fifth
of a look, and looks once a second. A glance is on record too.
"""

from __future__ import annotations

import os

from memwarden.facts import Fact
from memwarden.sense import parse
from memwarden.sense.machine import Machine
from memwarden.sense.source import KeptFile
from memwarden.supervise.cgroup import ALARM_LEAVE_RATIO, ALARM_RATIO
from memwarden.supervise.tree import descendants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.ports import NumberSource
    from memwarden.supervise.cgroup import MemoryGroup

FASTEST_TICK_S = 0.02
SLOWEST_TICK_S = 1.0
# However calm, a burst must not kill more than this after the last look, or the record would be stale (100
# ms).
CALM_TICK_S = 0.09
# One thread touches 4.9-5.2 GiB of fresh pages a second (bytearray and mmap writes, 6.18 microVM): twice
# that.
BURST_BYTES_PER_S = 10 << 30
# Four looks before a growth like the fastest seen lately would reach the limit.
_LOOKS_AHEAD = 4
_RATE_HALF_LIFE_S = 10.0
# A program that starts loads data: until it has shown its own pace it is taken for a fast one.
_FIRST_RATE_BYTES_PER_S = float(1 << 30)
_SLOW_READ_S = 1.0
# What moves less than this since the last look, and less than this part of the headroom, is at rest.
_STILL_BYTES = 4 << 20
_FENCED_STILL_BYTES = 1 << 20  # half of what the fence keeps back at the least
_STILL_RATIO = 64
# How old the last look may be while a glance sees nothing move. The fence is made of more than a glance reads: dirty
# pages of the file cache, and what is mapped but untouched. So it is moved more often.
_STILL_S = 1.0
_FENCED_STILL_S = 0.25
# Behind a fence new processes are looked for more often, where no cgroup of our own names them: 20 us for each.
FENCED_WALK_S = 0.1
# File cache counts as used but gives way, so near the limit it is taken off before the pace is set.
_CACHE_MATTERS_RATIO = 0.8
_CACHE_KEYS = {1: (b"total_inactive_file", b"total_active_file"), 2: (b"inactive_file", b"active_file")}
_KEPT_SAMPLES = 256
_PAGE = os.sysconf("SC_PAGE_SIZE")
# The pid given last in our pid namespace: 1 us to read, where opening and reading a list of processes takes 20 (v1).
# /proc/loadavg ends in it too, but lxcfs puts a file of its own there that is seconds old.
_NEWEST_PID = "/proc/sys/kernel/ns_last_pid"


class Pace:
    """How long to sleep: a pure function of what was seen."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self.fastest_bytes_per_s = _FIRST_RATE_BYTES_PER_S

    def interval_s(
        self, *, now_s: float, usage_bytes: int | None, limit_bytes: int | None, gives_way: int = 0
    ) -> float:
        """Seconds until the next look. `gives_way`: bytes of the usage that the kernel would drop first."""
        if usage_bytes is None or limit_bytes is None:
            return CALM_TICK_S
        self._learn(now_s, usage_bytes)
        headroom = max(0, limit_bytes - usage_bytes + gives_way)
        wait_s = min(SLOWEST_TICK_S, max(CALM_TICK_S, headroom / BURST_BYTES_PER_S))
        if self.fastest_bytes_per_s > 0:
            wait_s = min(wait_s, headroom / self.fastest_bytes_per_s / _LOOKS_AHEAD)
        return max(FASTEST_TICK_S, wait_s)

    def stood(self, look: Look) -> None:
        """What comes next has grown since this glance, and not since the last look."""
        if look.usage_bytes is not None:
            self._last = (look.at_s, look.usage_bytes)

    def _learn(self, now_s: float, usage_bytes: int) -> None:
        if self._last is not None and now_s > self._last[0]:
            passed_s = now_s - self._last[0]
            faded = self.fastest_bytes_per_s * 0.5 ** (passed_s / _RATE_HALF_LIFE_S)
            self.fastest_bytes_per_s = max(faded, (usage_bytes - self._last[1]) / passed_s)
        self._last = (now_s, usage_bytes)


class Rest(Fact):
    """When a glance is enough: while usage stays between two bounds, for so long."""

    step_s: float
    until_s: float
    least_bytes: int
    most_bytes: int


def rest_after(
    look: Look, *, pace_s: float, limit_bytes: int | None, gives_way: int = 0, fence_s: float | None = None
) -> Rest | None:
    """How to rest after a look; None where nothing is known. `fence_s`: how often the fence is moved, if it is."""
    usage = look.usage_bytes
    if usage is None:
        return None
    band = _STILL_BYTES if fence_s is None else _FENCED_STILL_BYTES
    if limit_bytes is not None:
        band = min(band, max(0, limit_bytes - usage + gives_way) // _STILL_RATIO)
    return Rest(
        step_s=pace_s if fence_s is None else min(pace_s, fence_s),
        until_s=look.at_s + (_STILL_S if fence_s is None else _FENCED_STILL_S),
        least_bytes=usage - band,
        most_bytes=usage + band,
    )


class Brake:
    """Keeps the alarm line (`memory.high`) an alarm and never an outage.

    Over the line with nothing left to reclaim the kernel slows every allocation down to a crawl, up to 2 s
    each. That gives us the time to notice; after `brake_s` the line is lifted, so that the command lives or
    is killed but never crawls. It comes back when usage has fallen below the leave line.
    """

    def __init__(self, limit_bytes: int, *, brake_s: float) -> None:
        self.line_bytes = int(limit_bytes * ALARM_RATIO)
        self._leave_bytes = int(limit_bytes * ALARM_LEAVE_RATIO)
        self._brake_s = brake_s
        self._count: int | None = None
        self._since_s: float | None = None
        self.lifted = False

    def step(self, *, now_s: float, usage_bytes: int | None, high_count: int | None) -> str:
        """What to do now: "alarm" (just told), "lift", "set", or nothing."""
        rose = high_count is not None and self._count is not None and high_count > self._count
        self._count = high_count if high_count is not None else self._count
        if self.lifted:
            return self._put_back(usage_bytes)
        if self._since_s is None:
            if not rose:
                return ""
            self._since_s = now_s
            return "alarm"
        if usage_bytes is not None and usage_bytes < self._leave_bytes:
            self._since_s = None
            return ""
        if now_s - self._since_s < self._brake_s:
            return ""
        self.lifted, self._since_s = True, None
        return "lift"

    def _put_back(self, usage_bytes: int | None) -> str:
        if usage_bytes is None or usage_bytes >= self._leave_bytes:
            return ""
        self.lifted = False
        return "set"

    def deadline_s(self) -> float | None:
        """When the line must be lifted at the latest."""
        return None if self._since_s is None else self._since_s + self._brake_s


class Look(Fact):
    """One tick. `usage_bytes` is what counts against the limit; `rss_bytes` the command's own process."""

    at_s: float
    usage_bytes: int | None
    rss_bytes: int | None
    pids: frozenset[int]
    high_count: int | None = None


class Eyes:
    """The kept-open files of one life. `helper` is the pid of a child of ours that the command did not start."""

    def __init__(
        self, cgroup: MemoryGroup | None, pid: int, *, helper: Callable[[], int | None] = lambda: None
    ) -> None:
        self._helper = helper
        self._own = cgroup is not None and cgroup.own
        self._version = cgroup.version if cgroup is not None else 0
        number = Machine().number
        self._rss = number(f"/proc/{pid}/statm", index=1, scale=_PAGE)
        self._usage = number(cgroup.file("usage")) if cgroup is not None else None
        self._stat = KeptFile(f"{cgroup.path}/memory.stat") if cgroup is not None else None
        self._procs = KeptFile(f"{cgroup.path}/cgroup.procs") if self._own and cgroup is not None else None
        self._events = KeptFile(cgroup.file("events")) if self._own and self._version == 2 and cgroup else None
        self._newest = number(_NEWEST_PID) if self._own and self._version == 1 else None
        self._newest_pid: int | None = None
        self._counted = (cgroup.file("usage"), 0, 1) if cgroup is not None else (f"/proc/{pid}/statm", 1, _PAGE)
        self._counters = (cgroup.file("events"),) if cgroup is not None else ()
        self._procs_text = b""
        self._procs_s = -_SLOW_READ_S
        self._again = False
        self._pids: frozenset[int] = frozenset((pid,))
        self._slow_s = -_SLOW_READ_S
        self._walk_at_s = -_SLOW_READ_S
        self.walk_s = _SLOW_READ_S
        self.gives_way_bytes = 0

    def look(self, *, now_s: float, limit_bytes: int | None) -> Look:
        """Read it all; what cannot be read is None."""
        usage = self._usage.value() if self._usage is not None else None
        rss = self._rss.value()
        if now_s - self._slow_s >= _SLOW_READ_S:
            self._slow_s = now_s
            self._read_slow(usage, limit_bytes)
        if self._procs is not None:
            is_near = not usage or not limit_bytes or usage > limit_bytes * _CACHE_MATTERS_RATIO
            if self._newest is None or is_near or self._has_news(self._newest, now_s):
                self._procs_s = now_s
                self._read_procs(self._procs)
        elif now_s - self._walk_at_s >= self.walk_s:
            self._walk_at_s = now_s
            self._pids = frozenset(descendants(os.getpid(), but=self._helper()))
        return Look(
            at_s=now_s,
            usage_bytes=usage if usage is not None else rss,
            rss_bytes=rss,
            pids=self._pids,
            high_count=self._high_count(),
        )

    @property
    def heeded(self) -> tuple[str, ...]:
        """The files that a glance compares: kernel kills, and on v2 how often the alarm line was passed."""
        return self._counters

    @property
    def counted(self) -> tuple[str, int, int]:
        """Path, index and scale of the number that counts against the limit."""
        return self._counted

    @property
    def door(self) -> tuple[str, str] | None:
        """Where it can be seen that somebody joined, and who is in; None where only a walk tells."""
        return (_NEWEST_PID, self._procs.path) if self._procs is not None else None

    def _has_news(self, newest: NumberSource, now_s: float) -> bool:
        """Whether somebody was started since the last look; twice, for its pid is given before it joins the cgroup.

        Who was moved in, or ended, is seen within a second.
        """
        pid = newest.value()
        is_new = pid is None or pid != self._newest_pid
        has_news = is_new or self._again or now_s - self._procs_s >= _SLOW_READ_S
        self._newest_pid, self._again = pid, is_new
        return has_news

    def _read_procs(self, procs: KeptFile) -> None:
        if self._version == 1:
            procs.close()  # v1 shows one open file the same list until nobody has read it for a second
        try:
            text = procs.read()
        except OSError:
            return
        if text != self._procs_text:
            self._procs_text = text
            self._pids = frozenset(int(word) for word in text.split())

    def _read_slow(self, usage: int | None, limit_bytes: int | None) -> None:
        self.gives_way_bytes = 0
        if self._stat is None or not usage or not limit_bytes or usage < limit_bytes * _CACHE_MATTERS_RATIO:
            return
        try:
            self.gives_way_bytes = sum(parse.keyed(self._stat.read(), _CACHE_KEYS[self._version]).values())
        except OSError:
            return

    def _high_count(self) -> int | None:
        if self._events is None:
            return None
        try:
            return parse.keyed(self._events.read(), (b"high",)).get(b"high")
        except OSError:
            return None

    def close(self) -> None:
        """Give the descriptors back."""
        for file in (self._rss, self._usage, self._stat, self._procs, self._newest, self._events):
            if file is not None:
                file.close()


class History:
    """The last looks, for the post-mortem."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self.peak_bytes = 0

    def add(self, look: Look) -> None:
        """Keep it, and let the oldest go."""
        if look.usage_bytes is None:
            return
        self.peak_bytes = max(self.peak_bytes, look.usage_bytes)
        self._samples.append((look.at_s, look.usage_bytes))
        if len(self._samples) >= 2 * _KEPT_SAMPLES:
            del self._samples[:_KEPT_SAMPLES]

    @property
    def last(self) -> tuple[float, int] | None:
        """When (monotonic seconds) and how much (bytes) at the last look."""
        return self._samples[-1] if self._samples else None

    def growth(self, window_s: float) -> tuple[int, float] | None:
        """Bytes gained, and over how many seconds, in the last `window_s` before the last look."""
        if len(self._samples) < 2:
            return None
        end_s, end_bytes = self._samples[-1]
        start_s, start_bytes = next(s for s in self._samples if end_s - s[0] <= window_s)
        return (end_bytes - start_bytes, end_s - start_s) if end_s > start_s else None
