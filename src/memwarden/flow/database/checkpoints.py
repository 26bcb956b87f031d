"""Where a named run is: in a table of the sink's own database, written in the transaction of the chunk; or in a store.

In the same transaction a chunk and its checkpoint are kept together or not at all: every row exactly once, whenever the
process dies. What has nothing to keep together is noted in a `journal` beside the database, where there can be one. In
a store the checkpoint is written before a chunk is handed out (its id and end) and after it: at most one chunk is
handed out again, the same rows under the same id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql

from memwarden.errors import CheckpointError
from memwarden.flow.database import journal, keys
from memwarden.flow.database.journal import Journal
from memwarden.store import Checkpoint, DeadLetter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Connection, Engine

    from memwarden.flow.database.statement import Keyset
    from memwarden.store import Store

__all__ = ["Ledger", "StoreLedger", "TableLedger", "compare", "describe"]

_LOG = logging.getLogger("memwarden.flow")
# Names are compared byte for byte: in MariaDB's default collation 'Job' and 'job' are equal.
_NAME = sa.String(200).with_variant(mysql.VARCHAR(200, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
_LONG = sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4"), "mysql", "mariadb")
_tables = sa.MetaData()
_checkpoints = sa.Table(
    "memwarden_checkpoints",
    _tables,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("plan", _LONG, nullable=False),
    sa.Column("low", _LONG),
    sa.Column("high", _LONG),
    sa.Column("position", _LONG),
    sa.Column("pending", _LONG),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("updated_unix_s", sa.Double, nullable=False),
)
_dead_letters = sa.Table(
    "memwarden_dead_letters",
    _tables,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("name", _NAME, nullable=False, index=True),
    sa.Column("chunk", sa.String(64), nullable=False),
    sa.Column("low", _LONG),
    sa.Column("high", _LONG),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("error", _LONG, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("unix_s", sa.Double, nullable=False),
)
# What changes from chunk to chunk.
_MOVING = ("position", "pending", "rows", "bytes", "done", "version", "updated_unix_s")
_INSERT = _checkpoints.insert()
_UPDATE = (
    _checkpoints.update()
    .where(
        _checkpoints.c.name == sa.bindparam("of_name"),
        _checkpoints.c.part == sa.bindparam("of_part"),
        _checkpoints.c.version == sa.bindparam("of_version"),
    )
    .values({name: sa.bindparam(name) for name in _MOVING})
)


class TableLedger:
    """In two tables of the database that the chunks are written to; they are made at the first use.

    `beside` is the database's file where there may be journals beside it, as `open` finds; else "".
    """

    in_transaction = True

    def __init__(self, engine: Engine, beside: str = "") -> None:
        self._engine = engine
        self.beside = beside
        self._journals = True

    def open(self) -> None:
        """Make the tables where they are missing. Raises CheckpointError where that is not allowed."""
        self._make()
        self.beside = journal.beside(self._engine)

    def _make(self) -> None:
        for last in (False, True):
            try:
                _tables.create_all(self._engine)
            except exc.DBAPIError as error:
                if last:
                    what = f"its table cannot be made ({error.orig})"
                    mend = "pass checkpoint=Store(), or into= with a database that may be written to"
                    raise CheckpointError(what, where="memwarden_checkpoints", mend=mend) from error
            else:  # where another process made them at the same moment, they are there the second time
                return

    def load(self, name: str) -> tuple[Checkpoint, ...]:
        """Where each part of the run is: as the table says, or a journal on top of it."""
        with self._engine.connect() as connection:
            query = sa.select(_checkpoints).where(_checkpoints.c.name == name).order_by(_checkpoints.c.part)
            found = [Checkpoint(**row._asdict()) for row in connection.execute(query)]
        return tuple(Journal(self.beside, part).further(part) for part in found) if self.beside else tuple(found)

    def journal(self, part: Checkpoint) -> Journal | None:
        """What notes the place of a part between its checkpoints, where that can be."""
        return Journal(self.beside, part, self._no_journal) if self.beside and self._journals else None

    def _no_journal(self, error: OSError) -> None:
        """It could not be written: this run does without."""
        if self._journals:
            self._journals = False
            _LOG.warning("no journal beside %s (%s): each chunk gets a commit of its own", self.beside, error)

    def load_part(self, name: str, part: int) -> Checkpoint | None:
        """Where one part of the run is; None before its first checkpoint."""
        query = sa.select(_checkpoints).where(_checkpoints.c.name == name, _checkpoints.c.part == part)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else Checkpoint(**row._asdict())

    def claim(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write the next version, so that whoever has this one cannot. Raises CheckpointError, see `taken`."""
        try:
            return self.write(checkpoint, None)
        except exc.IntegrityError:
            raise CheckpointError.taken(checkpoint.name) from None

    def forget(self, name: str) -> None:
        """Begin anew: its checkpoints and dead letters go."""
        with self._engine.begin() as connection:
            for table in (_checkpoints, _dead_letters):
                connection.execute(table.delete().where(table.c.name == name))
        journal.forget(self.beside, name)

    def forget_part(self, checkpoint: Checkpoint) -> None:
        """Take the row of this one part away, where it still is of this version."""
        of, columns = checkpoint, _checkpoints.c
        query = _checkpoints.delete().where(
            columns.name == of.name, columns.part == of.part, columns.version == of.version
        )
        with self._engine.begin() as connection:
            connection.execute(query)

    def start(self, parts: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
        """Write the first version of all parts, or of none."""
        try:
            with self._engine.begin() as connection:
                return tuple(self.write(part, connection) for part in parts)
        except exc.IntegrityError:
            raise CheckpointError.taken(parts[0].name) from None

    def write(self, checkpoint: Checkpoint, connection: Connection | None) -> Checkpoint:
        """Write the next version in the transaction of the connection. Raises CheckpointError, see `taken`."""
        if connection is None:
            with self._engine.begin() as own:
                return self.write(checkpoint, own)
        after = checkpoint.replace(version=checkpoint.version + 1, updated_unix_s=time.time())
        if after.version == 1:
            connection.execute(_INSERT, {name: getattr(after, name) for name in Checkpoint._fields})
            return after
        values = {name: getattr(after, name) for name in _MOVING}
        values |= {"of_name": after.name, "of_part": after.part, "of_version": checkpoint.version}
        if connection.execute(_UPDATE, values).rowcount != 1:
            raise CheckpointError.taken(after.name)
        return after

    def bury(self, letter: DeadLetter, connection: Connection | None) -> None:
        """Keep one, in the transaction of the connection."""
        if connection is not None:
            values = {name: getattr(letter, name) for name in DeadLetter._fields}
            connection.execute(_dead_letters.insert().inline(), values)

    def dead_letters(self, name: str, *, most: int = 100) -> tuple[DeadLetter, ...]:
        """The newest ones of a run, at most so many."""
        columns = [_dead_letters.c[field] for field in DeadLetter._fields]
        query = sa.select(*columns).where(_dead_letters.c.name == name).order_by(_dead_letters.c.id.desc()).limit(most)
        with self._engine.connect() as connection:
            return tuple(DeadLetter(**row._asdict()) for row in connection.execute(query))


class StoreLedger:
    """In memwarden's own file, beside whatever the chunks are written to."""

    in_transaction = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def journal(self, part: Checkpoint) -> None:
        """Its file is cheap enough to write."""

    def open(self) -> None:
        """It is open."""

    def load(self, name: str) -> tuple[Checkpoint, ...]:
        """Where each part of the run is."""
        return self._store.checkpoints(name)

    def forget(self, name: str) -> None:
        """Begin anew."""
        self._store.forget(name)

    def start(self, parts: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
        """Write the first version of all parts, or of none."""
        return self._store.write_all(parts)

    def write(self, checkpoint: Checkpoint, connection: Connection | None) -> Checkpoint:
        """Write the next version."""
        return self._store.write(checkpoint)

    def bury(self, letter: DeadLetter, connection: Connection | None) -> None:
        """Keep one."""
        self._store.bury(letter)

    def dead_letters(self, name: str, *, most: int = 100) -> tuple[DeadLetter, ...]:
        """The newest ones of a run, at most so many."""
        return self._store.dead_letters(name, most=most)


Ledger = TableLedger | StoreLedger


# --- is it still the same? -----------------------------------------------------------------------------------------


def describe(plan: Keyset, connection: Connection, parameters: Mapping[str, Any] | None) -> str:
    """What a checkpoint belongs to, as JSON: the statement, its parameters (hashed), the key, the columns it reads."""
    compiled = plan.statement.compile(dialect=connection.dialect)
    values = {**compiled.params, **(parameters or {})}
    return json.dumps(
        {
            "statement": _digest(str(compiled)),
            "parameters": {name: _digest(repr(values[name])) for name in sorted(values)},
            "key": keys.shown_names(plan.names, plan.down),
            "columns": _columns(plan, connection, parameters or {}),
        },
        sort_keys=True,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _columns(plan: Keyset, connection: Connection, parameters: Mapping[str, Any]) -> dict[str, str]:
    """The columns that the statement uses, with their types as the database has them now."""
    if not plan.tables:
        query, values = plan.page(None, None, 0)
        result = connection.execute(query, {**parameters, **values})
        described = getattr(result.cursor, "description", None) or ()
        result.close()
        return {str(each[0]): str(each[1]) for each in described}
    used = _used(plan)
    inspector = sa.inspect(connection)
    found = {}
    for table in plan.tables:
        for column in inspector.get_columns(table.name, schema=table.schema):
            if column["name"] in used.get(table.fullname, ()):
                found[f"{table.fullname}.{column['name']}"] = str(column["type"])
    return found


def _used(plan: Keyset) -> dict[str, set[str]]:
    from sqlalchemy.sql import visitors

    used: dict[str, set[str]] = {}
    for element in visitors.iterate(plan.statement):
        table = getattr(element, "table", None)
        while table is not None and not isinstance(table, sa.Table):
            table = getattr(table, "element", None)
        if table is not None and isinstance(element, sa.ColumnElement):
            used.setdefault(table.fullname, set()).add(str(getattr(element, "name", "")))
    for column in getattr(plan.statement, "selected_columns", ()):
        inner = getattr(column, "element", column)
        table = getattr(inner, "table", None)
        if isinstance(table, sa.Table):
            used.setdefault(table.fullname, set()).add(str(inner.name))
    return used


def compare(name: str, before: str, now: str) -> None:
    """Refuse to go on where the checkpoint was left by something else. Raises CheckpointError with the reason."""
    if before == now:
        return
    old, new = json.loads(before), json.loads(now)
    where, mend = f"checkpoint {name!r}", "pass restart=True to begin anew, or another name"
    for what in ("key", "statement"):
        if old[what] != new[what]:
            raise CheckpointError(f"the {what} changed since this run began", where=where, mend=mend)
    changed = _first_change(old["columns"], new["columns"])
    if changed:
        raise CheckpointError(f"the schema changed since this run began: {changed}", where=where, mend=mend)
    changed = _first_change(old["parameters"], new["parameters"])
    if changed:
        mend = f"pass the same values again (a moving one such as the time of day belongs into the data), or {mend}"
        raise CheckpointError(
            f"the parameters changed since this run began: {changed.split(' ')[0]}", where=where, mend=mend
        )


def _first_change(old: dict[str, str], new: dict[str, str]) -> str:
    for name in sorted({*old, *new}):
        if name not in new:
            return f"{name} is gone"
        if name not in old:
            return f"{name} is new"
        if old[name] != new[name]:
            return f"{name} was {old[name]} and is {new[name]}"
    return ""
