"""The books of a pool: which objects there are, who has them since when and where, and who waits.

Pure: it calls nothing of the application, reads no clock and takes no lock. `Pool` and `AsyncPool` drive it and do what
must be done outside of it: make, check and end objects. Their lock is held around each method but `take` and `put`:
those move an entry by one operation of a list or a dict, which is atomic, and look at the queue again afterwards, as
whoever queues up looks at the idle ones again; one of the two sees the other.
"""

from __future__ import annotations

from collections import deque

from memwarden.facts import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

# Accidents remembered for whoever looks for the leak; a program that loses every object is bounded too.
MOST_LOST = 100
_NEVER = float("inf")


class Borrow(Fact):
    """An object that is borrowed, or never came back: taken at `site` ("file:line, in function"), `held_s` ago.

    `site` is empty where the pool keeps no statistics.
    """

    site: str
    held_s: float


class PoolStatistics(Fact):
    """What a pool has and did. Counts since it was made; times in seconds, sizes in bytes.

    `hit_rate` (0-1) is the share of borrowings that needed no new object, None before the first. `waits` had to wait,
    `timed_out` in vain. `invalid` objects were ended because a check or a reset failed, `lost` were dropped without
    being returned. `held_bytes` is the size of all its objects, where their size is known.
    """

    active: int
    idle: int
    making: int
    waiting: int
    min_size: int
    max_size: int
    acquired: int
    hit_rate: float | None
    created: int
    destroyed: int
    failed: int
    invalid: int
    lost: int
    waits: int
    timed_out: int
    mean_hold_s: float | None
    held_bytes: int


class Entry:
    """One object. The entry keeps it while it is idle; while it is out only a weak reference is kept (`ref`).

    `keep` is the object itself where it cannot be referenced weakly (`ref` is None then), else None. `due_s` is when it
    must be looked at before it may be handed out: the earlier of its next check and its end of life.
    """

    __slots__ = (
        "at", "checked_s", "code", "dies_s", "due_s", "idle_s", "keep", "key", "obj", "out_s", "ref", "size_bytes",
        "told_s",
    )  # fmt: skip

    def __init__(self, obj: Any, ref: Callable[[], Any] | None, size_bytes: int) -> None:
        self.obj = obj
        self.key = id(obj)
        self.keep = obj if ref is None else None
        self.ref = ref
        self.size_bytes = size_bytes
        self.code: CodeType | None = None
        self.at = 0
        self.out_s = self.idle_s = self.checked_s = self.told_s = 0.0
        self.dies_s = self.due_s = _NEVER

    def site(self) -> str:
        """Where it was taken, in words; empty where that was not kept."""
        return site_of(self.code, self.at)


class Turn:
    """Somebody who waits: for an object (`entry`) or for room to make one (`may_make`), whichever comes first."""

    __slots__ = ("at", "code", "entry", "may_make", "over", "wake")

    def __init__(self, wake: Callable[[], object], code: CodeType | None, at: int) -> None:
        self.wake = wake
        self.code = code
        self.at = at
        self.entry: Entry | None = None
        self.may_make = False
        self.over = False


class Core:
    """The objects of one pool by identity, the idle ones in the order in which they came back, and the queue.

    `len(entries) + making` never exceeds `max_size` (resized down, it falls as objects come back). Nobody waits while
    there is an idle object or room to make one. An entry is in `idle`, or in `out` by the identity of its object, or
    with somebody who checks or ends it.
    """

    __slots__ = (
        "acquired", "check_every_s", "closed", "created", "destroyed", "entries", "failed", "held_bytes", "idle",
        "invalid", "lost", "lost_at", "making", "max_size", "min_size", "missed", "odd", "out", "queue", "timed_out",
        "used_s", "waits",
    )  # fmt: skip

    def __init__(self, min_size: int, max_size: int, check_every_s: float) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.check_every_s = check_every_s
        self.entries: dict[int, Entry] = {}
        self.idle: list[Entry] = []  # always the same list: who appends to it holds no lock
        self.out: dict[int, Entry] = {}
        self.queue: deque[Turn] = deque()
        self.making = 0
        self.closed = False
        self.odd = False  # closed, or more objects than there may be
        self.held_bytes = 0
        self.acquired = self.missed = self.created = self.destroyed = self.failed = self.invalid = 0
        self.waits = self.timed_out = self.lost = 0
        self.used_s = 0.0
        self.lost_at: deque[Borrow] = deque(maxlen=MOST_LOST)

    # --- borrowing and returning ---------------------------------------------------------------------------

    def take(self, now_s: float, code: CodeType | None, at: int) -> Entry | None:
        """The one that came back last; None where none is idle or others wait. Needs no lock."""
        if self.queue:
            return None
        return self._take(now_s, code, at)

    def _take(self, now_s: float, code: CodeType | None, at: int) -> Entry | None:
        try:
            entry = self.idle.pop()
        except IndexError:
            return None
        entry.out_s = now_s
        entry.code = code
        entry.at = at
        self.out[entry.key] = entry
        self.acquired += 1
        return entry

    def put(self, entry: Entry, now_s: float) -> bool:
        """It came back and is out of `out` already. False where `put_late` must do it. Needs no lock.

        Where it is true and `queue` or `odd` is set afterwards, `tidy` must be called.
        """
        if self.queue or self.odd or now_s >= entry.dies_s:
            return False
        self.used_s += now_s - entry.out_s
        entry.idle_s = now_s
        self.idle.append(entry)
        return True

    def put_late(self, entry: Entry, now_s: float) -> list[Entry]:
        """It came back while others wait, or too old, or one too many: what must be ended."""
        self.used_s += now_s - entry.out_s
        if now_s >= entry.dies_s or self.closed or len(self.entries) > self.max_size:
            self.drop(entry)
            return [entry]
        entry.idle_s = now_s
        self.idle.append(entry)
        return self.tidy()

    def tidy(self) -> list[Entry]:
        """Serve whoever waits; what must be ended because the pool is closed or has too many."""
        self.serve()
        over = []
        while self.idle and (self.closed or len(self.entries) > self.max_size):
            entry = self.evict()
            if entry is not None:
                over.append(entry)
        return over

    # --- making --------------------------------------------------------------------------------------------

    def claim(self) -> bool:
        """Room to make one more, from now on counted; false where there is none."""
        if self.closed or self.queue or len(self.entries) + self.making >= self.max_size:
            return False
        self.making += 1
        return True

    def unclaim(self) -> None:
        """Nothing was made; whoever is next may try."""
        self.making -= 1
        self.serve()

    def adopt(self, entry: Entry, now_s: float, lives_s: float) -> bool:
        """A new object in the room that was claimed; false where it is in the pool already."""
        self.making -= 1
        if entry.key in self.entries:
            self.failed += 1
            self.serve()
            return False
        self.created += 1
        self.entries[entry.key] = entry
        self.held_bytes += entry.size_bytes
        entry.dies_s = now_s + lives_s
        entry.out_s = now_s
        self.checked(entry, now_s)
        return True

    def lend(self, entry: Entry, code: CodeType | None, at: int) -> None:
        """The new one goes to whoever had it made."""
        self.acquired += 1
        self.missed += 1
        entry.code = code
        entry.at = at
        self.out[entry.key] = entry

    def checked(self, entry: Entry, now_s: float) -> None:
        """It was found to be good."""
        entry.checked_s = now_s
        entry.due_s = min(entry.dies_s, now_s + self.check_every_s)

    # --- waiting -------------------------------------------------------------------------------------------

    def queue_up(self, turn: Turn) -> None:
        """Join the queue; it may be served at once."""
        self.waits += 1
        self.queue.append(turn)
        self.serve()

    def leave(self, turn: Turn) -> None:
        """It waits no longer. What it was given just before is still its own."""
        if not turn.over:
            turn.over = True
            if turn in self.queue:
                self.queue.remove(turn)

    def serve(self) -> None:
        """Hand what there is to the first in the queue, and so on: an idle object, else room to make one."""
        queue = self.queue
        while queue:
            turn = queue[0]
            if not self.closed:
                turn.entry = self._take(self.idle[-1].idle_s if self.idle else 0.0, turn.code, turn.at)
                if turn.entry is None:
                    if len(self.entries) + self.making >= self.max_size:
                        return
                    self.making += 1
                    turn.may_make = True
            queue.popleft()
            turn.over = True
            turn.wake()

    # --- ending --------------------------------------------------------------------------------------------

    def drop(self, entry: Entry) -> None:
        """It is no longer of the pool; its room is free."""
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
            self.out.pop(entry.key, None)
            self.destroyed += 1
            self.held_bytes -= entry.size_bytes
            self.odd = self.closed or len(self.entries) > self.max_size
            self.serve()

    def vanished(self, entry: Entry, now_s: float) -> None:
        """Its borrower dropped it: it will never come back."""
        self.lost += 1
        self.lost_at.append(Borrow(site=entry.site(), held_s=max(0.0, now_s - entry.out_s)))
        self.drop(entry)

    def surplus(self, now_s: float, max_idle_s: float) -> list[Entry]:
        """Take out the idle ones that are past their life, too many, or idle for too long and not of the least."""
        over = []
        for each in list(self.idle):
            idle_long = len(self.entries) > self.min_size and now_s - each.idle_s >= max_idle_s
            if now_s >= each.dies_s or len(self.entries) > self.max_size or idle_long:
                over += self._pick(each)
        return over

    def _pick(self, entry: Entry) -> list[Entry]:
        try:
            self.idle.remove(entry)
        except ValueError:  # lent meanwhile
            return []
        self.drop(entry)
        return [entry]

    def evict(self) -> Entry | None:
        """Take out the idle one that was used least recently, whatever the least size is."""
        try:
            entry = self.idle.pop(0)
        except IndexError:
            return None
        self.drop(entry)
        return entry

    def close(self) -> list[Entry]:
        """Nothing is lent any more; who waits is woken. What must be ended."""
        self.closed = self.odd = True
        return self.tidy()

    def resize(self, min_size: int, max_size: int) -> list[Entry]:
        """Other bounds; what must be ended."""
        self.min_size, self.max_size = min_size, max_size
        self.odd = self.closed or len(self.entries) > max_size
        return self.tidy()

    def due(self, began_s: float) -> Entry | None:
        """Take one out that is idle and due for its check. It is neither idle nor borrowed meanwhile."""
        for entry in list(self.idle):
            if began_s >= entry.checked_s + self.check_every_s:
                try:
                    self.idle.remove(entry)
                except ValueError:  # lent meanwhile
                    continue
                return entry
        return None

    def passed(self, entry: Entry, now_s: float) -> list[Entry]:
        """It passed the check and goes back to its place; what must be ended."""
        self.checked(entry, now_s)
        place = next((n for n, each in enumerate(self.idle) if each.idle_s > entry.idle_s), len(self.idle))
        self.idle.insert(place, entry)
        return self.tidy()

    def forget(self) -> list[Any]:
        """In a forked child: nothing is the pool's any more, nobody waits. The objects, so that somebody keeps them."""
        inherited = [
            each.obj if each.obj is not None or each.ref is None else each.ref() for each in self.entries.values()
        ]
        self.entries.clear()
        self.idle.clear()
        self.out.clear()
        self.queue.clear()
        self.making = self.held_bytes = 0
        return [each for each in inherited if each is not None]

    # --- telling -------------------------------------------------------------------------------------------

    def borrowed(self) -> list[Entry]:
        """Those that are borrowed, the longest first."""
        return sorted(self.out.copy().values(), key=lambda each: each.out_s)

    def statistics(self) -> PoolStatistics:
        """The figures as they are."""
        acquired, came_back = self.acquired, self.acquired - len(self.out)
        idle = len(self.idle)
        return PoolStatistics(
            active=len(self.entries) - idle, idle=idle, making=self.making, waiting=len(self.queue),
            min_size=self.min_size, max_size=self.max_size, acquired=acquired,
            hit_rate=(acquired - self.missed) / acquired if acquired else None,
            created=self.created, destroyed=self.destroyed, failed=self.failed, invalid=self.invalid, lost=self.lost,
            waits=self.waits, timed_out=self.timed_out,
            mean_hold_s=self.used_s / came_back if came_back else None, held_bytes=self.held_bytes,
        )  # fmt: skip


def site_of(code: CodeType | None, at: int) -> str:
    """An instruction's place as "file:line, in function"; empty where it is not known."""
    if code is None:
        return ""
    lines = (line for start, end, line in code.co_lines() if start <= at < end and line is not None)
    return f"{code.co_filename}:{next(lines, code.co_firstlineno)}, in {code.co_qualname}"
