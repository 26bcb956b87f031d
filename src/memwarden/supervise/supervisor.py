"""The loop: start, watch, hand on signals, bury, judge, start again. One thread, one place to sleep."""

from __future__ import annotations

import os
import signal
import time

from memwarden.errors import MemwardenError, SuperviseError
from memwarden.sense.limit import find_limit
from memwarden.sense.machine import Machine
from memwarden.supervise import alerts, postmortem, signals
from memwarden.supervise.cgroup import Confinement, confine, living_in
from memwarden.supervise.deaths import CLEAN, MACHINE_COUNTER, Death, KernelLog, KillCounter, KillWatch, classify
from memwarden.supervise.fence import TreeFence, meters_of
from memwarden.supervise.record import NoRecord, no_record
from memwarden.supervise.restart import Decision, RestartPolicy
from memwarden.supervise.spawn import Launch
from memwarden.supervise.tree import Tree, is_below, is_doomed
from memwarden.supervise.vigil import DUE, SIGNALLED, make_vigil
from memwarden.supervise.watch import CALM_TICK_S, FENCED_WALK_S, Brake, Eyes, History, Look, Pace, rest_after
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.supervise.record import OpenRecorder, Recorder
    from memwarden.supervise.settings import Settings
    from memwarden.supervise.watch import Rest

# After a SIGKILL of everything: how long a process may hang in the kernel before we report it and go.
_KILL_PATIENCE_S = 5.0
_SWEEP_STEP_S = 0.05
_NAME_WIDTH = 60
_IMAGE_BYTES = 16 << 20
# How code dies that does not bear a refused allocation.
_MAYBE_REFUSED = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP)
_MAYBE = (
    "memory was near its limit and refused by the fence: if code that does not bear that ended it, "
    "--fence off leaves it to the kernel"
)
# Tells the library inside that the fence is moved from outside.
FENCED = "MEMWARDEN_FENCED"
# How long a program may tidy up between the terminal's SIGTSTP and its own SIGSTOP.
_CLEANUP_S = 5.0


def say_on_stderr(lines: list[str]) -> None:
    """One write, so that the lines stay together. A closed or full stderr loses them, and nothing else."""
    if lines:
        try:
            os.write(2, "".join(f"memwarden: {line}\n" for line in lines).encode(errors="replace"))
        except OSError:
            return


def say_nothing(lines: list[str]) -> None:
    """--quiet."""


class Supervisor:
    """One `memwarden run`, from the first start to the last death."""

    def __init__(
        self,
        settings: Settings,
        *,
        open_recorder: OpenRecorder = no_record,
        policy: RestartPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._open_recorder = open_recorder
        self._policy = policy if policy is not None else RestartPolicy(settings)
        self._clock = clock
        self._say = say_nothing if settings.quiet else say_on_stderr
        self._confinement = Confinement(None)
        self._limit_bytes = settings.limit_bytes
        self._limit_source = settings.limit_source
        self._helper = alerts.Helper(clock)
        self._decision = Decision(delay_s=None, why="")
        self._ended = False  # somebody asked for the end: nothing is started again

    def run(self) -> int:
        """The exit code to leave with. Raises SuperviseError for our own failure."""
        mask = signals.block()
        terminal = _foreground_terminal()
        self._confine(mask)
        try:
            return self._lives(self._launch(mask), terminal)
        finally:
            self._confinement.release()

    # --- before the first start --------------------------------------------------------------------------

    def _confine(self, mask: set[int]) -> None:
        """Make the cgroup, or say why not."""
        settings = self._settings
        if settings.limit_bytes is None or settings.cgroup == "off":
            self._confinement = Confinement(living_in())
        else:
            self._confinement = self._climb(settings.limit_bytes, mask)
        if not self._confinement.own and settings.cgroup == "require":
            reasons = "; ".join(self._confinement.reasons)
            raise SuperviseError(f"no memory cgroup can be made ({reasons})", where="--cgroup require")
        self._say(self._terms())

    def _climb(self, limit_bytes: int, mask: set[int]) -> Confinement:
        """The rungs of the ladder. Through a systemd scope this process starts over."""
        settings = self._settings
        found = confine(limit_bytes, swap_bytes=settings.swap_bytes, oom_group=settings.oom_group)
        if found.own:
            return found
        from memwarden.supervise import scope

        return Confinement(found.cgroup, reasons=(*found.reasons, scope.enter(settings, mask)))

    def _terms(self) -> list[str]:
        """What is in force, and what is not."""
        settings, cgroup = self._settings, self._confinement.cgroup
        outer = cgroup.limit_bytes() if cgroup is not None else None
        if settings.limit_bytes is None:
            found = find_limit(Machine())
            self._limit_bytes, self._limit_source = found.bytes, found.source
            return []
        lines = []
        if self._confinement.own and cgroup is not None:
            lines.append(f"limit {format_bytes(settings.limit_bytes)} held by {cgroup.path}")
        else:
            lines += [f"no cgroup: {reason}" for reason in self._confinement.reasons]
            lines.append(
                f"limit {format_bytes(settings.limit_bytes)} as RLIMIT_DATA: "
                "each process gets a MemoryError at it, and their sum is not limited"
            )
        if outer is not None and outer < settings.limit_bytes - os.sysconf("SC_PAGE_SIZE"):
            lines.append(f"a limit of {format_bytes(outer)} is set on this container: it is the tighter one and wins")
            self._limit_bytes, self._limit_source = outer, "set on this container"
        return lines

    def _launch(self, mask: set[int]) -> Launch:
        environment = dict(os.environ)
        environment.update(self._settings.environment)
        if self._settings.fence != "off":
            environment[FENCED] = "outside"
        own = self._confinement.cgroup if self._confinement.own else None
        return Launch(
            self._settings.command,
            environment=environment,
            mask=mask,
            join=own.join if own is not None else None,
            data_limit_bytes=None if own is not None else self._settings.limit_bytes,
        )

    # --- lives -------------------------------------------------------------------------------------------

    def _lives(self, launch: Launch, terminal: int | None) -> int:
        """Live, die, be judged; again as long as the policy says so."""
        cgroup = self._confinement.cgroup
        kills = KillWatch(
            KillCounter(cgroup.file("events") if cgroup is not None else MACHINE_COUNTER),
            log=KernelLog(),
            shared=not self._confinement.own,
            is_doomed=is_doomed,
        )
        while True:
            life = Life(self, launch, kills)
            death = life.live()
            if terminal is not None:
                _take_terminal_back(terminal)
            delay_s = self._after(life, death)
            goes_on = delay_s is not None and self._wait_for_restart(delay_s)
            # Nothing of ours may run beside the next life, which is told from the tree below us; nor outlive us.
            self._ended |= not self._helper.end(in_haste=self._ended)
            if not goes_on or self._ended:
                return death.exit_code

    def decide(self, life: Life, death: Death) -> Decision:
        """What comes after this death, before its record is closed: what a process saw that comes back is not over."""
        self._decision = Decision(delay_s=None, why="")
        if self._settings.restart != "no" and not self._is_asked(life, death):
            self._decision = self._policy.after(death, lived_s=life.lived_s, now_s=self._clock())
        return self._decision

    def _is_asked(self, life: Life, death: Death) -> bool:
        return self._ended or life.ended_by_keyboard(death)

    def _after(self, life: Life, death: Death) -> float | None:
        """Say how it died and what comes next; the delay before the next life, None for none."""
        asked = self._is_asked(life, death)  # it may have been since it was decided
        decision = self._decision if not asked else Decision(delay_s=None, why="")
        self._say(postmortem.render(death, life.story(asked=asked), then=decision.why))
        if self._settings.alerts and death.verdict != CLEAN and not asked:
            self._helper.ask(at_once=True)
        return decision.delay_s

    def _wait_for_restart(self, delay_s: float) -> bool:
        """Sleep until it is time; False when somebody ends us meanwhile."""
        until_s = self._clock() + delay_s
        while (left_s := until_s - self._clock()) > 0:
            info = signal.sigtimedwait(signals.TAKEN, left_s)
            if info is None:
                continue
            if info.si_signo == signal.SIGCHLD:
                _bury_all(self._helper)
            elif info.si_signo == signal.SIGTSTP:
                signals.stop_ourselves()
            elif info.si_signo in (signal.SIGTERM, *signals.FROM_KEYBOARD):
                return False
        return True

    # --- what a life asks of its supervisor --------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What was asked for."""
        return self._settings

    @property
    def confinement(self) -> Confinement:
        """The cgroup that is used."""
        return self._confinement

    @property
    def limit(self) -> tuple[int | None, str]:
        """The limit that is in force, in bytes, and who says so."""
        return self._limit_bytes, self._limit_source

    @property
    def cgroup_counts(self) -> bool:
        """Whether the limit in force is on the cgroup's usage; else it is on each process (rlimit)."""
        return self._confinement.own or self._settings.limit_bytes is None

    def now_s(self) -> float:
        """Monotonic seconds."""
        return self._clock()

    def say(self, text: str) -> None:
        """One line on stderr."""
        self._say([text])

    def recorder(self, pid: int) -> Recorder:
        """A record for a new life; none where it cannot be made, which is said."""
        try:
            return self._open_recorder(pid, self._settings.command, *self.limit)
        except (OSError, MemwardenError) as error:
            self.say(f"no black box: {error}")
            return NoRecord()

    def ask_for_end(self) -> None:
        """SIGTERM came: nothing is started again."""
        self._ended = True

    @property
    def helper(self) -> alerts.Helper:
        """Has what there is on record told."""
        return self._helper

    @property
    def ended(self) -> bool:
        """Whether the end was asked for."""
        return self._ended


class Life:
    """One run of the command, from its start until nothing of it is left."""

    def __init__(self, supervisor: Supervisor, launch: Launch, kills: KillWatch) -> None:
        self._boss = supervisor
        self._kills = kills
        cgroup = supervisor.confinement.cgroup
        self._cgroup = cgroup
        self._tree = Tree(cgroup, helper=supervisor.helper.pid)
        if cgroup is not None:
            cgroup.forget_peak()
        self._peak_before = cgroup.peak_bytes() if cgroup is not None and cgroup.own else None
        self._history = History()
        self._pace = Pace()
        limit, _ = supervisor.limit
        self._fence = self._set_fence()
        self._brake: Brake | None = None
        self._may_brake = True
        if self._fence is None:
            self._set_brake(limit)
        kills.begin()  # before the start: a kill can come right after it
        self._started_s = supervisor.now_s()  # before: it may have run for a while when we run again
        self._pid = launch.start(fence_bytes=self._fence.first_bytes() if self._fence is not None else None)
        kills.own(self._pid)
        self._next_look_s = supervisor.now_s()
        self._ended_s: float | None = None
        self._status: int | None = None
        self._largest_bytes = 0
        self._stopped = False
        self._keyboard: dict[int, float] = {}
        self._kill_at_s: float | None = None
        self._eyes = Eyes(cgroup if supervisor.cgroup_counts else None, self._pid, helper=supervisor.helper.pid)
        self._looked: Look | None = None
        self._rest: Rest | None = None
        self._heeded: tuple[tuple[str, ...], tuple[str, str] | None] = ((), None)
        path, index, scale = self._eyes.counted
        self._vigil = make_vigil(signals.TAKEN, path, index=index, scale=scale)
        if self._fence is not None:
            self._eyes.walk_s = FENCED_WALK_S
        # Looked at before the black box is made, which takes milliseconds: a short life has a record too.
        first = self._eyes.look(now_s=self._next_look_s, limit_bytes=limit)
        self._record = supervisor.recorder(self._pid)
        self._remember(first, limit)

    def _set_fence(self) -> TreeFence | None:
        """None where it is off, or no cgroup sets a limit that it could stand at."""
        mode = self._boss.settings.fence
        meters = meters_of(self._boss.confinement, self._boss.settings.limit_bytes) if mode != "off" else []
        if mode == "on" and not meters:
            self._boss.say("no fence: there is no cgroup with a limit that it could stand at")
        if not meters:
            return None
        cap = None if self._boss.confinement.own else self._boss.settings.limit_bytes
        return TreeFence(meters, mode=mode, cap_bytes=cap, tell=self._tell_of_fence)

    def _tell_of_fence(self, text: str) -> None:
        self._record.event(text)
        if text.startswith("no fence"):
            self._boss.say(text)

    def _move_fence(self, fence: TreeFence, look: Look, limit: int | None) -> None:
        fence.move(look.pids, look.at_s)
        if self._may_brake and fence.exempts_all:
            self._set_brake(limit)
        self._next_look_s = min(self._next_look_s, look.at_s + fence.interval_s)

    def _set_brake(self, limit_bytes: int | None) -> None:
        """Set the alarm line, once: v1 has none."""
        self._may_brake = False
        if limit_bytes is not None and self._cgroup is not None:
            brake = Brake(limit_bytes, brake_s=self._boss.settings.brake_s)
            self._brake = brake if self._cgroup.set_alarm(brake.line_bytes) else None

    # --- the loop ----------------------------------------------------------------------------------------

    def live(self) -> Death:
        """Until the command is dead, judged and nothing of it runs."""
        while self._status is None:
            self._one_turn()
        self._ended_s = self._boss.now_s()
        pids = frozenset(self._tree.pids())
        facts = self._kills.facts(os.waitstatus_to_exitcode(self._status), pids, now_s=self._ended_s)
        death = classify(facts)
        if self._fence is not None and self._fence.is_near and death.signal in _MAYBE_REFUSED:
            self._tell(_MAYBE)
        late = self._kills.last_words(facts, death)
        if late:
            self._record.kill(late)
        decision = self._boss.decide(self, death)
        again = decision.why if decision.delay_s is not None else ""
        self._record.end(death, peak_bytes=self._peak()[0], again=again)
        if late and self._boss.settings.alerts:
            self._boss.helper.ask()  # also where the end was asked for, of which nobody is told
        if self._fence is not None:
            self._fence.close()  # what is left running may end in peace
        self._sweep()
        self._eyes.close()
        self._vigil.close()
        return death

    def _one_turn(self) -> None:
        """Sleep until a signal or the next look, whichever is first."""
        if self._rest is not None and self._kill_at_s is None:
            info = self._doze(self._rest)
        else:
            wait_s = self._next_deadline_s() - self._boss.now_s()
            info = signal.sigtimedwait(signals.TAKEN, max(0.0, wait_s))
        if info is not None:
            self._on_signal(info)
        if self._status is not None:
            return
        now_s = self._boss.now_s()
        if now_s >= self._next_look_s:
            self._look(now_s)
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._lose_patience()

    def _doze(self, rest: Rest) -> signal.struct_siginfo | None:
        """Glance until something moved, a signal comes, or it is time to look again."""
        seen_s, seen, why = self._vigil.doze(
            rest.step_s, rest.until_s, rest.least_bytes, rest.most_bytes, *self._record.still_place()
        )
        if why != SIGNALLED:
            self._next_look_s = self._boss.now_s()
        if seen_s and why != DUE and self._looked is not None:  # what comes now began after this
            last = self._looked.replace(at_s=seen_s, usage_bytes=seen)
            self._pace.stood(last)
            self._remember(last, self._boss.limit[0])
        return signal.struct_siginfo(self._vigil.info) if self._vigil.info is not None else None

    def _next_deadline_s(self) -> float:
        times = [
            self._next_look_s,
            self._kill_at_s,
            self._brake.deadline_s() if self._brake is not None else None,
        ]
        return min(at_s for at_s in times if at_s is not None)

    def _look(self, now_s: float) -> None:
        limit, _ = self._boss.limit
        files, door = self._heeded
        self._vigil.heed(files, *(door or ()))  # what moves from here on ends the next rest
        look = self._eyes.look(now_s=now_s, limit_bytes=limit)
        # Without resident memory it is dying, and what is left says nothing about why; but better that than nothing.
        if look.rss_bytes or self._history.last is None:
            self._remember(look, limit)
        news = self._kills.look(look.pids, now_s=now_s)
        if news:
            self._tell_of_kill(news)
        self._boss.helper.step()
        if self._brake is not None:
            self._step_brake(self._brake, look.usage_bytes, look.high_count, now_s)
        gives_way = self._eyes.gives_way_bytes
        pace_s = self._pace.interval_s(
            now_s=now_s, usage_bytes=look.usage_bytes, limit_bytes=limit, gives_way=gives_way
        )
        self._next_look_s = now_s + pace_s
        if self._fence is not None:
            self._move_fence(self._fence, look, limit)
        self._looked, self._rest = look, self._how_to_rest(look, limit, pace_s)

    def _how_to_rest(self, look: Look, limit: int | None, pace_s: float) -> Rest | None:
        """While nothing moves; None where every look is needed."""
        fence, brake = self._fence, self._brake
        fenced = fence is not None and not fence.exempts_all
        # What fills a cgroup around ours is not seen by a glance.
        if fence is not None and not (fence.may_rest and (self._boss.confinement.own or not fenced)):
            return None
        if brake is not None and brake.deadline_s() is not None:
            return None
        # Far from the limit and without a fence, who is started is seen when he takes memory, or within a second.
        files = self._eyes.heeded + (fence.files if fence is not None and fenced else ())
        door = self._eyes.door if fenced or pace_s < CALM_TICK_S else None
        heeded, self._heeded = self._heeded, (files, door)
        if heeded != self._heeded:
            return None  # they were not heeded from before this look on: after the next one
        return rest_after(
            look, pace_s=pace_s, limit_bytes=limit, gives_way=self._eyes.gives_way_bytes,
            fence_s=fence.interval_s if fence is not None and fenced else None,
        )  # fmt: skip

    def _remember(self, look: Look, limit: int | None) -> None:
        self._history.add(look)
        self._record.tick(
            monotonic_s=look.at_s,
            unix_s=time.time() - (self._boss.now_s() - look.at_s),
            usage_bytes=look.usage_bytes,
            rss_bytes=look.rss_bytes,
            limit_bytes=limit,
            processes=len(look.pids),
        )

    def _step_brake(self, brake: Brake, usage: int | None, high_count: int | None, now_s: float) -> None:
        what = brake.step(now_s=now_s, usage_bytes=usage, high_count=high_count)
        if what == "alarm":
            self._record.event(f"over the alarm line of {format_bytes(brake.line_bytes)}: the kernel slows it down")
        elif what == "lift" and self._cgroup is not None:
            self._cgroup.set_alarm(None)
            self._record.event("alarm line lifted: it runs at full speed up to the limit")
        elif what == "set" and self._cgroup is not None:
            self._cgroup.set_alarm(brake.line_bytes)
            self._record.event("alarm line set again")

    def _tell(self, text: str) -> None:
        self._record.event(text)
        self._boss.say(text)

    def _tell_of_kill(self, text: str) -> None:
        self._record.kill(text)
        self._boss.say(text)
        if self._boss.settings.alerts:
            self._boss.helper.ask()

    # --- signals -----------------------------------------------------------------------------------------

    def _on_signal(self, info: signal.struct_siginfo) -> None:
        number = info.si_signo
        what = signals.route(
            number,
            info.si_code,
            from_tree=self._is_ours(info.si_pid),
            same_group=self._in_our_group(),
            session_leader=os.getsid(0) == os.getpid(),
        )
        if what == signals.REAP:
            self._reap()
        elif what == signals.CONTINUE:
            self._continue()
        elif what == signals.SEEN:
            self._keyboard[number] = self._boss.now_s()
        elif what == signals.FORWARD:
            self._forward(number)

    def _is_ours(self, sender: int) -> bool:
        """The command or a process of it that signals its whole group has reached the command already."""
        return sender == os.getpid() or (sender > 0 and is_below(sender, os.getpid()))

    def _in_our_group(self) -> bool:
        try:
            return os.getpgid(self._pid) == os.getpgrp()
        except ProcessLookupError:
            return True

    def _forward(self, number: int) -> None:
        now_s = self._boss.now_s()
        asked_before = self._boss.ended
        if asked_before and number in (signal.SIGTERM, signal.SIGINT):
            self._lose_patience()
        elif number == signal.SIGTERM:
            self._boss.ask_for_end()
            self._kill_at_s = now_s + self._boss.settings.stop_grace_s
            self._record.asked("SIGTERM came: it has the grace time to end")
        if number in signals.FROM_KEYBOARD:
            self._keyboard[number] = now_s
        self._reap()  # of two that wait, SIGTERM comes before the SIGCHLD that tells of a stop
        self._send(number)
        if self._stopped and number in (signal.SIGTERM, signal.SIGHUP):
            self._send(signal.SIGCONT)  # as systemd does: a stopped process could not act on it

    def _send(self, number: int) -> None:
        if self._status is None:  # not reaped, so the pid is still its own
            os.kill(self._pid, number)

    def _lose_patience(self) -> None:
        self._kill_at_s = None
        self._tell("it did not end in time or was asked twice: SIGKILL to all of it")
        self._tree.kill()
        self._send(signal.SIGKILL)

    def _continue(self) -> None:
        """A shell continues the whole group; who continues us alone means the command."""
        self._reap()
        if self._stopped:
            self._send(signal.SIGCONT)

    def _reap(self) -> None:
        """Bury whoever died, the command and orphans alike, and follow the command's stops."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._largest_bytes = usage.ru_maxrss << 10
                self._note(status)
            else:
                self._boss.helper.reaped(pid, status)

    def _note(self, status: int) -> None:
        if os.WIFCONTINUED(status):
            self._stopped = False
        elif os.WIFSTOPPED(status):
            self._stopped = True
            number = os.WSTOPSIG(status)
            # Some programs (vim, less) answer Ctrl-Z by cleaning up and stopping themselves with SIGSTOP.
            if self._in_our_group() and (number in signals.STOPS or self._came_just_now(signal.SIGTSTP)):
                signals.stop_ourselves()
        else:
            self._status = status

    def _came_just_now(self, number: int) -> bool:
        came_s = self._keyboard.get(number, -_CLEANUP_S)
        return number in signal.sigpending() or self._boss.now_s() - came_s < _CLEANUP_S

    # --- the end -----------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """End what the command left running: SIGTERM, the grace time, SIGKILL."""
        left = self._tree.pids()
        if not left:
            return
        self._tree.end()
        self._wait_until_empty(self._boss.settings.stop_grace_s)
        left = self._tree.pids()
        if left:
            self._boss.say(f"{len(left)} process(es) of it did not end: SIGKILL")
            self._wait_until_empty(_KILL_PATIENCE_S, kill=True)
        left = self._tree.pids()
        if left:
            self._boss.say(f"still there after SIGKILL: pid {', '.join(map(str, left))}")

    def _wait_until_empty(self, seconds: float, *, kill: bool = False) -> None:
        until_s = self._boss.now_s() + seconds
        while self._boss.now_s() < until_s:
            if kill:
                self._tree.kill()
            info = signal.sigtimedwait(signals.TAKEN, _SWEEP_STEP_S)
            _bury_all(self._boss.helper)
            if not self._tree.pids():
                return
            if info is not None and info.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._boss.ask_for_end()
                if not kill:
                    return

    @property
    def lived_s(self) -> float:
        """From the start to the death of the command."""
        return (self._ended_s or self._boss.now_s()) - self._started_s

    def ended_by_keyboard(self, death: Death) -> bool:
        """Whether it died of a Ctrl-C or the like: of that very signal, or by itself in the grace time."""
        if death.signal is not None:
            return death.signal in self._keyboard
        pressed_s = max((self._keyboard.get(n, -1e9) for n in (signal.SIGINT, signal.SIGQUIT)), default=-1e9)
        return self._ended_s is not None and self._ended_s - pressed_s <= self._boss.settings.stop_grace_s

    def story(self, *, asked: bool) -> postmortem.LifeStory:
        """The figures of this life for the post-mortem."""
        limit, source = self._boss.limit
        peak, exact = self._peak()
        last = self._history.last
        growth = self._history.growth(postmortem.GROWTH_WINDOW_S)
        return postmortem.LifeStory(
            command=_in_short(self._boss.settings.command),
            pid=self._pid,
            lived_s=self.lived_s,
            limit_bytes=limit,
            limit_source=source,
            peak_bytes=peak,
            peak_exact=exact,
            usage_bytes=last[1] if last is not None else None,
            usage_ago_s=self._ended_s - last[0] if last is not None and self._ended_s is not None else None,
            growth_bytes=growth[0] if growth is not None else None,
            growth_s=growth[1] if growth is not None else None,
            asked=asked,
            shared=self._boss.cgroup_counts and not self._boss.confinement.own,
        )

    def _peak(self) -> tuple[int | None, bool]:
        """The kernel's own peak where it is of this life: the cgroup outlives the command."""
        peak = self._cgroup.peak_bytes() if self._cgroup is not None and self._cgroup.own else None
        if peak is not None and (self._peak_before is None or peak > self._peak_before):
            return peak, True
        # Of the largest process, which an rlimit is about. Below our own size it is that of our image before the exec.
        largest = 0 if self._boss.cgroup_counts or self._largest_bytes < _IMAGE_BYTES else self._largest_bytes
        return max(self._history.peak_bytes, largest) or None, False


def _in_short(command: tuple[str, ...]) -> str:
    """The command on one line of at most 60 characters."""
    text = " ".join(" ".join(command).split())
    return text if len(text) <= _NAME_WIDTH else text[: _NAME_WIDTH - 3] + "..."


def _bury_all(helper: alerts.Helper) -> None:
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            helper.reaped(*found)
    except ChildProcessError:
        return


def _foreground_terminal() -> int | None:
    """The descriptor of our terminal, where we are in its foreground."""
    try:
        return 0 if os.tcgetpgrp(0) == os.getpgrp() else None
    except OSError:
        return None


def _take_terminal_back(descriptor: int) -> None:
    """A shell as command makes groups of its own: killed, it leaves the terminal to a dead group."""
    try:
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            os.tcsetpgrp(descriptor, os.getpgrp())
    except OSError:
        return
