"""What memory did lately, in bounded space: buckets of a few seconds that keep their floor and their peak.

A History costs the same after a minute and after a year: nine columns of at most 360 numbers (about 26 KiB).
"""

from __future__ import annotations

from array import array
from math import inf, isfinite

from memwarden.facts import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

# Row M7 looks at half an hour. 360 buckets of 5 s are finer than any question asked of that window, and one
# trend over them takes under 5 ms.
WINDOW_S = 1800.0
BUCKETS = 360

# A step in time longer than this many usual intervals was not watched: the machine slept, the clock jumped
# or the watcher was blind. Nothing that lies between its two ends is growth that anybody saw.
GAP_INTERVALS = 5.0


class Bucket(Fact):
    """A few seconds of samples: when, the lowest and the highest with their times, the sum and how many.

    `stretch` counts the gaps before it: buckets of different stretches must not be joined by a line.
    """

    first_s: float
    last_s: float
    low_bytes: float
    low_at_s: float
    high_bytes: float
    high_at_s: float
    sum_bytes: float
    count: int
    stretch: int

    @property
    def mean_bytes(self) -> float:
        """The plain mean of its samples."""
        return self.sum_bytes / self.count


class History:
    """Bounded memory over time. `add` is O(1) and never raises for a strange number: it counts it in
    `refused`.

    `interval_s` is the longest usual time between two samples; without it the history learns it. A step of
    more than five of them starts a new stretch, and a second one in a row is a new rhythm and no gap. Time
    that runs backwards a little is refused; backwards by more than a gap, nothing old can be placed and all
    is forgotten.
    """

    def __init__(self, window_s: float = WINDOW_S, *, buckets: int = BUCKETS, interval_s: float | None = None) -> None:
        if not (isfinite(window_s) and window_s > 0 and buckets >= 1):
            raise ValueError("a history needs a window above zero and at least one bucket")
        self.window_s = float(window_s)
        self.refused = 0
        self._width_s = self.window_s / buckets
        self._room = buckets
        self._fixed_s = interval_s
        self.clear()

    @classmethod
    def of(
        cls,
        times_s: Iterable[float],
        values_bytes: Iterable[float],
        *,
        window_s: float = WINDOW_S,
        buckets: int = BUCKETS,
        interval_s: float | None = None,
    ) -> Self:
        """A history of two columns that are already there."""
        history = cls(window_s, buckets=buckets, interval_s=interval_s)
        for t_s, value in zip(times_s, values_bytes, strict=True):
            history.add(t_s, value)
        return history

    def clear(self) -> None:
        """Forget all samples: after a fork, or when time itself started again."""
        self._first, self._last = array("d"), array("d")
        self._low, self._low_at = array("d"), array("d")
        self._high, self._high_at = array("d"), array("d")
        self._sum = array("d")
        self._count, self._stretch = array("q"), array("q")
        self._head = 0  # where the next bucket goes once the columns are full: they are rings from then on
        self._open = -1  # the bucket that takes samples now
        self._usual_s = self._fixed_s or 0.0
        self._long_steps = 0
        self._gaps = 0

    def forget_older(self, keep_s: float) -> int:
        """Keep the buckets that begin in the last so many seconds, and let the rest go; how many went."""
        kept, before = self.buckets(keep_s), len(self)
        usual_s, long_steps, gaps = self._usual_s, self._long_steps, self._gaps
        self.clear()
        self._usual_s, self._long_steps = usual_s, long_steps
        for each in kept:
            self._gaps = each.stretch
            self._begin(each.first_s, each.mean_bytes)
            self._restore(each)
        self._gaps = gaps
        return before - len(kept)

    def _restore(self, bucket: Bucket) -> None:
        i = self._open
        self._last[i], self._sum[i], self._count[i] = bucket.last_s, bucket.sum_bytes, bucket.count
        self._low[i], self._low_at[i] = bucket.low_bytes, bucket.low_at_s
        self._high[i], self._high_at[i] = bucket.high_bytes, bucket.high_at_s

    def older(self, keep_s: float) -> int:
        """How many buckets begin earlier than so many seconds before the newest sample."""
        since_s = self._last[self._open] - keep_s if self._open >= 0 else 0.0
        return sum(first_s < since_s for first_s in self._first)

    def __len__(self) -> int:
        return len(self._count)

    @property
    def last_s(self) -> float | None:
        """The time of the newest sample."""
        return self._last[self._open] if self._open >= 0 else None

    @property
    def gaps(self) -> int:
        """How often watching was interrupted since the beginning."""
        return self._gaps

    def add(self, t_s: float, used_bytes: float) -> None:
        """One sample: seconds on any clock that runs forwards, and bytes."""
        if not (isfinite(t_s) and 0 <= used_bytes < inf):
            self.refused += 1
            return
        if self._open >= 0:
            step_s = t_s - self._last[self._open]
            if step_s < 0 and not self._rewound(step_s):
                return
        if self._open >= 0:
            gap = self._is_gap(t_s - self._last[self._open])
            if not gap and t_s - self._first[self._open] < self._width_s:
                self._widen(t_s, used_bytes)
                return
            self._gaps += gap
        self._begin(t_s, used_bytes)

    def buckets(self, window_s: float | None = None) -> list[Bucket]:
        """The buckets in order of time that begin in the last `window_s` before the newest sample."""
        if self._open < 0:
            return []
        since_s = self._last[self._open] - (window_s if window_s is not None else self.window_s)
        return [self._bucket(i) for i in self._order() if self._first[i] >= since_s]

    def _order(self) -> Iterator[int]:
        size = len(self._count)
        start = self._head if size == self._room else 0
        for i in range(size):
            yield (start + i) % size

    def _bucket(self, i: int) -> Bucket:
        return Bucket(
            first_s=self._first[i],
            last_s=self._last[i],
            low_bytes=self._low[i],
            low_at_s=self._low_at[i],
            high_bytes=self._high[i],
            high_at_s=self._high_at[i],
            sum_bytes=self._sum[i],
            count=self._count[i],
            stretch=self._stretch[i],
        )

    def _rewound(self, step_s: float) -> bool:
        """Time ran backwards: True when the history started again, False when the sample is refused."""
        if -step_s <= GAP_INTERVALS * self._usual_s:
            self.refused += 1
            return False
        self.clear()
        return True

    def _is_gap(self, step_s: float) -> bool:
        usual_s = self._usual_s
        if usual_s <= 0:
            self._usual_s = step_s
            return False
        if step_s <= GAP_INTERVALS * usual_s:
            self._long_steps = 0
            if self._fixed_s is None:
                # The longest recent step, forgotten by 2 % a sample: a warden polls faster under pressure and
                # slower when calm, and coming back to calm is no gap.
                self._usual_s = max(step_s, usual_s * 0.98)
            return False
        self._long_steps += 1
        if self._fixed_s is None and self._long_steps > 1:
            self._usual_s, self._long_steps = step_s, 0
            return False
        return True

    def _widen(self, t_s: float, used_bytes: float) -> None:
        i = self._open
        self._last[i] = t_s
        self._sum[i] += used_bytes
        self._count[i] += 1
        if used_bytes < self._low[i]:
            self._low[i], self._low_at[i] = used_bytes, t_s
        if used_bytes > self._high[i]:
            self._high[i], self._high_at[i] = used_bytes, t_s

    def _begin(self, t_s: float, used_bytes: float) -> None:
        columns = (self._first, self._last, self._low_at, self._high_at, self._low, self._high, self._sum)
        values = (t_s, t_s, t_s, t_s, used_bytes, used_bytes, used_bytes)
        if len(self._count) < self._room:
            self._open = len(self._count)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            self._count.append(1)
            self._stretch.append(self._gaps)
            return
        i = self._open = self._head
        self._head = (i + 1) % self._room
        for column, value in zip(columns, values, strict=True):
            column[i] = value
        self._count[i] = 1
        self._stretch[i] = self._gaps
