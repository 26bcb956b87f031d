"""The recorded traces with their labels, and the columns of them that a verdict is allowed to see."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from memwarden.judge.signs import Columns
from memwarden.sense.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memwarden.sense.trace import Trace

RECORDED = os.path.join(os.path.dirname(__file__), "traces")

OUTSIDE = ("rss_bytes",)
WORK = (*OUTSIDE, "anon_bytes", "work_done")
PYTHON = (*WORK, "python_blocks", "gc_collected", "gc_uncollectable")
ALL = (*PYTHON, "native_in_use_bytes", "declared_cache_bytes")
# What is reported, and for each of the three models what its series may come with.
VIEWS = {"RSS alone": OUTSIDE, "with work, blocks": PYTHON, "with malloc, caches": ALL}
FITTED = {
    "resident": (OUTSIDE, WORK),
    "blocks": (PYTHON, ("rss_bytes", "python_blocks")),
    "live": (ALL, ("rss_bytes", "python_blocks", "native_in_use_bytes", "declared_cache_bytes")),
}


class Recorded(NamedTuple):
    """One trace and the truth about it."""

    name: str
    program: str
    mode: str
    rate: str
    leak: bool
    cause: str
    trace: Trace

    def columns(self, names: tuple[str, ...]) -> Columns:
        """Only these columns of it."""
        known = {"rss_bytes": self.trace.rss_bytes, **self.trace.columns}
        return Columns(self.trace.t_s, {name: known[name] for name in names if name in known})


def recorded(folder: str = RECORDED) -> Iterator[Recorded]:
    """Every labelled trace of a folder, in the order of names."""
    with open(os.path.join(folder, "labels.json")) as file:
        labels: dict[str, Any] = json.load(file)
    for name, label in sorted(labels.items()):
        keys = ("program", "mode", "rate", "leak", "cause")
        yield Recorded(name, *(label[key] for key in keys), read_trace(os.path.join(folder, name)))
