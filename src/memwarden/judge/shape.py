"""How a series of memory moves, in a dozen figures without a unit: what a verdict on leaks is made from.

The series is cut into at most 24 buckets of equal time, and of each only the floor counts, so that what is freed
again within a bucket is no growth. All figures are ratios: neither the size of the process nor the length of the
recording changes them. Pure, and no figure is ever NaN or infinite.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, inf, isnan, log, nan, sqrt

from memwarden.facts import Fact
from memwarden.judge import robust

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# 24 floors make 276 pairs: enough for a line, its halves and its thirds, and half a millisecond.
BUCKETS = 24
# Fewer floors than this say nothing about a second half.
LEAST_BUCKETS = 8
# Neighbouring buckets that make one coarse bucket.
TOGETHER = 3
# A floor needs some samples to be one.
LEAST_PER_BUCKET = 3

# Steps of time above so many usual ones were not watched (the same as in judge.history).
GAP_INTERVALS = 5.0

# A level is at least this share of the highest floor, so that nothing grows beyond all numbers.
LEAST_LEVEL = 1e-6
# Where noise is zero: a change below this share of the level is no change.
STILL = 1e-4

# A slowing growth is tried with these time constants, as shares of the window.
SATURATIONS = (0.08, 0.2, 0.45)

NAMES = (
    "growth", "late", "last", "over_noise", "late_over_noise", "tau", "late_tau", "records", "late_records",
    "straight", "bend", "saturation", "step", "spread", "fall", "clearance", "kept_late", "noise",
    "coarse_tau", "coarse_growth", "coarse_late", "coarse_over_noise", "stairs",
)  # fmt: skip


def closed_gaps(times_s: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The series without what was not watched: neither the time of a gap nor the change across it remains.

    `values` may hold NaN; they are left out.
    """
    known = [(t, v) for t, v in zip(times_s, values, strict=True) if not isnan(v)]
    steps = sorted(b[0] - a[0] for a, b in pairwise(known))
    if not steps:
        return [t for t, _ in known], [v for _, v in known]
    usual_s = robust.quantile(steps, 0.75)
    if steps[-1] <= GAP_INTERVALS * usual_s:
        return [t for t, _ in known], [v for _, v in known]
    kept_t, kept_v = [known[0][0]], [known[0][1]]
    off_s = off = 0.0
    for (before_s, before), (t_s, value) in pairwise(known):
        if t_s - before_s > GAP_INTERVALS * usual_s > 0:
            off_s += t_s - before_s - usual_s
            off += value - before
        kept_t.append(t_s - off_s)
        kept_v.append(value - off)
    return kept_t, kept_v


def floors(times_s: Sequence[float], values: Sequence[float], most: int = BUCKETS) -> list[tuple[int, float]]:
    """The floor of each of at most `most` equal shares of the time: the sample's index and its value."""
    many = min(most, len(values) // LEAST_PER_BUCKET)
    if many < LEAST_BUCKETS:
        return []
    start_s = times_s[0]
    width_s = (times_s[-1] - start_s) / many or 1.0
    best: list[tuple[float, int]] = [(inf, 0)] * many
    for i, value in enumerate(values):
        place = min(int((times_s[i] - start_s) / width_s), many - 1)
        if value < best[place][0]:
            best[place] = (value, i)
    return [(i, value) for value, i in best if value < inf]


def shape(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The figures by name, of floors at places that rise (time, or work done). Needs `LEAST_BUCKETS` points."""
    xs, ys = _unit([x for x, _ in points]), [y for _, y in points]
    level = max(robust.median(ys), LEAST_LEVEL * max(ys)) or 1.0
    n, half, third = len(ys), len(ys) // 2, len(ys) // 3
    ys = [y / level for y in ys]
    slope, late, last = _slope(xs, ys), _slope(xs[half:], ys[half:]), _slope(xs[-third:], ys[-third:])
    noise = _noise(xs, ys, slope) + STILL
    lift = [b - a for a, b in pairwise(ys)]
    up = sum(value for value in lift if value > 0) + STILL
    rise = ys[-1] - ys[0]
    kept = _kept(ys)
    line = line_error(xs, ys)
    records = [y > before + STILL for y, before in zip(ys[1:], _highest(ys), strict=False)]
    two = sum(sorted(lift)[-2:])
    scale = max(abs(rise), abs(slope)) + STILL
    wide_xs, wide_ys = _coarser(xs, ys)
    wide, most = _slope(wide_xs, wide_ys), len(wide_ys) // 2
    return {
        "growth": slope,
        "late": late,
        "last": last,
        "over_noise": _clip(slope / noise, 60.0),
        "late_over_noise": _clip(late / noise, 60.0),
        "tau": _tau(ys),
        "late_tau": _tau(ys[half:]),
        "records": sum(records) / len(records),
        "late_records": sum(records[half:]) / len(records[half:]),
        "straight": 1 - line / (_spread(ys) + STILL * STILL * n),
        "bend": _gain(line, min((_hinge_error(xs, ys, xs[k]) for k in range(2, n - 2)), default=line), n),
        "saturation": _gain(line, min(_saturating_error(xs, ys, share) for share in SATURATIONS), n),
        "step": _gain(line, robust.best_step(ys)[1], n),
        "spread": _clip((rise - two) / scale, 2.0),
        "fall": _clip(_fall(ys[third:]) / up, 2.0),
        "clearance": min(ys[-third:]) - max(ys[:third]),
        "kept_late": _clip((kept[-1] - kept[half]) / scale, 2.0),
        "noise": noise,
        "stairs": _gain(line, _stairs_error(ys), n),
        "coarse_tau": _tau(wide_ys),
        "coarse_growth": wide,
        "coarse_late": _slope(wide_xs[most:], wide_ys[most:]),
        "coarse_over_noise": _clip(wide / (_noise(wide_xs, wide_ys, wide) + STILL), 60.0),
    }


def _coarser(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """The floors of `TOGETHER` neighbours each: what lives for a few buckets is no floor any more."""
    lowest = [min(range(i, min(i + TOGETHER, len(ys))), key=ys.__getitem__) for i in range(0, len(ys), TOGETHER)]
    return [xs[i] for i in lowest], [ys[i] for i in lowest]


def _unit(xs: Sequence[float]) -> list[float]:
    """Places from 0 to 1."""
    span = xs[-1] - xs[0] or 1.0
    return [(x - xs[0]) / span for x in xs]


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    return robust.slope([list(zip(xs, ys, strict=True))]) or 0.0


def _tau(ys: Sequence[float]) -> float:
    """Kendall's tau against the order, where a change below `STILL` is none."""
    score, n = 0, len(ys)
    for i, a in enumerate(ys):
        low, high = a - STILL, a + STILL
        for b in ys[i + 1 :]:
            score += (b > high) - (b < low)
    return 2 * score / (n * (n - 1)) if n > 1 else 0.0


def _noise(xs: Sequence[float], ys: Sequence[float], slope: float) -> float:
    """What the floors scatter around their neighbours and around the line, whichever is less."""
    around = [y - slope * x for x, y in zip(xs, ys, strict=True)]
    jumps = [(b - a) / sqrt(2) for a, b in pairwise(around)]
    return min(robust.sigma(around), sqrt(sum(j * j for j in jumps) / len(jumps)))


def _highest(ys: Sequence[float]) -> list[float]:
    """The highest up to each."""
    found, top = [], -inf
    for y in ys:
        top = max(top, y)
        found.append(top)
    return found


def _kept(ys: Sequence[float]) -> list[float]:
    """The lowest from each on: what was never given back."""
    found, low = [], inf
    for y in reversed(ys):
        low = min(low, y)
        found.append(low)
    return found[::-1]


def _fall(ys: Sequence[float]) -> float:
    """The deepest fall from what was highest before."""
    return max(top - y for top, y in zip(_highest(ys), ys, strict=True))


def _spread(ys: Sequence[float]) -> float:
    if not ys:
        return 0.0
    mean = sum(ys) / len(ys)
    return sum((y - mean) ** 2 for y in ys)


def line_error(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The squared error that a least-squares line leaves."""
    n = len(xs)
    mean_x, mean_y = sum(xs) / n, sum(ys) / n
    xx = xy = yy = 0.0
    for x, y in zip(xs, ys, strict=True):
        dx, dy = x - mean_x, y - mean_y
        xx += dx * dx
        xy += dx * dy
        yy += dy * dy
    return max(yy - xy * xy / xx, 0.0) if xx > 0 else yy


def _hinge_error(xs: Sequence[float], ys: Sequence[float], knee: float) -> float:
    """What a ramp that is flat from `knee` on leaves."""
    return line_error([min(knee, x) for x in xs], ys)


def _saturating_error(xs: Sequence[float], ys: Sequence[float], share: float) -> float:
    return line_error([1 - exp(-x / share) for x in xs], ys)


def _stairs_error(ys: Sequence[float]) -> float:
    """What three levels leave, the second jump sought on either side of the best first."""
    at, _ = robust.best_step(ys)
    left, right = ys[:at], ys[at:]
    return min(
        robust.best_step(left)[1] + _spread(right) if len(left) > 1 else inf,
        _spread(left) + robust.best_step(right)[1] if len(right) > 1 else inf,
    )


def middles(times_s: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """What the lower quartiles of the buckets say, which use more of the samples than their floors do."""
    times_s, values = closed_gaps(times_s, values)
    many = min(BUCKETS, len(values) // LEAST_PER_BUCKET)
    if many < LEAST_BUCKETS:
        return dict.fromkeys(MIDDLES, 0.0)
    level = robust.median(values) or 1.0
    parts = [sorted(values[i * len(values) // many : (i + 1) * len(values) // many]) for i in range(many)]
    low = [robust.quantile(part, 0.25) / level for part in parts]
    half = many // 2
    wide = [sum(low[i : i + TOGETHER]) / len(low[i : i + TOGETHER]) for i in range(0, many, TOGETHER)]
    rise = wide[-1] - wide[0]
    lift = [b - a for a, b in pairwise(low)]
    far = sorted(b - a for a, b in zip(low, low[many // 4 :], strict=False))
    pace = max(abs(sum(far) / len(far)), STILL)
    places = [i / (many - 1) for i in range(many)]
    line = line_error(places, low)
    bends = [_hinge_error(places, low, places[k]) for k in range(2, many - 2)]
    quarter = many // 4
    end, before = low[-quarter:], low[-2 * quarter : -quarter]
    scatter = robust.sigma([(b - a) / sqrt(2) for a, b in pairwise(low)]) + STILL
    early, late = _sure(low[:half]), _sure(low[half:])
    return {
        "low_tau": _tau(low),
        "low_sure": _sure(low),
        "mean_sure": _sure([sum(part) / len(part) / level for part in parts]),
        "low_growth": _clip(rise, 5.0),
        "low_over_noise": _clip(rise / scatter, 60.0),
        "even": _even(low),
        "wide_even": _even(wide),
        "slowest": _clip(robust.quantile(far, 0.25) / pace, 2.0),
        "typical": _clip(robust.median(far) / pace, 2.0),
        "without_four": _clip((rise - sum(sorted(lift)[-4:])) / (abs(rise) + STILL), 2.0),
        "echo": _echo(lift),
        "early_sure": early,
        "late_sure": late,
        "end_rise": _clip((sum(end) - sum(before)) / quarter / scatter, 30.0),
        "end_share": _clip((sum(end) - sum(before)) / quarter / (abs(rise) + STILL), 2.0),
        "low_bend": _gain(line, min(bends), many),
        "low_knee": places[2 + bends.index(min(bends))] if min(bends) < line else 1.0,
        "low_step": _gain(line, robust.best_step(low)[1], many),
        "low_stairs": _gain(line, _stairs_error(low), many),
        "low_saturation": _gain(line, min(_saturating_error(places, low, share) for share in SATURATIONS), many),
    }


MIDDLES = (
    "low_tau", "low_sure", "mean_sure", "low_growth", "low_over_noise", "even", "wide_even", "slowest", "typical",
    "without_four", "echo", "early_sure", "late_sure", "end_rise", "end_share", "low_bend", "low_knee", "low_step",
    "low_stairs", "low_saturation",
)  # fmt: skip


def _even(ys: Sequence[float]) -> float:
    """1 where each is higher than the last by the same, 1 over the root of their number where one rise is all."""
    lift = [b - a for a, b in pairwise(ys)]
    return (ys[-1] - ys[0]) / sqrt(len(lift) * sum(d * d for d in lift) + STILL * STILL)


def _echo(lift: Sequence[float]) -> float:
    """The correlation of neighbouring increments: -0.5 of noise around a line, 0 of a walk, above for a curve."""
    mean = sum(lift) / len(lift)
    off = [d - mean for d in lift]
    return sum(a * b for a, b in pairwise(off)) / (sum(d * d for d in off) + STILL * STILL)


def _sure(ys: Sequence[float]) -> float:
    """The t value of a least-squares slope over equal places, with neighbours that tell the same counted once."""
    n = len(ys)
    places = [float(i) for i in range(n)]
    middle, mean = (n - 1) / 2, sum(ys) / n
    xx = n * (n * n - 1) / 12
    slope = sum((x - middle) * (y - mean) for x, y in zip(places, ys, strict=True)) / xx
    left = [y - mean - slope * (x - middle) for x, y in zip(places, ys, strict=True)]
    error = sqrt((sum(r * r for r in left) / (n - 2) + STILL * STILL) / xx / robust.news(left))
    return _clip(slope / error, 60.0)


def _gain(line: float, other: float, n: int) -> float:
    """How much better than a line: the logarithm of the ratio of errors, from -3 to 5."""
    least = STILL * STILL * n
    return min(max(log((line + least) / (other + least)), -3.0), 5.0)


def _clip(value: float, most: float) -> float:
    return min(max(value, -most), most)


class Partial(Fact):
    """Growth along x with the rate held still, as a share of the level; its t value; what a unit of the rate is worth.

    `left` is the squared error. NaN where the two cannot be told apart.
    """

    growth: float = nan
    sure: float = nan
    by_rate: float = 0.0
    left: float = inf


def partial(xs: Sequence[float], rates: Sequence[float], ys: Sequence[float]) -> Partial:
    """Least squares of y on x and rate."""
    n = len(ys)
    level = robust.median(ys) or 1.0
    mean = [sum(v) / n for v in (xs, rates, ys)]
    dx, dr, dy = ([v - m for v in vs] for vs, m in zip((xs, rates, ys), mean, strict=True))
    xx, rr = sum(v * v for v in dx), sum(v * v for v in dr)
    xr = sum(a * b for a, b in zip(dx, dr, strict=True))
    xy, ry = (sum(a * b for a, b in zip(v, dy, strict=True)) for v in (dx, dr))
    free = xx * rr - xr * xr
    if n < 5 or free <= 1e-9 * xx * rr or xx <= 0:
        return Partial()
    along, by_rate = (xy * rr - ry * xr) / free, (ry * xx - xy * xr) / free
    left = sum((y - along * x - by_rate * r) ** 2 for x, r, y in zip(dx, dr, dy, strict=True))
    error = sqrt((left / (n - 3) + (STILL * level) ** 2) * rr / free)
    return Partial(
        growth=along * (xs[-1] - xs[0]) / level,
        sure=_clip(along / error if error else 0.0, 60.0),
        by_rate=by_rate,
        left=left,
    )


def equal(xs: Sequence[float], ys: Sequence[float], level: float) -> dict[str, float]:
    """The shape of a level from which the part of the traffic was taken."""
    xs, ys = _unit(xs), [y / (level or 1.0) for y in ys]
    half = len(ys) // 2
    return {
        "equal_tau": _tau(ys),
        "equal_late": _slope(xs[half:], ys[half:]),
        "equal_step": _gain(line_error(xs, ys), robust.best_step(ys)[1], len(ys)),
    }
