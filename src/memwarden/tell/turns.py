"""Whose turn it is at a channel: a Warden that is stopped and started again has two couriers for a while.

The one before may still wait for a receiver. Both have the same channel, and a channel serves one thread at a time; the
one that leaves last closes it.
"""

from __future__ import annotations

import os
import threading
from weakref import WeakKeyDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.ports import Channel


class Turns:
    """Of one channel, in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.turn = threading.Lock()
        self._users, self._counting = 0, threading.Lock()

    def enter(self) -> None:
        """One more has it; whose turn it is does not matter, for that may last as long as a time-out."""
        with self._counting:
            self._users += 1

    def leave(self, close: Callable[[], None]) -> None:
        """One less; the last one closes it."""
        with self.turn:
            with self._counting:
                self._users -= 1
                is_last = not self._users
            if is_last:
                close()


_all: WeakKeyDictionary[Channel, Turns] = WeakKeyDictionary()


def turns_of(channel: Channel) -> Turns:
    """The same for the same channel; in a forked child new ones, for a thread of the parent may have had its turn."""
    try:
        found = _all.get(channel)
        if found is None or found.pid != os.getpid():
            found = _all[channel] = Turns()
    except TypeError:  # it can be neither hashed nor referred to weakly: nobody else's, as far as is known
        return Turns()
    return found
