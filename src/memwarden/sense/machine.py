"""The door to the machine: files below one root, the C library, time. Nothing else in memwarden goes around it.

`Machine()` is this machine. `Machine(root=FOLDER)` is a captured one: files are read below the folder and nothing of
the running process leaks in (no environment, no heap figures, no C library).
"""

from __future__ import annotations

import os
import sys
from mmap import PAGESIZE

from memwarden.clock import SystemClock as SystemClock  # noqa: PLC0414  it lives below, for stages that may not see this one
from memwarden.sense import parse
from memwarden.sense.source import READ_ONLY, KeptFile, NumberFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from memwarden.ports import NumberSource


class Machine:
    """Files below `root`, and where that is `/` the C library of this process too."""

    def __init__(self, root: str = "/", *, environ: Mapping[str, str] | None = None) -> None:
        self.root = root.rstrip("/")
        self.live = self.root == ""
        self._libc: Any = None
        if environ is not None:
            self.environ = environ
        elif self.live:
            self.environ = os.environ
        else:
            self.environ = parse.environ(self._read_or_empty("/proc/self/environ"))
        self.page_size = PAGESIZE if self.live else self._page_size_of_folder()

    def _read_or_empty(self, path: str) -> bytes:
        try:
            return self.read(path)
        except OSError:
            return b""

    def _page_size_of_folder(self) -> int:
        """From a size that the folder states in bytes and in pages; 4096 where it does not."""
        pages = parse.statm(self._read_or_empty("/proc/self/statm"))
        size = parse.sizes(self._read_or_empty("/proc/self/status"), (b"VmSize",)).get(b"VmSize")
        if pages and pages[0] and size:
            for page in (4096, 16384, 65536):
                if 0.9 < size / (pages[0] * page) < 1.1:
                    return page
        return 4096

    def path(self, path: str) -> str:
        """The absolute path as the file system here knows it."""
        return self.root + path

    def read(self, path: str) -> bytes:
        """The whole of a file. Raises OSError."""
        fd = os.open(self.root + path, READ_ONLY)
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return os.path.exists(self.root + path)

    def listdir(self, path: str) -> list[str]:
        """The names in a folder. Raises OSError."""
        return os.listdir(self.root + path)

    def open(self, path: str) -> KeptFile:
        """The file kept open for many readings."""
        return KeptFile(self.root + path)

    def number(self, path: str, *, index: int = 0, scale: int = 1) -> NumberSource:
        """One whole number of a file kept open: by the C reader where it is built, else in Python."""
        native = _native_reader()
        if native is not None:
            reader: NumberSource = native(self.root + path, index=index, scale=scale)
            return reader
        return NumberFile(self.root + path, index=index, scale=scale)

    def getpid(self) -> int:
        """The pid that /proc/self stands for; 0 for a folder, which is nobody now."""
        if self.live:
            return os.getpid()
        stated = parse.status(self._read_or_empty("/proc/self/status")).get(b"Pid", b"")
        return parse.number(stated) or 0

    def forked(self) -> bool:
        """Whether this process was forked and never executed a program of its own: it shares pages with its parent.

        The kernel keeps that as PF_FORKNOEXEC (0x40) among the flags, the ninth field of /proc/PID/stat (proc(5)).
        """
        return self._forked("self")

    def has_forked_children(self) -> bool:
        """Whether a living child was forked from here and never executed a program: it shares pages with us.

        One file per thread and one per child, so not for a hot path. False where the kernel does not tell
        (CONFIG_PROC_CHILDREN).
        """
        try:
            tasks = self.listdir("/proc/self/task")
        except OSError:
            return False
        children = (pid for task in tasks for pid in self._read_or_empty(f"/proc/self/task/{task}/children").split())
        return any(self._forked(pid.decode("ascii", "replace")) for pid in children)

    def _forked(self, who: str) -> bool:
        words = self._read_or_empty(f"/proc/{who}/stat").rpartition(b")")[2].split()
        flags = parse.number(words[6]) if len(words) > 6 else None
        return bool(flags and flags & 0x40 and words[0] not in (b"Z", b"X"))

    def start_ticks(self) -> int:
        """When this process started, in clock ticks since boot: with the pid it names a process for ever; 0 unknown."""
        words = self._read_or_empty("/proc/self/stat").rpartition(b")")[2].split()
        return (parse.number(words[19]) or 0) if len(words) > 19 else 0

    # --- the C library -----------------------------------------------------------------------------------------

    def _glibc(self) -> Any:
        """glibc through a binding that releases the GIL; False where malloc is somebody else's."""
        if self._libc is None:
            self._libc = _load_glibc() if self.live else False
        return self._libc

    def trim(self) -> bool | None:
        """glibc malloc_trim(0): whether anything was returned; None where the allocator is another.

        Costs about 0.1 ms per MB returned. The GIL is released: other threads stall 10 ms at most instead of 100.
        """
        libc = self._glibc()
        return bool(libc.malloc_trim(0)) if libc else None

    def native_in_use_bytes(self) -> int | None:
        """Bytes handed out by malloc, mmapped chunks included (glibc mallinfo2, 2.33 or newer); else None.

        Takes every arena's lock in turn: 0.5 us on a small heap, tens of microseconds with many arenas.
        """
        libc = self._glibc()
        if not libc or not hasattr(libc, "mallinfo2"):
            return None
        info = libc.mallinfo2()
        return int(info.uordblks) + int(info.hblkhd)

    def python_blocks(self) -> int | None:
        """Blocks handed out by Python's small-object allocator. Walks its pools: 1-3 ms at 900 MB of heap."""
        blocks = getattr(sys, "getallocatedblocks", None)
        return int(blocks()) if self.live and blocks is not None else None

    def allocator(self) -> str:
        """Whose malloc this process uses, as far as can be told: glibc, jemalloc, other or unknown."""
        if not self.live:
            return "unknown"
        return "glibc" if self._glibc() else "other"


def _native_reader() -> Any:
    from importlib import import_module

    try:
        return import_module("memwarden._native._reader").NumberFile
    except ImportError:
        return None


def _load_glibc() -> Any:
    """ctypes costs 0.6 MiB, so it is loaded when an action is warmed up and not on import."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  absent in musl
        malloc_trim = libc.malloc_trim
    except (ImportError, OSError, AttributeError):
        return False
    if hasattr(libc, "mallctl") or hasattr(libc, "mi_version"):  # jemalloc or mimalloc is preloaded
        return False
    malloc_trim.argtypes = [ctypes.c_size_t]
    malloc_trim.restype = ctypes.c_int
    if hasattr(libc, "mallinfo2"):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        fields = [(name, ctypes.c_size_t) for name in names.split()]
        libc.mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
    return libc
