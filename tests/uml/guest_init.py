"""PID 1 of the guest: mounts what a machine has, runs one command, keeps its exit code, powers off.

Runs inside user-mode Linux with the host's files as its root, so what it writes into the exchange folder is
on the host at once. Only the standard library, and nothing of memwarden: it must work where memwarden does
not.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import traceback

_LIBC = ctypes.CDLL(None, use_errno=True)

_POWER_OFF = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF, linux/reboot.h
_SIOCSIFFLAGS = 0x8914  # linux/sockios.h
_IFF_UP = 1
_PAGE_BYTES = 4096
_CGROUP_ROOT = "/sys/fs/cgroup"


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    """mount(2); the target folder is made where it is missing. Raises OSError."""
    os.makedirs(target, exist_ok=True)
    if _LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode() or None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{kind} on {target}")


def _mount_system() -> None:
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount("tmpfs", "/dev/shm", "tmpfs")
    mount("tmpfs", "/run", "tmpfs")
    with contextlib.suppress(OSError):  # needed by programs that open a terminal only
        mount("devpts", "/dev/pts", "devpts")


def _enable_memory(folder: str) -> None:
    with open(f"{folder}/cgroup.subtree_control", "w") as file:
        file.write("+memory")


def _mount_v2() -> None:
    mount("cgroup2", _CGROUP_ROOT, "cgroup2")
    _enable_memory(_CGROUP_ROOT)


def _mount_v1() -> None:
    mount("tmpfs", _CGROUP_ROOT, "tmpfs", "mode=755")
    mount("cgroup", f"{_CGROUP_ROOT}/memory", "cgroup", "memory")


def _mount_hybrid() -> None:
    """As systemd's hybrid mode, but with the memory controller on the v2 side."""
    mount("tmpfs", _CGROUP_ROOT, "tmpfs", "mode=755")
    mount("cgroup", f"{_CGROUP_ROOT}/cpu", "cgroup", "cpu")
    mount("cgroup", f"{_CGROUP_ROOT}/pids", "cgroup", "pids")
    mount("cgroup2", f"{_CGROUP_ROOT}/unified", "cgroup2")
    _enable_memory(f"{_CGROUP_ROOT}/unified")


def _mount_no_cgroups() -> None:
    """The command mounts what it wants."""


_CGROUPS = {"v2": _mount_v2, "v1": _mount_v1, "hybrid": _mount_hybrid, "none": _mount_no_cgroups}


def _raise_loopback() -> None:
    request = struct.pack("16sh22x", b"lo", _IFF_UP)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, request)


def _swap_on(device: str, size_bytes: int) -> None:
    """Write the header that mkswap(8) writes (linux/swap.h, union swap_header) and switch it on."""
    header = bytearray(_PAGE_BYTES)
    struct.pack_into("II", header, 1024, 1, size_bytes // _PAGE_BYTES - 1)
    header[-10:] = b"SWAPSPACE2"
    with open(device, "r+b") as file:
        file.write(header)
        file.flush()
        os.fsync(file.fileno())
    if _LIBC.swapon(device.encode(), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), device)


def _redirect(path: str, descriptor: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, descriptor)
    os.close(file)


def _start(folder: str, order: dict[str, object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.chdir(str(order["cwd"]))
        _redirect(f"{folder}/stdout", 1)
        _redirect(f"{folder}/stderr", 2)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        argv = [str(word) for word in order["argv"]]  # type: ignore[attr-defined]
        environ = {str(k): str(v) for k, v in order["environ"].items()}  # type: ignore[attr-defined]
        os.execvpe(argv[0], argv, environ)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(127)


def _reap_until(pid: int) -> int:
    """As PID 1 must: every orphan is buried; the answer is the one child's code, negative for a signal."""
    while True:
        done, status = os.wait()
        if done == pid:
            return os.waitstatus_to_exitcode(status)


def _run(folder: str) -> int:
    with open(f"{folder}/order.json") as file:
        order = json.load(file)
    _mount_system()
    _CGROUPS[order["cgroups"]]()
    _raise_loopback()
    if order["swap_bytes"]:
        _swap_on("/dev/ubda", order["swap_bytes"])
    return _reap_until(_start(folder, order))


def _keep(folder: str, name: str, text: str) -> None:
    """Written whole or not at all: the host may read at any moment."""
    with open(f"{folder}/{name}.part", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{folder}/{name}.part", f"{folder}/{name}")


def main(folder: str) -> None:
    """Never returns: the guest is switched off at the end, whatever happened."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _keep(folder, "exit_code", str(_run(folder)))
    except BaseException:
        _keep(folder, "failure", traceback.format_exc())
    os.sync()
    _LIBC.reboot(_POWER_OFF)


if __name__ == "__main__":
    main(sys.argv[1])
