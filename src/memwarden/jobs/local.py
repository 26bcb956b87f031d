"""The local engine's face to the core: its queue is the ledger itself, so there is nothing to send."""

from __future__ import annotations

from memwarden.jobs.port import Abilities, QueueCount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.jobs.ledger import Ledger

__all__ = ["LocalEngine"]


class LocalEngine:
    """Messages need no sending: a `Runner` finds the parts that are ready in the ledger."""

    name = "local"
    can = Abilities(delay=True, priority=True, fresh=True, counts=True)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """It is in the ledger."""

    def statistics(self) -> tuple[QueueCount, ...]:
        """From the ledger."""
        found: dict[str, tuple[int, int]] = {}
        for row in self._ledger.statistics():
            if row["engine"] == self.name:
                waiting, taken = found.get(row["queue"], (0, 0))
                found[row["queue"]] = (waiting + row["waiting"] + row["delayed"], taken + row["running"])
        return tuple(QueueCount(queue=queue, waiting=each[0], taken=each[1]) for queue, each in sorted(found.items()))
