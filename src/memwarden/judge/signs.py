"""The signs of a leak in the columns of a recording: the shapes of what is resident and of what is live.

`resident` is anonymous memory where it is known, and RSS where it is not; `blocks` are Python's small blocks; `live`
is what Python and malloc have in use. Bytes of declared caches are subtracted from resident and live. Growth is laid
against work done where that is counted, against time where it is not. Pure.
"""

from __future__ import annotations

from itertools import pairwise
from math import isnan, log, nan

from memwarden.judge import robust
from memwarden.judge.shape import NAMES, STILL, closed_gaps, equal, floors, line_error, middles, partial, shape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Column = Sequence[float]

# Start-up is no growth: the first tenth, and at least four samples (research: leaks, 2.5, rule 1).
WARM_UP_RATIO = 0.1
WARM_UP_SAMPLES = 4
# Python's small blocks are 32 to 95 bytes on average (sys._debugmallocstats, CPython 3.11-3.13).
MEAN_BLOCK_BYTES = 64
# A column that is known for less than this share of the samples is not used.
KNOWN = 0.6
LEAST_SAMPLES = 24

# Below this share of the level nothing has risen that something else could explain.
LEAST_RISE = 0.005
# Growth of shared memory above this share of RSS is looked at, too: reading a file for the first time is less.
SHARED_RISE = 0.04

# Traffic is looked at in so many shares of the time.
BUCKETS_OF_TRAFFIC = 20
LEAST_KNOWN = 8

# Where what is resident is read, the best first.
RESIDENT = ("anon_bytes", "rss_bytes", "used_bytes")
SERIES = ("resident", "blocks", "live")
AT_EQUAL_TRAFFIC = ("partial_growth", "partial_sure", "equal_tau", "equal_late", "equal_step")


class Columns:
    """One recording as columns of equal length: `t_s` in order, the rest with NaN where unknown.

    The names are those of the trace contract; `rss_bytes` is the only one that must be there.
    """

    __slots__ = ("columns", "t_s")

    def __init__(self, t_s: Column, columns: Mapping[str, Column]) -> None:
        self.t_s = t_s
        self.columns = {name: column for name, column in columns.items() if _is_known(column)}

    def __len__(self) -> int:
        return len(self.t_s)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def between(self, first: int, last: int) -> Columns:
        """The samples from `first` up to and without `last`."""
        part = Columns(self.t_s[first:last], {})
        part.columns = {name: column[first:last] for name, column in self.columns.items()}
        return part


def _is_known(column: Column) -> bool:
    return len(column) > 0 and sum(map(isnan, column)) <= (1 - KNOWN) * len(column)


def settled(columns: Columns) -> Columns:
    """Without the start, and only since the counter of work last began anew (a restart)."""
    first = max(WARM_UP_SAMPLES, int(len(columns) * WARM_UP_RATIO))
    for name in ("work_done", "gc_collected"):
        if name in columns:
            first = max(first, _last_reset(columns[name]))
    return columns.between(first, len(columns))


def _last_reset(counter: Column) -> int:
    """Where a counter that only rises last fell; 0 where it never did."""
    highest, at = -1.0, 0
    for i, value in enumerate(counter):
        if value < highest:
            at = i
            highest = value
        elif value > highest:
            highest = value
    return at


def resident(columns: Columns) -> list[float]:
    """What is resident and not a declared cache."""
    name = next(n for n in RESIDENT if n in columns)
    if name == "anon_bytes" and "rss_bytes" in columns and _shared_grows(columns):
        name = "rss_bytes"
    return _minus_caches(columns[name], columns)


def _shared_grows(columns: Columns) -> bool:
    """Whether what is resident and not anonymous (shared memory, mapped files) grows more than what is."""
    both = [(a, r) for a, r in zip(columns["anon_bytes"], columns["rss_bytes"], strict=True) if not isnan(a + r)]
    if len(both) < LEAST_SAMPLES:
        return False
    shared = _third_to_third([r - a for a, r in both])
    return shared > max(_third_to_third([a for a, _ in both]), SHARED_RISE * robust.median([r for _, r in both]))


def live(columns: Columns) -> list[float]:
    """What Python and malloc have in use and is no declared cache; empty without a reading of malloc."""
    if "native_in_use_bytes" not in columns:
        return []
    in_use = columns["native_in_use_bytes"]
    if "python_blocks" in columns:
        in_use = [n + MEAN_BLOCK_BYTES * b for n, b in zip(in_use, columns["python_blocks"], strict=True)]
    return _minus_caches(in_use, columns)


def _minus_caches(values: Column, columns: Columns) -> list[float]:
    if "declared_cache_bytes" not in columns:
        return list(values)
    return [v - (0.0 if isnan(c) else c) for v, c in zip(values, columns["declared_cache_bytes"], strict=True)]


def signs(columns: Columns) -> dict[str, float]:
    """Every sign by name; empty where there is too little to see. A series that is not known has no signs."""
    seen = settled(columns)
    if len(seen) < LEAST_SAMPLES or not any(name in seen for name in RESIDENT):
        return {}
    found: dict[str, float] = {}
    series = {"resident": resident(seen), "live": live(seen)}
    if "python_blocks" in seen:
        series["blocks"] = list(seen["python_blocks"])
    points = {}
    for name, values in series.items():
        if not values:
            continue
        points[name] = _points(seen, values)
        if not points[name]:
            continue
        figures = shape([(work, value) for _, work, value in points[name]])
        found |= {f"{name}_{each}": figures[each] for each in NAMES}
        found[f"{name}_with_work"] = _with_work(points[name])
        found |= {f"{name}_{each}": value for each, value in middles(seen.t_s, values).items()}
    if "resident_growth" not in found:
        return {}
    known = {name: values for name, values in series.items() if values}
    return (
        found
        | _traffic(seen, known)
        | {"collected": _collected(seen), "explained": _explained(points)}
        | {"lasted_s": seen.t_s[-1] - seen.t_s[0]}
    )


def _points(columns: Columns, values: Column) -> list[tuple[float, float, float]]:
    """The floors as (time, place on the axis, value): the place is the work done by then, or else the time."""
    times_s, levels = closed_gaps(columns.t_s, values)
    found = floors(times_s, levels)
    if "work_done" not in columns:
        return [(times_s[i], times_s[i], value) for i, value in found]
    known = [w for w, v in zip(columns["work_done"], values, strict=True) if not isnan(v)]
    if any(map(isnan, known)) or known[-1] <= known[0]:
        return [(times_s[i], times_s[i], value) for i, value in found]
    return [(times_s[i], known[i], value) for i, value in found]


def _with_work(points: Sequence[tuple[float, float, float]]) -> float:
    """How much better the floors lie on a line of work than on a line of time; 0 where no work is counted."""
    by_work = line_error([p[1] for p in points], [p[2] for p in points])
    by_time = line_error([p[0] for p in points], [p[2] for p in points])
    least = (STILL * robust.median([p[2] for p in points])) ** 2 * len(points)
    return min(max(log((by_time + least) / (by_work + least)), -2.0), 2.0) if least > 0 else 0.0


def _explained(points: Mapping[str, Sequence[tuple[float, float, float]]]) -> float:
    """Of what is resident the share of the growth that is live, from -1 to 2; NaN where nothing tells."""
    rises = {name: _third_to_third([p[2] for p in each]) for name, each in points.items() if each}
    if "live" in rises:
        part = rises["live"]
    elif "blocks" in rises:
        part = rises["blocks"] * MEAN_BLOCK_BYTES
    else:
        return nan
    level = robust.median([p[2] for p in points["resident"]])
    return min(max(part / max(abs(rises["resident"]), LEAST_RISE * level, 1.0), -1.0), 2.0)


def _third_to_third(values: Column) -> float:
    third = len(values) // 3
    return robust.median(values[-third:]) - robust.median(values[:third])


def _traffic(columns: Columns, series: Mapping[str, Column]) -> dict[str, float]:
    """How traffic changed, and for each series how its level moved with traffic held still.

    Means and not floors here, since what is in flight is no floor.
    """
    if "work_done" not in columns:
        return {"traffic": nan}
    size = len(columns) // BUCKETS_OF_TRAFFIC
    edges = [(columns.t_s[i], columns["work_done"][i]) for i in range(0, len(columns), max(size, 1))]
    if size < 2 or any(isnan(work) for _, work in edges) or edges[-1][1] <= edges[0][1]:
        return {"traffic": nan}
    rates = [(b[1] - a[1]) / ((b[0] - a[0]) or 1.0) for a, b in pairwise(edges)]
    # What is in flight follows the traffic at once, or with a past: whichever explains the level better.
    lagging = [(a + b) / 2 for a, b in zip(rates, rates[:1] + rates, strict=False)]
    third, middle = len(rates) // 3, robust.median(lagging) or 1.0
    before, after = robust.median(lagging[:third]), robust.median(lagging[-third:])
    found = {"traffic": log((after + 0.05 * middle) / (before + 0.05 * middle))}
    for name, values in series.items():
        levels = [_mean(values[i * size : (i + 1) * size]) for i in range(len(rates))]
        found |= {f"{name}_{each}": value for each, value in _at_equal_traffic(edges, (rates, lagging), levels).items()}
    return found


def _at_equal_traffic(
    edges: Sequence[tuple[float, float]], rates: Sequence[Column], levels: Column
) -> dict[str, float]:
    """Growth with the traffic held still, how sure it is, and the shape of what is left of the level then."""
    best = None
    for rate in rates:
        known = [(w, r, v) for (_, w), r, v in zip(edges, rate, levels, strict=False) if not isnan(v)]
        if len(known) <= LEAST_KNOWN:
            break
        works, flights, values = zip(*known, strict=True)
        found = partial(works, flights, values)
        if best is None or found.left < best[0].left:
            best = found, works, flights, values
    if best is None or isnan(best[0].growth):
        return dict.fromkeys(AT_EQUAL_TRAFFIC, nan)
    found, works, flights, values = best
    still = [v - max(found.by_rate, 0.0) * r for v, r in zip(values, flights, strict=True)]
    return {"partial_growth": found.growth, "partial_sure": found.sure} | equal(works, still, robust.median(values))


def _mean(values: Column) -> float:
    known = [v for v in values if not isnan(v)]
    return sum(known) / len(known) if known else nan


def _collected(columns: Columns) -> float:
    """Objects collected in the later half over those of the earlier half and it; NaN where not counted."""
    if "gc_collected" not in columns:
        return nan
    known = [v for v in columns["gc_collected"] if not isnan(v)]
    total = known[-1] - known[0]
    return (known[-1] - known[len(known) // 2]) / total if total > 0 else 0.0
