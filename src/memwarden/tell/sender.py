"""The teller of one process: signals in, deliveries out, in threads of its own.

The guarded loop calls `tell`, which writes a slot of the black box and sets an event: no lock that anybody holds for
long, no file, no socket. A signal handler may call it, whatever it interrupts. A thread takes what is in the slots into
the store; one courier per channel delivers. What they need is imported, and every channel was shaken hands with, before
the first emergency.

What cannot be taken in stays in the slots and survives the process: the next one that comes, in the same run folder,
takes it. An EMERGENCY waits for no store that somebody else has locked: it goes out past it, from its slot. A store
that cannot be written for longer is told in the log, alerts go on from memory, and it is tried again; meanwhile the
slots keep what the file does not know.
"""

from __future__ import annotations

import logging
import os
import threading
from binascii import hexlify
from collections import deque
from contextlib import contextmanager
from itertools import count

from memwarden.blackbox import SIZE, find_boxes, mark_taken, read_posts
from memwarden.clock import SystemClock, Wake
from memwarden.errors import BlackBoxError, ConfigError, MemwardenError, StoreError
from memwarden.facts import Level
from memwarden.store import is_failing, is_locked
from memwarden.tell.collectors import Collectors
from memwarden.tell.courier import Courier
from memwarden.tell.members import is_alone, is_gone, is_living, own_member
from memwarden.tell.outbox import Outbox
from memwarden.tell.rules import Draft
from memwarden.tell.settings import AlertSettings, ChannelUse
from memwarden.tell.signals import ENDS, Signal, from_text, key_of, settled, to_text
from memwarden.tell.turns import turns_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeVar

    from memwarden.blackbox import BlackBox, Post
    from memwarden.facts import Notice
    from memwarden.ports import Channel, Clock
    from memwarden.tell.outbox import ChannelState, Told
    from memwarden.tell.turns import Turns

    T = TypeVar("T")

# What waits in memory where no slot is free; the oldest of it goes, and is counted.
MOST_QUEUED = 256
# How often boxes of others are looked through, members swept, the history pruned, a lost store tried again.
ADOPT_S, SWEEP_S, PRUNE_S, RECOVER_S = 15.0, 5.0, 600.0, 30.0
# A state that lasts is said again so often: whoever lost it, or moved a damaged store aside, learns of it.
ASSERT_S = 600.0
# A post that nobody took for so long is taken by anybody: its process may be in a namespace that cannot be seen.
STALE_S = 60.0
# Posts that are remembered, twice what there are slots: one more of the same takes the place of the one before.
MOST_POSTED = 32
# Slots that stay taken while the outbox is in memory only: half of them, so that there is room for what comes.
MOST_KEPT = 8
# Nothing to do: look again after so long all the same (another process may have written).
IDLE_S = 2.0
# A store that is locked so often running, 5 s each time, is let go for memory.
STORE_TRIES = 2
# What is urgent and did not go out past a locked store is tried again so often.
URGENT_S = 1.0
STOP_S = 5.0


class Teller:
    """Made of settings and channels; `start` it in the process that it is for. Never in a parent before a fork.

    `store_folder` is that of the store (None: the usual place), `run_folder` that of the black boxes. `target` and
    `host` are who the alerts are about. `memory`, where given, says why nothing is to be kept in the store. With
    `settings.deliver` "service" nothing is delivered here: the slots are all.
    """

    def __init__(
        self,
        settings: AlertSettings,
        channels: Sequence[Channel],
        *,
        target: str,
        host: str,
        store_folder: str | None = None,
        run_folder: str | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Clock | None = None,
        waits: Clock | None = None,
        memory: str = "",
    ) -> None:
        self._memory = memory
        self.settings, self.target, self.host = settings.of_target(target), target, host
        self._channels = channels
        self._store_folder, self._run_folder, self._environ = store_folder, run_folder, environ
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._waits: Clock = waits if waits is not None else SystemClock()
        self.member = own_member()
        self._prefix, self._numbers = hexlify(os.urandom(6)).decode(), count(1)
        self._lock, self._leaving = threading.RLock(), False
        self._urgent_told = self._urgent_seen = 0
        # What stands in a slot, or did: by key, member and what; its number there, its level and how many it is.
        self._posted: dict[tuple[str, str, str], tuple[int, Level, int]] = {}
        self._box: BlackBox | None = None
        self._queue: deque[tuple[float, Signal]] = deque()  # and when it was told, monotonic
        self._wake = Wake()
        self._thread: threading.Thread | None = None
        self._workers: list[_Worker] = []
        self._threadless: set[str] = set()
        self._ending = Wake()
        self._outbox: Outbox | None = None
        self._store_failures = 0
        self._trouble: StoreError | None = None
        self._channels_left: list[ChannelState] = []
        self._due: dict[str, float] = {}
        self._wake_unix_s: float | None = None
        self._standing: dict[str, tuple[Draft, str | None]] = {}
        self._log = logging.getLogger("memwarden.tell")
        self.collectors = Collectors(settings.collectors, limit_s=settings.collect_for_s)
        self.describe: Callable[[], Mapping[str, Any]] = dict
        self.lost = self._said_lost = 0
        self.taken = 0

    # --- the side of the guarded loop ---------------------------------------------------------------------------

    def attach(self, box: BlackBox | None) -> None:
        """What is told goes into the slots of this box from now on."""
        self._box = box

    def is_alone(self) -> bool:
        """Whether no other process of our cgroup could tell of what all of it see."""
        path = self._box.path if self._box is not None else None
        return path is None or is_alone(self._run_folder, path)

    def _is_watched(self) -> bool:
        """Whether somebody is there, we or others, who may see what a process that is gone saw."""
        return self._box is not None or not is_alone(self._run_folder, None)

    def tell(self, draft: Draft, *, member: str | None = None, target: str | None = None, name: str = "") -> str:
        """Have it told; the signal's id. Back within microseconds; it survives the process where a slot was free.

        `name` is an id of the caller's own for what must be told once whoever finds it.
        """
        about = target if target is not None else self._target_of(draft)
        whose = member if member is not None else self.member
        signal = settled(Signal(
            id=name or f"{self._prefix}-{next(self._numbers)}", key=key_of(draft.kind, about), kind=draft.kind,
            what=draft.what, level=draft.level, title=draft.title, text=draft.text, unix_s=self._clock.wall(),
            target=about, host=self.host, member=whose, scope=draft.scope,
            details=draft.details if about == self.target else {**draft.details, "seen_by": self.target},
            origin=self.settings.origin if self.settings.deliver == "here" else "",
        ))  # fmt: skip
        if draft.what == "raised" and member is None:
            self._standing[signal.key] = draft, target
        elif draft.what in ENDS:
            self._standing.pop(signal.key, None)
        self._leave(signal)
        self._wake.set()
        return signal.id

    def _target_of(self, draft: Draft) -> str:
        """The machine is one target for all who see it."""
        return f"machine {self.host}" if draft.scope == "machine" else self.target

    def end_standing(self, why: str) -> bool:
        """Say of all that this process said to last that it is over, and why; whether there was any."""
        standing = tuple(self._standing.values())
        for draft, target in standing:
            self.tell(draft.replace(what="cleared", level=Level.NORMAL, text=why), target=target)
        return bool(standing)

    @contextmanager
    def _undisturbed(self) -> Iterator[bool]:
        """Nobody else changes slots and queue; false for a signal handler or a finalizer that came into the middle."""
        with self._lock:
            disturbs, self._leaving = self._leaving, True
            try:
                yield not disturbs
            finally:
                self._leaving = disturbs

    def _leave(self, signal: Signal) -> None:
        """In a slot; where none is free, in memory. A box has one writer at a time."""
        at_s = self._clock.monotonic()
        with self._undisturbed() as alone:
            if not (alone and self._post(signal, at_s)):
                self._queue.append((at_s, signal))
            while alone and len(self._queue) > MOST_QUEUED:
                self._drop_one()
            self._urgent_told += signal.level is Level.EMERGENCY

    def _drop_one(self) -> None:
        """The oldest goes, of what happens once where there is any: the end of a state must not be missed."""
        places = range(len(self._queue))  # by their numbers, which stay: a signal handler may add to it meanwhile
        at = next((number for number in places if self._queue[number][1].what == "seen"), 0)
        del self._queue[at]
        self.lost += 1

    def _post(self, signal: Signal, at_s: float) -> bool:
        box, number = self._box, 0
        if box is None:
            return False
        urgent, text = signal.level is Level.EMERGENCY, to_text(signal)
        about = signal.key, signal.member, signal.what
        last = self._posted.pop(about, None)
        times = 1
        try:
            if not self._queue or urgent:  # in order: what is in memory comes before what is posted after it
                number = box.post(signal.unix_s, at_s, text)
            if not number and last is not None and last[1] <= signal.level:
                # The newest of a kind says it all; that there were others it says too.
                times = last[2] + 1
                more = signal.replace(details={"repeated": times, **signal.details})
                number = box.replace(last[0], signal.unix_s, at_s, to_text(more))
            if not number and urgent:
                number = box.post(signal.unix_s, at_s, text, urgent=True)
        except ValueError:  # the box was closed
            self._box = None
        if number:
            self._posted[about] = number, signal.level, times
            while len(self._posted) > MOST_POSTED:
                del self._posted[next(iter(self._posted))]
        elif last is not None:
            self._posted[about] = last
        return bool(number)

    def tick(self) -> None:
        """Once a second, from the loop. Where the service delivers, what is in memory goes into free slots."""
        if self.settings.deliver == "service" and self._queue:
            with self._undisturbed() as alone:
                while alone and self._queue and self._box is not None:
                    at_s, signal = self._queue[0]
                    if not self._box.post(signal.unix_s, at_s, to_text(signal)):
                        return
                    self._queue.popleft()

    # --- life -----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether its threads run; without any to run (a service delivers) it counts as running."""
        thread = self._thread
        return (thread is not None and thread.is_alive()) or self.settings.deliver == "service"

    def now_unix_s(self) -> float:
        """The time that the outbox lives by."""
        return self._clock.wall()

    @property
    def outbox(self) -> Outbox | None:
        """The outbox, once the threads run."""
        return self._outbox

    def start(self) -> None:
        """Start the threads, which open the store themselves. A second start is a no-op. Raises RuntimeError."""
        if self.running:
            return
        self._ending = Wake()  # of this start: a thread that outlives its stop stays stopped
        self._due["assert"] = self._waits.monotonic() + ASSERT_S
        thread = threading.Thread(target=self._run, args=(self._ending,), name="memwarden-tell", daemon=True)
        thread.start()
        self._thread = thread

    def open_outbox(self, *, memory: str = "", hurry: Callable[[], bool] | None = None) -> Outbox:
        """The outbox in the store of this teller, or in memory, for a reason. Raises StoreError."""
        return Outbox(
            self.settings, folder=self._store_folder, environ=self._environ, clock=self._clock,
            memory=memory or self._memory, stays=bool(self._memory), hurry=hurry,
        )  # fmt: skip

    def _open(self) -> Outbox:
        """Alerts go on from memory where the store must not be used, which is said."""
        try:
            return self.open_outbox(hurry=self._is_urgent)
        except StoreError as error:
            self._log.error("alerts are kept in memory only: %s", error)
            return self.open_outbox(memory=str(error), hurry=self._is_urgent)

    def couriers(self, outbox: Outbox) -> list[Courier]:
        """One for each channel that is in use."""
        uses = self.settings.policy.channels
        return [Courier(outbox, channel, uses[channel.name]) for channel in self._channels if channel.name in uses]

    def stop(self, *, patience_s: float = STOP_S) -> None:
        """Take everything in, deliver for at most so long, and end. What is left is in the store, or in the slots."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ending.set()
        self._wake.set()
        if thread is not threading.current_thread():
            thread.join(timeout=patience_s)

    def undelivered(self) -> list[ChannelState]:
        """After `stop`: the channels with something that waits still, or was given up."""
        found = _channels_of(self._outbox) if self._outbox is not None else self._channels_left
        return [each for each in found if each.pending or each.dead]

    def once(self, *, within_s: float) -> list[Told]:
        """Without threads of its own: take in what there is, also of the dead, deliver for at most so long, and close.

        What was told by it. A store that is locked for 5 s, or full, does not keep it from telling: then it is done in
        memory, from what can be read, and what was told then is not known to the next one. Raises StoreError.
        """
        outbox = self._outbox = self.open_outbox()
        try:
            if outbox.moved:
                self._say_moved(outbox)
            try:
                return self._once(outbox, within_s)
            except StoreError as error:
                if outbox.degraded or not (is_locked(error) or is_failing(error)):
                    raise
                self._log.error("it is told from memory, and not kept that it was: %s", error)
                outbox.into_memory()
                return self._once(outbox, within_s)
        finally:
            self._outbox = None
            outbox.close()

    def _once(self, outbox: Outbox, within_s: float) -> list[Told]:
        start = self._clock.wall()
        self._take_in(outbox)
        self._adopt(outbox)
        outbox.sweep(self._is_watched)
        outbox.wake()
        deliver(self.couriers(outbox), within_s=within_s, waits=self._waits)
        self._take_in(outbox)  # what a courier has to say of its channel
        outbox.prune()
        return outbox.history(touched_since_unix_s=start)

    def _run(self, ending: Wake) -> None:
        outbox = self._open_in_the_end(ending)
        if outbox is None:
            return
        turns = {channel.name: turns_of(channel) for channel in self._channels}
        workers = [_Worker(self, courier, self._waits, turns[courier.name]) for courier in self.couriers(outbox)]
        self._outbox, self._workers = outbox, workers
        while not ending.is_set():
            wait_s = self._round_or_log()
            if not ending.is_set() and self._waits.wait(self._wake, wait_s):
                self._wake.clear()
        self._round_or_log()
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()  # at most a time-out of its channel; whoever stopped us does not wait for so long
        self._channels_left = _channels_of(outbox)
        outbox.close()
        if self._outbox is outbox:
            self._outbox, self._workers = None, []

    def _open_in_the_end(self, ending: Wake) -> Outbox | None:
        """The outbox, after some tries where not even one in memory can be had; None where it was ended before."""
        while not ending.is_set():
            try:
                return self._open()
            except Exception:  # noqa: BLE001  slots keep what is told for whoever comes next
                self._log.exception("alerts are not delivered from here; it is tried again")
            self._waits.wait(ending, RECOVER_S)
        return None

    def _have_threads(self) -> None:
        """Each courier its own; one that can have none now (a limit of processes) has one as soon as there is any."""
        for worker in self._workers:
            if worker.is_alive:
                continue
            try:
                worker.start()
                self._threadless.discard(worker.name)
            except RuntimeError as error:
                if worker.name not in self._threadless:
                    self._threadless.add(worker.name)
                    self._log.error("what is for channel %s waits: %s; it is tried again", worker.name, error)

    def _round_or_log(self) -> float:
        try:
            return self.round()
        except Exception:  # noqa: BLE001  whatever is wrong with one round, the next may be better
            self._log.exception("telling failed; it goes on")
            return IDLE_S

    def look(self) -> None:
        """Somebody else put something into the outbox: see to it now."""
        self._wake.set()

    def worry(self, error: StoreError) -> None:
        """Somebody else who uses the outbox could not write it. What is only locked is no news."""
        if is_failing(error):
            self._trouble = error
            self._wake.set()

    # --- one round of the thread ----------------------------------------------------------------------------------

    def round(self) -> float:
        """Take in what there is, step what is due, see to the store; seconds until the next."""
        outbox = self._outbox
        if outbox is None:
            return IDLE_S
        self._have_threads()
        if outbox.moved:
            self._say_moved(outbox)
        lost = self.lost + outbox.dropped
        if lost > self._said_lost:
            self._log.error("%d alert(s) were dropped: more came than can be kept", lost - self._said_lost)
            self._said_lost = lost
        try:
            trouble, self._trouble = self._trouble, None
            if trouble is not None and not outbox.degraded:
                raise trouble
            made = self._take_in(outbox)
            made += self._adopt(outbox) if self._is_due("adopt", ADOPT_S) else 0
            if self._is_due("sweep", SWEEP_S):
                made += outbox.sweep(self._is_watched)
                self._say_resolved(outbox)
            self._assert_standing()
            now = self._clock.wall()
            self._wake_unix_s = outbox.wake()
            if self._is_due("prune", PRUNE_S):
                outbox.prune()
            self._store_failures = 0
        except StoreError as error:
            self._store_failed(outbox, error)
            return URGENT_S
        if outbox.degraded and self._is_due("recover", RECOVER_S) and outbox.recover():
            self._log.warning("the store can be written again: what was in memory is in it")
        for worker in self._workers:
            worker.look()
        left_s = IDLE_S if self._wake_unix_s is None else self._wake_unix_s - now
        return min(IDLE_S, max(0.0, left_s))

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = self._waits.monotonic()
        if now_s < self._due.get(what, float("-inf")):
            return False
        self._due[what] = now_s + every_s
        return True

    def _take_in(self, outbox: Outbox) -> int:
        urgent, posts = self._urgent_told, self._own_posts()
        with self._undisturbed():
            waiting = [self._queue[at] for at in range(len(self._queue))]
        known = [(post, signal) for post in posts if (signal := from_text(post.text)) is not None]
        # As they came, by a clock that is never set back: the end of a state must not come before its beginning.
        arrived = sorted([(post.monotonic_s, signal) for post, signal in known] + waiting, key=lambda pair: pair[0])
        found = self._keep(outbox, [signal for _, signal in arrived]) if arrived else (0, set())
        self._urgent_seen = urgent
        if found is None:
            return 0
        made, bad = found
        box = self._box
        if box is not None and arrived:
            for post in posts if not outbox.degraded else self._spare(outbox, known, bad):
                box.take(post)
        done = {signal.id for _, signal in waiting}
        with self._undisturbed():
            while self._queue and self._queue[0][1].id in done:
                self._queue.popleft()
        return made

    def _own_posts(self) -> tuple[Post, ...]:
        try:
            return self._box.posts() if self._box is not None else ()
        except ValueError:  # closed meanwhile
            self._box = None
            return ()

    def _keep(self, outbox: Outbox, signals: Sequence[Signal]) -> tuple[int, set[str]] | None:
        """Into the store; how many deliveries came of it, and what it cannot keep. None where it is locked, and what
        is urgent goes past it. Raises StoreError.
        """
        hurry = any(signal.level is Level.EMERGENCY for signal in signals)
        try:
            made, bad = piecewise(outbox.take, signals if hurry else [self._with_more(signal) for signal in signals])
        except StoreError as error:
            if not (hurry and is_locked(error) and self._workers):
                raise
            self.go_past(outbox, signals)
            return None
        say_dropped(bad)
        self.taken += len(signals)
        return sum(made), {signal.id for signal, _ in bad}

    def go_past(self, outbox: Outbox, signals: Sequence[Signal]) -> None:
        """Have the couriers deliver what of these is urgent, though the store is locked. Raises StoreError.

        They are left where they are: when the store takes them in, it learns that they went out.
        """
        workers = {worker.name: worker for worker in self._workers}
        try:
            found, _ = piecewise(outbox.hand_out, signals)
        except StoreError as error:  # and no more one that is only locked
            raise StoreError("cannot even be read", where=error.where, mend=error.mend) from None
        for channel, notice in (each for some in found for each in some):
            if channel in workers:
                workers[channel].urge(notice)
            else:
                outbox.came_back(notice.delivery_id)

    @staticmethod
    def _spare(outbox: Outbox, known: Sequence[tuple[Post, Signal]], bad: set[str]) -> list[Post]:
        """What need not stay in its slot while the outbox is in memory only, and would die with us.

        The newest stay, so that whoever comes next knows what stands; the others until they are delivered.
        """
        kept = {post.number for post, _ in known[-MOST_KEPT:]}
        return [
            post
            for post, signal in known
            if signal.id in bad or (post.number not in kept and outbox.is_settled(signal.id))
        ]

    def _with_more(self, signal: Signal) -> Signal:
        """What is known beside it; nothing is asked for an EMERGENCY, which must not wait."""
        if signal.level is Level.EMERGENCY or signal.what in ENDS or signal.member != self.member:
            return signal
        more: dict[str, Any] = {}
        for ask in (self.describe, self._collect):
            try:
                more |= ask()
            except Exception as error:  # noqa: BLE001  whatever fails there must not keep the alert
                self._log.info("an alert says less: %s", type(error).__name__)
        return settled(signal.replace(details={**signal.details, **more})) if more else signal

    def _collect(self) -> Mapping[str, Any]:
        return self.collectors.collect(self._waits.monotonic(), hurry=self._is_urgent)

    def _is_urgent(self) -> bool:
        """Whether an EMERGENCY came that was not seen to, or is about to go out past the store."""
        return self._urgent_told != self._urgent_seen or any(worker.is_urged for worker in self._workers)

    def _assert_standing(self) -> None:
        """Say again what lasts."""
        if self._is_due("assert", ASSERT_S):
            self._say_standing()

    def _say_resolved(self, outbox: Outbox) -> None:
        """Say again what somebody resolved and still lasts."""
        standing = dict(self._standing)
        for key in outbox.lacking(standing, self.member) if standing else ():
            draft, target = standing[key]
            self.tell(draft, target=target)

    def _say_standing(self) -> None:
        for draft, target in tuple(self._standing.values()):
            self.tell(draft, target=target)

    def _adopt(self, outbox: Outbox) -> int:
        """What those who died left in their slots."""
        own = self._box.path if self._box is not None else None
        return adopt(outbox, self._run_folder, own=own, now_unix_s=self._clock.wall())

    # --- what goes wrong here ------------------------------------------------------------------------------------

    def _store_failed(self, outbox: Outbox, error: StoreError) -> None:
        """Damaged: a new one. Locked: tried again. Alerts go on from memory where that, or a full disk, lasts."""
        if is_locked(error) and self._is_urgent():  # it was not waited for
            return
        self._store_failures += 1
        try:
            if outbox.reopen(error):
                self._say_standing()
                return
        except StoreError as again:
            error = again
        if is_locked(error) and self._store_failures < STORE_TRIES and not outbox.degraded:
            self._log.warning("alerts cannot be kept now, they are tried again: %s", error)
            return
        if not outbox.degraded:
            self._log.error("alerts are kept in memory only until the store can be written again: %s", error)
            outbox.into_memory()
            self._say_standing()
            self._due["recover"] = self._waits.monotonic() + RECOVER_S
        self._wake.set()

    def _say_moved(self, outbox: Outbox) -> None:
        where, outbox.moved = outbox.moved[-1], []
        text = f"it was moved to {where}; alerts that were not delivered when it broke may be in there only"
        self.tell(
            Draft(kind="custom", what="seen", level=Level.CRITICAL, title="the store of alerts was damaged", text=text),
            target="store of alerts",  # a death of the same target must not be throttled by it
        )
        self._say_standing()


class _Worker:
    """The thread of one courier."""

    def __init__(self, teller: Teller, courier: Courier, waits: Clock, turns: Turns) -> None:
        self._teller, self._courier, self._waits, self._turns = teller, courier, waits, turns
        self._wake = Wake()
        self._ending = False
        self._log = logging.getLogger("memwarden.tell")
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """That of its channel."""
        return self._courier.name

    @property
    def is_urged(self) -> bool:
        """Whether there is something to send past the store."""
        return self._courier.is_urged

    def urge(self, notice: Notice) -> None:
        """Send this one next, whatever the store does."""
        self._courier.urge(notice)
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Raises RuntimeError where no thread can be had now."""
        thread = threading.Thread(target=self._run, name=f"memwarden-tell-{self.name}", daemon=True)
        thread.start()
        self._turns.enter()  # it leaves when it is told to end, and not before
        self._thread = thread

    def look(self) -> None:
        """There may be something to deliver."""
        self._wake.set()

    def end(self) -> None:
        """Deliver what is due, once more, and end."""
        self._ending = True
        self._wake.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._turns.turn:
            wrong = self._courier.warm_up()
        if wrong:
            self._log.warning("alerts by %s cannot be delivered now: %s", self._courier.name, wrong)
        while True:
            ending = self._ending
            rest_s = self._round(waits=not ending)
            if ending:
                break
            if self._waits.wait(self._wake, rest_s):
                self._wake.clear()
        self._turns.leave(self._courier.close)

    def _once(self, *, waits: bool) -> bool:
        with self._turns.turn:  # before it is claimed: a claim does not last for long
            return self._courier.once(waits=waits)

    def _round(self, *, waits: bool) -> float:
        """Everything that can be delivered now; seconds until the next."""
        try:
            while self._once(waits=waits):
                if self._ending and waits:
                    return 0.0
            rest_s = self._courier.rest_s(self._teller.now_unix_s())
        except StoreError as error:
            self._log.info("channel %s: %s", self._courier.name, error)
            self._teller.worry(error)
            return IDLE_S
        except Exception:  # noqa: BLE001  likewise
            self._log.exception("delivering by %s failed; it goes on", self._courier.name)
            return IDLE_S
        return IDLE_S if rest_s is None else min(IDLE_S, max(0.01, rest_s))


def _channels_of(outbox: Outbox) -> list[ChannelState]:
    try:
        return outbox.channels()
    except StoreError:
        return []


def piecewise(
    step: Callable[[Sequence[Signal]], T], signals: Sequence[Signal]
) -> tuple[list[T], list[tuple[Signal, Exception]]]:
    """What `step` makes of them all; where it cannot take them, of one after the other, and which it cannot take.

    One signal that nobody foresaw must not be in the way of all others. Raises what is no fault of a signal: an error
    of the store, of the system, no memory.
    """
    try:
        return [step(signals)], []
    except (MemwardenError, OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, the others go on
        if len(signals) == 1:
            return [], [(signals[0], error)]
    found = [piecewise(step, [signal]) for signal in signals]
    return [each for made, _ in found for each in made], [each for _, bad in found for each in bad]


def say_dropped(bad: Sequence[tuple[Signal, Exception]]) -> None:
    """Say of alerts that cannot be kept that they are gone; once for all that came together."""
    if bad:
        signal, error = bad[0]
        logging.getLogger("memwarden.tell").error(
            "%d alert(s) cannot be kept and are dropped, first %a of %a", len(bad), signal.title, signal.target,
            exc_info=error,
        )  # fmt: skip


def adopt(
    outbox: Outbox, run_folder: str | None, *, own: str | None, now_unix_s: float, living: bool = False,
    patient: bool = True,
) -> int:  # fmt: skip
    """Take in what is in the slots of the other boxes of a run folder: of the dead, and with `living` of everybody.

    The service does it for `living`; each signal counts once, whoever takes it. How many deliveries came of it. Raises
    StoreError, and then nothing is marked; nor is what only memory knows.
    """
    made, strange, dropped = 0, 0, []
    for path, post, signal in posted(run_folder, but=own):
        is_stale = now_unix_s - post.unix_s > STALE_S
        if signal is not None and not _may_take(outbox, signal, living=living, is_stale=is_stale):
            continue
        if signal is None:
            strange += 1
        else:
            found, bad = piecewise(lambda some: outbox.take(some, patient=patient), [signal])
            made += sum(found)
            dropped += bad
            if outbox.degraded and not bad:
                continue
        try:
            mark_taken(path, post)
        except BlackBoxError:
            continue
    say_dropped(dropped)
    if strange:
        words = "%d slot(s) of black boxes held what is no alert of this version, and were emptied"
        logging.getLogger("memwarden.tell").warning(words, strange)
    return made


def _may_take(outbox: Outbox, signal: Signal, *, living: bool, is_stale: bool) -> bool:
    """Whether it is for us to tell: what others are to deliver only where they let it lie, for better than nobody.

    From memory nothing is told of those who live: they tell it, and would not learn that we did.
    """
    if not outbox.is_ours(signal.origin):
        return is_stale and (living or not is_living(signal.member))
    if living or is_gone(signal.member):
        return True
    return is_stale and not (outbox.degraded and is_living(signal.member))


def posted(run_folder: str | None, *, but: str | None = None) -> Iterable[tuple[str, Post, Signal | None]]:
    """What is in the slots of all boxes of a run folder but one: the path, the post, what it says if it can be read.

    In order: the oldest box first, for a process that began another one had the first before, and each as it was left.
    """
    try:
        paths = find_boxes(run_folder) if run_folder is not None else []
    except OSError:
        return
    for path in reversed(paths):
        try:
            posts = read_posts(path) if path != but and os.path.getsize(path) > SIZE else ()
        except (OSError, BlackBoxError):
            continue
        for post in posts:
            yield path, post, from_text(post.text)


def build_channels(settings: AlertSettings, environ: Mapping[str, str]) -> tuple[AlertSettings, tuple[Channel, ...]]:
    """The channels that are in use, and the settings with how each is used. Raises ConfigError.

    What is wrong with one channel is not raised: `complaints` says it, and what is sent to it fails for good.
    """
    used = {name: each for name, each in settings.channels.items() if name in settings.policy.channels}
    made: dict[str, Channel] = {name: each for name, each in used.items() if not isinstance(each, dict)}
    uses = dict(settings.policy.channels)
    tables = {name: table for name, table in used.items() if isinstance(table, dict)}
    if tables:
        from memwarden.tell.channels import build

        for found in build(tables, where=f"{settings.where}.channels", environ=environ):
            made[found.name] = found.channel
            uses[found.name] = ChannelUse(
                name=found.name, enabled=found.enabled, level=found.min_level, throttle_s=found.throttle_s,
                timeout_s=found.timeout_s, attempts=found.attempts, give_up_after=found.give_up_after, tier=found.tier,
            )  # fmt: skip
    for name, channel in made.items():
        if channel.name != name:
            where = f"{settings.where}.channels.{name}"
            raise ConfigError(f"calls itself {channel.name!r}", where=where, mend="give both the same name")
    uses = {  # what is acknowledged is told to those that say that they can pass it on
        name: use.replace(acks=getattr(made.get(name), "passes_acknowledged", False)) for name, use in uses.items()
    }
    policy = settings.policy.replace(channels=uses)
    return settings.replace(policy=policy), tuple(made[name] for name in used)


def complaints(channels: Iterable[Channel]) -> list[str]:
    """What is wrong with the settings of channels, one line each."""
    return [line for channel in channels for line in channel.check()]


def deliver(couriers: Sequence[Courier], *, within_s: float, waits: Clock | None = None) -> None:
    """Deliver what is there, each channel in a thread of its own, for at most so long: for what runs only once.

    Those that can have no thread deliver in this one, after the others, and begin nothing when the time is up.
    """
    clock = waits if waits is not None else SystemClock()
    end_s = clock.monotonic() + within_s

    def run(courier: Courier) -> None:
        try:
            while clock.monotonic() < end_s and courier.once(waits=False):
                pass
        except MemwardenError as error:
            logging.getLogger("memwarden.tell").warning("channel %s: %s", courier.name, error)
        finally:
            courier.close()

    threads, threadless = [], []
    for each in couriers:
        thread = threading.Thread(target=run, args=(each,), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            threadless.append(each)
        else:
            threads.append(thread)
    for each in threadless:
        run(each)
    for thread in threads:
        thread.join(max(0.0, end_s - clock.monotonic()))
