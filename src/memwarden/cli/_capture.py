"""`doctor --capture`: the files that a bug report needs, and nothing secret.

Of the environment only the names of platform variables are kept, and the values of those that tell a size; of
mountinfo only the cgroup lines; of the kernel's version only the number; no command line, no other process.
"""

from __future__ import annotations

import io
import os
import tarfile

from memwarden.errors import MemwardenError
from memwarden.sense import Machine, find_cgroup
from memwarden.sense.platform import MARKERS, VARIABLES

_FILES = (
    "/proc/self/cgroup", "/proc/self/statm", "/proc/self/status", "/proc/self/limits",
    "/proc/meminfo", "/proc/pressure/memory",
)  # fmt: skip
_CGROUP_FILES = ("cgroup.controllers", "cgroup.subtree_control", "cgroup.type")


def capture(machine: Machine, path: str) -> int:
    """Write a tar of the machine that `doctor --root` can read once unpacked; the number of files in it.

    Written beside its place and moved there when it is whole. Raises MemwardenError where it cannot be written.
    """
    files = {name: data for name in _FILES if (data := _read(machine, name)) is not None}
    files["/proc/self/mountinfo"] = _cgroup_mounts(machine)
    files["/proc/version"] = _kernel(machine)
    files["/proc/self/environ"] = _platform_variables(machine)
    files |= {name: b"" for name in MARKERS if machine.exists(name)}
    cgroup, _ = find_cgroup(machine)
    for folder in cgroup.levels if cgroup else ():
        files |= _of_folder(machine, folder)
    _write_whole(path, _pack(files))
    return len(files)


def _pack(files: dict[str, bytes]) -> bytes:
    """A tar of these files, the same bytes for the same files: no times, no owners."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _write_whole(path: str, data: bytes) -> None:
    import tempfile

    if os.path.lexists(path) and not os.path.isfile(path):  # root would replace /dev/null
        raise MemwardenError("is there, and is not a regular file", where=path, mend="name another file")
    beside = ""
    try:
        handle, beside = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".memwarden-")
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(beside, path)
        beside = ""
    except OSError as error:
        raise MemwardenError(f"cannot be written: {error.strerror}", where=path, mend="name another file") from error
    finally:
        if beside:
            os.unlink(beside)


def _read(machine: Machine, path: str) -> bytes | None:
    try:
        return machine.read(path)
    except OSError:
        return None


def _cgroup_mounts(machine: Machine) -> bytes:
    lines = (_read(machine, "/proc/self/mountinfo") or b"").splitlines(keepends=True)
    return b"".join(line for line in lines if b" - cgroup" in line)


def _platform_variables(machine: Machine) -> bytes:
    """Names without values, but for sizes: a service's name is nobody's business."""
    pairs = ((name, machine.environ[name]) for name in sorted(VARIABLES) if name in machine.environ)
    kept = ((name, value if "MEMORY" in name and value.isdigit() and value.isascii() else "1") for name, value in pairs)
    return b"".join(f"{name}={value}\0".encode() for name, value in kept)


def _kernel(machine: Machine) -> bytes:
    """Only "Linux version 6.1.0": what follows names the machine and the people that built it."""
    return b" ".join((_read(machine, "/proc/version") or b"").split()[:3]) + b"\n"


def _of_folder(machine: Machine, folder: str) -> dict[str, bytes]:
    try:
        names = machine.listdir(folder)
    except OSError:
        return {}
    wanted = [name for name in names if name.startswith("memory.") or name in _CGROUP_FILES]
    found = ((f"{folder}/{name}", _read(machine, f"{folder}/{name}")) for name in wanted)
    return {path: data for path, data in found if data is not None}
