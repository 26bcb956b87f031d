"""The Warden's cleanups: strategies of the application, collections by itself, commands from outside."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from memwarden import ConfigError, Warden
from memwarden.act.collector import NEW_CONTAINERS
from tests.warden.conftest import MIB, box_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.warden.conftest import Stage


def nothing() -> None:
    return None


def acted(warden: Warden) -> list[str]:
    return [outcome.action for outcome in warden.outcomes if not outcome.skipped]


# --- strategies ----------------------------------------------------------------------------------------------------


def test_a_strategy_is_called_from_its_line_in_its_turn_until_it_is_taken_back(stage: Stage) -> None:
    warden = stage.warden(critical="85%")
    for name, priority, above in (("late", 40, "90%"), ("early", 120, 0.5), ("usual", None, None)):
        warden.add_strategy(name, nothing, priority=priority, above=above)
    stage.look(warden, 0.87)
    assert acted(warden) == ["early", "trim", "collect", "usual"]
    take_back = warden.add_strategy("gone", nothing)
    take_back()
    take_back()
    assert [each.action for each in warden.emergency_cleanup()] == ["early", "trim", "collect", "usual", "late"]


def test_a_strategy_that_freed_enough_ends_the_climb(stage: Stage) -> None:
    warden = stage.warden()
    warden.add_strategy("cache", lambda: stage.used(0.5), priority=120)
    stage.look(warden, 0.92)
    assert acted(warden) == ["cache"]
    assert (warden.outcomes[0].freed_bytes or 0) > 200 * MIB


def test_one_that_raises_is_logged_written_down_and_switched_off(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    warden = stage.warden()
    warden._open_box()

    def broken() -> None:
        raise LookupError("no cache")

    warden.add_strategy("broken", broken, priority=120)
    stage.look(warden, 0.99)
    assert acted(warden) == ["broken", "trim", "collect"]
    assert "LookupError: no cache; it is switched off" in caplog.text
    assert any("switched off" in event.text for event in box_of(warden).events)


def test_records_of_a_kind_go_with_those_of_memwarden(stage: Stage) -> None:
    warden = stage.warden()
    with warden.operation("one"):
        pass
    warden.add_strategy("latencies", nothing, tag="metrics")
    warden.add_strategy("dumps", nothing, tag="snapshots")
    stage.look(warden, 0.99)
    assert acted(warden) == ["trim", "collect", "metrics", "latencies", "dumps"]
    assert len(warden.operations) == 0


class Cache:
    name = "cache"

    def __init__(self, stage: Stage) -> None:
        self.held_bytes = 400 * MIB
        self._stage = stage

    def shed(self, size_bytes: int) -> int:
        freed = min(size_bytes, self.held_bytes)
        self.held_bytes -= freed
        self._stage.used((100 * MIB + self.held_bytes) / (512 * MIB))
        return freed


def test_a_cache_sheds_down_to_where_critical_is_left_and_no_further(stage: Stage) -> None:
    warden, cache = stage.warden(), Cache(stage)
    warden.add_sheddable(cache)
    stage.look(warden, 500 / 512)  # EMERGENCY by its floor: all of it
    assert cache.held_bytes == 0
    other, cache = stage.warden(critical=0.8, emergency=0.99), Cache(stage)
    cache.held_bytes = 320 * MIB
    other.add_sheddable(cache)
    stage.look(other, 420 / 512)
    assert 0.70 * 512 < 100 + cache.held_bytes / MIB < 0.75 * 512 + 1


@pytest.mark.parametrize(
    ("name", "function", "options", "said"),
    [
        ("", nothing, {}, "no strategy"),
        ("x", None, {}, "no strategy"),
        ("trim", nothing, {}, "already"),
        ("x", nothing, {"tag": "caches"}, "metrics, snapshots"),
    ],
)
def test_a_strategy_that_is_none_is_refused(
    stage: Stage, name: str, function: object, options: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        stage.warden().add_strategy(name, function, **options)  # type: ignore[arg-type]


def test_what_cannot_shed_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="cannot shed"):
        stage.warden().add_sheddable({})  # type: ignore[arg-type]


def test_strategies_survive_a_fork(stage: Stage) -> None:
    warden = stage.warden()
    warden.add_strategy("own", nothing)
    warden._after_fork()
    assert "own" in [each.action for each in warden.emergency_cleanup()]


# --- collections ---------------------------------------------------------------------------------------------------


@pytest.fixture
def much_new() -> Iterator[list[list[int]]]:
    """Evidence: the collector is off and there are many new containers."""
    gc.collect()
    gc.disable()
    yield [[] for _ in range(5 * NEW_CONTAINERS)]
    gc.enable()


def lucky(warden: Warden) -> Warden:
    warden._collector._chance = lambda: 0.0
    return warden


@pytest.mark.parametrize(("ratio", "collects"), [(0.78, False), (0.85, True)])
def test_from_80_percent_the_loop_collects_on_evidence(
    stage: Stage, much_new: list[list[int]], ratio: float, collects: bool
) -> None:
    warden = lucky(stage.warden())
    stage.used(ratio)
    stage.run(warden, 20)
    assert acted(warden) == (["trim", "collect"] if collects else [])
    assert warden.collections.total == collects
    assert len(much_new) == 5 * NEW_CONTAINERS


@pytest.mark.parametrize("off", [{"relieve": False}, {"proactive_gc": False}])
def test_told_not_to_it_does_not(stage: Stage, much_new: list[list[int]], off: dict[str, bool]) -> None:
    warden = lucky(stage.warden(**off))
    stage.used(0.85)
    stage.run(warden, 20)
    assert acted(warden) == []
    assert much_new


def test_a_check_by_hand_never_collects_below_critical(stage: Stage, much_new: list[list[int]]) -> None:
    warden = lucky(stage.warden())
    stage.look(warden, 0.85)
    assert acted(warden) == []
    assert much_new


def test_collections_in_vain_raise_one_alert(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    warden = stage.warden()
    warden._open_box()
    for _ in range(8):
        warden.collect("by hand")
    assert [each.reason for each in warden.outcomes].count("alert") == 1
    assert caplog.text.count("5 collections in a row") == 1
    assert [event.kind for event in box_of(warden).events].count("alert") == 1
    assert (warden.collections.total, warden.collections.efficiency, warden.collections.fruitless) == (8, 0.0, 8)
