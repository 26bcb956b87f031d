"""Deciding, without a job: blame, shares, sources' cuts, what earlier runs took."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden.config import Config
from memwarden.errors import ConfigError, JobError
from memwarden.jobs.blame import MOST_DEATHS, MOST_INNOCENT, Blame, after_death, after_progress
from memwarden.jobs.plan import Growth, share_of, should_split
from memwarden.jobs.port import DEATHS
from memwarden.jobs.profiles import PROFILES, profiles_from
from memwarden.jobs.sizes import Histogram
from memwarden.jobs.sources import Items, Lines, source_of

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


# --- blame ---------------------------------------------------------------------------------------------------------


@given(chunk=st.integers(1, 1000), poison=st.integers(0, 2000), kind=st.sampled_from(["oom_kill", "crash", "lost"]))
def test_one_poison_item_costs_three_deaths_and_nothing_else(chunk: int, poison: int, kind: str) -> None:
    """A job of items in a row, one of which kills: it alone is left out, after exactly three deaths."""
    blame, at, deaths, left_out = Blame(chunk=chunk), 0, 0, []
    while at <= poison + chunk:
        if blame.quarantine:
            left_out.append(at)
            at += 1
            blame = after_progress(blame, 1)
            continue
        items = 1 if blame.careful else blame.chunk
        if at <= poison < at + items and poison not in left_out:
            deaths += 1
            blame = after_death(blame, kind, str(at))
        else:
            at += items
            blame = after_progress(blame, items)
    assert (left_out, deaths) == ([poison], MOST_DEATHS)


@given(st.lists(st.sampled_from(DEATHS), min_size=1, max_size=400), st.integers(1, 64))
def test_no_place_is_tried_for_ever(kinds: list[str], chunk: int) -> None:
    """Whatever kills, at one place there are at most so many deaths before something is left out."""
    blame, deaths = Blame(chunk=chunk), 0
    for kind in kinds:
        blame = after_death(blame, kind, "7")
        deaths += 1
        if blame.quarantine:
            break
    assert blame.quarantine or deaths <= MOST_DEATHS * MOST_INNOCENT


def test_an_operators_kill_makes_nothing_smaller() -> None:
    blame = Blame(chunk=50)
    for _ in range(MOST_INNOCENT - 1):
        blame = after_death(blame, "killed", "3")
    assert (blame.chunk, blame.careful, blame.quarantine) == (50, 0, False)


# --- shares --------------------------------------------------------------------------------------------------------


def test_should_split_compares_the_whole_with_the_limit() -> None:
    assert not should_split(256, MIB, limit_bytes=256 * MIB)
    assert should_split(257, MIB, limit_bytes=256 * MIB)
    assert should_split(200, MIB, limit_bytes=256 * MIB, base_bytes=100 * MIB)


@given(each=st.floats(1, 1e12), limit=st.integers(1, 1 << 40), base=st.integers(0, 1 << 40))
def test_a_share_fits_below_the_warning_line_or_is_one_item(each: float, limit: int, base: int) -> None:
    share = share_of(each, limit_bytes=limit, base_bytes=base)
    assert share >= 1
    assert share == 1 or base + share * each <= max(limit * 0.8, (base + limit) / 2)


@given(base=st.integers(1, 400), more=st.integers(1, 400))
def test_no_share_falls_off_a_cliff(base: int, more: int) -> None:
    """A part has room for a third at least of what fits beside its interpreter, and the more the more fits."""
    limit = (base + more) * MIB
    share = share_of(10_000, limit_bytes=limit, base_bytes=base * MIB)
    assert share >= more * MIB / 10_000 / 3
    assert share <= share_of(10_000, limit_bytes=limit + MIB, base_bytes=base * MIB)


def test_growth_is_believed_from_the_third_chunk_and_eight_mebibytes_on() -> None:
    growth = Growth()
    assert growth.saw(10, 100 * MIB) is None  # it warms up
    assert growth.saw(10, 104 * MIB) is None
    assert growth.saw(10, 106 * MIB) is None  # too little
    assert growth.saw(10, 130 * MIB) == MIB
    assert growth.saw(10, None) is None


# --- what earlier runs took ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(1, 1e12), min_size=1, max_size=200))
def test_a_percentile_is_right_to_five_per_cent(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value, 1e9)
    found = histogram.percentile(1.0)
    assert found is not None
    assert max(values) * 0.999 <= found <= max(values) * 1.0501
    middle = histogram.percentile(0.5)
    assert middle is not None
    assert sum(value <= middle * 1.001 for value in values) >= len(values) / 2


def test_what_is_old_counts_less() -> None:
    histogram = Histogram()
    for _ in range(100):
        histogram.add(1000 * MIB, 0.0)
    for day in range(1, 15):
        histogram.add(100 * MIB, day * 86400.0)
    found = histogram.percentile(0.9)
    assert found is not None
    assert found < 110 * MIB


@given(often=st.integers(1, 50_000))
@settings(max_examples=10, deadline=None)
def test_a_new_size_is_learned_however_often_the_job_has_run(often: int) -> None:
    histogram = Histogram.from_text(
        json.dumps({"first": 1.0, "reference_s": 1e9, "weights": {str(Histogram()._bucket(50 * MIB)): float(often)}})
    )
    for n in range(often):
        histogram.add(500 * MIB, 1e9 + n * 0.01)
    assert histogram.percentile(0.9) == pytest.approx(500 * MIB, rel=0.06)


@pytest.mark.parametrize("ahead_s", [1.0, 3600.0, 86400.0, 40 * 86400.0, 10 * 365 * 86400.0])
@pytest.mark.parametrize("before", [0, 100])
def test_a_sample_of_a_clock_that_is_ahead_counts_as_one_of_now(ahead_s: float, before: int) -> None:
    histogram = Histogram()
    for n in range(before):
        histogram.add(50 * MIB, 1e9 - before + n)
    histogram.add(1000 * MIB, 1e9 + ahead_s)
    for n in range(20):
        histogram.add(50 * MIB, 1e9 + n)
    assert histogram.percentile(0.9) == pytest.approx(50 * MIB, rel=0.06)


@given(st.permutations(range(6)), st.floats(1.0, 10_000.0))
def test_samples_of_several_processes_weigh_the_same_in_any_order(order: list[int], apart_s: float) -> None:
    straight, mixed = Histogram(), Histogram()
    for n in range(6):
        straight.add(2.0**n, n * apart_s)
    for n in order:
        mixed.add(2.0**n, n * apart_s)
    assert mixed._weights == pytest.approx(straight._weights)


@given(st.lists(st.tuples(st.floats(1, 1e12), st.floats(0, 1e10)), min_size=1, max_size=50))
def test_it_comes_back_from_its_text(samples: list[tuple[float, float]]) -> None:
    histogram = Histogram()
    for value, at in samples:
        histogram.add(value, at)
    again = Histogram.from_text(histogram.to_text())
    assert again.percentile(0.9) == pytest.approx(histogram.percentile(0.9), rel=0.06)


@pytest.mark.parametrize("text", [None, "", "{}", "null", "[]", '{"first": 1.0}', "\0", '{"first":1.0,"weights":[]}'])
def test_a_text_that_is_none_is_an_empty_one(text: str | None) -> None:
    assert Histogram.from_text(text).percentile(0.5) is None


# --- sources -------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 300), share=st.integers(1, 400), data=st.data())
def test_cuts_of_a_sequence_are_disjoint_and_complete(count: int, share: int, data: st.DataObject) -> None:
    source = Items(range(count))
    low = data.draw(st.none() | st.integers(0, max(0, count - 1)).map(str))
    high = data.draw(st.none() | st.integers(0, max(0, count - 1)).map(str))
    borders = [low, *source.cut(low, high, share), high]
    keys = [int(key) for key in borders[1:-1] if key is not None]
    assert keys == sorted(set(keys))
    pieces = [[item for _, item in source.read(one, other)] for one, other in pairwise(borders)]
    whole = [item for _, item in source.read(low, high)]
    assert [item for piece in pieces for item in piece] == whole
    assert len(whole) == source.count(low, high)
    assert all(len(piece) <= share for piece in pieces)


@given(lines=st.lists(st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"").rstrip(b"\r")), max_size=60),
       share=st.integers(1, 20), ended=st.booleans(), start=st.integers(0, 60))  # fmt: skip
def test_cuts_of_a_file_are_disjoint_and_complete(
    lines: list[bytes], share: int, ended: bool, start: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file.txt"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ended and lines else b""))
    source = Lines(str(path))
    whole = list(source.read(None, None))
    low = whole[start][0] if start < len(whole) else None
    borders = [low, *source.cut(low, None, share), None]
    keys = [int(key) for key in borders[1:-1] if key is not None]
    assert keys == sorted(set(keys))
    pieces = [item for one, other in pairwise(borders) for item in source.read(one, other)]
    assert pieces == [each for each in whole if low is None or int(each[0]) > int(low)]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n\nlast")
    assert [line for _, line in Lines(tmp_path / "a.txt").read(None, None)] == [b"one", b"two", b"", b"last"]


def test_a_line_that_is_too_long_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n" + b"x" * 20)
    with pytest.raises(JobError, match=f"{path}: has a line of more than 10 bytes at byte 4; see that it has lines"):
        list(Lines(path, longest=10).read(None, None))


@pytest.mark.parametrize("wrong", [iter([1]), {1, 2}, {"a": 1}, 7, None, (n for n in range(3))])
def test_what_cannot_be_taken_up_in_the_middle_is_refused(wrong: object) -> None:
    with pytest.raises(JobError, match="cannot be taken up in the middle"):
        source_of(wrong, job="work")


# --- profiles ------------------------------------------------------------------------------------------------------


def test_the_shipped_profiles_are_those_of_the_requirement() -> None:
    assert {name: (each.limit_bytes // MIB, each.chunk, each.split) for name, each in PROFILES.items()} == {
        "campaign": (512, 50, True), "training": (1024, 1000, True), "bulk": (256, 50, True),
        "notification": (128, 100, False), "analysis": (256, 100, True),
    }  # fmt: skip


def test_a_table_changes_a_type_or_adds_one_and_the_switch_is_above_all() -> None:
    table = {"bulk": {"limit": "1G"}, "own": {"chunk": 7, "split": False}}
    found = profiles_from(Config(), table)
    assert (found["bulk"].limit_bytes, found["bulk"].chunk) == (1 << 30, 50)
    assert (found["own"].limit_bytes, found["own"].chunk, found["own"].split) == (256 * MIB, 7, False)
    off = profiles_from(Config(job_auto_split=False), table)
    assert not any(each.split for each in off.values())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"bulk": 7}, "jobs.bulk: is not a table"),
        ({"bulk": {"limits": "1G"}}, "there is no setting 'limits' of a job type; known are limit, chunk, split"),
        ({"bulk": {"limit": "much"}}, "jobs.bulk.limit: 'much' is not a size"),
        ({"bulk": {"chunk": 0}}, "jobs.bulk.chunk: 0 is no such number"),
        ({"bulk": {"split": "maybe"}}, "jobs.bulk.split: 'maybe' is not a switch"),
    ],
)
def test_a_wrong_table_is_named(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profiles_from(Config(), table)
    assert said in str(caught.value)


def test_a_histogram_is_small() -> None:
    histogram = Histogram()
    for n in range(10_000):
        histogram.add(1 + n * 1e6, n * 60.0)
    assert len(histogram.to_text()) < 16_000
    assert json.loads(histogram.to_text())["first"] == 1.0
