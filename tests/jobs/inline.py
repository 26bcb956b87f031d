"""The plainest engine there is: messages in a list, worked off in the calling process."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from memwarden.jobs import Abilities, Engine, Ledger, QueueCount, Watch, perform, sweep

if TYPE_CHECKING:
    from memwarden.store import Store


class Inline:
    """An engine and its bench."""

    name = "inline"
    can = Abilities()
    has_processes = False
    most_items = 2000

    def __init__(self, folder: str, store: Store) -> None:
        self.folder, self.ledger = folder, Ledger(store)
        self.engine: Engine = self
        self.sent: list[str] = []
        self.queue: deque[str] = deque()
        self._watch = Watch()

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        self.sent.append(text)
        self.queue.append(text)

    def statistics(self) -> tuple[QueueCount, ...]:
        return (QueueCount(queue="default", waiting=len(self.queue)),)

    def start(self, workers: int = 2) -> None:
        """It needs nothing."""

    def work(self) -> None:
        while self.queue:
            perform(self.queue.popleft(), engine=self, ledger=self.ledger)
        sweep(self, self.ledger, self._watch)

    def kill_one(self) -> bool:
        return False
