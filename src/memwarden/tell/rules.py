"""From verdicts, findings, outcomes and deaths to what there is to tell: pure, no I/O and no clock.

A level is raised when it lasted for `raise_for_s` (EMERGENCY at once), and it is over when memory was below it, and
below a line of its own, for `clear_for_s`. Everything else that is judged elsewhere (leaks, growth, spikes) was made
sure of there, and is only put into words here.
"""

from __future__ import annotations

from collections import deque

from memwarden.facts import Fact, Level
from memwarden.units import format_bytes, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from memwarden.facts import Finding, Outcome, Verdict

# So many collections within so long are frequent: the ladder's own rest a minute, so these are asked for by hand or
# climbed for nothing.
FREQUENT, FREQUENT_S = 10, 600.0


class Draft(Fact):
    """What there is to tell, before it has an identity; the fields are those of a `Signal`."""

    kind: str
    what: str
    level: Level
    title: str
    text: str
    scope: str = "container"
    details: Mapping[str, Any] = {}


class Change(Fact):
    """What changed about the level: `what` is raised or cleared; `level` the one that stands from now on.

    `lasts` is false where memory is below it already, and not for long enough. `peak` is the most that was in use while
    anything stood: (share of the limit, bytes).
    """

    kind: str
    what: str
    level: Level
    lasts: bool = True
    peak: tuple[float, int | None] | None = None


class LevelRules:
    """Follows the level of one process's verdicts. `clear_below` and `exceeded_below` are shares of the limit, 0-1.

    Times are seconds of any clock that never runs backwards.
    """

    def __init__(self, *, raise_for_s: float, clear_for_s: float, clear_below: float, clear_gap: float) -> None:
        self._raise_for_s, self._clear_for_s = raise_for_s, clear_for_s
        self._clear_below, self._exceeded_below = clear_below, 1.0 - clear_gap
        self._at_least: list[float | None] = [None] * 4  # since when the level is at least that
        self._below: list[float | None] = [None] * 4  # since when it is below that
        self.told = self._before = Level.NORMAL
        self.exceeded = False
        self._fits_since_s: float | None = None
        self._ratio: float | None = None
        self._peak: tuple[float, int | None] | None = None

    def weigh(
        self, level: Level, ratio: float | None, now_s: float, *, used_bytes: int | None = None
    ) -> Sequence[Change]:
        """One look: what changed by it. `ratio` is the share of the limit in use."""
        self._ratio = ratio
        if ratio is not None and (self._peak is None or ratio > self._peak[0]):
            self._peak = ratio, used_bytes
        found = self._changes(level, ratio, now_s)
        if not (self.told or self.exceeded or level):
            self._peak = None
        return found

    def _changes(self, level: Level, ratio: float | None, now_s: float) -> Sequence[Change]:
        if level == self._before == self.told and not self.exceeded and (not level or ratio is None or ratio < 1.0):
            return ()  # as it was: no time that runs could end anything
        self._before = level
        found = []
        if self._follow_excess(ratio, now_s):
            found.append(self._excess("raised" if self.exceeded else "cleared"))
        told = self._follow(level, ratio, now_s)
        if told != self.told:
            self.told = told
            found.append(self._level("raised" if told else "cleared"))
        return found

    def _excess(self, what: str) -> Change:
        lasts = self._ratio is None or self._ratio >= 1.0
        return Change(kind="limit_exceeded", what=what, level=Level.EMERGENCY, lasts=lasts, peak=self._peak)

    def _level(self, what: str) -> Change:
        lasts = self._before >= self.told
        return Change(kind="high_usage", what=what, level=self.told, lasts=lasts, peak=self._peak)

    def _follow(self, level: Level, ratio: float | None, now_s: float) -> Level:
        """The level that stands now."""
        for each in (1, 2, 3):
            is_below = level < each and (each > 1 or ratio is None or ratio < self._clear_below or self.told == 0)
            if level >= each:
                self._below[each] = None
                if self._at_least[each] is None:
                    self._at_least[each] = now_s
            else:
                self._at_least[each] = None
                if not is_below:
                    self._below[each] = None
                elif self._below[each] is None:
                    self._below[each] = now_s
        told = int(self.told)
        while told and self._lasted(self._below[told], now_s, self._clear_for_s):
            told -= 1
        for each in (3, 2, 1):
            if each > told and self._lasted(self._at_least[each], now_s, self._raise_for_s if each < 3 else 0.0):
                return Level(each)
        return Level(told)

    @staticmethod
    def _lasted(since_s: float | None, now_s: float, for_s: float) -> bool:
        return since_s is not None and now_s >= since_s + for_s

    def _follow_excess(self, ratio: float | None, now_s: float) -> bool:
        """Whether it changed that the limit is exceeded."""
        if ratio is None:
            return False
        if ratio >= 1.0:
            self._fits_since_s = None
            before, self.exceeded = self.exceeded, True
            return not before
        if ratio >= self._exceeded_below:
            self._fits_since_s = None
        elif self._fits_since_s is None:
            self._fits_since_s = now_s
        if self.exceeded and self._lasted(self._fits_since_s, now_s, self._clear_for_s):
            self.exceeded = False
            return True
        return False

    def standing(self) -> Sequence[Change]:
        """What is raised now, to be said again."""
        found = []
        if self.exceeded:
            found.append(self._excess("raised"))
        if self.told:
            found.append(self._level("raised"))
        return found


def of_change(change: Change, verdict: Verdict, details: Mapping[str, Any]) -> Draft:
    """A change of the level, in words; `details` is what else is known of this moment."""
    reading = verdict.reading
    scope = reading.scope if reading.scope in ("process", "machine") else "container"
    share = format_ratio(reading.pressure_ratio)
    title = _title_of(change, share, format_bytes(reading.limit_bytes))
    why = "; ".join(reason.text for reason in verdict.reasons)
    text = f"{format_bytes(reading.used_bytes)} in use of {format_bytes(reading.limit_bytes)} ({reading.limit_source})"
    if change.what == "cleared":
        text = f"now {text}, {share}"
    elif why:
        text = f"{text}: {why}"
    found = {
        "used_bytes": reading.used_bytes,
        "used_ratio": None if reading.pressure_ratio is None else round(reading.pressure_ratio, 4),
        "limit_bytes": reading.limit_bytes,
        "limit_source": reading.limit_source,
        "rss_bytes": reading.rss_bytes,
        "pid": reading.pid,
        **details,
    }
    if change.what == "cleared" and change.peak is not None:
        found["peak_ratio"], found["peak_bytes"] = round(change.peak[0], 4), change.peak[1]
    return Draft(
        kind=change.kind, what=change.what, level=change.level, title=title, text=text, scope=scope, details=found
    )


def _title_of(change: Change, share: str, limit: str) -> str:
    if change.kind == "limit_exceeded":
        return f"the memory limit of {limit} {'is' if change.lasts else 'was'} exceeded"
    if not change.lasts:  # below it, and not for long enough: the share alone would belie the level
        return f"memory {change.level.name} a moment ago, now {share} of {limit}"
    return f"memory {change.level.name}: {share} of {limit}"


_OF_FINDING = {
    ("leak", "suspected"): ("leak", "raised", Level.WARNING),
    ("leak", "confirmed"): ("leak", "raised", Level.CRITICAL),
    ("leak", "withdrawn"): ("leak", "cleared", Level.NORMAL),
    ("leak", "resolved"): ("leak", "cleared", Level.NORMAL),
    ("rapid growth", "began"): ("rapid_growth", "raised", Level.WARNING),
    ("rapid growth", "ended"): ("rapid_growth", "cleared", Level.NORMAL),
    ("spike", "seen"): ("spike", "seen", Level.WARNING),
}


def of_finding(finding: Finding, details: Mapping[str, Any]) -> Draft | None:
    """A finding in words; None for a kind that nobody is told of."""
    found = _OF_FINDING.get((finding.kind, finding.what))
    if found is None:
        return None
    kind, what, level = found
    more: dict[str, Any] = {"pid": finding.pid, **details}
    if finding.leak is not None:
        leak = finding.leak
        more |= {"cause": leak.cause or "unknown", "confidence": leak.confidence}
        if leak.growth_bytes_per_minute is not None:
            more["growth_bytes_per_minute"] = round(leak.growth_bytes_per_minute)
        if leak.advice:
            more["advice"] = list(leak.advice)[:3]
    title = f"memory leak {finding.what}" if kind == "leak" else f"{finding.kind} {finding.what}"
    return Draft(kind=kind, what=what, level=level, title=title, text=finding.text, scope="process", details=more)


def of_actions(outcomes: Sequence[Outcome], level: Level, details: Mapping[str, Any] = {}) -> Draft | None:
    """What memwarden did by itself in one climb of its ladder; None where it did nothing.

    That nothing was freed, without a failure, is for the history, and for channels that hear from NORMAL on.
    """
    did = [each for each in outcomes if not each.skipped]
    if not did:
        return None
    worth = Level.WARNING if any(each.error or (each.freed_bytes or 0) > 0 for each in did) else Level.NORMAL
    words = []
    for each in did[:5]:
        freed = each.freed_bytes
        what = "failed" if each.error else "freed nothing" if not freed or freed < 0 else f"freed {format_bytes(freed)}"
        words.append(f"{each.action} {what}")
    freed_bytes = sum(max(0, each.freed_bytes or 0) for each in did)
    title = f"memwarden acted at {level.name}: {format_bytes(freed_bytes)} freed"
    found = {"freed_bytes": freed_bytes, "actions": [each.action for each in did[:10]], **details}
    return Draft(kind="action", what="seen", level=worth, title=title, text=", ".join(words), details=found)


class CollectionRule:
    """Frequent collections; the fruitless ones are counted where they are made (`act.collector`)."""

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=FREQUENT)

    def collected(self, now_s: float) -> Draft | None:
        """One more."""
        self._at.append(now_s)
        if len(self._at) < FREQUENT or now_s - self._at[0] > FREQUENT_S:
            return None
        over_s = now_s - self._at[0]
        self._at.clear()
        text = f"{FREQUENT} full collections within {over_s:.0f} s: each stops every thread"
        return of_collections("frequent", text)


def of_collections(how: str, text: str) -> Draft:
    """Collections that are frequent or fruitless."""
    return Draft(
        kind="collections", what="seen", level=Level.WARNING, title=f"garbage collections are {how}", text=text,
        scope="process",
    )  # fmt: skip


def of_job_split(job: str, parts: int, why: str) -> Draft:
    """A job that was cut into parts because of memory."""
    return Draft(
        kind="job_split", what="seen", level=Level.WARNING, title=f"job {job} was split into {parts} parts", text=why,
        details={"job": job, "parts": parts},
    )  # fmt: skip


def of_death(
    *, command: str, pid: int, certain: bool, peak_bytes: int | None, limit_bytes: int | None, limit_source: str,
    in_flight: Sequence[str] = (), descendant: bool = False, evidence: Sequence[str] = (),
) -> Draft:  # fmt: skip
    """A kernel OOM kill."""
    whom = "a process of it" if descendant else "it"
    doubt = "" if certain else "probably "
    text = f"{command} (pid {pid}): the kernel {doubt}killed {whom} for memory; peak {format_bytes(peak_bytes)}"
    if limit_bytes is not None:
        text += f" of {format_bytes(limit_bytes)}"
    if in_flight:
        text += f"; in flight: {', '.join(in_flight[:3])}"
    return Draft(
        kind="oom_kill", what="seen", level=Level.EMERGENCY, title=f"{doubt}killed by the kernel for memory", text=text,
        details={
            "pid": pid, "limit_bytes": limit_bytes, "limit_source": limit_source, "peak_bytes": peak_bytes,
            "in_flight": list(in_flight[:5]), "evidence": list(evidence[:3]),
        },
    )  # fmt: skip
