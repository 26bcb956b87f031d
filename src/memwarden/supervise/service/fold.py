"""Ticks into buckets: minimum, maximum, sum and count of each figure, per second, minute and hour. Pure.

Folding is exact and knows no order: a bucket is the same however its ticks were divided among calls, and an hour is the
sum of its minutes. A bucket without ticks does not exist; nothing is filled in between.
"""

from __future__ import annotations

from memwarden.facts import Fact
from memwarden.units import MAX_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DAY_S = 86_400.0
# What SQLite's integers hold; an hour of ticks every 10 ms, each of 16 TiB, fits. A sum stays there.
LARGEST = (1 << 63) - 1


class Tier(Fact):
    """One resolution: buckets of `step_s` whole seconds, kept for `keep_s`."""

    name: str
    step_s: int
    keep_s: float


# DESIGN 7.
TIERS = (
    Tier(name="second", step_s=1, keep_s=DAY_S),
    Tier(name="minute", step_s=60, keep_s=30 * DAY_S),
    Tier(name="hour", step_s=3600, keep_s=730 * DAY_S),
)


class Bucket:
    """What `count` ticks were together. The figures of a bucket in which one was never known have a count of 0."""

    __slots__ = (
        "count", "level_max", "limit_max", "rss_count", "rss_max", "rss_min", "rss_sum", "used_count", "used_max",
        "used_min", "used_sum",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = self.used_count = self.rss_count = 0
        self.used_sum = self.rss_sum = self.limit_max = self.level_max = 0
        self.used_min: int | None = None
        self.used_max: int | None = None
        self.rss_min: int | None = None
        self.rss_max: int | None = None

    def add(self, rss: int | None, used: int | None, limit: int | None, level: int) -> None:
        """One more tick."""
        self.count += 1
        if used is not None:
            self.used_count += 1
            self.used_sum = min(self.used_sum + used, LARGEST)
            if self.used_min is None or used < self.used_min:
                self.used_min = used
            if self.used_max is None or used > self.used_max:
                self.used_max = used
        if rss is not None:
            self.rss_count += 1
            self.rss_sum = min(self.rss_sum + rss, LARGEST)
            if self.rss_min is None or rss < self.rss_min:
                self.rss_min = rss
            if self.rss_max is None or rss > self.rss_max:
                self.rss_max = rss
        if limit is not None and limit > self.limit_max:
            self.limit_max = limit
        self.level_max = max(self.level_max, level)

    def values(self) -> tuple[int | None, ...]:
        """In the order of `COLUMNS`."""
        return tuple(getattr(self, name) for name in COLUMNS)


COLUMNS = (
    "count", "used_count", "used_sum", "used_min", "used_max", "rss_count", "rss_sum", "rss_min", "rss_max",
    "limit_max", "level_max",
)  # fmt: skip

Buckets = dict[int, Bucket]


def fold(ticks: Iterable[tuple[int, float, int | None, int | None, int | None, int]], step_s: int) -> Buckets:
    """The buckets of these ticks by where they begin (Unix seconds, a multiple of `step_s`)."""
    found: Buckets = {}
    for _, unix_s, rss, used, limit, level in ticks:
        start = int(unix_s) // step_s * step_s
        bucket = found.get(start)
        if bucket is None:
            bucket = found[start] = Bucket()
        bucket.add(_fits(rss), _fits(used), _fits(limit), level)
    return found


def _fits(value: int | None) -> int | None:
    """A figure that can be one: a box may be damaged, or made up."""
    return value if value is None or value <= MAX_BYTES else None
