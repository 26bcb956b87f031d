"""Sizes: honest beside pympler on flat rows, bounded on nested ones."""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from sys import getsizeof
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.flow.sizing import (
    MOST_OBJECTS,
    Sizer,
    flat_sum,
    pure_flat_sum,
    pure_table_sum,
    size_of,
    table_sum,
)

asizeof = pytest.importorskip("pympler.asizeof").asizeof

# On a loaded machine a property takes as long as it takes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
flat = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=300)
Point = namedtuple("Point", "a b c")  # noqa: PYI024  an untyped one is what csv readers make


def flat_row(number: int) -> tuple[Any, ...]:
    return (number + 10**6, f"name {number}", "text " * (number % 70), number * 1.5, None, WHEN, Decimal(number) / 7)


@pytest.mark.parametrize(
    "make", [tuple, list, lambda row: dict(zip("abcdefg", row, strict=True))], ids=["tuple", "list", "dict"]
)
def test_flat_rows_are_within_a_tenth_of_pympler(make: Any) -> None:
    rows = [make(flat_row(number)) for number in range(500)]
    size = Sizer()
    shared = asizeof(WHEN) * len(rows)  # pympler counts what all rows share once
    truth = asizeof(*rows) + shared
    assert sum(map(size, rows)) == pytest.approx(truth, rel=0.10)
    assert size.page(rows) == pytest.approx(truth, rel=0.10)


@unhurried
@given(st.lists(st.lists(flat, min_size=4, max_size=4), min_size=1, max_size=20))
def test_every_flat_tuple_is_within_an_eighth_of_pympler(rows: list[list[Any]]) -> None:
    """Pympler rounds each object up to 8 bytes: at most 4 on 28, for rows of small integers."""
    tuples = [tuple(row) for row in rows]
    for row in tuples:
        own = asizeof(row) + sum(asizeof(a) for n, a in enumerate(row) if any(a is b for b in row[:n]))
        assert Sizer()(row) == pytest.approx(own, rel=0.125)


@unhurried
@given(st.lists(st.lists(flat | st.lists(flat, max_size=4), max_size=6), max_size=20))
def test_a_page_is_the_sum_of_its_rows(rows: list[list[Any]]) -> None:
    size = Sizer()
    for made in (rows, [tuple(row) for row in rows]):
        assert size.page(made) == sum(size.each(made)) == sum(map(size, made))


mixed = flat | st.lists(st.integers(), max_size=2) | st.just(WHEN)
KNOWN = {type(None), bool, int, float, str, bytes, type(WHEN)}


@unhurried
@given(st.lists(mixed, max_size=30))
def test_the_sum_in_c_is_the_pure_one(values: list[Any]) -> None:
    for made in (values, tuple(values), dict(enumerate(values)).values()):
        assert flat_sum(made, KNOWN) == pure_flat_sum(made, KNOWN)


@unhurried
@given(st.lists(st.lists(mixed, min_size=1, max_size=3).map(tuple), min_size=1, max_size=10))
def test_the_table_in_c_is_the_pure_one(rows: list[Any]) -> None:
    assert table_sum(rows, KNOWN) == pure_table_sum(rows, KNOWN)
    assert table_sum([*rows, list(rows[0])], KNOWN) == -1  # another type of row


@pytest.mark.parametrize("bits", [0, 1, 29, 30, 31, 59, 60, 61, 62, 63, 64, 90, 1000])
def test_integers_at_every_border(bits: int) -> None:
    values = [sign * (2**bits + more) for sign in (1, -1) for more in (-1, 0, 1)]
    assert flat_sum(values, KNOWN) == sum(map(getsizeof, values))


def test_a_text_with_its_encoding_kept() -> None:
    text = "é" * 500
    text.isidentifier()
    before = flat_sum([text], KNOWN)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("select ?", (text,)).close()
    assert flat_sum([text], KNOWN) == getsizeof(text) >= before


@pytest.mark.skipif(flat_sum is pure_flat_sum, reason="the C part is not built")
def test_what_the_c_part_is_given_wrongly_is_a_type_error() -> None:
    wrongs: list[Any] = [(), (1, 2), ([], [])]
    for wrong in wrongs:
        with pytest.raises(TypeError):
            flat_sum(*wrong)
        with pytest.raises(TypeError):
            table_sum(*wrong)


def test_a_column_that_turns_wide_is_seen_in_that_very_row() -> None:
    size = Sizer()
    narrow: list[Any] = [(number, None, "x") for number in range(1000)]
    for row in narrow:
        size(row)
    assert size((1, "w" * 100_000, "x")) > 100_000
    assert size.page([*narrow[:31], (1, "w" * 100_000, "x")]) > 100_000
    assert size((1, [["w" * 100_000]], "x")) > 100_000


def test_the_rows_of_drivers_are_their_values() -> None:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    row = connection.execute("select 'x' as a, ? as b", ("y" * 5000,)).fetchone()
    assert 5000 < Sizer()(row) < 5500
    assert 15000 < Sizer().page([row, row, row]) < 16500
    connection.close()


@dataclass
class Plain:
    a: int
    b: str
    c: str | None = None


@dataclass(slots=True)
class Slotted:
    a: int
    b: str
    c: str | None = None


@pytest.mark.parametrize("kind", [Plain, Slotted, Point])
def test_objects_are_what_they_refer_to(kind: Any) -> None:
    small, large = Sizer()(kind(1, "b" * 100, None)), Sizer()(kind(1, "b" * 100, "c" * 9000))
    assert 9000 <= large - small <= 9100
    assert 150 < small < 500


def test_looking_at_an_object_makes_no_dictionary_for_it() -> None:
    from gc import get_referents

    thing = Plain(1, "b")
    before = len(get_referents(thing))
    size_of(thing)
    assert len(get_referents(thing)) == before
    assert not any(isinstance(each, dict) for each in get_referents(thing))


def test_a_cycle_ends_and_classes_and_functions_count_nothing() -> None:
    loop: list[Any] = ["x" * 1000]
    loop.append(loop)
    assert 1000 < size_of(loop) < 1300
    assert size_of([Plain, print, sqlite3, test_a_cycle_ends_and_classes_and_functions_count_nothing]) < 200


def test_uuids_are_their_number_and_not_their_enumeration() -> None:
    assert size_of(UUID(int=5)) < 120


class Array:
    nbytes = 1_000_000


def test_what_knows_its_bytes_says_them() -> None:
    assert size_of(Array()) >= 1_000_000
    assert Sizer()((1, Array())) >= 1_000_000


class Counted(list[Any]):
    """A list that counts how many of its children were taken."""

    taken = 0

    def __iter__(self) -> Any:
        for each in list.__iter__(self):
            self.taken += 1
            yield each


def test_a_huge_nested_value_is_sampled() -> None:
    many = [{"k": "v" * 100} for _ in range(100_000)]
    assert size_of(many) == pytest.approx(asizeof(many) + 99_999 * asizeof("k"), rel=1.0)
    one = size_of([{"k": "v" * 100 + str(n)} for n in range(10)]) / 10
    assert size_of(many) == pytest.approx(one * len(many), rel=0.25)
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    assert size_of(deep) <= 100 * MOST_OBJECTS


def test_lines_are_flat() -> None:
    lines = [f"line {number}\n" for number in range(100)]
    assert Sizer().page(lines) == sum(map(Sizer(), lines)) == sum(map(getsizeof, lines))
