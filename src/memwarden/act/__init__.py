"""Verdict -> Outcome: what can be done about it, measured.

The actions and the ladder that climbs them; the breaker's circuit and admission by bytes, which refuse in
time. When to act is said by the verdict; the loop is in `warden`, the forms of the breaker are in `memwarden.breaker`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.act.admission import Admission
    from memwarden.act.breaker import Circuit
    from memwarden.act.collector import Collect, Collections
    from memwarden.act.fence import Fence, relabelled, unfenced
    from memwarden.act.ladder import Ladder
    from memwarden.act.reclaim import Trim
    from memwarden.act.strategies import Drop, Shed, Strategy

_HOMES = {
    "Admission": "admission",
    "Circuit": "breaker",
    "Collect": "collector",
    "Collections": "collector",
    "Drop": "strategies",
    "Fence": "fence",
    "Ladder": "ladder",
    "Shed": "strategies",
    "Strategy": "strategies",
    "Trim": "reclaim",
    "relabelled": "fence",
    "unfenced": "fence",
}

__all__ = [
    "Admission", "Circuit", "Collect", "Collections", "Drop", "Fence", "Ladder", "Shed", "Strategy", "Trim",
    "relabelled", "unfenced",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"memwarden.act.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
