"""The fence: a soft RLIMIT_DATA just above what a process has, so that a burst becomes a MemoryError and not a kill.

The kernel refuses a new private writable mapping that would lift VmData over the soft limit (setrlimit(2)). Set to
VmData plus the headroom at every look, it stands where the container would be full: what would have been an OOM kill
becomes a MemoryError in the code that asked for the memory, also while that code holds the GIL and no thread can look.

Here: the arithmetic (pure, shared with `memwarden run`, which moves the fence from outside), the fence of this
process, `unfenced()` for starting other programs, and `relabelled()`, which names refusals that come disguised.
Not here: what it cannot stop (docs/how-to/use-the-fence.md).
"""

from __future__ import annotations

import errno
import os
import sys
import time

from memwarden.act.extensions import why_not_imported
from memwarden.errors import MemoryRefused
from memwarden.units import MIB

try:
    import resource
except ImportError:  # Windows, where nothing is fenced and only the import must work
    resource = None  # type: ignore[assignment]  # Windows has none; who needs it asks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from memwarden.ports import Machine

    F = TypeVar("F", bound=Callable[..., Any])
    Mapped = tuple[int, int]  # bytes of data mapped, and how many of them are not touched

MODES = ("auto", "on", "off")
# Kept back for what no mapping asks for: page tables (1/512 of what is touched), stacks, socket buffers, and pages
# mapped long ago that are touched now. In the survival suite 2 % held; the bounds keep it small on large limits.
RESERVE_RATIO = 0.02
RESERVE_LEAST, RESERVE_MOST = 2 * MIB, 16 * MIB
# What a process may have at the line, so that its error handling gets through: one arena of Python's allocator
# (ARENA_SIZE, 1 MiB since 3.10). It comes out of the reserve.
MINIMUM_BYTES = MIB
# The part of the headroom that is split among all processes alike; the rest is split among those that run.
SHARE_OF_ALL = 0.25
# Mapped and untouched for so long, and half of it is not thought to be touched any more.
PROMISE_HALF_LIFE_S = 2.0
# What moves less than this between two looks is at rest (13 MiB/s at 20 ms).
STILL_BYTES = 256 << 10
# Who used this share of a core in the last quarter of a second runs.
ACTIVE_SHARE = 0.02
ACTIVE_S = 0.25
# A thread's stack counts as data when it is mapped and is hardly touched (ulimit -s; 8 MiB and a guard page).
STACK_BYTES = 8 * MIB + 4096


# --- arithmetic ----------------------------------------------------------------------------------------------------


def reserve_bytes(limit_bytes: int) -> int:
    """How much of the limit is kept back."""
    return int(min(RESERVE_MOST, max(RESERVE_LEAST, limit_bytes * RESERVE_RATIO)))


def allowances(headroom_bytes: int, *, reserve: int, active: Sequence[bool] = (True,)) -> list[int]:
    """What each process may map more, in bytes. Together never more than the headroom.

    `active` says for each process whether it runs; sleeping ones get a smaller share, because nobody asks for memory
    while he sleeps. What is promised already (`Promise`) has to be taken off the headroom before.
    """
    count = len(active)
    left = max(0, headroom_bytes)
    minimum = min(MINIMUM_BYTES, reserve // (2 * count), left // (2 * count))
    free = max(0, left - reserve)
    running = sum(active) or count
    base = free * SHARE_OF_ALL / count
    more = free * (1 - SHARE_OF_ALL) / running
    everybody = not any(active)
    return [max(minimum, int(base + (more if runs or everybody else 0))) for runs in active]


def soft_limit(data_bytes: int, allowance_bytes: int, *, cap_bytes: int | None) -> int:
    """The soft limit: what is mapped plus what may be; never above what was set by others (None: nothing was)."""
    soft = data_bytes + max(0, allowance_bytes)
    return soft if cap_bytes is None else min(soft, cap_bytes)


class Promise:
    """How much of what one process mapped it is still going to touch: what is untouched and new.

    Untouched memory that stays untouched (arenas, stacks of threads, sparse arrays) is written off with a half-life.
    """

    def __init__(self, untouched_bytes: int) -> None:
        self._idle = self._last = untouched_bytes

    def step(self, untouched_bytes: int, passed_s: float, *, stacks_bytes: int = 0) -> int:
        """Bytes promised now. `stacks_bytes`: of what came since the last step, the stacks of new threads."""
        change = untouched_bytes - self._last
        self._last = untouched_bytes
        self._idle = min(untouched_bytes, self._idle + min(max(0, change), stacks_bytes))
        if abs(change) < STILL_BYTES:  # nobody is touching it just now
            forgotten = 1 - 0.5 ** (max(0.0, passed_s) / PROMISE_HALF_LIFE_S)
            self._idle += int((untouched_bytes - self._idle) * forgotten)
        return untouched_bytes - self._idle


class Runners:
    """Which of several processes run: who used a core lately. One clock reading for each (0.2 us)."""

    def __init__(self) -> None:
        self._used_ns: dict[int, int] = {}
        self._until_s: dict[int, float] = {}
        self._at_s = 0.0

    def active(self, pids: Iterable[int], now_s: float) -> list[bool]:
        """For each pid whether it ran in the last quarter of a second; who is new is about to."""
        passed_ns, self._at_s = (now_s - self._at_s) * 1e9, now_s
        used, until = {}, {}
        for pid in pids:
            used[pid] = _cpu_ns(pid)
            ran = pid not in self._used_ns or used[pid] - self._used_ns[pid] > passed_ns * ACTIVE_SHARE
            until[pid] = now_s + ACTIVE_S if ran else self._until_s[pid]
        self._used_ns, self._until_s = used, until
        return [now_s < each for each in until.values()]


def _cpu_ns(pid: int) -> int:
    """What a process used of any core: its clock as clock_getcpuclockid(3) names it; 0 where it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return 0


# --- the limit of this process -------------------------------------------------------------------------------------


def is_possible() -> bool:
    """Whether this system refuses by RLIMIT_DATA: Linux since 4.7."""
    return resource is not None and sys.platform == "linux"


def _get() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_DATA)


def _set(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    except (ValueError, OSError):  # the hard limit was lowered meanwhile: the fence stays where it was
        return False
    return True


def _cap(size: int) -> int | None:
    return None if size in (resource.RLIM_INFINITY, -1) else size


class Fence:
    """The fence of this process. `move` sets it, `lift` takes it away and puts back what was there before."""

    def __init__(self, machine: Machine, *, mode: str = "on") -> None:
        self.mode = mode
        self.reason = self._why_not()
        self._statm = machine.open("/proc/self/statm")
        self._page = machine.page_size
        self._machine = machine
        self._promise: Promise | None = None
        self._runners = Runners()
        self._moved_s = 0.0
        self._before: tuple[int, int] | None = None
        self.soft_bytes: int | None = None
        self.headroom_bytes: int | None = None
        self.limit_bytes: int | None = None

    def _why_not(self) -> str:
        if self.mode == "off":
            return "it is switched off"
        if not is_possible():
            return "this system has no RLIMIT_DATA that refuses"
        return ""

    def look(self) -> Mapped | None:
        """What this process has mapped, to be read before the headroom is; None where there is no fence."""
        self.reason = self._why_not() or (why_not_imported(sys.modules) if self.mode == "auto" else "")
        if self.reason:
            self.lift()
            return None
        try:
            words = self._statm.read().split()
            resident, shared, data = int(words[1]), int(words[2]), int(words[5])
        except (OSError, ValueError, IndexError):
            self.reason = "/proc/self/statm cannot be read"
            return None
        return data * self._page, max(0, data - resident + shared) * self._page

    def move(
        self,
        headroom_bytes: int | None,
        limit_bytes: int | None,
        *,
        before: Mapped | None,
        now_s: float,
        folder: str | None = None,
    ) -> int | None:
        """Set it by the headroom that was read since `before`; the soft limit in bytes, None where there is none.

        What moved between the two looks is taken at its worst: the data before a program freed it together with the
        headroom after it did would allow the same bytes twice. `folder`: the cgroup whose processes share the headroom.
        """
        after = self.look() if before is not None else None
        if before is None or after is None:
            return None
        if headroom_bytes is None or not limit_bytes:
            self.reason = "no limit is known"
            self.lift()
            return None
        data, untouched = min(before[0], after[0]), max(before[1], after[1])
        if self._promise is None:
            self._promise = Promise(untouched)
        promised = self._promise.step(untouched, now_s - self._moved_s)
        self._moved_s = now_s
        active = (True, *self._runners.active(self._others(folder), now_s))
        allowance = allowances(headroom_bytes - promised, reserve=reserve_bytes(limit_bytes), active=active)[0]
        self.headroom_bytes, self.limit_bytes = headroom_bytes, limit_bytes
        return self._place(data + allowance)

    def _others(self, folder: str | None) -> list[int]:
        """Who else lives in the cgroup."""
        if folder is None:
            return []
        try:
            raw = self._machine.read(f"{folder}/cgroup.procs")
        except OSError:
            return []
        me = os.getpid()
        return [int(word) for word in raw.split() if word.isdigit() and int(word) not in (0, me)]

    def _place(self, wanted: int) -> int | None:
        soft_now, hard = _get()
        if self._before is None or soft_now != self.soft_bytes:
            self._before = (soft_now, hard)  # at first, and when somebody here set a limit of his own: it holds
        soft = soft_limit(wanted, 0, cap_bytes=_cap(self._before[0]))
        self.reason = "" if _set(soft, hard) else "the limit could not be set"
        self.soft_bytes = soft
        return soft

    def lift(self) -> None:
        """Put back what was there before the first move; also right in a forked child."""
        before, self._before, self.soft_bytes = self._before, None, None
        if before is not None:
            _set(before[0], _get()[1])

    @property
    def is_up(self) -> bool:
        """Whether it stands."""
        return self.soft_bytes is not None


class unfenced:  # noqa: N801  it is used like a function
    """While this block runs, the soft limit is at the hard one: what is started in it inherits no fence.

    >>> with unfenced():
    ...     process = subprocess.Popen(["ffmpeg", ...])

    A program inherits the fence of the moment at which it was started, and nobody moves it there. (Under
    `memwarden run` each process has a fence of its own that is moved.) It holds for all threads while it lasts.
    """

    def __enter__(self) -> Self:
        self._soft, self._hard = _get() if is_possible() else (0, 0)
        if is_possible():
            _set(self._hard, self._hard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if is_possible() and _get()[0] == self._hard:  # else the fence was moved meanwhile
            _set(self._soft, self._hard)


# --- refusals by their right name -------------------------------------------------------------------------------------

# (type name, part of the message): what a refused allocation looks like where it is no MemoryError. Each was seen in
# `python -m benchmarks.extensions`. An empty part means that the type alone says it.
_SAYS_MEMORY = (
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
    "memory allocation",
    "bad_alloc",
    "unable to allocate",
    "failed to allocate",
    "reserve memory",
    "malloc",
)
# Said for a refusal and for next to nothing else, though it does not speak of memory: C code that did not look.
_TELLING = (
    ("XMLSyntaxError", "unknown error"),
    ("SystemError", "without setting an exception"),
    ("SystemError", "without exception set"),
)
# Said for a refusal and for bad input alike: believed only close to the fence.
_AMBIGUOUS = (
    ("SelectolaxError", "can't parse"),
    ("error", "decoder failed"),  # brotli
    ("CBORDecodeError", "error decoding"),
)
NEAR_BYTES = 64 * MIB


def is_refusal(error: BaseException) -> bool:
    """Whether an exception is a refused allocation by another name."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, Exception):
        return False
    text = str(error)[:400].lower()
    if any(part in text for part in _SAYS_MEMORY):
        return True
    if _is_one_of(_TELLING, error, text):
        return True
    return _is_one_of(_AMBIGUOUS, error, text) and _room_bytes() <= NEAR_BYTES


def _is_one_of(kinds: Iterable[tuple[str, str]], error: Exception, text: str) -> bool:
    name = type(error).__name__
    return any(name == kind and part in text for kind, part in kinds)


def _room_bytes() -> float:
    """How much this process may still map, by its own soft limit, whoever set it; endless where there is none."""
    soft = _cap(_get()[0]) if is_possible() else None
    if soft is None:
        return float("inf")
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return soft - int(file.read().split()[5]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return float("inf")


def refusal(error: BaseException, *, fence: Fence | None = None) -> MemoryRefused | None:
    """The MemoryRefused that an exception stands for; None where it is something else or no limit is in force."""
    if isinstance(error, MemoryRefused) or not is_possible() or _cap(_get()[0]) is None or not is_refusal(error):
        return None
    room = _room_bytes()
    return MemoryRefused(
        f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__,
        soft_bytes=_cap(_get()[0]),
        room_bytes=int(room) if room != float("inf") else None,
        limit_bytes=fence.limit_bytes if fence is not None else None,
        headroom_bytes=fence.headroom_bytes if fence is not None else None,
    )


class relabelled:  # noqa: N801  it is used like a function
    """A block or function in which a refused allocation is raised as MemoryRefused, whatever it looked like.

    Several extensions say something else when memory is refused (a parse error, "can't start new thread"), and a
    handler would answer "bad request". The original is the cause of the new one.
    """

    def __init__(self, *, fence: Fence | None = None) -> None:
        self._fence = fence

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        found = refusal(error, fence=self._fence) if error is not None else None
        if found is not None:
            raise found from error

    def __call__(self, function: F) -> F:
        from functools import wraps

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return guarded  # type: ignore[return-value]  # the same signature by construction
