"""A SQLAlchemy statement as a job's items: read behind a key, cut by key, as `flow.scan` does it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from memwarden.clock import SystemClock
from memwarden.errors import JobError, StatementError
from memwarden.flow.database import keys
from memwarden.flow.database.faults import Patience
from memwarden.flow.database.reader import Reader
from memwarden.flow.database.run import Threads
from memwarden.flow.database.statement import MEND_KEY, MEND_LIMIT, Keyset, analyse
from memwarden.jobs import definition
from memwarden.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.engine import Engine

__all__ = ["Rows", "own"]

# What is fetched ahead of a chunk: small beside any job's limit, large enough that a query is not felt.
_FETCH_ROWS, _FETCH_BYTES = 500, MIB
_RETRIES = 3
# A job always goes on behind a key, and has no number of rows at which it ends.
_MENDS = {
    MEND_KEY: "pass key= with the columns of a unique index",
    MEND_LIMIT: "take it away, and let a WHERE say which rows the job has",
}

_seen: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_inherited: list[Any] = []  # pools of a parent: a connection that is collected is closed, and its locks with it


def own(engine: Engine) -> Engine:
    """The engine, for use in this process: connections that a fork copied are the parent's, and are never touched."""
    pid = os.getpid()
    if _seen.get(engine, definition.LOADED_IN) != pid:  # this module may be loaded in the child only
        _inherited.append(engine.pool)
        engine.dispose(close=False)
    _seen[engine] = pid
    return engine


def _keyset(statement: Any, engine: Engine, key: Any) -> Keyset:
    try:
        plan = analyse(statement, engine.dialect, key=key)
    except StatementError as error:
        raise StatementError(error.what, where=error.where, mend=_MENDS.get(error.mend or "", error.mend)) from None
    if not isinstance(plan, Keyset):
        raise JobError("this statement has no key to cut it by", where="rows", mend="pass key= with its columns")
    return plan


class Rows:
    """The rows of a SELECT with a usable key (`key=`: columns or their names; the primary key if not given).

    Keys are JSON texts of the key's values. Raises StatementError, with what to change, where it has none.
    """

    def __init__(
        self, statement: Any, engine: Engine, *, key: Any = None, parameters: Mapping[str, Any] | None = None
    ) -> None:
        if not hasattr(engine, "connect") or hasattr(engine, "sync_engine"):
            raise JobError("needs a plain Engine", where="rows", mend="create_engine(...); jobs may still be async")
        self._engine = own(engine)
        self._parameters = dict(parameters or {})
        self._plan = _keyset(statement, engine, key)

    def _first(self, query: Any, values: Mapping[str, Any]) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(query, {**self._parameters, **values}).first()

    def count(self, low: str | None, high: str | None) -> int | None:
        """Exactly, by a walk through the index."""
        query, values = self._plan.page(keys.decode(low), keys.decode(high), (1 << 31) - 1)
        counted = sa.select(sa.func.count()).select_from(query.order_by(None).subquery())
        return int(self._first(counted, values)[0])

    def cut(self, low: str | None, high: str | None, items: int) -> Iterator[str]:
        """Exactly so many rows apart, each found by a walk through that part of the index."""
        plan = self._plan
        while True:
            page, values = plan.page(keys.decode(low), keys.decode(high), 2)
            query = page.with_only_columns(*plan.columns, maintain_column_froms=True).offset(items - 1)
            with self._engine.connect() as connection:
                found = connection.execute(query, {**self._parameters, **values}).fetchall()
            if len(found) < 2:  # that one is the last of the range: nothing would be behind it
                return
            low = keys.encode(tuple(found[0]))
            if low is not None:
                yield low

    def _refuse_several(self, position: tuple[Any, ...] | None) -> None:
        """Where reading goes on behind a key, it must be of one row: others of it would be lost. Raises KeyOrderError.

        The database is asked, since what is equal is the collation's to say. Within a read nothing is lost by it.
        """
        plan = self._plan
        if position is None or plan.unique:
            return
        with self._engine.connect() as connection:
            found = connection.execute(plan.equal(position), self._parameters).fetchall()
        if len(found) > 1:
            raise keys.duplicate(plan.names, position)

    def read(self, low: str | None, high: str | None) -> Iterator[tuple[str, Any]]:
        """Row after row, some hundred fetched at once; nothing stays open between them. Raises KeyOrderError."""
        end, position, plan = keys.decode(high), keys.decode(low), self._plan
        self._refuse_several(position)
        before = low
        patience = Patience(_RETRIES, Threads(SystemClock(), None).pause)
        with Reader(
            plan, self._engine, rows=_FETCH_ROWS, limit_bytes=_FETCH_BYTES, patience=patience,
            parameters=self._parameters, checked=False,
        ) as reader:  # fmt: skip
            while (batch := reader.read(position, end)) is not None:
                ended, position = batch.ended, batch.high
                for row in batch:
                    key = keys.encode(plan.key_of(row)) or ""
                    if key == before:
                        raise keys.duplicate(plan.names, plan.key_of(row))
                    before = key
                    yield key, row
                batch.release()
                if ended:
                    return
