"""What a report is made of: the facts of a time, from the history, the black boxes, the alerts and the job ledger.

Each of these may be missing, locked, damaged or of another version: then `missing` says so by its name, and whatever it
would have told is None, or empty, and never zero. Nothing is written anywhere, and nobody is kept from writing.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from memwarden.blackbox import find_boxes, read_box
from memwarden.errors import BlackBoxError, StoreError
from memwarden.facts import Fact, Level
from memwarden.jobs.places import open_place
from memwarden.judge import History as Samples
from memwarden.judge.advise import fitting_limit
from memwarden.judge.history import BUCKETS
from memwarden.store import FILE_NAME as STORE_NAME
from memwarden.store import Store
from memwarden.supervise.autopsy import command_name, deaths, is_alive
from memwarden.supervise.service.fold import TIERS
from memwarden.supervise.service.history import FILE_NAME, MOST_LIVES, History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from memwarden.blackbox import Box, LeakState
    from memwarden.jobs.ledger import Quarantined, Season, Status
    from memwarden.jobs.shared import SharedPlace
    from memwarden.ports import Clock, Machine
    from memwarden.supervise.autopsy import Autopsy
    from memwarden.supervise.service.fold import Tier
    from memwarden.supervise.service.history import Life, Point, Summary
    from memwarden.tell.engine import Incident
    from memwarden.tell.outbox import ChannelState, Outbox, Told

# Programs that are looked at one by one, and how many are drawn: what a person reads.
MOST_PROGRAMS, MOST_DRAWN = 50, 12
# Points of a curve: two to a tenth of an inch of paper.
POINTS = 160
# Beyond so long a span figures are of hours: a month of a machine's minutes is a million rows.
MOST_MINUTES_S = 2 * 86_400.0
# Events that are read, each up to 7 KiB: a month of one every twenty minutes.
MOST_EVENTS = 2_000
MOST_FAILED = 5
KERNEL = ("oom_kill", "oom_kill_of_descendant", "after_oom_kill")
# A process that ended so is worth a manager's word; a clean end or an error of its own is not.
BAD_ENDS = (*KERNEL, "killed", "crashed", "unknown")
# Of a state that began earlier: its first notices, from a little before the store heard of it.
MOST_OF_ONE, HOUR_S = 50, 3600.0
# In place of the reasons why nobody was told, where no event of it is kept any more.
UNRECORDED = "unrecorded"
# Kinds of alerts that have no end.
ONCE = frozenset({"oom_kill", "spike", "action", "job_split", "collections"})


class Span(Fact):
    """From when until when, in Unix seconds on whole minutes; `now_s` is when the report is made."""

    from_s: float
    to_s: float
    now_s: float

    def has(self, unix_s: float) -> bool:
        """Whether it lies within."""
        return self.from_s <= unix_s < self.to_s

    @property
    def is_to_now(self) -> bool:
        """Whether it ends with the present."""
        return self.now_s - self.to_s < 120


class Death(Fact):
    """One process that ended within the span, and not in order. `verdict` is of `supervise.deaths`."""

    pid: int
    name: str
    verdict: str
    certain: bool
    unix_s: float
    peak_bytes: int | None = None
    limit_bytes: int | None = None


class Leak(Fact):
    """A leak that was suspected or confirmed within the span, in the words of the verdict; whether it stands."""

    pid: int
    name: str
    stage: str
    text: str
    cause: str
    confidence: int
    unix_s: float
    stands: bool


class Program(Fact):
    """All lives of one command line within the span. Sizes are of what counts against the limit; None is not known.

    `warning_s` and `critical_s` are the time in whose minutes (or hours, see `Report.fine_s`) that level was reached.
    `judged` says whether a Warden in the process looked for leaks. `kept` is whether the history has figures of it.
    """

    name: str
    argv: str
    pids: tuple[int, ...]
    lives: int
    restarts: int
    kept: bool
    judged: bool
    average_bytes: float | None = None
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    limit_bytes: int | None = None
    least_limit_bytes: int | None = None
    most_limit_bytes: int | None = None
    limit_source: str = ""
    warning_s: float | None = None
    critical_s: float | None = None
    last_unix_s: float | None = None
    recommended_bytes: int | None = None
    deaths: tuple[Death, ...] = ()
    leaks: tuple[Leak, ...] = ()
    course: tuple[Point, ...] = ()

    @property
    def kills(self) -> int:
        """By the kernel, for memory."""
        return sum(each.verdict in KERNEL for each in self.deaths)


class Alert(Fact):
    """One state, or one thing that happened, and who heard of it. `raised_unix_s` None: before what is on record.

    `state` is on, over, once (it has no end) or unknown (its end is not on record). `sent`, `waiting` and `lost` are
    channels; `why_nobody` the reasons, by their names, where nobody was to be told.
    """

    key: str
    kind: str
    level: Level
    title: str
    target: str
    raised_unix_s: float | None
    last_unix_s: float
    lasted_s: float | None
    state: str
    sent: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    why_nobody: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether any channel delivered it."""
        return bool(self.sent)


class Report(Fact):
    """All of it. `missing` has a sentence for each of history, boxes, alerts and jobs that could not be asked.

    `newest_s` is the last sign, in the history, of those processes that are not known to have ended.
    Figures are of buckets of `step_s`, the time at a level of buckets of `fine_s`.
    """

    span: Span
    folder: str
    host: str
    missing: Mapping[str, str]
    step_s: int = 60
    fine_s: int = 60
    history_from_s: float | None = None
    newest_s: float | None = None
    programs: tuple[Program, ...] = ()
    unlisted: int = 0
    deaths: tuple[Death, ...] = ()
    leaks: tuple[Leak, ...] = ()
    unjudged: int = 0
    alerts: tuple[Alert, ...] = ()
    alerts_cut: bool = False
    channels: tuple[ChannelState, ...] = ()
    queues: tuple[Mapping[str, Any], ...] = ()
    seasons: tuple[Season, ...] = ()
    failed: tuple[Status, ...] = ()
    quarantine: tuple[Quarantined, ...] = ()


def collect(
    folder: str, run_folder: str, span: Span, *, machine: Machine, clock: Clock, lines: tuple[float, float],
    host: str = "", ledger: str | None = None,
) -> Report:  # fmt: skip
    """Everything that is on record of this span. `lines` are WARNING's and CRITICAL's shares of the limit, 0-1.

    `ledger` is the URL of the database with the ledger of jobs, where it is not in the store.
    """
    missing: dict[str, str] = {}
    ones = _Ones(span)
    boxes = _read_boxes(run_folder, missing)
    for box in boxes:
        ones.add_box(box)
    alive = {_identity(box) for box in boxes if is_alive(machine, box)}
    for autopsy in deaths(machine, [box for box in boxes if _identity(box) not in alive]):
        ones.add_autopsy(autopsy, {_identity(box) for box in boxes if box.path in autopsy.boxes})
    known = _ask("history", missing, lambda: _read_history(folder, span, ones, lines, clock), {})
    told = _read_store(folder, span, clock, missing, ledger)
    ones.add_events(told.pop("events", ()))
    programs = ones.programs(known.pop("figures", {}))
    listed = programs[:MOST_PROGRAMS]
    return Report(
        span=span, folder=folder, host=host or os.uname().nodename, missing=missing, programs=tuple(listed),
        unlisted=len(programs) - len(listed), deaths=tuple(ones.all_deaths()), leaks=tuple(ones.all_leaks()),
        unjudged=ones.unjudged, **known, **told,
    )  # fmt: skip


def _ask(name: str, missing: dict[str, str], question: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return question()
    except StoreError as error:
        missing[name] = f"{error.where}: {error.what}" if error.where else error.what
        return otherwise
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:  # rows that nobody of ours can have written
        missing[name] = f"{type(error).__name__}: {error}"
        return otherwise


# --- black boxes -----------------------------------------------------------------------------------------------------


def _identity(box: Box | Life) -> tuple[int, int]:
    """One process, whoever tells of it: a pid comes again, its start does not."""
    return box.pid, box.start_ticks or int(box.start_unix_s)


def _read_boxes(folder: str, missing: dict[str, str]) -> list[Box]:
    """Every box without its ticks but the last and the highest: a ring of them takes a megabyte each."""
    found: list[Box] = []
    wrong: list[str] = []
    try:
        paths = find_boxes(folder)
    except OSError as error:
        missing["boxes"] = f"{folder}: cannot be looked into: {error.strerror}"
        return found
    for path in paths:
        try:
            box = read_box(path)
        except BlackBoxError as error:
            wrong.append(str(error))
            continue
        highest = max(box.ticks, key=lambda tick: tick.used_bytes or 0, default=None)
        found.append(box.replace(ticks=tuple({id(t): t for t in (highest, *box.ticks[-1:]) if t is not None}.values())))
    if wrong:
        missing["boxes"] = f"{len(wrong)} of {len(paths)} cannot be read, the first: {wrong[0]}"
    elif not paths:
        missing["boxes"] = "there are no black boxes"
    return found


# --- who was there ---------------------------------------------------------------------------------------------------


class _One:
    """One process, from whoever tells of it."""

    def __init__(self) -> None:
        self.argv: dict[str, str] = {}
        self.lives: list[Life] = []
        self.boxes: list[Box] = []
        self.autopsy: Autopsy | None = None

    @property
    def command(self) -> str:
        """As the supervisor started it, where there is one: the same for each of its lives."""
        return self.argv.get("outside") or self.argv.get("inside") or ""

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.lives[0].pid if self.lives else self.boxes[0].pid

    @property
    def start_s(self) -> float:
        """When it began, as far as anybody saw."""
        return min(self._starts())

    @property
    def starts(self) -> set[int]:
        """The whole seconds that any of its witnesses began at."""
        return {int(each) for each in self._starts()}

    def _starts(self) -> list[float]:
        return [life.start_unix_s for life in self.lives] + [box.start_unix_s for box in self.boxes]

    @property
    def verdict(self) -> str | None:
        """How it ended; None while it is not known to have."""
        if self.autopsy is not None:
            return self.autopsy.verdict
        return next((each.verdict for each in self.lives if each.verdict), None)

    @property
    def end_s(self) -> float | None:
        """When it ended; None while it is not known to have."""
        if self.autopsy is not None:
            return self.autopsy.ended_unix_s
        return max(each.seen_unix_s for each in self.lives) if self.verdict else None

    @property
    def seen_s(self) -> float:
        """The last sign of it."""
        ticks = [tick.unix_s for box in self.boxes for tick in box.ticks]
        return max([self.start_s, self.end_s or 0.0, *ticks, *(each.seen_unix_s for each in self.lives)])

    @property
    def kinds(self) -> set[str]:
        """Who watched it: inside, outside."""
        return {life.kind for life in self.lives} | {box.kind for box in self.boxes}

    def death(self, span: Span) -> Death | None:
        """Its end, where it is a bad one and lies within the span."""
        end_s = self.end_s
        if end_s is None or not span.has(end_s) or self.verdict not in BAD_ENDS:
            return None
        it = self.autopsy
        return Death(
            pid=self.pid, name=command_name(self.command), verdict=self.verdict, unix_s=end_s,
            certain=it.certain if it is not None else True, peak_bytes=it.peak_bytes if it is not None else None,
            limit_bytes=it.limit_bytes if it is not None else None,
        )  # fmt: skip

    def leak(self, span: Span) -> Leak | None:
        """What its own watch for leaks said last, where that is a leak and it was said, or stood, within the span."""
        box = next((each for each in self.boxes if each.leak is not None and each.kind == "inside"), None)
        state: LeakState | None = box.leak if box is not None else None
        if state is None or state.stage not in ("suspected", "confirmed"):
            return None
        if state.unix_s >= span.to_s or self.seen_s < span.from_s:
            return None
        return Leak(
            pid=self.pid, name=command_name(self.command), stage=state.stage, text=state.text, cause=state.cause,
            confidence=state.confidence, unix_s=state.unix_s, stands=True,
        )  # fmt: skip


class _Ones:
    """Every process of the span, and what else is known to have happened to one."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._found: dict[tuple[int, int], _One] = {}
        self._more_deaths: list[Death] = []
        self._more_leaks: list[Leak] = []

    def _one(self, it: Box | Life) -> _One:
        one = self._found.setdefault(_identity(it), _One())
        one.argv.setdefault(it.kind, it.argv)
        return one

    def add_box(self, box: Box) -> None:
        """A witness."""
        self._one(box).boxes.append(box)

    def add_life(self, life: Life) -> None:
        """A witness that the history kept."""
        self._one(life).lives.append(life)

    def add_autopsy(self, autopsy: Autopsy, of: Iterable[tuple[int, int]]) -> None:
        """How one ended."""
        for identity in of:
            self._found[identity].autopsy = autopsy

    def _within(self) -> list[_One]:
        return [
            each for each in self._found.values()
            if each.start_s < self._span.to_s and each.seen_s >= self._span.from_s
        ]  # fmt: skip

    # --- what alerts know of processes -------------------------------------------------------------------------------

    def add_events(self, events: Iterable[Told]) -> None:
        """Deaths and leaks that were told, of processes whose box and history may be gone."""
        seen: set[tuple[int, int]] = set()
        for event in events:
            pid = event.details.get("pid")
            if event.kind == "leak" and isinstance(pid, int):
                self._add_leak(event, pid)
            words = event.id.split(".")[0].split("-")
            if words[0] != "death" or len(words) != 3 or not (words[1] + words[2]).isdigit():
                continue
            name = int(words[1]), int(words[2])
            if name in seen or any(each.pid == name[0] and name[1] in each.starts for each in self._found.values()):
                continue
            seen.add(name)
            self._more_deaths.append(_death_of(event, name[0]))

    def _add_leak(self, event: Told, pid: int) -> None:
        """The newest event of a state stands for it: they come newest first."""
        if any(each.pid == pid and each.name == event.target for each in self._more_leaks):
            return
        over = event.what == "recovered"
        self._more_leaks.append(
            Leak(
                pid=pid, name=event.target, text=event.text, unix_s=event.unix_s, stands=not over,
                stage="confirmed" if "confirmed" in event.title else "suspected",
                cause=str(event.details.get("cause") or ""), confidence=_whole(event.details.get("confidence")),
            )
        )  # fmt: skip

    # --- answers -----------------------------------------------------------------------------------------------------

    def all_deaths(self) -> list[Death]:
        """The newest first."""
        own = [death for each in self._within() if (death := each.death(self._span)) is not None]
        return sorted([*own, *self._more_deaths], key=lambda death: -death.unix_s)

    def all_leaks(self) -> list[Leak]:
        """Those that stand first; one for each process."""
        own = [leak for each in self._within() if (leak := each.leak(self._span)) is not None]
        pids = {leak.pid for leak in own}
        more = [leak for leak in self._more_leaks if leak.pid not in pids]
        return sorted([*own, *more], key=lambda leak: (not leak.stands, -leak.unix_s))

    @property
    def unjudged(self) -> int:
        """Processes of which no verdict about leaks can be on record: nobody looked from inside, or its box is gone."""
        return sum(not any(box.kind == "inside" for box in each.boxes) for each in self._within())

    def lives_by_command(self) -> dict[str, list[_One]]:
        """The processes of the span by their command line."""
        found: dict[str, list[_One]] = {}
        for each in self._within():
            found.setdefault(each.command, []).append(each)
        return found

    def programs(self, figures: Mapping[str, Mapping[str, Any]]) -> list[Program]:
        """Those in trouble first."""
        leaks: dict[int, list[Leak]] = {}
        for leak in self.all_leaks():
            leaks.setdefault(leak.pid, []).append(leak)
        groups = self.lives_by_command()
        found = [self._program(argv, ones, figures.get(argv), leaks) for argv, ones in groups.items()]
        return sorted(
            found, key=lambda p: (-p.kills, not p.leaks, -(p.peak_ratio or 0.0), -(p.peak_bytes or 0), p.name)
        )

    def _program(
        self, argv: str, ones: Sequence[_One], figures: Mapping[str, Any] | None, leaks: Mapping[int, Sequence[Leak]]
    ) -> Program:
        values: dict[str, Any] = dict(figures or {})
        pids = tuple(dict.fromkeys(each.pid for each in sorted(ones, key=lambda one: -one.seen_s)))
        ends = [death for each in ones if (death := each.death(self._span)) is not None]
        boxes = [box for each in ones for box in each.boxes]
        # Who started it knows best who set the limit; the newest of them.
        sized = [box for box in sorted(boxes, key=lambda b: (b.kind == "outside", b.start_unix_s)) if box.limit_bytes]
        if sized:
            values["limit_source"] = sized[-1].limit_source
            values["limit_bytes"] = values.get("limit_bytes") or sized[-1].limit_bytes
        _heed_peaks(values, ends, [] if figures else boxes, self._span)
        return Program(
            name=command_name(argv), argv=argv, pids=pids, lives=len(ones), restarts=_restarts(ones, self._span),
            kept=figures is not None, judged=any("inside" in each.kinds for each in ones),
            deaths=tuple(ends), leaks=tuple(leak for pid in pids for leak in leaks.get(pid, ())), **values,
        )  # fmt: skip


def _whole(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) else 0


def _death_of(event: Told, pid: int) -> Death:
    details = event.details
    if event.kind == "oom_kill":
        verdict = "oom_kill"
    else:
        verdict = "crashed" if "crashed" in event.title else "killed" if "SIGKILL" in event.title else "unknown"
    peak, limit = details.get("peak_bytes"), details.get("limit_bytes")
    return Death(
        pid=pid, name=event.target, verdict=verdict, certain=not event.title.startswith("probably"),
        unix_s=event.unix_s, peak_bytes=peak if isinstance(peak, int) else None,
        limit_bytes=limit if isinstance(limit, int) else None,
    )  # fmt: skip


def _heed_peaks(values: dict[str, Any], ends: Sequence[Death], boxes: Sequence[Box], span: Span) -> None:
    """Peaks that the history does not have: the kernel's own of a death, and of boxes where there is no history."""
    seen = [(death.peak_bytes, death.limit_bytes) for death in ends]
    seen += [(tick.used_bytes, tick.limit_bytes) for box in boxes for tick in box.ticks if span.has(tick.unix_s)]
    for peak, limit in seen:
        if peak is None:
            continue
        values["peak_bytes"] = max(peak, values.get("peak_bytes") or 0)
        if limit:
            values["peak_ratio"] = max(peak / limit, values.get("peak_ratio") or 0.0)


def _restarts(ones: Sequence[_One], span: Span) -> int:
    """How often one began within the span after another had ended: workers that begin together are none."""
    moments = sorted(
        [(each.start_s, 1) for each in ones] + [(each.end_s, 0) for each in ones if each.end_s is not None]
    )
    free = count = 0
    for at_s, began in moments:
        if not began:
            free += 1
        elif free:
            free -= 1
            count += span.has(at_s)
    return count


# --- history ---------------------------------------------------------------------------------------------------------


def _read_history(folder: str, span: Span, ones: _Ones, lines: tuple[float, float], clock: Clock) -> dict[str, Any]:
    path = os.path.join(folder, FILE_NAME)
    if not os.path.exists(path):
        raise StoreError("no history was kept")
    with History(folder, clock=clock, repair=False) as history:
        lives = history.seen(span.from_s, span.to_s, most=MOST_LIVES)
        for life in lives:
            ones.add_life(life)
        tier, fine = _tiers(history, span)
        begin = _begin(history)
        groups = ones.lives_by_command()
        asked = {argv: _figures(history, (tier, fine), span, group, lines) for argv, group in groups.items()}
        figures = {argv: each for argv, each in asked.items() if each is not None}
        # The worst are drawn, and only what is listed gets a recommendation.
        worst = sorted(figures, key=lambda argv: -(figures[argv]["peak_ratio"] or 0.0))[: MOST_PROGRAMS * 2]
        for argv in worst:
            figures[argv] |= _curve(history, tier, span, groups[argv], figures[argv])
    newest = max((each.seen_unix_s for each in lives if each.verdict is None), default=None)
    steps = {"step_s": tier.step_s, "fine_s": fine.step_s}
    return {"figures": figures, **steps, "history_from_s": begin, "newest_s": newest}


def _tiers(history: History, span: Span) -> tuple[Tier, Tier]:
    """That of the figures and that of the time at a level: minutes as long as they reach back as far as hours do."""
    minute, hour = TIERS[1], TIERS[2]
    begins = history.begin(minute), history.begin(hour)
    if begins[1] is None:
        return minute, minute
    gone = begins[0] is None or begins[0] - max(begins[1], span.from_s) > hour.step_s
    if gone or span.now_s - span.from_s > minute.keep_s + hour.step_s:
        return hour, hour
    return (minute if span.to_s - span.from_s <= MOST_MINUTES_S else hour), minute


def _begin(history: History) -> int | None:
    """The oldest bucket, as exactly as it is known."""
    minute, hour = history.begin(TIERS[1]), history.begin(TIERS[2])
    if minute is None or hour is None:
        return hour
    return minute if minute - hour < TIERS[2].step_s else hour


def _aligned(span: Span, step_s: int) -> tuple[float, float]:
    """Whole buckets: the first one may have begun a little before."""
    return span.from_s // step_s * step_s, span.to_s


def _chosen(ones: Sequence[_One]) -> tuple[list[int], bool]:
    """The lives to ask for, of each process one, and whether they know levels: who watches from outside does not."""
    inside = [life.id for one in ones for life in one.lives if life.kind == "inside"]
    if inside and all(any(life.kind == "inside" for life in one.lives) for one in ones if one.lives):
        return inside, True
    return [life.id for one in ones for life in one.lives], False


def _figures(
    history: History, tiers: tuple[Tier, Tier], span: Span, ones: Sequence[_One], lines: tuple[float, float]
) -> dict[str, Any] | None:
    (lives, knows_levels), (tier, fine) = _chosen(ones), tiers
    if not lives:
        return None
    found: Summary | None = history.summary(lives, tier, *_aligned(span, tier.step_s), lines=lines, fine=fine)
    if found is None:
        return None
    counts = found.at_level if knows_levels else tuple(map(max, found.at_level, found.at_share))
    judged = knows_levels or found.limit_bytes is not None
    return {
        "average_bytes": found.average_bytes, "peak_bytes": found.peak_bytes, "peak_ratio": found.peak_ratio,
        "limit_bytes": found.limit_bytes, "least_limit_bytes": found.least_limit_bytes,
        "most_limit_bytes": found.most_limit_bytes, "last_unix_s": float(found.last_unix_s + tier.step_s),
        "warning_s": float(counts[0] * fine.step_s) if judged else None,
        "critical_s": float(counts[1] * fine.step_s) if judged else None,
    }  # fmt: skip


def _curve(
    history: History, tier: Tier, span: Span, ones: Sequence[_One], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Its course, and the limit that would fit what it saw."""
    tier = TIERS[2] if (span.to_s - span.from_s) / TIERS[2].step_s >= POINTS else tier
    step_s = max(tier.step_s, int((span.to_s - span.from_s) / POINTS) // tier.step_s * tier.step_s)
    points = history.course(_chosen(ones)[0], tier, *_aligned(span, tier.step_s), step_s=step_s)
    highs = [(each.unix_s, _highest(each)) for each in points]
    known = [(at_s, size) for at_s, size in highs if size is not None]
    samples = Samples.of(
        (at_s for at_s, _ in known), (size for _, size in known), window_s=max(span.to_s - span.from_s, 1.0),
        buckets=BUCKETS, interval_s=step_s,
    )  # fmt: skip
    killed = any((death := each.death(span)) is not None and death.verdict in KERNEL for each in ones)
    peaks = [each.autopsy.peak_bytes or 0 for each in ones if each.autopsy is not None]
    highest = max([figures["peak_bytes"] or 0, *peaks])
    wanted = fitting_limit(samples.buckets(), highest_bytes=highest, oom_killed=killed)
    return {"course": points, "recommended_bytes": wanted}


def _highest(point: Point) -> int | None:
    return point.used_max if point.used_max is not None else point.rss_max


# --- the store -------------------------------------------------------------------------------------------------------


def _read_store(
    folder: str, span: Span, clock: Clock, missing: dict[str, str], ledger: str | None
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {}
    if ledger:
        found |= _ask("jobs", missing, lambda: _read_shared(ledger, span, clock), {})
    try:
        store = Store(folder, clock=clock, reading=True)
    except StoreError as error:
        is_there = os.path.exists(os.path.join(folder, STORE_NAME))
        for name in ("alerts",) if ledger else ("alerts", "jobs"):
            missing[name] = f"{error.where}: {error.what}" if is_there else "there is no store"
        return found
    with store:
        found |= _ask("alerts", missing, lambda: _read_alerts(store, span, clock), {})
        if not ledger:
            found |= _ask("jobs", missing, lambda: _read_jobs(store, span, clock), {})
    return found


def _read_shared(url: str, span: Span, clock: Clock) -> dict[str, Any]:
    with closing(open_place(url=url, reading=True)) as place:
        return _read_jobs(place, span, clock)


def _read_alerts(store: Store, span: Span, clock: Clock) -> dict[str, Any]:
    from memwarden.tell.outbox import Outbox
    from memwarden.tell.settings import AlertSettings, Policy

    outbox = Outbox(AlertSettings(policy=Policy()), store=store, clock=clock)
    events = outbox.history(since_unix_s=span.from_s, until_unix_s=span.to_s, most=MOST_EVENTS)
    told = [each for each in events if each.kind != "test"]
    incidents = {each.key: each for each in outbox.incidents(all_of_them=True)}
    by_key: dict[str, list[Told]] = {}
    for event in reversed(told):
        by_key.setdefault(event.key, []).append(event)
    alerts = [alert for key, some in by_key.items() for alert in _episodes(some, incidents.get(key), span)]
    alerts += [
        _still_on(each, outbox, span) for each in incidents.values()
        if each.open and not each.once and each.key not in by_key and each.raised_unix_s < span.from_s
    ]  # fmt: skip
    alerts.sort(key=lambda a: (not (a.lost or a.waiting), a.reached, -a.level, -a.last_unix_s))
    return {
        "events": told, "alerts": tuple(alerts), "alerts_cut": len(events) == MOST_EVENTS,
        "channels": tuple(outbox.channels()),
    }  # fmt: skip


def _still_on(incident: Incident, outbox: Outbox, span: Span) -> Alert:
    """Raised before the span, and on since: with what came of its notices then, as far as that is on record."""
    before = outbox.history(
        key=incident.key, since_unix_s=incident.raised_unix_s - HOUR_S, until_unix_s=span.from_s, most=MOST_OF_ONE
    )
    if before:
        return _episodes(before[::-1], incident, span)[-1]
    return Alert(
        key=incident.key, kind=incident.kind, level=Level(incident.top), title=incident.title, target=incident.target,
        raised_unix_s=incident.raised_unix_s, last_unix_s=incident.changed_unix_s, state="on",
        lasted_s=span.now_s - incident.raised_unix_s, why_nobody=(UNRECORDED,),
    )  # fmt: skip


def _episodes(events: Sequence[Told], now: Incident | None, span: Span) -> list[Alert]:
    """The events of one key, the oldest first, cut where it was over."""
    groups: list[list[Told]] = []
    for event in events:
        once = event.kind in ONCE or (now is not None and now.once)
        if once or not groups or groups[-1][-1].what == "recovered":
            groups.append([])
        groups[-1].append(event)
    last = len(groups) - 1
    return [_episode(group, now if number == last else None, span) for number, group in enumerate(groups)]


def _episode(events: Sequence[Told], now: Incident | None, span: Span) -> Alert:
    first, last = events[0], events[-1]
    state, raised, lasted = "unknown", None if first.what == "recovered" else first.unix_s, None
    if first.kind in ONCE or (now is not None and now.once):
        state = "once"
    elif last.what == "recovered":
        state = "over"
        known = last.details.get("raised_unix_s")
        raised = float(known) if isinstance(known, (int, float)) else raised
        lasted = last.details.get("lasted_s")
        lasted = float(lasted) if isinstance(lasted, (int, float)) else None if raised is None else last.unix_s - raised
    elif now is not None and now.open and now.raised_unix_s <= last.unix_s + HOUR_S:
        state, raised = "on", min(now.raised_unix_s, first.unix_s)
        lasted = span.now_s - raised
    went = [each for event in events for each in event.deliveries]
    sent = {channel for channel, how, _, _ in went if how == "sent"}
    why = {reason for event in events for reason in event.why.values()} if not went else set()
    worst = max(events, key=lambda event: event.level if event.what != "recovered" else 0)
    return Alert(
        key=first.key, kind=first.kind, level=max(event.level for event in events),
        title=worst.title.removeprefix("over: "),
        target=first.target, raised_unix_s=raised, last_unix_s=last.unix_s, lasted_s=lasted, state=state,
        sent=tuple(sorted(sent)), waiting=tuple(sorted({channel for channel, how, _, _ in went if how == "pending"})),
        lost=tuple(sorted({channel for channel, how, _, _ in went if how == "dead"})),
        errors=tuple(dict.fromkeys(error for _, how, _, error in went if how != "sent" and error))[:3],
        why_nobody=tuple(sorted(why)),
    )  # fmt: skip


def _read_jobs(store: Store | SharedPlace, span: Span, clock: Clock) -> dict[str, Any]:
    from memwarden.jobs.ledger import Ledger

    ledger = Ledger(store, clock=clock)
    failed = [each for each in ledger.jobs(state="failed", most=100) if span.has(each.finished_unix_s or 0.0)]
    return {
        "queues": tuple(ledger.statistics()), "seasons": tuple(ledger.seasons(span.from_s, span.to_s)),
        "failed": tuple(failed[:MOST_FAILED]),
        "quarantine": tuple(
            each for each in ledger.quarantined(most=1000) if not each.retried and each.unix_s < span.to_s
        ),
    }  # fmt: skip
