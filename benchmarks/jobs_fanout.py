"""Ten million items fanned out: the parent's memory, the size of a message, and the pace; parts through the runner."""

from __future__ import annotations

import tempfile
import time
from collections import deque

from benchmarks import Figure
from memwarden.jobs import Abilities, Ledger, QueueCount, Runner, job, perform, submit
from memwarden.sense import Machine
from memwarden.store import Store

ITEMS = 10_000_000
BYTES_PER_ITEM = 1 << 16
LIMIT = "1G"
PARTS = 100
MIB = 1 << 20


def _numbers(count: int) -> range:
    return range(count)


def _added(so_far: int, more: int) -> int:
    return so_far + more


@job(items=_numbers, limit=LIMIT, chunk=100_000, bytes_per_item=BYTES_PER_ITEM, reduce=_added)
def count_all(chunk: list[int]) -> int:
    """Counts them."""
    return len(chunk)


@job(items=_numbers, limit="256M", chunk=1000, reduce=_added)
def count_some(chunk: list[int]) -> int:
    """Counts them."""
    return len(chunk)


class Inline:
    """The plainest engine: messages in a list."""

    name = "inline"
    can = Abilities(fresh=True)

    def __init__(self) -> None:
        self.queue: deque[str] = deque()
        self.longest = self.most = 0

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """Keep it."""
        self.queue.append(text)
        self.longest, self.most = max(self.longest, len(text)), max(self.most, len(self.queue))

    def statistics(self) -> tuple[QueueCount, ...]:
        """None are asked for."""
        return ()


def main() -> list[Figure]:
    """In this process, so that what grows is seen; then parts of a real runner."""
    return [*_fan_out(), *_pace()]


def _fan_out() -> list[Figure]:
    resident = Machine().number("/proc/self/statm", index=1, scale=4096)
    engine = Inline()
    with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ledger = Ledger(store)
        submit(count_all, {"count": 1000}, engine=engine, ledger=ledger)
        while engine.queue:
            perform(engine.queue.popleft(), engine=engine, ledger=ledger)
        base = resident.value() or 0
        root = submit(count_all, {"count": ITEMS}, engine=engine, ledger=ledger)
        peak, start_s = base, time.process_time()
        while engine.queue:
            perform(engine.queue.popleft(), engine=engine, ledger=ledger)
            peak = max(peak, resident.value() or 0)
        took_s = time.process_time() - start_s
        status = ledger.status(root)
        assert status is not None
        assert ledger.result(root) == ITEMS
        parts = sum(status.parts.values())
    return [
        Figure(f"memory that grows while {ITEMS:,} items are fanned out and done", (peak - base) / MIB, " MiB",
               at_most=16.0, beside=f"{parts} parts, {took_s:.1f} s CPU time"),
        Figure("the longest message", engine.longest, " bytes", at_most=1024),
        Figure("messages in flight at most", engine.most, "", at_most=65),
    ]  # fmt: skip


def _pace() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, Runner(folder, memory="1G", workers=2, start="fork") as runner:
        for _ in range(PARTS):
            runner.submit(count_some, {"count": 1000})
        start_s = time.perf_counter()
        runner.run(until_idle=True)
        took_s = time.perf_counter() - start_s
    each_ms = took_s / (2 * PARTS) * 1000
    return [Figure("a part of the local engine, its process and cgroup included", each_ms, " ms")]
