"""The one table of the checks: name, what it proves, and whether `--quick` makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memwarden.cli._selftest import checks
from memwarden.facts import Fact

if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.cli._selftest.bench import Bench, Finding


class Check(Fact):
    """One check: `make` does it, in throw-away processes."""

    name: str
    about: str
    make: Callable[[Bench], Finding]


CHECKS = tuple(
    Check(name=each.__name__, about=str(each.__doc__), make=each)
    for each in (
        checks.limit,
        checks.reading,
        checks.cost,
        checks.levels,
        checks.collection,
        checks.trim,
        checks.blackbox,
        checks.oom,
        checks.detection,
        checks.breaker,
        checks.fence,
    )
)
