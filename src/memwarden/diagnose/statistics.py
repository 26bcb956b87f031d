"""Detailed statistics (row M10): everything that is known about this process at one moment, as one fact."""

from __future__ import annotations

import gc
import threading

from memwarden.facts import Fact, Leak, Level, Reading, Trend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from memwarden.diagnose.census import TypeRow
    from memwarden.facts import Verdict
    from memwarden.ports import Machine

# Types by name in the statistics, where they are asked for.
TOP_TYPES = 20


class Generation(Fact):
    """One generation of the collector: runs so far, objects freed and found uncollectable, and its counter now.

    The counter is net allocations (youngest) or runs of the younger generation (older ones); `threshold` starts a run.
    """

    collections: int
    collected: int
    uncollectable: int
    count: int
    threshold: int


class Statistics(Fact):
    """The whole of it. `types` is empty where no census was asked for; unknown figures are None, with a reason."""

    level: Level
    reading: Reading
    trend: Trend
    gc_enabled: bool
    generations: tuple[Generation, ...]
    frozen_objects: int
    garbage: int
    python_blocks: int | None
    native_in_use_bytes: int | None
    python_threads: int
    threads: int | None
    descriptors: int | None
    leak: Leak = Leak(stage="off")
    types: tuple[TypeRow, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()

    def flat(self) -> dict[str, Any]:
        """As plain data: the figures of the reading on the first level, the rest below their names."""
        found = {**self.reading.flat(), **self.as_dict(), "level": self.level.name, "trend": self.trend.as_dict()}
        found["leak"] = self.leak.as_dict()
        found["generations"] = [each.as_dict() for each in self.generations]
        found["types"] = [each.as_dict() for each in self.types]
        found["unknown"] = {**dict(self.reading.around.unknown), **dict(self.unknown)}
        del found["reading"]
        return found


def statistics(
    verdict: Verdict, trend: Trend, machine: Machine, *, leak: Leak | None = None, types: bool = False
) -> Statistics:
    """Put together what is known. `types` takes a census, which costs some 20 ms per 100,000 objects."""
    unknown: dict[str, str] = {}
    blocks = _known("python_blocks", machine.python_blocks(), "only of this very process", unknown)
    native = _known("native_in_use_bytes", machine.native_in_use_bytes(), "only glibc 2.33 and newer tells", unknown)
    threads = _entries(machine, "/proc/self/task", "threads", unknown)
    descriptors = _entries(machine, "/proc/self/fd", "descriptors", unknown)
    reading = verdict.reading
    return Statistics(
        level=verdict.level,
        reading=reading,
        trend=trend,
        gc_enabled=gc.isenabled(),
        generations=_generations(gc.get_stats(), gc.get_count(), gc.get_threshold()),
        frozen_objects=gc.get_freeze_count(),
        garbage=len(gc.garbage),
        python_blocks=blocks,
        native_in_use_bytes=native,
        python_threads=threading.active_count(),
        threads=threads,
        descriptors=descriptors - 1 if descriptors else None,  # one was open for looking
        leak=leak if leak is not None else Leak(stage="off"),
        types=_types() if types else (),
        unknown=tuple(unknown.items()),
    )


def _generations(
    stats: list[dict[str, int]], counts: tuple[int, ...], thresholds: tuple[int, ...]
) -> tuple[Generation, ...]:
    return tuple(
        Generation(**each, count=count, threshold=threshold)
        for each, count, threshold in zip(stats, counts, thresholds, strict=False)
    )


def _known(name: str, value: int | None, reason: str, unknown: dict[str, str]) -> int | None:
    if value is None:
        unknown[name] = reason
    return value


def _entries(machine: Machine, folder: str, name: str, unknown: dict[str, str]) -> int | None:
    try:
        return len(machine.listdir(folder))
    except OSError as error:
        unknown[name] = f"{folder}: {error.strerror or error}"
        return None


def _types() -> tuple[TypeRow, ...]:
    from memwarden.diagnose.census import census

    return census(keep=TOP_TYPES).rows
