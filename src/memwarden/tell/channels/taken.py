"""What of a batch was taken already, so that trying the rest again tells nobody twice.

Kept in memory, for as many deliveries as a long outage has; after a restart the delivery id is what is left.
"""

from __future__ import annotations

from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Taken"]


class Taken:
    """A set that forgets the oldest beyond `most`."""

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int = 1000) -> None:
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._most = most

    def __contains__(self, key: Hashable) -> bool:
        return key in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, key: Hashable) -> None:
        """It was taken."""
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
