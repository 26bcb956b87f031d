"""How many of each kind were killed while a job was open, and who is next."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from memwarden.jobs.ledger import Worker
from memwarden.supervise.signals import pause

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from memwarden.jobs import Ledger

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
# Of each kind; and of all kinds during one job, so that there are jobs of each sort.
LEAST, MOST = (100, 25) if SOAK else (4, 6)


def at_work(ledger: Ledger, engine: str) -> list[int]:
    """The pids that have a part in hand, and live: after a death the ledger has the dead one for a moment."""
    holders = [Worker(**json.loads(part.holder)) for part in ledger.running(engine) if part.holder is not None]
    return [holder.pid for holder in holders if not holder.is_gone()]


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
        kinds = ", ".join(f"{count} of {kind}" for kind, count in self.counts.items())
        return f"{kinds}, with {self.robbed} parts in hand"
