"""Whether the database has an index for a key that was given: without one it sorts everything anew for each chunk.

SQLite is asked how it would read (EXPLAIN QUERY PLAN), whatever the statement is. The others sort small tables although
there is an index, so their catalog is asked instead, which says something about statements of one table only. Where
nothing can be said nothing is.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.sql import visitors

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from memwarden.flow.database.statement import Keyset

__all__ = ["complaint"]

_asked = count()


def complaint(plan: Keyset, connection: Connection) -> str | None:
    """What is missing and what to do about it, in one line; None where there is an index or nothing is known."""
    look = _sorts if connection.dialect.name == "sqlite" else _is_missing
    if not look(plan, connection):
        return None
    key = ", ".join(plan.names)
    if len(plan.tables) == 1:
        table = plan.tables[0].fullname
        return f"key ({key}): {table} has no index for it, so all is sorted anew for each chunk; make one on ({key})"
    return f"key ({key}): no index gives its order, so all is sorted anew for each chunk; read it with resumable=False"


def _sorts(plan: Keyset, connection: Connection) -> bool:
    """Whether SQLite would sort a page behind a key. Its parameters are NULL: they do not change the order."""
    query, _ = plan.page([None] * len(plan.names), None, 1)
    compiled: Any = query.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
    marks = (None,) * len(compiled.positiontup or ())
    # EXPLAIN looks at no file, so it would speak of the schema that this connection saw last: that is read first. And
    # Python keeps what was prepared by its text, which an EXPLAIN never notices to be old: so the text is a new one.
    connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled} -- {next(_asked)}", marks).fetchall()
    return any(str(row[-1]).strip() == "USE TEMP B-TREE FOR ORDER BY" for row in found)


def _is_missing(plan: Keyset, connection: Connection) -> bool:
    """Whether no index of the only table begins with the key, behind columns that the WHERE may hold fast."""
    if len(plan.tables) != 1 or any(not isinstance(column, sa.Column) for column in plan.columns):
        return False
    (table,) = plan.tables
    inspector = sa.inspect(connection)
    found: list[list[Any]] = [inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]]
    found += [list(index["column_names"]) for index in inspector.get_indexes(table.name, schema=table.schema)]
    where = getattr(plan.statement, "whereclause", None)
    fast = set() if where is None else {getattr(each, "name", None) for each in visitors.iterate(where)}
    key = [column.name for column in plan.columns]
    if any(_leads(list(columns), key, fast) for columns in found):
        return False
    return table.name not in inspector.get_view_names(schema=table.schema)  # of a view nothing is known


def _leads(columns: list[Any], key: list[str], fast: set[Any]) -> bool:
    while columns[: len(key)] != key:
        if not columns or columns.pop(0) not in fast:
            return False
    return True
