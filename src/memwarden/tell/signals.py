"""What goes into the telling: signals, each about one state or one thing that happened.

A signal is small, for it must fit into a slot of the black box (`memwarden.blackbox.POST_BYTES`): written there first,
it survives whatever happens to the process. `to_text` cuts what does not fit, the least telling first; the identity
never: `settled` makes that short once, so that a state has one name whichever way its signals go. It also takes out
what a store or a receiver has no words for: half a character of a file name, a figure that is none.
"""

from __future__ import annotations

import json
import math
from binascii import crc32

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
# Kinds that happen and have no end; and what a notice of any other kind has in its details where it was one of those.
MOMENTS = frozenset({"collections", "job_split", "spike", "oom_kill", "action", "test"})
ONCE = "happened_once"
SCOPES = ("process", "container", "machine")
_TITLE, _TEXT = 120, 300
# The most that a name takes in a slot, where a letter beyond ASCII takes 6 or 12 bytes; a key is a kind and a target.
# Together they leave a quarter of a slot to the words.
NAME_BYTES = 160
_NAMES = {"id": 80, "key": NAME_BYTES + 16, "target": NAME_BYTES, "host": 80, "member": 80}
# What the integers of SQLite and of most readers of JSON hold.
_LARGEST = (1 << 63) - 1


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
    return f"{kind}:{short(clean(target))}"


def clean(text: str) -> str:
    """The text, with what is no character written out: half of one, as of a file name that is no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def short(name: str, most_bytes: int = NAME_BYTES) -> str:
    """A name that fits into a slot; one that is longer keeps its beginning, and ends in a check sum of it all."""
    if (name.isascii() and len(name) * 6 <= most_bytes) or _size(name) <= most_bytes:
        return name
    end = f"~{crc32(name.encode()):08x}"
    cut = name[:most_bytes]
    while _size(cut) + len(end) > most_bytes:
        cut = cut[:-1]
    return cut + end


def _size(text: str) -> int:
    return len(json.dumps(text)) - 2


def settled(signal: Signal) -> Signal:
    """As it is told, kept and compared, by whichever way: whole texts, finite figures, names that fit into a slot."""
    names = {name: short(clean(getattr(signal, name)), most) for name, most in _NAMES.items()}
    details = _plain(dict(signal.details))
    if signal.what == "seen" and signal.kind not in MOMENTS:
        details = {ONCE: True, **details}
    return signal.replace(title=clean(signal.title), text=clean(signal.text), details=details, **names)


def _plain(value: Any) -> Any:
    """What JSON has words for; what is no number is None, as is one that is too large."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value if value is None or abs(value) <= _LARGEST else None
    if isinstance(value, dict):
        return {clean(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return clean(str(value))


def to_text(signal: Signal) -> str:
    """One line of ASCII of at most POST_BYTES that `from_text` understands, of a signal that is `settled`."""
    values = signal.as_dict()
    values["level"] = int(signal.level)
    values["title"], values["text"] = values["title"][:_TITLE], values["text"][:_TEXT]
    values["details"] = details = dict(signal.details)
    found = _dump(values)
    while len(found) > POST_BYTES and details:
        details.popitem()  # the last is the least telling
        found = _dump(values)
    for name, least in (("text", 20), ("title", 20), ("text", 0), ("title", 0)):
        while len(found) > POST_BYTES and len(values[name]) > least:
            values[name] = values[name][: max(least, len(values[name]) * 2 // 3)]
            found = _dump(values)
    return found


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=False)


def from_text(text: str) -> Signal | None:
    """The signal in it; None where it is none: whoever may write into the folder may write anything.

    Fields of a newer memwarden are left out.
    """
    try:
        found = json.loads(text)
        values = {name: found[name] for name in Signal._fields if name in found} if isinstance(found, dict) else {}
        values.setdefault("origin", "")
        if len(values) < len(Signal._fields):
            return None
        words = (name for name in Signal._fields if name not in ("level", "unix_s", "details"))
        if not all(isinstance(values[name], str) for name in words):
            return None
        if not isinstance(values["details"], dict):
            return None
        values["level"], values["unix_s"] = Level(values["level"]), float(values["unix_s"])
        known = values["what"] in WHATS and values["kind"] in KINDS and values["scope"] in SCOPES
        known = known and bool(values["id"]) and bool(values["key"]) and 0 <= values["unix_s"] < 1e11
        return settled(Signal(**values)) if known else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
