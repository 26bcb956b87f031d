"""Every machine of the corpus is read right: the limit, who set it, what is used, where we are.

The corpus is in tests/machines: folders captured from real kernels, and folders built to the documented
formats. Its expectations were computed without memwarden.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.sense import Sensor, find_cgroup, find_limit, identify
from memwarden.testing import FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "machines")
_NAMES = sorted(name.removesuffix(".json") for name in os.listdir(_FOLDER) if name.endswith(".json"))


def _load(name: str) -> dict[str, Any]:
    with open(os.path.join(_FOLDER, f"{name}.json"), encoding="ascii") as file:
        machine: dict[str, Any] = json.load(file)
    return machine


@pytest.fixture(params=_NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def told(name: str) -> dict[str, Any]:
    return _load(name)


@pytest.fixture
def machine(told: dict[str, Any]) -> Iterator[FakeMachine]:
    with FakeMachine(told["files"], environ=told["environ"]) as made:
        yield made


def test_the_limit_is_the_one_that_binds(machine: FakeMachine, told: dict[str, Any]) -> None:
    found, expect = find_limit(machine), told["expect"]
    assert (found.bytes, found.kind) == (expect["limit_bytes"], expect["limit_kind"]), found.explain()
    assert expect["limit_source"] in found.source


def test_what_is_used_lies_between_the_two_bounds(machine: FakeMachine, told: dict[str, Any]) -> None:
    sensor = Sensor(machine)
    reading, expect = sensor.read(), told["expect"]
    sensor.close()
    assert (reading.used_bytes, reading.used_low_bytes) == (expect["used_bytes"], expect["used_low_bytes"])
    assert reading.limit_bytes == expect["limit_bytes"]


def test_the_platform_and_the_version_of_the_cgroups_are_recognised(machine: FakeMachine, told: dict[str, Any]) -> None:
    cgroup, reason = find_cgroup(machine)
    expect = told["expect"]
    assert identify(machine, cgroup).name == expect["platform"]
    assert (cgroup.version if cgroup else None) == expect["cgroup_version"], reason


def test_the_corpus_is_large_and_mostly_real() -> None:
    origins = [_load(name)["origin"] for name in _NAMES]
    assert set(origins) == {"captured", "built"}
    assert origins.count("captured") >= 20
    assert len(origins) >= 45
