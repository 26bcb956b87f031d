"""Files of /proc and /sys that stay open: a re-read costs 1 us where opening costs 3-20.

A kept descriptor of /proc/self is bound to the process that opened it: after a fork the child would go on
reading its parent (213 MB where it had 310), so every reading compares an owner first and opens again in a
child, which also covers forks made in C that run no Python hook. A cgroup that was removed and made again is
re-opened too.
"""

from __future__ import annotations

import mmap
import os
from os import getpid

try:
    from os import pread
except ImportError:  # Windows, where nothing of /proc is there to be read, and only the import must work

    def pread(fd: int, size: int, offset: int, /) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class _Owner(Protocol):
        def __getitem__(self, index: int, /) -> int: ...
        def __setitem__(self, index: int, value: int, /) -> None: ...


READ_ONLY = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)  # Windows closes at exec by itself
# The largest file we keep open is memory.stat: 3 KiB on current kernels.
_STAT_SIZE = 8192
# statm has 7 numbers of 20 digits at most. What fills this is no file of a few numbers: its end may be cut.
_NUMBERS_SIZE = 256
_SPACE, _NEWLINE = 0x20, 0x0A
# <linux/mman.h>, Linux 4.14: a forked child gets this page as zeroes. The mmap module does not name it.
_MADV_WIPEONFORK = 18


class _AskedOwner:
    """The owner where the kernel knows no page that is wiped at a fork: a system call each time."""

    def __getitem__(self, index: int) -> int:
        return getpid()

    def __setitem__(self, index: int, value: int) -> None:
        pass


def _owner_page() -> _Owner:
    """One word that holds the pid that wrote it, and 0 after any fork: 13 ns a look where getpid takes 55."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, AttributeError):
        return _AskedOwner()
    return memoryview(page).cast("Q")


_owner = _owner_page()


class KeptFile:
    """One kept-open text file. Opened at the first reading; `read` raises OSError."""

    __slots__ = ("_fd", "_identity", "_pid", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._pid = -1
        self._identity = (-1, -1)

    def read(self) -> bytes:
        """The text as it is now. Raises OSError where the file is gone or not ours to read."""
        if self._pid != _owner[0]:
            self._open()
        try:
            return pread(self._fd, _STAT_SIZE, 0)
        except OSError:
            # ENODEV: the cgroup was removed; ESRCH: the process ended. It may be back under its name.
            self._open()
            return pread(self._fd, _STAT_SIZE, 0)

    def _open(self) -> None:
        try:
            fd = os.open(self.path, READ_ONLY)
        except OSError:
            self.close()  # a descriptor of a removed cgroup is of no use, and pins it
            raise
        pid = _owner[0] = getpid()
        self._swap(fd, _identity(fd), pid)

    def close(self) -> None:
        """Give the descriptor back; a later reading opens the file again."""
        self._swap(-1, (-1, -1), -1)

    def _swap(self, fd: int, identity: tuple[int, int], pid: int) -> None:
        """Take the new descriptor and close the old one: no call between, so that no thread can lose one.

        The old one is closed only while it is still our file: after a daemon closed every descriptor, the
        number may be somebody's socket, or the new one.
        """
        old, old_identity, self._fd, self._identity, self._pid = self._fd, self._identity, fd, identity, pid
        if old not in (-1, fd) and _identity(old) == old_identity:
            os.close(old)

    def __del__(self) -> None:
        self.close()


def _identity(fd: int) -> tuple[int, int]:
    try:
        found = os.fstat(fd)
    except OSError:
        return -2, -2
    return found.st_dev, found.st_ino


class NumberFile(KeptFile):
    """The `index`-th whole number of a kept-open file, times `scale`; None where it cannot be read.

    The pure twin of the C reader in memwarden._native, with the same meaning: unsigned digits only, in
    a file of a few numbers (under 256 bytes).

    A number that is not the first is read through a window: only its own bytes and the space at either end,
    where they were last time. Digits between two spaces are a whole number; anything else, and the place is
    looked up again. That saves the splitting, a seventh of the cost of reading statm. (The window could show
    another field of statm only if the address space shrank ten-thousandfold between two readings.)
    """

    __slots__ = ("_alone", "_at", "_size", "index", "scale")

    def __init__(self, path: str, *, index: int = 0, scale: int = 1) -> None:
        super().__init__(path)
        if index < 0 or scale < 1:
            raise ValueError("index must be 0 or more, and scale 1 or more")
        self.index = index
        self.scale = scale
        self._alone = index == 0  # most such files hold one number and a newline: the window is all of it
        self._at, self._size = 0, _NUMBERS_SIZE if self._alone else 1

    def value(self) -> int | None:
        """The number now, or None for anything that is not a whole number there."""
        try:
            if self._pid != _owner[0]:
                self._open()
            window = pread(self._fd, self._size, self._at)
            if window[0] == window[-1] == _SPACE:
                return int(window) * self.scale
            if self._alone and window[:-1].isdigit() and window[-1] == _NEWLINE:
                return int(window) * self.scale
        except (OSError, ValueError, IndexError):
            pass  # no number there any more, or no file: the whole text is read, and says which
        return self._look_up()

    def _look_up(self) -> int | None:
        text = self._whole()
        words = text.split(None, self.index + 1)
        if self.index >= len(words) or len(text) >= _NUMBERS_SIZE:
            return None
        word = words[self.index]
        if not word.isdigit():
            return None
        if not self._alone:
            self._place_window(text, word)
        return int(word) * self.scale

    def _whole(self) -> bytes:
        try:
            return pread(self._fd, _NUMBERS_SIZE, 0)
        except (OSError, ValueError):
            return self._again()

    def _again(self) -> bytes:
        try:
            self._open()
            return pread(self._fd, _NUMBERS_SIZE, 0)
        except (OSError, ValueError):  # ValueError: a path that cannot name a file
            return b""

    def _place_window(self, text: bytes, word: bytes) -> None:
        """Where the number stands between two spaces; nowhere, for the first and the last of a line."""
        at = -1
        for _ in range(self.index):
            at = text.find(b" ", at + 1)
        whole = b" %b " % word
        self._at, self._size = (at, len(whole)) if at >= 0 and text[at : at + len(whole)] == whole else (0, 1)
