"""`flow.chunks`: any source in chunks under a budget of bytes, in a plain loop or an asynchronous one.

One chunk is alive at a time: when the next one is asked for, the rows of the old one are dropped before anything is
fetched, although the loop variable still refers to the chunk. So take what you need from a chunk inside of the loop;
reading it later is a ReleasedError. `keep=True` leaves chunks alone, and then what you keep is your own account.

Beside the chunk there is one page of rows, whose width is unknown before it is fetched: 32 rows, or as many as would
fit into what the chunk has left if each had 256 KiB.
"""

from __future__ import annotations

from memwarden.budget import Budget
from memwarden.errors import ConfigError, FlowError, SourceError
from memwarden.flow.cutter import PAGE_ROWS, Chunk, Cutter
from memwarden.flow.filling import Filler
from memwarden.flow.holding import DEFAULT_BUDGET, Holding
from memwarden.flow.holes import Holes
from memwarden.flow.sources import Share, open_async, open_sync
from memwarden.units import MIB, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
    from typing import Any

    from memwarden.flow.mapping import DeadLetter, Mapped
    from memwarden.flow.sources import AsyncReader, Reader
    from memwarden.ports import Clock, Pressure

__all__ = ["Chunks", "chunks"]

# Pieces of record batches: so much of a chunk at most, and so much anyway.
_PIECE_SHARE, _PIECE_BYTES = 1 / 16, 4 * MIB
# A source that fails again and again without a row in between is not going to mend.
MOST_FAILURES = 100


class Chunks:
    """What `chunks` gives: iterate over it, with `for` or `async for`, or `map` a handler over it.

    `rows` says how many rows the last run handed out, `skipped` how many were above the target and left out, `dead`
    what was given up under on_error. Each iteration is a run of its own over the source; a generator or cursor has
    only one in it.
    """

    def __init__(self, source: Any, settings: dict[str, Any]) -> None:
        self._source = source
        self._settings = settings
        self._run: _Run | None = None
        self._handling = settings.pop("handling")
        self.dead: list[DeadLetter] = []
        self._token = object()  # of its entries in a cache: nobody else's source has them

    @property
    def rows(self) -> int:
        """Rows handed out by the last run."""
        return 0 if self._run is None else self._run.rows

    @property
    def skipped(self) -> int:
        """Rows above the target that the last run left out."""
        return 0 if self._run is None else self._run.filler.cutter.skipped

    @property
    def held_bytes(self) -> int:
        """What the last run holds in the budget now."""
        return 0 if self._run is None else self._run.holding.held_bytes

    def _start(self, *, extra_shares: int = 0) -> _Run:
        self._run = _Run(self._source, self.dead, self._token, extra_shares=extra_shares, **self._settings)
        return self._run

    def __iter__(self) -> Iterator[Chunk[Any]]:
        return self.pages()

    def __aiter__(self) -> AsyncIterator[Chunk[Any]]:
        return self.pages_async()

    def pages(self) -> Generator[Chunk[Any], None, None]:
        """The same as iterating, for who closes it himself."""
        return self._start().chunks()

    def pages_async(self) -> AsyncGenerator[Chunk[Any], None]:
        """The same, awaited."""
        return self._start().chunks_async()

    def map(self, handler: Callable[[Chunk[Any]], Any], **options: Any) -> Mapped:
        """The results of a handler called with each chunk, as many at once as `parallel` says.

        Options given here win over those of `chunks`: parallel, processes, ordered, on_error, retries, backoff_s.
        """
        from memwarden.flow.mapping import Mapped

        return Mapped(self, handler, {**self._handling, **options})


class _Run:
    """One run over a source."""

    def __init__(
        self,
        source: Any,
        dead: list[DeadLetter],
        token: object,
        *,
        extra_shares: int,
        budget: str | float | Budget,
        rows: int | None,
        seconds: float | None,
        prefetch: int,
        cache: Any,
        oversize: str,
        keep: bool,
        on_error: tuple[str, ...],
        retries: int,
        backoff_s: float,
        page_rows: int | None,
        whole_pages: bool,
        pressure: Pressure | None,
        patience_s: float,
        emergency_s: float,
        name: str,
        clock: Clock | None,
        options: dict[str, Any],
    ) -> None:
        self.filler = Filler(
            rows=rows, seconds=seconds, oversize=oversize, page_rows=page_rows, whole_pages=whole_pages
        )
        self.holding = Holding(
            budget, name=name, shares=1 + prefetch + extra_shares, pressure=pressure, patience_s=patience_s,
            emergency_s=emergency_s, clock=clock,
        )  # fmt: skip
        self.source = source
        self.prefetch = prefetch
        self.rows = 0
        self.name = name
        self._dead = dead
        self._cache = cache
        self.handed_over = False
        self._holes = Holes()
        self._keep = keep
        self._token = token
        self._skip = 0
        self._on_error = on_error
        self._retries = retries
        self._backoff_s = backoff_s
        self._options = {**options, "page_rows": page_rows or PAGE_ROWS}
        self._share = Share(rows or 1 << 30, min(_PIECE_BYTES, max(1, int(self.holding.target() * _PIECE_SHARE))))
        self._now = self.holding.clock.monotonic
        self._over = False
        self._failures = 0
        self._last: Exception | None = None
        self._error: BaseException | None = None

    def chunks(self) -> Generator[Chunk[Any], None, None]:
        """The chunks of this run."""
        found = self.ahead() if self.prefetch else self.plain()
        return found if self._cache is None else self._cached(found)

    def chunks_async(self) -> AsyncGenerator[Chunk[Any], None]:
        """The same, awaited."""
        found = self.ahead_async() if self.prefetch else self.plain_async()
        return found if self._cache is None else self._cached_async(found)

    # --- the plain loop -----------------------------------------------------------------------------------------

    def plain(self) -> Generator[Chunk[Any], None, None]:
        """Each chunk is filled when it is asked for."""
        reader = None
        try:
            reader = open_sync(self.source, self._share, **self._options)
            while (chunk := self.fill(reader)) is not None:
                self.rows += chunk.cut.rows
                yield chunk
                self.resumed(chunk)
                del chunk
        finally:
            self.holding.close()
            if reader is not None:
                reader.close()

    def fill(self, reader: Reader) -> Chunk[Any] | None:
        """The next chunk, in the budget; None at the end."""
        reserved = self.holding.reserve()
        chunk = None
        try:
            self._begin(reserved)
            while not self.filler.ready and not self._over:
                self._read(reader)
            chunk = self._next_ready()
        finally:
            self.holding.settle(chunk, reserved)
        return chunk

    def _begin(self, target_bytes: int) -> None:
        self.filler.aim(target_bytes)
        self._holes.begin()

    def _read(self, reader: Reader) -> None:
        page: list[Any] = []
        start = self._now()
        more = failed = False
        try:
            more = reader.read(self.filler.wanted_rows(), page)
        except Exception as error:  # noqa: BLE001  a source may raise anything; what came before it counts
            failed = True
            more, pause_s = self._failed(error, len(page), reader)
            self.pause(pause_s)
        self._took(page, start, reader, more=more, failed=failed)

    def _took(self, page: list[Any], start: float, reader: Any, *, more: bool, failed: bool) -> None:
        now = self._now()
        if self._skip:
            self._skipped(page)
        if page:
            if not failed:
                self._failures, self._last = 0, None
            try:
                self.filler.feed(page, batches=reader.batches, now=now, took_s=now - start)
                self._holes.grew(self.filler.cutter.bytes, self.filler.cutter.target_bytes)
            except FlowError as error:  # an oversize row: what is before it comes first
                self._error, more = error, False
        elif not more and not failed and not reader.survives and self._last is not None and self._error is None:
            self._fail(self._last)  # asked again, it said that it had ended: a generator that raised is over
        if not more:
            self._over = True
            if self._skip and self._error is None:
                what = f"the source of {self.name} cannot be read again, and not all of it is in the cache any more"
                self._error = SourceError(
                    what, rows=self.filler.cutter.seen, mend="give a source that can, or a larger cache"
                )
            self.filler.end("end" if self._error is None else "error")

    def _next_ready(self) -> Chunk[Any] | None:
        if self.filler.ready:
            return self.filler.ready.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _failed(self, error: Exception, came: int, reader: Any) -> tuple[bool, float]:
        """(whether to ask again, after how many seconds)."""
        self._failures = 1 if came else self._failures + 1  # in a row
        row = self.filler.cutter.seen + came
        if "retry" in self._on_error and self._failures <= self._retries:
            self._last = error
            return True, self._backoff_s * 2 ** (self._failures - 1)
        if "continue" in self._on_error and self._failures <= MOST_FAILURES:
            from memwarden.flow.mapping import DeadLetter, keep_letter

            first, last = row, row
            if hasattr(reader, "skip"):
                if (skipped := reader.skip(self.filler.wanted_rows())) is None:
                    self._fail(error, came)
                    return False, 0.0
                first, last = skipped
            keep_letter(self._dead, DeadLetter(chunk=-1, first=first, last=last, error=repr(error)[:500], attempts=1))
            return True, 0.0
        self._fail(error, came)
        return False, 0.0

    def _fail(self, error: Exception, came: int = 0) -> None:
        row = self.filler.cutter.seen + came
        what = f"the source of {self.name} failed behind {row} rows: {type(error).__name__}: {error}"
        self._error = SourceError(what, rows=row)
        self._error.__cause__ = error

    def pause(self, seconds: float) -> None:
        """Wait, less where the run is closed meanwhile."""
        if seconds:
            self.holding.clock.wait(self.holding.stop, seconds)

    # --- in the background, and awaited -------------------------------------------------------------------------

    def ahead(self) -> Generator[Chunk[Any], None, None]:
        """Chunks are filled in a thread while the last one is handled."""
        from memwarden.flow.ahead import ahead

        readers: list[Reader] = []

        def fill() -> Chunk[Any] | None:
            if not readers:
                readers.append(open_sync(self.source, self._share, **self._options))
            return self.fill(readers[0])

        def close() -> None:
            for reader in readers:
                reader.close()

        chunks_ahead = ahead(
            fill, close, self.resumed, self.holding.close, depth=self.prefetch, level=lambda: self.holding.level
        )
        return self._counted(chunks_ahead)

    def _counted(self, chunks_ahead: Generator[Chunk[Any], None, None]) -> Generator[Chunk[Any], None, None]:
        try:
            for chunk in chunks_ahead:
                self.rows += chunk.cut.rows
                yield chunk
                del chunk
        finally:
            chunks_ahead.close()

    async def plain_async(self) -> AsyncGenerator[Chunk[Any], None]:
        """Each chunk is filled when it is awaited."""
        reader = None
        try:
            reader = open_async(self.source, self._share, **self._options)
            while (chunk := await self.fill_async(reader)) is not None:
                self.rows += chunk.cut.rows
                yield chunk
                self.resumed(chunk)
                del chunk
        finally:
            self.holding.close()
            if reader is not None:
                await reader.close()

    async def ahead_async(self) -> AsyncGenerator[Chunk[Any], None]:
        """Chunks are filled in a task while the last one is handled."""
        from memwarden.flow.ahead import ahead_async

        reader = open_async(self.source, self._share, **self._options)
        found = ahead_async(
            lambda: self.fill_async(reader), reader.close, self.resumed, self.holding.close,
            depth=self.prefetch, level=lambda: self.holding.level,
        )  # fmt: skip
        try:
            async for chunk in found:
                self.rows += chunk.cut.rows
                yield chunk
                del chunk
        finally:
            await found.aclose()

    async def fill_async(self, reader: AsyncReader) -> Chunk[Any] | None:
        """The next chunk, in the budget; None at the end."""
        reserved = await self.holding.reserve_async()
        chunk = None
        try:
            self._begin(reserved)
            while not self.filler.ready and not self._over:
                await self._read_async(reader)
            chunk = self._next_ready()
        finally:
            self.holding.settle(chunk, reserved)
        return chunk

    async def _read_async(self, reader: AsyncReader) -> None:
        page: list[Any] = []
        start = self._now()
        more = failed = False
        try:
            more = await reader.read(self.filler.wanted_rows(), page)
        except Exception as error:  # noqa: BLE001  a source may raise anything; what came before it counts
            failed = True
            more, pause_s = self._failed(error, len(page), reader)
            if pause_s:
                import asyncio

                await asyncio.sleep(pause_s)
        self._took(page, start, reader, more=more, failed=failed)

    def resumed(self, chunk: Chunk[Any]) -> None:
        """The next chunk was asked for: the old one is done with, unless a handler has it."""
        if not self.handed_over:
            self.let_go(chunk)

    def let_go(self, chunk: Chunk[Any]) -> None:
        """The chunk is done with."""
        if not self._keep:
            chunk.release()
        self.holding.give_back(chunk)

    # --- through a cache ----------------------------------------------------------------------------------------

    def _cached(self, fresh: Generator[Chunk[Any], None, None]) -> Generator[Chunk[Any], None, None]:
        try:
            for chunk in self._replayed():
                yield chunk
                self.resumed(chunk)
                del chunk
            if not self._over:
                for chunk in fresh:
                    self._store(chunk)
                    yield chunk
                    del chunk
                self._store_end()
        finally:
            fresh.close()
            self.holding.close()

    async def _cached_async(self, fresh: AsyncGenerator[Chunk[Any], None]) -> AsyncGenerator[Chunk[Any], None]:
        try:
            for chunk in self._replayed():
                yield chunk
                self.resumed(chunk)
                del chunk
            if not self._over:
                async for chunk in fresh:
                    self._store(chunk)
                    yield chunk
                    del chunk
                self._store_end()
        finally:
            await fresh.aclose()
            self.holding.close()

    def _replayed(self) -> Iterator[Chunk[Any]]:
        """What the cache still has of a run that came to its end, up to a gap; from there the source is read."""
        count = self._cache.get((self._token, "chunks"))
        cutter = self.filler.cutter
        for number in range(count or 0):
            found = self._cache.get((self._token, number))
            if found is None:
                return
            cut, rows = found
            chunk: Chunk[Any] = Chunk(rows)
            chunk.cut = cut
            cutter.start_at(cut.last + 1, number + 1)
            self._skip = cut.last + 1
            self.rows += cut.rows
            yield chunk
            del chunk, rows, found
        self._over = count is not None

    def _store(self, chunk: Chunk[Any]) -> None:
        self._cache[self._token, chunk.cut.number] = (chunk.cut, tuple(chunk))

    def _store_end(self) -> None:
        self._cache[self._token, "chunks"] = self.filler.cutter.number

    def _skipped(self, page: list[Any]) -> None:
        """Rows that came from the cache are read over."""
        while page and self._skip:
            rows = getattr(page[0], "num_rows", 1)
            if rows > self._skip:
                page[0] = page[0].slice(self._skip)
                self._skip = 0
            else:
                del page[0]
                self._skip -= rows


def chunks(
    source: Any,
    *,
    budget: str | float | Budget = DEFAULT_BUDGET,
    rows: int | None = 1000,
    seconds: float | str | None = None,
    prefetch: int = 0,
    parallel: int = 1,
    processes: bool = False,
    ordered: bool = True,
    on_error: str | tuple[str, ...] = "stop",
    retries: int = 3,
    backoff: float | str = 0.1,
    cache: Any = None,
    oversize: str = "pass",
    keep: bool = False,
    page_rows: int | None = None,
    whole_pages: bool = False,
    pressure: Pressure | None = None,
    patience: float | str = 60.0,
    emergency_wait: float | str = 5.0,
    name: str = "chunks",
    clock: Clock | None = None,
    **options: Any,
) -> Chunks:
    """Any source in chunks: cut by bytes while streaming, at most `rows` rows and `seconds` seconds each.

    `source` is an iterable, a generator, an asynchronous iterable, a path (.csv, .ndjson, .jsonl, .txt, .log, .parquet,
    each of the text ones also as .gz; else `format=`), a DB-API cursor or SQLAlchemy result (sync or async), Arrow
    record batches or their reader, or a Django QuerySet. The stream closes it on every way out.

    `budget` is what the stream holds in all, a size ("128M") or a `Budget` shared with others; a chunk may be that
    divided by all that are in memory at once: one, and those ahead (`prefetch`), and those handled by `map`
    (`parallel`). One row above it: `oversize` "pass" (its own chunk), "skip", "fail". `pressure` (a Warden) shrinks
    chunks from WARNING on.

    `on_error` of the source: "stop" (a SourceError behind the chunk of what came before), "retry" (ask again up to
    `retries` times, waiting `backoff` seconds and twice as long each time), "continue" (leave the row out; `dead`
    says which). For a handler see `map`. `cache` (a mapping, or a `flow.Cache`) keeps the chunks for the next run.
    Fetch pages grow from one row to `page_rows` (None: as the chunk has room; `whole_pages`: from the first one on).

    Raises ConfigError on wrong settings; while iterating SourceError, OversizeError, MemoryPressureError (after
    `patience` seconds in which the shared budget had no room).
    """
    policies = (on_error,) if isinstance(on_error, str) else tuple(on_error)
    check_policies(policies)
    for value, where, least in ((prefetch, "prefetch", 0), (parallel, "parallel", 1), (retries, "retries", 0)):
        check_count(value, where, least)
    if page_rows is not None:
        check_count(page_rows, "page_rows", 1)
    Cutter(1, rows=rows, oversize=oversize)  # says what is wrong where it was written, not where it is iterated
    if not isinstance(budget, Budget):
        Budget(budget)
    backoff_s = parse_duration(backoff, where="backoff")
    run = {
        "budget": budget,
        "rows": rows,
        "seconds": None if seconds is None else parse_duration(seconds, where="seconds"),
        "prefetch": prefetch,
        "cache": cache,
        "oversize": oversize,
        "keep": keep,
        "on_error": policies,
        "retries": retries,
        "backoff_s": backoff_s,
        "page_rows": page_rows,
        "whole_pages": whole_pages,
        "pressure": pressure,
        "patience_s": parse_duration(patience, where="patience"),
        "emergency_s": parse_duration(emergency_wait, where="emergency_wait"),
        "name": name,
        "clock": clock,
        "options": options,
    }
    handling = {
        "parallel": parallel, "processes": processes, "ordered": ordered, "on_error": policies, "retries": retries,
        "backoff_s": backoff_s,
    }  # fmt: skip
    return Chunks(source, {**run, "handling": handling})


POLICIES = ("stop", "continue", "retry", "bisect")


def check_policies(policies: tuple[str, ...]) -> None:
    wrong = [each for each in policies if each not in POLICIES]
    if wrong or not policies:
        what = f"{wrong[0]!r} is no policy" if wrong else "no policy is given"
        raise ConfigError(what, where="on_error", mend=f"give one or more of {', '.join(POLICIES)}")


def check_count(value: object, where: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{value!r} is no count", where=where, mend=f"give a whole number from {least} on")
