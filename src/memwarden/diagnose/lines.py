"""Allocation tracking by source line, for a bounded time: `tracemalloc` switched on, two looks, switched off.

While it is on, every allocation of Python's is recorded: a JSON loop, which does little else, ran 7-12 times slower
with one frame and 14-33 times with ten (CPython 3.11 and 3.13, several runs), and memory in use may double. The last
resort, for one worker out of several. What was allocated before it began is not seen; nor is what C code takes from
malloc by itself.
"""

from __future__ import annotations

from threading import Event

from memwarden.errors import ConfigError
from memwarden.facts import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.ports import Clock

LONGEST_S = 600.0
MOST_FRAMES = 25
# The first look is taken after this share of the time: caches and buffers that fill once are then there already.
FIRST_LOOK = 1 / 3

_Sums = dict[tuple[str, int], tuple[int, int]]  # (file, line): (bytes, blocks)


class LineRow(Fact):
    """One line of source: bytes and blocks that it allocated and that were still held, and their growth.

    The growth is that from the first look to the second.
    """

    file: str
    line: int
    held_bytes: int
    held_blocks: int
    grown_bytes: int
    grown_blocks: int


class Lines(Fact):
    """What was allocated while it was tracked and held at the end: by bytes held, and by growth.

    `tracked_bytes` is the sum over all lines, `own_bytes` what the tracking itself took beside it.
    """

    held: tuple[LineRow, ...]
    grown: tuple[LineRow, ...]
    tracked_bytes: int
    own_bytes: int
    duration_s: float
    frames: int


def track_lines(seconds: float, *, clock: Clock, frames: int = 1, top: int = 20, stop: Event | None = None) -> Lines:
    """Track for `seconds` (at most ten minutes, or until `stop` is set) and switch it off again.

    Blocks the caller; the program goes on in its other threads. Refuses where somebody else tracks already: it would
    be switched off for them. Raises ConfigError.
    """
    import tracemalloc

    _check(seconds, frames)
    event = stop if stop is not None else Event()
    start_s = clock.monotonic()
    tracemalloc.start(frames)
    try:
        clock.wait(event, seconds * FIRST_LOOK)
        first = _look()
        clock.wait(event, seconds * (1 - FIRST_LOOK))
        second, own = _look(), tracemalloc.get_tracemalloc_memory()
    finally:
        tracemalloc.stop()
    return _lines(first, second, top=top, own_bytes=own, duration_s=clock.monotonic() - start_s, frames=frames)


def _check(seconds: float, frames: int) -> None:
    import tracemalloc

    if tracemalloc.is_tracing():
        raise ConfigError("tracemalloc is on already", where="track_lines", mend="stop it first: tracemalloc.stop()")
    if not 0 < seconds <= LONGEST_S:
        raise ConfigError(f"{seconds!r} is no usable time", where="seconds", mend=f"give at most {LONGEST_S:.0f}")
    if not 1 <= frames <= MOST_FRAMES:
        raise ConfigError(f"{frames!r} is no usable depth", where="frames", mend=f"give 1 to {MOST_FRAMES}")


def _look() -> _Sums:
    """The sums by line; the snapshot, which is large, is let go of on return."""
    import tracemalloc

    ours = (tracemalloc.Filter(False, __file__), tracemalloc.Filter(False, tracemalloc.__file__))
    found = tracemalloc.take_snapshot().filter_traces(ours).statistics("lineno")
    return {(each.traceback[0].filename, each.traceback[0].lineno): (each.size, each.count) for each in found}


def _lines(first: _Sums, second: _Sums, *, top: int, own_bytes: int, duration_s: float, frames: int) -> Lines:
    rows = [_row(place, sums, first.get(place, (0, 0))) for place, sums in second.items()]
    grown = [row for row in rows if row.grown_bytes > 0]
    return Lines(
        held=_most(rows, [row.held_bytes for row in rows], top),
        grown=_most(grown, [row.grown_bytes for row in grown], top),
        tracked_bytes=sum(row.held_bytes for row in rows),
        own_bytes=own_bytes,
        duration_s=duration_s,
        frames=frames,
    )


def _row(place: tuple[str, int], now: tuple[int, int], before: tuple[int, int]) -> LineRow:
    return LineRow(
        file=place[0],
        line=place[1],
        held_bytes=now[0],
        held_blocks=now[1],
        grown_bytes=now[0] - before[0],
        grown_blocks=now[1] - before[1],
    )


def _most(rows: Sequence[LineRow], sizes: Sequence[int], top: int) -> tuple[LineRow, ...]:
    order = sorted(range(len(rows)), key=lambda i: (-sizes[i], rows[i].file, rows[i].line))
    return tuple(rows[i] for i in order[:top])
