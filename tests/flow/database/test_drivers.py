"""Other drivers for MariaDB than those of the suite: the same contract, above all that nothing is read for nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from memwarden import flow
from memwarden.errors import SourceError
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memwarden.flow.database import Batch
    from tests.flow.database.conftest import Database

pytestmark = [pytest.mark.server, pytest.mark.parametrize("database", ["mariadb"], indirect=True)]
TABLE = sa.Table(
    "notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", LONGTEXT),
)  # fmt: skip
SINK = sa.Table("sink", sa.MetaData(), sa.Column("id", sa.Integer))
ROWS = 1200


def _body(number: int) -> str:
    return f"é{number}" if number < 1000 else "x" * 100_000


@pytest.fixture
def filled(database: Database) -> Database:
    database.fill(TABLE, [{"id": n, "body": _body(n)} for n in range(ROWS)])
    database.fill(SINK, [])
    return database


@pytest.fixture
def engine(filled: Database) -> Iterator[sa.Engine]:
    try:
        importlib.import_module("MySQLdb")
    except ImportError:
        pytest.skip("mysqlclient is not installed: it has no wheel for Linux")
    engine = sa.create_engine(filled.url.set(drivername="mysql+mysqldb"))
    yield engine
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    engine.dispose()


def _handed_out(engine: sa.Engine | AsyncEngine) -> int:
    pool: Any = engine.pool
    return int(pool.checkedout())


def _received(database: Database) -> int:
    return int(database.all("SHOW GLOBAL STATUS LIKE 'Bytes_sent'")[0][1])


def test_mysqlclient_reads_by_bytes_and_resumes(filled: Database, engine: sa.Engine) -> None:
    bad = {17}

    def write(chunk: Batch) -> None:
        assert chunk.bytes <= 1 << 20
        chunk.connection.execute(SINK.insert(), [{"id": row.id} for row in chunk])
        assert all(row.body == _body(row.id) for row in chunk)
        if bad & {row.id for row in chunk}:
            raise ValueError("bad")

    options: dict[str, Any] = {"name": "copy", "budget": "1M", "on_error": "bisect", "clock": FakeClock()}
    done = flow.process(sa.select(TABLE), write, engine, **options)
    assert (done.rows, done.dead_rows) == (ROWS - 1, 1)
    assert flow.process(sa.select(TABLE), write, engine, **options).rows == 0
    assert [row[0] for row in filled.all("SELECT id FROM sink ORDER BY id")] == [n for n in range(ROWS) if n != 17]


@pytest.mark.parametrize("resumable", [False, True])
def test_mysqlclient_reads_no_rest(
    filled: Database, engine: sa.Engine, resumable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = _received(filled)
    chunks = flow.scan(sa.select(TABLE).where(TABLE.c.id >= 1000), engine, budget="1M", resumable=resumable).chunks()
    assert len(next(chunks)) <= 10
    chunks.close()
    assert _received(filled) - before < 15_000_000  # of the 20 MB; the server has sent some ahead
    assert not caplog.records


def test_mysqlclient_says_when_its_connection_goes(filled: Database, engine: sa.Engine) -> None:
    query = "SELECT id, body, CONNECTION_ID() AS me FROM notes WHERE id >= 1000"
    chunks = flow.scan(query, engine, budget="1M").chunks()
    with sa.create_engine(filled.url, poolclass=sa.NullPool).connect() as other:
        other.exec_driver_sql(f"KILL {next(chunks)[0].me}")
    with pytest.raises(SourceError, match=r"connection was lost after \d+ rows"):
        list(chunks)


def test_aiomysql(filled: Database) -> None:
    async def main(_engine: AsyncEngine) -> None:
        engine = create_async_engine(filled.url.set(drivername="mysql+aiomysql"))

        async def write(chunk: Batch) -> None:
            assert chunk.bytes <= 1 << 20
            await chunk.connection.execute(SINK.insert(), [{"id": row.id} for row in chunk])

        done = await flow.process(sa.select(TABLE), write, engine, name="copy", budget="1M", parallel=2)
        assert done.rows == ROWS
        found = [row.id async for row in flow.scan("SELECT id, body FROM notes ORDER BY id", engine, budget="1M")]
        assert found == list(range(ROWS))
        before = _received(filled)
        wide = sa.select(TABLE).where(TABLE.c.id >= 1000)
        async with flow.scan(wide, engine, budget="1M", resumable=False) as scan:
            async for chunk in scan.chunks_async():
                assert len(chunk) <= 10
                break
        assert _received(filled) - before < 15_000_000
        assert _handed_out(engine) == 0
        await engine.dispose()

    filled.run(main)
    assert [row[0] for row in filled.all("SELECT id FROM sink ORDER BY id")] == list(range(ROWS))
