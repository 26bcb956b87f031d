"""Rendered call transcripts, kept because rendering them is slow. And the bug: a cache that never forgets.

`off` is the cache as it was meant: by contact, the last 64. `slow` is what a tired afternoon makes of it:
somebody put the request's id into the key "to tell the entries apart in the log", so that no entry is ever
found again, and took the bound out because the hit rate was so bad. `fast` keeps the words of every
transcript too, for highlighting.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from html import escape
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Hashable, Sequence

LEAKS = ("off", "slow", "fast")
KEPT = 64


class TranscriptCache:
    """Transcripts as HTML by contact, at most 64 of them. Unless it leaks. Safe to use from many threads."""

    def __init__(self, leak: str = "off") -> None:
        self.leak = leak
        self._entries: OrderedDict[Hashable, tuple[object, ...]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def rendered(self, contact_id: int, calls: Sequence[sqlite3.Row], *, request_id: str) -> str:
        """The calls of one contact as HTML, from the cache where it has them."""
        key: Hashable = contact_id if self.leak == "off" else (contact_id, request_id)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return str(self._entries[key][0])
        page = "".join(map(render, calls))
        words = [call["transcript"].split() for call in calls] if self.leak == "fast" else ()
        self._keep(key, (page, *words))
        return page

    def drop(self) -> tuple[int, int]:
        """Forget everything. Returns the entries and the bytes that they held."""
        with self._lock:
            entries, self._entries = self._entries, OrderedDict()
        return len(entries), sum(_bytes_of(part) for entry in entries.values() for part in entry)

    def _keep(self, key: Hashable, entry: tuple[object, ...]) -> None:
        with self._lock:
            self._entries[key] = entry
            while self.leak == "off" and len(self._entries) > KEPT:
                self._entries.popitem(last=False)


def render(call: sqlite3.Row) -> str:
    """One call: what it was about, and who said what."""
    turns = (line.partition(": ") for line in call["transcript"].split("\n"))
    said = "".join(f"<p><b>{escape(who)}</b> {escape(words)}</p>" for who, _, words in turns)
    about = f"{call['at']} · {escape(call['topic'])} · {call['minutes']} min"
    return f"<details><summary>{about}</summary>{said}</details>"


def _bytes_of(part: object) -> int:
    return sys.getsizeof(part) + (sum(map(sys.getsizeof, part)) if isinstance(part, list) else 0)
