"""What a safe point costs: a check between readings, a check that reads, a check with its record written."""

from __future__ import annotations

import logging
import os
import tempfile
from itertools import repeat
from typing import TYPE_CHECKING

from benchmarks import Figure
from benchmarks.arms import race
from memwarden.jobs.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_BYTES = 8 << 30


class Empty:
    """The least that a method can do."""

    def check(self, operation: str) -> None:
        """Nothing."""


def _hundred(thing: Empty | Guard) -> Callable[[], None]:
    def arm() -> None:
        for _ in repeat(None, 100):
            thing.check("chunk")

    return arm


def _logger(name: str, level: int, path: str) -> logging.Logger:
    found = logging.getLogger(name)
    found.propagate = False
    found.setLevel(level)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s %(usage_percentage)s"))
    found.addHandler(handler)
    return found


def main() -> list[Figure]:
    """Three guards beside an empty method; every record goes to a real file."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = _logger("memwarden.bench.quiet", logging.WARNING, os.path.join(folder, "quiet.log"))
        loud = _logger("memwarden.bench.loud", logging.INFO, os.path.join(folder, "loud.log"))
        off, on, reading = (
            Guard("bench", LIMIT_BYTES, log=quiet),
            Guard("bench", LIMIT_BYTES, log=loud),
            Guard("bench", LIMIT_BYTES, log=quiet),
        )
        for each in (off, on, reading):
            each.enter()

        def read() -> None:
            for _ in repeat(None, 100):
                reading.read()

        found = race({"empty": _hundred(Empty()), "off": _hundred(off), "on": _hundred(on), "reading": read})
    costs = {name: cost.minimum_ns / 100_000 for name, cost in found.costs.items()}
    beside = f"A/A {found.control:.3f}; minimum of many, CPU time; an empty method {costs['empty'] * 1000:.0f} ns"
    return [
        Figure("a job's check with its log level off", costs["off"], " us", at_most=5.0, beside=beside),
        Figure("a job's check that reads", costs["reading"], " us", at_most=5.0),
        Figure("a job's check with its record written to a file", costs["on"], " us", at_most=30.0),
    ]
