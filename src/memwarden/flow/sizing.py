"""How many bytes a row or a value takes in memory, fast and honest.

A row is its shell (tuple, Row, dict, object) and what is in its fields; names of fields belong to the type or to the
cursor and are not counted again for each row. Every field is looked at in every row: a column that was NULL for a
million rows may hold 100 KB in the next, so no width is taken from those before. What does not change with the row
(the shell of a type, where its values are) is learned once per type.

The figures are those of `sys.getsizeof`, summed: what the objects take without the allocator's rounding. What is
shared anyway counts nothing: classes, functions, modules. Flat values are summed in C where that part is built.
Nested containers are walked up to `MOST_OBJECTS`; beyond it the rest is taken to be as what was seen. Foreign objects
say themselves (`nbytes`, `__sizeof__`).
"""

from __future__ import annotations

import sys
from gc import get_referents
from sys import getsizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any

__all__ = ["MOST_OBJECTS", "Sizer", "flat_sum", "pure_flat_sum", "pure_table_sum", "size_of", "table_sum"]

# Walking costs about 0.1 us an object, what making it did cost; past it an estimate is good enough and bounded.
MOST_OBJECTS = 2000
# Levels of nesting that are followed: the interpreter allows 1000 calls to everybody together.
_DEEPEST = 50
# Containers of more children than what is left are sampled in so many places.
_SAMPLES = 32
# SQLAlchemy's InstanceState with its dictionary and its place in the identity map, by tracemalloc (2.1 on CPython
# 3.11); what it refers to is the session's.
_INSTANCE_STATE_BYTES = 970
# uuid.UUID: 56 bytes and an int of 128 bits; its is_safe is a shared enum.
_UUID_BYTES = 104
# The header of the tuple inside of a row object, and of each field in it.
_TUPLE_BYTES, _POINTER_BYTES = 56, 8


def pure_flat_sum(values: Iterable[object], flat: AbstractSet[type]) -> int:
    """Sum of getsizeof over the values; -1 where one of them is of a type that is not in the set of flat ones."""
    return sum(map(getsizeof, values)) if flat.issuperset(map(type, values)) else -1  # type: ignore[attr-defined]


def pure_table_sum(rows: list[Any], flat: AbstractSet[type]) -> int:
    """The same over all cells of rows of one type and one length; -1 also where they are not."""
    kind, total = type(rows[0]), 0
    if {kind}.issuperset(map(type, rows)):
        try:
            for column in zip(*rows, strict=True):
                size = pure_flat_sum(column, flat)
                if size < 0:
                    return -1
                total += size
        except ValueError:  # lengths differ
            return -1
        return total
    return -1


flat_sum: Callable[[Iterable[object], AbstractSet[type]], int] = pure_flat_sum
table_sum: Callable[[list[Any], AbstractSet[type]], int] = pure_table_sum
try:
    from memwarden._native import _sizes
except ImportError:
    pass  # not built: the pure ones serve
else:
    flat_sum, table_sum = _sizes.flat_sum, _sizes.table_sum


def _foreign(*names: str) -> frozenset[tuple[str, str]]:
    return frozenset((name.rpartition(".")[0], name.rpartition(".")[2]) for name in names)


# By name: none of these modules is imported for it.
_LEAVES = _foreign(
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "zoneinfo.ZoneInfo", "decimal.Decimal", "array.array",
)  # fmt: skip
_FLAT: set[type] = {type(None), bool, int, float, complex, str, bytes, bytearray, range}
_SHARED = (type, type(len), type(_foreign), type(sys))


class _Walk:
    """One bounded walk. `left` is how many objects may still be looked at."""

    __slots__ = ("deep", "left", "seen")

    def __init__(self) -> None:
        self.left = MOST_OBJECTS
        self.deep = 0
        self.seen: set[int] = set()

    def size(self, value: Any) -> int:
        kind = type(value)
        if kind in _FLAT or _is_leaf(kind):
            return getsizeof(value)
        known = id(value)
        if known in self.seen or isinstance(value, _SHARED):
            return 0
        if self.deep >= _DEEPEST:
            return getsizeof(value)
        self.seen.add(known)  # its id stays its own: whoever refers to it is alive as long as the walk
        self.deep += 1
        try:
            return _shell_and_parts(kind)(self, value)
        finally:
            self.deep -= 1

    def parts(self, values: Any, count: int) -> int:
        """The sum over children; where they are too many, of some of them, and the rest in proportion."""
        flat = flat_sum(values, _FLAT)
        if flat >= 0:
            return flat
        if count <= self.left:
            self.left -= count
            return sum(map(self.size, values))
        step = max(1, count // max(1, min(_SAMPLES, self.left)))
        self.left = max(0, self.left - _SAMPLES)
        some = [value for place, value in enumerate(values) if place % step == 0][:_SAMPLES]
        return sum(map(self.size, some)) * count // len(some)


def size_of(value: Any) -> int:
    """The bytes of a value with all that is in it, keys of dictionaries included."""
    kind = type(value)
    return getsizeof(value) if kind in _FLAT else _Walk().size(value)


def _is_leaf(kind: type) -> bool:
    if (kind.__module__, kind.__name__) not in _LEAVES:
        return False
    _FLAT.add(kind)  # a handful of types: no need to bound it
    return True


def _sequence(walk: _Walk, value: Any) -> int:
    return getsizeof(value) + walk.parts(value, len(value))


def _mapping(walk: _Walk, value: Any) -> int:
    return getsizeof(value) + walk.parts(value, len(value)) + walk.parts(value.values(), len(value))


def _always(size: int) -> Callable[[_Walk, Any], int]:
    return lambda _walk, _value: size


def _itself(_walk: _Walk, value: Any) -> int:
    return getsizeof(value)


def _buffer(_walk: _Walk, value: Any) -> int:
    own = getsizeof(value)
    return max(own, int(value.nbytes) + _TUPLE_BYTES)


def _row(walk: _Walk, value: Any) -> int:
    return _around(value) + walk.parts(tuple(value), len(value))


def _object(walk: _Walk, value: Any) -> int:
    """Any other object, by what it refers to: asking for its `__dict__` would make one, larger than the object."""
    parts: list[Any] = get_referents(value)
    total = getsizeof(value)
    if type(value).__dictoffset__:  # attributes are kept beside it, slots in it
        total += _POINTER_BYTES * len(parts)
    for part in parts:
        if type(part) is dict and id(part) == id(getattr(value, "__dict__", None)):  # its keys are its class's
            total += getsizeof(part) + walk.parts(part.values(), len(part))
        else:
            total += walk.size(part)
    return total


_PARTS: dict[type, Callable[[_Walk, Any], int]] = {
    tuple: _sequence, list: _sequence, set: _sequence, frozenset: _sequence, dict: _mapping,
}  # fmt: skip
# Types come from the application; one that makes them without end must not make us keep them.
_MOST_TYPES = 1000


def _shell_and_parts(kind: type) -> Callable[[_Walk, Any], int]:
    found = _PARTS.get(kind)
    if found is None:
        found = _way_of(kind)
        if len(_PARTS) < _MOST_TYPES:
            _PARTS[kind] = found
    return found


def _way_of(kind: type) -> Callable[[_Walk, Any], int]:
    if kind.__module__ == "uuid" and kind.__name__ == "UUID":
        return _always(_UUID_BYTES)
    if kind.__name__ == "InstanceState":
        return _always(_INSTANCE_STATE_BYTES)
    if hasattr(kind, "nbytes"):
        return _buffer
    if issubclass(kind, (tuple, list, set, frozenset)):
        return _sequence
    if issubclass(kind, dict):
        return _mapping
    if issubclass(kind, (str, bytes, int, float)):
        return _itself
    if _is_row(kind):
        return _row
    if kind.__name__ == "deque" and kind.__module__ == "collections":
        return _sequence
    return _object


def _is_row(kind: type) -> bool:
    """A driver's row, whose values come when it is iterated: SQLAlchemy, sqlite3, asyncpg; a mapping gives names."""
    if not (hasattr(kind, "__iter__") and hasattr(kind, "__len__") and hasattr(kind, "__getitem__")):
        return False
    return kind.__name__ in ("Row", "Record") and not hasattr(kind, "setdefault")


class Sizer:
    """Estimates rows of a stream, in bytes: `sizer(row)` one, `sizer.page(rows)` a list of them in all.

    Keys of a row that is a dictionary are not counted: the stream's rows share them. Not safe across threads.
    """

    def __init__(self) -> None:
        self._ways: dict[type, Callable[[Any], int]] = {}
        self._kind: type = tuple  # of rows that were a table last

    def _is_table(self, kind: type) -> bool:
        if kind is not tuple and not _is_row(kind):
            return False
        self._kind = kind
        return True

    def __call__(self, row: Any) -> int:
        """The bytes of one row."""
        kind = type(row)
        if kind in _FLAT:
            return getsizeof(row)
        size = self._ways.get(kind)
        if size is None:
            size = _way_of_row(kind)
            if len(self._ways) < _MOST_TYPES:
                self._ways[kind] = size
        return size(row)

    def each(self, rows: Iterable[Any]) -> list[int]:
        """The bytes of each row."""
        return list(map(self, rows))

    def page(self, rows: Sequence[Any]) -> int:
        """The bytes of all rows together: much faster than one by one where their values are flat."""
        if not rows:
            return 0
        kind = type(rows[0])
        if kind in _FLAT:
            total = flat_sum(rows, _FLAT)
            if total >= 0:
                return total
        elif kind is self._kind or self._is_table(kind):
            total = table_sum(rows if type(rows) is list else list(rows), _FLAT)
            if total >= 0:
                return total + len(rows) * _around(rows[0])
        return sum(map(self, rows))


def _around(row: Any) -> int:
    """What there is of a row beside its values."""
    shell = getsizeof(row)
    return shell if type(row) is tuple else shell + _TUPLE_BYTES + _POINTER_BYTES * len(row)


def _way_of_row(kind: type) -> Callable[[Any], int]:
    if issubclass(kind, dict):
        return _dict_row
    if issubclass(kind, (tuple, list)):
        return _plain_row
    return _driver_row if _is_row(kind) else size_of


def _values(values: Any, count: int) -> int:
    flat = flat_sum(values, _FLAT)
    return flat if flat >= 0 else _Walk().parts(values, count)


def _plain_row(row: Any) -> int:
    return getsizeof(row) + _values(row, len(row))


def _dict_row(row: Any) -> int:
    return getsizeof(row) + _values(row.values(), len(row))


def _driver_row(row: Any) -> int:
    return _around(row) + _values(tuple(row), len(row))
