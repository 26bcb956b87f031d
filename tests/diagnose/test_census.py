"""The census names what piles up, runs no foreign code, keeps nothing alive, and says what it left out."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memwarden.diagnose import compare
from memwarden.diagnose.census import Census, TypeRow, census

# A real program: requests leave a listener in a list, and beside it much that comes and goes.
LEAKING = """
import json
from memwarden.diagnose.census import census, compare

class Listener:
    __slots__ = ("name", "more")
    def __init__(self, name):
        self.name, self.more = name, None

listeners = []

def request(number):
    scratch = [{"n": each} for each in range(20)]
    listeners.append(Listener(str(number)))
    return len(scratch)

for number in range(200):
    request(number)
before = census()
for number in range(5000):
    request(number)
after = census()
print(json.dumps([(each.type, each.grown_count, each.grown_bytes) for each in compare(before, after)]))
"""


class Thing:
    """Something to count."""


def _census(*rows: tuple[str, int, int], other_types: int = 0, least_bytes: int = 0) -> Census:
    return Census(
        rows=tuple(TypeRow(type=name, count=count, shallow_bytes=size) for name, count, size in rows),
        objects=0, shallow_bytes=0, other_types=other_types, other_count=0, other_bytes=0, least_bytes=least_bytes,
        frozen_objects=0, duration_s=0.0,
    )  # fmt: skip


def test_a_leaking_list_of_a_class_is_named_first() -> None:
    done = subprocess.run([sys.executable, "-c", LEAKING], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name, count, size = json.loads(done.stdout)[0]
    assert (name, count) == ("__main__.Listener", 5000)
    assert size >= 5000 * 32  # two slots and the header of the object


def test_it_counts_exactly_the_objects_it_is_given() -> None:
    things: list[Any] = [Thing(), Thing(), [], {"a": 1}]
    found = census(objects=lambda: things, now_s=iter((1.0, 1.5)).__next__)
    assert {row.type: row.count for row in found.rows} == {f"{__name__}.Thing": 2, "list": 1, "dict": 1}
    assert (found.objects, found.duration_s, found.other_types, found.least_bytes) == (4, 0.5, 0, 0)
    assert found.shallow_bytes == sum(sys.getsizeof(each) for each in things)


@given(st.lists(st.sampled_from([int, str, list, dict, set, Thing, object]), max_size=50), st.integers(0, 8))
def test_what_is_kept_and_what_is_left_out_are_the_whole(kinds: list[type], keep: int) -> None:
    found = census(objects=lambda: [kind() for kind in kinds], keep=keep)
    assert len(found.rows) == min(keep, len(set(kinds)))
    assert sum(row.count for row in found.rows) + found.other_count == found.objects == len(kinds)
    assert sum(row.shallow_bytes for row in found.rows) + found.other_bytes == found.shallow_bytes
    assert all(row.shallow_bytes >= found.least_bytes for row in found.rows)


def test_no_code_of_an_object_or_of_its_type_is_run() -> None:
    """A proxy that loads from a database when it is looked at must not be woken, whatever it overrides."""

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError(name)

        @property
        def __module__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("module")

        def __hash__(cls) -> int:
            raise RuntimeError("hash of the type")

        def __eq__(cls, other: object) -> bool:
            raise RuntimeError("equality of the type")

    class Proxy(metaclass=Meta):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __sizeof__(self) -> int:
            raise RuntimeError("size")

        def __hash__(self) -> int:
            raise RuntimeError("hash")

    found = census(objects=lambda: [Proxy(), Proxy()])
    assert [row.count for row in found.rows] == [2]
    assert found.rows[0].type.endswith(".Proxy")
    assert found.shallow_bytes > 0


def test_nothing_is_kept_alive() -> None:
    thing = Thing()
    gone = weakref.ref(thing)
    found = census()
    assert f"{__name__}.Thing" in {row.type for row in census(keep=10_000).rows}
    del thing
    assert gone() is None
    assert not any(type(each) is Thing for each in gc.get_referents(found))


def test_two_types_of_one_name_are_one_row() -> None:
    def make() -> type:
        return type("Twin", (), {"__module__": "somewhere"})

    found = census(objects=lambda: [make()(), make()()])
    assert [(row.type, row.count) for row in found.rows] == [("somewhere.Twin", 2)]


def test_growth_is_by_bytes_the_most_first_and_what_shrank_is_left_out() -> None:
    before = _census(("a", 10, 1000), ("b", 10, 1000), ("c", 10, 1000))
    after = _census(("a", 12, 1200), ("b", 5, 500), ("c", 11, 9000), ("new", 1, 50))
    found = compare(before, after)
    assert [(each.type, each.grown_bytes, each.grown_count) for each in found] == [
        ("c", 8000, 1),
        ("a", 200, 2),
        ("new", 50, 1),
    ]
    assert len(compare(before, after, top=1)) == 1


def test_of_a_type_that_was_left_out_before_the_least_growth_is_said() -> None:
    before = _census(("a", 10, 1000), other_types=3, least_bytes=400)
    after = _census(("a", 10, 1000), ("late", 50, 900), ("small", 1, 300))
    (found,) = compare(before, after)
    assert (found.type, found.grown_bytes) == ("late", 500)
    assert (found.before_count, found.before_bytes, found.grown_count) == (None, None, None)


def test_two_censuses_of_a_quiet_program_show_no_growth_worth_a_name() -> None:
    census()
    before, after = census(), census()
    assert sum(each.grown_bytes for each in compare(before, after)) < 64 << 10
