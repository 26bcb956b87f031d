"""Job types and their figures: what a job gets where its decorator says nothing (row J2).

Shipped as a starting point; `[tool.memwarden.jobs.TYPE]` (or `[jobs.TYPE]` in memwarden.toml) changes one or adds a
type. What the decorator says comes first, then the type's table, then `job_limit` and `job_auto_split`.
"""

from __future__ import annotations

from memwarden.errors import ConfigError
from memwarden.facts import Fact
from memwarden.units import MIB, parse_bool, parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from memwarden.config import Config

__all__ = ["PROFILES", "Profile", "profiles_from", "short_text", "whole"]

# Row J3's batch size, where neither the job nor its type says one.
CHUNK = 100
# Of a queue or a type: what the columns of a shared ledger hold.
NAME_CHARACTERS = 100
# What a column for whole numbers holds, in a file as on a server.
MOST_WHOLE = 2**63 - 1


class Profile(Fact):
    """The figures of one job type: memory limit in bytes, items per chunk, and whether it may split itself."""

    limit_bytes: int
    chunk: int
    split: bool


# Row J2.
PROFILES: Mapping[str, Profile] = {
    "campaign": Profile(limit_bytes=512 * MIB, chunk=50, split=True),
    "training": Profile(limit_bytes=1024 * MIB, chunk=1000, split=True),
    "bulk": Profile(limit_bytes=256 * MIB, chunk=50, split=True),
    "notification": Profile(limit_bytes=128 * MIB, chunk=100, split=False),
    "analysis": Profile(limit_bytes=256 * MIB, chunk=100, split=True),
}
_FIELDS = ("limit", "chunk", "split")


def profiles_from(config: Config, table: Mapping[str, Any] | None = None, *, where: str = "jobs") -> dict[str, Profile]:
    """Every type with its figures; "" is that of a job without a type. Raises ConfigError, naming the setting.

    With `job_auto_split` off nothing splits, whatever a type or a job says.
    """
    plain = Profile(limit_bytes=config.job_limit_bytes, chunk=CHUNK, split=config.job_auto_split)
    found = {"": plain, **PROFILES}
    for name, values in (table or {}).items():
        at = f"{where}.{name}"
        if not isinstance(values, dict):
            raise ConfigError("is not a table", where=at, mend=f"write limit, chunk or split below [{at}]")
        unknown = sorted(set(values) - set(_FIELDS))
        if unknown:
            mend = f"known are {', '.join(_FIELDS)}"
            raise ConfigError(f"there is no setting {unknown[0]!r} of a job type", where=at, mend=mend)
        found[name] = _changed(found.get(name, plain), values, at)
    if not config.job_auto_split:
        found = {name: each.replace(split=False) for name, each in found.items()}
    return found


def _changed(profile: Profile, values: Mapping[str, Any], at: str) -> Profile:
    if "limit" in values:
        profile = profile.replace(limit_bytes=parse_bytes(values["limit"], where=f"{at}.limit"))
    if "chunk" in values:
        profile = profile.replace(chunk=whole(values["chunk"], f"{at}.chunk"))
    if "split" in values:
        profile = profile.replace(split=parse_bool(values["split"], where=f"{at}.split"))
    return profile


def whole(value: object, where: str, *, least: int = 1, most: int = MOST_WHOLE) -> int:
    """A count. Raises ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"{least}" if most == MOST_WHOLE else f"{least} to {most}"
        raise ConfigError(f"{_shown(value)} is no such number", where=where, mend=f"give a whole number from {bounds}")
    return value


def short_text(value: object, where: str, *, least: int = 1, most: int = NAME_CHARACTERS) -> str:
    """A name that every ledger and broker takes. Raises ConfigError."""
    if not isinstance(value, str) or not least <= len(value) <= most or not value.isprintable():
        mend = f"give a text of {least} to {most} printable characters"
        raise ConfigError(f"{_shown(value)} is no name", where=where, mend=mend)
    return value


def _shown(value: object) -> str:
    """As it is quoted in a complaint: short; a number of 5,000 digits has no text at all."""
    try:
        return f"{value!r:.40}"
    except ValueError:
        return f"this {type(value).__name__}"
