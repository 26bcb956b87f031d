"""The one account of known bytes: the sum is always right, never above the limit, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from memwarden.budget import Account, Budget
from memwarden.errors import ConfigError, MemoryPressureError
from memwarden.facts import Level
from memwarden.testing import pressure

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 20.0


class Cache:
    """A Sheddable that gives back in slices."""

    def __init__(self, name: str, held_bytes: int, *, slice_bytes: int = 10) -> None:
        self.name = name
        self.held_bytes = held_bytes
        self.slice_bytes = slice_bytes
        self.slices = 0

    def shed(self, size_bytes: int) -> int:
        self.slices += 1
        freed = min(size_bytes, self.slice_bytes, self.held_bytes)
        self.held_bytes -= freed
        return freed


class Stubborn(Cache):
    def __init__(self, name: str, answer: Any) -> None:
        super().__init__(name, 1000)
        self.answer = answer

    def shed(self, size_bytes: int) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


class Books(RuleBasedStateMachine):
    """Any order of opening, reserving, committing, cancelling, releasing, closing and dropping accounts."""

    LIMIT = 100
    sizes = st.integers(-2, 120)
    accounts = Bundle("accounts")

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(self.LIMIT)
        self.living: list[Account] = []
        self.expected: dict[int, tuple[int, int]] = {}  # id -> (held, reserved), by the plainest bookkeeping

    @rule(target=accounts)
    def open(self) -> int:
        account = self.budget.account("one")
        self.living.append(account)
        self.expected[id(account)] = (0, 0)
        return len(self.living) - 1

    def _do(self, index: int, verb: str, size: int, change: Callable[[int, int], tuple[int, int]]) -> None:
        """Do it, and hold the answer against the bookkeeping: allowed exactly where the new figures are possible."""
        if index >= len(self.living):
            return
        account = self.living[index]
        held, reserved = change(*self.expected[id(account)])
        rest = self.budget.held_bytes - account.held_bytes
        possible = size > 0 and 0 <= reserved <= held and rest + held <= self.LIMIT
        if possible:
            getattr(account, verb)(size)
            self.expected[id(account)] = (held, reserved)
        else:
            with pytest.raises((ConfigError, MemoryPressureError)):
                getattr(account, verb)(size)

    @rule(index=accounts, size=sizes)
    def reserve(self, index: int, size: int) -> None:
        self._do(index, "reserve", size, lambda held, reserved: (held + size, reserved + size))

    @rule(index=accounts, size=sizes)
    def commit(self, index: int, size: int) -> None:
        self._do(
            index, "commit", size, lambda held, reserved: (held + max(0, size - reserved), max(0, reserved - size))
        )

    @rule(index=accounts, size=sizes)
    def release(self, index: int, size: int) -> None:
        self._do(index, "release", size, lambda held, reserved: (held - size, min(reserved, held - size)))

    @rule(index=accounts, size=sizes)
    def cancel(self, index: int, size: int) -> None:
        self._do(index, "cancel", size, lambda held, reserved: (held - size, reserved - size))

    @rule(index=accounts)
    def close(self, index: int) -> None:
        if index < len(self.living):
            account = self.living.pop(index)
            del self.expected[id(account)]
            account.close()
            account.close()
            with pytest.raises(ConfigError, match="closed"):
                account.reserve(1)

    @rule(index=accounts)
    def drop(self, index: int) -> None:
        if index < len(self.living):
            account = self.living.pop(index)
            held, _ = self.expected.pop(id(account))
            lost = len(self.budget.lost)
            del account
            assert len(self.budget.lost) == min(lost + (held > 0), 100)

    @invariant()
    def the_sums_are_right(self) -> None:
        assert [(each.held_bytes, each.reserved_bytes) for each in self.living] == [
            self.expected[id(each)] for each in self.living
        ]
        held = sum(figures[0] for figures in self.expected.values())
        assert self.budget.held_bytes == held
        assert self.budget.reserved_bytes == sum(figures[1] for figures in self.expected.values())
        assert self.budget.free_bytes == self.LIMIT - held
        assert 0 <= self.budget.held_bytes <= self.LIMIT
        assert self.budget.top() == ((("one", held),) if held else ())


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


def test_what_is_larger_than_the_whole_is_refused_for_good_and_at_once_even_with_patience() -> None:
    account = Budget(100).account("big")
    with pytest.raises(MemoryPressureError, match="more than the whole budget") as caught:
        account.reserve(101, timeout_s=PATIENCE_S)
    assert (caught.value.transient, caught.value.retry_after_s, caught.value.limit_bytes) == (False, None, 100)


def test_a_refusal_for_now_names_the_largest_holders() -> None:
    budget = Budget("1K")
    hog, small = budget.account("hog"), budget.account("small")
    hog.reserve(1000)
    cache = Cache("cache", 500)
    budget.register(cache)
    with pytest.raises(MemoryPressureError, match=r"25 B for 'small' do not fit: 1000 B of 1 KiB are held") as caught:
        small.reserve(25)
    error = caught.value
    assert (error.transient, error.retry_after_s, error.usage_bytes, error.limit_bytes) == (True, 1.0, 1000, 1024)
    assert error.holders == (("hog", 1000), ("cache", 500))


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "512M", None, 1 << 70])
def test_a_size_that_is_none_is_one_line_and_changes_nothing(size: Any) -> None:
    budget = Budget(100)
    account = budget.account("one")
    account.reserve(50)
    for verb in (account.reserve, account.commit, budget.shed):
        with pytest.raises(ConfigError) as caught:
            verb(size)
        assert "\n" not in str(caught.value)
    assert (budget.held_bytes, budget.reserved_bytes) == (50, 50)


@pytest.mark.parametrize("limit", [0, -5, "many", True, object()])
def test_a_limit_that_is_none_is_one_line(limit: Any) -> None:
    with pytest.raises(ConfigError, match="limit"):
        Budget(limit)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf")])
def test_a_time_out_that_is_none_is_refused_before_anything_is_taken(timeout_s: float) -> None:
    budget = Budget(100)
    with pytest.raises(ConfigError, match="timeout_s"):
        budget.account("one").reserve(1, timeout_s=timeout_s)
    assert budget.held_bytes == 0


def test_a_pressures_limit_is_the_budgets() -> None:
    budget = Budget(pressure(Level.NORMAL, limit_bytes=1000))
    with budget.account("one") as account:
        account.reserve(1000)
        assert budget.free_bytes == 0
        with pytest.raises(MemoryPressureError):
            account.reserve(1)


def test_where_no_limit_is_known_everything_is_counted_and_nothing_refused() -> None:
    class Nobody:
        verdict = None

    budget = Budget(Nobody())
    account = budget.account("one")
    account.commit(1 << 50)
    assert (budget.limit_bytes, budget.free_bytes, budget.held_bytes) == (None, None, 1 << 50)


def test_a_dropped_account_is_found_with_its_name() -> None:
    budget = Budget(100)
    budget.account("tidy").close()
    budget.account("forgotten").reserve(70)
    assert list(budget.lost) == [("forgotten", 70)]
    assert budget.held_bytes == 0


def test_a_finalizer_within_the_lock_of_the_same_thread_does_not_hang() -> None:
    """A cyclic collection may finalize an account while its budget's lock is held: it is closed when that is over."""
    budget = Budget(100)
    knot: list[Any] = [budget.account("in a cycle")]
    knot[0].reserve(60)
    knot.append(knot)
    del knot
    with budget._ledger.gate:
        gc.collect()
        assert budget.held_bytes == 60
    assert budget.held_bytes == 0
    assert list(budget.lost) == [("in a cycle", 60)]


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_whoever_waits_is_served_in_turn_and_nobody_overtakes() -> None:
    budget = Budget(100)
    holder = budget.account("holder")
    holder.reserve(100)
    order: list[int] = []

    def wait_for(size: int) -> None:
        with budget.account(str(size)) as account:
            account.reserve(size, timeout_s=PATIENCE_S)
            order.append(size)

    threads = []
    for size in (80, 30, 5):
        threads.append(_started(lambda size=size: wait_for(size)))  # type: ignore[misc]
        while len(budget._ledger._queue) < len(threads):
            threads[-1].join(0.001)
    holder.release(50)
    with pytest.raises(MemoryPressureError):  # there is room for it, and others were first
        budget.account("late").reserve(1)
    assert order == []
    holder.release(30)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order[0] == 80
    assert sorted(order) == [5, 30, 80]
    assert budget.held_bytes == 20


def test_when_the_first_gives_up_the_next_that_fits_is_woken() -> None:
    budget = Budget(100)
    holder = budget.account("holder")
    holder.reserve(60)
    got: list[str] = []

    def give_up() -> None:
        with pytest.raises(MemoryPressureError):
            budget.account("large").reserve(90, timeout_s=0.05)
        got.append("gave up")

    def wait() -> None:
        with budget.account("small") as account:
            account.reserve(40, timeout_s=PATIENCE_S)
            got.append("served")

    first = _started(give_up)
    while not budget._ledger._queue:
        first.join(0.001)
    second = _started(wait)
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)
    assert sorted(got) == ["gave up", "served"]


def test_no_wake_up_is_lost_between_many_threads() -> None:
    """Each of 16 threads takes more than half of the rest again and again: one lost wake-up would end in a time-out."""
    budget = Budget(10)
    failures: list[Exception] = []
    highest = 0

    def work(number: int) -> None:
        nonlocal highest
        try:
            for turn in range(100):
                with budget.account("worker") as account:
                    account.reserve(1 + (number + turn) % 6, timeout_s=PATIENCE_S)
                    highest = max(highest, budget.held_bytes)
                    account.commit(account.reserved_bytes)
        except Exception as error:
            failures.append(error)

    threads = [_started(lambda number=number: work(number)) for number in range(16)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S * 2)
    assert failures == []
    assert 6 <= highest <= 10
    assert (budget.held_bytes, budget.reserved_bytes) == (0, 0)


def test_coroutines_wait_without_blocking_the_loop_and_share_the_queue_with_threads() -> None:
    budget = Budget(100)
    order: list[str] = []

    async def wait(name: str, size: int) -> None:
        with budget.account(name) as account:
            await account.reserve_async(size, timeout_s=PATIENCE_S)
            order.append(name)

    async def main() -> None:
        holder = budget.account("holder")
        holder.reserve(100)
        tasks = [asyncio.create_task(wait(str(number), 60)) for number in range(5)]
        await asyncio.sleep(0)
        assert len(budget._ledger._queue) == 5
        freeing = _started(holder.close)
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        freeing.join(PATIENCE_S)

    asyncio.run(main())
    assert order == ["0", "1", "2", "3", "4"]
    assert budget.held_bytes == 0


def test_a_cancelled_coroutine_holds_nothing_even_when_it_was_just_served() -> None:
    async def main(*, served_first: bool) -> Budget:
        budget = Budget(100)
        holder, account = budget.account("holder"), budget.account("cancelled")
        holder.reserve(100)
        task = asyncio.create_task(account.reserve_async(80, timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        if served_first:
            holder.close()
            assert account.held_bytes == 80
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert account.held_bytes == 0
        holder.close()
        return budget

    for served_first in (True, False):
        assert asyncio.run(main(served_first=served_first)).held_bytes == 0


def test_a_coroutines_wait_has_an_end() -> None:
    async def main() -> None:
        budget = Budget(100)
        holder = budget.account("holder")
        holder.reserve(100)
        with pytest.raises(MemoryPressureError):
            await budget.account("one").reserve_async(1, timeout_s=0.01)
        with pytest.raises(MemoryPressureError):
            await budget.account("one").reserve_async(1)
        assert not budget._ledger._queue

    asyncio.run(main())


def test_a_forked_child_finds_the_lock_free() -> None:
    budget = Budget(100)
    account = budget.account("one")
    with budget._ledger.gate:
        child = os.fork()
        if child == 0:  # the thread that held the lock is not here
            account.reserve(50)
            os._exit(account.held_bytes)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 50


def test_shedding_asks_the_largest_first_slice_by_slice_and_stops_when_it_is_enough() -> None:
    budget = Budget(1000)
    small, large, last = Cache("small", 30), Cache("large", 50), Cache("last", 5)
    for cache in (small, large, last):
        budget.register(cache)
    shed = budget.shed(65)
    assert shed.by == (("large", 50), ("small", 15))
    assert (shed.freed_bytes, shed.failed) == (65, ())
    assert (large.slices, small.slices, last.slices) == (6, 2, 0)


def test_one_that_fails_to_shed_is_named_and_the_next_is_asked() -> None:
    budget = Budget(1000)
    wrong = [Stubborn("raises", KeyError("no")), Stubborn("lies", -5), Stubborn("mumbles", None)]
    for each in wrong:
        budget.register(each)
    good = Cache("kept", 40)
    budget.register(good)
    shed = budget.shed(40)
    assert shed.by == (("kept", 40),)
    assert [name for name, _ in shed.failed] == ["raises", "lies", "mumbles"]


def test_a_dropped_cache_is_not_kept_alive_and_one_taken_back_is_not_asked() -> None:
    budget = Budget(1000)
    dropped, taken_back = Cache("dropped", 30), Cache("taken back", 50)
    budget.register(dropped)
    budget.register(taken_back)()
    del dropped
    assert budget.shed(10).freed_bytes == 0
    assert budget.top() == ()
    assert taken_back.slices == 0
