"""The `[alerts]` table of the settings file, checked.

`[alerts.channels.NAME]` belongs to the channel (`memwarden.tell.channels`). Six settings of it say how it is used, and
are read here too: whether it is, the least level it is told of, the least time between two notices of one key, how long
one try may take, how many tries before it counts as down, and at which level of the escalation it hears (`tier`).
"""

from __future__ import annotations

import os
import time
from binascii import crc32
from itertools import pairwise

from memwarden.errors import ConfigError
from memwarden.facts import Fact, Level
from memwarden.tell.signals import KINDS
from memwarden.units import parse_bool, parse_duration, parse_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# Row A2: mail is read every quarter of an hour, a chat every few minutes.
MAIL_THROTTLE_S, THROTTLE_S = 900.0, 300.0
MAIL_KINDS = frozenset({"smtp", "email", "mail"})
TIMEOUT_S, ATTEMPTS = 30.0, 3
LONGEST_TIMEOUT_S, MOST_ATTEMPTS = 600.0, 20
# Row A4.
ESCALATION_S = (300.0, 900.0, 1800.0)
DELIVERS = ("here", "service")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_S = 86400.0
MOST_NAME = 64
# Whose alerts they are (decision 015), of a table that is in no file.
IN_CODE, MOST_ORIGIN = "code:", 120


class ChannelUse(Fact):
    """How a channel is used. `tier` 0 hears at once, others at that level of the escalation. `acks` is whether its
    receiver knows acknowledgements.

    It counts as down after `attempts` failures running, and is tried on. A notice is given up after `give_up_after`
    tries (an int) or seconds (a float); None is after the `give_up_s` of all.
    """

    name: str
    enabled: bool = True
    level: Level = Level.WARNING
    throttle_s: float = THROTTLE_S
    timeout_s: float = TIMEOUT_S
    attempts: int = ATTEMPTS
    give_up_after: float | None = None
    tier: int = 0
    acks: bool = False


class Maintenance(Fact):
    """A time in which nobody is told of what is below `until_level`; held, and told afterwards if it lasts.

    Every day of `days` (0 is Monday; empty is every day) from second to second of the day, by local time or UTC; an end
    before its start is on the next day. Or once, from `start_unix_s` to `end_unix_s`.
    """

    name: str
    days: tuple[int, ...] = ()
    from_s: float = 0.0
    to_s: float = 0.0
    start_unix_s: float | None = None
    end_unix_s: float | None = None
    until_level: Level = Level.EMERGENCY
    utc: bool = False

    def ends(self, unix_s: float) -> float | None:
        """When it is over, if it is on at that time."""
        if self.start_unix_s is not None and self.end_unix_s is not None:
            return self.end_unix_s if self.start_unix_s <= unix_s < self.end_unix_s else None
        at = time.gmtime(unix_s) if self.utc else time.localtime(unix_s)
        second = at.tm_hour * 3600 + at.tm_min * 60 + at.tm_sec + unix_s % 1
        if self.from_s < self.to_s:
            on = self._is_day(at.tm_wday) and self.from_s <= second < self.to_s
            return self._end_on(at, unix_s, 0) if on else None
        if self._is_day(at.tm_wday) and second >= self.from_s:
            return self._end_on(at, unix_s, 1)
        if self._is_day((at.tm_wday - 1) % 7) and second < self.to_s:
            return self._end_on(at, unix_s, 0)
        return None

    def _end_on(self, at: time.struct_time, unix_s: float, days: int) -> float:
        """The end, so many days after that one, which need not have 24 hours."""
        second = at.tm_hour * 3600 + at.tm_min * 60 + at.tm_sec + unix_s % 1
        plain = unix_s + days * _DAY_S + self.to_s - second
        if self.utc:
            return plain
        minutes, seconds = divmod(int(self.to_s), 60)
        hour, minute = divmod(minutes, 60)
        end = time.mktime((at.tm_year, at.tm_mon, at.tm_mday + days, hour, minute, seconds, 0, 0, -1))
        return end if end > unix_s else plain  # in an hour that comes twice

    def _is_day(self, day: int) -> bool:
        return not self.days or day in self.days


class Policy(Fact):
    """When to tell whom: what the engine obeys. Durations in seconds.

    Channels of tier 0 hear of a state at once, those of tier n so long after it as the n-th of `steps_s` says, while it
    lasts and nobody acknowledged it. `remind_s` None never reminds.
    """

    channels: Mapping[str, ChannelUse] = {}
    steps_s: tuple[float, ...] = ESCALATION_S
    escalate_from: Level = Level.CRITICAL
    cool_down_s: float = 600.0
    flap_s: float = 3600.0
    remind_s: float | None = 14400.0
    group_s: float = 5.0
    maintenance: tuple[Maintenance, ...] = ()


class AlertSettings(Fact):
    """The whole table. `raise_for_s` and `clear_for_s` are for WARNING and CRITICAL; EMERGENCY is raised at once.

    `origin` is whose alerts they are: who shares a store with others steps and delivers its own alone.
    """

    policy: Policy
    channels: Mapping[str, Any] = {}
    where: str = "alerts"
    service: str = ""
    runbook: str = ""
    raise_for_s: float = 30.0
    clear_for_s: float = 60.0
    clear_gap: float = 0.05
    mute: frozenset[str] = frozenset()
    history_s: float = 30 * _DAY_S
    give_up_s: float = _DAY_S
    deliver: str = "here"
    collectors: tuple[tuple[str, str], ...] = ()
    collect_for_s: float = 1.0
    origin: str = ""

    def of_target(self, target: str) -> AlertSettings:
        """Those of a table in code that names no service: whose they are says who the alerts are about."""
        return self.replace(origin=_short(f"{IN_CODE}{target}")) if self.origin == IN_CODE else self


def origin_of(where: str, service: str) -> str:
    """Whose the alerts are: a name that is the same for all who read the table from one file, and no other's."""
    file = where.rpartition(": ")[0]
    return _short(os.path.realpath(file) if file and os.path.isfile(file) else f"{IN_CODE}{service}")


def _short(origin: str) -> str:
    """It stands in a slot of the black box beside all the rest."""
    if len(origin) <= MOST_ORIGIN and origin.isascii():
        return origin
    end = origin.encode("ascii", "replace").decode()[11 - MOST_ORIGIN :]
    return f"{crc32(origin.encode(errors='surrogateescape')):08x}...{end}"


def parse(table: Mapping[str, Any], where: str) -> AlertSettings | None:
    """The settings of an `[alerts]` table; None where it is empty or says `enabled = false`. Raises ConfigError."""
    if not table:
        return None
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _PARSERS:
            raise ConfigError(f"there is no setting {name!r}", where=where, mend=_nearest(name, _PARSERS))
        values[_NAMES.get(name, name)] = _PARSERS[name](value, f"{where}.{name}")
    if not values.pop("enabled", True):
        return None
    tables = table.get("channels", {})
    uses: dict[str, ChannelUse] = values.pop("channels", {})
    if not uses:
        raise ConfigError("no channel is configured", where=where, mend="add a table [alerts.channels.NAME]")
    steps_s = values.get("steps_s", ESCALATION_S)
    for use in uses.values():
        if use.tier > len(steps_s):
            at = f"{where}.channels.{use.name}.tier"
            raise ConfigError(f"the escalation has {len(steps_s)} levels", where=at, mend="add a time to `escalation`")
    if all(use.tier for use in uses.values()):
        raise ConfigError("no channel hears at once", where=f"{where}.channels", mend="give one of them tier = 0")
    inside = {name: values.pop(name) for name in tuple(values) if name in Policy._fields}
    policy = Policy(channels=uses, **inside)
    origin = origin_of(where, values.get("service", ""))
    return AlertSettings(policy=policy, channels=tables, where=where, origin=origin, **_merged(values))


def _merged(values: dict[str, Any]) -> dict[str, Any]:
    found = values.pop("collectors", None)
    if found is not None:
        values["collectors"], values["collect_for_s"] = found
    return values


def _nearest(name: str, known: Any) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 500:
        raise ConfigError("is not a line of text", where=where, mend="write one line in quotes")
    return value.strip()


def _seconds(value: Any, where: str) -> float:
    return parse_duration(value, where=where)


def _some_seconds(value: Any, where: str) -> float:
    seconds = parse_duration(value, where=where)
    if seconds <= 0:
        raise ConfigError(f"{value!r} is no duration", where=where, mend="write a duration above zero, such as 5m")
    return seconds


def _seconds_or_never(value: Any, where: str) -> float | None:
    if value is False or (isinstance(value, str) and value.strip().lower() in ("never", "off", "none")):
        return None
    return _some_seconds(value, where)


def _level(value: Any, where: str, *, least: Level = Level.WARNING) -> Level:
    words = [level.name for level in Level if level >= least]
    word = value.strip().upper() if isinstance(value, str) else ""
    if word not in words:
        raise ConfigError(f"{value!r} is no level", where=where, mend=f"write one of {', '.join(words).lower()}")
    return Level[word]


def _names(value: Any, where: str) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(each, str) and each for each in given):
        raise ConfigError("is no list of names", where=where, mend='write them as ["one", "two"]')
    if len(set(given)) != len(given):
        raise ConfigError("names one twice", where=where, mend="name each once")
    return tuple(given)


def _kinds(value: Any, where: str) -> frozenset[str]:
    names = _names(value, where) if value else ()
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"{name!r} is no alert type", where=where, mend=_nearest(name, KINDS))
    return frozenset(names)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("is not a table", where=where, mend=f"write the settings below [{where.partition(': ')[2]}]")
    return value


def _tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError("is no list of tables", where=where, mend=f"write each below [[{where.partition(': ')[2]}]]")
    return value


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}", where=where, mend=_nearest(name, known))


def _uses(value: Any, where: str) -> dict[str, ChannelUse]:
    found = {}
    for name, table in _table(value, where).items():
        at = f"{where}.{name}"
        if callable(getattr(table, "send", None)):  # a channel made in code
            found[name] = ChannelUse(name=name)
            continue
        if not name or len(name) > MOST_NAME or not name.isprintable():
            raise ConfigError("is no name of a channel", where=at, mend=f"up to {MOST_NAME} characters")
        try:
            use = use_of(name, _table(table, at), at)
        except ConfigError:  # the channel complains of it itself, and one that is wrong stops nobody
            use = ChannelUse(name=name)
        if use.enabled:
            found[name] = use
    return found


def use_of(name: str, table: Mapping[str, Any], where: str) -> ChannelUse:
    """How one channel is used, from its table. Raises ConfigError."""
    usual_s = MAIL_THROTTLE_S if table.get("kind") in MAIL_KINDS else THROTTLE_S
    timeout_s = _some_seconds(table.get("timeout", TIMEOUT_S), f"{where}.timeout")
    if timeout_s > LONGEST_TIMEOUT_S:
        raise ConfigError(f"{table['timeout']!r} is too long", where=f"{where}.timeout", mend="write at most 10m")
    return ChannelUse(
        name=name,
        enabled=parse_bool(table.get("enabled", True), where=f"{where}.enabled"),
        level=_level(table.get("min_level", "warning"), f"{where}.min_level", least=Level.NORMAL),
        throttle_s=_seconds(table.get("throttle", usual_s), f"{where}.throttle"),
        timeout_s=timeout_s,
        attempts=_count(table.get("attempts", ATTEMPTS), f"{where}.attempts", least=1),
        tier=_count(table.get("tier", 0), f"{where}.tier", least=0),
    )


def _count(value: Any, where: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_ATTEMPTS:
        raise ConfigError(
            f"{value!r} is no number from {least} to {MOST_ATTEMPTS}", where=where, mend="write a whole number"
        )
    return value


def _steps(value: Any, where: str) -> tuple[float, ...]:
    given = value if isinstance(value, list) else [value]
    found = tuple(_some_seconds(each, where) for each in given)
    if any(later <= earlier for earlier, later in pairwise(found)):
        raise ConfigError("times do not rise", where=where, mend='write them as ["5m", "15m", "30m"]')
    if len(found) > MOST_ATTEMPTS:
        raise ConfigError("has too many levels", where=where, mend=f"at most {MOST_ATTEMPTS}")
    return found


def _windows(value: Any, where: str) -> tuple[Maintenance, ...]:
    return tuple(_window(table, f"{where}[{number}]") for number, table in enumerate(_tables(value, where)))


def _window(table: Mapping[str, Any], where: str) -> Maintenance:
    _only(table, ("name", "days", "from", "to", "start", "end", "level", "utc"), where)
    name = _text(table.get("name", "maintenance"), f"{where}.name")
    utc = parse_bool(table.get("utc", False), where=f"{where}.utc")
    level = _level(table.get("level", "emergency"), f"{where}.level")
    if "start" in table or "end" in table:
        start, end = (_moment(table.get(word), f"{where}.{word}", utc=utc) for word in ("start", "end"))
        if start >= end:
            raise ConfigError("ends before it starts", where=where, mend="let end be after start")
        return Maintenance(name=name, start_unix_s=start, end_unix_s=end, until_level=level, utc=utc)
    from_s, to_s = (_time_of_day(table.get(word), f"{where}.{word}") for word in ("from", "to"))
    if from_s == to_s:
        raise ConfigError("lasts no time", where=where, mend="let from and to differ")
    days = _names(table["days"], f"{where}.days") if "days" in table else ()
    for day in days:
        if day.lower()[:3] not in _DAYS:
            raise ConfigError(f"{day!r} is no day", where=f"{where}.days", mend=f"write {', '.join(_DAYS)}")
    return Maintenance(
        name=name, days=tuple(_DAYS.index(day.lower()[:3]) for day in days), from_s=from_s, to_s=to_s,
        until_level=level, utc=utc,
    )  # fmt: skip


def _time_of_day(value: Any, where: str) -> float:
    text = value.isoformat() if hasattr(value, "isoformat") else value
    parts = text.split(":") if isinstance(text, str) else []
    if len(parts) in (2, 3) and all(part.isascii() and part.isdigit() for part in parts):
        numbers = [int(part) for part in (*parts, "0")[:3]]
        if numbers[0] < 24 and numbers[1] < 60 and numbers[2] < 60:
            return numbers[0] * 3600.0 + numbers[1] * 60 + numbers[2]
    raise ConfigError(f"{value!r} is no time of day", where=where, mend='write "02:30"')


def _moment(value: Any, where: str, *, utc: bool) -> float:
    import datetime as dt

    try:
        at = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(at, dt.datetime):
            if at.tzinfo is None and utc:
                at = at.replace(tzinfo=dt.UTC)
            return at.timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise ConfigError(f"{value!r} is no moment", where=where, mend='write "2026-03-01T02:00"')


_BUILT_IN = ("cpu", "disk", "connections")


def _collectors(value: Any, where: str) -> tuple[tuple[tuple[str, str], ...], float]:
    """(name, argument) of the built-in collectors, and how long each may take."""
    table = _table(value, where)
    _only(table, (*_BUILT_IN, "timeout"), where)
    found = []
    for name in _BUILT_IN:
        given = table.get(name, False)
        if name == "disk" and isinstance(given, str):
            found.append((name, _text(given, f"{where}.{name}")))
        elif parse_bool(given, where=f"{where}.{name}"):
            found.append((name, "/" if name == "disk" else ""))
    return tuple(found), _some_seconds(table.get("timeout", 1.0), f"{where}.timeout")


def _deliver(value: Any, where: str) -> str:
    if value not in DELIVERS:
        raise ConfigError(f"{value!r} delivers nothing", where=where, mend=f"write {' or '.join(DELIVERS)}")
    return str(value)


_NAMES = {
    "raise_for": "raise_for_s", "clear_for": "clear_for_s", "cool_down": "cool_down_s", "flap_for": "flap_s",
    "remind": "remind_s", "escalation": "steps_s", "group_wait": "group_s", "history": "history_s",
    "give_up": "give_up_s",
}  # fmt: skip
_PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "enabled": lambda value, where: parse_bool(value, where=where),
    "service": _text,
    "runbook": _text,
    "raise_for": _seconds,
    "clear_for": _seconds,
    "clear_gap": lambda value, where: parse_ratio(value, where=where),
    "cool_down": _seconds,
    "flap_for": _seconds,
    "remind": _seconds_or_never,
    "group_wait": _seconds,
    "escalate_from": _level,
    "escalation": _steps,
    "maintenance": _windows,
    "mute": _kinds,
    "history": _some_seconds,
    "give_up": _some_seconds,
    "deliver": _deliver,
    "collectors": _collectors,
    "channels": _uses,
}
