"""Row M5: garbage collection, when there is evidence that it could help, and never twice in vain.

A full collection stops every Python thread for 85 us per thousand containers and returned less than 1 MB in seven of
eight kinds of garbage (measured, CPython 3.11-3.13). So between cleanups it takes evidence: this program makes
cycles, or has switched its collector off, and enough containers came into being since the last full collection. The
figures come from gc.get_stats and gc.get_count (1.3 us); a hook in gc.callbacks would cost the guarded program
something at every young collection. The ladder keeps the rests and the share of wall time.
"""

from __future__ import annotations

import gc
import os
import sys

from memwarden.act.ladder import USELESS_RATIO
from memwarden.facts import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.facts import Outcome
    from memwarden.ports import Machine

PERIODIC_ABOVE = 0.80
PROBABILITY = 0.1
# Fewer new containers than these hold less than about 1 MB: no collection of them is worth its pause.
NEW_CONTAINERS = 10_000
CONTAINER_S = 90e-9  # 394 to 415 ms for 5 million live ones, 85 to 90 ms for one (CPython 3.11-3.13)
# So many collections by itself in a row that returned nothing are told once.
FRUITLESS = 5


class Collections(Fact):
    """Statistics of the collections that memwarden made. `efficiency` is the share that returned 1 % of what was
    resident, None before the first; `fruitless` counts those in a row that did not.
    """

    total: int = 0
    average_s: float | None = None
    longest_s: float = 0.0
    total_s: float = 0.0
    objects: int = 0
    freed_bytes: int = 0
    uncollectable: int = 0
    efficiency: float | None = None
    fruitless: int = 0


class Collect:
    """A full garbage collection: stops every Python thread while it runs."""

    name = "collect"
    priority = 100
    above = 0.70
    foreign = False
    holds_gil = True
    fork_unsafe = True  # it writes to every object's header: in four forked workers it tripled the sum of PSS
    cooldown_s = 60.0

    def __init__(self, chance: Callable[[], float] | None = None) -> None:
        self._chance = chance  # None: the system's; the module random would cost 0.5 MiB
        self._fruitful = 0
        self._full, self._found = _history()
        self.statistics = Collections()

    def idle(self) -> bool:
        """There may always be something."""
        return False

    def apply(self, machine: Machine) -> int | None:
        """Collect all generations, give what was freed back; the number of unreachable objects found."""
        objects = gc.collect()
        if objects:
            machine.trim()
        self._full, self._found = _history()
        return objects

    def wanted(self, ratio: float | None) -> str:
        """Why a collection is in place at a periodic check, in words; "" where it is not."""
        if ratio is None or ratio < PERIODIC_ABOVE or self._draw() >= PROBABILITY:
            return ""
        return self.evidence()

    def expected_s(self) -> float:
        """How long a collection of what came into being since the last one takes at least."""
        return _new_containers() * CONTAINER_S

    def evidence(self) -> str:
        """What speaks for a collection, in words; "" where nothing does."""
        count, full, found = _new_containers(), *_history()
        if full != self._full:  # the interpreter made one by itself meanwhile: all is counted from there
            self._full, self._found = full, found
        if count < NEW_CONTAINERS:
            return ""
        if not gc.isenabled():
            return f"the collector is switched off and {count} containers came into being"
        if found > 0:
            return f"the program makes cycles ({found} objects so far), {count} containers came into being"
        return ""

    def note(self, outcome: Outcome) -> str:
        """Count one; the words of the alert where this makes it too many in vain, else ""."""
        freed, before, old = outcome.freed_bytes, outcome.before_bytes, self.statistics
        fruitful = freed is not None and before is not None and freed >= before * USELESS_RATIO
        self._fruitful += fruitful
        total, total_s = old.total + 1, old.total_s + outcome.duration_s
        self.statistics = Collections(
            total=total,
            average_s=total_s / total,
            longest_s=max(old.longest_s, outcome.duration_s),
            total_s=total_s,
            objects=old.objects + (outcome.objects or 0),
            freed_bytes=old.freed_bytes + max(freed or 0, 0),
            uncollectable=sum(each["uncollectable"] for each in gc.get_stats()),
            efficiency=self._fruitful / total,
            fruitless=0 if fruitful else old.fruitless + 1,
        )
        if self.statistics.fruitless != FRUITLESS:
            return ""
        return f"{FRUITLESS} collections in a row returned less than {USELESS_RATIO:.0%} of what is resident"

    def _draw(self) -> float:
        return int.from_bytes(os.urandom(4), "little") / 2**32 if self._chance is None else self._chance()


def _new_containers() -> int:
    """Containers that came into being since the last full collection and are not known to be gone, about.

    The first count is of allocations less deallocations, the others of collections of the next younger generation.
    """
    young, middle, old = gc.get_count()
    first, second, _ = gc.get_threshold()
    return young + (middle + old * max(second, 1)) * first


def _history() -> tuple[int, int]:
    """(full collections, objects found by any) so far."""
    stats = gc.get_stats()
    return stats[-1]["collections"], sum(each["collected"] for each in stats)


def advice(version: tuple[int, int, int] | None = None) -> str:
    """What to know about this interpreter's collector; "" for nothing.

    CPython 3.14.0 to 3.14.4 collect incrementally; that was taken back in 3.14.5 after reports of up to five times the
    memory (cpython issues 148726, 148720).
    """
    found = version if version is not None else sys.version_info[:3]
    if not (3, 14, 0) <= found <= (3, 14, 4):
        return ""
    return (
        f"Python {'.'.join(map(str, found))} collects incrementally and may keep cyclic garbage for long: "
        "take 3.14.5 or newer, which went back"
    )
