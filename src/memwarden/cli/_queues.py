"""Queue statistics of the jobs in this user's store, or in the database of MEMWARDEN_LEDGER, for `monitor`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from memwarden.errors import StoreError
from memwarden.jobs.ledger import Ledger
from memwarden.jobs.places import open_place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from memwarden.jobs.shared import SharedPlace
    from memwarden.store import Store

# After a look that failed it rests so many times as long as that took: a database that is away may take seconds to say
# so, and whoever watches memory has something else to do.
REST = 20
SHOWN = ("waiting", "delayed", "running", "failed")


class Queues:
    """Looks into the store and keeps nobody from writing. `why_not` says why it cannot be read; it is tried again.

    Whoever watches memory must not end because a store is not there yet, or is locked for a moment.
    """

    def __init__(self, folder: str | None = None, *, environ: Mapping[str, str] = os.environ) -> None:
        self._folder, self._environ = folder, environ
        self._place: Store | SharedPlace | None = None
        self._before: str | None = None
        self._not_before_s = 0.0
        self.why_not = ""

    def look(self) -> list[dict[str, Any]]:
        """One row for each engine, queue and job type; none where it cannot be read."""
        began_s = time.monotonic()
        if began_s < self._not_before_s:
            return []
        try:
            if self._place is None:
                self._place = open_place(self._folder, reading=True, environ=self._environ)
            found = Ledger(self._place).statistics()
        except StoreError as error:
            self.why_not = f"queues are not known: {error.where}: {error.what}"
            self.close()
            ended_s = time.monotonic()
            self._not_before_s = ended_s + REST * (ended_s - began_s)
            return []
        self.why_not = ""
        return found

    def news(self, rows: list[dict[str, Any]]) -> str:
        """In words, where it is not as it was."""
        words = self.why_not or "; ".join(map(_in_words, rows)) or "no job is on record"
        if words == self._before:
            return ""
        self._before = words
        return words

    def close(self) -> None:
        """Close what was opened."""
        if self._place is not None:
            self._place.close()
            self._place = None


def _in_words(row: dict[str, Any]) -> str:
    kind = f" ({row['type']})" if row["type"] else ""
    counts = ", ".join(f"{row[name]} {name}" for name in SHOWN if row[name] or name in ("waiting", "running"))
    if row["broker_waiting"] is not None:
        counts += f", {row['broker_waiting']} in the broker"
    return f"queue {row['queue']}{kind}: {counts}"
