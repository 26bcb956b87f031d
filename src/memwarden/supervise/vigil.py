"""Sleep while nothing moves: a glance at a few kept-open files after each step of sleep, and a note of it.

A whole look touches some 200 us of code and data after a sleep that left the caches cold. Nearly all of them find what
the one before found, so here is the least that can tell: the number that counts against the limit stayed between two
bounds, a few files read as they did, nobody joined. Each glance is written down, so that the record is as young as if
it had been a look.

The pure twin of the one in memwarden._native, with the same meaning: that one costs a quarter.
"""

from __future__ import annotations

import os
import signal
import time
from binascii import crc32

from memwarden.blackbox import STILL
from memwarden.sense.source import READ_ONLY, KeptFile, NumberFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from mmap import mmap

# Why a sleep ended.
DUE, MOVED, SIGNALLED = range(3)
_WRITTEN = STILL.size + 8
_PEOPLE_SIZE = 4096


class Vigil:
    """Watches the number at `index` of the file `path`, times `scale`, and what it is told to heed.

    `signals` are those that end a sleep, blocked by the caller; `info` holds the one that did: signo, code, errno, pid,
    uid, status, band.
    """

    def __init__(self, signals: Iterable[int], path: str, *, index: int = 0, scale: int = 1) -> None:
        self._signals = frozenset(signals)
        self._counted = NumberFile(path, index=index, scale=scale)
        self._paths: tuple[str, ...] = ()
        self._files: list[tuple[KeptFile, bytes | None]] = []
        self._gate: KeptFile | None = None
        self._gate_text: bytes | None = None
        self._people = ""
        self._list: bytes | None = None
        self._again = False
        self.info: tuple[int, ...] | None = None

    def heed(self, paths: tuple[str, ...], gate: str | None = None, people: str | None = None, /) -> None:
        """What later glances compare with is how these files read now.

        `people` is read only when `gate` has moved: the list of a cgroup's processes, and the pid given last.
        """
        if paths != self._paths or not self._files:
            for file, _ in self._files:
                file.close()
            self._files = [(KeptFile(path), None) for path in paths]
            self._paths = paths
        self._files = [(file, _text(file)) for file, _ in self._files]
        if gate is None:
            self._forget_gate()
        elif self._gate is None:
            self._gate, self._people = KeptFile(gate), people or ""
        if self._gate is not None:
            self._gate_text, self._list, self._again = _text(self._gate), _people(self._people), True

    def doze(  # noqa: PLR0917  as the twin in C takes them
        self,
        step_s: float,
        until_s: float,
        least: int,
        most: int,
        buffer: mmap | bytearray,
        at: int,
        number: int,
        /,
    ) -> tuple[float, int, int]:
        """Sleep in steps until something moved, a signal came or the time is over: when and what the last glance saw
        that nothing moved (0.0 where none did), and why it woke.

        Each such glance is written to the buffer: STILL, its CRC-32 and four zeros.
        """
        if not (0 <= at <= len(buffer) - _WRITTEN) or not 0 <= step_s <= 3600:
            raise ValueError("no room in the buffer, or no time to sleep")
        seen_s, seen = 0.0, 0
        self.info = None
        while (info := signal.sigtimedwait(self._signals, step_s)) is None:
            now_s = time.monotonic()
            value = self._counted.value()
            if value is None or not least <= value <= most or not self._is_still():
                return seen_s, seen, MOVED
            if now_s >= until_s:
                return seen_s, seen, DUE
            body = STILL.pack(number, now_s, value)
            buffer[at : at + _WRITTEN] = body + crc32(body).to_bytes(8, "little")
            seen_s, seen = now_s, value
        self.info = tuple(info)
        return seen_s, seen, SIGNALLED

    def _is_still(self) -> bool:
        for file, text in self._files:
            if text is None or _text(file) != text:
                return False
        return self._gate is None or self._is_nobody_new(self._gate)

    def _is_nobody_new(self, gate: KeptFile) -> bool:
        """Looked up when a pid was given since the last glance, and at the one after it, for a pid is given before its
        process joins the cgroup.
        """
        text = _text(gate)
        is_new, self._gate_text = text != self._gate_text, text
        if not is_new and not self._again:
            return True
        self._again = is_new
        found = _people(self._people)
        return found is not None and len(found) < _PEOPLE_SIZE and found == self._list

    def _forget_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self._gate = None

    def close(self) -> None:
        """Give the descriptors back."""
        self._counted.close()
        self._forget_gate()
        for file, _ in self._files:
            file.close()
        self._files = []


def _text(file: KeptFile) -> bytes | None:
    try:
        return file.read()
    except OSError:
        return None


def _people(path: str) -> bytes | None:
    """Opened anew: v1 shows one open file the same list until nobody has read it for a second."""
    try:
        fd = os.open(path, READ_ONLY)
    except OSError:
        return None
    try:
        return os.pread(fd, _PEOPLE_SIZE, 0)
    except OSError:
        return None
    finally:
        os.close(fd)


def make_vigil(signals: Iterable[int], path: str, *, index: int = 0, scale: int = 1) -> Vigil:
    """The one in C where it was built."""
    from importlib import import_module

    try:
        kind: type[Vigil] = import_module("memwarden._native._vigil").Vigil
    except ImportError:
        kind = Vigil
    return kind(signals, path, index=index, scale=scale)
