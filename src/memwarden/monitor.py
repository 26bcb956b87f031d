"""A sample a minute, an alert, a plain rule: the periodic monitor (row B6), for those who want no more than that.

A Warden watches by itself, as often as headroom asks for. This is a clock beside it: every `interval` one record in
the log, the last `samples` of them kept, an alert above a share of the limit, and the plain rule that memory grew by a
factor over all that is kept. Whether it *leaks* is another question, with another answer (`Warden`, `analyze`).
"""

from __future__ import annotations

import threading
from collections import deque
from functools import wraps
from os import getpid

from memwarden.clock import Wake
from memwarden.errors import ConfigError
from memwarden.facts import Fact
from memwarden.units import format_bytes, format_ratio, parse_duration, parse_ratio
from memwarden.warden import Warden
from memwarden.warden.operations import is_coroutine_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from memwarden.facts import Operation, Reading
    from memwarden.ports import Clock, Machine

    F = TypeVar("F", bound=Callable[..., Any])

# An alert is over when memory fell so far below its line.
LEAVE_GAP = 0.05


class Sample(Fact):
    """One record.

    Python has no heap of a size of its own: `heap_used_bytes` is the process's anonymous resident memory, where every
    heap lives, and `heap_total_bytes` is the limit up to which it may grow.

    `difference_bytes` is against the sample before. `used_percent` is what counts against the limit, as the kernel
    counts: the alert looks at that. None is unknown.
    """

    unix_s: float
    heap_used_bytes: int | None
    heap_total_bytes: int | None
    heap_percent: float | None
    difference_bytes: int | None
    rss_bytes: int | None
    used_percent: float | None


class PeriodicMonitor:
    """Samples every `interval` (60 s), keeps `samples` (60) of them, tells `on_alert(sample)` above `alert` (70 %).

    `on_growth(sample, factor)` is told when memory grew by the factor `growth` (1.5) from the first to the last of all
    that is kept, once that is full; None switches the rule off. Each is told once until it is over. What a callback
    raises is logged. With no Warden it has one of its own that does not run and never acts; `limit` is for that.
    Raises ConfigError on values that cannot be used.
    """

    def __init__(
        self,
        warden: Warden | None = None,
        *,
        interval: str | float = 60.0,
        samples: int = 60,
        alert: str | float = 0.70,
        growth: float | None = 1.5,
        on_alert: Callable[[Sample], object] | None = None,
        on_growth: Callable[[Sample, float], object] | None = None,
        limit: str | float | None = None,
        machine: Machine | None = None,
        clock: Clock | None = None,
    ) -> None:
        if warden is not None and (limit is not None or machine is not None or clock is not None):
            mend = "give a Warden, or a limit without one"
            raise ConfigError("a Warden has its own limit, machine and clock", where="PeriodicMonitor", mend=mend)
        self.interval_s = parse_duration(interval, where="interval")
        self.alert = parse_ratio(alert, where="alert")
        if self.interval_s <= 0:
            raise ConfigError(f"{interval!r} is no interval", where="interval", mend="write a duration such as 60s")
        if not isinstance(samples, int) or isinstance(samples, bool) or not 2 <= samples <= 1_000_000:
            raise ConfigError(f"{samples!r} is no number of samples", where="samples", mend="give 2 or more")
        if growth is not None and not (isinstance(growth, (int, float)) and 1 < growth < float("inf")):
            raise ConfigError(f"{growth!r} is no factor", where="growth", mend="give a number above 1, or None")
        if warden is None:
            warden = Warden(limit, machine=machine, clock=clock, relieve=False, blackbox=False)
        self.warden = warden
        self.growth = growth
        self._clock = warden.clock
        self._tell_alert = on_alert
        self._tell_growth = on_growth
        self._kept: deque[Sample] = deque(maxlen=samples)
        self._alerting = self._growing = False
        self._thread: threading.Thread | None = None
        self._stop = Wake()  # a signal handler may stop it
        self._pid = getpid()
        self._log: Any = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those that are kept, oldest first."""
        return tuple(self._kept)

    @property
    def running(self) -> bool:
        """Whether it samples by itself. In a forked child it does not until it is started there."""
        return self._thread is not None and self._pid == getpid()

    def start(self) -> Self:
        """Take a sample and go on in a thread of its own. A second start is a no-op."""
        if not self.running:
            self._stop, self._pid = Wake(), getpid()
            self._sample_or_log()
            self._thread = threading.Thread(target=self._run, name="memwarden-monitor", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread. What was kept stays."""
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None and self._pid == getpid() and thread is not threading.current_thread():
            thread.join(timeout=10.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        stop = self._stop
        while not self._clock.wait(stop, self.interval_s):
            self._sample_or_log()

    def _sample_or_log(self) -> None:
        try:
            self.sample()
        except Exception:  # noqa: BLE001  a machine that cannot be read now may be later; the next minute comes
            self._need_log().exception("a sample failed; the monitor goes on")

    def sample(self) -> Sample:
        """Take one now, log it, keep it, and tell whom it concerns."""
        reading = self.warden.check().reading
        found = _sample_of(reading, self._kept[-1] if self._kept else None)
        self._kept.append(found)
        self._need_log().info(
            "heap %s of %s (%s), %s since the last, RSS %s", format_bytes(found.heap_used_bytes),
            format_bytes(found.heap_total_bytes), _percent(found.heap_percent), format_bytes(found.difference_bytes),
            format_bytes(found.rss_bytes), extra=found.as_dict(),
        )  # fmt: skip
        self._judge_alert(found)
        self._judge_growth(found)
        return found

    def _judge_alert(self, sample: Sample) -> None:
        if sample.used_percent is None:
            return
        line = self.alert - LEAVE_GAP if self._alerting else self.alert
        before, self._alerting = self._alerting, sample.used_percent / 100 > line
        if self._alerting and not before:
            self._need_log().warning(
                "memory is at %s of the limit, above %s", _percent(sample.used_percent), format_ratio(self.alert)
            )
            self._call(self._tell_alert, sample)

    def _judge_growth(self, sample: Sample) -> None:
        first, last = self._kept[0].heap_used_bytes, sample.heap_used_bytes
        if self.growth is None or len(self._kept) != self._kept.maxlen or not first or last is None:
            return
        factor = last / first
        before, self._growing = self._growing, factor >= self.growth
        if self._growing and not before:
            self._need_log().warning(
                "memory grew by a factor of %.2f over the last %d samples", factor, len(self._kept)
            )
            self._call(self._tell_growth, sample, factor)

    def _call(self, callback: Callable[..., object] | None, *arguments: object) -> None:
        try:
            if callback is not None:
                callback(*arguments)
        except Exception:  # noqa: BLE001  a user's callback may raise anything
            self._need_log().exception("a callback of the monitor failed; it goes on")

    def wrap_operation(self, function: F, *, name: str | None = None) -> F:
        """The function with a record in the log of every call: before, after, difference, peak, duration.

        For functions and coroutine functions; also as a decorator. `name` is the function's own if not given.
        """
        called = name if name is not None else getattr(function, "__qualname__", type(function).__name__)
        if is_coroutine_function(function):

            @wraps(function)
            async def measured_async(*args: Any, **kwargs: Any) -> Any:
                operation = self.warden.operation(called)
                try:
                    async with operation:
                        return await function(*args, **kwargs)
                finally:
                    self._log_operation(operation.result)

            return measured_async  # type: ignore[return-value]  # the same signature by construction

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            operation = self.warden.operation(called)
            try:
                with operation:
                    return function(*args, **kwargs)
            finally:
                self._log_operation(operation.result)

        return measured  # type: ignore[return-value]  # the same signature by construction

    def _log_operation(self, operation: Operation | None) -> None:
        if operation is not None:
            fields = {key: value for key, value in operation.as_dict().items() if key != "name"}
            self._need_log().info(
                "%s: RSS %s -> %s, peak %s, %.3f s%s%s", operation.name, format_bytes(operation.before_bytes),
                format_bytes(operation.after_bytes), format_bytes(operation.peak_bytes), operation.duration_s,
                ", others ran meanwhile" if operation.overlapped else "", ", failed" if operation.failed else "",
                extra={**fields, "operation": operation.name, "difference_bytes": operation.difference_bytes},
            )  # fmt: skip

    def _need_log(self) -> Any:
        if self._log is None:
            import logging

            self._log = logging.getLogger("memwarden.monitor")
        return self._log


def _sample_of(reading: Reading, before: Sample | None) -> Sample:
    heap, total = reading.around.anon_bytes, reading.limit_bytes
    earlier = before.heap_used_bytes if before is not None else None
    ratio = reading.usage_ratio
    return Sample(
        unix_s=reading.unix_s,
        heap_used_bytes=heap,
        heap_total_bytes=total,
        heap_percent=100 * heap / total if heap is not None and total else None,
        difference_bytes=heap - earlier if heap is not None and earlier is not None else None,
        rss_bytes=reading.rss_bytes,
        used_percent=None if ratio is None else 100 * ratio,
    )


def _percent(percent: float | None) -> str:
    return format_ratio(None if percent is None else percent / 100)
