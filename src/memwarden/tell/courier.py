"""Delivers what the outbox holds for one channel: claim a batch, send it, mark it.

A receiver that hangs, fails or is gone keeps its own courier busy and nobody else. What a channel raises that is no
DeliveryError is a fault of the channel: it is named by its type alone, for its words may hold what is secret.
"""

from __future__ import annotations

import logging
from collections import deque

from memwarden.errors import DeliveryError
from memwarden.units import format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.facts import Notice
    from memwarden.ports import Channel
    from memwarden.tell.outbox import Outbox
    from memwarden.tell.settings import ChannelUse


class Courier:
    """For one channel; one thread at a time."""

    def __init__(self, outbox: Outbox, channel: Channel, use: ChannelUse) -> None:
        self._outbox, self._channel, self.use = outbox, channel, use
        self._unmarked: list[str] = []
        self._urgent: deque[Notice] = deque()
        self._log = logging.getLogger("memwarden.tell")
        self._warm = False

    @property
    def name(self) -> str:
        """The channel's name."""
        return self.use.name

    def warm_up(self) -> str:
        """One real handshake; what is wrong with it, "" where nothing is."""
        try:
            self._channel.warm_up()
        except DeliveryError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  a channel may raise anything
            return f"channel {self.name}: {type(error).__name__}"
        self._warm = True
        return ""

    @property
    def is_urged(self) -> bool:
        """Whether there is something to send that waits for no store."""
        return bool(self._urgent)

    def urge(self, notice: Notice) -> None:
        """Send this one next, without asking the store, which somebody else has locked."""
        self._urgent.append(notice)

    def once(self, *, waits: bool = True) -> bool:
        """One batch, if there is one to send now; whether there was. Raises StoreError."""
        if self._urgent:
            self._send_past(self._urgent.popleft())
            return True
        self._mark()
        claim = self._outbox.claim(self.use, waits=waits)
        if claim is None:
            return False
        self._send(claim.notices)
        return True

    def _mark(self) -> None:
        """What was sent, just now or when the store could not be written."""
        if self._unmarked:
            was_failing = self._outbox.sent(self.name, self._unmarked)
            self._unmarked = []
            if was_failing:
                self._log.info("channel %s delivers again", self.name)

    def _send_past(self, notice: Notice) -> None:
        try:
            self._channel.send([notice], timeout_s=self.use.timeout_s)
        except Exception as error:  # noqa: BLE001  a channel may raise anything
            words = str(error) if isinstance(error, DeliveryError) else type(error).__name__
            self._log.warning("channel %s, while the store is locked: %s; it is tried again", self.name, words)
            self._outbox.came_back(notice.delivery_id)
        else:
            self._outbox.went_out(notice.delivery_id)
            self._unmarked.append(notice.delivery_id)

    def _send(self, notices: Sequence[Notice]) -> bool:
        """Whether the channel may be tried on at once."""
        ids = [each.delivery_id for each in notices]
        try:
            self._channel.send(notices, timeout_s=self.use.timeout_s)
        except DeliveryError as error:
            if not error.recoverable and len(notices) > 1:
                self._send_singly(notices)
                return True
            self._failed(ids, str(error), recoverable=error.recoverable, retry_after_s=error.retry_after_s)
            return not error.recoverable
        except Exception as error:  # noqa: BLE001  a channel may raise anything
            self._failed(ids, f"the channel raised {type(error).__name__}", recoverable=True, retry_after_s=None)
            return False
        self._unmarked += ids
        self._mark()
        return True

    def _send_singly(self, notices: Sequence[Notice]) -> None:
        """One of them may be the one that the receiver will never take. What it may take later ends it for the rest."""
        ids = [each.delivery_id for each in notices]
        for number, each in enumerate(notices):
            ours = self._outbox.renew(self.use, ids[number:])  # a lease is for one try
            if each.delivery_id in ours and not self._send([each]):
                return

    def _failed(self, ids: Sequence[str], error: str, *, recoverable: bool, retry_after_s: float | None) -> None:
        found = self._outbox.failed(self.use, ids, error, recoverable=recoverable, retry_after_s=retry_after_s)
        if found.dead:
            self._log.error("channel %s: %d notice(s) will never be delivered: %s", self.name, found.dead, error)
        if found.down_now:
            goes_on = "what is for it waits and is tried on" if recoverable else "it is tried with what comes"
            words = "channel %s is down, failures running: %d; %s: %s"
            self._log.error(words, self.name, found.failures, goes_on, error)
        elif recoverable:
            self._log.info("channel %s, try %d: %s", self.name, found.failures, error)

    def rest_s(self, now_unix_s: float) -> float | None:
        """How long until there is something to send; None where there is nothing. Raises StoreError."""
        due = self._outbox.next_due(self.name)
        return None if due is None else max(0.0, due - now_unix_s)

    def close(self) -> None:
        """Give the channel's connections back."""
        try:
            self._channel.close()
        except Exception as error:  # noqa: BLE001  a channel may raise anything
            self._log.info("channel %s did not close: %s", self.name, type(error).__name__)

    def describe(self) -> str:
        """How it is used, in one line."""
        return f"{self.name} ({self._channel.kind}), time-out {format_duration(self.use.timeout_s)}"
