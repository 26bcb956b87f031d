"""The real clock, the only door to time as `Machine` is the only door to the machine; and an event to wait for."""

from __future__ import annotations

import time
from _thread import TIMEOUT_MAX, allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event
else:  # whoever only looks at the clock loads no threads
    Event = object


class SystemClock:
    """The real clock. CLOCK_MONOTONIC stands still while the machine sleeps, so a suspended hour is no growth."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def wait(self, event: Event, seconds: float) -> bool:
        """Wait for the event at most so long; true when it was set."""
        return event.wait(seconds)


class Wake(Event):
    """An Event that a signal handler may set, whatever it interrupts.

    `threading.Event` has a lock around its flag, and that one is not re-entrant: a handler that sets it while the same
    thread is within `set` waits for itself for ever. Here it is one lock that is held while it is not set: taking and
    giving back are one step each.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unset = allocate_lock()
        self._unset.acquire()

    def is_set(self) -> bool:
        """Whether it is set."""
        return not self._unset.locked()

    def set(self) -> None:
        """Wake whoever waits, and whoever will until it is cleared."""
        try:
            self._unset.release()
        except RuntimeError:  # it was set
            return

    def clear(self) -> None:
        """From now on it is waited for."""
        self._unset.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds; whether it was."""
        longest_s = -1 if timeout is None else min(max(0.0, timeout), TIMEOUT_MAX)
        if not self._unset.acquire(timeout=longest_s):
            return False
        self.set()  # it stays set, for others who wait too
        return True
