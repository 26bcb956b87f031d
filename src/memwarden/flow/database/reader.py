"""Rows out of a database, chunk by chunk, over a connection of its own.

By a key: each chunk is a query behind the last key, read through a server-side cursor in small pages and cut by bytes;
then the cursor is closed and its transaction ended, so nothing stays open while the chunk is worked on, and a lost
connection costs one chunk's reading. Without a key: one cursor from start to end.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from memwarden.errors import FlowError, KeyOrderError, ReleasedError, SourceError, StatementError
from memwarden.flow.cutter import MOST_PAGE_ROWS, PAGE_ROWS, Cut, Cutter, Pager, page_cap, target_under
from memwarden.flow.database import indexes, keys
from memwarden.flow.database.faults import is_transient
from memwarden.flow.database.statement import Keyset, Stream
from memwarden.flow.sizing import Sizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    from sqlalchemy.engine import Connection, CursorResult, Engine, Row

    from memwarden.flow.cutter import Chunk
    from memwarden.flow.database.faults import Patience
    from memwarden.ports import Pressure

__all__ = ["Batch", "Reader"]

_LOG = logging.getLogger("memwarden.flow")
# Where every column is bounded a page may be as large as this part of the target allows, whatever the rows hold.
_PAGE_PART = 16
# Where they are not, and the last chunk was narrow, the database is asked for a whole chunk if its texts have at most
# this part of the target (in memory a character of theirs has 4 bytes at worst), and for a cursor where they have more.
_TEXTS_PART = 8
# So many chunks pass before it is asked again after it had more.
_REST_CHUNKS = 8
# Drivers without a real cursor on the server (MariaDB's protocol) must read what a query still has when it is closed
# early. So a query asks for as many rows as the last ones let expect, and a chunk is full with this part missing.
_NEARLY = 1 / 16
# Where still more than this is left (the rows grew wide suddenly) a new connection is cheaper than reading it: PyMySQL
# takes 30 ms of CPU for one (its TLS context), and about as much for so many bytes.
_MOST_LEFT_BYTES = 16 << 20


class Batch(list["Row[Any]"]):
    """The rows of one chunk, a list. It is released when the next one is read.

    `id` is the same whenever the same rows are handed out again: an idempotency key for whoever writes elsewhere.
    `low` is the key before the first row (None at the start), `high` that of the last; without a key they are the
    numbers of the rows. `attempt` counts from 1.
    """

    __slots__ = ("_id", "attempt", "bytes", "cut", "door", "ended", "high", "low", "reader")

    _id: str | None
    low: tuple[Any, ...] | None
    high: tuple[Any, ...]
    bytes: int
    cut: Cut
    attempt: int
    ended: bool  # nothing comes behind it
    reader: Reader
    door: Callable[[], Any] | None

    def release(self) -> None:
        """Drop the rows. Whoever still holds the chunk and reads from it gets a ReleasedError, not an empty list."""
        self.clear()
        self.__class__ = _Released

    @property
    def id(self) -> str:
        """The name of these rows in this run and every other of its name and statement: sixteen letters."""
        if self._id is None:
            self._id = self.reader.name_of(self.low, self.high)
        return self._id

    @property
    def connection(self) -> Any:
        """The connection, and in it the transaction, that this chunk is committed with. `process` commits it."""
        if self.door is None:
            raise FlowError("a chunk has a connection only while process() hands it out", where="connection")
        return self.door()

    def part(self, start: int, stop: int) -> Batch:
        """Some of its rows as a batch with the keys that go with them."""
        piece = Batch(self[start:stop])
        piece.low = self.reader.key_at(self, start - 1) if start else self.low
        piece.high = self.reader.key_at(self, stop - 1)
        piece.bytes = self.bytes * len(piece) // len(self)
        piece.cut, piece.ended = self.cut, self.ended and stop == len(self)
        piece.reader, piece.door, piece.attempt, piece._id = self.reader, None, 1, None
        return piece


class _Released(Batch):
    """A chunk after its time; its keys and its id are still there."""

    __slots__ = ()

    def _gone(self, *_arguments: Any) -> Any:
        what = f"chunk {self.id} was released when the next one was asked for"
        raise ReleasedError(what, mend="take from it what you need before")

    __iter__ = __len__ = __getitem__ = __reversed__ = __contains__ = __eq__ = append = copy = index = _gone

    def __repr__(self) -> str:
        return f"<released chunk {self.id}>"

    def release(self) -> None:
        """It is."""


class Reader:
    """Reads one range of a plan. Not for several threads at once. Close it, best by a with-statement."""

    def __init__(
        self,
        plan: Keyset | Stream,
        source: Engine | Connection,
        *,
        rows: int,
        limit_bytes: int,
        patience: Patience,
        pressure: Pressure | None = None,
        parameters: Mapping[str, Any] | None = None,
        snapshot: bool = False,
        salt: str = "",
        checked: bool = True,
    ) -> None:
        self.plan = plan
        self.number = 0
        self._source = source
        self._rows = rows
        self._limit_bytes = limit_bytes
        self._patience = patience
        self._pressure = pressure
        self._parameters = dict(parameters or {})
        self._snapshot = snapshot
        self._salt = salt
        self._checked = checked
        self._connection: Connection | None = None
        self._borrowed = isinstance(source, sa.Connection)
        self._dialect = source.dialect
        # Python's own driver steps through the rows as they are fetched; a buffer on top of it costs a tenth more.
        self._streams = source.dialect.name != "sqlite" or source.dialect.is_async
        self._sizer = Sizer()
        self._bounded = self._bounded_rows()
        self._pager = Pager(limit_bytes, most_rows=MOST_PAGE_ROWS)
        self._mean_bytes: float | None = None
        self._page_bytes = 0.0  # of a row of the last page
        self._plain_from = 0  # the number of the chunk from which on the database may be asked for a whole one
        self._fetched = 0  # rows of the present query
        self._cursor: Any = None
        self._stream: CursorResult[Any] | None = None
        self._surplus: Iterator[Row[Any]] = iter(())
        self._ready: deque[Chunk[Row[Any]]] = deque()
        self._last: Row[Any]
        self._stream_cutter: Cutter | None = None

    def _bounded_rows(self) -> int:
        """How many rows are a small page whatever they hold, where every column is bounded; 0 where one is not."""
        bound = self.plan.row_bytes
        return 0 if bound is None else self._limit_bytes // _PAGE_PART // bound

    def _wanted(self, cutter: Cutter) -> int:
        """Rows of the next page."""
        rows = min(self._pager.rows, cutter.room_rows)
        return rows if rows <= PAGE_ROWS else min(rows, max(page_cap(cutter.room_bytes), self._bounded))

    # --- connections -------------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        if self._connection is None:
            if isinstance(self._source, sa.Connection):
                self._connection = self._source
            else:
                self._connection = _snapshot(self._source) if self._snapshot else self._source.connect()
        return self._connection

    def _end_transaction(self) -> None:
        """Nothing of ours stays open between chunks; a borrowed connection's transaction is its owner's."""
        if self._connection is not None and not self._borrowed and not self._snapshot:
            self._connection.rollback()

    def _drop(self) -> None:
        """Let go of a connection that failed."""
        connection, self._connection = self._connection, None
        self._stream = None
        if connection is None or self._borrowed:
            return
        self._disarm()
        try:
            connection.invalidate()
        except Exception:  # noqa: BLE001, S110  it is gone already; what counts is that nothing is kept
            pass
        finally:
            connection.close()

    def close(self) -> None:
        """Close the cursor and give the connection back. A second close is a no-op."""
        stream, self._stream = self._stream, None
        self._surplus = iter(())
        self._ready.clear()
        if stream is not None:
            self._abandon(stream)
        connection, self._connection = self._connection, None
        if connection is not None and not self._borrowed:
            connection.close()

    def _abandon(self, result: CursorResult[Any]) -> None:
        """Close a cursor that has more to come."""
        if self._dialect.name not in ("mysql", "mariadb") or self._borrowed or self._connection is None:
            result.close()
            return
        # MariaDB's protocol has no way to stop: closing would read all that is still to come. So the connection goes,
        # and the driver's result, which would read on when it is collected, is told that there is nothing.
        connection, self._connection = self._connection, None
        connection.invalidate()
        self._disarm()
        result.close()
        connection.close()

    def _disarm(self) -> None:
        """Tell the driver that there is no connection from which it could read on."""
        cursor, self._cursor = self._cursor, None
        cursor = getattr(cursor, "_cursor", cursor)
        pending: Any = getattr(cursor, "_result", None)
        if hasattr(pending, "unbuffered_active"):  # PyMySQL, asyncmy, aiomysql
            pending.unbuffered_active = False
            pending.connection = None
        elif hasattr(pending, "discard"):  # mysqlclient
            cursor.connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- one query ---------------------------------------------------------------------------------------------

    def connection(self) -> Connection:
        """Its connection, opened if need be."""
        return self._connect()

    def shared(self, into: Engine) -> Connection | None:
        """The connection that must also be written with, where another one would wait for ours for ever.

        An open SELECT keeps SQLite's other connections from committing (without WAL), and does not mind its own
        committing or rolling back (3.7.11 and later).
        """
        alone = self._dialect.name == "sqlite" and isinstance(self.plan, Stream) and into is self._source
        return self._connect() if alone else None

    def first(self, query: Any) -> Any:
        """The first row of a small query."""
        found = self._connect().execute(query, self._parameters).first()
        self._end_transaction()
        return found

    def _execute(self, query: Any, values: Mapping[str, Any], *, stream: bool = True) -> CursorResult[Any]:
        """Through a cursor on the server, unless the rows are little whatever they hold: it has round trips."""
        stream = stream and self._streams
        options = {"stream_results": True, "max_row_buffer": self._pager.rows} if stream else {}
        result = self._connect().execute(query, {**self._parameters, **values}, execution_options=options)
        self._cursor = result.cursor
        return result

    def check_keys(self) -> None:
        """Refuse a key that holds NULL now, and warn where a given one has no index, once. Raises KeyOrderError."""
        if self._checked:
            return
        self._checked, plan = True, self.plan
        if isinstance(plan, Keyset) and plan.given and not self._borrowed:
            missing = indexes.complaint(plan, self._connect())
            self._end_transaction()
            if missing is not None:
                _LOG.warning("%s", missing)
        if isinstance(plan, Keyset) and plan.nullable and self.first(plan.null()) is not None:
            names = ", ".join(plan.nullable)
            what = f"there are rows with NULL in the key ({names}): nothing comes behind NULL, so they would be lost"
            raise KeyOrderError(what, where="key", mend="leave them out in WHERE, or choose a key without NULL")

    # --- chunks ------------------------------------------------------------------------------------------------

    def read(
        self, low: tuple[Any, ...] | None = None, high: tuple[Any, ...] | None = None, *, whole: bool = False
    ) -> Batch | None:
        """The next chunk behind `low` and up to `high`; None at the end. `whole`: all up to `high`, whatever its size.

        What fails for a while is tried again from `low`. Raises KeyOrderError, SourceError, SQLAlchemy's errors.
        """
        if isinstance(self.plan, Stream):
            return self._read_on()
        attempt = 0
        while True:
            try:
                self.check_keys()
                return self._read_behind(self.plan, low, high, whole=whole)
            except Exception as error:
                attempt += 1
                self._drop()
                if self._borrowed or self._snapshot or attempt > self._patience.retries or not is_transient(error):
                    raise
            self._patience.wait(attempt)

    def _read_behind(
        self, plan: Keyset, low: tuple[Any, ...] | None, high: tuple[Any, ...] | None, *, whole: bool
    ) -> Batch | None:
        target = 1 << 62 if whole else target_under(self._pressure, self._limit_bytes)
        self._pager.target_bytes = min(target, self._limit_bytes)
        cutter: Cutter = Cutter(target, rows=None if whole else self._rows, number=self.number)
        chunk, position, ended = None, low, False
        while chunk is None and not ended:
            asked = self._ask_for(cutter, target)
            most_bytes = self._most_text_bytes(plan, cutter, asked)
            query, values = plan.page(position, high, asked, most_bytes)
            before = cutter.seen
            result = self._execute(query, values, stream=not most_bytes and asked > self._bounded)
            try:
                chunk = self._fill(cutter, result, asked if most_bytes else 0)
            except BaseException:
                result.close()
                raise
            self._leave(result, 0 if chunk is None or most_bytes else asked - self._fetched)
            if most_bytes and cutter.seen == before:  # it had more, or there is nothing more: the cursor will tell
                self._plain_from = self.number + _REST_CHUNKS
            elif chunk is None and cutter.seen - before < asked:
                chunk, ended = cutter.flush(), True
            elif chunk is None and cutter.room_bytes < target * _NEARLY:
                chunk = cutter.flush("bytes")
            elif chunk is None:
                position = plan.key_of(self._last)
        self._end_transaction()
        return None if chunk is None else self._keyed(plan, chunk, low, ended=ended)

    def _ask_for(self, cutter: Cutter, target: int) -> int:
        room = min(cutter.room_rows, (1 << 31) - 1)
        mean = cutter.bytes / cutter.rows if cutter.rows else self._mean_bytes
        if self._dialect.name not in ("mysql", "mariadb") or not mean:
            return room
        expected = int((target - cutter.bytes) / mean)
        return min(room, max(PAGE_ROWS, expected))

    def _most_text_bytes(self, plan: Keyset, cutter: Cutter, asked: int) -> int:
        """How many bytes the texts of so many rows may have for a query without a cursor; 0 for one with a cursor."""
        most = min(cutter.target_bytes, self._limit_bytes) // _TEXTS_PART
        narrow = self._mean_bytes is not None and asked * self._mean_bytes <= most
        return most if narrow and plan.lengths and self._streams and self.number >= self._plain_from else 0

    def _leave(self, result: CursorResult[Any], left: int) -> None:
        """Close a query of which at most so many rows were not fetched."""
        if left * self._page_bytes > _MOST_LEFT_BYTES and not self._snapshot:
            self._abandon(result)
        else:
            result.close()
        self._cursor = None

    def _fill(self, cutter: Cutter, result: CursorResult[Any], at_once: int = 0) -> Any:
        """Fetch pages until a chunk is complete or the query has no more. The chunk, if there is one."""
        pager, sizer, self._fetched = self._pager, self._sizer, 0
        while True:
            page: Any = result.fetchmany(at_once or self._wanted(cutter))
            if not page:
                return None
            self._last = page[-1]
            size = sizer.page(page)
            self._fetched += len(page)
            self._page_bytes = size / len(page)
            pager.saw(len(page), size)
            if cutter.take(page, size):
                chunk = cutter.complete()
                if chunk is not None:
                    return chunk
                continue
            for row in page:
                done = cutter.push(row, sizer(row))
                if done:
                    return done[0]

    def _keyed(self, plan: Keyset, chunk: Any, low: tuple[Any, ...] | None, *, ended: bool) -> Batch:
        first, last = plan.key_of(chunk[0]), plan.key_of(chunk[-1])
        keys.check(plan.names, plan.down, low, first, last, rows=len(chunk))
        if not ended and not plan.unique:
            twice = self._connect().execute(plan.equal(last), self._parameters).fetchall()
            self._end_transaction()
            if len(twice) > 1:
                raise keys.duplicate(plan.names, last)
        return self._batch(chunk, low, last, ended=ended)

    def _batch(self, chunk: Any, low: tuple[Any, ...] | None, high: tuple[Any, ...], *, ended: bool) -> Batch:
        batch = Batch(chunk)
        batch.low, batch.high, batch.ended = low, high, ended
        batch.bytes, batch.cut = chunk.cut.bytes, chunk.cut
        batch.reader, batch.door, batch.attempt, batch._id = self, None, 1, None  # noqa: SLF001  made here
        self.number += 1
        self._mean_bytes = max(1.0, batch.bytes / len(batch))
        return batch

    def key_at(self, batch: Batch, index: int) -> tuple[Any, ...]:
        """The key of a row of a batch, by its place in it."""
        if isinstance(self.plan, Keyset):
            return self.plan.key_of(batch[index])
        start = -1 if batch.low is None else batch.low[0]
        return (start + 1 + index,)

    def name_of(self, low: tuple[Any, ...] | None, high: tuple[Any, ...]) -> str:
        """The id of the rows between two keys: the same in every run of the same name and statement."""
        text = f"{self._salt}|{keys.encode(low)}|{keys.encode(high)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # --- without a key -----------------------------------------------------------------------------------------

    def _read_on(self) -> Batch | None:
        try:
            chunk = self._next_of_stream()
        except Exception as error:
            self._drop()
            if is_transient(error):
                what = f"the connection was lost after {self._seen()} rows, and what is read without a key starts anew"
                mend = "pass key= so that reading can go on behind the last row"
                raise SourceError(what, rows=self._seen(), where="statement", mend=mend) from error
            raise
        if chunk is None:
            return None
        low = (chunk.cut.first - 1,) if chunk.cut.first else None
        return self._batch(chunk, low, (chunk.cut.last,), ended=False)

    def _seen(self) -> int:
        return 0 if self._stream_cutter is None else self._stream_cutter.seen

    def _next_of_stream(self) -> Any:
        target = target_under(self._pressure, self._limit_bytes)
        if self._stream_cutter is None:
            self._stream_cutter = Cutter(target, rows=self._rows)
            self._stream = self._execute(self.plan.statement, {})
        cutter = self._stream_cutter
        cutter.target_bytes = self._pager.target_bytes = target
        while not self._ready:
            row = next(self._surplus, None)
            if row is not None:
                self._ready.extend(cutter.push(row, self._sizer(row)))
            elif not self._next_page(cutter):
                return cutter.flush()
        return self._ready.popleft()

    def _next_page(self, cutter: Cutter) -> bool:
        """Fetch a page: into the chunk where it fits whole, else to be looked at row by row. False at the end."""
        if self._stream is None:
            return False
        page: Any = self._stream.fetchmany(self._wanted(cutter))
        if not page:
            self._stream.close()
            self._stream = None
            return False
        size = self._sizer.page(page)
        self._pager.saw(len(page), size)
        if not cutter.take(page, size):
            self._surplus = iter(page)
        elif (chunk := cutter.complete()) is not None:
            self._ready.append(chunk)
        return True


def _snapshot(engine: Engine) -> Connection:
    """A connection that sees the database as it is now until it is closed. Raises StatementError where it cannot."""
    name = engine.dialect.name
    if name in ("postgresql", "mysql", "mariadb"):
        connection = engine.connect().execution_options(isolation_level="REPEATABLE READ")
        try:
            if name != "postgresql":
                # The view is made at the first read; this makes it now.
                connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        except BaseException:
            connection.close()
            raise
        return connection
    if name == "sqlite":
        connection = engine.connect()
        # Python's driver begins no transaction for a SELECT.
        connection.exec_driver_sql("BEGIN")
        return connection
    raise StatementError(f"{name} has no snapshot that is known here", where="snapshot", mend="leave it out")
