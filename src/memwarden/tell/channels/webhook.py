"""A JSON document to any HTTP receiver, signed so that the receiver knows who sent it and when.

`X-Memwarden-Signature: v1=HEX` is HMAC-SHA256 with the shared secret over `TIMESTAMP.BODY`, and
`X-Memwarden-Timestamp` is that timestamp in Unix seconds: a receiver that refuses old ones cannot be played an old
message again (`verify` does both). `Idempotency-Key` is the delivery id, the same at every attempt; where several
notices go together it is made of theirs, and each notice carries its own.
"""

from __future__ import annotations

import hashlib
import hmac

from memwarden.errors import ConfigError
from memwarden.tell.channels.posting import HTTP_OPTIONS, PostingChannel, as_json
from memwarden.tell.channels.settings import Option, parse_secret, parse_words
from memwarden.tell.channels.template import Template, document, subject, template_option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "SIGNATURE", "TIMESTAMP", "WebhookChannel", "sign", "verify"]

SIGNATURE = "X-Memwarden-Signature"
TIMESTAMP = "X-Memwarden-Timestamp"
# How old a message may be when it arrives: five minutes, as Stripe and Slack advise their receivers.
TOLERANCE_S = 300.0
# A secret shorter than the hash's half is easier to guess than to break (RFC 2104, 3).
_SHORTEST_SECRET = 16
_OURS = frozenset({"content-type", "content-length", "host", "authorization", "idempotency-key", "transfer-encoding",
                   "connection", SIGNATURE.lower(), TIMESTAMP.lower()})  # fmt: skip
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _parse_signing_secret(value: Any, *, where: str) -> Any:
    found = parse_secret(value, where=where)
    if len(found.reveal()) < _SHORTEST_SECRET:
        raise ConfigError(f"is shorter than {_SHORTEST_SECRET} characters", where=where, mend="take a longer one")
    return found


def _parse_headers(value: Any, *, where: str) -> dict[str, str]:
    """Further headers: none that we set, none that could end the header."""
    found = parse_words(value, where=where)
    for name, text in found.items():
        if not set(name) <= _TOKEN or not text.isascii():
            raise ConfigError(f"{name!r} is no header", where=where, mend="letters, digits and - in plain ASCII")
        if name.lower() in _OURS:
            raise ConfigError(f"{name} is set by memwarden", where=where, mend="leave it out")
    return found


OPTIONS = (
    *HTTP_OPTIONS,
    Option(name="secret", parse=_parse_signing_secret, about="the shared secret of the signature", secret=True),
    Option(name="headers", parse=_parse_headers, about="further headers, nothing secret", default={}),
    template_option(),
)


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature of a body sent at `timestamp`."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(
    secret: bytes, timestamp: str, body: bytes, signature: str, *, now_unix_s: float, tolerance_s: float = TOLERANCE_S
) -> bool:
    """Whether a received message is genuine and fresh: for receivers written in Python."""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 15):
        return False
    fresh = abs(now_unix_s - int(timestamp)) <= tolerance_s
    genuine = hmac.compare_digest(sign(secret, timestamp, body).encode(), signature.encode("utf-8", "replace"))
    return fresh and genuine


class WebhookChannel(PostingChannel):
    """See the module."""

    kind = "webhook"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._problems: tuple[str, ...] = ()
        self._template: Template | None = None
        try:
            self._template = Template.of(settings, "template", "text.txt")
        except ConfigError as error:
            self._problems = (str(error),)

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings."""
        return (*super().check(), *self._problems)

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """One request with all of them. Raises DeliveryError."""
        self.ready()
        body = as_json(self._document(notices))
        headers = {**self.settings["headers"], "Idempotency-Key": batch_id(notices)}
        if self.settings["secret"] is not None:
            timestamp = str(int(self.clock.wall()))
            headers[TIMESTAMP] = timestamp
            headers[SIGNATURE] = sign(self.settings["secret"].reveal().encode(), timestamp, body)
        self.poster.post(body, headers=headers, timeout_s=timeout_s)

    def _document(self, notices: Sequence[Notice]) -> dict[str, Any]:
        assert self._template is not None
        template = self._template
        documents = [{**document(each), "message": template.fill(each).strip()} for each in notices]
        return {"version": 1, "summary": subject(notices), "notices": documents}


def batch_id(notices: Sequence[Notice]) -> str:
    """The delivery id of one notice; of several one that is made of theirs, whatever their order."""
    ids = sorted(each.delivery_id for each in notices)
    found = ids[0] if len(ids) == 1 else "batch-" + hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in found)
