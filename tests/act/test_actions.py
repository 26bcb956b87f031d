"""The contract of every action, and the strategies: priority, line, what is switched off and why."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest

from memwarden.act import Collect, Drop, Ladder, Shed, Strategy, Trim
from memwarden.act.ladder import LONGEST_REST_S, Hung, Need
from memwarden.act.strategies import FIRST_SLICE_BYTES, SLICE_S, TAGS, in_time
from memwarden.errors import ConfigError
from memwarden.testing import FakeClock, FakeMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memwarden.ports import Action

MIB = 1 << 20


class Cache:
    """A sheddable that takes so long for a MiB, on the clock that it is given."""

    def __init__(self, size_bytes: int, clock: FakeClock | None = None, *, s_per_mib: float = 0.0) -> None:
        self.name, self.held_bytes = "cache", size_bytes
        self.asked: list[int] = []
        self.lasted_s: list[float] = []
        self._clock, self._s_per_mib = clock, s_per_mib

    def shed(self, size_bytes: int) -> int:
        freed = min(size_bytes, self.held_bytes)
        self.held_bytes -= freed
        self.asked.append(size_bytes)
        self.lasted_s.append(freed / MIB * self._s_per_mib)
        if self._clock is not None:
            self._clock.advance(self.lasted_s[-1])
        return freed


class Bench:
    """A ladder on a fake machine whose resident memory the test sets."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine, self.clock, self.need = machine, FakeClock(), Need()
        self.resident: int | None = 1000 * MIB
        self.growth = 0.0

    def ladder(self, *actions: Action) -> Ladder:
        return Ladder(
            actions, machine=self.machine, clock=self.clock, resident_bytes=lambda: self.resident, need=self.need,
            growth=lambda: self.growth,
        )  # fmt: skip

    def frees(self, size_bytes: int, takes_s: float = 0.0) -> Callable[[], None]:
        def function() -> None:
            self.resident = (self.resident or 0) - size_bytes
            self.clock.advance(takes_s)

        return function


@pytest.fixture
def bench() -> Iterator[Bench]:
    with FakeMachine() as machine:
        yield Bench(machine)


def never() -> bool:
    return False


def fail() -> None:
    raise ValueError("no")


CACHE = Cache(10)
EVERY: list[Action] = [
    Trim(),
    Collect(),
    Drop("metrics", drop=lambda: 1, held=lambda: 1),
    Drop("snapshots", drop=lambda: 1, held=lambda: 1),
    Strategy("own", lambda: None),
    Shed(CACHE, need=Need(), clock=FakeClock()),
]


@pytest.mark.parametrize("action", EVERY, ids=lambda each: each.name)
def test_every_action_says_who_it_is_and_what_it_costs_and_is_measured(action: Action, bench: Bench) -> None:
    assert action.name
    assert 0 <= action.above < 1
    assert action.cooldown_s > 0
    assert all(isinstance(each, bool) for each in (action.holds_gil, action.fork_unsafe, action.foreign))
    bench.machine.trim_frees_bytes = 0
    assert not action.idle()
    outcome = bench.ladder(action).apply(action, "test")
    assert (outcome.action, outcome.error, outcome.freed_bytes) == (action.name, "", 0)


def test_the_priorities_and_lines_are_those_of_row_m6(bench: Bench) -> None:
    ladder = bench.ladder(*reversed(EVERY))
    assert [each.name for each in ladder.actions] == ["trim", "cache", "collect", "metrics", "snapshots", "own"]
    lines = {each.name: (each.priority, each.above) for each in ladder.actions}
    assert (lines["collect"], lines["metrics"], lines["snapshots"]) == ((100, 0.70), (80, 0.80), (60, 0.85))


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.6, ["trim"]), (0.72, ["trim", "collect"]), (0.82, ["trim", "collect", "metrics"]),
                            (0.86, ["trim", "collect", "metrics", "snapshots"])]
)  # fmt: skip
def test_an_action_waits_for_its_own_line(bench: Bench, ratio: float, expected: list[str]) -> None:
    found = bench.ladder(*EVERY[:4]).climb("test", enough=never, ratio=ratio)
    assert [each.action for each in found] == expected


def test_an_unknown_ratio_crosses_every_line(bench: Bench) -> None:
    assert len(list(bench.ladder(*EVERY[:4]).climb("test", enough=never, ratio=None))) == 4


def test_what_has_nothing_to_do_is_passed_over_in_silence(bench: Bench) -> None:
    ladder = bench.ladder(Drop("metrics", drop=lambda: 1, held=lambda: 0))
    assert list(ladder.climb("test", enough=never)) == []
    assert list(ladder.run_all("test")) == []


def test_among_equals_the_one_that_returns_most_per_second_comes_first_and_never_before_its_betters(
    bench: Bench,
) -> None:
    slow = Strategy("slow", bench.frees(20 * MIB, 2.0))
    quick = Strategy("quick", bench.frees(20 * MIB, 0.01))
    better = Strategy("better", bench.frees(10 * MIB, 5.0), priority=90)
    ladder = bench.ladder(slow, quick, better)
    assert [each.action for each in ladder.run_all("test")] == ["better", "slow", "quick"]
    assert [each.action for each in ladder.run_all("test")] == ["better", "quick", "slow"]


def test_a_strategy_that_raises_is_switched_off_and_the_ladder_goes_on(bench: Bench) -> None:
    ladder = bench.ladder(Strategy("bad", fail, priority=60), Strategy("good", bench.frees(50 * MIB)))
    bad, good = ladder.climb("test", enough=never)
    assert bad.error == "ValueError: no; it is switched off"
    assert good.freed_bytes == 50 * MIB
    skipped, _ = ladder.run_all("test")
    assert skipped.skipped == "switched off: ValueError: no"
    assert ladder.off() == {"bad": "ValueError: no"}


def test_a_strategy_that_hangs_is_left_behind_and_switched_off(bench: Bench) -> None:
    release = threading.Event()
    calls = []

    def hang() -> None:
        calls.append(1)
        release.wait(20)

    ladder = bench.ladder(Strategy("hangs", hang, priority=60, timeout_s=0.05), Strategy("good", bench.frees(MIB)))
    try:
        hung, good = ladder.run_all("test")
        assert hung.error == "did not come back within 0.05 s; it is switched off"
        assert not good.error
        assert [each.skipped != "" for each in ladder.run_all("test")] == [True, False]
        assert calls == [1]
    finally:
        release.set()


def test_a_strategy_that_makes_memory_worse_twice_running_is_switched_off(bench: Bench) -> None:
    ladder = bench.ladder(Strategy("worse", bench.frees(-20 * MIB)))
    first, second = (next(ladder.run_all("test")) for _ in range(2))
    assert (first.error, first.freed_bytes) == ("", -20 * MIB)
    assert "worse" in second.error
    assert "switched off" in second.error


def test_the_growth_of_the_process_is_not_put_down_to_a_strategy(bench: Bench) -> None:
    bench.growth = 100.0 * MIB
    ladder = bench.ladder(Strategy("innocent", bench.frees(-20 * MIB, 0.2)))
    assert [next(ladder.run_all("test")).error for _ in range(5)] == [""] * 5


def test_our_own_actions_are_never_switched_off(bench: Bench) -> None:
    ladder = bench.ladder(Drop("metrics", drop=lambda: bench.frees(-50 * MIB)() or 1, held=lambda: 1))
    assert [next(ladder.run_all("test")).error for _ in range(5)] == [""] * 5


def test_each_strategy_gives_back_to_the_system_what_it_let_go(bench: Bench) -> None:
    next(bench.ladder(Strategy("own", lambda: None)).run_all("test"))
    assert bench.machine.trims == 1


def test_two_of_one_name_are_refused_and_one_taken_back_makes_room(bench: Bench) -> None:
    ladder, first = bench.ladder(), Strategy("own", lambda: None)
    ladder.add(first)
    with pytest.raises(ConfigError, match="own"):
        ladder.add(Strategy("own", lambda: None))
    ladder.remove(first)
    ladder.add(Strategy("own", lambda: None))
    assert len(ladder.actions) == 1


def test_what_a_function_in_time_raises_or_returns_is_handed_on() -> None:
    assert in_time(lambda: 5, 20) == 5
    with pytest.raises(ValueError, match="no"):
        in_time(fail, 20)
    with pytest.raises(RuntimeError, match="SystemExit"):
        in_time(lambda: exec("raise SystemExit(3)"), 20)
    with pytest.raises(Hung):
        in_time(threading.Event().wait, 0.01)


# --- shedding ------------------------------------------------------------------------------------------------------


def test_a_cache_sheds_what_is_needed_and_no_more(bench: Bench) -> None:
    cache = Cache(100 * MIB)
    ladder = bench.ladder(Shed(cache, need=bench.need, clock=bench.clock))
    list(ladder.climb("test", enough=never, need_bytes=30 * MIB))
    assert cache.held_bytes == 70 * MIB
    list(ladder.run_all("test"))
    assert cache.held_bytes == 0


def test_slices_shrink_until_one_keeps_its_5_ms(bench: Bench) -> None:
    cache = Cache(100 * MIB, bench.clock, s_per_mib=0.02)
    list(bench.ladder(Shed(cache, need=bench.need, clock=bench.clock)).run_all("test"))
    assert cache.asked[0] == FIRST_SLICE_BYTES
    assert max(cache.lasted_s[3:]) <= SLICE_S
    assert cache.held_bytes == 0


def test_quick_slices_grow(bench: Bench) -> None:
    cache = Cache(1000 * MIB, bench.clock, s_per_mib=0.00001)
    list(bench.ladder(Shed(cache, need=bench.need, clock=bench.clock)).run_all("test"))
    assert len(cache.asked) < 20
    assert max(cache.lasted_s) <= SLICE_S


def test_a_cache_that_answers_nonsense_is_switched_off(bench: Bench) -> None:
    cache = Cache(10)
    cache.shed = lambda size_bytes: -1  # type: ignore[method-assign]
    ladder = bench.ladder(Shed(cache, need=bench.need, clock=bench.clock))
    assert "it says that it freed -1" in next(ladder.run_all("test")).error
    assert list(ladder.off()) == ["cache"]


def test_a_cache_that_is_dropped_is_not_kept(bench: Bench) -> None:
    cache = Cache(10)
    action = Shed(cache, need=bench.need, clock=bench.clock)
    ladder = bench.ladder(action)
    del cache
    gc.collect()
    assert action.idle()
    assert list(ladder.run_all("test")) == []


def test_the_tags_are_those_of_the_row() -> None:
    assert TAGS == {"metrics": (80, 0.80), "snapshots": (60, 0.85)}
    assert LONGEST_REST_S == 600
