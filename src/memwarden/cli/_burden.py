"""The throw-away process of `memwarden simulate`: takes memory at a rate, for real, and says how far it came.

Run as a script by its path, in isolated mode: it knows nothing of memwarden. Words: what, shape, size, rate, hold,
limit (0 for none). It writes a line per step and per change of state to standard output, and ends when its standard
input is closed: that is its parent's end, however the parent ends.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import time

# A tenth of a second is finer than what anybody watches it with.
STEP_S = 0.1
PAGE = mmap.PAGESIZE
# Below glibc's threshold for a mapping of its own (128 KiB, mallopt(3)): these come from malloc's heap.
MALLOC_BLOCK = 64 * 1024
# Small enough for Python's own allocator (512 bytes, obmalloc.c): 33 bytes of header and 456 of content.
PYTHON_BLOCK = 456
PYTHON_COST = 489 + 8  # and its place in the list
# A leak in real code is the small rest of much that is freed again.
GARBAGE = 3


def take(shape: str, size: int) -> list[object]:
    """About so many bytes, every page of them touched. Raises MemoryError."""
    if shape == "mmap":
        return [_mapped(size)]
    if shape == "malloc":
        return [_touched(bytearray(MALLOC_BLOCK)) for _ in range(max(size // MALLOC_BLOCK, 1))]
    return [bytes(PYTHON_BLOCK) for _ in range(max(size // PYTHON_COST, 1))]


def _mapped(size: int) -> mmap.mmap:
    try:
        # Python's default is a shared mapping, which no RLIMIT_DATA counts.
        block = mmap.mmap(-1, max(size, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # ENOMEM
        raise MemoryError from error
    for at in range(0, len(block), PAGE):
        block[at] = 1
    return block


def _touched(block: bytearray) -> bytearray:
    for at in range(0, len(block), PAGE):
        block[at] = 1
    return block


def say(state: str, taken: int) -> None:
    """One line to the parent."""
    os.write(1, f"{state} {taken}\n".encode())


def wait(seconds: float) -> None:
    """Wait, and end with the parent."""
    if select.select([0], [], [], max(seconds, 0))[0]:
        os._exit(0)


def grow(what: str, shape: str, size: int, rate: float, kept: list[object]) -> int:
    """Take it step by step; what was taken, which is less than all where memory was refused."""
    start_s, taken, told_s = time.monotonic(), 0, 0.0
    while taken < size:
        now_s = time.monotonic() - start_s
        step = min(size, int(rate * (now_s + STEP_S))) - taken
        if step > 0:
            try:
                if what == "leak":
                    for _ in range(GARBAGE):
                        take(shape, step)
                kept += take(shape, step)
            except MemoryError:
                return taken
            taken += step
            say("taken", taken)  # each step: whoever is killed in the first second came somewhere too
        if now_s - told_s >= 1:
            told_s = now_s
            say("growing", taken)
        wait(STEP_S)
    say("reached", taken)
    return taken


def main(words: list[str]) -> None:
    """Take, hold, and give back what is no leak."""
    what, shape, size, rate, hold_s, limit = words[0], words[1], *map(float, words[2:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    prefer_us()
    kept: list[object] = []
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    say("started", 0)
    taken = grow(what, shape, int(size), rate, kept)
    if taken < size:
        kept.clear()  # first, or there is no room to say it
        say("refused", taken)
        return
    end_s = time.monotonic() + hold_s
    while (left_s := end_s - time.monotonic()) > 0:
        wait(min(left_s, 1.0))
        say("holding", taken)
    if what == "pressure":
        kept.clear()
        say("released", 0)


def prefer_us() -> None:
    """Should it come to an OOM kill, let it be this process (proc(5), oom_score_adj)."""
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"1000")
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
