"""A container of services: each is made when it is first asked for, with what it wants, and closed in reverse order.

A key is a class or a name. `lazy` services are kept once made (where `cache_instances` is on), `singleton` ones always,
`transient` ones never. What a factory wants is found by its type hints (`auto_wire`). Under pressure, idle services
that can be made again are released. What is not here: scopes per request, wiring of foreign functions.

Importing this and making services by plain factories weighs next to nothing: what units, wiring, statistics and
waiting need is loaded when they are used.
"""

from __future__ import annotations

from _contextvars import ContextVar
from _thread import RLock
from sys import getrefcount

from memwarden.clock import SystemClock
from memwarden.errors import (
    AsyncServiceError,
    CircularDependencyError,
    ConfigError,
    ContainerClosedError,
    MemwardenError,
    ServiceFactoryError,
    ServiceNotFoundError,
)
from memwarden.flow.flight import MISSING, Flights, WouldBlockError, reset
from memwarden.flow.forks import renew_in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self, overload

    from memwarden.budget import Budget
    from memwarden.flow.container_facts import ContainerStatistics, Event, ServiceStatistics
    from memwarden.flow.generic import T
    from memwarden.flow.wiring import Need
    from memwarden.ports import Clock
else:

    def overload(function):  # noqa: ANN001, ANN202  the real one is typing's, which is not loaded
        return function


__all__ = ["Container"]

LAZY, SINGLETON, TRANSIENT, INSTANCE = "lazy", "singleton", "transient", "instance"
# What the debug mode remembers.
MOST_EVENTS = 1000
# One slice of shedding (ports.Sheddable).
SLICE_S = 0.005


class _Service:
    """One registration and its figures."""

    __slots__ = (
        "bytes", "close", "created", "enter", "factory", "hits", "key", "kind", "measured", "name", "needs",
        "rebuildable", "seconds", "size_bytes", "tags", "when",
    )  # fmt: skip

    def __init__(self, key: Any, kind: str, factory: Any) -> None:
        self.key = key
        self.name = _name_of(key)
        self.kind = kind
        self.factory = factory
        self.needs: list[Need] | None = None
        self.tags: frozenset[str] = frozenset()
        self.when: Callable[[], object] | None = None
        self.close: Callable[[Any], Any] | None = None
        self.enter = self.rebuildable = False
        self.size_bytes: int | None = None
        self.created = self.hits = 0
        self.seconds = 0.0
        self.bytes: int | None = None


class _Slot:
    """One made service. `hits` counts look-ups; `users` are made services that hold it."""

    __slots__ = ("ends", "hits", "references", "seen_hits", "seen_s", "service", "size_bytes", "users", "value")

    def __init__(self, service: _Service, value: Any, ends: list[Any]) -> None:
        self.service = service
        self.value = value
        self.ends = ends  # (whether it must be awaited, what to call), the last first
        self.hits = self.seen_hits = 0
        self.seen_s = 0.0
        self.users: set[int] = set()
        self.references = 0
        self.size_bytes: int | None = None


class _Frame:
    """One making under way: what making its needs took of its time and memory, and the slots it was given."""

    __slots__ = ("bytes", "given", "seconds", "service")

    def __init__(self, service: _Service) -> None:
        self.service = service
        self.seconds = 0.0
        self.bytes = 0
        self.given: list[_Slot] = []


_frames: ContextVar[tuple[_Frame, ...]] = ContextVar("memwarden_frames", default=())


class Container:
    """Services by class or name. Safe across threads and coroutines: of all who ask one makes it, the others wait.

    `cache_instances` off makes lazy services anew each time; `auto_wire` off calls factories with nothing but the
    container; `circular_detection` off leaves endless recursion to Python where nothing is kept. `measure` has the
    memory of each service measured while it is made (tracemalloc: slow; what other threads take meanwhile is counted
    along). `profile` is what `profile()` of an earlier run gave. `debug` keeps the last 1000 events. `budget` may ask
    the container to `shed`: services marked `rebuildable` that nobody used for `idle` ("1m") are closed and forgotten.
    """

    def __init__(
        self,
        *,
        name: str = "container",
        auto_wire: bool = True,
        cache_instances: bool = True,
        circular_detection: bool = True,
        measure: bool = False,
        profile: Mapping[str, int] | None = None,
        debug: bool = False,
        idle: str | float = 60.0,
        budget: Budget | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._auto_wire = auto_wire
        self._cache = cache_instances
        self._circles = circular_detection
        self._measure = measure
        self._profile = None if profile is None else dict(profile)
        self._idle_s = idle if isinstance(idle, float) and idle >= 0 else _duration(idle)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._services: dict[Any, list[_Service]] = {}
        self._aliases: dict[Any, Any] = {}
        self._made: dict[Any, _Slot] = {}  # by key and by alias
        self._order: list[_Slot] = []
        self._flights = Flights(_service_name)
        self._lock = RLock()
        self._released = 0
        self._closed = False
        self._events = _remembered() if debug else None
        if budget is not None:
            budget.register(self)
        renew_in_child(self)

    def __repr__(self) -> str:
        return f"<Container {self.name!r}: {len(self._order)} made of {len(self._services)} services>"

    # --- registering -------------------------------------------------------------------------------------------

    def lazy(self, key: Any, factory: Callable[..., Any] | None = None, **options: Any) -> None:
        """Made when it is first asked for, and kept where `cache_instances` is on.

        `factory` is a function, a coroutine function, a generator function that yields the service and then closes it
        (of either kind), or a class; the key itself where it is a class. Options: `tags`, `aliases`; `when`, called
        without arguments: used only while it is true (of several under one key, the first that is, else the one
        without); `close(service)`; `enter`: it is a context manager and is entered; `rebuildable`: it may be released
        under pressure when it is idle; `size` of such a one. Raises ConfigError.
        """
        self._register(LAZY, key, factory, **options)

    def singleton(self, key: Any, factory: Callable[..., Any] | None = None, **options: Any) -> None:
        """Made when it is first asked for, and always kept. Options as of `lazy`."""
        self._register(SINGLETON, key, factory, **options)

    def transient(self, key: Any, factory: Callable[..., Any] | None = None, **options: Any) -> None:
        """Made each time it is asked for. It is its user's: options are `tags`, `aliases` and `when`."""
        wrong = sorted(set(options) - {"tags", "aliases", "when"})
        if wrong:
            raise ConfigError(
                f"a transient service is not kept, so {wrong[0]} means nothing", where=_name_of(key), mend="use lazy()"
            )
        self._register(TRANSIENT, key, factory, **options)

    def instance(self, key: Any, value: Any, **options: Any) -> None:
        """Ready made; it is not closed unless `close` is given. Options: `tags`, `aliases`, `when`, `close`."""
        self._register(INSTANCE, key, lambda: value, **options)

    def alias(self, alias: Any, key: Any) -> None:
        """Another key for it. Raises CircularDependencyError where it leads back to itself."""
        path, at = [_name_of(alias)], key
        while at in self._aliases and at != alias:
            path.append(_name_of(at))
            at = self._aliases[at]
        if at == alias:
            raise CircularDependencyError((*path, _name_of(alias)), mend="let an alias stand for a service")
        self._unmade(alias)
        self._aliases[alias] = key

    def _register(
        self,
        kind: str,
        key: Any,
        factory: Callable[..., Any] | None,
        *,
        tags: Iterable[str] = (),
        aliases: Iterable[Any] = (),
        when: Callable[[], object] | None = None,
        close: Callable[[Any], Any] | None = None,
        enter: bool = False,
        rebuildable: bool = False,
        size: str | int | None = None,
    ) -> None:
        service = _Service(key, kind, factory if factory is not None else key)
        if not callable(service.factory):
            raise ConfigError("it has no factory", where=service.name, mend="give a function, or a class as the key")
        if kind == TRANSIENT and _is_generator(service.factory):
            raise ConfigError("a transient service is never closed", where=service.name, mend="use lazy()")
        service.tags = frozenset((tags,) if isinstance(tags, str) else tags)
        service.when, service.close, service.enter, service.rebuildable = when, close, enter, rebuildable
        service.size_bytes = None if size is None else _size(size)
        self._unmade(key)
        with self._lock:
            others = [each for each in self._services.get(key, ()) if each.when is not None]
            plain = [each for each in self._services.get(key, ()) if each.when is None]
            self._services[key] = [*others, service, *plain] if when is not None else [*others, service]
        for each in (aliases,) if isinstance(aliases, str) else aliases:
            self.alias(each, key)

    def _unmade(self, key: Any) -> None:
        if key in self._made:
            raise ConfigError("it is made already", where=_name_of(key), mend="register before use, or release() it")

    # --- asking ------------------------------------------------------------------------------------------------

    @overload
    def get(self, key: type[T]) -> T: ...
    @overload
    def get(self, key: Any) -> Any: ...  # noqa: F811  overload is typing's, above
    def get(self, key: Any) -> Any:  # noqa: F811
        """The service. Raises ServiceNotFoundError, CircularDependencyError, ServiceFactoryError, AsyncServiceError."""
        slot = self._made.get(key)
        if slot is None:
            return self._resolve(key)
        slot.hits += 1
        return slot.value

    @overload
    async def aget(self, key: type[T]) -> T: ...
    @overload
    async def aget(self, key: Any) -> Any: ...  # noqa: F811  overload is typing's, above
    async def aget(self, key: Any) -> Any:  # noqa: F811
        """The service, which may be made by a coroutine, or want one that is. Raises what `get` raises."""
        slot = self._made.get(key)
        if slot is None:
            return await self._resolve_async(key)
        slot.hits += 1
        return slot.value

    def __contains__(self, key: Any) -> bool:
        """Whether something is registered for it."""
        return self._aliased(key) in self._services

    def tagged(self, tag: str) -> tuple[Any, ...]:
        """The keys of the services that have the tag, in the order of registration."""
        with self._lock:
            return tuple(key for key, each in self._services.items() if any(tag in one.tags for one in each))

    def get_tagged(self, tag: str) -> list[Any]:
        """The services that have the tag."""
        return [self.get(key) for key in self.tagged(tag)]

    async def aget_tagged(self, tag: str) -> list[Any]:
        """The services that have the tag, made by coroutines too."""
        return [await self.aget(key) for key in self.tagged(tag)]

    def _aliased(self, key: Any) -> Any:
        while key in self._aliases and key not in self._services:
            key = self._aliases[key]
        return key

    def _find(self, asked: Any) -> _Service:
        """Its registration, by alias and condition; a class that was not registered is its own factory."""
        if self._closed:
            raise ContainerClosedError("the container is closed", key=_name_of(asked), where=self.name)
        key = self._aliased(asked)
        services = self._services.get(key)
        if services is None:
            if self._auto_wire and _is_makeable(key):
                with self._lock:
                    services = self._services.setdefault(key, [_Service(key, LAZY, key)])
            else:
                raise self._not_found(asked, "nothing is registered under it", mend="register it first")
        for service in services:
            if service.when is None or service.when():
                return service
        raise self._not_found(asked, "no condition of its registrations holds", mend="register one without `when`")

    def _not_found(self, key: Any, what: str, *, mend: str) -> ServiceNotFoundError:
        path = (*_path(), _name_of(key))
        return ServiceNotFoundError(what, key=_name_of(key), where=" -> ".join(path), mend=mend)

    def _keeps(self, service: _Service) -> bool:
        return service.kind in (SINGLETON, INSTANCE) or (service.kind == LAZY and self._cache)

    def _resolve(self, key: Any) -> Any:
        service = self._find(key)
        self._check_circle(service)
        if not self._keeps(service):
            return self._make(service).value
        try:
            slot: _Slot = self._flights.run(
                service, lambda: self._look(service), lambda: self._keep(self._make(service))
            )
        except WouldBlockError:
            raise self._must_be_awaited(service) from None
        return self._given(key, slot)

    async def _resolve_async(self, key: Any) -> Any:
        service = self._find(key)
        self._check_circle(service)
        if not self._keeps(service):
            return (await self._make_async(service)).value

        async def make() -> _Slot:
            return self._keep(await self._make_async(service))

        slot: _Slot = await self._flights.run_async(service, lambda: self._look(service), make)
        return self._given(key, slot)

    def _look(self, service: _Service) -> Any:
        slot = self._made.get(service.key)
        return slot if slot is not None and slot.service is service else MISSING

    def _given(self, key: Any, slot: _Slot) -> Any:
        """Found by this key from now on, which may be an alias."""
        with self._lock:
            if slot in self._order:
                self._made[key] = slot
        return slot.value

    def _check_circle(self, service: _Service) -> None:
        frames = _frames.get()
        if not self._circles:
            return
        for place, frame in enumerate(frames):
            if frame.service is service:
                path = (*(each.service.name for each in frames[place:]), service.name)
                raise CircularDependencyError(path, mend="let one of them ask the container when it needs the other")

    def _must_be_awaited(self, service: _Service) -> AsyncServiceError:
        path = _path()
        if path[-1:] != (service.name,):
            path = (*path, service.name)
        where = " -> ".join(path)
        return AsyncServiceError("it is made by a coroutine", key=service.name, where=where, mend="use await aget()")

    # --- making ------------------------------------------------------------------------------------------------

    def _make(self, service: _Service) -> _Slot:
        making = _Measured(self, service)
        with making:
            arguments, words = [], {}
            for need in self._needs(service):
                given = self._wanted(need)
                if given is MISSING:
                    continue
                if need.positional:
                    arguments.append(given)
                else:
                    words[need.name] = given
            found = service.factory(*arguments, **words)
            ends: list[Any] = []
            if _is_generator(service.factory):
                if hasattr(found, "__anext__"):
                    raise self._must_be_awaited(service)
                generator, found = found, next(found)
                ends.append((False, lambda: _finish(generator)))
            elif hasattr(found, "__await__") and service.kind != INSTANCE:
                close = getattr(found, "close", None)
                if close is not None:
                    close()
                raise self._must_be_awaited(service)
            if service.enter:
                manager, found = found, found.__enter__()
                ends.append((False, lambda: manager.__exit__(None, None, None)))
            making.slot = self._slot(service, found, ends)
        made: _Slot = making.slot
        return made

    async def _make_async(self, service: _Service) -> _Slot:
        making = _Measured(self, service)
        with making:
            arguments, words = [], {}
            for need in self._needs(service):
                given = await self._wanted_async(need)
                if given is MISSING:
                    continue
                if need.positional:
                    arguments.append(given)
                else:
                    words[need.name] = given
            found = service.factory(*arguments, **words)
            ends: list[Any] = []
            if hasattr(found, "__anext__") and _is_generator(service.factory):
                awaited, found = found, await anext(found)
                ends.append((True, lambda: _finish_async(awaited)))
            elif _is_generator(service.factory):
                generator, found = found, next(found)
                ends.append((False, lambda: _finish(generator)))
            elif hasattr(found, "__await__") and service.kind != INSTANCE:
                found = await found
            if service.enter:
                manager = found
                if hasattr(manager, "__aenter__"):
                    found = await manager.__aenter__()
                    ends.append((True, lambda: manager.__aexit__(None, None, None)))
                else:
                    found = manager.__enter__()
                    ends.append((False, lambda: manager.__exit__(None, None, None)))
            making.slot = self._slot(service, found, ends)
        made: _Slot = making.slot
        return made

    def _slot(self, service: _Service, value: Any, ends: list[Any]) -> _Slot:
        if service.close is not None:
            close = service.close
            ends.append((None, lambda: close(value)))
        return _Slot(service, value, ends)

    def _needs(self, service: _Service) -> list[Need]:
        if service.kind == INSTANCE:
            return []
        if service.needs is None:
            from memwarden.flow import wiring

            known = [*self._services, *self._aliases]
            needs = wiring.needs_of(service.factory, known, type(self))
            service.needs = [each for each in needs if self._auto_wire or each.key is wiring.CONTAINER]
        return service.needs

    def _wanted(self, need: Need) -> Any:
        """What a parameter gets; MISSING where it keeps its default."""
        if self._left_out(need):
            return None if need.nullable and not need.optional else MISSING
        return self if self._is_container(need) else self._note(need, self.get(need.key))

    async def _wanted_async(self, need: Need) -> Any:
        if self._left_out(need):
            return None if need.nullable and not need.optional else MISSING
        return self if self._is_container(need) else self._note(need, await self.aget(need.key))

    def _note(self, need: Need, value: Any) -> Any:
        """Whoever is being made holds it: it is not released before that."""
        slot = self._made.get(need.key)
        if slot is not None:
            _frames.get()[-1].given.append(slot)
        return value

    def _left_out(self, need: Need) -> bool:
        return (need.optional or need.nullable) and not self._is_container(need) and need.key not in self

    @staticmethod
    def _is_container(need: Need) -> bool:
        from memwarden.flow.wiring import CONTAINER

        return need.key is CONTAINER

    def _keep(self, slot: _Slot) -> _Slot:
        """It is made: found by its key, closed in its turn, and held by what it was given to."""
        service = slot.service
        slot.seen_s = self._clock.monotonic()
        slot.size_bytes = service.size_bytes if service.size_bytes is not None else service.bytes
        if service.rebuildable and slot.size_bytes is None:
            from memwarden.flow.sizing import size_of

            slot.size_bytes = size_of(slot.value)
        slot.references = getrefcount(slot.value)
        with self._lock:
            self._order.append(slot)
            self._made[service.key] = slot
        return slot

    def _tell(self, what: str, service: _Service, path: tuple[str, ...], duration_s: float | None = None) -> None:
        if self._events is not None:
            from memwarden.flow.container_facts import Event

            now = self._clock.monotonic()
            self._events.append(Event(monotonic_s=now, what=what, name=service.name, path=path, duration_s=duration_s))

    # --- ending ------------------------------------------------------------------------------------------------

    def release(self, key: Any) -> bool:
        """Close and forget one made service; it is made again when it is asked for. Whether it was made.

        Whoever holds it keeps what was closed. Raises AsyncServiceError where it must be awaited (`arelease`).
        """
        slot = self._made.get(key)
        if slot is None:
            return False
        self._may_end_here(slot)
        if self._forget(slot):
            self._run_ends(slot)
        return True

    async def arelease(self, key: Any) -> bool:
        """The same for services that are closed by a coroutine."""
        slot = self._made.get(key)
        if slot is not None and self._forget(slot):
            await self._run_ends_async(slot)
        return slot is not None

    def close(self) -> None:
        """Close what is made, the last first, and give nothing any more. Idempotent.

        Every service is tried; what was raised comes as one ExceptionGroup, AsyncServiceError among it for services
        that must be awaited (`aclose`): those stay made.
        """
        self._closed = True
        errors = []
        for slot in self._reversed():
            try:
                self._may_end_here(slot)
                if self._forget(slot, "closed"):
                    self._run_ends(slot)
            except Exception as error:  # noqa: BLE001  foreign code; the others are closed all the same
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"closing {self.name!r}", errors)

    async def aclose(self) -> None:
        """The same, with services that are closed by coroutines."""
        self._closed = True
        errors = []
        for slot in self._reversed():
            try:
                if self._forget(slot, "closed"):
                    await self._run_ends_async(slot)
            except Exception as error:  # noqa: BLE001  as above
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"closing {self.name!r}", errors)

    def _reversed(self) -> Iterator[_Slot]:
        with self._lock:
            slots = self._order[::-1]
        return iter(slots)

    def _may_end_here(self, slot: _Slot) -> None:
        if any(awaited for awaited, _ in slot.ends):
            name = slot.service.name
            raise AsyncServiceError(
                "it is closed by a coroutine", key=name, where=name, mend="use aclose(), arelease()"
            )

    def _run_ends(self, slot: _Slot) -> None:
        while slot.ends:
            _, end = slot.ends.pop()
            found = end()
            if hasattr(found, "__await__"):
                getattr(found, "close", int)()
                name = slot.service.name
                raise AsyncServiceError("its close is a coroutine", key=name, where=name, mend="use aclose()")

    async def _run_ends_async(self, slot: _Slot) -> None:
        while slot.ends:
            _, end = slot.ends.pop()
            found = end()
            if hasattr(found, "__await__"):
                await found

    def _forget(self, slot: _Slot, what: str = "released") -> bool:
        """Out of the books; false where another was first."""
        with self._lock:
            if slot not in self._order:
                return False
            self._order.remove(slot)
            for key in [key for key, each in self._made.items() if each is slot]:
                del self._made[key]
            for each in self._order:
                each.users.discard(id(slot))
            slot.service.hits += slot.hits
            self._released += what == "released"
        self._tell(what, slot.service, ())
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork(self) -> None:
        """In a forked child: a thread that is not here may have held the lock."""
        self._lock = RLock()

    # --- memory ------------------------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """What its made services take, as far as that is known."""
        return sum(each.size_bytes or 0 for each in list(self._order))

    def shed(self, size_bytes: int) -> int:
        """Release idle services that can be made again, the largest first, within 5 ms; the bytes.

        Idle is what nobody asked for within `idle`, no made service was given, and nobody else refers to.
        """
        began = now = self._clock.monotonic()
        freed = 0
        for slot in sorted(self._idle(now), key=lambda each: each.size_bytes or 0, reverse=True):
            if freed >= size_bytes or now - began >= SLICE_S:
                break
            if getrefcount(slot.value) <= slot.references and self._forget(slot):
                try:
                    self._run_ends(slot)
                finally:
                    freed += max(1, slot.size_bytes or 0)
            now = self._clock.monotonic()
        return freed

    def _idle(self, now: float) -> list[_Slot]:
        found = []
        with self._lock:
            for slot in self._order:
                if slot.hits != slot.seen_hits:
                    slot.seen_hits, slot.seen_s = slot.hits, now
                elif (
                    slot.service.rebuildable
                    and not slot.users
                    and now - slot.seen_s >= self._idle_s
                    and not any(awaited for awaited, _ in slot.ends)
                ):
                    found.append(slot)
        return found

    # --- telling -----------------------------------------------------------------------------------------------

    @property
    def statistics(self) -> ContainerStatistics:
        """What was made and found made, and what it cost."""
        with self._lock:
            live = {id(each.service): each for each in self._order}
            services = [each for group in self._services.values() for each in group]
        found = tuple(_statistics_of(each, live.get(id(each))) for each in services)
        created = sum(each.created for each in found)
        seconds = sum(each.seconds for each in services)
        sizes = [each.bytes for each in found if each.live and each.bytes is not None]
        from memwarden.flow.container_facts import ContainerStatistics

        return ContainerStatistics(
            registered=len(self._services), live=len(live), created=created,
            cached=sum(each.cached for each in found), released=self._released,
            mean_creation_s=seconds / created if created else None,
            bytes=sum(sizes) if sizes else None, not_spent_bytes=self._not_spent(found), services=found,
        )  # fmt: skip

    def _not_spent(self, services: tuple[ServiceStatistics, ...]) -> int | None:
        if self._profile is None:
            return None
        known = [self._profile[each.name] for each in services if not each.live and each.name in self._profile]
        unknown = [each for each in services if not each.live and each.name not in self._profile]
        return None if unknown and not known else sum(known)

    def profile(self) -> dict[str, int]:
        """The bytes of each service that was measured, by name, for the next run's `profile=` (JSON keeps it)."""
        services = [each for group in self._services.values() for each in group]
        return {**(self._profile or {}), **{each.name: each.bytes for each in services if each.bytes is not None}}

    @property
    def events(self) -> tuple[Event, ...]:
        """What the debug mode saw, the last 1000; nothing without it."""
        return tuple(self._events or ())

    def explain(self, key: Any) -> str:
        """What making it means, as a tree: each service with its kind, whether it is made, and its costs so far."""
        return "\n".join(self._lines(key, "", ()))

    def _lines(self, key: Any, indent: str, above: tuple[Any, ...]) -> Iterator[str]:
        try:
            service = self._find(key)
            needs = self._needs(service)
        except MemwardenError as error:
            yield f"{indent}{_name_of(key)}: {error.what}"
            return
        from memwarden.units import format_bytes, format_duration

        statistics = _statistics_of(service, self._made.get(service.key))
        words = [service.kind, "made" if statistics.live else "not made"]
        if statistics.mean_creation_s is not None:
            words.append(format_duration(statistics.mean_creation_s))
        if statistics.bytes is not None:
            words.append(format_bytes(statistics.bytes))
        if service in above:
            yield f"{indent}{service.name}: needs itself"
            return
        yield f"{indent}{service.name}: {', '.join(words)}"
        for need in needs:
            if not self._is_container(need) and not self._left_out(need):
                yield from self._lines(need.key, indent + "  ", (*above, service))


class _Measured:
    """One making: its frame, its time, its memory where asked for, and what its failure is called."""

    __slots__ = ("_before", "_began_s", "_bytes", "_container", "_frame", "_ours", "slot")

    def __init__(self, container: Container, service: _Service) -> None:
        self._container = container
        self._frame = _Frame(service)
        self._bytes = 0
        self._ours = False
        self.slot: Any = None

    def __enter__(self) -> None:
        self._before = _frames.set((*_frames.get(), self._frame))
        if self._container._measure:  # noqa: SLF001  of this file
            self._bytes, self._ours = _traced_bytes()
        self._began_s = self._container._clock.monotonic()  # noqa: SLF001

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        container, frame, path = self._container, self._frame, _path()
        service = frame.service
        seconds = container._clock.monotonic() - self._began_s  # noqa: SLF001
        reset(_frames, self._before)
        taken = self._taken() if container._measure else 0  # noqa: SLF001
        above = _frames.get()
        if above:
            above[-1].seconds += seconds
            above[-1].bytes += taken
        if error is None:
            with container._lock:  # noqa: SLF001
                service.created += 1
                service.seconds += seconds - frame.seconds
                if container._measure:  # noqa: SLF001
                    service.bytes = max(0, taken - frame.bytes)
                if container._keeps(service):  # noqa: SLF001
                    for slot in frame.given:
                        slot.users.add(id(self.slot))
                elif above:  # whoever holds this one holds what it holds
                    above[-1].given += frame.given
            container._tell("made", service, path, seconds - frame.seconds)  # noqa: SLF001
            return
        container._tell("failed", service, path, seconds)  # noqa: SLF001
        if isinstance(error, Exception) and not isinstance(error, (MemwardenError, WouldBlockError)):
            what = f"making it raised {type(error).__name__}: {error}"
            raise ServiceFactoryError(what, key=service.name, path=path) from error
        if isinstance(error, ConfigError):
            raise ServiceFactoryError(error.what, key=service.name, path=path, mend=error.mend) from error

    def _taken(self) -> int:
        import tracemalloc

        taken = tracemalloc.get_traced_memory()[0] - self._bytes
        if self._ours:
            tracemalloc.stop()
        return taken


def _traced_bytes() -> tuple[int, bool]:
    """(bytes that tracemalloc sees, whether it was started for this)."""
    import tracemalloc

    ours = not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0], ours


def _statistics_of(service: _Service, slot: _Slot | None) -> ServiceStatistics:
    from memwarden.flow.container_facts import ServiceStatistics

    live = slot is not None and slot.service is service
    return ServiceStatistics(
        name=service.name, kind=service.kind, live=live, created=service.created,
        cached=service.hits + (slot.hits if slot is not None and live else 0),
        mean_creation_s=service.seconds / service.created if service.created else None, bytes=service.bytes,
    )  # fmt: skip


def _finish(generator: Any) -> None:
    """Resume a generator behind its yield."""
    if next(generator, MISSING) is not MISSING:
        generator.close()
        raise ConfigError("it yields more than once", where=str(generator.__qualname__), mend="yield the service once")


async def _finish_async(generator: Any) -> None:
    if await anext(generator, MISSING) is not MISSING:
        await generator.aclose()
        raise ConfigError("it yields more than once", where=str(generator.__qualname__), mend="yield the service once")


def _remembered() -> deque[Event]:
    from collections import deque

    return deque(maxlen=MOST_EVENTS)


def _duration(value: str | float) -> float:
    from memwarden.units import parse_duration

    return parse_duration(value, where="idle")


def _size(value: str | int) -> int:
    from memwarden.units import parse_bytes

    return parse_bytes(value, where="size")


def _path() -> tuple[str, ...]:
    return tuple(each.service.name for each in _frames.get())


def _service_name(service: Any) -> str:
    return str(service.name)


def _name_of(key: Any) -> str:
    return key if isinstance(key, str) else str(getattr(key, "__qualname__", None) or repr(key))


def _is_makeable(key: Any) -> bool:
    if not isinstance(key, type):
        return False
    from memwarden.flow.wiring import is_makeable

    return is_makeable(key)


def _is_generator(factory: Any) -> bool:
    """CO_GENERATOR or CO_ASYNC_GENERATOR of its code, without inspect; through partials and methods with it."""
    code = getattr(getattr(factory, "__func__", factory), "__code__", None)
    if code is not None:
        return bool(code.co_flags & 0x220)
    if isinstance(factory, type):
        return False
    from memwarden.flow.wiring import is_generator

    return is_generator(factory)
