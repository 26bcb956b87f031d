"""The bytes of a stream in the shared budget: promised before a chunk is filled, held while it lives, given back.

Where the budget is a size, the stream has it to itself. Where it is a `Budget`, others hold accounts in it too: a
chunk then takes at most half of what is free. The pressure level shrinks targets; on EMERGENCY the next chunk waits,
bounded, and then goes on as small as can be, because a stream that stands still for ever frees nothing either.
"""

from __future__ import annotations

import threading

from memwarden.budget import Budget
from memwarden.clock import SystemClock
from memwarden.errors import MemoryPressureError
from memwarden.facts import Level
from memwarden.flow.cutter import LEAST_TARGET_BYTES, Expansion, target_under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.flow.cutter import Chunk
    from memwarden.ports import Clock, Pressure

__all__ = ["DEFAULT_BUDGET", "Holding"]

# Row S1.
DEFAULT_BUDGET = "128M"
# A level is judged anew a few times a second at most.
LOOK_S = 0.25


class Holding:
    """One run of a stream: its account, its targets, and when it has to wait.

    `shares` is how many chunks may be in memory at once. `patience_s` bounds each wait for the budget (then a
    transient MemoryPressureError), `emergency_s` each wait for an emergency to pass. `stop` ends waits early.
    """

    def __init__(
        self,
        budget: str | float | Budget,
        *,
        name: str,
        shares: int = 1,
        pressure: Pressure | None = None,
        patience_s: float = 60.0,
        emergency_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._shared = isinstance(budget, Budget)
        self.budget = budget if isinstance(budget, Budget) else Budget(budget)
        self.clock: Clock = clock or SystemClock()
        self.pressure = pressure
        self.stop = threading.Event()
        self._account = self.budget.account(name)
        self._shares = shares
        self._patience_s = patience_s
        self._emergency_s = emergency_s
        self._expansion = Expansion()
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        self._closed = False
        self._before: int | None = None

    @property
    def level(self) -> Level:
        """As the pressure stands now."""
        verdict = None if self.pressure is None else self.pressure.verdict
        return Level.NORMAL if verdict is None else verdict.level

    @property
    def held_bytes(self) -> int:
        """What this run holds in the budget."""
        return self._account.held_bytes

    def target(self) -> int:
        """How large the next chunk may be, without a promise."""
        limit = self.budget.limit_bytes
        if limit is None:
            limit = Budget(DEFAULT_BUDGET).limit_bytes or 0
        found = target_under(self.pressure, limit, expansion=self._expansion.factor, shares=self._shares)
        free = self.budget.free_bytes
        if self._shared and free is not None:
            found = max(min(found, free // 2), min(found, LEAST_TARGET_BYTES))
        return found

    def reserve(self) -> int:
        """Have the next chunk's bytes promised; how many. Raises MemoryPressureError where they are not free."""
        self._wait_for_calm()
        self._look()
        size = self.target()
        try:
            self._account.reserve(size, timeout_s=0.0)
        except MemoryPressureError:
            self.budget.shed(size)
            self._account.reserve(size, timeout_s=self._patience_s)
        return size

    async def reserve_async(self) -> int:
        """The same, while the event loop goes on."""
        await self._wait_for_calm_async()
        self._look()
        size = self.target()
        try:
            await self._account.reserve_async(size, timeout_s=0.0)
        except MemoryPressureError:
            self.budget.shed(size)
            await self._account.reserve_async(size, timeout_s=self._patience_s)
        return size

    def settle(self, chunk: Chunk[object] | None, reserved: int) -> None:
        """The chunk is there: it holds its bytes, the rest of the promise is given back. None: there is no chunk."""
        with self._lock:
            if self._closed:
                return
            size = 0 if chunk is None else max(1, chunk.cut.bytes)
            if reserved > size:
                self._account.cancel(reserved - size)
            if chunk is None:
                return
            try:
                self._account.commit(size)
            except MemoryPressureError:  # one row above the target: it is there, and the budget holds what it can
                size = reserved
                if size:
                    self._account.commit(size)
            self._held[chunk.cut.number] = size

    def give_back(self, chunk: Chunk[object]) -> None:
        """The chunk is done with; once or more often."""
        with self._lock:
            size = self._held.pop(chunk.cut.number, 0)
            if size and not self._closed:
                self._account.release(size)
        self._learn(chunk.cut.bytes)

    def close(self) -> None:
        """Give everything back, wake whoever waits."""
        self.stop.set()
        with self._lock:
            self._closed = True
            self._held.clear()
        self._account.close()

    def _wait_for_calm(self) -> None:
        left = self._emergency_s
        while left > 0 and self.level >= Level.EMERGENCY and not self.stop.is_set():
            self.clock.wait(self.stop, min(LOOK_S, left))
            left -= LOOK_S

    async def _wait_for_calm_async(self) -> None:
        left = self._emergency_s
        while left > 0 and self.level >= Level.EMERGENCY and not self.stop.is_set():
            import asyncio

            await asyncio.sleep(min(LOOK_S, left))
            left -= LOOK_S

    def _look(self) -> None:
        self._before = self._resident()

    def _learn(self, chunk_bytes: int) -> None:
        """By how much the process grew with this chunk; not where others are in memory beside it."""
        before, after = self._before, self._resident()
        if self._shares == 1 and before is not None and after is not None:
            self._expansion.saw(chunk_bytes, after - before)

    def _resident(self) -> int | None:
        verdict = None if self.pressure is None else self.pressure.verdict
        return None if verdict is None else verdict.reading.rss_bytes
