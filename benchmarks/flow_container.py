"""Container: a service that is made already, beside wireup and others, and what importing weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import Figure
from benchmarks.arms import fresh_medians, race
from benchmarks.peers import peer
from memwarden.flow.container import Container

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


class Config:
    """The innermost of three."""


class Database:
    """Wants one."""

    def __init__(self, config: Config) -> None:
        self.config = config


class Service:
    """Wants both."""

    def __init__(self, database: Database, config: Config) -> None:
        self.database, self.config = database, config


CLASSES = (Config, Database, Service)
_IMPORT = "import memwarden\nbefore = rss_bytes()\n{}\ntell(rss=rss_bytes() - before)"
PEERS = ("wireup", "svcs", "dishka", "lagom", "dependency_injector.containers")


def main() -> list[Figure]:
    """A cached get, a graph of three made anew, the import."""
    return [*_cached(), *_made(), *_weight()]


def _ours() -> Container:
    container = Container()
    for each in CLASSES:
        container.lazy(each)
    return container


def _cached() -> list[Figure]:
    container = _ours()
    container.get(Service)
    arms: dict[str, Callable[[], object]] = {"ours": lambda: container.get(Service), **_peers()}
    seen = race(arms)
    if container.statistics.cached == 0:
        raise RuntimeError("the container counted nothing")
    return [
        Figure(f"Container cached get, of {name}", seen.ratio("ours", name), at_most=1.3 if name == "wireup" else None,
               beside=seen.beside("ours", name))
        for name in arms if name != "ours"
    ]  # fmt: skip


def _peers() -> dict[str, Callable[[], object]]:
    arms: dict[str, Callable[[], object]] = {}
    wireup, svcs, dishka = peer("wireup"), peer("svcs"), peer("dishka")
    lagom, injector = peer("lagom"), peer("dependency_injector")
    if wireup is not None:
        theirs = wireup.create_sync_container(injectables=[wireup.injectable(each) for each in CLASSES])
        theirs.get(Service)
        arms["wireup"] = lambda: theirs.get(Service)
    if svcs is not None:
        registry = svcs.Registry()
        registry.register_factory(Config, Config)
        registry.register_factory(Database, lambda svcs_container: Database(svcs_container.get(Config)))
        registry.register_factory(
            Service, lambda svcs_container: Service(svcs_container.get(Database), svcs_container.get(Config))
        )
        services = svcs.Container(registry)
        services.get(Service)
        arms["svcs"] = lambda: services.get(Service)
    if dishka is not None:
        provider = dishka.Provider(scope=dishka.Scope.APP)
        for each in CLASSES:
            provider.provide(each)
        dished = dishka.make_container(provider)
        dished.get(Service)
        arms["dishka"] = lambda: dished.get(Service)
    if lagom is not None:
        lagged = lagom.Container()
        for each in CLASSES:
            lagged[each] = lagom.Singleton(each)
        arms["lagom"] = lambda: lagged[Service]
    if injector is not None:
        arms["dependency-injector"] = _injected()
    return arms


def _injected() -> Callable[[], object]:
    from dependency_injector import containers, providers

    class Injected(containers.DeclarativeContainer):
        config = providers.Singleton(Config)
        database = providers.Singleton(Database, config)
        service = providers.Singleton(Service, database, config)

    found = Injected()
    found.service()
    service: Callable[[], object] = found.service
    return service


def _made() -> list[Figure]:
    def new() -> None:
        _ours().get(Service)

    def by_hand() -> None:
        config = Config()
        Service(Database(config), config)

    seen = race({"ours": new, "by hand": by_hand}, repeats=40)
    return [Figure("registering and making three services once", seen.costs["ours"].minimum_ns / 1000, "us",
                   beside=seen.beside("ours", "by hand"))]  # fmt: skip


def _weight() -> list[Figure]:
    programs = {"nothing": _IMPORT.format(""), "ours": _IMPORT.format("from memwarden.flow.container import Container")}
    programs |= {name: _IMPORT.format(f"import {name}") for name in PEERS if peer(name.partition(".")[0]) is not None}
    found = fresh_medians(programs)
    beside = "; ".join(f"{name} {each['rss'] / MIB:.1f}" for name, each in found.items() if name != "ours")
    return [Figure("importing the container, over import memwarden", found["ours"]["rss"] / MIB, " MiB", at_most=1.0,
                   beside=beside)]  # fmt: skip
