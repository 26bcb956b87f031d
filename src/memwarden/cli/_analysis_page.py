"""The HTML page of `analyze`: one file that needs nothing else, readable in light, in dark and on paper."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from memwarden.cli import _analysis
from memwarden.cli._page import frame
from memwarden.cli._plot import Plot, size_step, size_text, time_step, time_text
from memwarden.judge import robust
from memwarden.judge.advise import TIGHT
from memwarden.judge.trend import floors, slices_of
from memwarden.units import format_bytes, format_duration, format_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.cli._analysis import Analysis, Series
    from memwarden.judge.history import Bucket

# Row M3, for a Warden that is told nothing.
LEVELS = ((0.75, "warning"), (0.90, "critical"), (0.95, "emergency"))
# A limit further away than that would flatten the curve: it is named and not drawn.
DRAWN_LIMIT = 2.5
MOST_AHEAD = 3.2  # times the recording
COLUMNS = 800  # one per picture point across
BINS = 48


def page(found: Sequence[Analysis]) -> str:
    """The whole document for one or more recordings."""
    title = found[0].source if len(found) == 1 else f"{len(found)} recordings"
    footer = "Made by memwarden analyze. Sizes are binary: 1 MiB is 1 048 576 bytes."
    return frame(f"Memory of {title}", "\n".join(_section(a) for a in found), footer)


def _section(a: Analysis) -> str:
    return "\n".join(
        (
            f"<section><h1>Memory of {escape(a.source)}</h1>",
            f'<p class="of">{escape(_when(a))}</p>',
            f'<p class="say {_mood(a)}">{escape(_analysis.headline(a))}</p>',
            f"<p>{escape(_summary(a))}</p>",
            _tiles(a),
            "<h2>Memory over time</h2>",
            f"<figure>{_course(a)}<figcaption>{escape(_legend(a))}</figcaption></figure>",
            "<h2>How long at which size</h2>",
            f"<figure>{_spread(a)}<figcaption>{escape(_above(a))}</figcaption></figure>",
            *_leak(a),
            *_advice(a),
            "<h2>Figures</h2>",
            _table(a),
            "</section>",
        )
    )


def _when(a: Analysis) -> str:
    if a.start_unix_s is None:
        return f"{len(a.own)} samples over {format_duration(a.own.duration_s)}"
    from datetime import UTC, datetime

    start = datetime.fromtimestamp(a.start_unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{len(a.own)} samples over {format_duration(a.own.duration_s)}, from {start}"


def _mood(a: Analysis) -> str:
    if a.peak_ratio is not None and a.peak_ratio > TIGHT:
        return "bad"
    if a.leak.confirmed:
        return "bad"
    if a.forecast.seconds_to_limit is not None or a.trend.increasing or a.leak.suspected:
        return "warn"
    return "good"


def _summary(a: Analysis) -> str:
    """The figures as a few sentences for somebody who does not run the service."""
    average, peak = format_bytes(a.average_bytes), format_bytes(a.own.peak_bytes)
    words = [f"The process used {average} on average and {peak} at its peak"]
    if a.limit_bytes:
        share = format_ratio(a.peak_ratio)
        limit = format_bytes(a.limit_bytes)
        if a.counted is a.own or a.counted.peak_bytes == a.own.peak_bytes:
            words[0] += f", which is {share} of its limit of {limit}"
        else:  # resident memory counts shared pages more than once; the limit does not
            words.append(f"What counts against its limit of {limit} peaked at {share} of it")
    if a.forecast.seconds_to_limit:
        words.append(f"At the present pace it reaches the limit in {_analysis.time_to_limit(a)}")
    elif a.trend.increasing and a.forecast.reason:
        words.append(f"It was still growing at the end; {a.forecast.reason}")
    if a.spikes:
        words.append(f"{len(a.spikes)} short spike{'s' * (len(a.spikes) > 1)} stood out above the usual level")
    words.append(f"Leak: {_analysis.leak_in_words(a)}")
    return ". ".join(words) + "."


def _tiles(a: Analysis) -> str:
    growth = a.trend.growth_bytes_per_minute
    limit = format_ratio(a.peak_ratio) + " of the limit" if a.limit_bytes else "no limit known"
    ahead = a.forecast.seconds_to_limit
    interval = (
        f"to the limit, 8 in 10: {format_duration(a.forecast.low_s)} to {format_duration(a.forecast.high_s)}"
        if ahead
        else f"to the limit: {a.forecast.reason}"
    )
    tiles = (
        (format_bytes(a.own.peak_bytes), f"peak, {limit}"),
        (
            "unknown" if growth is None else f"{format_bytes(growth)}/min",
            "growth" + (", increasing" * a.trend.increasing),
        ),
        ("none" if ahead is None else format_duration(ahead), interval),
        (format_bytes(a.recommended_limit_bytes), "would fit as a limit, on what was seen"),
    )
    inner = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{inner}</div>'


def _course(a: Analysis) -> str:
    """Memory over time, with the limit, the levels, the peak, spikes, growth and what lies ahead."""
    start_s, end_s = a.own.times_s[0], a.own.times_s[-1]
    ahead_s = _ahead_s(a)
    top = _top(a)
    plot = Plot("Memory over time", x=(start_s, end_s + ahead_s), y=(0, top))
    plot.grid_y(size_step(top), size_text)
    plot.grid_x(time_step(end_s + ahead_s - start_s), time_text)
    if a.limit_bytes and a.limit_bytes <= top:
        for share, name in LEVELS:
            plot.across("level", a.limit_bytes * share, f"{name} {share:.0%}")
        plot.across("limit", a.limit_bytes, f"limit {format_bytes(a.limit_bytes)}")
    if _shows_counted(a):
        _curve(plot, "counted", a.counted)
    _curve(plot, "curve", a.own)
    if a.trend.increasing:
        _growth(plot, a)
    if ahead_s:
        _cone(plot, a, ahead_s)
    for spike in a.spikes:
        if spike.peak_bytes < a.own.peak_bytes:  # the highest has the mark of the peak
            plot.triangle("spike", spike.start_s, spike.peak_bytes)
    plot.dot("peak", a.own.peak_at_s, a.own.peak_bytes)
    side = "end" if a.own.peak_at_s > start_s + 0.85 * (end_s + ahead_s - start_s) else "middle"
    plot.text(
        "peak",
        a.own.peak_at_s,
        a.own.peak_bytes,
        f"peak {format_bytes(a.own.peak_bytes)}",
        anchor=side,
        rise=16,
    )
    return plot.svg()


def _top(a: Analysis) -> float:
    """The top of the scale: the limit where it is not far off, else the peak, and some air."""
    high = float(a.counted.peak_bytes if _shows_counted(a) else a.own.peak_bytes)
    if a.limit_bytes and a.limit_bytes <= DRAWN_LIMIT * high:
        high = max(high, a.limit_bytes)
    return max(high * 1.12, 1.0)


def _shows_counted(a: Analysis) -> bool:
    """Whether what counts against the limit is another curve, and not so high that it flattens the first."""
    return a.counted is not a.own and a.own.peak_bytes <= a.counted.peak_bytes <= DRAWN_LIMIT * a.own.peak_bytes


def _ahead_s(a: Analysis) -> float:
    """How much future to draw: the whole interval where the recording stays readable, else a part."""
    if not a.forecast.high_s or not a.limit_bytes or a.limit_bytes > _top(a):
        return 0.0
    whole_s, recorded_s = a.forecast.high_s * 1.05, max(a.own.duration_s, 1.0)
    return whole_s if whole_s <= MOST_AHEAD * recorded_s else recorded_s


def _curve(plot: Plot, style: str, series: Series) -> None:
    """A line that breaks at gaps, with the shade of what happened between two points of the picture."""
    stretches: dict[int, list[Bucket]] = {}
    for bucket in series.history(COLUMNS).buckets():
        stretches.setdefault(bucket.stretch, []).append(bucket)
    for buckets in stretches.values():
        high = [(b.first_s, b.high_bytes) for b in buckets]
        low = [(b.first_s, b.low_bytes) for b in buckets]
        if high != low:
            plot.area("band", high + low[::-1])
        plot.line(style, [(b.first_s, b.mean_bytes) for b in buckets])


def _growth(plot: Plot, a: Analysis) -> None:
    """The line through the floors over the window of the trend."""
    buckets = a.own.history().buckets(a.trend.window_s)
    points = floors(slices_of(buckets))[-1]
    slope = (a.trend.growth_bytes_per_minute or 0.0) / 60
    base = robust.median([y - slope * x for x, y in points])
    ends = [(x, base + slope * x) for x in (points[0][0], points[-1][0])]
    plot.line("growth", ends)
    x, y = ends[0][0] + 0.62 * (ends[1][0] - ends[0][0]), ends[0][1] + 0.62 * (ends[1][1] - ends[0][1])
    plot.text("growth", x, y, f"+{format_bytes(slope * 60)}/min", anchor="start", rise=-22)


def _cone(plot: Plot, a: Analysis, ahead_s: float) -> None:
    """From the last sample to the limit: the median dashed, the interval shaded, cut at the border."""
    now = (a.counted.times_s[-1], a.counted.values_bytes[-1])
    limit, last_s = float(a.limit_bytes or 0), now[0] + ahead_s
    f = a.forecast
    touches = (f.low_s or 0.0, f.seconds_to_limit or 0.0, f.high_s or 0.0)
    early, middle, late = (_towards(now, (now[0] + touch_s, limit), last_s) for touch_s in touches)
    corner = [(last_s, limit)] if early[1] >= limit > late[1] else []
    plot.area("cone", [now, early, *corner, late])
    plot.line("ahead", [now, middle])
    plot.upright("now", now[0], "end of recording" if ahead_s > 0.2 * a.own.duration_s else "")
    words = f"limit in about {format_duration(f.seconds_to_limit)}"
    x, y = (start + 0.55 * (end - start) for start, end in zip(now, middle, strict=True))
    plot.text("ahead", x, y, words, anchor="start", rise=-32)


def _towards(start: tuple[float, float], end: tuple[float, float], last_s: float) -> tuple[float, float]:
    """The end of a line, or where it leaves the picture."""
    if end[0] <= last_s:
        return end
    return last_s, start[1] + (end[1] - start[1]) * (last_s - start[0]) / (end[0] - start[0])


def _legend(a: Analysis) -> str:
    words = ["blue: memory in use" + (" (the shade is its lowest to highest)" if len(a.own.times_s) > COLUMNS else "")]
    if _shows_counted(a):
        words.append("grey: all that counts against the limit")
    if a.limit_bytes and a.limit_bytes > _top(a):
        words.append(f"the limit of {format_bytes(a.limit_bytes)} is far above this picture")
    if a.spikes:
        words.append("triangles: spikes")
    if a.trend.increasing:
        words.append("dashed: growth of the floors")
    if _ahead_s(a):
        words.append("shaded ahead: where the limit is reached in 8 of 10 cases")
    return "; ".join(words) + "."


def _spread(a: Analysis) -> str:
    """Share of the time at each size: what a limit has to hold."""
    low, high = min(a.own.values_bytes), float(a.own.peak_bytes)
    recommended = a.recommended_limit_bytes or 0
    edge = max(high, recommended if recommended <= 2 * high else 0) * 1.04
    ground = low * 0.9 if high < 1.6 * low else 0.0
    width = (edge - ground) / BINS or 1.0
    shares = _shares(a, ground, width)
    top = max(shares) * 1.15
    plot = Plot("Share of the time at each size", x=(ground, edge), y=(0, top), height=230)
    plot.grid_y(_share_step(top), lambda share: f"{share:.0%}")
    plot.grid_x(size_step(edge - ground), size_text)
    for i, share in enumerate(shares):
        if share:
            plot.bar("bar", (ground + i * width, ground + (i + 1) * width), share)
    if recommended <= edge:
        plot.upright("fit", recommended, f"would fit: {format_bytes(recommended)}")
    if a.limit_bytes and ground < a.limit_bytes <= edge:
        plot.upright("limit", a.limit_bytes, f"limit {format_bytes(a.limit_bytes)}", level=1)
    return plot.svg()


def _shares(a: Analysis, ground: float, width: float) -> list[float]:
    counts = [0] * BINS
    for value in a.own.values_bytes:
        counts[min(int((value - ground) / width), BINS - 1)] += 1
    return [count / len(a.own.values_bytes) for count in counts]


def _share_step(top: float) -> float:
    return next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if top / step <= 5 or step == 0.5)


def _above(a: Analysis) -> str:
    if not a.limit_bytes:
        return "Share of the samples at each size. With a limit (--limit) this says how long each level lasted."
    words = []
    for share, name in LEVELS:
        above = sum(value >= a.limit_bytes * share for value in a.counted.values_bytes)
        words.append(f"{name} (from {format_bytes(a.limit_bytes * share)}) {above}")
    return f"Of {len(a.counted)} samples at or above {', '.join(words)}."


def _leak(a: Analysis) -> list[str]:
    """The verdict, what speaks for it, and what its confidence is made of."""
    look = a.leak.look
    evidence = "".join(f"<li>{escape(sentence)}</li>" for sentence in look.evidence)
    parts = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{value:.0f}</td></tr>'
        for name, value in look.parts
        if value >= 0.5
    )
    return [
        "<h2>Leak</h2>",
        f"<p>{escape(_analysis.leak_in_words(a))}.</p>",
        f"<ul>{evidence}</ul>",
        f"<table>{parts}</table>" if a.leak.suspected and parts else "",
    ]


def _advice(a: Analysis) -> list[str]:
    more = a.recommendations[1:]
    if not more:
        return []
    items = "".join(f"<li>{escape(advice[:1].upper() + advice[1:])}.</li>" for advice in more)
    return ["<h2>What to do</h2>", f"<ul>{items}</ul>"]


def _table(a: Analysis) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name[:1].upper() + name[1:])}</th><td>{escape(value)}</td></tr>'
        for name, value in _analysis.figures(a)
    )
    return f"<table>{rows}</table>"
