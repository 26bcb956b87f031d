"""Reading -> Verdict: levels, trend, forecast, leak, advice. Pure: no file, no clock, no thread.

Everything here is given its readings and their times. It can be replayed, and tested without filling any
memory. `trend` and `forecast` are functions of the modules of the same name and are imported from there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.judge.advise import recommendations, recommended_limit
    from memwarden.judge.history import History
    from memwarden.judge.leak import Look
    from memwarden.judge.leakwatch import LeakWatch, Told, replay
    from memwarden.judge.levels import Growth, Judge, Lines
    from memwarden.judge.signs import Columns
    from memwarden.judge.trend import Spike, is_rapid, spikes

_HOMES = {
    "Columns": "signs",
    "Growth": "levels",
    "History": "history",
    "Judge": "levels",
    "LeakWatch": "leakwatch",
    "Lines": "levels",
    "Look": "leak",
    "Spike": "trend",
    "Told": "leakwatch",
    "is_rapid": "trend",
    "recommendations": "advise",
    "recommended_limit": "advise",
    "replay": "leakwatch",
    "spikes": "trend",
}

__all__ = [
    "Columns", "Growth", "History", "Judge", "LeakWatch", "Lines", "Look", "Spike", "Told",
    "is_rapid", "recommendations", "recommended_limit", "replay", "spikes",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"memwarden.judge.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
