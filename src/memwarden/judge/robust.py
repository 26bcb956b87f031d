"""Statistics that one wild value cannot move: medians, the Theil-Sen line, the Mann-Kendall test.

Pure and dependency-free: `statistics` would import random, fractions and decimal into the guarded process.
Points come as stretches (lists of points with no gap inside); pairs across a gap are never used, as in
Hirsch and Slack's seasonal form of the test (Water Resources Research 20, 1984).
"""

from __future__ import annotations

from math import erfc, inf, sqrt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Point = tuple[float, float]
    Stretches = Sequence[Sequence[Point]]

# A normal distribution's median absolute deviation is this much smaller than its standard deviation.
MAD_TO_SIGMA = 1.4826


def median(values: Sequence[float]) -> float:
    """The middle value; zero for none."""
    return quantile(sorted(values), 0.5)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile (0-1) of values already in order, interpolated; zero for none."""
    if not ordered:
        return 0.0
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def sigma(values: Sequence[float]) -> float:
    """The spread of values as a standard deviation, through the median absolute deviation."""
    middle = median(values)
    return MAD_TO_SIGMA * median([abs(value - middle) for value in values])


def slope(stretches: Stretches) -> float | None:
    """The Theil-Sen slope (Sen, JASA 63, 1968): the median slope of all pairs; None with fewer than two
    points.

    O(n^2) in points: callers give at most some 40.
    """
    slopes = [
        (y2 - y1) / (x2 - x1)
        for points in stretches
        for i, (x1, y1) in enumerate(points)
        for x2, y2 in points[i + 1 :]
        if x2 > x1
    ]
    return median(slopes) if slopes else None


def rising(stretches: Stretches) -> tuple[float, float]:
    """Mann-Kendall (Mann 1945, Kendall 1975): tau from -1 to 1, and the chance of at least so much by
    accident.

    One-sided, with the normal approximation, continuity and tie corrections. Values must be independent of
    one another to take the probability at its word; memory is not, so callers ask for an effect size too.
    """
    score, pairs, variance = 0, 0, 0.0
    for points in stretches:
        ys = [y for _, y in points]
        n = len(ys)
        for i, a in enumerate(ys):
            for b in ys[i + 1 :]:
                score += (b > a) - (b < a)
        pairs += n * (n - 1) // 2
        variance += (_ties(n) - sum(_ties(same) for same in _repeats(ys))) / 18
    if not pairs or variance <= 0:
        return (score / pairs if pairs else 0.0), 1.0
    return score / pairs, 0.5 * erfc((score - 1) / sqrt(2 * variance))


def _ties(n: int) -> float:
    return n * (n - 1) * (2 * n + 5)


def _repeats(values: Sequence[float]) -> list[int]:
    seen: dict[float, int] = {}
    for value in values:
        seen[value] = seen.get(value, 0) + 1
    return [count for count in seen.values() if count > 1]


def news(values: Sequence[float]) -> float:
    """How much each value tells beside its neighbours: 1 where all are independent, 0.05 at the least.

    One over the sum of autocorrelations up to six lags with Bartlett's weights (Newey and West,
    Econometrica 55, 1987), so that what goes up and soon down again, as the saw of a collector, does not
    count as lingering.
    """
    n, reach = len(values), min(6, len(values) // 4)
    mean = sum(values) / n if n else 0.0
    off = [value - mean for value in values]
    total = sum(v * v for v in off)
    if total <= 0:
        return 1.0
    lingering = 1.0
    for lag in range(1, reach + 1):
        together = sum(a * b for a, b in zip(off, off[lag:], strict=False))
        lingering += 2 * (1 - lag / (reach + 1)) * together / total
    return min(max(1 / lingering, 0.05), 1.0) if lingering > 0 else 1.0


def best_step(values: Sequence[float]) -> tuple[int, float]:
    """Where one jump between two constants fits best, and the squared error it leaves; O(n)."""
    n = len(values)
    total, squares = sum(values), sum(v * v for v in values)
    best, at, left = inf, 0, 0.0
    for k in range(1, n):
        left += values[k - 1]
        error = squares - left * left / k - (total - left) ** 2 / (n - k)
        if error < best:
            best, at = error, k
    return at, max(best, 0.0) if n > 1 else 0.0


def line_error(points: Sequence[Point]) -> float:
    """The squared error a least-squares line leaves."""
    n = len(points)
    if n < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    xx = sum((x - mean_x) ** 2 for x, _ in points)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    yy = sum((y - mean_y) ** 2 for _, y in points)
    return max(yy - xy * xy / xx, 0.0) if xx > 0 else yy
