"""Levels: up at once, down after the dwell, deaf to noise, awake to growth."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memwarden.facts import Level, Verdict
from memwarden.judge import Growth, Judge, Lines
from memwarden.testing import reading, replay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memwarden.facts import Reading

MIB = 1 << 20
LIMIT = 512 * MIB
PRESETS = (Lines(), Lines(warning=0.60, critical=0.75, emergency=0.90), Lines(warning=0.70, critical=0.85))
BORDERS = [(lines, lines.enter(level)) for lines in PRESETS for level in (1, 2, 3)]  # type: ignore[arg-type]


def at(ratio: float, t_s: float = 1000.0, *, limit: int = LIMIT, low: float | None = None) -> Reading:
    return reading(int(limit * ratio), limit, monotonic_s=t_s, low_bytes=None if low is None else int(limit * low))


def levels(judge: Judge, ratios: Iterable[float], *, step_s: float = 1.0, start_s: float = 0.0) -> list[Level]:
    made = (at(ratio, start_s + i * step_s) for i, ratio in enumerate(ratios))
    return [verdict.level for verdict in replay(judge, made)]


def changes_s(verdicts: Iterable[Verdict]) -> list[float]:
    return [new.reading.monotonic_s for old, new in pairwise(verdicts) if old.level != new.level]


def settled(judge: Judge, ratio: float, *, limit: int = LIMIT) -> float:
    """Twenty seconds at one value: warm, and no growth. Returns the time after."""
    for i in range(21):
        judge.weigh(at(ratio, float(i), limit=limit))
    return 21.0


# --- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [0.1, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("lines", "line"), BORDERS)
def test_noise_of_three_points_around_a_line_changes_the_level_once_in_30_s(
    lines: Lines, line: float, step_s: float
) -> None:
    for seed in range(4):
        noise = random.Random(seed)
        judge = Judge(lines)
        made = (at(line + noise.uniform(-0.03, 0.03), i * step_s) for i in range(int(200 / step_s)))
        when = changes_s(replay(judge, made))
        assert all(later - earlier >= 30 for earlier, later in pairwise(when)), (seed, when)
        assert len(when) <= 1, (seed, when)


@given(
    border=st.sampled_from(BORDERS),
    noise=st.lists(st.floats(-0.03, 0.03), min_size=10, max_size=60),
    step_s=st.sampled_from([0.1, 0.25, 1.0]),
)
def test_once_it_knows_the_noise_even_the_worst_row_of_it_changes_nothing(
    border: tuple[Lines, float], noise: list[float], step_s: float
) -> None:
    lines, line = border
    judge = Judge(lines)
    levels(judge, [line + 0.03, line - 0.03] * 15)
    verdicts = list(replay(judge, (at(line + each, 30.0 + i * step_s) for i, each in enumerate(noise))))
    assert changes_s(verdicts) == []


@given(ratios=st.lists(st.floats(0.0, 1.2), max_size=120), step_s=st.sampled_from([0.1, 0.3, 1.0, 4.0]))
def test_whatever_comes_a_level_falls_at_most_once_per_dwell(ratios: list[float], step_s: float) -> None:
    judge = Judge()
    verdicts = list(replay(judge, (at(ratio, i * step_s) for i, ratio in enumerate(ratios))))
    falls = [new.reading.monotonic_s for old, new in pairwise(verdicts) if new.level < old.level]
    assert all(later - earlier >= judge.lines.dwell_s for earlier, later in pairwise(falls))


# --- the machine of states -----------------------------------------------------------------------------------------


class Moods(RuleBasedStateMachine):
    """Any readings in any order; after each the level obeys the lines, and twins agree."""

    def __init__(self) -> None:
        super().__init__()
        self.judge, self.twin = Judge(), Judge()
        self.now_s = 0.0
        self.last: Verdict | None = None
        self.fallen_from: Level | None = None

    def weigh(self, made: Reading) -> None:
        old = self.last
        self.last = self.judge.weigh(made)
        assert self.twin.weigh(made) == self.last  # the same readings, the same verdicts
        self.fallen_from = old.level if old is not None and self.last.level < old.level else None

    @rule(ratio=st.floats(0.0, 1.3), share=st.floats(0.0, 1.0), step_s=st.floats(0.0, 20.0))
    def look(self, ratio: float, share: float, step_s: float) -> None:
        self.now_s += step_s
        self.weigh(at(ratio, self.now_s, low=ratio * share))

    @precondition(lambda self: self.last is not None)
    @rule(step_s=st.floats(0.0, 100.0))
    def unknown(self, step_s: float) -> None:
        before = self.last.level if self.last else Level.NORMAL
        self.now_s += step_s
        self.weigh(at(0.5, self.now_s).replace(used_bytes=None, pressure_ratio=None, headroom_bytes=None))
        assert self.last is not None
        assert self.last.level is before
        assert self.last.reasons[0].code == "unknown"

    @rule(back_s=st.floats(0.1, 1000.0), ratio=st.floats(0.0, 1.3))
    def time_goes_back(self, back_s: float, ratio: float) -> None:
        self.now_s -= back_s
        self.weigh(at(ratio, self.now_s))
        assert self.judge.growth.bytes_per_s == 0

    @invariant()
    def above_a_line_means_at_least_its_level(self) -> None:
        if self.last is None or self.last.reading.used_bytes is None:
            return
        upper, low = self.last.reading.usage_ratio or 0.0, self.last.reading.usage_low_ratio or 0.0
        for level, value in ((1, upper), (2, (upper + low) / 2), (3, low)):
            if value >= self.judge.lines.enter(Level(level)):
                assert self.last.level >= level

    @invariant()
    def what_is_not_normal_has_a_reason(self) -> None:
        if self.last is not None and self.last.level is Level.NORMAL and self.fallen_from is not None:
            assert (self.last.reading.usage_ratio or 0.0) < self.judge.lines.warning


TestMoods = Moods.TestCase
TestMoods.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- monotone ------------------------------------------------------------------------------------------------------


@given(
    past=st.lists(st.floats(0.0, 1.1), max_size=25),
    less=st.floats(0.0, 1.2),
    more=st.floats(0.0, 0.5),
    cache=st.floats(0.0, 0.3),
)
def test_from_the_same_past_more_used_never_gives_a_lower_level(
    past: list[float], less: float, more: float, cache: float
) -> None:
    one, other = Judge(), Judge()
    levels(one, past)
    levels(other, past)
    t_s = float(len(past))
    low = one.weigh(at(less, t_s, low=max(0.0, less - cache)))
    high = other.weigh(at(less + more, t_s, low=max(0.0, less + more - cache)))
    assert high.level >= low.level


@given(ratios=st.lists(st.floats(0.0, 1.2), max_size=60))
def test_a_replay_gives_the_same_verdicts(ratios: list[float]) -> None:
    made = [at(ratio, i * 0.7) for i, ratio in enumerate(ratios)]
    assert list(replay(Judge(), made)) == list(replay(Judge(), made))


# --- up and down ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "line"), BORDERS)
def test_up_at_once_and_down_after_the_dwell_below_the_leave_line(lines: Lines, line: float) -> None:
    judge = Judge(lines)
    level = Level([lines.enter(Level(i)) for i in range(4)].index(line))
    now_s = settled(judge, line - 0.01)
    assert judge.weigh(at(line - 0.001, now_s)).level == level - 1
    assert judge.weigh(at(line + 0.0001, now_s + 1)).level is level
    gap = lines.leave_gap
    assert {judge.weigh(at(line - gap + 0.001, now_s + 2 + i)).level for i in range(60)} == {level}
    down = [judge.weigh(at(line - gap - 0.001, now_s + 62 + i)).level for i in range(7)]
    assert down == [level] * 5 + [level - 1] * 2


def test_it_falls_no_deeper_than_it_was_quiet_all_the_dwell() -> None:
    judge = Judge()
    settled(judge, 0.97)
    quiet = [0.80, 0.80, 0.80, 0.80, 0.80, 0.10]
    assert levels(judge, quiet, start_s=21.0)[-1] is Level.WARNING
    assert levels(judge, [0.10] * 6, start_s=27.0)[-1] is Level.NORMAL


def test_a_moment_above_the_leave_line_starts_the_dwell_anew() -> None:
    judge = Judge()
    settled(judge, 0.80)
    found = levels(judge, [0.5, 0.5, 0.5, 0.5, 0.72, 0.5, 0.5, 0.5, 0.5, 0.5], start_s=21.0)
    assert set(found) == {Level.WARNING}


def test_the_verdict_says_since_when() -> None:
    judge = Judge()
    settled(judge, 0.5)
    assert judge.weigh(at(0.80, 30.0)).since_s == 30.0
    assert judge.weigh(at(0.81, 40.0)).since_s == 30.0


def test_a_changed_limit_is_judged_anew_at_once() -> None:
    judge = Judge()
    settled(judge, 0.97)
    judge.anew()
    assert judge.weigh(at(0.40, 22.0)).level is Level.NORMAL


# --- bounds --------------------------------------------------------------------------------------------------------


def test_a_container_full_of_file_cache_is_no_emergency() -> None:
    judge = Judge()
    verdicts = [judge.weigh(at(0.99, float(i), low=0.30)) for i in range(60)]
    assert {verdict.level for verdict in verdicts} == {Level.WARNING}


def test_one_full_of_objects_is_an_emergency() -> None:
    assert Judge().weigh(at(0.99, low=0.98)).level is Level.EMERGENCY


def test_where_the_lower_bound_is_unknown_the_upper_one_counts() -> None:
    made = at(0.97).replace(used_low_bytes=None)
    assert Judge().weigh(made).level is Level.EMERGENCY


def test_without_a_limit_there_is_no_level_and_a_reason() -> None:
    verdict = Judge().weigh(reading(100 * MIB, None))
    assert (verdict.level, verdict.reasons[0].code) == (Level.NORMAL, "unknown")


# --- the floor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "floor"),
    [(100 * MIB, 5 * MIB), (480 * MIB, 24 * MIB), (512 * MIB, 24 * MIB), (8192 * MIB, 24 * MIB)],
)
def test_less_left_than_24_mib_or_5_percent_is_an_emergency(limit: int, floor: int) -> None:
    lines = Lines(warning=0.90, critical=0.9985, emergency=0.999)

    def verdict(left: int) -> Verdict:
        return Judge(lines).weigh(reading(limit - left, limit))

    assert verdict(floor).level < Level.CRITICAL
    found = verdict(floor - MIB // 2)
    assert found.level is Level.EMERGENCY
    assert "floor" in {reason.code for reason in found.reasons}


def grow(judge: Judge, start: int, step: int, *, steps: int, start_s: float, limit: int, step_s: float = 0.25) -> float:
    for i in range(1, steps + 1):
        judge.weigh(reading(start + i * step, limit, monotonic_s=start_s + i * step_s))
    return start_s + steps * step_s


def test_the_floor_is_twice_the_largest_step_of_late() -> None:
    limit = 8192 * MIB
    judge = Judge(Lines(warning=0.90, critical=0.997, emergency=0.998))
    settled(judge, 0.25, limit=limit)
    end_s = grow(judge, limit // 4, 64 * MIB, steps=4, start_s=20.0, limit=limit)
    largest = judge.growth.largest_step_bytes
    assert largest == pytest.approx(64 * MIB, rel=0.3)

    judge.weigh(reading(int(limit * 0.5), limit, monotonic_s=end_s + 100))
    assert judge.weigh(reading(int(limit - 1.5 * largest), limit, monotonic_s=end_s + 100.3)).level is Level.EMERGENCY


def test_the_largest_step_halves_in_ten_minutes() -> None:
    growth = Growth()
    for i in range(60):
        growth.add(i * 0.25, i * MIB)
    largest = growth.largest_step_bytes
    assert largest == pytest.approx(MIB, rel=0.01)
    for i in range(1, 601):
        growth.add(14.75 + i, 59 * MIB)
    assert growth.largest_step_bytes == pytest.approx(largest / 2, rel=0.02)


@given(
    warning=st.floats(0.30, 0.96), used=st.floats(0.0, 1.0), limit=st.integers(8 * MIB, 1 << 40), step=st.floats(0, 1)
)
def test_the_floor_is_never_an_emergency_below_the_warning_line(
    warning: float, used: float, limit: int, step: float
) -> None:
    judge = Judge(Lines(warning=warning, critical=0.97, emergency=0.98, leave_gap=0.05))
    grow(judge, 0, int(limit * step / 60), steps=60, start_s=0.0, limit=limit)
    judge.weigh(reading(0, limit, monotonic_s=100.0))
    verdict = judge.weigh(reading(int(limit * used), limit, monotonic_s=101.0))
    if used < warning - 1e-6 and verdict.reading.used_bytes:
        assert "floor" not in {reason.code for reason in verdict.reasons}


# --- time to the limit ---------------------------------------------------------------------------------------------


def ramp(rate_bytes_s: int, *, start: int, seconds: int = 8, warm: bool = True) -> Verdict:
    """Steady, then growth at this rate, a reading a second, under a limit of 1 GiB."""
    judge, limit = Judge(), 1024 * MIB
    begin_s = settled(judge, start / limit, limit=limit) - 1 if warm else 0.0
    verdict = judge.weigh(reading(start, limit, monotonic_s=begin_s))
    for i in range(1, seconds + 1):
        verdict = judge.weigh(reading(start + i * rate_bytes_s, limit, monotonic_s=begin_s + i))
    return verdict


def test_a_minute_away_raises_one_level_and_ten_seconds_two() -> None:
    assert ramp(2 * MIB, start=560 * MIB).level is Level.NORMAL  # 224 s away
    assert ramp(10 * MIB, start=560 * MIB).level is Level.WARNING  # 38 s
    assert ramp(30 * MIB, start=520 * MIB).level is Level.CRITICAL  # 8.8 s
    assert ramp(30 * MIB, start=520 * MIB).reasons[-1].code == "time-to-limit"


def test_below_half_of_the_limit_time_raises_nothing() -> None:
    assert ramp(20 * MIB, start=340 * MIB).level is Level.NORMAL  # it ends at 500 of 1024 MiB, 26 s away


def test_a_start_burst_is_no_emergency() -> None:
    assert ramp(60 * MIB, start=100 * MIB, seconds=9, warm=False).level is Level.NORMAL  # at 640 MiB, 6 s away


@pytest.mark.parametrize(("seconds", "level"), [(1, Level.NORMAL), (2, Level.NORMAL), (3, Level.CRITICAL)])
def test_growth_counts_from_the_third_step_on(seconds: int, level: Level) -> None:
    assert ramp(60 * MIB, start=520 * MIB, seconds=seconds).level is level


def test_one_step_back_ends_it() -> None:
    growth = Growth()
    for i in range(20):
        growth.add(float(i), i * MIB)
    assert growth.bytes_per_s == pytest.approx(MIB)
    growth.add(20.0, 18 * MIB)
    assert growth.bytes_per_s == 0


def test_after_a_fall_it_takes_five_steps() -> None:
    growth = Growth()
    for i in range(20):
        growth.add(float(i), 100 * MIB)
    growth.add(20.0, 50 * MIB)
    rates = []
    for i in range(1, 7):
        growth.add(20.0 + i, 50 * MIB + i * 40 * MIB)
        rates.append(growth.bytes_per_s > 0)
    assert rates == [False] * 4 + [True] * 2


def test_what_was_reached_a_minute_ago_is_no_growth_and_what_was_forgotten_is() -> None:
    def climbs(later_s: float) -> bool:
        growth = Growth()
        for i in range(20):
            growth.add(float(i), 400 * MIB)
        for i in range(int(later_s) + 1):
            growth.add(20.0 + i, 200 * MIB)
        for i in range(1, 7):
            growth.add(20.0 + later_s + i, 200 * MIB + i * 20 * MIB)
        return growth.bytes_per_s > 0

    assert not climbs(20.0)
    assert climbs(150.0)


@pytest.mark.parametrize("gap_s", [30.5, 3600.0, -5.0, -500.0])
def test_a_gap_or_time_that_goes_back_is_no_growth(gap_s: float) -> None:
    growth = Growth()
    for i in range(20):
        growth.add(float(i), i * MIB)
    growth.add(19.0 + gap_s, 900 * MIB)
    assert growth.bytes_per_s == 0
    growth.add(20.0 + gap_s, 901 * MIB)
    growth.add(21.0 + gap_s, 902 * MIB)
    assert growth.bytes_per_s == 0  # the gap itself is none of the steps


def test_an_interval_of_30_s_is_no_gap_for_who_asked_for_it() -> None:
    growth = Growth(gap_s=75.0)
    for i in range(8):
        growth.add(i * 30.5, i * MIB)
    assert growth.bytes_per_s == pytest.approx(MIB / 30.5)


def test_another_quantity_is_no_growth() -> None:
    judge = Judge()
    settled(judge, 0.2)
    for i in range(3):
        judge.weigh(at(0.3 + i / 10, 21.0 + i).replace(scope="process" if i % 2 else "container"))
    assert judge.growth.bytes_per_s == 0
