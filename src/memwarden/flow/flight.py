"""Single flight: of all who want one thing at the same time one makes it, the others wait for that.

What was raised goes to everybody who waited. Where its maker was cancelled or interrupted, one of those who wait makes
it instead. Nobody waits in a circle: whoever would wait for what waits for him is told so, across threads, coroutines,
caches and containers. Threads and coroutines may wait for the same flight.

Nothing is imported here that a small process does not have already: `threading` comes with the first wait.
"""

from __future__ import annotations

from _contextvars import ContextVar
from _thread import RLock, get_ident

from memwarden.errors import CircularDependencyError
from memwarden.flow.forks import renew_in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any

__all__ = ["MISSING", "Flights", "WouldBlockError", "reset"]

MISSING: Any = type("Missing", (), {"__repr__": lambda _: "<missing>", "__slots__": ()})()


class WouldBlockError(Exception):
    """A coroutine of this very thread makes it: waiting here would wait for ever."""


class _Flight:
    """One making. `waits` are the flights that it waits for, directly or through what it called."""

    __slots__ = ("awaited", "error", "landed", "name", "thread", "value", "waits", "wakes")

    def __init__(self, name: str, *, awaited: bool) -> None:
        self.name = name
        self.awaited = awaited
        self.thread = get_ident()
        self.landed = False
        self.value: Any = MISSING
        self.error: Exception | None = None
        self.wakes: list[Callable[[], object]] = []
        self.waits: list[_Flight] = []


# What the running thread or task is making, the outermost first. Tasks inherit it, threads of asyncio.to_thread too.
_making: ContextVar[tuple[_Flight, ...]] = ContextVar("memwarden_making", default=())
# One for all flights, so that circles are seen wherever they lead; held for a few operations, never while making.
# Re-entrant, for finalizers that ask for something wherever a collection runs.
_gate = RLock()


class Flights:
    """The flights under way of one cache or container, by key. `name_of` gives a key's name for errors."""

    def __init__(self, name_of: Callable[[Any], str]) -> None:
        self._name_of = name_of
        self._under_way: dict[Any, _Flight] = {}
        renew_in_child(self)

    def __len__(self) -> int:
        return len(self._under_way)

    def run(self, key: Any, look: Callable[[], Any], make: Callable[[], Any]) -> Any:
        """What `look` finds, else what `make` gives, to us or to whoever is making it. `make` keeps what it gives.

        Raises CircularDependencyError, WouldBlockError, what `make` raised.
        """
        while True:
            flight, ours = self._join(key, awaited=False)
            if ours:
                return self._fly(key, flight, look, make)
            from threading import Event

            event = Event()
            try:
                self._wake_by(flight, event.set)
                event.wait()
            finally:
                self._leave(flight)
            if flight.value is not MISSING:
                return flight.value
            if flight.error is not None:
                raise flight.error

    async def run_async(self, key: Any, look: Callable[[], Any], make: Callable[[], Awaitable[Any]]) -> Any:
        """The same for a coroutine that makes it."""
        while True:
            flight, ours = self._join(key, awaited=True)
            if ours:
                return await self._fly_async(key, flight, look, make)
            from asyncio import get_running_loop

            from memwarden.budget import settle, waker

            loop = get_running_loop()
            future = loop.create_future()
            try:
                self._wake_by(flight, waker(loop, future))
                await future
            finally:
                settle(future)
                self._leave(flight)
            if flight.value is not MISSING:
                return flight.value
            if flight.error is not None:
                raise flight.error

    def _join(self, key: Any, *, awaited: bool) -> tuple[_Flight, bool]:
        """(the flight, whether we are to fly it). Else we wait for it from now on, until `_leave`."""
        making = _making.get()
        with _gate:
            flight = self._under_way.get(key)
            if flight is None:
                flight = self._under_way[key] = _Flight(self._name_of(key), awaited=awaited)
                return flight, True
            circle = _way_back(flight, making)
            if not circle:
                if not awaited and flight.awaited and flight.thread == get_ident():
                    raise WouldBlockError
                for each in making:
                    each.waits.append(flight)
                return flight, False
        raise CircularDependencyError(circle, mend="break the circle: ask for one of them later, when it is used")

    @staticmethod
    def _wake_by(flight: _Flight, wake: Callable[[], object]) -> None:
        """Have this called when it has landed; at once where it has."""
        with _gate:
            if not flight.landed:
                flight.wakes.append(wake)
                return
        wake()

    def _leave(self, flight: _Flight) -> None:
        with _gate:
            for each in _making.get():
                if flight in each.waits:
                    each.waits.remove(flight)

    def _fly(self, key: Any, flight: _Flight, look: Callable[[], Any], make: Callable[[], Any]) -> Any:
        before = _making.set((*_making.get(), flight))
        try:
            found = look()  # it may have landed between our look and our turn
            flight.value = make() if found is MISSING else found
        except Exception as error:
            flight.error = error
            raise
        finally:
            self._land(key, flight)
            reset(_making, before)
        return flight.value

    async def _fly_async(
        self, key: Any, flight: _Flight, look: Callable[[], Any], make: Callable[[], Awaitable[Any]]
    ) -> Any:
        before = _making.set((*_making.get(), flight))
        try:
            found = look()
            flight.value = await make() if found is MISSING else found
        except Exception as error:
            flight.error = error
            raise
        finally:
            self._land(key, flight)
            reset(_making, before)
        return flight.value

    def _land(self, key: Any, flight: _Flight) -> None:
        with _gate:
            flight.landed = True
            if self._under_way.get(key) is flight:
                del self._under_way[key]
            wakes, flight.wakes = flight.wakes, []
        for wake in wakes:
            wake()

    def after_fork(self) -> None:
        """In a forked child: whoever was making is not here, and may have held the lock."""
        global _gate  # noqa: PLW0603  one for all, renewed in the child
        _gate = RLock()
        self._under_way.clear()


def reset(variable: ContextVar[Any], token: Any) -> None:
    """Back to what it was, unless a coroutine is ended in another context than it ran in (dropped with its loop)."""
    try:  # noqa: SIM105  contextlib is not loaded
        variable.reset(token)
    except ValueError:
        pass


def _way_back(flight: _Flight, making: tuple[_Flight, ...]) -> tuple[str, ...]:
    """The names along the circle that waiting for this flight would close; empty where it closes none."""
    for way in _ways(flight, ()):
        last = way[-1]
        if last in making:
            inner = making[making.index(last) :]
            names = [each.name for each in (*inner, *way)]
            return tuple(names)
    return ()


def _ways(flight: _Flight, before: tuple[_Flight, ...]) -> Iterator[tuple[_Flight, ...]]:
    """Every way from a flight along what it waits for."""
    way = (*before, flight)
    yield way
    for each in flight.waits:
        if each not in way:
            yield from _ways(each, way)
