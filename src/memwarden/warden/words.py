"""What a Warden says: an outcome and a verdict in words, and facts for where nothing was read or done."""

from __future__ import annotations

import os

from memwarden.facts import Level, Outcome, Reading, Reason, Verdict
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Clock


def in_words(outcome: Outcome) -> str:
    """What an action did, in one line."""
    if outcome.skipped:
        return f"{outcome.action} left out: {outcome.skipped}"
    if outcome.error:
        return f"{outcome.action} failed: {outcome.error}"
    freed = outcome.freed_bytes
    if freed is None:
        result = "an unknown amount freed"
    elif freed >= 0:
        result = f"{format_bytes(freed)} freed"
    else:
        result = f"nothing freed, {format_bytes(-freed)} more in use meanwhile"
    return f"{outcome.action} ({outcome.reason}): {result} in {outcome.duration_s * 1000:.0f} ms"


def reasons(verdict: Verdict) -> str:
    """Why a verdict is what it is, in one line."""
    return "; ".join(reason.text for reason in verdict.reasons) or "below every line"


def unweighed(reading: Reading) -> Verdict:
    """The verdict on a reading while the very first one is still being weighed."""
    reason = Reason(code="unknown", text="the first reading is still being weighed")
    return Verdict(level=Level.NORMAL, since_s=reading.monotonic_s, reading=reading, reasons=(reason,))


def nothing_done(action: str, reason: str, clock: Clock, *, why: str = "memwarden is switched off") -> Outcome:
    """The outcome of an action that was not done."""
    return Outcome(
        action=action, reason=reason, before_bytes=None, after_bytes=None, duration_s=0.0, unix_s=clock.wall(),
        skipped=why,
    )  # fmt: skip


def disabled(clock: Clock) -> Verdict:
    """The verdict of a Warden that is switched off: nothing was read."""
    reading = Reading(
        monotonic_s=clock.monotonic(),
        unix_s=clock.wall(),
        pid=os.getpid(),
        rss_bytes=None,
        used_bytes=None,
        used_low_bytes=None,
        limit_bytes=None,
        limit_source="memwarden is switched off",
    )
    reason = Reason(code="disabled", text="memwarden is switched off")
    return Verdict(level=Level.NORMAL, since_s=reading.monotonic_s, reading=reading, reasons=(reason,))
