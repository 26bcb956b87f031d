"""Climbs actions by priority, measures each, and lets go of those that do not help.

Row M6: each action has a priority and a line of its own; the highest priority comes first, and among equals the one
that has returned most per millisecond so far (one that was never tried before them).

An action rests for its cool-down, and twice as long after every try that returned less than one percent of what was
resident, up to ten minutes; after two such tries in a row it abstains until the level has fallen. Collections keep to
their share of wall time. An emergency that begins waits for no cool-down, but the share of wall time holds there too.
In a forked child whose heap was not frozen, and in the parent of one, actions that break the sharing of
pages are left out. An action that
raises is reported as an outcome; the ladder goes on. What the application registered is switched off for good when it
raised, did not come back in time, or left more memory in use twice running than the growth of the process explains.
"""

from __future__ import annotations

import gc

from memwarden.errors import ConfigError
from memwarden.facts import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from memwarden.ports import Action, Clock, Machine

# Below this share of resident memory a reclaim was not worth its pause.
USELESS_RATIO = 0.01
TRIES = 2
MOST_USELESS = 10  # counted no further: 2**10 cool-downs are longer than the longest rest
LONGEST_REST_S = 600.0
FIRST_PAUSE_S = 0.1  # what a collection of a million containers takes (85 us per thousand)
SHORTEST_S = 1e-4  # what is quicker than that is no better for it
# Python 3.12 freezes 375 objects of its own at start (3.11 and 3.13 none); gc.freeze() in a bare interpreter 5,000.
FROZEN_OBJECTS = 1000


class Hung(Exception):  # noqa: N818  what happened, not a mistake of the caller
    """An action did not come back in time; its thread may still be at it."""


class Need:
    """How many bytes are too many at the moment; None: all that can be had. What sheds reads it."""

    __slots__ = ("size_bytes",)

    def __init__(self) -> None:
        self.size_bytes: int | None = None


class _Record:
    """What one action did so far."""

    __slots__ = ("due_s", "off", "pause_s", "per_s", "share_due_s", "spent_s", "useless", "worse")

    def __init__(self) -> None:
        self.due_s = float("-inf")
        self.share_due_s = float("-inf")  # not before then, or it would take more than its share of wall time
        self.useless = 0
        self.worse = 0
        self.off = ""  # why it is switched off
        self.per_s: float | None = None  # bytes returned per second of work, the later tries counting more
        self.spent_s = 0.0
        self.pause_s = 0.0  # how long the next one is thought to take


class Ladder:
    """The actions in the order they are tried. `resident_bytes` measures before and after.

    `growth` is the bytes per second by which the process grows meanwhile, for which no action is blamed.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        *,
        machine: Machine,
        clock: Clock,
        resident_bytes: Callable[[], int | None],
        gil_share: float = 0.01,
        forked: Callable[[], bool] = lambda: False,
        growth: Callable[[], float] = lambda: 0.0,
        need: Need | None = None,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._resident_bytes = resident_bytes
        self._gil_share = gil_share
        self._forked = forked
        self._growth = growth
        self._born_s = clock.monotonic()
        self.need = need if need is not None else Need()
        self.actions: tuple[Action, ...] = tuple(sorted(actions, key=_rank))
        self._records = {action.name: _Record() for action in self.actions}

    def add(self, action: Action) -> None:
        """One more. Raises ConfigError where there is one of this name."""
        if any(each.name == action.name for each in self.actions):
            raise ConfigError(f"there is a strategy {action.name!r} already", where="name", mend="name it otherwise")
        self._records[action.name] = _Record()
        self.actions = tuple(sorted((*self.actions, action), key=_rank))

    def remove(self, action: Action) -> None:
        """Without this one; a climb that is under way may still come to it."""
        if action in self.actions:
            self.actions = tuple(each for each in self.actions if each is not action)
            self._records.pop(action.name, None)

    def climb(
        self,
        reason: str,
        *,
        enough: Callable[[], bool],
        urgent: bool = False,
        ratio: float | None = None,
        need_bytes: int | None = None,
    ) -> Iterator[Outcome]:
        """Try each action that is due until `enough` says that it was; what was skipped is not reported.

        `urgent` waits for no cool-down and tries those too that helped nothing before. `ratio` is the share of the
        limit in use: an action whose own line is above it is passed over; None crosses every line. Each outcome is
        given as soon as it is known: the next action may be the last thing that this process does.
        """
        for action in self._ordered():
            if ratio is not None and ratio < action.above:
                continue
            if self._why_not(action, urgent=urgent) is None and not action.idle():
                self.need.size_bytes = need_bytes
                yield self.apply(action, reason)
                if enough():
                    break

    def run_all(self, reason: str) -> Iterator[Outcome]:
        """Every action that has something to do, whatever its line and cool-down; skipped ones say why."""
        for action in self._ordered():
            why = self._off(action) or self._unsafe(action)
            if why:
                yield self._skip(action, reason, why)
            elif not action.idle():
                self.need.size_bytes = None
                yield self.apply(action, reason)

    def off(self) -> dict[str, str]:
        """The names of those that were switched off, and why."""
        return {name: record.off for name, record in self._records.items() if record.off}

    def due(self, action: Action, *, expected_s: float = 0.0) -> bool:
        """Whether a try by itself is in place now: it rests not, keeps its share, and is safe here.

        `expected_s` is how long it is thought to take at least; what it took of late counts too.
        Two useless tries do not end it, as they do within a cleanup: its rest has doubled by then.
        """
        record, now_s = self._record(action), self._clock.monotonic()
        due_s = max(record.due_s, record.share_due_s, self._earned_s(action, record, expected_s))
        return now_s >= due_s and not record.off and self._unsafe(action) is None

    def _earned_s(self, action: Action, record: _Record, expected_s: float) -> float:
        """When its next pause will be within its share of all the time since the beginning."""
        if not action.holds_gil or self._gil_share <= 0:
            return float("-inf")
        pause_s = max(expected_s, record.pause_s if record.spent_s else FIRST_PAUSE_S)
        return self._born_s + (record.spent_s + pause_s) / self._gil_share

    def _ordered(self) -> list[Action]:
        """By priority, and among equals by what they returned per second; those never tried come first."""
        return sorted(self.actions, key=lambda action: (-action.priority, -self._per_s(action)))

    def _per_s(self, action: Action) -> float:
        per_s = self._record(action).per_s
        return float("inf") if per_s is None else per_s

    def _record(self, action: Action) -> _Record:
        return self._records.setdefault(action.name, _Record())

    def _off(self, action: Action) -> str:
        off = self._record(action).off
        return f"switched off: {off}" if off else ""

    def apply(self, action: Action, reason: str) -> Outcome:
        """Do one action now and measure it."""
        before = self._resident_bytes()
        growth, start_s = self._growth(), self._clock.monotonic()
        objects, error, hung = None, "", False
        try:
            objects = action.apply(self._machine)
        except Exception as raised:  # noqa: BLE001  an action of the application may raise anything; the ladder goes on
            hung = isinstance(raised, Hung)
            error = str(raised) if hung else f"{type(raised).__name__}: {raised}"
        duration_s = self._clock.monotonic() - start_s
        after = self._resident_bytes()
        grown = after - before - growth * duration_s if before is not None and after is not None else 0.0
        worse = bool(before and grown >= before * USELESS_RATIO)
        off = self._judge(action, error, worse=worse)
        outcome = Outcome(
            action=action.name,
            reason=reason,
            before_bytes=before,
            after_bytes=after,
            duration_s=duration_s,
            unix_s=self._clock.wall(),
            objects=objects,
            error=f"{off}; it is switched off" if off else error,
        )
        self._learn(action, outcome)
        return outcome

    def _judge(self, action: Action, error: str, *, worse: bool) -> str:
        """Why it is switched off from now on; "" where it is not."""
        record = self._record(action)
        record.worse = record.worse + 1 if worse else 0
        if action.foreign and not record.off:
            record.off = error or (f"memory was worse after it {TRIES} times running" if record.worse >= TRIES else "")
            return record.off
        return ""

    def rest(self) -> None:
        """The level has fallen: those that abstained may try again next time."""
        for record in self._records.values():
            record.useless = 0

    def _learn(self, action: Action, outcome: Outcome) -> None:
        record = self._record(action)
        freed, before = outcome.freed_bytes, outcome.before_bytes
        helped = freed is not None and before is not None and freed >= before * USELESS_RATIO
        record.useless = 0 if helped else min(record.useless + 1, MOST_USELESS)
        rest_s = action.cooldown_s
        if not helped:
            rest_s = max(rest_s, min(rest_s * 2**record.useless, LONGEST_REST_S))
        now_s = self._clock.monotonic()
        record.due_s = now_s + rest_s
        if action.holds_gil and self._gil_share > 0:
            # The next one is thought to take as long as the longest of late: the share is kept before it, not after.
            record.spent_s += outcome.duration_s
            record.pause_s = max(outcome.duration_s, record.pause_s / 2)
            record.share_due_s = now_s + record.pause_s / self._gil_share
        if freed is not None:
            per_s = max(freed, 0) / max(outcome.duration_s, SHORTEST_S)
            record.per_s = per_s if record.per_s is None else (record.per_s + per_s) / 2

    def _why_not(self, action: Action, *, urgent: bool) -> str | None:
        record, now_s = self._record(action), self._clock.monotonic()
        if record.off:
            return self._off(action)
        if now_s < record.share_due_s:
            return "it has had its share of wall time"
        if record.useless >= TRIES and not urgent:
            return f"it freed nothing {record.useless} times running"
        if now_s < record.due_s and not urgent:
            return "it is resting"
        return self._unsafe(action)

    def would_copy(self) -> bool:
        """Whether touching every object would copy pages that forked processes share. Costs a file per thread."""
        return gc.get_freeze_count() < FROZEN_OBJECTS and self._forked()

    def _unsafe(self, action: Action) -> str | None:
        if action.fork_unsafe and self.would_copy():
            return "among forked processes whose heap is not frozen it would copy every shared page"
        return None

    def _skip(self, action: Action, reason: str, why: str) -> Outcome:
        return Outcome(
            action=action.name,
            reason=reason,
            before_bytes=None,
            after_bytes=None,
            duration_s=0.0,
            unix_s=self._clock.wall(),
            skipped=why,
        )


def _rank(action: Action) -> int:
    return -action.priority
