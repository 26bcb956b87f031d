"""Whether to split, and into how large parts. Pure arithmetic on bytes and counts."""

from __future__ import annotations

from memwarden.units import MIB

__all__ = ["Growth", "share_of", "should_split"]

# A part is planned to end below this share of the limit: estimates are wrong by some, and the warning line is at 0.8.
FILL = 0.7
# Beside an interpreter and imports that nearly fill the limit, a part may take this share of what is left: better that
# it passes the warning line than that every item pays for a process of its own.
REST = 0.5
# Growth is believed from here on: warming up, arenas and caches stay below.
LEAST_GROWTH_BYTES = 8 * MIB
LEAST_CHUNKS = 3


def should_split(count: int, bytes_per_item: float, *, limit_bytes: int, base_bytes: int = 0) -> bool:
    """Whether so many items, each of which keeps so many bytes until the job ends, pass the limit."""
    return base_bytes + count * bytes_per_item > limit_bytes


def share_of(bytes_per_item: float, *, limit_bytes: int, base_bytes: int = 0) -> int:
    """How many items one part should have; at least one.

    With them it stays below the warning line, or halfway to the limit where its base is near that line or above.
    """
    room = max(0.0, limit_bytes * FILL - base_bytes, (limit_bytes - base_bytes) * REST)
    return max(1, int(room / bytes_per_item)) if bytes_per_item > 0 else 1 << 62


class Growth:
    """What an item keeps, learned while a part runs: growth since its first chunk (which warms up), per item."""

    def __init__(self) -> None:
        self._chunks = 0
        self._items = 0
        self._start_bytes = 0
        self._grown = 0
        self._least_bytes = LEAST_GROWTH_BYTES

    def saw(self, items: int, current_bytes: int | None) -> float | None:
        """After a chunk of so many items: bytes per item, None as long as nothing can be said."""
        if current_bytes is None:
            return None
        self._chunks += 1
        if self._chunks == 1:
            self._start_bytes = current_bytes
            return None
        self._items += items
        self._grown = current_bytes - self._start_bytes
        return self.each if self._grown >= self._least_bytes else None

    @property
    def each(self) -> float | None:
        """Bytes per item up to now, however few; None before LEAST_CHUNKS chunks."""
        return max(0, self._grown) / self._items if self._chunks >= LEAST_CHUNKS else None
