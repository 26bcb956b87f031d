"""Rows as a job's items: whatever stops it where, none is lost, or the key is refused."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import JobError, KeyOrderError, StatementError
from memwarden.jobs import Rows, job, perform, submit
from memwarden.jobs.sources import source_of
from memwarden.store import Store
from tests.flow.database.servers import SERVERS
from tests.jobs.inline import Inline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS: dict[str, Any] = {"INTEGER": sa.Integer, "VARCHAR(20) COLLATE NOCASE": sa.String}


def rows_of(engine: sa.Engine, kind: str, values: list[Any]) -> Rows:
    """A table of these keys, each with its number, and nothing that says that they are unique."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE keyed (g {kind}, n INTEGER)")
        rows = [{"g": value, "n": number} for number, value in enumerate(values)]
        connection.execute(sa.text("INSERT INTO keyed VALUES (:g, :n)"), rows)
    table = sa.table("keyed", sa.column("g", KINDS.get(kind, sa.String)), sa.column("n", sa.Integer))
    return Rows(sa.select(table.c.g, table.c.n), engine, key="g")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=st.lists(st.integers(0, 60), min_size=1, max_size=40) | st.lists(st.sampled_from("aAbBcCdDeEfF"), max_size=9)
    .filter(bool), chunk=st.integers(1, 20), stops=st.lists(st.integers(1, 4), max_size=5),
)  # fmt: skip
def test_no_row_is_lost_whatever_the_key_and_wherever_it_is_stopped(
    values: list[Any], chunk: int, stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, seen = str(tmp_path_factory.mktemp("rows")), list[int]()
    engine = sa.create_engine(f"sqlite:///{folder}/rows.db")
    rows = rows_of(engine, list(KINDS)[isinstance(values[0], str)], values)

    def handle(chunk: list[Any]) -> None:
        seen.extend(row.n for row in chunk)

    made = job(items=lambda: rows, chunk=chunk, limit="1G", retries=0, name="tests:keyed")(handle)
    with Store(folder) as store:
        bench = Inline(folder, store)
        root = submit(made, {}, engine=bench, ledger=bench.ledger)
        for after in stops:
            looks = iter([False] * after)
            if bench.queue:
                perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger, stop=partial(next, looks, True))
        bench.work()
        status = bench.ledger.status(root)
    engine.dispose()
    assert status is not None
    unique = len({str(value).lower() for value in values}) == len(values)
    if unique:
        assert status.state == "done"
    if status.state == "done":
        assert sorted(seen) == list(range(len(values)))
    else:
        assert "KeyOrderError" in str(status.error)


T = sa.table("t", sa.column("id", sa.Integer))


@pytest.mark.parametrize(
    ("statement", "key", "said"),
    [
        (sa.select(T.c.id), None, "t has no primary key; pass key= with the columns of a unique index"),
        (sa.select(T.c.id).distinct(), None, "combined SELECT has no primary key; pass key= with the columns of"),
        (sa.select(T.c.id).limit(3), "id", "a LIMIT cannot be kept over several chunks; take it away, and let a WHERE"),
        (sa.text("SELECT id FROM t LIMIT 3"), "id", "a LIMIT cannot be kept over several chunks; take it away, and"),
    ],
)
def test_what_is_to_be_changed_is_what_rows_can_do(statement: Any, key: Any, said: str) -> None:
    with pytest.raises(StatementError) as caught:
        Rows(statement, sa.create_engine("sqlite://"), key=key)
    assert said in str(caught.value)
    assert not any(name in str(caught.value) for name in ("resumable=", "rows="))


def test_items_may_be_a_statement_and_its_engine_as_for_process_in_chunks(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/rows.db")
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"id": number} for number in range(7)])
    source = source_of((sa.select(table.c.id), engine), job="work")
    assert isinstance(source, Rows)
    assert [row.id for _, row in source.read(None, None)] == list(range(7))
    with engine.connect() as connection, pytest.raises(JobError, match="rows: needs a plain Engine"):
        source_of((sa.select(table.c.id), connection), job="work")
    engine.dispose()


def test_a_key_of_several_rows_is_refused_at_the_first_of_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path_factory.mktemp('rows')}/rows.db")
    read = rows_of(engine, "INTEGER", [1, 2, 2, 3]).read(None, None)
    assert [next(read)[0], next(read)[0]] == ["[1]", "[2]"]
    with pytest.raises(KeyOrderError, match=r"several rows have \(g\) = 2"):
        next(read)
    engine.dispose()


@pytest.fixture(scope="module")
def mariadb() -> Iterator[sa.Engine]:
    with SERVERS["mariadb"]() as url:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()


@pytest.mark.server
def test_reading_does_not_go_on_behind_a_text_that_the_collation_finds_twice(mariadb: sa.Engine) -> None:
    rows = rows_of(mariadb, "VARCHAR(20) COLLATE utf8mb4_general_ci", ["b", "strasse", "STRASSE", "t"])
    keys = [key for key, _ in rows.read(None, None)]
    assert len(keys) == 4
    assert next(rows.read(keys[0], None))[0] == keys[1]
    with pytest.raises(KeyOrderError, match="several rows have"):
        next(rows.read(keys[1], None))
