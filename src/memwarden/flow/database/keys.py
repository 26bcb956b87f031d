"""Keys as values: to JSON and back without loss, compared as far as Python and the database agree, cut into ranges."""

from __future__ import annotations

import base64
import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from memwarden.errors import KeyOrderError, StatementError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memwarden.flow.database.statement import Keyset

__all__ = ["check", "decode", "encode", "ranges"]

Key = tuple[Any, ...]

# What every database orders as Python does. Text is left out: its order is the collation's, and in many of them
# (MariaDB's default) 'a' and 'A' are equal. UUIDs are left out: MariaDB orders them by their time.
_AGREED = (int, Decimal, dt.datetime, dt.date)

_READERS: dict[str, Callable[[str], Any]] = {
    "bytes": base64.b64decode,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "decimal": Decimal,
    "uuid": uuid.UUID,
}


def encode(key: Key | None) -> str | None:
    """A key as JSON. Raises StatementError for a type that cannot come back the same."""
    return None if key is None else json.dumps([_plain(value) for value in key], ensure_ascii=True)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in {int, str, float, bool}:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, uuid.UUID):  # asyncpg has a class of its own below it
        return {"uuid": str(value)}
    for name, each in (("datetime", dt.datetime), ("date", dt.date), ("time", dt.time)):
        if kind is each:
            return {name: value.isoformat()}
    if kind is Decimal:
        return {"decimal": str(value)}
    if isinstance(value, str):
        return str.__str__(value)
    what = f"a key with a {kind.__name__} in it cannot be kept"
    raise StatementError(what, where="key", mend="use numbers, texts, bytes, dates, times or UUIDs")


def decode(text: str | None) -> Key | None:
    """What `encode` was given."""
    return None if text is None else tuple(_rich(value) for value in json.loads(text))


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        ((name, text),) = value.items()
        return _READERS[name](text)
    return value


def check(names: Sequence[str], down: Sequence[bool], before: Key | None, first: Key, last: Key, *, rows: int) -> None:
    """Refuse a chunk of so many rows whose keys do not go on, as far as it can be told here, or are NULL.

    Raises KeyOrderError.
    """
    for key in (first, last):
        if None in key:
            name = names[key.index(None)]
            what = f"{name} is NULL in a row: nothing comes behind NULL, so rows would be lost"
            raise KeyOrderError(what, where="key", mend="leave such rows out in WHERE, or choose a key without NULL")
    if rows > 1 and not _goes_on(first, last, down):
        raise _no_order(names, down, first, last)
    if before is not None and not _goes_on(before, first, down):
        raise _no_order(names, down, before, first)


def _goes_on(one: Key, other: Key, down: Sequence[bool]) -> bool:
    """Whether the other comes behind the one; true where only the database can tell."""
    for left, right, falls in zip(one, other, down, strict=True):
        if left == right:
            continue
        if type(left) is not type(right) or not isinstance(left, _AGREED):
            return True
        return bool(left > right) if falls else bool(left < right)
    return False


def _no_order(names: Sequence[str], down: Sequence[bool], one: Key, other: Key) -> KeyOrderError:
    shown = ", ".join(shown_names(names, down))
    moves = "decrease" if all(down) else "go on" if any(down) else "increase"
    what = f"({shown}) came as {_show(one)} and then as {_show(other)}: the key does not strictly {moves}"
    return KeyOrderError(what, where="key", mend="choose columns of a unique index of exact types, in its order")


def shown_names(names: Sequence[str], down: Sequence[bool]) -> list[str]:
    """The columns as an ORDER BY would have them."""
    return [f"{name} DESC" if falls else name for name, falls in zip(names, down, strict=True)]


def _show(key: Key) -> str:
    text = repr(key if len(key) > 1 else key[0])
    return text if len(text) <= 100 else f"{text[:100]}..."


def duplicate(names: Sequence[str], key: Key) -> KeyOrderError:
    """Several rows have this key, and a chunk ended between them."""
    what = f"several rows have ({', '.join(names)}) = {_show(key)}: those behind the end of a chunk would be lost"
    return KeyOrderError(what, where="key", mend="add a column to key= that makes it unique")


def ranges(keyset: Keyset, fetch: Any, parts: int) -> list[tuple[Key | None, Key | None]]:
    """The key cut into at most so many ranges (above, up to], the outer ones open. `fetch(query)` gives the first row.

    Whole numbers are cut evenly between the least and the greatest, which costs two look-ups; other keys by rank,
    which walks the index once per cut.
    """
    borders: list[Key] = []
    numbers = fetch(keyset.bounds()) if len(keyset.names) == 1 else None
    if numbers is not None and all(type(value) is int for value in numbers):
        least, greatest = numbers
        step = (greatest - least + 1) / parts
        if keyset.down[0]:
            borders = [(greatest + 1 - round(step * part),) for part in range(1, parts)]
        else:
            borders = [(least - 1 + round(step * part),) for part in range(1, parts)]
    elif numbers is None or numbers[0] is not None:
        (rows,) = fetch(keyset.count())
        ranks = sorted({rows * part // parts for part in range(1, parts)} - {0})
        borders = [tuple(found) for rank in ranks if (found := fetch(keyset.at(rank - 1))) is not None]
    borders = [border for index, border in enumerate(borders) if index == 0 or border != borders[index - 1]]
    return list(zip([None, *borders], [*borders, None], strict=True))
