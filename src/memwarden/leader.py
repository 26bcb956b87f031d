"""One of the processes of a cgroup leads: it speaks for all and acts first. Eight workers, one notice.

The leader is who holds the lock (flock) of a file in the run folder, named after the cgroup. The kernel lets it go with
the process, however that died; whoever tries next has it. There is no heartbeat to miss and no clock to trust.

A flock belongs to the open file, and a forked child shares it: it would keep its dead parent leading. So the child
closes what it inherited (which unlocks nothing) and opens a file of its own; executed programs inherit nothing. A fork
in C that runs none of Python's hooks does not: while such a child lives, its dead parent leads on.

Beside the lock lie two more files: the turn, which whoever cleans up holds meanwhile, so that never two do at once; and
the news, into which followers write what they found about themselves for the leader to tell.

Where no lock can be had (a read-only folder, a network file system), everybody leads, and `alone` says why. One that
cannot be had just now (no descriptor is left, the disk is full) is tried again the next time; until then everybody
leads too, for two who speak are better than none.
"""

from __future__ import annotations

import errno
import os
from binascii import crc32
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Nobody needs more news than that in one round; what is longer was not written by us.
NEWS_BYTES = 64 * 1024
LINE_BYTES = 1024
_TRIES = 3
# What could not be written waits, the newest of it; in the own black box stands everything.
MOST_WAITING = NEWS_BYTES // LINE_BYTES
# Errors that are the same the next time: of the folder, its file system, our rights.
_LASTING = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
    errno.ENOLCK, errno.EINVAL,
})  # fmt: skip


class Leader:
    """The candidacy of one process. `folder` must exist and be private; `name` is that of the cgroup (`name_of`).

    Every call is one or two system calls that never wait. Not thread-safe: its owner has a lock.
    """

    def __init__(self, folder: str, name: str, *, alone: str = "") -> None:
        self._base = os.path.join(folder, f"leader-{name}")
        self._pid = os.getpid()
        self._lead = self._turn = -1
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._unlocked = False  # whether the lock that was last asked for could not be had just now
        self.alone = alone

    @property
    def seed(self) -> float:
        """A number from 0 up to 1 that is this process's own: by it followers wait for different times."""
        return crc32(f"{self._base}:{self._pid}".encode()) / 2**32

    def leads(self) -> bool:
        """Whether this process leads; it does from now on, where nobody else does."""
        self._disown()
        if self.alone or self._lead >= 0:
            return True
        self._lead = self._lock(f"{self._base}.lock")
        return self._lead >= 0 or self._unlocked or bool(self.alone)

    def take_turn(self) -> bool:
        """Whether it may clean up now; true only while no other process of the cgroup does. End it by `end_turn`."""
        self._disown()
        if self.alone or self._turn >= 0:
            return True
        self._turn = self._lock(f"{self._base}.turn")
        return self._turn >= 0 or self._unlocked or bool(self.alone)

    def end_turn(self) -> None:
        """The next one may."""
        self._disown()
        fd, self._turn = self._turn, -1
        if fd >= 0:
            os.close(fd)

    def pass_on(self, line: str) -> None:
        """Have the leader tell it. It is kept here until it could be written."""
        self._waiting.append(line.replace("\n", " ").encode("utf-8", "replace")[: LINE_BYTES - 1] + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write what could not be written yet."""
        if not self._waiting or self.alone:
            return
        fd = self._lock(f"{self._base}.news")
        if fd >= 0:
            try:
                self._write_news(fd)
            except OSError:  # a full disk: the next time
                return
            finally:
                os.close(fd)

    def _write_news(self, fd: int) -> None:
        """Whole lines, as many as there is room for; the others wait. Raises OSError, and then none is written."""
        size = os.fstat(fd).st_size
        room, lines = NEWS_BYTES - size, 0
        while lines < len(self._waiting) and len(self._waiting[lines]) <= room:
            room -= len(self._waiting[lines])
            lines += 1
        raw, written = b"".join(self._waiting[at] for at in range(lines)), 0
        try:
            written = os.pwrite(fd, raw, size)
        finally:
            if written < len(raw):
                os.ftruncate(fd, size)
        while lines and written == len(raw):
            self._waiting.popleft()
            lines -= 1

    def news(self) -> Sequence[str]:
        """What followers passed on since the last time; for the leader."""
        path = f"{self._base}.news"
        try:
            if not os.stat(path).st_size:
                return ()
        except OSError:
            return ()
        fd = self._lock(path)
        if fd < 0:
            return ()
        try:
            raw = os.pread(fd, NEWS_BYTES, 0)
            os.ftruncate(fd, 0)
        except OSError:
            return ()
        finally:
            os.close(fd)
        return raw.decode("utf-8", "replace").splitlines()

    def resign(self) -> None:
        """Let go of everything: the next one leads."""
        self._disown()
        self._close()

    def _close(self) -> None:
        for fd in (self._lead, self._turn):
            if fd >= 0:
                os.close(fd)
        self._lead = self._turn = -1

    def _disown(self) -> None:
        """In a forked child: what was inherited is the parent's. Closing it unlocks nothing."""
        if self._pid != os.getpid():
            self._close()
            self._pid = os.getpid()
            self._waiting.clear()

    def _lock(self, path: str) -> int:
        """The descriptor of the locked file; -1 where another has it, or where none can be had: `alone` says then, or
        `_unlocked` where that may change.
        """
        self._unlocked = False
        try:
            from fcntl import LOCK_EX, LOCK_NB, flock
        except ImportError:
            self.alone = "this system has no flock"
            return -1
        for _ in range(_TRIES):
            fd = -1
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                flock(fd, LOCK_EX | LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                    return fd
            except BlockingIOError:
                os.close(fd)
                return -1
            except FileNotFoundError:  # somebody tidied up between opening and looking
                if fd < 0:
                    self.alone = f"{path}: the folder is gone"
                    return -1
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                if error.errno in _LASTING:
                    self.alone = f"{path}: {error.strerror or error}"
                self._unlocked = True
                return -1
            os.close(fd)
        return -1


def name_of(cgroup_folder: str | None) -> str:
    """A name for a cgroup that is the same for all its processes and no other's, in whatever namespace they are.

    The number of a cgroup's folder is its id in the kernel. Without a cgroup there is one leader per machine.
    """
    if cgroup_folder:
        try:
            found = os.stat(cgroup_folder)
        except OSError:
            return f"{crc32(cgroup_folder.encode()):08x}"
        return f"{found.st_dev:x}-{found.st_ino:x}"
    return "machine"
