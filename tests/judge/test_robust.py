from __future__ import annotations

from random import Random

import pytest

from memwarden.judge import robust


def test_the_slope_ignores_a_wild_value() -> None:
    points = [(float(x), 3.0 * x) for x in range(20)]
    points[7] = (7.0, 1e9)
    assert robust.slope([points]) == pytest.approx(3.0)


def test_pairs_across_a_gap_are_not_used() -> None:
    flat = [(float(x), 1.0) for x in range(5)]
    higher = [(x + 100.0, 50.0) for x, _ in flat]
    assert robust.slope([flat, higher]) == 0
    assert robust.rising([flat, higher])[0] == 0


def test_the_slope_of_one_point_is_unknown() -> None:
    assert robust.slope([[(1.0, 1.0)]]) is None
    assert robust.slope([]) is None


def test_kendall_agrees_with_the_tables() -> None:
    # n = 10, S = 45: the exact one-sided probability is 1/10!, the normal approximation gives 4.2e-5.
    tau, p = robust.rising([[(float(x), float(x)) for x in range(10)]])
    assert tau == 1
    assert p == pytest.approx(4.16e-5, rel=0.02)


def test_all_ties_are_no_evidence() -> None:
    assert robust.rising([[(float(x), 5.0) for x in range(10)]]) == (0.0, 1.0)


def test_the_best_step_is_found_where_it_is() -> None:
    at, error = robust.best_step([1.0] * 6 + [5.0] * 4)
    assert at == 6
    assert error == pytest.approx(0, abs=1e-9)


def test_quantiles_are_interpolated() -> None:
    assert robust.quantile([0.0, 10.0], 0.25) == 2.5
    assert robust.median([]) == 0


def test_values_that_linger_tell_less_than_independent_ones() -> None:
    rng = Random(1)
    independent = [rng.gauss(0, 1) for _ in range(400)]
    lingering = [sum(independent[i : i + 8]) for i in range(390)]
    assert robust.news(independent) > 0.7
    assert robust.news(lingering) < 0.3
    assert robust.news([2.0] * 9) == 1
    assert robust.news([]) == 1
