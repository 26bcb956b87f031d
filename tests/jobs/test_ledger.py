"""The ledger under every order of claims, cuts, deaths and stale workers: disjoint, complete, nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from memwarden.cli import main
from memwarden.cli._queues import Queues
from memwarden.errors import JobError, StoreError
from memwarden.jobs import shared
from memwarden.jobs.ledger import (
    BEHIND,
    COUNTED_S,
    ERROR_CHARACTERS,
    MOST_ARGUMENTS_BYTES,
    RESEND_S,
    Ledger,
    LostError,
    Watch,
    Worker,
    _kept,
    as_json,
)
from memwarden.jobs.port import DEATHS, MOST_BYTES, Message, QueueCount
from memwarden.store import Store
from memwarden.testing import FakeClock
from tests.flow.database.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from memwarden.jobs.ledger import Claim

COUNT = 40
HERE = Worker.here()


def bounds(low: str | None, high: str | None) -> range:
    """The indexes behind low up to high."""
    return range(0 if low is None else int(low) + 1, COUNT if high is None else int(high) + 1)


class Ledgers(RuleBasedStateMachine):
    """Workers that come and go, and some that do not know that they are gone."""

    def __init__(self, place: Any = None) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._own = Store(self._folder.name) if place is None else None
        self.store: Any = place or self._own
        self.clock = FakeClock()
        assert self.store is not None
        self.ledger = Ledger(self.store, clock=self.clock, random=lambda: 0.5)
        self.root, _ = self.ledger.submit("work", {}, chunk=4, options={"retries": 1000, "backoff_s": 0.0})
        self.claims: list[Claim] = []
        self.done: list[int] = []

    def teardown(self) -> None:
        if self._own is not None:
            self._own.close()
        self._folder.cleanup()

    def _is_stale(self, claim: Claim) -> bool:
        with self.store.transaction() as db:
            part = self.ledger._part(db, claim.part.root, claim.part.part)
        return part is None or part.state != "running" or part.attempt != claim.part.attempt

    def _try(self, claim: Claim, work: Any) -> Any:
        """What a worker does; a stale one must be refused."""
        stale = self._is_stale(claim)
        try:
            found = work()
        except LostError:
            assert stale
            self.claims.remove(claim)
            return None
        assert not stale
        return found

    @rule(which=st.integers(0, 100))
    def claim(self, which: int) -> None:
        messages = self.ledger.outbox(self.root)
        if not messages:
            return
        message = messages[which % len(messages)]
        found = self.ledger.claim(message, HERE)
        assert not isinstance(found, str)
        self.claims.append(found)
        assert self.ledger.claim(message, HERE) == "dropped"  # the same message once more

    @precondition(lambda self: bool(self.claims))
    @rule(which=st.integers(0, 100), items=st.integers(1, 7))
    def advance(self, which: int, items: int) -> None:
        claim = self.claims[which % len(self.claims)]
        left = bounds(claim.part.cursor, claim.part.high)
        if claim.part.mode != "work" or not left:
            return
        chunk = list(left[: 1 if claim.part.careful else min(items, claim.part.chunk)])
        after = self._try(claim, lambda: self.ledger.advance(claim, str(chunk[-1]), len(chunk)))
        if after is not None:
            self.done += chunk
            self.claims[self.claims.index(claim)] = after

    @precondition(lambda self: bool(self.claims))
    @rule(which=st.integers(0, 100), share=st.integers(1, 9), most=st.integers(1, 5))
    def cut(self, which: int, share: int, most: int) -> None:
        claim = self.claims[which % len(self.claims)]
        left = bounds(claim.part.cursor, claim.part.high)
        keys = [str(each) for each in left[share - 1 : len(left) - 1 : share]]
        if not keys:
            return
        over = len(keys) < most
        chosen = keys[:most]
        found = self._try(claim, lambda: self.ledger.cut(claim, chosen, share=share, over=over, ended=True))
        if found is not None:
            self.claims.remove(claim)

    @precondition(lambda self: bool(self.claims))
    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        claim = self.claims[which % len(self.claims)]
        if bounds(claim.part.cursor, claim.part.high):
            return
        if self._try(claim, lambda: self.ledger.finish(claim, None)) is not None:
            self.claims.remove(claim)

    @precondition(lambda self: bool(self.claims))
    @rule(which=st.integers(0, 100), kind=st.sampled_from(["soft_stop", "drain", "timeout", "memory_error", "error"]))
    def stop(self, which: int, kind: str) -> None:
        claim = self.claims[which % len(self.claims)]
        if kind == "error":
            found = self._try(claim, lambda: self.ledger.fail(claim, "it failed"))
        else:
            found = self._try(claim, lambda: self.ledger.stop(claim, kind=kind))
        if found is not None:
            self.claims.remove(claim)

    @precondition(lambda self: bool(self.claims))
    @rule(which=st.integers(0, 100), kind=st.sampled_from(DEATHS), announced=st.booleans(), known=st.booleans())
    def die(self, which: int, kind: str, announced: bool, known: bool) -> None:
        """The worker dies with an item in hand; sometimes it is only taken for dead and goes on."""
        claim = self.claims[which % len(self.claims)]
        left = bounds(claim.part.cursor, claim.part.high)
        if announced and claim.part.careful and left and not self._is_stale(claim):
            self.ledger.announce(claim, str(left[0]))
        self.ledger.died((claim.part.root, claim.part.part, claim.part.attempt), kind=kind)
        if known:
            self.claims.remove(claim)

    @precondition(lambda self: bool(self.claims))
    @rule(which=st.integers(0, 100))
    def leave_out(self, which: int) -> None:
        claim = self.claims[which % len(self.claims)]
        if not claim.part.is_condemned:
            return
        after = self._try(claim, lambda: self.ledger.leave_out(claim))
        if after is not None:
            self.claims[self.claims.index(claim)] = after

    @invariant()
    def each_item_is_in_exactly_one_place(self) -> None:
        """Done, left out, or still to be done by exactly one part."""
        with self.store.transaction() as db:
            query = "SELECT state, low, high, position FROM job_parts WHERE mode <> 'finish' AND root = :root"
            parts = db.execute(query, {"root": self.root}).fetchall()
        places = list(self.done)
        for state, low, high, position in parts:
            if state in ("ready", "running", "waiting"):
                places += bounds(position if position is not None else low, high)
        for left in self.ledger.quarantined(self.root, most=1000):
            places += bounds(left.low, left.high)
        assert sorted(places) == list(range(COUNT))

    @invariant()
    def a_job_is_over_exactly_when_no_part_is_open(self) -> None:
        status = self.ledger.status(self.root)
        assert status is not None
        assert (status.state == "open") == any(status.parts.get(state) for state in ("ready", "running", "waiting"))


Ledgers.TestCase.settings = settings(
    max_examples=1000 if os.environ.get("MEMWARDEN_SOAK") else 25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLedgers = Ledgers.TestCase


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Any]]:
    """Those that a test asked for, once."""
    with contextlib.ExitStack() as stack:

        class Started(dict[str, Any]):
            def __missing__(self, kind: str) -> Any:
                self[kind] = stack.enter_context(SERVERS[kind]())
                return self[kind]

        yield Started()


@pytest.fixture(params=["store", *(pytest.param(kind, marks=pytest.mark.server) for kind in SERVERS)])
def place(request: pytest.FixtureRequest, tmp_path: Path, servers: dict[str, Any]) -> Iterator[Any]:
    """Where a ledger's tables can be, empty."""
    if request.param == "store":
        with Store(str(tmp_path / "ledger")) as store:
            yield store
        return
    found = shared.SharedPlace(servers[request.param])
    try:
        yield found
    finally:
        shared._META.drop_all(found._engine)
        found.close()


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_the_same_holds_in_a_database(place: Any) -> None:
    class Here(Ledgers):
        def __init__(self) -> None:
            super().__init__(place)

    run_state_machine_as_test(Here, settings=settings(Ledgers.TestCase.settings, max_examples=10))


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_machines_that_share_a_ledger_take_each_part_once_and_submit_a_unique_job_once(place: Any) -> None:
    """Each thread is a machine: a place, and so a pool of connections, of its own."""
    url = place._engine.url.render_as_string(hide_password=False)
    places = [shared.SharedPlace(url) for _ in range(6)]
    ledgers = [Ledger(each) for each in places]
    root, _ = ledgers[0].submit("work", {})
    first = take(ledgers[0], root)
    ledgers[0].cut(first, [str(n) for n in range(39)], share=1, over=True, ended=True)

    def work(ledger: Ledger) -> tuple[str, list[str]]:
        done = []
        unique, _ = ledger.submit("nightly", {}, unique="today")
        while messages := ledger.outbox(root):
            for message in messages:
                claim = ledger.claim(message, HERE)
                if not isinstance(claim, str):
                    ledger.finish(ledger.advance(claim, claim.part.high, 1), "1")
                    done.append(str(claim.part.part))
        return unique, done

    try:
        with ThreadPoolExecutor(len(ledgers)) as pool:
            found = list(pool.map(work, ledgers))
        assert len({unique for unique, _ in found}) == 1
        assert sorted(int(part) for _, done in found for part in done) == list(range(1, 41))
        status = ledgers[0].status(root)
        assert status is not None
        assert (status.state, status.items, len(list(ledgers[0].results(root)))) == ("done", 40, 40)
    finally:
        for each in places:
            each.close()


class Between:
    """A place where something happens between a look at a part and what is written next."""

    def __init__(self, place: Any, happens: Callable[[], Any]) -> None:
        self._place, self._happens = place, [happens]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._place.transaction() as db:
            yield Interrupted(db, self._happens)


class Interrupted:
    def __init__(self, db: Any, happens: list[Callable[[], Any]]) -> None:
        self._db, self._happens, self._looked = db, happens, False

    def execute(self, sql: str, values: Any) -> Any:
        if self._looked and self._happens and sql.startswith("UPDATE"):
            self._happens.pop()()
        self._looked = self._looked or (sql.startswith("SELECT") and " FROM job_parts WHERE " in sql)
        return self._db.execute(sql, values)


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
@pytest.mark.parametrize("how", ["advance", "announce", "beat"])
def test_a_worker_that_writes_while_it_is_taken_for_dead_keeps_its_part(place: Any, how: str) -> None:
    ledger = Ledger(place)
    root, _ = ledger.submit("work", {}, chunk=10)
    claim = ledger.advance(take(ledger, root), "9", 10, "10")
    writes = {
        "advance": lambda: ledger.advance(claim, "19", 10, "20"), "announce": lambda: ledger.announce(claim, "10"),
        "beat": lambda: ledger.beat(claim),
    }  # fmt: skip
    watcher = Ledger(Between(place, writes[how]))
    assert not watcher.died((root, 0, claim.part.attempt), kind="lost")
    (part,) = ledger.running()
    wanted = {"advance": ("19", 20, "20", None), "announce": ("9", 10, "10", "10"), "beat": ("9", 10, "10", None)}
    assert (part.position, part.items, part.result, part.pending) == wanted[how]
    assert (part.chunk, ledger.status(root).endings) == (10, {"running": 1})  # type: ignore[union-attr]  # it is there
    ledger.advance(claim, "39", 30)
    assert ledger.died((root, 0, claim.part.attempt), kind="lost")


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_the_command_line_asks_the_database(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url = place._engine.url.render_as_string(hide_password=False)
    ledger = Ledger(place)
    root, _ = ledger.submit("shop.jobs:nightly", {}, engine="celery", queue="night")
    ledger.note_queues("celery", [QueueCount(queue="night", waiting=7)])
    assert main(["jobs", "--ledger", url, "stats", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["queue"], row["waiting"], row["broker_waiting"]) == ("night", 1, 7)
    assert main(["jobs", "cancel", root, "--ledger", url]) == 0
    status = ledger.status(root)
    assert status is not None
    assert status.state == "cancelled"
    looks = Queues(environ={"MEMWARDEN_LEDGER": url})
    assert [each["broker_waiting"] for each in looks.look()] == [7]
    looks.close()


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_who_only_looks_makes_no_tables(place: Any) -> None:
    url = place._engine.url.render_as_string(hide_password=False)
    shared._META.drop_all(place._engine)
    looks = Queues(environ={"MEMWARDEN_LEDGER": url})
    assert (looks.look(), "cannot be used" in looks.why_not) == ([], True)
    assert sa.inspect(place._engine).get_table_names() == []
    looks.close()


def test_what_is_no_server_or_cannot_be_reached_is_said_in_one_line_without_its_password() -> None:
    for url, words in (
        ("sqlite:///jobs.db", "no server that machines could share"),
        ("postgresql+nothing://host/name", "no database that can be opened"),
        ("not a url", "no database that can be opened"),
        ("postgresql+psycopg://me:hunter2@127.0.0.1:1/name", "cannot be used"),
    ):
        with pytest.raises(StoreError, match=words) as caught:
            shared.SharedPlace(url)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def ledger(place: Any) -> Ledger:
    return Ledger(place, clock=FakeClock(), random=lambda: 1.0)


def clock_of(ledger: Ledger) -> FakeClock:
    clock = ledger._clock
    assert isinstance(clock, FakeClock)
    return clock


def take(ledger: Ledger, root: str) -> Claim:
    return take_it(ledger, ledger.outbox(root)[0])


def take_it(ledger: Ledger, message: Message) -> Claim:
    found = ledger.claim(message, HERE)
    assert not isinstance(found, str)
    return found


def test_failures_wait_twice_as_long_each_time_and_then_it_is_given_up(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, options={"retries": 3, "backoff_s": 1.0})
    pauses = []
    for _ in range(4):
        claim = take(ledger, root)
        given_up, pause_s, _ = ledger.fail(claim, "no")
        pauses.append(pause_s)
        assert given_up == (len(pauses) == 4)
        if not given_up:
            assert ledger.claim(ledger.outbox(root)[0], HERE) == "later"
        clock_of(ledger).advance(pause_s)
    assert pauses == [1.0, 2.0, 4.0, 0.0]
    assert ledger.status(root).state == "failed"  # type: ignore[union-attr]  # it is there


def test_a_unique_job_is_one_while_it_is_open(ledger: Ledger) -> None:
    one, new = ledger.submit("work", {}, unique="monday")
    again, not_new = ledger.submit("work", {}, unique="monday")
    other, _ = ledger.submit("work", {}, unique="tuesday")
    assert (one, new, not_new) == (again, True, False)
    assert other != one
    ledger.finish(take(ledger, one), None)
    assert ledger.submit("work", {}, unique="monday")[1]


def test_results_are_forgotten_when_their_time_is_over(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, options={"keep_s": 60.0})
    ledger.finish(take(ledger, root), "[1]")
    assert (ledger.expire(), ledger.result(root)) == (0, [1])
    clock_of(ledger).advance(61.0)
    with pytest.raises(JobError, match="has a result no longer"):  # whether or not anybody has swept
        ledger.result(root)
    assert (ledger.expire(), ledger.status(root)) == (1, None)
    with pytest.raises(JobError, match="its result may have expired"):
        ledger.result(root)


class Last:
    """A place where something happens behind its first transaction."""

    def __init__(self, place: Any, happens: Callable[[], Any]) -> None:
        self._place, self._happens = place, [happens]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._place.transaction() as db:
            yield db
        if self._happens:
            self._happens.pop()()


def test_a_job_that_is_tried_again_while_old_ones_are_forgotten_is_not(place: Any) -> None:
    clock = FakeClock()
    ledger = Ledger(place, clock=clock)
    roots = [ledger.submit("work", {}, options={"retries": 0, "keep_s": 60.0})[0] for _ in range(2)]
    for root in roots:
        ledger.fail(take(ledger, root), "no")
    clock.advance(61.0)
    assert Ledger(Last(place, lambda: ledger.retry(roots[0])), clock=clock).expire() == 1
    assert ledger.status(roots[1]) is None
    ledger.finish(take(ledger, roots[0]), None)
    assert len(ledger.attempts(roots[0])) == 2


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_a_job_that_is_being_forgotten_is_tried_again_as_a_whole_or_not_at_all(place: Any) -> None:
    url = place._engine.url.render_as_string(hide_password=False)
    other = shared.SharedPlace(url)
    clock = FakeClock()
    mine, yours = Ledger(place, clock=clock), Ledger(other, clock=clock)
    roots = [mine.submit("work", {}, options={"retries": 0, "keep_s": 0.0})[0] for _ in range(20)]
    for root in roots:
        mine.fail(take(mine, root), "no")

    def retry() -> list[str]:
        again = []
        for root in reversed(roots):
            with contextlib.suppress(JobError):
                again += [root] * yours.retry(root)
        return again

    try:
        with ThreadPoolExecutor(2) as pool:
            kept, gone = pool.submit(retry), pool.submit(mine.expire)
            again = kept.result()
            assert gone.result() + len(again) == len(roots)
        for root in roots:
            parts = [part.root for part, _ in mine.due("local", most=50) if part.root == root]
            assert parts == ([root] if root in again else [])
            assert (mine.status(root) is None) == (root not in again)
    finally:
        other.close()


def test_priority_and_delay_order_what_is_due(ledger: Ledger) -> None:
    plain, _ = ledger.submit("plain", {})
    urgent, _ = ledger.submit("urgent", {}, priority=5)
    later, _ = ledger.submit("later", {}, priority=9, delay_s=30.0)
    assert [part.root for part, _ in ledger.due("local")] == [urgent, plain]
    assert ledger.due("celery") == []
    clock_of(ledger).advance(30.0)
    assert [part.root for part, _ in ledger.due("local")] == [later, urgent, plain]
    assert ledger.due("local", queues=("other",)) == []


def test_a_message_that_the_broker_lost_is_sent_again(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, engine="celery")
    (message,) = ledger.unsent("celery")
    ledger.mark_sent(message)
    assert (ledger.unsent("celery"), ledger.outbox(root)) == ([], [])
    clock_of(ledger).advance(901.0)
    assert ledger.unsent("celery") == [message]
    assert ledger.unsent("local") == []


def test_a_message_that_came_too_early_by_the_workers_clock_is_sent_once_more(place: Any) -> None:
    ahead, behind = FakeClock(unix_s=1_800_000_001.0), FakeClock(unix_s=1_800_000_000.0)
    ledger, worker = Ledger(place, clock=ahead), Ledger(place, clock=behind)
    root, _ = ledger.submit("work", {}, engine="celery")
    (message,) = ledger.unsent("celery")
    ledger.mark_sent(message)
    assert worker.claim(message, HERE) == "later"
    behind.advance(1.0)
    assert ledger.unsent("celery") == worker.unsent("celery") == [message]
    ledger.mark_sent(message)
    assert take_it(worker, message).part.root == root
    assert worker.claim(message, HERE) == "dropped"  # the first one, doubled
    assert ledger.unsent("celery") == []


@given(text=st.text(st.characters(codec=None, categories=None), max_size=600) | st.just("\0" * 600))
@settings(max_examples=50, deadline=None)
def test_an_error_is_kept_whatever_is_in_its_words(text: str) -> None:
    kept = _kept(text)
    assert (len(kept) <= ERROR_CHARACTERS, "\0" in kept) == (True, False)
    assert kept.encode().decode() == kept
    plain = not any(each == "\0" or "\ud800" <= each <= "\udfff" for each in text)
    assert not plain or kept == text[:ERROR_CHARACTERS]


def test_the_status_of_an_open_job_says_why_it_waits(ledger: Ledger) -> None:
    def seen() -> tuple[str, str | None]:
        status = ledger.status(root)
        assert status is not None
        return status.state, status.error

    root, _ = ledger.submit("work", {}, options={"retries": 1})
    assert seen() == ("open", None)
    ledger.postpone(ledger.outbox(root)[0], 0.0, "its module cannot be imported here")
    assert seen() == ("open", "its module cannot be imported here")
    ledger.finish(take(ledger, root), None)
    assert seen() == ("done", None)


def test_words_that_no_database_takes_are_written_down_all_the_same(ledger: Ledger) -> None:
    bad, kept = f"no row a\0b of {os.fsdecode(bytes([255]))}", "no row a\\0b of \\udcff"
    root, _ = ledger.submit("work", {}, options={"retries": 1})
    claim = take(ledger, root)
    ledger.cut(claim, ["0"], share=1, over=False, ended=False, text=bad)
    ledger.note("job_leak", root, bad)
    ledger.postpone(ledger.outbox(root)[0], 0.0, bad)
    ledger.stop(claim, kind="drain", text=bad)
    ledger.fail(take(ledger, root), bad)
    clock_of(ledger).advance(60.0)
    for _ in range(3):
        ledger.died((root, 0, take(ledger, root).part.attempt), kind="crash", text=bad)
    clock_of(ledger).advance(1.0)
    texts = [each["text"] for each in ledger.events()] + [each["text"] for each in ledger.attempts(root)]
    texts += [each.text for each in ledger.quarantined(root)]
    assert [text for text in texts if kept not in text] == ["an item was quarantined after crash"]
    assert len(texts) == 3 + 5 + 1


def test_arguments_that_are_no_json_are_refused_with_the_reason(ledger: Ledger) -> None:
    for wrong in ({"a": object()}, {"a": {1, 2}}):
        with pytest.raises(JobError, match="its arguments cannot be written as JSON"):
            ledger.submit("work", wrong)
    with pytest.raises(JobError, match="hand over a key or a path instead"):
        ledger.submit("work", {"a": "x" * MOST_ARGUMENTS_BYTES})


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.integers() | st.none() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=12,
)  # fmt: skip


def listed(value: Any) -> Any:
    """With lists for tuples."""
    if isinstance(value, dict):
        return {key: listed(each) for key, each in value.items()}
    return [listed(each) for each in value] if isinstance(value, (list, tuple)) else value


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)  # 1, 1.0 and True are equal


@given(SHAPES)
@settings(deadline=None)
def test_what_is_written_as_json_comes_back_as_it_was_or_is_refused(value: Any) -> None:
    back = json.loads(json.dumps(value))
    try:
        text = as_json(value, "it", 1 << 20, where="here")
    except JobError:
        assert not same(back, listed(value)) or "NaN" in json.dumps(value) or "Infinity" in json.dumps(value)
    else:
        assert same(json.loads(text), listed(value))


def test_what_is_too_deep_for_json_is_refused_and_no_deeper() -> None:
    for depth in (10, 900, 980, 5000):
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        with contextlib.suppress(JobError):
            assert as_json(value, "it", 1 << 20, where="here").count("[") == depth + 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"m": [{"b": 1}, {7: 1}]}, "the key 7 is no text at ['m'][1]"),
        ({"m": ({None: 1},)}, "the key None is no text at ['m'][0]"),
        ({(1, 2): 1}, "keys must be str"),
        ({True: 1}, "the key True is no text)"),
        ({"a": [0.0, float("nan")]}, "nan is no number of JSON at ['a'][1]"),
        (float("-inf"), "-inf is no number of JSON)"),
    ],
)
def test_what_json_would_change_is_refused_with_its_place(value: object, said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)):
        as_json(value, "its result", 1000, where="job 'count'")


def test_a_retry_does_what_was_left_out_after_all(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, chunk=1)
    for _ in range(3):
        claim = take(ledger, root)
        ledger.announce(claim, "0")
        ledger.died((root, 0, claim.part.attempt), kind="oom_kill", text="the kernel")
    claim = take(ledger, root)
    assert claim.part.is_condemned
    claim = ledger.leave_out(claim)
    ledger.finish(claim, None)
    status = ledger.status(root)
    assert status is not None
    assert (status.state, status.quarantined) == ("done", 1)
    assert ledger.retry(root) == 1
    part = take(ledger, root).part
    assert (part.low, part.high) == (None, "0")
    assert [each.retried for each in ledger.quarantined(root)] == [True]


REDUCED = {"reduce": True, "retries": 0}


def fold(ledger: Ledger, root: str) -> Claim:
    """The part that folds, taken when all others are done."""
    while (claim := take(ledger, root)).part.mode != "finish":
        ledger.finish(claim, "1")
    return claim


def test_a_fold_that_failed_says_why_and_can_be_tried_again(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, options=REDUCED)
    ledger.fail(fold(ledger, root), "ValueError: no sum")
    status = ledger.status(root)
    assert status is not None
    assert (status.state, status.error) == ("failed", "ValueError: no sum")
    assert ledger.retry(root) == 1
    ledger.finish(fold(ledger, root), "7")
    assert (ledger.result(root), ledger.status(root).error) == (7, None)  # type: ignore[union-attr]  # it is there
    assert ledger.retry(root) == 0
    assert ledger.result(root) == 7


def leave_out(ledger: Ledger, claim: Claim, key: str) -> Claim:
    """Three deaths at this item, and it is left out."""
    root, part = claim.part.root, claim.part.part
    for _ in range(3):
        if claim.part.careful:
            ledger.announce(claim, key)
        ledger.died((root, part, claim.part.attempt), kind="crash")
        claim = take(ledger, root)
    assert claim.part.is_condemned
    return ledger.leave_out(claim)


def test_what_was_left_out_is_done_before_a_failed_fold_is_tried_again(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, chunk=2, options=REDUCED)
    claim = leave_out(ledger, take(ledger, root), "0")
    ledger.finish(ledger.advance(claim, "1", 1, "[1]"), "[1]")
    ledger.fail(fold(ledger, root), "no")
    assert ledger.retry(root) == 1
    again = take(ledger, root)
    assert (again.part.mode, again.part.low, again.part.high) == ("work", None, "0")
    ledger.finish(again, "[0]")
    claim = take(ledger, root)
    assert (claim.part.mode, list(ledger.results(root))) == ("finish", [[1], [0]])


def test_a_retry_of_an_item_keeps_what_a_job_that_was_never_cut_gave(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, chunk=2)
    claim = leave_out(ledger, take(ledger, root), "0")
    ledger.finish(claim, '{"v": 1}')
    ledger.retry(root)
    ledger.finish(take(ledger, root), '{"v": 0}')
    assert ledger.result(root) == {"v": 1}
    cut, _ = ledger.submit("work", {})
    ledger.cut(take(ledger, cut), ["0"], share=1, over=True, ended=True, result="[1]")
    for _ in range(2):
        ledger.finish(take(ledger, cut), "[2]")
    assert ledger.result(cut) is None  # each of its parts has one: that is what `reduce` is for


def test_what_is_retried_again_and_again_gets_no_longer_path(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, chunk=2)
    ledger.finish(leave_out(ledger, take(ledger, root), "0"), None)
    paths = []
    for _ in range(30):
        ledger.retry(root)
        claim = take(ledger, root)
        paths.append(claim.part.path)
        ledger.finish(leave_out(ledger, claim, "0"), None)
    assert {len(path) for path in paths} == {10}
    assert paths == sorted(set(paths))


def test_a_job_that_is_tried_again_is_unique_again(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, unique="monday", options={"retries": 0})
    ledger.fail(take(ledger, root), "no")
    ledger.retry(root)
    assert ledger.submit("work", {}, unique="monday") == (root, False)
    ledger.fail(take(ledger, root), "no")
    other, _ = ledger.submit("work", {}, unique="monday")
    with pytest.raises(JobError, match=f"has the same unique key as job {other}, which is open"):
        ledger.retry(root)
    assert ledger.status(root).state == "failed"  # type: ignore[union-attr]  # it is there
    ledger.finish(take(ledger, other), None)
    assert ledger.retry(root) == 1


def test_unique_keys_of_two_jobs_are_two(ledger: Ledger) -> None:
    ledger.submit("sync", {}, unique="users:2026")
    assert ledger.submit("sync:users", {}, unique="2026")[1]


def test_whoever_is_killed_before_it_leaves_an_item_out_costs_that_item_no_further_death(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, chunk=1)
    for _ in range(3):
        claim = take(ledger, root)
        ledger.announce(claim, "0")
        ledger.died((root, 0, claim.part.attempt), kind="oom_kill")
    for kind in ("killed", "killed", "lost"):
        claim = take(ledger, root)
        assert claim.part.is_condemned
        ledger.died((root, 0, claim.part.attempt), kind=kind)
    assert ledger.leave_out(take(ledger, root)).part.position == "0"


def test_a_pause_has_a_bound_however_often_it_failed(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, options={"retries": 10**6, "backoff_s": 1.0})
    with ledger._place.transaction() as db:
        db.execute("UPDATE job_parts SET errors = :errors", {"errors": 5000})
    assert ledger.fail(take(ledger, root), "no")[:2] == (False, 3600.0)


# --- who is dead -------------------------------------------------------------------------------------------------


def held_by(ledger: Ledger, worker: Worker) -> Claim:
    """A part that this worker has."""
    root, _ = ledger.submit("work", {})
    found = ledger.claim(ledger.outbox(root)[0], worker)
    assert not isinstance(found, str)
    return found


def looks(watch: Watch, ledger: Ledger, clock: FakeClock, seconds: float) -> list[Any]:
    """What it finds dead, looking every second for so long."""
    found = watch.dead(ledger.running())
    for _ in range(int(seconds)):
        if not found:
            clock.advance(1.0)
            found = watch.dead(ledger.running())
    return found


ELSEWHERE = HERE.replace(host="another")


def test_a_worker_is_dead_when_its_heart_stands_still_by_the_watchers_clock(ledger: Ledger) -> None:
    """Wall clocks may differ by hours: only the watcher's monotonic one counts."""
    clock = FakeClock()
    watch = Watch(clock, lease_s=60.0)
    claim = held_by(ledger, ELSEWHERE)
    clock_of(ledger).advance(1e6)
    assert looks(watch, ledger, clock, 59) == []
    ledger.beat(claim)
    assert looks(watch, ledger, clock, 59) == []
    ((claimed, kind, why),) = looks(watch, ledger, clock, 1)
    assert (claimed, kind, why) == ((claim.part.root, 0, 1), "lost", "no heartbeat for 60 s")


@pytest.mark.parametrize("gap_s", [59.0, 61.0, 86400.0])
def test_a_watcher_that_could_not_look_takes_nobody_for_dead_who_could_not_beat(ledger: Ledger, gap_s: float) -> None:
    """Its ledger was away, or it was stopped itself."""
    clock = FakeClock()
    watch = Watch(clock, lease_s=60.0)
    claim = held_by(ledger, ELSEWHERE)
    assert looks(watch, ledger, clock, 15) == []  # the longest that a heart is silent
    clock.advance(gap_s)
    assert looks(watch, ledger, clock, 15) == []
    ledger.beat(claim)
    assert looks(watch, ledger, clock, 59) == []
    assert len(looks(watch, ledger, clock, 1)) == 1


def test_a_watcher_that_looks_seldom_finds_the_dead_all_the_same(ledger: Ledger) -> None:
    clock = FakeClock()
    watch = Watch(clock, lease_s=60.0)
    held_by(ledger, ELSEWHERE)
    found = [watch.dead(ledger.running())]
    for _ in range(4):
        clock.advance(300.0)
        found.append(watch.dead(ledger.running()))
    assert [len(each) for each in found] == [0, 0, 0, 0, 1]


def test_a_process_that_is_seen_to_live_has_ten_leases(ledger: Ledger) -> None:
    clock = FakeClock()
    watch = Watch(clock, lease_s=60.0)
    held_by(ledger, HERE)
    assert looks(watch, ledger, clock, 599) == []
    ((_, kind, why),) = looks(watch, ledger, clock, 1)
    assert (kind, why) == ("lost", "no heartbeat for 600 s of a process that lives")


BEFORE = HERE.replace(boot=f"another-boot {HERE.boot.partition(' ')[2]}")


def test_who_worked_before_the_machine_was_started_anew_is_gone_at_once_and_blames_no_item(ledger: Ledger) -> None:
    held_by(ledger, BEFORE)
    ((_, kind, why),) = Watch(FakeClock(), one_machine=True).dead(ledger.running())
    assert (kind, why) == ("killed", "this machine was started anew since")


def test_two_machines_of_one_name_do_not_take_each_others_parts(ledger: Ledger) -> None:
    """Where machines share a ledger another boot may be another machine: its heart counts, and no item is blamed."""
    clock = FakeClock()
    watch = Watch(clock, lease_s=60.0)
    held_by(ledger, BEFORE)
    assert looks(watch, ledger, clock, 59) == []
    ((_, kind, _),) = looks(watch, ledger, clock, 1)
    assert kind == "killed"


def test_another_namespace_of_pids_at_the_same_boot_tells_nothing(ledger: Ledger) -> None:
    held_by(ledger, HERE.replace(boot=f"{HERE.boot.partition(' ')[0]} pid:[1]", pid=2**22 - 1))
    assert Watch(FakeClock(), one_machine=True).dead(ledger.running()) == []


HIDDEN = """
import os, subprocess, sys
from memwarden.jobs.ledger import Worker
subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
here = Worker.here()  # its parent is root's
os.setgroups([])
os.setegid(65534)  # the group of root sees all
os.seteuid(65534)
seen = os.path.exists(f"/proc/{here.parent}")
of_root = here.replace(pid=here.parent, start=here.parent_start)
gone = here.replace(pid=2**22 - 1)
print(seen, here.lives(), of_root.lives(), of_root.is_gone(), here.lost_its_parent(), gone.is_gone())
"""


def test_who_is_hidden_from_us_is_neither_gone_nor_seen_to_live() -> None:
    """/proc with hidepid=2, which shows a user no process of another one."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("only root can have a /proc of its own")
    done = subprocess.run(
        [unshare, "--mount", sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False
    )
    if "subprocess.CalledProcessError" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no /proc of its own can be had here: {done.stderr.strip().splitlines()[-1]}")
    assert done.stdout.split() == ["False", "True", "False", "False", "False", "True"], done.stderr


def test_a_worker_of_this_machine_whose_process_is_gone_is_dead_at_once(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {})
    ledger.claim(ledger.outbox(root)[0], HERE.replace(pid=2**22 - 1, start="1"))
    ((claimed, kind, _),) = Watch(FakeClock()).dead(ledger.running())
    assert (claimed, kind) == ((root, 0, 1), "lost")


def test_a_worker_that_went_with_its_parent_blames_no_item(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {})
    gone = HERE.replace(pid=2**22 - 1, start="1", parent=2**22 - 2, parent_start="1")
    ledger.claim(ledger.outbox(root)[0], gone)
    ((_, kind, _),) = Watch(FakeClock()).dead(ledger.running())
    assert kind == "killed"


def test_a_sigkill_is_the_kernels_only_where_the_kernel_killed_somebody() -> None:
    assert HERE.kills is not None
    assert HERE.death(-9) in ("killed", "lost")  # lost where the kernel killed somebody between the two lines
    assert HERE.replace(kills=HERE.kills - 1).death(-9) == "lost"
    assert HERE.death(-11) == "crash"
    assert HERE.death(1) == "crash"


class Plans:
    """A store that asks SQLite how it would find what each statement on parts is about."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.found: dict[str, str] = {}

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._store.transaction() as db:
            outer = self

            class Asked:
                def execute(self, sql: str, values: Any) -> Any:
                    if "job_parts" in sql and not sql.startswith("INSERT"):
                        plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
                        outer.found[sql] = " / ".join(row[-1] for row in plan)
                    return db.execute(sql, values)

            yield Asked()


def test_the_end_of_a_part_looks_at_none_of_the_others(tmp_path: Path) -> None:
    """A job may have a hundred thousand: each statement finds its rows by two columns of an index, and sorts none."""
    with Store(str(tmp_path)) as store:
        plans = Plans(store)
        ledger = Ledger(plans)
        root, _ = ledger.submit("work", {}, chunk=1)
        ledger.cut(take(ledger, root), ["0", "1"], share=1, over=True, ended=True)
        ledger.stop(take(ledger, root), kind="drain")
        ledger.died((root, 1, take(ledger, root).part.attempt), kind="lost")
        for _ in range(2):
            ledger.finish(take(ledger, root), None)
        ledger.fail(take(ledger, root), "no", final=True)
        ledger.outbox(root)
        assert ledger.status(root).state == "failed"  # type: ignore[union-attr]  # it is there
        counted = {sql for sql in plans.found if "GROUP BY" in sql}  # by whoever looks at it
        assert len(plans.found) > 8
        for sql, plan in plans.found.items():
            if sql not in counted:
                assert "USING" in plan, sql
                assert "(root=? AND part=?)" in plan or "AND state=?" in plan, (sql, plan)
                assert "SCAN" not in plan, (sql, plan)
                assert "TEMP B-TREE" not in plan, (sql, plan)


@pytest.mark.server
@pytest.mark.parametrize("place", SERVERS, indirect=True)
def test_tables_of_an_earlier_release_get_the_index_that_they_lack(place: Any) -> None:
    shared._BY_STATE.drop(place._engine)
    url = place._engine.url.render_as_string(hide_password=False)
    shared.SharedPlace(url).close()
    found = {index["name"] for index in sa.inspect(place._engine).get_indexes("memwarden_job_parts")}
    assert shared._BY_STATE.name in found


# --- messages ----------------------------------------------------------------------------------------------------


def test_a_message_is_small_whatever_the_keys_are() -> None:
    message = Message(job="a" * 200, root="b" * 24, part=10**9, attempt=10**6, low="x" * 5000, high='"' * 600)
    text = message.encode()
    assert len(text) <= MOST_BYTES
    assert Message.decode(text) == message.replace(low=None, high=None)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"memwarden": 1}', '{"memwarden": 99}', b"\xff\xfe", "[" * 100_000, '"x"', "1e999",
     '{"memwarden":1,"job":1,"root":"a","part":0,"attempt":0,"low":null,"high":null}',
     '{"memwarden":1,"job":"a","root":"a","part":"0","attempt":0,"low":null,"high":null}'],
)  # fmt: skip
def test_foreign_messages_are_refused_in_one_line(text: str | bytes) -> None:
    with pytest.raises(JobError) as caught:
        Message.decode(text)
    assert "\n" not in str(caught.value)


def test_what_a_worker_counted_in_its_broker_stands_beside_the_parts_for_a_minute(ledger: Ledger) -> None:
    ledger.note_queues("rq", [QueueCount(queue="web", waiting=None), QueueCount(queue="mail", waiting=3, taken=1)])
    clock_of(ledger).advance(COUNTED_S - 1)
    ledger.note_queues("celery", [QueueCount(queue="mail", waiting=8)])
    ledger.note_queues("rq", [QueueCount(queue="mail", waiting=2, taken=1)])
    assert {row["queue"] for row in ledger.statistics()} == {"mail", "web"}
    clock_of(ledger).advance(2)
    ledger.note_queues("rq", [QueueCount(queue="mail", waiting=2, taken=1)])
    rows = {(row["engine"], row["queue"]): row for row in ledger.statistics()}
    assert rows.keys() == {("celery", "mail"), ("rq", "mail")}
    assert (rows["rq", "mail"]["broker_waiting"], rows["rq", "mail"]["broker_taken"]) == (2, 1)
    assert (rows["celery", "mail"]["broker_waiting"], rows["celery", "mail"]["broker_taken"]) == (8, None)
    assert rows["rq", "mail"]["waiting"] == 0
    clock_of(ledger).advance(COUNTED_S + 1)
    assert ledger.statistics() == []


def test_statistics_count_jobs_by_each_of_their_states(ledger: Ledger) -> None:
    done, failed, cancelled, _open = (ledger.submit("work", {})[0] for _ in range(4))
    ledger.finish(take(ledger, done), None)
    ledger.fail(take(ledger, failed), "no", final=True)
    ledger.cancel(cancelled)
    (row,) = ledger.statistics()
    states = ("jobs", "jobs_open", "jobs_done", "jobs_failed", "jobs_cancelled")
    assert [row[name] for name in states] == [4, 1, 1, 1, 1]
    assert [row[name] for name in ("waiting", "running", "done", "failed")] == [1, 0, 1, 1]


def test_what_waits_in_a_broker_that_is_behind_is_not_sent_again_and_again(ledger: Ledger) -> None:
    root, _ = ledger.submit("work", {}, engine="rq", queue="mail")
    (message,) = ledger.unsent("rq")
    assert (ledger.queues_waiting("rq"), ledger.queues_waiting("celery")) == ({"mail"}, set())
    ledger.mark_sent(message)

    def after(seconds: float, waiting: int | None) -> list[Message]:
        clock_of(ledger).advance(seconds)
        if waiting is not None:
            ledger.note_queues("rq", [QueueCount(queue="mail", waiting=waiting)])
        return ledger.unsent("rq")

    assert after(RESEND_S - 1, 1) == []
    assert after(2, 1) == []  # it is there
    assert after(COUNTED_S - 1, None) == []
    assert after(2, None) == [message]  # nobody has counted of late
    assert after(0, 40) == []  # others' messages are not told from ours
    assert after(0, 0) == [message]  # it is lost
    assert after((BEHIND - 1) * RESEND_S, 40) == [message]
    ledger.mark_sent(message)
    assert after(RESEND_S + 1, 40) == []
    fresh, _ = ledger.submit("work", {}, engine="rq", queue="mail")
    assert [each.root for each in ledger.unsent("rq")] == [fresh]
    assert root != fresh
