"""The life of a suspicion: suspected, probed, confirmed or withdrawn, resolved; each told once (row M9).

A LeakWatch is fed samples and asked for a verdict now and then. It keeps at most 240 samples: when they are full,
neighbours are joined, so that the window grows until it covers `window_s`, and then slides. Pure: the caller reads
memory, keeps the time and tries the probe.
"""

from __future__ import annotations

from array import array
from math import isnan, nan

from memwarden.facts import Fact
from memwarden.judge import leak_model
from memwarden.judge.leak import UNACCUSED, Look, confirmed, judge
from memwarden.judge.signs import Columns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    Stage = Literal["quiet", "suspected", "confirmed"]

SAMPLES = 240
WINDOW_S = 4 * 3600.0
# Enough for floors of three samples (judge.shape) after the start is cut off.
LEAST_SAMPLES = 40
# A look each 4 % of the samples (research: leaks, 2.1).
LOOK_EVERY = 0.04
# Looks running that suspect, that withdraw, and that say a confirmed leak has stopped.
# A recording is judged from its end, and two looks running are enough at the line of the score. One that is watched is
# looked at some thirty times, so that it takes one look more and a surer score: on generated series that takes false
# suspicions from 0.14 to 0.06 of the healthy, recall from 0.99 to 0.97 (benchmarks.leaks.synthetic).
TO_SUSPECT, TO_SUSPECT_WATCHED = 2, 3
SURE = 0.85
TO_WITHDRAW = 3
TO_RESOLVE = 6
# Once suspected, this much less of a score is enough to stay so: a verdict on the line must not flap.
LENIENT = 0.15
# What a collection and a trim give back of the growth: below, it is kept by somebody; above, nobody kept it.
KEPT_BELOW = 0.3
FREED_ABOVE = 0.7
# Confirmed by time alone: the window is so many times as long as when it was suspected, and it still grows.
DOUBLED = 2.0

GAUGES = (
    "rss_bytes", "used_bytes", "anon_bytes", "python_blocks", "native_in_use_bytes", "declared_cache_bytes",
)  # fmt: skip
COUNTERS = ("work_done", "gc_collected", "gc_uncollectable")


class Told(Fact):
    """One step of a suspicion's life: `what` is suspected, confirmed, withdrawn or resolved, and why in words."""

    what: str
    t_s: float
    text: str
    look: Look


class Ending(Fact):
    """What a replay came to: the last look, and when the suspicion that stands was formed and confirmed."""

    look: Look
    suspected: bool = False
    confirmed: bool = False
    detected_at_s: float | None = None
    told: tuple[Told, ...] = ()


class LeakWatch:
    """Watches one process. `add` is O(1) but for a joining now and then; `look` costs some milliseconds."""

    def __init__(
        self,
        *,
        window_s: float = WINDOW_S,
        samples: int = SAMPLES,
        sure: float = SURE,
        running: int = TO_SUSPECT_WATCHED,
        models: Mapping[str, leak_model.Model] = leak_model.MODELS,
    ) -> None:
        if samples < LEAST_SAMPLES or not window_s > 0:
            raise ValueError(f"a leak watch needs a window above zero and at least {LEAST_SAMPLES} samples")
        self._room, self._window_s, self._models = samples, window_s, models
        self._sure, self._needed = sure, running
        self.forget()

    def forget(self) -> None:
        """Begin anew: after a fork, a restart, or an action that changed what is resident."""
        self._t_s = array("d")
        self._columns: dict[str, array[float]] = {}
        self._together, self._waiting = 1, 0
        self._due = 0.0
        self.stage: Stage = "quiet"
        self._running = 0
        self._since_s: float | None = None
        self._first_s: float | None = None
        self._span_s = 0.0
        self._freed: float | None = None
        self._witness = ""
        self._seen = 0
        self._last = Look(accused=False)

    def __len__(self) -> int:
        return len(self._t_s)

    @property
    def wants_probe(self) -> bool:
        """Whether a collection and a trim would tell something now: suspected, and not tried yet."""
        return self.stage == "suspected" and self._freed is None

    @property
    def suspected_since_s(self) -> float | None:
        """When the suspicion that stands was formed."""
        return self._since_s

    def add(self, t_s: float, **values: float | None) -> None:
        """One sample: bytes and counters by the names of the trace contract; None and what is left out is unknown."""
        if self._t_s and t_s < self._t_s[-1]:
            self.forget()
        for name in values.keys() - self._columns.keys():
            self._columns[name] = array("d", [nan]) * len(self._t_s)
        if self._waiting:
            self._join(t_s, values)
        else:
            self._t_s.append(t_s)
            for name, column in self._columns.items():
                value = values.get(name)
                column.append(nan if value is None else float(value))
        self._waiting = (self._waiting + 1) % self._together
        self._seen += 1
        if len(self._t_s) >= self._room:
            self._make_room()

    def _join(self, t_s: float, values: Mapping[str, float | None]) -> None:
        """Into the newest row: the lowest of each gauge, the newest of each counter."""
        for name, column in self._columns.items():
            value = values.get(name)
            if value is not None and not isnan(value):
                column[-1] = _joined(name, column[-1], float(value))

    def _make_room(self) -> None:
        if self._t_s[-1] - self._t_s[0] >= self._window_s:
            del self._t_s[0]
            for column in self._columns.values():
                del column[0]
            return
        half = len(self._t_s) // 2 * 2
        self._t_s = array("d", self._t_s[:half:2])
        for name, column in self._columns.items():
            pairs = zip(column[:half:2], column[1:half:2], strict=True)
            self._columns[name] = array("d", (_joined(name, a, b) for a, b in pairs))
        self._together *= 2
        self._waiting = 0

    def columns(self) -> Columns:
        """What is kept, for a verdict."""
        return Columns(self._t_s, {n: c for n, c in self._columns.items() if n in GAUGES or n in COUNTERS})

    def probed(self, freed_bytes: float) -> None:
        """What a collection and a trim gave back; `look` draws the conclusion."""
        grown = self._grown_bytes()
        self._freed = min(max(freed_bytes / grown, 0.0), 1.0) if grown > 0 else 1.0

    def witness(self, text: str) -> None:
        """Something else that grows the same way: a type in a census, a sampled site, an object past its scope."""
        self._witness = text

    def _grown_bytes(self) -> float:
        look = self._last
        if look.growth_bytes_per_minute is None or len(self._t_s) < 2:
            return 0.0
        return look.growth_bytes_per_minute / 60 * (self._t_s[-1] - self._t_s[0])

    def is_due(self, *, ahead: int = 0) -> bool:
        """Whether enough has come in since the last look, or will have with so many samples more."""
        return len(self._t_s) + ahead >= LEAST_SAMPLES and self._seen + ahead >= self._due

    def look(self, *, limit_bytes: float | None = None) -> tuple[Look, tuple[Told, ...]]:
        """Judge what is kept now; and what has changed by it, to be told."""
        self._due = self._seen + max(1.0, LOOK_EVERY * len(self._t_s) * self._together)
        lenient = leak_model.LINE - self._sure + (LENIENT if self.stage != "quiet" else 0.0)
        look = judge(
            self.columns(), limit_bytes=limit_bytes, freed_ratio=self._freed, lenient=lenient, models=self._models
        )
        self._last = look
        if not self._t_s:
            return look, ()
        step = {"quiet": self._quiet, "suspected": self._suspected, "confirmed": self._confirmed}[self.stage]
        return look, tuple(step(look, self._t_s[-1]))

    def _quiet(self, look: Look, t_s: float) -> Sequence[Told]:
        self._running = self._running + 1 if look.accused else 0
        if self._running < self._needed:
            return ()
        self._enter("suspected", t_s)
        self._since_s, self._span_s = t_s, t_s - self._t_s[0]
        return (Told(what="suspected", t_s=t_s, text=look.evidence[0], look=look),)

    def _suspected(self, look: Look, t_s: float) -> Sequence[Told]:
        if self._freed is not None and self._freed > FREED_ABOVE:
            return self._withdraw(look, t_s, f"a collection and a trim gave {self._freed:.0%} of the growth back")
        self._running = 0 if look.accused else self._running + 1
        if self._running >= TO_WITHDRAW:
            return self._withdraw(look, t_s, f"it is not growing on: {look.evidence[0]}")
        why = self._proof(look, t_s) if look.accused else ""
        if not why:
            return ()
        self._enter("confirmed", t_s)
        return (Told(what="confirmed", t_s=t_s, text=why, look=look),)

    def _proof(self, look: Look, t_s: float) -> str:
        if self._witness:
            return self._witness
        if self._freed is not None and self._freed < KEPT_BELOW:
            return f"a collection and a trim gave only {self._freed:.0%} of the growth back"
        # Time alone proves nothing to a look that only lenience lets accuse.
        if t_s - self._t_s[0] >= DOUBLED * self._span_s and (look.score or 0.0) >= self._sure:
            return "it has gone on for twice as long as when it was suspected"
        return ""

    def _confirmed(self, look: Look, t_s: float) -> Sequence[Told]:
        self._running = 0 if look.accused else self._running + 1
        if self._running < TO_RESOLVE:
            return ()
        return self._end("resolved", look, t_s, f"memory has stopped growing: {look.evidence[0]}")

    def _withdraw(self, look: Look, t_s: float, why: str) -> Sequence[Told]:
        return self._end("withdrawn", look, t_s, why)

    def _end(self, what: str, look: Look, t_s: float, why: str) -> Sequence[Told]:
        self._enter("quiet", t_s)
        self._since_s, self._freed, self._witness = None, None, ""
        return (Told(what=what, t_s=t_s, text=why, look=look),)

    def _enter(self, stage: Stage, t_s: float) -> None:
        self.stage, self._running = stage, 0


def _joined(name: str, a: float, b: float) -> float:
    if isnan(a) or isnan(b):
        return b if isnan(a) else a
    return b if name in COUNTERS else min(a, b)


def replay(
    columns: Columns,
    *,
    limit_bytes: float | None = None,
    models: Mapping[str, leak_model.Model] = leak_model.MODELS,
) -> Ending:
    """A recording judged as it was made: what a warden would have said, and what stands at the end."""
    samples = max(LEAST_SAMPLES, min(len(columns), 2 * SAMPLES)) + 1
    watch = LeakWatch(window_s=float("inf"), samples=samples, sure=leak_model.LINE, running=TO_SUSPECT, models=models)
    told: list[Told] = []
    names = list(columns.columns)
    look = Look(accused=False)
    for i, t_s in enumerate(columns.t_s):
        watch.add(t_s, **{name: columns[name][i] for name in names})
        if watch.is_due() or i == len(columns) - 1:
            look, news = watch.look(limit_bytes=limit_bytes)
            told += news
    # A watch goes on suspecting a little below the line; what stands in a report must be above it.
    stands = watch.stage != "quiet" and look.accused and (look.score or 0.0) >= leak_model.LINE
    sure = stands and watch.stage == "confirmed"
    if look.accused and not stands:
        once = "only the last look accuses, and one look is no suspicion"
        look = look.replace(confidence=min(look.confidence, UNACCUSED), evidence=(*look.evidence, once))
    return Ending(
        look=confirmed(look) if sure else look,
        suspected=stands,
        confirmed=sure,
        detected_at_s=watch.suspected_since_s if stands else None,
        told=tuple(told),
    )
