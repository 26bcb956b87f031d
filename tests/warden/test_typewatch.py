"""The types that grow while a leak is suspected: found in real heaps, and only where looking for them does no harm."""

from __future__ import annotations

import gc
from random import Random
from typing import TYPE_CHECKING

import pytest

from memwarden.diagnose.census import Census, TypeRow
from memwarden.facts import Reading, Surroundings
from memwarden.findings import Findings
from memwarden.testing import FakeClock
from memwarden.warden.typewatch import MOST, MOST_BLOCKS, TypeWatch

if TYPE_CHECKING:
    from memwarden.facts import Finding

MIB = 1 << 20
EVERY_S = 15.0


class Order:
    """What piles up."""


class Process:
    """A process that grows by half a MiB every 15 s, and what its heap is made of."""

    def __init__(self, **world: object) -> None:
        self.clock, self.rng, self.mib = FakeClock(), Random(1), 100.0
        self.blocks: int | None = 100_000
        self.limit_mib, self.shared, self.cost_s = 4096, False, 0.01
        self.orders, self.others = 1000, 0
        self.told: list[Finding] = []
        self.findings = Findings(clock=self.clock, pid=1, leak_s=EVERY_S, window_s=1800.0, columns=dict)
        self.types = TypeWatch(
            self.findings, clock=self.clock, blocks=lambda: self.blocks, forked=lambda: self.shared, count=self.count
        )

    def count(self) -> Census:
        self.clock.advance(self.cost_s)
        rows = [
            TypeRow(type="shop.Order", count=self.orders, shallow_bytes=self.orders * 64),
            TypeRow(type="frame", count=self.others, shallow_bytes=self.others * 512),
        ]
        return Census(
            rows=tuple(rows), objects=2, shallow_bytes=3, other_types=0, other_count=0, other_bytes=0, least_bytes=0,
            frozen_objects=0, duration_s=0.0,
        )  # fmt: skip

    def live(self, samples: int, *, mib: float = 0.5, orders: int = 3000, others: int = 0) -> None:
        for _ in range(samples):
            self.clock.advance(EVERY_S)
            self.mib += mib
            self.orders += orders
            self.others += others
            size, now_s = int((self.mib + self.rng.gauss(0, 0.1)) * MIB), self.clock.monotonic()
            reading = Reading(
                monotonic_s=now_s, unix_s=self.clock.wall(), pid=1, rss_bytes=size, used_bytes=size,
                used_low_bytes=size, limit_bytes=self.limit_mib * MIB, limit_source="test",
                headroom_bytes=self.limit_mib * MIB - size, around=Surroundings(monotonic_s=now_s, anon_bytes=size),
            )  # fmt: skip
            self.types.step(reading)
            self.told += self.findings.sample(reading)
            self.types.step(reading)

    def whats(self) -> list[str]:
        return [each.what for each in self.told if each.kind == "leak"]


@pytest.fixture
def process() -> Process:
    return Process()


def test_a_type_that_grows_as_the_process_does_confirms_it_and_is_named(process: Process) -> None:
    process.live(39)
    assert process.types.taken == 0
    process.live(41)
    assert process.whats() == ["suspected", "confirmed"]
    suspected, confirmed = process.told
    assert "there are more and more objects: shop.Order +" in confirmed.text
    assert confirmed.monotonic_s - suspected.monotonic_s < 40 * EVERY_S  # time alone would take as long again
    assert process.types.taken == 2
    (named,) = process.findings.leak.growing
    assert named.startswith("shop.Order +")
    assert confirmed.leak is not None
    assert confirmed.leak.growing == (named,)


def test_types_that_do_not_grow_bear_no_witness(process: Process) -> None:
    """Strings, buffers, C: time alone confirms that, and the censuses end."""
    process.live(400, orders=0, others=1000)
    assert process.whats() == ["suspected", "confirmed"]
    assert "twice as long" in process.told[1].text
    assert process.findings.leak.growing == ()
    assert process.types.taken == MOST


def test_a_type_that_grows_much_less_than_the_process_is_none(process: Process) -> None:
    process.live(90, orders=20)
    assert process.findings.leak.growing == ()


def test_nobody_is_counted_where_nothing_is_suspected(process: Process) -> None:
    process.live(200, mib=0.0)
    assert (process.types.taken, process.whats()) == (0, [])


def test_the_next_suspicion_begins_anew(process: Process) -> None:
    process.live(80)
    process.live(1500, mib=0.0, orders=0)
    assert process.whats()[-1] == "resolved"
    assert (process.findings.leak.growing, process.types.taken) == ((), 0)


def test_a_dear_census_rests_for_a_thousand_times_as_long(process: Process) -> None:
    process.cost_s = 3.0
    process.live(100)
    assert process.types.taken == 1
    process.live(200)
    assert process.types.taken >= 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks": None}, "does not say"),
        ({"blocks": MOST_BLOCKS + 1}, "stopped for too long"),
        ({"blocks": 2_000_000, "limit_mib": 180}, "too little room"),
        ({"shared": True}, "copy every shared page"),
    ],
)
def test_none_is_taken_where_it_would_do_harm(process: Process, change: dict[str, object], reason: str) -> None:
    for name, value in change.items():
        setattr(process, name, value)
    process.live(60)
    assert process.findings.suspects
    assert process.types.taken == 0
    assert reason in process.types.reason


def test_a_real_heap_names_the_class_that_piles_up() -> None:
    process = Process()
    process.types = TypeWatch(process.findings, clock=process.clock, blocks=lambda: 100_000, forked=lambda: False)
    kept: list[list[Order]] = []
    gc.collect()
    while process.whats()[-1:] != ["confirmed"]:
        kept.append([Order() for _ in range(3000)])
        process.live(1)
        assert len(kept) < 200
    assert any(each.startswith(f"{__name__}.Order +") for each in process.findings.leak.growing)
    assert "Order +" in process.told[-1].text
