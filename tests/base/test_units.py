"""Sizes, ratios and durations: what is written is what is read, and all else is one clear line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.errors import UnitError
from memwarden.units import (
    GIB,
    KIB,
    MAX_BYTES,
    MIB,
    format_bytes,
    format_duration,
    format_ratio,
    parse_bool,
    parse_bytes,
    parse_duration,
    parse_probability,
    parse_ratio,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS: tuple[Callable[..., Any], ...] = (
    parse_bytes,
    parse_ratio,
    parse_probability,
    parse_duration,
    parse_bool,
)
QUANTITIES = PARSERS[:4]


class _Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


_NO_QUANTITY: tuple[Any, ...] = (
    None,
    True,
    False,
    b"512M",
    bytearray(b"1"),
    [],
    {},
    (1,),
    object(),
    _Mute(),
    float("nan"),
    float("inf"),
    float("-inf"),
    -1,
    -0.5,
    10**400,
    -(10**400),
    10**5000,
    1e308,
    "",
    " ",
    "\n",
    "-1",
    "+5",
    "nan",
    "inf",
    "infinity",
    "1e3",
    "0x10",
    "1_000",
    "1,5",
    "1.2.3",
    ".",
    "%",
    "five",
    "12 34",
    "512\x00",
    "\u0665\u0661\u0662",
    "\uff15\uff11\uff12",
    "\u096b%",
    "\u00bd",
    "9" * 5000,
    "9" * 1_000_000,
    " " * 1_000_000,
    "1m" * 100_000,
    "\ud800",
    "8\n0",
)


@pytest.mark.parametrize("parse", QUANTITIES)
@pytest.mark.parametrize("value", _NO_QUANTITY, ids=range(len(_NO_QUANTITY)))
def test_what_is_no_quantity_is_one_line_that_says_where_and_how_to_mend(
    parse: Callable[..., Any], value: object
) -> None:
    with pytest.raises(UnitError) as caught:
        parse(value, where="MEMWARDEN_X")
    line = str(caught.value)
    assert line.startswith("MEMWARDEN_X: ")
    assert "; write" in line
    assert line.isprintable()
    assert len(line) < 300
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("parse", PARSERS)
@given(
    value=st.one_of(
        st.text(max_size=30),
        st.text(alphabet="0123456789.%kKmMgGtTpPiIbBsShHdDwWn -+e\u212a\u0660\n", max_size=12),
        st.integers(),
        st.floats(),
        st.binary(max_size=5),
        st.none(),
        st.lists(st.integers(), max_size=2),
    )
)
def test_a_parser_returns_a_quantity_within_its_bounds_or_raises_unit_error(
    parse: Callable[..., Any], value: object
) -> None:
    try:
        found = parse(value)
    except UnitError as error:
        line = str(error)
        assert line.isprintable()
        return
    bounds = {parse_bytes: (1, MAX_BYTES), parse_ratio: (0, 1), parse_probability: (0, 1), parse_duration: (0, 1e10)}
    low, high = bounds.get(parse, (False, True))
    assert low <= found <= high
    assert type(found) is {parse_bytes: int, parse_bool: bool}.get(parse, float)


@given(number=st.integers(1, 1023), letter=st.sampled_from("kmgt"))
def test_a_size_is_binary_whatever_its_suffix(number: int, letter: str) -> None:
    expected = number * 1024 ** ("kmgt".index(letter) + 1)
    for suffix in (letter, letter.upper(), f"{letter}b", f"{letter.upper()}B", f"{letter}ib", f"{letter.upper()}iB"):
        assert parse_bytes(f"{number}{suffix}") == parse_bytes(f" {number} {suffix}\n") == expected


@given(size=st.integers(1, MAX_BYTES))
def test_a_whole_number_of_bytes_is_kept_exactly(size: int) -> None:
    assert parse_bytes(size) == parse_bytes(str(size)) == parse_bytes(f"{size}B") == size


@given(size=st.integers(1, 1 << 50))
def test_a_size_printed_for_people_reads_back_within_its_rounding(size: int) -> None:
    back = parse_bytes(format_bytes(size))
    assert abs(back - size) <= size * 0.05 + 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (KIB - 1, "1023 B"),
        (KIB, "1 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1 MiB"),
        (512 * MIB, "512 MiB"),
        (GIB * 3 // 2, "1.5 GiB"),
        (1 << 60, "1048576 TiB"),
        (-3277, "-3.2 KiB"),
        (None, "unknown"),
        (float("nan"), "unknown"),
        (float("inf"), "unknown"),
        (10**400, "unknown"),
    ],
    ids=range(14),
)
def test_sizes_for_people(size: float | None, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    "text", ["0", "0.0001", "0k", "1025P", "1.5e3", "B", "iB", "5 i", "512 ib", "k", 0, 0.5, 2.0**60 * 2]
)
def test_sizes_that_cannot_be_used_are_refused(text: str | float) -> None:
    with pytest.raises(UnitError, match="size"):
        parse_bytes(text)


def test_the_largest_size_is_the_same_as_text_and_as_a_number() -> None:
    assert parse_bytes("1024P") == parse_bytes(1 << 60) == MAX_BYTES


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1 ", "1.", "01"])
def test_a_ratio_of_one_is_refused_as_ambiguous(value: str | float) -> None:
    with pytest.raises(UnitError, match=r'1 % or 100 %\?; write "1%" or "100%"'):
        parse_ratio(value)


@pytest.mark.parametrize(
    ("value", "ratio"),
    [
        ("1%", 0.01),
        ("100%", 1.0),
        ("100", 1.0),
        (100, 1.0),
        (80, 0.8),
        (0.8, 0.8),
        ("0.8", 0.8),
        (".8", 0.8),
        ("80 %", 0.8),
        ("0%", 0.0),
        (0, 0.0),
        ("0.5%", 0.005),
        ("87.5", 0.875),
    ],
)
def test_ratios_up_to_one_are_fractions_and_above_it_percent(value: str | float, ratio: float) -> None:
    assert parse_ratio(value) == pytest.approx(ratio)


@pytest.mark.parametrize("value", ["101%", "100.1", 101, 1e9])
def test_a_ratio_above_the_whole_is_refused(value: str | float) -> None:
    with pytest.raises(UnitError, match="is not between 0 and 100 %"):
        parse_ratio(value)


@given(ratio=st.floats(0, 1))
def test_a_ratio_printed_for_people_reads_back_within_its_rounding(ratio: float) -> None:
    assert parse_ratio(format_ratio(ratio)) == pytest.approx(ratio, abs=0.000501)


@pytest.mark.parametrize(("value", "found"), [(1, 1.0), ("1", 1.0), ("1%", 0.01), (0, 0.0), ("10 %", 0.1), (0.5, 0.5)])
def test_a_probability_of_one_means_always(value: str | float, found: float) -> None:
    assert parse_probability(value) == found


@pytest.mark.parametrize("value", [1.01, "2", 10, "101%"])
def test_a_probability_is_never_percent_without_the_sign(value: str | float) -> None:
    with pytest.raises(UnitError, match="is not between 0 and 1"):
        parse_probability(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (15, 15),
        ("15", 15),
        ("15s", 15),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("2 min 5 s", 125),
        ("1d", 86400),
        (0, 0),
        ("1w 2d", 777600),
        ("1.5 H", 5400),
        ("2M", 120),
        ("0.25", 0.25),
    ],
)
def test_durations_are_seconds_unless_they_say_otherwise(value: str | float, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["15 parsecs", "s", "1h 30", "5 %", "1e3s", "10000000000", 1e10, "20000w"])
def test_durations_that_cannot_be_are_refused(value: str | float) -> None:
    with pytest.raises(UnitError, match="is not a duration"):
        parse_duration(value)


@given(seconds=st.floats(0, 9e9))
def test_a_duration_printed_for_people_reads_back_within_its_smaller_unit(seconds: float) -> None:
    back = parse_duration(format_duration(seconds))
    unit = next(u for u, past in ((3600, 86399), (60, 3599), (1, 59), (0.051, 0.999), (0.0006, -1)) if seconds > past)
    assert abs(back - seconds) <= unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.012, "12 ms"),
        (0.9996, "1 s"),
        (3.4, "3.4 s"),
        (59.97, "1 min"),
        (125, "2 min 5 s"),
        (3599.7, "1 h"),
        (5400, "1 h 30 min"),
        (273600, "3 d 4 h"),
        (-3, "-3 s"),
        (None, "unknown"),
        (float("nan"), "unknown"),
        (float("inf"), "unknown"),
    ],
)
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("yes", True),
        (" OFF ", False),
        ("", False),
        ("TRUE", True),
    ],
)
def test_switches(value: object, found: bool) -> None:
    assert parse_bool(value) is found


@pytest.mark.parametrize("value", [None, 2, -1, 0.5, "2", "ja", b"1", [], 10**5000, _Mute()], ids=range(10))
def test_what_is_no_switch_is_refused(value: object) -> None:
    with pytest.raises(UnitError, match="is not a switch; write true or false"):
        parse_bool(value)


@pytest.mark.parametrize("parse", PARSERS)
def test_endless_text_is_refused_in_a_bounded_number_of_steps(parse: Callable[..., Any]) -> None:
    steps = 0

    def count(*_event: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    sys.settrace(count)
    try:
        with pytest.raises(UnitError):
            parse("1 m" * 1_000_000)
    finally:
        sys.settrace(None)
    assert steps < 200
