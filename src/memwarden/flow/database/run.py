"""One run over a statement: parts to workers, chunks to the handler, each in a transaction; retries, bad rows, resume.

Everything here is written as plain calls. With an async engine the same code runs inside SQLAlchemy's greenlet, where a
driver's wait gives the event loop free; `Loop` and `Threads` are what differs.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from memwarden.errors import CheckpointError, ChunkError, StoreError
from memwarden.facts import Fact
from memwarden.flow.database import keys
from memwarden.flow.database.faults import is_transient
from memwarden.flow.database.watchdog import Watchdog, timed_out
from memwarden.store import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from memwarden.flow.database.checkpoints import Ledger
    from memwarden.flow.database.faults import Patience
    from memwarden.flow.database.progress import Tally
    from memwarden.flow.database.reader import Batch, Reader
    from memwarden.ports import Clock
    from memwarden.store import Checkpoint

__all__ = ["Loop", "Processed", "Run", "Threads"]

# What a text of an error keeps: a driver's may hold the row that it failed at.
_ERROR_CHARACTERS = 500


class Processed(Fact):
    """What a run did. `rows`, `bytes` and `chunks` are of this run, `processed` those rows of all runs of the name.

    `dead` are the first fifty of `dead_chunks` parts that were given up, `dead_rows` rows in all. `results` of items
    were handed on, `results_dropped` were above the cap of an item and only counted.
    """

    name: str | None
    rows: int
    bytes: int
    chunks: int
    processed: int
    retries: int
    dead_rows: int
    dead_chunks: int
    dead: tuple[DeadLetter, ...]
    results: int
    results_dropped: int
    seconds: float


class _GivenUpError(Exception):
    """A chunk failed, and was tried as often as it may be."""

    def __init__(self, error: Exception, attempts: int, part: Checkpoint, *, lost: bool) -> None:
        self.part = part  # as it is written down by now
        self.error = error
        self.attempts = attempts
        self.lost = lost  # the database went away: no row is to blame


class Threads:
    """Workers are threads, or the caller's own where there is one."""

    eager = False

    def __init__(self, clock: Clock, timeout_s: float | None) -> None:
        self._clock = clock
        self._watchdog = None if timeout_s is None else Watchdog(timeout_s)
        self._never = threading.Event()

    def pause(self, seconds: float) -> None:
        """Wait so long."""
        self._clock.wait(self._never, seconds)

    def call(self, work: Callable[[Batch], Any], batch: Batch) -> None:
        """Have the handler do a chunk. Raises ChunkTimeoutError."""
        if self._watchdog is None:
            work(batch)
        else:
            self._watchdog.run(work, batch)

    @staticmethod
    def shown(connection: Connection) -> Any:
        """The connection as the handler knows it."""
        return connection

    @staticmethod
    def run(worker: Callable[[], None], count: int, stop: threading.Event) -> None:
        """Run so many workers to their end; the first error is raised when all have ended.

        Where the caller's thread is interrupted, they end behind their present chunks.
        """
        if count == 1:
            worker()
            return
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                worker()
            except BaseException as error:  # noqa: BLE001  it is raised below, in the caller's thread
                errors.append(error)

        threads = [threading.Thread(target=guarded, name=f"memwarden-chunks-{number}") for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            stop.set()
            for thread in threads:
                thread.join()
            raise
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End its own thread."""
        if self._watchdog is not None:
            self._watchdog.close()


class Loop:
    """Workers are tasks of the running event loop, inside SQLAlchemy's greenlet."""

    eager = True  # a connection cannot be opened from inside a coroutine's plain call

    def __init__(self, engine: AsyncEngine, timeout_s: float | None, clock: Clock | None) -> None:
        import asyncio

        from sqlalchemy.util import await_only, greenlet_spawn

        self._asyncio, self._await, self._spawn = asyncio, await_only, greenlet_spawn
        self._engine = engine
        self._timeout_s = timeout_s
        self._clock = clock

    def pause(self, seconds: float) -> None:
        """Wait so long while the loop goes on."""
        if self._clock is not None:
            self._clock.wait(threading.Event(), seconds)
        else:
            self._await(self._asyncio.sleep(seconds))

    def call(self, work: Callable[[Batch], Any], batch: Batch) -> None:
        """Await the handler's chunk. Raises ChunkTimeoutError."""
        found = work(batch)
        if hasattr(found, "__await__"):
            self._await(self._limited(found))

    async def _limited(self, found: Any) -> None:
        try:
            async with self._asyncio.timeout(self._timeout_s) as limit:
                await found
        except TimeoutError:
            if not limit.expired() or self._timeout_s is None:
                raise
            raise timed_out(self._timeout_s) from None

    def shown(self, connection: Connection) -> Any:
        """The connection as the handler knows it."""
        from sqlalchemy.ext.asyncio import AsyncConnection

        return AsyncConnection(self._engine, connection)

    def run(self, worker: Callable[[], None], count: int, _stop: threading.Event) -> None:
        """Run so many workers to their end; the first error is raised when all have ended."""
        if count == 1:
            worker()
            return

        async def together() -> list[Any]:
            workers = (self._spawn(worker) for _ in range(count))
            return list(await self._asyncio.gather(*workers, return_exceptions=True))

        for error in self._await(together()):
            if isinstance(error, BaseException):
                raise error

    def close(self) -> None:
        """Nothing is its own."""


class _Transaction:
    """The connection of one worker to where it writes. Begun by its first statement, as SQLAlchemy does.

    `shared` is one that is not its own: it undoes on it, and leaves it open.
    """

    def __init__(self, engine: Engine, show: Callable[[Connection], Any], shared: Connection | None = None) -> None:
        self._engine = engine
        self._show = show
        self._shared = shared
        self._connection: Connection | None = None
        self._shown: Any = None

    def open(self) -> Connection:
        """The connection."""
        if self._connection is None:
            self._connection = self._shared or self._engine.connect()
            self._shown = self._show(self._connection)
        return self._connection

    def shown(self) -> Any:
        """The same as the handler sees it."""
        self.open()
        return self._shown

    def commit(self) -> None:
        """Keep what was done."""
        if self._connection is not None:
            self._connection.commit()

    def drop(self) -> None:
        """Undo what was not committed, and let the connection go: it may be the reason."""
        connection, self._connection, self._shown = self._connection, None, None
        if connection is not None and connection is self._shared:
            connection.rollback()
        elif connection is not None:
            connection.close()


class Run:
    """What the workers of one run share."""

    def __init__(
        self,
        *,
        name: str | None,
        handler: Callable[..., Any],
        by_row: bool,
        place: Threads | Loop,
        into: Engine,
        ledger: Ledger | None,
        open_reader: Callable[[], Reader],
        parts: Iterable[Checkpoint],
        patience: Patience,
        tally: Tally,
        on_error: str,
        error_callback: Callable[[Exception, Batch], object] | None,
        most_dead: int,
        max_results: int,
        collect: Callable[[Any, list[Any], Batch], Any] | None,
        clock: Clock,
    ) -> None:
        self._name, self._place, self._into, self._ledger = name, place, into, ledger
        self._handler, self._collect, self._max_results = handler, collect, max_results
        self._work = (self._each_later if isinstance(place, Loop) else self._each) if by_row else handler
        self._open_reader = open_reader
        self._parts = deque(parts)
        self._patience, self._tally, self._clock = patience, tally, clock
        self._on_error, self._error_callback, self._most_dead = on_error, error_callback, most_dead
        self.stop = threading.Event()
        self.dead: list[DeadLetter] = []

    def work(self) -> None:
        """One worker: part after part, until there is none or somebody failed."""
        try:
            while not self.stop.is_set():
                try:
                    part = self._parts.popleft()
                except IndexError:
                    return
                with self._open_reader() as reader:
                    transaction = _Transaction(self._into, self._place.shown, reader.shared(self._into))
                    try:
                        self._part(part, reader, transaction)
                    finally:
                        transaction.drop()
        except BaseException:
            self.stop.set()
            raise

    def _part(self, part: Checkpoint, reader: Reader, transaction: _Transaction) -> None:
        position, high = keys.decode(part.position or part.low), keys.decode(part.high)
        while not self.stop.is_set():
            batch = self._again(part, position, reader) if part.pending else reader.read(position, high)
            if batch is None and part.pending:  # all of its rows are gone
                part = part.replace(pending=None)
                continue
            if batch is None:
                self._finish(part)
                return
            ended = batch.ended and not part.pending
            size = batch.bytes
            self._tally.hold(size)
            try:
                part = self._chunk(batch, part, transaction)
            finally:
                self._tally.hold(-size)
            position = batch.high
            batch.release()  # whoever kept it keeps no rows; the next one is fetched into the same memory
            del batch
            if ended:
                self._finish(part)
                return

    def _again(self, part: Checkpoint, position: tuple[Any, ...] | None, reader: Reader) -> Batch | None:
        """The chunk that was handed out when the process died: the same rows under the same id."""
        _id, _, text = (part.pending or "").partition(" ")
        end = keys.decode(text)
        batch = reader.read(position, end, whole=True)
        if batch is not None and end is not None:
            batch.high = end
            batch.id = reader.name_of(batch.low, end)
        return batch

    def _finish(self, part: Checkpoint) -> None:
        if self._ledger is not None:
            self._ledger.write(part.replace(done=True, pending=None), None)

    # --- one chunk ---------------------------------------------------------------------------------------------

    def _chunk(self, batch: Batch, part: Checkpoint, transaction: _Transaction) -> Checkpoint:
        """Have it done, by halves where some of it cannot be; the checkpoint behind it."""
        pieces = [batch]
        while pieces:
            piece = pieces.pop()
            try:
                part = self._try(piece, part, transaction, halved=piece is not batch)
                self._tally.done(len(piece), piece.bytes)
            except _GivenUpError as failure:
                part = failure.part
                if self._on_error == "bisect" and len(piece) > 1 and not failure.lost:
                    middle = len(piece) // 2
                    pieces += [piece.part(middle, len(piece)), piece.part(0, middle)]
                    continue
                part = self._bury(piece, part, transaction, failure)
        return part

    def _try(self, piece: Batch, part: Checkpoint, transaction: _Transaction, *, halved: bool) -> Checkpoint:
        attempt, lost = 0, False
        while True:
            attempt += 1
            piece.attempt = attempt
            part = self._announce(piece, part)
            try:
                found = self._landed(piece, part) if lost else None
                return found or self._once(piece, part, transaction)
            except (CheckpointError, StoreError):
                raise
            except Exception as error:
                lost = is_transient(error)
                retried = lost or (self._on_error != "stop" and not halved)
                if attempt > (self._patience.retries if retried else 0):
                    raise _GivenUpError(error, attempt, part, lost=lost) from error
            self._tally.retry()
            self._patience.wait(attempt)

    def _once(self, piece: Batch, part: Checkpoint, transaction: _Transaction) -> Checkpoint:
        ledger = self._ledger
        after = part.replace(
            position=keys.encode(piece.high), pending=None, rows=part.rows + len(piece), bytes=part.bytes + piece.bytes
        )
        try:
            if self._place.eager:
                transaction.open()
            piece.door = transaction.shown
            self._place.call(self._work, piece)
            if ledger is not None and ledger.in_transaction:
                after = ledger.write(after, transaction.open())
            transaction.commit()
        except BaseException:
            transaction.drop()
            raise
        finally:
            piece.door = None
        if ledger is not None and not ledger.in_transaction:
            after = ledger.write(after, None)
        return after

    def _announce(self, piece: Batch, part: Checkpoint) -> Checkpoint:
        """Write down what is handed out before it is: after a kill it is this again, and not other rows."""
        if self._ledger is None or self._ledger.in_transaction:
            return part
        pending = f"{piece.id} {keys.encode(piece.high)}"
        return part if part.pending == pending else self._ledger.write(part.replace(pending=pending), None)

    def _landed(self, piece: Batch, part: Checkpoint) -> Checkpoint | None:
        """The checkpoint behind the chunk, where the connection was lost after its commit and not before."""
        if self._ledger is None or not self._ledger.in_transaction:
            return None
        found = next((each for each in self._ledger.load(part.name) if each.part == part.part), None)
        if found is None or found.version != part.version + 1 or found.position != keys.encode(piece.high):
            return None
        return found

    def _bury(self, piece: Batch, part: Checkpoint, transaction: _Transaction, failure: _GivenUpError) -> Checkpoint:
        """Give the rows up and go on behind them, where that is wanted; else raise ChunkError."""
        error = failure.error
        wanted = self._on_error in ("continue", "bisect") and not failure.lost
        if not wanted and (self._error_callback is None or not self._error_callback(error, piece)):
            self._raise(piece, failure, f"failed: {type(error).__name__}: {error}", None)
        letter = DeadLetter(
            name=self._name or "", chunk=piece.id, low=_key_text(piece.low), high=_key_text(piece.high),
            rows=len(piece), error=f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS], attempts=failure.attempts,
            unix_s=self._clock.wall(),
        )  # fmt: skip
        if self._tally.bury(len(piece)) > self._most_dead:
            what = f"failed, and with it more than {self._most_dead} rows: {letter.error}"
            self._raise(piece, failure, what, "see what is wrong with all of them, or raise most_dead")
        if len(self.dead) < self._max_results:
            self.dead.append(letter)
        if self._ledger is None:
            return part
        after = part.replace(position=keys.encode(piece.high), pending=None)
        if not self._ledger.in_transaction:
            self._ledger.bury(letter, None)
            return self._ledger.write(after, None)
        try:
            self._ledger.bury(letter, transaction.open())
            after = self._ledger.write(after, transaction.open())
            transaction.commit()
        except BaseException:
            transaction.drop()
            raise
        return after

    def _raise(self, piece: Batch, failure: _GivenUpError, what: str, mend: str | None) -> None:
        if mend is None and failure.lost:
            mend = "see that the database can be reached, and start it again"
        elif mend is None and self._on_error == "retry":
            mend = 'on_error="bisect" finds the bad row and goes on'
        raise ChunkError(
            what, chunk=piece.id, low=piece.low, high=piece.high, rows=len(piece), attempts=failure.attempts, mend=mend
        ) from failure.error

    # --- row by row --------------------------------------------------------------------------------------------

    def _each(self, batch: Batch) -> None:
        for row in batch:
            found = self._handler(row, batch)
            if found is not None:
                kept = self._capped(found)
                if self._collect is not None and kept:
                    self._collect(row, kept, batch)

    async def _each_later(self, batch: Batch) -> None:
        for row in batch:
            found = self._handler(row, batch)
            if hasattr(found, "__await__"):
                found = await found
            if found is None:
                continue
            kept = await self._capped_later(found) if hasattr(found, "__aiter__") else self._capped(found)
            if self._collect is not None and kept:
                collected = self._collect(row, kept, batch)
                if hasattr(collected, "__await__"):
                    await collected

    def _capped(self, results: Iterable[Any]) -> list[Any]:
        """The first results of an item; the rest are counted as they pass."""
        passing = iter(results)
        kept = list(islice(passing, self._max_results))
        self._tally.results(len(kept), sum(1 for _ in passing))
        return kept

    async def _capped_later(self, results: Any) -> list[Any]:
        kept: list[Any] = []
        dropped = 0
        async for each in results:
            if len(kept) < self._max_results:
                kept.append(each)
            else:
                dropped += 1
        self._tally.results(len(kept), dropped)
        return kept


def _key_text(key: tuple[Any, ...] | None) -> str | None:
    return keys.encode(key)
