"""Writing a command's answer: whole or not at all, to a file or to standard output."""

from __future__ import annotations

import os
import sys

from memwarden.errors import MemwardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def write_output(text: str, path: str | None) -> None:
    """To `path`, or to standard output without one. Raises MemwardenError where it cannot be written.

    A regular file is written beside its place and renamed, so that a full disk leaves the old file as it was.
    """
    where = path or "standard output"
    try:
        if path is None:
            _print(text)
        elif os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            with open(path, "w", encoding="utf-8") as device:
                device.write(text)
        else:
            _replace(path, text)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise  # whoever read the pipe has seen enough: the command line ends quietly
        if path is None:
            hush()
        why = os.strerror(exc.errno) if exc.errno else str(exc)
        raise MemwardenError(
            f"cannot be written: {why}",
            where=where,
            mend="nothing was written; name another place with --output",
        ) from exc


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each as lines, every column as wide as its widest cell."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def one_line(text: object, most: int = 80) -> str:
    """Foreign text as one line that a terminal does not obey, at most so long."""
    shown = "".join(c if c.isprintable() else " " for c in ("" if text is None else str(text)))
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def hush() -> None:
    """Drop what standard output did not take, or the interpreter tries again, and complains, at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _replace(path: str, text: str) -> None:
    import tempfile

    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(21, os.strerror(21))
    handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, mode_for(path))
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def mode_for(path: str) -> int:
    """The mode the file has, or that a new file would get; mkstemp makes it private."""
    try:
        return os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
