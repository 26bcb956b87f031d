"""What goes into the telling: signals, each about one state or one thing that happened.

A signal is small, for it must fit into a slot of the black box (`memwarden.blackbox.POST_BYTES`): written there first,
it survives whatever happens to the process. `to_text` cuts what does not fit, the least telling first; the identity
never.
"""

from __future__ import annotations

import json

from memwarden.blackbox import POST_BYTES
from memwarden.facts import Alert, Level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# The alert types (row A1), in words for people.
KINDS = {
    "high_usage": "memory use is high",
    "limit_exceeded": "the memory limit is exceeded",
    "leak": "memory leaks",
    "rapid_growth": "memory grows rapidly",
    "collections": "garbage collections are frequent or fruitless",
    "job_split": "a job was split",
    "spike": "memory spiked",
    "oom_kill": "killed by the kernel for memory",
    "action": "memwarden acted",
    "custom": "alert",
    "test": "test",
}
# What a signal says: a state begins or goes on at a level, a state is over, or something happened that has no end.
# "left" ends what one says of a state without saying that it is over: others may see it too.
ENDS = ("cleared", "left")
WHATS = ("raised", *ENDS, "seen")
SCOPES = ("process", "container", "machine")
_TITLE, _TEXT, _WORD = 120, 300, 80


class Signal(Alert):
    """One thing to be told, before anybody decided whom.

    `id` is unique for ever: whoever takes the same signal twice takes it once. `key` names the state, `member` who of a
    target is in it (a process, as `pidns:pid:start`): a state is over when nobody is in it any more. `scope` is what it
    is about: process, container or machine. `details` holds JSON values only, and no secret. `origin` is whose alerts
    they are, "" where anybody may deliver it.
    """

    id: str
    member: str
    scope: str = "container"
    details: Mapping[str, Any] = {}
    origin: str = ""


def key_of(kind: str, target: str) -> str:
    """The name of a state of a target."""
    return f"{kind}:{target}"


def to_text(signal: Signal) -> str:
    """One line of ASCII of at most POST_BYTES that `from_text` understands."""
    values = signal.as_dict()
    values["level"] = int(signal.level)
    values["title"], values["text"] = signal.title[:_TITLE], signal.text[:_TEXT]
    for name in ("target", "host", "member"):
        values[name] = values[name][:_WORD]
    values["key"] = signal.key[: _WORD * 2]
    details = dict(signal.details)
    values["details"] = details
    found = _dump(values)
    while len(found) > POST_BYTES and details:
        details.popitem()  # the last is the least telling
        found = _dump(values)
    for name, least in (("text", 20), ("title", 20), ("target", 10), ("key", 20), ("host", 10)):
        while len(found) > POST_BYTES and len(values[name]) > least:
            values[name] = values[name][: max(least, len(values[name]) * 2 // 3)]
            found = _dump(values)
    return found


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"), default=str, allow_nan=False, skipkeys=True)


def from_text(text: str) -> Signal | None:
    """The signal in it; None where it is none: whoever may write into the folder may write anything."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            return None
        values.setdefault("origin", "")
        if set(values) != set(Signal._fields):
            return None
        words = (name for name in Signal._fields if name not in ("level", "unix_s", "details"))
        if not all(isinstance(values[name], str) for name in words) or not isinstance(values["details"], dict):
            return None
        values["level"], values["unix_s"] = Level(values["level"]), float(values["unix_s"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = values["what"] in WHATS and values["kind"] in KINDS and values["scope"] in SCOPES
    known = known and bool(values["id"]) and bool(values["key"]) and 0 <= values["unix_s"] < 1e11
    return Signal(**values) if known else None
