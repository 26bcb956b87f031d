"""Object pools: what is costly to make is kept, lent and taken back, and what never came back is named.

`Pool` is for threads, `AsyncPool` for coroutines; both drive the books of `pool_core`. A typed pool is a subclass with
its own `create`, `reset`, `validate` and `destroy`. The object that came back last is lent first (LIFO), so that the
rest can grow old and go; whoever waits is served in the order of asking.

Database connections have pools of their own that know their protocol (SQLAlchemy's, psycopg_pool): use those.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from sys import _getframe
from weakref import WeakSet, ref

from memwarden.budget import patience, settle, waker
from memwarden.clock import SystemClock
from memwarden.errors import (
    ConfigError,
    FactoryError,
    MemwardenError,
    NotBorrowedError,
    PoolClosedError,
    PoolTimeoutError,
)
from memwarden.flow.generic import Generic, T
from memwarden.flow.pool_core import Borrow, Core, Entry, PoolStatistics, Turn
from memwarden.flow.sizing import size_of
from memwarden.units import format_duration, parse_bytes, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import Callable, Iterable
    from types import CodeType, TracebackType
    from typing import Any, Self

    from memwarden.budget import Account, Budget
    from memwarden.ports import Clock

__all__ = ["AsyncPool", "Borrow", "Pool", "PoolStatistics"]

# One slice of shedding (ports.Sheddable).
SLICE_S = 0.005
# Lives end up to so much of their length early, by chance, so that objects made together do not end together.
JITTER = 0.1
# The caretaker looks no more often than this, whatever times are set.
LEAST_ROUND_S = 0.1
_NEVER = float("inf")

_pools: WeakSet[_Pool[Any]] = WeakSet()


def _forget_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork()  # noqa: SLF001  the classes of this file


class _Making:
    """One call of the factory in a thread of its own."""

    __slots__ = ("abandoned", "done", "error", "finished", "obj", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.done = threading.Event()
        self.finished = self.abandoned = False
        self.obj: Any = None
        self.error: BaseException | None = None


class _Pool(Generic[T]):
    """What both kinds share: settings, books, and everything that neither blocks nor awaits."""

    def __init__(
        self,
        factory: Callable[[], Any] | None = None,
        *,
        name: str | None = None,
        min_size: int = 2,
        max_size: int = 10,
        max_idle_s: str | float | None = 300.0,
        max_lifetime_s: str | float | None = None,
        validate_every_s: str | float = 60.0,
        timeout_s: str | float = 30.0,
        create_timeout_s: str | float | None = 30.0,
        leak_after_s: str | float | None = None,
        reset: Callable[[T], Any] | None = None,
        validate: Callable[[T], Any] | None = None,
        destroy: Callable[[T], Any] | None = None,
        on_leak: Callable[[Borrow], object] | None = None,
        item_bytes: str | int | None = None,
        budget: Budget | None = None,
        auto_cleanup: bool = True,
        statistics: bool = True,
        clock: Clock | None = None,
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.name = name if name is not None else type(self).__name__
        self._factory = self._hook("create", factory)
        if self._factory is None:
            raise ConfigError("it has no factory", where=self.name, mend="give factory=, or a subclass with create()")
        self._reset = self._hook("reset", reset)
        self._validate = self._hook("validate", validate)
        self._destroy = self._hook("destroy", destroy)
        self._on_leak = on_leak
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._now = self._clock.monotonic
        self._chance = chance if chance is not None else _chance
        self._max_idle_s = _seconds("max_idle_s", max_idle_s)
        self._max_lifetime_s = _seconds("max_lifetime_s", max_lifetime_s)
        self._create_timeout_s = _seconds("create_timeout_s", create_timeout_s)
        self._leak_after_s = _seconds("leak_after_s", leak_after_s)
        self._timeout_s = parse_duration(timeout_s, where="timeout_s")
        self._item_bytes = None if item_bytes is None else parse_bytes(item_bytes, where="item_bytes")
        self._auto_cleanup = auto_cleanup
        self._counting = statistics
        check_every_s = parse_duration(validate_every_s, where="validate_every_s")
        self._core = Core(*_sizes(min_size, max_size), check_every_s if self._validate is not None else _NEVER)
        self._round_s = max(
            LEAST_ROUND_S, min(check_every_s, self._max_idle_s, self._max_lifetime_s, self._leak_after_s, 60.0)
        )
        self._lock = threading.RLock()  # re-entrant: a finalizer may return its object wherever a collection runs
        self._dropped: deque[Entry] = deque()
        self._inherited: dict[int, Any] = {}
        self._since: dict[int, float] = {}  # when each call of the factory under way began
        self._owed_bytes = 0
        self.last_error = ""
        self._account: Account | None = None
        if budget is not None:
            self._account = budget.account(self.name)
            budget.register(self)
        _watch_forks(self)

    def __repr__(self) -> str:
        core = self._core
        idle = len(core.idle)
        return (
            f"<{type(self).__name__} {self.name!r}: {len(core.entries) - idle} active, {idle} idle of {core.max_size}>"
        )

    # --- what a typed pool overrides ---------------------------------------------------------------------------

    def create(self) -> Any:
        """Make a new object."""
        raise NotImplementedError

    def reset(self, obj: T) -> Any:
        """Make it as good as new when it comes back. One that raises here is ended."""

    def validate(self, obj: T) -> Any:
        """Whether it can still be used. False, or raising, ends it."""
        return True

    def destroy(self, obj: T) -> Any:
        """End it for good. What is raised here is only remembered (`last_error`)."""

    def _hook(self, name: str, given: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if given is not None:
            return given
        own = getattr(type(self), name) is not getattr(_Pool, name)
        return getattr(self, name) if own else None

    # --- telling -----------------------------------------------------------------------------------------------

    @property
    def statistics(self) -> PoolStatistics | None:
        """What it has and did; None where it was told to keep no statistics."""
        if not self._counting:
            return None
        with self._lock:
            return self._core.statistics()

    def borrowed(self, *, older_than_s: float = 0.0) -> tuple[Borrow, ...]:
        """What is out for at least so long, the longest first, with where it was taken."""
        self._bury()
        now = self._now()
        with self._lock:
            out = [(each.site(), now - each.out_s) for each in self._core.borrowed()]
        return tuple(Borrow(site=site, held_s=held) for site, held in out if held >= older_than_s)

    @property
    def lost(self) -> tuple[Borrow, ...]:
        """What was dropped by its borrower instead of being returned, the last 100, with where it was taken."""
        self._bury()
        return tuple(self._core.lost_at)

    @property
    def held_bytes(self) -> int:
        """The size of all its objects, as given or as measured when they were made."""
        return self._core.held_bytes

    # --- in both kinds alike -----------------------------------------------------------------------------------

    def _refuse(self, obj: object) -> None:
        """It is not out: an error, unless it is of the parent of this process."""
        if self._inherited.get(id(obj), self) is obj:
            return
        kind, entry = type(obj).__name__, self._core.entries.get(id(obj))
        if entry is not None and (entry.obj is obj or (entry.ref is not None and entry.ref() is obj)):
            site = entry.site()
            taken = f" (last taken at {site})" if site else ""
            what, mend = f"a {kind} was returned that is not out{taken}", "return it once, best by lease()"
        else:
            entry = None
            what, mend = f"a {kind} was returned that is not from here", "return what acquire() gave, to its own pool"
        raise NotBorrowedError(what, pool=self.name, again=entry is not None, mend=mend)

    def _tidy(self, entry: Entry, now_s: float, *, late: bool) -> None:
        """Others wait, or something is too old or too many: see to it, with the lock held."""
        with self._lock:
            over = self._core.put_late(entry, now_s) if late else self._core.tidy()
        for each in over:
            self._end(each)

    def _back(self, entry: Entry) -> None:
        """Unused, back to where it came from."""
        self._core.out.pop(entry.key, None)
        self._tidy(entry, self._now(), late=True)

    def _end(self, entry: Entry) -> None:
        """It is out of the books: end it, and give its bytes back."""
        obj, entry.obj, entry.keep = entry.obj, None, None
        self._ended(obj)
        del obj
        self._repay(entry.size_bytes)

    def _ended(self, obj: T) -> None:
        raise NotImplementedError

    def _adopt(self, obj: T, code: CodeType | None, at: int, *, lent: bool = True) -> Entry:
        """The new object's entry, in the room that was claimed. Raises FactoryError, MemoryPressureError."""
        entry, now = self._new_entry(obj), self._now()
        life_s = self._max_lifetime_s
        if life_s != _NEVER:
            life_s *= 1 - JITTER * self._chance()
        with self._lock:
            fresh = self._core.adopt(entry, now, life_s)
            if fresh and lent:
                self._core.lend(entry, code, at)
        if not fresh:
            self._repay(entry.size_bytes)
            raise self._bad_factory("gave an object that is in the pool already", mend="make a new one each time")
        return entry

    def _new_entry(self, obj: T) -> Entry:
        if obj is None:
            self._gave_up()
            raise self._bad_factory("gave None", mend="return the object")
        try:
            size = self._item_bytes if self._item_bytes is not None else size_of(obj)
            self._pay(size)
        except BaseException:
            self._gave_up()
            raise
        try:
            return Entry(obj, ref(obj, _undertaker(ref(self), id(obj))), size)
        except TypeError:  # lists, dicts and slotted classes know no weak references
            return Entry(obj, None, size)

    def _gave_up(self) -> None:
        with self._lock:
            self._core.failed += 1
            self._core.unclaim()

    def _bad_factory(self, what: str, *, hung: bool = False, mend: str | None = None) -> FactoryError:
        factory = _name_of(self._factory)
        return FactoryError(f"its factory {factory} {what}", pool=self.name, factory=factory, hung=hung, mend=mend)

    def _raised(self, error: BaseException) -> FactoryError:
        return self._bad_factory(f"raised {type(error).__name__}: {error}")

    def _bury(self) -> None:
        """Take out of the books what borrowers dropped. Whoever holds the lock does it for the others."""
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                while self._dropped:
                    entry = self._dropped.popleft()
                    self._core.vanished(entry, self._now())
                    self._owed_bytes += entry.size_bytes  # the account's lock is not for finalizers
            finally:
                self._lock.release()

    def _pay(self, size_bytes: int) -> None:
        if self._account is not None and size_bytes:
            self._settle()
            self._account.commit(size_bytes)

    def _repay(self, size_bytes: int) -> None:
        with self._lock:
            self._owed_bytes += size_bytes
        self._settle()

    def _settle(self) -> None:
        """Give back to the budget what is owed; all of it once the pool is closed and empty."""
        with self._lock:
            owed, self._owed_bytes = self._owed_bytes, 0
            over = self._core.closed and not self._core.entries and not self._core.making
        if self._account is not None:
            if owed and self._account.held_bytes >= owed:
                self._account.release(owed)
            if over:
                self._account.close()

    def _complain(self, what: str, error: BaseException) -> None:
        self.last_error = f"{what}: {type(error).__name__}: {error}"

    def _invalid(self, entry: Entry, what: str, error: BaseException | None = None) -> None:
        """It failed its check or its reset: out of the books."""
        if error is not None:
            self._complain(what, error)
        with self._lock:
            self._core.invalid += 1
            self._core.drop(entry)

    def _deadline(self, timeout_s: float | None) -> tuple[float, float]:
        """(seconds to wait, when that is over)."""
        patience_s = patience(self._timeout_s if timeout_s is None else timeout_s)
        return patience_s, self._now() + patience_s

    def _too_late(self, patience_s: float) -> PoolTimeoutError:
        now = self._now()
        with self._lock:
            core, sites = self._core, _ranked(each.site() for each in self._core.borrowed())
            core.timed_out += 1
            slow = max((now - since for since in self._since.values()), default=None)
            size = f"{len(core.entries) - len(core.idle)} of {core.max_size} are out"
        where = f", most taken at {sites[0][0]} ({sites[0][1]})" if sites else ""
        hanging = ""
        if slow is not None:
            hanging = f"; its factory {_name_of(self._factory)} has been running for {format_duration(slow)}"
        waited = f"within {format_duration(patience_s)}" if patience_s else "at once"
        return PoolTimeoutError(
            f"no object came free {waited}: {size}{where}{hanging}", pool=self.name, sites=sites,
            mend="return objects sooner, raise max_size, or wait longer",
        )  # fmt: skip

    def _closed(self) -> PoolClosedError:
        return PoolClosedError("it is closed", pool=self.name, mend="acquire before close()")

    def _leaks(self) -> None:
        """Tell of each object that is out for too long, once."""
        if self._on_leak is None or self._leak_after_s == _NEVER:
            return
        now, found = self._now(), []
        with self._lock:
            for entry in self._core.borrowed():
                if entry.told_s != entry.out_s and now - entry.out_s >= self._leak_after_s:
                    entry.told_s = entry.out_s
                    found.append(Borrow(site=entry.site(), held_s=now - entry.out_s))
        for each in found:
            self._on_leak(each)

    def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Other bounds from now on. Those that are out and too many are ended as they come back."""
        core = self._core
        sizes = _sizes(core.min_size if min_size is None else min_size, core.max_size if max_size is None else max_size)
        with self._lock:
            over = core.resize(*sizes)
        for each in over:
            self._end(each)

    def shed(self, size_bytes: int) -> int:
        """End idle objects of so many bytes within 5 ms, also those of the least number; the bytes. From any thread."""
        freed, until_s = 0, self._now() + SLICE_S
        while freed < size_bytes and self._now() < until_s:
            with self._lock:
                entry = self._core.evict()
            if entry is None:
                break
            freed += max(1, entry.size_bytes)
            self._end(entry)
        return freed

    def _shut(self) -> None:
        with self._lock:
            over = self._core.close()
        for each in over:
            self._end(each)

    def _after_fork(self) -> None:
        """In the child: what the pool had belongs to the parent. It is kept, so that no finalizer ends it from here."""
        self._lock = threading.RLock()
        self._dropped.clear()
        self._since.clear()
        self._owed_bytes += self._core.held_bytes
        self._inherited = {id(each): each for each in (*self._inherited.values(), *self._core.forget())}


class Pool(_Pool[T]):
    """Objects for threads. `factory` makes one, or `create` of a subclass; safe across threads and forks.

    Sizes: between `min_size` (2) and `max_size` (10) objects; above the least, what was idle for `max_idle_s` (300) is
    ended, and so is what lived for `max_lifetime_s` (None: no end; less up to 10 % by chance), when it is not out.
    `validate` is asked before an object is lent whose last check is `validate_every_s` (60; 0: each time) ago, and in
    the background. `reset` is called when an object comes back, `destroy` when it is ended. Times are seconds or "5m".

    A borrower waits at most `timeout_s` (30; 0: not at all). The factory runs in a thread of its own for at most
    `create_timeout_s` (30); None: in the borrower's thread, without end. `auto_cleanup` starts a daemon thread with
    the first object that looks after the rest; without it call `maintain` yourself. `statistics=False` keeps neither
    counts nor places. `on_leak` is told of each object that is out for `leak_after_s`, once.

    `budget` is charged `item_bytes` for each object (measured where not given); the pool is then asked to `shed` too.
    A forked child starts with none of its parent's objects. Raises ConfigError on settings that cannot be used.
    """

    _caretaker: threading.Event | None = None

    # --- borrowing and returning -------------------------------------------------------------------------------

    def acquire(self, timeout_s: float | None = None) -> T:
        """An object, to be returned by `release`. Best is `with pool.lease() as obj`.

        Raises PoolTimeoutError, FactoryError, PoolClosedError, MemoryPressureError (no room in the budget).
        """
        if not self._counting:
            return self._borrow(None, 0, timeout_s)
        frame = _getframe(1)
        code, at, now = frame.f_code, frame.f_lasti, self._now()
        entry = self._core.take(now, code, at)  # as _borrow does, without one more call
        if entry is None or now >= entry.due_s:
            entry = self._find(entry, code, at, timeout_s)
        obj: T = entry.obj
        entry.obj = entry.keep
        return obj

    def release(self, obj: T) -> None:
        """It is no longer needed here. Raises NotBorrowedError; one whose reset fails is ended, not raised."""
        core = self._core
        entry = core.out.pop(id(obj), None)
        if entry is None:
            return self._refuse(obj)
        entry.obj = obj
        if self._reset is not None:
            try:
                self._reset(obj)
            except BaseException as error:
                self._invalid(entry, "reset", error)
                self._end(entry)
                if isinstance(error, Exception):
                    return None
                raise
        now = self._now()
        if not core.put(entry, now):
            self._tidy(entry, now, late=True)
        elif core.queue or core.odd:
            self._tidy(entry, now, late=False)
        if self._dropped:
            self._bury()
        return None

    def discard(self, obj: T) -> None:
        """End it instead of returning it: it is broken. Raises NotBorrowedError."""
        entry = self._core.out.pop(id(obj), None)
        if entry is None:
            return self._refuse(obj)
        entry.obj = obj
        with self._lock:
            self._core.drop(entry)
        return self._end(entry)

    def lease(self, timeout_s: float | None = None) -> Lease[T]:
        """An object for a with-statement; it is returned at its end, however that comes."""
        frame = _getframe(1) if self._counting else None
        return Lease(self, frame, timeout_s)

    def _borrow(self, code: CodeType | None, at: int, timeout_s: float | None) -> T:
        now = self._now()
        entry = self._core.take(now, code, at)
        if entry is None or now >= entry.due_s:
            entry = self._find(entry, code, at, timeout_s)
        obj: T = entry.obj
        entry.obj = entry.keep
        return obj

    def _find(self, entry: Entry | None, code: CodeType | None, at: int, timeout_s: float | None) -> Entry:
        """One that may be lent: this one if it is good, else another, else a new one."""
        patience_s, until_s = self._deadline(timeout_s)
        while True:
            if entry is None:
                entry, fresh = self._next(code, at, patience_s, until_s)
                if fresh:
                    return entry
            if self._good(entry):
                return entry
            self._end(entry)
            entry = None

    def _next(self, code: CodeType | None, at: int, patience_s: float, until_s: float) -> tuple[Entry, bool]:
        """(an object, whether it is new): an idle one, one that comes back, or one that is made."""
        event = threading.Event()
        turn = Turn(event.set, code, at)
        with self._lock:
            if self._core.closed:
                raise self._closed()
            entry = self._core.take(self._now(), code, at)
            if entry is not None:
                return entry, False
            if self._core.claim():
                turn.may_make = True
            elif patience_s:
                self._core.queue_up(turn)
        if not turn.may_make:
            self._wait(turn, event, until_s if patience_s else 0.0)
            if turn.entry is not None:
                return turn.entry, False
        if turn.may_make:
            return self._made(code, at, patience_s, until_s), True
        raise self._closed() if self._core.closed else self._too_late(patience_s)

    def _wait(self, turn: Turn, event: threading.Event, until_s: float) -> None:
        try:
            left_s = until_s - self._now()
            if left_s > 0:
                self._clock.wait(event, left_s)
        except BaseException:  # a signal's handler raised: what it was given just now goes to the next
            with self._lock:
                self._core.leave(turn)
                if turn.may_make:
                    self._core.unclaim()
            if turn.entry is not None:
                self._back(turn.entry)
            raise
        with self._lock:
            self._core.leave(turn)

    def _good(self, entry: Entry) -> bool:
        """Whether it may be lent; where not, it is out of the books."""
        now = self._now()
        if now < entry.due_s:
            return True
        if now >= entry.dies_s:
            with self._lock:
                self._core.drop(entry)
            return False
        return self._check(entry)

    def _check(self, entry: Entry) -> bool:
        try:
            good = self._validate is None or bool(self._validate(entry.obj))
        except BaseException as error:
            self._invalid(entry, "validate", error)
            if isinstance(error, Exception):
                return False
            self._end(entry)
            raise
        if good:
            with self._lock:
                self._core.checked(entry, self._now())
        else:
            self._invalid(entry, "validate")
        return good

    # --- making ------------------------------------------------------------------------------------------------

    def _made(self, code: CodeType | None, at: int, patience_s: float, until_s: float, *, lent: bool = True) -> Entry:
        """A new object in the room that was claimed."""
        if self._create_timeout_s == _NEVER:
            return self._made_here(code, at, lent=lent)
        limit_s = self._create_timeout_s
        if patience_s:
            limit_s = min(limit_s, until_s - self._now())
        making = _Making(self._now())
        thread = threading.Thread(target=self._produce, args=(making,), name=f"memwarden pool {self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no room for one more thread: as good as we can
            return self._made_here(code, at, lent=lent)
        try:
            self._clock.wait(making.done, max(0.0, limit_s))
        finally:
            with self._lock:
                making.abandoned = not making.finished
        if making.abandoned:
            if limit_s < self._create_timeout_s:
                raise self._too_late(patience_s)
            hung = f"was not done after {format_duration(self._create_timeout_s)}"
            raise self._bad_factory(hung, hung=True, mend="give it a time-out of its own, or raise create_timeout_s")
        return self._taken_over(making, code, at, lent=lent)

    def _made_here(self, code: CodeType | None, at: int, *, lent: bool) -> Entry:
        making = _Making(self._now())
        self._produce(making)
        if making.error is not None and not isinstance(making.error, Exception):
            self._gave_up()
            raise making.error
        return self._taken_over(making, code, at, lent=lent)

    def _produce(self, making: _Making) -> None:
        with self._lock:
            self._since[id(making)] = making.since_s
        try:
            making.obj = self._factory() if self._factory is not None else None
        except BaseException as error:  # noqa: BLE001  it is raised again where somebody waits for it
            making.error = error
        with self._lock:
            making.finished = True
            self._since.pop(id(making), None)
            abandoned = making.abandoned
        making.done.set()
        if abandoned:
            self._late(making)

    def _taken_over(self, making: _Making, code: CodeType | None, at: int, *, lent: bool) -> Entry:
        if making.error is not None:
            self._gave_up()
            raise self._raised(making.error) from making.error
        try:
            entry = self._adopt(making.obj, code, at, lent=lent)
        except MemwardenError as error:
            if making.obj is not None and not isinstance(error, FactoryError):  # no room for it in the budget
                self._ended(making.obj)
            raise
        self._start_caretaker()
        return entry

    def _late(self, making: _Making) -> None:
        """Nobody waited for it any longer; it is good for the next."""
        try:
            entry = self._taken_over(making, None, 0, lent=False)
        except MemwardenError as error:
            self._complain("factory", error)
        else:
            self._back(entry)

    def _ended(self, obj: T) -> None:
        if self._destroy is not None:
            try:
                self._destroy(obj)
            except Exception as error:  # noqa: BLE001  foreign code; it is out of the pool whatever it says
                self._complain("destroy", error)

    # --- looking after -----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Make the least number of objects now, and start looking after them. Raises what `acquire` raises."""
        self._fill()
        self._start_caretaker()
        return self

    def maintain(self) -> None:
        """One round: end what is too old, check what is due, make up to the least number, tell of leaks.

        The thread of `auto_cleanup` does it about once a minute; without it, call it as often as you like.
        """
        self._bury()
        with self._lock:
            over = self._core.surplus(self._now(), self._max_idle_s)
        for each in over:
            self._end(each)
        self._check_idle()
        try:
            self._fill()
        except MemwardenError as error:  # the next borrower meets it, and it is tried again in the next round
            self._complain("factory", error)
        self._leaks()
        self._settle()

    def _check_idle(self) -> None:
        if self._validate is None:
            return
        began = self._now()
        while True:
            with self._lock:
                entry = self._core.due(began)
            if entry is None:
                return
            if not self._check(entry):
                self._end(entry)
                continue
            with self._lock:
                over = self._core.passed(entry, self._now())
            for each in over:
                self._end(each)

    def _fill(self) -> None:
        while True:
            with self._lock:
                core = self._core
                if core.closed or len(core.entries) + core.making >= core.min_size or not core.claim():
                    return
            self._back(self._made(None, 0, 0.0, 0.0, lent=False))

    def _start_caretaker(self) -> None:
        if self._caretaker is not None or not self._auto_cleanup or self._core.closed:
            return
        with self._lock:
            if self._caretaker is not None:
                return
            event = self._caretaker = threading.Event()
        target = (ref(self, lambda _: event.set()), event, self._clock, self._round_s)
        thread = threading.Thread(target=_look_after, args=target, name=f"memwarden pool {self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no room for one more thread: the next new object tries again
            self._caretaker = None

    def close(self) -> None:
        """Lend nothing any more, wake whoever waits, end what is idle; the rest ends as it comes back. Idempotent."""
        self._shut()
        event = self._caretaker
        if event is not None:
            event.set()
        self._settle()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._caretaker = None


class Lease(Generic[T]):
    """One borrowing for a with-statement: the object inside, returned once at its end."""

    __slots__ = ("_at", "_code", "_obj", "_pool", "_timeout_s")

    def __init__(self, pool: Pool[T], frame: Any, timeout_s: float | None) -> None:
        self._pool = pool
        self._code: CodeType | None = None if frame is None else frame.f_code
        self._at: int = 0 if frame is None else frame.f_lasti
        self._timeout_s = timeout_s
        self._obj: T | None = None

    def __enter__(self) -> T:
        if self._obj is not None:
            raise ConfigError(
                "this lease is in use", where=self._pool.name, mend="call lease() for each with-statement"
            )
        obj = self._obj = self._pool._borrow(self._code, self._at, self._timeout_s)  # noqa: SLF001  of this file
        return obj

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        obj, self._obj = self._obj, None
        if obj is not None:
            self._pool.release(obj)


class AsyncPool(_Pool[T]):
    """Objects for coroutines: the settings of `Pool`; every hook may be a coroutine function or a plain one.

    Waiting does not block the event loop, and whoever is cancelled holds nothing. A plain factory runs in the loop; a
    coroutine is cancelled after `create_timeout_s`. The task of `auto_cleanup` ends with `aclose` or with its loop.
    """

    _caretaker: Task[None] | None = None
    _loop: AbstractEventLoop | None = None

    def __init__(self, factory: Callable[[], Any] | None = None, **settings: Any) -> None:
        super().__init__(factory, **settings)
        self._ends: set[Any] = set()

    # --- borrowing and returning -------------------------------------------------------------------------------

    async def acquire(self, timeout_s: float | None = None) -> T:
        """An object, to be returned by `release`. Best is `async with pool.lease() as obj`.

        Raises PoolTimeoutError, FactoryError, PoolClosedError, MemoryPressureError (no room in the budget).
        """
        if not self._counting:
            return await self._borrow(None, 0, timeout_s)
        frame = _getframe(1)  # whoever awaits us: a coroutine is run by its caller's frame
        code, at, now = frame.f_code, frame.f_lasti, self._now()
        entry = self._core.take(now, code, at)  # as _borrow does, without one more call
        if entry is None or now >= entry.due_s:
            entry = await self._find(entry, code, at, timeout_s)
        obj: T = entry.obj
        entry.obj = entry.keep
        return obj

    async def release(self, obj: T) -> None:
        """It is no longer needed here. Raises NotBorrowedError; one whose reset fails is ended, not raised."""
        core = self._core
        entry = core.out.pop(id(obj), None)
        if entry is None:
            return self._refuse(obj)
        entry.obj = obj
        if self._reset is not None:
            try:
                await _outcome(self._reset(obj))
            except BaseException as error:
                self._invalid(entry, "reset", error)
                self._end(entry)
                if isinstance(error, Exception):
                    return None
                raise
        now = self._now()
        if not core.put(entry, now):
            self._tidy(entry, now, late=True)
        elif core.queue or core.odd:
            self._tidy(entry, now, late=False)
        if self._dropped:
            self._bury()
        return None

    async def discard(self, obj: T) -> None:
        """End it instead of returning it: it is broken. Raises NotBorrowedError."""
        entry = self._core.out.pop(id(obj), None)
        if entry is None:
            return self._refuse(obj)
        entry.obj = obj
        with self._lock:
            self._core.drop(entry)
        return self._end(entry)

    def lease(self, timeout_s: float | None = None) -> AsyncLease[T]:
        """An object for an async-with statement; it is returned at its end, however that comes."""
        frame = _getframe(1) if self._counting else None
        return AsyncLease(self, frame, timeout_s)

    async def _borrow(self, code: CodeType | None, at: int, timeout_s: float | None) -> T:
        now = self._now()
        entry = self._core.take(now, code, at)
        if entry is None or now >= entry.due_s:
            entry = await self._find(entry, code, at, timeout_s)
        obj: T = entry.obj
        entry.obj = entry.keep
        return obj

    async def _find(self, entry: Entry | None, code: CodeType | None, at: int, timeout_s: float | None) -> Entry:
        """One that may be lent: this one if it is good, else another, else a new one."""
        patience_s, until_s = self._deadline(timeout_s)
        while True:
            if entry is None:
                entry, fresh = await self._next(code, at, patience_s, until_s)
                if fresh:
                    return entry
            if await self._good(entry):
                return entry
            self._end(entry)
            entry = None

    async def _next(self, code: CodeType | None, at: int, patience_s: float, until_s: float) -> tuple[Entry, bool]:
        """(an object, whether it is new): an idle one, one that comes back, or one that is made."""
        import asyncio

        loop = self._loop = asyncio.get_running_loop()
        future = loop.create_future()
        turn = Turn(waker(loop, future), code, at)
        with self._lock:
            if self._core.closed:
                raise self._closed()
            entry = self._core.take(self._now(), code, at)
            if entry is not None:
                return entry, False
            if self._core.claim():
                turn.may_make = True
            elif patience_s:
                self._core.queue_up(turn)
        if not turn.may_make:
            if patience_s:
                await self._wait(turn, loop, future, until_s)
            if turn.entry is not None:
                return turn.entry, False
        if turn.may_make:
            return await self._made(code, at, patience_s, until_s), True
        raise self._closed() if self._core.closed else self._too_late(patience_s)

    async def _wait(self, turn: Turn, loop: AbstractEventLoop, future: Future[None], until_s: float) -> None:
        alarm = loop.call_later(max(0.0, until_s - self._now()), settle, future)
        try:
            await future
        except BaseException:  # cancelled: what it was given just now goes to the next
            with self._lock:
                self._core.leave(turn)
                if turn.may_make:
                    self._core.unclaim()
            if turn.entry is not None:
                self._back(turn.entry)
            raise
        finally:
            alarm.cancel()
        with self._lock:
            self._core.leave(turn)

    async def _good(self, entry: Entry) -> bool:
        """Whether it may be lent; where not, it is out of the books."""
        now = self._now()
        if now < entry.due_s:
            return True
        if now >= entry.dies_s:
            with self._lock:
                self._core.drop(entry)
            return False
        return await self._check(entry)

    async def _check(self, entry: Entry) -> bool:
        try:
            good = self._validate is None or bool(await _outcome(self._validate(entry.obj)))
        except BaseException as error:
            self._invalid(entry, "validate", error)
            if isinstance(error, Exception):
                return False
            self._end(entry)
            raise
        if good:
            with self._lock:
                self._core.checked(entry, self._now())
        else:
            self._invalid(entry, "validate")
        return good

    # --- making ------------------------------------------------------------------------------------------------

    async def _made(
        self, code: CodeType | None, at: int, patience_s: float, until_s: float, *, lent: bool = True
    ) -> Entry:
        """A new object in the room that was claimed."""
        limit_s = self._create_timeout_s
        if patience_s:
            limit_s = min(limit_s, until_s - self._now())
        obj = await self._product(limit_s, patience_s)
        try:
            entry = self._adopt(obj, code, at, lent=lent)
        except MemwardenError as error:
            if obj is not None and not isinstance(error, FactoryError):
                self._ended(obj)
            raise
        self._start_caretaker()
        return entry

    async def _product(self, limit_s: float, patience_s: float) -> T:
        """What the factory gives. The room that was claimed is given up where it gives nothing."""
        import asyncio

        key = object()
        with self._lock:
            self._since[id(key)] = self._now()
        try:
            async with asyncio.timeout(None if limit_s == _NEVER else max(0.0, limit_s)) as limit:
                found: T = await _outcome(self._factory() if self._factory is not None else None)
        except BaseException as error:
            self._gave_up()
            if not isinstance(error, Exception):
                raise
            if limit.expired():
                raise self._ran_out(limit_s, patience_s) from None
            raise self._raised(error) from error
        finally:
            with self._lock:
                self._since.pop(id(key), None)
        return found

    def _ran_out(self, limit_s: float, patience_s: float) -> MemwardenError:
        hung = f"was not done after {format_duration(limit_s)}"
        if limit_s < self._create_timeout_s:
            with self._lock:
                self._core.timed_out += 1
            waited = f"no object came free within {format_duration(patience_s)}"
            return PoolTimeoutError(
                f"{waited}: its factory {_name_of(self._factory)} {hung}", pool=self.name, mend="wait longer"
            )
        return self._bad_factory(hung, hung=True, mend="give it a time-out of its own, or raise create_timeout_s")

    def _ended(self, obj: T) -> None:
        loop = self._loop
        if self._destroy is None:
            return
        if loop is None or loop.is_closed() or not loop.is_running():
            self._destroy_now(obj)
        elif _running_loop() is loop:
            self._destroy_soon(obj)
        else:
            try:
                loop.call_soon_threadsafe(self._destroy_soon, obj)
            except RuntimeError:  # it was closed just now
                self._destroy_now(obj)

    def _destroy_now(self, obj: T) -> None:
        """Without a loop nobody can await: a coroutine is not begun."""
        try:
            found = self._destroy(obj) if self._destroy is not None else None
            close = getattr(found, "close", None)
            if hasattr(found, "__await__") and close is not None:
                close()
        except Exception as error:  # noqa: BLE001  foreign code; it is out of the pool whatever it says
            self._complain("destroy", error)

    def _destroy_soon(self, obj: T) -> None:
        try:
            found = self._destroy(obj) if self._destroy is not None else None
        except Exception as error:  # noqa: BLE001  foreign code; it is out of the pool whatever it says
            self._complain("destroy", error)
            return
        if hasattr(found, "__await__"):
            import asyncio

            task = asyncio.get_running_loop().create_task(self._finish(found))
            self._ends.add(task)
            task.add_done_callback(self._ends.discard)

    async def _finish(self, end: Any) -> None:
        try:
            await end
        except Exception as error:  # noqa: BLE001  foreign code; it is out of the pool whatever it says
            self._complain("destroy", error)

    # --- looking after -----------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Make the least number of objects now, and start looking after them. Raises what `acquire` raises."""
        import asyncio

        self._loop = asyncio.get_running_loop()
        await self._fill()
        self._start_caretaker()
        return self

    async def maintain(self) -> None:
        """One round: end what is too old, check what is due, make up to the least number, tell of leaks."""
        self._bury()
        with self._lock:
            over = self._core.surplus(self._now(), self._max_idle_s)
        for each in over:
            self._end(each)
        await self._check_idle()
        try:
            await self._fill()
        except MemwardenError as error:
            self._complain("factory", error)
        self._leaks()
        self._settle()

    async def _check_idle(self) -> None:
        if self._validate is None:
            return
        began = self._now()
        while True:
            with self._lock:
                entry = self._core.due(began)
            if entry is None:
                return
            if not await self._check(entry):
                self._end(entry)
                continue
            with self._lock:
                over = self._core.passed(entry, self._now())
            for each in over:
                self._end(each)

    async def _fill(self) -> None:
        while True:
            with self._lock:
                core = self._core
                if core.closed or len(core.entries) + core.making >= core.min_size or not core.claim():
                    return
            self._back(await self._made(None, 0, 0.0, 0.0, lent=False))

    def _start_caretaker(self) -> None:
        import asyncio

        task = self._caretaker
        if not self._auto_cleanup or self._core.closed or (task is not None and not task.done()):
            return
        loop = asyncio.get_running_loop()
        self._caretaker = loop.create_task(_look_after_async(ref(self), self._round_s))

    async def aclose(self) -> None:
        """Lend nothing any more, wake whoever waits, end what is idle; the rest ends as it comes back. Idempotent."""
        import asyncio

        self._shut()
        task, self._caretaker = self._caretaker, None
        if task is not None and not task.done():
            task.cancel()
        if self._ends:
            await asyncio.wait(set(self._ends))
        self._settle()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._caretaker = self._loop = None


class AsyncLease(Generic[T]):
    """One borrowing for an async-with statement: the object inside, returned once at its end."""

    __slots__ = ("_at", "_code", "_obj", "_pool", "_timeout_s")

    def __init__(self, pool: AsyncPool[T], frame: Any, timeout_s: float | None) -> None:
        self._pool = pool
        self._code: CodeType | None = None if frame is None else frame.f_code
        self._at: int = 0 if frame is None else frame.f_lasti
        self._timeout_s = timeout_s
        self._obj: T | None = None

    async def __aenter__(self) -> T:
        if self._obj is not None:
            raise ConfigError(
                "this lease is in use", where=self._pool.name, mend="call lease() for each with-statement"
            )
        obj = self._obj = await self._pool._borrow(self._code, self._at, self._timeout_s)  # noqa: SLF001  of this file
        return obj

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        obj, self._obj = self._obj, None
        if obj is not None:
            await self._pool.release(obj)


# --- small things ------------------------------------------------------------------------------------------------


def _undertaker(pool: ref[Any], key: int) -> Callable[[Any], None]:
    """What is called when the object with this identity dies, before another can have it. It knows the pool weakly."""

    def bury(reference: Any) -> None:
        found = pool()
        entry = None if found is None else found._core.out.pop(key, None)  # noqa: SLF001  the classes of this file
        if found is None or entry is None:
            return
        if entry.ref is reference:
            found._dropped.append(entry)  # noqa: SLF001
            found._bury()  # noqa: SLF001
        else:
            found._core.out[key] = entry  # noqa: SLF001

    return bury


def _look_after(pool: ref[Any], event: threading.Event, clock: Clock, every_s: float) -> None:
    while not clock.wait(event, every_s):
        found = pool()
        if found is None:
            return
        try:
            found.maintain()
        except Exception as error:  # noqa: BLE001  a callback of the application raised; the pool is looked after all the same
            found._complain("maintain", error)  # noqa: SLF001
        del found


async def _look_after_async(pool: ref[Any], every_s: float) -> None:
    import asyncio

    while True:
        await asyncio.sleep(every_s)
        found = pool()
        if found is None:
            return
        try:
            await found.maintain()
        except Exception as error:  # noqa: BLE001  as above
            found._complain("maintain", error)  # noqa: SLF001
        del found


async def _outcome(found: Any) -> Any:
    """What a hook gave, or what its coroutine gives."""
    return await found if hasattr(found, "__await__") else found


def _running_loop() -> AbstractEventLoop | None:
    from asyncio import _get_running_loop

    return _get_running_loop()


def _watch_forks(pool: _Pool[Any]) -> None:
    if _pools_are_unwatched.pop("", False) and hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_forget_in_child)
    _pools.add(pool)


_pools_are_unwatched = {"": True}  # a hook of os.register_at_fork cannot be taken back: once


def _chance() -> float:
    return int.from_bytes(os.urandom(4), "big") / 2**32


def _seconds(name: str, value: str | float | None) -> float:
    return _NEVER if value is None else parse_duration(value, where=name)


def _sizes(min_size: int, max_size: int) -> tuple[int, int]:
    for name, size, least in (("min_size", min_size, 0), ("max_size", max_size, 1)):
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ConfigError(f"{size!r} is no number of objects", where=name, mend=f"give a whole number from {least}")
    if min_size > max_size:
        raise ConfigError(f"{min_size} is more than max_size, {max_size}", where="min_size", mend="lower it")
    return min_size, max_size


def _name_of(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


def _ranked(sites: Iterable[str]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for site in sites:
        if site:
            counts[site] = counts.get(site, 0) + 1
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3])
