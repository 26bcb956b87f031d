"""What one verdict costs, beside the same figures written plainly in numpy: `python -m benchmarks.leaks.cost`.

240 samples with every column. The numpy arm computes the figures of the shapes only (`memwarden.judge.shape`), from
the same buckets, one array expression per figure, and must agree with them; all that a verdict does beyond that (gate,
score, words) is in the first arm alone. Needs numpy.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.leaks.traces import ALL, recorded
from memwarden.judge import shape as plain
from memwarden.judge.leak import judge
from memwarden.judge.signs import live, resident, settled

if TYPE_CHECKING:
    from collections.abc import Callable

STILL = plain.STILL


def _slope(xs: Any, ys: Any) -> float:
    i, j = np.triu_indices(len(xs), 1)
    return float(np.median((ys[j] - ys[i]) / (xs[j] - xs[i])))


def _tau(ys: Any) -> float:
    i, j = np.triu_indices(len(ys), 1)
    d = ys[j] - ys[i]
    return float(((d > STILL).sum() - (d < -STILL).sum()) / len(i))


def _line_error(xs: Any, ys: Any) -> float:
    at = np.column_stack([np.ones_like(xs), xs])
    left = ys - at @ np.linalg.lstsq(at, ys, rcond=None)[0]
    return float(left @ left)


def _noise(xs: Any, ys: Any, slope: float) -> float:
    around = ys - slope * xs
    robust = 1.4826 * np.median(np.abs(around - np.median(around)))
    return float(min(robust, np.sqrt(np.mean((np.diff(around) / np.sqrt(2)) ** 2)))) + STILL


def _steps(ys: Any) -> Any:
    return [((ys[:k] - ys[:k].mean()) ** 2).sum() + ((ys[k:] - ys[k:].mean()) ** 2).sum() for k in range(1, len(ys))]


def _gain(line: float, other: float, n: int) -> float:
    return float(np.clip(np.log((line + STILL**2 * n) / (other + STILL**2 * n)), -3, 5))


def shape_in_numpy(times_s: Any, values: Any) -> dict[str, float]:
    """The figures of `memwarden.judge.shape.shape` for a series without gaps, against time."""
    many = min(plain.BUCKETS, len(values) // plain.LEAST_PER_BUCKET)
    place = np.minimum(((times_s - times_s[0]) / ((times_s[-1] - times_s[0]) / many)).astype(int), many - 1)
    lowest = np.array([np.flatnonzero(place == k)[np.argmin(values[place == k])] for k in np.unique(place)])
    xs, ys = times_s[lowest], values[lowest]
    xs, ys = (xs - xs[0]) / (xs[-1] - xs[0]), ys / np.median(ys)
    n, half, third = len(ys), len(ys) // 2, len(ys) // 3
    slope, late = _slope(xs, ys), _slope(xs[half:], ys[half:])
    noise, line = _noise(xs, ys, slope), _line_error(xs, ys)
    highest = np.maximum.accumulate(ys)
    records = ys[1:] > highest[:-1] + STILL
    kept = np.minimum.accumulate(ys[::-1])[::-1]
    lift = np.diff(ys)
    scale = max(abs(ys[-1] - ys[0]), abs(slope)) + STILL
    best = _steps(ys)
    at = int(np.argmin(best)) + 1
    spread = [((part - part.mean()) ** 2).sum() for part in (ys[:at], ys[at:])]
    stairs = [min(_steps(part), default=np.inf) + other for part, other in ((ys[:at], spread[1]), (ys[at:], spread[0]))]
    fallen = (np.maximum.accumulate(ys[third:]) - ys[third:]).max()
    wide = np.array([i + np.argmin(ys[i : i + plain.TOGETHER]) for i in range(0, n, plain.TOGETHER)])
    wx, wy = xs[wide], ys[wide]
    return {
        "growth": slope,
        "late": late,
        "last": _slope(xs[-third:], ys[-third:]),
        "over_noise": float(np.clip(slope / noise, -60, 60)),
        "late_over_noise": float(np.clip(late / noise, -60, 60)),
        "tau": _tau(ys),
        "late_tau": _tau(ys[half:]),
        "records": float(records.mean()),
        "late_records": float(records[half:].mean()),
        "straight": float(1 - line / (((ys - ys.mean()) ** 2).sum() + STILL**2 * n)),
        "bend": _gain(line, min(_line_error(np.minimum(xs, xs[k]), ys) for k in range(2, n - 2)), n),
        "saturation": _gain(line, min(_line_error(1 - np.exp(-xs / s), ys) for s in plain.SATURATIONS), n),
        "step": _gain(line, min(best), n),
        "spread": float(np.clip((ys[-1] - ys[0] - np.sort(lift)[-2:].sum()) / scale, -2, 2)),
        "fall": float(np.clip(fallen / (lift[lift > 0].sum() + STILL), -2, 2)),
        "clearance": float(ys[-third:].min() - ys[:third].max()),
        "kept_late": float(np.clip((kept[-1] - kept[half]) / scale, -2, 2)),
        "noise": noise,
        "stairs": _gain(line, float(min(stairs)), n),
        "coarse_tau": _tau(wy),
        "coarse_growth": _slope(wx, wy),
        "coarse_late": _slope(wx[len(wx) // 2 :], wy[len(wy) // 2 :]),
        "coarse_over_noise": float(np.clip(_slope(wx, wy) / _noise(wx, wy, _slope(wx, wy)), -60, 60)),
    }


def _sure(ys: Any) -> float:
    n = len(ys)
    places = np.arange(n) - (n - 1) / 2
    xx = (places**2).sum()
    slope = (places * (ys - ys.mean())).sum() / xx
    left = ys - ys.mean() - slope * places
    reach = min(6, n // 4)
    off = left - left.mean()
    together = np.correlate(off, off, "full")[n - 1 : n + reach]
    lingering = 1 + 2 * ((1 - np.arange(1, reach + 1) / (reach + 1)) * together[1:] / together[0]).sum()
    news = np.clip(1 / lingering, 0.05, 1) if lingering > 0 else 1.0
    error = np.sqrt(((left**2).sum() / (n - 2) + STILL**2) / xx / news)
    return float(np.clip(slope / error, -60, 60))


def _even(ys: Any) -> float:
    lift = np.diff(ys)
    return float((ys[-1] - ys[0]) / np.sqrt(len(lift) * (lift**2).sum() + STILL**2))


def middles_in_numpy(values: Any) -> dict[str, float]:
    """The figures of `memwarden.judge.shape.middles` for a series without gaps."""
    many = min(plain.BUCKETS, len(values) // plain.LEAST_PER_BUCKET)
    edges = np.arange(many + 1) * len(values) // many
    parts = [values[a:b] for a, b in pairwise(edges)]
    low = np.array([np.quantile(part, 0.25) for part in parts]) / np.median(values)
    mean = np.array([part.mean() for part in parts]) / np.median(values)
    wide = np.array([low[i : i + plain.TOGETHER].mean() for i in range(0, many, plain.TOGETHER)])
    rise, lift, xs = wide[-1] - wide[0], np.diff(low), np.linspace(0, 1, many)
    far = low[many // 4 :] - low[: -(many // 4)]
    pace = max(abs(far.mean()), STILL)
    line = _line_error(xs, low)
    bends = [_line_error(np.minimum(xs, xs[k]), low) for k in range(2, many - 2)]
    quarter, half = many // 4, many // 2
    end = low[-quarter:].mean() - low[-2 * quarter : -quarter].mean()
    jumps = lift / np.sqrt(2)
    scatter = 1.4826 * np.median(np.abs(jumps - np.median(jumps))) + STILL
    off = lift - lift.mean()
    best = _steps(low)
    at = int(np.argmin(best)) + 1
    spread = [((part - part.mean()) ** 2).sum() for part in (low[:at], low[at:])]
    stairs = [min(_steps(p), default=np.inf) + other for p, other in ((low[:at], spread[1]), (low[at:], spread[0]))]
    return {
        "low_tau": _tau(low),
        "low_sure": _sure(low),
        "mean_sure": _sure(mean),
        "low_growth": float(np.clip(rise, -5, 5)),
        "low_over_noise": float(np.clip(rise / scatter, -60, 60)),
        "even": _even(low),
        "wide_even": _even(wide),
        "slowest": float(np.clip(np.quantile(far, 0.25) / pace, -2, 2)),
        "typical": float(np.clip(np.median(far) / pace, -2, 2)),
        "without_four": float(np.clip((rise - np.sort(lift)[-4:].sum()) / (abs(rise) + STILL), -2, 2)),
        "echo": float((off[1:] * off[:-1]).sum() / ((off**2).sum() + STILL**2)),
        "early_sure": _sure(low[:half]),
        "late_sure": _sure(low[half:]),
        "end_rise": float(np.clip(end / scatter, -30, 30)),
        "end_share": float(np.clip(end / (abs(rise) + STILL), -2, 2)),
        "low_bend": _gain(line, min(bends), many),
        "low_knee": float(xs[2 + int(np.argmin(bends))]) if min(bends) < line else 1.0,
        "low_step": _gain(line, min(best), many),
        "low_stairs": _gain(line, float(min(stairs)), many),
        "low_saturation": _gain(line, min(_line_error(1 - np.exp(-xs / s), low) for s in plain.SATURATIONS), many),
    }


def shapes_in_numpy(times_s: Any, values: Any) -> dict[str, float]:
    """All figures of one series."""
    return shape_in_numpy(times_s, values) | middles_in_numpy(values)


def shapes_in_python(times_s: Any, values: Any) -> dict[str, float]:
    """The same by memwarden."""
    floors = [(times_s[i], value) for i, value in plain.floors(times_s, values)]
    return plain.shape(floors) | plain.middles(times_s, values)


def least(call: Callable[[], object], repeats: int = 40) -> float:
    """The least milliseconds of process time that a call took."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best * 1000


def main() -> None:
    """Print both, and stop where they do not agree."""
    run = next(run for run in recorded() if len(run.trace) > 240 and run.leak)
    columns = run.columns(ALL).between(0, 240)
    seen = settled(columns)
    series = [(list(seen.t_s), values) for values in (resident(seen), live(seen), list(seen["python_blocks"]))]
    arrays = [(np.array(t_s), np.array(values)) for t_s, values in series]
    for lists, array in zip(series, arrays, strict=True):
        here, there = shapes_in_python(*lists), shapes_in_numpy(*array)
        worst = max(here, key=lambda name: abs(here[name] - there[name]))
        if abs(here[worst] - there[worst]) > 1e-3:
            raise SystemExit(f"{worst}: {here[worst]} in Python, {there[worst]} in numpy")
    whole = least(lambda: judge(columns))
    python = least(lambda: [shapes_in_python(*each) for each in series])
    numpy = least(lambda: [shapes_in_numpy(*each) for each in arrays])
    print(f"one verdict, 240 samples, all columns: {whole:.2f} ms")
    print(f"its shapes: {python:.2f} ms in Python, {numpy:.2f} ms in numpy")
    print(f"verdict / shapes in numpy {whole / numpy:.2f}; shapes / shapes {python / numpy:.2f}")


if __name__ == "__main__":
    main()
