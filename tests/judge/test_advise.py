from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.facts import Forecast, Trend
from memwarden.judge.advise import ROUND_BYTES, recommendations, recommended_limit

MIB = 1 << 20
FLAT = Forecast(reason="memory is not growing")


def seen(peak: int, *, growth: float = 0.0, increasing: bool = False, spikes: int = 0) -> Trend:
    return Trend(
        window_s=600.0,
        samples=600,
        average_bytes=peak * 0.8 * MIB,
        peak_bytes=peak * MIB,
        growth_bytes_per_minute=growth * MIB,
        increasing=increasing,
        spikes=spikes,
    )


@given(st.lists(st.integers(0, 1 << 45), min_size=1), st.integers(0, 1 << 45), st.booleans())
def test_the_limit_holds_everything_seen_and_is_round(peaks: list[int], highest: int, killed: bool) -> None:
    limit = recommended_limit(peaks, highest_bytes=highest, oom_killed=killed)
    assert limit is not None
    assert limit > 0
    assert limit % ROUND_BYTES == 0
    assert limit >= max(*peaks, highest)


@pytest.mark.parametrize(
    ("peaks", "highest", "killed", "expected"),
    [
        ([100] * 40, 100, False, 128),  # 115 rounded up
        ([100] * 40, 200, False, 224),  # a start-up peak still fits
        ([400] * 40, 400, True, 512),  # after a kill: + 100 MB beats + 20 %
        ([1000] * 40, 1000, True, 1200),  # and here + 20 % wins
        ([100] * 100 + [300], 300, False, 320),  # one burst in a hundred is over the quantile and still fits
    ],
)
def test_the_recommended_limit_follows_the_rule(peaks: list[int], highest: int, killed: bool, expected: int) -> None:
    found = recommended_limit([p * MIB for p in peaks], highest_bytes=highest * MIB, oom_killed=killed)
    assert found == expected * MIB


def test_without_peaks_there_is_no_recommendation() -> None:
    assert recommended_limit([]) is None
    empty = Trend(window_s=0.0, samples=0)
    assert recommendations(empty, FLAT, limit_bytes=None, recommended_bytes=None) == (
        "no memory was measured: record some minutes of it first",
    )


@pytest.mark.parametrize(
    ("trend", "forecast", "limit", "first"),
    [
        (seen(200), FLAT, 300, "memory is stable"),
        (seen(290), FLAT, 300, "limit is too small for this workload: it peaked at 290 MiB of 300 MiB"),
        (
            seen(200, growth=3, increasing=True),
            Forecast(seconds_to_limit=600.0, low_s=500.0, high_s=700.0),
            300,
            "memory grows by 3 MiB a minute: the limit of 300 MiB is reached in about 10 min",
        ),
        (
            seen(200, growth=3, increasing=True),
            Forecast(reason="no limit is known"),
            None,
            "memory grows by 3 MiB a minute: no limit is known",
        ),
        (
            seen(200, growth=3, increasing=True),
            Forecast(reason="growth is slowing down: it levels off near 210 MiB, below the limit"),
            300,
            "memory settles: growth is slowing down: it levels off near 210 MiB",
        ),
        (seen(200), Forecast(reason="series is a step and not growth"), 300, "memory took one step up"),
        (seen(200), Forecast(reason="too few samples: 3 of 10"), 300, "too few samples"),
        (
            seen(300, growth=3, increasing=True),
            Forecast(seconds_to_limit=0.0, low_s=0.0, high_s=0.0, reason="the limit is already reached"),
            300,
            "the limit of 300 MiB is reached: shed load",
        ),
    ],
)
def test_the_first_sentence_fits_the_state(trend: Trend, forecast: Forecast, limit: int | None, first: str) -> None:
    words = recommendations(trend, forecast, limit_bytes=limit and limit * MIB, recommended_bytes=336 * MIB)
    assert words[0].startswith(first)


def test_a_limit_far_above_the_need_could_be_lowered() -> None:
    words = recommendations(seen(100), FLAT, limit_bytes=1024 * MIB, recommended_bytes=128 * MIB)
    assert words[1].startswith("far below the limit: it peaked at 100 MiB of 1 GiB; the limit could be lowered to 128")


def test_without_a_limit_one_is_proposed() -> None:
    words = recommendations(seen(100), FLAT, limit_bytes=None, recommended_bytes=128 * MIB)
    assert words[1].startswith("no limit is known: 128 MiB would fit this workload")


def test_spikes_are_named() -> None:
    words = recommendations(seen(200, spikes=2), FLAT, limit_bytes=300 * MIB, recommended_bytes=240 * MIB)
    assert words[-1].startswith("2 spikes above the usual level")
