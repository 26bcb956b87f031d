"""One frozen Config, and where each value of it came from.

Precedence: arguments > environment > file > platform preset > defaults. The file is `memwarden.toml` or the
`[tool.memwarden]` table of `pyproject.toml` in the working directory, or what MEMWARDEN_CONFIG names. An unknown
name, a malformed value or thresholds out of order are a ConfigError that says where.

Which platform this is, the caller says (`sense.identify`): nothing here reads the machine.
"""

from __future__ import annotations

import os

from memwarden.errors import ConfigError
from memwarden.facts import Fact
from memwarden.units import MIB, parse_bool, parse_bytes, parse_duration, parse_probability, parse_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Config(Fact):
    """Every setting, with its default. Sizes in bytes, durations in seconds, ratios 0-1."""

    enabled: bool = True
    limit_bytes: int | None = None
    warning: float = 0.75
    critical: float = 0.90
    emergency: float = 0.95
    leave_gap: float = 0.05
    dwell_s: float = 5.0
    interval_s: float = 15.0
    min_interval_s: float = 0.01
    window_s: float = 1800.0
    relieve: bool = True
    warning_faster: bool = True
    critical_cleanup: bool = True
    emergency_cleanup: bool = True
    proactive_gc: bool = True
    gc_share: float = 0.01
    fence: str = "off"
    leak_detection: bool = True
    leak_interval_s: float = 15.0
    leak_probe: bool = True
    leak_census: bool = True
    leader: bool = True
    blackbox: bool = True
    directory: str | None = None
    pressure_file: str | None = None
    job_limit_bytes: int = 256 * MIB
    job_auto_split: bool = True


class Setting(Fact):
    """How one field of Config is written: its parser, the variable, older names of it, and what it is for."""

    name: str
    parse: Callable[..., Any]
    about: str
    aliases: tuple[tuple[str, Callable[..., Any]], ...] = ()
    field: str = ""

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"MEMWARDEN_{self.name.upper()}"

    @property
    def key(self) -> str:
        """The field of Config."""
        return self.field or self.name


def _parse_limit(value: Any, *, where: str | None = None) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "auto", "none")):
        return None
    return parse_bytes(value, where=where)


def _parse_mb(text: str, *, where: str | None = None) -> int:
    return parse_bytes(f"{text}M" if _is_plain(text) else text, where=where)


def _parse_ms(text: str, *, where: str | None = None) -> float:
    return parse_duration(f"{text}ms" if _is_plain(text) else text, where=where)


def _is_plain(text: str) -> bool:
    """Whether it is a number without a unit: the older names carry theirs in the name."""
    return not text.strip().strip("0123456789.")


def _parse_interval(value: Any, *, where: str | None = None) -> float:
    return _positive(parse_duration(value, where=where), value, where)


def _parse_interval_ms(text: str, *, where: str | None = None) -> float:
    return _positive(_parse_ms(text, where=where), text, where)


def _positive(seconds: float, value: object, where: str | None) -> float:
    if seconds <= 0:
        raise ConfigError(f"{value!r} is no interval", where=where, mend="write a duration above zero, such as 15s")
    return seconds


def _parse_text(value: Any, *, where: str | None = None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{value!r} is not text", where=where, mend="write it in quotes")
    return value.strip() or None


_FENCE_MODES = ("auto", "on", "off")


def _parse_fence(value: Any, *, where: str | None = None) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _FENCE_MODES:
        raise ConfigError(f"{value!r} is no mode of the fence", where=where, mend=f"write {', '.join(_FENCE_MODES)}")
    return word


SETTINGS = (
    Setting(name="enabled", parse=parse_bool, about="off makes every call a no-op",
            aliases=(("MEMORY_MONITORING_ENABLED", parse_bool),)),
    Setting(name="limit", field="limit_bytes", parse=_parse_limit,
            about="explicit limit of this process; can only lower what the system sets"),
    Setting(name="warning", parse=parse_ratio, about="line of the WARNING level",
            aliases=(("MEMORY_WARNING_THRESHOLD", parse_ratio),)),
    Setting(name="critical", parse=parse_ratio, about="line of the CRITICAL level",
            aliases=(("MEMORY_CRITICAL_THRESHOLD", parse_ratio),)),
    Setting(name="emergency", parse=parse_ratio, about="line of the EMERGENCY level",
            aliases=(("MEMORY_EMERGENCY_THRESHOLD", parse_ratio),)),
    Setting(name="leave_gap", parse=parse_ratio, about="a level is left so far below its line"),
    Setting(name="dwell", field="dwell_s", parse=parse_duration, about="a level is left when it was quiet for so long"),
    Setting(name="interval", field="interval_s", parse=_parse_interval, about="longest time between two readings",
            aliases=(("MEMORY_MONITORING_INTERVAL", _parse_interval_ms),)),
    Setting(name="min_interval", field="min_interval_s", parse=_parse_interval,
            about="shortest time between two readings"),
    Setting(name="window", field="window_s", parse=_parse_interval, about="window of the trend"),
    Setting(name="relieve", parse=parse_bool, about="act by itself; off switches off all that follow"),
    Setting(name="warning_faster", parse=parse_bool, about="WARNING and above look at memory more often"),
    Setting(name="critical_cleanup", parse=parse_bool, about="CRITICAL climbs the cleanup ladder until it is relieved"),
    Setting(name="emergency_cleanup", parse=parse_bool, about="EMERGENCY runs every action at once"),
    Setting(name="proactive_gc", parse=parse_bool, about="let it run the garbage collector",
            aliases=(("PROACTIVE_GC_ENABLED", parse_bool),)),
    Setting(name="gc_share", parse=parse_probability, about="share of wall time that its collections may take"),
    Setting(name="fence", parse=_parse_fence,
            about="refuse what does not fit before the kernel kills: auto, on, off"),
    Setting(name="leak_detection", parse=parse_bool, about="judge whether memory leaks",
            aliases=(("MEMORY_LEAK_DETECTION", parse_bool),)),
    Setting(name="leak_interval", field="leak_interval_s", parse=_parse_interval,
            about="time between two samples for the leak verdict; 40 of them make the first one"),
    Setting(name="leak_probe", parse=parse_bool, about="collect and trim once when a leak is suspected, as a probe"),
    Setting(name="leak_census", parse=parse_bool, about="count objects by type while a leak is suspected: what grows"),
    Setting(name="leader", parse=parse_bool, about="one of the workers of a cgroup speaks and acts first for all"),
    Setting(name="blackbox", parse=parse_bool, about="keep a record that survives SIGKILL"),
    Setting(name="dir", field="directory", parse=_parse_text, about="where black boxes and state live"),
    Setting(name="pressure_file", parse=_parse_text, about="a file whose text forces a level: for game days"),
    Setting(name="job_limit", field="job_limit_bytes", parse=parse_bytes, about="default memory limit of a job",
            aliases=(("MEMORY_DEFAULT_LIMIT_MB", _parse_mb),)),
    Setting(name="job_auto_split", parse=parse_bool, about="let jobs split themselves",
            aliases=(("JOB_AUTO_SPLIT_ENABLED", parse_bool),)),
)  # fmt: skip

_BY_NAME = {each.name: each for each in SETTINGS} | {each.key: each for each in SETTINGS}

# Row M4. Render's own instances are small, so its lines are low and its interval is the requirement's 15 s.
PRESETS: Mapping[str, Mapping[str, float]] = {
    "render": {"warning": 0.60, "critical": 0.75, "emergency": 0.90, "interval_s": 15.0},
    "local": {"warning": 0.80, "critical": 0.90, "emergency": 0.95, "interval_s": 30.0},
    "balanced": {"warning": 0.70, "critical": 0.85, "emergency": 0.95},
}


# Tables of the file that are no settings of Config: each is for a room that parses it itself.
TABLES = ("alerts", "jobs")


class Settled(Fact):
    """A Config and, for each of its fields, where the value came from."""

    config: Config
    origins: Mapping[str, str]
    preset: str | None


def preset_for(platform: str) -> str:
    """The preset of row M4 that fits a platform's name."""
    return platform if platform in PRESETS else "balanced"


def settle(
    arguments: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str],
    platform: str = "local",
    preset: str | None = "auto",
    folder: str | None = ".",
) -> Settled:
    """Settle every value. `preset` is a name of PRESETS, "auto" (by platform) or None (plain defaults).

    `folder` is where memwarden.toml and pyproject.toml are looked for; None looks nowhere. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = dict.fromkeys(Config._fields, "default")
    chosen = _choose_preset(environ, preset, platform)
    if chosen is not None:
        values.update(PRESETS[chosen])
        origins.update(dict.fromkeys(PRESETS[chosen], f"preset {chosen}"))
    for found in (_from_file(environ, folder), _from_environ(environ), _from_arguments(arguments or {})):
        for key, (value, origin) in found.items():
            values[key] = value
            origins[key] = origin
    config = Config(**values)
    _check_order(config, origins)
    return Settled(config=config, origins=origins, preset=chosen)


def _choose_preset(environ: Mapping[str, str], preset: str | None, platform: str) -> str | None:
    where, named = "preset", preset
    if preset == "auto" and environ.get("MEMWARDEN_PRESET", "").strip():
        where, named = "MEMWARDEN_PRESET", environ["MEMWARDEN_PRESET"].strip()
    if named is None or named == "none":
        return None
    if named == "auto":
        return preset_for(platform)
    if named not in PRESETS:
        raise ConfigError(f"{named!r} is no preset", where=where, mend=f"write one of {', '.join(PRESETS)}, auto, none")
    return named


def _from_environ(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """MEMWARDEN_* and the older names; ours wins where both are set."""
    found = {}
    for setting in SETTINGS:
        for variable, parse in ((setting.variable, setting.parse), *setting.aliases):
            text = environ.get(variable)
            if text is not None and text.strip():
                found[setting.key] = (parse(text, where=variable), variable)
                break
    return found


def _from_arguments(arguments: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    found = {}
    for name, value in arguments.items():
        setting = _known(name, where=name)
        found[setting.key] = (setting.parse(value, where=name), "argument")
    return found


def _known(name: str, *, where: str) -> Setting:
    setting = _BY_NAME.get(name)
    if setting is None:
        raise ConfigError(f"there is no setting {name!r}", where=where, mend=_nearest(name))
    return setting


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    return f"did you mean {near[0]!r}?" if near else "`memwarden config` lists them all"


def _from_file(environ: Mapping[str, str], folder: str | None) -> dict[str, tuple[Any, str]]:
    must = bool(environ.get("MEMWARDEN_CONFIG"))
    for path in _files(environ, folder):
        whole = _read_whole(path, must=must)
        if whole:
            return _settings(whole, path)
    return {}


def _files(environ: Mapping[str, str], folder: str | None) -> tuple[str, ...]:
    """Where settings are looked for; the first file that has any is the one."""
    named = environ.get("MEMWARDEN_CONFIG")
    if named:
        return (named,)
    if folder is None:
        return ()
    return tuple(name if folder == "." else f"{folder}/{name}" for name in ("memwarden.toml", "pyproject.toml"))


def table(name: str, *, environ: Mapping[str, str], folder: str | None = ".") -> tuple[dict[str, Any], str]:
    """One of TABLES as the file has it, and where that is ("" where there is none). Raises ConfigError.

    Whoever it is for parses it: nothing here knows channels or jobs.
    """
    if name not in TABLES:
        raise ValueError(name)
    named = environ.get("MEMWARDEN_CONFIG")
    for path in _files(environ, folder):
        whole = _read_whole(path, must=bool(named))
        if not whole:
            continue
        found = whole.get(name, {})
        if not isinstance(found, dict):
            raise ConfigError(f"{name!r} is not a table", where=path, mend=f"write the settings below a table {name}")
        return found, f"{path}: {name}" if found else ""
    return {}, ""


def _settings(whole: Mapping[str, Any], path: str) -> dict[str, tuple[Any, str]]:
    found = {}
    for name, value in whole.items():
        if name in TABLES:
            continue
        where = f"{path}: {name}"
        setting = _known(name, where=where)
        found[setting.key] = (setting.parse(value, where=where), path)
    return found


def _read_whole(path: str, *, must: bool) -> dict[str, Any]:
    raw = _read_file(path, must=must)
    if not raw or (_is_project(path) and b"memwarden" not in raw):
        return {}  # spares the TOML parser, 0.6 MiB, in every project that does not use the file
    whole: Any = _parse_toml(raw, path)
    for name in ("tool", "memwarden") if _is_project(path) else ():
        whole = whole.get(name, {})
        if not isinstance(whole, dict):
            raise ConfigError(f"{name!r} is not a table", where=path, mend="write the settings below [tool.memwarden]")
    return dict(whole)


def _is_project(path: str) -> bool:
    return path.rpartition("/")[2] == "pyproject.toml"


def _read_file(path: str, *, must: bool) -> bytes:
    """The file; empty where it need not be there and is not. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        # A folder we may not even look into holds no file that anybody means us to read.
        if not must and not os.path.lexists(path):
            return b""
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {why}", where=path, mend="name a readable TOML file") from error


def _parse_toml(raw: bytes, path: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5,000 digits
        raise ConfigError(f"is not TOML: {error}", where=path, mend="correct the file or remove it") from error


def _check_order(config: Config, origins: Mapping[str, str]) -> None:
    lines = ("warning", "critical", "emergency")
    for low, high in (lines[:2], lines[1:]):
        if not 0 < getattr(config, low) < getattr(config, high) <= 1:
            raise ConfigError(
                f"thresholds out of order: {low} {getattr(config, low):g} ({origins[low]}), "
                f"{high} {getattr(config, high):g} ({origins[high]})",
                where="levels",
                mend="they must rise: warning < critical < emergency",
            )
    _check_below("leave_gap", "warning", config, origins)
    _check_below("min_interval_s", "interval_s", config, origins, equal=True)


def _check_below(low: str, high: str, config: Config, origins: Mapping[str, str], *, equal: bool = False) -> None:
    below, above = getattr(config, low), getattr(config, high)
    if below < above or (equal and below == above):
        return
    low_name, high_name = _BY_NAME[low].name, _BY_NAME[high].name
    raise ConfigError(
        f"{low_name} {below:g} ({origins[low]}) is not below {high_name} {above:g} ({origins[high]})",
        where=low_name,
        mend="lower the one or raise the other",
    )
