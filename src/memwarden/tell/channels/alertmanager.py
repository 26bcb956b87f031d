"""Prometheus Alertmanager's v2 API: a state is an alert from `startsAt` on, a recovery ends it.

Nobody repeats our alerts, as Prometheus does its own, so an alert is posted with the time at which it ends by itself
(`expires`, a day): a process that dies before it could recover leaves no alert for ever. Alertmanager groups, routes
and silences; it needs neither throttle nor escalation of ours.

An alert is its labels (alertname, instance, target, key, severity and yours). A changed level is another alert, so the
one of the severity before is ended with it. Which that was is kept in memory; after a restart all others are ended,
and a receiver may read of the end of one that never was.
"""

from __future__ import annotations

from collections import OrderedDict

from memwarden.errors import ConfigError
from memwarden.facts import Level
from memwarden.tell.channels.posting import HTTP_OPTIONS, PostingChannel, as_json
from memwarden.tell.channels.settings import Option, parse_text, parse_words
from memwarden.tell.channels.template import clean, clean_line, describe, iso_time
from memwarden.tell.channels.wire import Deadline
from memwarden.tell.signals import MOMENTS, ONCE
from memwarden.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "AlertmanagerChannel"]

# What happened, and is no state that ends, is shown for a while: longer than Alertmanager's default group_interval
# (5 min), so that it is notified of before it is over.
_MOMENT_S = 600.0
_SEVERITIES = {
    Level.NORMAL: "info",
    Level.WARNING: "warning",
    Level.CRITICAL: "critical",
    Level.EMERGENCY: "emergency",
}
_LONGEST = 2000
# An address may be written with it, as other senders want theirs.
_ALERTS = "/api/v2/alerts"
_MOST_STATES = 1000
_OURS = frozenset({"alertname", "instance", "target", "key", "severity"})


def _parse_labels(value: Any, *, where: str) -> dict[str, str]:
    found = parse_words(value, where=where)
    for name in found:
        if not (name.isascii() and name.isidentifier()) or name in _OURS or name.startswith("__"):
            raise ConfigError(f"{name!r} is no label, or one of ours", where=where, mend="letters, digits and _")
    return found


OPTIONS = (
    *HTTP_OPTIONS,
    Option(name="expires", parse=parse_duration, about="when an alert ends that nobody ended", default=86_400.0),
    Option(name="labels", parse=_parse_labels, about="further labels, to route by", default={}),
    Option(name="runbook", parse=parse_text, about="a link for whoever is called"),
)


def _is_moment(notice: Notice) -> bool:
    return notice.kind in MOMENTS or notice.details.get(ONCE) is True


class AlertmanagerChannel(PostingChannel):
    """See the module."""

    kind = "alertmanager"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._on: OrderedDict[tuple[str, str], Level] = OrderedDict()

    def warm_up(self) -> None:
        """Ask for its status: address and credentials are right when it answers. Raises DeliveryError."""
        self.ready()
        path = self.poster.target_below("/api/v2/status", instead_of=_ALERTS)
        answer = self.poster.post(b"", method="GET", target=path, timeout_s=self.settings["timeout"])
        if "versionInfo" not in answer.text and not isinstance(answer.document(), dict):
            raise self.poster.refused("is no Alertmanager")

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """All of them in one request. Raises DeliveryError."""
        self.ready()
        deadline = Deadline(self.clock, timeout_s)
        body = as_json([alert for each in notices for alert in self.alerts(each)])
        target = self.poster.target_below(_ALERTS, instead_of=_ALERTS)
        self.poster.post(body, target=target, timeout_s=self.poster.left(deadline))
        for each in notices:
            self._remember(each)

    def alerts(self, notice: Notice) -> list[dict[str, Any]]:
        """The alert of this notice, and the ends of those that it takes the place of."""
        now_s = self.clock.wall()
        found = [] if notice.what == "recovered" else [self._alert(notice, notice.level, now_s, lasts=True)]
        return found + [self._alert(notice, level, now_s, lasts=False) for level in self._over(notice)]

    def _over(self, notice: Notice) -> list[Level]:
        before = self._on.get((notice.host, notice.key))
        if before is not None:
            return [before] if notice.what == "recovered" or before != notice.level else []
        if notice.what in ("raised", "test") or _is_moment(notice):
            return []
        return [level for level in _SEVERITIES if notice.what == "recovered" or level != notice.level]

    def _remember(self, notice: Notice) -> None:
        """The level at which it is on now; nothing of what is over."""
        state = (notice.host, notice.key)
        self._on.pop(state, None)
        if notice.what != "recovered" and not _is_moment(notice):
            self._on[state] = notice.level
            while len(self._on) > _MOST_STATES:
                self._on.popitem(last=False)

    def _alert(self, notice: Notice, level: Level, now_s: float, *, lasts: bool) -> dict[str, Any]:
        start_s = min(notice.unix_s, now_s)
        end_s = now_s + (_MOMENT_S if _is_moment(notice) else self.settings["expires"]) if lasts else now_s
        labels = {
            **self.settings["labels"],
            "alertname": f"memwarden_{notice.kind}",
            "instance": notice.host,
            "target": notice.target,
            "key": notice.key,
            "severity": _SEVERITIES[level],
        }
        annotations = {
            "summary": clean_line(notice.title)[:_LONGEST],
            "description": clean(notice.text)[:_LONGEST],
            "details": "\n".join(f"{label}: {value}" for label, value in describe(notice.details))[: 4 * _LONGEST],
            "delivery_id": notice.delivery_id,
            "what": notice.what,
            "runbook_url": self.settings["runbook"] or "",
        }
        return {
            "labels": {name: clean_line(value) for name, value in labels.items() if value},
            "annotations": {name: value for name, value in annotations.items() if value},
            "startsAt": iso_time(start_s),
            "endsAt": iso_time(end_s),
        }
