"""A handler that takes too long is ended in its own thread, and nothing arrives later elsewhere."""

from __future__ import annotations

import threading
import time

import pytest

from memwarden.errors import ChunkTimeoutError
from memwarden.flow.database.watchdog import Watchdog


def _spin_until(end_s: float) -> None:
    while time.monotonic() < end_s:
        pass


def test_it_ends_python_code_whatever_that_catches() -> None:
    watchdog = Watchdog(0.05)
    caught: list[Exception] = []

    def hide_everything(_: None) -> None:
        try:
            _spin_until(1e18)
        except Exception as error:
            caught.append(error)

    with pytest.raises(ChunkTimeoutError, match="timeout_s: a chunk took longer than"):
        watchdog.run(hide_everything, None)
    assert caught == []
    watchdog.close()


def test_what_ends_in_time_is_left_alone_and_the_thread_too() -> None:
    watchdog = Watchdog(60.0)
    for _ in range(2000):
        watchdog.run(int, 5)
    watchdog.close()
    assert "memwarden-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_at_the_very_end_it_is_one_or_the_other_and_never_later() -> None:
    """Work of about the time that it has, again and again, so that both ends meet."""
    watchdog = Watchdog(0.002)
    outcomes = set()
    for turn in range(400):
        end = time.monotonic() + 0.0005 + (turn % 40) * 1e-4
        try:
            watchdog.run(_spin_until, end)
            outcomes.add("done")
        except ChunkTimeoutError:
            outcomes.add("ended")
        sum(range(500))  # where it would arrive if it came late
    watchdog.close()
    assert outcomes == {"done", "ended"}


def test_each_thread_has_its_own_limit() -> None:
    watchdog = Watchdog(0.2)
    ended: list[str] = []

    def work(name: str) -> None:
        try:
            watchdog.run(_spin_until, 1e18 if name == "slow" else 0.0)
            ended.append(f"{name} done")
        except ChunkTimeoutError:
            ended.append(f"{name} ended")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("slow", "quick")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watchdog.close()
    assert sorted(ended) == ["quick done", "slow ended"]
