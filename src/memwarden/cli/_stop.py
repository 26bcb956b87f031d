"""Ending by a signal: an event that a handler may set while the main thread waits for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

__all__ = ["stopped_by_signals"]


class _Stop:
    """A byte in a pipe.

    threading.Event may not be it: its lock is held for a moment of every wait, and a handler that runs in that moment
    in the same thread would wait for it for ever. The byte is written by Python's own handler in C (`set_wakeup_fd`),
    for ours only runs between two steps of the program: one that came right before select(2) would be heard after it.
    """

    def __init__(self) -> None:
        self._read, self.fd = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self.fd, False)
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float) -> bool:
        from select import select

        end_s = time.monotonic() + timeout
        while not self._set and (left_s := end_s - time.monotonic()) > 0:
            if select([self._read], [], [], left_s)[0]:
                os.read(self._read, 64)  # of any signal that has a handler
        return self._set

    def close(self) -> None:
        os.close(self._read)
        os.close(self.fd)


@contextmanager
def stopped_by_signals() -> Iterator[Any]:
    """An event that SIGINT, SIGTERM and SIGHUP set, each unless it is ignored already (nohup). For the main thread."""
    if sys.platform == "win32":  # select takes sockets only there, and a handler runs in the main thread anyway
        from threading import Event

        stop: Any = Event()
    else:
        stop = _Stop()
    before = {number: signal.getsignal(number) for number in _ending()}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def end(number: int, _frame: object) -> None:
        stop.set()
        # Whoever asks twice means it: a program that cannot write (Ctrl-S, a stuck pipe) must end all the same.
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    woken = signal.set_wakeup_fd(stop.fd, warn_on_full_buffer=False) if isinstance(stop, _Stop) else -1
    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if isinstance(stop, _Stop):
            signal.set_wakeup_fd(woken)
            stop.close()


def _ending() -> Sequence[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
