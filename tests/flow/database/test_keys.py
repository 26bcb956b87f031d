"""Keys to JSON and back, and their order as far as Python can tell."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden.errors import KeyOrderError, StatementError
from memwarden.flow.database import keys

VALUES = st.one_of(
    st.integers(), st.text(), st.binary(), st.booleans(), st.floats(allow_nan=False), st.datetimes(),
    st.datetimes(timezones=st.just(dt.UTC)), st.dates(), st.times(), st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3).map(tuple))
def test_a_key_comes_back_as_it_was(key: tuple[Any, ...]) -> None:
    text = keys.encode(key)
    assert text is not None
    assert text.isascii()
    json.loads(text)
    back = keys.decode(text)
    assert back == key
    assert [type(value) for value in back or ()] == [type(value) for value in key]


def test_no_key_is_no_key() -> None:
    assert keys.encode(None) is None
    assert keys.decode(None) is None


def test_what_could_not_come_back_is_refused() -> None:
    with pytest.raises(StatementError, match="key: a key with a list in it cannot be kept"):
        keys.encode(([1],))


@settings(deadline=None)
@given(st.lists(st.integers(), min_size=2, max_size=10))
def test_numbers_must_go_up(found: list[int]) -> None:
    first, last = (found[0],), (found[-1],)
    if found[0] < found[-1]:
        keys.check(["id"], [False], None, first, last, rows=len(found))
        keys.check(["id"], [False], (found[0] - 1,), first, last, rows=len(found))
    else:
        with pytest.raises(KeyOrderError, match=r"\(id\) came as .* does not strictly increase"):
            keys.check(["id"], [False], None, first, last, rows=len(found))


@pytest.mark.parametrize(
    ("before", "first", "last"),
    [
        ((5,), (5,), (9,)),
        ((6,), (5,), (9,)),
        (None, (5,), (5,)),
        (("a",), ("a",), ("b",)),
        ((1, Decimal("2.5")), (1, Decimal("2.4")), (2, Decimal(0))),
        ((dt.date(2026, 1, 2),), (dt.date(2026, 1, 1),), (dt.date(2026, 1, 3),)),
        ((0.1,), (0.1,), (0.2,)),
    ],
)
def test_a_source_that_lies_about_its_order_is_found_out(before: Any, first: Any, last: Any) -> None:
    with pytest.raises(KeyOrderError, match="does not strictly increase; choose columns of a unique index"):
        keys.check(["k", "l"][: len(first)], [False] * len(first), before, first, last, rows=3)


@pytest.mark.parametrize(
    ("first", "last"),
    [(("B",), ("a",)), ((uuid.UUID(int=2),), (uuid.UUID(int=1),)), ((1,), ("text",)), ((1, "z"), (1, "B"))],
)
def test_what_only_the_database_can_order_is_left_to_it(first: Any, last: Any) -> None:
    keys.check(["k", "l"][: len(first)], [False] * len(first), None, first, last, rows=2)


def test_null_is_found_in_a_chunk_too() -> None:
    with pytest.raises(KeyOrderError, match="l is NULL in a row"):
        keys.check(["k", "l"], [False, False], None, (1, None), (2, 3), rows=2)


def test_descending_keys_must_go_down() -> None:
    keys.check(["k", "l"], [True, True], (9, 9), (9, 8), (3, 4), rows=2)
    keys.check(["k", "l"], [True, False], (9, 9), (8, 1), (8, 4), rows=2)
    with pytest.raises(KeyOrderError, match=r"\(k DESC\) came as 3 and then as 3: the key does not strictly decrease"):
        keys.check(["k"], [True], None, (3,), (3,), rows=2)
    with pytest.raises(KeyOrderError, match=r"\(k DESC, l\) came as .* does not strictly go on"):
        keys.check(["k", "l"], [True, False], (3, 4), (3, 3), (2, 1), rows=2)


@given(st.integers(-50, 50), st.integers(0, 300), st.integers(2, 9), st.booleans())
def test_ranges_of_numbers_are_disjoint_and_whole(least: int, more: int, parts: int, down: bool) -> None:
    class Numbers:
        names = ("id",)

        def __init__(self) -> None:
            self.down = (down,)

        def bounds(self) -> None:
            return None

    greatest = least + more
    cut: Any = keys.ranges(Numbers(), lambda _query: (least, greatest), parts)  # type: ignore[arg-type]  # a small stand-in
    seen = []
    for low, high in cut:
        for number in range(least, greatest + 1):
            behind = low is None or (number < low[0] if down else number > low[0])
            within = high is None or (number >= high[0] if down else number <= high[0])
            if behind and within:
                seen.append(number)
    assert sorted(seen) == list(range(least, greatest + 1))
