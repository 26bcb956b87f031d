"""Recording samples: CSV, NDJSON and JSON, to standard output or to a file, plain or gzipped.

CSV and NDJSON are complete after every sample: a line is written whole and at once, and a gzipped file gets its
trailer with every line, which the next one overwrites. So a recording survives a SIGKILL of the recorder, and on a
full disk the samples before stay readable. A JSON document is whole or not there: it is written beside its place and
renamed at the end. Bounded: nothing is kept in memory.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from memwarden.cli._output import hush, mode_for
from memwarden.errors import ConfigError, MemwardenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = Mapping[str, Any]

# The trace contract (DESIGN 13) and what `monitor` knows beside it. Unknown values are empty, or null.
COLUMNS = (
    "t_s", "unix_s", "rss_bytes", "used_bytes", "limit_bytes", "anon_bytes",
    "current_bytes", "peak_bytes", "used_low_bytes", "usage_ratio", "level", "growth_bytes_per_minute",
    "shmem_bytes", "swap_bytes", "pss_bytes", "processes", "pid", "scope", "limit_source", "above_threshold",
)  # fmt: skip
SUFFIXES = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json"}


def format_of(path: str, fallback: str) -> tuple[str, bool]:
    """The format that a file's name asks for, else the fallback, else CSV; and whether it is to be gzipped."""
    name = path.lower()
    zipped = name.endswith(".gz")
    ending = os.path.splitext(name.removesuffix(".gz"))[1]
    return SUFFIXES.get(ending, fallback if fallback in SUFFIXES.values() else "csv"), zipped


class Recorder:
    """Samples on their way out, in one format, to one outlet."""

    def __init__(self, outlet: Outlet, form: str, about: Row) -> None:
        self._outlet = outlet
        self._form = form
        self._about = about
        self._count = 0
        self._failed = False

    def add(self, row: Row) -> None:
        """One sample. Raises MemwardenError where it cannot be written, BrokenPipeError where nobody reads."""
        text = {"csv": self._csv, "ndjson": _json_line, "json": self._json}[self._form](row)
        try:
            self._outlet.write(text)
        except BaseException:
            self._failed = True
            raise
        self._count += 1

    def finish(self, summary: Row) -> None:
        """The end: a JSON document is closed and put in its place. After a failure the half of it is dropped."""
        if self._failed:
            self._outlet.drop()
            return
        try:
            if self._form == "json":
                head = "" if self._count else self._json_head()
                self._outlet.write(f'{head}\n], "summary": {_to_json(summary)}}}\n')
            self._outlet.close()
        except BaseException:
            self._outlet.drop()
            raise

    def _csv(self, row: Row) -> str:
        head = "" if self._count else ",".join(COLUMNS) + "\n"
        return head + ",".join(_cell(row.get(name)) for name in COLUMNS) + "\n"

    def _json(self, row: Row) -> str:
        return (",\n" if self._count else self._json_head() + "\n") + _to_json(row)

    def _json_head(self) -> str:
        about = _to_json(self._about)[1:-1]
        return "{" + about + (", " if about else "") + '"samples": ['


def _json_line(row: Row) -> str:
    return _to_json(row) + "\n"


def _to_json(value: Row) -> str:
    import json

    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    text = str(value)
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""').replace("\r", " ").replace("\n", " ") + '"'
    return text


# --- outlets ---------------------------------------------------------------------------------------------------


class Outlet:
    """Standard output, flushed at every write."""

    where = "standard output"

    def __init__(self) -> None:
        if sys.stdout is None:
            raise MemwardenError("is closed", where=self.where, mend="leave it open or use --quiet")

    def write(self, text: str) -> None:
        """All of it, now. Raises MemwardenError; BrokenPipeError is left to the command line."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            hush()
            raise _cannot(self.where, error, "give it room") from error

    def close(self) -> None:
        """Nothing to be done."""

    def drop(self) -> None:
        """Nothing can be taken back."""


class FileOutlet(Outlet):
    """A file. `whole`: written beside its place and renamed by `close`; else complete after every write."""

    def __init__(self, path: str, *, whole: bool, zipped: bool) -> None:  # it is no standard output
        self.where = path
        self._place = os.path.realpath(path)
        # A device or a pipe cannot be renamed away: it is written as it is.
        self._regular = os.path.isfile(self._place) or not os.path.exists(self._place)
        self._beside = f"{self._place}.{os.getpid()}.part" if whole and self._regular else None
        self._packer = _Packer() if zipped else None
        self._end = 0
        self._tail = b""
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            if self._beside is not None and not os.access(os.path.dirname(self._place), os.W_OK):
                raise PermissionError(13, os.strerror(13))
            self._fd = os.open(self._beside or self._place, flags | (os.O_TRUNC if self._regular else 0), 0o666)
        except (OSError, ValueError) as error:
            raise _cannot(path, error, "name another file with --export") from error

    def write(self, text: str) -> None:
        """All of it or nothing: what a full disk did not take whole is cut off again."""
        body, tail = text.encode("utf-8", "replace"), b""
        if self._packer is not None:
            body, tail = self._packer.pack(body)
        try:
            self._put(body + (tail if self._regular else b""))
        except BrokenPipeError:
            raise
        except OSError as error:
            self._restore()
            raise _cannot(self.where, error, "the samples before are kept; name another file") from error
        self._end += len(body)
        self._tail = tail

    def _put(self, data: bytes) -> None:
        at, rest = self._end, memoryview(data)
        while rest:
            count = os.pwrite(self._fd, rest, at) if self._regular else os.write(self._fd, rest)
            at, rest = at + count, rest[count:]

    def _restore(self) -> None:
        """The file as it was after the last whole sample. The trailer goes first: its blocks are still ours."""
        if self._regular:
            with suppress(OSError):  # a file system that copies on write has no block even for that
                self._put(self._tail)
            os.ftruncate(self._fd, self._end + len(self._tail))

    def close(self) -> None:
        """Done; a whole document takes its place now."""
        try:
            if not self._regular:
                self._put(self._tail)
            if self._beside is not None:
                os.fsync(self._fd)
                os.chmod(self._beside, mode_for(self._place))
                os.replace(self._beside, self._place)
                self._beside = None
        except OSError as error:
            raise _cannot(self.where, error, "name another file with --export") from error
        finally:
            self._shut()

    def drop(self) -> None:
        """Remove what was written beside the place; a file that was written in place keeps its whole samples."""
        self._shut()
        if self._beside is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._beside)
            self._beside = None

    def _shut(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Packer:
    """gzip whose data can be read after every write: each ends at a byte, and a trailer for it comes along."""

    def __init__(self) -> None:
        import zlib

        # 31: with gzip's header. memLevel 5 keeps the copy that makes each trailer at 80 KiB.
        self._stream = zlib.compressobj(6, zlib.DEFLATED, 31, 5)
        self._flush, self._finish = zlib.Z_SYNC_FLUSH, zlib.Z_FINISH

    def pack(self, data: bytes) -> tuple[bytes, bytes]:
        """(the compressed data, the trailer that would end the file here)."""
        body = self._stream.compress(data) + self._stream.flush(self._flush)
        return body, self._stream.copy().flush(self._finish)


def open_export(path: str, fallback: str, about: Row) -> Recorder:
    """A recorder for a file, its format by its name. Raises MemwardenError before anything is lost."""
    if os.path.isdir(path):
        raise ConfigError("is a folder", where=path, mend="name a file with --export")
    form, zipped = format_of(path, fallback)
    return Recorder(FileOutlet(path, whole=form == "json", zipped=zipped), form, about)


def _cannot(where: str, error: OSError | ValueError, mend: str) -> MemwardenError:
    number = getattr(error, "errno", None)
    why = os.strerror(number) if number else str(error)
    return MemwardenError(f"cannot be written: {why}", where=where, mend=mend)
