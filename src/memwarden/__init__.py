"""memwarden keeps Python services and jobs inside their memory limit.

>>> from memwarden import Warden
>>> with Warden(limit="512M") as warden:
...     warden.level.name
'NORMAL'

Importing this loads nothing but this file: each name below comes with its first use.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.breaker import Breaker
    from memwarden.errors import ConfigError, MemoryPressureError, MemwardenError
    from memwarden.facts import Level, Limit, Operation, Outcome, Reading, Verdict
    from memwarden.warden import Warden
    from memwarden.warden.alerting import check_and_alert

__version__ = "0.1.0"

_HOMES = {
    "Breaker": "breaker",
    "ConfigError": "errors",
    "Level": "facts",
    "Limit": "facts",
    "MemoryPressureError": "errors",
    "MemwardenError": "errors",
    "Operation": "facts",
    "Outcome": "facts",
    "Reading": "facts",
    "Verdict": "facts",
    "Warden": "warden",
    "check_and_alert": "warden.alerting",
}

__all__ = [
    "Breaker",
    "ConfigError",
    "Level",
    "Limit",
    "MemoryPressureError",
    "MemwardenError",
    "Operation",
    "Outcome",
    "Reading",
    "Verdict",
    "Warden",
    "check_and_alert",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"memwarden.{_HOMES[name]}"), name)
        globals()[name] = value  # the next touch finds it without us
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
