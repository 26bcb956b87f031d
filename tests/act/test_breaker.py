"""The breaker: relieves first, looks again, refuses in time, and lets go when memory falls."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden import Breaker, ConfigError, Level, MemoryPressureError, MemwardenError, Warden
from memwarden.act.breaker import STUCK_S, TRIAL_S, Answer, Circuit, State, Switch
from memwarden.act.gauge import View, view_of
from memwarden.budget import Budget
from memwarden.facts import Reason, Verdict
from memwarden.testing import FakeClock, FakeMachine, pressure, reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

MIB = 1 << 20
PATIENCE_S = 20.0


def view(ratio: float | None, *, level: Level = Level.NORMAL, forced: bool = False) -> View:
    used = None if ratio is None else int(ratio * 1000 * MIB)
    return View(
        used_bytes=used, limit_bytes=1000 * MIB, ratio=ratio, level=level, forced=forced, monotonic_s=0.0
    )  # fmt: skip


def switch(**changes: float) -> Switch:
    return Switch(**{"threshold": 0.8, "leave": 0.75, "retry_s": 1.0, "longest_s": 60.0, **changes})


class Bench:
    """A breaker on a machine of 100 MiB, and what it told."""

    def __init__(self, machine: FakeMachine, **options: Any) -> None:
        self.machine = machine
        self.clock = FakeClock()
        self.told: list[tuple[State, State]] = []
        self.breaker = Breaker(
            limit=None,
            machine=machine,
            clock=self.clock,
            on_change=lambda old, new, _: self.told.append((old, new)),
            **options,
        )

    def use(self, used_mib: int, *, later_s: float = 1.0) -> None:
        self.machine.set_usage(used_mib * MIB)
        self.clock.advance(later_s)

    def state(self) -> State:  # a call: mypy holds an attribute for unchanged
        return self.breaker.state

    def passes(self) -> bool:
        try:
            self.breaker.check()
        except MemoryPressureError:
            return False
        return True


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    with FakeMachine(limit_bytes=100 * MIB, used_bytes=30 * MIB) as made:
        yield made


@pytest.fixture
def bench(machine: FakeMachine) -> Bench:
    return Bench(machine)


# --- the switch: pure ---------------------------------------------------------------------------------------------

looks = st.tuples(
    st.floats(-5, 100),
    st.none() | st.floats(0, 1.2),
    st.sampled_from(Level),
    st.sampled_from(["ask", "refuse", "end"]),
)


@given(st.lists(looks, max_size=60))
def test_whatever_happens_nobody_passes_when_it_is_full_and_one_at_a_time_when_half_open(
    history: list[tuple[float, float | None, Level, str]],
) -> None:
    found, now_s, trial_since_s = switch(), 1000.0, None
    for step_s, ratio, level, verb in history:
        now_s += step_s  # now and then time jumps back
        seen = view(ratio, level=level)
        before = found.state
        if verb == "end":
            found.end_trial()
            trial_since_s = None
            continue
        answer = found.ask(now_s, seen)
        if verb == "refuse" and answer is Answer.RELIEVE:
            found.refuse(now_s)
            assert found.state is State.OPEN
            assert found.is_waiting(now_s)
        if answer is Answer.PASS:
            assert not found.is_full(seen)
            if before is State.HALF_OPEN and found.state is State.HALF_OPEN and trial_since_s is not None:
                assert not trial_since_s <= now_s < trial_since_s + TRIAL_S
            if found.state is State.HALF_OPEN:
                trial_since_s = now_s
        if found.state is not State.HALF_OPEN:
            trial_since_s = None
        assert 0 <= found.retry_after_s(now_s) <= 60.0 + TRIAL_S
        assert 1.0 <= found.wait_s <= 60.0


@given(st.lists(looks, max_size=40))
def test_from_any_state_it_closes_within_a_wait_and_a_trial_once_memory_fell(
    history: list[tuple[float, float | None, Level, str]],
) -> None:
    """Every waiting state has a timed exit."""
    found, now_s = switch(), 1000.0
    for step_s, ratio, level, verb in history:
        now_s += step_s
        if found.ask(now_s, view(ratio, level=level)) is Answer.RELIEVE and verb == "refuse":
            found.refuse(now_s)
    for _ in range(3):
        now_s += found.wait_s + TRIAL_S
        assert found.ask(now_s, view(0.5)) is Answer.PASS
    assert found.state is State.CLOSED


@given(st.lists(st.floats(-0.03, 0.03), min_size=200, max_size=200))
def test_noise_around_the_line_opens_it_once_and_does_not_flap(noise: list[float]) -> None:
    found, now_s = switch(), 0.0
    for each in noise:
        now_s += 0.5
        if found.ask(now_s, view(0.8 + each)) is Answer.RELIEVE:
            found.refuse(now_s)
    assert len(found.take_changes()) <= 1


def test_the_wait_doubles_while_it_does_not_help_and_is_forgiven_after_a_long_peace() -> None:
    found, now_s, waits = switch(), 0.0, []
    for _ in range(9):
        assert found.ask(now_s, view(0.9)) is Answer.RELIEVE
        found.refuse(now_s)
        waits.append(found.wait_s)
        now_s += found.wait_s
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert found.ask(now_s, view(0.5)) is Answer.PASS
    now_s += TRIAL_S
    assert found.ask(now_s, view(0.5)) is Answer.PASS
    now_s += 601
    assert found.ask(now_s, view(0.9)) is Answer.RELIEVE
    found.refuse(now_s)
    assert found.wait_s == 1


def test_retry_after_learns_how_long_recovery_takes() -> None:
    found, now_s = switch(), 0.0
    assert found.ask(now_s, view(0.9)) is Answer.RELIEVE
    found.refuse(now_s)
    assert found.retry_after_s(now_s) == 1.0
    now_s += 20
    assert found.ask(now_s, view(0.5)) is Answer.PASS
    assert found.ask(now_s + TRIAL_S, view(0.5)) is Answer.PASS
    now_s += 1000
    assert found.ask(now_s, view(0.9)) is Answer.RELIEVE
    found.refuse(now_s)
    assert found.retry_after_s(now_s) == 20.0


@pytest.mark.parametrize(
    ("level", "forced", "ratio", "full"),
    [
        (Level.NORMAL, False, 0.79, False),
        (Level.NORMAL, False, 0.8, True),
        (Level.CRITICAL, False, 0.5, False),
        (Level.EMERGENCY, False, 0.5, True),
        (Level.CRITICAL, True, 0.1, True),
        (Level.NORMAL, True, 0.99, False),
        (Level.NORMAL, False, None, False),
    ],
)
def test_what_counts_as_full(level: Level, *, forced: bool, ratio: float | None, full: bool) -> None:
    """The line, an EMERGENCY of whatever reason, and what a game day says; unknown is not full."""
    assert switch().is_full(view(ratio, level=level, forced=forced)) is full


# --- what it looks at ---------------------------------------------------------------------------------------------


def _verdict(found: Any) -> Verdict:
    return Verdict(level=Level.NORMAL, since_s=0.0, reading=found)


def test_a_container_full_of_file_cache_is_not_full() -> None:
    seen = view_of(_verdict(reading(90, 100, low_bytes=30)))
    assert (seen.used_bytes, seen.ratio) == (60, 0.6)


def test_a_fuller_ancestor_counts() -> None:
    seen = view_of(_verdict(reading(30, 100).replace(pressure_ratio=0.9, headroom_bytes=20)))
    assert seen.ratio == 0.9


# --- check --------------------------------------------------------------------------------------------------------


def test_below_the_line_it_is_silent_and_above_it_says_everything(bench: Bench) -> None:
    bench.use(79)
    bench.breaker.check()
    budget = bench.breaker.budget = Budget("100M")
    cache = budget.account("cache")
    cache.reserve(40 * MIB)
    bench.use(85)
    with pytest.raises(MemoryPressureError) as caught:
        bench.breaker.check()
    error = caught.value
    assert isinstance(error, MemwardenError)
    assert not isinstance(error, MemoryError)
    assert (error.usage_bytes, error.threshold, error.limit_bytes) == (85 * MIB, 0.8, 100 * MIB)
    assert (error.transient, error.retry_after_s, error.holders) == (True, 1.0, (("cache", 40 * MIB),))
    assert str(error) == "memory is at 85 % of 100 MiB, above the breaker's 80 %; try again in 1 s"
    assert pickle.loads(pickle.dumps(error)).usage_bytes == 85 * MIB


def test_it_relieves_before_it_refuses(bench: Bench) -> None:
    bench.use(90)
    bench.machine.trim_frees_bytes = 50 * MIB
    trims = bench.machine.trims
    bench.breaker.check()
    assert bench.machine.trims == trims + 1
    assert bench.breaker.statistics.relieved == 1
    assert bench.told == []


def test_it_trims_and_then_collects_when_trimming_was_not_enough(bench: Bench) -> None:
    bench.use(90)
    collected: list[str] = []
    gc.callbacks.append(lambda phase, info: collected.append(phase) if info["generation"] == 2 else None)
    try:
        assert not bench.passes()
    finally:
        gc.callbacks.pop()
    assert bench.machine.trims >= 2
    assert "start" in collected


def test_while_it_waits_nobody_relieves_or_reads_again(bench: Bench) -> None:
    bench.use(90)
    assert not bench.passes()
    relieved, trims = bench.breaker.statistics.relieved, bench.machine.trims
    bench.use(10, later_s=0.5)
    assert not bench.passes()
    assert (bench.breaker.statistics.relieved, bench.machine.trims) == (relieved, trims)
    assert bench.breaker.statistics.refused == 2


def test_open_then_half_open_then_closed_each_told_once(bench: Bench) -> None:
    bench.use(90)
    assert not bench.passes()
    bench.use(78, later_s=1.5)  # below the line, not below the gap
    assert not bench.passes()
    bench.use(40, later_s=60)
    assert bench.passes()  # on trial
    assert bench.state() is State.HALF_OPEN
    assert not bench.passes()  # one at a time
    bench.clock.advance(TRIAL_S)
    assert bench.passes()
    assert bench.told == [
        (State.CLOSED, State.OPEN), (State.OPEN, State.HALF_OPEN), (State.HALF_OPEN, State.CLOSED),
    ]  # fmt: skip
    assert bench.breaker.statistics.opened == 1


def test_the_end_of_a_block_on_trial_is_enough_to_close(bench: Bench) -> None:
    bench.use(90)
    assert not bench.passes()
    bench.use(40, later_s=2)
    with bench.breaker:
        assert bench.state() is State.HALF_OPEN
        assert not bench.passes()
    assert bench.passes()
    assert bench.state() is State.CLOSED


def test_a_trial_that_fills_memory_again_opens_for_longer(bench: Bench) -> None:
    bench.use(90)
    assert not bench.passes()
    bench.use(40, later_s=2)
    assert bench.passes()
    bench.use(95)
    with pytest.raises(MemoryPressureError) as caught:
        bench.breaker.check()
    assert bench.state() is State.OPEN
    assert (caught.value.retry_after_s or 0) >= 2.0


def test_what_has_not_eased_for_minutes_is_permanent(bench: Bench) -> None:
    bench.use(90)
    assert not bench.passes()
    bench.clock.advance(STUCK_S)
    with pytest.raises(MemoryPressureError, match="restart") as caught:
        bench.breaker.check()
    assert (caught.value.transient, caught.value.retry_after_s) == (False, None)


def test_what_it_knows_is_at_most_its_age_old(bench: Bench) -> None:
    """Nobody reads within 50 ms of a reading that was far from the line, and somebody does after it."""
    bench.machine.set_limit(1000 * MIB)
    bench.clock.advance(60)
    bench.use(300)
    bench.breaker.check()
    bench.use(950, later_s=0.049)
    bench.breaker.check()
    bench.clock.advance(0.002)
    assert not bench.passes()


def test_near_the_line_it_looks_more_often(bench: Bench) -> None:
    bench.use(79)
    bench.breaker.check()
    bench.use(95, later_s=0.002)
    assert not bench.passes()


def test_with_a_running_warden_it_reads_what_that_read(machine: FakeMachine) -> None:
    """A young verdict of the loop is taken as it is; one that is too old is renewed."""
    clock = FakeClock(waits=0)
    machine.set_limit(1000 * MIB)
    with Warden(machine=machine, clock=clock, relieve=False) as warden:
        assert clock.rested.wait(PATIENCE_S)
        breaker = Breaker(warden, clock=clock)
        breaker.check()
        warden.check()
        ticks = warden.ticks
        clock.advance(0.04)
        breaker.check()
        assert warden.ticks == ticks
        machine.set_usage(950 * MIB)
        clock.advance(0.02)
        with pytest.raises(MemoryPressureError):
            breaker.check()
        assert warden.ticks > ticks


def test_any_pressure_will_do() -> None:
    Breaker(pressure(Level.WARNING)).check()
    with pytest.raises(MemoryPressureError):
        Breaker(pressure(Level.CRITICAL)).check()


def test_a_game_day_needs_no_hog(machine: FakeMachine, tmp_path: Any) -> None:
    valve = tmp_path / "valve"
    with Warden(machine=machine, clock=FakeClock(waits=0), pressure_file=str(valve), relieve=False) as warden:
        valve.write_text("CRITICAL")
        with pytest.raises(MemoryPressureError, match="forced to CRITICAL"):
            Breaker(warden).check()


def test_switched_off_it_lets_everybody_through(machine: FakeMachine) -> None:
    machine.environ = {"MEMWARDEN_ENABLED": "off"}
    bench = Bench(machine)
    bench.use(99)
    assert bench.passes()


def test_without_any_limit_known_it_lets_everybody_through() -> None:
    class Nobody:
        verdict = None

    Breaker(Nobody()).check()


def test_an_unreadable_machine_is_unknown_and_no_refusal() -> None:
    with FakeMachine({}) as nothing:
        assert Bench(nothing).passes()


# --- what callers and callbacks do wrong --------------------------------------------------------------------------


def test_a_callback_that_raises_stops_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken callback")

    take_back = bench.breaker.on_change(broken)
    bench.use(90)
    assert not bench.passes()
    assert bench.told == [(State.CLOSED, State.OPEN)]
    assert bench.breaker.statistics.callback_errors == 1
    assert "broken callback" in caplog.text
    take_back()
    take_back()
    bench.use(20, later_s=5)
    assert bench.passes()
    assert bench.breaker.statistics.callback_errors == 1


def test_what_relieves_may_fail_and_the_breaker_still_decides(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bool:
        raise OSError("no trim today")

    bench = Bench(machine)
    machine.trim = broken  # type: ignore[method-assign]
    bench.use(90)
    assert not bench.passes()


def test_where_relieving_raises_the_breaker_decides_without(caplog: pytest.LogCaptureFixture) -> None:
    def broken(reason: str, enough: Callable[[], bool]) -> None:
        raise OSError(f"cannot: {reason}")

    circuit = Circuit(pressure(Level.CRITICAL), relieve=broken)
    with pytest.raises(MemoryPressureError):
        circuit.check()
    assert "cannot: the breaker is at 80 %" in caplog.text


@pytest.mark.parametrize("jump_s", [1e7, -1e7, -900.0])
def test_time_that_jumps_blinds_nobody_and_holds_nobody_for_longer(bench: Bench, jump_s: float) -> None:
    bench.use(30)
    bench.breaker.check()
    bench.use(95, later_s=jump_s)
    assert not bench.passes()
    bench.use(20, later_s=jump_s)
    bench.passes()
    for _ in range(8):  # the EMERGENCY has a dwell of its own
        bench.clock.advance(2)
        bench.passes()
    assert bench.state() is State.CLOSED


def test_changes_are_logged_but_not_all_of_them(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "memwarden.act")
    for _ in range(20):
        bench.use(90)
        bench.passes()
        bench.use(20, later_s=bench.breaker._switch.wait_s)
        bench.passes()
        bench.clock.advance(TRIAL_S)
        bench.passes()
    changes = len(bench.told)
    lines = [record.getMessage() for record in caplog.records if record.name == "memwarden.act"]
    assert changes > 20
    assert 1 <= len(lines) < changes
    assert "breaker CLOSED -> OPEN: 90 % of 100 MiB used" in lines[0]
    assert sum(int(line.split(", ")[-1].split()[0]) for line in lines if "not told" in line) + len(lines) <= changes


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0}, {"threshold": "many"}, {"threshold": 1}, {"threshold": 0.5, "leave_gap": 0.5},
        {"leave_gap": 0}, {"max_age": 0}, {"max_age": -1}, {"retry_after": 0}, {"retry_after": 90},
        {"longest_retry": "soon"}, {"warden": "512M"}, {"warden": pressure(Level.NORMAL), "limit": "1G"},
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Breaker(options.pop("warden", None), **options)
    assert "\n" not in str(caught.value)


# --- forms --------------------------------------------------------------------------------------------------------


def test_execute_passes_arguments_and_results(bench: Bench) -> None:
    assert bench.breaker.execute(divmod, 7, 2) == (3, 1)
    assert bench.breaker.execute(lambda *, a: a, a=5) == 5
    bench.use(90)
    ran: list[int] = []
    with pytest.raises(MemoryPressureError):
        bench.breaker.execute(ran.append, 1)
    assert ran == []


def test_execute_of_a_coroutine_function_is_awaited(bench: Bench) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    assert asyncio.run(bench.breaker.execute(double, 4)) == 8
    assert asyncio.run(bench.breaker.execute(functools.partial(double, 5))) == 10
    bench.use(90)
    with pytest.raises(MemoryPressureError):
        asyncio.run(bench.breaker.execute(double, 4))


def test_decorated_functions_keep_their_names_and_are_checked_when_they_run(bench: Bench) -> None:
    @bench.breaker
    def plain(number: int) -> int:
        """Doc."""
        return number + 1

    @bench.breaker
    async def coroutine(number: int) -> int:
        return number + 2

    assert (plain(1), plain.__name__, plain.__doc__) == (2, "plain", "Doc.")
    assert asyncio.run(coroutine(1)) == 3
    assert asyncio.iscoroutinefunction(coroutine)
    bench.use(90)
    with pytest.raises(MemoryPressureError):
        plain(1)
    waiting = coroutine(1)
    with pytest.raises(MemoryPressureError):
        asyncio.run(waiting)


def test_a_decorated_generator_is_checked_when_it_begins_and_stays_a_whole_generator(bench: Bench) -> None:
    closed: list[str] = []

    @bench.breaker
    def counting() -> Generator[int, str, str]:
        try:
            said = yield 1
            try:
                yield len(said)
            except KeyError:
                yield 99
            return "the end"
        finally:
            closed.append("closed")

    generator = counting()
    assert next(generator) == 1
    assert generator.send("four") == 4
    assert generator.throw(KeyError("x")) == 99
    with pytest.raises(StopIteration) as caught:
        next(generator)
    assert (caught.value.value, closed) == ("the end", ["closed"])
    unstarted = counting()
    bench.use(90)
    with pytest.raises(MemoryPressureError):
        next(unstarted)
    assert closed == ["closed"]


def test_a_decorated_asynchronous_generator_too(bench: Bench) -> None:
    closed: list[str] = []

    @bench.breaker
    async def counting() -> AsyncIterator[int]:
        try:
            said = yield 1
            assert said == "four"
            try:
                yield 2
            except KeyError:
                yield 99
        finally:
            closed.append("closed")

    async def main() -> None:
        generator: Any = counting()
        assert await anext(generator) == 1
        assert await generator.asend("four") == 2
        assert await generator.athrow(KeyError("x")) == 99
        with pytest.raises(StopAsyncIteration):
            await anext(generator)
        half: Any = counting()
        assert await anext(half) == 1
        await half.aclose()
        assert closed == ["closed", "closed"]
        bench.use(90)
        with pytest.raises(MemoryPressureError):
            await anext(counting())

    asyncio.run(main())


def test_running_out_near_the_line_opens_it_and_far_from_it_does_not(bench: Bench) -> None:
    """A single absurd request is nobody else's fault."""

    def absurd() -> None:
        raise MemoryError

    bench.use(30)
    with pytest.raises(MemoryError):
        bench.breaker.execute(absurd)
    assert bench.state() is State.CLOSED
    bench.use(78)
    with pytest.raises(MemoryError):
        bench.breaker.execute(absurd)
    assert bench.state() is State.OPEN


# --- guard --------------------------------------------------------------------------------------------------------


def test_a_guarded_loop_that_fits_does_everything(bench: Bench) -> None:
    partial = bench.breaker.guard(range(5), str)
    assert partial.complete
    assert (partial.done, partial.results, partial.left_count, partial.why) == (5, ["0", "1", "2", "3", "4"], 0, None)
    assert list(partial.left) == []
    assert bench.breaker.guard("abc").results == ["a", "b", "c"]


def test_showing_what_was_done_does_not_show_all_of_it(bench: Bench) -> None:
    """asyncio.run asks for it: the text of 100 MiB killed a process that had stopped in time."""
    partial = bench.breaker.guard([bytes(1000)] * 1000)
    assert len(repr(partial)) < 200


def _growing(bench: Bench, done: list[int], *, mib_each: int = 5) -> Callable[[int], int]:
    def work(item: int) -> int:
        done.append(item)
        bench.use(30 + mib_each * len(done), later_s=0.01)
        return item * 10

    return work


def test_a_guarded_loop_stops_before_the_limit_and_nothing_is_lost_or_done_twice(bench: Bench) -> None:
    done: list[int] = []
    work = _growing(bench, done)
    partial = bench.breaker.guard(range(100), work)
    assert partial.results == [item * 10 for item in done]
    assert (partial.done, partial.left_count) == (10, 90)
    assert isinstance(partial.why, MemoryPressureError)
    rest = list(partial.left)
    assert done + rest == list(range(100))


def test_it_goes_on_with_what_is_left(bench: Bench) -> None:
    done: list[int] = []
    partial = bench.breaker.guard(iter(range(30)), _growing(bench, done))
    assert partial.left_count is None  # an iterator does not say
    bench.use(20, later_s=10)
    bench.breaker.check()
    bench.use(20)
    rest = bench.breaker.guard(partial.left)
    assert rest.complete
    assert done + rest.results == list(range(30))


def test_it_stops_where_one_more_step_like_the_largest_would_pass_the_limit(bench: Bench) -> None:
    """Items of a quarter of the limit: at 79 % the line is not reached, and the next one would be too much."""
    done: list[int] = []
    partial = bench.breaker.guard(range(9), _growing(bench, done, mib_each=24))
    assert partial.done == 2
    assert "the next step may take 24 MiB" in str(partial.why)


@pytest.mark.parametrize("kind", [MemoryError(), None])
def test_an_item_that_runs_out_is_left_with_the_others(bench: Bench, kind: MemoryError | None) -> None:
    def work(item: int) -> int:
        if item == 3:
            if kind is None:
                raise bench.breaker.refusal("an inner one")
            raise kind
        return item

    partial = bench.breaker.guard(range(6), work)
    assert (partial.results, partial.left_count) == ([0, 1, 2], 3)
    assert list(partial.left) == [3, 4, 5]
    assert not partial.complete


def test_any_other_error_is_raised(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.breaker.guard([1, 0], lambda item: 1 / item)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30))
def test_done_and_left_are_everything_once_wherever_it_stops(count: int, fails_at: int, mib_each: int) -> None:
    with FakeMachine(limit_bytes=100 * MIB, used_bytes=30 * MIB) as machine:
        bench, done = Bench(machine), list[int]()
        grow = _growing(bench, done, mib_each=mib_each)

        def work(item: int) -> int:
            if item == fails_at:
                raise MemoryError
            return grow(item)

        partial = bench.breaker.guard(range(count), work)
        assert partial.results == [item * 10 for item in done]
        assert done + list(partial.left) == list(range(count))
        assert partial.done + (partial.left_count or 0) == count
        assert 30 + mib_each * len(done) < 80 + mib_each


def test_other_tasks_run_between_the_items_of_an_asynchronous_loop(bench: Bench) -> None:
    turns: list[str] = []

    async def other() -> None:
        for _ in range(20):
            turns.append("other")
            await asyncio.sleep(0)

    async def main() -> Any:
        task = asyncio.create_task(other())
        partial = await bench.breaker.guard_async(range(10), lambda item: turns.append(str(item)))
        await task
        return partial

    assert asyncio.run(main()).complete
    for before, after in zip(range(10), range(1, 10), strict=False):
        assert "other" in turns[turns.index(str(before)) : turns.index(str(after))]


def test_asynchronous_items_and_functions_and_what_is_left_of_them(bench: Bench) -> None:
    done: list[int] = []
    grow = _growing(bench, done)

    async def items() -> AsyncIterator[int]:
        for item in range(30):
            yield item

    async def work(item: int) -> int:
        await asyncio.sleep(0)
        if item == 8:
            raise MemoryError
        return grow(item)

    async def main() -> None:
        partial = await bench.breaker.guard_async(items(), work)
        assert (partial.results, partial.left_count) == ([item * 10 for item in range(8)], None)
        assert [item async for item in partial.left] == list(range(8, 30))

    asyncio.run(main())


def test_nothing_is_trimmed_or_collected_on_the_thread_of_an_event_loop(bench: Bench) -> None:
    threads: list[int] = []
    trim = bench.machine.trim

    def watched() -> bool:
        threads.append(threading.get_ident())
        return trim()

    bench.machine.trim = watched  # type: ignore[method-assign]
    collector: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            collector.append(threading.get_ident())

    async def main() -> int:
        bench.use(90)
        with pytest.raises(MemoryPressureError):
            await bench.breaker.check_async()
        bench.use(92, later_s=100)
        with pytest.raises(MemoryPressureError):
            bench.breaker.check()  # the plain one does not wait for it either
        bench.breaker._relief.begin().over.wait(PATIENCE_S)
        return threading.get_ident()

    gc.disable()  # an automatic collection would be nobody's doing
    gc.callbacks.append(note)
    try:
        loop_thread = asyncio.run(main())
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert len(threads) >= 2
    assert loop_thread not in threads
    assert loop_thread not in collector
    assert collector


def test_the_loop_goes_on_while_memory_is_given_back(machine: FakeMachine) -> None:
    bench = Bench(machine)
    beats, enough = 0, threading.Event()

    def slow() -> bool:
        enough.wait(PATIENCE_S)
        machine.set_usage(20 * MIB)
        return True

    machine.trim = slow  # type: ignore[method-assign]

    async def main() -> None:
        nonlocal beats
        bench.use(90)
        task = asyncio.create_task(bench.breaker.check_async())
        while beats < 50:
            await asyncio.sleep(0)
            beats += 1
        assert not task.done()
        enough.set()
        await task

    asyncio.run(main())
    assert beats == 50
    assert bench.state() is State.CLOSED


# --- threads and processes ----------------------------------------------------------------------------------------


def test_of_many_threads_one_relieves_and_the_others_wait_for_it(machine: FakeMachine) -> None:
    """By count: eight threads at the line together, one trim, nobody refused."""
    bench = Bench(machine)
    waiting = threading.Barrier(8)
    trims, answers = 0, list[bool]()

    class Patient(FakeClock):
        def wait(self, event: threading.Event, seconds: float) -> bool:
            return event.wait(PATIENCE_S)

    bench.breaker._relief._clock = Patient()

    def trim() -> bool:
        nonlocal trims
        trims += 1
        while bench.breaker._relief._round is not None and len(arrived) < 8:
            threading.Event().wait(0.001)
        machine.set_usage(20 * MIB)
        return True

    machine.trim = trim  # type: ignore[method-assign]
    bench.use(90)
    arrived: list[int] = []
    join = bench.breaker._relief._join

    def counted() -> Any:
        found = join()
        arrived.append(1)
        return found

    bench.breaker._relief._join = counted  # type: ignore[method-assign]

    def ask() -> None:
        waiting.wait(PATIENCE_S)
        bench.breaker._keep(float("-inf"))
        answers.append(bench.passes())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [True] * 8
    assert trims == 1


def test_a_forked_child_has_its_own_lock_and_nobody_relieving(bench: Bench) -> None:
    bench.breaker._relief._join()  # a thread that is relieving, and will not be in the child
    bench.use(90)
    with bench.breaker._lock:
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if not bench.passes() and bench.machine.trims > 1 else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_hundred_breakers_leave_no_thread_and_no_object_behind(machine: FakeMachine) -> None:
    def once() -> None:
        bench = Bench(machine)
        bench.use(90)
        bench.passes()
        bench.use(30)

    def ours() -> int:
        gc.collect()
        return sum(str(type(each).__module__).startswith("memwarden") for each in gc.get_objects())

    once()
    before, threads = ours(), threading.active_count()
    for _ in range(100):
        once()
    assert ours() <= before
    assert threading.active_count() == threads


def test_reasons_of_a_forced_verdict_are_seen() -> None:
    found = _verdict(reading(10, 100)).replace(reasons=(Reason(code="forced", text="game day"),))
    assert view_of(found).forced
