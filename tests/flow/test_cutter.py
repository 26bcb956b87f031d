"""The cutter: whatever the sizes, nothing is lost, moved or above the target."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.errors import ConfigError, OversizeError, ReleasedError
from memwarden.facts import Level
from memwarden.flow.cutter import Chunk, Cutter, Expansion, Pager, cut, page_cap, target_of, target_under
from memwarden.testing import pressure

MIB = 1 << 20
sizes = st.lists(st.integers(0, 300) | st.sampled_from([1, 99, 100, 101, 5000]), max_size=200)
pages = st.tuples(st.integers(0, 40), st.integers(0, 10**9), st.floats(0, 3))
caps = st.none() | st.integers(1, 20)


def drive(widths: list[int], pages: list[int], cutter: Cutter, step_s: float) -> list[Chunk[Any]]:
    """As a stream does it: whole pages where they fit, row by row where not."""
    done: list[Chunk[Any]] = []
    now, at, turn = 0.0, 0, 0
    while at < len(widths):
        page = widths[at : at + pages[turn % len(pages)]]
        rows = list(range(at, at + len(page)))
        if cutter.take(rows, sum(page), now):
            closed = cutter.complete(now)
            done += [] if closed is None else [closed]
        else:
            for row, width in zip(rows, page, strict=True):
                done += cutter.push(row, width, now)
        at, turn, now = at + len(page), turn + 1, now + step_s
    last = cutter.flush()
    return done if last is None else [*done, last]


@given(sizes, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 400), caps, st.floats(0, 2))
def test_chunks_are_disjoint_complete_in_order_and_below_the_target(
    widths: list[int], pages: list[int], target: int, cap: int | None, step_s: float
) -> None:
    chunks = drive(widths, pages, Cutter(target, rows=cap, seconds=5.0), step_s)
    assert [row for chunk in chunks for row in chunk] == list(range(len(widths)))
    for number, chunk in enumerate(chunks):
        record = chunk.cut
        assert chunk
        assert record.number == number
        assert (record.first, record.last, record.rows) == (chunk[0], chunk[-1], len(chunk))
        assert record.bytes == sum(widths[row] for row in chunk)
        assert record.bytes <= target or (len(chunk) == 1 and record.why == "oversize")
        assert cap is None or len(chunk) <= cap


@given(sizes, st.integers(1, 400), caps)
def test_no_chunk_is_cut_for_bytes_while_the_next_row_still_fits(
    widths: list[int], target: int, cap: int | None
) -> None:
    chunks = list(cut(list(enumerate(widths)), target, rows=cap))
    for chunk, after in pairwise(chunks):
        if chunk.cut.why == "bytes":
            assert chunk.cut.bytes + widths[after[0]] > target
        elif chunk.cut.why == "rows":
            assert len(chunk) == cap


@given(sizes, st.integers(1, 400))
def test_skipped_rows_are_counted_and_the_rest_keeps_its_places(widths: list[int], target: int) -> None:
    cutter = Cutter(target, rows=7, oversize="skip")
    chunks = drive(widths, [3], cutter, 0.0)
    fitting = [row for row, width in enumerate(widths) if width <= target]
    assert [row for chunk in chunks for row in chunk] == fitting
    assert cutter.skipped == len(widths) - len(fitting)
    assert cutter.skipped_bytes == sum(width for width in widths if width > target)
    assert all((chunk.cut.first, chunk.cut.last) == (chunk[0], chunk[-1]) for chunk in chunks)
    assert cutter.seen == len(widths)


def test_an_oversize_row_fails_by_its_place_and_what_came_before_is_kept() -> None:
    cutter = Cutter(100, oversize="fail")
    cutter.push("a", 60)
    with pytest.raises(OversizeError, match=r"row 1 has 4.9 KiB, above the 100 B of a chunk") as caught:
        cutter.push("b", 5000)
    assert (caught.value.index, caught.value.size_bytes, caught.value.target_bytes) == (1, 5000, 100)
    assert cutter.flush() == ["a"]


def test_a_chunk_is_closed_after_its_seconds_since_its_first_row() -> None:
    cutter = Cutter(100, seconds=2.0)
    assert cutter.push("a", 1, 10.0) == ()
    assert not cutter.due(11.9)
    (chunk,) = cutter.push("b", 1, 12.0)
    assert (list(chunk), chunk.cut.why) == (["a", "b"], "seconds")
    assert not cutter.due(100.0)
    cutter.push("c", 1, 100.0)
    assert cutter.due(102.0)


def test_a_target_that_shrinks_holds_from_the_next_row_on() -> None:
    cutter = Cutter(100)
    for row in range(5):
        cutter.push(row, 10)
    cutter.target_bytes = 20
    (chunk,) = cutter.push(5, 10)
    assert len(chunk) == 5
    cutter.push(6, 10)
    (chunk,) = cutter.push(7, 10)
    assert list(chunk) == [5, 6]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="oversize: 'drop' is no policy; give one of pass, skip, fail"):
        Cutter(100, oversize="drop")
    with pytest.raises(ConfigError, match="rows: 0 is no number of rows"):
        Cutter(100, rows=0)


@given(st.lists(pages, max_size=100), st.integers(1, MIB))
def test_a_page_never_leaves_its_cap(seen: list[tuple[int, int, float]], target: int) -> None:
    pager = Pager(target, seconds=1.0)
    assert pager.rows == 1
    for rows, size, seconds in seen:
        before = pager.rows
        pager.saw(rows, size, seconds)
        assert 1 <= pager.rows <= 32
        if size > target / 16 or seconds > 1.0:
            assert pager.rows == max(1, before // 2)


def test_a_page_doubles_while_pages_are_small() -> None:
    pager = Pager(32 * MIB)
    seen = []
    for _ in range(7):
        seen.append(pager.rows)
        pager.saw(pager.rows, pager.rows * 1000)
    assert seen == [1, 2, 4, 8, 16, 32, 32]


def test_the_target_follows_limit_headroom_level_expansion_and_shares() -> None:
    assert target_of(32 * MIB) == 32 * MIB
    assert target_of(32 * MIB, headroom_bytes=64 * MIB) == 16 * MIB
    assert target_of(32 * MIB, level=Level.WARNING) == 16 * MIB
    assert target_of(32 * MIB, level=Level.CRITICAL) == 8 * MIB
    assert target_of(32 * MIB, level=Level.EMERGENCY) == 64 << 10
    assert target_of(32 * MIB, expansion=2.0, shares=4) == 4 * MIB
    assert target_of(1000, headroom_bytes=-5) == 1000
    assert target_of(10, shares=100) == 1


def test_the_target_is_asked_from_a_pressure() -> None:
    calm, tight = pressure(Level.NORMAL, limit_bytes=512 * MIB), pressure(Level.WARNING, limit_bytes=512 * MIB)
    assert target_under(None, 32 * MIB) == 32 * MIB
    assert target_under(calm, 32 * MIB) == 32 * MIB
    assert target_under(tight, 128 * MIB) < target_under(calm, 128 * MIB) / 2


def test_expansion_rises_at_once_falls_slowly_and_is_bounded() -> None:
    expansion = Expansion()
    expansion.saw(1000, 10**9)
    assert expansion.factor == 1.0  # a small chunk says nothing
    expansion.saw(MIB, 3 * MIB)
    assert expansion.factor == 3.0
    expansion.saw(MIB, 0)
    assert 1.0 < expansion.factor < 3.0
    expansion.saw(MIB, 1000 * MIB)
    assert expansion.factor == 8.0
    for _ in range(50):
        expansion.saw(MIB, -MIB)
    assert expansion.factor == pytest.approx(1.0, abs=0.01)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 300)), max_size=60), st.integers(1, 400), st.integers(1, 80)
)
def test_batches_count_by_their_rows(batches: list[tuple[int, int]], target: int, cap: int) -> None:
    cutter, done = Cutter(target, rows=cap), list[Chunk[Any]]()
    for place, (rows, size) in enumerate(batches):
        done += cutter.push(place, size, rows=rows)
    last = cutter.flush()
    done += [] if last is None else [last]
    assert [place for chunk in done for place in chunk] == list(range(len(batches)))
    after = 0
    for chunk in done:
        assert (chunk.cut.first, chunk.cut.rows) == (after, sum(batches[place][0] for place in chunk))
        after = chunk.cut.last + 1
        assert chunk.cut.rows <= cap or len(chunk) == 1
        assert chunk.cut.bytes <= target or len(chunk) == 1


def test_a_page_may_be_larger_where_the_chunk_has_room() -> None:
    assert page_cap(0) == page_cap(8 * MIB) == 32
    assert page_cap(32 * MIB) == 128
    assert page_cap(1 << 40) == 1024


def test_a_released_chunk_is_released_once() -> None:
    (chunk,) = cut([("a", 1)], 10)
    chunk.release()
    chunk.release()
    with pytest.raises(ReleasedError):
        list(chunk)
