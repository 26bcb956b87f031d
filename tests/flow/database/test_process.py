"""Working on a table: each row once, whatever fails; resume, retries, bad rows, ranges, time-outs, progress."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from memwarden import flow
from memwarden.budget import Budget
from memwarden.errors import CheckpointError, ChunkError, ChunkTimeoutError, ConfigError, StatementError
from memwarden.store import Store
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from memwarden.flow.database import Batch, Progress
    from tests.flow.database.conftest import Database


class Work:
    """A source of numbered rows, and a sink beside it without a key: what comes twice is seen twice."""

    def __init__(self, database: Database, count: int = 1000) -> None:
        self.database, self.engine = database, database.engine
        self.source = sa.Table(
            "source",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("body", sa.String(100), nullable=False),
        )
        self.sink = sa.Table("sink", sa.MetaData(), sa.Column("id", sa.Integer))
        database.fill(self.source, [{"id": n, "body": f"b{n}"} for n in range(count)])
        database.fill(self.sink, [])
        self.statement = sa.select(self.source)
        self.bad: set[int] = set()

    def write(self, chunk: Batch) -> None:
        chunk.connection.execute(self.sink.insert(), [{"id": row.id} for row in chunk])
        for row in chunk:
            if row.id in self.bad:
                raise ValueError(f"row {row.id} is bad")

    async def write_async(self, chunk: Batch) -> None:
        await chunk.connection.execute(self.sink.insert(), [{"id": row.id} for row in chunk])
        if any(row.id in self.bad for row in chunk):
            raise ValueError("a row is bad")

    def written(self) -> list[int]:
        return [row[0] for row in self.database.all("SELECT id FROM sink ORDER BY id")]


@pytest.fixture
def work(database: Database) -> Work:
    return Work(database)


def test_each_row_is_handed_out_once_and_a_finished_run_goes_on_with_what_came(work: Work) -> None:
    done = flow.process(work.statement, work.write, work.engine, name="copy", rows=90)
    assert (done.rows, done.processed, done.chunks) == (1000, 1000, 12)
    assert flow.process(work.statement, work.write, work.engine, name="copy").rows == 0
    with work.engine.begin() as connection:
        connection.execute(work.source.insert(), {"id": 5000, "body": "late"})
    again = flow.process(work.statement, work.write, work.engine, name="copy")
    assert (again.rows, again.processed) == (1, 1001)
    assert work.written() == [*range(1000), 5000]
    assert flow.process(work.statement, lambda chunk: None, work.engine, name="copy", restart=True).rows == 1001


def _marks(engine: sa.Engine) -> list[str]:
    """Every checkpoint that is written from now on."""
    seen: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _look(_connection: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        if text.startswith("UPDATE memwarden_checkpoints"):
            seen.append(text)

    return seen


@pytest.mark.parametrize(("every", "written"), [("1h", 1), ("20ms", 3), (0, 10)])
def test_chunks_that_write_nothing_in_their_transaction_share_a_mark(work: Work, every: Any, written: int) -> None:
    clock = FakeClock()
    done: list[int] = []

    def handle(chunk: Batch) -> None:
        clock.advance(0.007)
        done.append(len(chunk))

    marks = _marks(work.engine)
    options: dict[str, Any] = {"name": "n", "rows": 100, "clock": clock, "checkpoint_s": every}
    assert flow.process(work.statement, handle, work.engine, **options).rows == 1000
    # Behind chunks 4 and 8 (28 ms after the first that was kept back, 7 for each), and at the end with "done".
    assert len(marks) == written + (every == 0)
    assert flow.process(work.statement, handle, work.engine, **options).rows == 0
    assert sum(done) == 1000


def test_what_is_written_in_the_transaction_is_marked_in_it(work: Work) -> None:
    """Only each third chunk writes: the marks of those before it go with its own."""
    marks = _marks(work.engine)

    def handle(chunk: Batch) -> None:
        if chunk[0].id % 300 == 200:
            work.write(chunk)

    flow.process(work.statement, handle, work.engine, name="n", rows=100, checkpoint_s="1h", clock=FakeClock())
    assert len(marks) == 3 + 1
    assert work.written() == [*range(200, 300), *range(500, 600), *range(800, 900)]


def test_a_connection_that_was_kept_from_an_earlier_chunk_is_noticed(work: Work) -> None:
    kept: list[Any] = []
    marks = _marks(work.engine)

    def handle(chunk: Batch) -> None:
        if not kept:
            kept.append(chunk.connection)
        kept[0].execute(work.sink.insert(), [{"id": row.id} for row in chunk])

    flow.process(work.statement, handle, work.engine, name="n", rows=100, checkpoint_s="1h", clock=FakeClock())
    assert len(marks) == 10 + 1
    assert work.written() == list(range(1000))


def test_what_was_kept_back_is_written_when_the_run_fails(work: Work) -> None:
    seen: list[int] = []

    def handle(chunk: Batch) -> None:
        if chunk[0].id == 700 and len(seen) < 8:
            raise ValueError("not yet")
        seen.append(chunk[0].id)

    options: dict[str, Any] = {"name": "n", "rows": 100, "checkpoint_s": "1h", "clock": FakeClock()}
    with pytest.raises(ChunkError, match="not yet"):
        flow.process(work.statement, handle, work.engine, on_error="stop", **options)
    seen.append(-1)
    done = flow.process(work.statement, handle, work.engine, **options)
    assert (done.rows, done.processed) == (300, 1000)
    assert seen == [0, 100, 200, 300, 400, 500, 600, -1, 700, 800, 900]


def test_a_mark_whose_answer_was_lost_repeats_no_chunk(work: Work) -> None:
    engine = sa.create_engine(work.database.url)
    dialect: Any = type(engine.dialect)
    armed: list[bool] = []
    seen: list[int] = []

    class Lossy(dialect):  # type: ignore[misc]  # the dialect's class is known at run time
        supports_statement_cache = True

        def do_commit(self, connection: Any) -> None:
            super().do_commit(connection)
            if armed:
                armed.clear()
                raise ConnectionResetError("the answer to the commit was lost")

    engine.dialect.__class__ = Lossy

    def handle(chunk: Batch) -> None:
        seen.append(chunk[0].id)
        if chunk[0].id in (200, 500):
            armed.append(True)

    clock = FakeClock()
    flow.process(work.statement, handle, engine, name="n", rows=100, checkpoint_s=0, on_error="stop", clock=clock)
    engine.dispose()
    assert seen == list(range(0, 1000, 100))
    assert len(clock.waited_s) == 2
    assert work.database.all("SELECT done, version FROM memwarden_checkpoints") == [(1, 1 + 10 + 1)]


def test_a_mark_that_cannot_be_written_ends_the_run_with_the_reason(work: Work) -> None:
    def handle(chunk: Batch) -> None:
        if chunk[0].id == 300:
            with work.engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE memwarden_checkpoints")

    with pytest.raises(CheckpointError, match=r"checkpoint 'n': it cannot be written \("):
        flow.process(work.statement, handle, work.engine, name="n", rows=100, checkpoint_s=0, clock=FakeClock())


def test_without_a_name_nothing_is_left_in_the_database(work: Work) -> None:
    assert flow.process(work.statement, work.write, work.engine).rows == 1000
    assert flow.process("SELECT * FROM source", work.write, work.engine, rows=300).chunks == 4
    assert not sa.inspect(work.engine).has_table("memwarden_checkpoints")


def test_a_run_that_failed_is_taken_up_behind_its_last_chunk(work: Work) -> None:
    work.bad = {555}
    clock = FakeClock()
    with pytest.raises(ChunkError, match=r"chunk \w{16}: failed: ValueError: row 555 is bad.*bisect") as caught:
        flow.process(work.statement, work.write, work.engine, name="copy", rows=100, clock=clock)
    assert (caught.value.low, caught.value.high, caught.value.attempts) == ((499,), (599,), 4)
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(clock.waited_s) == 3
    assert all(0 <= waited <= 0.1 * 2**turn for turn, waited in enumerate(clock.waited_s))
    assert work.written() == list(range(500))
    work.bad = set()
    assert flow.process(work.statement, work.write, work.engine, name="copy", rows=100).rows == 500
    assert work.written() == list(range(1000))


def test_stop_tries_once(work: Work) -> None:
    work.bad = {5}
    clock = FakeClock()
    with pytest.raises(ChunkError, match="row 5 is bad"):
        flow.process(work.statement, work.write, work.engine, on_error="stop", clock=clock)
    assert clock.waited_s == []


def test_bisect_finds_the_bad_rows_and_keeps_all_others(work: Work) -> None:
    work.bad = {0, 333, 334, 999}
    done = flow.process(
        work.statement, work.write, work.engine, name="copy", rows=256, on_error="bisect", clock=FakeClock()
    )
    assert work.written() == sorted(set(range(1000)) - work.bad)
    assert (done.rows, done.dead_rows, done.dead_chunks) == (996, 4, 4)
    assert [(letter.high, letter.error) for letter in done.dead][1] == ("[333]", "ValueError: row 333 is bad")
    kept = work.database.all(
        "SELECT high, rows, attempts FROM memwarden_dead_letters ORDER BY id".replace("rows", _q(work))
    )
    assert kept == [("[0]", 1, 1), ("[333]", 1, 1), ("[334]", 1, 1), ("[999]", 1, 1)]
    assert flow.process(work.statement, work.write, work.engine, name="copy").rows == 0


def _q(work: Work) -> str:
    return work.engine.dialect.identifier_preparer.quote("rows")


def test_continue_gives_the_chunk_up(work: Work) -> None:
    work.bad = {150}
    done = flow.process(
        work.statement, work.write, work.engine, name="copy", rows=100, on_error="continue", clock=FakeClock()
    )
    assert work.written() == [*range(100), *range(200, 1000)]
    assert (done.dead_rows, done.dead[0].rows, done.dead[0].attempts) == (100, 100, 4)


def test_the_error_callback_decides_where_it_is_given(work: Work) -> None:
    work.bad = {150, 777}
    asked: list[tuple[str, int]] = []

    def go_on(error: Exception, chunk: Batch) -> bool:
        asked.append((str(error), len(chunk)))
        return len(asked) < 2

    with pytest.raises(ChunkError, match="row 777"):
        flow.process(work.statement, work.write, work.engine, rows=100, error_callback=go_on, on_error="stop")
    assert asked == [("row 150 is bad", 100), ("row 777 is bad", 100)]
    assert work.written() == [*range(100), *range(200, 700)]


def test_when_everything_fails_it_ends_and_does_not_throw_a_table_away(work: Work) -> None:
    work.bad = set(range(1000))
    with pytest.raises(ChunkError, match="more than 20 rows"):
        flow.process(work.statement, work.write, work.engine, rows=8, on_error="continue", retries=0, most_dead=20)


def test_a_store_keeps_the_place_for_sinks_that_are_no_database(work: Work, tmp_path: Path) -> None:
    handed: list[tuple[str, int, int]] = []

    def send(chunk: Batch) -> None:
        handed.append((chunk.id, chunk[0].id, len(chunk)))
        if chunk[0].id == 400 and len(handed) < 6:
            raise ConnectionAbortedError("the sink went away")

    with Store(str(tmp_path)) as store:
        with pytest.raises(ChunkError):
            flow.process(
                work.statement, send, work.engine, name="send", checkpoint=store, rows=100, on_error="stop", retries=0
            )
        interrupted = handed[-1]
        # With other settings the chunk that was handed out comes again as it was, then those of the new size.
        done = flow.process(work.statement, send, work.engine, name="send", checkpoint=store, rows=500)
    assert handed[5] == interrupted
    assert [rows for _, _, rows in handed] == [100] * 6 + [500]
    assert (done.rows, done.processed) == (600, 1000)
    assert not sa.inspect(work.engine).has_table("memwarden_checkpoints")


def test_bad_rows_are_found_beside_a_store_too(work: Work, tmp_path: Path) -> None:
    sent: list[int] = []

    def send(chunk: Batch) -> None:
        for row in chunk:
            if row.id in (17, 500):
                raise ValueError("bad")
        sent.extend(row.id for row in chunk)

    with Store(str(tmp_path)) as store:
        done = flow.process(
            work.statement, send, work.engine, name="s", checkpoint=store, on_error="bisect", retries=1,
            clock=FakeClock(), rows=64,
        )  # fmt: skip
        assert [each.high for each in store.dead_letters("s")] == ["[500]", "[17]"]
        assert store.checkpoints("s")[0].done
    assert done.dead_rows == 2
    assert sent == sorted(set(range(1000)) - {17, 500})


def test_text_with_parameters_can_be_named(work: Work) -> None:
    def copy(high: int, **options: Any) -> Any:
        query = "SELECT id, body FROM source WHERE id < :high"
        return flow.process(query, work.write, work.engine, name="t", key="id", parameters={"high": high}, **options)

    assert copy(300, rows=100).rows == 300
    assert copy(300).rows == 0
    with pytest.raises(CheckpointError, match="parameters changed since this run began: high"):
        copy(400)
    with work.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO source (id, body) VALUES (-5, 'before')")
    assert work.written() == list(range(300))


def test_another_statement_is_refused_with_the_reason(work: Work) -> None:
    def copy(statement: Any, **options: Any) -> Any:
        return flow.process(statement, work.write, work.engine, name="copy", **options)

    source = work.source
    copy(work.statement.where(source.c.id < 10))
    with pytest.raises(CheckpointError, match=r"checkpoint 'copy': the parameters changed since .*: id_1"):
        copy(work.statement.where(source.c.id < 20))
    with pytest.raises(CheckpointError, match="the statement changed since this run began"):
        copy(work.statement)
    copy(work.statement, restart=True)
    with work.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE source ADD COLUMN unused INTEGER")
    copy(work.statement)  # it is none of ours
    with work.engine.begin() as connection:
        if work.database.kind == "sqlite":
            connection.exec_driver_sql("ALTER TABLE source RENAME TO old")
            connection.exec_driver_sql("CREATE TABLE source (id INTEGER PRIMARY KEY, body TEXT)")
        else:
            change = {"postgresql": "ALTER COLUMN body TYPE text", "mariadb": "MODIFY body text"}[work.database.kind]
            connection.exec_driver_sql(f"ALTER TABLE source {change}")
    with pytest.raises(
        CheckpointError, match=r"schema changed since this run began: source.body was VARCHAR.* is TEXT"
    ):
        copy(work.statement)


def test_two_runs_of_one_name_cannot_both_keep_a_chunk(work: Work) -> None:
    def intrude(chunk: Batch) -> None:
        if not intruded:
            intruded.append(True)
            flow.process(work.statement, work.write, work.engine, name="copy", rows=100)
        work.write(chunk)

    intruded: list[bool] = []
    with pytest.raises(CheckpointError, match="another run of this name is going on"):
        flow.process(work.statement, intrude, work.engine, name="copy", rows=100)
    assert work.written() == list(range(1000))


def test_parallel_ranges_cover_everything_once(work: Work) -> None:
    together, lock, met = threading.Barrier(3, timeout=20), threading.Lock(), []

    def handle(chunk: Batch) -> None:
        with lock:
            first = threading.get_ident() not in met
            met.append(threading.get_ident())
        if first:
            together.wait()  # passes only while three chunks are in work at once
        if work.database.kind != "sqlite":  # which has one writer
            work.write(chunk)

    name = None if work.database.kind == "sqlite" else "copy"
    done = flow.process(work.statement, handle, work.engine, name=name, rows=20, parallel=3)
    assert done.rows == 1000
    assert len(set(met)) == 3
    if name:
        assert work.written() == list(range(1000))
        assert flow.process(work.statement, handle, work.engine, name=name).rows == 0


def test_parallel_ranges_of_texts_and_composite_keys(database: Database) -> None:
    table = sa.Table(
        "words",
        sa.MetaData(),
        sa.Column("word", sa.String(20), primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
    )
    database.fill(table, [{"word": word, "n": n} for word in ("Ab", "ac", "Zé", "日") for n in range(50)])
    seen: list[tuple[str, int]] = []
    done = flow.process(
        sa.select(table), lambda chunk: seen.extend(map(tuple, chunk)), database.engine, parallel=2, rows=7
    )
    assert done.rows == 200
    assert len(set(seen)) == 200


def test_a_part_that_fails_stops_the_others_and_they_are_taken_up(work: Work) -> None:
    if work.database.kind == "sqlite":
        return
    work.bad = {990}
    with pytest.raises(ChunkError, match="row 990"):
        flow.process(work.statement, work.write, work.engine, name="copy", rows=10, parallel=4, on_error="stop")
    work.bad = set()
    flow.process(work.statement, work.write, work.engine, name="copy", parallel=2)
    assert work.written() == list(range(1000))


def test_row_by_row_with_at_most_so_many_results_an_item(work: Work) -> None:
    kept: dict[int, list[str]] = {}

    def results(row: Any, chunk: Batch) -> Any:
        return (f"{row.id}.{n}" for n in range(80)) if row.id % 2 else None

    def collect(row: Any, found: list[str], chunk: Batch) -> None:
        kept[row.id] = found

    done = flow.process(work.statement, results, work.engine, by="row", collect=collect)
    assert (done.results, done.results_dropped) == (500 * 50, 500 * 30)
    assert len(kept) == 500
    assert kept[7][-1] == "7.49"
    less = flow.process(work.statement, results, work.engine, by="row", max_results=3)
    assert (less.results, less.results_dropped) == (1500, 500 * 77)


def test_progress_knows_total_percent_and_what_is_left(work: Work) -> None:
    told: list[Progress] = []
    clock = FakeClock()
    flow.process(
        work.statement,
        lambda chunk: clock.advance(2.0),
        work.engine,
        name="p",
        rows=250,
        progress=told.append,
        clock=clock,
    )
    assert [(p.processed, p.total, p.percent) for p in told] == [(n, 1000, n / 10) for n in (250, 500, 750, 1000)]
    assert [p.rows_per_s for p in told] == [125.0] * 4
    assert [p.eta_s for p in told] == [6.0, 4.0, 2.0, 0.0]
    assert all(p.held_bytes > 0 for p in told)


def test_a_handler_that_takes_too_long_is_ended(work: Work) -> None:
    def hang(chunk: Batch) -> None:
        work.write(chunk)
        while chunk[0].id == 500:
            pass

    with pytest.raises(ChunkError, match="took longer than") as caught:
        flow.process(work.statement, hang, work.engine, name="copy", rows=100, timeout_s=0.3, retries=0)
    assert isinstance(caught.value.__cause__, ChunkTimeoutError)
    assert work.written() == list(range(500))


def test_a_locked_row_is_waited_for_and_blames_nobody(work: Work) -> None:
    """The lock is held until the run has waited twice."""
    if work.database.kind == "sqlite":
        engine = sa.create_engine(work.database.url, connect_args={"timeout": 0.05})
        lock, update = "BEGIN IMMEDIATE", None
    else:
        engine = sa.create_engine(work.database.url)
        lock = "SELECT id FROM guard FOR UPDATE"
        update = {"postgresql": "SET LOCAL lock_timeout = 50", "mariadb": "SET innodb_lock_wait_timeout = 1"}
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE guard (id INTEGER)")
        connection.exec_driver_sql("INSERT INTO guard VALUES (1)")
    holder = work.database.connect()
    holder.exec_driver_sql(lock)
    clock = FakeClock()
    clock.on_wait = lambda seconds: holder.rollback() if len(clock.waited_s) == 2 else None

    def write(chunk: Batch) -> None:
        if update is not None:
            chunk.connection.exec_driver_sql(update[work.database.kind])
        chunk.connection.exec_driver_sql("UPDATE guard SET id = id + 1")
        work.write(chunk)

    done = flow.process(work.statement, write, engine, on_error="stop", clock=clock)
    engine.dispose()
    assert (done.retries, done.dead_rows) == (2, 0)
    assert work.written() == list(range(1000))


@pytest.mark.filterwarnings("ignore:Exception ignored in. <function ServerCursorMixin.__del__")
def test_a_connection_that_goes_inside_of_a_handler_costs_a_retry(work: Work) -> None:
    if work.database.kind == "sqlite":
        return
    killed: list[int] = []

    def write(chunk: Batch) -> None:
        work.write(chunk)
        if chunk[0].id == 300 and not killed:
            own = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}[work.database.kind]
            killed.append(chunk.connection.exec_driver_sql(own).scalar())
            end = {"postgresql": "SELECT pg_terminate_backend({}, 5000)", "mariadb": "KILL {}"}[work.database.kind]
            with sa.create_engine(work.database.url, poolclass=sa.NullPool).connect() as other:
                other.exec_driver_sql(end.format(killed[0]))

    done = flow.process(work.statement, write, work.engine, name="copy", rows=100, on_error="stop", clock=FakeClock())
    assert done.retries == 1
    assert work.written() == list(range(1000))


def test_a_commit_whose_answer_was_lost_is_not_done_again(work: Work) -> None:
    lost: list[bool] = []
    engine = sa.create_engine(work.database.url)

    dialect: Any = type(engine.dialect)

    class Lossy(dialect):  # type: ignore[misc]
        supports_statement_cache = True

        def do_commit(self, connection: Any) -> None:
            super().do_commit(connection)
            if armed:
                armed.clear()
                lost.append(True)
                raise ConnectionResetError("the answer to the commit was lost")

    armed: list[bool] = []
    engine.dialect.__class__ = Lossy

    def write(chunk: Batch) -> None:
        work.write(chunk)
        if chunk[0].id == 200 and not lost:
            armed.append(True)

    done = flow.process(work.statement, write, engine, name="copy", rows=100, on_error="stop", clock=FakeClock())
    engine.dispose()
    assert lost == [True]
    assert done.retries == 1
    assert work.written() == list(range(1000))


def test_async_engines(work: Work) -> None:
    async def main(engine: AsyncEngine) -> None:
        work.bad = {333}
        clock = FakeClock()
        done = await flow.process(
            work.statement, work.write_async, engine, name="copy", rows=100, on_error="bisect", clock=clock
        )
        assert (done.rows, done.dead_rows) == (999, 1)
        assert (await flow.process(work.statement, work.write_async, engine, name="copy")).rows == 0

        async def each(row: Any, chunk: Batch) -> Any:
            await asyncio.sleep(0)
            return numbers(row.id)

        async def numbers(count: int) -> Any:
            for number in range(min(count, 60)):
                yield number

        done = await flow.process(work.statement, each, engine, by="row", max_results=10)
        assert done.results == 45 + 990 * 10
        streamed = await flow.process("SELECT id FROM source", _nothing_async, engine)
        assert streamed.rows == 1000

    work.database.run(main)
    assert work.written() == sorted(set(range(1000)) - {333})


async def _nothing_async(chunk: Batch) -> None:
    return


def test_async_workers_wait_at_the_same_time_and_time_out(work: Work) -> None:
    async def main(engine: AsyncEngine) -> None:
        together = asyncio.Barrier(4)
        seen: list[int] = []

        async def meet(chunk: Batch) -> None:
            if len(seen) < 4:
                seen.append(chunk[0].id)
                async with asyncio.timeout(20):
                    await together.wait()

        assert (await flow.process(work.statement, meet, engine, parallel=4, rows=10)).rows == 1000

        async def hang(chunk: Batch) -> None:
            await asyncio.Event().wait()

        with pytest.raises(ChunkError, match="took longer than"):
            await flow.process(work.statement, hang, engine, timeout_s=0.05, retries=0)

        async def hang_for_ever(chunk: Batch) -> None:
            started.set()
            await asyncio.Event().wait()

        started = asyncio.Event()
        task = asyncio.create_task(flow.process(work.statement, hang_for_ever, engine, name="x"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pool: Any = engine.pool
        assert pool.checkedout() == 0

    work.database.run(main)


def test_a_run_holds_its_budget_while_it_runs(work: Work) -> None:
    budget = Budget("64M")
    held: list[int] = []
    flow.process(work.statement, lambda chunk: held.append(budget.held_bytes), work.engine, budget=budget)
    assert held == [64 << 20]
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error: 'ignore' is not known; give one of stop, retry, continue, bisect"),
        ({"by": "page"}, "by: 'page' is not known"),
        ({"parallel": 0}, "parallel: 0 is no such number"),
        ({"rows": True}, "rows: True is no such number"),
        ({"name": ""}, "name: '' is no name"),
        ({"restart": True}, "name: a run without a name has no checkpoint"),
        ({"snapshot": True, "parallel": 2}, "snapshot: several connections share no snapshot"),
        ({"progress": "dots"}, "progress: 'dots' is not known"),
        ({"timeout_s": "soon"}, "timeout_s: 'soon' is not a duration"),
        ({"budget": "-1"}, "budget: '-1' is not a size"),
    ],
)
def test_wrong_options_get_one_clear_line(options: dict[str, Any], message: str) -> None:
    engine = sa.create_engine("sqlite://")
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    table.create(engine)
    with pytest.raises(ConfigError) as caught:
        flow.process(sa.select(table), print, engine, **options)
    assert str(caught.value).startswith(message)
    engine.dispose()


def test_wrong_sources_get_one_clear_line(tmp_path: Path) -> None:
    engine = sa.create_engine("sqlite://")
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    table.create(engine)
    process: Callable[..., Any] = flow.process
    with engine.connect() as connection, pytest.raises(ConfigError, match="source: a Connection is no engine"):
        process(sa.select(table), print, connection)
    with pytest.raises(CheckpointError, match="name: what is read without a key cannot be taken up again"):
        process("SELECT 1", print, engine, name="x")
    with pytest.raises(ConfigError, match="parallel: needs a key"):
        process("SELECT 1", print, engine, parallel=2)
    with pytest.raises(ConfigError, match="parallel: each worker has a memory database of its own"):
        process(sa.select(table), print, engine, parallel=2)
    file = sa.create_engine(f"sqlite:///{tmp_path}/rollback.db")
    table.create(file)
    with pytest.raises(ConfigError, match="snapshot: an open read keeps SQLite's writers waiting without WAL"):
        process(sa.select(table), print, file, snapshot=True)
    file.dispose()
    with pytest.raises(StatementError, match="after: what is read without a key has no position"):
        flow.scan("SELECT 1", engine, after=(1,))
    engine.dispose()

    async def mixed() -> None:
        other = create_async_engine("sqlite+aiosqlite://")
        with pytest.raises(ConfigError, match="into: is no AsyncEngine"):
            await process(sa.select(table), print, other, into=engine)
        await other.dispose()

    asyncio.run(mixed())
