from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.errors import DeliveryError
    from memwarden.facts import Notice


class RecordingChannel:
    """A channel for alerts that keeps what it was told.

    Give it to a Warden as `alerts={"channels": {"ops": RecordingChannel("ops")}}`.
    `fail_with`, while it is set, is raised instead of each delivery. `batches` are the notices of each `send`.
    """

    kind = "recording"

    def __init__(self, name: str = "recording") -> None:
        self.name = name
        self.batches: list[tuple[Notice, ...]] = []
        self.fail_with: DeliveryError | None = None
        self.tries = 0
        self.warmed = 0
        self.closed = 0
        self._more = threading.Condition()

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Everything that was delivered, in order."""
        return tuple(notice for batch in self.batches for notice in batch)

    def check(self) -> tuple[str, ...]:
        """Nothing is wrong with it."""
        return ()

    def warm_up(self) -> None:
        """Counted."""
        self.warmed += 1

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """Kept, or refused as the test says."""
        with self._more:
            self.tries += 1
            self._more.notify_all()
            if self.fail_with is not None:
                raise self.fail_with
            self.batches.append(tuple(notices))

    def close(self) -> None:
        """Counted."""
        self.closed += 1

    def wait_for(self, count: int, *, within_s: float = 20.0) -> tuple[Notice, ...]:
        """The notices, once there are so many. Raises TimeoutError."""
        with self._more:
            if not self._more.wait_for(lambda: len(self.notices) >= count, within_s):
                raise TimeoutError(f"{len(self.notices)} of {count} notices came within {within_s:g} s")
            return self.notices
