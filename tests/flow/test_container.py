"""Containers: each service is made once and when needed, closed in reverse, told truthfully, released when idle."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memwarden.budget import Budget
from memwarden.errors import (
    AsyncServiceError,
    CircularDependencyError,
    ConfigError,
    ContainerClosedError,
    ServiceFactoryError,
    ServiceNotFoundError,
)
from memwarden.flow.container import Container
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from memwarden.flow.container_facts import ServiceStatistics

PATIENCE_S = 20.0


class Config:
    pass


class Database:
    def __init__(self, config: Config) -> None:
        self.config = config


class Repository:
    def __init__(self, database: Database, size: int = 10) -> None:
        self.database = database
        self.size = size


class Service:
    def __init__(self, repository: Repository, database: Database, *, cache: Nothing | None = None) -> None:
        self.repository = repository
        self.database = database
        self.cache = cache


class Nothing(ABC):
    @abstractmethod
    def do(self) -> None: ...


class Hen:
    def __init__(self, egg: Egg) -> None:
        self.egg = egg


class Egg:
    def __init__(self, hen: Hen) -> None:
        self.hen = hen


def _started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _until(true: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    event = threading.Event()
    for _ in range(int(PATIENCE_S * 1000)):
        if true():
            return
        event.wait(0.001)
    raise AssertionError("it never came")


def of(container: Container, name: str) -> ServiceStatistics:
    return next(each for each in container.statistics.services if each.name == name)


# --- any order of everything ---------------------------------------------------------------------------------


class Books(RuleBasedStateMachine):
    """Five services, each wanting those of lower numbers that its bits say, against a model of sets and counts."""

    wants = st.integers(0, 15)
    numbers = st.integers(0, 4)

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.container = Container(clock=self.clock, idle=60)
        self.needs: dict[int, list[int]] = {}
        self.made: list[int] = []  # in order
        self.closed: list[int] = []
        self.expected_closed: list[int] = []
        self.created = dict.fromkeys(range(5), 0)
        self.used_s: dict[int, float] = {}
        self.hits = 0

    @rule(number=numbers, wants=wants)
    def register(self, number: int, wants: int) -> None:
        if number in self.needs:
            return
        needs = [each for each in range(number) if wants >> each & 1]

        def make(container: Container) -> list[Any]:
            return [number, *(container.get(f"s{each}") for each in needs)]

        self.container.lazy(
            f"s{number}", make, aliases=f"a{number}", rebuildable=True, close=lambda _: self.closed.append(number)
        )
        self.needs[number] = needs

    def _reachable(self, number: int) -> bool:
        return number in self.needs and all(self._reachable(each) for each in self.needs[number])

    def _make(self, number: int) -> None:
        """As `make` above would ask for them."""
        if number in self.made:
            self.hits += 1
            return
        for each in self.needs[number]:
            self._make(each)
        self.made.append(number)
        self.created[number] += 1

    @rule(number=numbers, prefix=st.sampled_from("sa"))
    def get(self, number: int, prefix: str) -> None:
        if not self._reachable(number):
            with pytest.raises(ServiceNotFoundError):
                self.container.get(f"{prefix}{number}")
            for each in self.needs.get(number, ()):  # those before the one that was not there
                if not self._reachable(each):
                    self._make_what_can_be(each)
                    break
                self._make(each)
            return
        fresh = number not in self.made
        found = self.container.get(f"{prefix}{number}")
        assert found[0] == number
        assert [each[0] for each in found[1:]] == self.needs[number]
        if fresh:
            self._make(number)
        else:
            self.hits += prefix == "s" or f"a{number}" in self.container._made
        del found

    def _make_what_can_be(self, number: int) -> None:
        for each in self.needs.get(number, ()):
            if not self._reachable(each):
                self._make_what_can_be(each)
                return
            self._make(each)

    @rule(number=numbers)
    def release(self, number: int) -> None:
        assert self.container.release(f"s{number}") == (number in self.made)
        if number in self.made:
            self.made.remove(number)
            self.expected_closed.append(number)

    @rule()
    def close(self) -> None:
        self.container.close()
        self.expected_closed += reversed(self.made)
        self.made.clear()
        with pytest.raises(ContainerClosedError):
            self.container.get("s0")
        self.__init__()  # type: ignore[misc]

    @invariant()
    def the_books_are_right(self) -> None:
        found = self.container.statistics
        assert self.closed == self.expected_closed
        assert [each.service.key for each in self.container._order] == [f"s{each}" for each in self.made]
        assert {each.name: each.created for each in found.services} == {
            f"s{each}": self.created[each] for each in self.needs
        }
        assert found.created == sum(self.created.values())


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase


# --- making --------------------------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_asked_for_and_once_then() -> None:
    calls: list[str] = []
    container = Container()
    container.lazy("a", lambda: calls.append("a") or object())  # type: ignore[func-returns-value]
    assert calls == []
    assert container.get("a") is container.get("a")
    assert calls == ["a"]
    assert "a" in container
    assert "b" not in container


def test_kinds_differ_in_what_is_kept() -> None:
    for keeps in (True, False):
        container = Container(cache_instances=keeps)
        container.lazy("lazy", object)
        container.singleton("singleton", object)
        container.transient("transient", object)
        value = object()
        container.instance("instance", value)
        assert (container.get("lazy") is container.get("lazy")) == keeps
        assert container.get("singleton") is container.get("singleton")
        assert container.get("transient") is not container.get("transient")
        assert container.get("instance") is value


def test_classes_are_wired_by_their_type_hints() -> None:
    container = Container()
    found = container.get(Service)
    assert found.database is found.repository.database is container.get(Database)
    assert found.database.config is container.get(Config)
    assert (found.repository.size, found.cache) == (10, None)


def test_wiring_knows_names_unions_annotated_the_container_and_objects_that_are_called() -> None:
    class Local:
        pass

    class Call:
        def __call__(self, config: Config) -> Config:
            return config

    container = Container()
    container.lazy(Local)
    container.lazy("replica", Database)

    def make(local: Local, owner: Container, main: Annotated[Database, "replica"], none: Nothing | None) -> Any:
        return local, owner, main, none

    container.lazy("tuple", make)
    container.lazy("call", Call())
    container.lazy("partial", partial(Repository, size=5))
    container.lazy("only", lambda anything: anything)
    container.lazy("method", Call().__call__)
    container.lazy("map", dict)
    local, owner, main, none = container.get("tuple")
    assert isinstance(local, Local)
    assert (owner, main, none) == (container, container.get("replica"), None)
    assert container.get("call") is container.get("method") is container.get(Config)
    assert container.get("partial").size == 5
    assert container.get("only") is container
    assert container.get("map") == {}


def test_positional_only_parameters_are_wired_too() -> None:
    container = Container()

    def make(config: Config, /, *rest: int, **more: int) -> Any:
        return config, rest, more

    container.lazy("a", make)
    assert container.get("a") == (container.get(Config), (), {})


def test_without_auto_wire_factories_get_the_container_or_nothing() -> None:
    container = Container(auto_wire=False)
    container.lazy("a", lambda container: Repository(Database(container.get("config"))))
    container.lazy("config", Config)
    container.lazy(Database)
    assert container.get("a").database.config is container.get("config")
    with pytest.raises(ServiceNotFoundError):
        container.get(Repository)
    with pytest.raises(ServiceFactoryError, match="TypeError"):
        container.get(Database)


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (lambda one, two: None, "parameter 'one' has no type"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_factory_that_cannot_make_it_is_named_with_the_way_to_it(factory: Any, named: str) -> None:
    container = Container()
    container.lazy("inner", factory)
    container.lazy("outer", lambda container: container.get("inner"))
    with pytest.raises(ServiceFactoryError, match=f"outer -> inner: .*{named}") as caught:
        container.get("outer")
    assert (caught.value.key, caught.value.path) == ("inner", ("outer", "inner"))
    assert container.statistics.created == 0


def test_a_type_that_nobody_knows_is_named() -> None:
    container = Container()

    def make(thing: Unknown) -> None:  # type: ignore[name-defined]  # noqa: F821
        raise AssertionError

    def count(number: int) -> None:
        raise AssertionError

    container.lazy("a", make)
    container.lazy("b", count)
    with pytest.raises(ServiceFactoryError, match="'thing' has a type that cannot be found here, 'Unknown'"):
        container.get("a")
    with pytest.raises(ServiceNotFoundError, match="b -> int: nothing is registered"):
        container.get("b")
    with pytest.raises(ServiceNotFoundError):
        container.get(Nothing)


# --- names, conditions ---------------------------------------------------------------------------------------


def test_aliases_lead_to_one_service_and_never_in_a_circle() -> None:
    container = Container()
    container.lazy(Database, aliases=("db", "store"))
    container.alias("main", "db")
    assert container.get("main") is container.get("store") is container.get(Database)
    assert "main" in container
    with pytest.raises(CircularDependencyError, match="db -> main -> db"):
        Container.alias(_with_alias("main", "db"), "db", "main")
    with pytest.raises(ConfigError, match="made already"):
        container.alias("main", "other")


def _with_alias(alias: str, key: str) -> Container:
    container = Container()
    container.alias(alias, key)
    return container


def test_tags_find_services_in_the_order_of_registration() -> None:
    container = Container()
    container.lazy("b", lambda: 2, tags=("plugin", "other"))
    container.lazy("a", lambda: 1, tags="plugin")
    container.lazy("c", lambda: 3)
    assert container.tagged("plugin") == ("b", "a")
    assert container.get_tagged("plugin") == [2, 1]
    assert container.get_tagged("none") == []


def test_conditions_choose_between_registrations_when_it_is_made() -> None:
    debug, local = [False], [False]
    container = Container(cache_instances=False)
    container.lazy("mail", lambda: "real")
    container.lazy("mail", lambda: "printed", when=lambda: debug[0])
    container.lazy("mail", lambda: "dropped", when=lambda: local[0])
    assert container.get("mail") == "real"
    local[0] = True
    assert container.get("mail") == "dropped"
    debug[0] = True
    assert container.get("mail") == "printed"
    container.lazy("never", lambda: 1, when=lambda: False)
    with pytest.raises(ServiceNotFoundError, match="no condition"):
        container.get("never")


def test_a_later_registration_replaces_one_that_is_not_made_and_none_that_is() -> None:
    container = Container()
    container.lazy("a", lambda: 1)
    container.lazy("a", lambda: 2)
    assert container.get("a") == 2
    with pytest.raises(ConfigError, match="made already"):
        container.lazy("a", lambda: 3)
    assert container.release("a")
    container.lazy("a", lambda: 3)
    assert container.get("a") == 3


@pytest.mark.parametrize(
    "register",
    [
        lambda container: container.lazy("a"),
        lambda container: container.transient("a", lambda: (yield 1)),
        lambda container: container.transient("a", object, close=print),
        lambda container: container.lazy("a", object, size="big"),
    ],
)
def test_a_registration_that_cannot_be_used_is_refused(register: Callable[[Container], None]) -> None:
    with pytest.raises(ConfigError):
        register(Container())


# --- circles -------------------------------------------------------------------------------------------------


def test_a_circle_is_named_with_its_path() -> None:
    container = Container()
    container.lazy("farm", lambda container: container.get(Hen))
    with pytest.raises(CircularDependencyError, match="Hen -> Egg -> Hen") as caught:
        container.get("farm")
    assert caught.value.path == ("Hen", "Egg", "Hen")
    container.transient("self", lambda container: container.get("self"))
    with pytest.raises(CircularDependencyError, match="self -> self"):
        container.get("self")


def test_without_detection_what_is_kept_is_detected_all_the_same() -> None:
    with pytest.raises(CircularDependencyError):
        Container(circular_detection=False).get(Hen)
    container = Container(circular_detection=False)
    container.transient("self", lambda container: container.get("self"))
    with pytest.raises(ServiceFactoryError, match="RecursionError"):
        container.get("self")


def test_threads_that_make_a_circle_between_them_are_told_and_do_not_hang() -> None:
    container = Container()
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def make(other: str) -> Any:
        barrier.wait(PATIENCE_S)
        return container.get(other)

    container.lazy("a", lambda: make("b"))
    container.lazy("b", lambda: make("a"))

    def attempt(key: str) -> None:
        try:
            container.get(key)
        except CircularDependencyError as error:
            outcomes.append(" ".join(sorted(set(error.path))))

    threads = [_started(lambda key=key: attempt(key)) for key in ("a", "b")]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes == ["a b", "a b"]


# --- threads -------------------------------------------------------------------------------------------------


def test_under_contention_each_service_is_made_once() -> None:
    container = Container()
    calls: list[int] = []

    def make(number: int, container: Container) -> list[Any]:
        calls.append(number)
        return [container.get(number // 2)] if number else []

    for number in range(32):
        container.lazy(number, partial(make, number))
    found: list[Any] = []
    wrong: list[Exception] = []
    barrier = threading.Barrier(16)

    def work(seed: int) -> None:
        barrier.wait(PATIENCE_S)
        try:
            found.append([container.get((seed * 7 + each) % 32) for each in range(32)])
        except Exception as error:
            wrong.append(error)

    threads = [_started(lambda seed=seed: work(seed)) for seed in range(16)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []
    assert sorted(calls) == list(range(32))
    assert len({id(each) for each in found}) == 16
    assert {id(each) for row in found for each in row} == {id(slot.value) for slot in container._order}


# --- ending --------------------------------------------------------------------------------------------------


class Manager:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *error: object) -> None:
        self.log.append(self.name)

    async def __aenter__(self) -> str:
        return self.name

    async def __aexit__(self, *error: object) -> None:
        self.log.append(f"{self.name} awaited")


def test_services_are_closed_in_the_reverse_order_of_making() -> None:
    log: list[str] = []

    def generated(first: Annotated[str, "first"]) -> Iterator[str]:
        yield first + "!"
        log.append("generated")

    with Container() as container:
        container.lazy("last", generated)
        container.lazy("first", lambda: Manager(log, "entered"), enter=True)
        container.instance("given", "x", close=lambda _: log.append("given"))
        container.lazy("called", object, close=lambda _: log.append("called"))
        container.lazy("unused", object, close=lambda _: log.append("unused"))
        assert container.get("called")
        assert container.get("last") == "entered!"
        assert container.get("given") == "x"
    assert log == ["given", "generated", "entered", "called"]
    container.close()
    with pytest.raises(ContainerClosedError):
        container.get("unused")


def test_every_service_is_closed_whatever_the_others_raise() -> None:
    log: list[str] = []
    container = Container()

    def fail(_: object) -> None:
        raise OSError("stuck")

    def twice() -> Iterator[int]:
        yield 1
        yield 2

    for name, close in (("a", log.append), ("b", fail), ("c", log.append)):
        container.lazy(name, partial(str, name), close=close)
        container.get(name)
    container.lazy("twice", twice)
    container.get("twice")
    with pytest.raises(ExceptionGroup) as caught:
        container.close()
    assert [type(each) for each in caught.value.exceptions] == [ConfigError, OSError]
    assert log == ["c", "a"]


def test_one_service_can_be_released_and_is_made_again() -> None:
    log: list[Any] = []
    container = Container()
    container.lazy("a", object, aliases="b", close=log.append)
    first = container.get("b")
    assert container.release("b")
    assert log == [first]
    assert not container.release("a")
    assert container.get("b") is not first


# --- coroutines ----------------------------------------------------------------------------------------------


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_S * 2))


def test_asynchronous_services_are_made_awaited_and_closed() -> None:
    async def main() -> None:
        log: list[str] = []

        async def connect(config: Config) -> Database:
            await asyncio.sleep(0)
            return Database(config)

        async def generated() -> AsyncIterator[str]:
            yield "generated"
            log.append("generated")

        async def close(_: object) -> None:
            await asyncio.sleep(0)
            log.append("closed")

        async with Container() as container:
            container.lazy(Database, connect, close=close)
            container.lazy("generated", generated)
            container.lazy("entered", lambda: Manager(log, "entered"), enter=True)
            found = await container.aget(Service)
            assert found.repository.database is container.get(Database)
            assert await container.aget("generated") == "generated"
            assert await container.aget("entered") == "entered"
            container.lazy("tagged", connect, tags="t")
            assert isinstance((await container.aget_tagged("t"))[0], Database)
            assert await container.arelease("generated")
            assert log == ["generated"]
        assert log == ["generated", "entered awaited", "closed"]

    run(main())


def test_what_must_be_awaited_says_so() -> None:
    async def connect() -> int:
        return 1

    async def generated() -> AsyncIterator[int]:
        yield 1

    container = Container()
    container.lazy("db", connect)
    container.lazy("gen", generated)
    container.lazy("outer", lambda container: container.get("db"))
    for key, way in (("db", "db"), ("gen", "gen"), ("outer", "outer -> db")):
        with pytest.raises(AsyncServiceError, match=f"{way}: it is made by a coroutine; use await"):
            container.get(key)

    async def close(_: object) -> None:
        raise AssertionError

    async def main() -> None:
        await container.aget("gen")
        with pytest.raises(AsyncServiceError, match="closed by a coroutine"):
            container.release("gen")
        container.lazy("x", object, close=close)
        container.get("x")
        with pytest.raises(ExceptionGroup) as caught:
            container.close()
        assert [type(each) for each in caught.value.exceptions] == [AsyncServiceError] * 2
        await container.aclose()
        assert container.statistics.live == 0

    run(main())


def test_of_many_coroutines_one_makes_it_and_when_it_is_cancelled_another_does() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        calls: list[int] = []

        async def connect() -> object:
            calls.append(1)
            await go_on.wait()
            return object()

        container = Container()
        container.lazy("db", connect)
        tasks = [asyncio.create_task(container.aget("db")) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(calls) == 1
        with pytest.raises(AsyncServiceError):  # waiting here would block the loop that makes it
            container.get("db")
        tasks[0].cancel()
        await asyncio.sleep(0)
        go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(set(map(id, found[1:]))) == 1
        assert (len(calls), container.statistics.created) == (2, 1)

    run(main())


def test_a_coroutine_that_is_dropped_in_the_middle_leaves_the_making_to_the_next() -> None:
    hang = [True]

    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def connect() -> str:
        if hang:
            await Never()
        return "made"

    container = Container()
    container.lazy("db", connect)
    dropped = container.aget("db")
    contextvars.copy_context().run(dropped.send, None)
    assert len(container._flights) == 1
    dropped.close()
    assert len(container._flights) == 0
    hang.clear()
    assert asyncio.run(container.aget("db")) == "made"
    assert container.statistics.created == 1


def test_a_thread_waits_for_what_a_coroutine_makes() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def connect() -> object:
            await go_on.wait()
            return object()

        container = Container()
        container.lazy("db", connect)
        task = asyncio.create_task(container.aget("db"))
        await asyncio.sleep(0)
        other = asyncio.create_task(asyncio.to_thread(container.get, "db"))
        while not next(iter(container._flights._under_way.values())).wakes:  # noqa: ASYNC110  the thread's step
            await asyncio.sleep(0)
        go_on.set()
        assert await task is await other

    run(main())


def test_an_asynchronous_circle_is_named_also_through_tasks() -> None:
    async def main() -> None:
        container = Container()

        async def hen(container: Container) -> Any:
            return await asyncio.gather(container.aget("egg"))

        async def egg(container: Container) -> Any:
            return await container.aget("hen")

        container.lazy("hen", hen)
        container.lazy("egg", egg)
        with pytest.raises(CircularDependencyError, match="hen -> egg -> hen"):
            await container.aget("hen")

    run(main())


# --- telling -------------------------------------------------------------------------------------------------


def test_statistics_count_and_time_each_service_without_what_it_wants() -> None:
    clock = FakeClock()
    container = Container(clock=clock)

    def config() -> Config:
        clock.advance(2)
        return Config()

    def database(config: Config) -> Database:
        clock.advance(1)
        return Database(config)

    container.lazy(Config, config)
    container.lazy(Database, database)
    for _ in range(4):
        container.get(Database)
    found = container.statistics
    assert (found.registered, found.live, found.created, found.cached) == (2, 2, 2, 3)
    assert found.mean_creation_s == 1.5
    assert (of(container, "Config").mean_creation_s, of(container, "Database").mean_creation_s) == (2.0, 1.0)
    assert (found.bytes, found.not_spent_bytes, of(container, "Config").bytes) == (None, None, None)
    container.release(Database)
    assert (container.statistics.live, container.statistics.released, container.statistics.cached) == (1, 1, 3)


def test_memory_is_measured_where_asked_for_and_what_is_not_spent_needs_an_earlier_run() -> None:
    def register(container: Container) -> None:
        container.lazy("inner", lambda: bytearray(300_000))
        container.lazy("outer", lambda container: (container.get("inner"), bytearray(100_000)))
        container.lazy("unused", lambda: bytearray(200_000))

    first = Container(measure=True)
    register(first)
    first.get("outer")
    first.get("unused")
    assert of(first, "inner").bytes == pytest.approx(300_000, abs=5_000)
    assert of(first, "outer").bytes == pytest.approx(100_000, abs=5_000)
    assert first.statistics.bytes == pytest.approx(600_000, abs=15_000)
    profile = json.loads(json.dumps(first.profile()))
    second = Container(profile=profile)
    register(second)
    second.get("inner")
    assert second.statistics.bytes is None
    assert second.statistics.not_spent_bytes == profile["outer"] + profile["unused"]
    assert second.profile() == profile
    third = Container(profile={})
    register(third)
    assert third.statistics.not_spent_bytes is None


def test_the_debug_mode_remembers_what_happened_and_by_which_way() -> None:
    container = Container(debug=True)
    container.lazy("fails", lambda: 1 / 0)
    container.get(Database)
    with pytest.raises(ServiceFactoryError):
        container.get("fails")
    container.release(Config)
    container.close()
    assert [(each.what, each.name, each.path) for each in container.events] == [
        ("made", "Config", ("Database", "Config")),
        ("made", "Database", ("Database",)),
        ("failed", "fails", ("fails",)),
        ("released", "Config", ()),
        ("closed", "Database", ()),
    ]
    assert Container().events == ()


def test_a_service_is_explained_before_it_is_made() -> None:
    container = Container()
    container.lazy(Database)
    assert container.explain(Service).splitlines() == [
        "Service: lazy, not made",
        "  Repository: lazy, not made",
        "    Database: lazy, not made",
        "      Config: lazy, not made",
        "  Database: lazy, not made",
        "    Config: lazy, not made",
    ]
    assert "Egg: needs itself" in container.explain(Egg)
    assert container.explain("nothing") == "nothing: nothing is registered under it"
    assert container.statistics.created == 0


def test_making_services_by_plain_factories_loads_nothing_that_weighs() -> None:
    program = """
import sys
from memwarden.flow.container import Container
container = Container(auto_wire=False)
container.instance("a", 1)
container.get("a")
print(sorted({"re", "enum", "threading", "collections", "inspect", "typing", "asyncio"} & set(sys.modules)))
"""
    source = [each for each in sys.path if each]
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {source!r}\n" + program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- memory --------------------------------------------------------------------------------------------------


def test_idle_services_that_can_be_made_again_are_released_the_largest_first() -> None:
    clock = FakeClock()
    closed: list[int] = []
    container = Container(clock=clock, idle="1m")
    for size in (1000, 3000, 2000):
        container.lazy(size, partial(bytearray, size), rebuildable=True, close=lambda made: closed.append(len(made)))
        container.get(size)
    container.lazy("fixed", partial(bytearray, 9000))
    container.get("fixed")
    budget = Budget("1M")
    budget.register(container)
    assert container.held_bytes == pytest.approx(6000, abs=400)
    assert budget.shed(10_000).freed_bytes == 0  # nothing was idle for long enough
    clock.advance(59)
    container.get(2000)
    assert container.shed(10_000) == 0
    clock.advance(2)
    assert container.shed(1) >= 3000
    assert closed == [3000]
    assert container.shed(10_000) >= 1000
    assert closed == [3000, 1000]
    clock.advance(60)
    assert budget.shed(10_000).freed_bytes >= 2000
    assert container.statistics.live == 1
    assert len(container.get(1000)) == 1000


def test_what_somebody_holds_is_not_released() -> None:
    clock = FakeClock()
    container = Container(clock=clock, idle=0)
    container.lazy(Config, rebuildable=True, size="1K")
    container.lazy("row", lambda: [1], rebuildable=True, size="1K")
    container.lazy(Database)
    container.get(Database)
    held = container.get("row")
    clock.advance(1)
    container.shed(1)  # the looks of just now are noticed
    assert container.shed(1 << 20) == 0
    del held
    gc.collect()
    assert container.shed(1 << 20) == 1024
    container.release(Database)
    gc.collect()
    assert container.shed(1 << 20) == 1024
    assert container.statistics.live == 0


def test_what_a_kept_service_holds_through_a_transient_one_is_not_released() -> None:
    clock = FakeClock()
    container = Container(clock=clock, idle=0)
    container.lazy(Config, rebuildable=True, size="1K")
    container.transient(Database)
    container.lazy(Repository)
    container.get(Repository)
    clock.advance(1)
    assert container.shed(1 << 20) == container.shed(1 << 20) == 0
    assert [len(each.users) for each in container._order if each.service.key is Config] == [1]


def test_shedding_stops_after_its_slice_of_time() -> None:
    clock = FakeClock()
    container = Container(clock=clock, idle=0)
    for number in range(10):
        container.lazy(number, list, rebuildable=True, size=100, close=lambda _: clock.advance(0.003))
        container.get(number)
    clock.advance(1)
    assert container.shed(1000) == 200
    assert container.shed(1000) == 200
