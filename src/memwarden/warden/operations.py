"""Operations: with-statement, `async with` and decorator; before, after, sampled peak, duration (row M11).

`Operations` is what a Warden keeps of them: which are in flight, and the last ones that ended. The loop samples their
peak at each tick. What is not here: how often the loop ticks while some are in flight (`busy` tells it).
"""

from __future__ import annotations

import threading
from collections import deque

from memwarden.facts import Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from memwarden.blackbox import BlackBox
    from memwarden.ports import Clock
    from memwarden.warden import Warden

    F = TypeVar("F", bound=Callable[..., Any])

# While operations are in flight, and a moment longer, their peak is sampled at least so often: a thousand short ones a
# second must not wake the loop a thousand times.
OPERATION_S = 0.25
BUSY_S = 1.0
RECENT_OPERATIONS = 100


class Operations:
    """Those of one life of a Warden; a forked child begins with new ones, for these may be half-written there."""

    def __init__(self, *, clock: Clock, rss_bytes: Callable[[], int | None]) -> None:
        self._clock, self._rss_bytes = clock, rss_bytes
        self.in_flight: set[Running] = set()
        self.recent: deque[Operation] = deque(maxlen=RECENT_OPERATIONS)
        self._busy_until_s = float("-inf")
        self._ended, self._counted = 0, 0.0

    def busy(self) -> bool:
        """Whether some are in flight or were a moment ago."""
        return bool(self.in_flight) or self._clock.monotonic() < self._busy_until_s

    def sample(self, rss_bytes: int | None) -> None:
        """One look at resident memory for all that are in flight."""
        for each in tuple(self.in_flight):
            each.sample(rss_bytes)

    def count(self, work: float) -> None:
        """So much work was done, whatever its unit: from now on that is counted, and not operations."""
        # Two threads at once may lose some. Who reads it must bear that: a lock here would be paid by every request.
        self._counted += work

    def work(self) -> float | None:
        """The work done so far: what was counted, else the operations that ended; None where there were none."""
        return self._counted or self._ended or None

    def begin(self, operation: Running, box: BlackBox | None) -> None:
        """It is in flight from now on, and stands in the black box, where there is one."""
        self.in_flight.add(operation)  # before looking for others: of two that begin together one must see the other
        if len(self.in_flight) > 1:
            for each in tuple(self.in_flight):
                each.overlapped = True
        operation.start_s = self._clock.monotonic()
        operation.before_bytes = self._rss_bytes()
        operation.sample(operation.before_bytes)
        operation.box = box
        if box is not None:
            operation.slot = box.begin(
                self._clock.wall(), operation.start_s, operation.name, operation.before_bytes, threading.get_ident()
            )

    def end(self, operation: Running, box: BlackBox | None, *, failed: bool) -> Operation:
        """It has ended: what was seen of it. In a box that is no longer this process's nothing is written."""
        after = self._rss_bytes()
        operation.sample(after)
        self.in_flight.discard(operation)
        now_s = self._clock.monotonic()
        self._busy_until_s = now_s + BUSY_S
        self._ended += 1
        if box is not None and operation.box is box:
            box.end(operation.slot)
        operation.box = None
        found = Operation(
            name=operation.name,
            before_bytes=operation.before_bytes,
            after_bytes=after,
            peak_bytes=operation.peak_bytes,
            duration_s=now_s - operation.start_s,
            samples=operation.samples,
            overlapped=operation.overlapped,
            failed=failed,
        )
        self.recent.append(found)
        return found


class Running:
    """One use of `Warden.operation`; as a decorator it makes a fresh one for every call."""

    __slots__ = (
        "before_bytes",
        "box",
        "name",
        "overlapped",
        "peak_bytes",
        "result",
        "samples",
        "slot",
        "start_s",
        "warden",
    )

    def __init__(self, warden: Warden, name: str) -> None:
        self.warden = warden
        self.name = str(name)
        self.result: Operation | None = None
        self._reset()

    def _reset(self) -> None:
        self.before_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.samples = 0
        self.overlapped = False
        self.box: BlackBox | None = None
        self.slot: int | None = None
        self.start_s = 0.0

    def sample(self, rss_bytes: int | None) -> None:
        """One look at resident memory while it is in flight."""
        if rss_bytes is not None:
            self.samples += 1
            if self.peak_bytes is None or rss_bytes > self.peak_bytes:
                self.peak_bytes = rss_bytes

    def __enter__(self) -> Self:
        self._reset()
        if self.warden.config.enabled:
            self.warden._begin(self)  # noqa: SLF001  one class in two halves
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        failed = kind is not None
        enabled = self.warden.config.enabled
        self.result = self.warden._end(self, failed=failed) if enabled else _unmeasured(self.name, failed=failed)  # noqa: SLF001

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, at)

    def __call__(self, function: F) -> F:
        return _wrap(self.warden, self.name, function)


def _wrap(warden: Warden, name: str, function: F) -> F:
    from functools import wraps

    if is_coroutine_function(function):

        @wraps(function)
        async def measured_async(*args: Any, **kwargs: Any) -> Any:
            with Running(warden, name):
                return await function(*args, **kwargs)

        return measured_async  # type: ignore[return-value]  # the same signature by construction

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        with Running(warden, name):
            return function(*args, **kwargs)

    return measured  # type: ignore[return-value]  # the same signature by construction


def is_coroutine_function(function: Any) -> bool:
    """CO_COROUTINE, as inspect.iscoroutinefunction tests it; inspect itself would cost 1.4 MiB."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return bool(getattr(code, "co_flags", 0) & 0x80)


def _unmeasured(name: str, *, failed: bool) -> Operation:
    return Operation(
        name=name, before_bytes=None, after_bytes=None, peak_bytes=None, duration_s=0.0, samples=0, overlapped=False,
        failed=failed,
    )  # fmt: skip
