"""Slack's incoming webhooks, with blocks; Mattermost and others that speak the same take them too.

`channel` and `username` are asked for; Slack itself heeds them only for its older webhooks. What a notice says cannot
mention anybody: `<!channel>` in a process name arrives as those characters.
"""

from __future__ import annotations

from memwarden.errors import ConfigError
from memwarden.facts import Level
from memwarden.tell.channels.posting import PostingChannel, as_json, parse_url
from memwarden.tell.channels.settings import Option, parse_text
from memwarden.tell.channels.taken import Taken
from memwarden.tell.channels.template import (
    Template,
    clean_line,
    escape_slack,
    iso_time,
    state,
    subject,
    template_option,
)
from memwarden.tell.channels.wire import Deadline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "SlackChannel"]

# api.slack.com/reference/block-kit/blocks: 50 blocks a message; 150 characters a header; 3000 a section's text.
_MOST_BLOCKS, _HEADER, _SECTION = 50, 150, 3000
_BLOCKS_EACH = 4
_TOGETHER = _MOST_BLOCKS // _BLOCKS_EACH
_SIGNS = {
    Level.NORMAL: ":information_source:",
    Level.WARNING: ":warning:",
    Level.CRITICAL: ":red_circle:",
    Level.EMERGENCY: ":rotating_light:",
}

OPTIONS = (
    Option(name="url", parse=parse_url, about="the webhook's address", required=True, secret=True, plain=True),
    Option(name="channel", parse=parse_text, about="the channel to write to, such as #ops"),
    Option(name="username", parse=parse_text, about="the name to write as"),
    Option(name="ca_file", parse=parse_text, about="the authorities that sign its certificate, if not public ones"),
    template_option(),
)


class SlackChannel(PostingChannel):
    """See the module."""

    kind = "slack"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._taken = Taken()
        self._problems: tuple[str, ...] = ()
        self._template: Template | None = None
        try:
            self._template = Template.of(settings, "template", "slack.txt")
        except ConfigError as error:
            self._problems = (str(error),)

    @property
    def destination(self) -> tuple[object, ...]:
        """The webhook and the channel that it is to write to."""
        return (*super().destination, self.settings["channel"])

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings."""
        return (*super().check(), *self._problems)

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """One message for up to twelve notices, further ones for more. Raises DeliveryError."""
        self.ready()
        deadline = Deadline(self.clock, timeout_s)
        rest = [each for each in notices if each.delivery_id not in self._taken]
        for start in range(0, len(rest), _TOGETHER):
            some = rest[start : start + _TOGETHER]
            self._post(some, deadline)
            for each in some:
                self._taken.add(each.delivery_id)

    def _post(self, notices: Sequence[Notice], deadline: Deadline) -> None:
        body = as_json(self.message(notices))
        answer = self.poster.post(body, timeout_s=self.poster.left(deadline))
        said = answer.document()
        if isinstance(said, dict) and said.get("ok") is False:  # as the other methods of its API say no
            raise self.poster.refused(f"refused it: {clean_line(str(said.get('error', 'no reason given')))[:200]}")

    def message(self, notices: Sequence[Notice]) -> dict[str, Any]:
        """What is posted."""
        blocks: list[dict[str, Any]] = []
        for number, each in enumerate(notices):
            blocks += [{"type": "divider"}] * bool(number) + self._blocks(each)
        found: dict[str, Any] = {"text": escape_slack(subject(notices)), "blocks": blocks}
        for name in ("channel", "username"):
            if self.settings[name] is not None:
                found[name] = self.settings[name]
        return found

    def _blocks(self, notice: Notice) -> list[dict[str, Any]]:
        assert self._template is not None
        sign = ":white_check_mark:" if notice.what == "recovered" else _SIGNS[notice.level]
        title = _cut(f"{sign} {state(notice)}: {clean_line(notice.title)}", _HEADER)
        body = _cut_escaped(self._template.fill(notice, escape_slack).strip() or "-", _SECTION)
        small = f"{notice.target} on {notice.host}, {iso_time(notice.unix_s)}, {notice.delivery_id}"
        return [
            {"type": "header", "text": {"type": "plain_text", "text": title, "emoji": True}},
            {"type": "section", "text": {"type": "mrkdwn", "text": body}},
            {"type": "context", "elements": [{"type": "plain_text", "text": _cut(clean_line(small), _SECTION)}]},
        ]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _cut_escaped(text: str, longest: int) -> str:
    """Cut, and never within an escape such as &amp;."""
    if len(text) <= longest:
        return text
    head = text[: longest - 3]
    tail = head[-5:]
    if "&" in tail and ";" not in tail[tail.rindex("&") :]:
        head = head[: head.rindex("&")]
    return f"{head}..."
