"""What a job's items can be: anything that can be read from a key on, and cut into ranges of keys.

A key is a JSON text (or None at the open ends); only its source reads it. A range is what is behind `low`, up to and
including `high`. Here: sequences and ranges (the key is the index), lines of a file (the key is the offset behind the
line). Rows of SQLAlchemy statements are in `statements`; an object with these three methods is a source of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from memwarden.errors import JobError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any, Protocol
else:
    Protocol = object

__all__ = ["Items", "Lines", "Splittable", "is_query", "source_of"]

Key = "str | None"


class Splittable(Protocol):
    """Items that can be read from any key on. Keys are JSON texts, and go up as the source understands them."""

    def count(self, low: str | None, high: str | None) -> int | None:
        """How many items the range has, about; None where that would cost a look at all of them."""

    def cut(self, low: str | None, high: str | None, items: int) -> Iterator[str]:
        """Keys inside the range, going up, about `items` apart; asked for one by one, so none need be kept."""

    def read(self, low: str | None, high: str | None) -> Iterator[tuple[str, Any]]:
        """The items of the range with their keys, in order, a bounded number in memory."""


class Items:
    """A sequence, which is there as a whole in every worker: a range, a list, a memory-mapped array."""

    def __init__(self, sequence: Sequence[Any]) -> None:
        self._sequence = sequence

    def _bounds(self, low: str | None, high: str | None) -> tuple[int, int]:
        """As for range(): of the first one, and behind the last one."""
        start = 0 if low is None else int(low) + 1
        stop = len(self._sequence) if high is None else int(high) + 1
        return start, min(stop, len(self._sequence))

    def count(self, low: str | None, high: str | None) -> int:
        """Exactly."""
        start, stop = self._bounds(low, high)
        return max(0, stop - start)

    def cut(self, low: str | None, high: str | None, items: int) -> Iterator[str]:
        """Exactly so many apart."""
        start, stop = self._bounds(low, high)
        for last in range(start + items - 1, stop - 1, items):
            yield str(last)

    def read(self, low: str | None, high: str | None) -> Iterator[tuple[str, Any]]:
        """One after the other."""
        sequence = self._sequence
        for index in range(*self._bounds(low, high)):
            yield str(index), sequence[index]


# A look at so much of a file says how long its lines are.
_SAMPLE_BYTES = 64 * 1024


class Lines:
    """The lines of a text file (bytes, without their end), which every worker can open. Not for quoted line breaks.

    A line longer than `longest` bytes is refused: it is no line.
    """

    def __init__(self, path: str | os.PathLike[str], *, longest: int = 64 << 20) -> None:
        self._path = os.fspath(path)
        self._longest = longest

    def _end(self, high: str | None) -> int:
        size = os.stat(self._path).st_size
        return size if high is None else min(size, int(high))

    def count(self, low: str | None, high: str | None) -> int | None:
        """By the length of the first lines of the range."""
        start, end = int(low or 0), self._end(high)
        if end <= start:
            return 0
        with open(self._path, "rb") as file:
            file.seek(start)
            sample = file.read(min(_SAMPLE_BYTES, end - start))
        return max(1, (end - start) * max(1, sample.count(b"\n")) // len(sample))

    def cut(self, low: str | None, high: str | None, items: int) -> Iterator[str]:
        """At ends of lines, by their usual length."""
        start, end = int(low or 0), self._end(high)
        count = self.count(low, high) or 0
        if count <= items:
            return
        step = max(1, (end - start) * items // count)
        with open(self._path, "rb") as file:
            at = start
            while at + step < end:
                file.seek(at + step)
                file.readline(self._longest)
                at = file.tell()
                if at < end:
                    yield str(at)

    def read(self, low: str | None, high: str | None) -> Iterator[tuple[str, Any]]:
        """Line after line."""
        end = self._end(high)
        with open(self._path, "rb") as file:
            file.seek(int(low or 0))
            while file.tell() < end:
                line = self._line(file)
                yield str(file.tell()), line.rstrip(b"\r\n")

    def _line(self, file: IO[bytes]) -> bytes:
        start = file.tell()
        try:
            line = file.readline(self._longest)
        except MemoryError as error:
            raise MemoryError(f"the line at byte {start} of {self._path} does not fit into memory") from error
        if len(line) >= self._longest:
            raise JobError(
                f"has a line of more than {self._longest} bytes at byte {start}", where=self._path,
                mend="see that it has lines, or give Lines(path, longest=)",
            )  # fmt: skip
        return line


def is_query(found: Any) -> bool:
    """Whether this is a statement and its engine, as a tuple."""
    return isinstance(found, tuple) and len(found) == 2 and hasattr(found[1], "dialect")


def source_of(found: Any, *, job: str) -> Splittable:
    """What the job's `items` gave, as a source. Raises JobError for what cannot be read from the middle."""
    if all(callable(getattr(found, name, None)) for name in ("cut", "read")):
        source: Splittable = found
        return source
    if isinstance(found, (str, os.PathLike)):
        return Lines(found)
    if is_query(found):
        from memwarden.jobs.statements import Rows

        return Rows(*found)
    if isinstance(found, Sequence) or (hasattr(found, "__len__") and hasattr(found, "__getitem__")
                                       and not hasattr(found, "keys")):  # fmt: skip
        return Items(found)
    raise JobError(
        f"its items are a {type(found).__name__}, which cannot be taken up in the middle", where=f"job {job!r}",
        mend="give a sequence, the path of a file with lines, or jobs.Rows(statement, engine)",
    )  # fmt: skip


def key_text(value: Any) -> str:
    """A key as JSON text, for sources whose keys are numbers, texts or lists of them."""
    return json.dumps(value, separators=(",", ":"))
