"""A process by a name that no other one ever has, so that whoever comes next knows whether it still lives."""

from __future__ import annotations

import os

from memwarden.blackbox import AGAIN, SIZE, find_boxes, read_box
from memwarden.errors import BlackBoxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_STATE, _START = 0, 19  # of the words behind the name in /proc/PID/stat (proc(5): fields 3 and 22)


def own_member() -> str:
    """The process that runs this, as `pidns:pid:start`; the parts that cannot be known are 0."""
    return f"{_namespace()}:{os.getpid()}:{_start_of(os.getpid()) or 0}"


def member_of(pid: int, start_ticks: int) -> str:
    """A process of this pid namespace."""
    return f"{_namespace()}:{pid}:{start_ticks}"


def member_with(pid: int) -> str:
    """The process that has this pid now."""
    return member_of(pid, _start_of(pid) or 0)


def is_gone(member: str) -> bool:
    """Whether that process is known to be gone. False for one of another namespace, and for what is no process."""
    return _is_there(member) is False


def is_living(member: str) -> bool:
    """Whether that process is known to live. False likewise."""
    return _is_there(member) is True


def _is_there(member: str) -> bool | None:
    """Whether there is such a process; None where that cannot be known."""
    parts = member.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
        return None
    namespace, pid, start = (int(part) for part in parts)
    if not namespace or namespace != _namespace() or not pid:
        return None
    found = _start_of(pid)
    return found is not None and start in (0, found)


def is_foreign(member: str) -> bool:
    """Whether it is a process of another pid namespace, of which nothing can be known here."""
    namespace, _, rest = member.partition(":")
    return ":" in rest and namespace not in ("", str(_namespace()))


def is_alone(run_folder: str | None, own: str | None) -> bool:
    """Whether no other process is known to live that could tell of what all see: of the cgroup of our own box, where
    there is one, else of any; then also a guarded command that lives, or that its supervisor starts again.
    """
    try:
        cgroup = read_box(own).cgroup if own is not None else None
        paths = find_boxes(run_folder) if run_folder is not None else []
    except (OSError, BlackBoxError):
        return True
    if own is None and _is_run_again(paths):
        return False
    return not any(_may_tell(path, cgroup) for path in paths if path != own)


def _is_run_again(paths: Sequence[str]) -> bool:
    """Whether the command of a supervisor lives or is started again, by the newest box of each."""
    seen: set[int] = set()
    for path in paths:  # the newest first
        try:
            box = read_box(path)
        except (OSError, BlackBoxError):  # it was tidied up just now
            continue
        if box.kind != "outside" or box.supervisor_pid in seen:
            continue
        seen.add(box.supervisor_pid)
        if not box.ended and is_living(member_of(box.pid, box.start_ticks)):
            return True
        again = box.ended and any(event.kind == AGAIN for event in box.events)
        if again and is_living(member_of(box.supervisor_pid, 0)):
            return True
    return False


def _may_tell(path: str, cgroup: str | None) -> bool:
    """Whether it is the box of a process that lives, has slots for what is to be told, and is of this cgroup."""
    try:
        box = read_box(path) if os.path.getsize(path) > SIZE else None
    except (OSError, BlackBoxError):  # it was tidied up just now
        return False
    if box is None or box.ended or cgroup not in (None, box.cgroup):
        return False
    return is_living(member_of(box.pid, box.start_ticks))


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _start_of(pid: int) -> int | None:
    """When it started, in clock ticks since boot; None where there is no such process, or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(words) <= _START or words[_STATE] in (b"Z", b"X"):
        return None
    return int(words[_START])
