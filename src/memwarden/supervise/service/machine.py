"""The machine's memory as a whole: a reading that is judged like any other.

What is in use is what cannot be had without swapping (MemTotal - MemAvailable), which the kernel estimates
(Documentation/filesystems/proc.rst); it is both bounds, since what can be reclaimed is left out already.
"""

from __future__ import annotations

import os

from memwarden.facts import Reading
from memwarden.sense import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Clock, Machine

_SOURCE = "/proc/meminfo MemTotal"


def read_machine(machine: Machine, clock: Clock) -> Reading | None:
    """The machine now; None where it cannot be read."""
    try:
        found = parse.sizes(machine.read("/proc/meminfo"), (b"MemTotal", b"MemAvailable"))
    except OSError:
        return None
    total, available = found.get(b"MemTotal"), found.get(b"MemAvailable")
    if not total or available is None:
        return None
    limit, used = total * 1024, max(0, total - available) * 1024
    ratio = used / limit
    return Reading(
        monotonic_s=clock.monotonic(),
        unix_s=clock.wall(),
        pid=os.getpid(),
        rss_bytes=None,
        used_bytes=used,
        used_low_bytes=used,
        limit_bytes=limit,
        limit_source=_SOURCE,
        scope="machine",
        headroom_bytes=limit - used,
        pressure_ratio=ratio,
        pressure_low_ratio=ratio,
        usage_bytes=used,
    )
