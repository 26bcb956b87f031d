"""An event that may be set in the middle of setting it."""

from __future__ import annotations

import faulthandler
import sys
import threading
from typing import Any

from memwarden.clock import Wake


def test_it_is_an_event() -> None:
    wake = Wake()
    assert (wake.is_set(), wake.wait(0.0), wake.wait(-1.0)) == (False, False, False)
    wake.set()
    wake.set()
    assert (wake.is_set(), wake.wait(0.0), wake.wait()) == (True, True, True)
    wake.clear()
    wake.clear()
    assert (wake.is_set(), wake.wait(0.0)) == (False, False)


def test_all_who_wait_hear_it() -> None:
    wake, heard = Wake(), []
    threads = [threading.Thread(target=lambda: heard.append(wake.wait(20.0))) for _ in range(5)]
    for thread in threads:
        thread.start()
    wake.set()
    for thread in threads:
        thread.join()
    assert (heard, wake.is_set()) == ([True] * 5, True)


def test_it_may_be_set_at_every_line_of_setting_and_waiting() -> None:
    wake = Wake()

    def handler(frame: Any, event: str, _: object) -> Any:
        sys.settrace(None)
        wake.set()
        sys.settrace(handler)
        return handler

    faulthandler.dump_traceback_later(20, exit=True)
    sys.settrace(handler)
    try:
        wake.set()
        wake.clear()
        assert wake.wait(0.0)
    finally:
        sys.settrace(None)
        faulthandler.cancel_dump_traceback_later()
