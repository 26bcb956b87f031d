"""The periodic monitor: a record each minute, bounded memory, alerts told once."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import ConfigError, Warden
from memwarden.monitor import PeriodicMonitor, Sample
from memwarden.testing import FakeClock, FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
PATIENCE_S = 20.0


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    with FakeMachine(limit_bytes=100 * MIB, used_bytes=40 * MIB) as made:
        yield made


def _use(machine: FakeMachine, monitor: PeriodicMonitor, used_mib: int) -> Sample:
    machine.set_usage(used_mib * MIB)
    machine.set_rss(used_mib * MIB)
    monitor._clock.advance(60)  # type: ignore[attr-defined]
    return monitor.sample()


def _monitor(machine: FakeMachine, **options: Any) -> PeriodicMonitor:
    return PeriodicMonitor(machine=machine, clock=FakeClock(), **options)


def test_the_record_carries_heap_used_total_percent_difference_and_rss(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memwarden.monitor")
    monitor = _monitor(machine)
    monitor.sample()
    _use(machine, monitor, 50)
    record: Any = [each for each in caplog.records if each.name == "memwarden.monitor"][-1]
    assert record.getMessage() == "heap 50 MiB of 100 MiB (50 %), 10 MiB since the last, RSS 50 MiB"
    assert (record.heap_used_bytes, record.heap_total_bytes, record.heap_percent) == (50 * MIB, 100 * MIB, 50.0)
    assert (record.difference_bytes, record.rss_bytes) == (10 * MIB, 50 * MIB)


def test_it_samples_every_minute_by_itself_and_keeps_no_more_than_it_was_told(machine: FakeMachine) -> None:
    clock = FakeClock(waits=200)
    monitor = PeriodicMonitor(machine=machine, clock=clock)
    with monitor:
        assert clock.rested.wait(PATIENCE_S)
        assert monitor.start() is monitor
        assert threading.active_count() < 10
    assert set(clock.waited_s) == {60.0}
    assert len(monitor.samples) == 60
    assert monitor.samples[-1].unix_s - monitor.samples[0].unix_s == 59 * 60
    assert not monitor.running
    assert "memwarden-monitor" not in {thread.name for thread in threading.enumerate()}


def test_it_can_be_started_again(machine: FakeMachine) -> None:
    clock = FakeClock(waits=0)
    monitor = PeriodicMonitor(machine=machine, clock=clock)
    monitor.start().stop()
    monitor.stop()
    with monitor:
        assert monitor.running
    assert len(monitor.samples) == 2


def test_the_alert_is_told_once_until_it_is_over(machine: FakeMachine) -> None:
    told: list[float | None] = []
    monitor = _monitor(machine, on_alert=lambda sample: told.append(sample.used_percent))
    for used in (40, 70, 71, 90, 68, 72, 60, 75):
        _use(machine, monitor, used)
    assert told == [71.0, 75.0]


def test_growth_by_the_factor_over_a_full_window_is_told_once(machine: FakeMachine) -> None:
    told: list[float] = []
    monitor = _monitor(machine, samples=5, on_growth=lambda _, factor: told.append(factor))
    for used in (20, 29, 20, 40, 29):
        _use(machine, monitor, used)
    assert told == []
    for used in (44, 45, 61, 62, 30, 70):
        _use(machine, monitor, used)
    assert told == [pytest.approx(44 / 29), pytest.approx(70 / 45)]
    off = _monitor(machine, samples=2, growth=None, on_growth=lambda _, factor: told.append(factor))
    for used in (10, 90):
        _use(machine, off, used)
    assert len(told) == 2


def test_a_callback_that_raises_stops_nothing(machine: FakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken callback")

    monitor = _monitor(machine, samples=2, on_alert=broken, on_growth=broken)
    for used in (10, 90, 91):
        _use(machine, monitor, used)
    assert len(monitor.samples) == 2
    assert caplog.text.count("RuntimeError: broken callback") == 2


def test_a_sample_that_fails_is_logged_and_the_next_minute_comes(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind(Warden):
        looks = 0

        def check(self, operation: str | None = None) -> Any:
            self.looks += 1
            raise OSError("no such file")

    clock = FakeClock(waits=5)
    warden = Blind(machine=machine, clock=clock)
    with PeriodicMonitor(warden):
        assert clock.rested.wait(PATIENCE_S)
    assert warden.looks == 6
    assert "no such file" in caplog.text


def test_what_is_unknown_is_none_and_no_alert() -> None:
    with FakeMachine({}) as nothing:
        found = _monitor(nothing, on_alert=lambda sample: pytest.fail("alert")).sample()
    assert (found.heap_used_bytes, found.heap_percent, found.used_percent, found.rss_bytes) == (None,) * 4


def test_operations_are_measured_and_logged_even_when_they_fail(
    machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memwarden.monitor")
    monitor = _monitor(machine)

    @monitor.wrap_operation
    def grow(used_mib: int) -> str:
        """Doc."""
        machine.set_rss(used_mib * MIB)
        if used_mib > 60:
            raise KeyError(used_mib)
        return "grown"

    async def later() -> str:
        await asyncio.sleep(0)
        return "later"

    assert grow(50) == "grown"
    assert grow.__doc__ == "Doc."
    with pytest.raises(KeyError):
        grow(70)
    assert asyncio.run(monitor.wrap_operation(later, name="import")()) == "later"
    records: list[Any] = [record for record in caplog.records if hasattr(record, "operation")]
    assert [(record.difference_bytes, record.failed) for record in records] == [
        (10 * MIB, False), (20 * MIB, True), (0, False),
    ]  # fmt: skip
    assert records[2].operation == "import"
    assert "failed" in records[1].getMessage()


def test_in_a_forked_child_it_stands_still_until_it_is_started_there(machine: FakeMachine) -> None:
    monitor = PeriodicMonitor(machine=machine, clock=FakeClock(waits=0))
    with monitor:
        child = os.fork()
        if child == 0:
            try:
                before = monitor.running
                monitor.start()
                os._exit(0 if not before and monitor.running else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0}, {"interval": "soon"}, {"samples": 1}, {"samples": 2.5}, {"samples": True}, {"alert": 1},
        {"alert": 300}, {"growth": 1}, {"growth": float("nan")}, {"growth": "much"},
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(machine: FakeMachine, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        _monitor(machine, **options)
    assert "\n" not in str(caught.value)


def test_a_warden_has_its_own_limit(machine: FakeMachine) -> None:
    with pytest.raises(ConfigError, match="its own limit"):
        PeriodicMonitor(Warden(machine=machine), limit="1G")
