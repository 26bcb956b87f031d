"""One recording examined: the figures that `analyze` prints as text, JSON and HTML."""

from __future__ import annotations

from itertools import pairwise
from math import isnan
from typing import TYPE_CHECKING

from memwarden.facts import Fact, Forecast, Trend
from memwarden.judge import robust
from memwarden.judge.advise import fitting_limit, leak_advice, recommendations
from memwarden.judge.forecast import forecast
from memwarden.judge.history import BUCKETS, History
from memwarden.judge.leak import plain_rule
from memwarden.judge.leakwatch import Ending, replay
from memwarden.judge.signs import Columns
from memwarden.judge.trend import Spike, is_rapid, spikes, trend
from memwarden.units import format_bytes, format_duration, format_ratio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from memwarden.sense.trace import Trace

# Python's small blocks are 32 bytes (integers) to 95 (code and strings) on average, 64 for parsed JSON and
# for dictionaries (measured with sys._debugmallocstats on CPython 3.11). The answer is marked as an
# estimate.
MEAN_BLOCK_BYTES = 64
# Where this process is less than a quarter of what is counted, others share the limit with it.
OWN_SHARE = 0.25


class Series:
    """One column of a recording where it has values."""

    def __init__(self, trace: Trace, name: str) -> None:
        self.name = name
        self.times_s, self.values_bytes = trace.known(name)

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def peak_bytes(self) -> int:
        """Its highest value."""
        return int(max(self.values_bytes))

    @property
    def peak_at_s(self) -> float:
        """When it was first at its highest."""
        return self.times_s[max(range(len(self)), key=self.values_bytes.__getitem__)]

    @property
    def duration_s(self) -> float:
        """From its first value to its last."""
        return self.times_s[-1] - self.times_s[0]

    def history(self, buckets: int = BUCKETS) -> History:
        """All of it as a history whose gaps are told from the recording's own rhythm."""
        steps_s = sorted(b - a for a, b in pairwise(self.times_s))
        # The longest of the usual steps: a recorder that looks faster under pressure makes shorter ones, too.
        usual_s = robust.quantile(steps_s, 0.95) or None
        window_s = self.duration_s * 1.001 + 1e-6
        return History.of(self.times_s, self.values_bytes, window_s=window_s, buckets=buckets, interval_s=usual_s)


class Analysis(Fact):
    """What one recording says: `own` is the process's memory, `counted` what counts against the limit."""

    source: str
    kind: str
    skipped_lines: int
    start_unix_s: float | None
    own: Series
    counted: Series
    average_bytes: float
    spikes: tuple[Spike, ...]
    trend: Trend
    forecast: Forecast
    leak: Ending
    rapid: bool
    limit_bytes: int | None
    limit_source: str
    efficiency_ratio: float | None
    efficiency_basis: str
    recommended_limit_bytes: int | None
    recommendations: tuple[str, ...]

    @property
    def peak_ratio(self) -> float | None:
        """The highest of what counts, over the limit."""
        return self.counted.peak_bytes / self.limit_bytes if self.limit_bytes else None


def examine(
    trace: Trace, *, limit_bytes: int | None = None, window_s: float | None = None, leak_rule: str = "signs"
) -> Analysis:
    """Judge a recording against a limit (the trace's own where none is given), over its last `window_s`.

    `leak_rule` is `signs`, or `plain` for the rule of the older systems: half as much again over 60 samples.
    """
    limit, limit_source = _limit(trace, limit_bytes)
    own, used = Series(trace, "rss_bytes"), Series(trace, "used_bytes")
    own = own if len(own) else used
    alone = _is_ours(own, used)
    counted = used if len(used) * 2 > len(trace) and (alone or limit_bytes is None) else own
    whole = own.history()
    average_bytes = trend(whole).average_bytes or 0.0
    ratio, basis = _efficiency(trace, average_bytes, own.peak_bytes)
    movement = trend(whole, window_s)
    ahead = forecast(counted.history(), limit, counted.times_s[-1], window_s=window_s)
    found = tuple(spikes(own.times_s, own.values_bytes))
    whole_wanted = _recommended(counted, at_least=own)  # what is said about a limit is about all that counts
    seen = movement.replace(peak_bytes=counted.peak_bytes, spikes=len(found))
    leak = _leak(trace, own, limit if alone else None, rule=leak_rule)
    advice = recommendations(seen, ahead, limit_bytes=limit, recommended_bytes=whole_wanted)
    return Analysis(
        source=trace.source,
        kind=trace.kind,
        skipped_lines=trace.skipped_lines,
        start_unix_s=trace.start_unix_s,
        own=own,
        counted=counted,
        average_bytes=average_bytes,
        spikes=found,
        trend=movement,
        forecast=ahead,
        leak=leak,
        rapid=is_rapid(whole),
        limit_bytes=limit,
        limit_source=limit_source,
        efficiency_ratio=ratio,
        efficiency_basis=basis,
        recommended_limit_bytes=whole_wanted if alone else _recommended(own, at_least=own),
        recommendations=leak_advice(
            leak.look,
            advice,
            suspected=leak.suspected,
            confirmed=leak.confirmed,
            urgent=ahead.seconds_to_limit is not None,
        ),
    )


def _leak(trace: Trace, own: Series, limit_bytes: int | None, *, rule: str) -> Ending:
    ending = replay(Columns(trace.t_s, {"rss_bytes": trace.rss_bytes, **trace.columns}), limit_bytes=limit_bytes)
    if rule != "plain":
        return ending
    grown = plain_rule(own.values_bytes)
    words = (
        "the plain rule: the last sample is half as much again as 60 samples before"
        if grown
        else "the plain rule: not half as much again over 60 samples"
    )
    look = ending.look.replace(evidence=(words, *ending.look.evidence))
    return ending.replace(look=look, suspected=grown, confirmed=False)


def _limit(trace: Trace, limit_bytes: int | None) -> tuple[int | None, str]:
    if limit_bytes is not None:
        return limit_bytes, "--limit"
    _, limits = trace.known("limit_bytes")
    if limits and limits[-1] > 0:
        return int(limits[-1]), "the trace"
    return None, "unknown: give --limit"


def _is_ours(own: Series, used: Series) -> bool:
    """Whether what the container uses is mostly this process, so that a limit can be made from it."""
    return robust.median(own.values_bytes) >= OWN_SHARE * robust.median(used.values_bytes)


def _recommended(series: Series, *, at_least: Series) -> int | None:
    return fitting_limit(series.history().buckets(), highest_bytes=max(series.peak_bytes, at_least.peak_bytes))


def _efficiency(trace: Trace, average_bytes: float, peak_bytes: float) -> tuple[float | None, str]:
    """Live bytes over RSS where a trace has them, else average over peak: C2 wants it said which."""
    shares = list(_live_shares(trace))
    if shares:
        parts = []
        if "python_blocks" in trace.columns:
            parts.append(f"Python blocks of about {MEAN_BLOCK_BYTES} B")
        if "native_in_use_bytes" in trace.columns:
            parts.append("malloc in use")
        only = "" if "native_in_use_bytes" in trace.columns else "; larger allocations are not in the trace"
        return min(robust.median(shares), 1.0), f"live bytes / RSS, estimated from {' and '.join(parts)}{only}"
    ratio = min(average_bytes / peak_bytes, 1.0) if peak_bytes > 0 else None
    return ratio, "average / peak: the trace has no live bytes"


def _live_shares(trace: Trace) -> Iterator[float]:
    unknown = [float("nan")] * len(trace)
    blocks = trace.columns.get("python_blocks", unknown)
    native = trace.columns.get("native_in_use_bytes", unknown)
    for rss, block, malloc in zip(trace.rss_bytes, blocks, native, strict=True):
        known = [value for value in (block * MEAN_BLOCK_BYTES, malloc) if not isnan(value)]
        if known and rss > 0:
            yield sum(known) / rss


def as_json(a: Analysis) -> dict[str, Any]:
    """The object of the contract (DESIGN, 13), and more beside it."""
    return {
        "source": a.source,
        "kind": a.kind,
        "samples": len(a.own),
        "skipped_lines": a.skipped_lines,
        "duration_s": _short(a.own.duration_s),
        "average_bytes": round(a.average_bytes),
        "peak_bytes": a.own.peak_bytes,
        "peak_at_s": _short(a.own.peak_at_s),
        "spikes": len(a.spikes),
        "spike_list": [{name: _short(value) for name, value in spike.as_dict().items()} for spike in a.spikes],
        "rapid_growth": a.rapid,
        "leak": {
            "suspected": a.leak.suspected,
            "confirmed": a.leak.confirmed,
            "confidence": a.leak.look.confidence,
            "cause": a.leak.look.cause or None,
            "detected_at_s": _short(a.leak.detected_at_s),
            "growth_bytes_per_minute": _whole(a.leak.look.growth_bytes_per_minute),
            "evidence": list(a.leak.look.evidence),
            "parts": {name: round(value, 1) for name, value in a.leak.look.parts},
            "told": [{"what": told.what, "t_s": _short(told.t_s), "text": told.text} for told in a.leak.told],
        },
        "efficiency_percent": None if a.efficiency_ratio is None else round(a.efficiency_ratio * 100, 1),
        "efficiency_basis": a.efficiency_basis,
        "trend": {**a.trend.as_dict(), **_rounded(a.trend)},
        "limit_bytes": a.limit_bytes,
        "limit_source": a.limit_source,
        "forecast": {name: _short(value) for name, value in a.forecast.as_dict().items()},
        "counted_column": a.counted.name,
        "recommended_limit_bytes": a.recommended_limit_bytes,
        "recommendations": list(a.recommendations),
    }


def _rounded(of: Trend) -> dict[str, Any]:
    return {
        "window_s": _short(of.window_s),
        "average_bytes": _whole(of.average_bytes),
        "growth_bytes_per_minute": _whole(of.growth_bytes_per_minute),
    }


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def headline(a: Analysis) -> str:
    """The one sentence to read when there is time for one."""
    return a.recommendations[0][:1].upper() + a.recommendations[0][1:] + "."


def movement(a: Analysis) -> str:
    """Growth in words."""
    growth = a.trend.growth_bytes_per_minute
    if growth is None:
        return "unknown: too few samples"
    pace = f"{'+' if growth >= 0 else ''}{format_bytes(growth)} a minute"
    word = "increasing" if a.trend.increasing else "not increasing"
    word += ", rapidly at the end" if a.rapid else ""
    return f"{pace} over {format_duration(a.trend.window_s)}, {word}"


def time_to_limit(a: Analysis) -> str:
    """The forecast in words."""
    f = a.forecast
    if f.seconds_to_limit is None:
        return f"no forecast: {f.reason}"
    if f.seconds_to_limit == 0:
        return "now: " + f.reason
    return (
        f"about {format_duration(f.seconds_to_limit)} "
        f"(8 in 10: {format_duration(f.low_s)} to {format_duration(f.high_s)})"
    )


def figures(a: Analysis) -> list[tuple[str, str]]:
    """Every figure with its name, in the order somebody on call asks for them."""
    share = f", {format_ratio(a.peak_ratio)} of it at the peak" if a.limit_bytes else ""
    return [
        ("time to limit", time_to_limit(a)),
        ("growth", movement(a)),
        ("peak", f"{format_bytes(a.own.peak_bytes)} at {format_duration(a.own.peak_at_s)}"),
        ("average", format_bytes(a.average_bytes)),
        ("last", format_bytes(a.own.values_bytes[-1])),
        (
            "limit",
            f"{format_bytes(a.limit_bytes)} from {a.limit_source}{share}" if a.limit_bytes else a.limit_source,
        ),
        ("would fit", _would_fit(a)),
        ("spikes", _spikes(a)),
        ("efficiency", f"{format_ratio(a.efficiency_ratio)} ({a.efficiency_basis})"),
        ("leak", leak_in_words(a)),
        ("recording", _recording(a)),
    ]


def leak_in_words(a: Analysis) -> str:
    """The leak verdict in a line."""
    look, grade = a.leak.look, "confirmed" if a.leak.confirmed else "suspected"
    if a.leak.suspected:
        since = "" if a.leak.detected_at_s is None else f", since {format_duration(a.leak.detected_at_s)}"
        return f"{grade}: {CAUSES[look.cause]}, confidence {look.confidence} of 100{since}"
    return f"none{': ' + CAUSES[look.cause] if look.cause else ''} (confidence {look.confidence} of 100)"


CAUSES = {
    "python": "Python objects pile up",
    "native": "memory outside of Python's objects piles up",
    "fragmentation": "the allocator holds memory that nothing uses",
    "cache": "it grew as a cache that fills",
    "traffic": "it grew with the traffic",
    "step": "it took steps",
    "unknown": "the cause cannot be told from these columns",
}


def _would_fit(a: Analysis) -> str:
    grows = a.trend.increasing or a.forecast.seconds_to_limit is not None
    until = ", for what was seen: it was still growing" if grows else ""
    return f"a limit of {format_bytes(a.recommended_limit_bytes)}{until}"


def _spikes(a: Analysis) -> str:
    if not a.spikes:
        return "none"
    top = max(a.spikes, key=lambda spike: spike.above_bytes)
    return f"{len(a.spikes)}, the largest +{format_bytes(top.above_bytes)} at {format_duration(top.start_s)} " + (
        f"for {format_duration(top.duration_s)}" if top.duration_s else "in one sample"
    )


def _recording(a: Analysis) -> str:
    skipped = f", {a.skipped_lines} malformed lines skipped" if a.skipped_lines else ""
    return f"{len(a.own)} samples over {format_duration(a.own.duration_s)} ({a.kind}){skipped}"


def as_text(a: Analysis) -> str:
    """For a terminal: what to do first, then the figures."""
    rows = [f"  {name:<14} {value}" for name, value in figures(a)]
    more = [f"  - {advice}" for advice in a.recommendations[1:]]
    why = [f"  - {sentence}" for sentence in a.leak.look.evidence] if a.leak.suspected else []
    parts = [f"{a.source}: {headline(a)}", "", *rows]
    parts += ["", "why a leak:", *why] if why else []
    return "\n".join([*parts, *(["", "also:", *more] if more else []), ""])
