"""Ends a handler that takes too long: an exception is raised inside it, in its own thread.

Python code feels it at its next step. Code that is in C for long (one large sort, a driver without a time-out of its
own) feels it when it comes back: nothing can end a thread there.

The exception may arrive between any two steps of the thread, also inside the acquiring of a lock, which would then be
held for ever. So the thread that is watched takes no lock of ours: who wins, the end of the work or that of its time,
is decided by who pops the one item of a list.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

from memwarden.errors import ChunkTimeoutError
from memwarden.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["Watchdog", "timed_out"]

# How exact the end is: a tenth of the time, between these.
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.001, 1.0


_ARRIVAL_S = 0.5


def timed_out(seconds: float) -> ChunkTimeoutError:
    """The error for a chunk that took longer than so many seconds."""
    what = f"a chunk took longer than {format_duration(seconds)}"
    return ChunkTimeoutError(what, where="timeout_s", mend="take fewer rows= at once, or more seconds")


class _ExpiredError(BaseException):
    """What is raised inside: no `except Exception` of the handler takes it for its own."""


class _Limit:
    __slots__ = ("end_s", "sent", "token")

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s
        self.token = [True]
        self.sent = False


class Watchdog:
    """So many seconds for each piece of work, in any number of threads. Its thread runs from the first on; close it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._look_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, seconds / 10))
        self._limits: dict[int, _Limit] = {}
        self._closed = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[T], object], argument: T) -> None:
        """Call it, in this thread, with so many seconds for it. Raises ChunkTimeoutError. No nesting.

        A context manager could not do this: the exception may come while `contextlib` enters it.
        """
        if self._thread is None:
            self._start()
        me, limit = threading.get_ident(), _Limit(time.monotonic() + self._seconds)
        try:
            self._limits[me] = limit
            try:
                work(argument)
            except _ExpiredError:
                raise
            except BaseException:
                self._end(me, limit)
                raise
            else:
                self._end(me, limit)
        except _ExpiredError:
            self._limits.pop(me, None)
            raise timed_out(self._seconds) from None

    def _end(self, me: int, limit: _Limit) -> None:
        try:
            limit.token.pop()
        except IndexError:
            # The time won: the exception comes here, so that it comes nowhere else. It cannot be taken back: with NULL
            # CPython 3.11 leaves its flag set for good, and the next sys.setprofile hangs. Work that swallowed it has
            # it behind itself, so this ends.
            end = time.monotonic() + _ARRIVAL_S
            while not limit.sent or time.monotonic() < end:
                pass
        self._limits.pop(me, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="memwarden-watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(self._look_s):
            now = time.monotonic()
            for thread, limit in list(self._limits.items()):
                if limit.end_s > now or limit.sent:
                    continue
                try:
                    limit.token.pop()
                except IndexError:  # it was done in time
                    continue
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_ExpiredError))
                limit.sent = True

    def close(self) -> None:
        """End its thread."""
        self._closed.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
