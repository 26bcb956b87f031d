"""The fixtures of the engines' modules; each says its `SITE` and the brokers that it is tested `ON`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.integrations.brokers import BROKERS, Broker
from tests.integrations.workers import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integrations.sites import Site


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever needs a broker is tested on each of the module's."""
    if "broker" in metafunc.fixturenames:
        metafunc.parametrize("broker", metafunc.module.ON, indirect=True, scope="module")


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with BROKERS[request.param]() as made:
        yield made


@pytest.fixture(scope="module")
def one_broker() -> Iterator[Broker]:
    """A Redis beside it, for the workers that a test starts for itself."""
    with BROKERS["redis"]() as made:
        yield made


@pytest.fixture(scope="module")
def site_class(request: pytest.FixtureRequest) -> type[Site]:
    found: type[Site] = request.module.SITE
    return found


@pytest.fixture(scope="module")
def site(site_class: type[Site], broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_class.on(broker, str(tmp_path_factory.mktemp("site"))) as made:
        yield made


@pytest.fixture
def bench(site: Site, tmp_path: Any) -> Bench:
    return Bench(site.jobs, site.ledger, os.fspath(tmp_path))
