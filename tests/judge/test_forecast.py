from __future__ import annotations

from math import exp, isfinite
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.judge.forecast import forecast
from memwarden.judge.history import History

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def grown(rng: Random, *, saw: bool, memory: float) -> tuple[History, float, float, float] | None:
    """A process that grows linearly under noise, watched up to a moment; and when it really touched its
    limit.

    Returns the history, the limit, the last time watched and the seconds from there to the first touch;
    None where the limit was touched while it was watched.
    """
    base = rng.uniform(60, 300) * MIB
    n, interval_s = rng.choice([80, 120, 240, 360]), rng.choice([1.0, 5.0, 15.0])
    rise = rng.uniform(0.1, 0.8) * base
    noise = min(rng.choice([0.002, 0.005, 0.01, 0.02]) * base, rise / 6)
    tooth, period = (rng.uniform(0.02, 0.15) * base if saw else 0.0), rng.uniform(6, 40)
    limit = base + rise * rng.uniform(1.2, 4)
    times: list[float] = []
    values: list[float] = []
    lingering = 0.0
    for i in range(100 * n):
        lingering = memory * lingering + rng.gauss(0, noise) * (1 - memory * memory) ** 0.5
        value = base + rise * i / n + lingering + tooth * ((i / period) % 1)
        if value >= limit:
            if i < n:
                return None
            history = History.of(times, values, window_s=times[-1] + 1, interval_s=interval_s)
            return history, limit, times[-1], i * interval_s - times[-1]
        if i < n:
            times.append(i * interval_s)
            values.append(value)
    raise AssertionError("growth without end")


@pytest.mark.parametrize(("saw", "memory"), [(False, 0.0), (True, 0.0), (False, 0.6), (True, 0.6)])
def test_the_interval_holds_the_truth_eight_times_in_ten(saw: bool, memory: float) -> None:
    rng = Random(5)
    inside = judged = 0
    while judged < 300:
        case = grown(rng, saw=saw, memory=memory)
        if case is None:
            continue
        history, limit, now_s, truth_s = case
        found = forecast(history, int(limit), now_s)
        if found.low_s is None or found.high_s is None:
            continue
        judged += 1
        inside += found.low_s <= truth_s <= found.high_s
    assert 0.70 <= inside / judged <= 0.90


def test_the_median_is_near_the_truth() -> None:
    rng = Random(7)
    early = late = 0
    while early + late < 300:
        case = grown(rng, saw=False, memory=0.0)
        if case is None:
            continue
        found = forecast(case[0], int(case[1]), case[2])
        assert found.seconds_to_limit is not None
        early += found.seconds_to_limit <= case[3]
        late += found.seconds_to_limit > case[3]
    assert 0.35 <= early / (early + late) <= 0.65


@given(
    st.lists(st.integers(0, 1 << 36), max_size=120),
    st.none() | st.integers(0, 1 << 37),
    st.floats(0, 1e6),
)
def test_every_answer_is_a_whole_interval_in_order_or_a_reason(
    samples: list[int], limit: int | None, later_s: float
) -> None:
    found = forecast(History.of(range(len(samples)), samples), limit, len(samples) + later_s)
    answer = (found.low_s, found.seconds_to_limit, found.high_s)
    if found.seconds_to_limit is None:
        assert answer == (None, None, None)
        assert found.reason
    else:
        low_s, middle_s, high_s = (value if value is not None else -1.0 for value in answer)
        assert all(isfinite(value) for value in (low_s, middle_s, high_s))
        assert 0 <= low_s <= middle_s <= high_s


@given(st.integers(0, 10**8), st.sampled_from([1, 2, 8]))
def test_time_shift_and_scale_do_not_change_the_answer(shift: int, factor: int) -> None:
    rng = Random(3)
    values = [int((100 + 0.2 * i + rng.gauss(0, 2)) * MIB) for i in range(200)]
    here = forecast(History.of(range(200), values), 300 * MIB, 200)
    there = forecast(
        History.of(range(shift, shift + 200), [v * factor for v in values]), 300 * MIB * factor, shift + 200
    )
    assert there.seconds_to_limit == pytest.approx(here.seconds_to_limit, rel=1e-3)
    assert there.high_s == pytest.approx(here.high_s, rel=1e-3)


def steady(shape: str) -> list[float]:
    rng = Random(11)
    levels: dict[str, Callable[[int], float]] = {
        "flat": lambda i: 100.0,
        "step": lambda i: 100.0 if i < 170 else 160.0,
        "cache": lambda i: 100 + 80 * (1 - exp(-i / 70)),
        "grows": lambda i: 100 + 0.2 * i,
        "shrinks": lambda i: 200 - 0.2 * i,
    }
    return [(levels[shape](i) + rng.gauss(0, 1)) * MIB for i in range(300)]


@pytest.mark.parametrize(
    ("shape", "limit", "reason"),
    [
        ("flat", 512, "memory is not growing"),
        ("shrinks", 512, "memory is not growing"),
        ("step", 512, "series is a step and not growth"),
        ("cache", 512, "growth is slowing down: it levels off near"),
        ("grows", None, "no limit is known"),
    ],
)
def test_a_refusal_says_why(shape: str, limit: int | None, reason: str) -> None:
    found = forecast(History.of(range(300), steady(shape)), limit and limit * MIB, 300)
    assert found.seconds_to_limit is None
    assert found.reason.startswith(reason)


def test_growth_after_a_step_is_forecast_from_after_the_step() -> None:
    rng = Random(5)
    low = [(100 + rng.gauss(0, 1)) * MIB for _ in range(100)]
    high = [(300 + 0.3 * i + rng.gauss(0, 1)) * MIB for i in range(200)]
    found = forecast(History.of(range(300), low + high), 480 * MIB, 300)
    assert found.seconds_to_limit == pytest.approx(400, rel=0.1)  # at 360 MiB, by 0.3 MiB a second


def test_slowing_growth_that_still_reaches_the_limit_is_forecast() -> None:
    # It tends to 180 MiB and stands at 179: a limit of 171 is passed, one of 300 never comes.
    samples = [(100 + 80 * (1 - exp(-i / 150))) * MIB for i in range(300)]
    history = History.of(range(300), samples)
    assert forecast(history, 175 * MIB, 300).seconds_to_limit is not None
    assert forecast(history, 300 * MIB, 300).seconds_to_limit is None


def test_the_level_it_tends_to_is_near_the_true_one() -> None:
    reason = forecast(History.of(range(300), steady("cache")), 512 * MIB, 300).reason
    level = float(reason.split("near ")[1].split(" MiB")[0])
    assert 170 <= level <= 190  # it tends to 180


def test_few_samples_are_refused() -> None:
    assert forecast(History.of(range(5), [MIB] * 5), 2 * MIB, 5).reason.startswith("too few samples")
    assert forecast(History(), 2 * MIB, 5).reason.startswith("too few samples")


def test_at_the_limit_the_answer_is_now() -> None:
    found = forecast(History.of(range(50), [MIB * (i + 1) for i in range(50)]), 50 * MIB, 50)
    assert (found.seconds_to_limit, found.low_s, found.high_s) == (0, 0, 0)
    assert found.reason == "the limit is already reached"


def test_growth_that_needs_years_is_not_in_sight() -> None:
    history = History.of(range(300), [(100 + 0.02 * i) * MIB for i in range(300)])
    assert "not in sight" in forecast(history, 1 << 44, 300).reason


def test_a_perfect_line_is_forecast_exactly() -> None:
    found = forecast(History.of(range(300), [(100 + i) * MIB for i in range(300)]), 500 * MIB, 299)
    assert found.seconds_to_limit == pytest.approx(101, rel=0.01)


def test_looking_later_leaves_less_time() -> None:
    history = History.of(range(300), steady("grows"))
    first = forecast(history, 300 * MIB, 300).seconds_to_limit or 0
    later = forecast(history, 300 * MIB, 400).seconds_to_limit or 0
    assert first - later == pytest.approx(100, rel=0.05)
