"""Where the limit is put: a memory cgroup of our own, or a plain statement of why there is none.

The rungs, best first: cgroup v2 below us, v2 next to us, v1 by hand. Each that does not hold leaves its
reason. What every rung makes is verified before it is used: the limit is read back and a child of ours has
joined and left it. A scope made by systemd is one rung more (`scope`); the rlimit at the bottom is set by
`spawn`.

cgroup v2 forbids processes in a cgroup that hands controllers to its children ("no internal processes",
Documentation/admin-guide/cgroup-v2.rst). So where we are alone we move into a leaf of our own and hand the
controller on; where others live with us we never move them and try the parent instead, unless a limit on our
own cgroup would be escaped that way. The root cgroup is exempt from the rule.
"""

from __future__ import annotations

import errno
import os

from memwarden.errors import SuperviseError
from memwarden.sense import parse
from memwarden.sense.cgroup import EVENTS, LIMIT, PEAK, USAGE, find_cgroup
from memwarden.sense.machine import Machine
from memwarden.supervise.signals import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "memwarden-"
_PAGE = 4096
# A cgroup whose last process was just reaped can be busy for some milliseconds while its memory is uncharged.
_REMOVE_TRIES = 50
_REMOVE_PAUSE_S = 0.01
# The alarm line: EMERGENCY is entered at 93 % of the limit and left at 88 % (research: pressure, section 7).
ALARM_RATIO = 0.93
ALARM_LEAVE_RATIO = 0.88

_FILES = {"usage": USAGE, "peak": PEAK, "events": EVENTS, "limit": LIMIT}


class RefusedError(SuperviseError):
    """One rung of the ladder does not hold; the text says which and why."""


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def write_control(path: str, text: str) -> None:
    """One write(2), as control files want it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _try_read(path: str) -> bytes:
    try:
        return _read(path)
    except OSError:
        return b""


class MemoryGroup:
    """One memory cgroup: `own` when we made it, else the one that we live in and share."""

    def __init__(self, path: str, *, version: int, own: bool) -> None:
        self.path = path
        self.version = version
        self.own = own

    def file(self, role: str) -> str:
        """The path of the control file for usage, peak, events or limit."""
        return f"{self.path}/{_FILES[role][self.version]}"

    def join(self) -> None:
        """Move the calling process in. Raises OSError."""
        write_control(f"{self.path}/cgroup.procs", str(os.getpid()))

    def pids(self) -> list[int]:
        """Every process inside, cgroups below included; empty where it is gone."""
        return [pid for folder in _folders(self.path) for pid in _pids_in(folder)]

    def peak_bytes(self) -> int | None:
        """The most that was ever used, by the kernel's own account; None before Linux 5.19 on v2."""
        return parse.number(_try_read(self.file("peak")))

    def forget_peak(self) -> None:
        """v1: start the peak anew. v2 keeps one for the cgroup's life (a reset per reader came with 6.12)."""
        if self.version == 1 and self.own:
            try:
                write_control(self.file("peak"), "0")
            except OSError:
                return  # then the old peak stands, and is known to be old

    def limit_bytes(self) -> int | None:
        """The tightest limit on it: its own or that of any cgroup above that can be seen."""
        if self.version == 1:
            stat = parse.keyed(_try_read(f"{self.path}/memory.stat"), (b"hierarchical_memory_limit",))
            value = stat.get(b"hierarchical_memory_limit")
            return value if value and value < parse.NO_LIMIT else None
        limits = [parse.limit(_try_read(f"{folder}/memory.max")) for folder in _upwards(self.path)]
        return min((value for value in limits if value is not None), default=None)

    def set_alarm(self, line_bytes: int | None) -> bool:
        """v2: move `memory.high`; None lifts it. False where it is not ours or cannot be written."""
        if self.version != 2 or not self.own:
            return False
        try:
            write_control(f"{self.path}/memory.high", "max" if line_bytes is None else str(line_bytes))
        except OSError:
            return False
        return True

    def kill_all(self) -> bool:
        """SIGKILL all inside at once (`cgroup.kill`, Linux 5.14); False where it has to be done by pid."""
        if self.version != 2 or not self.own:
            return False
        try:
            write_control(f"{self.path}/cgroup.kill", "1")
        except OSError:
            return False
        return True

    def remove(self) -> bool:
        """Remove it and what the command made below it, when nobody is left inside. Whether it is gone."""
        return _remove_tree(self.path)


def _upwards(path: str) -> Iterator[str]:
    while os.path.exists(f"{path}/cgroup.procs"):
        yield path
        path = os.path.dirname(path)


def _folders(path: str) -> Iterator[str]:
    """The cgroup and all below it, the deepest last."""
    yield path
    try:
        names = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        yield from _folders(name)


def _pids_in(folder: str) -> list[int]:
    return [int(word) for word in _try_read(f"{folder}/cgroup.procs").split() if word.isdigit() and word != b"0"]


def _remove_tree(path: str) -> bool:
    return all([_remove_one(folder) for folder in reversed(list(_folders(path)))])  # noqa: C419  none is left out


def _remove_one(path: str) -> bool:
    for _ in range(_REMOVE_TRIES):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or _pids_in(path):
                return False
            pause(_REMOVE_PAUSE_S)
        else:
            return True
    return False


# --- names and what dead supervisors left ----------------------------------------------------------------


def start_time(pid: int | str) -> str | None:
    """When a process started, in ticks since boot (field 22 of /proc/PID/stat); None when it is gone."""
    _, _, rest = _try_read(f"/proc/{pid}/stat").rpartition(b")")
    words = rest.split()
    return words[19].decode() if len(words) > 19 else None


def _namespace() -> str:
    """Empty in the first pid namespace, where pids mean the same to everybody who sees the cgroup."""
    inode = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return "" if inode == "4026531836" else f"-ns{inode}"  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def own_name() -> str:
    """`memwarden-PID-STARTTIME`: says whose it is, also after a pid was used again."""
    pid = os.getpid()
    return f"{_PREFIX}{pid}-{start_time(pid)}{_namespace()}"


def _owner_is_dead(name: str) -> bool:
    words = name.removeprefix(_PREFIX).removesuffix("-self").split("-", 2)
    if len(words) < 2 or not words[0].isdigit() or ("-" + words[2] if len(words) > 2 else "") != _namespace():
        return False  # not one of ours, or its pid means something else in another namespace
    return start_time(words[0]) != words[1]


def remove_leftovers(folder: str) -> list[str]:
    """Remove the empty cgroups of supervisors that are dead. Returns what was removed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    dead = [f"{folder}/{name}" for name in names if name.startswith(_PREFIX) and _owner_is_dead(name)]
    return [path for path in dead if not MemoryGroup(path, version=2, own=False).pids() and _remove_tree(path)]


# --- where we are ------------------------------------------------------------------------------------------


def living_in() -> MemoryGroup | None:
    """The cgroup that we are in and share, where its kills can be read at all."""
    here, _ = find_cgroup(Machine())
    if here is None:
        return None
    group = MemoryGroup(here.folder, version=here.version, own=False)
    return group if os.path.exists(group.file("events")) else None


# --- the ladder ------------------------------------------------------------------------------------------


class Place:
    """Where a cgroup of our own may be made, and how to leave no trace of having prepared it."""

    def __init__(self, parent: str, *, leaf: str | None = None) -> None:
        self.parent = parent
        self._leaf = leaf

    def tidy(self) -> None:
        """Move ourselves back out of the leaf that we made, and remove it and what dead supervisors left."""
        if self._leaf is not None:
            _leave_leaf(self.parent, self._leaf)
            self._leaf = None
        remove_leftovers(self.parent)


def _leave_leaf(parent: str, leaf: str) -> None:
    try:
        write_control(f"{parent}/cgroup.subtree_control", "-memory")
        write_control(f"{parent}/cgroup.procs", str(os.getpid()))
    except OSError:
        return  # somebody made cgroups beside ours meanwhile: the leaf stays until we are gone
    _remove_tree(leaf)


def _words(path: str) -> list[str]:
    return _try_read(path).decode(errors="replace").split()


def place_v2(own: str) -> Place:
    """Where on v2 a cgroup may be made. Raises RefusedError."""
    if "memory" not in _words(f"{own}/cgroup.controllers"):
        raise RefusedError("the memory controller is not offered here", where=own)
    if "memory" in _words(f"{own}/cgroup.subtree_control"):
        return Place(own)
    if not os.path.exists(f"{own}/cgroup.type"):  # only the root has none, and it may hold processes
        return _handing_on(own)
    if _pids_in(own) == [os.getpid()]:
        return _place_below(own)
    return _place_beside(own)


def _handing_on(own: str) -> Place:
    try:
        write_control(f"{own}/cgroup.subtree_control", "+memory")
    except OSError as error:
        raise RefusedError(f"the memory controller cannot be handed on ({error.strerror})", where=own) from error
    return Place(own)


def _place_below(own: str) -> Place:
    leaf = f"{own}/{own_name()}-self"
    try:
        os.mkdir(leaf)
        write_control(f"{leaf}/cgroup.procs", str(os.getpid()))
        write_control(f"{own}/cgroup.subtree_control", "+memory")
    except OSError as error:
        _return_to(own)
        _remove_tree(leaf)
        raise RefusedError(f"no cgroup can be made below our own ({error.strerror})", where=own) from error
    return Place(own, leaf=leaf)


def _return_to(own: str) -> None:
    try:
        write_control(f"{own}/cgroup.procs", str(os.getpid()))
    except OSError:
        return  # we never left


# What a process next to its old cgroup would escape from.
_LIMIT_FILES = ("memory.max", "memory.high", "memory.swap.max", "pids.max")


def _place_beside(own: str) -> Place:
    parent = os.path.dirname(own)
    others = "other processes live in our cgroup"
    if "memory" not in _words(f"{parent}/cgroup.subtree_control"):
        raise RefusedError(f"{others}, and the one above hands on no memory controller", where=own)
    for name in _LIMIT_FILES:
        if _words(f"{own}/{name}")[:1] not in ([], ["max"]):
            raise RefusedError(f"{others}, and one beside it would escape its {name}", where=own)
    return Place(parent)


def place_v1(own: str) -> Place:
    """On v1 cgroups nest freely: below our own."""
    return Place(own)


class Confinement:
    """What came of it: the cgroup to use, its limit, and the reason of every rung that did not hold."""

    def __init__(
        self, cgroup: MemoryGroup | None, *, reasons: tuple[str, ...] = (), place: Place | None = None
    ) -> None:
        self.cgroup = cgroup
        self.reasons = reasons
        self._place = place

    @property
    def own(self) -> bool:
        """Whether the limit is held by a cgroup of our own."""
        return self.cgroup is not None and self.cgroup.own

    def release(self) -> bool:
        """Remove what was made. Whether all of it is gone; not while a process is left inside."""
        gone = self.cgroup.remove() if self.cgroup is not None and self.cgroup.own else True
        if self._place is not None:
            self._place.tidy()
        return gone


def confine(limit_bytes: int, *, swap_bytes: int = 0, oom_group: bool = False) -> Confinement:
    """A cgroup of our own where one can be made; else the one that we live in, and the reason."""
    here, reason = find_cgroup(Machine())
    if here is None:
        return Confinement(None, reasons=(reason,))
    try:
        place = place_v1(here.folder) if here.version == 1 else place_v2(here.folder)
        made = _make(place, here.version, limit_bytes, swap_bytes, oom_group)
    except RefusedError as why:
        return Confinement(living_in(), reasons=(f"cgroup v{here.version}: {why}",))
    return Confinement(made, place=place)


def _make(place: Place, version: int, limit_bytes: int, swap_bytes: int, oom_group: bool) -> MemoryGroup:
    """Make one in the place and prove it. Raises RefusedError, and leaves nothing behind then."""
    remove_leftovers(place.parent)
    made = MemoryGroup(f"{place.parent}/{own_name()}", version=version, own=True)
    try:
        os.mkdir(made.path)
        _set_limits(made, limit_bytes, swap_bytes)
        if oom_group and version == 2:
            write_control(f"{made.path}/memory.oom.group", "1")
        _prove(made, limit_bytes)
    except OSError as error:
        made.remove()
        place.tidy()
        raise RefusedError(f"{error.strerror or error}", where=error.filename or made.path) from error
    return made


def _set_limits(made: MemoryGroup, limit_bytes: int, swap_bytes: int) -> None:
    write_control(made.file("limit"), str(limit_bytes))
    swap_file = "memory.memsw.limit_in_bytes" if made.version == 1 else "memory.swap.max"
    try:
        write_control(f"{made.path}/{swap_file}", str(swap_bytes + (limit_bytes if made.version == 1 else 0)))
    except FileNotFoundError:  # no swap accounting in this kernel; v1 can at least be told not to swap
        if made.version == 1 and not swap_bytes:
            write_control(f"{made.path}/memory.swappiness", "0")


def _prove(made: MemoryGroup, limit_bytes: int) -> None:
    """The limit is what we wrote, to the page, and a process of ours can get in and out. Raises OSError."""
    stored = parse.limit(_read(made.file("limit")))
    if stored is None or abs(stored - limit_bytes) >= _PAGE:
        raise OSError(errno.EINVAL, f"the kernel stored {stored} instead of {limit_bytes}", made.file("limit"))
    pid = os.fork()
    if pid == 0:
        _join_and_leave(made)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code) if code > 0 else "killed", f"{made.path}/cgroup.procs")


def _join_and_leave(made: MemoryGroup) -> None:
    code = errno.EIO
    try:
        made.join()
        code = 0
    except OSError as error:
        code = error.errno or code
    finally:
        os._exit(code)
