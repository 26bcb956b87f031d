"""What pools for threads and for coroutines share: settings, books, sizes, all that neither blocks nor awaits."""

from __future__ import annotations

import os
import threading
from collections import deque
from weakref import ref

from memwarden.budget import patience
from memwarden.clock import SystemClock
from memwarden.errors import (
    ConfigError,
    FactoryError,
    NotBorrowedError,
    PoolClosedError,
    PoolTimeoutError,
)
from memwarden.flow.forks import renew_in_child
from memwarden.flow.generic import Generic, T
from memwarden.flow.pool_core import Borrow, Core, Entry, PoolStatistics
from memwarden.flow.sizing import size_of
from memwarden.units import format_duration, parse_bytes, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, TracebackType
    from typing import Any

    from memwarden.budget import Account, Budget
    from memwarden.flow.pool_core import Turn
    from memwarden.ports import Clock

# One slice of shedding (ports.Sheddable).
SLICE_S = 0.005
# Lives end up to so much of their length early, by chance, so that objects made together do not end together.
JITTER = 0.1
# The caretaker looks no more often than this, whatever times are set.
LEAST_ROUND_S = 0.1
NEVER = float("inf")


class Latch:
    """The lock of a pool's books. Re-entrant: a finalizer may return its object wherever a collection runs.

    An object that its borrower drops is noticed in a finalizer, which must not wait: it is left in `dropped`, and
    whoever holds the lock takes it out of the books when letting go.
    """

    __slots__ = ("_core", "_lock", "_now", "dropped", "owed_bytes")

    def __init__(self, core: Core, now: Callable[[], float]) -> None:
        self._core = core
        self._now = now
        self.dropped: deque[Entry] = deque()
        self.owed_bytes = 0  # of what was ended and not given back to the budget yet
        self.renew()

    def renew(self) -> None:
        """In a forked child: a thread that is not here may hold it."""
        self._lock = threading.RLock()
        self.dropped.clear()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()
        if self.dropped:
            self.bury()

    def bury(self) -> None:
        """Take out of the books what was dropped, unless another holds the lock, who will."""
        while self.dropped and self._lock.acquire(blocking=False):
            try:
                while self.dropped:
                    entry = self.dropped.popleft()
                    self._core.vanished(entry, self._now())
                    self.owed_bytes += entry.size_bytes  # the budget's lock is not for finalizers
            finally:
                self._lock.release()


class BasePool(Generic[T]):
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
        self._core = Core(*_sizes(min_size, max_size), check_every_s if self._validate is not None else NEVER)
        self._round_s = max(
            LEAST_ROUND_S, min(check_every_s, self._max_idle_s, self._max_lifetime_s, self._leak_after_s, 60.0)
        )
        self._lock = Latch(self._core, self._now)
        self._dropped = self._lock.dropped
        self._inherited: dict[int, Any] = {}
        self._since: dict[int, float] = {}  # when each call of the factory under way began
        self.last_error = ""
        self._account: Account | None = None
        if budget is not None:
            self._account = budget.account(self.name)
            budget.register(self)
        renew_in_child(self)

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
        own = getattr(type(self), name)
        if own is getattr(BasePool, name):
            return None
        weak = ref(self)  # a bound method would keep a dropped pool, and what it holds, until a collection

        def hook(*objects: Any) -> Any:
            return own(weak(), *objects)

        hook.__qualname__ = own.__qualname__
        return hook

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

    def _discard(self, obj: T) -> None:
        """What `discard` does: end it instead of taking it back."""
        entry = self._core.out.pop(id(obj), None)
        if entry is None:
            return self._refuse(obj)
        entry.obj = obj
        with self._lock:
            self._core.drop(entry)
        return self._end(entry)

    def _ask(self, turn: Turn, *, patient: bool) -> Entry | None:
        """An idle one. Else the turn may make one, or is in the queue if it is patient. Raises PoolClosedError."""
        with self._lock:
            if self._core.closed:
                raise self._closed()
            entry = self._core.take(self._now(), turn.code, turn.at)
            if entry is None:
                if self._core.claim():
                    turn.may_make = True
                elif patient:
                    self._core.queue_up(turn)
            return entry

    def _forgo(self, turn: Turn) -> None:
        """Whoever waited was interrupted: what it was given just now goes to the next."""
        with self._lock:
            self._core.leave(turn)
            if turn.may_make:
                self._core.unclaim()
        if turn.entry is not None:
            self._back(turn.entry)

    def _in_time(self, entry: Entry, now_s: float) -> bool:
        """False where it has lived its time: it is out of the books then."""
        if now_s < entry.dies_s:
            return True
        with self._lock:
            self._core.drop(entry)
        return False

    def _checked(self, entry: Entry, *, good: bool) -> bool:
        """Its validation said so."""
        if good:
            with self._lock:
                self._core.checked(entry, self._now())
        else:
            self._invalid(entry, "validate")
        return good

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
        if life_s != NEVER:
            life_s *= 1 - JITTER * self._chance()
        with self._lock:
            self._bury()  # a dropped object's identity may be the new one's
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
        size = self._item_bytes
        if size is None:
            try:
                size = size_of(obj)
                self._pay(size)
            except BaseException:
                self._gave_up()
                raise
        try:
            return Entry(obj, ref(obj, _undertaker(ref(self), id(obj))), size)
        except TypeError:  # lists, dicts and slotted classes know no weak references
            return Entry(obj, None, size)

    def _prepay(self) -> None:
        """The budget's yes to one more object, before it is made, where its size is known by then."""
        if self._item_bytes is not None:
            try:
                self._pay(self._item_bytes)
            except BaseException:
                with self._lock:
                    self._core.unclaim()
                raise

    def _gave_up(self) -> None:
        """Nothing was made, after all."""
        with self._lock:
            self._core.failed += 1
            self._core.unclaim()
        if self._item_bytes is not None:
            self._repay(self._item_bytes)

    def _bad_factory(self, what: str, *, hung: bool = False, mend: str | None = None) -> FactoryError:
        factory = name_of(self._factory)
        return FactoryError(f"its factory {factory} {what}", pool=self.name, factory=factory, hung=hung, mend=mend)

    def _raised(self, error: BaseException) -> FactoryError:
        return self._bad_factory(f"raised {type(error).__name__}: {error}")

    def _bury(self) -> None:
        """Take out of the books what borrowers dropped."""
        self._lock.bury()

    def _pay(self, size_bytes: int) -> None:
        if self._account is not None and size_bytes:
            self._settle()
            self._account.commit(size_bytes)

    def _repay(self, size_bytes: int) -> None:
        with self._lock:
            self._lock.owed_bytes += size_bytes
        self._settle()

    def _settle(self) -> None:
        """Give back to the budget what is owed; all of it once the pool is closed and empty."""
        with self._lock:
            owed, self._lock.owed_bytes = self._lock.owed_bytes, 0
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
            hanging = f"; its factory {name_of(self._factory)} has been running for {format_duration(slow)}"
        waited = f"within {format_duration(patience_s)}" if patience_s else "at once"
        return PoolTimeoutError(
            f"no object came free {waited}: {size}{where}{hanging}", pool=self.name, sites=sites,
            mend="return objects sooner, raise max_size, or wait longer",
        )  # fmt: skip

    def _closed(self) -> PoolClosedError:
        return PoolClosedError("it is closed", pool=self.name, mend="acquire before close()")

    def _leaks(self) -> None:
        """Tell of each object that is out for too long, once."""
        if self._on_leak is None or self._leak_after_s == NEVER:
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

    def after_fork(self) -> None:
        """In the child: what the pool had belongs to the parent. It is kept, so that no finalizer ends it from here."""
        self._lock.renew()
        self._since.clear()
        self._lock.owed_bytes += self._core.held_bytes
        self._inherited = {id(each): each for each in (*self._inherited.values(), *self._core.forget())}


def _undertaker(pool: ref[Any], key: int) -> Callable[[Any], None]:
    """What is called when the object with this identity dies, before another can have it. It knows the pool weakly."""

    def bury(reference: Any) -> None:
        found = pool()
        entry = None if found is None else found._core.out.pop(key, None)  # noqa: SLF001  pools of ours
        if found is None or entry is None:
            return
        if entry.ref is reference:
            found._dropped.append(entry)  # noqa: SLF001
            found._bury()  # noqa: SLF001
        else:
            found._core.out[key] = entry  # noqa: SLF001

    return bury


def _chance() -> float:
    return int.from_bytes(os.urandom(4), "big") / 2**32


def _seconds(name: str, value: str | float | None) -> float:
    return NEVER if value is None else parse_duration(value, where=name)


def _sizes(min_size: int, max_size: int) -> tuple[int, int]:
    for name, size, least in (("min_size", min_size, 0), ("max_size", max_size, 1)):
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ConfigError(f"{size!r} is no number of objects", where=name, mend=f"give a whole number from {least}")
    if min_size > max_size:
        raise ConfigError(f"{min_size} is more than max_size, {max_size}", where="min_size", mend="lower it")
    return min_size, max_size


def name_of(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


def _ranked(sites: Iterable[str]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for site in sites:
        if site:
            counts[site] = counts.get(site, 0) + 1
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3])
