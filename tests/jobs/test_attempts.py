"""One attempt at a part: what it makes of errors, stops, results and what it learns."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import JobError, KeyOrderError, StatementError, StoreError
from memwarden.jobs import Ledger, Run, Watch, job, perform, submit, sweep
from memwarden.jobs.definition import job_of
from memwarden.jobs.sizes import Histogram
from memwarden.store import Store
from tests.jobs import work
from tests.jobs.inline import Inline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memwarden.jobs.ledger import Status


def status_of(bench: Inline, root: str) -> Status:
    found = bench.ledger.status(root)
    assert found is not None
    return found


class Away:
    """A ledger's place that cannot be reached for so many transactions."""

    def __init__(self, store: Store) -> None:
        self._store, self.times = store, 0

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        if self.times:
            self.times -= 1
            raise StoreError("is away", where="ledger")
        with self._store.transaction() as db:
            yield db


# --- errors of the same kind as the ledger's -----------------------------------------------------------------------


class Refuses:
    """Raises a StoreError at one place of a job."""

    def __init__(self, at: str) -> None:
        self.raise_at("constructor", at)
        self.at = at

    def raise_at(self, place: str, at: str) -> None:
        if place == at:
            raise StoreError("is locked by another process", where="the job's own store")

    def items(self) -> range:
        self.raise_at("items", self.at)
        return range(3)

    def sink(self) -> None:
        self.raise_at("sink", self.at)

    def handle(self, chunk: list[int]) -> int:
        self.raise_at("handle", self.at)
        return len(chunk)

    def reduce(self, so_far: int, value: int) -> int:
        self.raise_at("reduce", self.at)
        return so_far + value


@pytest.mark.parametrize("at", ["constructor", "items", "sink", "handle", "reduce"])
def test_a_store_error_of_the_jobs_own_code_is_a_failure_like_others(bench: Inline, at: str) -> None:
    @job(chunk=1, limit="4G", retries=1, backoff=0.0)
    class Here(Refuses):
        """One of its own for each place."""

    root = submit(Here, {"at": at}, engine=bench, ledger=bench.ledger)
    for _ in range(4):
        bench.work()
    status = status_of(bench, root)
    assert (status.state, status.endings) == ("failed", {"error": 2})
    assert status.error == "StoreError: the job's own store: is locked by another process"


def test_a_ledger_that_is_away_while_a_body_saves_its_place_fails_nothing(bench: Inline) -> None:
    with Store(bench.folder) as store:
        place = Away(store)
        away = [1]

        @job(limit="1G", retries=0, name="tests:saves")
        def saves(run: Run) -> None:
            place.times = away.pop() if away else 0
            run.save(1)

        bench.ledger = Ledger(place)
        root = submit(saves, {}, engine=bench, ledger=bench.ledger)
        with pytest.raises(StoreError, match="is away"):
            bench.work()
        assert status_of(bench, root).endings == {"drain": 1}
        bench.work()
        assert status_of(bench, root).state == "done"


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_what_ends_the_process_goes_out_though_the_ledger_is_away(bench: Inline, how: str) -> None:
    with Store(bench.folder) as store:
        place = Away(store)

        @job(limit="1G", name="tests:leaves")
        def leaves() -> None:
            place.times = 1
            work.ends.function(how)

        bench.ledger = Ledger(place)
        root = submit(leaves, {}, engine=bench, ledger=bench.ledger)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            bench.work()
        assert (place.times, status_of(bench, root).endings) == (0, {"running": 1})


@pytest.mark.parametrize("error", [KeyOrderError("several rows have one key"), StatementError("has no key")])
def test_what_would_be_the_same_the_next_time_is_not_tried_again(bench: Inline, error: Exception) -> None:
    def read() -> None:
        raise error

    root = submit(job(limit="1G", retries=3, name="tests:read")(read), {}, engine=bench, ledger=bench.ledger)
    bench.work()
    assert (status_of(bench, root).state, status_of(bench, root).attempts) == ("failed", 1)


def test_a_message_that_is_sent_again_has_another_id(bench: Inline) -> None:
    """RQ clears a job away by its id when it is over: one that is sent again by then would go with it."""
    ids: list[str] = []

    class Named(Inline):
        def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
            super().send(text, queue=queue, delay_s=delay_s, priority=priority, message_id=message_id)
            ids.append(message_id)

    with Store(bench.folder) as store:
        engine = Named(bench.folder, store)
        engine.ledger = Ledger(store, resend_s=-1.0)
        root = submit(work.total, {"count": 3}, engine=engine, ledger=engine.ledger)
        for _ in range(3):
            sweep(engine, engine.ledger, Watch())
    assert len(set(ids)) == len(ids) == 4
    assert len(set(engine.sent)) == 1
    assert all(each.startswith(f"{root}-0-0-") for each in ids)


def test_a_job_that_is_written_down_is_submitted_though_nobody_could_say_that_it_was_sent(
    bench: Inline, caplog: pytest.LogCaptureFixture
) -> None:
    """Else whoever submits it does so again, and it is done twice."""
    with Store(bench.folder) as store:
        place = Away(store)

        class Interrupted(Ledger):
            def outbox(self, root: str) -> Any:
                place.times = 1
                return super().outbox(root)

        root = submit(work.total, {"count": 3}, engine=bench, ledger=Interrupted(place))
    assert "is written down and not sent" in caplog.text
    bench.work()
    bench.work()
    assert (bench.ledger.result(root), len(bench.ledger.jobs())) == (3, 1)


# --- results -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(count=st.integers(1, 30), each=st.sampled_from([1, 200]), stops=st.lists(st.integers(1, 4), max_size=4))
def test_reduce_gets_what_json_makes_of_a_result_whether_or_not_it_was_stopped(
    count: int, each: int, stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    got: list[Any] = []

    def both(so_far: Any, value: Any) -> Any:
        got.extend((so_far, value))
        return {"items": (*so_far["items"], *value["items"])}

    made = job(
        items=lambda: range(count), chunk=3, limit="1G", bytes_per_item=f"{each}M", reduce=both, name="tests:tuples"
    )(lambda chunk: {"items": tuple(chunk)})
    folder = str(tmp_path_factory.mktemp("bench"))
    with Store(folder) as store:
        bench = Inline(folder, store)
        root = submit(made, {}, engine=bench, ledger=bench.ledger)
        for after in stops:
            if bench.queue:
                stop = partial(next, iter([False] * after), True)
                perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger, stop=stop)
        bench.work()
        assert bench.ledger.result(root) == {"items": list(range(count))}
    assert {type(each["items"]) for each in got} <= {list}


@pytest.mark.parametrize(("each", "parts"), [("1K", 1), ("300M", 4)])
def test_without_reduce_a_job_with_items_has_no_result_whether_or_not_it_was_split(
    bench: Inline, each: str, parts: int
) -> None:
    def handle(chunk: list[int]) -> object:
        return {chunk[0]} if chunk[0] else chunk[0]  # what JSON could not keep is nobody's business

    made = job(items=lambda: range(8), chunk=1, limit="1G", bytes_per_item=each, name="tests:unreduced")(handle)
    root = submit(made, {}, engine=bench, ledger=bench.ledger)
    bench.work()
    status = status_of(bench, root)
    assert (status.state, status.items, status.parts["done"] >= parts) == ("done", 8, True)
    assert bench.ledger.result(root) is None
    with bench.ledger._place.transaction() as db:
        assert db.execute("SELECT COUNT(*) FROM job_parts WHERE result IS NOT NULL").fetchone() == (0,)


def test_a_fold_stops_when_its_worker_is_told_to_and_begins_again_elsewhere(bench: Inline) -> None:
    folded: list[int] = []

    def add(so_far: int, value: int) -> int:
        folded.append(value)
        return so_far + value

    made = job(items=lambda: range(9), chunk=1, limit="1G", bytes_per_item="600M", reduce=add, name="tests:folds")
    root = submit(made(len), {}, engine=bench, ledger=bench.ledger)
    while not folded:
        perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger, stop=lambda: len(folded) == 2)
    assert (folded, status_of(bench, root).endings["drain"]) == ([1, 1], 1)
    bench.work()
    assert (bench.ledger.result(root), len(folded)) == (9, 2 + 8)


# --- what is learned -----------------------------------------------------------------------------------------------


def test_what_an_item_keeps_is_unlearned_when_it_keeps_nothing_any_more(bench: Inline) -> None:
    """One leak, or one giant, and a job would be cut into a hundred parts for ever."""
    bench.ledger.learn("tests:calm", "bytes_per_item", 1e8)
    made = job(items=lambda: range(90), chunk=10, limit="1G", name="tests:calm")(len)
    parts = []
    for _ in range(3):
        status = status_of(bench, submit(made, {}, engine=bench, ledger=bench.ledger))
        bench.work()
        status = status_of(bench, status.id)
        assert (status.state, status.items) == ("done", 90)
        parts.append(sum(status.parts.values()))
    assert parts[0] > 9
    assert parts[-1] == 1


def test_the_peak_of_what_only_began_or_cut_or_folded_is_not_learned(bench: Inline) -> None:
    def peaks(name: str) -> float:
        with bench.ledger._place.transaction() as db:
            query = "SELECT histogram FROM job_sizes WHERE name = :name AND kind = 'peak_bytes'"
            row = db.execute(query, {"name": name}).fetchone()
        return 0.0 if row is None else Histogram.from_text(row[0]).weight

    submit(work.splits_at_once, {"count": 200}, engine=bench, ledger=bench.ledger)
    name = job_of(work.splits_at_once).name
    perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger, stop=lambda: True)
    perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger, stop=lambda: True)
    assert peaks(name) == 0
    perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger)
    assert round(peaks(name)) == 1


# --- sending -------------------------------------------------------------------------------------------------------


class Picky(Inline):
    """Its broker refuses some queues."""

    refused: tuple[str, ...] = ()

    def __init__(self, folder: str, store: Store) -> None:
        super().__init__(folder, store)
        self.tried: list[str] = []

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        self.tried.append(queue)
        if queue in self.refused:
            raise JobError("PRECONDITION_FAILED", where=f"queue {queue!r}")
        super().send(text, queue=queue, delay_s=delay_s, priority=priority, message_id=message_id)


@pytest.mark.parametrize(
    ("refused", "tried", "sent"),
    [((), "aabbc", 5), (("a",), "abbc", 3), (("a", "b"), "ab", 0)],
    ids=["none", "one", "two: it is away"],
)
def test_a_queue_that_takes_nothing_holds_up_no_other(
    refused: tuple[str, ...], tried: str, sent: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = str(tmp_path_factory.mktemp("bench"))
    with Store(folder) as store:
        bench = Picky(folder, store)
        for queue in "aabbc":
            bench.ledger.submit(job_of(work.total).name, {"count": 1}, engine=bench.name, queue=queue)
        bench.refused = refused
        assert sweep(bench, bench.ledger, Watch()) == sent
        assert "".join(bench.tried) == tried
