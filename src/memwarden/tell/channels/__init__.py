"""The channels: how a notice reaches somebody. What to tell, to whom and when is decided in `memwarden.tell`.

`build` makes them from the `[alerts.channels.NAME]` tables of the settings file. A table that is wrong never stops
the process that is guarded: its channel says what is wrong in `check()`, and what is sent to it fails for good with
the same words. Each kind is a file of its own that is imported when a table names it: mail costs 3 MiB, a webhook 2
(TLS for either 6 more, unless the host has it), a log nothing.
"""

from __future__ import annotations

import os
from importlib import import_module

from memwarden.errors import ConfigError, DeliveryError, MissingExtraError
from memwarden.facts import Fact, Level
from memwarden.tell.channels.settings import COMMON, Option, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Channel, Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["KINDS", "Configured", "build", "options_of", "problems"]


class Kind(Fact):
    """Where a kind of channel is made, and how often it speaks unless told otherwise (row A2: 15 and 5 min)."""

    name: str
    made_by: str
    throttle_s: float = 300.0


KINDS: Mapping[str, Kind] = {
    each.name: each
    for each in (
        Kind(name="smtp", made_by="SmtpChannel", throttle_s=900.0),
        Kind(name="slack", made_by="SlackChannel"),
        Kind(name="webhook", made_by="WebhookChannel"),
        Kind(name="pagerduty", made_by="PagerDutyChannel"),
        Kind(name="alertmanager", made_by="AlertmanagerChannel", throttle_s=0.0),  # it throttles by itself
        Kind(name="log", made_by="LogChannel", throttle_s=0.0),
        Kind(name="command", made_by="CommandChannel"),
        Kind(name="apprise", made_by="AppriseChannel"),
    )
}


class Configured(Fact):
    """A channel, and how it is to be used: `throttle_s` between two notices about the same, down after `attempts`.

    A notice is dead `give_up_after` so many tries (int) or seconds (float); None: as the settings of all alerts say.
    `tier` 0 is told at once; a higher one when the escalation reaches that level.
    """

    channel: Channel
    enabled: bool = True
    min_level: Level = Level.WARNING
    throttle_s: float = 300.0
    timeout_s: float = 30.0
    attempts: int = 3
    give_up_after: float | None = None
    tier: int = 0

    @property
    def name(self) -> str:
        """The channel's."""
        return self.channel.name


class Unusable:
    """Stands for a channel that could not be made: it says why, and fails whatever is sent to it."""

    def __init__(self, name: str, kind: str, problems: tuple[str, ...]) -> None:
        self.name = name
        self.kind = kind
        self._problems = problems

    def check(self) -> tuple[str, ...]:
        """Why."""
        return self._problems

    def warm_up(self) -> None:
        """Raises DeliveryError."""
        raise DeliveryError(f"not sent, its settings are wrong: {self._problems[0]}", recoverable=False)

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """Raises DeliveryError."""
        self.warm_up()

    def close(self) -> None:
        """Nothing to give back."""


class _Also:
    """A channel with further complaints, which come to light beside the others."""

    def __init__(self, channel: Any, problem: str) -> None:
        self.name: str = channel.name
        self.kind: str = channel.kind
        self.close = channel.close
        self.warm_up = channel.warm_up
        self.send = channel.send
        self.passes_acknowledged: bool = getattr(channel, "passes_acknowledged", False)
        self._channel = channel
        self._problem = problem

    def check(self) -> tuple[str, ...]:
        return (*self._channel.check(), self._problem)


def build(
    table: Mapping[str, Any], *, where: str, environ: Mapping[str, str], folder: str | None = None,
    clock: Clock | None = None,
) -> tuple[Configured, ...]:  # fmt: skip
    """The channels of the table `[alerts.channels]`, in its order; `where` names it in complaints.

    `folder` is what paths are relative to: where None, that of the file that `where` begins with. Raises ConfigError
    only where the table as a whole is none. What is wrong with one channel is in its `check()`.
    """
    if not isinstance(table, dict):
        raise ConfigError("is no table", where=where, mend="write [alerts.channels.NAME] for each channel")
    base = os.path.dirname(where.partition(": ")[0]) if folder is None else folder
    found: list[Configured] = []
    seen: dict[object, str] = {}
    for name, own in table.items():
        at = f"{where}.{name}"
        configured = _configure(name, own, at, base, environ=environ, clock=clock)
        goes_to = getattr(configured.channel, "destination", None)
        if goes_to is not None and configured.enabled:
            first = seen.setdefault((goes_to, configured.tier), name)
            if first != name:
                error = ConfigError(
                    f"goes to the same as {first}", where=at, mend="remove one, or give one another tier"
                )
                configured = configured.replace(channel=_Also(configured.channel, str(error)))
        found.append(configured)
    return tuple(found)


def problems(channels: Sequence[Configured]) -> tuple[str, ...]:
    """What is wrong with all of them that are enabled, one line each."""
    return tuple(line for each in channels if each.enabled for line in each.channel.check())


def options_of(kind: str) -> tuple[Option, ...]:
    """Every setting of a kind. Raises MissingExtraError where its extra is not installed."""
    return (*COMMON, *import_module(f"memwarden.tell.channels.{kind}").OPTIONS)


def _configure(
    name: str, own: Any, at: str, folder: str, *, environ: Mapping[str, str], clock: Clock | None
) -> Configured:
    if not isinstance(own, dict):
        error = ConfigError("is no table", where=at, mend=f"write [alerts.channels.{name}]")
        return Configured(channel=Unusable(name, "", (str(error),)))
    kind = own.get("kind")
    enabled = own.get("enabled") is not False
    if not isinstance(kind, str) or kind not in KINDS:
        return Configured(channel=Unusable(name, str(kind), (_no_kind(kind, at),)), enabled=enabled)
    try:
        options = options_of(kind)
    except MissingExtraError as error:
        return Configured(channel=Unusable(name, kind, (f"{at}: {error}",)), enabled=enabled)
    settings = read(name, own, options, where=at, folder=folder, environ=environ)
    throttle = settings["throttle"]
    return Configured(
        channel=_make(kind, settings, clock),
        enabled=settings["enabled"],
        min_level=settings["min_level"],
        throttle_s=KINDS[kind].throttle_s if throttle is None else throttle,
        timeout_s=settings["timeout"],
        attempts=settings["attempts"],
        give_up_after=settings["give_up_after"],
        tier=settings["tier"],
    )


def _make(kind: str, settings: Settings, clock: Clock | None) -> Channel:
    if settings.problems:
        # Half of its settings may be missing: what is right of them cannot be checked any further.
        return Unusable(settings.name, kind, settings.problems)
    made: Channel = getattr(import_module(f"memwarden.tell.channels.{kind}"), KINDS[kind].made_by)(
        settings, clock=clock
    )
    return made


def _no_kind(kind: object, at: str) -> str:
    import difflib

    if kind is None:
        return str(ConfigError("has no kind", where=at, mend=f"write kind = one of {', '.join(KINDS)}"))
    near = difflib.get_close_matches(str(kind), KINDS, n=1)
    mend = f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(KINDS)}"
    return str(ConfigError(f"{str(kind)[:80]!r} is no kind of channel", where=f"{at}.kind", mend=mend))
