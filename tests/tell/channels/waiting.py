"""Waiting for what another thread or process does: until it is so, and never for a time."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 60.0


def wait_for(is_so: Callable[[], bool]) -> None:
    """Until it is; fails after a minute."""
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, "waited for a minute"
        Event().wait(0.02)
