"""Notices as log records of `memwarden.alerts`, or of the logger that is named: always there, needs no network.

WARNING is logged as WARNING, CRITICAL as ERROR, EMERGENCY as CRITICAL, the rest as INFO; a recovery at WARNING, so
that whoever saw the alarm sees its end. The notice's fields are in the record (`extra`) as `memwarden_notice`.
"""

from __future__ import annotations

import logging

from memwarden.errors import ConfigError, DeliveryError
from memwarden.facts import Level
from memwarden.tell.channels.settings import Option, parse_text
from memwarden.tell.channels.template import Template, clean_line, document, line, template_option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "LogChannel"]

LOGGER = "memwarden.alerts"
_LEVELS = {
    Level.NORMAL: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.CRITICAL: logging.ERROR,
    Level.EMERGENCY: logging.CRITICAL,
}

OPTIONS = (
    Option(name="logger", parse=parse_text, about="the name of the logger", default=LOGGER),
    template_option(),
)


class LogChannel:
    """See the module. How long a record takes is up to the handlers: no time-out holds for them."""

    kind = "log"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.name = settings.name
        self._settings = settings
        self._template: Template | None = None
        self._problems: tuple[str, ...] = ()
        try:
            self._template = Template.of(settings, "template", "text.txt")
        except ConfigError as error:
            self._problems = (str(error),)

    @property
    def destination(self) -> tuple[object, ...]:
        """The logger."""
        return (self.kind, self._settings["logger"])

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings."""
        return self._problems

    def warm_up(self) -> None:
        """Nothing to connect to."""

    def close(self) -> None:
        """Nothing to give back."""

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """One record each. Raises DeliveryError where its settings are wrong."""
        if self._template is None or self._problems:
            raise DeliveryError(f"not sent, its settings are wrong: {self._problems[0]}", recoverable=False)
        logger = logging.getLogger(self._settings["logger"])
        for notice in notices:
            text = " | ".join(self._template.fill(notice).split("\n")).strip(" |")
            logger.log(
                logging.WARNING if notice.what == "recovered" else _LEVELS[notice.level],
                "%s: %s (%s on %s)", line(notice), text, clean_line(notice.target), clean_line(notice.host),
                extra={"memwarden_notice": document(notice)},
            )  # fmt: skip
