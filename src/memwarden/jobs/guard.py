"""The guard of one job: reads at its start, at every check and at its end, and says when it is time to stop.

Row J6: each check is one record of the logger `memwarden.jobs` (level INFO) with the keys job, operation,
current_memory_mb, peak_memory_mb, memory_limit_mb and usage_percentage. Between two readings the next one is due as
soon as the fastest growth could use up half of what is left, and every 100 ms at the latest; a check in between costs
a look at the clock.
"""

from __future__ import annotations

import gc
import logging
import os
from time import monotonic

from memwarden.facts import Fact
from memwarden.sense import Machine
from memwarden.units import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.ports import Clock, NumberSource

__all__ = ["Figures", "Guard"]

# Row J5.
WARNING = 0.80
LONGEST_S = 0.1
# One thread that fills fresh pages was measured at 2.5 GiB/s (see act.gauge); half of what is left is then not gone
# before the next look.
FASTEST_BYTES_PER_S = 4 << 30
SHORTEST_S = 0.0005
# At the warning line it collects again when so much came since, at most so often: a full collection stops the job.
REST_S = 1.0

_log = logging.getLogger("memwarden.jobs")


class Figures(Fact):
    """What a job's memory did: bytes at its start, at most, at its end; None where it cannot be read."""

    base_bytes: int | None
    peak_bytes: int | None
    current_bytes: int | None
    limit_bytes: int

    @property
    def growth_bytes(self) -> int | None:
        """End less start."""
        if self.base_bytes is None or self.current_bytes is None:
            return None
        return self.current_bytes - self.base_bytes


class Guard:
    """Enter, step, exit. Resident bytes of this process against the job's limit. For one thread at a time.

    `shed(bytes)` is asked at the warning line beside a collection: a Warden's `relieve` where one runs.
    """

    def __init__(
        self,
        job: str,
        limit_bytes: int,
        *,
        shed: Callable[[int], object] | None = None,
        clock: Clock | None = None,
        resident: NumberSource | None = None,
        log: logging.Logger = _log,
    ) -> None:
        self._job = job
        self.limit_bytes = limit_bytes
        self._warning_bytes = int(limit_bytes * WARNING)
        self._shed = shed
        self._now = monotonic if clock is None else clock.monotonic
        self._resident = resident or Machine().number("/proc/self/statm", index=1, scale=os.sysconf("SC_PAGE_SIZE"))
        self._log = log
        self._due_s = 0.0
        self._relieved_s = float("-inf")
        self._relieved_bytes = 0
        self.base_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.current_bytes: int | None = None
        self.is_over = False

    def enter(self) -> None:
        """The job begins."""
        self._read(self._now())
        self.base_bytes = self.current_bytes
        self._tell("start")

    def check(self, operation: str = "check") -> bool:
        """One safe point: whether the job is to stop here."""
        now = self._now()
        if now >= self._due_s:
            self._read(now)
        self._tell(operation)
        return self.is_over

    def read(self) -> int | None:
        """Resident bytes now."""
        self._read(self._now())
        return self.current_bytes

    def exit(self) -> Figures:
        """The job is over, however it ended."""
        self._read(self._now())
        self._tell("end")
        self._resident.close()
        return self.figures

    @property
    def is_warm(self) -> bool:
        """Whether it was above the warning line at the last reading."""
        return self.current_bytes is not None and self.current_bytes >= self._warning_bytes

    @property
    def figures(self) -> Figures:
        """As they are now."""
        return Figures(
            base_bytes=self.base_bytes, peak_bytes=self.peak_bytes, current_bytes=self.current_bytes,
            limit_bytes=self.limit_bytes,
        )  # fmt: skip

    def _read(self, now: float) -> None:
        size = self._look()
        if size is None:
            self._due_s = now + LONGEST_S
            return
        if size >= self._warning_bytes and self._may_relieve(now, size):
            size = self._relieve(now, size)
        self.is_over = size >= self.limit_bytes
        left = self._warning_bytes - size if size < self._warning_bytes else self.limit_bytes - size
        self._due_s = now + min(LONGEST_S, max(SHORTEST_S, left / FASTEST_BYTES_PER_S / 2))

    def _look(self) -> int | None:
        size = self._resident.value()
        self.current_bytes = size
        if size is not None and (self.peak_bytes is None or size > self.peak_bytes):
            self.peak_bytes = size
        return size

    def _may_relieve(self, now: float, size: int) -> bool:
        """Once on the way up, and again after a rest when more than a twentieth of the limit came since."""
        if now - self._relieved_s < REST_S and size < self.limit_bytes:
            return False
        return size >= self._relieved_bytes + self.limit_bytes // 20 or self._relieved_s == float("-inf")

    def _relieve(self, now: float, size: int) -> int:
        self._relieved_s = now
        if self._shed is not None:
            self._shed(size - self._warning_bytes)
        gc.collect()
        Machine().trim()
        after = self._look()
        self._relieved_bytes = size if after is None else after
        return size if after is None else after

    def _tell(self, operation: str) -> None:
        if not self._log.isEnabledFor(logging.INFO):
            return
        current, peak = (self.current_bytes or 0) / MIB, (self.peak_bytes or 0) / MIB
        limit = self.limit_bytes / MIB
        self._log.info(
            "%s: %s: %.1f of %.1f MB", self._job, operation, current, limit,
            extra={
                "job": self._job, "operation": operation, "current_memory_mb": round(current, 2),
                "peak_memory_mb": round(peak, 2), "memory_limit_mb": round(limit, 2),
                "usage_percentage": round(100 * current / limit, 2),
            },
        )  # fmt: skip
