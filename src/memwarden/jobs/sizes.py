"""What earlier runs of a job took: a histogram that forgets, as the Kubernetes Vertical Pod Autoscaler keeps one.

Buckets grow by 5 %, so a size is known to 5 %. A sample of today weighs twice what one of yesterday did (half-life
24 h). An out-of-memory death counts as a fifth more than was seen, as there, because the need was never seen whole.
(VPA recommender, pkg/recommender/util/decaying_histogram.go and model/aggregations_config.go: 1.05, 24 h, bump-up 1.2.)
"""

from __future__ import annotations

import json
from math import ceil, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["OOM_BUMP", "Histogram"]

RATIO = 1.05
HALF_LIFE_S = 86400.0
OOM_BUMP = 1.2
# A bucket that weighs less than this part of one fresh sample is forgotten: a single one after 13 days.
_EPSILON = 1e-4


class Histogram:
    """Sizes above zero, weighted by age. Two processes that learn at once lose at most one another's sample."""

    def __init__(self, first: float = 1.0) -> None:
        self._first = first
        self._newest_s: float | None = None  # a sample of then weighs 1
        self._weights: dict[int, float] = {}

    def add(self, value: float, unix_s: float, *, weight: float = 1.0) -> None:
        """One sample of that time."""
        late_s = self._age_to(unix_s)
        bucket = self._bucket(value)
        self._weights[bucket] = self._weights.get(bucket, 0.0) + weight * 2.0 ** (-late_s / HALF_LIFE_S)
        self._weights = {each: held for each, held in self._weights.items() if held >= _EPSILON}

    def _age_to(self, unix_s: float) -> float:
        """Make all as old as they are then; how much later than the newest that moment comes in, in seconds."""
        newest_s = unix_s if self._newest_s is None else self._newest_s
        if 0.0 < newest_s - unix_s <= HALF_LIFE_S:  # samples of several processes come in any order
            return newest_s - unix_s
        # Of what comes from further ahead, the clock was wrong: it counts as of now, or it would count most till then.
        factor = 2.0 ** -min(1000.0, max(0.0, unix_s - newest_s) / HALF_LIFE_S)
        self._weights = {bucket: held * factor for bucket, held in self._weights.items()}
        self._newest_s = unix_s
        return 0.0

    def _bucket(self, value: float) -> int:
        return 0 if value <= self._first else ceil(log(value / self._first) / log(RATIO) - 1e-9)

    @property
    def weight(self) -> float:
        """Of all samples."""
        return sum(self._weights.values())

    def percentile(self, share: float) -> float | None:
        """The upper end of the bucket below which this share (0-1) of the weight is; None without samples."""
        if not self._weights:
            return None
        left, last = share * self.weight, 0
        for last in sorted(self._weights):
            left -= self._weights[last]
            if left <= 1e-12 * self.weight:
                break
        return float(self._first * RATIO**last)

    def to_text(self) -> str:
        """As JSON."""
        weights = {str(bucket): float(f"{weight:.4g}") for bucket, weight in self._weights.items()}
        return json.dumps({"first": self._first, "reference_s": self._newest_s, "weights": weights})

    @classmethod
    def from_text(cls, text: str | None, *, first: float = 1.0) -> Self:
        """What `to_text` made; an empty one for anything else: what was learned is a help and no truth."""
        made = cls(first)
        try:
            found = json.loads(text or "")
            weights = {int(bucket): float(weight) for bucket, weight in found["weights"].items()}
            if found["first"] == first and all(0 < weight < 1e300 for weight in weights.values()):
                made._weights = weights
                made._newest_s = float(found["reference_s"]) if weights else None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            pass
        return made
