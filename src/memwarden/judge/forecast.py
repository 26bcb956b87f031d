"""When the limit will be reached: a median with a 10-90 % interval, or an honest refusal in words.

What counts is the first touch, because the kernel kills at the first touch. So the line is laid through the
peaks of the window's slices (Theil-Sen), and the answer is the distribution of its first passage: for 15
lines between which the slope is uncertain, the chance that some slice's peak has crossed, with the peaks'
own scatter as seen. That is computed and not drawn, hence the same input always gives the same answer.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from math import sqrt

from memwarden.facts import Fact, Forecast
from memwarden.judge import robust
from memwarden.judge.trend import is_increasing, residuals, slices_of, step_at
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.judge.history import Bucket, History
    from memwarden.judge.trend import Slice

    Point = tuple[float, float]

LEAST_SLICES = 10
# Past a week nothing that was seen in half an hour still holds (Precog, arXiv 2101.09799, stops there too).
HORIZON_S = 7 * 86400.0

# Three thirds of the window: where the second rise is less than this share of the first, growth is slowing
# down, and Aitken's delta-squared gives the level it tends to; above its inverse, growth gathers pace.
SLOWING = 0.6

# The middles of 15 equal shares of a normal distribution: the lines among which the true one lies.
_NORMAL_15 = (
    -1.8339, -1.2816, -0.9674, -0.7279, -0.5244, -0.3407, -0.1679, 0.0,
    0.1679, 0.3407, 0.5244, 0.7279, 0.9674, 1.2816, 1.8339,
)  # fmt: skip
# Steps of time over which the chance of a first touch is spread, and the chance that is as good as none.
_STEPS = 60
_GONE = 1e-4


class Line(Fact):
    """The line through the peaks, how uncertain its slope and its middle are, and the scatter around it."""

    middle_s: float
    middle_bytes: float
    slope: float
    slope_error: float
    middle_error: float
    scatter: tuple[float, ...]
    step_s: float


def forecast(history: History, limit_bytes: int | None, now_s: float, *, window_s: float | None = None) -> Forecast:
    """Seconds from `now_s` (the clock of the history) until memory first touches the limit."""
    buckets = history.buckets(window_s)
    if buckets and limit_bytes is not None and buckets[-1].high_bytes >= limit_bytes:
        return Forecast(seconds_to_limit=0.0, low_s=0.0, high_s=0.0, reason="the limit is already reached")
    recent = _since_step(buckets)
    slices = slices_of(recent) if recent else []
    refusal = _refusal(slices, limit_bytes)
    if refusal and len(recent) < len(buckets):
        refusal = "series is a step and not growth"
    if refusal or limit_bytes is None:
        return Forecast(reason=refusal or "no limit is known")
    return _passage(_line(_latest_pace(recent, slices)), limit_bytes, now_s)


def _since_step(buckets: list[Bucket]) -> list[Bucket]:
    """What came after the one jump that explains the series better than a line; else all of it."""
    if not buckets:
        return buckets
    slices = slices_of(buckets)
    since_s = slices[step_at(slices)].first_s
    return [bucket for bucket in buckets if bucket.first_s >= since_s]


def _refusal(slices: Sequence[Slice], limit_bytes: int | None) -> str:
    """Why nothing can be forecast, in words; empty where something can."""
    if len(slices) < LEAST_SLICES:
        return f"too few samples: {len(slices)} of the {LEAST_SLICES} needed stretches of time"
    tends_to = levels_off_at(slices)
    if tends_to is not None and (limit_bytes is None or tends_to < limit_bytes):
        below = "" if limit_bytes is None else ", below the limit"
        return f"growth is slowing down: it levels off near {format_bytes(tends_to)}{below}"
    if not is_increasing(slices):
        return "memory is not growing"
    return ""


def levels_off_at(slices: Sequence[Slice]) -> float | None:
    """The level that slowing growth tends to; None where it does not, or noise hides it."""
    first, second, noise = _rises(slices)
    if first <= 0 or second >= SLOWING * first or first - second < 3 * noise:
        return None
    third = robust.median([piece.mean_bytes for piece in slices[-(len(slices) // 3) :]])
    if second <= 0:
        return third
    return third + second * second / (first - second)


def _rises(slices: Sequence[Slice]) -> tuple[float, float, float]:
    """From the first third to the second, from there to the last, and the noise of such a difference."""
    size = len(slices) // 3
    means = [piece.mean_bytes for piece in slices]
    one, two, three = (robust.median(part) for part in (means[:size], means[size:-size], means[-size:]))
    steps = [b - a for a, b in pairwise(means)]
    return two - one, three - two, robust.sigma(steps) * sqrt(3.0 / size)


def _latest_pace(buckets: Sequence[Bucket], slices: Sequence[Slice]) -> Sequence[Slice]:
    """All slices where the pace is steady; the later half, cut finer, where it changed."""
    first, second, noise = _rises(slices)
    steady = abs(second - first) < 3 * noise or SLOWING * first <= second <= first / SLOWING
    half = slices_of(buckets[len(buckets) // 2 :])
    return slices if steady or len(half) < LEAST_SLICES else half


def _line(slices: Sequence[Slice]) -> Line:
    stretches: dict[int, list[Point]] = {}
    for piece in slices:
        stretches.setdefault(piece.stretch, []).append((piece.high_at_s, piece.high_bytes))
    growth = robust.slope(list(stretches.values())) or 0.0
    scatter = residuals(list(stretches.values()), growth)
    last = stretches[slices[-1].stretch]
    middle_s = sum(x for x, _ in last) / len(last)
    around = robust.median([y - growth * (x - middle_s) for x, y in last])
    worth = robust.news(scatter)
    spread = sqrt(sum(_spread(points) for points in stretches.values()) * worth)
    # Two figures, the slope and the middle, were taken from what the scatter is worth in independent points.
    freedom = max(len(scatter) * worth - 2, 1.0)
    noise = sqrt(sum(r * r for r in scatter) * worth / freedom)
    return Line(
        middle_s=middle_s,
        middle_bytes=around,
        slope=growth,
        slope_error=noise / spread if spread > 0 else 0.0,
        middle_error=noise / sqrt(len(last) * worth),
        scatter=tuple(sorted(scatter)),
        step_s=(slices[-1].last_s - slices[0].first_s) / len(slices),
    )


def _spread(points: Sequence[Point]) -> float:
    mean = sum(x for x, _ in points) / len(points)
    return sum((x - mean) ** 2 for x, _ in points)


def _passage(line: Line, limit_bytes: int, now_s: float) -> Forecast:
    """The distribution of the first touch over all lines, as its median and 10-90 % interval."""
    shares: list[tuple[float, float, float]] = []
    for z in _NORMAL_15:
        shares += _one_passage(line, z, limit_bytes, now_s)
    shares.sort()
    low_s, middle_s, high_s = (_when(shares, q * len(_NORMAL_15)) for q in (0.1, 0.5, 0.9))
    if low_s is None or middle_s is None or high_s is None or middle_s > HORIZON_S:
        return Forecast(reason="growth is too slow or too uncertain: the limit is not in sight within 7 days")
    return Forecast(seconds_to_limit=middle_s, low_s=low_s, high_s=high_s)


def _one_passage(line: Line, z: float, limit_bytes: int, now_s: float) -> list[tuple[float, float, float]]:
    """For one line: steps of time as (end, begin, chance that the first touch falls in it), from now on."""
    slope = line.slope + z * line.slope_error
    if slope <= 0:
        return []
    level = line.middle_bytes + z * line.middle_error
    touch_s = line.middle_s + (limit_bytes - level) / slope - now_s
    # Only while the line is within the scatter of the limit can anything happen.
    begin_s = max(touch_s - line.scatter[-1] / slope, 0.0)
    end_s = max(touch_s - line.scatter[0] / slope, begin_s)
    step_s = (end_s - begin_s) / _STEPS
    if step_s <= 0:
        return [(begin_s, begin_s, 1.0)]
    shares, alive, many = [], 1.0, len(line.scatter)
    for k in range(_STEPS + 1):
        t_s = begin_s + k * step_s
        room = (touch_s - t_s) * slope  # what the scatter may take before the limit is touched
        # The scatter is that of whole slices; a shorter time has as much less chance to hold a peak.
        survives = (bisect_left(line.scatter, room) / many) ** (step_s / line.step_s) if k < _STEPS else 0.0
        if survives < 1:
            shares.append((t_s, max(t_s - step_s, 0.0), alive * (1 - survives)))
            alive *= survives
        if alive < _GONE:
            break
    return shares


def _when(shares: list[tuple[float, float, float]], wanted: float) -> float | None:
    """The time by which so much of the chance is spent; None where it never is."""
    spent = 0.0
    for end_s, begin_s, share in shares:
        if spent + share >= wanted:
            return begin_s + (end_s - begin_s) * (wanted - spent) / share
        spent += share
    return None
