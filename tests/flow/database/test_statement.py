"""What a statement can be read by, and what is refused with the mend: pure, no database is asked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from memwarden.errors import StatementError
from memwarden.flow.database.statement import Keyset, Stream, _outer_words, analyse

_KINDS: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql, "mysql": mysql}
DIALECTS = {name: module.dialect() for name, module in _KINDS.items()}
META = sa.MetaData()
T = sa.Table(
    "t",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.DateTime, nullable=False),
    sa.Column("email", sa.String(50), nullable=False, unique=True),
    sa.Column("note", sa.Text),
    sa.UniqueConstraint("email"),
)
PAIR = sa.Table(
    "pair", META, sa.Column("a", sa.Integer, primary_key=True), sa.Column("b", sa.Integer, primary_key=True)
)
PRICED = sa.Table(
    "priced",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("price", sa.Numeric(12, 2)),
    sa.Column("token", sa.Uuid),
    sa.Column("state", sa.Enum("open", "closed")),
)
BARE = sa.Table("bare", META, sa.Column("x", sa.Integer))


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def _keyset(statement: Any, name: str = "sqlite", **options: Any) -> Keyset:
    found = analyse(statement, DIALECTS[name], **options)
    assert isinstance(found, Keyset)
    return found


def _sql(keyset: Keyset, low: Any, high: Any = None, name: str = "sqlite") -> str:
    query, values = keyset.page(low, high, 5)
    compiled = query.params(values).compile(dialect=DIALECTS[name], compile_kwargs={"literal_binds": True})
    return " ".join(str(compiled).split())


@pytest.mark.parametrize(
    ("statement", "names", "positions"),
    [
        (sa.select(T), ("id",), (0,)),
        (sa.select(T.c.note, T.c.id.label("number")), ("number",), (1,)),
        (sa.select(PAIR), ("a", "b"), (0, 1)),
        (sa.select(Person), ("id",), (0,)),
        (sa.select(Person.name, Person.id), ("id",), (1,)),
        (sa.select(aliased(Person)), ("id",), (0,)),
        (sa.select(T.alias("other")), ("id",), (0,)),
        (sa.select(T).order_by(T.c.id), ("id",), (0,)),
        (sa.select(T).order_by(T.c.id.asc()), ("id",), (0,)),
        (sa.select(T).order_by("id"), ("id",), (0,)),
        (sa.select(PAIR).order_by(PAIR.c.a), ("a", "b"), (0, 1)),
    ],
)
def test_a_table_is_read_by_its_primary_key(statement: Any, names: Any, positions: Any) -> None:
    keyset = _keyset(statement)
    assert (keyset.names, keyset.positions, keyset.unique, keyset.nullable) == (names, positions, True, ())


@pytest.mark.parametrize(
    ("statement", "options", "message"),
    [
        (sa.select(BARE), {}, "statement: bare has no primary key; pass key="),
        (sa.select(T.c.note), {}, "statement: the key column 'id' is not selected; select id too"),
        (sa.select(T).offset(5), {}, "statement: OFFSET reads everything before it again.*take it away"),
        (sa.select(T).offset(5), {"resumable": False}, "OFFSET"),
        (sa.select(T).limit(5), {}, "statement: a LIMIT cannot be kept over several chunks; take it away"),
        (sa.select(T).order_by(T.c.at), {}, r"statement: ORDER BY t.at is not the order of its key \(id\); take it"),
        (sa.select(T).order_by(T.c.id.desc()), {"key": T.c.id.asc()}, "ORDER BY t.id DESC is not the order"),
        (sa.select(T).order_by(T.c.id.asc()), {"key": T.c.id.desc()}, "ORDER BY t.id ASC is not the order"),
        (sa.select(T).order_by(T.c.id.desc().nulls_last()), {}, "ORDER BY t.id DESC NULLS LAST is not the order"),
        (sa.select(PAIR).order_by(PAIR.c.b), {}, "is not the order of its key"),
        (sa.select(T).join(PAIR, T.c.id == PAIR.c.a), {}, "rows of a join have no primary key of their own"),
        (sa.select(T, PAIR), {}, "rows of a join"),
        (sa.select(sa.func.count()).select_from(T).group_by(T.c.at), {}, "grouped, distinct or combined"),
        (sa.select(T.c.note).distinct(), {}, "grouped, distinct or combined"),
        (sa.union(sa.select(T.c.id), sa.select(PAIR.c.a)), {}, "grouped, distinct or combined"),
        (sa.select(T), {"key": "nothing"}, "key: the key column 'nothing' is not selected"),
        (sa.select(T), {"key": ()}, "key: no column is given"),
        (sa.select(T), {"key": 5}, "key: 5 is no column"),
        (sa.select(T, T.c.id.label("note")), {"key": "note"}, "key: the key column 'note' is selected twice"),
        (sa.insert(T), {}, "statement: a Insert gives no rows to read"),
        (5, {}, "statement: a int gives no rows to read"),
        ("DELETE FROM t", {}, "statement: 'DELETE FROM t' gives no rows to read"),
        ("SELECT * FROM t", {"resumable": True}, "SQL text has no key that could be found"),
        ("SELECT * FROM t LIMIT 10 OFFSET 20", {}, "OFFSET"),
        ("SELECT * FROM t LIMIT 20, 10", {}, "OFFSET"),
        ("SELECT * FROM t LIMIT 10", {"key": "id"}, "LIMIT"),
        ("SELECT * FROM t ORDER BY at", {"key": "id"}, r"ORDER BY at is not the order of its key \(id\)"),
        ("SELECT * FROM t ORDER BY id DESC NULLS LAST", {"key": "id"}, "ORDER BY id DESC NULLS LAST"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_change(statement: Any, options: Any, message: str) -> None:
    with pytest.raises(StatementError, match=message) as caught:
        analyse(statement, DIALECTS["sqlite"], **options)
    assert caught.value.mend


def test_a_given_key_is_unique_where_its_definition_says_so() -> None:
    assert _keyset(sa.select(T), key="email").unique
    assert _keyset(sa.select(T), key=(T.c.at, T.c.id)).unique
    assert not _keyset(sa.select(T), key=T.c.at).unique
    assert _keyset(sa.select(T), key=(T.c.note, T.c.id)).nullable == ("note",)
    assert not _keyset(sa.select(T).join(PAIR, T.c.id == PAIR.c.a), key=T.c.id).unique


def test_the_pages_use_what_each_database_has_an_index_for() -> None:
    for name in ("sqlite", "postgresql"):
        query = _sql(_keyset(sa.select(PAIR), name), (1, 2), (5, 6), name)
        assert "WHERE ((pair.a, pair.b) > (1, 2)) AND ((pair.a, pair.b) <= (5, 6)) ORDER BY pair.a, pair.b" in query
    query = _sql(_keyset(sa.select(PAIR), "mysql"), (1, 2), (5, 6), "mysql")
    assert "WHERE pair.a >= 1 AND (pair.a > 1 OR pair.a = 1 AND pair.b > 2)" in query
    assert "AND pair.a <= 5 AND (pair.a < 5 OR pair.a = 5 AND pair.b <= 6) ORDER BY pair.a, pair.b" in query
    assert "WHERE t.id > 7 ORDER BY t.id LIMIT 5" in _sql(_keyset(sa.select(T)), (7,))
    assert "WHERE t.at IS NULL AND t.id > 7" in _sql(_keyset(sa.select(T).where(T.c.at.is_(None))), (7,))


def test_text_is_put_into_brackets_and_its_names_are_quoted() -> None:
    keyset = _keyset("SELECT id AS `my key` FROM t -- all of them\n;", "mysql", key="my key")
    query = " ".join(str(keyset.page((7,), None, 5)[0].compile(dialect=DIALECTS["mysql"])).split())
    assert "FROM (SELECT id AS `my key` FROM t -- all of them ) AS memwarden_rows" in query
    assert "WHERE memwarden_rows.`my key` > %s ORDER BY memwarden_rows.`my key`" in query


@pytest.mark.parametrize(
    "text",
    [
        "SELECT offset FROM t",
        "SELECT ' OFFSET 5' FROM t",
        "SELECT 1 -- OFFSET 5",
        "SELECT * FROM (SELECT * FROM t LIMIT 5 OFFSET 5) AS s",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SELECT $tag$ OFFSET 5 $tag$",
    ],
)
def test_words_that_look_like_clauses_are_none(text: str) -> None:
    assert isinstance(analyse(text, DIALECTS["postgresql"]), Stream)


def test_the_width_of_a_row_is_known_where_every_column_is_bounded() -> None:
    assert _keyset(sa.select(PAIR)).row_bytes == 2 * 56 + 80
    assert _keyset(sa.select(T)).row_bytes is None
    named = sa.select(T.c.id, T.c.email)
    assert _keyset(named, "postgresql").row_bytes == 56 + 80 + 4 * 50 + 80
    assert _keyset(named, "sqlite").row_bytes is None  # it keeps to no length
    priced = sa.select(PRICED)
    assert _keyset(priced, "postgresql").row_bytes == 56 + (104 + 12) + 120 + (80 + 4 * 6) + 80
    assert _keyset(priced.add_columns(sa.cast(PRICED.c.id, sa.JSON)), "postgresql").row_bytes is None


def _lengths(statement: Any, name: str = "postgresql", **options: Any) -> list[str]:
    return [str(length) for length in _keyset(statement, name, **options).lengths]


def test_the_lengths_of_what_has_no_bound_are_asked_for_only_where_that_is_cheap() -> None:
    assert _lengths(sa.select(T)) == ["octet_length(t.note)"] == _lengths(sa.select(T), "mysql")
    assert _lengths(sa.select(T.c.id, T.c.email)) == []
    assert _lengths(sa.select(Person)) == ["octet_length(person.name)"]
    for expensive in (
        sa.select(T).where(T.c.email > "m"),  # it may look at far more rows than it gives
        sa.select(T, sa.func.upper(T.c.note)),
        sa.select(T.c.id, sa.type_coerce(T.c.note, sa.JSON)),
    ):
        assert _lengths(expensive) == []
    joined = sa.select(T.c.id, T.c.note).join(PAIR, PAIR.c.a == T.c.id)
    assert _lengths(joined, key=T.c.id) == [] == _lengths(sa.select(T), "sqlite")


def test_a_page_within_so_many_bytes_asks_for_the_lengths_of_the_same_rows() -> None:
    query, values = _keyset(sa.select(T.c.id, T.c.note), "postgresql").page((7,), (90,), 5, 1000)
    compiled = query.params(values).compile(dialect=DIALECTS["postgresql"], compile_kwargs={"literal_binds": True})
    same = "FROM t WHERE t.id > 7 AND t.id <= 90 ORDER BY t.id LIMIT 5"
    assert " ".join(str(compiled).split()) == (
        "SELECT t.id, t.note FROM t WHERE t.id > 7 AND t.id <= 90 AND (SELECT coalesce(sum(memwarden_lengths.bytes), 0)"
        f" AS coalesce_1 FROM (SELECT 0 + coalesce(octet_length(t.note), 0) AS bytes {same}) AS memwarden_lengths)"
        " <= 1000 ORDER BY t.id LIMIT 5"
    )


@settings(deadline=None)
@given(st.text(alphabet="'\"`()-/*$ab;\n OFSET", max_size=60))
def test_no_text_breaks_the_look_for_clauses(text: str) -> None:
    assert isinstance(_outer_words(text), str)


ROWS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), unique=True, max_size=40)


@settings(deadline=None, max_examples=60)  # each makes a database
@given(ROWS, st.tuples(*[st.integers(0, 3)] * 3), st.sampled_from(["sqlite", "mysql"]))
def test_both_forms_mean_the_same_order(rows: list[tuple[int, ...]], low: tuple[int, ...], name: str) -> None:
    """The expanded form is MariaDB's; SQLite is asked for both here."""
    engine = sa.create_engine("sqlite://")
    table = sa.Table("three", sa.MetaData(), *(sa.Column(n, sa.Integer, primary_key=True) for n in "abc"))
    table.create(engine)
    with engine.begin() as connection:
        if rows:
            connection.execute(table.insert(), [dict(zip("abc", row, strict=True)) for row in rows])
        query, values = _keyset(sa.select(table), name).page(low, (3, 1, 2), 100)
        found = [tuple(row) for row in connection.execute(query, values)]
    engine.dispose()
    assert found == sorted(row for row in rows if low < row <= (3, 1, 2))


def test_without_sqlalchemy_the_missing_extra_is_named() -> None:
    program = """
import sys
sys.modules["sqlalchemy"] = None
from memwarden import flow
from memwarden.errors import MissingExtraError
for name in ("scan", "process"):
    try:
        getattr(flow, name)
    except MissingExtraError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.count("sqlalchemy") == 2


@pytest.mark.parametrize(
    ("statement", "key", "down"),
    [
        (sa.select(T), T.c.id.desc(), (True,)),
        (sa.select(T), sa.desc("id"), (True,)),
        (sa.select(T).order_by(T.c.id.desc()), None, (True,)),
        (sa.select(T).order_by(sa.desc("id")), "id", (True,)),
        (sa.select(PAIR).order_by(PAIR.c.a.desc()), None, (True, True)),  # backwards through its index
        (sa.select(PAIR).order_by(PAIR.c.a.desc(), PAIR.c.b), None, (True, False)),
        (sa.select(PAIR), (PAIR.c.a, PAIR.c.b.desc()), (False, True)),
        (sa.select(PAIR), (PAIR.c.a.desc(), PAIR.c.b), (True, False)),
        (sa.select(PAIR.c.a, PAIR.c.b).distinct(), (sa.desc("a"), "b"), (True, False)),
        ("SELECT a, b FROM pair ORDER BY a DESC, b desc", ("a", "b"), (True, True)),
        ("SELECT a, b FROM pair", (sa.desc("a"), "b"), (True, False)),
    ],
)
def test_keys_may_descend(statement: Any, key: Any, down: tuple[bool, ...]) -> None:
    found = analyse(statement, DIALECTS["sqlite"], key=key)
    assert isinstance(found, Keyset)
    assert found.down == down


def test_behind_a_descending_key_is_below_it() -> None:
    found = analyse(sa.select(PAIR), DIALECTS["sqlite"], key=(PAIR.c.a.desc(), PAIR.c.b.desc()))
    assert isinstance(found, Keyset)
    query = _sql(found, (1, 2), (5, 6))
    assert "(pair.a, pair.b) < (1, 2)" in query
    assert "(pair.a, pair.b) >= (5, 6)" in query
    assert "ORDER BY pair.a DESC, pair.b DESC" in query
    found = analyse(sa.select(PAIR), DIALECTS["sqlite"], key=(PAIR.c.a.desc(), PAIR.c.b))
    assert isinstance(found, Keyset)
    query = _sql(found, (1, 2))
    assert "pair.a <= 1 AND (pair.a < 1 OR pair.a = 1 AND pair.b > 2) ORDER BY pair.a DESC, pair.b" in query
