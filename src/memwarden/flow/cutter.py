"""Where one chunk ends and the next begins: rows and their bytes in, chunks out. Pure: no I/O, no clock, no thread.

A chunk is closed before the row that would carry it past its target, so that a wide region met at full speed costs
one row more and not a chunk of wide rows (adapting a number of rows to what was seen fails exactly there). Rows and
seconds are caps of their own. One row above the whole target is a chunk by itself, is left out, or is an error.

Sizes are what the caller estimated (`sizing`), in bytes. Whoever drives a cutter fetches in pages as `Pager` suggests,
and says the target anew for each chunk (`target_of`).
"""

from __future__ import annotations

from memwarden.errors import ConfigError, OversizeError, ReleasedError
from memwarden.facts import Fact, Level
from memwarden.units import KIB, format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TypeVar

    from memwarden.ports import Pressure

    T = TypeVar("T")
else:
    T = Any = object  # typing is not imported here; list[object] is a list

__all__ = ["Chunk", "Cut", "Cutter", "Expansion", "Pager", "cut", "page_cap", "target_of", "target_under"]

# Row caps of a fetch page. On rows that vary 100x a cap of 256 let a 32 MiB cut peak at 50 MiB, a cap of 32 at 43, and
# 1 to 8 cost up to a third of the speed for 1 MiB less (60,000 rows over SQLite).
PAGE_ROWS = 32
# Where the chunk has room, a page may have as many rows as would fit there if each were so wide (and MOST_PAGE_ROWS):
# narrow rows, whose chunks end by their number with nearly all of the target free, come in fewer pages that way.
ROOM_PER_ROW_BYTES = 256 * KIB
MOST_PAGE_ROWS = 1024
# A page may be this part of the target before it is halved: its error is one page.
PAGE_SHARE = 1 / 16
# A chunk takes at most this part of the headroom: others of this process are filling theirs.
HEADROOM_SHARE = 0.25
# What handlers build of a chunk (objects, JSON): never less than the chunk, and more than this is somebody else's.
LEAST_EXPANSION, MOST_EXPANSION = 1.0, 8.0
# How much of a new look goes into the learned figure: half of it is forgotten in about two looks.
NEWEST = 0.3
# Below it chunks are nothing but overhead, and going on in small steps is the way out of a squeeze.
LEAST_TARGET_BYTES = 64 * KIB
# What is left of a target on each level.
SQUEEZE = {Level.NORMAL: 1.0, Level.WARNING: 0.5, Level.CRITICAL: 0.25, Level.EMERGENCY: 0.0}

OVERSIZE = ("pass", "skip", "fail")


class Cut(Fact):
    """The record of one chunk: its number, how many rows and estimated bytes, its first and last row, why it ended.

    Numbers and indices count from 0 over the whole stream; `first` and `last` are inclusive, and rows that were
    skipped in between belong to no chunk. `why` is "bytes", "rows", "seconds", "oversize" (one row above the target),
    "end", "error" (the source failed behind it) or what the driver said ("pressure").
    """

    number: int
    rows: int
    bytes: int
    first: int
    last: int
    why: str


class Chunk(list[T]):
    """The rows of one chunk, a list; `cut` is its record."""

    __slots__ = ("__weakref__", "cut")

    cut: Cut

    def release(self) -> None:
        """Drop the rows. Whoever still holds the chunk and reads from it gets a ReleasedError, not an empty list."""
        self.clear()
        self.__class__ = _Released


class _Released(Chunk[Any]):
    """A chunk after its time: the loop variable of a `for` still refers to it while the next one is fetched."""

    __slots__ = ()

    def _gone(self, *_arguments: Any) -> Any:
        what = f"chunk {self.cut.number} was released when the next one was asked for"
        raise ReleasedError(what, mend="take from it what you need before, or give keep=True")

    __iter__ = __len__ = __getitem__ = __reversed__ = __contains__ = __eq__ = append = copy = index = _gone

    def __repr__(self) -> str:
        return f"<released chunk {self.cut.number}>"

    def release(self) -> None:
        """It is."""


class Cutter:
    """Cuts a stream of (row, bytes) into chunks: disjoint, complete, in order, none above the target but a lone row.

    `target_bytes` may be set at any time and holds from the next row on. `rows` (above 0, None is no cap) and
    `seconds` (since the first row of the chunk, by the caller's clock) are caps. `oversize` says what becomes of one
    row above the target: "pass" (its own chunk), "skip" (counted in `skipped`), "fail" (an OversizeError).
    """

    def __init__(
        self,
        target_bytes: int,
        *,
        rows: int | None = 1000,
        seconds: float | None = None,
        oversize: str = "pass",
        first: int = 0,
        number: int = 0,
    ) -> None:
        if oversize not in OVERSIZE:
            raise ConfigError(f"{oversize!r} is no policy", where="oversize", mend=f"give one of {', '.join(OVERSIZE)}")
        if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
            raise ConfigError(f"{rows!r} is no number of rows", where="rows", mend="give a whole number above zero")
        self.target_bytes = target_bytes
        self.skipped = 0
        self.skipped_bytes = 0
        self._cap = rows if rows is not None else 1 << 62
        self._seconds = seconds
        self._oversize = oversize
        self._number = number
        self._next = first
        self._start()

    def _start(self) -> None:
        self._items: Chunk[Any] = Chunk()
        self._rows = 0
        self._bytes = 0
        self._first = self._last = self._next
        self._since = 0.0

    def start_at(self, row: int, number: int) -> None:
        """The next row has this index, the next chunk this number; for a cutter that holds nothing."""
        self._next, self._number = row, number
        self._start()

    @property
    def number(self) -> int:
        """Number of the chunk that is being filled."""
        return self._number

    @property
    def rows(self) -> int:
        """Rows of the chunk that is being filled."""
        return self._rows

    @property
    def bytes(self) -> int:
        """Bytes of the chunk that is being filled."""
        return self._bytes

    @property
    def seen(self) -> int:
        """Index of the row that comes next."""
        return self._next

    @property
    def room_rows(self) -> int:
        """How many rows this chunk may still take before the cap of rows."""
        return self._cap - self._rows

    @property
    def room_bytes(self) -> int:
        """How many bytes this chunk may still take before its target."""
        return self.target_bytes - self._bytes

    def due(self, now: float) -> bool:
        """Whether the chunk is old enough to be closed, rows or none coming."""
        return bool(self._items) and self._seconds is not None and now - self._since >= self._seconds

    def push(self, row: Any, size: int, now: float = 0.0, *, rows: int = 1) -> tuple[Chunk[Any], ...]:
        """Take the next row; the chunks that are complete now: none, one, or two before and with an oversize row.

        One that stands for several rows (a record batch) says how many. Raises OversizeError under "fail"; what came
        before the row is still there (`flush`).
        """
        if size > self.target_bytes:
            return self._lone(row, size, now, rows)
        done: tuple[Chunk[Any], ...] = ()
        if self._items:
            if self._bytes + size > self.target_bytes:
                done = (self._close("bytes"),)
            elif self._rows + rows > self._cap:
                done = (self._close("rows"),)
        self._append(row, size, now, rows)
        closed = self.complete(now)
        return done if closed is None else (*done, closed)

    def take(self, page: list[Any], size: int, now: float = 0.0) -> bool:
        """Take a whole page of so many bytes in all, where it certainly ends no chunk before its last row.

        False, and nothing taken, where it could: then push row by row. `complete` gives the chunk where it is full.
        """
        if not page or self._bytes + size > self.target_bytes or self._rows + len(page) > self._cap:
            return False
        if not self._items:
            self._since, self._first = now, self._next
        self._items.extend(page)
        self._rows += len(page)
        self._bytes += size
        self._next += len(page)
        self._last = self._next - 1
        return True

    def complete(self, now: float = 0.0) -> Chunk[Any] | None:
        """The chunk where the cap of rows or of seconds is met."""
        if self._rows >= self._cap:
            return self._close("rows")
        return self._close("seconds") if self.due(now) else None

    def flush(self, why: str = "end") -> Chunk[Any] | None:
        """The chunk that is being filled, as it is; None where it is empty."""
        return self._close(why) if self._items else None

    def _append(self, row: Any, size: int, now: float, rows: int) -> None:
        if not self._items:
            self._since, self._first = now, self._next
        self._items.append(row)
        self._rows += rows
        self._bytes += size
        self._next += rows
        self._last = self._next - 1

    def _lone(self, row: Any, size: int, now: float, rows: int) -> tuple[Chunk[Any], ...]:
        if self._oversize == "fail":
            what = f"row {self._next} has {format_bytes(size)}, above the {format_bytes(self.target_bytes)} of a chunk"
            raise OversizeError(what, index=self._next, size_bytes=size, target_bytes=self.target_bytes)
        if self._oversize == "skip":
            self.skipped += rows
            self.skipped_bytes += size
            self._next += rows
            return ()
        before = (self._close("bytes"),) if self._items else ()
        self._append(row, size, now, rows)
        return (*before, self._close("oversize"))

    def _close(self, why: str) -> Chunk[Any]:
        chunk = self._items
        chunk.cut = Cut(
            number=self._number, rows=self._rows, bytes=self._bytes, first=self._first, last=self._last, why=why
        )
        self._number += 1
        self._start()
        return chunk


def page_cap(room_bytes: int) -> int:
    """Rows of the next page at most, where the chunk has so much room."""
    return min(MOST_PAGE_ROWS, max(PAGE_ROWS, room_bytes // ROOM_PER_ROW_BYTES))


class Pager:
    """How many rows to fetch at once: from 1, doubled while pages stay small, halved above, capped for good.

    A page is the one thing that is in memory before its width is known, so its cap does not grow with trust. It also
    stays short in time: `seconds` is what a page may take before it is halved, None without such a wish. `share` is how
    much of the target it may be.
    """

    def __init__(
        self,
        target_bytes: int,
        *,
        most_rows: int = PAGE_ROWS,
        seconds: float | None = None,
        share: float = PAGE_SHARE,
    ) -> None:
        self.target_bytes = target_bytes
        self._share = share
        self.rows = 1
        self._most = most_rows
        self._seconds = seconds

    def saw(self, rows: int, size: int, seconds: float = 0.0) -> None:
        """A page of so many rows and bytes came in so many seconds."""
        slow = self._seconds is not None and seconds > self._seconds
        if slow or size > self.target_bytes * self._share:
            self.rows = max(1, self.rows // 2)
        elif rows >= self.rows < self._most:
            self.rows = min(self._most, self.rows * 2)


class Expansion:
    """How many bytes the process grows by per estimated byte of a chunk while it is handled, learned from 1.0 on."""

    def __init__(self) -> None:
        self.factor = LEAST_EXPANSION

    def saw(self, chunk_bytes: int, growth_bytes: int) -> None:
        """A chunk of so many bytes went with so much growth at its peak. Small chunks say nothing."""
        if chunk_bytes < LEAST_TARGET_BYTES:
            return
        seen = min(MOST_EXPANSION, max(LEAST_EXPANSION, growth_bytes / chunk_bytes))
        # At once upwards: the next chunk must not repeat it; slowly back.
        self.factor = seen if seen > self.factor else self.factor + NEWEST * (seen - self.factor)


def target_of(
    limit_bytes: int,
    *,
    headroom_bytes: int | None = None,
    level: Level = Level.NORMAL,
    expansion: float = LEAST_EXPANSION,
    shares: int = 1,
) -> int:
    """The target of the next chunk in bytes, where so many of them (`shares`) are in memory at once.

    The limit or a quarter of the headroom, whichever is less, divided by expansion and shares; half of it on WARNING,
    a quarter on CRITICAL, the least on EMERGENCY. Never below 64 KiB, unless the limit itself is.
    """
    room = limit_bytes if headroom_bytes is None else min(limit_bytes, int(max(0, headroom_bytes) * HEADROOM_SHARE))
    target = int(room * SQUEEZE[level] / (expansion * shares))
    return max(target, min(limit_bytes // shares, LEAST_TARGET_BYTES), 1)


def target_under(pressure: Pressure | None, limit_bytes: int, *, expansion: float = 1.0, shares: int = 1) -> int:
    """The same as the pressure stands now; without one the limit alone counts."""
    verdict = None if pressure is None else pressure.verdict
    if verdict is None:
        return target_of(limit_bytes, expansion=expansion, shares=shares)
    return target_of(
        limit_bytes,
        headroom_bytes=verdict.reading.headroom_bytes,
        level=verdict.level,
        expansion=expansion,
        shares=shares,
    )


def cut(sized: Iterable[tuple[Any, int]], target_bytes: int, **caps: Any) -> Iterator[Chunk[Any]]:
    """The chunks of rows that come with their sizes: the cutter as a plain function."""
    cutter = Cutter(target_bytes, **caps)
    for row, size in sized:
        yield from cutter.push(row, size)
    last = cutter.flush()
    if last is not None:
        yield last
