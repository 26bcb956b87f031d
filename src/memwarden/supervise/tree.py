"""The processes below us: who they are, whether a SIGKILL waits for them, and how to end them all.

Where the command has a cgroup of its own the cgroup says who is in it. Elsewhere descendants are found
through /proc: as subreaper (or PID 1) every orphan becomes our own child, so the walk misses nobody for long.
"""

from __future__ import annotations

import os
import signal

from memwarden.sense import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from memwarden.supervise.cgroup import MemoryGroup

_KILL_BIT = 1 << (signal.SIGKILL - 1)
# Deeper than any real tree; ends the walk should /proc change under it in a circle.
_MAX_PROCESSES = 100_000


def _try_read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _children(pid: int) -> Iterator[int]:
    """Children of all its threads. Needs CONFIG_PROC_CHILDREN, which every distribution sets."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        yield from map(int, _try_read(f"/proc/{pid}/task/{thread}/children").split())


def descendants(pid: int, *, but: int | None = None) -> list[int]:
    """Every living process below `pid`, itself not included; nor `but` and what is below that."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < _MAX_PROCESSES:
        below = [child for child in _children(todo.pop()) if child != but]
        found += below
        todo += below
    return found


def is_below(pid: int, ancestor: int) -> bool:
    """Whether `pid` is `ancestor` or one of its descendants."""
    for _ in range(_MAX_PROCESSES):
        if pid == ancestor:
            return True
        _, _, rest = _try_read(f"/proc/{pid}/stat").rpartition(b")")
        words = rest.split(None, 3)
        if len(words) < 3 or words[1] in (b"0", b"1"):
            return ancestor == 1 and len(words) > 2 and words[1] == b"1"
        pid = int(words[1])
    return False


def is_doomed(pid: int) -> bool:
    """Whether a process is dead, dying or has a SIGKILL waiting: what the kernel's choice of victim looks
    like.

    A killed process first has the bit set, then gives back its memory (no VmSize any more), then is a zombie.
    """
    fields = parse.status(_try_read(f"/proc/{pid}/status"))
    if not fields or fields.get(b"State", b"")[:1] in (b"Z", b"X") or b"VmSize" not in fields:
        return True
    return any(int(fields.get(name) or b"0", 16) & _KILL_BIT for name in (b"SigPnd", b"ShdPnd"))


class Tree:
    """All that the command started. `helper` is the pid of a child of ours that the command did not start."""

    def __init__(self, cgroup: MemoryGroup | None, *, helper: Callable[[], int | None] = lambda: None) -> None:
        self._helper = helper
        self._cgroup = cgroup if cgroup is not None and cgroup.own else None

    def pids(self) -> list[int]:
        """Every process of it that is not a zombie waiting for its parent."""
        if self._cgroup is not None:
            return self._cgroup.pids()
        return [pid for pid in descendants(os.getpid(), but=self._helper()) if not _is_zombie(pid)]

    def end(self) -> None:
        """Ask all to end; the stopped ones are continued, or they could not hear it."""
        _send(self.pids(), signal.SIGTERM)
        _send(self.pids(), signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all. Those forked meanwhile are found by the next call."""
        if self._cgroup is None or not self._cgroup.kill_all():
            _send(self.pids(), signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    _, _, rest = _try_read(f"/proc/{pid}/stat").rpartition(b")")
    return rest[:2] in (b"", b" Z", b" X")


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            continue  # it changed its user; the report of who is left will name it
