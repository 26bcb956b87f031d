"""Captures machine folders from real kernels: `python -m tests.machines.capture FOLDER [NAME...]`, as root.

Each scenario makes cgroups, namespaces, mounts and resource limits by hand, puts a process there, and lets
that process copy what it sees of /proc and /sys. The expectation is computed from what the scenario itself
set (the limit) and from plain arithmetic over the copied text (the usage); no line of memwarden takes part.

Where each runs: `host` on this machine (needs the v1 memory controller), the other places in
user-mode Linux (tests/uml), one boot each. What a machine cannot do is said and left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.uml.kernel import run_in_uml, uml_missing_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Files = dict[str, str]

MIB = 1 << 20

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x00020000
_CLONE_NEWCGROUP = 0x02000000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 4096, 8192, 16384, 1 << 18
_MNT_DETACH = 2

_PROC_FILES = (
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/self/statm",
    "proc/self/status",
    "proc/self/limits",
    "proc/meminfo",
    "proc/pressure/memory",
)
# What a reader of memory could want of a cgroup; the kmem files and numa_stat are long and say nothing new.
_CGROUP_FILES = ("memory.*", "cgroup.controllers", "cgroup.type", "cgroup.subtree_control")
_LEFT_OUT = (
    "memory.numa_stat",
    "memory.kmem.*",
    "memory.force_empty",
    "memory.pressure_level",
    "memory.reclaim",
)

# On a host, mounts other than these are its owner's business and say nothing about memory.
_TOLD_MOUNTS = re.compile(r"\S+ \S+ \S+ \S+ (\S+) .*- (\S+) ")
_TOLD_TYPES = ("proc", "sysfs", "cgroup", "cgroup2")


# --- the kernel's doors ----------------------------------------------------------------------------


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", *, flags: int = 0, options: str = "") -> None:
    """mount(2), with the target made where it is missing. Raises OSError."""
    os.makedirs(target, exist_ok=True)
    words = (source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None)
    _checked(_LIBC.mount(*words), f"mount {source} on {target}")


def unmount(target: str) -> None:
    """umount2(2), lazily, with what is mounted below. Raises OSError."""
    _checked(_LIBC.umount2(target.encode(), _MNT_DETACH), f"unmount {target}")


def own_mounts() -> None:
    """A mount namespace of our own, so that nothing done here is seen outside."""
    _checked(_LIBC.unshare(_CLONE_NEWNS), "unshare mounts")
    mount("none", "/", flags=_MS_REC | _MS_PRIVATE)


def own_cgroup_namespace() -> None:
    """From here on the present cgroup is `/`."""
    _checked(_LIBC.unshare(_CLONE_NEWCGROUP), "unshare cgroups")


def write(path: str, text: str) -> None:
    """One write, as cgroup files want it. Raises OSError."""
    with open(path, "w") as file:
        file.write(text)


def read(path: str) -> str | None:
    """The text, or None where there is no such file or it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return None


# --- the place where scenarios happen --------------------------------------------------------------


@dataclass
class Lab:
    """One memory hierarchy: `top` is where it is mounted, `version` its interface."""

    top: str
    version: int
    made: list[str] = field(default_factory=list)
    scratch: str = ""

    def group(self, name: str, **files: int | str) -> str:
        """A cgroup below the top with these files written; the answer is its folder.

        A keyword's first underscore stands for the dot: `memory_max=...`, `memory_limit_in_bytes=...`.
        """
        path = self.top
        for part in name.split("/"):
            if self.version == 2 and "memory" not in (read(f"{path}/cgroup.subtree_control") or ""):
                write(f"{path}/cgroup.subtree_control", "+memory")
            path = f"{path}/{part}"
            if not os.path.isdir(path):
                os.mkdir(path)
                self.made.append(path)
        for key, value in files.items():
            write(f"{path}/{_file_name(key)}", str(value))
        return path

    def bare_group(self, name: str) -> str:
        """A v2 cgroup whose parent has no memory controller to give: no memory files in it."""
        path = f"{self.top}/{name}"
        os.mkdir(path)
        self.made.append(path)
        return path

    def limited(self, name: str, limit_bytes: int) -> str:
        """A cgroup with a memory limit, in the words of this version."""
        key = "memory_max" if self.version == 2 else "memory_limit_in_bytes"
        return self.group(name, **{key: limit_bytes})

    def clean(self) -> None:
        for path in reversed(self.made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        self.made.clear()


def _file_name(key: str) -> str:
    first, _, rest = key.partition("_")
    if rest.startswith(("memsw_", "swap_", "oom_")) and "control" not in rest:
        head, _, tail = rest.partition("_")
        return f"{first}.{head}.{tail}"
    return f"{first}.{rest}"


def _grow(lab: Lab) -> list[bytearray]:
    """Every kind of memory that the bounds tell apart: anonymous, shared, cache cold, warm and dirty."""
    held = [bytearray(b"x") * (8 * MIB)]
    path = f"{lab.scratch}/cache-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, bytes(3 * MIB))
    os.fsync(fd)
    for _again in range(3):  # a page read again is active
        os.pread(fd, MIB, 0)
    os.pwrite(fd, b"y" * (512 << 10), 2 * MIB)  # left dirty
    shared = os.open(f"/dev/shm/capture-{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(shared, bytes(MIB))
    os.unlink(f"/dev/shm/capture-{os.getpid()}")
    return held  # both descriptors stay open, and with them the pages


def _snapshot(folders: tuple[str, ...], *, whole: bool) -> Files:
    files = {path: text for path in _PROC_FILES if (text := read(f"/{path}")) is not None}
    if not whole:
        files["proc/self/mountinfo"] = _told_lines(files["proc/self/mountinfo"])
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            told = any(fnmatch.fnmatch(name, pattern) for pattern in _CGROUP_FILES)
            if not told or any(fnmatch.fnmatch(name, pattern) for pattern in _LEFT_OUT):
                continue
            text = read(f"{folder}/{name}")
            if text is not None:
                files[f"{folder.lstrip('/')}/{name}"] = text
    return files


def _told_lines(mountinfo: str) -> str:
    def told(line: str) -> bool:
        match = _TOLD_MOUNTS.match(line)
        if match is None:
            return False
        point, kind = match.groups()
        return kind in _TOLD_TYPES or point == "/" or point.startswith("/sys/fs/cgroup")

    return "".join(line for line in mountinfo.splitlines(keepends=True) if told(line))


def _in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child, through JSON. Raises RuntimeError with its traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            answer = {"value": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = json.load(file)
    os.waitpid(pid, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def _neighbour(folder: str | None) -> Iterator[None]:
    """Another process with 6 MiB in that cgroup, so that a group and its ancestor differ in usage."""
    if folder is None:
        yield
        return
    ready, told = os.pipe()
    ending, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        write(f"{folder}/cgroup.procs", "0")
        held = bytearray(b"x") * (6 * MIB)
        os.close(end)
        os.write(told, b"1")
        os.read(ending, 1)
        os._exit(len(held) > 0)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        for fd in (ready, told, ending):
            os.close(fd)


# --- what must come out ----------------------------------------------------------------------------


def _line_value(text: str, key: str) -> int | None:
    match = re.search(rf"^{re.escape(key)}:?\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def _kib(text: str, key: str) -> int:
    value = _line_value(text, key)
    assert value is not None, key
    return value << 10


def expect_machine(files: Files, **more: Any) -> dict[str, Any]:
    """MemTotal is the limit: no group and no resource limit below it."""
    info = files["proc/meminfo"]
    total, free = _kib(info, "MemTotal"), _kib(info, "MemFree")
    used = total - _kib(info, "MemAvailable")
    cache = _kib(info, "Buffers") + _kib(info, "Cached") + _kib(info, "SReclaimable") - _kib(info, "Shmem")
    return {
        "limit_bytes": total,
        "limit_kind": "machine",
        "limit_source": "meminfo",
        "used_bytes": used,
        "used_low_bytes": min(max(0, total - free - cache), used),
        **more,
    }


def expect_cgroup(files: Files, folder: str, *, limit_bytes: int, version: int, source: str = "") -> dict[str, Any]:
    """The limit of the cgroup seen at `folder` is the tightest."""
    where = folder.lstrip("/")
    keys, name = (_V2_KEYS, "memory.current") if version == 2 else (_V1_KEYS, "memory.usage_in_bytes")
    stat = files[f"{where}/memory.stat"]
    inactive, active, slab, dirty, writeback = (_line_value(stat, key) or 0 if key else 0 for key in keys)
    usage = int(files[f"{where}/{name}"])
    used = max(0, usage - inactive)
    low = usage - inactive - active - slab + dirty + writeback
    own = "memory.max" if version == 2 else "memory.limit_in_bytes"
    return {
        "limit_bytes": limit_bytes,
        "limit_kind": "cgroup",
        "limit_source": source or f"{folder}/{own}",
        "used_bytes": used,
        "used_low_bytes": min(max(0, low), used),
        "cgroup_version": version,
    }


_V2_KEYS = ("inactive_file", "active_file", "slab_reclaimable", "file_dirty", "file_writeback")
_V1_KEYS = ("total_inactive_file", "total_active_file", None, "total_dirty", "total_writeback")


def expect_rlimit(files: Files, *, name: str, limit_bytes: int, version: int | None) -> dict[str, Any]:
    """A soft resource limit is the tightest; the size of the address space or its data counts against it."""
    used = _kib(files["proc/self/status"], {"RLIMIT_DATA": "VmData", "RLIMIT_AS": "VmSize"}[name])
    return {
        "limit_bytes": limit_bytes,
        "limit_kind": "rlimit",
        "limit_source": name,
        "used_bytes": used,
        "used_low_bytes": used,
        "cgroup_version": version,
    }


# --- scenarios -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """One machine: where it can be made, what is special about it, and the recipe."""

    name: str
    where: str
    about: str
    recipe: Callable[[Lab], tuple[Files, dict[str, Any]]]


SCENARIOS: list[Scenario] = []


def scenario(where: str, about: str) -> Callable[[Any], Any]:
    """Registers a recipe; its name is the function's, with the kernel's side in front."""

    def register(recipe: Any) -> Any:
        for place in where.split():
            name = f"{place}-{recipe.__name__.strip('_').replace('_', '-')}"
            SCENARIOS.append(Scenario(name=name, where=place, about=about, recipe=recipe))
        return recipe

    return register


def subject(
    lab: Lab,
    leaf: str | None,
    *folders: str,
    inside: Callable[[], None] | None = None,
    neighbour: str | None = None,
) -> Files:
    """What a process in cgroup `leaf` sees of /proc and of these folders, after `inside` was done there."""
    whole = not os.environ.get("CAPTURE_ON_HOST")

    def work() -> Files:
        if leaf is not None:
            write(f"{leaf}/cgroup.procs", "0")
        held = _grow(lab)
        if inside is not None:
            inside()
        files = _snapshot(folders, whole=whole)
        assert held
        return files

    with _neighbour(neighbour):
        files: Files = _in_child(work)
    return files


def _remount(lab: Lab) -> None:
    """A fresh mount of the same hierarchy in place of the old one, as a container runtime makes it."""
    own_mounts()
    unmount("/sys/fs/cgroup")
    if lab.version == 2:
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
        return
    mount("tmpfs", "/sys/fs/cgroup", "tmpfs", options="mode=755")
    mount("cgroup", "/sys/fs/cgroup/memory", "cgroup", options="memory")


def _bind(lab: Lab, folder: str) -> None:
    """Only one cgroup is mounted, in the place of the tree, as Docker does without a cgroup namespace."""
    own_mounts()
    aside = f"{lab.scratch}/aside"
    mount(folder, aside, flags=_MS_BIND)
    unmount("/sys/fs/cgroup")
    if lab.version == 1:
        mount("tmpfs", "/sys/fs/cgroup", "tmpfs", options="mode=755")
    mount(aside, lab.top, flags=_MS_MOVE)


def _top_in_container(lab: Lab) -> str:
    return "/sys/fs/cgroup" if lab.version == 2 else "/sys/fs/cgroup/memory"


@scenario("host v1 v2 hybrid", "no limit anywhere: the process is in the root cgroup")
def _root(lab: Lab) -> tuple[Files, dict[str, Any]]:
    files = subject(lab, lab.top, lab.top)
    return files, expect_machine(files, cgroup_version=lab.version)


@scenario("host v2", "own cgroup and its parent without a limit")
def _unlimited(lab: Lab) -> tuple[Files, dict[str, Any]]:
    parent, leaf = lab.group("app.slice"), lab.group("app.slice/web.service")
    files = subject(lab, leaf, leaf, parent, lab.top)
    return files, expect_machine(files, cgroup_version=lab.version)


@scenario("host v1 v2 hybrid", "a limit of 200 MiB on the own cgroup")
def _limited(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 209715200)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=209715200, version=lab.version)


@scenario("host v2", "a limit that is no multiple of the page size: the kernel rounds it down")
def _unaligned(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 209716000)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=209715200, version=lab.version)


@scenario(
    "host v1 v2 hybrid",
    "own limit 300 MiB, the ancestor's 150 MiB: the ancestor, with what others use there, binds",
)
def _ancestor_tighter(lab: Lab) -> tuple[Files, dict[str, Any]]:
    parent, leaf = lab.limited("pod", 150 * MIB), lab.limited("pod/web", 300 * MIB)
    files = subject(lab, leaf, leaf, parent, lab.top, neighbour=lab.group("pod/sidecar"))
    return files, expect_cgroup(files, parent, limit_bytes=150 * MIB, version=lab.version)


@scenario("host v2", "own limit 100 MiB below an ancestor's 400 MiB")
def _child_tighter(lab: Lab) -> tuple[Files, dict[str, Any]]:
    parent, leaf = lab.limited("pod", 400 * MIB), lab.limited("pod/web", 100 * MIB)
    files = subject(lab, leaf, leaf, parent, lab.top, neighbour=lab.group("pod/sidecar"))
    return files, expect_cgroup(files, leaf, limit_bytes=100 * MIB, version=lab.version)


@scenario("host v2", "no limit on the own cgroup, 180 MiB on its parent, two levels up 500 MiB")
def _limit_in_the_parent(lab: Lab) -> tuple[Files, dict[str, Any]]:
    top, parent = lab.limited("kube", 500 * MIB), lab.limited("kube/pod", 180 * MIB)
    leaf = lab.group("kube/pod/web")
    files = subject(lab, leaf, leaf, parent, top, lab.top, neighbour=lab.group("kube/pod/sidecar"))
    return files, expect_cgroup(files, parent, limit_bytes=180 * MIB, version=lab.version)


@scenario("host v2", "seven levels deep, the limit at the third")
def _deep(lab: Lab) -> tuple[Files, dict[str, Any]]:
    names = "abcdefg"
    folders = [lab.group("/".join(names[: depth + 1])) for depth in range(len(names))]
    lab.limited("a/b/c", 256 * MIB)
    files = subject(lab, folders[-1], *reversed(folders), lab.top)
    return files, expect_cgroup(files, folders[2], limit_bytes=256 * MIB, version=lab.version)


@scenario("host v2", "a limit larger than the machine: the machine is the limit")
def _larger_than_the_machine(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 1 << 45)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_machine(files, cgroup_version=lab.version)


@scenario("host v2", "colons, spaces, brackets and umlauts in the name of the cgroup")
def _strange_name(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("kubepods-pod1.slice:cri-containerd:0a 1b [2c] größe", 220 * MIB)
    files = subject(lab, leaf, leaf, lab.top)
    return files, {
        **expect_cgroup(files, leaf, limit_bytes=220 * MIB, version=lab.version),
        "platform": "kubernetes",
    }


@scenario("host v2", "a soft RLIMIT_DATA of 120 MiB below the cgroup's 300 MiB")
def _rlimit_data(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 300 * MIB)

    def inside() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (120 * MIB, resource.RLIM_INFINITY))

    files = subject(lab, leaf, leaf, lab.top, inside=inside)
    return files, expect_rlimit(files, name="RLIMIT_DATA", limit_bytes=120 * MIB, version=lab.version)


@scenario("host v2", "a soft RLIMIT_AS of 250 MiB below the cgroup's 300 MiB")
def _rlimit_as(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 300 * MIB)

    def inside() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (250 * MIB, 280 * MIB))

    files = subject(lab, leaf, leaf, lab.top, inside=inside)
    return files, expect_rlimit(files, name="RLIMIT_AS", limit_bytes=250 * MIB, version=lab.version)


@scenario("host v2", "only a hard RLIMIT_DATA, and RLIMIT_RSS which Linux ignores: the cgroup binds")
def _rlimits_that_do_not_bind(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 300 * MIB)

    def inside() -> None:
        resource.setrlimit(resource.RLIMIT_RSS, (50 * MIB, 50 * MIB))
        resource.setrlimit(resource.RLIMIT_DATA, (400 * MIB, 400 * MIB))
        resource.setrlimit(resource.RLIMIT_STACK, (8 * MIB, 8 * MIB))

    files = subject(lab, leaf, leaf, lab.top, inside=inside)
    return files, expect_cgroup(files, leaf, limit_bytes=300 * MIB, version=lab.version)


@scenario(
    "host v2",
    "a container: cgroup namespace with its own mount, so that the path is / and the limit at the top",
)
def _namespace(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("pod/web", 190 * MIB)
    top = _top_in_container(lab)

    def inside() -> None:
        own_cgroup_namespace()
        _remount(lab)

    files = subject(lab, leaf, top, inside=inside)
    return files, expect_cgroup(files, top, limit_bytes=190 * MIB, version=lab.version)


@scenario("host v2", "a container whose process is in a cgroup below the namespace's root, where the limit is")
def _below_the_namespace(lab: Lab) -> tuple[Files, dict[str, Any]]:
    outer = lab.limited("pod", 190 * MIB)
    leaf = lab.bare_group("pod/init.scope")
    top = _top_in_container(lab)

    def inside() -> None:
        # Still in the outer one: v2 lets no process in once it hands its controllers down.
        own_cgroup_namespace()
        write(f"{leaf}/cgroup.procs", "0")
        if lab.version == 2:
            write(f"{outer}/cgroup.subtree_control", "+memory")
        _remount(lab)

    files = subject(lab, outer, f"{top}/init.scope", top, inside=inside)
    return files, expect_cgroup(files, top, limit_bytes=190 * MIB, version=lab.version)


@scenario(
    "host v2",
    "a cgroup namespace without a mount of its own: the mount's root shows as /../.. and the path as /",
)
def _namespace_with_the_outer_mount(lab: Lab) -> tuple[Files, dict[str, Any]]:
    """The names between the mount's root and `/` are told nowhere: only the top is known, without a limit."""
    leaf = lab.limited("pod/web", 190 * MIB)
    files = subject(lab, leaf, lab.top, inside=own_cgroup_namespace)
    return files, expect_machine(files, cgroup_version=lab.version)


@scenario("host v2", "a namespace with the outer mount, process moved to a sibling: path /../side, mount root /..")
def _beside_the_namespace(lab: Lab) -> tuple[Files, dict[str, Any]]:
    box, side = lab.limited("box", 300 * MIB), lab.limited("side", 170 * MIB)

    def inside() -> None:
        own_cgroup_namespace()
        write(f"{side}/cgroup.procs", "0")

    files = subject(lab, box, side, box, lab.top, inside=inside)
    return files, expect_cgroup(files, side, limit_bytes=170 * MIB, version=lab.version)


@scenario(
    "host v2",
    "moved out of its namespace, whose own mount shows only what it left: path /../side, mount root /",
)
def _outside_of_the_namespace(lab: Lab) -> tuple[Files, dict[str, Any]]:
    """The own limit of 170 MiB is not to be seen; the one in sight, of 300 MiB, is somebody else's."""
    box, side = lab.limited("box", 300 * MIB), lab.limited("side", 170 * MIB)
    top = _top_in_container(lab)
    enter = f"{side}/cgroup.procs"

    def inside() -> None:
        with open(enter, "w") as door:
            own_cgroup_namespace()
            _remount(lab)
            door.write("0")

    files = subject(lab, box, top, inside=inside)
    return files, expect_cgroup(files, top, limit_bytes=300 * MIB, version=lab.version)


@scenario("host v2", "Docker without a cgroup namespace: only the own cgroup is mounted, the path is the host's")
def _bound_mount(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("docker/0a1b2c3d", 160 * MIB)
    top = _top_in_container(lab)
    files = subject(lab, leaf, top, inside=lambda: _bind(lab, leaf))
    return files, {
        **expect_cgroup(files, top, limit_bytes=160 * MIB, version=lab.version),
        "platform": "docker",
    }


@scenario(
    "host v2",
    "only the container's cgroup is mounted, and the process is in a cgroup below it with a tighter limit",
)
def _below_a_bound_mount(lab: Lab) -> tuple[Files, dict[str, Any]]:
    outer, leaf = lab.limited("docker/0a1b2c3d", 160 * MIB), lab.limited("docker/0a1b2c3d/job", 90 * MIB)
    top = _top_in_container(lab)
    files = subject(lab, leaf, f"{top}/job", top, inside=lambda: _bind(lab, outer))
    return files, {
        **expect_cgroup(files, f"{top}/job", limit_bytes=90 * MIB, version=lab.version),
        "platform": "docker",
    }


@scenario("host v2", "only another cgroup is mounted: the own path is not below the mount's root")
def _bound_mount_of_another(lab: Lab) -> tuple[Files, dict[str, Any]]:
    other, leaf = lab.limited("docker/feed", 260 * MIB), lab.limited("docker/0a1b", 160 * MIB)
    top = _top_in_container(lab)
    files = subject(lab, leaf, top, inside=lambda: _bind(lab, other))
    return files, {
        **expect_cgroup(files, top, limit_bytes=260 * MIB, version=lab.version),
        "platform": "docker",
    }


@scenario("host v2", "the hierarchy is mounted at a place with a space, a tab and a backslash in its name")
def _odd_mount_point(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 140 * MIB)
    top = "/dev/shm/my cgroups\tand \\ more"

    def inside() -> None:
        own_mounts()
        unmount("/sys/fs/cgroup")
        kind, options = ("cgroup2", "") if lab.version == 2 else ("cgroup", "memory")
        mount("none", top, kind, options=options)

    try:
        files = subject(lab, leaf, f"{top}/web", top, inside=inside)
    finally:
        os.rmdir(top)
    return files, expect_cgroup(files, f"{top}/web", limit_bytes=140 * MIB, version=lab.version)


@scenario("host v2", "the hierarchy is mounted with an empty source: two spaces in a row in mountinfo")
def _mount_without_source(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 145 * MIB)
    top = _top_in_container(lab)

    def inside() -> None:
        own_mounts()
        unmount("/sys/fs/cgroup")
        if lab.version == 1:
            mount("tmpfs", "/sys/fs/cgroup", "tmpfs", options="mode=755")
        kind, options = ("cgroup2", "") if lab.version == 2 else ("cgroup", "memory")
        mount("", top, kind, options=options)

    files = subject(lab, leaf, f"{top}/web", top, inside=inside)
    return files, expect_cgroup(files, f"{top}/web", limit_bytes=145 * MIB, version=lab.version)


@scenario("host v2", "the name of the cgroup begins with two dots, which is no way up")
def _dotted_name(lab: Lab) -> tuple[Files, dict[str, Any]]:
    parent, leaf = lab.limited("app", 250 * MIB), lab.limited("app/..2024_job", 110 * MIB)
    files = subject(lab, leaf, leaf, parent, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=110 * MIB, version=lab.version)


# --- only v1 ---------------------------------------------------------------------------------------


@scenario("host v1", "memory and swap together limited to 210 MiB, memory alone to 200 MiB")
def _memsw(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 200 * MIB)
    write(f"{leaf}/memory.memsw.limit_in_bytes", str(210 * MIB))
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=200 * MIB, version=1)


@scenario("host", "only a soft limit, which is none: the machine is the limit")
def _soft_limit(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web", memory_soft_limit_in_bytes=64 * MIB)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_machine(files, cgroup_version=1)


@scenario("host", "the OOM killer switched off for the cgroup: the limit holds all the same")
def _oom_killer_off(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.limited("web", 230 * MIB)
    write(f"{leaf}/memory.oom_control", "1")
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=230 * MIB, version=1)


@scenario("together", "memory mounted together with pids, as older systems did with cpu and cpuacct")
def _limited_v1(lab: Lab) -> tuple[Files, dict[str, Any]]:
    mount("tmpfs", "/sys/fs/cgroup", "tmpfs", options="mode=755")
    mount("cgroup", lab.top, "cgroup", options="memory,pids")
    leaf = lab.limited("web", 175 * MIB)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=175 * MIB, version=1)


# --- only v2 ---------------------------------------------------------------------------------------


@scenario("v2", "only memory.high: a line where the kernel slows down, not one where it kills")
def _high_only(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web", memory_high=120 * MIB)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_machine(files, cgroup_version=2)


@scenario("v2", "memory.high below memory.max")
def _high_and_max(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web", memory_high=120 * MIB, memory_max=150 * MIB)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=150 * MIB, version=2)


@scenario("v2", "memory.low and memory.min are protections, not limits")
def _protections(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web", memory_low=64 * MIB, memory_min=32 * MIB)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_machine(files, cgroup_version=2)


@scenario("v2", "the memory controller is not handed down to the leaf: the parent binds")
def _leaf_without_controller(lab: Lab) -> tuple[Files, dict[str, Any]]:
    parent = lab.limited("user.slice", 240 * MIB)
    leaf = lab.bare_group("user.slice/app")
    files = subject(lab, leaf, leaf, parent, lab.top)
    return files, expect_cgroup(files, parent, limit_bytes=240 * MIB, version=2)


@scenario("v2", "a threaded leaf has no memory files of its own: its domain binds")
def _threaded_leaf(lab: Lab) -> tuple[Files, dict[str, Any]]:
    domain = lab.limited("app", 210 * MIB)
    leaf = lab.bare_group("app/threads")
    write(f"{leaf}/cgroup.type", "threaded")

    def inside() -> None:
        write(f"{leaf}/cgroup.procs", "0")

    files = subject(lab, domain, leaf, domain, lab.top, inside=inside)
    return files, expect_cgroup(files, domain, limit_bytes=210 * MIB, version=2)


@scenario("v2", "a subtree delegated to a user, seen by a process of that user")
def _delegated(lab: Lab) -> tuple[Files, dict[str, Any]]:
    outer = lab.limited("user.slice/user-1000.slice", 350 * MIB)
    leaf = lab.limited("user.slice/user-1000.slice/app.scope", 130 * MIB)
    for folder in (outer, leaf):
        for name in ("", "/cgroup.procs", "/cgroup.subtree_control"):
            os.chown(folder + name, 1000, 1000)

    def inside() -> None:
        os.setgid(1000)
        os.setuid(1000)

    files = subject(lab, leaf, leaf, outer, f"{lab.top}/user.slice", lab.top, inside=inside)
    return files, expect_cgroup(files, leaf, limit_bytes=130 * MIB, version=2)


@scenario("swap", "a machine with swap, none of it for this cgroup")
def _forbidden_swap(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web", memory_max=150 * MIB, memory_swap_max=0)
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_cgroup(files, leaf, limit_bytes=150 * MIB, version=2)


@scenario("swap", "64 MiB of swap for this cgroup, and some of its memory swapped out")
def _limited_swap(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web", memory_max=150 * MIB, memory_swap_max=64 * MIB)

    def inside() -> None:
        with contextlib.suppress(OSError):  # EAGAIN: less was reclaimed than asked for
            write(f"{leaf}/memory.reclaim", str(6 * MIB))

    files = subject(lab, leaf, leaf, lab.top, inside=inside)
    assert int(files[f"{leaf.lstrip('/')}/memory.swap.current"]) > 0
    return files, expect_cgroup(files, leaf, limit_bytes=150 * MIB, version=2)


@scenario("swap", "no limit on a machine with swap: swap is not counted into the limit")
def _machine_swap(lab: Lab) -> tuple[Files, dict[str, Any]]:
    leaf = lab.group("web")
    files = subject(lab, leaf, leaf, lab.top)
    return files, expect_machine(files, cgroup_version=2)


# --- running them ----------------------------------------------------------------------------------

_LABS = {
    "host": ("/sys/fs/cgroup/memory", 1),
    "v1": ("/sys/fs/cgroup/memory", 1),
    "v2": ("/sys/fs/cgroup", 2),
    "swap": ("/sys/fs/cgroup", 2),
    "hybrid": ("/sys/fs/cgroup/unified", 2),
    "together": ("/sys/fs/cgroup/pids,memory", 1),
}
_GUESTS: dict[str, dict[str, Any]] = {
    "v1": {"cgroups": "v1"},
    "v2": {"cgroups": "v2"},
    "swap": {"cgroups": "v2", "swap_bytes": 256 * MIB},
    "hybrid": {"cgroups": "hybrid"},
    "together": {"cgroups": "none"},
}


def _kernel(place: str) -> str:
    release = re.match(r"[0-9.]+[0-9]", os.uname().release)
    assert release is not None
    return release[0] if place == "host" else f"{release[0]} (user-mode Linux)"


def _one(chosen: Scenario) -> dict[str, Any]:
    top, version = _LABS[chosen.where]
    lab = Lab(top=top, version=version, scratch=tempfile.mkdtemp(prefix="memwarden-capture-"))
    try:
        files, expect = chosen.recipe(lab)
    finally:
        lab.clean()
        shutil.rmtree(lab.scratch, ignore_errors=True)
    return {
        "origin": "captured",
        "kernel": _kernel(chosen.where),
        "about": chosen.about,
        "environ": {},
        "expect": {"platform": "local", **expect},
        "files": files,
    }


def here(place: str, names: list[str]) -> dict[str, Any]:
    """Every scenario of that place on the kernel that runs this: the machine, or {"error": traceback}.

    Each runs in a child of its own, so that a mount namespace made by one is not the next one's.
    """
    found: dict[str, Any] = {}
    for chosen in SCENARIOS:
        if chosen.where == place and (not names or chosen.name in names):
            try:
                found[chosen.name] = _in_child(partial(_one, chosen))
            except RuntimeError as error:
                found[chosen.name] = {"error": str(error)}
    return found


def _from(place: str, names: list[str]) -> dict[str, Any]:
    if place == "host":
        os.environ["CAPTURE_ON_HOST"] = "1"
        return here(place, names) if os.path.exists("/sys/fs/cgroup/memory/memory.stat") else {}
    argv = [sys.executable, "-m", "tests.machines.capture", "--here", place, *names]
    answer: dict[str, Any] = run_in_uml(argv, timeout_s=120, **_GUESTS[place]).json()
    return answer


def _save(folder: str, name: str, machine: dict[str, Any]) -> None:
    with open(os.path.join(folder, f"{name}.json"), "w", encoding="ascii") as file:
        json.dump(machine, file, indent=1)
        file.write("\n")


def main(arguments: list[str]) -> int:
    """0 when every wanted scenario could be captured, else 1 with the reasons on stderr."""
    if arguments[:1] == ["--here"]:
        print(json.dumps(here(arguments[1], arguments[2:])))
        return 0
    folder, names = arguments[0], arguments[1:]
    failed = 0
    reason = uml_missing_reason()
    for place in _LABS:
        if not any(s.where == place and (not names or s.name in names) for s in SCENARIOS):
            continue
        if place != "host" and reason is not None:
            print(f"{place}: left out, {reason}", file=sys.stderr)
            continue
        for name, machine in _from(place, names).items():
            if "error" in machine:
                failed += 1
                print(f"{name}: {machine['error']}", file=sys.stderr)
                continue
            _save(folder, name, machine)
            print(f"{name}: {machine['expect']['limit_kind']} {machine['expect']['limit_bytes']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
