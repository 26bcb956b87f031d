"""Collections by themselves: on evidence, now and then, within their share, and told when in vain."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from memwarden.act import Collect, Collections, Ladder
from memwarden.act.collector import FRUITLESS, NEW_CONTAINERS, PROBABILITY, advice
from memwarden.facts import Outcome
from memwarden.testing import FakeClock, FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


def outcome(freed_bytes: int | None, *, duration_s: float = 0.1, objects: int = 5) -> Outcome:
    after = None if freed_bytes is None else 1000 * MIB - freed_bytes
    return Outcome(
        action="collect", reason="test", before_bytes=1000 * MIB, after_bytes=after, duration_s=duration_s,
        unix_s=0.0, objects=objects,
    )  # fmt: skip


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_below_80_percent_nothing_is_drawn() -> None:
    drawn: list[float] = [0.0]
    collector = Collect(drawn.pop)
    assert collector.wanted(0.79) == ""
    assert collector.wanted(None) == ""
    assert drawn == [0.0]


@pytest.mark.usefixtures("collector_off")
def test_one_check_in_ten_collects_where_there_is_evidence() -> None:
    draws = iter([i / 100 for i in range(100)])
    collector = Collect(lambda: next(draws))
    kept: list[list[int]] = [[] for _ in range(2 * NEW_CONTAINERS)]
    assert sum(bool(collector.wanted(0.85)) for _ in range(100)) == 100 * PROBABILITY
    assert len(kept) == 2 * NEW_CONTAINERS


def test_the_systems_chance_is_about_one_in_ten() -> None:
    collector = Collect()
    assert 100 < sum(collector._draw() < PROBABILITY for _ in range(2000)) < 300


@pytest.mark.usefixtures("collector_off")
def test_evidence_is_new_containers_with_the_collector_off() -> None:
    collector = Collect()
    assert collector.evidence() == ""
    kept: list[list[int]] = [[] for _ in range(2 * NEW_CONTAINERS)]
    assert "switched off" in collector.evidence()
    del kept
    assert collector.evidence() == ""


@pytest.mark.usefixtures("collector_off")
def test_after_a_collection_the_evidence_is_gone() -> None:
    collector = Collect()
    kept: list[list[int]] = [[] for _ in range(2 * NEW_CONTAINERS)]
    with FakeMachine() as machine:
        assert collector.evidence()
        collector.apply(machine)
        assert collector.evidence() == ""
        assert len(kept) == 2 * NEW_CONTAINERS


def test_the_statistics_count_what_was_made() -> None:
    collector = Collect()
    assert collector.statistics == Collections()
    for freed in (10 * MIB, 9 * MIB, None, 20 * MIB):
        collector.note(outcome(freed, duration_s=0.2))
    found = collector.statistics
    assert (found.total, found.objects, found.freed_bytes) == (4, 20, 39 * MIB)
    assert found.average_s == pytest.approx(0.2)
    assert found.longest_s == 0.2
    assert found.efficiency == 0.5
    assert found.fruitless == 0


def test_a_row_of_collections_in_vain_is_told_once_and_again_after_one_that_helped() -> None:
    collector = Collect()
    told = [bool(collector.note(outcome(0))) for _ in range(2 * FRUITLESS)]
    assert told == [False] * (FRUITLESS - 1) + [True] + [False] * FRUITLESS
    collector.note(outcome(100 * MIB))
    assert [bool(collector.note(outcome(0))) for _ in range(FRUITLESS)][-1]


def test_in_vain_the_rest_doubles_up_to_ten_minutes() -> None:
    clock, collector = FakeClock(), Collect()
    with FakeMachine() as machine:
        ladder = Ladder((collector,), machine=machine, clock=clock, resident_bytes=lambda: 1000 * MIB, gil_share=0)
        rests = []
        for _ in range(6):
            ladder.apply(collector, "test")
            start_s = clock.monotonic()
            while not ladder.due(collector):
                clock.advance(10)
            rests.append(clock.monotonic() - start_s)
    assert rests == [120, 240, 480, 600, 600, 600]


def test_the_pause_to_come_is_thought_to_be_like_the_longest_of_late() -> None:
    clock = FakeClock()

    class Slow(Collect):
        lasts_s = 2.0

        def apply(self, machine: object) -> int | None:
            clock.advance(self.lasts_s)
            return 0

    slow = Slow()
    with FakeMachine() as machine:
        ladder = Ladder((slow,), machine=machine, clock=clock, resident_bytes=lambda: 1000 * MIB, gil_share=0.01)
        ladder.apply(slow, "test")
        clock.advance(10_000)
        slow.lasts_s = 0.1
        ladder.apply(slow, "test")
        clock.advance(99.0)
        next_try = list(ladder.climb("test", enough=lambda: False, urgent=True))
        assert next_try == []  # 1 s, half of the longest, at one percent is 100 s
        clock.advance(1.1)
        assert len(list(ladder.climb("test", enough=lambda: False, urgent=True))) == 1


@pytest.mark.parametrize(
    ("version", "told"),
    [((3, 13, 9), False), ((3, 14, 0), True), ((3, 14, 4), True), ((3, 14, 5), False), ((3, 15, 0), False)],
)
def test_the_incremental_collector_is_advised_against(version: tuple[int, int, int], told: bool) -> None:
    assert bool(advice(version)) is told
    assert isinstance(advice(), str)


def test_between_cleanups_a_collection_must_have_been_earned_before() -> None:
    clock, spent_s = FakeClock(), 0.0

    class Slow(Collect):
        cooldown_s = 1.0

        def apply(self, machine: object) -> int | None:
            clock.advance(0.5)
            return 0

    slow, resident = Slow(), [1 << 60]

    def shrinking() -> int:
        resident[0] = resident[0] * 98 // 100
        return resident[0]

    with FakeMachine() as machine:
        ladder = Ladder((slow,), machine=machine, clock=clock, resident_bytes=shrinking, gil_share=0.01)
        start_s = clock.monotonic()
        assert not ladder.due(slow)
        for _ in range(1000):
            clock.advance(1.0)
            if ladder.due(slow):
                spent_s += ladder.apply(slow, "test").duration_s
                first = spent_s == 0.5
                assert first or spent_s <= 0.0101 * (clock.monotonic() - start_s)
    assert spent_s >= 0.008 * (clock.monotonic() - start_s)


def test_what_is_thought_to_take_long_must_be_earned_for_longer() -> None:
    clock, collector = FakeClock(), Collect()
    with FakeMachine() as machine:
        ladder = Ladder((collector,), machine=machine, clock=clock, resident_bytes=lambda: 1, gil_share=0.01)
        clock.advance(11.0)
        assert ladder.due(collector)
        assert not ladder.due(collector, expected_s=0.5)
        clock.advance(40.0)
        assert ladder.due(collector, expected_s=0.5)
