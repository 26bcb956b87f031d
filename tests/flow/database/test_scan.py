"""Reading: every row once, in small memory's terms, on each database, sync and async."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from memwarden import flow
from memwarden.errors import KeyOrderError, SourceError, StatementError
from memwarden.flow.database.statement import Keyset, analyse

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.flow.database.conftest import Database

WIDE = "x" * 20_000


def _notes(count: int, *, wide: range = range(0)) -> tuple[sa.Table, list[dict[str, Any]]]:
    table = sa.Table(
        "notes",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text().with_variant(LONGTEXT, "mysql", "mariadb")),
    )
    return table, [{"id": n, "body": WIDE if n in wide else f"n{n}"} for n in range(count)]


def test_every_row_comes_once_and_in_order(database: Database) -> None:
    table = database.fill(*_notes(2500))
    assert [row.id for row in flow.scan(sa.select(table), database.engine)] == list(range(2500))


def test_chunks_are_cut_by_rows_and_by_bytes(database: Database) -> None:
    table = database.fill(*_notes(3000, wide=range(1000, 1200)))
    sizes = [(len(chunk), chunk.bytes) for chunk in flow.scan(sa.select(table), database.engine, budget="1M").chunks()]
    assert sum(rows for rows, _ in sizes) == 3000
    assert max(size for _, size in sizes) <= 1 << 20
    assert max(rows for rows, _ in sizes) == 1000
    assert len(sizes) >= 200 * len(WIDE) // (1 << 20) + 3


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_narrow_rows_come_a_chunk_at_a_time_and_never_a_wide_region(database: Database, is_async: bool) -> None:
    """Where the server can say how long the texts are, a chunk is one query without a cursor, if they are short."""
    table = database.fill(*_notes(20_000, wide=range(9500, 9800)))
    asked: list[tuple[bool, bool]] = []  # with the lengths, through a cursor

    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def note(_connection: Any, cursor: Any, query: str, _values: Any, context: Any, _many: bool) -> None:
        if "notes" in query:
            asked.append(("octet_length" in query, bool(context.execution_options.get("stream_results"))))

    def take(scan: Any) -> Any:
        return [([row.id for row in chunk], chunk.bytes) for chunk in scan.chunks()]

    async def read(engine: AsyncEngine) -> Any:
        chunks = flow.scan(sa.select(table), engine, budget="2M").chunks_async()
        return [([row.id for row in chunk], chunk.bytes) async for chunk in chunks]

    try:
        found = database.run(read) if is_async else take(flow.scan(sa.select(table), database.engine, budget="2M"))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert [number for numbers, _ in found for number in numbers] == list(range(20_000))
    assert max(size for _, size in found) <= 2 << 20
    assert all(not (with_lengths and by_cursor) for with_lengths, by_cursor in asked)
    whole = sum(with_lengths for with_lengths, _ in asked)
    if database.kind == "sqlite":
        assert whole == 0
    else:  # 8 of the 9 chunks before the wide ones, that which met them, and what came when the rest was over
        assert 9 <= whole <= 16
        assert asked[0] == (False, True)


def test_text_streams_without_a_key_and_is_cut_the_same_way(database: Database) -> None:
    database.fill(*_notes(3000, wide=range(1000, 1200)))
    query = "SELECT id, body FROM notes WHERE id >= :low ORDER BY id DESC"
    scan = flow.scan(query, database.engine, budget="1M", parameters={"low": 10})
    found = []
    for chunk in scan.chunks():
        assert chunk.bytes <= 1 << 20
        assert len(chunk) <= 1000
        found += [row.id for row in chunk]
    assert found == list(range(2999, 9, -1))
    assert scan.position is None


def test_text_with_a_key_resumes(database: Database) -> None:
    database.fill(*_notes(500))
    query = "SELECT id AS number, body FROM notes WHERE id < :high -- up to there\n;"
    options: dict[str, Any] = {"key": "number", "parameters": {"high": 400}, "rows": 100}
    first = flow.scan(query, database.engine, **options)
    chunks = first.chunks()
    assert [row.number for row in next(chunks)] == list(range(100))
    next(chunks)
    chunks.close()
    assert first.position == (99,)
    rest = flow.scan(query, database.engine, after=first.position, **options)
    assert [row.number for row in rest] == list(range(100, 400))


def test_composite_keys_with_ties_in_their_first_column(database: Database) -> None:
    table = sa.Table(
        "calls",
        sa.MetaData(),
        sa.Column("day", sa.DateTime, primary_key=True),
        sa.Column("who", sa.String(40), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    )
    rows = [
        {
            "day": datetime(2026, 1, 1)  # noqa: DTZ001  a column without a zone
            + timedelta(days=n // 300),
            "who": f"w{n % 300 // 10:02}é",
            "number": n % 10,
        }
        for n in range(1500)
    ]
    database.fill(table, rows)
    found = [tuple(row) for row in flow.scan(sa.select(table), database.engine, rows=7)]
    assert len(found) == 1500
    assert sorted(found) == sorted((row["day"], row["who"], row["number"]) for row in rows)


@pytest.mark.parametrize("down", [(True, True), (True, False), (False, True)])
def test_descending_keys(database: Database, down: tuple[bool, bool]) -> None:
    columns = [sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in "ab"]
    table = sa.Table("pair", sa.MetaData(), *columns)
    database.fill(table, [{"a": n // 30, "b": n % 30} for n in range(600)])
    key = [column.desc() if falls else column for column, falls in zip(table.c, down, strict=True)]
    wanted = sorted(
        ((n // 30, n % 30) for n in range(600)),
        key=lambda row: [-value if falls else value for value, falls in zip(row, down, strict=True)],
    )
    scan = flow.scan(sa.select(table), database.engine, key=key, rows=17)
    assert [tuple(row) for row in scan] == wanted
    assert scan.position == wanted[-1]
    rest = flow.scan(sa.select(table).order_by(*key), database.engine, after=wanted[300], rows=50)
    assert [tuple(row) for row in rest] == wanted[301:]
    if all(down):
        text = flow.scan("SELECT a, b FROM pair ORDER BY a DESC, b DESC", database.engine, key=("a", "b"), rows=50)
        assert [tuple(row) for row in text] == wanted
    seen: list[tuple[int, ...]] = []
    done = flow.process(
        sa.select(table), lambda chunk: seen.extend(map(tuple, chunk)), database.engine, key=key, parallel=2, rows=40
    )
    assert done.rows == 600
    assert sorted(seen) == sorted(wanted)


def test_a_page_begins_at_its_place_in_the_index(database: Database) -> None:
    """And does not walk there: what MariaDB does with (a, b) > (x, y), for which it gets another form."""
    columns = (sa.Column(name, sa.Integer, primary_key=True, autoincrement=False) for name in "ab")
    table = sa.Table("pair", sa.MetaData(), *columns)
    database.fill(table, [{"a": n // 50, "b": n % 50} for n in range(5000)])
    keyset = analyse(sa.select(table), database.engine.dialect)
    assert isinstance(keyset, Keyset)
    query, values = keyset.page((50, 7), None, 10)
    shown = str(query.params(values).compile(database.engine, compile_kwargs={"literal_binds": True}))
    if database.kind == "postgresql":
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE pair")
    word = "EXPLAIN QUERY PLAN" if database.kind == "sqlite" else "EXPLAIN"
    plan = " ".join(str(row) for row in database.all(f"{word} {shown}"))
    expected = {
        "sqlite": "SEARCH pair USING",
        "postgresql": "Index Cond: (ROW(a, b) > ROW(50, 7))",
        "mariadb": "'range'",
    }
    assert expected[database.kind] in plan


def test_a_key_without_an_index_is_warned_of_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    table = sa.Table(
        "events",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Integer, nullable=False),
        sa.Column("who", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Integer, nullable=False),
        sa.Index("by_who", "who", "at"),
        sa.Index("by_tenant", "tenant", "at", "id"),
    )
    database.fill(table, [{"id": n, "at": n // 3, "who": n, "tenant": n % 2} for n in range(200)])

    def warned(statement: Any, key: Any) -> list[str]:
        caplog.clear()
        list(flow.scan(statement, database.engine, key=key, rows=50))
        return [record.getMessage() for record in caplog.records if record.name == "memwarden.flow"]

    whole = sa.select(table)
    assert warned(whole, None) == warned(whole, "id") == warned(whole, ("who", "at")) == warned(whole, "who") == []
    assert warned(whole, table.c.who.desc()) == []
    (line,) = warned(whole, ("at", "id"))
    assert line == (
        "key (at, id): events has no index for it, so all is sorted anew for each chunk; make one on (at, id)"
    )
    assert warned(whole.where(table.c.tenant == 1), ("at", "id")) == []
    assert len(warned(whole.where(table.c.who > 5), ("at", "id"))) == 1
    grouped = sa.select((table.c.who + 1).label("w"), sa.func.count().label("n")).group_by("w")
    expected = 1 if database.kind == "sqlite" else 0  # only it says how it reads what is no plain table
    assert len(warned(grouped, "w")) == expected
    caplog.clear()
    flow.process(whole, lambda chunk: None, database.engine, key=("at", "id"), rows=50, parallel=2)
    assert len([record for record in caplog.records if record.name == "memwarden.flow"]) == 1
    with database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX by_at ON events (at, id)")
    assert warned(whole, ("at", "id")) == []


def test_texts_as_keys_follow_the_collation_of_the_database(database: Database) -> None:
    """MariaDB's usual collation has 'a' = 'A' and its own order; no row may be lost or taken for a liar."""
    words = ["a", "B", "c", "öd", "ae", "zz", "Zeta", "émile", "Эхо", "日本", "~", "_x", "x'y", 'x"y', "x\\y", " lead"]
    table = sa.Table("words", sa.MetaData(), sa.Column("word", sa.String(50), primary_key=True))
    database.fill(table, [{"word": word} for word in words])
    found = [row.word for row in flow.scan(sa.select(table), database.engine, rows=1)]
    assert sorted(found) == sorted(words)


def test_uuids_and_decimals_as_keys(database: Database) -> None:
    table = sa.Table(
        "things",
        sa.MetaData(),
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("price", sa.Numeric(12, 4), nullable=False),
    )
    rows = [{"id": uuid.uuid5(uuid.NAMESPACE_DNS, str(n)), "price": n} for n in range(200)]
    database.fill(table, rows)
    found = [row.id for row in flow.scan(sa.select(table), database.engine, rows=9)]
    assert len(found) == 200
    assert set(found) == {row["id"] for row in rows}


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    boss_id: Mapped[int | None]


def test_mapped_classes_and_joins(database: Database) -> None:
    Base.metadata.create_all(database.engine)
    with database.engine.begin() as connection:
        connection.execute(
            sa.insert(Person), [{"id": n, "name": f"p{n}", "boss_id": n // 2 or None} for n in range(1, 301)]
        )
    whole = flow.scan(sa.select(Person).where(Person.id > 50), database.engine, rows=10)
    assert [(row.id, row.name) for row in whole][:2] == [(51, "p51"), (52, "p52")]
    boss = aliased(Person)
    joined = sa.select(Person.id, boss.name.label("boss")).join(boss, Person.boss_id == boss.id)
    with pytest.raises(StatementError, match="rows of a join have no primary key of their own"):
        flow.scan(joined, database.engine)
    found = list(flow.scan(joined, database.engine, key=Person.id, rows=10))
    assert [row.id for row in found] == list(range(2, 301))
    assert found[0].boss == "p1"


def test_grouped_rows_are_read_by_their_group(database: Database) -> None:
    table = database.fill(*_notes(100))
    grouped = sa.select((table.c.id / 10).label("ten"), sa.func.count().label("n")).group_by("ten")
    if database.kind != "sqlite":
        grouped = sa.select(sa.func.floor(table.c.id / 10).label("ten"), sa.func.count().label("n")).group_by("ten")
    with pytest.raises(StatementError, match="has no primary key"):
        flow.scan(grouped, database.engine)
    found = list(flow.scan(grouped, database.engine, key="ten", rows=3))
    assert sum(row.n for row in found) == 100


def test_an_oversize_row_is_a_chunk_of_its_own(database: Database) -> None:
    table = database.fill(*_notes(10, wide=range(5, 6)))
    for query in (sa.select(table), "SELECT * FROM notes ORDER BY id"):
        scan = flow.scan(query, database.engine, budget=4096)
        assert [(len(chunk), chunk[0].id) for chunk in scan.chunks()] == [(5, 0), (1, 5), (4, 6)]


def test_null_in_a_key_is_refused_before_anything_is_read(database: Database) -> None:
    number = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    table = sa.Table("t", sa.MetaData(), number, sa.Column("at", sa.Integer))
    database.fill(table, [{"id": n, "at": n or None} for n in range(5)])
    scan = flow.scan(sa.select(table), database.engine, key=("at", "id"))
    with pytest.raises(KeyOrderError, match=r"NULL in the key .at."):
        list(scan)
    known = sa.select(table).where(table.c.at.is_not(None))
    assert len(list(flow.scan(known, database.engine, key=("at", "id"), rows=2))) == 4


def test_ties_at_the_end_of_a_chunk_are_refused_and_not_lost(database: Database) -> None:
    number = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    table = sa.Table("t", sa.MetaData(), number, sa.Column("at", sa.Integer, nullable=False))
    database.fill(table, [{"id": n, "at": n // 2} for n in range(100)])
    with pytest.raises(KeyOrderError, match=r"several rows have \(at\) = 4: .*add a column"):
        list(flow.scan(sa.select(table), database.engine, key="at", rows=9))


def test_a_scan_sees_what_is_written_behind_it_and_a_snapshot_does_not(database: Database) -> None:
    table = database.fill(*_notes(100))
    if database.kind == "sqlite":
        with database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    for snapshot, expected in ((True, 100), (False, 101)):
        chunks = flow.scan(sa.select(table), database.engine, rows=10, snapshot=snapshot).chunks()
        seen = len(next(chunks))
        with database.engine.begin() as connection:
            connection.execute(table.insert(), {"id": 1000 + snapshot, "body": "late"})
        seen += sum(len(chunk) for chunk in chunks)
        assert seen == expected + (0 if snapshot else 1)


def test_no_connection_is_left_behind(database: Database) -> None:
    table = database.fill(*_notes(3000))
    for query in (sa.select(table), "SELECT * FROM notes"):
        chunks = flow.scan(query, database.engine, rows=100).chunks()
        next(chunks)
        chunks.close()
        with flow.scan(query, database.engine, rows=100) as scan:
            next(iter(scan))
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


def test_a_borrowed_connection_stays_its_owners(database: Database) -> None:
    table = database.fill(*_notes(250))
    with database.engine.connect() as connection:
        connection.execute(table.insert(), {"id": 900, "body": "mine"})
        assert [row.id for row in flow.scan(sa.select(table), connection, rows=100)][-1] == 900
        connection.rollback()
        assert len(list(flow.scan(sa.select(table), connection))) == 250
        assert not connection.closed


def test_async_scans(database: Database) -> None:
    table = database.fill(*_notes(3000, wide=range(1000, 1200)))

    async def read(engine: AsyncEngine) -> None:
        found = [row.id async for row in flow.scan(sa.select(table), engine, budget="1M")]
        assert found == list(range(3000))
        streamed = flow.scan("SELECT id, body FROM notes ORDER BY id", engine, budget="1M")
        sizes = [(len(chunk), chunk.bytes) async for chunk in streamed.chunks_async()]
        assert sum(rows for rows, _ in sizes) == 3000
        assert max(size for _, size in sizes) <= 1 << 20
        async with flow.scan(sa.select(table), engine, rows=10) as scan:
            async for _chunk in scan.chunks_async():
                break
        async with engine.connect() as connection:
            assert len([row async for row in flow.scan(sa.select(table), connection)]) == 3000

    database.run(read)


# When a connection was lost SQLAlchemy drops psycopg's cursor without closing it, and psycopg complains.
DROPPED = pytest.mark.filterwarnings("ignore:Exception ignored in. <function ServerCursorMixin.__del__")


@DROPPED
def test_a_lost_connection_costs_nothing_by_key_and_the_scan_without(database: Database) -> None:
    if database.kind == "sqlite":
        return  # there is no connection to lose
    table = database.fill(*_notes(1000))
    ids = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}[database.kind]

    def kill(scan: Any) -> None:
        connection = scan._reader._connect()
        number = connection.exec_driver_sql(ids).scalar()
        connection.rollback()
        with sa.create_engine(database.url, poolclass=sa.NullPool).connect() as other:
            if database.kind == "postgresql":
                other.exec_driver_sql(f"SELECT pg_terminate_backend({number}, 5000)")
            else:
                other.exec_driver_sql(f"KILL {number}")

    scan = flow.scan(sa.select(table), database.engine, rows=100)
    found = []
    for chunk in scan.chunks():
        found += [row.id for row in chunk]
        if len(found) in (100, 500):
            kill(scan)
    assert found == list(range(1000))


@DROPPED
def test_what_is_read_without_a_key_says_so_when_its_connection_goes(database: Database) -> None:
    if database.kind == "sqlite":
        return
    table, rows = _notes(400, wide=range(400))
    database.fill(table, rows)
    query = {
        "postgresql": "SELECT id, body, pg_backend_pid() AS me FROM notes",
        "mariadb": "SELECT id, body, CONNECTION_ID() AS me FROM notes",
    }[database.kind]
    with sa.create_engine(database.url, poolclass=sa.NullPool).connect() as other:
        chunks = flow.scan(query, database.engine, budget="400K").chunks()
        me = next(chunks)[0].me
        if database.kind == "postgresql":
            other.exec_driver_sql(f"SELECT pg_terminate_backend({me}, 5000)")
        else:
            other.exec_driver_sql(f"KILL {me}")
        with pytest.raises(SourceError, match=r"connection was lost after \d+ rows.*pass key="):
            list(chunks)
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0
