"""Caches: the bound holds, both stores mean the same, memory comes back when it is short, and one computes for all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memwarden.budget import Budget
from memwarden.errors import CircularDependencyError, ConfigError, MissingExtraError
from memwarden.facts import Level
from memwarden.flow.cache import ENTRY_BYTES, REGROW_S, Cache, _sizing
from memwarden.flow.sizing import size_of
from memwarden.testing import FakeClock, pressure

if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.facts import Verdict

PATIENCE_S = 20.0
STORES = [True, False] if find_spec("cachebox") is not None else [True]
WHERE = {True: "plain", False: "cachebox"}


class Following:
    """A Pressure whose level a test changes."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None

    def set(self, level: Level) -> None:
        self.verdict = pressure(level).verdict


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


@pytest.fixture(params=STORES, ids=lambda plain: WHERE[plain])
def plain(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- any order of everything ---------------------------------------------------------------------------------


class Books(RuleBasedStateMachine):
    """Against the plainest model of an LRU bounded by sizes with ends of life; values are their own sizes."""

    LIMIT = 100
    PLAIN = True
    keys = st.integers(0, 8)

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.cache: Cache[int, int | None] = Cache(
            self.LIMIT, sizer=lambda value: value or 0, clock=self.clock, plain=self.PLAIN
        )
        self.model: OrderedDict[int, tuple[int | None, float]] = OrderedDict()
        self.bound = float(self.LIMIT)
        self.lowered_s = self.clock.monotonic()
        self.counts = dict.fromkeys(("hits", "misses", "evicted", "expired", "oversize"), 0)

    def _held(self) -> int:
        return sum(value or 0 for value, _ in self.model.values())

    def _most(self) -> int:
        """Regrown as `max_bytes` says; the model only reads it, the rule below proves its course."""
        return self.cache.max_bytes

    def _alive(self, key: int) -> bool:
        if key in self.model and self.clock.monotonic() >= self.model[key][1]:
            del self.model[key]
            self.counts["expired"] += 1
        return key in self.model

    @rule(key=keys, size=st.one_of(st.none(), st.integers(0, 120)), ttl=st.sampled_from([None, None, 1, 10]))
    def set(self, key: int, size: int | None, ttl: float | None) -> None:
        kept = self.cache.set(key, size, ttl=ttl)
        if (size or 0) > self.LIMIT:
            self.counts["oversize"] += 1
            self.model.pop(key, None)
            assert not kept
            return
        self.model.pop(key, None)
        self.model[key] = (size, float("inf") if ttl is None else self.clock.monotonic() + ttl)
        while self._held() > self._most():
            self.model.popitem(last=False)
            self.counts["evicted"] += 1
        assert kept == (key in self.model)

    @rule(key=keys)
    def get(self, key: int) -> None:
        missing = object()
        found = self.cache.get(key, missing)  # type: ignore[arg-type]
        if self._alive(key):
            self.counts["hits"] += 1
            self.model.move_to_end(key)
            assert found == self.model[key][0]
        else:
            self.counts["misses"] += 1
            assert found is missing

    @rule(key=keys)
    def contains(self, key: int) -> None:
        assert (key in self.cache) == (key in self.model and self.clock.monotonic() < self.model[key][1])

    @rule(key=keys)
    def pop(self, key: int) -> None:
        found = self.cache.pop(key, -1)
        assert found == (self.model.pop(key)[0] if self._alive(key) else -1)

    @rule(key=keys)
    def delete(self, key: int) -> None:
        assert self.cache.delete(key) == self._alive(key)
        self.model.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()

    @rule(size=st.integers(1, 120))
    def shed(self, size: int) -> None:
        before = self._held()
        freed = self.cache.shed(size)
        while self._held() > max(0, before - size):
            self.model.popitem(last=False)
            self.counts["evicted"] += 1
        assert freed == before - self._held()

    @rule(seconds=st.sampled_from([0.5, 2, 7, REGROW_S]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if seconds == REGROW_S:
            assert self.cache.max_bytes == self.LIMIT

    @invariant()
    def the_books_are_right(self) -> None:
        found = self.cache.statistics
        assert (found.entries, found.held_bytes) == (len(self.model), self._held())
        assert found.held_bytes <= found.max_bytes <= self.LIMIT
        assert {name: getattr(found, name) for name in self.counts} == self.counts


class BoxedBooks(Books):
    PLAIN = False


Books.TestCase.settings = BoxedBooks.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestBooks = Books.TestCase
if False in STORES:
    TestBoxedBooks = BoxedBooks.TestCase


# --- settings ------------------------------------------------------------------------------------------------


def test_the_store_is_said_and_chosen(plain: bool) -> None:
    cache: Cache[str, str] = Cache("1M", plain=plain)
    assert cache.statistics.store == {True: "python", False: "cachebox"}[plain]
    assert repr(cache) == "<Cache 'cache': 0 entries, 0 B of 1 MiB>"


def test_without_cachebox_the_plain_store_is_taken_and_asking_for_it_names_the_extra() -> None:
    program = """
import sys
sys.modules["cachebox"] = None
from memwarden.flow import Cache
print(Cache("1M").statistics.store)
try:
    Cache("1M", plain=False)
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == [
        "python",
        f"MissingExtraError {MissingExtraError('a cache on cachebox', 'cache')}",
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_bytes": 0}, "not a usable size"),
        ({"ttl": "soon"}, "ttl"),
        ({"sizer": 5}, "sizer"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Cache(**{"max_bytes": 100, **options})


@pytest.mark.parametrize("size", [-1, 1.5, None])
def test_a_sizer_that_gives_no_size_is_named_and_nothing_is_stored(plain: bool, size: Any) -> None:
    cache: Cache[str, str] = Cache(100, sizer=lambda _: size, plain=plain)
    with pytest.raises(ConfigError, match="sizer"):
        cache.set("a", "b")
    assert len(cache) == 0


def test_values_are_measured_with_their_key_and_what_an_entry_costs(plain: bool) -> None:
    cache: Cache[str, Any] = Cache("1M", plain=plain)
    cache.set("key", b"x" * 1000)
    assert cache.held_bytes == sys.getsizeof(b"x" * 1000) + sys.getsizeof("key") + ENTRY_BYTES
    cache.set("key", ["x" * 1000, {"y": "z" * 500}], ttl=5)
    assert 1700 < cache.held_bytes < 2300


def test_none_is_a_value_and_unhashable_keys_are_refused(plain: bool) -> None:
    cache: Cache[Any, Any] = Cache("1M", plain=plain)
    cache["a"] = None
    assert cache["a"] is None
    assert cache.get("a", 5) is None
    assert cache.pop("a", 5) is None
    for wrong in (lambda: cache.get([]), lambda: cache.set([], 1), lambda: cache["missing"]):
        with pytest.raises((TypeError, KeyError)):
            wrong()
    with pytest.raises(KeyError):
        del cache["missing"]


def test_a_default_end_holds_for_all_and_one_given_for_its_own(plain: bool) -> None:
    clock = FakeClock()
    cache: Cache[str, int] = Cache("1M", ttl="10s", plain=plain, clock=clock)
    cache.set("default", 1)
    cache.set("long", 2, ttl="1m")
    clock.advance(11)
    assert ("default" in cache, "long" in cache) == (False, True)
    assert cache.get("default") is None
    assert cache.statistics.expired == 1


# --- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", list(Level))
def test_it_follows_the_level_and_grows_back_in_calm(plain: bool, level: Level) -> None:
    clock, warden = FakeClock(), Following()
    cache: Cache[int, int] = Cache(1000, sizer=lambda size: size, pressure=warden, plain=plain, clock=clock)
    for number in range(8):
        cache.set(number, 100)
    warden.set(level)
    cache.set(8, 100)
    most = {Level.NORMAL: 1000, Level.WARNING: 900, Level.CRITICAL: 500, Level.EMERGENCY: 100}[level]
    assert cache.max_bytes == most
    assert cache.held_bytes == min(900, most)
    clock.advance(REGROW_S * 5)
    assert cache.max_bytes == most  # not while it lasts
    warden.set(Level.NORMAL)
    assert cache.max_bytes == most  # it counts from when the calm was noticed
    clock.advance(REGROW_S / 10)
    assert cache.max_bytes == min(1000, most + 100)
    clock.advance(REGROW_S)
    assert cache.max_bytes == 1000
    for number in range(20):
        cache.set(number, 100)
    assert cache.held_bytes == 1000


def test_an_empty_cache_may_still_keep_a_little_at_warning(plain: bool) -> None:
    warden = Following()
    warden.set(Level.WARNING)
    cache: Cache[int, int] = Cache(1000, sizer=lambda size: size, pressure=warden, plain=plain)
    assert cache.set(1, 100)
    assert cache.max_bytes == 100


def test_the_budgets_pressure_is_the_caches(plain: bool) -> None:
    calm = pressure(Level.EMERGENCY, limit_bytes=1 << 20)
    cache: Cache[int, int] = Cache(1000, sizer=lambda size: size, budget=Budget(calm), plain=plain)
    assert cache.max_bytes == 100
    assert Budget("1M").pressure is None


def test_what_it_holds_is_in_the_budget_and_never_more_than_that_grants(plain: bool) -> None:
    budget = Budget("300K")
    other = budget.account("other")
    cache: Cache[int, int] = Cache("1M", sizer=lambda size: size, budget=budget, name="pages", plain=plain)
    for number in range(100):
        assert cache.set(number, 10 << 10)
        assert cache.held_bytes <= dict(budget.top())["pages"] <= 300 << 10
    assert 200 << 10 < cache.held_bytes <= 300 << 10
    assert budget.shed(200 << 10).by == (("pages", 200 << 10),)
    other.reserve(200 << 10)  # what it had is free for others
    cache.clear()
    assert budget.held_bytes == 200 << 10
    cache.set(1, 1000)
    cache.close()
    assert budget.held_bytes == 200 << 10
    assert cache.set(1, 1000)
    assert len(budget.lost) == 0


def test_a_bound_that_fell_is_reached_in_slices_and_one_large_value_makes_its_room_at_once(plain: bool) -> None:
    clock, warden = FakeClock(), Following()

    class Slow:
        def __del__(self) -> None:
            clock.advance(0.001)

    cache: Cache[int, Any] = Cache(
        1000, sizer=lambda value: 900 if value is None else 10, pressure=warden, plain=plain, clock=clock
    )
    for number in range(100):
        cache.set(number, Slow())
    assert cache.set(100, None)
    assert cache.held_bytes == 1000
    for number in range(101, 201):
        cache.set(number, Slow())
    warden.set(Level.EMERGENCY)
    seen = []
    for number in range(300, 310):
        cache.set(number, Slow())
        seen.append(cache.held_bytes)
    assert seen == sorted(seen, reverse=True)
    assert 100 < seen[0] < 1000
    assert seen[-1] == 100


def test_a_budget_that_has_nothing_left_means_no_cache_and_no_error(plain: bool) -> None:
    budget = Budget(100)
    with budget.account("other") as other:
        other.reserve(100)
        cache: Cache[int, int] = Cache("1K", sizer=lambda size: size, budget=budget, plain=plain)
        assert not cache.set(1, 10)
        assert len(cache) == 0
    assert cache.set(1, 10)


def test_shedding_stops_after_its_slice_of_time_and_is_asked_again(plain: bool) -> None:
    clock = FakeClock()

    class Slow:
        def __del__(self) -> None:
            clock.advance(0.001)

    cache: Cache[int, Any] = Cache(10_000, sizer=lambda _: 10, plain=plain, clock=clock)
    for number in range(100):
        cache.set(number, Slow())
    first = cache.shed(1000)
    assert 0 < first < 1000
    assert cache.held_bytes == 1000 - first
    budget = Budget("1M")
    budget.register(cache)
    assert budget.shed(1000 - first).freed_bytes == 1000 - first
    assert cache.held_bytes == 0


def test_values_whose_end_comes_back_to_the_cache_do_not_hang(plain: bool) -> None:
    cache: Cache[int, Any] = Cache(50, sizer=lambda _: 10, plain=plain)

    class Back:
        def __del__(self) -> None:
            cache.get(1)
            cache.pop(2, None)

    for number in range(20):
        cache.set(number, Back())
    assert cache.shed(50) > 0
    cache.clear()
    assert cache.held_bytes == 0


def test_threads_never_leave_the_bound_or_the_books(plain: bool) -> None:
    cache: Cache[int, int] = Cache(1000, sizer=lambda size: size, plain=plain)
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            for turn in range(2000):
                key = (turn * 7 + seed) % 60
                if turn % 3 == 0:
                    cache.set(key, 10 + key)
                elif turn % 11 == 0:
                    cache.pop(key)
                elif turn % 501 == 0:
                    cache.shed(200)
                elif cache.get(key, 10 + key) != 10 + key:
                    wrong.append("another key's value")
        except Exception as error:
            wrong.append(repr(error))

    threads = [_started(lambda seed=seed: work(seed)) for seed in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S * 2)
    held = cache.held_bytes
    assert wrong == []
    assert held <= 1000
    assert held == sum(cache.pop(key, 0) for key in range(60))
    assert (len(cache), cache.held_bytes) == (0, 0)


def test_a_forked_child_finds_the_lock_of_the_plain_store_free() -> None:
    cache: Cache[str, int] = Cache("1K", plain=True)
    cache.set("a", 1)
    with cache._box._lock:
        child = os.fork()
        if child == 0:
            _started(lambda: cache.set("b", 2)).join(PATIENCE_S)
            os._exit(0 if "b" in cache else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- keeping what functions compute --------------------------------------------------------------------------


def test_what_was_computed_is_not_computed_again(plain: bool) -> None:
    cache: Cache[Any, Any] = Cache("1M", plain=plain)
    calls: list[Any] = []

    @cache.memoize()
    def double(number: int, *, plus: int = 0) -> int:
        """Twice."""
        calls.append(number)
        return number * 2 + plus

    @cache.memoize()
    def half(number: int) -> float:
        return number / 2

    assert [double(2), double(2), double(2, plus=1), double(number=2), half(2)] == [4, 4, 5, 4, 1.0]
    assert calls == [2, 2, 2]
    assert (double.__name__, double.__doc__) == ("double", "Twice.")
    assert double.forget(2)  # type: ignore[attr-defined]
    assert not double.forget(2)  # type: ignore[attr-defined]
    assert double(2) == 4
    assert len(calls) == 4


def test_a_key_of_its_own_makes_unhashable_arguments_usable_and_an_end_holds() -> None:
    clock = FakeClock()
    cache: Cache[Any, Any] = Cache("1M", clock=clock)
    calls: list[int] = []

    @cache.memoize(ttl="1m", key=len)
    def total(numbers: list[int]) -> int:
        calls.append(1)
        return sum(numbers)

    assert total([1, 2]) == total([5, 6]) == 3
    clock.advance(61)
    assert total([5, 6]) == 11
    assert len(calls) == 2


def test_what_is_too_large_is_computed_and_returned_all_the_same(plain: bool) -> None:
    cache: Cache[Any, Any] = Cache(10, plain=plain)
    assert cache.memoize()(lambda: "large" * 100)() == "large" * 100


def test_of_many_threads_one_computes(plain: bool) -> None:
    cache: Cache[Any, Any] = Cache("1M", plain=plain)
    go_on, calls = threading.Event(), []

    @cache.memoize()
    def slow(key: str) -> object:
        calls.append(key)
        go_on.wait(PATIENCE_S)
        return object()

    found: list[object] = []
    threads = [_started(lambda: found.append(slow("a"))) for _ in range(12)]
    _until(lambda: cache._flights._under_way and len(next(iter(cache._flights._under_way.values())).wakes) == 11)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (len(calls), len(set(map(id, found))), len(found)) == (1, 1, 12)
    assert len(cache._flights) == 0


def test_an_error_goes_to_all_who_waited_and_is_not_kept() -> None:
    cache: Cache[Any, Any] = Cache("1M")
    go_on = threading.Event()
    calls: list[int] = []

    @cache.memoize()
    def fails() -> None:
        calls.append(1)
        go_on.wait(PATIENCE_S)
        raise OSError("no")

    errors: list[str] = []

    def attempt() -> None:
        try:
            fails()
        except OSError as error:
            errors.append(str(error))

    threads = [_started(attempt) for _ in range(5)]
    _until(lambda: cache._flights._under_way and len(next(iter(cache._flights._under_way.values())).wakes) == 4)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (errors, len(calls)) == (["no"] * 5, 1)
    attempt()
    assert len(calls) == 2


def test_a_function_that_needs_its_own_result_is_told_so() -> None:
    cache: Cache[Any, Any] = Cache("1M")

    @cache.memoize()
    def egg(number: int) -> int:
        return hen(number)

    @cache.memoize()
    def hen(number: int) -> int:
        return egg(number)

    with pytest.raises(CircularDependencyError, match=r"egg\(1\) -> .*hen\(1\) -> .*egg\(1\)"):
        egg(1)
    assert len(cache._flights) == 0


def test_threads_that_would_wait_for_each_other_are_told_so() -> None:
    """Two threads, each computing what the other one asks for: one is refused, nobody hangs."""
    cache: Cache[Any, Any] = Cache("1M")
    barrier = threading.Barrier(2)
    outcomes: list[str] = []
    asked: dict[str, Any] = {}

    def body(other: str) -> str:
        barrier.wait(PATIENCE_S)
        return str(asked[other]())

    @cache.memoize()
    def one() -> str:
        return body("b")

    @cache.memoize()
    def two() -> str:
        return body("a")

    asked.update(a=one, b=two)

    def attempt(name: str) -> None:
        try:
            asked[name]()
        except CircularDependencyError:
            outcomes.append("told")

    threads = [_started(lambda name=name: attempt(name)) for name in ("a", "b")]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == ["told", "told"]  # the one that closed the circle, and the one that waited for it


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S * 2))


def test_of_many_coroutines_one_computes_and_when_it_is_cancelled_another_does() -> None:
    async def main() -> None:
        cache: Cache[Any, Any] = Cache("1M")
        go_on = asyncio.Event()
        calls: list[int] = []

        @cache.memoize()
        async def slow() -> int:
            calls.append(1)
            await go_on.wait()
            return len(calls)

        tasks = [asyncio.create_task(slow()) for _ in range(6)]
        await asyncio.sleep(0)
        assert len(calls) == 1
        tasks[0].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each).__name__ for each in found].count("CancelledError") == 2
        assert [each for each in found if isinstance(each, int)] == [2, 2, 2, 2]
        assert len(calls) == 2
        assert await slow() == 2
        assert len(cache._flights) == 0

    run(main())


def test_coroutines_of_two_loops_share_one_computation() -> None:
    cache: Cache[Any, Any] = Cache("1M")
    begun, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    @cache.memoize()
    async def slow() -> int:
        calls.append(1)
        begun.set()
        await asyncio.to_thread(go_on.wait, PATIENCE_S)
        return 7

    found: list[int] = []
    threads = [_started(lambda: found.append(asyncio.run(slow()))) for _ in range(3)]
    assert begun.wait(PATIENCE_S)
    _until(lambda: len(next(iter(cache._flights._under_way.values())).wakes) == 2)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (found, calls) == ([7, 7, 7], [1])


def test_an_asynchronous_circle_is_told_also_through_tasks() -> None:
    async def main() -> None:
        cache: Cache[Any, Any] = Cache("1M")

        @cache.memoize()
        async def egg() -> int:
            return sum(await asyncio.gather(hen()))

        @cache.memoize()
        async def hen() -> int:
            return await asyncio.create_task(egg())

        with pytest.raises(CircularDependencyError):
            await egg()

    run(main())


@given(
    st.one_of(st.text(), st.binary(), st.text(st.characters(max_codepoint=127)), st.integers(), st.tuples(st.text())),
    st.one_of(st.text(), st.binary(), st.integers(), st.lists(st.text()), st.none()),
)
def test_the_short_way_of_sizing_gives_what_the_long_one_does(key: object, value: object) -> None:
    assert _sizing(None, 1 << 40)(key, value) == (size_of(value) + sys.getsizeof(key) + ENTRY_BYTES)
