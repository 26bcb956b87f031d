"""Handlers over chunks: parallel, ordered or not, and what becomes of a row that fails."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden import flow
from memwarden.budget import Budget
from memwarden.errors import ConfigError, HandlerError, SourceError
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20


def collect(mapped: Any, into: list[Any], *, asynchronous: bool = False) -> None:
    """The results, which are lists, as far as it goes."""

    async def awaited() -> None:
        async for result in mapped:
            into.extend(result)

    if asynchronous:
        asyncio.run(awaited())
    else:
        for result in mapped:
            into.extend(result)


def run(mapped: Any, *, asynchronous: bool) -> list[Any]:
    async def awaited() -> list[Any]:
        return [result async for result in mapped]

    return asyncio.run(awaited()) if asynchronous else list(mapped)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_chunk_is_handled_once(asynchronous: bool, prefetch: int, parallel: int, ordered: bool) -> None:
    threads, budget = threading.active_count(), Budget("1M")
    stream = flow.chunks(range(95), rows=10, prefetch=prefetch, parallel=parallel, ordered=ordered, budget=budget)
    found = run(stream.map(sum), asynchronous=asynchronous)
    expected = [sum(range(at, min(95, at + 10))) for at in range(0, 95, 10)]
    assert (found if ordered else sorted(found)) == (expected if ordered else sorted(expected))
    assert stream.rows == 95
    assert budget.held_bytes == 0
    assert asynchronous or threading.active_count() == threads


class Meeting:
    """A handler that returns only where so many are inside at once, and counts the most."""

    def __init__(self, people: int) -> None:
        self.barrier = threading.Barrier(people, timeout=20)
        self.inside = 0
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, chunk: list[int]) -> int:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.barrier.wait()
        with self.lock:
            self.inside -= 1
        return chunk[0]


def test_as_many_as_said_are_handled_at_once() -> None:
    meeting = Meeting(3)
    assert list(flow.chunks(range(9), rows=1).map(meeting, parallel=3)) == list(range(9))
    assert meeting.most == 3


def test_results_come_as_completed_where_order_is_not_asked_for() -> None:
    """The first chunk is done only after the second one's result was seen."""
    seen = threading.Event()

    def handler(chunk: list[int]) -> int:
        if chunk[0] == 0:
            assert seen.wait(20)
        return chunk[0]

    found = []
    for result in flow.chunks(range(4), rows=1).map(handler, parallel=2, ordered=False):
        found.append(result)
        if result == 1:
            seen.set()
    assert found[0] == 1
    assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize("parallel", [1, 4])
def test_the_window_stays_in_the_budget(parallel: int) -> None:
    budget = Budget("1M")
    most = []

    def handler(chunk: list[str]) -> int:
        most.append(budget.held_bytes)
        return len(chunk)

    source = ("x" * 5000 for _ in range(2000))
    assert sum(flow.chunks(source, rows=None, budget=budget, parallel=parallel).map(handler)) == 2000
    assert max(most) <= MIB
    assert budget.held_bytes == 0


class BadRow(Exception):  # noqa: N818  its name is shown in messages
    """What a handler says of a bad row."""


def refusing(bad: set[int], calls: list[int] | None = None) -> Callable[[list[int]], list[int]]:
    def handler(chunk: list[int]) -> list[int]:
        if calls is not None:
            calls.append(len(chunk))
        wrong = bad.intersection(chunk)
        if wrong:
            raise BadRow(f"row {min(wrong)}")
        return list(chunk)

    return handler


@both
@pytest.mark.parametrize("parallel", [1, 3])
def test_stop_names_the_rows_and_loses_no_result_before(asynchronous: bool, parallel: int) -> None:
    budget, seen = Budget("1M"), list[int]()
    mapped = flow.chunks(range(100), rows=10, budget=budget, parallel=parallel).map(refusing({37}))
    with pytest.raises(HandlerError, match=r"failed at rows 30 to 39 \(chunk 3\): BadRow: row 37") as caught:
        collect(mapped, seen, asynchronous=asynchronous)
    assert seen[:30] == list(range(30))
    assert (caught.value.first, caught.value.last, caught.value.chunk, caught.value.attempts) == (30, 39, 3, 1)
    assert isinstance(caught.value.__cause__, BadRow)
    assert budget.held_bytes == 0


@both
@pytest.mark.parametrize("parallel", [1, 3])
def test_continue_gives_up_the_chunk(asynchronous: bool, parallel: int) -> None:
    stream = flow.chunks(range(100), rows=10, parallel=parallel, on_error="continue")
    mapped = stream.map(refusing({37, 99}))
    found = [row for result in run(mapped, asynchronous=asynchronous) for row in result]
    assert found == [*range(30), *range(40, 90)]
    assert [(letter.first, letter.last, letter.chunk, letter.error) for letter in mapped.dead] == [
        (30, 39, 3, "BadRow: row 37"), (90, 99, 9, "BadRow: row 99"),
    ]  # fmt: skip


@both
@settings(max_examples=25, deadline=None)
@given(bad=st.sets(st.integers(0, 99), max_size=12), rows=st.integers(1, 40))
def test_bisect_loses_the_bad_rows_and_no_other(asynchronous: bool, bad: set[int], rows: int) -> None:
    mapped = flow.chunks(range(100), rows=rows, on_error="bisect").map(refusing(bad))
    found = [row for result in run(mapped, asynchronous=asynchronous) for row in result]
    assert found == [row for row in range(100) if row not in bad]
    assert [(letter.first, letter.last) for letter in mapped.dead] == [(row, row) for row in sorted(bad)]


def test_one_bad_row_in_a_million_is_found_in_twenty_steps() -> None:
    calls: list[int] = []
    mapped = flow.chunks(range(1_000_000), rows=None, page_rows=8192, on_error="bisect").map(refusing({777_777}, calls))
    assert mapped.run() == 1_000_000
    assert [(letter.first, letter.error) for letter in mapped.dead] == [(777_777, "BadRow: row 777777")]
    assert len(calls) <= 1 + 2 * 20


def test_retry_waits_longer_each_time_and_then_stops() -> None:
    clock, calls = FakeClock(), list[int]()
    mapped = flow.chunks(range(10), rows=5, on_error="retry", retries=3, backoff=0.5, clock=clock).map(
        refusing({7}, calls)
    )
    with pytest.raises(HandlerError, match=r"the handler failed 4 times at rows 5 to 9"):
        list(mapped)
    assert calls == [5, 5, 5, 5, 5]
    assert clock.waited_s == [0.5, 1.0, 2.0]


@both
def test_retry_that_helps_leaves_no_trace(asynchronous: bool) -> None:
    left = [2]

    def handler(chunk: list[int]) -> int:
        if left[0]:
            left[0] -= 1
            raise BadRow
        return sum(chunk)

    mapped = flow.chunks(range(10), rows=5, on_error="retry", backoff=0).map(handler)
    assert run(mapped, asynchronous=asynchronous) == [10, 35]
    assert not mapped.dead


def test_retry_then_bisect() -> None:
    calls: list[int] = []
    mapped = flow.chunks(range(4), on_error=("retry", "bisect"), retries=1, backoff=0).map(refusing({2}, calls))
    assert [row for result in mapped for row in result] == [0, 1, 3]
    assert [(letter.first, letter.attempts) for letter in mapped.dead] == [(2, 2)]
    assert calls == [4, 4, 2, 2, 2, 1, 1, 1]


def test_a_source_that_fails_lets_those_in_flight_finish() -> None:
    def source() -> Iterator[int]:
        yield from range(25)
        raise OSError("gone")

    seen: list[int] = []
    with pytest.raises(SourceError, match="behind 25 rows"):
        collect(flow.chunks(source(), rows=10, parallel=4).map(list), seen)
    assert seen == list(range(25))


def test_leaving_early_ends_the_workers_and_empties_the_budget() -> None:
    threads, budget = threading.active_count(), Budget("1M")
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            closed.append(True)

    for _ in flow.chunks(source(), rows=10, parallel=3, prefetch=2, budget=budget).map(sum):
        break
    assert (closed, budget.held_bytes, threading.active_count()) == ([True], 0, threads)


def test_leaving_early_cancels_the_tasks() -> None:
    cancelled: list[int] = []
    budget = Budget("1M")

    async def handler(chunk: list[int]) -> int:
        if chunk[0]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(chunk[0])
                raise
        return chunk[0]

    async def main() -> None:
        found = aiter(flow.chunks(range(100), rows=1, parallel=4, budget=budget).map(handler))
        assert await anext(found) == 0
        await asyncio.sleep(0)
        await found.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert cancelled == [1, 2, 3]
    assert budget.held_bytes == 0


def test_coroutine_handlers_wait_together() -> None:
    inside, most = [0], [0]

    async def handler(chunk: list[int]) -> int:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        for _ in range(10):
            await asyncio.sleep(0)
        inside[0] -= 1
        return chunk[0]

    assert run(flow.chunks(range(20), rows=1).map(handler, parallel=5), asynchronous=True) == list(range(20))
    assert most[0] == 5


def pid_and_sum(chunk: list[int]) -> tuple[int, int, int]:
    return os.getpid(), sum(chunk), chunk.cut.first  # type: ignore[attr-defined]


def refuse_37(chunk: list[int]) -> list[int]:
    return refusing({37})(chunk)


def test_processes_compute_and_policies_hold_there_too() -> None:
    stream = flow.chunks(range(100), rows=10, parallel=2, processes=True, on_error="bisect", budget="8M")
    found = list(stream.map(pid_and_sum))
    assert [(total, first) for _, total, first in found] == [(sum(range(a, a + 10)), a) for a in range(0, 100, 10)]
    assert os.getpid() not in {pid for pid, _, _ in found}
    mapped = stream.map(refuse_37)
    assert [row for result in mapped for row in result] == [row for row in range(100) if row != 37]
    assert [letter.first for letter in mapped.dead] == [37]


def die(chunk: list[int]) -> None:
    os._exit(9)


def test_a_process_that_dies_is_an_error_and_not_a_hang() -> None:
    budget = Budget("8M")
    stream = flow.chunks(range(100), rows=10, parallel=2, processes=True, budget=budget)
    with pytest.raises(HandlerError, match=r"a process that handled rows 0 to 9 died"):
        list(stream.map(die))
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("handler", "options", "message"),
    [
        (5, {}, "map: a int is no handler"),
        (sum, {"workers": 3}, "map: no such option: workers"),
        (sum, {"parallel": 0}, "parallel: 0 is no count"),
        (sum, {"on_error": "panic"}, "on_error: 'panic' is no policy"),
    ],
)
def test_wrong_settings_are_named(handler: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flow.chunks(range(10)).map(handler, **options)


class Later:
    """Awaited, and nobody can tell before it is called."""

    async def __call__(self, chunk: list[int]) -> int:
        return sum(chunk)


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_coroutine_handler_in_a_plain_loop_says_what_to_write(parallel: int) -> None:
    with pytest.raises(ConfigError, match="the handler is a coroutine function; write `async for`"):
        list(flow.chunks(range(10), parallel=parallel).map(Later()))
    assert run(flow.chunks(range(10), rows=5, parallel=parallel).map(Later()), asynchronous=True) == [10, 35]


def test_processes_in_an_asynchronous_loop_are_refused() -> None:
    with pytest.raises(ConfigError, match="processes need a plain loop"):
        run(flow.chunks(range(10), processes=True).map(sum), asynchronous=True)
