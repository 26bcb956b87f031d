"""Every other service, through Apprise (extra `apprise`): a list of its addresses.

Meant for the service process: one address costs some 36 MiB and 700 modules. Apprise has no time-out for the whole
exchange, so it runs in a thread that is not waited for longer; while one hangs there is no second.
Apprise says of its services only whether all took it: where one did not, all are tried again.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager

from memwarden.errors import ConfigError, DeliveryError, MissingExtraError
from memwarden.facts import Level
from memwarden.tell.channels.secret import Secret
from memwarden.tell.channels.settings import Option, parse_text
from memwarden.tell.channels.template import Template, clean_line, subject, template_option

try:
    import apprise
except ImportError as error:
    raise MissingExtraError("a channel of kind apprise", "apprise") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "AppriseChannel"]


def _parse_urls(value: Any, *, where: str) -> tuple[Secret, ...]:
    """One address a line, or a list."""
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise ConfigError("is no list of addresses", where=where, mend="write one address a line")
    return tuple(Secret(parse_text(each, where=where, shown=False)) for each in found)


OPTIONS = (
    Option(name="urls", parse=_parse_urls, about="the addresses, as Apprise writes them", required=True, secret=True,
           plain=True),
    template_option(),
)  # fmt: skip
_SHOWN = 200


class AppriseChannel:
    """See the module."""

    kind = "apprise"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.name = settings.name
        self._settings = settings
        self._apprise = apprise.Apprise()
        self._sending: threading.Thread | None = None
        # What it logs may quote an address.
        self._filter = _Redacting(settings.redact)
        logging.getLogger("apprise").addFilter(self._filter)
        self._template: Template | None = None
        self._problems: tuple[str, ...] = ()
        try:
            self._template = Template.of(settings, "template", "apprise.txt")
        except ConfigError as error:
            self._problems = (*self._problems, str(error))
        for number, url in enumerate(settings["urls"], 1):
            if not self._apprise.add(url.reveal()):
                what = f"address {number} is none that Apprise knows"
                complaint = ConfigError(what, where=f"{settings.where}.urls", mend="see its list of services")
                self._problems = (*self._problems, str(complaint))

    @property
    def destination(self) -> tuple[object, ...]:
        """The addresses."""
        return (self.kind, frozenset(self._settings["urls"]))

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings."""
        return self._problems

    def warm_up(self) -> None:
        """Nothing can be asked of its services without sending. Raises DeliveryError for wrong settings."""
        for problem in self._problems:
            raise DeliveryError(f"not sent, its settings are wrong: {problem}", recoverable=False)

    def close(self) -> None:
        """Its log is its own again."""
        logging.getLogger("apprise").removeFilter(self._filter)

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """One message for all of them. Raises DeliveryError."""
        self.warm_up()
        assert self._template is not None
        if self._sending is not None and self._sending.is_alive():
            raise DeliveryError("is still at an earlier message", where=self._settings.where)
        title, body = subject(notices), "\n\n".join(self._template.fill(each).strip() for each in notices)
        kind = _kind(notices)
        result: list[bool] = []
        said = _Last()

        def work() -> None:
            with _listening(said):
                try:
                    result.append(bool(self._apprise.notify(body=body or title, title=title, notify_type=kind)))
                except Exception:  # noqa: BLE001  a plug-in of a third party; its words may hold an address
                    result.append(False)

        self._sending = threading.Thread(target=work, name="memwarden-apprise", daemon=True)
        self._sending.start()
        self._sending.join(timeout_s)
        if not result:
            raise DeliveryError("did not end in time", where=self._settings.where)
        if not result[0]:
            why = clean_line(self._settings.redact(said.words))[:_SHOWN]
            what = f"a service did not take it: {why}" if why else "a service did not take it, and does not say why"
            raise DeliveryError(what, where=self._settings.where)


class _Last(logging.Handler):
    """Keeps the last warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.words = record.getMessage()


@contextmanager
def _listening(said: _Last) -> Iterator[None]:
    """What Apprise warns of is heard; what urllib3 logs of each request is not, for that has the address's path."""
    heard, quiet = logging.getLogger("apprise"), logging.getLogger("urllib3.connectionpool")
    heard.addHandler(said)
    quiet.addFilter(_is_error)
    try:
        yield
    finally:
        heard.removeHandler(said)
        quiet.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class _Redacting(logging.Filter):
    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redact(record.getMessage()), ()
        return True


def _kind(notices: Sequence[Notice]) -> Any:
    if all(each.what == "recovered" for each in notices):
        return apprise.NotifyType.SUCCESS
    worst = max(each.level for each in notices)
    if worst >= Level.CRITICAL:
        return apprise.NotifyType.FAILURE
    return apprise.NotifyType.WARNING if worst == Level.WARNING else apprise.NotifyType.INFO
