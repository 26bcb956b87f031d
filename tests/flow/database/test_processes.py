"""Workers that are processes: every row once, each in one of them; what fails or dies is said, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from memwarden import flow
from memwarden.budget import Budget
from memwarden.errors import ChunkError, ConfigError, FlowError
from memwarden.store import Store
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from memwarden.flow.database import Batch, Progress
    from tests.flow.database.conftest import Database

pytestmark = pytest.mark.timeout(300)
SOURCE = sa.Table(
    "source",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.String(100), nullable=False),
)
SINK = sa.Table("sink", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("pid", sa.Integer))
STATEMENT = sa.select(SOURCE)


def write(chunk: Batch, bad: frozenset[int] = frozenset()) -> None:
    pid = os.getpid()
    chunk.connection.execute(SINK.insert(), [{"id": row.id, "pid": pid} for row in chunk])
    for row in chunk:
        if row.id in bad:
            raise ValueError(f"row {row.id} is bad")


def engine_that_waits(url: sa.URL) -> sa.Engine:
    """SQLite has one writer: the others wait for it, however busy the machine is."""
    return sa.create_engine(url, connect_args={"timeout": 120} if url.get_backend_name() == "sqlite" else {})


def die_once(chunk: Batch, folder: str) -> None:
    write(chunk)
    if chunk[0].id >= 600 and not os.path.exists(f"{folder}/died"):
        with open(f"{folder}/died", "w", encoding="ascii"):
            os.kill(os.getpid(), signal.SIGKILL)


def leave(chunk: Batch) -> None:
    os._exit(7)


def words(row: Any, chunk: Batch) -> list[str]:
    return [row.body] * 5


class OddError(Exception):
    """Cannot be sent: it needs two arguments and remembers one."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def raise_odd(chunk: Batch) -> None:
    raise OddError(1, 2)


# What is not about databases is tried on one: each process takes a second of CPU to start.
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def filled(database: Database) -> Database:
    SOURCE.metadata.drop_all(database.engine)
    database.fill(SOURCE, [{"id": n, "body": f"b{n}"} for n in range(1000)])
    database.fill(SINK, [])
    return database


def _process(database: Database, handler: Any = write, **options: Any) -> Any:
    settings: dict[str, Any] = {"name": "copy", "rows": 50, "parallel": 2, "processes": engine_that_waits}
    return flow.process(STATEMENT, handler, database.engine, **(settings | options))


def _ids(database: Database) -> list[int]:
    return [row[0] for row in database.all("SELECT id FROM sink ORDER BY id")]


def test_every_row_once_in_processes_of_their_own(filled: Database) -> None:
    told: list[Progress] = []
    budget = Budget("64M")
    held: list[int] = []

    def tell(now: Progress) -> None:
        told.append(now)
        held.append(budget.held_bytes)

    done = _process(filled, progress=tell, budget=budget)
    assert (done.rows, done.processed) == (1000, 1000)
    assert _ids(filled) == list(range(1000))
    pids = {row[0] for row in filled.all("SELECT pid FROM sink")}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert (told[-1].processed, told[-1].total, told[-1].percent) == (1000, 1000, 100.0)
    assert len(told) == done.chunks
    assert set(held) == {64 << 20}
    assert _process(filled).rows == 0


@SQLITE
def test_a_process_that_is_killed_is_named_and_its_part_taken_up(filled: Database, tmp_path: Path) -> None:
    handler = partial(die_once, folder=str(tmp_path))
    with pytest.raises(FlowError, match=r"was killed by SIGKILL, in part .*for memory.*started again it goes on"):
        _process(filled, handler)
    before = len(_ids(filled))
    done = _process(filled, handler)
    assert done.rows == 1000 - before
    assert _ids(filled) == list(range(1000))


@SQLITE
def test_bad_rows_are_found_and_counted_over_processes(filled: Database) -> None:
    bad = frozenset({3, 333, 777})
    done = _process(filled, partial(write, bad=bad), on_error="bisect", retries=0)
    assert (done.rows, done.dead_rows, done.dead_chunks) == (997, 3, 3)
    assert sorted(letter.high or "" for letter in done.dead) == ["[333]", "[3]", "[777]"]
    assert _ids(filled) == sorted(set(range(1000)) - bad)


@SQLITE
def test_an_error_of_a_handler_ends_all_and_is_raised_with_its_cause(filled: Database) -> None:
    with pytest.raises(ChunkError, match="row 990 is bad") as caught:
        _process(filled, partial(write, bad=frozenset({990})), on_error="stop")
    assert isinstance(caught.value.__cause__, ValueError)
    assert _process(filled).processed == 1000
    assert _ids(filled) == list(range(1000))


@SQLITE
def test_an_error_that_cannot_be_sent_is_told_as_text(filled: Database) -> None:
    with pytest.raises(ChunkError, match="failed: OddError: 1") as caught:
        _process(filled, raise_odd, on_error="stop")
    assert isinstance(caught.value.__cause__, FlowError)


@SQLITE
def test_a_process_that_leaves_is_an_error_and_not_a_hang(filled: Database) -> None:
    with pytest.raises(FlowError, match="ended with exit code 7, in part 0; see its own messages"):
        _process(filled, leave, name=None, parallel=1)


@SQLITE
def test_too_many_bad_rows_end_it_however_they_are_spread(filled: Database) -> None:
    bad = partial(write, bad=frozenset(range(1000)))
    with pytest.raises(ChunkError, match="more than 120 rows"):
        _process(filled, bad, on_error="continue", retries=0, most_dead=120, rows=50)


@SQLITE
def test_row_by_row_into_another_database_with_a_store(filled: Database, tmp_path: Path) -> None:
    with Store(str(tmp_path / "store")) as store:
        done = _process(filled, words, by="row", max_results=2, checkpoint=store, processes=True)
        assert (done.results, done.results_dropped) == (2000, 3000)
        assert sum(part.rows for part in store.checkpoints("copy")) == 1000
        assert _process(filled, words, by="row", checkpoint=store).rows == 0
    into = sa.create_engine(f"sqlite:///{tmp_path}/into.db")
    SINK.create(into)
    assert _process(filled, into=into, name="other", parallel=1).rows == 1000
    with into.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(SINK)).scalar() == 1000
    into.dispose()


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "source"
    id: Mapped[int] = mapped_column(primary_key=True)


@SQLITE
def test_what_cannot_be_sent_or_followed_is_refused_with_its_name(filled: Database) -> None:
    engine = filled.engine

    def refused(where: str, statement: Any = STATEMENT, handler: Any = write, **options: Any) -> None:
        with pytest.raises(ConfigError, match=where):
            flow.process(statement, handler, engine, **{"processes": True, "parallel": 2} | options)

    refused(r"handler: cannot be handed to a process \(.*define it at the top of a module", handler=lambda chunk: 0)
    refused(r"statement: cannot be handed to a process .*Entity.__table__", sa.select(Thing))
    refused("clock: processes cannot follow this one's", clock=FakeClock())
    refused("processes: 3 makes no engine", processes=3)
    refused("processes: cannot be handed", processes=lambda url: None)
    with Store("", environ={}) as store:
        refused("checkpoint: a store in memory", name="x", checkpoint=store)
    with pytest.raises(ConfigError, match="parallel: each worker has a memory database of its own"):
        flow.process("SELECT 1", write, sa.create_engine("sqlite://"), processes=True)

    async def asked(engine: Any) -> None:
        with pytest.raises(ConfigError, match="processes: are for handlers that compute"):
            await flow.process(STATEMENT, write, engine, processes=True)

    filled.run(asked)


_SHELL = """
import sqlalchemy as sa
from memwarden import flow
from memwarden.errors import ConfigError
def handler(chunk):
    pass
try:
    flow.process("SELECT id, body FROM source", handler, sa.create_engine({url!r}), processes=True)
except ConfigError as error:
    print(error)
"""


@SQLITE
def test_a_handler_of_a_shell_is_not_found_by_a_process(filled: Database) -> None:
    program = _SHELL.format(url=filled.url.render_as_string(hide_password=False))
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("handler: cannot be found by a new process (AttributeError: ")
    assert "not in a shell or a notebook" in done.stdout
