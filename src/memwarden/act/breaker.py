"""The circuit breaker: closed, open, half-open. It relieves first, looks again, and only then refuses.

A breaker that refuses at once also stops the work that would have triggered a collection, and stays open on garbage.
So one thread relieves (trims, then collects where that pays), others wait for it, at most half a second; then
everybody looks again (Elasticsearch's parent breaker, pull request 58674). Deciding is `Switch`, which is pure; when
memory is read and who relieves is `Circuit`. The forms of use (execute, with, decorator, guard) are in
`memwarden.breaker`.
"""

from __future__ import annotations

import sys
import threading
from enum import IntEnum
from importlib import import_module
from os import getpid
from time import monotonic

from memwarden.act.gauge import Gauge, view_of
from memwarden.budget import settle, waker
from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, MemoryPressureError
from memwarden.facts import Fact, Level
from memwarden.units import format_bytes, format_duration, format_ratio, parse_duration, parse_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from memwarden.act.gauge import View
    from memwarden.budget import Budget
    from memwarden.ports import Clock, Pressure

    Relieve = Callable[[str, Callable[[], bool]], object]
    OnChange = Callable[["State", "State", View], object]

# Others wait so long for the thread that relieves: trimming takes 10-70 ms (Elasticsearch waits as long).
RELIEF_WAIT_S = 0.5
# Open for so long without once falling below the line: whoever is refused has nothing to wait for.
STUCK_S = 300.0
# A block that was let through on trial and does not end is waited for so long.
TRIAL_S = 1.0
# After being closed for so many times its last wait, a breaker that opens again starts with the shortest wait.
FORGIVE = 10.0
# How much one measured recovery moves the estimate of the next.
RECOVERY_WEIGHT = 0.3
# One line about a change of state in so long; what was left out is counted in the next.
LOG_EVERY_S = 10.0


class State(IntEnum):
    """Closed lets everybody through, open nobody, half-open one at a time."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Answer(IntEnum):
    """What becomes of whoever asks. RELIEVE: refused, unless relieving helps."""

    PASS = 0
    RELIEVE = 1
    REFUSE = 2


class Switch:
    """Closed, open, half-open: pure, the same questions get the same answers for ever.

    It opens at `threshold` of the limit or in an EMERGENCY. After a wait (first `retry_s`, doubled each time up to
    `longest_s`) whoever asks is let through on trial, provided that memory fell below `leave`; when the trial is over
    and it still is below, it closes. Time that jumps back ends no wait later than that wait lasts.
    """

    def __init__(self, *, threshold: float, leave: float, retry_s: float, longest_s: float) -> None:
        self.threshold = threshold
        self.leave = leave
        self.state = State.CLOSED
        self.wait_s = retry_s
        self.recovery_s: float | None = None
        self._changes: list[tuple[State, State]] = []
        self._retry_s = retry_s
        self._longest_s = longest_s
        self._opened_s = float("-inf")  # since when it refuses, trials that failed included
        self._closed_s = float("-inf")
        self._due_s = float("-inf")  # open: when the next trial may begin; half-open: when this one is over

    def ask(self, now_s: float, view: View) -> Answer:
        """Whether to let somebody through, by a view from now."""
        self._bound_wait(now_s)
        if self.state is State.OPEN:
            return self._ask_open(now_s, view)
        if self.is_full(view):
            return Answer.RELIEVE
        if self.state is State.HALF_OPEN:
            return self._ask_half_open(now_s, view)
        return Answer.PASS

    def is_waiting(self, now_s: float) -> bool:
        """Whether the answer is known without a view: it is open, and its wait is not over."""
        self._bound_wait(now_s)
        return self.state is State.OPEN and now_s < self._due_s

    def _bound_wait(self, now_s: float) -> None:
        """Where time jumped back, nothing is due later than a whole wait from now."""
        longest_s = self.wait_s if self.state is State.OPEN else TRIAL_S
        self._due_s = min(self._due_s, now_s + longest_s)

    def _ask_open(self, now_s: float, view: View) -> Answer:
        if now_s < self._due_s:
            return Answer.REFUSE
        if not self.is_calm(view):
            return Answer.RELIEVE
        took_s = max(0.0, now_s - self._opened_s)
        known = self.recovery_s
        self.recovery_s = took_s if known is None else known + RECOVERY_WEIGHT * (took_s - known)
        self._move(State.HALF_OPEN)
        self._due_s = now_s + TRIAL_S
        return Answer.PASS

    def _ask_half_open(self, now_s: float, view: View) -> Answer:
        if now_s < self._due_s:
            return Answer.REFUSE
        if self.is_calm(view):
            self._move(State.CLOSED)
            self._closed_s = now_s
        else:
            self._due_s = now_s + TRIAL_S
        return Answer.PASS

    def refuse(self, now_s: float) -> None:
        """Relieving did not help: open, or stay open, and wait."""
        if self.state is State.CLOSED:
            calm_s = now_s - self._closed_s
            self.wait_s = self._retry_s if calm_s > FORGIVE * self.wait_s else min(self._longest_s, 2 * self.wait_s)
            self._opened_s = now_s
        else:
            if self.state is State.HALF_OPEN:
                self._opened_s = now_s
            self.wait_s = min(self._longest_s, 2 * self.wait_s)
        self._due_s = now_s + self.wait_s
        self._move(State.OPEN)

    def end_trial(self) -> None:
        """Whoever was let through is done: whoever asks next is judged by what memory is then."""
        if self.state is State.HALF_OPEN:
            self._due_s = float("-inf")

    def is_full(self, view: View) -> bool:
        """Whether memory is above the line. Unknown is not: nothing would ever close it again."""
        if view.forced:
            return view.level >= Level.CRITICAL
        return view.level is Level.EMERGENCY or (view.ratio is not None and view.ratio >= self.threshold)

    def is_calm(self, view: View) -> bool:
        """Whether memory is far enough below the line."""
        return not self.is_full(view) and (view.forced or view.ratio is None or view.ratio < self.leave)

    def is_stuck(self, now_s: float) -> bool:
        """Whether it has refused for so long that waiting helps nobody."""
        return self.state is State.OPEN and now_s - self._opened_s >= STUCK_S

    def retry_after_s(self, now_s: float) -> float:
        """When asking again makes sense: after the wait, and not before memory fell the last times."""
        rest_s = max(0.0, min(self._due_s - now_s, self.wait_s if self.state is State.OPEN else TRIAL_S))
        usual_s = (self.recovery_s or 0.0) - (now_s - self._opened_s)
        return max(rest_s, min(usual_s, self._longest_s))

    def take_changes(self) -> list[tuple[State, State]]:
        """The changes of state since they were last taken."""
        changes, self._changes = self._changes, []
        return changes

    def _move(self, state: State) -> None:
        if state is not self.state:
            self._changes.append((self.state, state))
            self.state = state


class Statistics(Fact):
    """What a breaker did so far."""

    state: State
    opened: int
    refused: int
    relieved: int
    callback_errors: int


class Deadline:
    """Something to be checked, and until when (monotonic seconds) it is known to be well.

    The pure twin of the one in memwarden._native, which takes the time of an empty method where this takes three.
    """

    _fast_until_s: float

    def check(self) -> None:
        """Raise MemoryPressureError where there is no room. Nearly always one look at the clock.

        Relieves before it refuses, for at most half a second; on an event loop it does not wait for that:
        `check_async` does.
        """
        if self._fast_until_s <= monotonic():
            self._check_slowly()

    def _check_slowly(self) -> None:
        raise NotImplementedError  # by whoever is checked


def _fastest() -> Any:
    """The C twin where it was built; named by a text, for import-linter cannot look into it."""
    try:
        return import_module("memwarden._native._reader").Deadline
    except ImportError:
        return Deadline


if TYPE_CHECKING:
    _Base = Deadline
else:
    _Base = _fastest()


class Circuit(_Base):
    """A Switch on a Pressure. `check` raises MemoryPressureError where there is no room.

    `threshold` is of the limit; it is left `leave_gap` below. What is known is at most `max_age` old: younger near the
    line, where looking may take a hundredth of the time. `relieve(reason, enough)` gives memory back until `enough()`;
    its errors are logged. `on_change(old, new, view)` is called on every change of state by whoever brought it about;
    what it raises is logged. `budget` names the top holders in the errors. Raises ConfigError on values that cannot
    be used.
    """

    def __init__(
        self,
        pressure: Pressure,
        *,
        threshold: str | float = 0.80,
        leave_gap: str | float = 0.05,
        max_age: str | float = 0.05,
        retry_after: str | float = 1.0,
        longest_retry: str | float = 60.0,
        relieve: Relieve | None = None,
        budget: Budget | None = None,
        on_change: OnChange | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = clock if clock is not None else SystemClock()
        line, gap = parse_ratio(threshold, where="threshold"), parse_ratio(leave_gap, where="leave_gap")
        if not 0 < gap < line:
            raise ConfigError(
                f"a breaker that opens at {format_ratio(line)} cannot close {format_ratio(gap)} below",
                where="leave_gap", mend="give a gap above zero and below the threshold",
            )  # fmt: skip
        retry_s, longest_s = _positive(retry_after, "retry_after"), _positive(longest_retry, "longest_retry")
        if retry_s > longest_s:
            what = f"{format_duration(retry_s)} is longer than longest_retry of {format_duration(longest_s)}"
            raise ConfigError(what, where="retry_after", mend="give them in order")
        self.threshold = line
        self.budget = budget
        self._switch = Switch(threshold=line, leave=line - gap, retry_s=retry_s, longest_s=longest_s)
        self._gauge = Gauge(pressure, clock=self._clock, max_age_s=_positive(max_age, "max_age"))
        self._relieve = relieve
        self._callbacks: list[OnChange] = [] if on_change is None else [on_change]
        self._log: Any = None
        self._log_due_s = float("-inf")
        self._unlogged = 0
        self._opened = self._refused = self._relieved = self._callback_errors = 0
        self._now = self._clock.monotonic
        self._good_until_s = self._fast_until_s = float("-inf")
        self._looked_s = float("-inf")
        self._keeps_s = 0.0
        self._view = view_of(None)
        self._begin_life()

    def _begin_life(self) -> None:
        """What a process has of its own: in a forked child a vanished thread may hold the lock, or be relieving."""
        self._pid = getpid()
        self._lock = threading.Lock()
        self._relief = _Relief(self._give_back, self._clock)

    @property
    def state(self) -> State:
        """Closed, half-open or open, as of the last check."""
        return self._switch.state

    @property
    def view(self) -> View:
        """How full it was at the last look."""
        return self._view

    @property
    def statistics(self) -> Statistics:
        """What it did so far."""
        return Statistics(
            state=self._switch.state, opened=self._opened, refused=self._refused, relieved=self._relieved,
            callback_errors=self._callback_errors,
        )  # fmt: skip

    def on_change(self, callback: OnChange) -> Callable[[], None]:
        """Call `callback(old, new, view)` on every change of state; returns what takes it back."""
        self._callbacks.append(callback)

        def take_back() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return take_back

    # --- asking ------------------------------------------------------------------------------------------------

    async def check_async(self) -> None:
        """The same, while the event loop goes on. Nothing is trimmed or collected on the loop's thread."""
        if not self._is_known() and not self._may_pass():
            await self._relief.run_async()
            self._decide(self._gauge.look(age_s=0.0), last=True)

    def check_closely(self) -> None:
        """The same as `check`, with a view as young as its cost allows: for loops that may grow fast."""
        self._hasten()
        self.check()

    async def check_closely_async(self) -> None:
        """The same as `check_async`, with a view as young as its cost allows."""
        self._hasten()
        await self.check_async()

    def _hasten(self) -> None:
        closest_s = self._gauge.closest_s(self._view)
        if self._now() - self._looked_s >= closest_s:
            self._keeps_s = closest_s
            self._keep(float("-inf"))

    def _check_slowly(self) -> None:
        if self._is_known() or self._may_pass():
            return
        if _on_event_loop():
            self._relief.begin()
        else:
            self._relief.run()
        self._decide(self._gauge.look(age_s=0.0), last=True)

    def _is_known(self) -> bool:
        """Whether what was seen last is young enough; after a jump back in time it is not."""
        return self._looked_s <= self._now() < self._good_until_s

    def _may_pass(self) -> bool:
        """Whether there is room; False where relieving may make some. Raises where it is known that there is none."""
        if self._pid != getpid():
            self._begin_life()
        now_s = self._now()
        with self._lock:
            waiting = self._switch.is_waiting(now_s)
        if waiting:
            raise self._refusal(self._view)
        if self._switch.state is State.CLOSED:
            self._keep(now_s + self._keeps_s)  # others need not look while this one does
        return self._decide(self._gauge.look(age_s=self._keeps_s), last=self._relieve is None)

    def _decide(self, view: View, *, last: bool) -> bool:
        """Whether it may pass; False where relieving may help, unless that was tried: the `last` word raises."""
        now_s = self._now()
        with self._lock:
            answer = self._switch.ask(now_s, view)
            if last and answer is Answer.RELIEVE:
                answer = Answer.REFUSE
                self._switch.refuse(now_s)
            self._note(view, now_s, closed=answer is Answer.PASS and self._switch.state is State.CLOSED)
            changes = self._switch.take_changes()
        self._tell(changes, view)
        if answer is Answer.REFUSE:
            raise self._refusal(view)
        return answer is Answer.PASS

    def _note(self, view: View, now_s: float, *, closed: bool) -> None:
        """Until when nobody needs to look again, and how young the next view must be."""
        self._view, self._looked_s = view, now_s
        keeps_s = self._keeps_s = self._gauge.keeps_s(view, self.threshold)
        fresh_until_s = max(now_s + self._gauge.closest_s(view), min(view.monotonic_s, now_s) + keeps_s)
        self._keep(fresh_until_s if closed else float("-inf"))

    def _keep(self, until_s: float) -> None:
        """Nobody needs to look until then. The fast half of `check` asks the real clock, which is a third of its cost:
        where the clock is another, it always goes to the slow half.
        """
        self._good_until_s = until_s
        self._fast_until_s = until_s if self._now is monotonic else float("-inf")

    def _leave(self, kind: type[BaseException] | None) -> None:
        """A block that was let through is done, or raised. Out of memory near the line: there was no room for it."""
        if kind is None and self._switch.state is State.CLOSED:
            return
        refused = kind is not None and issubclass(kind, MemoryError)
        view = self._gauge.look(age_s=0.0) if refused else self._view
        with self._lock:
            self._switch.end_trial()
            if refused and not self._switch.is_calm(view):
                self._switch.refuse(self._now())
                self._keep(float("-inf"))
            changes = self._switch.take_changes()
        self._tell(changes, view)

    # --- relieving ---------------------------------------------------------------------------------------------

    def _give_back(self) -> None:
        if self._relieve is None:
            return
        self._relieved += 1
        try:
            self._relieve(f"the breaker is at {format_ratio(self.threshold)}", self._is_relieved)
        except Exception:  # noqa: BLE001  what gives memory back is foreign code; then there is none back
            self._need_log().exception("relieving failed; the breaker decides without")

    def _is_relieved(self) -> bool:
        return self._switch.is_calm(self._gauge.look(age_s=0.0))

    # --- telling -----------------------------------------------------------------------------------------------

    def refusal(self, what: str) -> MemoryPressureError:
        """The error for whoever has no room for a reason of its own, counted as the others."""
        with self._lock:
            self._refused += 1
        return self._error(self._view, what, mend="go on when memory is free")

    def _refusal(self, view: View) -> MemoryPressureError:
        now_s = self._now()
        with self._lock:
            self._refused += 1
            transient = not self._switch.is_stuck(now_s)
            retry_s = self._switch.retry_after_s(now_s)
        if transient:
            mend = f"try again in {format_duration(retry_s)}"
        else:
            mend = f"it has not eased for {format_duration(STUCK_S)}: restart, or raise the limit"
        return self._error(view, self._say(view), mend=mend, transient=transient, retry_after_s=retry_s)

    def _error(
        self, view: View, what: str, *, mend: str, transient: bool = True, retry_after_s: float | None = None
    ) -> MemoryPressureError:
        return MemoryPressureError(
            what,
            usage_bytes=view.used_bytes,
            threshold=self.threshold,
            limit_bytes=view.limit_bytes,
            transient=transient,
            retry_after_s=retry_after_s,
            holders=self.budget.top() if self.budget is not None else (),
            mend=mend,
        )

    def _say(self, view: View) -> str:
        line = format_ratio(self.threshold)
        if view.forced:
            return f"memory pressure is forced to {view.level.name}"
        used = f"memory is at {format_ratio(view.ratio)} of {format_bytes(view.limit_bytes)}"
        if view.ratio is not None and view.ratio >= self.threshold:
            return f"{used}, above the breaker's {line}"
        if view.level is Level.EMERGENCY:
            return f"{used}, and that is an EMERGENCY"
        return f"{used}, and was above the breaker's {line} a moment ago"

    def _tell(self, changes: list[tuple[State, State]], view: View) -> None:
        for old, new in changes:
            self._opened += new is State.OPEN
            self._say_change(old, new, view)
            for callback in tuple(self._callbacks):
                try:
                    callback(old, new, view)
                except Exception:  # noqa: BLE001  a user's callback may raise anything
                    self._callback_errors += 1
                    if self._callback_errors in (1, 10, 100, 1000):
                        self._need_log().exception("a callback of on_change failed; the breaker goes on")

    def _say_change(self, old: State, new: State, view: View) -> None:
        now_s = self._now()
        if now_s < self._log_due_s <= now_s + LOG_EVERY_S:
            self._unlogged += 1
            return
        missing, self._unlogged, self._log_due_s = self._unlogged, 0, now_s + LOG_EVERY_S
        log = self._need_log()
        (log.warning if new is State.OPEN else log.info)(
            "breaker %s -> %s: %s of %s used, %d refused so far%s", old.name, new.name, format_ratio(view.ratio),
            format_bytes(view.limit_bytes), self._refused, f", {missing} changes not told" if missing else "",
        )  # fmt: skip

    def _need_log(self) -> Any:
        if self._log is None:
            import logging

            self._log = logging.getLogger("memwarden.act")
        return self._log


class _Relief:
    """One relieves, the others wait for it, at most half a second."""

    def __init__(self, work: Callable[[], None], clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._lock = threading.Lock()
        self._round: _Round | None = None

    def run(self) -> None:
        """Relieve, or wait for whoever does."""
        found, leading = self._join()
        if leading:
            self._lead(found)
        else:
            self._clock.wait(found.over, RELIEF_WAIT_S)

    def begin(self) -> _Round:
        """Have it done in a thread of its own."""
        found, leading = self._join()
        if leading:
            try:
                threading.Thread(target=self._lead, args=(found,), name="memwarden-relief", daemon=True).start()
            except RuntimeError:  # no thread can be had any more: nobody relieves
                self._end(found)
        return found

    async def run_async(self) -> None:
        """Have it done in a thread of its own and wait for that, while the event loop goes on."""
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.begin().when_over(waker(loop, future))
        alarm = loop.call_later(RELIEF_WAIT_S, settle, future)
        try:
            await future
        finally:
            alarm.cancel()

    def _join(self) -> tuple[_Round, bool]:
        with self._lock:
            if self._round is not None:
                return self._round, False
            self._round = _Round()
            return self._round, True

    def _lead(self, found: _Round) -> None:
        try:
            self._work()
        finally:
            self._end(found)

    def _end(self, found: _Round) -> None:
        with self._lock:
            self._round = None
        found.end()


class _Round:
    """One go at relieving: an event for threads, calls for coroutines."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []

    def when_over(self, call: Callable[[], object]) -> None:
        """Call this when it is over, at once where it is."""
        with self._lock:
            if not self.over.is_set():
                self._calls.append(call)
                return
        call()

    def end(self) -> None:
        """It is over."""
        with self._lock:
            self.over.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()


def _positive(value: str | float, where: str) -> float:
    seconds = parse_duration(value, where=where)
    if seconds <= 0:
        raise ConfigError(f"{value!r} is too short", where=where, mend="write a duration above zero, such as 50ms")
    return seconds


def _on_event_loop() -> bool:
    """Whether an event loop runs in this thread: then nothing may wait here."""
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # who has not imported it runs none
    return running is not None and running() is not None
