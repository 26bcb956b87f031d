"""Admission: a semaphore of bytes. Work says what it may need, and begins when that fits below a line.

What is used, what was promised to work under way and not taken yet, and the new estimate must fit together. A promise
fades as memory grows by it (so nothing is counted twice), and what ended work had taken is expected to be free again or
to be used again. A promise that ended counts until a reading was taken after its end.

Three classes: critical is never shed and has the whole limit; interactive has the EMERGENCY line, batch the CRITICAL
line. On the way to its line a class is shed by chance, ever more of it, so that load falls before the line is reached
and does not swing (Envoy's scaled triggers). Within a class it is first come, first served, and every wait has an end.
"""

from __future__ import annotations

import threading
from collections import deque

from memwarden.act.gauge import Gauge, View, view_of
from memwarden.budget import Budget, Gate, Waiter, patience, settle, waker
from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, MemoryPressureError
from memwarden.facts import Fact, Level
from memwarden.units import MAX_BYTES, format_bytes, format_duration, format_ratio, parse_duration, parse_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from memwarden.ports import Clock, Pressure

CLASSES = ("critical", "interactive", "batch")
# Memory may fall without anybody telling: the first in a queue looks so often.
POLL_S = 0.05
# Before any recovery was measured; and the bounds of what is told.
FIRST_RETRY_S, LEAST_RETRY_S, LONGEST_RETRY_S = 1.0, 0.1, 60.0
# How much one measured recovery moves the estimate of the next.
RECOVERY_WEIGHT = 0.3


class Admitted(Fact):
    """What an admission counted so far: admitted, refused for want of room, shed by chance, timed out."""

    admitted: int
    refused: int
    shed: int
    timed_out: int


class _Promise:
    """What one piece of work was promised: what of it is still to come, and what it took."""

    __slots__ = ("ended_s", "given_s", "left_bytes", "priority", "size_bytes", "taken_bytes")

    def __init__(self, size_bytes: int, priority: int) -> None:
        self.size_bytes = size_bytes
        self.priority = priority
        self.left_bytes = size_bytes
        self.taken_bytes = 0
        self.given_s = 0.0
        self.ended_s = float("inf")


class _Promises:
    """The promises under way and those that ended since the last reading, and what is still to come of all."""

    def __init__(self) -> None:
        self.left_bytes = 0
        self._open: dict[int, _Promise] = {}
        self._ended: deque[_Promise] = deque()
        self._used_bytes: int | None = None

    def __len__(self) -> int:
        return len(self._open)

    def give(self, promise: _Promise, now_s: float) -> None:
        """From now on it counts in full."""
        promise.given_s = now_s
        self._open[id(promise)] = promise
        self.left_bytes += promise.left_bytes

    def end(self, promise: _Promise, now_s: float) -> None:
        """Its work is over; it counts until a reading is younger than this."""
        if self._open.pop(id(promise), None) is not None:
            promise.ended_s = now_s
            self._ended.append(promise)

    def drop(self, promise: _Promise) -> None:
        """It counts no longer, at once."""
        if self._open.pop(id(promise), None) is not None:
            self.left_bytes -= promise.left_bytes

    def see(self, used_bytes: int, at_s: float) -> None:
        """A reading from then: growth is what promises took, oldest first, and those that ended before it are over."""
        before, self._used_bytes = self._used_bytes, used_bytes
        over = [each for each in self._ended if each.ended_s <= at_s]
        self._ended = deque(each for each in self._ended if each.ended_s > at_s)
        grown = 0 if before is None else used_bytes - before + sum(each.taken_bytes for each in over)
        for each in over:
            grown -= min(each.left_bytes, max(0, grown))
            self.left_bytes -= each.left_bytes
        if grown > 0:
            self._take(grown, at_s)
        elif grown < 0:
            self._give_back(-grown)

    def _take(self, grown_bytes: int, at_s: float) -> None:
        for each in (*self._ended, *self._open.values()):
            if grown_bytes <= 0:
                return
            if each.given_s <= at_s:
                taken = min(each.left_bytes, grown_bytes)
                each.left_bytes -= taken
                each.taken_bytes += taken
                self.left_bytes -= taken
                grown_bytes -= taken

    def _give_back(self, fallen_bytes: int) -> None:
        """It fell while work went on: that much less is free when the work is over."""
        for each in self._open.values():
            if fallen_bytes <= 0:
                return
            given = min(each.taken_bytes, fallen_bytes)
            each.taken_bytes -= given
            fallen_bytes -= given


class _Recovery:
    """How long one class has been refused, and how long that took the last times."""

    def __init__(self) -> None:
        self.usual_s: float | None = None
        self._since_s: float | None = None

    def refused(self, now_s: float) -> None:
        if self._since_s is None or now_s < self._since_s:
            self._since_s = now_s

    def admitted(self, now_s: float) -> None:
        if self._since_s is not None:
            took_s, known = max(0.0, now_s - self._since_s), self.usual_s
            self.usual_s = took_s if known is None else known + RECOVERY_WEIGHT * (took_s - known)
            self._since_s = None

    def retry_after_s(self, now_s: float) -> float:
        """What is left of the usual time; past it, as long again as it already took."""
        usual_s = FIRST_RETRY_S if self.usual_s is None else self.usual_s
        waited_s = 0.0 if self._since_s is None else max(0.0, now_s - self._since_s)
        left_s = usual_s - waited_s if usual_s > waited_s else waited_s
        return min(LONGEST_RETRY_S, max(LEAST_RETRY_S, left_s))


class Admission:
    """Admits work by bytes: `with admission.admit(estimate_bytes): ...`, sync or async.

    `source` is a Warden (any Pressure), so that what is really used counts, or a Budget, so that what is held of it
    counts. `warning`, `critical` and `emergency` are the lines, of the limit. `max_age` is how old a reading may be.
    `budget` names the top holders in refusals. `chance` gives numbers from 0 to 1 for shedding. Raises ConfigError on
    values that cannot be used, lines out of order among them.
    """

    def __init__(
        self,
        source: Pressure | Budget,
        *,
        warning: str | float = 0.75,
        critical: str | float = 0.90,
        emergency: str | float = 0.95,
        max_age: str | float = 0.05,
        budget: Budget | None = None,
        chance: Callable[[], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._lines = _in_order(warning, critical, emergency)
        self._gauge: Gauge | None = None
        self._budget = source if isinstance(source, Budget) else budget
        if not isinstance(source, Budget):
            if not hasattr(source, "verdict"):
                mend = "give a Warden or a Budget"
                raise ConfigError(f"a {type(source).__name__} is no source", where="Admission", mend=mend)
            age_s = parse_duration(max_age, where="max_age")
            self._gauge = Gauge(source, clock=self._clock, max_age_s=age_s)
        self._account = source.account("admitted work") if isinstance(source, Budget) else None
        self._chance = chance if chance is not None else _chance()
        self._gate = Gate(self._end)
        self._promises = _Promises()
        self._queues: tuple[deque[Waiter], ...] = (deque(), deque(), deque())
        self._recoveries = tuple(_Recovery() for _ in CLASSES)
        self._view = view_of(None)
        self._look_due_s = float("-inf")
        self._counts = dict.fromkeys(Admitted._fields, 0)

    @property
    def counts(self) -> Admitted:
        """What was admitted and refused so far."""
        return Admitted(**self._counts)

    @property
    def promised_bytes(self) -> int:
        """What work under way may still take."""
        return self._promises.left_bytes

    @property
    def under_way(self) -> int:
        """How many pieces of work were admitted and are not over."""
        return len(self._promises)

    def admit(self, estimate_bytes: int, *, priority: str = "interactive", timeout_s: float = 0.0) -> Admittance:
        """Room for work that may need so much, for a with-statement of either kind; waits for it at most so long.

        Entering raises MemoryPressureError: for good and at once where it is more than the line of its class allows
        on an empty machine, else for now, with `retry_after_s` from how long recovery took before.
        """
        if priority not in CLASSES:
            mend = f"give one of {', '.join(CLASSES)}"
            raise ConfigError(f"{priority!r} is no class", where="priority", mend=mend)
        if (
            not isinstance(estimate_bytes, int)
            or isinstance(estimate_bytes, bool)
            or not 0 < estimate_bytes <= MAX_BYTES
        ):
            mend = "give a whole number of bytes above zero"
            raise ConfigError(f"{estimate_bytes!r} is no size", where="estimate_bytes", mend=mend)
        return Admittance(self, estimate_bytes, CLASSES.index(priority), patience(timeout_s))

    # --- what an Admittance asks -------------------------------------------------------------------------------

    def begin(self, promise: _Promise, patience_s: float) -> None:
        """Room for it, now or in turn. Raises MemoryPressureError."""
        if self._ask(promise):
            return
        event = threading.Event()
        waiter = Waiter(promise, promise.size_bytes, event.set)
        until_s = self._clock.monotonic() + patience_s
        try:
            if patience_s and not self._queue_up(waiter):
                while (pause_s := self._wait_s(waiter, until_s)) is not None:
                    self._clock.wait(event, pause_s)
                    event.clear()
        except BaseException:
            self._withdraw(waiter)
            raise
        self._end_wait(waiter, waited=patience_s > 0)

    async def begin_async(self, promise: _Promise, patience_s: float) -> None:
        """The same, while the event loop goes on."""
        if self._ask(promise):
            return
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiter = Waiter(promise, promise.size_bytes, waker(loop, future))
        until_s = self._clock.monotonic() + patience_s
        try:
            if patience_s and not self._queue_up(waiter):
                while (pause_s := self._wait_s(waiter, until_s)) is not None:
                    alarm = loop.call_later(pause_s, settle, future)
                    await future
                    alarm.cancel()
                    future = loop.create_future()
                    waiter.wake = waker(loop, future)
        except BaseException:
            self._withdraw(waiter)
            raise
        self._end_wait(waiter, waited=patience_s > 0)

    def end(self, promise: _Promise) -> None:
        """Its work is over."""
        with self._gate:
            self._end(promise)

    def vanish(self, promise: _Promise) -> None:
        """Its work was dropped: from a finalizer, which must not wait."""
        self._gate.later(promise)

    # --- deciding: all of it under the gate --------------------------------------------------------------------

    def _ask(self, promise: _Promise) -> bool:
        """Whether it may begin. Raises where it is shed, or can never begin."""
        with self._gate:
            now_s = self._clock.monotonic()
            if now_s >= self._look_due_s or self._look_due_s > now_s + 3600:
                self._look(now_s)
            if self._is_too_large(promise):
                self._counts["refused"] += 1
                error = self._refusal(promise, now_s, "is more than there ever is", transient=False)
            elif self._is_shed(promise):
                self._counts["shed"] += 1
                self._recoveries[promise.priority].refused(now_s)
                error = self._refusal(promise, now_s, "is shed")
            else:
                return not any(self._queues[: promise.priority + 1]) and self._try(promise, now_s)
        raise error

    def _try(self, promise: _Promise, now_s: float) -> bool:
        if not self._fits(promise) and not (self._look_closer(now_s) and self._fits(promise)):
            return False
        if self._account is not None and not self._has_held(promise):
            return False
        self._promises.give(promise, now_s)
        self._counts["admitted"] += 1
        self._recoveries[promise.priority].admitted(now_s)
        return True

    def _has_held(self, promise: _Promise) -> bool:
        try:
            self._account.reserve(promise.size_bytes)  # type: ignore[union-attr]  # asked only where there is one
        except MemoryPressureError:
            return False
        return True

    def _look(self, now_s: float, *, age_s: float | None = None) -> None:
        """Take the newest view into account; where a Budget is the source, what is held is always known."""
        if self._gauge is None:
            self._view = self._view_of_budget(now_s)
            return
        view = self._gauge.look(age_s=age_s)
        if view.used_bytes is not None and view.monotonic_s >= self._view.monotonic_s:
            self._promises.see(view.used_bytes, view.monotonic_s)
        self._view = view
        self._look_due_s = now_s + self._gauge.max_age_s

    def _look_closer(self, now_s: float) -> bool:
        """A younger view, for whoever does not fit by the one we have; false where it is as young as makes sense."""
        if self._gauge is None:
            self._look(now_s)
            return True
        closest_s = self._gauge.closest_s(self._view)
        if now_s - self._view.monotonic_s < closest_s:
            return False
        self._look(now_s, age_s=closest_s)
        return True

    def _view_of_budget(self, now_s: float) -> View:
        """What others hold of it; what we hold for admitted work is counted as promises."""
        budget, account = self._budget, self._account
        held = (budget.held_bytes if budget else 0) - (account.held_bytes if account else 0)
        limit = budget.limit_bytes if budget else None
        if held == self._view.used_bytes and limit == self._view.limit_bytes:
            return self._view
        ratio = held / limit if limit else None
        return View(
            used_bytes=held, limit_bytes=limit, ratio=ratio, level=Level.NORMAL, forced=False, monotonic_s=now_s
        )  # fmt: skip

    def _room_bytes(self, promise: _Promise) -> float:
        limit = self._view.limit_bytes
        return float("inf") if limit is None else self._lines[CLASSES[promise.priority]] * limit

    def _is_too_large(self, promise: _Promise) -> bool:
        return promise.size_bytes > self._room_bytes(promise)

    def _fits(self, promise: _Promise) -> bool:
        used = self._view.used_bytes or 0
        return used + self._promises.left_bytes + promise.size_bytes <= self._room_bytes(promise)

    def _is_shed(self, promise: _Promise) -> bool:
        share = shed_share(self._view, self._lines, CLASSES[promise.priority])
        return share > 0 and (share >= 1 or self._chance() < share)

    def _refusal(self, promise: _Promise, now_s: float, why: str, *, transient: bool = True) -> MemoryPressureError:
        name, view = CLASSES[promise.priority], self._view
        line = self._lines[name]
        retry_s = self._recoveries[promise.priority].retry_after_s(now_s)
        promised = f" and {format_bytes(self.promised_bytes)} are promised" if self.promised_bytes else ""
        what = (
            f"{name} work of {format_bytes(promise.size_bytes)} {why}: {format_bytes(view.used_bytes)} of "
            f"{format_bytes(view.limit_bytes)} are used{promised}, its line is {format_ratio(line)}"
        )
        return MemoryPressureError(
            what,
            usage_bytes=view.used_bytes,
            threshold=line,
            limit_bytes=view.limit_bytes,
            transient=transient,
            retry_after_s=retry_s,
            holders=self._budget.top() if self._budget is not None else (),
            mend=f"try again in {format_duration(retry_s)}" if transient else "do it in smaller parts",
        )

    # --- waiting -----------------------------------------------------------------------------------------------

    def _queue_up(self, waiter: Waiter) -> bool:
        with self._gate:
            self._queues[waiter.entry.priority].append(waiter)
            self._serve()
            return waiter.granted

    def _serve(self) -> None:
        """Whoever is first of the highest class that waits has its turn, and so on while there is room."""
        now_s = self._clock.monotonic()
        for queue in self._queues:
            while queue:
                if not self._try(queue[0].entry, now_s):
                    return
                waiter = queue.popleft()
                waiter.granted = True
                waiter.wake()
                if queue:
                    queue[0].wake()  # now it is for this one to look now and then

    def _wait_s(self, waiter: Waiter, until_s: float) -> float | None:
        """How long to wait before looking again; None where the wait is over, either way."""
        with self._gate:
            if not waiter.granted:
                self._serve()
            left_s = until_s - self._clock.monotonic()
            if waiter.granted or left_s <= 0:
                return None
            return min(left_s, POLL_S) if self._queues[waiter.entry.priority][0] is waiter else left_s

    def _end_wait(self, waiter: Waiter, *, waited: bool) -> None:
        """Out of the queue. Raises where it had no turn."""
        with self._gate:
            if waiter.granted:
                return
            self._drop(waiter)
            now_s = self._clock.monotonic()
            self._counts["timed_out" if waited else "refused"] += 1
            self._recoveries[waiter.entry.priority].refused(now_s)
            error = self._refusal(waiter.entry, now_s, "does not fit")
        raise error

    def _withdraw(self, waiter: Waiter) -> None:
        """Whoever waited was cancelled or interrupted: it holds nothing."""
        with self._gate:
            self._drop(waiter)
            if waiter.granted:
                self._end(waiter.entry)

    def _drop(self, waiter: Waiter) -> None:
        queue = self._queues[waiter.entry.priority]
        if waiter in queue:
            queue.remove(waiter)
            self._serve()
            if queue:
                queue[0].wake()

    def _end(self, promise: _Promise) -> None:
        if self._account is not None:  # what is held of a budget is known at once
            self._account.release(promise.size_bytes)
            self._promises.drop(promise)
        else:
            self._promises.end(promise, self._clock.monotonic())
        if any(self._queues):
            self._serve()


class Admittance:
    """Room for one piece of work: enter it before and leave it after. One that is dropped inside gives back."""

    __slots__ = ("__weakref__", "_admission", "_patience_s", "_priority", "_promise", "size_bytes")

    def __init__(self, admission: Admission, size_bytes: int, priority: int, patience_s: float) -> None:
        self._promise: _Promise | None = None
        self._admission = admission
        self._priority = priority
        self._patience_s = patience_s
        self.size_bytes = size_bytes

    def __enter__(self) -> Self:
        promise = self._new()
        self._admission.begin(promise, self._patience_s)
        self._promise = promise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        promise, self._promise = self._promise, None
        if promise is not None:
            self._admission.end(promise)

    async def __aenter__(self) -> Self:
        promise = self._new()
        await self._admission.begin_async(promise, self._patience_s)
        self._promise = promise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, at)

    def __del__(self) -> None:
        if self._promise is not None:
            self._admission.vanish(self._promise)

    def _new(self) -> _Promise:
        if self._promise is not None:
            raise ConfigError("it is entered already", where="admit", mend="call admit once for each piece of work")
        return _Promise(self.size_bytes, self._priority)


def shed_share(view: View, lines: dict[str, float], priority: str) -> float:
    """The share of a class that is shed, 0-1: from 0 at the line below to 1 at its own. Critical work never is.

    A level that was judged (or forced) as high as a line counts as being there.
    """
    if priority == "critical":
        return 0.0
    begin, end, level = (
        (lines["warning"], lines["batch"], Level.CRITICAL)
        if priority == "batch"
        else (lines["batch"], lines["interactive"], Level.EMERGENCY)
    )
    if view.level >= level:
        return 1.0
    if view.ratio is None or view.forced:
        return 0.0
    return min(1.0, max(0.0, (view.ratio - begin) / (end - begin)))


def _in_order(warning: str | float, critical: str | float, emergency: str | float) -> dict[str, float]:
    """Where shedding begins, and the line of each class."""
    low = parse_ratio(warning, where="warning")
    middle, high = parse_ratio(critical, where="critical"), parse_ratio(emergency, where="emergency")
    if not 0 < low < middle < high <= 1:
        found = ", ".join(format_ratio(each) for each in (low, middle, high))
        mend = "give warning < critical < emergency"
        raise ConfigError(f"the lines {found} are out of order", where="Admission", mend=mend)
    return {"warning": low, "batch": middle, "interactive": high, "critical": 1.0}


def _chance() -> Callable[[], float]:
    import random

    return random.random
