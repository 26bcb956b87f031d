"""The words of a notice: templates in plain files, and what may stand in them.

A template is `string.Template` text: `$title`, `${text}`, and of the details `${details.NAME}` each or `$details`
all of them, a line each. A field that no notice has is found when the template is read, not when it burns; a detail
that a notice lacks is empty. Values are escaped for where they go (HTML, Slack), so no host name becomes markup.

Those that come with memwarden lie in the folder `templates`; `template = "FILE"` of a channel takes another.
"""

from __future__ import annotations

import os
import re
import stat
import string

from memwarden.errors import ConfigError
from memwarden.facts import Level
from memwarden.tell.channels.settings import Option, parse_text
from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.tell.channels.settings import Settings

__all__ = ["FIELDS", "Template", "describe", "document", "escape_html", "escape_slack", "iso_time", "line", "subject"]

FIELDS = (
    "title", "text", "level", "kind", "what", "state", "target", "host", "time", "key", "delivery_id", "details",
)  # fmt: skip
# A template is a page at most.
_MOST_BYTES = 64 << 10
# What one value of the details may take in a message for people.
_LONGEST_VALUE = 2000
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")

_WORDS = {"recovered": "RECOVERED", "test": "TEST"}


class _Text(string.Template):
    idpattern = r"(?a:[_a-zA-Z][_a-zA-Z0-9]*)"
    braceidpattern = r"(?a:[_a-zA-Z][_a-zA-Z0-9]*(?:\.[_a-zA-Z0-9-]+)?)"
    flags = re.NOFLAG


class Template:
    """One template file, read and checked. Raises ConfigError from the constructor."""

    def __init__(self, path: str, *, where: str) -> None:
        self._template = _Text(_read(path, where))
        if not self._template.is_valid():
            raise ConfigError(f"{path} has a $ that begins no field", where=where, mend="write $$ for the sign itself")
        for name in self._template.get_identifiers():
            if name not in FIELDS and not name.startswith("details."):
                raise ConfigError(f"{path} has an unknown field ${name}", where=where, mend=_nearest(name))

    @classmethod
    def of(cls, settings: Settings, option: str, shipped: str) -> Template:
        """The one that the setting names, else the one that comes with memwarden. Raises ConfigError."""
        if settings[option] is None:
            return cls(os.path.join(_FOLDER, shipped), where=settings.where)
        return cls(settings.path(option), where=f"{settings.where}.{option}")

    def fill(self, notice: Notice, escape: Callable[[str], str] = str) -> str:
        """The notice in its words, each value through `escape`."""
        return self._template.substitute(_Fields(notice, escape))


def template_option(name: str = "template") -> Option:
    """The setting that names a template file."""
    return Option(name=name, parse=parse_text, about="a template file of your own")


class _Fields(dict[str, str]):
    """The fields of one notice, made when they are asked for."""

    def __init__(self, notice: Notice, escape: Callable[[str], str]) -> None:
        super().__init__()
        self._notice = notice
        self._escape = escape

    def __missing__(self, name: str) -> str:
        found = self[name] = self._escape(self._plain(name))
        return found

    def _plain(self, name: str) -> str:
        notice = self._notice
        if name.startswith("details."):
            key = name.removeprefix("details.")
            return _value(key, notice.details[key]) if key in notice.details else ""
        if name == "details":
            return "\n".join(f"{label}: {value}" for label, value in describe(notice.details))
        if name == "state":
            return state(notice)
        if name == "level":
            return notice.level.name
        if name == "time":
            return iso_time(notice.unix_s)
        return clean(str(getattr(notice, name)))


def _read(path: str, where: str) -> str:
    mend = "name a readable text file"
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            raw = file.read(_MOST_BYTES + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", where=where, mend=mend
        ) from error
    if raw is None or len(raw) > _MOST_BYTES:
        raise ConfigError(f"{path} is larger than 64 KiB or no file", where=where, mend=mend)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8", where=where, mend=mend) from None


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, FIELDS, n=1)
    return f"did you mean ${near[0]}?" if near else f"there are {', '.join(FIELDS)} and ${{details.NAME}}"


# --- words -----------------------------------------------------------------------------------------------------------


def state(notice: Notice) -> str:
    """RECOVERED, TEST, or the level: what stands first in a line."""
    return _WORDS.get(notice.what) or ("INFO" if notice.level == Level.NORMAL else notice.level.name)


def line(notice: Notice) -> str:
    """The notice in one line of plain text."""
    return clean_line(f"[{state(notice)}] {notice.title}")


def subject(notices: Sequence[Notice]) -> str:
    """One line for them all: the worst first."""
    worst = max(notices, key=lambda each: (each.what != "recovered", each.level))
    more = f" (+{len(notices) - 1} more)" if len(notices) > 1 else ""
    return clean_line(line(worst)) + more


def clean(text: str) -> str:
    """Without control characters except the ends of lines."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text.replace("\r\n", "\n"))


def clean_line(text: str) -> str:
    """In one line, without control characters."""
    return " ".join(clean(text).split())


def iso_time(unix_s: float) -> str:
    """UTC, to the second: 2026-11-22T05:00:00Z."""
    import time

    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
    except (ValueError, OverflowError, OSError):
        return "unknown"


def describe(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The details for people: (label, value) each, sizes and durations by the unit that their name carries."""
    return [(_label(key), _value(key, value)) for key, value in details.items() if value not in (None, "", [], {})]


_UNITS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("_bytes", format_bytes),
    ("_bytes_per_minute", lambda size: f"{format_bytes(size)} a minute"),
    ("_unix_s", iso_time),
    ("_s", format_duration),
    ("_ratio", format_ratio),
    ("_percent", lambda number: f"{number:g} %"),
)


def _label(key: str) -> str:
    for suffix in ("_bytes_per_minute", "_unix_s", "_bytes", "_ratio", "_percent", "_s"):
        key = key.removesuffix(suffix) if len(key) > len(suffix) else key
    return clean_line(key.replace("_", " "))


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        for suffix, words in sorted(_UNITS, key=lambda pair: -len(pair[0])):
            if key.endswith(suffix):
                return _figure(value, words)
        return _figure(value, "{:g}".format if isinstance(value, float) else str)
    if isinstance(value, (list, tuple)):
        text = "; ".join(_value("", each) for each in value)
    elif isinstance(value, dict):
        text = ", ".join(f"{label} {inner}" for label, inner in describe(value))
    else:
        text = "" if value is None else str(value)
    text = clean(text)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _figure(value: float, words: Callable[[Any], str]) -> str:
    try:
        return words(value)
    except (OverflowError, ValueError):  # beyond what a float holds, or what Python writes out
        return "too large"


def document(notice: Notice) -> dict[str, Any]:
    """The notice as JSON has it."""
    return {
        "delivery_id": notice.delivery_id,
        "key": notice.key,
        "kind": notice.kind,
        "what": notice.what,
        "level": notice.level.name.lower(),
        "title": notice.title,
        "text": notice.text,
        "unix_s": notice.unix_s,
        "time": iso_time(notice.unix_s),
        "target": notice.target,
        "host": notice.host,
        "details": dict(notice.details),
    }


def escape_html(text: str) -> str:
    """For text and quoted attributes of HTML."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;")):
        text = text.replace(sign, safe)
    return text


def escape_slack(text: str) -> str:
    """For Slack's mrkdwn: its three control characters (api.slack.com/reference/surfaces/formatting#escaping).

    What remains can at most be bold: links, mentions and @channel need the characters that are escaped.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
