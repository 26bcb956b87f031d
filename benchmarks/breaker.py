"""What asking costs: the breaker's check beside an empty method, an admission beside a reading of psutil."""

from __future__ import annotations

import os
import tempfile
from itertools import repeat
from typing import TYPE_CHECKING

import psutil

from benchmarks import Figure
from benchmarks.arms import race
from memwarden import Breaker, Warden
from memwarden.act.admission import Admission
from memwarden.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE_BYTES = 1 << 20


class Empty:
    """The least that a method can do."""

    def check(self) -> None:
        """Nothing."""


def _hundred(thing: Empty | Breaker) -> Callable[[], None]:
    """A loop of calls, each looked up as a caller does."""

    def arm() -> None:
        for _ in repeat(None, 100):
            thing.check()

    return arm


def main() -> list[Figure]:
    """Check, then admission and reservation, with a running Warden and without one."""
    with tempfile.TemporaryDirectory() as folder, Warden(directory=folder) as warden:
        return [*_checks(warden), *_admissions(warden)]


def _checks(warden: Warden) -> list[Figure]:
    found = race(
        {
            "empty method": _hundred(Empty()),
            "breaker by itself": _hundred(Breaker()),
            "breaker with a Warden": _hundred(Breaker(warden)),
        }
    )
    return [
        Figure(
            f"check() of a {name}, its age test and its readings included, over an empty method call",
            found.ratio(name, "empty method"),
            "x",
            at_most=3.0,
            beside=found.beside(name, "empty method") + " (100 calls each)",
        )
        for name in ("breaker by itself", "breaker with a Warden")
    ]


def _admissions(warden: Warden) -> list[Figure]:
    kept, account = psutil.Process(os.getpid()), Budget("1G").account("bench")
    of_warden, of_budget = Admission(warden), Admission(Budget("1G"))

    def admit(admission: Admission) -> Callable[[], None]:
        def arm() -> None:
            with admission.admit(SIZE_BYTES):
                pass

        return arm

    def reserve() -> None:
        account.reserve(SIZE_BYTES)
        account.release(SIZE_BYTES)

    found = race(
        {
            "psutil RSS": kept.memory_info,
            "admitted by a Warden": admit(of_warden),
            "admitted by a Budget": admit(of_budget),
            "reserve and release": reserve,
        }
    )
    return [
        Figure(
            f"{name}, begin to end, over a psutil RSS reading",
            found.ratio(name, "psutil RSS"),
            "x",
            at_most=1.0,
            beside=found.beside(name, "psutil RSS"),
        )
        for name in ("admitted by a Warden", "admitted by a Budget", "reserve and release")
    ]
