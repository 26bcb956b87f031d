from __future__ import annotations

import sys
from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.judge.history import History

MIB = 1 << 20
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 1 << 62)


@given(st.lists(st.tuples(numbers, numbers), max_size=300), st.integers(1, 40))
def test_any_numbers_at_all_keep_time_monotone_and_memory_bounded(
    samples: list[tuple[float, float]], room: int
) -> None:
    history = History(60.0, buckets=room)
    for t_s, value in samples:
        history.add(t_s, value)
    found = history.buckets(inf)
    assert len(history) <= room
    for before, after in pairwise(found):
        assert before.first_s <= before.last_s <= after.first_s
    for bucket in found:
        assert bucket.first_s <= bucket.low_at_s <= bucket.last_s
        assert bucket.first_s <= bucket.high_at_s <= bucket.last_s
        assert 0 <= bucket.low_bytes <= bucket.high_bytes < inf


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200))
def test_nothing_is_lost_while_the_window_holds_it(values: list[int]) -> None:
    history = History.of(range(len(values)), values, window_s=400.0)
    buckets = history.buckets()
    assert sum(b.count for b in buckets) == len(values)
    assert sum(b.sum_bytes for b in buckets) == sum(values)
    assert max(b.high_bytes for b in buckets) == max(values)
    assert min(b.low_bytes for b in buckets) == min(values)


def test_a_year_of_samples_weighs_no_more_than_an_hour() -> None:
    def weight(history: History) -> int:
        return sum(sys.getsizeof(getattr(history, name)) for name in ("_first", "_low", "_sum", "_count"))

    history = History(interval_s=15.0)
    for i in range(240):
        history.add(i * 15.0, MIB)
    hour = weight(history)
    for i in range(240, 50_000):
        history.add(i * 15.0, MIB)
    assert len(history) == 360
    assert weight(history) <= 1.6 * hour  # from 240 buckets to the full 360, and then no more
    assert history.buckets()[0].first_s >= 49_999 * 15.0 - 1800


def test_a_long_silence_is_a_gap_and_starts_a_new_stretch() -> None:
    history = History.of([*range(20), *range(8000, 8020)], [MIB] * 40, window_s=36000, interval_s=1.0)
    assert history.gaps == 1
    assert {b.stretch for b in history.buckets()} == {0, 1}


def test_a_slower_rhythm_is_one_gap_and_then_the_new_rhythm() -> None:
    history = History.of([*range(20), *range(100, 1000, 60)], [MIB] * 35)
    assert history.gaps == 1


def test_polling_fast_under_pressure_and_slowly_again_is_no_gap() -> None:
    times = [0.0, 15.0, 30.0]
    times += [30 + i * 0.01 for i in range(1, 500)]
    times += [35 + 15.0 * i for i in range(1, 10)]
    assert History.of(times, [MIB] * len(times), interval_s=15.0).gaps == 0


def test_a_sample_a_little_late_is_refused_and_counted() -> None:
    history = History.of([0, 1, 2, 1.5, 3], [MIB] * 5)
    assert history.refused == 1
    assert history.last_s == 3


def test_a_clock_set_back_by_an_hour_starts_anew() -> None:
    history = History.of([3600, 3601, 3602, 5, 6], [10 * MIB] * 3 + [MIB] * 2)
    assert [(b.first_s, b.high_bytes, b.count) for b in history.buckets()] == [(5, MIB, 2)]


@pytest.mark.parametrize(("t_s", "value"), [(nan, 1.0), (inf, 1.0), (1.0, nan), (1.0, inf), (1.0, -1.0)])
def test_what_is_no_number_is_counted_and_changes_nothing(t_s: float, value: float) -> None:
    history = History()
    history.add(t_s, value)
    assert (len(history), history.refused, history.last_s) == (0, 1, None)


def test_clear_forgets_everything() -> None:
    history = History.of([1, 2], [3, 4])
    history.clear()
    assert (len(history), history.buckets(), history.last_s) == (0, [], None)


@pytest.mark.parametrize(("window_s", "buckets"), [(0.0, 10), (-1.0, 10), (nan, 10), (inf, 10), (10.0, 0)])
def test_a_window_that_is_none_is_refused(window_s: float, buckets: int) -> None:
    with pytest.raises(ValueError, match="needs a window"):
        History(window_s, buckets=buckets)


def test_what_is_older_can_be_let_go_and_the_rest_stays_as_it_was() -> None:
    history = History(100.0, buckets=20)
    for second in range(300):
        history.add(float(second + (1000 if second > 280 else 0)), float(second % 7))
    kept = [each for each in history.buckets() if each.first_s >= (history.last_s or 0) - 15]
    older = history.older(15.0)
    assert older > 0
    assert history.forget_older(15.0) == older
    assert history.buckets() == kept
    assert (history.older(15.0), history.forget_older(15.0)) == (0, 0)
    history.add(1300.0, 5.0)
    assert history.last_s == 1300.0
    assert history.gaps == 1


def test_an_empty_history_has_nothing_to_let_go() -> None:
    assert (History().older(1.0), History().forget_older(1.0)) == (0, 0)
