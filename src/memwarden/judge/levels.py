"""From one reading to a level: lines with hysteresis and dwell, an absolute floor, and the time to the limit.

Pure: it is given readings and remembers a few numbers; the same readings give the same verdicts for ever.

WARNING is judged on the upper bound of what is used, EMERGENCY on the lower (what cannot be reclaimed), CRITICAL
halfway between: a container full of file cache is no emergency, and one full of objects is.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from memwarden.facts import Fact, Level, Reading, Reason, Verdict
from memwarden.units import MIB, format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from memwarden.config import Config

# The floor of DESIGN 5: below this headroom it is an EMERGENCY whatever the lines say. 24 MiB is what a Python
# process takes in one step without asking (an import, a thread's arena); on tiny limits 5 % has to do.
FLOOR_BYTES = 24 * MIB
FLOOR_RATIO = 0.05
# Growth is looked at in steps of the time that reacting takes: to wake up, read, and trim.
REACTION_S = 0.25
# A start allocates fast and stops: growth counts after this long, and only when it lasts three steps.
WARMUP_S = 10.0
STEPS = 3
# Where memory also fell by this share in a step of the last minute, three may rise by chance (one row of four in 24
# does, one of six in 720): then it takes five.
FALL_RATIO = 0.01
STEPS_AFTER_FALL = 5
GROWTH_HALF_LIFE_S = 600.0
# Time to the limit that raises one and two levels, above half of the limit only (DESIGN 5).
SOON_S = 60.0
NOW_S = 10.0
SOON_ABOVE_RATIO = 0.5
# A level raised by time to the limit is given back when that time is this much longer than what raised it.
RELAX = 1.5
# Without a reading for so long, what happened between is unknown: a gap is no growth.
GAP_S = 30.0
# What memory reached within the last one to two of these windows and came back from, it may reach again: growth is
# only what goes beyond. Without this and the five steps, noise of +-3 points around a line changed the level up to nine
# times in 30 s.
KNOWN_S = 60.0


class Lines(Fact):
    """Where the levels begin (fractions of the limit) and how they are left again.

    A level is left `leave_gap` below its line, and not before it was quiet for `dwell_s`.
    """

    warning: float = 0.75
    critical: float = 0.90
    emergency: float = 0.95
    leave_gap: float = 0.05
    dwell_s: float = 5.0

    @classmethod
    def of(cls, config: Config) -> Self:
        """Those of the settings, which have the same names."""
        return cls(**{name: getattr(config, name) for name in cls._fields})

    def enter(self, level: Level) -> float:
        """The line at which a level begins."""
        return (0.0, self.warning, self.critical, self.emergency)[level]


class Growth:
    """How fast memory grows into the unknown right now, in steps of the reaction time.

    It is growth when three steps in a row rose (five where it fell of late) and the last went beyond all that was
    reached of late. `gap_s`: a longer time without a reading hides what happened in it.
    """

    def __init__(self, *, gap_s: float = GAP_S) -> None:
        self._gap_s = gap_s
        self._points: deque[tuple[float, int]] = deque(maxlen=STEPS_AFTER_FALL)
        self._first_s: float | None = None
        self._known = _RecentHigh()
        self._fell_s = float("-inf")
        self._rate = 0.0
        self._largest = 0.0

    def add(self, now_s: float, used_bytes: int) -> None:
        """One reading. A gap, or time that goes backwards, starts anew."""
        if self._first_s is None or now_s < self._first_s:
            self._first_s = now_s
        if not self._points or not 0 <= now_s - self._points[-1][0] <= self._gap_s:
            self._points.clear()
            self._known = _RecentHigh()
            self._rate = 0.0
        elif now_s - self._points[-1][0] < REACTION_S:
            return
        else:
            self._step(now_s, used_bytes)
        self._points.append((now_s, used_bytes))

    def _step(self, now_s: float, used_bytes: int) -> None:
        at_s, before_bytes = self._points[-1]
        self._largest *= 0.5 ** ((now_s - at_s) / GROWTH_HALF_LIFE_S)
        if used_bytes < before_bytes * (1 - FALL_RATIO):
            self._fell_s = now_s
        if len(self._points) == STEPS_AFTER_FALL:
            self._known.add(*self._points[0])
        warm = self._first_s is not None and now_s - self._first_s >= WARMUP_S
        self._rate = self._rate_to(now_s, used_bytes) if warm else 0.0
        self._largest = max(self._largest, self._rate * REACTION_S)

    def _rate_to(self, now_s: float, used_bytes: int) -> float:
        """Bytes per second beyond what is known; 0 unless each of the last steps rose."""
        steps = STEPS if now_s - self._fell_s > KNOWN_S else STEPS_AFTER_FALL
        if len(self._points) < steps:
            return 0.0
        points = list(self._points)
        run = [*(value for _, value in points[-steps:]), used_bytes]
        if any(later <= earlier for earlier, later in pairwise(run)):
            return 0.0
        known = max((value for _, value in points[:-steps]), default=0)
        start = max(run[0], known, self._known.bytes)
        return max(0, used_bytes - start) / (now_s - points[-steps][0])

    @property
    def bytes_per_s(self) -> float:
        """Sustained growth; 0 where it is not growing, or not yet for three steps."""
        return self._rate

    @property
    def largest_step_bytes(self) -> float:
        """The most that memory grew within one reaction time, forgotten with a half-life of 10 minutes."""
        return self._largest


class _RecentHigh:
    """The highest value of the last one to two windows, in two numbers."""

    def __init__(self) -> None:
        self._before = self._current = 0
        self._since_s: float | None = None

    def add(self, now_s: float, value: int) -> None:
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s >= KNOWN_S:
            self._before, self._current, self._since_s = self._current, 0, now_s
        self._current = max(self._current, value)

    @property
    def bytes(self) -> int:
        return max(self._before, self._current)


class Judge:
    """Weighs readings one after the other. Holds the current level, since when, and the growth of late.

    `gap_s` is for who reads more rarely than every 30 s on purpose (see `Growth`).
    """

    def __init__(self, lines: Lines | None = None, *, gap_s: float = GAP_S) -> None:
        self.lines = lines if lines is not None else Lines()
        self._gap_s = gap_s
        self._since_s: float | None = None
        self.anew()

    def anew(self) -> None:
        """Forget the level and the growth: the limit was changed on purpose, or what counts against it is other."""
        self.growth = Growth(gap_s=self._gap_s)
        self._level = Level.NORMAL
        self._by_line = Level.NORMAL  # the part of the level that lines gave: only that is held by their leave lines
        self._quiet_since_s: float | None = None
        self._quiet_top = Level.NORMAL
        self._raised = 0
        self._scope = ""

    def weigh(self, reading: Reading) -> Verdict:
        """The verdict on one reading, given those before it."""
        now_s = reading.monotonic_s
        if self._since_s is None:
            self._since_s = now_s
        upper = reading.pressure_ratio if reading.pressure_ratio is not None else reading.usage_ratio
        if upper is None or reading.used_bytes is None:
            text = "memory could not be read: the level stays what it was"
            return self._verdict(reading, (Reason(code="unknown", text=text),))
        if reading.scope != self._scope:  # a container's bytes after a process's are no growth
            self.growth = Growth(gap_s=self._gap_s)
            self._scope = reading.scope
        self.growth.add(now_s, reading.used_bytes)
        lower = reading.pressure_low_ratio if reading.pressure_low_ratio is not None else reading.usage_low_ratio
        low = min(upper, lower if lower is not None else upper)
        reasons: list[Reason] = []
        wanted = self._by_lines(upper, low, reasons)
        self._by_line = max(self._by_line, wanted)
        wanted = max(wanted, self._by_floor(reading, reasons))
        wanted = self._by_time(wanted, upper, reading, reasons)
        self._move(wanted, now_s)
        return self._verdict(reading, tuple(reasons))

    def _verdict(self, reading: Reading, reasons: tuple[Reason, ...]) -> Verdict:
        return Verdict(level=self._level, since_s=self._since_s or 0.0, reading=reading, reasons=reasons)

    def _by_lines(self, upper: float, low: float, reasons: list[Reason]) -> Level:
        """The highest level whose line is crossed, or whose leave line is still exceeded where we are above it."""
        if self._level is Level.NORMAL and upper < self.lines.warning:
            return Level.NORMAL  # the ordinary case, and low is never above upper
        measured = (0.0, upper, (upper + low) / 2, low)
        for level in (Level.EMERGENCY, Level.CRITICAL, Level.WARNING):
            line = self.lines.enter(level)
            held = self._by_line >= level and measured[level] > line - self.lines.leave_gap
            if measured[level] >= line or held:
                verb = "is above" if measured[level] >= line else "has not fallen far enough below"
                bound = {
                    Level.WARNING: "used",
                    Level.CRITICAL: "hardly reclaimable",
                    Level.EMERGENCY: "not reclaimable",
                }
                share = f"{format_ratio(measured[level])} {bound[level]}"
                text = f"{share} {verb} the {level.name} line of {format_ratio(line)}"
                reasons.append(Reason(code="line", text=text, value=measured[level]))
                return level
        return Level.NORMAL

    def _by_floor(self, reading: Reading, reasons: list[Reason]) -> Level:
        """EMERGENCY where less is left than the next step may take; never below the WARNING line."""
        limit, low = reading.limit_bytes, reading.used_low_bytes
        if limit is None or low is None:
            return Level.NORMAL
        step = max(min(FLOOR_BYTES, limit * FLOOR_RATIO), 2 * self.growth.largest_step_bytes)
        floor = min(step, limit * (1 - self.lines.warning))
        if limit - low >= floor:
            return Level.NORMAL
        text = f"only {format_bytes(limit - low)} are left, and the next step may take {format_bytes(floor)}"
        reasons.append(Reason(code="floor", text=text, value=limit - low))
        return Level.EMERGENCY

    def _by_time(self, wanted: Level, upper: float, reading: Reading, reasons: list[Reason]) -> Level:
        """One or two levels more where sustained growth reaches the limit within a minute or ten seconds."""
        rate = self.growth.bytes_per_s
        headroom = reading.headroom_bytes
        if rate <= 0 or headroom is None or upper <= SOON_ABOVE_RATIO:
            self._raised = 0
            return wanted
        left_s = max(headroom, 0) / rate
        relax = RELAX if self._raised else 1.0
        self._raised = (
            2 if left_s < NOW_S * (relax if self._raised == 2 else 1.0) else 1 if left_s < SOON_S * relax else 0
        )
        if self._raised:
            text = f"the limit is {format_duration(left_s)} away at {format_bytes(rate)}/s"
            reasons.append(Reason(code="time-to-limit", text=text, value=left_s))
        return Level(min(wanted + self._raised, Level.EMERGENCY))

    def _move(self, wanted: Level, now_s: float) -> None:
        """Up at once; down only after it was quiet for the dwell, and no deeper than it was quiet all that time."""
        if wanted >= self._level:
            self._quiet_since_s = None
            if wanted > self._level:
                self._level, self._since_s = wanted, now_s
            return
        if self._quiet_since_s is None or now_s < self._quiet_since_s:
            self._quiet_since_s, self._quiet_top = now_s, wanted
        self._quiet_top = max(self._quiet_top, wanted)
        if now_s - self._quiet_since_s >= self.lines.dwell_s:
            self._level, self._since_s, self._quiet_since_s = self._quiet_top, now_s, None
            self._by_line = min(self._by_line, self._level)
