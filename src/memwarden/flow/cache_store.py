"""What a cache keeps its entries in: the LRU of cachebox where that is installed, else a plain one that does the same.

Both know the sizes of their entries (asked for once, when one is inserted) and are safe across threads. They offer what
of cachebox's interface is used: indexing (which makes an entry the most recent one), `insert`, `pop`, `peek`, `popitem`
(the least recent one), `current_size`, `contains`, `len`. Neither has a bound of its own: what a store drops by itself
dies inside of its lock, and in cachebox (6.2) a finalizer that comes back to the cache then waits for ever. What these
give back dies with whoever asked for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from memwarden.errors import MissingExtraError
from memwarden.flow.forks import renew_in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Size = Callable[[Any, Any], int]


class PlainLRU:
    """The fallback. Stored values are never None.

    Looking up takes no lock: it is two operations of an OrderedDict, each atomic. Changing takes one, which is
    re-entrant, for finalizers that come here.
    """

    __slots__ = ("__weakref__", "_acquire", "_data", "_lock", "_release", "_size", "_total", "_touch")

    def __init__(self, getsizeof: Size) -> None:
        self._size = getsizeof
        self._data: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._touch = self._data.move_to_end
        self._total = 0
        self.after_fork()
        renew_in_child(self)

    def __getitem__(self, key: Any) -> Any:
        entry = self._data[key]
        try:  # noqa: SIM105  contextlib is not loaded, and slower
            self._touch(key)
        except KeyError:  # dropped meanwhile
            pass
        return entry[0]

    def peek(self, key: Any, default: Any = None) -> Any:
        """Its value; nothing changes."""
        entry = self._data.get(key)
        return default if entry is None else entry[0]

    def insert(self, key: Any, value: Any) -> Any:
        """Keep it as the most recent one; the value that it replaces, None without. Raises what the sizer raises."""
        size = self._size(key, value)
        entry = (value, size)
        self._acquire()  # a with-statement costs 75 ns more
        try:
            old = self._data.get(key)
            self._data[key] = entry
            if old is not None:
                self._touch(key)
                size -= old[1]
            self._total += size
        finally:
            self._release()
        return None if old is None else old[0]

    def pop(self, key: Any, default: Any) -> Any:
        """Take it out; the default where it is not here."""
        with self._lock:
            entry = self._data.pop(key, None)
            if entry is None:
                return default
            self._total -= entry[1]
        return entry[0]

    def popitem(self) -> tuple[Any, Any]:
        """Take the least recent one out. Raises KeyError."""
        self._acquire()
        try:
            key, entry = self._data.popitem(False)
            self._total -= entry[1]
        finally:
            self._release()
        return key, entry[0]

    def current_size(self) -> int:
        """The sum of the sizes."""
        return self._total

    def contains(self, key: Any) -> bool:
        """Whether it is here; nothing changes."""
        return key in self._data

    def __len__(self) -> int:
        return len(self._data)

    def after_fork(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release


def store_for(size: Size, *, plain: bool | None) -> tuple[Any, str]:
    """(the store, what it is called): cachebox's unless `plain` is true or it is not installed."""
    if not plain:
        try:
            from cachebox import LRUCache
        except ImportError:
            if plain is False:
                raise MissingExtraError("a cache on cachebox", "cache") from None
        else:
            return LRUCache(0, getsizeof=size), "cachebox"
    return PlainLRU(size), "python"
