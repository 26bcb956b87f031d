"""Holes in the C library's heap, given back to the system where a stream leaves too many of them.

Normally the rows of a chunk go where those of the last one were. Where they cannot, both are resident. It happens on
rows sorted by width: SQLite frees a buffer as wide as the last row, and the next one does not fit there, so that every
second byte of the heap is a hole (a budget of 32 MiB peaked at 70). So the heap is asked while a chunk fills: where
the chunk and the free part that may be resident are more than an eighth above the target, the free part goes back.
"""

from __future__ import annotations

import time

try:
    from memwarden._native import _heap
except ImportError:  # not glibc, or not built: then nothing is given back
    _heap = None  # type: ignore[assignment]  # its absence is asked for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol
else:
    Protocol = object

__all__ = ["Heap", "Holes"]

# Looks, 6 us each, come after so much of the target each, and not below.
_LOOK_SHARE, _LEAST_LOOK_BYTES = 1 / 32, 1 << 20
# Of the target, chunk and holes together.
_TOO_MUCH = 9 / 8
# Giving back may take so much of the time: after one that took 4 ms (32 MiB) there is none for 4 ms.
_MOST_OF_TIME = 1 / 1


class Heap(Protocol):
    """The C library's heap."""

    def free_bytes(self) -> int:
        """Of it, free and perhaps resident."""

    def resident_bytes(self) -> int:
        """What of the whole process is in memory."""

    def trim(self) -> None:
        """Give that back."""


class Holes:
    """Watches one stream's use of the heap. `heap` and `clock` (seconds) are the real ones unless given."""

    def __init__(self, heap: Heap | None = _heap, clock: Callable[[], float] = time.perf_counter) -> None:
        self._heap = heap
        self._clock = clock
        self._base_bytes = 0 if heap is None else heap.resident_bytes()
        self._look_at = 0
        self._not_before = 0.0

    def begin(self) -> None:
        """A chunk begins."""
        self._look_at = 0

    def grew(self, chunk_bytes: int, target_bytes: int) -> None:
        """The chunk has so many bytes now, of so many that it may have."""
        if chunk_bytes < _LEAST_LOOK_BYTES or chunk_bytes < self._look_at or self._heap is None:
            return
        self._look_at = chunk_bytes + max(_LEAST_LOOK_BYTES, int(target_bytes * _LOOK_SHARE))
        # Free, and resident since this stream began: what others keep is not free, what was given back not resident.
        rise = self._heap.resident_bytes() - self._base_bytes
        if rise <= target_bytes * _TOO_MUCH or chunk_bytes + self._heap.free_bytes() <= target_bytes * _TOO_MUCH:
            return
        start = self._clock()
        if start >= self._not_before:
            self._heap.trim()
            end = self._clock()
            self._not_before = end + (end - start) / _MOST_OF_TIME
            # Where that did not help, it is somebody else's, and is not tried again for the same bytes.
            self._base_bytes = max(self._base_bytes, self._heap.resident_bytes() - chunk_bytes - target_bytes // 8)
