"""The loop in process: read, weigh, act, and say so. One of the two places where the stages meet.

A `Warden` is a value you own: a thread that wakes up by headroom (nearly never when calm, every 10 ms near the line),
reads the machine, weighs the reading, climbs the ladder from CRITICAL on, and writes the black box. It polls from
inside the process, so while C code holds the GIL it is blind: up to two seconds during one `json.loads` of 30 MB.
What it cannot stop, `memwarden run` sees from outside. The black box states how late each tick was.

Reading `.level`, `.verdict` and `.reading` takes no lock and no reading: one attribute that is replaced whole.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import deque

from memwarden import config as settings
from memwarden.blackbox import BlackBox, LeakState, directory
from memwarden.clock import Wake
from memwarden.errors import ConfigError
from memwarden.facts import Level, Reason
from memwarden.judge import History, Judge, Lines
from memwarden.judge.levels import GAP_S
from memwarden.sense import Machine, SystemClock, identify, make_sensor
from memwarden.sense.cgroup import find_cgroup
from memwarden.units import MIB, format_bytes, format_ratio, parse_bytes, parse_duration
from memwarden.warden.cleanup import Cleanup
from memwarden.warden.hooks import follow, unfollow
from memwarden.warden.messenger import Messenger, Subscriber, running_loop
from memwarden.warden.operations import OPERATION_S, Operations, Running, is_coroutine_function
from memwarden.warden.words import disabled, in_words, nothing_done, reasons, unweighed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType
    from typing import Any, Self

    from memwarden.act import Collections
    from memwarden.act.fence import Fence
    from memwarden.budget import Budget
    from memwarden.diagnose import Statistics
    from memwarden.facts import Finding, Forecast, Leak, Limit, Operation, Outcome, Reading, Trend, Verdict
    from memwarden.findings import Findings
    from memwarden.ports import Channel, Clock, Sheddable
    from memwarden.ports import Machine as MachinePort
    from memwarden.tell.settings import AlertSettings
    from memwarden.warden.notices import Spoken
    from memwarden.warden.telling import Telling
    from memwarden.warden.typewatch import TypeWatch

    Callback = Callable[[Level, Level, Reading], None] | Callable[[Level, Level, Reading], Awaitable[None]]
    Listener = Callable[[Finding], None] | Callable[[Finding], Awaitable[None]]

# Before any growth was seen, growth at this rate is thought possible: what a Python loop that appends can do (32 to
# 100 MiB/s on this decade's cores). It only decides how often a calm process is looked at.
ASSUMED_BYTES_PER_S = 32 * MIB
# Four looks before the fastest growth seen could use up what is left (DESIGN 3).
LOOKS = 4
# WARNING and above look at least so often.
LONGEST_S = {Level.NORMAL: 3600.0, Level.WARNING: 1.0, Level.CRITICAL: 0.25, Level.EMERGENCY: 0.1}
# Readings further apart than this many intervals were not meant to be: what happened between is unknown.
GAP_INTERVALS = 2.5
# How old the last whole reading may be while a glance sees nothing move, and what counts as moving.
STILL_S = 3.0
STILL_BYTES = 4 * MIB
STILL_RATIO = 64
# With less than half of the limit free the fence is moved at least so often (research: pressure, 0.3).
FENCE_S = 0.05
# Set by `memwarden run`, which moves the fence from outside and better.
FENCED = "MEMWARDEN_FENCED"
# The command slot of a black box on disk is looked at so often. The wake-up costs 60 to 75 us of CPU, the look
# itself 0.6 us: below 0.01 % of one core.
COMMAND_S = 1.0
RECENT_OUTCOMES = 100
# How long the last alerts may take to be delivered when it is stopped, and at the end of the process; what is left is
# in the store for whoever comes next.
STOP_S, EXIT_S = 5.0, 2.0


class Warden:
    """Keeps this process inside its memory limit, best effort.

    `limit` is an explicit limit of this process ("512M" or bytes); it can only lower what the system sets. Every
    other setting of `memwarden config` is a keyword. `preset` is one of `memwarden.config.PRESETS`, "auto" (by the
    hosting platform) or None (75 / 90 / 95 %). `alerts` is what stands in the table `[alerts]` of the settings file,
    which is read where it is not given; in it a channel may also be an object of your own (`ports.Channel`), and an
    empty one tells nobody. Raises ConfigError on values that cannot be used.
    """

    def __init__(
        self,
        limit: str | float | None = None,
        *,
        preset: str | None = "auto",
        machine: MachinePort | None = None,
        clock: Clock | None = None,
        alerts: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self._machine = machine if machine is not None else Machine()
        self._clock = clock if clock is not None else SystemClock()
        if limit is not None:
            config["limit"] = limit
        platform = identify(self._machine, find_cgroup(self._machine)[0]).name
        settled = settings.settle(config, environ=self._machine.environ, platform=platform, preset=preset)
        self.config = settled.config
        self.origins = settled.origins
        self._sensor = make_sensor(
            self._machine,
            clock=self._clock,
            setting_bytes=self.config.limit_bytes,
            setting_source=f"limit ({self.origins['limit_bytes']})",
        )
        self._subscribers: list[Subscriber] = []
        self._log: Any = None
        self._alerts, self._alerts_pid = self._make_alerts(alerts), os.getpid()
        self._telling: Telling | None = None
        self._inherited: list[Telling] = []
        self._budgets: list[Budget] = []
        self._alert_details: dict[str, tuple[Callable[[], Any], float]] = {}
        self._cleanup = Cleanup(self.config, machine=self._machine, clock=self._clock, rss_bytes=self._sensor.rss_bytes)
        self._begin_life()

    def _begin_life(self) -> None:
        """What a process has of its own: all is new in a forked child, where it may have been half-written."""
        self._lock = threading.RLock()
        self._ticking = False
        self._thread: threading.Thread | None = None
        self._wake = Wake()
        self._messenger: Messenger | None = None
        self._judge = Judge(self._lines(), gap_s=max(GAP_S, GAP_INTERVALS * self.config.interval_s))
        self._history = History(self.config.window_s)
        self._measured = Operations(clock=self._clock, rss_bytes=self._sensor.rss_bytes)
        self._in_flight = self._measured.in_flight
        self.operations: deque[Operation] = self._measured.recent
        self.outcomes: deque[Outcome] = deque(maxlen=RECENT_OUTCOMES)
        self._ladder = self._cleanup.begin_life(self._lock, self.operations, self._history, self._judge)
        self._collector = self._cleanup.collector
        self._verdict: Verdict | None = None
        self._acted_on = Level.NORMAL
        self._fence: Fence | None = None
        self._findings = self._make_findings() if self.config.leak_detection else None
        self._types: TypeWatch | None = None
        if self._findings is not None and self.config.leak_census:
            self._types = self._make_types(self._findings)
        self._told_leak: tuple[float, str] | None = None
        from memwarden.warden.crew import Crew

        self._crew = Crew(self._lock)
        self._spoken: Spoken | None = None
        if self._telling is not None:
            # The parent's: its connection to the store must be neither used nor closed here, so it is only kept.
            self._inherited.append(self._telling)
        self._telling = None
        self._box: BlackBox | None = None
        self._box_pid = 0
        self._due_s = float("-inf")
        self._seen: tuple[int, int] | None = None
        self._moved, self._count_due_s = 0, float("-inf")
        self.ticks = 0
        self.errors = 0

    def _lines(self) -> Lines:
        return Lines.of(self.config)

    def _make_alerts(self, given: Mapping[str, Any] | None) -> tuple[AlertSettings, tuple[Channel, ...]] | None:
        """The settings of alerts and their channels, checked; None where nobody is told. Raises ConfigError."""
        environ = self._machine.environ
        table, where = (given, "alerts") if given is not None else settings.table("alerts", environ=environ)
        if not table or not self.config.enabled:
            return None
        from memwarden.warden.telling import settings_of

        return settings_of(table, where, environ)

    def _make_telling(self, run_folder: str | None) -> Telling | None:
        if self._alerts is None:
            return None
        from memwarden.tell.sender import build_channels
        from memwarden.warden.telling import Telling

        found, channels = self._alerts
        if self._alerts_pid != os.getpid():  # those of the parent have its connections
            found, channels = build_channels(found, self._machine.environ)
            self._alerts, self._alerts_pid = (found, channels), os.getpid()
        cleanup, in_flight = self._cleanup, self._in_flight
        telling = Telling(
            found,
            channels,
            config=self.config,
            clock=self._clock,
            environ=self._machine.environ,
            run_folder=run_folder,
            leads=self._crew.leads,
            in_flight=lambda: sorted(each.name for each in tuple(in_flight)),
            held=lambda: dict(cleanup.held_bytes),
            trend=self.trend,
        )
        telling.budgets = self._budgets
        for name, (function, limit_s) in self._alert_details.items():
            telling.teller.collectors.add(name, function, limit_s=limit_s)
        return telling

    def _make_findings(self) -> Findings:
        config = self.config
        machine, declared, work = self._machine, self._cleanup.declared_bytes, self._measured.work

        def columns() -> dict[str, float | None]:
            generations = gc.get_stats()
            return {
                "python_blocks": machine.python_blocks(),
                "native_in_use_bytes": machine.native_in_use_bytes(),
                "declared_cache_bytes": declared(),
                "work_done": work(),
                "gc_collected": sum(each["collected"] for each in generations),
                "gc_uncollectable": sum(each["uncollectable"] for each in generations),
            }

        from memwarden.findings import Findings

        return Findings(
            clock=self._clock,
            pid=os.getpid(),
            leak_s=max(config.leak_interval_s, config.interval_s),
            window_s=config.window_s,
            columns=columns,
        )

    def _make_types(self, findings: Findings) -> TypeWatch:
        from memwarden.warden.typewatch import TypeWatch

        blocks = self._machine.python_blocks
        return TypeWatch(findings, clock=self._clock, blocks=blocks, forked=self._ladder.would_copy)

    # --- life --------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Warm up, take the first reading and start the loop. A second start is a no-op; so is one when disabled."""
        with self._lock:  # two threads that start it get one loop
            if self.config.enabled and self._thread is None:
                self.warm_up()
                self._open_box()
                self._raise_fence()
                self._tick(0.0)
                self._start_thread()
                follow(self)
        return self

    def warm_up(self) -> Self:
        """Import and try now what an emergency will need: then nothing is loaded and nothing large is allocated.

        `start` does it; whoever uses a Warden that does not run (`check`, `relieve`) may.
        """
        self._need_log()
        self._machine.trim()
        self._machine.forked()
        if self._findings is not None:
            from memwarden.warden import notices  # noqa: F401

            self._findings.warm_up()
        if self._subscribers:
            self._need_messenger()
        return self

    def _raise_fence(self) -> None:
        """Where it is asked for and nobody moves one from outside; the ticks move it."""
        if self.config.fence == "off" or not self._machine.live or self._machine.environ.get(FENCED) == "outside":
            return
        from memwarden.act.fence import Fence

        self._fence = Fence(self._machine, mode=self.config.fence)

    def _read(self) -> Reading:
        """A whole reading; the fence, where there is one, moves with it."""
        fence = self._fence
        if fence is None:
            return self._sensor.read()
        before = fence.look()
        reading = self._sensor.read()
        cgroup = self._sensor.place.cgroup if reading.scope == "container" else None
        fence.move(
            reading.headroom_bytes, reading.limit_bytes, before=before, now_s=reading.monotonic_s,
            folder=cgroup.folder if cgroup is not None else None,
        )  # fmt: skip
        return reading

    def _lower_fence(self) -> None:
        fence, self._fence = self._fence, None
        if fence is not None:
            fence.lift()

    def _open_box(self) -> None:
        """A black box of this process. Without one the watch goes on all the same."""
        config, environ = self.config, self._machine.environ
        on_disk = config.blackbox and self._machine.live and hasattr(os, "getuid")  # Windows: in memory only
        folder = directory(config.directory, environ, os.getuid()) if on_disk else None
        supervisor = environ.get("MEMWARDEN_SUPERVISOR", "")
        try:
            box = BlackBox(
                folder,
                pid=os.getpid(),
                unix_s=self._clock.wall(),
                monotonic_s=self._clock.monotonic(),
                supervisor_pid=int(supervisor) if supervisor.isdigit() else 0,
                start_ticks=self._machine.start_ticks(),
                argv=" ".join(sys.argv),
                posts=self._alerts is not None,
            )
        except (OSError, ValueError) as error:  # no memory for it, or a folder name that cannot be one
            self._log.warning("no black box: %s", error)
            return
        if folder is not None and box.reason:
            self._log.warning("no black box on disk, it will not survive this process: %s", box.reason)
        with self._lock:
            self._box, self._box_pid = box, os.getpid()
            self._place_box()
            if self._telling is None:
                self._telling = self._make_telling(folder if box.path is not None else None)
            if self._telling is not None:
                self._telling.attach(box)
            if folder is not None and box.path is not None and config.leader:
                self._join_the_crew(folder)
            elif self._telling is not None:
                self._telling.tick()

    def _own_box(self) -> BlackBox | None:
        """The black box, unless it is that of a parent: after a fork in C, which runs no hook, it would be."""
        return self._box if self._box_pid == os.getpid() else None

    def _place_box(self) -> None:
        box = self._own_box()
        if box is not None:
            place = self._sensor.place
            kills = self._verdict.reading.around.oom_kills if self._verdict is not None else None
            folder = place.cgroup.folder if place.cgroup else None
            box.place(place.limit.bytes, place.limit.source, cgroup=folder, oom_kills=kills)

    def _start_thread(self) -> None:
        self._wake = Wake()
        thread = self._thread = threading.Thread(target=self._run, name="memwarden", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had: at interpreter shutdown, or a limit is reached
            self._thread = None
            self._end_box("failed")
            raise

    def stop(self) -> None:
        """End the loop, deliver the callbacks that are due, and close the black box: what comes after nobody sees."""
        thread = self._halt()
        with self._lock:
            self._lower_fence()
        self._end_telling("its Warden was stopped", STOP_S)
        self._crew.resign()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10.0)
        messenger, self._messenger = self._messenger, None
        if messenger is not None:
            messenger.stop()
        self._end_box("stopped")

    def _halt(self) -> threading.Thread | None:
        """Have the loop end at its next step: it goes on only while it is the thread of this Warden."""
        with self._lock:  # a callback may stop it while start() is not yet done
            thread, self._thread = self._thread, None
            self._wake.set()
            unfollow(self)
        return thread

    def _end_telling(self, why: str, patience_s: float) -> None:
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.stop(why, patience_s=patience_s)

    def _end_box(self, verdict: str) -> None:
        """Say how it ended. Nobody unmaps it: the last thread that still writes lets it go."""
        with self._lock:
            box, self._box = self._own_box(), None
            if box is not None:
                box.end_life(verdict)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __del__(self) -> None:
        messenger = getattr(self, "_messenger", None)
        if messenger is not None:
            messenger.end()

    def _after_fork(self) -> None:
        """In a forked child: no thread of ours came along, and the black box is the parent's."""
        running, fenced = self._thread is not None, self._fence is not None
        self._lower_fence()
        inherited = self._crew
        self._begin_life()
        inherited.disown(self._lock)
        if fenced:
            self._raise_fence()  # moved for the first time at the first tick
        for each in self._subscribers:
            each.loop = None  # the parent's event loop runs in the parent
        if running:
            try:
                self._start_thread()
            except RuntimeError as error:
                self._log.warning("a forked child is not watched: %s", error)

    def _goodbye(self) -> None:
        """At interpreter exit: the box of a process that ends by itself is not that of one that was killed."""
        self._halt()
        self._end_telling("the process ended by itself", EXIT_S)
        self._end_box("clean" if getattr(sys, "last_value", None) is None else "failed")

    # --- the loop ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Wait by headroom, tick, for ever. The first act is to wait: a fork that soon executes leaves no trace."""
        me, wake, last_s = threading.current_thread(), self._wake, self._clock.monotonic()
        while self._thread is me:
            self._due_s = due_s = last_s + self._pace()
            left_s = max(0.0, due_s - self._clock.monotonic())
            wait_s = min(left_s, COMMAND_S) if self._can_be_asked() else left_s
            if self._clock.wait(wake, wait_s):
                wake.clear()  # something changed: it may be due earlier now
            elif self._thread is me:
                self._listen()
                if wait_s == left_s:
                    self._look(max(0.0, self._clock.monotonic() - due_s))
                    last_s = self._clock.monotonic()

    def _can_be_asked(self) -> bool:
        """Whether there is a black box on disk, where somebody may leave a command."""
        box = self._own_box()
        return box is not None and box.path is not None

    def _listen(self) -> None:
        """Carry out a command that was left in the black box, and answer it there."""
        box = self._own_box()
        command = box.command() if box is not None else None
        if box is not None and command is not None:
            identity, verb = command
            from memwarden.warden.commands import obey

            text = obey(verb, self)
            with self._lock:
                box.answer(identity, text)

    def _look(self, late_s: float) -> None:
        """One round of the loop."""
        try:
            if self._own_box() is None:
                self._open_box()
            if not self._is_still(late_s):
                verdict = self._tick(late_s)
                self._act(verdict)
                self._tend(verdict)
                self._look_for_findings(verdict)
        except Exception:  # noqa: BLE001  the guarded process must not lose its warden, nor its standard error
            self.errors += 1
            if self.errors in (1, 10, 100, 1000):
                self._log.exception("a tick failed (%d so far); the loop goes on", self.errors)

    def _is_still(self, late_s: float) -> bool:
        """Whether nothing moved since the last whole reading, which is young: then a glance is enough, and recorded.

        It costs a tenth of a tick. What moved less (4 MiB resident, a sixty-fourth of the headroom) is seen 3 s later.
        The whole machine's use is looked at only as often as its headroom asks for, and is as old in the record.
        """
        verdict, seen = self._verdict, self._seen
        if verdict is None or seen is None or verdict.level or self._in_flight or self.config.pressure_file is not None:
            return False
        now_s, reading = self._clock.monotonic(), verdict.reading
        if self._findings is not None and now_s >= self._findings.leak_due_s:
            return False
        if now_s - reading.monotonic_s >= STILL_S or reading.headroom_bytes is None or reading.used_bytes is None:
            return False
        thrifty = now_s < self._count_due_s
        rss, counted = self._sensor.glance(thrifty=thrifty)
        if rss is None or (counted is None and not thrifty):
            return False
        most = reading.headroom_bytes / STILL_RATIO
        if counted is not None:
            self._moved = counted - seen[1]
            self._count_due_s = now_s + self._headroom_s(reading)
        if abs(self._moved) > most or abs(rss - seen[0]) > min(STILL_BYTES, most):
            return False
        used = max(0, reading.used_bytes + self._moved)
        with self._lock:  # the black box has one writer at a time
            self.ticks += 1
            box = self._own_box()
            if box is not None:
                box.tick(self._clock.wall(), now_s, rss, used, reading.limit_bytes, 0, late_s)
        return True

    def _glance(self, verdict: Verdict) -> tuple[int, int] | None:
        """What the next looks are compared with."""
        reading = verdict.reading
        self._moved, self._count_due_s = 0, reading.monotonic_s + self._headroom_s(reading)
        rss, counted = self._sensor.glance()
        return (rss, counted) if rss is not None and counted is not None else None

    def _pace(self) -> float:
        """Seconds until the next look: a quarter of what the fastest growth would need to use up the headroom."""
        config, verdict = self.config, self._verdict
        longest = config.interval_s
        if verdict is None or self._measured.busy():
            longest = min(longest, OPERATION_S)
        if verdict is not None:
            if config.warning_faster:
                longest = min(longest, LONGEST_S[verdict.level], self._headroom_s(verdict.reading))
            if self._fence is not None and self._fence.is_up and (verdict.reading.pressure_ratio or 0) > 0.5:
                longest = min(longest, FENCE_S)
        return max(config.min_interval_s, longest)

    def _headroom_s(self, reading: Reading) -> float:
        if reading.headroom_bytes is None:
            return self.config.interval_s
        return reading.headroom_bytes / max(ASSUMED_BYTES_PER_S, self._judge.growth.bytes_per_s) / LOOKS

    def _hurry(self) -> None:
        """Wake the loop where it is due earlier than it thought when it went to wait."""
        if self._thread is not None and self._clock.monotonic() + self._pace() < self._due_s:
            self._wake.set()

    def _tick(self, late_s: float) -> Verdict:
        """Read, weigh and record. One thread at a time; within itself (a signal handler, a finalizer) it is over."""
        with self._lock:
            if self._ticking:
                return self._verdict if self._verdict is not None else unweighed(self._sensor.read())
            self._ticking = True
            try:
                old, verdict = self._verdict, self._weigh(self._read())
                self._verdict = verdict
                self._seen = self._glance(verdict)
                self._record(old, verdict, late_s)
                if self._telling is not None:
                    self._telling.weigh(verdict)
            finally:
                self._ticking = False
        before = old.level if old is not None else Level.NORMAL
        if before != verdict.level:
            self._say_change(before, verdict)
        return verdict

    def _record(self, old: Verdict | None, verdict: Verdict, late_s: float) -> None:
        """Everything that must come in the order of the ticks: black box, operations, messages to callbacks."""
        self.ticks += 1
        reading, box = verdict.reading, self._own_box()
        self._measured.sample(reading.rss_bytes)
        if box is not None:
            box.tick(
                reading.unix_s, reading.monotonic_s, reading.rss_bytes, reading.used_bytes, reading.limit_bytes,
                verdict.level, late_s,
            )  # fmt: skip
        if old is None or _place_of(old.reading) != _place_of(reading):
            self._place_box()
        self._changed(old.level if old is not None else Level.NORMAL, verdict)

    def _act(self, verdict: Verdict) -> None:
        """CRITICAL climbs the ladder until it is relieved; EMERGENCY climbs all of it, at once when it begins."""
        before = self._acted_on
        if (before >= Level.CRITICAL) != (verdict.level >= Level.CRITICAL):
            self._ladder.rest()
        if not self._may_act(verdict):
            self._acted_on = min(before, verdict.level)  # an emergency that has to wait begins when it is acted on
            return
        self._acted_on = verdict.level
        try:
            self._climb(verdict, before)
        finally:
            self._crew.end_turn()

    def _climb(self, verdict: Verdict, before: Level) -> None:
        emergency = verdict.level is Level.EMERGENCY
        steps = self._ladder.climb(
            f"{verdict.level.name} by itself",
            enough=_never if emergency else self._relieved,
            urgent=emergency and before < Level.EMERGENCY,
            ratio=None if emergency else self._ratio(verdict),
            need_bytes=None if emergency else self._needed(verdict),
        )
        did = [self._report(outcome) for outcome in steps]
        if self._telling is not None:
            self._telling.acted(did, verdict.level)

    def _tend(self, verdict: Verdict) -> None:
        """Between cleanups: a collection where there is evidence for it (row M5). On the thread of the loop only."""
        config = self.config
        if verdict.level >= Level.CRITICAL or not (config.relieve and config.proactive_gc):
            return
        if not self._ladder.due(self._collector, expected_s=self._collector.expected_s()):
            return
        why = self._collector.wanted(verdict.reading.pressure_ratio)
        if why and self._crew.take_turn():
            try:
                self._trim_and_collect(f"periodic check: {why}")
            finally:
                self._crew.end_turn()

    def _trim_and_collect(self, reason: str) -> int:
        """A collection with a trim before it, or what that returns would be put down to the collection; bytes freed."""
        freed = 0
        if self._ladder.due(self._cleanup.trim):
            freed += self._report(self._ladder.apply(self._cleanup.trim, "before a collection")).freed_bytes or 0
        return freed + (self._report(self._ladder.apply(self._collector, reason)).freed_bytes or 0)

    # --- what it finds out about this process --------------------------------------------------------------------

    def _look_for_findings(self, verdict: Verdict) -> None:
        """Leaks, rapid growth and spikes, at their own slow rate; and whether the leader is gone."""
        now_s, findings = verdict.reading.monotonic_s, self._findings
        if now_s >= self._crew.due_s:
            self._hear()
        if findings is None or now_s < findings.due_s:
            return
        calm, types = verdict.level < Level.CRITICAL, self._types
        if types is not None and calm:
            types.step(verdict.reading)  # the second census, so that the look of this sample knows of it
        before = findings.leak
        for each in findings.sample(verdict.reading, calm=calm):
            self._tell(each)
        if findings.wants_probe and calm:
            self._probe(findings)
        if types is not None and calm:
            types.step(verdict.reading)  # the first one, after the probe has taken the garbage away
        if findings.leak is not before:
            self._keep_leak(findings.leak)

    def _probe(self, findings: Findings) -> None:
        """On a suspicion: what do a collection and a trim give back? When they are safe here and in their share."""
        config, collector = self.config, self._collector
        if not (config.leak_probe and config.relieve and config.proactive_gc):
            return
        if self._ladder.due(collector, expected_s=collector.expected_s()) and self._crew.take_turn():
            try:
                findings.probed(max(0, self._trim_and_collect("a leak is suspected")))
            finally:
                self._crew.end_turn()

    def _tell(self, finding: Finding) -> None:
        """Into the own black box at once; to people by the leader."""
        if finding.kind == "leak":
            self._told_leak = finding.unix_s, f"{finding.what}: {finding.text}"
        with self._lock:
            box = self._own_box()
            if box is not None:
                box.event(finding.unix_s, finding.monotonic_s, finding.kind, f"{finding.what}: {finding.text}")
        if not self._crew.pass_on(finding):
            self._speak(finding)
        elif self._telling is not None:
            self._telling.passed_on(finding)

    def _keep_leak(self, leak: Leak) -> None:
        """In the black box, where it stays however many events follow."""
        told = self._told_leak
        with self._lock:
            box = self._own_box()
            if box is not None and told is not None:
                box.put_leak(
                    LeakState(
                        stage=leak.stage,
                        since_unix_s=leak.since_unix_s,
                        unix_s=told[0],
                        text=told[1],
                        cause=leak.cause,
                        confidence=leak.confidence,
                        growth_bytes_per_minute=leak.growth_bytes_per_minute,
                        growing=leak.growing,
                    )
                )

    def _speak(self, finding: Finding) -> None:
        """Log line and callbacks, unless the same was told of another worker of late."""
        if self._spoken is None:
            from memwarden.warden.notices import Spoken

            self._spoken = Spoken()
        self._need_log()
        is_news = self._spoken.is_news(finding)
        if self._telling is not None and (is_news or finding.what != "seen"):  # it knows who of them is in a state
            self._telling.finding(finding)
        if not is_news:
            self._log.debug("pid %d too: %s %s: %s", finding.pid, finding.kind, finding.what, finding.text)
            return
        urgent = finding.what in {"suspected", "confirmed", "began"}
        of = "" if finding.pid == os.getpid() else f"pid {finding.pid}: "
        (self._log.warning if urgent else self._log.info)("%s%s %s: %s", of, finding.kind, finding.what, finding.text)
        if urgent and finding.leak is not None:
            for advice in finding.leak.advice[1:]:
                self._log.warning("%s", advice)
        self._call("on_finding", finding)
        if finding.kind == "leak":
            self._call("on_leak", finding)

    # --- among the workers of a cgroup ---------------------------------------------------------------------------

    def _join_the_crew(self, folder: str) -> None:
        """Where there is a run folder: one process of the cgroup speaks for all and acts first."""
        place = self._sensor.place
        cgroup = place.binding or (place.cgroup.folder if place.cgroup is not None else None)
        self._crew.stand(folder, cgroup, self._machine)
        self._hear()

    def _hear(self) -> None:
        """The leader tells what the others passed on, to people too."""
        if self._telling is not None:
            self._telling.tick()
        for each in self._crew.news(self._clock.monotonic(), self._clock.wall()):
            self._speak(each)
        why = self._crew.why_alone()
        if why:
            self._need_log()
            self._log.warning("no leader among the workers of this cgroup, each speaks for itself: %s", why)

    def _may_act(self, verdict: Verdict) -> bool:
        """Whether a cleanup by itself is in place now: by the settings, and among the workers of the cgroup."""
        config, level = self.config, verdict.level
        if level < Level.CRITICAL or not config.relieve:
            return False
        if not (config.emergency_cleanup if level is Level.EMERGENCY else config.critical_cleanup):
            return False
        return self._crew.may_act(verdict)

    def _ratio(self, verdict: Verdict) -> float | None:
        """The share of the limit in use for the lines of actions; None, above all of them, where it was forced."""
        return None if _is_forced(verdict) else verdict.reading.pressure_ratio

    def _needed(self, verdict: Verdict) -> int | None:
        """Bytes down to where CRITICAL is left; None where that cannot be told."""
        reading = verdict.reading
        if _is_forced(verdict) or reading.limit_bytes is None or reading.used_bytes is None:
            return None
        return max(0, reading.used_bytes - int(reading.limit_bytes * (self.config.critical - self.config.leave_gap)))

    def _weigh(self, reading: Reading) -> Verdict:
        if self._verdict is not None and self._verdict.reading.scope != reading.scope:
            self._history.clear()  # a container's bytes after a process's are no trend
        verdict = self._judge.weigh(reading)
        if reading.used_bytes is not None:
            self._history.add(reading.monotonic_s, reading.used_bytes)
        if self.config.pressure_file is not None:
            verdict = self._forced(verdict)
        return verdict

    def _forced(self, verdict: Verdict) -> Verdict:
        """The injection valve: a level's name in a file forces it, for game days and acceptance tests."""
        try:
            with open(self.config.pressure_file or "", encoding="ascii", errors="replace") as file:
                word = file.read(64).strip().upper()
        except OSError:
            return verdict
        if word not in Level.__members__:
            return verdict
        reason = Reason(code="forced", text=f"{self.config.pressure_file} says {word}")
        return verdict.replace(level=Level[word], reasons=(reason,))

    def _changed(self, old: Level, verdict: Verdict) -> None:
        """Write a change of level into the black box, and have the callbacks called."""
        if old == verdict.level:
            return
        reading, box = verdict.reading, self._own_box()
        if box is not None:
            text = f"{old.name} -> {verdict.level.name}: {reasons(verdict)}"
            box.event(reading.unix_s, reading.monotonic_s, "level", text)
        self._call("on_change", old, verdict.level, reading)

    def _call(self, given_to: str, *words: Any) -> None:
        """Have the callbacks that were given there called with these."""
        for subscriber in tuple(self._subscribers):
            if subscriber.given_to == given_to:
                try:
                    self._need_messenger().send(subscriber, words)
                except RuntimeError as error:  # no thread can be had any more
                    self._log.warning("a callback of %s is not called: %s", given_to, error)

    def _say_change(self, old: Level, verdict: Verdict) -> None:
        self._need_log()
        reading = verdict.reading
        say = self._log.warning if verdict.level > old else self._log.info
        if reading.scope != "process" and not self._crew.leads():
            say = self._log.debug  # the others of this cgroup see the same: the leader says it
        say(
            "memory %s -> %s: %s of %s (%s): %s", old.name, verdict.level.name, format_bytes(reading.used_bytes),
            format_bytes(reading.limit_bytes), format_ratio(reading.usage_ratio), reasons(verdict),
        )  # fmt: skip

    def _need_messenger(self) -> Messenger:
        if self._messenger is None:
            self._need_log()
            self._messenger = Messenger(self._log)
        return self._messenger

    # --- what a user asks --------------------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict:
        """The last verdict; where the loop does not run, a fresh one."""
        found = self._verdict
        if found is not None and self._thread is not None:
            return found
        return self._tick(0.0) if self.config.enabled else disabled(self._clock)

    @property
    def reading(self) -> Reading:
        """The last reading; where the loop does not run, a fresh one."""
        return self.verdict.reading

    @property
    def level(self) -> Level:
        """The level now."""
        return self.verdict.level

    @property
    def limit(self) -> Limit:
        """The effective limit and who says so. Set it to a size ("512M") or None to change the explicit one."""
        return self._sensor.limit()

    @limit.setter
    def limit(self, value: str | float | None) -> None:
        size = None if value is None else parse_bytes(value, where="limit")
        with self._lock:
            self._sensor.setting_source = "limit (set while running)"
            self._sensor.set_limit(size)
            self._judge.anew()
            self._history.clear()
        if self._thread is not None:
            self._tick(0.0)
            self._hurry()

    @property
    def leak(self) -> Leak:
        """What the watch for leaks says now. It watches while the loop runs, from the 40th sample on."""
        from memwarden.facts import Leak

        findings = self._findings
        if findings is None or not self.config.enabled:
            return Leak(stage="off", reason="leak detection is switched off")
        return findings.leak

    @property
    def leads(self) -> bool:
        """Whether this process speaks and acts first for the workers of its cgroup; true where it is alone."""
        return self._crew.leads()

    def work_done(self, count: float = 1) -> None:
        """Count work for the leak verdict (requests, jobs, rows): growth is laid against it and not against time.

        Where nobody calls it, the operations that ended are the work.
        """
        self._measured.count(count)

    def trend(self) -> Trend:
        """How what counts against the limit moved over the window. Costs milliseconds: not for a hot path."""
        from memwarden.judge.trend import trend

        with self._lock:  # the loop must not add to it meanwhile
            return trend(self._history)

    def forecast(self) -> Forecast:
        """Time to the limit with an interval, or a refusal with its reason. Computed when asked, in milliseconds."""
        from memwarden.judge.forecast import forecast

        with self._lock:
            return forecast(self._history, self.limit.bytes, self._clock.monotonic())

    def recommendations(self) -> tuple[str, ...]:
        """What to do about it, in words that fit the state; a limit for this workload among them (row M12)."""
        from memwarden.act.collector import advice
        from memwarden.judge.advise import recommendations

        about_collector = advice()
        found = recommendations(
            self.trend(), self.forecast(), limit_bytes=self.limit.bytes, recommended_bytes=self.recommended_limit()
        )
        leak = self.leak
        if leak.stage in {"suspected", "confirmed"}:
            found = (*leak.advice, *(each for each in found if each != "memory is stable"))
        return (*found, about_collector) if about_collector else found

    def recommended_limit(self) -> int | None:
        """The limit in bytes that fits what was seen over the window; None before anything was."""
        from memwarden.judge.advise import recommended_limit
        from memwarden.judge.trend import slices_of

        with self._lock:
            buckets = self._history.buckets()
        return recommended_limit([each.high_bytes for each in slices_of(buckets)]) if buckets else None

    def statistics(self, *, types: bool = False) -> Statistics:
        """All that is known about this process now (row M10); `types` adds a census: 20 ms per 100,000 objects."""
        from memwarden.diagnose.statistics import statistics

        return statistics(self.verdict, self.trend(), self._machine, leak=self.leak, types=types)

    @property
    def alerts(self) -> tuple[AlertSettings, tuple[Channel, ...]] | None:
        """Whom it tells, and how; None where nobody is told."""
        return self._alerts

    @property
    def clock(self) -> Clock:
        """The clock it lives by."""
        return self._clock

    @property
    def fence(self) -> Fence | None:
        """The fence of this process, where the setting `fence` asks for one and the loop runs."""
        return self._fence

    @property
    def running(self) -> bool:
        """Whether the loop runs."""
        return self._thread is not None

    def check(self, operation: str | None = None) -> Verdict:
        """Read and weigh now; `operation` names the point in the record. A no-op when memwarden is disabled.

        Where the loop runs, acting is left to it. Where it does not, this acts from CRITICAL on, unless it is called
        on an event loop, which must not stand still.
        """
        if not self.config.enabled:
            return disabled(self._clock)
        self._need_log()
        verdict = self._tick(0.0)
        if operation is not None:
            reading = verdict.reading
            self._log.debug(
                "check %s: %s of %s, %s", operation, format_bytes(reading.used_bytes),
                format_bytes(reading.limit_bytes), verdict.level.name,
            )  # fmt: skip
        if self._thread is not None:
            self._hurry()
        elif running_loop() is None:
            self._act(verdict)
        return verdict

    def _need_log(self) -> None:
        if self._log is None:
            import logging

            self._log = logging.getLogger("memwarden.warden")

    def on_change(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(old_level, new_level, reading)` on every change of level; returns what takes it back.

        A coroutine function runs on the event loop that is running at this moment, else on one of its own. Callbacks
        run in a thread of their own, in order: one that hangs or raises does not stop the watch.
        """
        return self._subscribe(callback, "on_change")

    def on_leak(self, callback: Listener) -> Callable[[], None]:
        """Call `callback(finding)` when a leak is suspected, confirmed, withdrawn or resolved: each once.

        Otherwise as `on_change`. Among the workers of one cgroup the leader calls its callbacks for all of them:
        `finding.pid` says who leaks.
        """
        return self._subscribe(callback, "on_leak")

    def on_finding(self, callback: Listener) -> Callable[[], None]:
        """Call `callback(finding)` for every finding: leaks, rapid growth, spikes. Otherwise as `on_leak`."""
        return self._subscribe(callback, "on_finding")

    def _subscribe(self, callback: Any, given_to: str) -> Callable[[], None]:
        if is_coroutine_function(callback):
            import asyncio  # noqa: F401  now, and not in an emergency: 11 MiB
        entry = Subscriber(callback, given_to)
        self._subscribers.append(entry)
        if self._thread is not None:
            with self._lock:
                self._need_messenger()

        def take_back() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)

        return take_back

    def operation(self, name: str) -> Running:
        """Measure an operation: with-statement, `async with`, or decorator of a function or coroutine function.

        Its `.result` has before, after, difference, sampled peak and duration. Resident memory belongs to the whole
        process: where other operations ran meanwhile the result says `overlapped`.
        """
        return Running(self, name)

    def _begin(self, operation: Running) -> None:
        self._measured.begin(operation, self._own_box())
        self._hurry()

    def _end(self, operation: Running, *, failed: bool) -> Operation:
        return self._measured.end(operation, self._own_box(), failed=failed)

    def collect(self, reason: str = "asked for") -> Outcome:
        """Run a full garbage collection now, measured. Stops every Python thread while it runs."""
        if not self.config.enabled:
            return nothing_done("collect", reason, self._clock)
        return self._report(self._ladder.apply(self._collector, reason))

    @property
    def collections(self) -> Collections:
        """Statistics of the collections made here, by itself and by hand: total, average duration, efficiency."""
        return self._collector.statistics

    def add_strategy(
        self,
        name: str,
        function: Callable[[], object],
        *,
        priority: int | None = None,
        above: str | float | None = None,
        tag: str | None = None,
    ) -> Callable[[], None]:
        """Have a function called in cleanups from its line on, a share of the limit; returns what takes it back.

        What it returns is not believed: what counts is measured. It runs in a thread of its own for at most 5 s, so it
        must be safe beside the rest of the application; one that raises, hangs or makes memory worse twice is switched
        off and reported. Higher priorities come first: trim 110, sheddables 105, collect 100, metrics 80, snapshots
        60, others 50. `tag` is "metrics" or "snapshots" for records of that kind: they go with those of memwarden.
        Raises ConfigError.
        """
        return self._cleanup.add_strategy(name, function, priority=priority, above=above, tag=tag)

    def add_alert_detail(
        self, name: str, function: Callable[[], Any], *, limit: str | float = 1.0
    ) -> Callable[[], None]:
        """Have alerts say what this returns at that moment (a queue's length, ...); returns what takes it back.

        It is asked in a thread of its own for at most `limit`, and never for an EMERGENCY. What it returns must not be
        a secret. Raises ConfigError.
        """
        if not callable(function) or not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{name!r} is no detail", where="add_alert_detail", mend="give a name and a function")
        limit_s = parse_duration(limit, where="limit")
        self._alert_details[name] = function, limit_s
        if self._telling is not None:
            self._telling.teller.collectors.add(name, function, limit_s=limit_s)

        def take_back() -> None:
            self._alert_details.pop(name, None)
            if self._telling is not None:
                self._telling.teller.collectors.remove(name)

        return take_back

    def add_budget(self, budget: Budget) -> Callable[[], None]:
        """Have alerts name the top holders of this budget; returns what takes it back."""
        self._budgets.append(budget)

        def take_back() -> None:
            if budget in self._budgets:
                self._budgets.remove(budget)

        return take_back

    def tell_job_split(self, job: str, parts: int, why: str) -> None:
        """Have people told that a job was cut into parts because of memory. Without alerts it does nothing."""
        if self._telling is not None:
            self._telling.job_split(job, parts, why)

    def add_sheddable(self, sheddable: Sheddable) -> Callable[[], None]:
        """Have a cache or a pool shed in cleanups, in slices of 5 ms; returns what takes it back. It is held weakly.

        It is asked in a thread of its own and let go as a strategy is. Raises ConfigError.
        """
        return self._cleanup.add_sheddable(sheddable)

    def relieve(self, reason: str = "asked for", *, enough: Callable[[], bool] | None = None) -> list[Outcome]:
        """Run what is due of the actions, in order of priority, until it is `enough`: below CRITICAL, if not said."""
        if not self.config.enabled:
            return []
        verdict = self._tick(0.0)
        until = self._relieved if enough is None else enough
        steps = self._ladder.climb(reason, enough=until, ratio=self._ratio(verdict), need_bytes=self._needed(verdict))
        return [self._report(each) for each in steps]

    def emergency_cleanup(self, reason: str = "asked for") -> list[Outcome]:
        """Run every action now, whether it is due or not, whatever its line."""
        if not self.config.enabled:
            return []
        return [self._report(each) for each in self._ladder.run_all(reason)]

    def _relieved(self) -> bool:
        """Whether a fresh reading is below CRITICAL; the judge is not asked, so that its dwell stays whole."""
        verdict = self._verdict
        if verdict is not None and _is_forced(verdict):
            return False  # a game day: no reading says when it is over
        with self._lock:
            reading = self._sensor.read()
        ratio = reading.pressure_ratio
        return ratio is not None and ratio < self.config.critical - self.config.leave_gap

    def _report(self, outcome: Outcome) -> Outcome:
        self._write_down(outcome)
        if outcome.action == self._collector.name and not outcome.skipped:
            if self._telling is not None:
                self._telling.collected()
            alert = self._collector.note(outcome)
            if alert:
                self._alert(alert)
        return outcome

    def _alert(self, words: str) -> None:
        """A finding about our own collections: told once for a row of them."""
        text = f"{words}; the next one rests for up to ten minutes"
        self._log.warning("%s", text)
        if self._telling is not None:
            self._telling.fruitless(text)
        self.outcomes.append(nothing_done("collect", "alert", self._clock, why=text))
        with self._lock:
            box = self._own_box()
            if box is not None:
                box.event(self._clock.wall(), self._clock.monotonic(), "alert", text)

    def _write_down(self, outcome: Outcome) -> None:
        self._need_log()
        self.outcomes.append(outcome)
        words = in_words(outcome)
        (self._log.warning if outcome.error else self._log.info)("%s", words)
        with self._lock:
            box = self._own_box()
            if box is not None and not outcome.skipped:
                box.event(
                    outcome.unix_s, self._clock.monotonic(), "action", words, before_bytes=outcome.before_bytes,
                    after_bytes=outcome.after_bytes, duration_s=outcome.duration_s,
                )  # fmt: skip


def _is_forced(verdict: Verdict) -> bool:
    return any(reason.code == "forced" for reason in verdict.reasons)


def _place_of(reading: Reading) -> tuple[int | None, str, int | None]:
    """What the black box states of where a process stands."""
    return reading.limit_bytes, reading.limit_source, reading.around.oom_kills


def _never() -> bool:
    return False
