"""Detailed statistics: the figures of the moment, unknown ones with a reason, types only when asked for."""

from __future__ import annotations

import gc
import json
import os
import threading

from memwarden import Warden
from memwarden.testing import FakeMachine


def test_of_this_process_every_figure_is_there() -> None:
    found = Warden(preset=None, blackbox=False).statistics()
    assert found.gc_enabled is gc.isenabled()
    assert len(found.generations) == len(gc.get_stats())
    assert found.generations[-1].threshold == gc.get_threshold()[-1]
    assert found.python_threads == threading.active_count()
    assert found.threads == len(os.listdir("/proc/self/task"))
    assert found.descriptors == len(os.listdir("/proc/self/fd")) - 1
    assert found.reading.rss_bytes
    assert found.python_blocks
    assert found.unknown == () or dict(found.unknown).keys() == {"native_in_use_bytes"}
    assert found.types == ()


def test_a_census_comes_only_when_asked_for() -> None:
    found = Warden(preset=None, blackbox=False).statistics(types=True)
    assert 0 < len(found.types) <= 20
    assert found.types[0].shallow_bytes >= found.types[-1].shallow_bytes > 0


def test_what_a_machine_cannot_tell_is_none_and_says_why() -> None:
    with FakeMachine(used_bytes=50 << 20) as machine:
        found = Warden(preset=None, machine=machine, blackbox=False).statistics()
    assert (found.threads, found.descriptors) == (None, None)
    unknown = dict(found.unknown)
    assert "/proc/self/task" in unknown["threads"]
    assert "/proc/self/fd" in unknown["descriptors"]
    assert found.reading.used_bytes == 50 << 20
    assert found.level.name == "NORMAL"


def test_flat_is_plain_data() -> None:
    flat = Warden(preset=None, blackbox=False).statistics(types=True).flat()
    again = json.loads(json.dumps(flat))
    assert again["level"] == "NORMAL"
    assert again["rss_bytes"] == flat["rss_bytes"] > 0
    assert again["generations"][0].keys() >= {"collections", "collected", "uncollectable", "count", "threshold"}
    assert again["trend"]["samples"] >= 1
    assert "reading" not in again
