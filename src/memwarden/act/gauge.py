"""What those who refuse look at: the last verdict, at most so old, and how full that is.

A running Warden's verdict is one attribute; where it is older than the caller's patience, the Warden is told to look
now. Far from the line the patience is spent in full; near it readings may take a hundredth of the time, and more than
that where the fastest growth would otherwise reach the limit unseen.
"""

from __future__ import annotations

from memwarden.facts import Fact, Level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.facts import Reading, Verdict
    from memwarden.ports import Clock, Pressure

# A look that took long (it wrote a line of the log, it waited for the GIL) says little about the next.
COST_RISE = 1.25
# Readings near the line may take this share of the time of whoever asks.
COST_SHARE = 0.01
# However cheap a reading is, one each millisecond sees a thread that fills fresh pages after 4 MiB.
SHORTEST_S = 0.001
# A thread that only fills fresh pages was measured at 2.5 GiB/s (bytearray(b"x") * size, 4 KiB to 16 MiB). Far from the
# line nothing is missed by looking later; near the limit half of what is left must not be gone before the next look.
FASTEST_BYTES_PER_S = 4 << 30


class View(Fact):
    """How full it is. `used_bytes` is what can hardly be reclaimed; None is unknown.

    `level` is what was judged; `forced` says that somebody forced it (a game day), so that no figure speaks against.
    """

    used_bytes: int | None
    limit_bytes: int | None
    ratio: float | None
    level: Level
    forced: bool
    monotonic_s: float


def view_of(verdict: Verdict | None) -> View:
    """Halfway between the upper and the lower bound of what is used, as CRITICAL is judged.

    A container full of file cache is not full. Where a limited ancestor is fuller, its share of ours counts.
    """
    if verdict is None:
        return View(
            used_bytes=None, limit_bytes=None, ratio=None, level=Level.NORMAL, forced=False, monotonic_s=float("-inf")
        )
    reading = verdict.reading
    used, limit = _hardly_reclaimable(reading), reading.limit_bytes
    return View(
        used_bytes=used,
        limit_bytes=limit,
        ratio=used / limit if used is not None and limit else None,
        level=verdict.level,
        forced=any(reason.code == "forced" for reason in verdict.reasons),
        monotonic_s=reading.monotonic_s,
    )


def _hardly_reclaimable(reading: Reading) -> int | None:
    used, limit, low = reading.used_bytes, reading.limit_bytes, reading.used_low_bytes
    if used is None or not limit:
        return used
    hardly = used if low is None else (used + low) // 2
    elsewhere = reading.pressure_ratio
    if elsewhere is not None and elsewhere * limit > used + 1:
        return max(hardly, int(elsewhere * limit))
    return hardly


class Gauge:
    """The newest verdict of a Pressure, and when the next is due. Not safe across threads where `due_s` matters."""

    def __init__(self, pressure: Pressure, *, clock: Clock, max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self._pressure = pressure
        self._clock = clock
        check = getattr(pressure, "check", None)  # a Watch; a plain Pressure cannot be told to look
        self._check: Callable[[], Verdict] | None = check if callable(check) else None
        self._cost_s = 0.0

    def closest_s(self, view: View) -> float:
        """Looking again sooner would take more than its share of the time, and is not needed to see the limit come."""
        frugal_s = min(self.max_age_s, self._cost_s / COST_SHARE)
        if view.used_bytes is not None and view.limit_bytes:
            frugal_s = min(frugal_s, (view.limit_bytes - view.used_bytes) / FASTEST_BYTES_PER_S / 2)
        return max(SHORTEST_S, frugal_s)

    def learn_cost(self) -> None:
        """Look twice: the first time opens files and fills caches, and says nothing about the next ones."""
        for _ in range(2):
            self.look(age_s=0.0)

    def look(self, *, age_s: float | None = None) -> View:
        """What the last verdict says, which is at most `age_s` old (`max_age_s` where not given)."""
        oldest_s = self.max_age_s if age_s is None else age_s
        start_s = self._clock.monotonic()
        verdict = self._pressure.verdict
        if self._check is not None and (verdict is None or start_s - verdict.reading.monotonic_s >= oldest_s):
            verdict = self._check()
        if verdict is not None and verdict.reading.monotonic_s >= start_s:  # it was read just now
            cost_s = self._clock.monotonic() - start_s
            self._cost_s = min(cost_s, COST_RISE * self._cost_s) if self._cost_s else cost_s
        return view_of(verdict)

    def keeps_s(self, view: View, line: float) -> float:
        """How long this view is good for: the time in which the fastest growth could reach the line, within bounds."""
        if view.used_bytes is None or not view.limit_bytes:
            return self.max_age_s
        left_s = (line * view.limit_bytes - view.used_bytes) / FASTEST_BYTES_PER_S
        return min(self.max_age_s, max(self.closest_s(view), left_s))
