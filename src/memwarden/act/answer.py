"""What a guarded process answers to a command: one line of JSON that fits the slot of a black box."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from memwarden.facts import Outcome, Verdict

# The slot takes 960 bytes, and a text that was cut is no JSON.
ROOM_BYTES = 940
TEXT_BYTES = 120


def answer(verb: str, outcomes: Sequence[Outcome], verdict: Verdict) -> str:
    """The outcomes of a command, and how things stand after it; those that do not fit are counted in `left_out`."""
    from json import dumps  # 0.3 MiB, for the one process in a thousand that is asked

    reading = verdict.reading
    found: dict[str, Any] = {
        "verb": verb,
        "level": verdict.level.name,
        "used_bytes": reading.used_bytes,
        "limit_bytes": reading.limit_bytes,
        "rss_bytes": reading.rss_bytes,
        "outcomes": [],
        "left_out": 0,
    }
    for outcome in outcomes:
        found["outcomes"].append(_row(outcome))
        if len(dumps(found, separators=(",", ":"))) > ROOM_BYTES:
            found["outcomes"].pop()
            found["left_out"] += 1
    return dumps(found, separators=(",", ":"))


def complaint(verb: str, why: str) -> str:
    """The answer to a command that could not be carried out."""
    from json import dumps

    return dumps({"verb": _plain(verb), "error": _plain(why)}, separators=(",", ":"))


def _row(outcome: Outcome) -> dict[str, Any]:
    row = {
        "action": _cut(outcome.action),
        "before_bytes": outcome.before_bytes,
        "freed_bytes": outcome.freed_bytes,
        "duration_s": round(outcome.duration_s, 6),
        "objects": outcome.objects,
        "skipped": _cut(outcome.skipped),
        "error": _cut(outcome.error),
    }
    return {name: value for name, value in row.items() if value not in (None, "")}


def _plain(text: str) -> str:
    """At most two bytes of JSON per character."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in _cut(text))


def _cut(text: str) -> str:
    return text[:TEXT_BYTES]
