"""Which types there are more and more of while a leak is suspected: two censuses by type, compared (row M10).

The first census is taken when a leak is suspected, after the probe has taken the garbage away; the next when the
verdict is about to be looked at again. Types that grew as the process did are evidence, and are named in what is told.
A census takes its list with the GIL held (1 ms per 100,000 objects) and counts with the others having their turns, on
the thread of the loop and so never on an event loop. It rests in between, keeps off large heaps, little room and shared
pages, and is never taken from CRITICAL on.
"""

from __future__ import annotations

from memwarden.diagnose.census import census, compare
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.diagnose.census import Census, TypeGrowth
    from memwarden.facts import Reading
    from memwarden.findings import Findings
    from memwarden.ports import Clock

# In a heap of so many blocks some two million objects are tracked: their list stops the process for 20 ms.
MOST_BLOCKS = 4_000_000
# The list and the sums take 8 bytes an object and some; there must be many times as much room.
ROOM_PER_BLOCK_BYTES = 32
# For one suspicion: what no types bear witness to by then is in strings, buffers or C.
MOST = 6
NAMED = 5
# The frames, code and caches of the interpreter itself come and go: they name nobody.
_NOBODY = frozenset({"frame", "cell", "traceback", "generator", "coroutine", "builtin_function_or_method"})


class TypeWatch:
    """The censuses of one life. `blocks`: how many blocks Python's heap has; `forked`: whether pages are shared."""

    def __init__(
        self,
        findings: Findings,
        *,
        clock: Clock,
        blocks: Callable[[], int | None],
        forked: Callable[[], bool],
        count: Callable[[], Census] = census,
    ) -> None:
        self._findings, self._clock = findings, clock
        self._blocks, self._forked, self._count = blocks, forked, count
        self.reason = ""  # why none is taken
        self._forget()

    def _forget(self) -> None:
        self._first: Census | None = None
        self._first_s = 0.0
        self.taken = 0
        self._due_s = float("-inf")
        self._done = False

    def step(self, reading: Reading) -> None:
        """Take one where it would tell something now. Call it before and after the findings take a sample."""
        findings, now_s = self._findings, reading.monotonic_s
        if not findings.suspects:
            if self.taken:
                self._forget()
            return
        if self._done or self.taken >= MOST or now_s < self._due_s:
            return
        if self._first is not None and not findings.look_is_next(now_s):
            return
        self.reason = self._why_not(reading)
        if self.reason:
            self._due_s = now_s + 60.0  # asking costs a walk through the heap, too
            return
        self._take(now_s)

    def _take(self, now_s: float) -> None:
        before_s = self._clock.monotonic()
        found = self._count()
        self._due_s = now_s + (self._clock.monotonic() - before_s) / self._findings.share
        self.taken += 1
        if self._first is None:
            self._first, self._first_s = found, now_s
            return
        rows = [(_in_words(each), each.grown_bytes) for each in compare(self._first, found, top=20) if _is_one(each)]
        self._done = self._findings.grew(rows[:NAMED], passed_s=now_s - self._first_s)
        if self._done:
            self._first = None  # it is large

    def _why_not(self, reading: Reading) -> str:
        blocks, headroom = self._blocks(), reading.headroom_bytes
        if blocks is None:
            return "this Python does not say how many blocks its heap has"
        if blocks > MOST_BLOCKS:
            return f"a heap of {blocks:,} blocks would be stopped for too long"
        if headroom is not None and headroom < blocks * ROOM_PER_BLOCK_BYTES:
            return "there is too little room for the list of all objects"
        if self._forked():
            return "among forked processes whose heap is not frozen it would copy every shared page"
        return ""


def _is_one(grown: TypeGrowth) -> bool:
    """Whether there are more of it, and not only larger ones of something of the interpreter."""
    return grown.type not in _NOBODY and (grown.grown_count is None or grown.grown_count > 0)


def _in_words(grown: TypeGrowth) -> str:
    more = f"+{grown.grown_count:,}" if grown.grown_count is not None else f"{grown.after_count:,} now"
    return f"{grown.type} {more} (+{format_bytes(grown.grown_bytes)})"
