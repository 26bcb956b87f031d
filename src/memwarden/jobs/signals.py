"""Signals that a process with a part handles for itself alone.

A program that the job starts would inherit SIG_IGN, and a process that it forks even a handler: neither could be told
to end any more (`Popen.terminate`, `Process.terminate`). So a handler is set, which exec takes back, and a fork does.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["handle_here"]

_here: dict[int, Callable[[int, FrameType | None], object]] = {}
_masks: list[set[int]] = []


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def handle_here(number: int, handler: Callable[[int, FrameType | None], object] = _nothing) -> None:
    """Have this process do that, or nothing, at this signal, and whatever it starts what is usual."""
    if not _here:
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_as_usual)
    _here[number] = handler
    signal.signal(number, handler)


def _hold() -> None:
    """What comes to a child before it is as usual there must wait: our handler would swallow it."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _here))


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _as_usual() -> None:
    for number, handler in _here.items():
        if signal.getsignal(number) is handler:
            signal.signal(number, signal.SIG_DFL)
    _let_go()
