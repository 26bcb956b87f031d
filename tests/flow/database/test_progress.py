"""The bar on a terminal, nothing into a pipe; and what a rate makes of the time that is left."""

from __future__ import annotations

import io

from rich.console import Console

from memwarden.facts import Level
from memwarden.flow.database._bar import Bar
from memwarden.flow.database.progress import Progress, Tally
from memwarden.testing import FakeClock, pressure


def _run(bar: Bar) -> None:
    clock = FakeClock()
    tally = Tally("copy", clock, total=200, tell=bar)
    with bar:
        for _ in range(2):
            clock.advance(1.0)
            tally.done(100, 1 << 20)


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    _run(Bar(Console(file=out, force_terminal=True, width=100)))
    text = out.getvalue()
    assert "copy" in text
    assert "200/200" in text
    assert "100%" in text
    assert "0 s left" in text


def test_nothing_into_a_pipe() -> None:
    out = io.StringIO()
    _run(Bar(Console(file=out, force_terminal=False)))
    assert out.getvalue().strip() == ""


def test_the_rate_follows_and_the_memory_is_the_wardens() -> None:
    clock = FakeClock()
    told: list[Progress] = []
    tally = Tally(None, clock, processed=500, total=10_000, pressure=pressure(Level.NORMAL), tell=told.append)
    for _ in range(10):
        clock.advance(1.0)
        tally.done(100, 10)
    for _ in range(200):
        clock.advance(1.0)
        tally.done(10, 10)
    assert told[9].rows_per_s == 100.0
    assert told[9].processed == 1500
    assert told[9].eta_s == 85.0
    assert abs((told[-1].rows_per_s or 0) - 10.0) < 0.5
    assert (told[-1].memory_bytes or 0) > 0
    assert told[-1].percent == 100.0 * 3500 / 10_000


def test_more_rows_than_were_counted_do_not_pass_a_hundred_percent() -> None:
    clock = FakeClock()
    told: list[Progress] = []
    tally = Tally(None, clock, total=10, tell=told.append)
    clock.advance(1.0)
    tally.done(20, 10)
    assert (told[0].total, told[0].percent, told[0].eta_s) == (20, 100.0, 0.0)
    empty = Tally(None, clock, total=0).now()
    assert (empty.percent, empty.eta_s) == (100.0, None)
