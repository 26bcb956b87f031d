"""The guard: records, safe points, relief, and what it does not do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from memwarden.errors import MemoryPressureError
from memwarden.jobs import Run, process_in_chunks
from memwarden.jobs.guard import LONGEST_S, Guard
from memwarden.jobs.leaks import Runs
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
KEYS = {
    "job", "operation", "current_memory_mb", "peak_memory_mb", "memory_limit_mb", "usage_percentage",
}  # fmt: skip


class Sizes:
    """Resident bytes as the test has them; counts how often it was asked."""

    def __init__(self, mib: float) -> None:
        self.mib = mib
        self.reads = 0

    def value(self) -> int:
        self.reads += 1
        return int(self.mib * MIB)

    def close(self) -> None:
        """Nothing."""


def guard_of(sizes: Sizes, clock: FakeClock, **options: object) -> Guard:
    made = Guard("work", 100 * MIB, resident=sizes, clock=clock, **options)  # type: ignore[arg-type]  # from a test
    made.enter()
    return made


def test_each_check_is_one_record_with_exactly_the_keys_of_the_requirement(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="memwarden.jobs")
    sizes, clock = Sizes(40), FakeClock()
    guard = guard_of(sizes, clock)
    clock.advance(1)
    sizes.mib = 60
    guard.check("load")
    clock.advance(1)
    sizes.mib = 50
    guard.exit()
    records = [record for record in caplog.records if record.name == "memwarden.jobs"]
    plain = set(vars(logging.makeLogRecord({})))
    assert [set(vars(record)) - plain - {"message", "asctime"} for record in records] == [KEYS] * 3
    assert [record.__dict__["operation"] for record in records] == ["start", "load", "end"]
    middle = records[1].__dict__
    assert (middle["job"], middle["current_memory_mb"], middle["peak_memory_mb"]) == ("work", 60.0, 60.0)
    assert (middle["memory_limit_mb"], middle["usage_percentage"]) == (100.0, 60.0)
    figures = guard.figures
    assert (figures.growth_bytes, figures.peak_bytes) == (10 * MIB, 60 * MIB)


def test_calm_checks_do_not_read() -> None:
    sizes, clock = Sizes(10), FakeClock()
    guard = guard_of(sizes, clock)
    for _ in range(1000):
        guard.check()
    assert sizes.reads == 1
    clock.advance(LONGEST_S)
    guard.check()
    assert sizes.reads == 2


def test_the_fastest_growth_cannot_pass_half_of_what_is_left_unseen() -> None:
    """4 GiB/s towards the warning line at 80 MiB: from each reading on, at most half of the way."""
    sizes, clock = Sizes(10), FakeClock()
    guard = guard_of(sizes, clock)
    seen = []
    while sizes.mib < 79:
        before = sizes.reads
        clock.advance(0.0001)
        sizes.mib += 0.0001 * 4096
        guard.check()
        if sizes.reads > before:
            seen.append(sizes.mib)
    assert seen[0] <= 46
    assert len(seen) > 4


def test_it_sheds_at_the_warning_line_once_on_the_way_up() -> None:
    asked: list[int] = []
    sizes, clock = Sizes(70), FakeClock()
    guard = guard_of(sizes, clock, shed=asked.append)
    for mib in (81, 82, 83, 84, 85):
        clock.advance(0.2)
        sizes.mib = mib
        assert not guard.check()
    assert asked == [MIB]
    clock.advance(2)
    sizes.mib = 90
    guard.check()
    assert len(asked) == 2  # after a rest, and a twentieth more


def test_it_is_over_at_the_limit_and_not_before() -> None:
    sizes, clock = Sizes(99), FakeClock()
    guard = guard_of(sizes, clock)
    assert not guard.is_over
    clock.advance(1)
    sizes.mib = 100
    assert guard.check()


def test_what_cannot_be_read_stops_nothing() -> None:
    sizes, clock = Sizes(50), FakeClock()
    guard = guard_of(sizes, clock)
    sizes.value = lambda: None  # type: ignore[method-assign,assignment,return-value]  # no /proc
    clock.advance(1)
    assert not guard.check()
    assert guard.exit().growth_bytes is None


# --- from run to run -----------------------------------------------------------------------------------------------


def test_a_job_that_keeps_a_mebibyte_each_run_is_told_and_one_that_does_not_is_not() -> None:
    runs, told = Runs(), []
    for number in range(120):
        told.append(runs.over("leaky", (50 + number) * MIB, limit_bytes=1 << 30))
        assert runs.over("healthy", (50 + (number * 7919) % 13) * MIB, limit_bytes=1 << 30) == ""
    words = [each for each in told if each]
    assert words
    assert "a leak is suspected" in words[0]
    assert "1 MiB a run" in words[0] or "KiB a run" in words[0]


# --- process_in_chunks ---------------------------------------------------------------------------------------------


def test_results_come_one_by_one_and_nothing_is_read_ahead() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = process_in_chunks(numbers(), sum, 10, limit=1 << 40)
    assert next(results) == sum(range(10))
    assert len(read) <= 20
    assert sum(results) == sum(range(10, 1000))


def test_at_the_limit_it_says_how_far_it_came() -> None:
    held = []

    def keep(chunk: list[int]) -> None:
        held.append(bytearray(b"x") * (8 * MIB))

    base = Guard("base", 1 << 40)
    base.enter()
    limit = (base.current_bytes or 0) + 64 * MIB
    with pytest.raises(MemoryPressureError, match=r"are in use behind [0-9]+ items"):
        for _ in process_in_chunks(range(10_000), keep, 10, limit=limit):
            pass
    assert 5 <= len(held) <= 10


def test_wrong_options_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="size: 0 is no such number"):
        process_in_chunks([1], sum, 0)
    with pytest.raises(ValueError, match="is no function"):
        process_in_chunks([1], 7)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(("cursor", "saved", "said"), [(None, False, 1), (None, True, 0), ("7", False, 0)])
def test_only_a_body_that_has_kept_no_place_so_far_is_told_that_it_will_be_stopped(
    caplog: pytest.LogCaptureFixture, cursor: str | None, saved: bool, said: int
) -> None:
    guard = guard_of(Sizes(90), FakeClock())
    run = Run(
        id="a", part=0, attempt=1, name="work", guard=guard, stop=str, keep=lambda _text, _items: None, cursor=cursor
    )
    if saved:
        run.save(3)
    run.check()
    run.check()
    assert caplog.text.count("has no items to split or to resume by") == said
