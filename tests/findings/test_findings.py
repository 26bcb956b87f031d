"""Leaks, rapid growth and spikes as a running Warden finds them: each told once, whatever the clock does."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden.facts import Reading, Surroundings
from memwarden.findings import Findings
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from memwarden.facts import Finding

MIB = 1 << 20


class Heap:
    """What tells of the heap; a walk through it takes `walk_s`."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.walk_s, self.walks = clock, 0.0, 0
        self.live_bytes: float | None = None

    def walk(self) -> dict[str, float | None]:
        self.walks += 1
        self.clock.advance(self.walk_s)
        if self.live_bytes is None:
            return {}
        return {"python_blocks": self.live_bytes // 64, "native_in_use_bytes": 10.0 * MIB}


class Process:
    """A process that is watched at 15 s: feed it growth, and hear what is told."""

    def __init__(self, *, seed: int = 1, every_s: float = 15.0) -> None:
        self.clock = FakeClock()
        self.heap = Heap(self.clock)
        self.rng, self.mib, self.every_s = Random(seed), 100.0, every_s
        self.work: float | None = None
        self.declared: int | None = None
        self.told: list[Finding] = []
        self.findings = Findings(clock=self.clock, pid=1, leak_s=15.0, window_s=1800.0, columns=self.columns)

    def columns(self) -> dict[str, float | None]:
        return {**self.heap.walk(), "work_done": self.work, "declared_cache_bytes": self.declared}

    def live(self, samples: int, *, mib: float = 0.0, noise: float = 0.2, calm: bool = True) -> list[str]:
        """So many readings, each so much larger than the one before; what was told, in two words."""
        heard = []
        for _ in range(samples):
            self.clock.advance(self.every_s)
            self.mib += mib
            found = self.findings.sample(self.reading(self.mib + self.rng.gauss(0, noise)), calm=calm)
            self.told += found
            heard += [f"{each.kind} {each.what}" for each in found]
        return heard

    def until_suspected(self) -> None:
        while not self.findings.wants_probe:
            self.live(1, mib=0.5)

    def reading(self, mib: float) -> Reading:
        size, now_s = int(mib * MIB), self.clock.monotonic()
        return Reading(
            monotonic_s=now_s, unix_s=self.clock.wall(), pid=1, rss_bytes=size, used_bytes=size, used_low_bytes=size,
            limit_bytes=4096 * MIB, limit_source="test", around=Surroundings(monotonic_s=now_s, anon_bytes=size),
        )  # fmt: skip


@pytest.fixture
def process() -> Process:
    return Process()


def test_a_leak_lives_its_life_and_each_step_is_told_once(process: Process) -> None:
    assert process.findings.leak.stage == "quiet"
    process.until_suspected()
    leak = process.findings.leak
    assert (leak.stage, leak.since_unix_s) == ("suspected", process.clock.wall())
    assert leak.confidence >= 60
    assert leak.evidence
    assert "seems to leak" in leak.advice[0]
    process.findings.probed(0)
    assert not process.findings.wants_probe
    process.live(20, mib=0.5)
    leak = process.findings.leak
    assert (leak.stage, leak.confidence >= 75) == ("confirmed", True)
    process.live(2500)
    assert process.findings.leak.stage == "quiet"
    assert [each.what for each in process.told if each.kind == "leak"] == ["suspected", "confirmed", "resolved"]
    assert "only 0% of the growth" in process.told[1].text
    assert process.told[0].leak is not None


def test_a_probe_that_gives_the_growth_back_withdraws_it(process: Process) -> None:
    process.until_suspected()
    process.findings.probed(1000 * MIB)
    assert process.live(20, mib=0.5)[0] == "leak withdrawn"


def test_a_witness_confirms_it(process: Process) -> None:
    process.until_suspected()
    process.findings.witness("30 000 more Order than an hour ago")
    assert process.live(20, mib=0.5) == ["leak confirmed"]
    assert process.told[-1].text.startswith("30 000 more Order")


def test_a_leak_is_told_when_it_has_taken_enough_and_not_before() -> None:
    """12 MiB that grow by 4 KiB every 15 s, in perfect order: 3 % in 20 minutes, and 2 MiB after two hours."""
    process = Process()
    process.mib = 12.0
    assert process.live(200, mib=4 / 1024, noise=0.001) == []
    assert (process.findings.leak.stage, process.findings.wants_probe) == ("quiet", False)
    assert process.live(500, mib=4 / 1024, noise=0.001)[0] == "leak suspected"
    assert process.mib >= 12 + 2


def test_a_small_leak_that_ends_before_it_is_told_is_never_told() -> None:
    process = Process()
    process.mib = 12.0
    process.live(150, mib=4 / 1024, noise=0.001)
    assert process.live(3000, noise=0.001) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_process_is_never_spoken_of(seed: int) -> None:
    process = Process(seed=seed)
    assert process.live(1500, noise=1.0) == []
    assert process.findings.leak.stage == "quiet"


def test_growth_of_declared_caches_is_none(process: Process) -> None:
    process.declared = 0
    for _ in range(300):
        process.declared += MIB // 2
        assert process.live(1, mib=0.5) == []


def test_growth_that_traffic_explains_is_told_from_a_leak_by_the_work(process: Process) -> None:
    """The same rise over time: once with work that goes on evenly, once with work that does all of it."""
    process.work = 0.0
    for _ in range(200):
        process.work += 100
        process.live(1, mib=0.5)
    assert process.findings.leak.stage == "confirmed"
    assert "with the work done" in process.findings.leak.evidence[0]


def test_objects_that_pile_up_are_named_as_the_cause(process: Process) -> None:
    process.heap.live_bytes = 50.0 * MIB
    for _ in range(150):
        process.heap.live_bytes += MIB / 2
        process.live(1, mib=0.5)
    assert (process.findings.leak.stage, process.findings.leak.cause) == ("confirmed", "python")


@pytest.mark.parametrize("gap_s", [600.0, 7200.0, 30 * 86400.0, -500.0, -1e6])
def test_what_happened_in_a_gap_is_not_growth_and_its_time_confirms_nothing(gap_s: float) -> None:
    """A machine that was suspended, a process that was stopped, a clock that jumped, forwards and back."""
    process = Process()
    process.live(100)
    process.clock.advance(gap_s)
    process.mib += 300
    assert [each for each in process.live(100) if "leak" in each] == []
    process = Process()
    process.until_suspected()
    process.clock.advance(gap_s)
    assert [each for each in process.live(5, mib=0.5) if "leak" in each] == []
    assert process.findings.leak.stage == "suspected"


def test_a_counter_of_work_that_runs_backwards_does_not_begin_anew(process: Process) -> None:
    process.work = 0.0
    for i in range(200):
        process.work += 100 if i % 20 else -50
        process.live(1, mib=0.5)
    assert process.findings.leak.stage == "confirmed"


def test_no_look_is_taken_while_memory_is_short(process: Process) -> None:
    assert process.live(300, mib=0.5, calm=False) == []
    assert process.findings.leak.reason == "too few samples to judge"
    assert process.live(60, mib=0.5)[0] == "leak suspected"


def test_a_walk_through_a_large_heap_takes_a_thousandth_of_the_time_at_most() -> None:
    process = Process(every_s=1.0)
    process.heap.walk_s = 0.1
    process.live(10_000)
    assert 90 <= process.heap.walks <= 102


def test_one_slow_walk_alone_does_not_slow_the_watch_down() -> None:
    process = Process(every_s=1.0)
    process.live(100)
    before, process.heap.walk_s = process.heap.walks, 10.0
    while process.heap.walks == before:
        process.live(1)
    process.heap.walk_s = 0.0
    process.live(150)
    assert process.heap.walks - before >= 10  # one in 15 s


def test_rapid_growth_is_told_when_it_begins_and_when_it_is_over() -> None:
    process = Process(every_s=1.0)
    process.live(300)
    assert process.live(55, mib=1.5) == []  # not yet a minute
    assert process.live(120, mib=1.5) == ["rapid growth began"]
    assert "a minute" in process.told[-1].text
    assert [each for each in process.live(400) if "rapid" in each] == ["rapid growth ended"]


def test_growth_below_the_line_is_not_rapid() -> None:
    process = Process(every_s=1.0)
    assert [each for each in process.live(600, mib=0.7) if "rapid" in each] == []


def test_a_spike_is_told_once_and_those_soon_after_it_are_counted() -> None:
    process = Process(every_s=5.0)
    process.live(120)
    for _ in range(3):
        process.mib += 80
        process.live(2)
        process.mib -= 80
        process.live(30)
    spikes = [each for each in process.told if each.kind == "spike"]
    assert len(spikes) == 1
    assert "80" in spikes[0].text
    process.live(120)
    process.mib += 80
    process.live(2)
    process.mib -= 80
    process.live(30)
    spikes = [each for each in process.told if each.kind == "spike"]
    assert len(spikes) == 2
    assert spikes[1].text.endswith("2 more since the last that was told")


@given(st.lists(st.tuples(st.floats(-100, 1e5), st.one_of(st.none(), st.integers(0, 1 << 40))), max_size=120))
@settings(max_examples=30, deadline=None)
def test_no_reading_whatever_breaks_it(steps: list[tuple[float, int | None]]) -> None:
    process = Process()
    for step_s, rss in steps:
        process.clock.advance(step_s)
        reading = process.reading(0).replace(rss_bytes=rss, used_bytes=rss)
        for each in process.findings.sample(reading):
            assert each.text.isprintable()
