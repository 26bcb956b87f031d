"""How many of each kind were killed while a job was open, and who is next."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from memwarden.supervise.signals import pause

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
# Of each kind; and of all kinds during one job, so that there are jobs of each sort.
LEAST, MOST = (100, 25) if SOAK else (4, 6)


class Toll:
    """`kinds` has, for each, what kills one; it says how many processes with a part died of it, or None for no kill."""

    def __init__(self, kinds: Mapping[str, Callable[[], int | None]], chance: random.Random) -> None:
        self._kinds, self._chance = kinds, chance
        self.counts = dict.fromkeys(kinds, 0)
        self.robbed = 0  # processes that had a part in hand

    @property
    def is_paid(self) -> bool:
        """Whether each kind has its number."""
        return min(self.counts.values()) >= LEAST

    def strike(self, is_open: Callable[[], bool]) -> None:
        """Kill at random as long as the job is open and somebody is still to be killed; not without end."""
        before = sum(self.counts.values())
        while not self.is_paid and sum(self.counts.values()) < before + MOST and is_open():
            short = [kind for kind, count in self.counts.items() if count < LEAST]
            kind = self._chance.choice(short)
            robbed = self._kinds[kind]()
            if robbed is None:
                pause(0.02)
                continue
            self.counts[kind] += 1
            self.robbed += robbed
            pause(self._chance.uniform(0.05, 0.4))

    def __str__(self) -> str:
        return ", ".join(f"{count} of {kind}" for kind, count in self.counts.items())
