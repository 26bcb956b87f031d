"""Where a part is between two checkpoints in its table: a file beside the SQLite database, written in microseconds.

A commit costs SQLite as much CPU as reading a thousand narrow rows. Where a handler wrote nothing in its chunk's
transaction there is nothing that a commit would have to keep together: only the place must outlive the process. So it
is noted here behind each chunk, and the row of the table is written now and then.

What a process wrote into a file is the kernel's: it survives SIGKILL without a sync, and not a power cut. Two slots
take turns, each under a checksum, so a write that was cut off leaves the one before. A note counts only on top of the
very row that it was made on (its version and time): whatever moves that row on makes it void at once, in the same
transaction. It counts in the same boot only, so after a power cut the row counts; and beside the same two files only,
so a copied database or a copied journal does not. Where no note counts, the row does, as if there were no journal. See
docs/decisions/013-a-journal-between-commits.md.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from contextlib import suppress
from glob import escape, glob
from typing import TYPE_CHECKING

from memwarden.mounts import NETWORK, file_system

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from memwarden.store import Checkpoint

__all__ = ["Journal", "beside", "forget"]

# A page of the usual file systems each, so that no write touches two. A key that does not fit goes into the table.
_SLOT_BYTES = 4096
_SEAL_BYTES = 16
# turn, version and time of the row, rows, bytes, length of the position, which follows as JSON.
_NOTE = struct.Struct("<qqdqqH")
MOST_POSITION_BYTES = _SLOT_BYTES - _SEAL_BYTES - _NOTE.size


def beside(engine: Engine) -> str:
    """The file of the database where a journal beside it can be trusted; else "".

    That is SQLite (what is in memory has no file), on a local file system, under a kernel that names its boot.
    """
    if engine.dialect.name != "sqlite" or not _boot():
        return ""
    with engine.connect() as connection:
        files = {row[1]: row[2] for row in connection.exec_driver_sql("PRAGMA database_list")}
    database = str(files.get("main") or "")
    if not os.path.isfile(database):
        return ""
    with suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        if file_system(file.read(), os.path.dirname(os.path.realpath(database))) not in NETWORK:
            return database
    return ""


def forget(database: str, name: str) -> None:
    """Remove what runs of this name that did not end left behind."""
    for path in glob(f"{escape(_prefix(database, name))}*") if database else ():
        with suppress(OSError):
            os.unlink(path)


class Journal:
    """That of one part. Not for several threads at once. Its file is made by the first `write`.

    `failed` is told, once, where the file cannot be written. `boot` is the present one of the kernel.
    """

    def __init__(
        self, database: str, part: Checkpoint, failed: Callable[[OSError], None] | None = None, *, boot: str = ""
    ) -> None:
        self.path = f"{_prefix(database, part.name)}{part.part}"
        self._database = database
        self._failed = failed
        self._who = f"{part.name}\n{part.part}\n{boot or _boot()}"
        self._fd = -1
        self._key = b""
        self._turn = 0
        self._broken = False

    def further(self, row: Checkpoint) -> Checkpoint:
        """The row of the table as far as the newest note on top of it says; the row itself where there is none."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # none, or none of ours
            return row
        try:
            note = _newest(fd, self._key_of(fd))
        except OSError:
            return row
        finally:
            os.close(fd)
        if note is None or note[1:3] != (row.version, row.updated_unix_s):
            return row
        return row.replace(rows=note[3], bytes=note[4], position=note[5])

    def write(self, row: Checkpoint, position: str, rows: int, size: int) -> bool:
        """Note that the part came so far since its row was written. False where it cannot be: then commit it."""
        text = position.encode()
        if len(text) > MOST_POSITION_BYTES or self._broken:
            return False
        try:
            if self._fd < 0:
                self._open()
            self._turn += 1
            note = _NOTE.pack(self._turn, row.version, row.updated_unix_s, rows, size, len(text)) + text
            sealed = _seal(note, self._key) + note
            if os.pwrite(self._fd, sealed, self._turn % 2 * _SLOT_BYTES) < len(sealed):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  as the next write would
        except OSError as error:
            self._broken = True
            if self._failed is not None:
                self._failed(error)
            return False
        return True

    def _open(self) -> None:
        # Readable for whoever may read the database, as SQLite does with its own journals.
        mode = os.stat(self._database).st_mode & 0o666
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode)
        try:
            self._key = self._key_of(fd)
            note = _newest(fd, self._key)  # of a run that was killed: it stays until a newer one is beside it
            self._turn = 0 if note is None else note[0]
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _key_of(self, fd: int) -> bytes:
        """What every note is sealed with: both files as they are on this boot, and whose it is."""
        mine, other = os.fstat(fd), os.stat(self._database)
        text = f"1\n{mine.st_dev} {mine.st_ino}\n{other.st_dev} {other.st_ino}\n{self._who}"
        return hashlib.sha256(text.encode()).digest()

    def close(self) -> None:
        """Leave it for whoever goes on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """All of it is in the table."""
        self.close()
        with suppress(OSError):
            os.unlink(self.path)


def _prefix(database: str, name: str) -> str:
    return f"{database}-memwarden-{hashlib.sha256(name.encode()).hexdigest()[:16]}-"


def _boot() -> str:
    """The present boot of the kernel (random(4)); "" where it does not say, which is everywhere but on Linux."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _seal(note: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(note, key=key, digest_size=_SEAL_BYTES).digest()


def _newest(fd: int, key: bytes) -> tuple[int, int, float, int, int, str] | None:
    """The newest whole note: turn, version, time, rows, bytes, position."""
    found = []
    for slot in range(2):
        data = os.pread(fd, _SLOT_BYTES, slot * _SLOT_BYTES)
        seal, note = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
        if len(note) < _NOTE.size:
            continue
        *numbers, length = _NOTE.unpack_from(note)
        note = note[: _NOTE.size + length]
        if seal == _seal(note, key):
            found.append((*numbers, note[_NOTE.size :].decode()))
    return max(found, default=None)
