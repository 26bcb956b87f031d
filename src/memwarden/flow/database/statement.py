"""What a statement can be read by: its key, and the queries that go on behind a key.

A SELECT of one table is read by the table's primary key; anything else needs `key=`. Reading by a key means that each
query starts behind the last row that was done, `(a, b) > (x, y)`, in the key's order. So no query has to be kept open
while chunks are worked on, and a run can be taken up again after its process died. What cannot be read so is refused
here with what to change: OFFSET and LIMIT, an ORDER BY of something else, a key that is not selected.

Pure but for types of SQLAlchemy: nothing here touches a database.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from memwarden.errors import MissingExtraError, StatementError

try:
    import sqlalchemy as sa
    from sqlalchemy.sql import sqltypes
except ImportError as error:
    raise MissingExtraError("flow.scan and flow.process", "sqlalchemy") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.engine import Dialect

__all__ = ["MEND_KEY", "MEND_LIMIT", "Keyset", "Stream", "analyse"]

# Databases that use an index for (a, b) > (x, y). Others scan it whole (MariaDB 10.11: type index and not range) or do
# not know it; a > x OR (a = x AND b > y) is a range on all of them.
ROW_VALUES = frozenset({"sqlite", "postgresql"})
# The name of the derived table around what cannot be extended in place.
WRAPPED = "memwarden_rows"
# What `flow.scan` takes; who else reads statements by their key and takes less says something else in their place.
MEND_KEY = "pass key= with the columns of a unique index, or resumable=False to read it in one go"
MEND_LIMIT = "take it away and stop when you have enough, or use rows="
_SIMPLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")


class Stream:
    """A statement that is read from its start to its end through one cursor, and cannot be taken up again.

    `tables` and `row_bytes` are as those of a Keyset.
    """

    __slots__ = ("row_bytes", "statement", "tables")

    def __init__(self, statement: Any, tables: tuple[Any, ...] = (), row_bytes: int | None = None) -> None:
        self.statement = statement
        self.tables = tables
        self.row_bytes = row_bytes


class Keyset:
    """A statement that is read by its key.

    `names` are the key's columns, `positions` where they are in a row (None: found by name when the first rows come).
    `unique`: the key is known to be unique. `nullable`: the columns that may hold NULL, as far as is known. `tables`
    are those that it reads from, `row_bytes` the most that a row can have where every column is bounded, else None.
    `lengths` are the lengths of those without a bound, for a query that may have only so many bytes; empty: not asked.
    `down` says of each column whether it is read in descending order; "behind" is meant in that order. `given`: the
    caller named it, it is not what the table is known by.
    """

    def __init__(
        self,
        statement: Any,
        columns: Sequence[Any],
        names: Sequence[str],
        positions: Sequence[int] | None,
        *,
        unique: bool,
        nullable: Iterable[str],
        tables: tuple[Any, ...],
        row_values: bool,
        row_bytes: int | None,
        lengths: Sequence[Any] = (),
    ) -> None:
        self.names = tuple(names)
        self.positions = None if positions is None else tuple(positions)
        self.unique = unique
        self.nullable = tuple(nullable)
        self.tables = tables
        self.row_bytes = row_bytes
        self.lengths = tuple(lengths)
        self.statement = statement
        self.columns = tuple(columns)
        self.down = (False,) * len(self.columns)
        self.given = True
        self._row_values = row_values
        self._pages: dict[tuple[bool, bool, bool], Any] = {}

    def page(
        self, low: Sequence[Any] | None, high: Sequence[Any] | None, limit: int, most_bytes: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """The query for the first `limit` rows behind `low` and up to `high`, and its parameters.

        With `most_bytes` it gives them only where their `lengths` are no more than that in all; else nothing. One of
        eight statements, made once each: SQLAlchemy compiles it once, the database may plan it once.
        """
        shape = (low is not None, high is not None, most_bytes > 0)
        if shape not in self._pages:
            self._pages[shape] = self._build(*shape)
        values: dict[str, Any] = {"memwarden_limit": limit}
        if most_bytes:
            values["memwarden_bytes"] = most_bytes
        values |= {f"memwarden_low_{index}": value for index, value in enumerate(low or ())}
        values |= {f"memwarden_high_{index}": value for index, value in enumerate(high or ())}
        return self._pages[shape], values

    def _build(self, low: bool, high: bool, within: bool) -> Any:
        query = self.statement
        if low:
            query = query.where(self._compare("low"))
        if high:
            query = query.where(self._compare("high"))
        query = query.order_by(None).order_by(*self._order()).limit(sa.bindparam("memwarden_limit", type_=sa.Integer()))
        if not within:
            return query
        total = sum((sa.func.coalesce(length, 0) for length in self.lengths), sa.literal(0))
        same = query.with_only_columns(total.label("bytes"), maintain_column_froms=True).subquery("memwarden_lengths")
        found = sa.select(sa.func.coalesce(sa.func.sum(same.c.bytes), 0)).scalar_subquery()
        return query.where(found <= sa.bindparam("memwarden_bytes", type_=sa.BigInteger()))

    def _order(self) -> list[Any]:
        return [column.desc() if down else column for column, down in zip(self.columns, self.down, strict=True)]

    def _compare(self, name: str) -> Any:
        """Behind the key "low", or up to the key "high"."""
        marks = [sa.bindparam(f"memwarden_{name}_{i}", type_=c.type) for i, c in enumerate(self.columns)]
        behind = name == "low"
        if len(marks) > 1 and self._row_values and len({*self.down}) == 1:
            operator = ("<" if self.down[0] else ">") if behind else (">=" if self.down[0] else "<=")
            return sa.tuple_(*self.columns).op(operator, is_comparison=True)(sa.tuple_(*marks))
        return _expanded(self.columns, marks, self.down, behind=behind)

    def equal(self, key: Sequence[Any]) -> Any:
        """A query for at most two rows of exactly this key: two are one too many."""
        query = self.statement.order_by(None)
        for column, value in zip(self.columns, key, strict=True):
            query = query.where(column == sa.bindparam(None, value, type_=column.type, unique=True))
        return query.with_only_columns(sa.literal_column("1"), maintain_column_froms=True).limit(2)

    def null(self) -> Any:
        """A query for one row in which a part of the key is NULL."""
        found = sa.or_(*(column.is_(None) for column in self.columns))
        query = self.statement.order_by(None).where(found)
        return query.with_only_columns(sa.literal_column("1"), maintain_column_froms=True).limit(1)

    def count(self, low: Sequence[Any] | None = None) -> Any:
        """A query for the number of rows, those behind `low` where it is given."""
        query = self.statement.order_by(None)
        if low is not None:
            values = {f"memwarden_low_{index}": value for index, value in enumerate(low)}
            query = query.where(self._compare("low")).params(values)
        return sa.select(sa.func.count()).select_from(query.subquery())

    def bounds(self) -> Any:
        """A query for the least and the greatest value of a single key."""
        (column,) = self.columns
        return self.statement.order_by(None).with_only_columns(
            sa.func.min(column), sa.func.max(column), maintain_column_froms=True
        )

    def at(self, rank: int) -> Any:
        """A query for the key of the row at this rank from 0: for cutting the key into ranges, and for nothing else."""
        query = self.statement.with_only_columns(*self.columns, maintain_column_froms=True)
        return query.order_by(None).order_by(*self._order()).limit(1).offset(rank)

    def key_of(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The key of a row."""
        if self.positions is None:
            fields = list(row._fields)  # type: ignore[attr-defined]  # a named tuple
            missing = [name for name in self.names if name not in fields]
            if missing:
                raise StatementError(f"the key column {missing[0]!r} is not in the rows", mend="select it too")
            self.positions = tuple(fields.index(name) for name in self.names)
        return tuple(row[position] for position in self.positions)


def _expanded(columns: Sequence[Any], marks: Sequence[Any], down: Sequence[bool], *, behind: bool) -> Any:
    """(a, b) > (x, y) without row values: a >= x AND (a > x OR (a = x AND b > y)); < where that is behind."""
    column, mark, upwards = columns[0], marks[0], behind != down[0]
    strictly = column > mark if upwards else column < mark
    inclusive = column >= mark if upwards else column <= mark
    if len(columns) == 1:
        return strictly if behind else inclusive
    rest = _expanded(columns[1:], marks[1:], down[1:], behind=behind)
    # The first says nothing new, and lets an optimizer that gives the OR up still begin at the right place.
    return sa.and_(inclusive, sa.or_(strictly, sa.and_(column == mark, rest)))


# --- analysis ------------------------------------------------------------------------------------------------------


def analyse(statement: Any, dialect: Dialect, *, key: Any = None, resumable: bool | None = None) -> Keyset | Stream:
    """How a statement can be read. SQL text without a key is a Stream; so is anything with `resumable=False`.

    Raises StatementError, which says what to change.
    """
    if isinstance(statement, str):
        statement = sa.text(statement)
    key, down = _directed(key)
    if isinstance(statement, sa.TextClause):
        return _text(statement, dialect, key, resumable, down)
    if not isinstance(statement, sa.SelectBase):
        what = f"a {type(statement).__name__} gives no rows to read"
        raise StatementError(what, where="statement", mend="pass a select(), or SQL text")
    if getattr(statement, "_offset_clause", None) is not None:
        raise _no_offset()
    if resumable is False:
        return Stream(statement, _tables(statement), _row_bytes(list(statement.selected_columns), dialect))
    keyset = _compound(statement, dialect, key) if _is_closed(statement) else _select(statement, dialect, key)
    keyset.down, keyset.given = _directions(statement, keyset, down), key is not None
    return keyset


def _is_closed(statement: Any) -> bool:
    """Whether a condition on it has to stand outside: it is grouped, distinct, or made of several."""
    if not isinstance(statement, sa.Select):
        return True
    parts = ("_group_by_clauses", "_having_criteria", "_distinct", "_distinct_on")
    return any(bool(getattr(statement, part, ())) for part in parts)


def _select(statement: Any, dialect: Dialect, key: Any) -> Keyset:
    _refuse_limit(statement)
    selected = list(statement.selected_columns)
    columns = _own_key(statement) if key is None else _given_key(selected, key)
    positions = [_position(column, selected) for column in columns]
    names = [_name(selected[position]) for position in positions]
    tables = _tables(statement)
    return Keyset(
        statement,
        columns,
        names,
        positions,
        unique=_is_unique(statement, columns),
        nullable=[name for name, column in zip(names, columns, strict=True) if _may_be_null(column)],
        tables=tables,
        row_values=dialect.name in ROW_VALUES,
        row_bytes=_row_bytes(selected, dialect),
        lengths=_lengths(statement, selected, dialect),
    )


def _compound(statement: Any, dialect: Dialect, key: Any) -> Keyset:
    if key is None:
        what = "a grouped, distinct or combined SELECT has no primary key"
        raise StatementError(what, where="statement", mend=MEND_KEY)
    _refuse_limit(statement)
    rows = statement.order_by(None).subquery(WRAPPED)
    selected = list(rows.c)
    columns = [_by_name(item, selected) for item in _names_of(key)]
    positions = [_position(column, selected) for column in columns]
    return Keyset(
        sa.select(rows),
        columns,
        [_name(column) for column in columns],
        positions,
        unique=False,
        nullable=[_name(column) for column in columns],
        tables=_tables(statement),
        row_values=dialect.name in ROW_VALUES,
        row_bytes=_row_bytes(selected, dialect),
    )


def _text(
    statement: Any, dialect: Dialect, key: Any, resumable: bool | None, down: list[bool | None]
) -> Keyset | Stream:
    words = _outer_words(statement.text)
    if not re.match(r"\s*(SELECT|WITH|VALUES|TABLE|SHOW|EXPLAIN|PRAGMA|\()", words, re.IGNORECASE):
        what = f"{statement.text.strip()[:40]!r} gives no rows to read"
        raise StatementError(what, where="statement", mend="pass a SELECT")
    if re.search(r"\bOFFSET\s*(\d|:|\?|%|\()|\bLIMIT\s+\S+\s*,", words, re.IGNORECASE):
        raise _no_offset()
    if key is None or resumable is False:
        if resumable:
            what = "SQL text has no key that could be found in it"
            raise StatementError(what, where="statement", mend="pass key= with the names of its key columns")
        return Stream(statement)
    if re.search(r"\b(LIMIT|FETCH\s+(FIRST|NEXT))\b", words, re.IGNORECASE):
        raise _no_limit()
    names = _names_of(key)
    directions = _text_directions(words, names, down)
    quote = dialect.identifier_preparer.quote
    # On a line of its own, so that a comment at the end of the text does not take the bracket.
    inner = statement.text.strip().rstrip(";")
    source = sa.text(f"({inner}\n) AS {WRAPPED}")
    source = source.bindparams(*vars(statement)["_bindparams"].values())
    columns: list[Any] = [sa.literal_column(f"{WRAPPED}.{quote(name)}") for name in names]
    keyset = Keyset(
        sa.select(sa.literal_column(f"{WRAPPED}.*")).select_from(source),
        columns,
        names,
        None,
        unique=False,
        nullable=names,
        tables=(),
        row_values=dialect.name in ROW_VALUES,
        row_bytes=None,
    )
    keyset.down = directions
    return keyset


def _refuse_limit(statement: Any) -> None:
    if any(getattr(statement, part, None) is not None for part in ("_limit_clause", "_fetch_clause")):
        raise _no_limit()


def _no_offset() -> StatementError:
    what = "OFFSET reads everything before it again, and loses rows when earlier ones are changed meanwhile"
    return StatementError(what, where="statement", mend="take it away: reading goes on behind the last key by itself")


def _no_limit() -> StatementError:
    what = "a LIMIT cannot be kept over several chunks"
    return StatementError(what, where="statement", mend=MEND_LIMIT)


# --- the key -------------------------------------------------------------------------------------------------------


def _own_key(statement: Any) -> list[Any]:
    sources = statement.get_final_froms()
    if len(sources) != 1 or isinstance(sources[0], sa.Join):
        what = "rows of a join have no primary key of their own"
        raise StatementError(what, where="statement", mend=MEND_KEY)
    (source,) = sources
    found = [] if isinstance(source, (sa.Subquery, sa.CTE)) else list(getattr(source, "primary_key", ()))
    if not found:
        name = getattr(source, "name", None) or "what it selects from"
        raise StatementError(f"{name} has no primary key", where="statement", mend=MEND_KEY)
    return found


def _given_key(selected: list[Any], key: Any) -> list[Any]:
    """The key's columns as they can be compared: what a label stands for and not the label."""
    return [_inside(_by_name(item, selected) if isinstance(item, str) else _clause(item)) for item in _items(key)]


def _items(key: Any) -> list[Any]:
    items = list(key) if isinstance(key, (tuple, list)) else [key]
    if not items:
        raise StatementError("no column is given", where="key", mend="name the columns of a unique index")
    return items


def _names_of(key: Any) -> list[str]:
    return [item if isinstance(item, str) else _name(_clause(item)) for item in _items(key)]


def _clause(item: Any) -> Any:
    """A column, also where it is an attribute of a mapped class."""
    found = item.__clause_element__() if hasattr(item, "__clause_element__") else item
    if not isinstance(found, sa.ColumnElement):
        what = f"{item!r} is no column"
        raise StatementError(what, where="key", mend="give columns of the statement, or their names")
    return found


def _inside(column: Any) -> Any:
    return column.element if isinstance(column, sa.Label) else column


def _name(column: Any) -> str:
    return str(getattr(column, "name", None) or getattr(column, "key", None) or column)


def _by_name(name: str, selected: list[Any]) -> Any:
    found = [column for column in selected if name in (getattr(column, "name", None), getattr(column, "key", None))]
    if len(found) != 1:
        what = f"the key column {name!r} is {'selected twice' if found else 'not selected'}"
        raise StatementError(what, where="key", mend="give each a label of its own" if found else "select it too")
    return found[0]


def _position(column: Any, selected: list[Any]) -> int:
    """Where the column is among those selected."""
    for position, other in enumerate(selected):
        if _same(column, _inside(other)):
            return position
    what = f"the key column {_name(column)!r} is not selected"
    raise StatementError(what, where="statement", mend=f"select {_name(column)} too, it says where reading goes on")


def _same(one: Any, other: Any) -> bool:
    """The same column of the same table; the classes of a mapping wrap it anew each time."""
    if one is other:
        return True
    tables = getattr(one, "table", None), getattr(other, "table", None)
    if tables[0] is None or tables[1] is None:
        return False
    return hash(tables[0]) == hash(tables[1]) and _name(one) == _name(other)


def _is_unique(statement: Any, columns: list[Any]) -> bool:
    """Whether these columns hold a primary or unique key of the only table, as far as its definition says."""
    sources = statement.get_final_froms()
    if len(sources) != 1 or isinstance(sources[0], sa.Join):
        return False
    (source,) = sources
    names = {_name(column) for column in columns}
    primary = {_name(column) for column in getattr(source, "primary_key", ())}
    if primary and primary <= names:
        return True
    table = getattr(source, "element", source)
    if not isinstance(table, sa.Table):
        return False
    unique = [each.columns for each in table.constraints if isinstance(each, sa.UniqueConstraint)]
    unique += [index.columns for index in table.indexes if index.unique]
    return any(
        {_name(column) for column in each} <= names and not any(column.nullable for column in each) for each in unique
    )


def _may_be_null(column: Any) -> bool:
    return not getattr(column, "primary_key", False) and bool(getattr(column, "nullable", True))


# --- order ---------------------------------------------------------------------------------------------------------


def _order_of(item: Any) -> tuple[Any, bool | None]:
    """What is ordered by, and whether it is descending (None: it does not say). NULLS FIRST stays on: no key has it."""
    down = None
    while True:
        word = getattr(getattr(item, "modifier", None), "__name__", "")
        if isinstance(item, sa.UnaryExpression) and word in ("asc_op", "desc_op"):
            item, down = item.element, word == "desc_op"
        elif type(item).__name__ in ("_label_reference", "_textual_label_reference"):
            item = item.element
        else:
            return item, down


def _directed(key: Any) -> tuple[Any, list[bool | None]]:
    """The key without `desc()`, and where that stood."""
    if key is None:
        return None, []
    ordered = [_order_of(item) for item in _items(key)]
    return [item for item, _ in ordered], [down for _, down in ordered]


def _joined(wanted: Sequence[bool], given: Sequence[bool | None], count: int) -> tuple[bool, ...] | None:
    """One direction for each column: that of the ORDER BY, of the key, of the column before; None where they differ."""
    found: list[bool] = []
    for index in range(count):
        asked = given[index] if index < len(given) else None
        ordered = wanted[index] if index < len(wanted) else None
        if asked is not None and ordered is not None and asked != ordered:
            return None
        before = found[-1] if found and not any(each is not None for each in given) else False
        found.append(next((each for each in (ordered, asked) if each is not None), before))
    return tuple(found)


def _directions(statement: Any, keyset: Keyset, given: Sequence[bool | None]) -> tuple[bool, ...]:
    wanted = list(getattr(statement, "_order_by_clauses", ()))
    ordered = [_order_of(item) for item in wanted]
    matching = len(wanted) <= len(keyset.names) and all(
        _same(_inside(item), column) or str(item) == name
        for (item, _), column, name in zip(ordered, keyset.columns, keyset.names, strict=False)
    )
    found = _joined([bool(down) for _, down in ordered], given, len(keyset.names)) if matching else None
    if found is None:
        raise _conflict(", ".join(str(item) for item in wanted), keyset.names)
    return found


def _conflict(wanted: str, names: Sequence[str]) -> StatementError:
    what = f"ORDER BY {wanted} is not the order of its key ({', '.join(names)})"
    mend = f"take it away, or order by {', '.join(names)}; where another order is needed pass key= with its columns"
    return StatementError(what, where="statement", mend=f"{mend}, which need an index")


def _text_directions(words: str, names: Sequence[str], given: Sequence[bool | None]) -> tuple[bool, ...]:
    found = re.search(r"\bORDER\s+BY\b(.*)$", words, re.IGNORECASE | re.DOTALL)
    wanted = [item.strip(" \n;") for item in found[1].split(",")] if found else []
    parts = [re.fullmatch(r"(.*?)(?:\s+(ASC|DESC))?", item, re.IGNORECASE | re.DOTALL) for item in wanted]
    plain = [part[1].rpartition(".")[2].strip('"`') if part else "" for part in parts]
    matching = plain == list(names)[: len(plain)] and all(_SIMPLE_NAME.fullmatch(item) for item in plain)
    down = [bool(part and part[2]) and part[2].upper() == "DESC" for part in parts if part]
    directions = _joined(down, given, len(names)) if matching else None
    if directions is None:
        raise _conflict(", ".join(wanted), names)
    return directions


_SKIPPED = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?\*/ | \$(\w*)\$.*?\$\1\$ | [()]""",
    re.VERBOSE | re.DOTALL,
)


def _outer_words(text: str) -> str:
    """SQL without its texts, comments and what stands in brackets: for looking for clauses of the outermost query."""
    kept: list[str] = []
    depth = last = 0
    for found in _SKIPPED.finditer(text):
        if not depth:
            kept.append(text[last : found.start()])
        last = found.end()
        if found[0] == "(":
            kept.append("(" if not depth else "")
            depth += 1
        elif found[0] == ")":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(found[0] if found[0][0] in '"`' else " ")
    if not depth:
        kept.append(text[last:])
    return "".join(kept)


# --- tables and widths ---------------------------------------------------------------------------------------------


def _tables(statement: Any) -> tuple[Any, ...]:
    """The tables that it reads, in the order of their names."""
    from sqlalchemy.sql import visitors

    found = {}
    for element in visitors.iterate(statement):
        if isinstance(element, sa.Table):
            found[str(element.fullname)] = element
    for source in getattr(statement, "get_final_froms", list)():
        for element in visitors.iterate(source):
            if isinstance(element, sa.Table):
                found[str(element.fullname)] = element
    return tuple(found[name] for name in sorted(found))


# What a value takes in memory at most, rounded up: CPython's objects (sys.getsizeof), and 4 bytes a character.
_FIXED = (
    sqltypes.Boolean, sqltypes.Integer, sqltypes.Float, sqltypes.Date, sqltypes.Time, sqltypes.DateTime,
    sqltypes.Interval,
)  # fmt: skip
_FIXED_BYTES, _UUID_BYTES, _DECIMAL_BYTES, _TEXT_BYTES, _CHARACTER_BYTES = 56, 120, 104, 80, 4
# How a database is asked for the bytes of a text without reading it: PostgreSQL and MariaDB know it from the value's
# head (PostgreSQL: textoctetlen does not fetch what is out of line).
_LENGTHS = {"postgresql": "octet_length", "mysql": "octet_length", "mariadb": "octet_length"}


def _row_bytes(columns: Sequence[Any], dialect: Dialect) -> int | None:
    """The most that a row of these columns can have in memory; None where one of them has no bound."""
    total = 0
    for column in columns:
        most = _most_bytes(column.type, dialect)
        if most is None:
            return None
        total += most
    return total + _TEXT_BYTES  # the row itself


def _most_bytes(kind: Any, dialect: Dialect) -> int | None:
    """The most that a value can have in memory; None without a bound. SQLite keeps to no length of a VARCHAR."""
    if isinstance(kind, sqltypes.TypeDecorator):
        return None
    if isinstance(kind, _FIXED):
        return _FIXED_BYTES
    if dialect.name == "sqlite":
        return None
    if isinstance(kind, sqltypes.Uuid):
        return _UUID_BYTES
    if isinstance(kind, sqltypes.Numeric) and kind.precision:
        return _DECIMAL_BYTES + kind.precision
    if isinstance(kind, sqltypes.String) and kind.length:
        return _TEXT_BYTES + _CHARACTER_BYTES * kind.length
    return None


def _lengths(statement: Any, columns: Sequence[Any], dialect: Dialect) -> list[Any]:
    """The lengths of the columns without a bound; [] where one cannot be asked for, or where asking may cost much.

    Every page is looked through twice then: of one table, without a condition that may look at far more rows.
    """
    name, sources = _LENGTHS.get(dialect.name), statement.get_final_froms()
    if name is None or statement.whereclause is not None or len(sources) != 1 or not isinstance(sources[0], sa.Table):
        return []
    loose = [_inside(column) for column in columns if _most_bytes(column.type, dialect) is None]
    plain = (sqltypes.String, sqltypes.LargeBinary)
    if any(not isinstance(column, sa.Column) or not isinstance(column.type, plain) for column in loose):
        return []
    return [getattr(sa.func, name)(column) for column in loose]
