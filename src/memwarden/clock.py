"""The real clock: the only door to time, as `Machine` is the only door to the machine."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event


class SystemClock:
    """The real clock. CLOCK_MONOTONIC stands still while the machine sleeps, so a suspended hour is no growth."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def wait(self, event: Event, seconds: float) -> bool:
        """Wait for the event at most so long; true when it was set."""
        return event.wait(seconds)
