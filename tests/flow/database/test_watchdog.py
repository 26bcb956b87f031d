"""A handler that takes too long is ended in its own thread, and nothing arrives later elsewhere."""

from __future__ import annotations

import threading

import pytest

from memwarden.errors import ChunkTimeoutError
from memwarden.flow.database.watchdog import Watchdog


def _spin() -> None:
    while True:
        pass


def test_it_ends_python_code_whatever_that_catches() -> None:
    watchdog = Watchdog()
    caught = []
    with pytest.raises(ChunkTimeoutError, match="timeout_s: a chunk took longer than"), watchdog.limit(0.05):
        try:
            _spin()
        except Exception as error:  # a handler that hides everything
            caught.append(error)
    assert caught == []
    watchdog.close()


def test_what_ends_in_time_is_left_alone_and_the_thread_too() -> None:
    watchdog = Watchdog()
    for _ in range(2000):
        with watchdog.limit(60.0):
            pass
    watchdog.close()
    assert "memwarden-watchdog" not in {thread.name for thread in threading.enumerate()}


def test_at_the_very_end_it_is_one_or_the_other_and_never_later() -> None:
    watchdog = Watchdog()
    outcomes = set()
    for turn in range(300):
        try:
            with watchdog.limit(turn * 1e-6):
                sum(range(50))
            outcomes.add("done")
        except ChunkTimeoutError:
            outcomes.add("ended")
        sum(range(500))  # where it would arrive if it came late
    watchdog.close()
    assert "done" in outcomes


def test_each_thread_has_its_own_limit() -> None:
    watchdog = Watchdog()
    ended: list[str] = []

    def work(name: str, seconds: float) -> None:
        try:
            with watchdog.limit(seconds):
                if seconds < 1:
                    _spin()
            ended.append(f"{name} done")
        except ChunkTimeoutError:
            ended.append(f"{name} ended")

    threads = [threading.Thread(target=work, args=("a", 0.05)), threading.Thread(target=work, args=("b", 60.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watchdog.close()
    assert sorted(ended) == ["a ended", "b done"]
