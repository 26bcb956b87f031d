"""How far a run is: counted after each chunk, told to a callback or drawn as a bar."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from memwarden.facts import Fact

if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.ports import Clock, Pressure

__all__ = ["Progress", "Tally"]

# The rate is that of the last half minute or so: what it forgets halves in this time.
_HALF_LIFE_S = 15.0


class Progress(Fact):
    """Where a run is. `total` counts the rows of the whole statement, `processed` those done in all runs of the name.

    `rows_per_s` is the recent rate, `eta_s` what is left at that rate, `held_bytes` what the chunks in work hold,
    `memory_bytes` the resident memory of the process as the pressure last read it. None is unknown.
    """

    name: str | None
    processed: int
    total: int | None
    percent: float | None
    bytes: int
    chunks: int
    dead_rows: int
    retries: int
    held_bytes: int
    memory_bytes: int | None
    rows_per_s: float | None
    elapsed_s: float
    eta_s: float | None


class Tally:
    """Adds up what the workers do, and tells. `tell` is called by one worker at a time; what it raises ends the run."""

    NOTHING = (0,) * 9

    def __init__(
        self,
        name: str | None,
        clock: Clock,
        *,
        processed: int = 0,
        total: int | None = None,
        pressure: Pressure | None = None,
        tell: Callable[[Progress], object] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._name, self._clock, self._pressure, self._tell = name, clock, pressure, tell
        self._total = total
        self._start_s = self._last_s = clock.monotonic()
        self._rate: float | None = None
        self.before = processed
        self.rows = self.bytes = self.chunks = self.retries = self.dead_rows = self.dead_chunks = 0
        self.kept = self.dropped = self.held_bytes = 0

    def hold(self, size: int) -> None:
        """A chunk of so many bytes came into memory, or left it (below zero)."""
        with self._lock:
            self.held_bytes += size

    def retry(self) -> None:
        """A chunk is tried once more."""
        with self._lock:
            self.retries += 1

    def bury(self, rows: int) -> int:
        """So many rows were given up; how many in all."""
        with self._lock:
            self.dead_rows += rows
            self.dead_chunks += 1
            return self.dead_rows

    def results(self, kept: int, dropped: int) -> None:
        """So many results of items were kept, and so many only counted."""
        with self._lock:
            self.kept += kept
            self.dropped += dropped

    def done(self, rows: int, size: int) -> None:
        """A chunk is done."""
        with self._lock:
            self.rows += rows
            self.bytes += size
            self.chunks += 1
            self._learn(rows)
            if self._tell is not None:
                self._tell(self._now())

    def _learn(self, rows: int) -> None:
        now = self._clock.monotonic()
        passed, self._last_s = now - self._last_s, now
        if passed <= 0:
            return
        keep = 0.5 ** (passed / _HALF_LIFE_S)
        seen = rows / passed
        self._rate = seen if self._rate is None else keep * self._rate + (1 - keep) * seen

    def counts(self) -> tuple[int, ...]:
        """All that was counted by the only worker, asked by itself; for the `add` of another process."""
        return (
            self.rows, self.bytes, self.chunks, self.retries, self.dead_rows, self.dead_chunks, self.kept, self.dropped,
            self.held_bytes,
        )  # fmt: skip

    def add(self, before: tuple[int, ...], now: tuple[int, ...]) -> None:
        """A worker elsewhere counted on from `before` to `now`."""
        rows, size, chunks, retries, dead_rows, dead_chunks, kept, dropped, held = (
            new - old for old, new in zip(before, now, strict=True)
        )
        with self._lock:
            self.rows += rows
            self.bytes += size
            self.chunks += chunks
            self.retries += retries
            self.dead_rows += dead_rows
            self.dead_chunks += dead_chunks
            self.kept += kept
            self.dropped += dropped
            self.held_bytes += held
            if chunks:
                self._learn(rows)
                if self._tell is not None:
                    self._tell(self._now())

    def now(self) -> Progress:
        """As it stands."""
        with self._lock:
            return self._now()

    def _now(self) -> Progress:
        processed = self.before + self.rows
        total = None if self._total is None else max(self._total, processed)
        left = None if total is None else total - processed
        verdict = None if self._pressure is None else self._pressure.verdict
        return Progress(
            name=self._name,
            processed=processed,
            total=total,
            percent=None if total is None else (100.0 * processed / total if total else 100.0),
            bytes=self.bytes,
            chunks=self.chunks,
            dead_rows=self.dead_rows,
            retries=self.retries,
            held_bytes=self.held_bytes,
            memory_bytes=None if verdict is None else verdict.reading.rss_bytes,
            rows_per_s=self._rate,
            elapsed_s=self._clock.monotonic() - self._start_s,
            eta_s=None if left is None or not self._rate else left / self._rate,
        )
