"""The core with the plainest engine there is: messages in a list, worked off in this process."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.jobs import Run, job, perform, submit
from memwarden.jobs.sources import Items
from memwarden.store import Store
from tests.jobs import work
from tests.jobs.contract import EngineContract
from tests.jobs.inline import Inline

if TYPE_CHECKING:
    from pathlib import Path


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(count=st.integers(0, 400), chunk=st.integers(1, 50), each=st.integers(1, 200), data=st.data())
def test_whatever_is_split_is_complete_and_in_order(
    count: int, chunk: int, each: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any number of items of any size, cut by estimate and by hand, messages in any order."""
    asked = data.draw(st.dictionaries(st.integers(0, 20), st.integers(1, 60), max_size=4))

    def handle(chunk: list[int], run: Run) -> list[int]:
        if run.part in asked:
            run.split(asked.pop(run.part))
        return chunk

    made = job(
        items=lambda: range(count), chunk=chunk, limit="1G", bytes_per_item=f"{each}M", reduce=work.joined,
        name="tests:generated",
    )(handle)  # fmt: skip
    folder = str(tmp_path_factory.mktemp("bench"))
    with Store(folder) as store:
        bench = Inline(folder, store)
        root = submit(made, {}, engine=bench, ledger=bench.ledger)
        while bench.queue:
            bench.queue.rotate(data.draw(st.integers(0, 5)))
            perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger)
        status = bench.ledger.status(root)
        assert status is not None
        assert status.state == "done"
        assert (bench.ledger.result(root) if count else []) == list(range(count))


@pytest.mark.parametrize(("priority", "rank"), [(-5, 0), (4, 4), (1000, 9)])
def test_a_broker_gets_the_nearest_priority_that_it_has(bench: Inline, priority: int, rank: int) -> None:
    ranks = []

    class Ranked(Inline):
        def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
            ranks.append(priority)

    with Store(bench.folder) as store:
        engine = Ranked(bench.folder, store)
        submit(work.total, {"count": 1}, engine=engine, ledger=engine.ledger, priority=priority)
    assert ranks == [rank]


def test_how_many_items_are_left_is_counted_a_few_times_and_not_for_every_chunk(bench: Inline) -> None:
    """A count may be a walk through an index of a million rows."""
    counts: list[int] = []

    class Counted(Items):
        def count(self, low: str | None, high: str | None) -> int:
            counts.append(super().count(low, high))
            return counts[-1]

    kept: list[bytes] = []

    @job(items=lambda: Counted(range(400)), chunk=1, limit="1G", name="tests:counted")
    def keeps(chunk: list[int]) -> None:
        kept.extend(os.urandom(128 * 1024) for _ in chunk)

    root = submit(keeps, {}, engine=bench, ledger=bench.ledger)
    bench.work()
    status = bench.ledger.status(root)
    assert status is not None
    assert (status.state, status.items, len(kept)) == ("done", 400, 400)
    assert 1 <= len(counts) <= 9  # the logarithm of what was left
    assert sorted(counts, reverse=True) == counts


@pytest.mark.parametrize("each", ["1K", "100M"])  # in one part, in many
def test_a_job_leaves_nothing_of_its_own_in_its_sink(bench: Inline, tmp_path: Path, each: str) -> None:
    path = str(tmp_path / "effects.db")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE done (item INTEGER)")

    @job(items=lambda: range(200), chunk=2, sink=path, bytes_per_item=each, limit="1G", name="tests:leaves")
    def copies(chunk: list[int], run: Run) -> None:
        run.connection.executemany("INSERT INTO done VALUES (?)", [(item,) for item in chunk])

    root = submit(copies, {}, engine=bench, ledger=bench.ledger)
    bench.work()
    status = bench.ledger.status(root)
    assert status is not None
    assert status.state == "done"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*), COUNT(DISTINCT item) FROM done").fetchone() == (200, 200)
        assert db.execute("SELECT * FROM memwarden_checkpoints").fetchall() == []


def test_whoever_lost_its_part_before_its_first_fence_writes_nothing(bench: Inline, tmp_path: Path) -> None:
    """It was stopped there for long; meanwhile another one has done the part, and its row in the sink is gone."""
    path, paused = str(tmp_path / "effects.db"), [True]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE done (item INTEGER)")

    def sink() -> str:
        if paused and paused.pop():
            bench.ledger.died((root, 0, 1), kind="lost")
            bench.work()  # sends it
            bench.work()
        return path

    @job(items=lambda: range(4), chunk=4, sink=sink, limit="4G", name="tests:paused")
    def copies(chunk: list[int], run: Run) -> None:
        run.connection.executemany("INSERT INTO done VALUES (?)", [(item,) for item in chunk])

    root = submit(copies, {}, engine=bench, ledger=bench.ledger)
    assert perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger).what == "dropped"
    with closing(sqlite3.connect(path)) as db:
        assert [row[0] for row in db.execute("SELECT item FROM done ORDER BY item")] == [0, 1, 2, 3]


class TestInline(EngineContract):
    """The contract, but for what needs processes of their own."""

    test_what_reaches_its_limit_goes_on_in_fresh_processes = None  # type: ignore[assignment]  # needs worker processes
    test_what_grows_is_split_and_done_once = None  # type: ignore[assignment]  # needs worker processes
    test_killed_workers_lose_nothing = None  # type: ignore[assignment]  # needs worker processes

    @pytest.mark.parametrize("how", ["memory"])
    def test_a_poison_item_is_quarantined_and_the_rest_is_done(self, bench: Inline, how: str) -> None:  # type: ignore[override]  # one of its two cases
        super().test_a_poison_item_is_quarantined_and_the_rest_is_done(bench, how)
