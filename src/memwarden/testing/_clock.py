from __future__ import annotations

from threading import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class FakeClock:
    """A clock that stands still until it is moved; waiting moves it at once.

    `on_wait`, where given, is called with the seconds of every wait: a test changes the machine there. After
    `waits` waits the next one is real and lasts until the event is set: a loop under test stands still there, and
    `rested` is set, which the test waits for. None never rests.
    """

    def __init__(
        self,
        start_s: float = 1000.0,
        *,
        unix_s: float = 1_800_000_000.0,
        waits: int | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self._now_s = start_s
        self._unix_offset_s = unix_s - start_s
        self._left = waits
        self.rested = Event()
        self.on_wait = on_wait
        self.waited_s: list[float] = []

    def monotonic(self) -> float:
        """Seconds, as far as the test moved them."""
        return self._now_s

    def wall(self) -> float:
        """Unix time that goes with it."""
        return self._now_s + self._unix_offset_s

    def advance(self, seconds: float) -> None:
        """Move time on."""
        self._now_s += seconds

    def wait(self, event: Event, seconds: float) -> bool:
        """Pass the time at once; true when the event is set."""
        if event.is_set():
            return True
        if self._left is not None and self._left <= 0:
            self.rested.set()
            return event.wait()
        self.waited_s.append(seconds)
        del self.waited_s[:-1000]  # a long run must not pile them up
        self._now_s += seconds
        if self.on_wait is not None:
            self.on_wait(seconds)
        if self._left is not None:
            self._left -= 1
        return event.is_set()
