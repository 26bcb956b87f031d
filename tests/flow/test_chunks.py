"""`flow.chunks`: one chunk alive at a time, everything closed on every way out, nothing lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden import flow
from memwarden.budget import Budget
from memwarden.errors import ConfigError, MemoryPressureError, OversizeError, ReleasedError, SourceError
from memwarden.facts import Level
from memwarden.flow.holding import Holding
from memwarden.testing import FakeClock, pressure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MIB = 1 << 20


def in_loop(source: Any, *, asynchronous: bool, **options: Any) -> list[list[Any]]:
    """The chunks as plain lists, by one loop or the other."""
    stream = flow.chunks(source, **options)
    if not asynchronous:
        return [list(chunk) for chunk in stream]

    async def run() -> list[list[Any]]:
        return [list(chunk) async for chunk in stream]

    return asyncio.run(run())


def collect(stream: Any, into: list[Any], *, asynchronous: bool = False) -> None:
    """As far as it goes."""

    async def run() -> None:
        async for chunk in stream:
            into.extend(chunk)

    if asynchronous:
        asyncio.run(run())
    else:
        for chunk in stream:
            into.extend(chunk)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
ahead = pytest.mark.parametrize("prefetch", [0, 1, 3])


class Source:
    """A source that says whether it was closed, and how many of its rows are alive."""

    def __init__(self, widths: list[int], *, fails_at: int | None = None) -> None:
        self.widths = widths
        self.fails_at = fails_at
        self.closed = 0
        self.given = 0
        self.alive: weakref.WeakSet[Row] = weakref.WeakSet()

    def __iter__(self) -> Iterator[Row]:
        try:
            for number, width in enumerate(self.widths):
                if number == self.fails_at:
                    raise OSError("the line went dead")
                row = Row(number, width)
                self.alive.add(row)
                self.given += 1
                yield row
                del row
        finally:
            self.closed += 1

    async def __aiter__(self) -> AsyncIterator[Row]:
        for row in self:
            yield row


class Row:
    def __init__(self, number: int, width: int) -> None:
        self.number = number
        self.text = "x" * width


@both
@ahead
@settings(max_examples=20, deadline=None)
@given(widths=st.lists(st.integers(0, 60_000), max_size=150), rows=st.integers(1, 70))
def test_every_row_comes_once_and_in_order(asynchronous: bool, prefetch: int, widths: list[int], rows: int) -> None:
    found = in_loop(
        (("x" * width, number) for number, width in enumerate(widths)),
        asynchronous=asynchronous, budget="1M", rows=rows, prefetch=prefetch,
    )  # fmt: skip
    assert [number for chunk in found for _, number in chunk] == list(range(len(widths)))
    assert all(0 < len(chunk) <= rows for chunk in found)


def test_the_records_say_where_each_chunk_was() -> None:
    cuts = [chunk.cut for chunk in flow.chunks(range(2500), rows=1000)]
    assert [(cut.number, cut.first, cut.last, cut.rows, cut.why) for cut in cuts] == [
        (0, 0, 999, 1000, "rows"), (1, 1000, 1999, 1000, "rows"), (2, 2000, 2499, 500, "end"),
    ]  # fmt: skip


def test_the_old_chunk_is_gone_before_the_next_is_fetched() -> None:
    """Even though the loop variable still refers to it: while a chunk is filled only its own rows are alive."""
    widths = [10_000] * 2000
    source = Source(widths)
    most = [0]

    def watched() -> Iterator[Row]:
        for row in source:
            most[0] = max(most[0], len(source.alive))
            yield row
            del row

    chunk_of: list[Any] = []
    for chunk in flow.chunks(watched(), budget="1M", rows=None, page_rows=4):
        assert len(source.alive) <= len(chunk) + 4
        chunk_of.append(len(chunk))
    assert max(chunk_of) + 5 >= most[0] > 50
    assert len(chunk_of) > 15


def test_two_chunks_are_alive_where_the_caller_keeps_them() -> None:
    """The control of the test above: keep=True leaves everything to the caller."""
    source = Source([1000] * 300)
    kept = list(flow.chunks(source, rows=100, keep=True))
    assert [row.number for chunk in kept for row in chunk] == list(range(300))
    assert len(source.alive) == 300


def test_a_chunk_read_too_late_says_so_and_is_not_just_empty() -> None:
    kept = list(flow.chunks(range(10), rows=5))
    for use in (len, list, iter, lambda chunk: chunk[0], bool, sorted):
        with pytest.raises(ReleasedError, match=r"chunk 0 was released when the next one was asked for; .*keep=True"):
            use(kept[0])
    assert kept[0].cut.rows == 5
    assert repr(kept[1]) == "<released chunk 1>"


def leave_by_break(source: Source, prefetch: int, budget: Budget) -> None:
    for chunk in flow.chunks(source, rows=10, prefetch=prefetch, budget=budget):
        if chunk.cut.number == 2:
            break


def leave_by_error(source: Source, prefetch: int, budget: Budget) -> None:
    def divide() -> None:
        for chunk in flow.chunks(source, rows=10, prefetch=prefetch, budget=budget):
            assert chunk.cut.number / (2 - chunk.cut.number) < 10

    with pytest.raises(ZeroDivisionError):
        divide()


def leave_by_close(source: Source, prefetch: int, budget: Budget) -> None:
    stream = flow.chunks(source, rows=10, prefetch=prefetch, budget=budget).pages()
    next(stream)
    stream.close()


def leave_at_the_end(source: Source, prefetch: int, budget: Budget) -> None:
    for _ in flow.chunks(source, rows=10, prefetch=prefetch, budget=budget):
        pass


def leave_async_by_break(source: Source, prefetch: int, budget: Budget) -> None:
    async def run() -> None:
        stream = flow.chunks(source, rows=10, prefetch=prefetch, budget=budget).pages_async()
        async for chunk in stream:
            if chunk.cut.number == 2:
                break
        await stream.aclose()

    asyncio.run(run())


def leave_by_cancellation(source: Source, prefetch: int, budget: Budget) -> None:
    async def run() -> None:
        reached = asyncio.Event()

        async def work() -> None:
            async for _ in flow.chunks(source, rows=10, prefetch=prefetch, budget=budget):
                reached.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@ahead
@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break, leave_by_error, leave_by_close, leave_at_the_end, leave_async_by_break, leave_by_cancellation,
    ],
)  # fmt: skip
def test_the_source_is_closed_and_the_budget_empty_on_every_way_out(leave: Any, prefetch: int) -> None:
    threads = threading.active_count()
    source, budget = Source([100] * 200), Budget("1M")
    leave(source, prefetch, budget)
    gc.collect()
    assert source.closed == 1
    assert (budget.held_bytes, budget.reserved_bytes, tuple(budget.lost)) == (0, 0, ())
    assert threading.active_count() == threads
    assert len(source.alive) == 0


@both
@ahead
def test_a_source_that_raises_gives_what_came_before_and_then_its_error(asynchronous: bool, prefetch: int) -> None:
    source, budget = Source([10] * 100, fails_at=25), Budget("1M")
    seen: list[Row] = []
    stream = flow.chunks(source, rows=10, prefetch=prefetch, budget=budget)
    with pytest.raises(SourceError, match=r"chunks failed behind 25 rows: OSError: the line went dead") as caught:
        collect(stream, seen, asynchronous=asynchronous)
    assert [row.number for row in seen] == list(range(25))
    assert caught.value.rows == 25
    assert isinstance(caught.value.__cause__, OSError)
    assert (source.closed, budget.held_bytes) == (1, 0)


class Flaky:
    """An iterator that fails at some places and can be asked again."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script

    def __iter__(self) -> Flaky:
        return self

    def __next__(self) -> Any:
        if not self.script:
            raise StopIteration
        found = self.script.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def test_retry_asks_again_with_growing_pauses() -> None:
    clock = FakeClock()
    script: list[Any] = [0, 1, OSError("a"), OSError("b"), 2, OSError("c"), 3]
    stream = flow.chunks(Flaky(script), on_error="retry", retries=2, backoff=0.5, clock=clock)
    assert [row for chunk in stream for row in chunk] == [0, 1, 2, 3]
    assert clock.waited_s == [0.5, 1.0, 0.5]


def test_retry_gives_up_after_its_attempts() -> None:
    script: list[Any] = [0, *[OSError(str(each)) for each in range(9)]]
    seen: list[int] = []
    with pytest.raises(SourceError, match="behind 1 rows: OSError: 2"):
        collect(flow.chunks(Flaky(script), on_error="retry", retries=2, backoff=0), seen)
    assert seen == [0]


def test_a_generator_that_failed_is_not_taken_for_one_that_ended() -> None:
    seen: list[Row] = []
    with pytest.raises(SourceError, match="behind 25 rows: OSError: the line went dead"):
        collect(flow.chunks(Source([1] * 100, fails_at=25), on_error="retry", backoff=0), seen)
    assert [row.number for row in seen] == list(range(25))


def test_continue_leaves_the_row_out_and_says_which() -> None:
    stream = flow.chunks(Flaky([0, ValueError("bad"), 1, 2]), on_error="continue")
    assert [row for chunk in stream for row in chunk] == [0, 1, 2]
    assert [(letter.first, letter.error) for letter in stream.dead] == [(1, "ValueError('bad')")]


def test_a_source_that_only_fails_is_given_up() -> None:
    stream = flow.chunks(Flaky([OSError("no") for _ in range(5000)]), on_error="continue")
    with pytest.raises(SourceError, match="behind 0 rows: OSError: no"):
        list(stream)
    assert len(stream.dead) == 100


@ahead
def test_a_row_above_the_budget_is_a_chunk_by_itself(prefetch: int) -> None:
    rows = ["a", "b", "x" * (4 * MIB), "c"]
    budget = Budget("1M")
    found = [
        (list(map(len, chunk)), chunk.cut.why) for chunk in flow.chunks(iter(rows), budget=budget, prefetch=prefetch)
    ]
    assert found == [([1, 1], "bytes"), ([4 * MIB], "oversize"), ([1], "end")]
    assert budget.held_bytes == 0


def test_a_row_above_the_budget_can_be_skipped_or_fail() -> None:
    rows = ["a", "x" * (4 * MIB), "c"]
    stream = flow.chunks(iter(rows), budget="1M", oversize="skip")
    assert [row for chunk in stream for row in chunk] == ["a", "c"]
    assert stream.skipped == 1
    seen: list[str] = []
    with pytest.raises(OversizeError, match=r"row 1 has 4 MiB, above the 1 MiB of a chunk"):
        collect(flow.chunks(iter(rows), budget="1M", oversize="fail"), seen)
    assert seen == ["a"]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_what_is_held_never_passes_the_budget(prefetch: int) -> None:
    budget = Budget("1M")
    most = 0
    for chunk in flow.chunks(Source([3000] * 2000), budget=budget, rows=None, prefetch=prefetch):
        most = max(most, budget.held_bytes)
        assert chunk.cut.bytes <= MIB / (1 + prefetch)
    assert MIB / (4 + 4 * prefetch) < most <= MIB


def test_a_shared_budget_gives_a_chunk_half_of_what_is_free() -> None:
    budget = Budget("8M")
    other = budget.account("other")
    other.reserve(6 * MIB)
    for chunk in flow.chunks(Source([3000] * 3000), budget=budget, rows=None):
        assert chunk.cut.bytes <= MIB
    other.close()


def test_a_budget_with_no_room_is_waited_for_and_then_an_error_that_names_the_holder() -> None:
    budget = Budget("1M")
    other = budget.account("hog")
    other.reserve(MIB)
    with pytest.raises(MemoryPressureError, match="for 'chunks' do not fit") as caught:
        list(flow.chunks(range(10), budget=budget, patience=0))
    assert caught.value.holders == (("hog", MIB),)
    other.close()
    assert budget.held_bytes == 0


class Cupboard:
    """Something that gives back when asked."""

    name = "cupboard"

    def __init__(self, budget: Budget) -> None:
        self.account = budget.account(self.name)
        self.account.reserve(MIB)

    @property
    def held_bytes(self) -> int:
        return self.account.held_bytes

    def shed(self, size_bytes: int) -> int:
        freed = self.held_bytes
        self.account.release()
        return freed


def test_others_are_asked_to_shed_before_a_stream_waits() -> None:
    budget = Budget("1M")
    cupboard = Cupboard(budget)
    budget.register(cupboard)
    assert sum(len(chunk) for chunk in flow.chunks(range(10), budget=budget, patience=0)) == 10
    assert cupboard.held_bytes == 0


def widest(level: Level) -> int:
    stream = flow.chunks(
        Source([3000] * 2000), budget="2M", rows=None, pressure=pressure(level, limit_bytes=2048 * MIB),
        clock=FakeClock(),
    )  # fmt: skip
    return max(chunk.cut.bytes for chunk in stream)


def test_chunks_shrink_under_pressure() -> None:
    normal, warning = widest(Level.NORMAL), widest(Level.WARNING)
    critical, emergency = widest(Level.CRITICAL), widest(Level.EMERGENCY)
    assert normal > 1.9 * MIB
    assert warning <= MIB < 2.2 * warning
    assert critical <= MIB / 2
    assert emergency <= 64 << 10


def test_an_emergency_is_waited_for_and_no_longer_than_said() -> None:
    clock = FakeClock()
    stream = flow.chunks(range(10), pressure=pressure(Level.EMERGENCY), emergency_wait=1.0, clock=clock)
    assert sum(len(chunk) for chunk in stream) == 10
    assert sum(clock.waited_s) == pytest.approx(2.0)  # before the chunk, and before the end is known


def test_an_emergency_that_passes_ends_the_wait() -> None:
    forced = pressure(Level.EMERGENCY)
    clock = FakeClock(on_wait=lambda _: setattr(forced, "verdict", pressure(Level.NORMAL).verdict))
    assert sum(len(chunk) for chunk in flow.chunks(range(10), pressure=forced, clock=clock)) == 10
    assert clock.waited_s == [0.25]


def test_under_critical_nothing_is_fetched_ahead() -> None:
    source = Source([10] * 500)
    stream = flow.chunks(source, rows=10, prefetch=3, pressure=pressure(Level.CRITICAL, limit_bytes=2048 * MIB))
    for chunk in stream:
        assert source.given == (chunk.cut.number + 1) * 10  # what was waited for, and nothing more
    assert source.given == 500


def test_what_handlers_build_makes_chunks_smaller() -> None:
    forced = pressure(Level.NORMAL, limit_bytes=2048 * MIB)
    holding = Holding("8M", name="test", pressure=forced)

    class Fake:
        def __init__(self, number: int) -> None:
            self.cut = next(iter(flow.chunks(range(1)))).cut.replace(number=number, bytes=4 * MIB)

    assert holding.reserve() == 8 * MIB
    chunk: Any = Fake(0)
    holding.settle(chunk, 8 * MIB)
    verdict = forced.verdict
    assert verdict is not None
    grown = verdict.reading.replace(rss_bytes=(verdict.reading.rss_bytes or 0) + 16 * MIB)
    forced.verdict = verdict.replace(reading=grown)
    holding.give_back(chunk)
    assert holding.reserve() == 2 * MIB  # it grew by four times the chunk
    holding.close()
    assert holding.budget.held_bytes == 0


def test_a_second_run_comes_from_the_cache() -> None:
    cache: dict[Any, Any] = {}
    calls: list[int] = []

    def source() -> Iterator[int]:
        for number in range(25):
            calls.append(number)
            yield number

    stream = flow.chunks(source(), rows=10, cache=cache)
    first = [(list(chunk), chunk.cut) for chunk in stream]
    assert [(list(chunk), chunk.cut) for chunk in stream] == first
    assert len(calls) == 25
    other = flow.chunks(iter([7]), rows=10, cache=cache)
    assert [list(chunk) for chunk in other] == [[7]]  # nobody's entries are another's


@both
@ahead
def test_what_the_cache_dropped_is_read_again_from_there(asynchronous: bool, prefetch: int) -> None:
    cache: dict[Any, Any] = {}
    stream = flow.chunks(range(45), rows=10, cache=cache, prefetch=prefetch)

    async def run() -> list[int]:
        return [row async for chunk in stream for row in chunk]

    def once() -> list[int]:
        return asyncio.run(run()) if asynchronous else [row for chunk in stream for row in chunk]

    assert once() == list(range(45))
    del cache[next(key for key in cache if key[1] == 2)]
    assert once() == list(range(45))
    assert sum(isinstance(key[1], int) for key in cache) == 5


def test_a_source_that_cannot_be_read_again_is_told_from_one_that_ended() -> None:
    cache: dict[Any, Any] = {}
    stream = flow.chunks(iter(range(45)), rows=10, cache=cache)
    assert sum(len(chunk) for chunk in stream) == 45
    del cache[next(key for key in cache if key[1] == 2)]
    with pytest.raises(SourceError, match="cannot be read again, and not all of it is in the cache any more"):
        list(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, r"on_error: 'ignore' is no policy"),
        ({"on_error": ()}, r"on_error: no policy is given"),
        ({"prefetch": -1}, r"prefetch: -1 is no count; give a whole number from 0 on"),
        ({"parallel": 0}, r"parallel: 0 is no count"),
        ({"budget": "lots"}, r"limit: 'lots' is not a size"),
        ({"seconds": "soon"}, r"seconds: 'soon' is not a duration"),
        ({"rows": 0}, r"rows: 0 is no number of rows"),
        ({"oversize": "shrug"}, r"oversize: 'shrug' is no policy"),
        ({"format": "xml"}, r"format: 'xml' is no format; give one of lines, csv, ndjson, parquet"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(flow.chunks(range(10), **options))


@pytest.mark.parametrize("source", [5, None, b"bytes", {"a": 1}])
def test_what_is_no_source_is_named(source: Any) -> None:
    with pytest.raises(ConfigError, match=r"source: a \w+ is no source of rows"):
        list(flow.chunks(source))


def test_an_asynchronous_source_in_a_plain_loop_says_what_to_write() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="can only be read asynchronously; write `async for` over it"):
        list(flow.chunks(source()))


def test_a_time_cap_closes_chunks_of_a_slow_source() -> None:
    clock = FakeClock()

    def slow() -> Iterator[int]:
        for number in range(20):
            clock.advance(1.0)
            yield number

    sizes = [len(chunk) for chunk in flow.chunks(slow(), seconds=5.0, clock=clock)]
    assert sum(sizes) == 20
    assert max(sizes) <= 7
