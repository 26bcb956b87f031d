"""Alerts from one store into another: from memory into the file, and what can still be read of a damaged one."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from urllib.parse import quote

from memwarden.errors import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from memwarden.store import Store

    Row = tuple[Any, ...]
    PutState = Callable[[sqlite3.Connection, Sequence[str], Row], None]
    Rows = tuple[tuple[str, ...], list[Row]]  # the names of the columns, and the rows

__all__ = ["copy", "copy_readable", "put", "rows_of", "salvage"]

TABLES = ("alert_taken", "alert_silences", "alert_states", "alert_events", "alert_deliveries")
# What must be JSON to be of use, by table.
_JSON = {"alert_silences": ("matcher",), "alert_states": ("state",), "alert_events": ("details", "why")}
_MOST = 20_000  # rows of one table of a damaged file


# SQL has no parameters for the names of tables and columns. Those below are of TABLES, and what the new store itself
# says its columns are; every value is bound.


def rows_of(db: sqlite3.Connection, table: str, where: str = "1", values: Sequence[Any] = ()) -> Rows:
    """The rows of a table that meet a condition."""
    found = db.execute(f"SELECT * FROM {table} WHERE {where}", values)  # noqa: S608  `where` is written in this package
    return tuple(each[0] for each in found.description), found.fetchall()


def put(db: sqlite3.Connection, table: str, columns: Sequence[str], row: Row, *, or_what: str = "IGNORE") -> None:
    """Insert one row; one that is there stays, or is replaced."""
    marks = ", ".join("?" * len(columns))
    db.execute(f"INSERT OR {or_what} INTO {table} ({', '.join(columns)}) VALUES ({marks})", list(row))  # noqa: S608  names alone, as above


def copy(
    rows: Mapping[str, Rows],
    new: Store,
    put_state: PutState,
    put_down: Callable[[sqlite3.Connection], None] | None = None,
) -> None:
    """Put them all into another store: what is there already stays as it is; of states `put_state` decides.

    `put_down` is called in the same transaction. Raises StoreError.
    """
    with new.transaction() as db:
        columns, values = rows["alert_taken"]
        for row in values:
            put(db, "alert_taken", columns[1:], row[1:])
        columns, values = rows["alert_silences"]
        same = "SELECT 1 FROM alert_silences WHERE matcher = ? AND until_unix_s = ? AND author = ? AND comment = ?"
        for row in values:
            if db.execute(same, row[1:5]).fetchone() is None:
                put(db, "alert_silences", columns[1:], row[1:])
        columns, values = rows["alert_states"]
        for row in values:
            put_state(db, columns, row)
        numbers: dict[int, int] = {}
        columns, values = rows["alert_events"]
        for row in values:
            put(db, "alert_events", columns[1:], row[1:])
            found = db.execute("SELECT seq FROM alert_events WHERE id = ?", (row[1],)).fetchone()
            if found is not None:
                numbers[row[0]] = found[0]
        columns, values = rows["alert_deliveries"]
        at = columns.index("event")
        for row in values:
            if row[at] in numbers:
                put(db, "alert_deliveries", columns, (*row[:at], numbers[row[at]], *row[at + 1 :]))
        if put_down is not None:
            put_down(db)


def salvage(path: str, new: Store, put_state: PutState) -> int:
    """Take over what can still be read of the alerts in a damaged file; how many deliveries of them wait.

    States without a readable text, and deliveries without their event, are left out. Raises StoreError of the new one.
    """
    copy_readable(lambda: closing(_open(path)), new, put_state)
    with new.reading() as db:
        query = "SELECT count(*) FROM alert_deliveries WHERE state = 'pending'"
        return int(db.execute(query).fetchone()[0])


def copy_readable(
    opened: Callable[[], AbstractContextManager[sqlite3.Connection]], new: Store, put_state: PutState
) -> None:
    """Take over what can still be read of another one, which may be damaged. Raises StoreError of the new one."""
    with new.reading() as db:
        shapes = {table: rows_of(db, table, "0")[0] for table in TABLES}
    copy({table: (shape, _readable(opened, table, shape)) for table, shape in shapes.items()}, new, put_state)


def _open(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=1.0)


def _readable(
    opened: Callable[[], AbstractContextManager[sqlite3.Connection]], table: str, columns: Sequence[str]
) -> list[Row]:
    """Row by row until one cannot be read, from either end: a broken page takes what is on it, and no more."""
    found: dict[Row, None] = {}
    for order in ("ASC", "DESC"):
        try:
            with opened() as db:
                text = f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1 {order} LIMIT {_MOST}"  # noqa: S608  names alone, as above
                for row in db.execute(text):
                    if _is_sound(table, columns, row):
                        found[row] = None
                break
        except (sqlite3.Error, StoreError, UnicodeDecodeError):
            continue
    return list(found)


def _is_sound(table: str, columns: Sequence[str], row: Row) -> bool:
    try:
        read = [json.loads(row[columns.index(name)]) for name in _JSON.get(table, ())]
    except (ValueError, TypeError):
        return False
    return table != "alert_states" or (isinstance(read[0], dict) and "channels" in read[0])
