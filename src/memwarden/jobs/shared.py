"""A ledger in a database that several machines reach, by SQLAlchemy: PostgreSQL, MariaDB, MySQL.

The ledger's SQL is the same as over the store's file. Its tables are called `memwarden_jobs`, `memwarden_job_parts` and
so on, and are made where they are missing. Transactions are READ COMMITTED; the ledger serialises those of one job by
the job's own row.
"""

from __future__ import annotations

import contextlib
import os
import re
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from memwarden.errors import MissingExtraError, StoreError
from memwarden.jobs.ledger import RESEND_S, Ledger

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects.mysql import LONGTEXT, VARCHAR
except ImportError as error:
    raise MissingExtraError("a ledger in a database", "sqlalchemy") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection, CursorResult, Engine

    from memwarden.ports import Clock

__all__ = ["SharedPlace", "shared_ledger"]

_SERVERS = ("postgresql", "mysql", "mariadb")
_TEXT = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")  # TEXT is 64 KiB there
_NAMES = re.compile(r"\b(jobs|job_(?:parts|attempts|quarantine|events|sizes|queues))\b(?!')")
_META = sa.MetaData()


# Whoever waits for the ledger may be a worker's only loop: a server that does not answer is away (seconds).
_CONNECT_S, _ANSWER_S = 2, 30
_PATIENCE = {
    "psycopg": {"connect_timeout": _CONNECT_S, "tcp_user_timeout": _ANSWER_S * 1000},
    "psycopg2": {"connect_timeout": _CONNECT_S, "tcp_user_timeout": _ANSWER_S * 1000},
    "pymysql": {"connect_timeout": _CONNECT_S, "read_timeout": _ANSWER_S, "write_timeout": _ANSWER_S},
}


def _engine_of(url: str) -> Engine:
    """What the URL itself says counts."""
    made = sa.make_url(url)
    patience = _PATIENCE.get(made.get_dialect().driver, {})
    words = {name: value for name, value in patience.items() if name not in made.query}
    return sa.create_engine(made, pool_pre_ping=True, connect_args=words)


def _varchar(length: int) -> sa.String:
    """One that tells A from a."""
    strict = VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(strict, "mysql", "mariadb")


def _table(name: str, columns: str, *more: Any) -> sa.Table:
    """`a:40` is a text of at most 40 characters, others are text, int, real; `?` may be NULL, `*` is the key."""
    kinds: dict[str, Any] = {"text": _TEXT, "int": sa.BigInteger(), "real": sa.Double()}
    made: list[sa.Column[Any]] = []
    for word in columns.split():
        column, _, kind = word.rstrip("?*").partition(":")
        of = kinds[kind] if kind in kinds else _varchar(int(kind))
        key = word.endswith("*")
        made.append(sa.Column(column, of, primary_key=key, nullable=word.endswith("?"), autoincrement=False))
    return sa.Table(f"memwarden_{name}", _META, *made, *more)


# Tables that were made before there was one get it when they are opened.
_BY_STATE = sa.Index("memwarden_job_parts_state", "root", "state", "part")
# As the store has them (`memwarden.store`).
_table(
    "jobs",
    "id:40* name:200 type:100 queue:100 priority:int state:20 arguments:text options:text unique_key:250? touched:int "
    "created_unix_s:real finished_unix_s:real? expires_unix_s:real? parts:int result:text? error:text?",
    sa.UniqueConstraint("unique_key"),
    sa.Index("memwarden_jobs_state", "state", "created_unix_s"),
    sa.Index("memwarden_jobs_expire", "expires_unix_s"),
)
_table(
    "job_parts",
    "root:40* part:int* path:250 parent:int? mode:10 state:20 low:text? high:text? position:text? pending:text? "
    "chunk:int careful:int deaths:int blamed:text? blamed_deaths:int innocent:int errors:int attempt:int sent:int "
    "due_unix_s:real engine:40 queue:100 priority:int holder:text? pid:int? beat:int items:int share:int result:text? "
    "error:text? updated_unix_s:real",
    sa.Index("memwarden_job_parts_ready", "state", "engine", "due_unix_s"),
    sa.Index("memwarden_job_parts_path", "root", "path"),
    sa.Index("memwarden_job_parts_parent", "root", "parent", "state"),
    _BY_STATE,
)
_table(
    "job_attempts",
    "root:40* part:int* attempt:int* worker:text started_unix_s:real ended_unix_s:real? ending:20? base_bytes:int? "
    "peak_bytes:int? growth_bytes:int? items:int? text:text?",
)
_table(
    "job_quarantine",
    "root:40 part:int low:text? high:text? whole:int deaths:int kind:20 text:text? unix_s:real retried:int",
    sa.Index("memwarden_job_quarantine_of", "root", "part"),
)
_table(
    "job_events",
    "unix_s:real kind:40 root:40 name:200 text:text details:text",
    sa.Index("memwarden_job_events_when", "unix_s"),
)
_table("job_sizes", "name:200* kind:40* histogram:text unix_s:real")
_table("job_queues", "engine:40* queue:100* waiting:int? taken:int? unix_s:real")


class SharedPlace:
    """Where a ledger's tables are, for every machine that reaches this database. `source` is an Engine or its URL.

    They are made where they are missing, but for whoever is only `reading`: that connects at its first question.

    Safe across threads, processes and forks. Raises StoreError where the database cannot be reached or is none of
    PostgreSQL, MariaDB and MySQL (SQLite is what the store's own file is).
    """

    def __init__(self, source: Engine | str, *, reading: bool = False) -> None:
        try:
            engine = _engine_of(source) if isinstance(source, str) else source
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
            mend = "write postgresql+psycopg://user@host/name, and install that driver"
            raise StoreError(f"is no database that can be opened ({error})", where="ledger", mend=mend) from None
        self.where = engine.url.render_as_string(hide_password=True)
        if engine.dialect.name not in _SERVERS:
            mend = "give a PostgreSQL or MariaDB; a file is what `folder=` is for"
            raise StoreError("is no server that machines could share", where=self.where, mend=mend)
        self._engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._own = engine if isinstance(source, str) else None
        self._pid = os.getpid()
        if not reading:
            self._open()

    def _open(self) -> None:
        try:
            try:
                _META.create_all(self._engine)
            except sa.exc.DBAPIError:  # of two processes that make them at once one fails, and finds them then
                _META.create_all(self._engine)
        except sa.exc.SQLAlchemyError as error:
            raise self._failed(error) from error
        with contextlib.suppress(sa.exc.DBAPIError):  # who may not make it does without, or another one just did
            _BY_STATE.create(self._engine, checkfirst=True)

    def _failed(self, error: sa.exc.SQLAlchemyError) -> StoreError:
        why = str(getattr(error, "orig", None) or error).strip().splitlines()
        return StoreError(f"cannot be used ({why[0] if why else type(error).__name__})", where=self.where)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Database]:
        """All of it, or nothing. Raises StoreError for whatever the database raises."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)  # the connections are the parent's
            self._pid = os.getpid()
        try:
            with self._engine.begin() as connection:
                yield _Database(connection)
        except sa.exc.SQLAlchemyError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the connections, where the engine was made here."""
        if self._own is not None and self._pid == os.getpid():
            self._own.dispose()


class _Database:
    """The ledger's statements in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Mapping[str, Any]) -> _Rows:
        return _Rows(self._connection.execute(_statement(sql), dict(parameters)))


class _Rows:
    """What an execution gave. Sums come as decimals from servers, and are whole numbers here."""

    def __init__(self, result: CursorResult[Any]) -> None:
        self._result = result
        self.rowcount = result.rowcount

    def fetchone(self) -> Any:
        row = self._result.fetchone()
        return None if row is None else _plain(row)

    def fetchall(self) -> list[Any]:
        return [_plain(row) for row in self._result.fetchall()]


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(int(value) if isinstance(value, Decimal) else value for value in row)


@lru_cache(maxsize=256)
def _statement(sql: str) -> sa.TextClause:
    return sa.text(_NAMES.sub(r"memwarden_\1", sql))


def shared_ledger(source: Engine | str, *, clock: Clock | None = None, resend_s: float = RESEND_S) -> Ledger:
    """A ledger for workers of several machines. Raises StoreError."""
    return Ledger(SharedPlace(source), clock=clock, resend_s=resend_s)
