from __future__ import annotations

from math import isfinite
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.judge.history import History
from memwarden.judge.trend import is_rapid, spikes, trend

MIB = 1 << 20
values = st.lists(st.integers(0, 1 << 36), min_size=1, max_size=120)


def series(seed: int, *, n: int = 360, slope: float = 0.0, noise: float = 1.0, saw: float = 0.0) -> list[float]:
    """MiB to bytes: 100 MiB plus a slope per sample, noise and the saw of a collector."""
    rng = Random(seed)
    return [(100 + slope * i + rng.gauss(0, noise) + saw * (i % 17) / 17) * MIB for i in range(n)]


@given(values)
def test_no_series_gives_a_figure_that_is_not_finite(samples: list[int]) -> None:
    found = trend(History.of(range(len(samples)), samples))
    for figure in (found.average_bytes, found.peak_bytes, found.growth_bytes_per_minute, found.window_s):
        assert figure is None or isfinite(figure)


@given(st.integers(0, 1 << 40), st.integers(1, 400))
def test_a_constant_series_neither_increases_nor_spikes(value: int, n: int) -> None:
    found = trend(History.of(range(n), [value] * n))
    assert not found.increasing
    assert found.spikes == 0
    assert found.growth_bytes_per_minute in (None, 0)
    assert found.average_bytes == pytest.approx(value)


@given(values, st.integers(0, 10**9))
def test_shifting_time_changes_nothing(samples: list[int], shift: int) -> None:
    here = trend(History.of(range(len(samples)), samples))
    there = trend(History.of(range(shift, shift + len(samples)), samples))
    assert there.growth_bytes_per_minute == pytest.approx(here.growth_bytes_per_minute)
    assert (there.increasing, there.spikes, there.peak_bytes) == (
        here.increasing,
        here.spikes,
        here.peak_bytes,
    )


@given(values, st.sampled_from([2, 4, 64, 1024]))
def test_scaling_memory_scales_growth(samples: list[int], factor: int) -> None:
    small = trend(History.of(range(len(samples)), samples))
    large = trend(History.of(range(len(samples)), [value * factor for value in samples]))
    assert (large.increasing, large.spikes) == (small.increasing, small.spikes)
    if small.growth_bytes_per_minute is not None:
        assert large.growth_bytes_per_minute == pytest.approx(small.growth_bytes_per_minute * factor)


@pytest.mark.parametrize("saw", [0.0, 20.0])
def test_growth_is_measured_through_noise_and_collections(saw: float) -> None:
    # 0.1 MiB a sample at one sample in 5 s is 1.2 MiB a minute.
    for seed in range(10):
        found = trend(History.of(range(0, 1800, 5), series(seed, slope=0.1, saw=saw)))
        assert found.increasing
        assert found.growth_bytes_per_minute == pytest.approx(1.2 * MIB, rel=0.1)


@pytest.mark.parametrize("saw", [0.0, 20.0])
def test_noise_and_collections_alone_are_not_increasing(saw: float) -> None:
    increasing = [
        seed for seed in range(100) if trend(History.of(range(360), series(seed, noise=2, saw=saw))).increasing
    ]
    assert len(increasing) <= 1


def test_a_step_is_not_growth() -> None:
    found = trend(History.of(range(360), series(1, n=180) + [v + 80 * MIB for v in series(2, n=180)]))
    assert not found.increasing
    assert found.growth_bytes_per_minute == pytest.approx(0, abs=0.5 * MIB)


def test_warming_up_and_then_flat_is_not_increasing() -> None:
    warm = [v * min(1.0, 0.3 + i / 60) for i, v in enumerate(series(3))]
    assert not trend(History.of(range(360), warm)).increasing


def test_what_lies_between_the_ends_of_a_gap_is_not_growth() -> None:
    before, after = series(1, n=100), [v + 300 * MIB for v in series(2, n=100)]
    times = [*range(100), *range(20_000, 20_100)]
    found = trend(History.of(times, before + after, window_s=36_000, interval_s=1.0))
    assert not found.increasing
    assert abs(found.growth_bytes_per_minute or 0) < MIB


def test_the_average_is_over_time_and_not_over_samples() -> None:
    # Half the time at 100 MiB looked at once a second, half at 200 MiB looked at 50 times a second.
    times = [float(t) for t in range(100)] + [100 + i / 50 for i in range(5000)]
    found = trend(History.of(times, [100.0 * MIB] * 100 + [200.0 * MIB] * 5000, interval_s=1.0))
    assert found.average_bytes == pytest.approx(150 * MIB, rel=0.02)


def test_the_average_of_a_steady_recording_is_the_plain_mean() -> None:
    samples = series(5, n=1000, slope=0.2)
    found = trend(History.of([i * 0.25 for i in range(1000)], samples))
    assert found.average_bytes == pytest.approx(sum(samples) / 1000, rel=1e-6)


def test_the_window_says_what_was_really_covered() -> None:
    history = History.of(range(60), [MIB] * 60)
    assert trend(history).window_s == 59
    assert trend(history, 30).window_s == pytest.approx(30, abs=5)
    assert trend(History()).samples == 0


def test_growth_is_rapid_only_after_a_minute_of_it() -> None:
    history = History()
    seen = []
    for i in range(120):
        history.add(i, (100 + i) * MIB)  # 60 MiB a minute
        seen.append(is_rapid(history))
    assert not any(seen[:60])
    assert all(seen[66:])


def test_growth_below_the_line_is_not_rapid() -> None:
    assert not is_rapid(History.of(range(300), [(100 + i / 2) * MIB for i in range(300)]))


def test_each_burst_is_one_spike_with_its_height_and_duration() -> None:
    samples = series(4, noise=0.5, slope=0.05)
    for start in (50, 151, 300):
        for i in range(start, start + 4):
            samples[i] += 60 * MIB
    found = spikes(range(360), samples)
    assert [spike.start_s for spike in found] == [50, 151, 300]
    assert all(spike.duration_s == 3 for spike in found)
    assert all(spike.above_bytes == pytest.approx(60 * MIB, rel=0.1) for spike in found)


@pytest.mark.parametrize("shape", ["saw", "stairs", "ramp", "step"])
def test_what_is_no_burst_is_no_spike(shape: str) -> None:
    shapes: dict[str, list[float]] = {
        "saw": [(100 + 20 * (i % 17) / 17) * MIB for i in range(360)],
        "stairs": [(100 + 30 * (i // 40)) * MIB for i in range(360)],
        "ramp": [(10 + i) * MIB for i in range(360)],
        "step": [(100 if i < 200 else 300) * MIB for i in range(360)],
    }
    assert spikes(range(360), shapes[shape]) == []
