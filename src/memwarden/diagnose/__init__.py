"""Who holds the bytes: a census by type, allocation tracking by source line, detailed statistics. On demand only.

Nothing here runs by itself: each costs milliseconds per 100,000 objects, or slows the program while it is on. No
reference to an object of the program is kept. `census` and `statistics` are functions of the modules of the same name
and are imported from there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.diagnose.census import Census, TypeGrowth, TypeRow, compare
    from memwarden.diagnose.lines import LineRow, Lines, track_lines
    from memwarden.diagnose.statistics import Statistics

_HOMES = {
    "Census": "census",
    "LineRow": "lines",
    "Lines": "lines",
    "Statistics": "statistics",
    "TypeGrowth": "census",
    "TypeRow": "census",
    "compare": "census",
    "track_lines": "lines",
}

__all__ = ["Census", "LineRow", "Lines", "Statistics", "TypeGrowth", "TypeRow", "compare", "track_lines"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"memwarden.diagnose.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
