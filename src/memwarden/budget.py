"""The one account of known bytes: who holds how much, who may take more, and who can give back.

Chunks, caches, pools, parts of a job and admissions each open an `Account`, so that "who holds the bytes that we know
of" always has an answer. A `Budget` is a value you own. It counts what its holders declare and measures nothing: what
the process really uses is for `sense`.

Memory that exists is committed, memory that is promised is reserved; both are held. Whoever cannot have what it asks
for is refused, or waits with a time-out in the order of asking: room that becomes free is handed to the first in the
queue by whoever frees it, so no wake-up can be lost and nobody overtakes.
"""

from __future__ import annotations

import threading
from collections import deque
from os import getpid

from memwarden.errors import ConfigError, MemoryPressureError
from memwarden.facts import Fact
from memwarden.units import MAX_BYTES, format_bytes, parse_bytes, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from memwarden.ports import Pressure, Sheddable

__all__ = ["Account", "Budget", "Gate", "Shed", "Waiter", "patience", "settle", "waker"]

# Asked again sooner, a refused holder only adds to the load (the Retry-After that most servers use is a second).
RETRY_S = 1.0
# Accounts that vanished are remembered for whoever looks for the leak; a loop that forgets all of them is bounded.
MOST_LOST = 100


class Gate:
    """A lock for short work. It is new in a forked child, and finalizers never wait for it.

    A finalizer may run anywhere, also inside the lock and in the same thread: it leaves its item by `later`, and
    whoever holds the lock deals with it by `do` when letting go.
    """

    __slots__ = ("_do", "_items", "_lock", "_pid")

    def __init__(self, do: Callable[[Any], None]) -> None:
        self._do = do
        self._items: deque[Any] = deque()
        self._lock = threading.Lock()
        self._pid = getpid()

    def __enter__(self) -> None:
        if self._pid != getpid():  # a thread that is not here any more may hold it
            self._lock, self._pid = threading.Lock(), getpid()
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()
        if self._items:
            self._drain()

    def later(self, item: Any) -> None:
        """Have `do(item)` done under the lock, now or when its holder lets go."""
        self._items.append(item)
        self._drain()

    def _drain(self) -> None:
        while self._items and self._lock.acquire(blocking=False):
            try:
                while self._items:
                    self._do(self._items.popleft())
            finally:
                self._lock.release()


class Waiter:
    """Somebody who waits for room: a thread or a coroutine. `wake` has it look whether it was `granted`."""

    __slots__ = ("entry", "granted", "size_bytes", "wake")

    def __init__(self, entry: Any, size_bytes: int, wake: Callable[[], object]) -> None:
        self.entry = entry
        self.size_bytes = size_bytes
        self.wake = wake
        self.granted = False


def waker(loop: AbstractEventLoop, future: Future[None]) -> Callable[[], object]:
    """What wakes a coroutine that awaits this future, from any thread."""

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(settle, future)
        except RuntimeError:  # its loop was closed: its finally gave back, or will never run
            return

    return wake


def settle(future: Future[None]) -> None:
    """End the wait of whoever awaits it, once."""
    if not future.done():
        future.set_result(None)


class Shed(Fact):
    """What giving back brought: in all, by whom, and who failed at it with what."""

    freed_bytes: int
    by: tuple[tuple[str, int], ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


class _Entry:
    """What an account holds. The ledger keeps this and not the account, which may vanish."""

    __slots__ = ("closed", "held_bytes", "name", "reserved_bytes")

    def __init__(self, name: str) -> None:
        self.name = name
        self.held_bytes = 0
        self.reserved_bytes = 0
        self.closed = False


class _Ledger:
    """The figures, and the queue of those who wait. Each method is called with the gate held."""

    def __init__(self, limit_bytes: Callable[[], int | None]) -> None:
        self.gate = Gate(self.vanish)
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.reserved_bytes = 0
        self.entries: dict[int, _Entry] = {}
        self.lost: deque[tuple[str, int]] = deque(maxlen=MOST_LOST)
        self._queue: deque[Waiter] = deque()

    def open(self, name: str) -> _Entry:
        entry = _Entry(name)
        self.entries[id(entry)] = entry
        return entry

    def ask(self, entry: _Entry, size_bytes: int, *, in_turn: bool = True) -> bool | None:
        """True: it has it now. False: it does not fit now, or others wait. None: it will never fit."""
        if entry.closed:
            raise ConfigError(f"the account {entry.name!r} is closed", mend="open a new one")
        limit = self.limit_bytes()
        if limit is not None and size_bytes > limit:
            return None
        if (in_turn and self._queue) or not self._fits(size_bytes):
            return False
        self._give(entry, size_bytes)
        return True

    def queue_up(self, waiter: Waiter) -> bool:
        """Join the queue; true where there was room after all."""
        self._queue.append(waiter)
        self._serve()
        return waiter.granted

    def leave(self, waiter: Waiter) -> bool:
        """The waiter's time is up: whether it had its turn just before. The next may fit where it did not."""
        if not waiter.granted and waiter in self._queue:
            self._queue.remove(waiter)
            self._serve()
        return waiter.granted

    def take(self, entry: _Entry, size_bytes: int, reserved_bytes: int) -> None:
        """Back into the budget: so much, of which so much was only reserved; then whoever waits has its turn."""
        entry.held_bytes -= size_bytes
        entry.reserved_bytes -= reserved_bytes
        self.held_bytes -= size_bytes
        self.reserved_bytes -= reserved_bytes
        self._serve()

    def commit(self, entry: _Entry, size_bytes: int) -> bool | None:
        """What is reserved is in memory; more than that is asked for as by `ask`, and need not queue: it is there."""
        more = size_bytes - entry.reserved_bytes
        answer = self.ask(entry, more, in_turn=False) if more > 0 else True
        if answer:
            entry.reserved_bytes -= size_bytes
            self.reserved_bytes -= size_bytes
        return answer

    def close(self, entry: _Entry) -> int:
        """Give back all that it held; how much it was. Once."""
        held = entry.held_bytes
        if not entry.closed:
            entry.closed = True
            del self.entries[id(entry)]
            self.take(entry, held, entry.reserved_bytes)
        return held

    def vanish(self, entry: _Entry) -> None:
        """Its account was dropped."""
        held = self.close(entry)
        if held:
            self.lost.append((entry.name, held))

    def _fits(self, size_bytes: int) -> bool:
        limit = self.limit_bytes()
        return limit is None or self.held_bytes + size_bytes <= limit

    def _give(self, entry: _Entry, size_bytes: int) -> None:
        entry.held_bytes += size_bytes
        entry.reserved_bytes += size_bytes
        self.held_bytes += size_bytes
        self.reserved_bytes += size_bytes

    def _serve(self) -> None:
        """Hand the room there is to the first in the queue, and so on."""
        queue = self._queue
        while queue and (queue[0].entry.closed or self._fits(queue[0].size_bytes)):
            waiter = queue.popleft()
            if not waiter.entry.closed:
                self._give(waiter.entry, waiter.size_bytes)
                waiter.granted = True
            waiter.wake()


class Budget:
    """So many bytes for many holders. `limit` is a size ("512M"), or a Pressure (a Warden): then its limit holds.

    What is held never goes above the limit (where a Pressure's limit falls below it, nothing more is given until it
    is met again). Safe across threads, event loops and forks; a forked child starts with a copy of the figures.
    `lost` names accounts that were dropped without being closed, with what each still held. `pressure` is the Pressure
    whose limit it has, None where a size was given.
    """

    def __init__(self, limit: str | float | Pressure) -> None:
        self._ledger = _Ledger(_limit_of(limit))
        self.pressure: Pressure | None = None if isinstance(limit, (str, int, float)) else limit
        self._sheddables: list[Callable[[], Sheddable | None]] = []
        self.lost = self._ledger.lost

    def __repr__(self) -> str:
        return f"<Budget: {format_bytes(self.held_bytes)} of {format_bytes(self.limit_bytes)} held>"

    @property
    def limit_bytes(self) -> int | None:
        """The most that may be held; None where a Pressure knows no limit."""
        return self._ledger.limit_bytes()

    @property
    def held_bytes(self) -> int:
        """What all accounts hold, committed and reserved."""
        return self._ledger.held_bytes

    @property
    def reserved_bytes(self) -> int:
        """The part of it that is promised and not in memory yet."""
        return self._ledger.reserved_bytes

    @property
    def free_bytes(self) -> int | None:
        """What may still be taken; None where no limit is known."""
        limit = self.limit_bytes
        return None if limit is None else max(0, limit - self.held_bytes)

    def account(self, name: str) -> Account:
        """A new account. Names need not be unique: `top` adds those of one name up."""
        with self._ledger.gate:
            entry = self._ledger.open(str(name))
        return Account(self, self._ledger, entry)

    def register(self, sheddable: Sheddable) -> Callable[[], None]:
        """Ask this one too when memory must be given back; returns what takes it back. It is held weakly."""
        reference = _reference(sheddable)
        with self._ledger.gate:
            self._sheddables.append(reference)

        def take_back() -> None:
            with self._ledger.gate:
                if reference in self._sheddables:
                    self._sheddables.remove(reference)

        return take_back

    def _living(self) -> list[Sheddable]:
        with self._ledger.gate:
            living = [(reference, found) for reference in self._sheddables if (found := reference()) is not None]
            self._sheddables[:] = [reference for reference, _ in living]
        return [found for _, found in living]

    def shed(self, size_bytes: int) -> Shed:
        """Have those that are registered free at least so much, the largest first, each in slices of 5 ms.

        One that raises, or answers nonsense, is left alone and named in the answer. No lock of ours is held meanwhile.
        """
        _whole(size_bytes, "shed")
        by: list[tuple[str, int]] = []
        failed: list[tuple[str, str]] = []
        missing = size_bytes
        for sheddable in sorted(self._living(), key=_held_by, reverse=True):
            if missing <= 0:
                break
            freed, complaint = _shed_from(sheddable, missing)
            missing -= freed
            if freed:
                by.append((_name_of(sheddable), freed))
            if complaint:
                failed.append((_name_of(sheddable), complaint))
        return Shed(freed_bytes=size_bytes - missing, by=tuple(by), failed=tuple(failed))

    def top(self, count: int = 3) -> tuple[tuple[str, int], ...]:
        """The largest holders by name, with their bytes: accounts, and sheddables that have none of their name."""
        with self._ledger.gate:
            entries = [(entry.name, entry.held_bytes) for entry in self._ledger.entries.values()]
        held: dict[str, int] = {}
        for name, size in entries:
            held[name] = held.get(name, 0) + size
        for sheddable in self._living():
            held.setdefault(_name_of(sheddable), _held_by(sheddable))
        ranked = sorted(held.items(), key=lambda pair: (-pair[1], pair[0]))
        return tuple(pair for pair in ranked[:count] if pair[1] > 0)

    def refusal(self, name: str, size_bytes: int, *, transient: bool) -> MemoryPressureError:
        """The error for whoever asked for so much and cannot have it: not now, or never."""
        held, limit = self.held_bytes, self.limit_bytes
        asked = f"{format_bytes(size_bytes)} for {name!r}"
        if transient:
            what = f"{asked} do not fit: {format_bytes(held)} of {format_bytes(limit)} are held"
            mend = "release some, or wait with timeout_s"
        else:
            what, mend = f"{asked} are more than the whole budget of {format_bytes(limit)}", "ask for smaller parts"
        return MemoryPressureError(
            what, usage_bytes=held, threshold=1.0, limit_bytes=limit, transient=transient, retry_after_s=RETRY_S,
            holders=self.top(), mend=mend,
        )  # fmt: skip


class Account:
    """One holder's part of a Budget. Close it, best by a with-statement: one that is dropped is closed and counted.

    Sizes are whole bytes above zero; anything else is a ConfigError.
    """

    __slots__ = ("__weakref__", "_budget", "_entry", "_ledger")

    def __init__(self, budget: Budget, ledger: _Ledger, entry: _Entry) -> None:
        self._entry = entry
        self._budget = budget
        self._ledger = ledger

    def __repr__(self) -> str:
        return f"<Account {self.name!r}: {format_bytes(self.held_bytes)} held>"

    @property
    def name(self) -> str:
        """Who holds it."""
        return self._entry.name

    @property
    def held_bytes(self) -> int:
        """What it holds, committed and reserved."""
        return self._entry.held_bytes

    @property
    def reserved_bytes(self) -> int:
        """The part of it that is promised and not in memory yet."""
        return self._entry.reserved_bytes

    def reserve(self, size_bytes: int, *, timeout_s: float = 0.0) -> None:
        """Have so much promised; wait for it in turn at most so long.

        Raises MemoryPressureError: at once and permanent where it is more than the whole budget, else transient.
        """
        patience_s = patience(timeout_s)
        if self._try(size_bytes):
            return
        event = threading.Event()
        waiter = Waiter(self._entry, size_bytes, event.set)
        if patience_s and not self._queue_up(waiter):
            event.wait(patience_s)
        self._end_wait(waiter)

    async def reserve_async(self, size_bytes: int, *, timeout_s: float = 0.0) -> None:
        """The same, while the event loop goes on. Whoever is cancelled holds nothing."""
        patience_s = patience(timeout_s)
        if self._try(size_bytes):
            return
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiter = Waiter(self._entry, size_bytes, waker(loop, future))
        if patience_s and not self._queue_up(waiter):
            alarm = loop.call_later(patience_s, settle, future)
            try:
                await future
            except BaseException:
                self._withdraw(waiter)
                raise
            finally:
                alarm.cancel()
        self._end_wait(waiter)

    def _try(self, size_bytes: int) -> bool:
        _whole(size_bytes, "reserve")
        with self._ledger.gate:
            answer = self._ledger.ask(self._entry, size_bytes)
        if answer is None:
            raise self._budget.refusal(self.name, size_bytes, transient=False)
        return answer

    def _queue_up(self, waiter: Waiter) -> bool:
        with self._ledger.gate:
            return self._ledger.queue_up(waiter)

    def _end_wait(self, waiter: Waiter) -> None:
        with self._ledger.gate:
            granted = self._ledger.leave(waiter)
        if not granted:
            raise self._budget.refusal(self.name, waiter.size_bytes, transient=True)

    def _withdraw(self, waiter: Waiter) -> None:
        with self._ledger.gate:
            if self._ledger.leave(waiter) and not self._entry.closed:
                self._ledger.take(self._entry, waiter.size_bytes, waiter.size_bytes)

    def commit(self, size_bytes: int) -> None:
        """So much is in memory now. What was not reserved before is taken too, or refused as by `reserve`."""
        _whole(size_bytes, "commit")
        with self._ledger.gate:
            answer = self._ledger.commit(self._entry, size_bytes)
        if not answer:
            raise self._budget.refusal(self.name, size_bytes, transient=answer is not None)

    def release(self, size_bytes: int | None = None) -> None:
        """Give so much back, what is committed first; all of it where no size is given.

        Raises ConfigError where it is more than what is held.
        """
        with self._ledger.gate:
            size, most = size_bytes, self._entry.held_bytes
            if size is None:
                size = most
            if _is_whole(size, most):
                committed = most - self._entry.reserved_bytes
                self._ledger.take(self._entry, size, max(0, size - committed))
        if size_bytes is not None:
            self._complain("release", size_bytes, most)

    def cancel(self, size_bytes: int | None = None) -> None:
        """Give back so much of what is reserved and was not needed; all of that where no size is given.

        Raises ConfigError where it is more than what is reserved.
        """
        with self._ledger.gate:
            size, most = size_bytes, self._entry.reserved_bytes
            if size is None:
                size = most
            if _is_whole(size, most):
                self._ledger.take(self._entry, size, size)
        if size_bytes is not None:
            self._complain("cancel", size_bytes, most)

    def _complain(self, verb: str, size_bytes: int, most_bytes: int) -> None:
        _whole(size_bytes, verb)
        if size_bytes > most_bytes:
            what = f"{format_bytes(size_bytes)} are more than the {format_bytes(most_bytes)} that {self.name!r} has"
            raise ConfigError(what, where=verb, mend=f"{verb} what was taken, once")

    def close(self) -> None:
        """Give everything back; nothing can be taken any more. A second close is a no-op."""
        with self._ledger.gate:
            self._ledger.close(self._entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._entry.closed:
            self._ledger.gate.later(self._entry)


def _limit_of(limit: str | float | Pressure) -> Callable[[], int | None]:
    if isinstance(limit, (str, int, float)):
        size = parse_bytes(limit, where="limit")
        return lambda: size
    if not hasattr(limit, "verdict"):
        raise ConfigError(f"a {type(limit).__name__} is no limit", where="limit", mend="give a size or a Warden")

    def limit_now() -> int | None:
        verdict = limit.verdict
        return None if verdict is None else verdict.reading.limit_bytes

    return limit_now


def patience(timeout_s: float) -> float:
    """A time-out that a wait can take: no longer than what the system knows. Raises UnitError."""
    if timeout_s == 0:  # nearly always
        return 0.0
    return min(parse_duration(timeout_s, where="timeout_s"), threading.TIMEOUT_MAX)


def _is_whole(size_bytes: object, most_bytes: int) -> bool:
    return isinstance(size_bytes, int) and not isinstance(size_bytes, bool) and 0 < size_bytes <= most_bytes


def _whole(size_bytes: object, where: str) -> None:
    if not _is_whole(size_bytes, MAX_BYTES):
        raise ConfigError(f"{size_bytes!r} is no size", where=where, mend="give a whole number of bytes above zero")


def _reference(sheddable: Sheddable) -> Callable[[], Sheddable | None]:
    """A weak one, so that a dropped cache is not kept; a strong one to what cannot have any."""
    import weakref

    try:
        return weakref.ref(sheddable)
    except TypeError:
        return lambda: sheddable


def _held_by(sheddable: Sheddable) -> int:
    try:
        return int(sheddable.held_bytes)
    except Exception:  # noqa: BLE001  foreign code: what it holds is unknown, so it is asked last
        return 0


def _name_of(sheddable: Sheddable) -> str:
    try:
        return str(sheddable.name)
    except Exception:  # noqa: BLE001  foreign code: its type is a name too
        return type(sheddable).__name__


def _shed_from(sheddable: Sheddable, size_bytes: int) -> tuple[int, str]:
    """(bytes freed, complaint): slice after slice until it is enough or nothing more comes."""
    freed = 0
    try:
        while freed < size_bytes:
            found = sheddable.shed(size_bytes - freed)
            if not isinstance(found, int) or found < 0:
                return freed, f"it says that it freed {found!r}"
            if not found:
                break
            freed += found
    except Exception as error:  # noqa: BLE001  foreign code may raise anything; the next one is asked
        return freed, f"{type(error).__name__}: {error}"
    return freed, ""
