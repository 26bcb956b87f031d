from __future__ import annotations

import os
import shutil
import tempfile

from memwarden.sense.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

_MIB = 1 << 20


class FakeMachine(Machine):
    """A machine made of files in a folder: a v2 container with a limit, unless told otherwise.

    Change it with `set_usage`, `set_rss`, `set_limit` or `write`, and every Sensor on it sees the change. `trims`
    counts the calls of `trim`, which frees `trim_frees_bytes` of usage and resident memory each time. Use it in a
    with-statement or call `remove`.
    """

    def __init__(
        self,
        files: Mapping[str, str | bytes] | None = None,
        *,
        limit_bytes: int | None = 512 * _MIB,
        used_bytes: int = 100 * _MIB,
        total_bytes: int = 8192 * _MIB,
        environ: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        self.folder = folder if folder is not None else tempfile.mkdtemp(prefix="memwarden-machine-")
        self.trims = 0
        self.trim_frees_bytes = 0
        self._used_bytes = used_bytes
        if files is None:
            files = _container(limit_bytes, used_bytes, total_bytes)
        for path, text in files.items():
            self.write(path, text)
        super().__init__(self.folder, environ=environ)

    def write(self, path: str, text: str | bytes) -> None:
        """Replace one file, in place as the kernel does: descriptors kept open see it."""
        full = os.path.join(self.folder, path.lstrip("/"))
        os.makedirs(os.path.dirname(full), exist_ok=True)
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def set_usage(self, used_bytes: int, *, cache_bytes: int = 0) -> None:
        """What the container uses: so much that cannot be reclaimed, and so much inactive file cache beside it."""
        self._used_bytes = used_bytes
        self.write("/sys/fs/cgroup/memory.current", f"{used_bytes + cache_bytes}\n")
        self.write("/sys/fs/cgroup/memory.stat", _stat(used_bytes, cache_bytes))

    def set_rss(self, rss_bytes: int) -> None:
        """Resident bytes of the process."""
        self.write("/proc/self/statm", _statm(rss_bytes))
        self.write("/proc/self/status", _status(rss_bytes))

    def set_limit(self, limit_bytes: int | None) -> None:
        """The container's memory.max."""
        self.write("/sys/fs/cgroup/memory.max", f"{limit_bytes or 'max'}\n")

    def trim(self) -> bool:
        """Counts, and frees what the test said it would."""
        self.trims += 1
        self.set_usage(max(0, self._used_bytes - self.trim_frees_bytes))
        self.set_rss(self._used_bytes)
        return self.trim_frees_bytes > 0

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


def _container(limit_bytes: int | None, used_bytes: int, total_bytes: int) -> dict[str, str]:
    free = max(total_bytes - used_bytes, 0)
    return {
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        "/proc/self/statm": _statm(used_bytes),
        "/proc/self/status": _status(used_bytes),
        "/proc/self/limits": _LIMITS,
        "/proc/meminfo": _meminfo(total_bytes, free),
        "/proc/pressure/memory": _PSI,
        "/sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n",
        "/sys/fs/cgroup/memory.max": f"{limit_bytes or 'max'}\n",
        "/sys/fs/cgroup/memory.high": "max\n",
        "/sys/fs/cgroup/memory.current": f"{used_bytes}\n",
        "/sys/fs/cgroup/memory.peak": f"{used_bytes}\n",
        "/sys/fs/cgroup/memory.stat": _stat(used_bytes, 0),
        "/sys/fs/cgroup/memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
        "/sys/fs/cgroup/memory.pressure": _PSI,
        "/sys/fs/cgroup/memory.swap.current": "0\n",
        "/sys/fs/cgroup/memory.swap.max": "0\n",
    }


_PSI = (
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
)  # fmt: skip
_LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max data size             unlimited            unlimited            bytes     \n"
    "Max address space         unlimited            unlimited            bytes     \n"
)


def _stat(used_bytes: int, cache_bytes: int) -> str:
    return (
        f"anon {used_bytes}\nfile {cache_bytes}\nkernel 0\nshmem 0\nfile_mapped 0\nfile_dirty 0\nfile_writeback 0\n"
        f"inactive_anon 0\nactive_anon {used_bytes}\ninactive_file {cache_bytes}\nactive_file 0\nunevictable 0\n"
        "slab_reclaimable 0\nslab_unreclaimable 0\n"
    )


def _statm(rss_bytes: int) -> str:
    pages = rss_bytes // 4096
    return f"{pages * 2} {pages} 0 1 0 {pages} 0\n"


def _status(rss_bytes: int) -> str:
    kib = rss_bytes >> 10
    return (
        f"Name:\tpython\nState:\tS (sleeping)\nPid:\t4321\nPPid:\t1\nVmPeak:\t{kib * 2} kB\nVmSize:\t{kib * 2} kB\n"
        f"VmHWM:\t{kib} kB\nVmRSS:\t{kib} kB\nRssAnon:\t{kib} kB\nRssFile:\t0 kB\n"
        f"RssShmem:\t0 kB\nVmData:\t{kib} kB\nVmSwap:\t0 kB\n"
    )


def _meminfo(total_bytes: int, free_bytes: int) -> str:
    total, free = total_bytes >> 10, free_bytes >> 10
    return (
        f"MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {free} kB\nBuffers: 0 kB\nCached: 0 kB\n"
        "Shmem: 0 kB\nSReclaimable: 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
    )
