"""What a stream can read from, each as a `Reader`: pages of rows out of anything, and a close on every way out.

Iterables and generators, files (lines, CSV, NDJSON, each also as .gz), DB-API cursors and SQLAlchemy results (anything
with `fetchmany`), Arrow record batches and readers (anything with `read_next_batch`, or that yields things with
`num_rows` and `slice`), Parquet (`memwarden.flow.arrow`), Django QuerySets (`iterator(chunk_size=)`), and the
asynchronous ones of these. They are told by what they can do; no third party is imported for it.
"""

from __future__ import annotations

from collections import namedtuple
from itertools import islice

from memwarden.errors import ConfigError, SourceError
from memwarden.flow.cutter import PAGE_ROWS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any, Protocol
else:
    Protocol = object

__all__ = ["FORMATS", "AsyncReader", "Reader", "Share", "open_async", "open_sync"]

FORMATS = ("lines", "csv", "ndjson", "parquet")
_SUFFIXES = {
    ".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet", ".txt": "lines", ".log": "lines",
}  # fmt: skip


class Reader(Protocol):
    """Pages of rows. `batches`: they are record batches. `survives`: a read that failed may be tried again."""

    batches: bool
    survives: bool

    def read(self, rows: int, into: list[Any]) -> bool:
        """Append up to so many rows; false where the source has ended. What was appended before an error counts."""

    def close(self) -> None:
        """Give the source back; once or more often."""


class AsyncReader(Protocol):
    """The same, awaited."""

    batches: bool
    survives: bool

    async def read(self, rows: int, into: list[Any]) -> bool:
        """As `Reader.read`."""

    async def close(self) -> None:
        """As `Reader.close`."""


class _Iterable:
    """An iterator; closed where it can be (generators, files). Record batches are told by the first one."""

    survives = False

    def __init__(self, iterator: Iterator[Any], share: Share, *closing: Callable[[], object]) -> None:
        self._iterator = iterator
        self._share: Share | None = share
        self._closing = closing
        self._batches: _Batches | None = None
        self.batches = False

    def read(self, rows: int, into: list[Any]) -> bool:
        if self._batches is not None:
            return self._batches.read(rows, into)
        before = len(into)
        into.extend(islice(self._iterator, rows))  # what came before an error stays in the list
        if self._share is not None and len(into) > before:
            if hasattr(into[before], "num_rows") and hasattr(into[before], "slice"):
                self._batches, self.batches = _Batches(self._iterator, self._share), True
                into[before:] = self._batches.pieces(into[before:])
            self._share = None
        return len(into) - before == rows or self._batches is not None

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        try:
            if close is not None:
                close()
        finally:
            for each in self._closing:
                each()


class _Fetching:
    """A cursor or a result: anything with fetchmany."""

    survives = False
    batches = False

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def read(self, rows: int, into: list[Any]) -> bool:
        page = self._cursor.fetchmany(rows)
        into.extend(page)
        return bool(page)

    def close(self) -> None:
        self._cursor.close()


class Share(namedtuple("Share", "rows bytes")):  # noqa: PYI024  typing is not imported here
    """The largest piece of a record batch that a chunk should be made of: so many rows, so many bytes."""

    __slots__ = ()


class _Batches:
    """Arrow record batches, sliced without a copy into pieces."""

    survives = False
    batches = True

    def __init__(self, source: Any, share: Share) -> None:
        self._source = source
        self._next = source.read_next_batch if hasattr(source, "read_next_batch") else iter(source).__next__
        self._share = share

    def read(self, rows: int, into: list[Any]) -> bool:
        try:
            batch = self._next()
        except StopIteration:
            return False
        into += self.pieces([batch])
        return True

    def pieces(self, batches: list[Any]) -> list[Any]:
        """The slices of these."""
        found = []
        for batch in batches:
            rows = int(batch.num_rows * self._share.bytes / max(1, batch.nbytes))
            step = max(1, min(self._share.rows, rows))
            found += [batch.slice(at, step) for at in range(0, batch.num_rows, step)]
        return found

    def close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


class _AsyncIterable:
    """An asynchronous iterator; closed where it can be."""

    survives = False
    batches = False

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator

    async def read(self, rows: int, into: list[Any]) -> bool:
        for _ in range(rows):
            try:
                into.append(await self._iterator.__anext__())
            except StopAsyncIteration:
                return False
        return True

    async def close(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class _AsyncFetching:
    """An asynchronous cursor or result; some of them close without being awaited."""

    survives = False
    batches = False

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    async def read(self, rows: int, into: list[Any]) -> bool:
        page = self._cursor.fetchmany(rows)
        if hasattr(page, "__await__"):
            page = await page
        into.extend(page)
        return bool(page)

    async def close(self) -> None:
        done = self._cursor.close()
        if hasattr(done, "__await__"):
            await done


class _InAsync:
    """A plain source under an asynchronous loop: read in place, page by page; other tasks have their turn between."""

    survives = False

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.batches = reader.batches

    async def read(self, rows: int, into: list[Any]) -> bool:
        import asyncio

        more = self._reader.read(rows, into)
        self.batches = self._reader.batches
        await asyncio.sleep(0)
        return more

    async def close(self) -> None:
        self._reader.close()


def is_async(source: Any) -> bool:
    """Whether it can only be read with `async for`."""
    if isinstance(source, str):
        return False
    return hasattr(source, "__aiter__") and not hasattr(source, "__iter__")


def open_async(source: Any, share: Share, **options: Any) -> AsyncReader:
    """The reader of any source, for a loop that awaits."""
    if hasattr(source, "open_async"):
        reader: AsyncReader = source.open_async()
        return reader
    if is_async(source):
        return _AsyncFetching(source) if hasattr(source, "fetchmany") else _AsyncIterable(aiter(source))
    if hasattr(source, "aiterator") and hasattr(source, "model"):
        return _AsyncIterable(aiter(source.aiterator(chunk_size=options.get("page_rows", PAGE_ROWS))))
    return _InAsync(open_sync(source, share, **options))


def open_sync(
    source: Any,
    share: Share,
    *,
    format: str | None = None,  # noqa: A002  the word that everybody looks for
    encoding: str = "utf-8",
    delimiter: str = ",",
    page_rows: int = PAGE_ROWS,
) -> Reader:
    """The reader of any source that a plain loop can read. Raises ConfigError, SourceError."""
    if format is not None and format not in FORMATS:
        raise ConfigError(f"{format!r} is no format", where="format", mend=f"give one of {', '.join(FORMATS)}")
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return _open_path(source, share, format, encoding, delimiter)
    if hasattr(source, "open_async"):  # of flow.lazy
        reader: Reader = source.open()
        return reader
    if is_async(source):
        what = f"a {type(source).__name__} can only be read asynchronously"
        raise ConfigError(what, where="source", mend="write `async for` over it")
    if format in ("csv", "ndjson"):
        return _Iterable(_PARSERS[format](iter(source), delimiter), share)
    if hasattr(source, "fetchmany"):
        return _Fetching(source)
    if hasattr(source, "read_next_batch"):
        return _Batches(source, share)
    if hasattr(source, "iter_batches") and hasattr(source, "num_row_groups"):
        return _row_groups(source, share)
    if hasattr(source, "iterator") and hasattr(source, "model"):  # a QuerySet: iterating it would cache every row
        return _Iterable(iter(source.iterator(chunk_size=page_rows)), share)
    if not hasattr(source, "__iter__") or isinstance(source, (bytes, bytearray, dict)):
        kind = type(source).__name__
        raise ConfigError(f"a {kind} is no source of rows", where="source", mend="give a path, an iterable or a cursor")
    return _Iterable(iter(source), share)


def _open_path(path: Any, share: Share, format: str | None, encoding: str, delimiter: str) -> Reader:  # noqa: A002
    import os

    name = os.fspath(path)
    if not isinstance(name, str):
        name = os.fsdecode(name)
    bare, packed = (name[:-3], True) if name.endswith(".gz") else (name, False)
    found = format or _SUFFIXES.get(os.path.splitext(bare)[1].lower())
    if found is None:
        raise ConfigError("its name does not say what is in it", where=name, mend=f"give format={' or '.join(FORMATS)}")
    if found == "parquet":
        from memwarden.flow.arrow import open_parquet

        return _row_groups(open_parquet(name), share)
    newline = "" if found == "csv" else None
    try:
        if packed:
            import gzip

            file: Any = gzip.open(name, "rt", encoding=encoding, newline=newline)  # noqa: SIM115  closed with the reader
        else:
            file = open(name, encoding=encoding, newline=newline)  # noqa: SIM115  closed with the reader
    except OSError as error:
        raise SourceError(error.strerror or str(error), where=name) from error
    rows = file if found == "lines" else _PARSERS[found](file, delimiter)
    return _Iterable(iter(rows), share, file.close)


def _row_groups(file: Any, share: Share) -> Reader:
    """A Parquet file: batches of about a share of bytes, by what its first row group says of itself."""
    rows = share.rows
    if file.num_row_groups:
        group = file.metadata.row_group(0)
        rows = min(rows, max(1, int(group.num_rows * share.bytes / max(1, group.total_byte_size))))
    return _Iterable(file.iter_batches(batch_size=rows), share, file.close)


def _csv(lines: Iterator[str], delimiter: str) -> Iterator[Any]:
    import csv

    return csv.DictReader(lines, delimiter=delimiter)


class _Ndjson:
    """A document from each line that is not empty. A bad line is an error, and the next one can be asked for."""

    def __init__(self, lines: Iterator[str], _delimiter: str) -> None:
        from json import loads

        self._lines = enumerate(lines, 1)
        self._loads = loads

    def __iter__(self) -> _Ndjson:
        return self

    def __next__(self) -> Any:
        for number, line in self._lines:
            if line and not line.isspace():
                try:
                    return self._loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
        raise StopIteration


_PARSERS: dict[str, Callable[[Iterator[str], str], Iterator[Any]]] = {"csv": _csv, "ndjson": _Ndjson}
