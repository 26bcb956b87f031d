"""Object pools: what is costly to make is kept, lent and taken back, and what never came back is named.

`Pool` is for threads, `pool_async.AsyncPool` for coroutines; both drive the books of `pool_core`. A typed pool is a
subclass with its own `create`, `reset`, `validate` and `destroy`. The object that came back last is lent first (LIFO),
so that the rest can grow old and go; whoever waits is served in the order of asking.

Database connections have pools of their own that know their protocol (SQLAlchemy's, psycopg_pool): use those.
"""

from __future__ import annotations

import threading
from sys import _getframe
from weakref import ref

from memwarden.errors import ConfigError, FactoryError, MemwardenError
from memwarden.flow.generic import Generic, T
from memwarden.flow.pool_base import NEVER, BasePool
from memwarden.flow.pool_core import Borrow, Entry, PoolStatistics, Turn
from memwarden.units import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, TracebackType
    from typing import Any, Self

    from memwarden.ports import Clock

__all__ = ["Borrow", "Lease", "Pool", "PoolStatistics"]


class _Making:
    """One call of the factory in a thread of its own."""

    __slots__ = ("abandoned", "done", "error", "finished", "obj", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.done = threading.Event()
        self.finished = self.abandoned = False
        self.obj: Any = None
        self.error: BaseException | None = None


class Pool(BasePool[T]):
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
        self._discard(obj)

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
        entry = self._ask(turn, patient=bool(patience_s))
        if entry is not None:
            return entry, False
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
        except BaseException:  # a signal's handler raised
            self._forgo(turn)
            raise
        with self._lock:
            self._core.leave(turn)

    def _good(self, entry: Entry) -> bool:
        """Whether it may be lent; where not, it is out of the books."""
        now = self._now()
        if now < entry.due_s:
            return True
        return self._in_time(entry, now) and self._check(entry)

    def _check(self, entry: Entry) -> bool:
        try:
            good = self._validate is None or bool(self._validate(entry.obj))
        except BaseException as error:
            self._invalid(entry, "validate", error)
            if isinstance(error, Exception):
                return False
            self._end(entry)
            raise
        return self._checked(entry, good=good)

    # --- making ------------------------------------------------------------------------------------------------

    def _made(self, code: CodeType | None, at: int, patience_s: float, until_s: float, *, lent: bool = True) -> Entry:
        """A new object in the room that was claimed."""
        self._prepay()
        if self._create_timeout_s == NEVER:
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
        except BaseException:  # a signal's handler raised: what is made, now or later, is for the next
            with self._lock:
                making.abandoned = True
                made = making.finished
            if made:
                self._late(making)
            raise
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

    def after_fork(self) -> None:
        super().after_fork()
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
