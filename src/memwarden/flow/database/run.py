"""One run over a statement: parts to workers, chunks to the handler, each in a transaction; retries, bad rows, resume.

Everything here is written as plain calls. With an async engine the same code runs inside SQLAlchemy's greenlet, where a
driver's wait gives the event loop free; `Loop` and `Threads` are what differs.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from memwarden.errors import CheckpointError, ChunkError, StatementError, StoreError
from memwarden.facts import Fact
from memwarden.flow.database import keys
from memwarden.flow.database.faults import is_transient
from memwarden.flow.database.watchdog import Watchdog, timed_out
from memwarden.store import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from memwarden.flow.database.checkpoints import Ledger
    from memwarden.flow.database.faults import Patience
    from memwarden.flow.database.journal import Journal
    from memwarden.flow.database.progress import Tally
    from memwarden.flow.database.reader import Batch, Reader
    from memwarden.ports import Clock
    from memwarden.store import Checkpoint

    class Stop(Protocol):
        """Whether a run is to end behind the present chunk: a threading.Event, or what a process sees of one."""

        def is_set(self) -> bool: ...
        def set(self) -> None: ...


__all__ = ["Loop", "Processed", "Run", "Threads"]

# What a text of an error keeps: a driver's may hold the row that it failed at.
_ERROR_CHARACTERS = 500
# How old the row of a table may be while a journal has the place: a power cut, which the journal does not survive,
# takes so much back. A commit takes some 1 ms of CPU, and on a busy machine there is little work in 0.1 s of the clock.
_NOTED_S = 0.5


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

    def __init__(self, error: Exception, attempts: int, *, lost: bool) -> None:
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
    def run(worker: Callable[[], None], count: int, stop: Stop) -> None:
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

    def run(self, worker: Callable[[], None], count: int, _stop: Stop) -> None:
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
        self._asked = False

    def open(self) -> Connection:
        """The connection."""
        if self._connection is None:
            self._connection = self._shared or self._engine.connect()
            self._shown = self._show(self._connection)
        return self._connection

    def shown(self) -> Any:
        """The same as the handler sees it."""
        self.open()
        self._asked = True
        return self._shown

    @property
    def used(self) -> bool:
        """Whether somebody may have written in it: the handler asked for it, or kept it from before and did so."""
        return self._asked or (self._connection is not None and self._connection.in_transaction())

    def commit(self) -> None:
        """Keep what was done."""
        self._asked = False
        if self._connection is not None:
            self._connection.commit()

    def drop(self) -> None:
        """Undo what was not committed, and let the connection go: it may be the reason."""
        self._asked = False
        connection, self._connection, self._shown = self._connection, None, None
        if connection is not None and connection is self._shared:
            connection.rollback()
        elif connection is not None:
            connection.close()


class _Mark:
    """How far one part is, and how far that is written down.

    What a handler wrote through its chunk's connection is committed with the mark behind it: exactly once. Where a
    handler wrote nothing there, nothing has to be committed: in a table the mark is then kept back, `every_s` at most,
    and written once for many short chunks (a commit costs SQLite as much as reading a thousand narrow rows). Meanwhile
    it is in the journal where there is one; with None for `every_s` it is only kept back if it is there.
    """

    def __init__(
        self, ledger: Ledger | None, part: Checkpoint, clock: Clock, every_s: float | None, journal: Journal | None
    ) -> None:
        self.written = part
        self._ledger, self._clock, self._every_s = ledger, clock, every_s
        self._journal, self._noted = journal, False
        self._high = keys.decode(part.position)
        self._rows, self._bytes, self._done = part.rows, part.bytes, False
        self._since_s: float | None = None

    @property
    def position(self) -> tuple[Any, ...] | None:
        """The key behind which the part goes on."""
        return keys.decode(self.written.low) if self._high is None else self._high

    @property
    def kept_back(self) -> bool:
        """Whether more is done than is written down."""
        return self._since_s is not None

    @property
    def due(self) -> bool:
        """Whether it has been kept back long enough."""
        if self._since_s is None:
            return False
        every_s = (_NOTED_S if self._noted else 0.0) if self._every_s is None else self._every_s
        return self._clock.monotonic() - self._since_s >= every_s

    def announce(self, piece: Batch) -> None:
        """Write down what is handed out before it is: after a kill it is this again, and not other rows."""
        if self._ledger is None or self._ledger.in_transaction:
            return
        pending = f"{piece.id} {keys.encode(piece.high)}"
        if self.written.pending != pending:
            self.written = self._ledger.write(self.written.replace(pending=pending), None)

    def done(self, piece: Batch, transaction: _Transaction) -> None:
        """The piece is done: commit what it wrote, with the mark behind it where that is one transaction."""
        rows, size = self._rows + len(piece), self._bytes + piece.bytes
        if self._ledger is not None and self._ledger.in_transaction and not transaction.used:
            if self._since_s is None:
                self._since_s = self._clock.monotonic()
            if self._journal is not None and self._every_s != 0:
                self._noted = self._journal.write(self.written, keys.encode(piece.high) or "", rows, size)
        else:
            self._write(piece.high, rows, size, transaction)
        self._high, self._rows, self._bytes = piece.high, rows, size

    def buried(self, piece: Batch, letter: DeadLetter, transaction: _Transaction) -> None:
        """The piece was given up: the letter is kept, and the mark is behind it."""
        if self._ledger is not None:
            self._ledger.bury(letter, transaction.open() if self._ledger.in_transaction else None)
            self._write(piece.high, self._rows, self._bytes, transaction)
        self._high = piece.high

    def finish(self) -> None:
        """The part is done, as the next `write` says."""
        self._done = True

    def write(self, transaction: _Transaction) -> None:
        """Write it down as it is."""
        self._write(self._high, self._rows, self._bytes, transaction)

    def _write(self, high: tuple[Any, ...] | None, rows: int, size: int, transaction: _Transaction) -> None:
        ledger, after = self._ledger, self.written
        if ledger is not None:
            after = after.replace(position=keys.encode(high), pending=None, rows=rows, bytes=size, done=self._done)
        if ledger is not None and ledger.in_transaction:
            after = ledger.write(after, transaction.open())
        transaction.commit()
        if ledger is not None and not ledger.in_transaction:
            after = ledger.write(after, None)
        self.written, self._since_s = after, None

    def landed(self, high: tuple[Any, ...] | None = None) -> bool:
        """Whether it was written with this key, where the connection was lost after its commit and not before."""
        if self._ledger is None or not self._ledger.in_transaction:
            return False
        position = keys.encode(high or self._high)
        found = next((each for each in self._ledger.load(self.written.name) if each.part == self.written.part), None)
        if found is None or found.version != self.written.version + 1 or found.position != position:
            return False
        self.written, self._since_s = found, None
        self._high, self._rows, self._bytes = keys.decode(position), found.rows, found.bytes
        return True

    def close(self) -> None:
        """Remove the journal where all is in the table; else whoever goes on needs it."""
        if self._journal is not None and self.kept_back:
            self._journal.close()
        elif self._journal is not None:
            self._journal.remove()


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
        checkpoint_s: float | None,
        clock: Clock,
        stop: Stop | None = None,
    ) -> None:
        self._name, self._place, self._into, self._ledger = name, place, into, ledger
        self._handler, self._collect, self._max_results = handler, collect, max_results
        self._work = (self._each_later if isinstance(place, Loop) else self._each) if by_row else handler
        self._open_reader = open_reader
        self._parts = deque(parts)
        self._patience, self._tally, self._clock, self._checkpoint_s = patience, tally, clock, checkpoint_s
        self._on_error, self._error_callback, self._most_dead = on_error, error_callback, most_dead
        self.stop: Stop = stop or threading.Event()
        self.dead: list[DeadLetter] = []

    def work(self) -> None:
        """One worker: part after part, until there is none or somebody failed."""
        try:
            while not self.stop.is_set():
                try:
                    part = self._parts.popleft()
                except IndexError:
                    return
                self.work_on(part)
        except BaseException:
            self.stop.set()
            raise

    def work_on(self, part: Checkpoint) -> None:
        """One part, to its end or until the run is to stop."""
        with self._open_reader() as reader:
            journal = None if self._ledger is None else self._ledger.journal(part)
            mark = _Mark(self._ledger, part, self._clock, self._checkpoint_s, journal)
            transaction = _Transaction(self._into, self._place.shown, reader.shared(self._into))
            try:
                self._part(mark, reader, transaction)
            except BaseException:
                self._keep(mark, transaction)
                raise
            finally:
                transaction.drop()
                mark.close()

    def _part(self, mark: _Mark, reader: Reader, transaction: _Transaction) -> None:
        high, ended = keys.decode(mark.written.high), False
        while not ended:
            if self.stop.is_set():  # somebody else failed
                self._keep(mark, transaction)
                return
            again = mark.written.pending is not None
            batch = self._again(mark, reader) if again else reader.read(mark.position, high)
            if batch is None and again:  # all of its rows are gone
                mark.written = mark.written.replace(pending=None)
                continue
            if batch is None:
                break
            if self._ledger is not None and not mark.kept_back:
                keys.encode(batch.high)  # raises now for what could not be written down later
            ended = batch.ended and not again
            size = batch.bytes
            self._tally.hold(size)
            try:
                self._chunk(batch, mark, transaction)
            finally:
                self._tally.hold(-size)
            if mark.due:
                self._write(mark, transaction)
            batch.release()  # whoever kept it keeps no rows; the next one is fetched into the same memory
            del batch
        if self._ledger is not None:
            mark.finish()
            self._write(mark, transaction)

    def _again(self, mark: _Mark, reader: Reader) -> Batch | None:
        """The chunk that was handed out when the process died: the same rows under the same id."""
        _id, _, text = (mark.written.pending or "").partition(" ")
        end = keys.decode(text)
        batch = reader.read(mark.position, end, whole=True)
        if batch is not None and end is not None:
            batch.high = end  # and with it its id
        return batch

    def _write(self, mark: _Mark, transaction: _Transaction) -> None:
        """Write the mark down, again where that fails for a while: what it says is done and must not be done again."""
        attempt = 0
        while True:
            try:
                if not (attempt and mark.landed()):
                    mark.write(transaction)
            except (CheckpointError, StoreError):
                raise
            except Exception as error:
                transaction.drop()
                attempt += 1
                if attempt > self._patience.retries or not is_transient(error):
                    what, where = f"it cannot be written ({error})", f"checkpoint {mark.written.name!r}"
                    mend = "see that the database can be reached, and start it again"
                    raise CheckpointError(what, where=where, mend=mend) from error
            else:
                return
            self._patience.wait(attempt)

    def _keep(self, mark: _Mark, transaction: _Transaction) -> None:
        """Write down what was kept back, as well as it goes: where it does not, that much is handed out again."""
        if mark.kept_back:
            transaction.drop()
            with suppress(Exception):
                mark.write(transaction)

    # --- one chunk ---------------------------------------------------------------------------------------------

    def _chunk(self, batch: Batch, mark: _Mark, transaction: _Transaction) -> None:
        """Have it done, by halves where some of it cannot be; the checkpoint behind it."""
        pieces = [batch]
        while pieces:
            piece = pieces.pop()
            try:
                self._try(piece, mark, transaction, halved=piece is not batch)
                self._tally.done(len(piece), piece.bytes)
            except _GivenUpError as failure:
                if self._on_error == "bisect" and len(piece) > 1 and not failure.lost:
                    middle = len(piece) // 2
                    pieces += [piece.part(middle, len(piece)), piece.part(0, middle)]
                    continue
                self._bury(piece, mark, transaction, failure)

    def _try(self, piece: Batch, mark: _Mark, transaction: _Transaction, *, halved: bool) -> None:
        attempt, lost = 0, False
        while True:
            attempt += 1
            piece.attempt = attempt
            mark.announce(piece)
            try:
                if not (lost and mark.landed(piece.high)):
                    self._once(piece, mark, transaction)
            except (CheckpointError, StoreError):
                raise
            except Exception as error:
                lost = is_transient(error)
                retried = lost or (self._on_error != "stop" and not halved)
                if attempt > (self._patience.retries if retried else 0):
                    raise _GivenUpError(error, attempt, lost=lost) from error
            else:
                return
            self._tally.retry()
            self._patience.wait(attempt)

    def _once(self, piece: Batch, mark: _Mark, transaction: _Transaction) -> None:
        try:
            if self._place.eager:
                transaction.open()
            piece.door = transaction.shown
            self._place.call(self._work, piece)
            mark.done(piece, transaction)
        except BaseException:
            transaction.drop()
            raise
        finally:
            piece.door = None

    def _bury(self, piece: Batch, mark: _Mark, transaction: _Transaction, failure: _GivenUpError) -> None:
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
        try:
            mark.buried(piece, letter, transaction)
        except BaseException:
            transaction.drop()
            raise

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
    try:
        return keys.encode(key)
    except StatementError:  # only where no name asks for a checkpoint
        return repr(key)
