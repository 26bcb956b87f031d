"""Object pools for coroutines: the settings and the books of `pool`, and nothing that blocks the event loop."""

from __future__ import annotations

from sys import _getframe
from weakref import ref

from memwarden.budget import settle, waker
from memwarden.errors import ConfigError, FactoryError, MemwardenError, PoolTimeoutError
from memwarden.flow.generic import Generic, T
from memwarden.flow.pool_base import NEVER, BasePool, name_of
from memwarden.flow.pool_core import Borrow, Entry, PoolStatistics, Turn
from memwarden.units import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Any, Self

__all__ = ["AsyncLease", "AsyncPool", "Borrow", "PoolStatistics"]


class AsyncPool(BasePool[T]):
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
        self._discard(obj)

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
        entry = self._ask(turn, patient=bool(patience_s))
        if entry is not None:
            return entry, False
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
        except BaseException:  # cancelled
            self._forgo(turn)
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
        return self._in_time(entry, now) and await self._check(entry)

    async def _check(self, entry: Entry) -> bool:
        try:
            good = self._validate is None or bool(await _outcome(self._validate(entry.obj)))
        except BaseException as error:
            self._invalid(entry, "validate", error)
            if isinstance(error, Exception):
                return False
            self._end(entry)
            raise
        return self._checked(entry, good=good)

    # --- making ------------------------------------------------------------------------------------------------

    async def _made(
        self, code: CodeType | None, at: int, patience_s: float, until_s: float, *, lent: bool = True
    ) -> Entry:
        """A new object in the room that was claimed."""
        self._prepay()
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
            async with asyncio.timeout(None if limit_s == NEVER else max(0.0, limit_s)) as limit:
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
                f"{waited}: its factory {name_of(self._factory)} {hung}", pool=self.name, mend="wait longer"
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

    def after_fork(self) -> None:
        super().after_fork()
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
