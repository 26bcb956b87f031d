"""The fast half of a check: the pure class and its C twin mean the same."""

from __future__ import annotations

import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import Breaker
from memwarden.act import breaker

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from memwarden._native import _reader
except ImportError:
    _reader = None  # type: ignore[assignment]  # not built here

TWINS: list[Any] = [breaker.Deadline, *([] if _reader is None else [_reader.Deadline])]
FAR_S = 3600.0


@pytest.fixture(params=TWINS, ids=["pure", "native"][: len(TWINS)])
def make(request: pytest.FixtureRequest) -> Callable[[float], Any]:
    """Something to check, and until when it is well; it counts how often it was looked at."""

    base: Any = request.param

    class Checked(base):  # type: ignore[misc]  # one of two classes
        seen = 0

        def __init__(self, until_s: float) -> None:
            self._fast_until_s = until_s

        def _check_slowly(self) -> None:
            self.seen += 1
            if self.seen > 2:
                raise RuntimeError("no room")

    return Checked


def test_nobody_looks_before_its_time(make: Callable[[float], Any]) -> None:
    checked = make(time.monotonic() + FAR_S)
    for _ in range(1000):
        assert checked.check() is None
    assert checked.seen == 0


@pytest.mark.parametrize("late_s", [0.0, FAR_S, float("inf")])
def test_at_its_time_and_later_each_check_looks(make: Callable[[float], Any], late_s: float) -> None:
    checked = make(time.monotonic() - late_s)
    checked.check()
    checked.check()
    assert checked.seen == 2
    with pytest.raises(RuntimeError, match="no room"):
        checked.check()


def test_the_time_can_be_moved_while_it_is_used(make: Callable[[float], Any]) -> None:
    checked = make(float("-inf"))
    checked.check()
    checked._fast_until_s = time.monotonic() + FAR_S
    checked.check()
    assert checked.seen == 1
    with pytest.raises(TypeError):
        make("soon").check()  # type: ignore[arg-type]  # which is the wrong thing


def test_it_goes_when_nobody_holds_it_alone_or_in_a_circle(make: Callable[[float], Any]) -> None:
    alone, circle = make(0.0), make(0.0)
    circle.itself = circle
    gone = [weakref.ref(alone), weakref.ref(circle)]
    del alone, circle
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_a_breaker_uses_the_fast_one_where_there_is_one() -> None:
    assert issubclass(Breaker, TWINS[-1])
    first, second = ((each.check.__doc__ or "").split() for each in (TWINS[0], TWINS[-1]))
    assert first == second
