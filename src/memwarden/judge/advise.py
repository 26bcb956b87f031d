"""What to do about it, in words, and the limit that fits the workload (row M12). Pure."""

from __future__ import annotations

from memwarden.judge import robust
from memwarden.judge.trend import slices_of
from memwarden.units import MIB, format_bytes, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.facts import Forecast, Trend
    from memwarden.judge.history import Bucket
    from memwarden.judge.leak import Look

# As the Kubernetes vertical pod autoscaler: a high quantile of the peaks plus 15 %, and after an OOM kill
# the larger of +20 % and +100 MB over what was seen (autoscaler, vertical-pod-autoscaler/pkg/recommender:
# safetyMarginFraction 0.15, OOMBumpUpRatio 1.2, OOMMinBumpUp 100 * 1024 * 1024). Its quantile of the upper
# bound is 0.95.
QUANTILE = 0.95
MARGIN = 1.15
OOM_RATIO = 1.2
OOM_LEAST_BYTES = 100 * MIB
# A limit that equals the highest peak kills at the next one that is a page higher.
OVER_PEAK = 1.05
ROUND_BYTES = 16 * MIB

# The first tenth of a recording is start-up: imports, caches, the first request.
WARM_UP = 0.1
# Below this share of the limit the rest is paid for and never used; above that share the next peak may be
# the last.
FAR_BELOW = 0.5
TIGHT = 0.9


def recommended_limit(
    peaks_bytes: Sequence[float], *, highest_bytes: float | None = None, oom_killed: bool = False
) -> int | None:
    """The limit for a workload with these peaks (one per slice of its settled time), a multiple of 16 MiB.

    `highest_bytes` is the highest ever seen, the start included: the answer is never below it. None without
    peaks.
    """
    if not peaks_bytes:
        return None
    highest = max(*peaks_bytes, highest_bytes or 0.0)
    wanted = max(MARGIN * robust.quantile(sorted(peaks_bytes), QUANTILE), OVER_PEAK * highest)
    if oom_killed:
        wanted = max(wanted, OOM_RATIO * highest, highest + OOM_LEAST_BYTES)
    return max(1, -int(-wanted // ROUND_BYTES)) * ROUND_BYTES


def fitting_limit(
    buckets: Sequence[Bucket], *, highest_bytes: float | None = None, oom_killed: bool = False
) -> int | None:
    """The recommended limit for what these buckets of a history saw, its first tenth left out as start-up."""
    pieces = slices_of(buckets) if buckets else []
    settled = pieces[int(len(pieces) * WARM_UP) :]
    return recommended_limit(
        [piece.high_bytes for piece in settled], highest_bytes=highest_bytes, oom_killed=oom_killed
    )


def recommendations(
    trend: Trend, forecast: Forecast, *, limit_bytes: int | None, recommended_bytes: int | None
) -> tuple[str, ...]:
    """One sentence per thing to do or to know, the most urgent first; never empty."""
    if trend.peak_bytes is None or recommended_bytes is None:
        return ("no memory was measured: record some minutes of it first",)
    if _grows(trend, forecast):
        return (_growing(trend, forecast, limit_bytes), *_while_growing(trend))
    words = [_state(trend, forecast)]
    fit = limit_advice(trend.peak_bytes, limit_bytes, recommended_bytes)
    if limit_bytes is not None and trend.peak_bytes > TIGHT * limit_bytes:
        words.insert(0, fit)
    elif fit:
        words.append(fit)
    if trend.spikes:
        words.append(
            f"{_count(trend.spikes, 'spike')} above the usual level: look at what ran then, "
            "and process it in smaller parts"
        )
    return tuple(words)


# What to do about growth of each cause.
CAUSE_ADVICE = {
    "python": "find the container or the lost reference: take two censuses by type, or watch the live-heap sites",
    "native": (
        "memory outside of Python's objects grows: suspect an extension, a buffer that is appended to, a connection "
        "or a handle that is not closed; take a native capture of a minute (memray --native)"
    ),
    "fragmentation": (
        "the allocator holds what nothing uses: fewer arenas (MALLOC_ARENA_MAX=2), malloc_trim, another allocator, or "
        "a restart in quiet hours"
    ),
    "cache": "it levels off like a cache that fills: bound it by bytes and declare it, so that it is not counted",
    "traffic": "it grew with the traffic, which is no leak: size the limit for the peak, or admit less at once",
    "step": "it came in steps: look at what was loaded, started or deployed then",
    "unknown": "record Python's blocks, malloc in use and the work done too: they tell who grew",
}


def leak_advice(
    look: Look, others: Sequence[str], *, suspected: bool, confirmed: bool, urgent: bool
) -> tuple[str, ...]:
    """The advice on a leak among the others.

    First where one is suspected (second where the first of the others is urgent), at the end where it only explains.
    """
    if suspected:
        grade = "leaks" if confirmed else "seems to leak"
        pace = format_bytes(look.growth_bytes_per_minute or 0.0)
        verdict = f"memory {grade}, {pace} a minute (cause: {look.cause}, confidence {look.confidence} of 100)"
        first, rest = (others[:1], others[1:]) if urgent else ((), others)
        return (*first, verdict, CAUSE_ADVICE[look.cause], *(each for each in rest if each != "memory is stable"))
    known = look.cause in {"fragmentation", "cache", "traffic", "step"}
    return (*others, CAUSE_ADVICE[look.cause]) if known else tuple(others)


def _grows(trend: Trend, forecast: Forecast) -> bool:
    levels_off = forecast.reason.startswith(("growth is slowing", "series is a step"))
    return forecast.seconds_to_limit is not None or (trend.increasing and not levels_off)


def _growing(trend: Trend, forecast: Forecast, limit_bytes: int | None) -> str:
    pace = f"{format_bytes(trend.growth_bytes_per_minute)} a minute"
    if forecast.seconds_to_limit == 0:
        return f"the limit of {format_bytes(limit_bytes)} is reached: shed load, restart or raise it now"
    if forecast.seconds_to_limit is not None:
        return (
            f"memory grows by {pace}: the limit of {format_bytes(limit_bytes)} is reached in about "
            f"{format_duration(forecast.seconds_to_limit)} (between {format_duration(forecast.low_s)} and "
            f"{format_duration(forecast.high_s)})"
        )
    return f"memory grows by {pace}: {forecast.reason}"


def _while_growing(trend: Trend) -> tuple[str, ...]:
    return (
        "a larger limit only postpones it: find what keeps the memory, and restart in time until then",
        f"it needed {format_bytes(trend.peak_bytes)} so far, and no limit lasts while it grows",
    )


def _state(trend: Trend, forecast: Forecast) -> str:
    if forecast.reason.startswith("growth is slowing"):
        return f"memory settles: {forecast.reason}"
    if forecast.reason.startswith("series is a step"):
        return "memory took one step up and stayed there: look at what was started or deployed then"
    if trend.samples < 2 or forecast.reason.startswith("too few"):
        return "too few samples to say whether memory is stable: record longer"
    return "memory is stable"


def limit_advice(peak_bytes: int, limit_bytes: int | None, recommended_bytes: int) -> str:
    """How the limit fits the workload; empty where it does."""
    wanted, peak = format_bytes(recommended_bytes), format_bytes(peak_bytes)
    if limit_bytes is None:
        return f"no limit is known: {wanted} would fit this workload (its peak was {peak})"
    limit = format_bytes(limit_bytes)
    if peak_bytes > TIGHT * limit_bytes:
        return (
            f"limit is too small for this workload: it peaked at {peak} of {limit}; "
            f"set it to {wanted} or make the workload smaller"
        )
    if peak_bytes < FAR_BELOW * limit_bytes and recommended_bytes < limit_bytes:
        return f"far below the limit: it peaked at {peak} of {limit}; the limit could be lowered to {wanted}"
    return ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
