"""How memory moves: average, peak, robust growth, whether it is increasing, and spikes (row M7).

Growth is the Theil-Sen slope over the floors of at most 40 slices of the window, so that neither a spike
nor the saw of a garbage collector is growth. One trend of a full history costs about 1 ms (pure Python).
"""

from __future__ import annotations

from itertools import pairwise

from memwarden.facts import Fact, Trend
from memwarden.judge import robust
from memwarden.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.judge.history import Bucket, History

# 40 slices make 780 pairs: enough for a line, cheap enough for a loop.
SLICES = 40

# Increasing means: unlikely by accident, worth at least 2 % of the level, and more than the floors scatter.
# The probability alone fires on two thirds of healthy processes, because memory remembers (research: leaks,
# 2.2).
P_INCREASING = 0.005
RISE_OF_LEVEL = 0.02
RISE_OF_SCATTER = 3.0
# What grew early and then stopped is not increasing: the later half keeps at least a quarter of the pace.
LATE_PACE = 0.25
LEAST_SLICES = 8

# Row A1: rapid growth is above 50 MB a minute, seen for at least a minute.
RAPID_BYTES_PER_MINUTE = 50 * MIB
RAPID_OVER_S = 60.0

# The modified z-score above which a value is an outlier (Iglewicz and Hoaglin, How to Detect and Handle
# Outliers, ASQC 1993), and the least a spike must rise above its surroundings to be worth a word.
SPIKE_SCORE = 3.5
SPIKE_OF_LEVEL = 0.05
# One jump explains the series better than a line when it leaves less than this share of the line's error
# (research: leaks, 2.5, rule 7, where two jumps were tested against 0.7).
STEP_ERROR = 0.5

# What lasts longer than this share of the series is a level and no spike.
SPIKE_LONGEST = 0.1


class Slice(Fact):
    """An equal share of the window's time: its floor and its peak with their times, and its mean."""

    first_s: float
    last_s: float
    low_bytes: float
    low_at_s: float
    high_bytes: float
    high_at_s: float
    mean_bytes: float
    stretch: int


class Spike(Fact):
    """One short rise: when, for how long (0 is a single sample), its top and how far it stood out."""

    start_s: float
    duration_s: float
    peak_bytes: float
    above_bytes: float


def trend(history: History, window_s: float | None = None) -> Trend:
    """The movement over the last `window_s`, or all; the answer's `window_s` is what was really covered."""
    buckets = history.buckets(window_s)
    if not buckets:
        return Trend(window_s=0.0, samples=0)
    slices = slices_of(buckets)
    step = step_at(slices)
    growth = robust.slope([*floors(slices[:step]), *floors(slices[step:])])  # a jump is not growth either
    return Trend(
        window_s=buckets[-1].last_s - buckets[0].first_s,
        samples=sum(b.count for b in buckets),
        average_bytes=_average(buckets),
        peak_bytes=int(max(b.high_bytes for b in buckets)),
        growth_bytes_per_minute=None if growth is None else growth * 60,
        increasing=is_increasing(slices[step:]),
        spikes=len(spikes([b.first_s for b in buckets], [b.high_bytes for b in buckets])),
    )


def slices_of(buckets: Sequence[Bucket], most: int = SLICES) -> list[Slice]:
    """Neighbouring buckets joined into at most `most` slices of equal time; never across a gap."""
    start_s, end_s = buckets[0].first_s, buckets[-1].last_s
    width_s = (end_s - start_s) / most or 1.0
    groups: dict[tuple[int, int], list[Bucket]] = {}
    for bucket in buckets:
        place = min(int((bucket.first_s - start_s) / width_s), most - 1)
        groups.setdefault((bucket.stretch, place), []).append(bucket)
    return [_join(group) for group in groups.values()]


def _join(group: list[Bucket]) -> Slice:
    lowest = min(group, key=lambda b: b.low_bytes)
    highest = max(group, key=lambda b: b.high_bytes)
    return Slice(
        first_s=group[0].first_s,
        last_s=group[-1].last_s,
        low_bytes=lowest.low_bytes,
        low_at_s=lowest.low_at_s,
        high_bytes=highest.high_bytes,
        high_at_s=highest.high_at_s,
        mean_bytes=_average(group),
        stretch=group[0].stretch,
    )


def floors(slices: Sequence[Slice]) -> list[list[tuple[float, float]]]:
    """The floors as points, one list per uninterrupted stretch."""
    stretches: dict[int, list[tuple[float, float]]] = {}
    for piece in slices:
        stretches.setdefault(piece.stretch, []).append((piece.low_at_s, piece.low_bytes))
    return list(stretches.values())


def is_increasing(slices: Sequence[Slice]) -> bool:
    """Rising floors, beyond accident and beyond noise, and still rising at the end."""
    if len(slices) < LEAST_SLICES:
        return False
    points = floors(slices)
    growth = robust.slope(points)
    if growth is None or growth <= 0 or robust.rising(points)[1] > P_INCREASING:
        return False
    watched_s = sum(stretch[-1][0] - stretch[0][0] for stretch in points)
    rise = growth * watched_s
    level = robust.median([piece.low_bytes for piece in slices])
    scatter = robust.sigma(residuals(points, growth))
    late = robust.slope(floors(slices[len(slices) // 2 :]))
    return (
        rise >= RISE_OF_LEVEL * level
        and rise >= RISE_OF_SCATTER * scatter
        and late is not None
        and late >= LATE_PACE * growth
    )


def step_at(slices: Sequence[Slice]) -> int:
    """The slice with which memory jumped between two quiet levels; 0 where a line tells it as well."""
    points = [(piece.first_s, piece.mean_bytes) for piece in slices]
    values = [value for _, value in points]
    at, error = robust.best_step(values)
    upwards = robust.median(values[at:]) > robust.median(values[:at])
    return at if upwards and error < STEP_ERROR * robust.line_error(points) else 0


def residuals(stretches: Sequence[Sequence[tuple[float, float]]], growth: float) -> list[float]:
    """What a line of that slope leaves, each stretch around its own middle."""
    left: list[float] = []
    for points in stretches:
        around = [y - growth * x for x, y in points]
        middle = robust.median(around)
        left += [value - middle for value in around]
    return left


def is_rapid(
    history: History, *, bytes_per_minute: float = RAPID_BYTES_PER_MINUTE, over_s: float = RAPID_OVER_S
) -> bool:
    """Growth above the line for at least a minute of watching: never true of a process's first seconds."""
    # One bucket may begin just before the window; half as much again is sure to hold a whole minute.
    recent = trend(history, over_s * 1.5)
    growth = recent.growth_bytes_per_minute
    return recent.window_s >= over_s and growth is not None and growth > bytes_per_minute


def spikes(times_s: Sequence[float], values_bytes: Sequence[float]) -> list[Spike]:
    """Short rises that stand out by 3.5 modified z-scores and by 5 % of the level, and come down again."""
    if len(values_bytes) < LEAST_SLICES:
        return []
    reach = max(2, len(values_bytes) // SLICES)
    base = _surroundings(values_bytes, reach)
    above = [value - level for value, level in zip(values_bytes, base, strict=True)]
    line = SPIKE_SCORE * robust.sigma(above)
    out = [rise > max(line, SPIKE_OF_LEVEL * level) for rise, level in zip(above, base, strict=True)]
    longest_s = SPIKE_LONGEST * (times_s[-1] - times_s[0])
    found = []
    for begin, end in _runs(out):
        top = max(range(begin, end + 1), key=above.__getitem__)
        least = max(line, SPIKE_OF_LEVEL * base[top])
        lasted_s = times_s[end] - times_s[begin]
        if lasted_s <= longest_s and _stands_out(values_bytes, begin, end, reach) > least:
            found.append(
                Spike(
                    start_s=times_s[begin],
                    duration_s=lasted_s,
                    peak_bytes=values_bytes[top],
                    above_bytes=above[top],
                )
            )
    return found


def _surroundings(values: Sequence[float], size: int) -> list[float]:
    """The level around each value: medians of short pieces, smoothed over five of them, joined by lines."""
    middles = [robust.median(values[i : i + size]) for i in range(0, len(values), size)]
    last = len(middles) - 1
    smooth = []
    for i in range(last + 1):
        reach = min(2, i, last - i)  # the same on both sides: on a ramp a lopsided middle is off
        smooth.append(robust.median(middles[i - reach : i + reach + 1]))
    levels = []
    for i in range(len(values)):
        place = (i + 0.5) / size - 0.5
        left = min(max(int(place), 0), max(last - 1, 0))
        right = min(left + 1, last)
        levels.append(smooth[left] + (smooth[right] - smooth[left]) * min(max(place - left, 0.0), 1.0))
    return levels


def _stands_out(values: Sequence[float], begin: int, end: int, reach: int) -> float:
    """How far a run rises over the higher of its two feet; a run without a foot has not come down yet."""
    before, after = values[max(0, begin - reach) : begin], values[end + 1 : end + 1 + reach]
    return max(values[begin : end + 1]) - max(min(before), min(after)) if before and after else 0.0


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last index of each run of true, runs parted by a single false joined."""
    runs: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if not flag:
            continue
        if runs and i - runs[-1][1] <= 2:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    return runs


def _average(buckets: Sequence[Bucket]) -> float:
    """The mean over time, not over samples: a warden samples most often where memory is highest."""
    if len(buckets) == 1:
        return buckets[0].mean_bytes
    weighted = total_s = 0.0
    for bucket, after in pairwise(buckets):
        same = bucket.stretch == after.stretch
        lasted_s = (after.first_s if same else bucket.last_s) - bucket.first_s
        weighted += bucket.mean_bytes * lasted_s
        total_s += lasted_s
    last = buckets[-1]
    usual_s = total_s / sum(bucket.count for bucket in buckets[:-1])
    lasted_s = last.last_s - last.first_s + usual_s
    if total_s + lasted_s <= 0:
        return sum(bucket.mean_bytes for bucket in buckets) / len(buckets)
    return (weighted + last.mean_bytes * lasted_s) / (total_s + lasted_s)
