"""Is it a leak? One verdict on the columns of a recording: suspicion, cause, confidence, evidence in words (row M8).

Two judges must agree. A score, fitted on recordings of real programs and on generated series (`leak_model`, plain
numbers), says how much the signs look like those of programs that leaked; a gate says what is no leak whatever the
score: memory that did not grow, that stopped growing, or that jumped once. `judge` looks at one window; `replay` looks
again and again as the recording grows, as a warden does: SUSPECTED is two accusing looks running, CONFIRMED needs more
than that (see `leakwatch`). The method is that of docs/explanation/leak-verdict.md. Pure.
"""

from __future__ import annotations

from math import inf, isnan, nan

from memwarden.facts import Fact
from memwarden.judge import leak_model, robust
from memwarden.judge.leak_words import in_words
from memwarden.judge.shape import closed_gaps, floors
from memwarden.judge.signs import MEAN_BLOCK_BYTES, RESIDENT, SERIES, live, resident, settled, signs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from memwarden.judge.signs import Columns

CAUSES = ("python", "native", "fragmentation", "cache", "traffic", "step", "unknown")

# The gate. The share of the level that a leak must have added by the end of the window: less is not told from the
# creep of an allocator. Real processes without a leak creep by 0-15 %, hence this is a floor and not a line.
LEAST_GROWTH = 0.012
# Of the pace of the whole, the pace of the later half. Below it, it stopped.
LATE_PACE = 0.15
# The order of the floors (Kendall's tau) below which they are only scattered.
STEADY = 0.4
# What remains without the two largest rises of a floor, as a share of the growth: below, it came in jumps.
WITHOUT_JUMPS = 0.15
# A step or a bend that explains the floors so much better than a line (logarithm of the errors) is what it was.
JUMPED = 1.6
STOPPED = 1.4
# A declared cache that explains this share of the growth is the growth.
CACHED = 0.6
# What is in use explains what is resident from this share of its growth on.
EXPLAINED = 0.3
# With traffic held still, growth that is less sure than this (its t value) is the traffic's.
SURE = 2.0
# What is resident follows the traffic with delay, so that with less of a rise it has to prove more: of rising traffic
# alone fewer than 1 in 1000 series are accused then, and every fifth by the lines above.
TRAFFIC_ROSE_SOME, BY_TRAFFIC, SURE_OF_RESIDENT = 0.2, 1.0, 8.0
# With it taken out, growth that is so sure and in such order needs no rising floors.
VERY_SURE, IN_ORDER = 8.0, 0.7
# Traffic whose last third is so much above its first (logarithm) may explain growth; below it cannot.
TRAFFIC_ROSE = 0.5

# Python's objects are the cause where their blocks grow by so much, so steadily, so far above their noise, and are at
# least that share of what is resident. On the recorded leaks that names the right one of python and native in 99 of
# 100: a lost reference to large buffers moves few blocks, and noise moves them without order.
OBJECTS_GROW, OBJECTS_STEADY, OBJECTS_OVER_NOISE, OBJECTS_SHARE = 0.004, 0.5, 5.0, 0.02
# What is in use must have grown by this share of what is resident, or the allocator holds the rest.
IN_USE = 0.4
# Below this share of it, growth that nobody is accused of is the allocator's.
FREE = 0.25
NOTHING_GREW = "none"

# Row M8: the five parts of the confidence, together 100, and what a verdict without accusation may reach.
PARTS = {"growth rate": 40, "consistent growth": 20, "high peak": 20, "low collection efficiency": 15, "other": 5}
UNACCUSED = 40
SUSPECTED_FROM = 60
CONFIRMED_FROM = 75
# The growth over the window that earns all of the first part where no limit is known.
FULL_GROWTH = 0.35
HORIZON_S = 86400.0

# The plain rule of row M8: half as much again over 60 samples.
PLAIN_RATIO = 1.5
PLAIN_SAMPLES = 60


class Look(Fact):
    """One verdict on one window. `cause` is empty where nothing grew; `score` is 0-1, None where too little was seen.

    `growth_bytes_per_minute` is that of the floors of what is resident, and `parts` are the five of the confidence.
    """

    accused: bool
    score: float | None = None
    barred: str = ""
    cause: str = ""
    confidence: int = 0
    growth_bytes_per_minute: float | None = None
    growth_ratio: float = 0.0
    evidence: tuple[str, ...] = ()
    parts: tuple[tuple[str, float], ...] = ()


def judge(
    columns: Columns,
    *,
    limit_bytes: float | None = None,
    freed_ratio: float | None = None,
    lenient: float = 0.0,
    models: Mapping[str, leak_model.Model] = leak_model.MODELS,
) -> Look:
    """Look at all of `columns`.

    `freed_ratio` is what a collection and a trim gave back of the growth, where that was tried. `lenient` is taken
    off the line of the score (0-1): a warden that already suspects needs less to go on suspecting.
    """
    found = signs(columns)
    if not found:
        return Look(accused=False, evidence=("too few samples to judge: a leak needs at least 28 and a later half",))
    seen = settled(columns)
    growth = Growth(seen, found)
    model = models[leak_model.kind_of(found)]
    score, line = model.score(found), leak_model.LINE - lenient
    barred = _barred(found, growth)
    accused = not barred and score >= line
    parts = _parts(found, columns, limit_bytes, growth.pace, freed_ratio)
    cause = _cause(found, growth) if accused else barred or _innocent(found, growth)
    look = Look(
        accused=accused,
        score=score,
        barred=barred,
        cause="" if cause == NOTHING_GREW else cause,
        confidence=_confidence(parts, accused=accused, score=score),
        growth_bytes_per_minute=None if growth.pace is None else growth.pace * 60,
        growth_ratio=found["resident_growth"],
        parts=parts,
    )
    return look.replace(evidence=in_words(look, found, growth, line=line, reasons=model.reasons(found)))


def known(values: Iterable[float]) -> list[float]:
    """Those that are not NaN."""
    return [value for value in values if not isnan(value)]


class Growth:
    """How many bytes each kind of memory grew by over the window, by the line through its floors."""

    def __init__(self, seen: Columns, found: Mapping[str, float]) -> None:
        self.lasted_s = seen.t_s[-1] - seen.t_s[0]
        self.by_work = "work_done" in seen
        levels = resident(seen)
        self.resident = _rise(levels, found["resident_growth"])
        self.live = _rise(live(seen), found["live_growth"]) if "live_growth" in found else None
        self.python: float | None = None
        if "blocks_growth" in found:
            self.python = _rise(seen["python_blocks"], found["blocks_growth"]) * MEAN_BLOCK_BYTES
        cached = known(seen["declared_cache_bytes"]) if "declared_cache_bytes" in seen else []
        self.cached = max(cached[-1] - cached[0], 0.0) if cached else 0.0
        times_s, values = closed_gaps(seen.t_s, levels)
        # Bytes a second, against time whatever the axis of the verdict.
        self.pace = robust.slope([[(times_s[i], value) for i, value in floors(times_s, values)]])


def _rise(values: Sequence[float], ratio: float) -> float:
    return ratio * robust.median(known(values))


def _main(found: Mapping[str, float]) -> str:
    """The series that tells most: what is live, where that is known."""
    return "live" if "live_growth" in found else "resident"


def _grows(found: Mapping[str, float], name: str, least: float = LEAST_GROWTH) -> bool:
    """Whether the floors of a series rise steadily and still at the end."""
    if f"{name}_growth" not in found:
        return False
    growth = max(found[f"{name}_growth"], found[f"{name}_coarse_growth"])
    late = max(found[f"{name}_late"], found[f"{name}_coarse_late"])
    steady = max(found[f"{name}_tau"], found[f"{name}_coarse_tau"])
    return growth >= least and steady >= STEADY and late >= LATE_PACE * growth


def _barred(found: Mapping[str, float], growth: Growth) -> str:
    """The cause that forbids an accusation; empty where none does."""
    if growth.cached and growth.cached >= CACHED * (growth.cached + max(growth.resident, growth.live or 0.0)):
        return "cache"
    if any(_grows_at_equal_traffic(found, name) for name in SERIES):
        return ""
    suspects = [name for name in SERIES if _grows(found, name)]
    if len(suspects) > 1 and suspects[0] == "resident" and found["explained"] > EXPLAINED:
        del suspects[0]  # it rises because what is in use rises: that is the one to ask
    if not suspects:
        return _innocent(found, growth) or NOTHING_GREW
    reasons = [_not_growth(found, name) for name in suspects]
    return reasons[0] if all(reasons) else ""


def _not_growth(found: Mapping[str, float], name: str) -> str:
    if found[f"{name}_step"] > JUMPED:
        return "step"
    if found[f"{name}_bend"] > STOPPED and found[f"{name}_last"] < 0.3 * found[f"{name}_growth"]:
        return "cache"
    return "traffic" if _by_traffic(found, name) else ""


def _by_traffic(found: Mapping[str, float], name: str) -> bool:
    sure, growth = found.get(f"{name}_partial_sure", SURE), found.get(f"{name}_partial_growth", inf)
    if found["traffic"] > TRAFFIC_ROSE and sure < SURE:
        return True
    most_of_it = sure < SURE or (growth < BY_TRAFFIC * found[f"{name}_growth"] and sure < SURE_OF_RESIDENT)
    return name == "resident" and found["traffic"] > TRAFFIC_ROSE_SOME and most_of_it


def _grows_at_equal_traffic(found: Mapping[str, float], name: str) -> bool:
    """Whether it surely grows to the end, and in no jump, once the part of varying traffic is taken out."""
    growth = found.get(f"{name}_partial_growth", nan)
    return (
        growth >= LEAST_GROWTH
        and found[f"{name}_partial_sure"] >= VERY_SURE
        and found[f"{name}_equal_tau"] >= IN_ORDER
        and found[f"{name}_equal_late"] >= 2 * LATE_PACE * growth
        and found[f"{name}_equal_step"] <= 0
    )


def _innocent(found: Mapping[str, float], growth: Growth) -> str:
    """What it is where it grew and is not accused; empty where it did not grow."""
    if found["resident_growth"] < 2 * LEAST_GROWTH and found.get("live_growth", 0.0) < LEAST_GROWTH:
        return ""
    if found["resident_step"] > 0.7 or found["resident_spread"] < WITHOUT_JUMPS:
        return "step"
    if _by_traffic(found, _main(found)):
        return "traffic"
    if max(found["resident_bend"], found["resident_saturation"]) > 0.5:
        return "cache"
    if growth.live is not None and growth.live < FREE * growth.resident:
        return "fragmentation"
    return "unknown"


def _cause(found: Mapping[str, float], growth: Growth) -> str:
    """Who grew, of an accused series."""
    if growth.python is None:
        return "unknown"
    if _objects_pile_up(found, growth):
        return "python"
    if growth.live is None:
        return "native"
    return "native" if growth.live >= IN_USE * growth.resident else "fragmentation"


def _objects_pile_up(found: Mapping[str, float], growth: Growth) -> bool:
    return (
        found["blocks_coarse_growth"] >= OBJECTS_GROW
        and found["blocks_coarse_tau"] >= OBJECTS_STEADY
        and found["blocks_coarse_over_noise"] >= OBJECTS_OVER_NOISE
        and (growth.python or 0.0) >= OBJECTS_SHARE * growth.resident
    )


def _parts(
    found: Mapping[str, float],
    columns: Columns,
    limit_bytes: float | None,
    pace: float | None,
    freed_ratio: float | None,
) -> tuple[tuple[str, float], ...]:
    """The five parts of row M8, each between 0 and its share of `PARTS`."""
    main = _main(found)
    values = known(columns[next(name for name in ("used_bytes", *RESIDENT) if name in columns)])
    rate = max(found[f"{main}_growth"], found["resident_growth"]) / FULL_GROWTH
    peak = 0.0
    if limit_bytes:
        peak = (max(values) / limit_bytes - 0.6) / 0.35
        if pace is not None and pace > 0:
            rate = max(rate, pace * HORIZON_S / max(limit_bytes - values[-1], 1.0) / 4)
    steady = (found[f"{main}_late_tau"], found[f"{main}_late_records"], found[f"{main}_spread"])
    kept = 1 - freed_ratio if freed_ratio is not None else _kept(found)
    other = 1.0 if _uncollectable(columns) or found.get("blocks_tau", 0.0) > 0.9 else 0.0
    shares = (rate, sum(map(_share, steady)) / 3, peak, kept, other)
    return tuple((name, PARTS[name] * _share(share)) for name, share in zip(PARTS, shares, strict=True))


def _kept(found: Mapping[str, float]) -> float:
    """What collections left, told from the floors: all of a floor's rise that was not given back later."""
    return found[f"{_main(found)}_kept_late"] * 2


def _uncollectable(columns: Columns) -> bool:
    if "gc_uncollectable" not in columns:
        return False
    counted = known(columns["gc_uncollectable"])
    return counted[-1] > counted[0]


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _confidence(parts: Sequence[tuple[str, float]], *, accused: bool, score: float) -> int:
    """0-100. The parts order the accused and the innocent among themselves; only the gate and the score accuse."""
    total = sum(value for _, value in parts)
    if not accused:
        return int(min(total * score, UNACCUSED))
    return round(SUSPECTED_FROM + (100 - SUSPECTED_FROM) * total / 100)


def plain_rule(values_bytes: Sequence[float], *, ratio: float = PLAIN_RATIO, samples: int = PLAIN_SAMPLES) -> bool:
    """The rule of the older systems, where somebody wants it: the newest sample against that of `samples` ago.

    It misses two leaks of three and accuses one healthy process in thirteen (research: leaks, 2.2).
    """
    values = known(values_bytes)
    return len(values) >= samples and values[-samples] > 0 and values[-1] >= ratio * values[-samples]


def confirmed(look: Look) -> Look:
    """The same verdict where more than statistics speaks for it."""
    return look.replace(confidence=max(look.confidence, CONFIRMED_FROM))
