"""Machine -> Reading: what memory there is, how much is used, and what the limit is.

Knows files and formats, and no thresholds: what a reading means is for `judge`, and the loop is in `warden` and
`supervise`. Names are loaded on first touch, so that a supervisor pays only for what it uses.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Clock
    from memwarden.ports import Machine as MachinePort
    from memwarden.sense.cgroup import Cgroup, find_cgroup
    from memwarden.sense.limit import Place, find_limit, find_place
    from memwarden.sense.machine import Machine, SystemClock
    from memwarden.sense.platform import Platform, identify
    from memwarden.sense.portable import PortableSensor
    from memwarden.sense.sensor import Sensor

_HOMES = {
    "Cgroup": "cgroup",
    "Machine": "machine",
    "Place": "limit",
    "Platform": "platform",
    "Sensor": "sensor",
    "SystemClock": "machine",
    "find_cgroup": "cgroup",
    "find_limit": "limit",
    "find_place": "limit",
    "identify": "platform",
}

__all__ = [
    "Cgroup", "Machine", "Place", "Platform", "Sensor", "SystemClock",
    "find_cgroup", "find_limit", "find_place", "identify", "make_sensor",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"memwarden.sense.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_sensor(
    machine: MachinePort,
    *,
    clock: Clock | None = None,
    pid: int | None = None,
    setting_bytes: int | None = None,
    setting_source: str = "setting",
    heap: bool = True,
    system: str = sys.platform,
) -> Sensor | PortableSensor:
    """The sensor for this system: /proc on Linux and for every captured folder, psutil elsewhere.

    Raises MissingExtraError where psutil is needed and not installed: at start, and not in an emergency.
    """
    if system.startswith(("linux", "android")) or not machine.live:
        from memwarden.sense.sensor import Sensor

        kind: type[Sensor | PortableSensor] = Sensor
    else:
        from memwarden.sense.portable import PortableSensor

        kind = PortableSensor
    return kind(machine, clock=clock, pid=pid, setting_bytes=setting_bytes, setting_source=setting_source, heap=heap)
