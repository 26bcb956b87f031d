"""One `[alerts.channels.NAME]` table, read: every wrong line of it is a complaint, none is an exception.

A channel declares its settings as `Option`s. A secret one is not written into the file: `password_env = "NAME"` names
an environment variable and `password_file = "PATH"` a file that holds it. Addresses (`plain`) may be written as they
are, and are hidden all the same. Paths are relative to the folder of the settings file.
"""

from __future__ import annotations

import os
import stat

from memwarden.errors import ConfigError, UnitError
from memwarden.facts import Fact, Level
from memwarden.tell.channels.secret import Redactor, Secret
from memwarden.units import parse_bool, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

__all__ = [
    "COMMON", "Option", "Settings", "parse_count", "parse_email", "parse_emails", "parse_give_up", "parse_level",
    "parse_secret", "parse_text", "parse_texts", "parse_words", "read",
]  # fmt: skip

# A secret's file: a list of addresses for the largest (apprise); no key or token comes near.
_SECRET_FILE_BYTES = 64 << 10
# RFC 5321, 4.5.3.1.3: a path has at most 256 octets.
_LONGEST_ADDRESS = 254
# Higher than anybody needs; a typing error must not become a channel that is tried for ever.
_MOST_ATTEMPTS = 20
_LONGEST_TIMEOUT_S = 600.0


class Option(Fact):
    """One setting of a channel. `parse` gets the value and where it is written, and raises ConfigError."""

    name: str
    parse: Callable[..., Any]
    about: str
    default: Any = None
    required: bool = False
    secret: bool = False
    plain: bool = False


class Settings:
    """The values of one channel by name, what is wrong with them, and a redactor of every secret among them."""

    def __init__(
        self,
        name: str,
        where: str,
        values: dict[str, Any],
        *,
        problems: tuple[str, ...],
        folder: str,
        environ: Mapping[str, str],
    ) -> None:
        self.name = name
        self.where = where
        self.problems = problems  # with any of them no channel is made
        self.folder = folder
        self.environ = environ
        self._values = values
        found = [value for value in values.values() if isinstance(value, (Secret, tuple, dict))]
        self.redact = Redactor(*_secrets(found))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str) -> Any:
        """The value; None also where this kind of channel has no such setting."""
        return self._values.get(name)

    def knows(self, name: str) -> bool:
        """Whether this kind of channel has such a setting."""
        return name in self._values

    def path(self, name: str) -> str:
        """The path that is written there, from the folder of the settings file."""
        return os.path.join(self.folder, self._values[name])


def _secrets(values: Iterable[Any]) -> Iterator[Secret]:
    for value in values:
        if isinstance(value, Secret):
            yield value
        elif isinstance(value, (tuple, dict)):
            yield from _secrets(value.values() if isinstance(value, dict) else value)


def read(
    name: str,
    table: Mapping[str, Any],
    options: Iterable[Option],
    *,
    where: str,
    folder: str,
    environ: Mapping[str, str],
) -> Settings:
    """Read one channel's table. Never raises for what is in it: `problems` of the result has one line for each."""
    values: dict[str, Any] = {}
    known = {key for option in options for key in _keys(option)}
    problems = [
        str(ConfigError(f"there is no setting {key!r}", where=where, mend=_nearest(key, known)))
        for key in table
        if key not in known
    ]
    for option in options:
        values[option.name] = option.default
        try:
            found = _find(option, table, where, folder, environ)
            if found is not None:
                values[option.name] = found
            elif option.required:
                raise ConfigError(f"{_how(option)} is missing", where=where, mend=f"it says {option.about}")  # noqa: TRY301  collected with the other faults
        except ConfigError as error:
            problems.append(str(error))
    return Settings(name, where, values, problems=tuple(problems), folder=folder, environ=environ)


def _keys(option: Option) -> tuple[str, ...]:
    if not option.secret:
        return (option.name,)
    # The plain name is known also where it is refused: the complaint about it is better than "no such setting".
    return option.name, f"{option.name}_env", f"{option.name}_file"


def _how(option: Option) -> str:
    if not option.secret:
        return option.name
    indirect = f"{option.name}_env or {option.name}_file"
    return f"{option.name}, {indirect}" if option.plain else indirect


def _find(option: Option, table: Mapping[str, Any], where: str, folder: str, environ: Mapping[str, str]) -> Any:
    """The value, parsed; None where there is none. Raises ConfigError."""
    given = [key for key in _keys(option) if key in table]
    if not given:
        return None
    key = given[0]
    at = f"{where}.{key}"
    if len(given) > 1:
        raise ConfigError(f"{given[1]} says it too", where=at, mend="keep one of them")
    if not option.secret:
        return option.parse(table[key], where=at)
    if key == option.name and not option.plain:
        raise ConfigError("is a secret, and is not read from here", where=at, mend=f"write {_how(option)}")
    return _hidden(option, _secret_text(option, key, table[key], at=at, folder=folder, environ=environ), at)


def _hidden(option: Option, text: Any, at: str) -> Any:
    """Parse a secret; the complaint of its parser must not quote it. Raises ConfigError."""
    try:
        return option.parse(text, where=at)
    except ConfigError as error:
        if isinstance(text, str):
            hide = Redactor(Secret(text))
            raise ConfigError(hide(error.what), where=at, mend=error.mend) from None
        raise


def _secret_text(option: Option, key: str, value: Any, *, at: str, folder: str, environ: Mapping[str, str]) -> Any:
    if key == option.name:
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ConfigError("is empty or no text", where=at, mend="name " + _kind_of(key))
    if key.endswith("_env"):
        text = environ.get(value, "").strip()
        if not text:
            raise ConfigError(f"the environment variable {value} is not set", where=at, mend="set it, or write another")
        return text
    return _read_secret(os.path.join(folder, value), at)


def _kind_of(key: str) -> str:
    return "an environment variable" if key.endswith("_env") else "a file"


def _read_secret(path: str, at: str) -> str:
    try:
        # Not waited for: a pipe without a writer would stop the start of somebody's service.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is no regular file", where=at, mend="name a file")
            raw = file.read(_SECRET_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", where=at, mend="name a readable file") from error
    if len(raw) > _SECRET_FILE_BYTES:
        raise ConfigError(f"{path} is larger than 64 KiB", where=at, mend="a secret is shorter")
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8", where=at, mend="write it as text") from None
    if not text:
        raise ConfigError(f"{path} is empty", where=at, mend="write the secret into it")
    return text


def _nearest(key: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(str(key), sorted(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"


# --- parsers ---------------------------------------------------------------------------------------------------------


def parse_text(value: Any, *, where: str, shown: bool = True) -> str:
    """Text in one line, not empty. The complaint about what is secret (not `shown`) quotes no part of it."""
    if isinstance(value, str) and not value.strip():
        raise ConfigError("is empty", where=where, mend="write something, or leave it out")
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        what = f"{_show(value)} is no text in one line" if shown else "is no text in one line"
        raise ConfigError(what, where=where, mend="write it in quotes" if shown else "write one line, without others")
    return value.strip()


def parse_secret(value: Any, *, where: str) -> Secret:
    """A secret in one line."""
    return Secret(parse_text(value, where=where, shown=False))


def parse_texts(value: Any, *, where: str) -> tuple[str, ...]:
    """A list of texts, or one text; not empty."""
    found = value if isinstance(value, list) else [value]
    if not found:
        raise ConfigError("is empty", where=where, mend="name at least one")
    return tuple(parse_text(each, where=where) for each in found)


def parse_words(value: Any, *, where: str) -> dict[str, str]:
    """A table of texts."""
    if not isinstance(value, dict):
        raise ConfigError(f"{_show(value)} is no table", where=where, mend='write { name = "value" }')
    return {parse_text(key, where=where): parse_text(text, where=f"{where}.{key}") for key, text in value.items()}


def parse_level(value: Any, *, where: str) -> Level:
    """The name of a level."""
    word = value.strip().upper() if isinstance(value, str) else ""
    try:
        return Level[word]
    except KeyError:
        mend = "write normal, warning, critical or emergency"
        raise ConfigError(f"{_show(value)} is no level", where=where, mend=mend) from None


def parse_count(value: Any, *, where: str) -> int:
    """A whole number, 1 to 20."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_ATTEMPTS:
        raise ConfigError(f"{_show(value)} is no number from 1 to {_MOST_ATTEMPTS}", where=where, mend="write one")
    return value


def parse_give_up(value: Any, *, where: str) -> int | float:
    """So many tries (an int), or so many seconds (a float)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return parse_count(value, where=where)
    seconds = parse_duration(value, where=where) if isinstance(value, str) else 0.0
    if seconds <= 0:
        raise UnitError(f"{_show(value)} is neither tries nor a time", where=where, mend='write 3, or "2h"')
    return float(seconds)


def _parse_tier(value: Any, *, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_ATTEMPTS:
        raise ConfigError(f"{_show(value)} is no number from 0 to {_MOST_ATTEMPTS}", where=where, mend="0 is at once")
    return value


def _parse_timeout(value: Any, *, where: str) -> float:
    seconds = parse_duration(value, where=where)
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        raise UnitError(f"{_show(value)} is no time-out", where=where, mend="write more than zero, at most 10m")
    return seconds


def parse_email(value: Any, *, where: str) -> str:
    """A bare address (RFC 5321, without comments and quoted local parts), optionally as "Name <address>"."""
    text = parse_text(value, where=where)
    bare = text[text.rindex("<") + 1 : -1] if text.endswith(">") and "<" in text else text
    local, at, domain = bare.rpartition("@")
    plain = len(bare) <= _LONGEST_ADDRESS and bare.isascii() and not set(bare) & set(' \t<>()[],;:\\"')
    name = text.removesuffix(f"<{bare}>")
    if set(name) & set(',;:"()<>[]@\\') and name != text:
        raise ConfigError(f"{_show(value)} has a sign in the name that a mail address has not", where=where,
                          mend="write Name <name@example.org>")  # fmt: skip
    if not (local and at and domain and plain) or domain.startswith((".", "-")) or "@" in local:
        raise ConfigError(f"{_show(value)} is no mail address", where=where, mend="write name@example.org")
    return text


def parse_emails(value: Any, *, where: str) -> tuple[str, ...]:
    """One address or a list of them; not empty, none twice."""
    found = value if isinstance(value, list) else [value]
    if not found or found == [""]:
        raise ConfigError("has no recipient", where=where, mend="name at least one address")
    addresses = tuple(parse_email(each, where=where) for each in found)
    if len({each.lower() for each in addresses}) < len(addresses):
        raise ConfigError("names a recipient twice", where=where, mend="keep one")
    return addresses


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


COMMON = (
    Option(name="kind", parse=parse_text, about="which channel it is", required=True),
    Option(name="enabled", parse=parse_bool, about="off: nothing is sent", default=True),
    Option(name="min_level", parse=parse_level, about="the lowest level that it is told of", default=Level.WARNING),
    Option(name="throttle", parse=parse_duration, about="time between two notices about the same"),
    Option(name="timeout", parse=_parse_timeout, about="time for one whole exchange", default=30.0),
    Option(name="attempts", parse=parse_count, about="failures running until it counts as down", default=3),
    Option(name="give_up_after", parse=parse_give_up, about="tries, or a time, after which a notice is given up"),
    Option(name="tier", parse=_parse_tier, about="0: told at once; above: told when that escalation level is reached",
           default=0),
)  # fmt: skip
