"""What `memwarden run` was asked to do, as one frozen value that survives an exec.

The command line parses with argparse, which costs 1.5 MiB; the supervisor that stays is a fresh interpreter,
and gets its settings as plain `name=value` words. Only words of our own making are read here.
"""

from __future__ import annotations

import os
import sys

from memwarden.errors import SuperviseError
from memwarden.facts import Fact

RESTART_POLICIES = ("no", "on-failure", "on-oom", "always")
CGROUP_MODES = ("auto", "require", "off")
FENCE_MODES = ("auto", "on", "off")


class Settings(Fact):
    """Sizes in bytes, durations in seconds.

    `limit_bytes` None sets no new limit. `scoped` is true in the second run inside a systemd scope, so that
    there is never a third. `max_restarts` None is any number. `alerts` has people told of deaths.
    """

    command: tuple[str, ...]
    limit_bytes: int | None = None
    limit_source: str = "--limit"
    swap_bytes: int = 0
    cgroup: str = "auto"
    oom_group: bool = False
    fence: str = "auto"
    restart: str = "no"
    max_restarts: int | None = None
    restart_delay_s: float = 1.0
    restart_delay_max_s: float = 60.0
    crash_loop_deaths: int = 5
    crash_loop_window_s: float = 600.0
    stop_grace_s: float = 10.0
    brake_s: float = 2.0
    environment: tuple[tuple[str, str], ...] = ()
    quiet: bool = False
    alerts: bool = False
    scoped: bool = False


_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
_DEFAULTS = Settings(command=())


def _kind_of(name: str) -> type:
    if name in ("limit_bytes", "max_restarts"):
        return int
    return type(getattr(_DEFAULTS, name))


def to_words(settings: Settings) -> list[str]:
    """The settings as arguments: what differs from the defaults, `--`, the command."""
    words: list[str] = []
    for name in Settings._fields:
        value = getattr(settings, name)
        if name == "environment":
            words += [f"env={key}={text}" for key, text in value]
        elif name != "command" and value != getattr(_DEFAULTS, name):
            words.append(f"{name}={int(value) if isinstance(value, bool) else value}")
    return [*words, "--", *settings.command]


def command_line(settings: Settings) -> list[str] | None:
    """How to start a supervisor with these settings; None where no interpreter or file of ours is known."""
    if not sys.executable or not os.path.isfile(_SCRIPT):
        return None
    return [sys.executable, "-I", "-S", _SCRIPT, *to_words(settings)]


def from_words(words: list[str]) -> Settings:
    """The same settings back. Raises SuperviseError for words that `to_words` did not write."""
    values: dict[str, object] = {}
    environment = []
    split = words.index("--") if "--" in words else len(words)
    for word in words[:split]:
        name, _, text = word.partition("=")
        if name == "env":
            key, _, value = text.partition("=")
            environment.append((key, value))
            continue
        if name not in Settings._fields:
            raise SuperviseError(f"{word!r} is no setting", mend="start it with `memwarden run`")
        kind = _kind_of(name)
        values[name] = bool(int(text)) if kind is bool else kind(text)
    return _DEFAULTS.replace(command=tuple(words[split + 1 :]), environment=tuple(environment), **values)
