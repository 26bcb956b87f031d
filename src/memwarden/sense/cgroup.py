"""Where this process sits among the memory cgroups: v1, v2, hybrid, nested, namespaced.

Finds the folder of the process's own memory cgroup and of every ancestor that can be seen, through
/proc/PID/cgroup and /proc/PID/mountinfo. A v2 hierarchy without the memory controller does not end the search
(hybrid hosts have one). A path that does not lie below the mount's root, as inside a cgroup namespace or under a
bind-mounted sub-tree, falls back to what is mounted. What each level says is read in `limit` and `sensor`.
"""

from __future__ import annotations

from memwarden.facts import Fact
from memwarden.sense import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Machine


class Cgroup(Fact):
    """The memory cgroup of a process: `levels` are folders, its own first, the mount point last."""

    version: int
    path: str
    levels: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The process's own cgroup folder, or the nearest one that exists."""
        return self.levels[0]


# File names by cgroup version: what is the same fact under two names.
USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
EVENTS = {1: "memory.oom_control", 2: "memory.events"}


def find_cgroup(machine: Machine, pid: int | str = "self") -> tuple[Cgroup | None, str]:
    """The memory cgroup of a process and, where there is none, the reason in words."""
    try:
        paths = parse.cgroup_paths(machine.read(f"/proc/{pid}/cgroup"))
    except OSError as error:
        return None, f"/proc/{pid}/cgroup: {error.strerror}"
    mounts = _mounts(machine, pid)
    v1_path = next((path for _, controllers, path in paths if "memory" in controllers), None)
    if v1_path is not None:
        v1 = [mount for mount in mounts if mount.fstype == "cgroup" and "memory" in mount.options]
        found = _best(machine, 1, v1, v1_path)
        if found is not None:
            return found, ""
    v2_path = next((path for number, controllers, path in paths if number == 0 and not controllers), None)
    if v2_path is not None:
        v2 = [mount for mount in mounts if mount.fstype == "cgroup2"]
        found = _best(machine, 2, [mount for mount in v2 if _has_memory(machine, mount.point)], v2_path)
        if found is not None:
            return found, ""
    if v1_path is None and v2_path is None:
        return None, f"/proc/{pid}/cgroup names no memory cgroup"
    return None, "no cgroup file system with a memory controller is mounted"


def _mounts(machine: Machine, pid: int | str) -> list[parse.Mount]:
    try:
        return [m for m in parse.mounts(machine.read(f"/proc/{pid}/mountinfo")) if m.fstype.startswith("cgroup")]
    except OSError:
        # Without mountinfo the places where every distribution mounts them are still worth a look.
        usual = (("/sys/fs/cgroup/memory", "cgroup"), ("/sys/fs/cgroup", "cgroup2"))
        return [parse.Mount("/", point, fstype, ("memory",)) for point, fstype in usual if machine.exists(point)]


def _has_memory(machine: Machine, point: str) -> bool:
    """Whether the v2 hierarchy mounted there has the memory controller."""
    try:
        return b"memory" in machine.read(point + "/cgroup.controllers").split()
    except OSError:
        return machine.exists(point + "/memory.max") or machine.exists(point + "/memory.stat")


def _best(machine: Machine, version: int, mounts: list[parse.Mount], path: str) -> Cgroup | None:
    """The mount that shows our own folder, and of several the one that shows most ancestors."""
    found = [_resolve(machine, version, mount, path) for mount in mounts if machine.exists(mount.point)]
    return max(found, key=lambda each: (each[0], len(each[1].levels)))[1] if found else None


def _resolve(machine: Machine, version: int, mount: parse.Mount, path: str) -> tuple[int, Cgroup]:
    """How sure we are (2: our own folder; 1: an ancestor; 0: only what is mounted) and the cgroup."""
    below = _below(mount.root, path)
    parts = [part for part in (below or "").split("/") if part]
    sure = 0 if below is None else 2
    while parts and not machine.exists("/".join((mount.point, *parts))):
        parts.pop()  # the cgroup was removed while its process lives on: its nearest ancestor still binds
        sure = 1
    levels = tuple("/".join((mount.point, *parts[:count])) for count in range(len(parts), -1, -1))
    return sure, Cgroup(version=version, path=path, levels=levels)


def _below(root: str, path: str) -> str | None:
    """The part of a cgroup path below a mount's root; None where it lies outside of it."""
    if root not in ("/", path) and not path.startswith(root + "/"):
        return None
    below = path if root == "/" else path[len(root) :]
    # Seen from inside a cgroup namespace both can begin with "/..": they are relative to the same place. What still
    # climbs after that is outside of the mount.
    return None if ".." in below.split("/") else below
