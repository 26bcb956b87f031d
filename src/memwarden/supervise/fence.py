"""The fence from outside: each process of the tree gets a soft RLIMIT_DATA that moves with the headroom.

At every look: how much may the container still take (`Meter`), how much of that is promised to memory that is mapped
and not touched yet, who runs; then each process may map its share, and prlimit(2) says so to the kernel. What a
process maps in the next 20 ms is thereby bounded before it happens, whoever holds its GIL. Shares add up to the
headroom, so processes that burst together stay inside it together.

Headroom counts file cache that the kernel can drop at once as free: a container full of cache refuses nobody.
A limit that a process sets for itself is respected: the fence goes below it, never above. What this cannot stop
is in docs/how-to/use-the-fence.md.
"""

from __future__ import annotations

import os
import resource
import time

from memwarden.act.extensions import server_in, why_not_mapped
from memwarden.act.fence import STACK_BYTES, Promise, Runners, allowances, reserve_bytes, soft_limit
from memwarden.sense import parse
from memwarden.sense.cgroup import LIMIT, USAGE
from memwarden.sense.limit import find_place
from memwarden.sense.machine import Machine
from memwarden.sense.source import KeptFile, NumberFile
from memwarden.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from memwarden.supervise.cgroup import Confinement

# While the fence is on. 20 ms is four turns of the scheduler; a page fault costs 0.25 us, so in that time a process
# can touch some 100 MiB, all of which was allowed before it began.
BUSY_TICK_S = 0.02
IDLE_TICK_S = 0.05
NOBODY_TICK_S = 0.09  # the calm pace: somebody may still start a program that is fenced
# Below this share of free headroom the fence is near enough to be moved at the fast tick.
_NEAR_RATIO = 0.5
# A move of less than this changes nothing worth a system call.
_STEP_BYTES = 64 << 10
# Looking at the cgroup takes 10 us and at a process 2 us. Ten times that, and somebody was in between.
_LOOKS = 3
_QUICK_S = 0.0003
_QUICK_EACH_S = 0.00005
# A program that starts touches what its image mapped, and costs page tables, file pages and kernel memory that nobody
# asked for by a mapping. Of 100 programs that burst while they started, 5 died without this.
_STARTING_BYTES = 4 * MIB
_STARTING_S = 0.5
# Reading /proc/PID/maps costs 10-300 us: not more often than this for one process.
_MAPS_S = 0.25
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CACHE = {
    1: parse.needles(
        (b"total_inactive_file", b"total_active_file", b"total_mapped_file", b"total_dirty", b"total_writeback")
    ),
    2: parse.needles((b"inactive_file", b"active_file", b"file_mapped", b"file_dirty", b"file_writeback")),
}


class Meter:
    """What one cgroup may still take: its limit less its usage, plus the file cache that gives way at once.

    Pages of running programs (mapped files) are cache too, but without them everybody crawls; dirty pages have to be
    written first. Neither counts as free.
    """

    def __init__(self, folder: str, *, version: int, usage: str, limit: str, limit_bytes: int) -> None:
        self._usage = NumberFile(usage)
        self._limit = NumberFile(limit)
        self._stat = KeptFile(f"{folder}/memory.stat")
        self._keys = _CACHE[version]
        self._stated = limit_bytes

    def read(self) -> tuple[int, int] | None:
        """(headroom, limit) in bytes; None where it cannot be read."""
        usage = self._usage.value()
        if usage is None:
            return None
        limit = self._limit.value()
        if not limit or limit > self._stated:
            limit = self._stated
        return limit - usage + self._gives_way(), limit

    def _gives_way(self) -> int:
        try:
            inactive, active, mapped, dirty, writeback = parse.values(self._stat.read(), self._keys)
        except OSError:
            return 0
        return max(0, inactive + active - max(0, mapped) - max(0, dirty) - max(0, writeback))

    def close(self) -> None:
        """Give the descriptors back."""
        for file in (self._usage, self._limit, self._stat):
            file.close()


class Member:
    """One process behind the fence."""

    def __init__(self, pid: int, *, cap_bytes: int | None) -> None:
        self.pid = pid
        self.cap_bytes = self._first_cap = cap_bytes
        self.exempt = ""
        self.soft: int | None = None
        self.hard = resource.RLIM_INFINITY
        self.data_bytes = self.promised = 0
        self._statm = KeptFile(f"/proc/{pid}/statm")
        self._promise: Promise | None = None
        self._first = (0, 0)
        self._untouched = self._weighed = self._threads = self._other_bytes = 0
        self._at_s = self._born_s = 0.0
        self._mapped_anew, self._maps_due_s = False, 0.0

    def glance(self) -> bool:
        """Read what it has mapped and touched, before the cgroup's usage is read; false where it is gone."""
        found = self._read()
        if found is None:
            return False
        self._first = found[1:]
        return True

    def _read(self) -> tuple[int, int, int] | None:
        """Bytes mapped for other things than data; data; data without what is touched."""
        try:
            words = self._statm.read().split()
            size, resident, shared, data = int(words[0]), int(words[1]), int(words[2]), int(words[5])
        except (OSError, ValueError, IndexError):
            return None
        # A zombie has no size.
        return ((size - data) * _PAGE, data * _PAGE, max(0, data - resident + shared) * _PAGE) if size else None

    def look(self) -> bool:
        """Read again, after the usage; false where it is gone.

        What moved meanwhile is taken at its worst: the least data, the most untouched. A soft limit made of the data
        before a program freed it and the headroom after it did would allow the same bytes twice.
        """
        found = self._read()
        if found is None:
            return False
        other, data, untouched = found
        self.data_bytes = min(data, self._first[0])
        self._untouched = max(untouched, self._first[1])
        if other != self._other_bytes:  # a file was mapped: perhaps an extension
            self._other_bytes, self._mapped_anew = other, True
        return True

    def weigh(self, now_s: float) -> None:
        """Find out what it promised to touch."""
        if self._promise is None:
            self._promise = self._begin()
            self._born_s = self._at_s = now_s
        stacks = self._new_stacks() if self._untouched - self._weighed > MIB else 0
        self.promised = self._promise.step(self._untouched, now_s - self._at_s, stacks_bytes=stacks)
        if now_s - self._born_s < _STARTING_S:
            self.promised += _STARTING_BYTES
        self._weighed = self._untouched
        self._at_s = now_s

    def _begin(self) -> Promise:
        """A fresh program is about to touch all that it has mapped, but for stacks; a fork has what its parent had."""
        self._threads = self._count_threads()
        if _is_fork(self.pid):
            return Promise(max(0, self._untouched - _STARTING_BYTES))
        return Promise(min(self._untouched, max(0, self._threads - 1) * STACK_BYTES))

    def _count_threads(self) -> int:
        try:
            return os.stat(f"/proc/{self.pid}/task").st_nlink - 2
        except OSError:
            return 0

    def _new_stacks(self) -> int:
        before, self._threads = self._threads, self._count_threads()
        return max(0, self._threads - before) * STACK_BYTES

    def is_changed(self, now_s: float) -> bool:
        """Whether other files are mapped than when this last said so, which is long enough ago."""
        if not self._mapped_anew or now_s < self._maps_due_s:
            return False
        self._mapped_anew, self._maps_due_s = False, now_s + _MAPS_S
        return True

    def place(self, soft_bytes: int, *, raise_it: bool = True) -> bool:
        """Set its soft limit; false where it is gone or not ours to limit. Sees limits it has set for itself."""
        if self.soft is not None and (
            abs(soft_bytes - self.soft) < _STEP_BYTES or (soft_bytes > self.soft and not raise_it)
        ):
            return True
        try:
            if self.soft is None:
                _, self.hard = resource.prlimit(self.pid, resource.RLIMIT_DATA)
            soft_bytes = soft_bytes if self.hard == resource.RLIM_INFINITY else min(soft_bytes, self.hard)
            old, hard = resource.prlimit(self.pid, resource.RLIMIT_DATA, (soft_bytes, self.hard))
        except (ProcessLookupError, PermissionError, ValueError):
            return False
        self._heed(old, hard)
        self.soft = soft_bytes
        return True

    def _heed(self, old: int, hard: int) -> None:
        """Somebody else moved it since: that is a limit of his own, or none."""
        if self.soft is None or old == self.soft:
            return
        self.cap_bytes = self._first_cap if old in (resource.RLIM_INFINITY, hard) else old
        self.hard = hard

    def free(self) -> None:
        """Put back what it would have without a fence; the one of its parent too, which it may have inherited."""
        self.soft = None
        try:
            _, self.hard = resource.prlimit(self.pid, resource.RLIMIT_DATA)
            soft = self.hard if self.cap_bytes is None else self.cap_bytes
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (soft, self.hard))
        except (OSError, ValueError):
            return  # it is gone

    def close(self) -> None:
        """Give the descriptor back."""
        self._statm.close()


class TreeFence:
    """The fence around all processes of the command. `mode` is "on" or "auto".

    `cap_bytes`: the soft limit that the command was started with, which the fence never exceeds; None for none.
    """

    def __init__(
        self,
        meters: Iterable[Meter],
        *,
        mode: str,
        cap_bytes: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._meters = tuple(meters)
        self._mode = mode
        self._tell = tell
        self._told: set[str] = set()
        self._members: dict[int, Member] = {}
        self._pids: Iterable[int] = ()
        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        caps = [size for size in (cap_bytes, None if soft == resource.RLIM_INFINITY else soft) if size is not None]
        self._cap = min(caps, default=None)
        self._runners = Runners()
        self._tight = False
        self.is_near = False  # less than half of the limit was free at the last look
        self.interval_s = BUSY_TICK_S

    def move(self, pids: Iterable[int], now_s: float) -> None:
        """One look and one move for each process."""
        members = self._known(pids)
        if self._is_nobody_there(members, now_s):
            self.interval_s = NOBODY_TICK_S
            return
        found, sure = self._look(members)
        if found is None:
            return
        headroom, limit = found
        for member in members:
            member.weigh(now_s)
            if self._mode == "auto" and member.is_changed(now_s):
                self._judge(member)
        fenced = [member for member in members if not member.exempt]
        if not fenced:
            self.interval_s = NOBODY_TICK_S
            return
        active = self._runners.active([member.pid for member in fenced], now_s)
        left = headroom - sum(member.promised for member in fenced)
        rooms = allowances(left, reserve=reserve_bytes(limit), active=active)
        for member, room in zip(fenced, rooms, strict=True):
            member.place(soft_limit(member.data_bytes, room, cap_bytes=member.cap_bytes), raise_it=sure)
        self.is_near = left < limit * _NEAR_RATIO
        self.interval_s = BUSY_TICK_S if any(active) and (self.is_near or len(fenced) > 1) else IDLE_TICK_S
        self._notice(left - reserve_bytes(limit))

    def first_bytes(self) -> int | None:
        """The soft limit to start a program with, which has nothing mapped yet: until it is looked at, which on a busy
        machine may be after its first burst.
        """
        read = [each for each in (meter.read() for meter in self._meters) if each is not None]
        if not read:
            return None
        headroom, limit = min(read)
        room = max(headroom - reserve_bytes(limit) - _STARTING_BYTES, _STARTING_BYTES)
        return soft_limit(0, room, cap_bytes=self._cap)

    def _is_nobody_there(self, members: list[Member], now_s: float) -> bool:
        """Whether all were found exempt, and none has become another program since: then nothing else is read."""
        if not self.exempts_all:
            return False
        changed = [member for member in members if member.look() and member.is_changed(now_s)]
        for member in changed:
            self._judge(member)
        return not changed or self.exempts_all

    def _known(self, pids: Iterable[int]) -> list[Member]:
        """The processes; those that are gone are forgotten."""
        if pids is self._pids:
            return list(self._members.values())
        self._pids = pids
        known, now = self._members, set(pids)
        for pid in [pid for pid in known if pid not in now]:
            known.pop(pid).close()
        for pid in now:
            if pid not in known:
                known[pid] = Member(pid, cap_bytes=self._cap)
        self._members = {pid: known[pid] for pid in sorted(now)}
        return list(self._members.values())

    def _look(self, members: list[Member]) -> tuple[tuple[int, int] | None, bool]:
        """Headroom and limit of the fullest cgroup, read between two looks at each process, and whether quickly.

        Whoever is put off the core in between sees two times at once, so the looks are repeated; where that does
        not help, no fence is raised.
        """
        found, sure = None, False
        for _ in range(_LOOKS):
            began_s = time.monotonic()
            members[:] = [member for member in members if member.glance()]
            read = [each for each in (meter.read() for meter in self._meters) if each is not None]
            found = min(read) if read else None
            members[:] = [member for member in members if member.look()]
            if time.monotonic() - began_s < _QUICK_S + len(members) * _QUICK_EACH_S:
                sure = True
                break
        return found, sure

    def _judge(self, member: Member) -> None:
        """In auto: whether this program bears a refusal."""
        was_free, member.exempt = bool(member.exempt), why_not(member.pid)
        if member.exempt and not was_free:
            member.free()
            if member.exempt not in self._told:
                self._told.add(member.exempt)
                self._tell(f"no fence for pid {member.pid}: {member.exempt}")

    def _notice(self, free_bytes: int) -> None:
        """Tell once when it comes so near that a thread could not be started, and again after it was far."""
        if free_bytes < STACK_BYTES and not self._tight:
            self._tight = True
            self._tell("the fence is reached: what does not fit gets a MemoryError")
        elif free_bytes > 4 * STACK_BYTES:
            self._tight = False

    @property
    def may_rest(self) -> bool:
        """Whether it stands right as long as nothing moves: nobody may need the share of one who sleeps."""
        return self.exempts_all or len(self._members) == 1

    @property
    def files(self) -> tuple[str, ...]:
        """What reads otherwise when somebody has mapped or touched something."""
        return tuple(f"/proc/{pid}/statm" for pid in self._members)

    @property
    def exempts_all(self) -> bool:
        """Whether nobody is behind it."""
        return bool(self._members) and all(member.exempt for member in self._members.values())

    def close(self) -> None:
        """Let everybody go who still lives."""
        for member in self._members.values():
            if member.soft is not None:
                member.free()
            member.close()
        self._members.clear()
        for meter in self._meters:
            meter.close()


def meters_of(confinement: Confinement, limit_bytes: int | None) -> list[Meter]:
    """Every cgroup that limits the tree: the one made for it, and the one around it that binds. Empty: none does."""
    found = []
    own = confinement.cgroup
    if own is not None and own.own and limit_bytes:
        found.append(_meter(own.path, own.version, limit_bytes))
    place = find_place(Machine())
    if place.limit.kind == "cgroup" and place.binding and place.cgroup is not None and place.limit.bytes:
        found.append(_meter(place.binding, place.cgroup.version, place.limit.bytes))
    return found


def _meter(folder: str, version: int, limit_bytes: int) -> Meter:
    usage, limit = f"{folder}/{USAGE[version]}", f"{folder}/{LIMIT[version]}"
    return Meter(folder, version=version, usage=usage, limit=limit, limit_bytes=limit_bytes)


def _is_fork(pid: int) -> bool:
    """Whether it has executed no program of its own: PF_FORKNOEXEC (0x40), ninth field of /proc/PID/stat (proc(5))."""
    try:
        words = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return False
    return len(words) > 6 and bool(int(words[6]) & 0x40)


def why_not(pid: int) -> str:
    """Why `auto` does not fence a program: it is no Python, a server, or has loaded what crashes. Empty: it does."""
    try:
        program = os.readlink(f"/proc/{pid}/exe").rpartition("/")[2]
        words = _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")
        maps = _read(f"/proc/{pid}/maps")
    except OSError as error:
        return f"what it has loaded cannot be read ({error.strerror})"
    server = server_in((program, *words))
    if server:
        return f"{server} is a server"
    if "python" not in program and "pypy" not in program and b"/libpython" not in maps:
        return f"{program} is no Python program"
    return why_not_mapped(maps)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
