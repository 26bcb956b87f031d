"""`flow.lazy` and `flow.filtered`."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden import flow
from memwarden.budget import Budget
from memwarden.errors import ConfigError, HandlerError, SourceError
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

MIB = 1 << 20


class Service:
    """Rows behind a page function of each kind, counting its calls."""

    def __init__(self, rows: list[Any], *, most: int = 10**6) -> None:
        self.rows = rows
        self.most = most  # it gives fewer than asked for
        self.calls: list[tuple[Any, int]] = []
        self.fail: dict[Any, int] = {}

    def by_offset(self, offset: int, limit: int) -> list[Any]:
        self.calls.append((offset, limit))
        if self.fail.get(offset, 0):
            self.fail[offset] -= 1
            raise ConnectionError("reset")
        return self.rows[offset : offset + min(limit, self.most)]

    def by_cursor(self, cursor: str | None, limit: int) -> tuple[list[Any], str | None]:
        at = int(cursor or 0)
        page = self.by_offset(at, limit)
        return page, str(at + len(page)) if at + len(page) < len(self.rows) else None

    async def later(self, offset: int, limit: int) -> list[Any]:
        await asyncio.sleep(0)
        return self.by_offset(offset, limit)

    async def later_by_cursor(self, cursor: str | None, limit: int) -> tuple[list[Any], str | None]:
        return self.by_cursor(cursor, limit)


def rows_of(source: Any, *, asynchronous: bool) -> list[Any]:
    async def awaited() -> list[Any]:
        return [row async for row in source]

    return asyncio.run(awaited()) if asynchronous else list(source)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
@pytest.mark.parametrize("by", ["offset", "cursor"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@given(shape=st.tuples(st.integers(0, 200), st.integers(1, 60), st.integers(1, 60)))
def test_all_rows_come_once_in_order(asynchronous: bool, by: str, prefetch: int, shape: tuple[int, int, int]) -> None:
    count, batch, most = shape
    service = Service(list(range(count)), most=most)
    fetch: Any = {
        (False, "offset"): service.by_offset, (False, "cursor"): service.by_cursor,
        (True, "offset"): service.later, (True, "cursor"): service.later_by_cursor,
    }[asynchronous, by]  # fmt: skip
    found = rows_of(flow.lazy(fetch, by=by, batch=batch, prefetch=prefetch), asynchronous=asynchronous)
    assert found == list(range(count))
    assert all(limit <= batch for _, limit in service.calls)


def test_pages_have_the_size_of_the_batch_from_the_first_on() -> None:
    service = Service(list(range(1200)))
    assert len(list(flow.lazy(service.by_offset, prefetch=0))) == 1200
    assert service.calls == [(0, 500), (500, 500), (1000, 500), (1200, 300)]


def test_only_what_is_needed_is_fetched() -> None:
    service = Service(list(range(10_000)))
    rows = iter(flow.lazy(service.by_offset, batch=100, prefetch=0))
    assert [next(rows) for _ in range(150)] == list(range(150))
    assert service.calls == [(0, 100), (100, 100)]
    rows.close()  # type: ignore[attr-defined]


def test_the_next_page_is_fetched_while_this_one_is_read() -> None:
    service, second = Service(list(range(300))), threading.Event()

    def fetch(offset: int, limit: int) -> list[Any]:
        if offset == 100:
            second.set()
        return service.by_offset(offset, limit)

    for row in flow.lazy(fetch, batch=100):
        if row == 0:
            assert second.wait(20)


def test_wide_rows_make_pages_smaller_within_the_budget() -> None:
    budget = Budget("8M")
    service = Service([f"{number:06}" * 3_000 for number in range(3000)])
    most = 0
    for number, row in enumerate(flow.lazy(service.by_offset, budget=budget)):
        assert row[:6] == f"{number:06}"
        most = max(most, budget.held_bytes)
    assert most <= 8 * MIB
    limits = [limit for _, limit in service.calls]
    assert limits[0] == 500
    assert 50 < max(limits[10:]) < 250
    assert budget.held_bytes == 0


@both
@pytest.mark.parametrize("by", ["offset", "cursor"])
def test_retry_asks_for_the_same_page_again(asynchronous: bool, by: str) -> None:
    service = Service(list(range(250)))
    service.fail = {100: 2}
    fetch = service.by_offset if by == "offset" else service.by_cursor
    source = flow.lazy(fetch, by=by, batch=100, on_error="retry", backoff=0, prefetch=0)
    assert rows_of(source, asynchronous=asynchronous) == list(range(250))
    assert [offset for offset, _ in service.calls].count(100) == 3


def test_the_last_page_may_need_a_retry_too() -> None:
    service, clock = Service(list(range(200))), FakeClock()
    service.fail = {200: 1}
    source = flow.lazy(service.by_offset, batch=100, on_error="retry", backoff=0.1, prefetch=0, clock=clock)
    assert list(source) == list(range(200))
    assert clock.waited_s == [0.1]


def test_stop_says_behind_how_many_rows() -> None:
    service = Service(list(range(250)))
    service.fail = {100: 1}
    seen: list[int] = []
    with pytest.raises(SourceError, match="source of lazy failed behind 100 rows: ConnectionError: reset"):
        seen.extend(flow.lazy(service.by_offset, batch=100))  # what came before the error counts
    assert seen == list(range(100))


def test_continue_leaves_out_the_page_by_offset_only() -> None:
    service = Service(list(range(250)))
    service.fail = {100: 1}
    source = flow.lazy(service.by_offset, batch=100, on_error="continue", prefetch=0)
    assert list(source) == [*range(100), *range(200, 250)]
    assert [(letter.first, letter.last) for letter in source.dead] == [(100, 199)]
    service.fail = {100: 1}
    with pytest.raises(SourceError, match="behind 100 rows"):
        list(flow.lazy(service.by_cursor, by="cursor", batch=100, on_error="continue"))


def test_a_cursor_that_leads_to_itself_does_not_loop_for_ever() -> None:
    with pytest.raises(SourceError, match=r"the cursor 'x' leads to itself"):
        list(flow.lazy(lambda cursor, limit: ([1], "x"), by="cursor"))


@pytest.mark.parametrize(
    ("fetch", "options", "message"),
    [
        (5, {}, "fetch: a int is no function"),
        (len, {"by": "page"}, "by: 'page' is no way of paging"),
        (len, {"batch": 0}, "batch: 0 is no count"),
    ],
)
def test_wrong_settings_are_named(fetch: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flow.lazy(fetch, **options)


@pytest.mark.parametrize(
    ("fetch", "by", "message"),
    [
        (lambda offset, limit: {"rows": []}, "offset", "it gave a dict; give a list of rows"),
        (lambda offset, limit: None, "offset", "it gave a NoneType"),
        (lambda cursor, limit: [1, 2, 3], "cursor", r"it gave a list; with by=\"cursor\" give \(rows, next cursor\)"),
        (Service([]).later, "offset", "it is a coroutine function; write `async for` over it"),
    ],
)
def test_a_function_that_gives_something_else_is_told_so(fetch: Any, by: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(flow.lazy(fetch, by=by))


@both
def test_leaving_early_ends_the_thread_and_empties_the_budget(asynchronous: bool) -> None:
    threads, budget = threading.active_count(), Budget("1M")
    source = flow.lazy(Service(list(range(10_000))).by_offset, budget=budget, prefetch=2)

    async def awaited() -> None:
        rows = aiter(source)
        await anext(rows)
        await rows.aclose()  # type: ignore[attr-defined]

    if asynchronous:
        asyncio.run(awaited())
    else:
        for _ in source:
            break
    assert (budget.held_bytes, threading.active_count()) == (0, threads)


def test_pages_come_from_the_cache_the_second_time() -> None:
    service = Service(list(range(250)))
    source = flow.lazy(service.by_offset, batch=100, cache={}, prefetch=0)
    assert list(source) == list(source) == list(range(250))
    assert len(service.calls) == 4


def test_chunks_and_handlers_over_it() -> None:
    service = Service(list(range(1000)))
    found = flow.chunks(flow.lazy(service.by_offset), rows=300).map(sum, parallel=2)
    assert sum(found) == sum(range(1000))


# --- filtered -------------------------------------------------------------------------------------------------


class Counter:
    """An endless source that counts what was taken, and whether it was closed."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        try:
            while True:
                self.taken += 1
                yield self.taken - 1
        finally:
            self.closed = True

    async def __aiter__(self) -> AsyncIterator[int]:
        for row in self:
            yield row


def even(row: int) -> bool:
    return row % 2 == 0


async def by_three(row: int) -> bool:
    await asyncio.sleep(0)
    return row % 3 == 0


@both
def test_only_as_many_rows_are_read_as_are_needed(asynchronous: bool) -> None:
    source = Counter()
    found = flow.filtered(source, even, lambda row: row > 3, limit=3)
    assert rows_of(found, asynchronous=asynchronous) == [4, 6, 8]
    assert (source.taken, source.closed) == (9, True)
    assert (found.seen, found.passed) == (9, 3)


@both
def test_until_ends_before_its_row(asynchronous: bool) -> None:
    source = Counter()
    assert rows_of(flow.filtered(source, even, until=lambda row: row == 5), asynchronous=asynchronous) == [0, 2, 4]
    assert (source.taken, source.closed) == (6, True)


def test_no_rows_are_read_for_a_limit_of_none() -> None:
    source = Counter()
    assert list(flow.filtered(source, even, limit=0)) == []
    assert source.taken == 0


def test_predicates_may_be_awaited() -> None:
    assert rows_of(flow.filtered(Counter(), even, by_three, limit=3), asynchronous=True) == [0, 6, 12]


def test_a_later_predicate_is_not_asked_where_an_earlier_says_no() -> None:
    asked: list[int] = []
    list(flow.filtered(range(6), even, lambda row: not asked.append(row)))  # type: ignore[func-returns-value]
    assert asked == [0, 2, 4]


@both
def test_a_predicate_that_raises_names_its_row(asynchronous: bool) -> None:
    found = flow.filtered([1, 2, 0, 4], lambda row: 4 / row)
    with pytest.raises(HandlerError, match="a predicate failed at row 2: ZeroDivisionError"):
        rows_of(found, asynchronous=asynchronous)
    found = flow.filtered([1, 2, 0, 4], lambda row: 4 / row, on_error="continue")
    assert rows_of(found, asynchronous=asynchronous) == [1, 2, 4]
    assert [letter.first for letter in found.dead] == [2]


@both
def test_leaving_early_closes_the_source(asynchronous: bool) -> None:
    source = Counter()

    async def awaited() -> None:
        rows = aiter(flow.filtered(source, even))
        await anext(rows)
        await rows.aclose()  # type: ignore[attr-defined]

    if asynchronous:
        asyncio.run(awaited())
    else:
        for _ in flow.filtered(source, even):
            break
    assert source.closed


def test_paths_and_the_options_of_chunks(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text("\n".join(str(number) for number in range(100)), encoding="utf-8")
    assert list(flow.filtered(path, even, limit=3)) == [0, 2, 4]
    assert list(flow.filtered(range(100), even, prefetch=1, rows=10)) == list(range(0, 100, 2))
    assert list(flow.filtered(range(100), even, parallel=3, rows=10)) == list(range(0, 100, 2))
    found = flow.filtered(range(-5, 5), lambda row: 4 / row, parallel=2, rows=4, on_error="continue")
    assert list(found) == [row for row in range(-5, 5) if row]
    assert [letter.first for letter in found.dead] == [5]


def test_wrong_predicates_are_named() -> None:
    with pytest.raises(ConfigError, match="filtered: a int is no predicate"):
        flow.filtered([], 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="limit: -1 is no count"):
        flow.filtered([], even, limit=-1)
    with pytest.raises(ConfigError, match="source: a int is no source of rows"):
        flow.filtered(5, even)
