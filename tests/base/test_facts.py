"""Facts are frozen, keyword-only, compared by value, and cheap."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden import facts
from memwarden.facts import Candidate, Fact, Level, Limit, Operation, Outcome, Reading, Surroundings
from memwarden.testing import reading


class Sample(Fact):
    """Two fields, one with a default."""

    name: str
    size_bytes: int = 7


class Larger(Sample):
    """One more."""

    note: str = "-"


class Renamed(Sample):
    """The same fields under another name."""


class Empty(Fact):
    """No field at all."""


EVERY = [
    found for found in vars(facts).values() if inspect.isclass(found) and issubclass(found, Fact) and found is not Fact
]


def _made(kind: type[Fact]) -> Fact:
    """One of that kind; what has no default is a number, which every field can hold for this purpose."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    make: Any = kind
    made: Fact = make(**{each.name: 1 for each in parameters if each.default is each.empty and each.name != "self"})
    return made


def test_there_are_facts_to_try() -> None:
    assert len(EVERY) >= 8


@pytest.mark.parametrize("kind", EVERY)
def test_a_fact_takes_keywords_only_and_can_neither_change_nor_grow(kind: type[Fact]) -> None:
    made = _made(kind)
    for name in made._fields:
        with pytest.raises(AttributeError, match=rf"{kind.__name__} is frozen: use .replace\({name}="):
            setattr(made, name, 2)
        with pytest.raises(AttributeError, match="frozen"):
            delattr(made, name)
    with pytest.raises(AttributeError):
        setattr(made, "something_else", 1)  # noqa: B010  mypy would see it, and that is tried in tests/typing
    assert not hasattr(made, "__dict__")
    with pytest.raises(TypeError, match=f"{kind.__name__}.__init__"):
        kind(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no_such_field"):
        kind(**{**made.as_dict(), "no_such_field": 1})


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_is_equal_and_of_the_same_kind(kind: type[Fact], way: Any) -> None:
    made = _made(kind)
    again = way(made)
    assert type(again) is kind
    assert again == made
    assert hash(again) == hash(made)
    assert repr(again) == repr(made)


@pytest.mark.parametrize("kind", EVERY)
def test_a_changed_field_makes_another_fact_and_leaves_the_old_one(kind: type[Fact]) -> None:
    made = _made(kind)
    for name in made._fields:
        other = made.replace(**{name: "something else"})
        assert other != made
        assert getattr(other, name) == "something else"
        assert other.replace(**{name: getattr(made, name)}) == made


@given(name=st.text(), size=st.integers(), other=st.integers())
def test_equal_means_the_same_kind_and_the_same_values(name: str, size: int, other: int) -> None:
    made = Sample(name=name, size_bytes=size)
    assert (made == Sample(name=name, size_bytes=other)) is (size == other)
    assert made != Renamed(name=name, size_bytes=size)
    assert made != (name, size)
    assert made.as_dict() == {"name": name, "size_bytes": size}
    assert eval(repr(made)) == made


def test_defaults_are_used_where_nothing_is_given() -> None:
    assert Sample(name="a").size_bytes == 7
    with pytest.raises(TypeError, match="'name'"):
        Sample()  # type: ignore[call-arg]
    assert repr(Empty()) == "Empty()"
    assert Empty() == Empty()


def test_a_fact_can_be_extended_and_keeps_the_fields_of_its_base() -> None:
    made = Larger(name="a", note="b")
    assert made.as_dict() == {"name": "a", "size_bytes": 7, "note": "b"}
    assert made != Larger(name="b", note="b")
    assert made != Sample(name="a")
    assert pickle.loads(pickle.dumps(made)) == made
    assert not hasattr(made, "__dict__")
    assert Renamed(name="a", size_bytes=2).as_dict() == {"name": "a", "size_bytes": 2}


def test_a_field_of_the_base_cannot_be_declared_again() -> None:
    with pytest.raises(TypeError, match="name is a field of its base already"):
        type("Twice", (Sample,), {"__annotations__": {"name": "str"}})


def test_a_fact_costs_its_slots_and_no_dictionary() -> None:
    made = Operation(name="a", before_bytes=1, after_bytes=2, peak_bytes=3, duration_s=1.0, samples=1, overlapped=False)
    # An object's header and one pointer a field; a dictionary alone would be 200 bytes more.
    assert sys.getsizeof(made) <= 56 + 8 * len(made._fields)
    assert [name for name in Operation.__init__.__code__.co_names if "dict" in name] == []


def test_building_a_reading_runs_no_python_but_its_constructor() -> None:
    calls: list[str] = []
    values = reading(1).as_dict()
    sys.setprofile(lambda frame, event, _arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    Reading(**values)
    sys.setprofile(None)
    assert calls == ["__init__"]


def test_a_flat_reading_holds_every_figure_once_under_its_name() -> None:
    flat = (
        reading(100)
        .replace(
            around=Surroundings(
                monotonic_s=5.0, unknown=(("swap", "no file"),), sources={"rss_bytes": "/proc/self/statm"}
            )
        )
        .flat()
    )
    assert set(flat) == (set(Reading._fields) | set(Surroundings._fields)) - {"around"}
    assert flat["unknown"] == {"swap": "no file"}
    assert flat["monotonic_s"] == 1000.0  # the reading's own time, not that of its surroundings
    assert flat["rss_bytes"] == 100
    assert flat["sources"] == {"rss_bytes": "/proc/self/statm"}


def test_levels_are_ordered_and_the_older_name_is_understood() -> None:
    assert Level.NORMAL < Level.WARNING < Level.CRITICAL < Level.EMERGENCY
    assert Level["HEALTHY"] is Level.NORMAL


def test_ratios_and_differences_of_what_is_unknown_are_unknown() -> None:
    unknown = reading(100).replace(used_bytes=None, used_low_bytes=None)
    assert (unknown.usage_ratio, unknown.usage_low_ratio) == (None, None)
    assert reading(50, 200).usage_ratio == 0.25
    assert reading(50, None).usage_ratio is None
    done = Outcome(action="a", reason="b", before_bytes=10, after_bytes=4, duration_s=0.0, unix_s=0.0)
    assert done.freed_bytes == 6
    assert done.replace(after_bytes=None).freed_bytes is None


def test_a_limit_explains_itself_in_one_line() -> None:
    candidates = (
        Candidate(kind="cgroup", scope="container", bytes=512 << 20, source="/sys/fs/cgroup/memory.max"),
        Candidate(kind="rlimit", scope="process", bytes=None, source="RLIMIT_AS", note="unlimited"),
        Candidate(kind="machine", scope="machine", bytes=8 << 30, source="MemTotal"),
    )
    limit = Limit(
        bytes=512 << 20, source="/sys/fs/cgroup/memory.max", kind="cgroup", scope="container", chain=candidates
    )
    assert limit.explain() == "512 MiB from /sys/fs/cgroup/memory.max, the tightest of 2"
    assert limit.replace(bytes=None).explain() == "no limit could be read"
