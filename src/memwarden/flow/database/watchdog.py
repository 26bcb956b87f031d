"""Ends a handler that takes too long: an exception is raised inside it, in its own thread.

Python code feels it at its next step. Code that is in C for long (one large sort, a driver without a time-out of its
own) feels it when it comes back: nothing can end a thread there.
"""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memwarden.errors import ChunkTimeoutError
from memwarden.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Watchdog", "timed_out"]


def timed_out(seconds: float) -> ChunkTimeoutError:
    """The error for a chunk that took longer than so many seconds."""
    what = f"a chunk took longer than {format_duration(seconds)}"
    return ChunkTimeoutError(what, where="timeout_s", mend="take fewer rows= at once, or more seconds")


class _Expired(BaseException):
    """What is raised inside: no `except Exception` of the handler takes it for its own."""


class Watchdog:
    """One thread for any number of limits at once; it runs while there is one. Close it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: dict[int, float] = {}
        self._fired: set[int] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """What runs inside, in this thread, has so many seconds. Raises ChunkTimeoutError in it. No nesting."""
        me = threading.get_ident()
        try:
            self._arm(me, seconds)
            try:
                yield
            finally:
                self._disarm(me)
        except _Expired:
            raise timed_out(seconds) from None

    def _arm(self, me: int, seconds: float) -> None:
        with self._changed:
            self._limits[me] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="memwarden-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _disarm(self, me: int) -> None:
        with self._changed:
            self._limits.pop(me, None)
            if me in self._fired:
                self._fired.discard(me)
                # It may not have arrived: then it must not do so later, in other code.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(me), None)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for thread, end in list(self._limits.items()):
                    if end <= now:
                        del self._limits[thread]
                        self._fired.add(thread)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Expired))
                nearest = min(self._limits.values(), default=None)
                self._changed.wait(None if nearest is None else max(0.0, nearest - now))

    def close(self) -> None:
        """End its thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
