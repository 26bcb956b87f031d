"""Pools: never too many, nothing lent twice, nothing lost, and what never came back is named."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memwarden.budget import Budget
from memwarden.errors import (
    ConfigError,
    FactoryError,
    MemoryPressureError,
    NotBorrowedError,
    PoolClosedError,
    PoolTimeoutError,
)
from memwarden.flow.pool import Borrow, Pool
from memwarden.flow.pool_async import AsyncPool
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_S = 20.0
SITE = "test_pool.py:"


class Thing:
    """What the pools here hold. It can be referenced weakly."""

    def __init__(self) -> None:
        self.good = True
        self.resets = 0
        self.ended = 0
        self.over = asyncio.Event()


class Slotted:
    __slots__ = ()


class Things(Pool[Thing]):
    """A typed pool that keeps account of what it did."""

    def __init__(self, **options: Any) -> None:
        self.made: list[Thing] = []
        self.destroyed: list[Thing] = []
        super().__init__(**{"auto_cleanup": False, "create_timeout_s": None, **options})

    def create(self) -> Thing:
        self.made.append(Thing())
        return self.made[-1]

    def reset(self, obj: Thing) -> None:
        obj.resets += 1

    def validate(self, obj: Thing) -> bool:
        return obj.good

    def destroy(self, obj: Thing) -> None:
        obj.ended += 1
        self.destroyed.append(obj)


def counts(pool: Any) -> Any:
    found = pool.statistics
    assert found is not None
    return found


def _started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _until(true: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    event = threading.Event()
    for _ in range(int(PATIENCE_S * 1000)):
        if true():
            return
        event.wait(0.001)
    raise AssertionError("it never came")


# --- any order of everything ---------------------------------------------------------------------------------


class Lending(RuleBasedStateMachine):
    """Against the plainest model: a stack of idle things, a set of borrowed ones, and their times."""

    LIFE, IDLE, CHECK = 1000.0, 100.0, 30.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.pool = Things(
            clock=self.clock, min_size=1, max_size=3, max_idle_s=self.IDLE, max_lifetime_s=self.LIFE,
            validate_every_s=self.CHECK, timeout_s=0, chance=lambda: 0.0,
        )  # fmt: skip
        self.idle: list[Thing] = []
        self.out: list[Thing] = []
        self.born: dict[int, float] = {}
        self.checked: dict[int, float] = {}
        self.since: dict[int, float] = {}
        self.bounds = (1, 3)
        self.lost = 0

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def _alive(self, thing: Thing) -> bool:
        """What the pool would find when it looks at it before lending."""
        if self.now - self.born[id(thing)] >= self.LIFE:
            return False
        return thing.good or self.now - self.checked[id(thing)] < self.CHECK

    @rule()
    def acquire(self) -> None:
        expected = None
        while self.idle:
            thing = self.idle.pop()
            if self._alive(thing):
                expected = thing
                break
        if expected is None and len(self.out) >= self.bounds[1]:
            with pytest.raises(PoolTimeoutError):
                self.pool.acquire()
            return
        found = self.pool.acquire()
        if expected is None:
            assert found is self.pool.made[-1]
            assert not found.resets
            self.born[id(found)] = self.checked[id(found)] = self.now
        else:
            assert found is expected
            if self.now - self.checked[id(found)] >= self.CHECK:
                self.checked[id(found)] = self.now
        self.out.append(found)

    @precondition(lambda self: self.out)
    @rule(number=st.integers(0, 2))
    def release(self, number: int) -> None:
        thing = self.out.pop(number % len(self.out))
        resets = thing.resets
        self.clock.advance(2**-10)  # no two come back at the same time: the order among such is nobody's
        self.pool.release(thing)
        assert thing.resets == resets + 1
        total = len(self.out) + len(self.idle) + 1
        if self.now - self.born[id(thing)] < self.LIFE and total <= self.bounds[1]:
            self.idle.append(thing)
            self.since[id(thing)] = self.now
        with pytest.raises(NotBorrowedError):
            self.pool.release(thing)

    @precondition(lambda self: self.out)
    @rule()
    def discard(self) -> None:
        thing = self.out.pop()
        self.pool.discard(thing)
        assert thing.ended == 1

    @precondition(lambda self: self.out)
    @rule()
    def forget(self) -> None:
        thing = self.out.pop()
        self.pool.made.remove(thing)
        del thing
        self.lost += 1

    @precondition(lambda self: self.idle)
    @rule(number=st.integers(0, 2))
    def spoil(self, number: int) -> None:
        self.idle[number % len(self.idle)].good = False

    @rule(seconds=st.sampled_from([1, 29, 31, 99, 101, 999]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(most=st.integers(1, 4))
    def resize(self, most: int) -> None:
        self.bounds = (1, most)
        self.pool.resize(max_size=most)
        while self.idle and len(self.idle) + len(self.out) > most:
            self.idle.pop(0)

    @rule(number=st.integers(1, 3))
    def shed(self, number: int) -> None:
        freed = self.pool.shed(number)  # less than one object is one object
        assert (freed > 0) == bool(self.idle)
        del self.idle[:1]

    @rule()
    def maintain(self) -> None:
        self.pool.maintain()
        for thing in list(self.idle):
            total = len(self.idle) + len(self.out)
            old = self.now - self.born[id(thing)] >= self.LIFE
            long_idle = total > self.bounds[0] and self.now - self.since[id(thing)] >= self.IDLE
            if old or long_idle:
                self.idle.remove(thing)
        for thing in list(self.idle):
            if self.now - self.checked[id(thing)] >= self.CHECK:
                self.checked[id(thing)] = self.now
                if not thing.good:
                    self.idle.remove(thing)
        if not self.idle and not self.out:
            thing = self.pool.made[-1]
            self.born[id(thing)] = self.checked[id(thing)] = self.since[id(thing)] = self.now
            self.idle.append(thing)

    @invariant()
    def the_books_are_right(self) -> None:
        found = counts(self.pool)
        assert (found.idle, found.active) == (len(self.idle), len(self.out))
        assert [each.obj for each in self.pool._core.idle] == self.idle
        assert found.created - found.destroyed == len(self.idle) + len(self.out)
        assert found.lost == self.lost == len(self.pool.lost)
        assert found.held_bytes == sum(each.size_bytes for each in self.pool._core.entries.values())
        assert all(each.ended == 1 for each in self.pool.destroyed)
        assert len(self.pool.destroyed) == found.destroyed - self.lost
        assert len(self.pool.borrowed()) == len(self.out)


Lending.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLending = Lending.TestCase


# --- settings ------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_requirement() -> None:
    pool: Pool[Thing] = Pool(Thing)
    found = counts(pool)
    assert (found.min_size, found.max_size) == (2, 10)
    assert (pool._max_idle_s, pool._round_s, pool._auto_cleanup, pool._counting) == (300.0, 60.0, True, True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_size": -1}, "min_size"),
        ({"max_size": 0}, "max_size"),
        ({"min_size": 5, "max_size": 4}, "min_size"),
        ({"max_size": True}, "max_size"),
        ({"max_idle_s": "soon"}, "max_idle_s"),
        ({"validate_every_s": -1}, "validate_every_s"),
        ({"timeout_s": "80%"}, "timeout_s"),
        ({"item_bytes": 0}, "item_bytes"),
        ({"factory": None}, "factory"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_in_one_line(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Pool(**{"factory": Thing, **options})
    assert "\n" not in str(caught.value)


def test_nothing_is_made_or_started_before_it_is_needed() -> None:
    threads = threading.active_count()
    made: list[Thing] = []
    pool: Pool[Thing] = Pool(lambda: made.append(Thing()) or made[-1])  # type: ignore[func-returns-value]
    assert (made, threading.active_count()) == ([], threads)
    with pool:
        assert len(made) == 2
        assert counts(pool).idle == 2
        assert counts(pool).hit_rate is None
    assert counts(pool).idle == 0


# --- borrowing -----------------------------------------------------------------------------------------------


def test_what_came_back_last_is_lent_first_and_hits_are_counted() -> None:
    pool = Things()
    one, two = pool.acquire(), pool.acquire()
    pool.release(one)
    pool.release(two)
    with pool.lease() as again:
        assert again is two
    found = counts(pool)
    assert (found.acquired, found.created, found.hit_rate) == (3, 2, 1 / 3)


def test_a_borrower_is_named_with_file_line_and_function() -> None:
    pool = Things()
    kept = pool.acquire()
    (found,) = pool.borrowed()
    assert SITE in found.site
    assert found.site.endswith("in test_a_borrower_is_named_with_file_line_and_function")
    pool.release(kept)
    with pool.lease():
        line = int(pool.borrowed()[0].site.partition(SITE)[2].partition(",")[0])
    assert line == sys._getframe().f_lineno - 2
    assert pool.borrowed() == ()


def test_what_was_dropped_is_named_and_its_room_is_free_again() -> None:
    pool = Things(max_size=1, min_size=0, timeout_s=0)
    pool.acquire()
    pool.made.clear()
    gc.collect()
    assert [SITE in each.site for each in pool.lost] == [True]
    pool.release(pool.acquire())
    assert counts(pool).lost == 1


def test_a_waiter_gets_the_room_of_what_was_dropped() -> None:
    pool = Things(max_size=1, min_size=0)
    pool.acquire()
    got: list[Thing] = []
    thread = _started(lambda: got.append(pool.acquire(PATIENCE_S)))
    _until(lambda: counts(pool).waiting)
    pool.made.clear()
    thread.join(PATIENCE_S)
    assert len(got) == 1


def test_a_finalizer_that_returns_its_object_does_not_hang() -> None:
    pool = Things(max_size=1, min_size=0, timeout_s=0)

    class Holder:
        def __init__(self) -> None:
            self.thing = pool.acquire()
            self.me = self

        def __del__(self) -> None:
            pool.release(self.thing)

    Holder()
    with pool._lock:
        gc.collect()
    assert counts(pool).idle == 1


def test_without_weak_references_a_borrowed_object_is_kept_and_named_by_its_age() -> None:
    clock = FakeClock()
    told: list[Borrow] = []
    pool: Pool[Any] = Pool(
        Slotted, clock=clock, auto_cleanup=False, min_size=0, leak_after_s="10s", on_leak=told.append
    )
    pool.acquire()
    clock.advance(9)
    pool.maintain()
    assert told == []
    clock.advance(2)
    for _ in range(2):
        pool.maintain()
    assert [each.held_s for each in told] == [11.0]
    assert pool.borrowed(older_than_s=11)[0].site == told[0].site
    assert pool.borrowed(older_than_s=12) == ()


def test_no_statistics_means_neither_counts_nor_places() -> None:
    pool = Things(statistics=False)
    kept = pool.acquire()
    assert pool.statistics is None
    assert [each.site for each in pool.borrowed()] == [""]
    pool.release(kept)


# --- wrong use -----------------------------------------------------------------------------------------------


def test_an_object_returned_twice_is_refused_and_named() -> None:
    pool = Things(name="things")
    thing = pool.acquire()
    pool.release(thing)
    for give in (pool.release, pool.discard):
        with pytest.raises(NotBorrowedError, match=r"pool 'things'.*Thing.*not out.*test_pool\.py") as caught:
            give(thing)
        assert caught.value.again
    assert counts(pool).idle == 1


def test_two_threads_that_return_one_object_at_once_return_it_once() -> None:
    pool = Things(max_size=1, min_size=0, timeout_s=0)
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def give(thing: Thing) -> None:
        barrier.wait(PATIENCE_S)
        try:
            pool.release(thing)
            outcomes.append("returned")
        except NotBorrowedError:
            outcomes.append("refused")

    for _ in range(100):
        thing = pool.acquire()
        threads = [_started(lambda thing=thing: give(thing)) for _ in range(2)]  # type: ignore[misc]
        for thread in threads:
            thread.join(PATIENCE_S)
    assert (outcomes.count("returned"), outcomes.count("refused")) == (100, 100)
    assert (counts(pool).created, counts(pool).idle) == (1, 1)


def test_a_foreign_object_is_refused_and_named() -> None:
    pool, other = Things(), Things()
    for foreign in (Thing(), "text", other.acquire()):
        with pytest.raises(NotBorrowedError, match=f"{type(foreign).__name__}.*not from here") as caught:
            pool.release(foreign)  # type: ignore[arg-type]
        assert not caught.value.again


def test_a_lease_is_for_one_with_statement_at_a_time() -> None:
    pool = Things()
    lease = pool.lease()
    with lease:
        with pytest.raises(ConfigError, match="in use"):
            lease.__enter__()
        assert counts(pool).active == 1
    assert counts(pool).active == 0


@pytest.mark.parametrize("create_timeout_s", [None, PATIENCE_S])
def test_a_factory_that_raises_is_named_and_the_next_may_try(create_timeout_s: float | None) -> None:
    fails = [True]

    def connect() -> Thing:
        if fails:
            raise OSError("no route")
        return Thing()

    pool: Pool[Thing] = Pool(connect, max_size=1, min_size=0, auto_cleanup=False, create_timeout_s=create_timeout_s)
    for _ in range(3):
        with pytest.raises(FactoryError, match=r"connect raised OSError: no route") as caught:
            pool.acquire()
        assert isinstance(caught.value.__cause__, OSError)
    fails.clear()
    pool.release(pool.acquire())
    assert (counts(pool).failed, counts(pool).created, counts(pool).making) == (3, 1, 0)


def test_an_interrupted_factory_leaves_its_room_free() -> None:
    def interrupted() -> Thing:
        raise KeyboardInterrupt

    pool: Pool[Thing] = Pool(interrupted, max_size=1, min_size=0, auto_cleanup=False, create_timeout_s=None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pool.acquire()
    assert counts(pool).making == 0


@pytest.mark.parametrize("made_before", [True, False])
def test_a_borrower_interrupted_while_its_object_is_made_loses_nothing(made_before: bool) -> None:
    go_on = threading.Event()

    class Interrupted(FakeClock):
        def wait(self, event: threading.Event, seconds: float) -> bool:
            if made_before:
                go_on.set()
                assert event.wait(PATIENCE_S)
            raise KeyboardInterrupt

    def connect() -> Thing:
        go_on.wait(PATIENCE_S)
        return Thing()

    pool: Pool[Thing] = Pool(connect, max_size=1, min_size=0, auto_cleanup=False, clock=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    go_on.set()
    _until(lambda: counts(pool).idle == 1)
    assert (counts(pool).making, counts(pool).active) == (0, 0)


def test_a_factory_that_hangs_is_named_and_what_it_gives_late_is_not_lost() -> None:
    go_on = threading.Event()

    def connect() -> Thing:
        go_on.wait(PATIENCE_S)
        return Thing()

    pool: Pool[Thing] = Pool(connect, max_size=1, min_size=0, auto_cleanup=False, create_timeout_s=0.02)
    with pytest.raises(FactoryError, match=r"connect was not done after 20 ms") as caught:
        pool.acquire()
    assert caught.value.hung
    with pytest.raises(PoolTimeoutError, match=r"connect has been running for"):
        pool.acquire(0.01)
    waiter = _started(lambda: pool.release(pool.acquire(PATIENCE_S)))
    _until(lambda: counts(pool).waiting)
    go_on.set()
    waiter.join(PATIENCE_S)
    assert (counts(pool).created, counts(pool).idle, counts(pool).making) == (1, 1, 0)


def test_a_borrowers_time_out_holds_while_the_factory_runs() -> None:
    go_on = threading.Event()
    pool: Pool[Thing] = Pool(lambda: go_on.wait(PATIENCE_S) and Thing(), auto_cleanup=False)
    with pytest.raises(PoolTimeoutError, match="has been running"):
        pool.acquire(0.01)
    go_on.set()
    _until(lambda: counts(pool).idle)


@pytest.mark.parametrize("given", [None, "the same"])
def test_a_factory_that_gives_no_new_object_is_named(given: Any) -> None:
    pool: Pool[Any] = Pool(lambda: given, min_size=0, auto_cleanup=False, create_timeout_s=None)
    if given is not None:
        pool.acquire()
    with pytest.raises(FactoryError, match="lambda"):
        pool.acquire()
    assert counts(pool).making == 0


def test_a_check_or_a_reset_that_raises_ends_the_object_and_is_remembered() -> None:
    def bad(thing: Thing) -> None:
        raise ValueError("broken")

    pool: Pool[Thing] = Pool(Thing, reset=bad, auto_cleanup=False)
    pool.release(pool.acquire())
    assert (counts(pool).invalid, counts(pool).idle) == (1, 0)
    assert pool.last_error == "reset: ValueError: broken"
    pool = Pool(Thing, validate=bad, validate_every_s=0, auto_cleanup=False)
    first = pool.acquire()
    pool.release(first)
    assert pool.acquire() is not first
    assert pool.last_error == "validate: ValueError: broken"


def test_an_end_that_raises_is_remembered_and_nothing_else() -> None:
    def bad(thing: Thing) -> None:
        raise ValueError("stuck")

    pool: Pool[Thing] = Pool(Thing, destroy=bad, auto_cleanup=False)
    pool.discard(pool.acquire())
    assert (pool.last_error, counts(pool).active) == ("destroy: ValueError: stuck", 0)


# --- waiting -------------------------------------------------------------------------------------------------


def test_a_time_out_says_who_holds_the_objects() -> None:
    clock = FakeClock()
    pool = Things(max_size=3, clock=clock, name="db")
    kept = [pool.acquire() for _ in range(3)]
    with pytest.raises(PoolTimeoutError, match=r"within 30 s: 3 of 3 are out, most taken at .*\(3\)") as caught:
        pool.acquire()
    assert caught.value.sites[0][1] == len(kept)
    assert isinstance(caught.value, TimeoutError)
    assert clock.waited_s == [30.0]
    assert (counts(pool).waits, counts(pool).timed_out, counts(pool).waiting) == (1, 1, 0)


def test_whoever_waits_is_served_in_turn() -> None:
    pool = Things(max_size=1, min_size=0)
    kept = pool.acquire()
    order: list[int] = []

    def wait(number: int) -> None:
        with pool.lease(PATIENCE_S):
            order.append(number)

    threads = []
    for number in range(6):
        threads.append(_started(lambda number=number: wait(number)))  # type: ignore[misc]
        _until(lambda number=number: counts(pool).waiting == number + 1)  # type: ignore[misc]
    pool.release(kept)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == list(range(6))


def test_closing_wakes_whoever_waits_and_the_rest_ends_as_it_comes_back() -> None:
    pool = Things(max_size=1, min_size=0)
    kept = pool.acquire()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            pool.acquire(PATIENCE_S)
        except PoolClosedError as error:
            errors.append(error)

    threads = [_started(wait) for _ in range(3)]
    _until(lambda: counts(pool).waiting == 3)
    pool.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(errors) == 3
    pool.release(kept)
    assert (kept.ended, counts(pool).active) == (1, 0)
    with pytest.raises(PoolClosedError):
        pool.acquire()
    pool.close()


def test_resizing_up_lets_whoever_waits_make_one() -> None:
    pool = Things(max_size=1, min_size=0)
    kept = pool.acquire()
    got: list[Thing] = []
    thread = _started(lambda: got.append(pool.acquire(PATIENCE_S)))
    _until(lambda: counts(pool).waiting)
    pool.resize(max_size=2)
    thread.join(PATIENCE_S)
    assert len({id(kept), *map(id, got)}) == 2


def test_many_threads_share_few_objects_and_each_has_its_own() -> None:
    """16 threads, 3 objects: never more than 3, never one at two places, and no wake-up is lost."""
    pool = Things(max_size=3, min_size=0)
    inside: dict[int, int] = {}
    wrong: list[str] = []

    def work(number: int) -> None:
        try:
            for turn in range(200):
                with pool.lease(PATIENCE_S) as thing:
                    if inside.setdefault(id(thing), number) != number:
                        wrong.append("lent twice")
                    if turn % 50 == 49:
                        thing.good = False
                    del inside[id(thing)]
        except Exception as error:
            wrong.append(repr(error))

    threads = [_started(lambda number=number: work(number)) for number in range(16)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S * 2)
    found = counts(pool)
    assert wrong == []
    assert (found.acquired, found.active, found.waiting) == (3200, 0, 0)
    assert 1 <= found.created <= 3
    assert found.idle == found.created - found.destroyed <= 3


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager")
def test_threads_that_drop_what_they_borrowed_leave_exact_books() -> None:
    """What dies leaves its identity to the next object that is made, perhaps before it is out of the books."""
    pool: Pool[Thing] = Pool(Thing, max_size=3, min_size=0, create_timeout_s=None, auto_cleanup=False)
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            for turn in range(300):
                thing = pool.acquire(PATIENCE_S)
                thing.ended += 1
                if thing.ended != 1:
                    wrong.append("lent twice")
                thing.ended -= 1
                if (turn + seed) % 3:
                    pool.release(thing)
                del thing
        except Exception as error:
            wrong.append(repr(error))

    threads = [_started(lambda seed=seed: work(seed)) for seed in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S * 2)
    gc.collect()
    pool._bury()
    found = counts(pool)
    assert wrong == []
    assert (found.acquired, found.lost, found.active, found.waiting) == (2400, 800, 0, 0)
    assert found.created - found.destroyed == found.idle


@pytest.mark.usefixtures("eager")
def test_threads_that_borrow_while_others_resize_shed_and_maintain_lose_nothing() -> None:
    pool = Things(max_size=4, min_size=1, validate_every_s=0)
    stop = threading.Event()
    wrong: list[str] = []

    def work() -> None:
        try:
            for turn in range(300):
                thing = pool.acquire(PATIENCE_S)
                if thing.ended:
                    wrong.append("lent after its end")
                if turn % 7:
                    pool.release(thing)
                else:
                    pool.discard(thing)
        except Exception as error:
            wrong.append(repr(error))

    def disturb() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            pool.resize(max_size=1 + turn % 5)
            pool.maintain()
            pool.shed(1)

    disturber = _started(disturb)
    threads = [_started(work) for _ in range(8)]
    for thread in threads:
        thread.join(PATIENCE_S * 2)
    stop.set()
    disturber.join(PATIENCE_S)
    pool.close()
    found = counts(pool)
    assert wrong == []
    assert (found.active, found.idle, found.making, found.waiting) == (0, 0, 0, 0)
    assert found.created == found.destroyed == len(pool.destroyed)
    assert all(each.ended == 1 for each in pool.made)


# --- looking after -------------------------------------------------------------------------------------------


def test_the_least_number_is_kept_and_the_rest_goes_when_idle() -> None:
    clock = FakeClock()
    pool = Things(clock=clock)
    things = [pool.acquire() for _ in range(5)]
    for thing in things:
        pool.release(thing)
    clock.advance(299)
    pool.maintain()
    assert counts(pool).idle == 5
    clock.advance(2)
    pool.maintain()
    assert [each.ended for each in things] == [1, 1, 1, 0, 0]
    assert counts(pool).idle == 2


def test_lives_end_early_by_chance_and_never_while_out() -> None:
    clock = FakeClock()
    chances = iter([0.0, 1.0])
    pool = Things(clock=clock, max_lifetime_s=100, min_size=0, chance=lambda: next(chances))
    long, short = pool.acquire(), pool.acquire()
    pool.release(long)
    clock.advance(91)  # ten in a hundred early
    pool.maintain()
    assert (long.ended, short.ended) == (0, 0)
    pool.release(short)
    assert (long.ended, short.ended) == (0, 1)
    clock.advance(10)
    pool.maintain()
    assert long.ended == 1


def test_the_background_check_ends_what_is_broken_and_makes_up_for_it() -> None:
    clock = FakeClock()
    pool = Things(clock=clock).start()
    bad, good = pool.made
    bad.good = False
    clock.advance(59)
    pool.maintain()
    assert bad.ended == 0
    clock.advance(2)
    pool.maintain()
    assert (bad.ended, good.ended, counts(pool).idle, counts(pool).invalid) == (1, 0, 2, 1)


def test_the_caretaker_runs_by_itself_outlives_a_failing_factory_and_ends_with_the_pool() -> None:
    clock = FakeClock(waits=3)
    fails: list[bool] = []

    def connect() -> Thing:
        if fails:
            raise OSError("gone")
        return Thing()

    pool: Pool[Thing] = Pool(connect, clock=clock, create_timeout_s=None, max_idle_s="1m", name="cared for")
    pool.start()
    fails.append(True)
    assert clock.rested.wait(PATIENCE_S)
    assert clock.waited_s == [60.0, 60.0, 60.0]
    caretaker = next(each for each in threading.enumerate() if each.name == "memwarden pool cared for")
    assert caretaker.daemon
    pool.close()
    caretaker.join(PATIENCE_S)
    assert not caretaker.is_alive()


def test_a_dropped_pool_is_gone_at_once_with_what_it_holds() -> None:
    pool = Things()
    pool.release(pool.acquire())
    made = weakref.ref(pool.made[0])
    gc.disable()
    try:
        del pool
        assert made() is None
    finally:
        gc.enable()


def test_a_dropped_pool_takes_its_caretaker_along() -> None:
    pool: Pool[Thing] = Pool(Thing, name="dropped")
    pool.start()
    caretaker = next(each for each in threading.enumerate() if each.name == "memwarden pool dropped")
    del pool
    gc.collect()
    caretaker.join(PATIENCE_S)
    assert not caretaker.is_alive()


# --- memory --------------------------------------------------------------------------------------------------


def test_a_budget_is_charged_per_object_and_refuses_what_does_not_fit() -> None:
    budget = Budget("1M")
    pool = Things(budget=budget, item_bytes="400K", name="buffers", min_size=0)
    one, two = pool.acquire(), pool.acquire()
    assert budget.top() == (("buffers", 800 << 10),)
    with pytest.raises(MemoryPressureError):
        pool.acquire()
    assert len(pool.made) == 2  # it is not made in vain
    assert counts(pool).making == 0
    pool.release(one)
    pool.discard(two)
    assert budget.held_bytes == pool.held_bytes == 400 << 10
    assert budget.shed(1).freed_bytes == 400 << 10
    assert budget.held_bytes == 0
    pool.close()
    assert len(budget.lost) == 0


def test_sizes_are_measured_where_they_are_not_given() -> None:
    pool: Pool[Any] = Pool(lambda: bytearray(100_000), auto_cleanup=False, min_size=0)
    pool.release(pool.acquire())
    assert 100_000 <= pool.held_bytes <= 101_000
    assert pool.shed(1) >= 100_000
    assert pool.held_bytes == 0


@pytest.mark.parametrize("item_bytes", ["400K", None])
def test_what_could_not_be_made_costs_the_budget_nothing(item_bytes: str | None) -> None:
    budget = Budget("1M")

    def fail() -> Thing:
        raise OSError

    pool: Pool[Any] = Pool(fail, budget=budget, item_bytes=item_bytes, auto_cleanup=False)
    for _ in range(4):
        with pytest.raises(FactoryError):
            pool.acquire()
    assert (budget.held_bytes, counts(pool).failed) == (0, 4)
    large: Pool[Any] = Pool(lambda: bytearray(2 << 20), budget=budget, auto_cleanup=False)
    with pytest.raises(MemoryPressureError):
        large.acquire()
    assert (budget.held_bytes, counts(large).making) == (0, 0)


def test_what_was_lost_is_given_back_to_the_budget() -> None:
    budget = Budget("1M")
    pool = Things(budget=budget, item_bytes="400K", min_size=0)
    pool.acquire()
    pool.made.clear()
    gc.collect()
    pool.maintain()
    assert budget.held_bytes == 0


def test_shedding_stops_after_its_slice_of_time() -> None:
    clock = FakeClock()
    pool: Pool[Thing] = Pool(
        Thing, clock=clock, destroy=lambda _: clock.advance(0.003), item_bytes=10, max_size=50, auto_cleanup=False
    )
    for thing in [pool.acquire() for _ in range(50)]:
        pool.release(thing)
    assert pool.shed(1000) == 20  # two of 3 ms each
    assert Budget(100).shed(10).freed_bytes == 0


# --- processes -----------------------------------------------------------------------------------------------


def test_a_forked_child_starts_empty_and_ends_nothing_of_its_parents() -> None:
    pool = Things(max_size=2)
    kept, idle = pool.acquire(), pool.acquire()
    pool.release(idle)
    with pool._lock:
        child = os.fork()
        if child == 0:
            pool.release(kept)  # its parent's: neither an error nor taken
            own = pool.acquire(0)
            fine = own not in (kept, idle) and not pool.destroyed and len(pool._core.entries) == 1
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.acquire() is idle


def test_the_interpreter_ends_cleanly_with_a_pool_in_use() -> None:
    program = """
import threading
from memwarden.flow.pool import Pool
hang = threading.Event()
pool = Pool(type("Thing", (), {}), max_size=2, validate_every_s=0.1, validate=lambda thing: True).start()
kept = pool.acquire()
waiting = [threading.Thread(target=pool.acquire, daemon=True) for _ in range(3)]
stuck = Pool(hang.wait, create_timeout_s=0.01)
try:
    stuck.acquire()
except Exception as error:
    print(type(error).__name__)
for thread in waiting:
    thread.start()
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "FactoryError\n", "")


# --- coroutines ----------------------------------------------------------------------------------------------


class AsyncThings(AsyncPool[Thing]):
    """Every hook a coroutine."""

    def __init__(self, **options: Any) -> None:
        self.made: list[Thing] = []
        self.gate: asyncio.Event | None = None
        super().__init__(**{"auto_cleanup": False, **options})

    async def create(self) -> Thing:
        if self.gate is not None:
            await self.gate.wait()
        self.made.append(Thing())
        return self.made[-1]

    async def reset(self, obj: Thing) -> None:
        await asyncio.sleep(0)
        obj.resets += 1

    async def validate(self, obj: Thing) -> bool:
        await asyncio.sleep(0)
        return obj.good

    async def destroy(self, obj: Thing) -> None:
        await asyncio.sleep(0)
        obj.ended += 1
        obj.over.set()


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S * 2))


def test_coroutines_share_few_objects_and_each_has_its_own() -> None:
    async def main() -> None:
        pool = AsyncThings(max_size=3, min_size=0, validate_every_s=0)
        inside: set[int] = set()

        async def work() -> None:
            for _ in range(20):
                async with pool.lease(PATIENCE_S) as thing:
                    assert id(thing) not in inside
                    inside.add(id(thing))
                    await asyncio.sleep(0)
                    inside.remove(id(thing))

        await asyncio.gather(*(work() for _ in range(30)))
        found = counts(pool)
        assert (found.acquired, found.active, found.created) == (600, 0, 3)
        await pool.aclose()
        assert [each.ended for each in pool.made] == [1, 1, 1]

    run(main())


def test_an_asynchronous_borrower_is_named() -> None:
    async def main() -> None:
        pool = AsyncThings()
        kept = await pool.acquire()
        assert pool.borrowed()[0].site.endswith("main")
        assert SITE in pool.borrowed()[0].site
        await pool.release(kept)
        with pytest.raises(NotBorrowedError):
            await pool.release(kept)
        del kept
        await pool.acquire()
        pool.made.clear()
        gc.collect()
        assert SITE in pool.lost[0].site
        with pytest.raises(NotBorrowedError):
            await pool.discard(Thing())

    run(main())


@pytest.mark.parametrize("served", ["not yet", "with an object", "with room"])
def test_a_cancelled_waiter_loses_no_object(served: str) -> None:
    async def main() -> None:
        pool = AsyncThings(max_size=1, min_size=0)
        kept = await pool.acquire()
        task = asyncio.create_task(pool.acquire(PATIENCE_S))
        await asyncio.sleep(0)
        assert counts(pool).waiting == 1
        if served == "with an object":
            pool._reset = None
            await pool.release(kept)
        elif served == "with room":
            await pool.discard(kept)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if served == "not yet":
            await pool.release(kept)
        found = counts(pool)
        assert (found.active, found.waiting, found.making) == (0, 0, 0)
        async with pool.lease(0) as again:
            assert (again is kept) == (served != "with room")
        await pool.aclose()

    run(main())


def test_a_borrower_cancelled_in_the_factory_leaves_its_room_to_the_next() -> None:
    async def main() -> None:
        pool = AsyncThings(max_size=1, min_size=0)
        pool.gate = asyncio.Event()
        first = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        second = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        assert (counts(pool).making, counts(pool).waiting) == (1, 1)
        first.cancel()
        pool.gate.set()
        assert await second is pool.made[0]
        with pytest.raises(asyncio.CancelledError):
            await first
        assert counts(pool).making == 0

    run(main())


def test_a_release_that_is_cancelled_in_its_reset_ends_the_object() -> None:
    async def main() -> None:
        pool = AsyncThings(max_size=1, min_size=0)
        kept = await pool.acquire()
        task = asyncio.create_task(pool.release(kept))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counts(pool).active == 0
        await pool.aclose()
        assert kept.ended == 1

    run(main())


def test_an_asynchronous_factory_that_raises_or_hangs_is_named() -> None:
    async def main() -> None:
        async def refuse() -> Thing:
            raise OSError("no route")

        async def hang() -> Thing:
            await asyncio.Event().wait()
            return Thing()

        pool: AsyncPool[Thing] = AsyncPool(refuse, auto_cleanup=False)
        with pytest.raises(FactoryError, match="refuse raised OSError: no route"):
            await pool.acquire()
        pool = AsyncPool(hang, auto_cleanup=False, create_timeout_s=0.01, max_size=1, min_size=0)
        for _ in range(2):
            with pytest.raises(FactoryError, match="hang was not done after 10 ms") as caught:
                await pool.acquire()
            assert caught.value.hung
        with pytest.raises(PoolTimeoutError, match="hang was not done after"):
            await pool.acquire(0.001)
        assert counts(pool).making == 0

    run(main())


def test_a_wait_that_ends_and_a_pool_that_closes_are_told() -> None:
    async def main() -> None:
        pool = AsyncThings(max_size=1, min_size=0)
        kept = await pool.acquire()
        with pytest.raises(PoolTimeoutError, match="at once"):
            await pool.acquire(0)
        with pytest.raises(PoolTimeoutError, match="within 10 ms"):
            await pool.acquire(0.01)
        waiting = [asyncio.create_task(pool.acquire(PATIENCE_S)) for _ in range(2)]
        await asyncio.sleep(0)
        await pool.aclose()
        for task in waiting:
            with pytest.raises(PoolClosedError):
                await task
        await pool.release(kept)
        await pool.aclose()
        assert kept.ended == 1

    run(main())


def test_the_asynchronous_caretaker_looks_after_the_pool_and_ends_with_it() -> None:
    async def main() -> None:
        pool = AsyncThings(auto_cleanup=True, validate_every_s=0.1, min_size=1)
        async with pool:
            first = pool.made[0]
            first.good = False
            caretaker = pool._caretaker
            assert caretaker is not None
            await first.over.wait()
        await asyncio.wait([caretaker])
        assert caretaker.cancelled()

    run(main())


def test_shedding_from_another_thread_ends_objects_in_their_loop() -> None:
    async def main() -> None:
        where: list[int] = []
        pool: AsyncPool[Thing] = AsyncPool(
            Thing, destroy=lambda _: where.append(threading.get_ident()), auto_cleanup=False, min_size=2
        )
        await pool.start()
        assert await asyncio.to_thread(pool.shed, 1 << 40) > 0  # all of it, whatever one is thought to weigh
        await asyncio.sleep(0)
        assert where == [threading.get_ident()] * 2
        pool.resize(max_size=2)

    run(main())
