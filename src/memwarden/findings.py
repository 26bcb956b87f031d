"""What is found out about a process while it is watched: leaks, rapid growth, spikes; each told once.

Whoever watches (the loop of a Warden, `memwarden monitor`) gives it whole readings; this keeps them at its own slow
rates, asks the pure judges now and then, and says what there is to tell. A leak has a life (row M9): suspected, probed,
confirmed or withdrawn, resolved. The probe itself, and the telling, are the watcher's.

What costs most is a look at the leak (2 to 4 ms of Python) and the walk through the heap that a sample of it takes.
Each may take a thousandth of the time: where it costs more, it comes less often. Who asks for samples more often than
usual may have that much more, up to a hundredth.
"""

from __future__ import annotations

from memwarden.facts import Finding, Leak
from memwarden.judge import History
from memwarden.units import MIB, format_bytes, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from memwarden.facts import Reading
    from memwarden.judge.leak import Look
    from memwarden.judge.leakwatch import LeakWatch, Stage, Told
    from memwarden.ports import Clock

# Readings closer than this are one to spikes and growth: a spike that nobody saw twice in a second is none.
WATCH_S = 1.0
RAPID_EVERY_S = 15.0
# Rapid growth is over when it was not seen so many times running.
RAPID_OVER = 4
SPIKES_EVERY_S = 60.0
# From one spike that is told to the next (row A3); those between are counted.
SPIKE_REST_S = 600.0
# A spike that is found later than this is no news.
SPIKE_NEWS_S = 300.0
# Looks, and the walks through the heap, may each take this share of the time at the usual interval, and at most.
COST_SHARE, MOST_SHARE = 0.001, 0.01
USUAL_S = 15.0
# A sample so many periods after it was due ends a gap: what happened meanwhile nobody saw (as in judge.history).
GAP_PERIODS = 5.0
# A loop that comes at the very rate of the samples comes a little early now and then; a little is on time.
PUNCTUAL = 0.95
# A leak is told when it has taken this much within its window: an idle interpreter of 12 MiB that loads one module more
# grows by 2 %, in perfect order, and nobody wants to hear of it.
LEAST_BYTES = 2 * MIB
# Types whose objects grew between two censuses bear witness when they make up this much of the growth meanwhile: sizes
# in a census are shallow, and what strings and buffers hold is not in it.
WITNESS_SHARE = 0.15
WITNESS_BYTES = 64 << 10
# Where this process is less than a quarter of what is counted, the limit is not its own (as `analyze` has it).
OWN_SHARE = 0.25

COUNTERS = ("work_done", "gc_collected", "gc_uncollectable")


class Findings:
    """Watches one life of one process; `due_s` is when `sample` wants the next reading, by the monotonic clock, and
    `leak_due_s` when it is worth a reading of its own.

    `columns` gives what a reading does not hold, by the names of the trace contract: bytes and counters, None where
    unknown. It is asked once per sample for the leak, every `leak_s` seconds. No look is taken while `calm` is false in
    `sample`. Not thread-safe: one thread feeds it; `leak` may be read by all.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        pid: int,
        leak_s: float,
        window_s: float,
        columns: Callable[[], Mapping[str, float | None]],
    ) -> None:
        self._clock, self._pid, self._leak_s = clock, pid, leak_s
        self._more = columns
        self.share = min(MOST_SHARE, COST_SHARE * max(1.0, USUAL_S / leak_s))
        self._history = History(window_s)
        self.due_s = self._rapid_due_s = self._spikes_due_s = self._look_due_s = float("-inf")
        self.leak_due_s = clock.monotonic() + leak_s * PUNCTUAL  # what was before the first interval is start-up
        self._watch: LeakWatch | None = None
        self._closed = _Closed()
        self._heap_cost_s, self._last_cost_s = 0.0, float("inf")
        self._look: Look | None = None
        self._stage: Stage = "quiet"
        self._untold: list[Told] = []
        self._since_unix_s: float | None = None
        self._slow = self._rapid = 0
        self._spike_end_s = self._spike_told_s = float("-inf")
        self._spikes_untold = 0
        self._growing: tuple[str, ...] = ()
        self.leak = Leak(stage="quiet", reason="no sample yet")

    @staticmethod
    def warm_up() -> None:
        """Import what the judges need now: a process that forks in the middle of an import cannot import it again."""
        from memwarden.judge import advise, leakwatch, trend  # noqa: F401

    def sample(self, reading: Reading, *, calm: bool = True) -> list[Finding]:
        """Take in a whole reading; what there is to tell by now."""
        now_s, rss = reading.monotonic_s, reading.rss_bytes
        if now_s < self.due_s - max(WATCH_S, self._leak_s):  # time began anew
            self._rapid_due_s = self._spikes_due_s = self.leak_due_s = self._look_due_s = now_s
        self.due_s = now_s + min(WATCH_S, self._leak_s)
        if rss is None:
            return []
        self._history.add(now_s, rss)
        found: list[Finding] = []
        if calm and now_s >= self._rapid_due_s:
            self._rapid_due_s = now_s + RAPID_EVERY_S
            found += self._judge_growth(reading)
        if calm and now_s >= self._spikes_due_s:
            self._spikes_due_s = now_s + SPIKES_EVERY_S
            found += self._judge_spikes(reading)
        if now_s >= self.leak_due_s:
            found += self._judge_leak(reading, calm=calm)
        return found

    # --- leaks -------------------------------------------------------------------------------------------------

    @property
    def wants_probe(self) -> bool:
        """Whether a collection and a trim would tell something now: suspected, and not tried yet."""
        return self._stage == "suspected" and self._watch is not None and self._watch.wants_probe

    def probed(self, freed_bytes: int) -> None:
        """What a collection and a trim gave back; the next look draws the conclusion."""
        if self._watch is not None:
            self._watch.probed(freed_bytes)

    def witness(self, text: str) -> None:
        """Something else that grows the same way: a type in a census, a sampled site."""
        if self._watch is not None:
            self._watch.witness(text)

    @property
    def suspects(self) -> bool:
        """Whether a suspicion stands, confirmed or not."""
        return self._stage != "quiet"

    def look_is_next(self, now_s: float) -> bool:
        """Whether the next sample is to be looked at: what it shall know has to be found out before."""
        watch = self._watch
        return watch is not None and now_s >= max(self.leak_due_s, self._look_due_s) and watch.is_due(ahead=1)

    def grew(self, rows: Sequence[tuple[str, int]], *, passed_s: float) -> bool:
        """What grew by how many bytes between two censuses so far apart, most first; whether that bears witness."""
        look = self._look
        grown_bytes = (look.growth_bytes_per_minute or 0.0) / 60 * passed_s if look is not None else 0.0
        least = max(WITNESS_BYTES, WITNESS_SHARE * grown_bytes)
        told = [(text, size) for text, size in rows if size >= least / 4]
        if not self.suspects or sum(size for _, size in told) < least:
            return False
        self._growing = tuple(text for text, _ in told)
        self.leak = self.leak.replace(growing=self._growing)
        self.witness(f"there are more and more objects: {'; '.join(self._growing)} in {format_duration(passed_s)}")
        return True

    def _judge_leak(self, reading: Reading, *, calm: bool) -> Iterator[Finding]:
        if self._watch is None:
            from memwarden.judge.leakwatch import LeakWatch

            self._watch = LeakWatch()
        watch, now_s = self._watch, reading.monotonic_s
        late_s = now_s - self.leak_due_s
        gap = late_s > (GAP_PERIODS - 1) * self._leak_s
        values = self._columns(reading)
        self.leak_due_s = now_s + max(self._leak_s * PUNCTUAL, self._heap_cost_s / self.share)
        t_s, closed = self._closed.step(now_s, values, usual_s=self._leak_s, gap=gap)
        watch.add(t_s, **closed)
        if not (calm and watch.is_due() and now_s >= self._look_due_s):
            if self._look is None:
                self.leak = Leak(stage="quiet", samples=len(watch), reason="too few samples to judge")
            return
        start_s = self._clock.monotonic()
        look, told = watch.look(limit_bytes=_own_limit(reading))
        self._look_due_s = now_s + (self._clock.monotonic() - start_s) / self.share
        self._look = look
        grown_bytes = (look.growth_bytes_per_minute or 0.0) / 60 * (t_s - watch.columns().t_s[0])
        news = self._worth_telling(told, grown_bytes)
        if news:
            self._since_unix_s = reading.unix_s
        self.leak = self._verdict(watch, look)
        for each in news:
            yield self._about_leak(each, reading)

    def _worth_telling(self, told: Sequence[Told], grown_bytes: float) -> Sequence[Told]:
        """The steps of a suspicion's life, from when it is about enough bytes on; `_stage` is where those led."""
        told = (*self._untold, *told)
        if self._stage == "quiet" and told and grown_bytes < LEAST_BYTES:
            over = told[-1].what in {"withdrawn", "resolved"}
            self._untold = [] if over else list(told)
            return ()
        self._untold = []
        for each in told:
            self._stage = each.what if each.what in {"suspected", "confirmed"} else "quiet"  # type: ignore[assignment]  # one of three
        if self._stage == "quiet":
            self._growing = ()
        return told

    def _columns(self, reading: Reading) -> dict[str, float | None]:
        """One sample by the names of the trace contract. What it costs (a walk through the heap) sets how often."""
        start_s = self._clock.monotonic()
        more = self._more()
        cost_s = self._clock.monotonic() - start_s
        # Of two in a row the cheaper one: a thread that was switched away from in between measured its neighbours.
        self._heap_cost_s, self._last_cost_s = min(cost_s, self._last_cost_s), cost_s
        return {"rss_bytes": reading.rss_bytes, "anon_bytes": reading.around.anon_bytes, **more}

    def _verdict(self, watch: LeakWatch, look: Look) -> Leak:
        from memwarden.judge.advise import leak_advice
        from memwarden.judge.leak import confirmed

        stands, sure = self._stage != "quiet", self._stage == "confirmed"
        if sure and look.accused:
            look = confirmed(look)
        return Leak(
            stage=self._stage,
            since_unix_s=self._since_unix_s,
            cause=look.cause,
            confidence=look.confidence,
            growth_bytes_per_minute=look.growth_bytes_per_minute,
            evidence=look.evidence,
            advice=leak_advice(look, (), suspected=stands and look.cause != "", confirmed=sure, urgent=False),
            samples=len(watch),
            growing=self._growing,
        )

    def _about_leak(self, told: Told, reading: Reading) -> Finding:
        text = told.text
        if told.what in {"suspected", "confirmed"}:
            leak = self.leak
            text = f"{text} (cause: {leak.cause or 'unknown'}, confidence {leak.confidence} of 100)"
        return self._finding("leak", told.what, text, reading, leak=self.leak)

    # --- rapid growth and spikes -------------------------------------------------------------------------------

    def _judge_growth(self, reading: Reading) -> Iterator[Finding]:
        """Row A1: above 50 MB a minute for at least a minute; told when it begins and when it is over."""
        from memwarden.judge.trend import RAPID_OVER_S, is_rapid, trend

        rapid, self._slow = is_rapid(self._history), self._slow + 1
        if rapid:
            self._slow = 0
        if rapid and not self._rapid:
            self._rapid = 1
            pace = trend(self._history, RAPID_OVER_S * 1.5).growth_bytes_per_minute
            text = f"memory grows by {format_bytes(pace)} a minute, for more than {format_duration(RAPID_OVER_S)}"
            yield self._finding("rapid growth", "began", text, reading)
        elif self._rapid and self._slow >= RAPID_OVER:
            self._rapid = 0
            text = f"memory does not grow rapidly any more: {format_bytes(reading.rss_bytes)} resident"
            yield self._finding("rapid growth", "ended", text, reading)

    def _judge_spikes(self, reading: Reading) -> Iterator[Finding]:
        from memwarden.judge.trend import spikes

        buckets = self._history.buckets()
        for spike in spikes([b.first_s for b in buckets], [b.high_bytes for b in buckets]):
            end_s = spike.start_s + spike.duration_s
            if spike.start_s <= self._spike_end_s or reading.monotonic_s - end_s > SPIKE_NEWS_S:
                continue
            self._spike_end_s = end_s
            if spike.start_s - self._spike_told_s < SPIKE_REST_S:
                self._spikes_untold += 1
                continue
            untold, self._spikes_untold = self._spikes_untold, 0
            self._spike_told_s = spike.start_s
            lasted = f"for {format_duration(spike.duration_s)}" if spike.duration_s else "for a moment"
            text = (
                f"memory rose by {format_bytes(spike.above_bytes)} to {format_bytes(spike.peak_bytes)} {lasted}, "
                f"{format_duration(reading.monotonic_s - end_s)} ago"
            )
            more = f"; {untold} more since the last that was told" if untold else ""
            yield self._finding("spike", "seen", text + more, reading)

    def _finding(self, kind: str, what: str, text: str, reading: Reading, *, leak: Leak | None = None) -> Finding:
        return Finding(
            kind=kind, what=what, text=text, monotonic_s=reading.monotonic_s, unix_s=reading.unix_s, pid=self._pid,
            leak=leak,
        )  # fmt: skip


class _Closed:
    """Takes gaps out of a series as it comes: neither their time nor the change across them remains.

    A suspended machine, a process that was stopped and a clock that jumped are not growth, and time that nobody watched
    confirms nothing.
    """

    def __init__(self) -> None:
        self._t_s = self._last_s = 0.0
        self._last: dict[str, float] = {}
        self._off: dict[str, float] = {}
        self._begun = False

    def step(
        self, now_s: float, values: dict[str, float | None], *, usual_s: float, gap: bool
    ) -> tuple[float, dict[str, float | None]]:
        """The watched time and the values to go with it."""
        passed_s, self._last_s = now_s - self._last_s, now_s
        if gap or passed_s < 0:
            gap, passed_s = True, usual_s
        if self._begun:
            self._t_s += passed_s
        self._begun = True
        found: dict[str, float | None] = {}
        for name, value in values.items():
            if value is None:
                found[name] = None
                continue
            before = self._last.get(name)
            if before is not None and (gap or (name in COUNTERS and value < before)):
                # A counter that lost some (two threads that count at once) or began anew does not run backwards.
                self._off[name] = self._off.get(name, 0.0) + value - before
            self._last[name] = value
            found[name] = value - self._off.get(name, 0.0)
        return self._t_s, found


def _own_limit(reading: Reading) -> int | None:
    """The limit, where most of what counts against it is this process."""
    rss, used = reading.rss_bytes, reading.used_bytes
    return reading.limit_bytes if rss is not None and used is not None and rss >= OWN_SHARE * used else None
