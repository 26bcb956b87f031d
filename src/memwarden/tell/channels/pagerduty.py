"""PagerDuty's Events API v2: raised triggers an incident, recovered resolves it, acknowledged acknowledges it.

The dedup key is the host and the key of the state that a notice is about, so that all notices of one state are one
incident, and sending one twice changes nothing. A test triggers an incident of severity info and resolves it at once.
Whether the routing key is right cannot be asked without an event: `memwarden alerts test` sends one.
"""

from __future__ import annotations

import hashlib

from memwarden.facts import Level
from memwarden.tell.channels.posting import PostingChannel, as_json, parse_url
from memwarden.tell.channels.secret import Secret
from memwarden.tell.channels.settings import Option, parse_secret, parse_text
from memwarden.tell.channels.taken import Taken
from memwarden.tell.channels.template import clean_line, document, iso_time, line
from memwarden.tell.channels.wire import Deadline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "PagerDutyChannel"]

URL = "https://events.pagerduty.com/v2/enqueue"
# developer.pagerduty.com, Events API v2: dedup_key 255 characters, summary 1024, an event 512 KB.
_LONGEST_KEY, _LONGEST_SUMMARY, _LONGEST_EVENT = 255, 1024, 512_000
_SEVERITIES = {
    Level.NORMAL: "info",
    Level.WARNING: "warning",
    Level.CRITICAL: "error",
    Level.EMERGENCY: "critical",
}
_ACTIONS = {"recovered": "resolve", "acknowledged": "acknowledge"}

OPTIONS = (
    Option(name="routing_key", parse=parse_secret, about="the service's integration key", required=True, secret=True),
    Option(name="url", parse=parse_url, about="where to post to, if not PagerDuty's own", secret=True, plain=True,
           default=Secret(URL)),
    Option(name="runbook", parse=parse_text, about="a link for whoever is called"),
    Option(name="ca_file", parse=parse_text, about="the authorities that sign its certificate, if not public ones"),
)  # fmt: skip


class PagerDutyChannel(PostingChannel):
    """See the module."""

    kind = "pagerduty"
    passes_acknowledged = True

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._taken = Taken()

    @property
    def destination(self) -> tuple[object, ...]:
        """The service that is called."""
        return (self.kind, self.settings["url"], self.settings["routing_key"])

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """One event each. Raises DeliveryError; those that were taken before are not sent again."""
        self.ready()
        deadline = Deadline(self.clock, timeout_s)
        for notice in notices:
            for action in _actions(notice):
                if (notice.delivery_id, action) not in self._taken:
                    self._post(self.event(notice, action), deadline)
                    self._taken.add((notice.delivery_id, action))

    def _post(self, event: dict[str, Any], deadline: Deadline) -> None:
        body = as_json(event)
        if len(body) > _LONGEST_EVENT:
            event["payload"]["custom_details"] = {"left_out": f"{len(body)} bytes are more than PagerDuty takes"}
            body = as_json(event)
        self.poster.post(body, timeout_s=self.poster.left(deadline))

    def event(self, notice: Notice, action: str) -> dict[str, Any]:
        """What is posted for one notice."""
        event: dict[str, Any] = {
            "routing_key": self.settings["routing_key"].reveal(),
            "event_action": action,
            "dedup_key": dedup_key(notice),
        }
        if action != "trigger":
            return event
        event["client"] = "memwarden"
        event["payload"] = {
            "summary": clean_line(line(notice))[:_LONGEST_SUMMARY],
            "source": clean_line(notice.host)[:_LONGEST_SUMMARY] or "unknown",
            "severity": _SEVERITIES[notice.level],
            "timestamp": iso_time(notice.unix_s),
            "component": clean_line(notice.target)[:_LONGEST_SUMMARY],
            "class": notice.kind,
            "custom_details": document(notice),
        }
        if self.settings["runbook"] is not None:
            event["links"] = [{"href": self.settings["runbook"], "text": "Runbook"}]
        return event


def _actions(notice: Notice) -> tuple[str, ...]:
    if notice.what == "test":
        return ("trigger", "resolve")
    return (_ACTIONS.get(notice.what, "trigger"),)


def dedup_key(notice: Notice) -> str:
    """Host and key; their hash where they are too long."""
    key = f"memwarden/{notice.host}/{notice.key}"
    return key if len(key) <= _LONGEST_KEY else f"memwarden/{hashlib.sha256(key.encode()).hexdigest()}"
