"""What a running Warden does about its findings: tells, probes, obeys its switches."""

from __future__ import annotations

import gc
import logging
import threading
from random import Random
from typing import TYPE_CHECKING

import pytest

from .conftest import MIB, PATIENCE_S, box_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.facts import Finding

    from .conftest import Stage


class Leaking:
    """What `Stage.run` calls at each wait: the process grows. Each wait is one round at the interval."""

    def __init__(self, stage: Stage, mib: float) -> None:
        self.stage, self.mib, self.rng, self.size = stage, mib, Random(1), 60.0
        stage.machine.set_limit(64 << 30)  # so far away that every wait is the interval

    def __call__(self, _number: int) -> None:
        self.size += self.mib
        size = int((self.size + self.rng.gauss(0, 0.1)) * MIB)
        self.stage.machine.set_rss(size)
        self.stage.machine._used_bytes = size
        self.stage.machine.set_usage(size)


class Ears:
    """A callback of findings that can be waited for."""

    def __init__(self) -> None:
        self.heard: list[Finding] = []
        self._more = threading.Condition()

    def __call__(self, finding: Finding) -> None:
        with self._more:
            self.heard.append(finding)
            self._more.notify_all()

    def whats(self, least: int) -> list[str]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.heard) >= least, PATIENCE_S), self.heard
            return [each.what for each in self.heard]


def test_a_running_warden_tells_a_leak_by_callback_log_and_black_box_and_probes_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memwarden.warden")
    warden, on_leak, on_finding = stage.warden(), Ears(), Ears()
    warden.on_leak(on_leak)
    take_back = warden.on_finding(on_finding)
    stage.run(warden, 130, Leaking(stage, 0.5))
    assert on_leak.whats(2) == ["suspected", "confirmed"]
    assert on_finding.whats(2) == ["suspected", "confirmed"]
    assert warden.leak.stage == "confirmed"
    assert [each.action for each in warden.outcomes if each.reason == "a leak is suspected"] == ["collect"]
    assert [e.text.partition(":")[0] for e in box_of(warden).events if e.kind == "leak"] == ["suspected", "confirmed"]
    lines = [each.getMessage() for each in caplog.records if each.getMessage().startswith("leak ")]
    assert [line.partition(":")[0] for line in lines] == ["leak suspected", "leak confirmed"]
    assert warden.errors == 0
    take_back()
    assert warden.statistics().leak.stage == "confirmed"


def test_the_leak_stays_in_the_black_box_however_much_happens_after(stage: Stage) -> None:
    warden = stage.warden()
    stage.run(warden, 130, Leaking(stage, 0.5))
    state = box_of(warden).leak
    assert state is not None
    assert (state.stage, state.confidence) == ("confirmed", warden.leak.confidence)
    assert state.since_unix_s == warden.leak.since_unix_s
    assert state.text.startswith("confirmed: ")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_census_can_be_switched_off(stage: Stage, wanted: bool) -> None:
    stage.machine.python_blocks = lambda: 100_000  # type: ignore[method-assign]  # the stage's machine is a fake
    warden = stage.warden(leak_census=wanted)
    stage.run(warden, 130, Leaking(stage, 0.5))
    assert warden.leak.stage == "confirmed"
    assert (warden._types is not None and warden._types.taken > 0) is wanted


def test_a_healthy_one_is_left_alone(stage: Stage) -> None:
    warden, ears = stage.warden(), Ears()
    warden.on_finding(ears)
    stage.run(warden, 400, Leaking(stage, 0.0))
    assert (ears.heard, warden.leak.stage, warden.errors) == ([], "quiet", 0)
    assert not warden.outcomes


@pytest.mark.parametrize("setting", ["leak_probe", "proactive_gc", "relieve"])
def test_the_probe_can_be_switched_off(stage: Stage, setting: str) -> None:
    warden, ears = stage.warden(**{setting: False}), Ears()
    warden.on_leak(ears)
    stage.run(warden, 90, Leaking(stage, 0.5))
    assert ears.whats(1)[0] == "suspected"
    assert [each for each in warden.outcomes if each.action == "collect"] == []


def test_a_forked_child_whose_heap_is_not_frozen_is_not_probed(stage: Stage) -> None:
    stage.machine.forked = lambda: True  # type: ignore[method-assign]
    warden, ears = stage.warden(), Ears()
    warden.on_leak(ears)
    gc.unfreeze()
    stage.run(warden, 130, Leaking(stage, 0.5))
    assert ears.whats(2) == ["suspected", "confirmed"]
    assert "twice as long" in ears.heard[1].text  # by time alone
    assert [each for each in warden.outcomes if each.action == "collect"] == []


def test_switched_off_it_says_so_and_finds_nothing(stage: Stage) -> None:
    for config in ({"leak_detection": False}, {"enabled": False}):
        warden = stage.warden(**config)
        assert (warden.leak.stage, warden.leak.reason) == ("off", "leak detection is switched off")
    warden, ears = stage.warden(leak_detection=False), Ears()
    warden.on_finding(ears)
    stage.run(warden, 130, Leaking(stage, 0.5))
    assert ears.heard == []


def test_a_forked_child_begins_a_fresh_watch(stage: Stage) -> None:
    warden = stage.warden()
    stage.run(warden, 90, Leaking(stage, 0.5))
    assert warden.leak.samples > 40
    warden.stop()
    warden._after_fork()
    assert (warden.leak.stage, warden.leak.samples) == ("quiet", 0)


class Cache:
    """A declared cache that says what it holds, or raises, or hangs."""

    def __init__(self, name: str, held: Callable[[], int]) -> None:
        self.name, self._held = name, held

    @property
    def held_bytes(self) -> int:
        return self._held()

    def shed(self, size_bytes: int) -> int:
        return 0


def test_sheddables_are_declared_caches_and_one_that_raises_is_asked_no_more(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    warden = stage.warden()
    cleanup = warden._cleanup
    assert cleanup.declared_bytes() is None
    sizes = iter([0, 5 * MIB])  # it is looked at once when it is registered
    good, bad = Cache("good", lambda: 3 * MIB), Cache("bad", lambda: next(sizes))
    warden.add_sheddable(good)
    warden.add_sheddable(bad)
    assert [cleanup.declared_bytes() for _ in range(3)] == [8 * MIB] * 3
    assert len([each for each in caplog.records if "bad does not say" in each.getMessage()]) == 1


def test_work_is_what_was_counted_or_else_the_operations_that_ended(stage: Stage) -> None:
    warden = stage.warden()
    assert warden._measured.work() is None
    for _ in range(3):
        with warden.operation("request"):
            pass
    assert warden._measured.work() == 3
    warden.work_done(10)
    warden.work_done()
    assert warden._measured.work() == 11


@pytest.mark.parametrize(
    ("setting", "ratio", "expected"),
    [("critical_cleanup", 0.92, False), ("critical_cleanup", 0.97, True), ("emergency_cleanup", 0.97, False)],
)
def test_each_level_can_be_kept_from_acting(stage: Stage, setting: str, ratio: float, expected: bool) -> None:
    warden = stage.warden(**{setting: False})
    stage.look(warden, 0.3)
    stage.look(warden, ratio)
    assert any("by itself" in each.reason for each in warden.outcomes) is expected


def test_warning_can_be_kept_from_looking_more_often(stage: Stage) -> None:
    paces = {}
    for faster in (True, False):
        warden = stage.warden(warning_faster=faster)
        stage.look(warden, 0.8)
        paces[faster] = warden._pace()
    assert paces[True] <= 1.0
    assert paces[False] == 15.0
