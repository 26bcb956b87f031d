"""`memwarden.Breaker`: refuses work in time, in whichever form fits.

    breaker = Breaker()                      # or Breaker(warden): then its readings, its limit, its actions
    breaker.check()                          # raises MemoryPressureError above 80 %
    breaker.execute(function, argument)      # a function or a coroutine function
    with breaker: ...                        # or: async with breaker
    @breaker                                 # functions, coroutine functions, generators of both kinds
    partial = breaker.guard(items, function) # stops before the limit and keeps what is done

This is where the breaker of `act` meets a Warden. It can refuse only who asks: what grows between two checks, or in C
code that holds the GIL, it does not see.
"""

from __future__ import annotations

from functools import wraps

from memwarden.act import partial
from memwarden.act.breaker import Circuit, State, Statistics
from memwarden.act.partial import Partial
from memwarden.errors import ConfigError
from memwarden.warden import Warden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from memwarden.act.breaker import OnChange, Relieve
    from memwarden.budget import Budget
    from memwarden.ports import Clock, Machine, Pressure

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["Breaker", "Partial", "State", "Statistics"]

# Flags of code objects (inspect's names): inspect itself would cost 1.4 MiB.
_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200
_RUNS_LATER = _GENERATOR | _COROUTINE | _ASYNC_GENERATOR


class Breaker(Circuit):
    """Refuses work above a threshold of the limit, after it tried to make room.

    With a running Warden it reads what that read last; with none it reads by itself when it is asked, at most
    `max_age` (50 ms) stale; then `limit` and the settings of `memwarden config` hold as for a Warden. It opens at
    `threshold` (80 %) and is closed again `leave_gap` below, after `retry_after` (1 s, doubled up to `longest_retry`
    while it does not help) and one block on trial. `budget` names the top holders in its errors.

    `on_change(old, new, view)` is called on every change of state. Any other Pressure than a Warden is asked for its
    verdict and nothing is relieved. Raises ConfigError on values that cannot be used.
    """

    def __init__(
        self,
        warden: Warden | Pressure | None = None,
        *,
        threshold: str | float = 0.80,
        leave_gap: str | float = 0.05,
        max_age: str | float = 0.05,
        retry_after: str | float = 1.0,
        longest_retry: str | float = 60.0,
        budget: Budget | None = None,
        on_change: OnChange | None = None,
        limit: str | float | None = None,
        machine: Machine | None = None,
        clock: Clock | None = None,
    ) -> None:
        if warden is None:
            warden = Warden(limit, machine=machine, clock=clock, relieve=False, blackbox=False).warm_up()
        elif limit is not None or machine is not None:
            mend = "give a Warden, or a limit without one"
            raise ConfigError("a Warden has its own limit and machine", where="Breaker", mend=mend)
        elif not hasattr(warden, "verdict"):
            mend = "write Breaker(warden), or Breaker(limit='512M')"
            raise ConfigError(f"a {type(warden).__name__} is no Warden", where="Breaker", mend=mend)
        super().__init__(
            warden,
            threshold=threshold,
            leave_gap=leave_gap,
            max_age=max_age,
            retry_after=retry_after,
            longest_retry=longest_retry,
            relieve=_relief_of(warden) if isinstance(warden, Warden) else None,
            budget=budget,
            on_change=on_change,
            clock=clock if clock is not None or not isinstance(warden, Warden) else warden.clock,
        )
        self._gauge.learn_cost()

    def execute(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call the function where there is room, else raise; a coroutine function is called when it is awaited."""
        if _flags(function) & _RUNS_LATER:
            return self(function)(*args, **kwargs)
        with self:
            return function(*args, **kwargs)

    def guard(self, items: Iterable[Any], function: Callable[[Any], Any] | None = None) -> Partial:
        """Call the function with each item, or just take it, and stop before the limit.

        Returns what is done, what is left and why; go on later with `guard(partial.left, function)`. Any error of the
        function that is not about memory is raised.
        """
        return partial.run(self, items, function)

    async def guard_async(
        self, items: Iterable[Any] | AsyncIterable[Any], function: Callable[[Any], Any] | None = None
    ) -> Partial:
        """The same for both kinds of iterables and functions. Other tasks have their turn after every item."""
        return await partial.run_async(self, items, function)

    def __enter__(self) -> Self:
        self.check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave(kind)

    async def __aenter__(self) -> Self:
        await self.check_async()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._leave(kind)

    def __call__(self, function: F) -> F:
        """As a decorator. Coroutines and generators of both kinds are checked when they begin to run."""
        flags = _flags(function)
        wrap = next((each for flag, each in _WRAPS if flags & flag), _plain)
        return wraps(function)(wrap(self, function))  # type: ignore[return-value]  # the same signature by construction


def _relief_of(warden: Warden) -> Relieve:
    return lambda reason, enough: warden.relieve(reason, enough=enough)


def _flags(function: Any) -> int:
    """Of the code behind a function, a method, a functools.partial of one, or an object that can be called."""
    while hasattr(function, "func"):
        function = function.func
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    return int(getattr(getattr(function, "__code__", None), "co_flags", 0))


def _plain(breaker: Breaker, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with breaker:
            return function(*args, **kwargs)

    return guarded


def _coroutine(breaker: Breaker, function: Callable[..., Any]) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        async with breaker:
            return await function(*args, **kwargs)

    return guarded


def _generator(breaker: Breaker, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with breaker:
            return (yield from function(*args, **kwargs))

    return guarded


def _async_generator(breaker: Breaker, function: Callable[..., Any]) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with breaker:
            source = function(*args, **kwargs)
            try:
                step = source.__anext__()
                while True:
                    item = await step
                    try:
                        step = source.asend((yield item))
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001  whatever is thrown in belongs to the generator within
                        step = source.athrow(error)
            except StopAsyncIteration:
                return
            finally:
                await source.aclose()

    return guarded


_WRAPS = ((_COROUTINE, _coroutine), (_GENERATOR, _generator), (_ASYNC_GENERATOR, _async_generator))
