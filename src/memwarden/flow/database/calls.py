"""`flow.scan` and `flow.process`: options checked, the statement analysed, the parts of a run put together."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine

from memwarden.budget import Budget
from memwarden.clock import SystemClock
from memwarden.errors import CheckpointError, ConfigError, StatementError
from memwarden.flow.database import checkpoints, keys
from memwarden.flow.database.checkpoints import StoreLedger, TableLedger
from memwarden.flow.database.faults import Patience
from memwarden.flow.database.progress import Progress, Tally
from memwarden.flow.database.reader import Batch, Reader
from memwarden.flow.database.run import Loop, Processed, Run, Threads
from memwarden.flow.database.statement import Keyset, analyse
from memwarden.store import Checkpoint, Store
from memwarden.units import MIB, parse_bytes, parse_duration

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
    from typing import Literal, Self, TypedDict, Unpack, overload

    from sqlalchemy.engine import URL, Connection, Engine, Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from memwarden.flow.database.processes import Crew
    from memwarden.flow.database.statement import Stream
    from memwarden.ports import Clock, Pressure

    Key = tuple[Any, ...] | None
    OnError = Literal["stop", "retry", "continue", "bisect"]

    class _Reading(TypedDict, total=False):
        key: Any
        resumable: bool | None
        rows: int
        budget: str | int | Budget
        parameters: Mapping[str, Any] | None
        snapshot: bool
        retries: int
        pressure: Pressure | None
        clock: Clock | None

    class _ScanOptions(_Reading, total=False):
        after: Key

    class _ProcessOptions(_Reading, total=False):
        name: str | None
        into: Any
        checkpoint: Store | None
        checkpoint_s: float | str | None
        restart: bool
        by: Literal["chunk", "row"]
        parallel: int
        processes: bool | Callable[[URL], Engine]
        timeout_s: float | str | None
        on_error: OnError
        error_callback: Callable[[Exception, Batch], object] | None
        most_dead: int
        max_results: int
        collect: Callable[[Any, list[Any], Batch], Any] | None
        progress: Callable[[Progress], object] | Literal["bar"] | None
        total: int | None


__all__ = ["AsyncScan", "Scan", "process", "scan"]

# The values of the two systems this comes from: chunks of 1000 rows, 128 MiB, 300 s, three retries, fifty results.
ROWS, BUDGET, TIMEOUT_S, RETRIES, MAX_RESULTS = 1000, "128M", 300.0, 3, 50
# Ranges per worker: uneven ones even out, and a resumed run has some to share.
PARTS_PER_WORKER = 4
MOST_DEAD = 1000
ON_ERROR = ("stop", "retry", "continue", "bisect")


class Scan:
    """The rows of a statement, read when they are asked for. Iterate it once: over rows, or over `chunks()`.

    `position` is the key of the last chunk that was taken whole (None before the first, and without a key): pass it as
    `after=` to go on behind it. Close it, best by a with-statement, where you may stop early.
    """

    def __init__(self, reader: Reader, after: Key) -> None:
        self._reader = reader
        self.position = after

    def __iter__(self) -> Iterator[Row[Any]]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Generator[Batch, None, None]:
        """Chunk by chunk. Each is released when the next is asked for: copy what you keep."""
        try:
            while (batch := self._next()) is not None:
                yield batch
                self._took(batch)
                batch.release()
                if batch.ended:
                    return
                del batch
        finally:
            self.close()

    def _next(self) -> Batch | None:
        return self._reader.read(self.position)

    def _took(self, batch: Batch) -> None:
        if isinstance(self._reader.plan, Keyset):
            self.position = batch.high

    def close(self) -> None:
        """Close the cursor and give the connection back."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncScan(Scan):
    """The same for `async for`."""

    def __iter__(self) -> Iterator[Row[Any]]:
        raise TypeError("this scan is over an async engine: use `async for`")

    async def __aiter__(self) -> AsyncIterator[Row[Any]]:
        async for chunk in self.chunks_async():
            for row in chunk:
                yield row

    def chunks(self) -> Generator[Batch, None, None]:
        """Not here: `chunks_async`."""
        raise TypeError("this scan is over an async engine: use `async for` and chunks_async()")

    async def chunks_async(self) -> AsyncGenerator[Batch, None]:
        """Chunk by chunk."""
        from sqlalchemy.util import greenlet_spawn

        try:
            while (batch := await greenlet_spawn(self._next)) is not None:
                yield batch
                self._took(batch)
                batch.release()
                if batch.ended:
                    return
                del batch
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the cursor and give the connection back."""
        from sqlalchemy.util import greenlet_spawn

        await greenlet_spawn(self._reader.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


if TYPE_CHECKING:

    @overload
    def scan(statement: Any, source: AsyncEngine | AsyncConnection, **options: Unpack[_ScanOptions]) -> AsyncScan: ...
    @overload
    def scan(statement: Any, source: Engine | Connection, **options: Unpack[_ScanOptions]) -> Scan: ...


def scan(
    statement: Any,
    source: Any,
    *,
    key: Any = None,
    resumable: bool | None = None,
    rows: int = ROWS,
    budget: str | int | Budget = BUDGET,
    after: Key = None,
    parameters: Mapping[str, Any] | None = None,
    snapshot: bool = False,
    retries: int = RETRIES,
    pressure: Pressure | None = None,
    clock: Clock | None = None,
) -> Scan:
    """Read a statement in chunks of at most `rows` rows and `budget` bytes, over an Engine or a Connection.

    A statement with a usable key (`key=`: columns, also `desc()`, or their names) is read behind its last key, so
    nothing stays open between chunks and a lost connection is taken up again; SQL text without `key=`, and
    `resumable=False`, is read through one server-side cursor. Raises StatementError for what cannot be read so, and
    KeyOrderError while reading.
    """
    is_async = _is_async(source)
    sync = source.sync_engine if is_async and hasattr(source, "dispose") else source
    if is_async and sync is source:
        sync = source.sync_connection
    plan = analyse(statement, sync.dialect, key=key, resumable=resumable)
    if after is not None and not isinstance(plan, Keyset):
        raise StatementError("what is read without a key has no position", where="after", mend="pass key=")
    place: Threads | Loop = Loop(source, None, clock) if is_async else Threads(clock or SystemClock(), None)
    reader = Reader(
        plan, sync, rows=_whole(rows, "rows"), limit_bytes=_limit_of(budget),
        patience=Patience(_whole(retries, "retries", least=0), place.pause), pressure=pressure,
        parameters=parameters, snapshot=snapshot, salt=str(statement), checked=False,
    )  # fmt: skip
    return AsyncScan(reader, after) if is_async else Scan(reader, after)


if TYPE_CHECKING:

    @overload
    def process(
        statement: Any, handler: Callable[..., Any], source: AsyncEngine, **options: Unpack[_ProcessOptions]
    ) -> Coroutine[Any, Any, Processed]: ...
    @overload
    def process(
        statement: Any, handler: Callable[..., Any], source: Engine, **options: Unpack[_ProcessOptions]
    ) -> Processed: ...


def process(
    statement: Any,
    handler: Callable[..., Any],
    source: Any,
    *,
    name: str | None = None,
    into: Any = None,
    checkpoint: Store | None = None,
    checkpoint_s: float | str | None = None,
    restart: bool = False,
    by: Literal["chunk", "row"] = "chunk",
    key: Any = None,
    resumable: bool | None = None,
    rows: int = ROWS,
    budget: str | int | Budget = BUDGET,
    parallel: int = 1,
    processes: bool | Callable[[URL], Engine] = False,
    timeout_s: float | str | None = TIMEOUT_S,
    retries: int = RETRIES,
    on_error: OnError = "retry",
    error_callback: Callable[[Exception, Batch], object] | None = None,
    most_dead: int = MOST_DEAD,
    max_results: int = MAX_RESULTS,
    collect: Callable[[Any, list[Any], Batch], Any] | None = None,
    progress: Callable[[Progress], object] | Literal["bar"] | None = None,
    total: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    snapshot: bool = False,
    pressure: Pressure | None = None,
    clock: Clock | None = None,
) -> Any:
    """Hand a statement's rows to `handler`, chunk by chunk, each in a transaction that is committed behind it.

    `handler(chunk)`, or `handler(row, chunk)` with `by="row"`. What it writes through `chunk.connection` is in the
    chunk's transaction, in the database `into` (the source's own if not given). A `name` makes the run resumable: its
    checkpoint is written in that same transaction (every row exactly once), or with `checkpoint=Store()` beside it
    (after a kill at most one chunk is handed out again, under the same `chunk.id`). Where a handler wrote nothing
    through `chunk.connection`, at most one chunk comes again too: its checkpoint is committed alone, or noted in a
    small file beside an SQLite database (Linux) and committed up to 0.5 s later, which a power cut may take back.
    `checkpoint_s` sets those seconds for all databases: without such a file the chunks of that time come again after a
    kill; 0 commits behind each chunk and makes no file. A run that was finished goes on with the rows that came behind
    its last key; `restart=True` begins anew.

    A chunk that fails is tried `retries` more times; then `on_error` says: "retry" and "stop" (which tries once) end
    the run with ChunkError, "continue" gives the chunk up, "bisect" the bad rows in it, as dead letters. With the
    first two an `error_callback(error, chunk)` that answers true gives the chunk up as well and goes on. Database
    errors that pass by themselves are tried again in any case, and blame no row.

    With `by="row"` the handler may return results of its item: the first `max_results` go to `collect(row, results,
    chunk)`, the rest are counted. `budget` is what the chunks of all `parallel` workers take together. Workers are
    threads, or tasks with an AsyncEngine: then handlers may be coroutine functions, and the call is to be awaited.
    For handlers that compute, `processes=True` makes them processes: what is called there must be importable, and each
    makes its engine by `create_engine(url)`, or by a function of the URL that is given instead of True.
    """
    options = dict(locals())
    if _is_async(source):
        return _process_async(options)
    if not hasattr(source, "connect"):
        raise _no_engine(source)
    place = Threads(clock or SystemClock(), _seconds(timeout_s, "timeout_s"))
    try:
        return _process(options, source, into or source, place)
    finally:
        place.close()


async def _process_async(options: dict[str, Any]) -> Processed:
    from sqlalchemy.util import greenlet_spawn

    source = options["source"]
    if not hasattr(source, "dispose"):
        raise _no_engine(source)
    if options["processes"]:
        what = "are for handlers that compute, and keep an event loop waiting"
        raise ConfigError(what, where="processes", mend="pass an Engine, in a thread (asyncio.to_thread)")
    into = options["into"] or source
    if not _is_async(into):
        raise ConfigError("is no AsyncEngine as the source is", where="into", mend="create_async_engine(...)")
    place = Loop(into, _seconds(options["timeout_s"], "timeout_s"), options["clock"])
    return await greenlet_spawn(_process, options, source.sync_engine, into.sync_engine, place)


def _process(options: dict[str, Any], source: Engine, into: Engine, place: Threads | Loop) -> Processed:
    name, parallel = options["name"], _whole(options["parallel"], "parallel")
    clock = options["clock"] or SystemClock()
    _one_of(options["on_error"], ON_ERROR, "on_error")
    _one_of(options["by"], ("chunk", "row"), "by")
    plan = analyse(options["statement"], source.dialect, key=options["key"], resumable=options["resumable"])
    _refuse(plan, source, into, options, parallel)
    patience = Patience(_whole(options["retries"], "retries", least=0), place.pause)
    share = max(1, _limit_of(options["budget"]) // parallel)
    salt = name or str(options["statement"])

    def open_reader(*, checked: bool = True) -> Reader:
        return Reader(
            plan, source, rows=_whole(options["rows"], "rows"), limit_bytes=share, patience=patience,
            pressure=options["pressure"], parameters=options["parameters"], snapshot=options["snapshot"], salt=salt,
            checked=checked,
        )  # fmt: skip

    ledger = _ledger(options, into)
    with open_reader(checked=False) as reader:
        reader.check_keys()
        parts = _parts(plan, reader, ledger, options, parallel)
        before = sum(part.rows for part in parts)
        total = _total(plan, reader, options)
    run_parts = [part for part in parts if not part.done]
    bar, tell = _teller(options["progress"])
    account = _account(options["budget"], name)
    tally = Tally(name, clock, processed=before, total=total, pressure=options["pressure"], tell=tell)
    count = min(parallel, max(1, len(run_parts)))
    max_results = _whole(options["max_results"], "max_results", least=0)
    workers: Crew | Run
    try:
        if options["processes"]:
            beside = ledger.beside if isinstance(ledger, TableLedger) else ""
            workers = _crew(options, source, into, run_parts, tally, limit_bytes=share, salt=salt, beside=beside)
        else:
            workers = Run(
                name=name, handler=options["handler"], by_row=options["by"] == "row", place=place, into=into,
                ledger=ledger, open_reader=open_reader, parts=run_parts, patience=patience, tally=tally,
                on_error=options["on_error"], error_callback=options["error_callback"],
                most_dead=options["most_dead"], max_results=max_results, collect=options["collect"],
                checkpoint_s=_seconds(options["checkpoint_s"], "checkpoint_s"), clock=clock,
            )  # fmt: skip
        with bar if bar is not None else nullcontext():
            if isinstance(workers, Run):
                place.run(workers.work, count, workers.stop)
            else:
                workers.run()
    finally:
        if account is not None:
            account.close()
    return Processed(
        name=name, rows=tally.rows, bytes=tally.bytes, chunks=tally.chunks, processed=before + tally.rows,
        retries=tally.retries, dead_rows=tally.dead_rows, dead_chunks=tally.dead_chunks, dead=tuple(workers.dead),
        results=tally.kept, results_dropped=tally.dropped, seconds=tally.now().elapsed_s,
    )  # fmt: skip


def _crew(
    options: dict[str, Any], source: Engine, into: Engine, parts: list[Checkpoint], tally: Tally, *,
    limit_bytes: int, salt: str, beside: str,
) -> Crew:  # fmt: skip
    from memwarden.flow.database.processes import Crew, Order

    make, store = options["processes"], options["checkpoint"]
    order = Order(
        statement=options["statement"], handler=options["handler"], url=source.url,
        into=None if into is source else into.url, engine=create_engine if make is True else make, key=options["key"],
        resumable=options["resumable"], parameters=options["parameters"], rows=options["rows"],
        limit_bytes=limit_bytes, retries=options["retries"], timeout_s=_seconds(options["timeout_s"], "timeout_s"),
        snapshot=options["snapshot"], salt=salt, name=options["name"], store=None if store is None else store.path,
        beside=beside, checkpoint_s=_seconds(options["checkpoint_s"], "checkpoint_s"), by_row=options["by"] == "row",
        on_error=options["on_error"], error_callback=options["error_callback"], most_dead=options["most_dead"],
        max_results=options["max_results"], collect=options["collect"],
    )  # fmt: skip
    return Crew(order, parts, options["parallel"], tally)


# --- parts ---------------------------------------------------------------------------------------------------------


def _ledger(options: dict[str, Any], into: Engine) -> TableLedger | StoreLedger | None:
    if options["name"] is None:
        if options["checkpoint"] is not None or options["restart"]:
            raise ConfigError("a run without a name has no checkpoint", where="name", mend="give it one")
        return None
    if not isinstance(options["name"], str) or not 0 < len(options["name"]) <= 200:
        raise ConfigError(f"{options['name']!r} is no name", where="name", mend="give a text of 1 to 200 characters")
    ledger = TableLedger(into) if options["checkpoint"] is None else StoreLedger(options["checkpoint"])
    ledger.open()
    if options["restart"]:
        ledger.forget(options["name"])
    return ledger


def _parts(
    plan: Keyset | Stream,
    reader: Reader,
    ledger: TableLedger | StoreLedger | None,
    options: dict[str, Any],
    parallel: int,
) -> list[Checkpoint]:
    """The ranges of this run: those of its checkpoint, or new ones."""
    name = options["name"] or ""
    described = ""
    if ledger is not None and isinstance(plan, Keyset):
        described = checkpoints.describe(plan, reader.connection(), options["parameters"])
        found = ledger.load(name)
        if found:
            checkpoints.compare(name, found[0].plan, described)
            return _reopened(list(found))
    ranges: list[tuple[Key, Key]] = [(None, None)]
    if parallel > 1 and isinstance(plan, Keyset):
        ranges = keys.ranges(plan, reader.first, parallel * PARTS_PER_WORKER)
    parts = tuple(
        Checkpoint(name=name, part=number, plan=described, low=keys.encode(low), high=keys.encode(high))
        for number, (low, high) in enumerate(ranges)
    )
    return list(ledger.start(parts) if ledger is not None else parts)


def _reopened(parts: list[Checkpoint]) -> list[Checkpoint]:
    """A finished run goes on where it ended: its last range is open, so rows may have come behind it."""
    if all(part.done for part in parts):
        parts[-1] = parts[-1].replace(done=False)
    return parts


def _total(plan: Keyset | Stream, reader: Reader, options: dict[str, Any]) -> int | None:
    given: int | None = options["total"]
    if given is not None or options["progress"] is None or not isinstance(plan, Keyset):
        return given
    return int(reader.first(plan.count())[0])


def _refuse(plan: Keyset | Stream, source: Engine, into: Engine, options: dict[str, Any], parallel: int) -> None:
    if not isinstance(plan, Keyset):
        if options["name"] is not None:
            raise CheckpointError(
                "what is read without a key cannot be taken up again", where="name", mend="pass key= with its columns"
            )
        if parallel > 1:
            raise ConfigError("needs a key to cut into ranges", where="parallel", mend="pass key=, or parallel=1")
    if options["snapshot"] and parallel > 1:
        raise ConfigError("several connections share no snapshot", where="snapshot", mend="leave out one of the two")
    if options["snapshot"] and source.dialect.name == "sqlite" and into is source:
        with source.connect() as connection:
            if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
                what = "an open read keeps SQLite's writers waiting without WAL"
                raise ConfigError(what, where="snapshot", mend="PRAGMA journal_mode = WAL, or leave it out")
    in_memory = source.dialect.name == "sqlite" and (source.url.database or ":memory:") == ":memory:"
    if in_memory and (parallel > 1 or options["processes"]):
        raise ConfigError("each worker has a memory database of its own", where="parallel", mend="use a file")
    if options["processes"]:
        _refuse_processes(options)


def _refuse_processes(options: dict[str, Any]) -> None:
    make, store = options["processes"], options["checkpoint"]
    if make is not True and not callable(make):
        what = f"{make!r} makes no engine"
        raise ConfigError(what, where="processes", mend="give True, or a function that takes a URL")
    for name in ("pressure", "clock"):
        if options[name] is not None:
            raise ConfigError("processes cannot follow this one's", where=name, mend="leave out one of the two")
    if store is not None and store.path is None:
        what = "a store in memory is not seen by other processes"
        raise ConfigError(what, where="checkpoint", mend="give it a folder that can be written to")


# --- options -------------------------------------------------------------------------------------------------------


def _teller(progress: Any) -> tuple[Any, Callable[[Progress], object] | None]:
    if progress is None or callable(progress):
        return None, progress
    _one_of(progress, ("bar",), "progress")
    from memwarden.flow.database._bar import Bar

    bar = Bar()
    return bar, bar


def _is_async(source: Any) -> bool:
    return type(source).__module__.startswith("sqlalchemy.ext.asyncio")


def _no_engine(source: Any) -> ConfigError:
    return ConfigError(
        f"a {type(source).__name__} is no engine, and each chunk is a transaction of its own",
        where="source",
        mend="pass the Engine or AsyncEngine",
    )


def _one_of(value: Any, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise ConfigError(f"{value!r} is not known", where=where, mend=f"give one of {', '.join(known)}")


def _whole(value: Any, where: str, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{value!r} is no such number", where=where, mend=f"give a whole number from {least}")
    return value


def _seconds(duration: float | str | None, where: str) -> float | None:
    return None if duration is None else parse_duration(duration, where=where)


def _limit_of(budget: str | int | Budget) -> int:
    if isinstance(budget, Budget):
        free = budget.free_bytes
        default = parse_bytes(BUDGET)
        return default if free is None else max(MIB // 16, min(default, free))
    return parse_bytes(budget, where="budget")


def _account(budget: str | int | Budget, name: str | None) -> Any:
    """A run holds all that its chunks may take, as long as it runs."""
    if not isinstance(budget, Budget):
        return None
    account = budget.account(name or "database run")
    try:
        account.reserve(_limit_of(budget))
    except BaseException:
        account.close()
        raise
    return account
