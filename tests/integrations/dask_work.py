"""Functions for Dask's workers, which import them."""

from __future__ import annotations

import os
import signal
import threading
import time

_lock = threading.Lock()
_active, _most = 0, 0


def numbers(count: int, **_more: object) -> range:
    return range(count)


def lines(path: str) -> str:
    return path


def squares(chunk: list[int], count: int) -> list[int]:
    return [each * each for each in chunk]


def lengths(chunk: list[bytes], path: str) -> tuple[int, int]:
    return len(chunk), sum(map(len, chunk))


def kills_once(chunk: list[int], count: int, mark: str) -> int:
    """The first worker that comes to item 30 dies."""
    if 30 in chunk and not os.path.exists(mark):
        with open(mark, "w", encoding="ascii"):
            os.kill(os.getpid(), signal.SIGKILL)
    return len(chunk)


def kills_always(chunk: list[int], count: int) -> int:
    if 30 in chunk:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(chunk)


def fails(chunk: list[int], count: int) -> int:
    if 30 in chunk:
        raise ValueError("item 30")
    return len(chunk)


def at_once(chunk: list[int], count: int) -> int:
    """How many were at work in this process when this one was."""
    global _active
    with _lock:
        _active += 1
        seen = _active
    time.sleep(0.05)  # noqa: TID251  so that another one would come in meanwhile
    with _lock:
        seen = max(seen, _active)
        _active -= 1
    return seen
