"""Tracking by line: the line that holds and the line that grows are named, and it is switched off whatever happens."""

from __future__ import annotations

import inspect
import tracemalloc
from threading import Event
from typing import TYPE_CHECKING

import pytest

from memwarden.diagnose import track_lines
from memwarden.errors import ConfigError
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memwarden.diagnose import LineRow


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    assert not tracemalloc.is_tracing()
    yield
    assert not tracemalloc.is_tracing()


class _Program:
    """Warms up once in the first part of the time, and leaks in both."""

    def __init__(self) -> None:
        self.warm: list[bytes] = []
        self.leak: list[bytes] = []

    def warm_up(self) -> None:
        self.warm.append(b"w" * 900_000)

    def request(self) -> None:
        self.leak.append(b"l" * 200_000)

    def on_wait(self, _seconds: float) -> None:
        if not self.warm:
            self.warm_up()
        self.request()


def _names(rows: tuple[LineRow, ...], function: object) -> list[int]:
    """Where in the rows the lines of this function stand."""
    lines, first = inspect.getsourcelines(function)  # type: ignore[arg-type]
    inside = range(first, first + len(lines))
    return [place for place, row in enumerate(rows) if row.file == __file__ and row.line in inside]


def test_the_largest_line_and_the_growing_line_are_told_apart() -> None:
    program = _Program()
    clock = FakeClock(on_wait=program.on_wait)
    found = track_lines(30.0, clock=clock)
    assert clock.waited_s == pytest.approx([10.0, 20.0])
    assert _names(found.held, _Program.warm_up)[:1] == [0]  # 3.12 counts small things of that function, too
    assert _names(found.grown, _Program.request) == [0]
    assert _names(found.grown, _Program.warm_up) == []
    grown = found.grown[0]
    assert (grown.held_bytes - grown.grown_bytes) == pytest.approx(200_000, abs=1000)
    assert grown.held_bytes == pytest.approx(400_000, abs=1000)
    assert found.tracked_bytes >= 1_300_000
    assert (found.duration_s, found.frames) == (30.0, 1)
    assert found.own_bytes > 0


def test_no_more_rows_than_asked_for() -> None:
    found = track_lines(1.0, clock=FakeClock(on_wait=_Program().on_wait), top=1)
    assert (len(found.held), len(found.grown)) == (1, 1)


def test_who_sets_the_event_ends_it_early() -> None:
    event, clock = Event(), FakeClock()
    event.set()
    assert track_lines(60.0, clock=clock, stop=event).duration_s == 0.0
    assert clock.waited_s == []


def test_it_is_switched_off_when_the_wait_is_interrupted() -> None:
    def interrupt(_seconds: float) -> None:
        assert tracemalloc.is_tracing()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track_lines(60.0, clock=FakeClock(on_wait=interrupt))


def test_somebody_elses_tracking_is_left_alone() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="tracemalloc is on already"):
            track_lines(1.0, clock=FakeClock())
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (601.0, 1), (1.0, 0), (1.0, 26)]
)
def test_what_cannot_be_used_is_refused_before_it_begins(seconds: float, frames: int) -> None:
    with pytest.raises(ConfigError, match="is no usable"):
        track_lines(seconds, clock=FakeClock(), frames=frames)
