from __future__ import annotations

from memwarden.facts import Level, Reading, Reason, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from memwarden.judge import Judge

_MIB = 1 << 20
_TYPICAL = {Level.NORMAL: 0.3, Level.WARNING: 0.76, Level.CRITICAL: 0.88, Level.EMERGENCY: 0.97}


def reading(
    used_bytes: int,
    limit_bytes: int | None = 512 * _MIB,
    *,
    monotonic_s: float = 1000.0,
    low_bytes: int | None = None,
) -> Reading:
    """A container's reading with these figures; what cannot be reclaimed is all of it unless said otherwise."""
    return Reading(
        monotonic_s=monotonic_s,
        unix_s=1_800_000_000.0 + monotonic_s,
        pid=4321,
        rss_bytes=used_bytes,
        used_bytes=used_bytes,
        used_low_bytes=used_bytes if low_bytes is None else low_bytes,
        limit_bytes=limit_bytes,
        limit_source="testing",
        scope="container",
        headroom_bytes=None if limit_bytes is None else limit_bytes - used_bytes,
        pressure_ratio=None if limit_bytes is None else used_bytes / limit_bytes,
    )


class _Constant:
    def __init__(self, verdict: Verdict) -> None:
        self.verdict: Verdict | None = verdict


def pressure(level: Level, *, limit_bytes: int = 512 * _MIB) -> _Constant:
    """A constant pressure for code that asks for one (`ports.Pressure`): no Warden, no loop."""
    found = reading(int(limit_bytes * _TYPICAL[level]), limit_bytes)
    reason = Reason(code="forced", text=f"{level.name} was forced by the test")
    return _Constant(Verdict(level=level, since_s=found.monotonic_s, reading=found, reasons=(reason,)))


def replay(judge: Judge, readings: Iterable[Reading]) -> Iterator[Verdict]:
    """Weigh recorded readings as the Warden would have: an incident becomes a test."""
    for each in readings:
        yield judge.weigh(each)
