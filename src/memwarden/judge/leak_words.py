"""The evidence of a leak verdict in words and figures, the most telling sentence first. Pure."""

from __future__ import annotations

from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from memwarden.judge.leak import Growth, Look

_WHY_NOT = {
    "step": "it came in steps and stayed there: without its two largest rises little is left",
    "cache": "it levels off, or is declared, as a cache that fills",
    "traffic": "it went with the work done per second; with that held still it did not surely grow",
    "fragmentation": "what is in use did not grow with it: the allocator holds memory that nothing uses",
    "unknown": "it does not look enough like a leak",
}


def in_words(
    look: Look, found: Mapping[str, float], growth: Growth, *, line: float, reasons: Sequence[str]
) -> tuple[str, ...]:
    """The sentences for one look; `line` is the score from which on it accuses."""
    lasted = format_duration(growth.lasted_s)
    if not look.cause:
        return (f"the floors did not grow over {lasted}, or not to the end: {_signed(found['resident_growth'])}",)
    pace = "" if growth.pace is None else f", {format_bytes(growth.pace * 60)} a minute"
    axis = "with the work done" if growth.by_work else "with time"
    words = [
        f"the floors of what is resident grew by {_signed(found['resident_growth'])} {axis} over {lasted}{pace}",
        *_in_use(found, growth),
    ]
    if look.accused:
        return (*words, *_steadiness(found), f"score {look.score:.2f} of 1, accused from {line:.2f}", *reasons)
    return (*words, _WHY_NOT[look.cause], f"score {look.score:.2f} of 1, accused from {line:.2f}")


def _signed(ratio: float) -> str:
    return f"{ratio * 100:+.1f} %"


def _in_use(found: Mapping[str, float], growth: Growth) -> list[str]:
    words = []
    if growth.python is not None:
        tau = found["blocks_coarse_tau"]
        order = "in order" if tau > 0.8 else "in some order" if tau > 0.4 else "in no order"
        words.append(f"Python's blocks changed by {_signed(found['blocks_growth'])}, their floors rising {order}")
    if growth.live is not None:
        words.append(
            f"what Python and malloc have in use changed by {_signed(found['live_growth'])}: "
            f"{format_bytes(growth.live)} beside {format_bytes(growth.resident)} resident"
        )
    if growth.cached:
        words.append(f"declared caches grew by {format_bytes(growth.cached)}, which is not counted")
    return words


def _steadiness(found: Mapping[str, float]) -> tuple[str, ...]:
    main = "live" if "live_growth" in found else "resident"
    records, whole = found[f"{main}_late_records"], found[f"{main}_growth"]
    late = max(found[f"{main}_late"] / whole, 0.0) if whole > 0 else 0.0
    return (f"in the later half {format_ratio(records)} of the floors were new records, at {late:.1f} of its pace",)
