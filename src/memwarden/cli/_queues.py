"""Queue statistics of the jobs in this user's store, for `monitor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memwarden.jobs.ledger import Ledger
from memwarden.store import Store

if TYPE_CHECKING:
    from typing import Any

SHOWN = ("waiting", "delayed", "running", "failed")


class Queues:
    """Looks into the store; what cannot be read is said once by the store itself, and is nothing here."""

    def __init__(self, folder: str | None = None) -> None:
        self._store = Store(folder)
        self._ledger = Ledger(self._store)
        self._before = ""

    def look(self) -> list[dict[str, Any]]:
        """One row for each engine, queue and job type."""
        return self._ledger.statistics()

    def news(self, rows: list[dict[str, Any]]) -> str:
        """In words, where it is not as it was."""
        words = "; ".join(
            f"queue {row['queue']}{f' ({row_type})' if (row_type := row['type']) else ''}: "
            + ", ".join(f"{row[name]} {name}" for name in SHOWN if row[name] or name in ("waiting", "running"))
            for row in rows
        )
        if words == self._before:
            return ""
        self._before = words
        return words

    def close(self) -> None:
        """Close the store."""
        self._store.close()
