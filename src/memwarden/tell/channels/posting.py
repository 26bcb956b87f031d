"""One HTTP exchange for the channels that post: no redirects, no endless answers, one deadline.

What an answer means is decided here once: 2xx is taken; 408, 425, 429 and 5xx may work later, at the time that
Retry-After says where it does. So may what says no to the sender or the address and not to the notice (401, 403, 404,
410, a redirect, ...): somebody mends that. Any other 4xx is for good. A redirect is never followed: whoever can answer
with one would be sent the notice and its secrets. A kept connection that the other side closed meanwhile is made anew,
once; the notice's delivery id tells a receiver that got it twice.
"""

from __future__ import annotations

import http.client
import json
import ssl
from email.utils import mktime_tz, parsedate_tz
from urllib.parse import urlsplit

from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, DeliveryError
from memwarden.facts import Fact
from memwarden.tell.channels.secret import Secret, place_of
from memwarden.tell.channels.settings import Option, parse_secret, parse_text
from memwarden.tell.channels.wire import Deadline, Endpoint, client_context, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings
    from memwarden.tell.channels.wire import TimedSocket

__all__ = ["HTTP_OPTIONS", "Answer", "Poster", "PostingChannel", "as_json", "parse_url", "retry_after"]

USER_AGENT = "memwarden"
# 408 request time-out, 425 too early, 429 too many requests (RFC 9110, 8470, 6585): the same again may work.
_LATER = frozenset({408, 425, 429})
# Not allowed, to be paid for, not found, gone, of another method, behind a proxy (RFC 9110): about us, or the address.
_NOT_OF_THE_NOTICE = frozenset({401, 402, 403, 404, 405, 407, 410})
# Whoever asks for longer is broken, or has no use for the notice any more.
LONGEST_RETRY_S = 86_400.0
# How much of an answer is kept: an error message.
_KEPT_BYTES = 4096
_SHOWN = 200
_BODY_S = 5.0
# Connections that were closed before the first byte of an answer: a kept one, most likely.
_STALE = (
    http.client.RemoteDisconnected,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    ssl.SSLEOFError,
)


def parse_url(value: Any, *, where: str) -> Secret:
    """An http or https address, kept as a secret since most carry a token. Raises ConfigError without quoting it."""
    text = parse_text(value, where=where, shown=False)
    mend = "write https://host/path"
    if not text.isascii() or " " in text or "\\" in text:
        raise ConfigError("has a character that no address has", where=where, mend=mend)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("is no address", where=where, mend=mend) from None
    if parts.scheme not in ("http", "https"):
        raise ConfigError("is no http or https address", where=where, mend=mend)
    if not host or port == 0 or any(len(label) > 63 for label in host.split(".")):
        raise ConfigError("has no host", where=where, mend=mend)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("has a login in it", where=where, mend="take it out of the address")
    return Secret(text)


HTTP_OPTIONS = (
    Option(name="url", parse=parse_url, about="where to post to", required=True, secret=True, plain=True),
    Option(name="token", parse=parse_secret, about="a bearer token", secret=True),
    Option(name="username", parse=parse_text, about="for HTTP basic authentication"),
    Option(name="password", parse=parse_secret, about="its password", secret=True),
    Option(name="ca_file", parse=parse_text, about="the authorities that sign its certificate, if not public ones"),
)


class Answer(Fact):
    """What the receiver said: its status and the first 4 KiB of text."""

    status: int
    text: str

    def document(self) -> Any:
        """The text as JSON; None where it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None


class Poster:
    """One receiver. Keeps its connection; one thread at a time."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._where = settings.where
        self._redact = settings.redact
        self._problems: list[str] = []
        self._headers = {"User-Agent": USER_AGENT, "Accept": "application/json, text/plain;q=0.9, */*;q=0.1"}
        self._sock: TimedSocket | None = None
        self._context: ssl.SSLContext | None = None
        url: Secret = settings["url"]
        parts = urlsplit(url.reveal())
        self._secure = parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._host = parts.netloc
        self.place = place_of(url.reveal())
        self._endpoint = Endpoint(parts.hostname or "", parts.port or (443 if self._secure else 80))
        self._prepare(settings)

    def _prepare(self, settings: Settings) -> None:
        """Authentication and trust, with complaints about both."""
        password, token = settings.get("password"), settings.get("token")
        # A kind without a password has no login: its username, if any, is something else.
        login = settings.get("username") if settings.knows("password") else None
        if (login is None) != (password is None):
            self._complain("username and password belong together", "write both, or neither")
        if token is not None and login is not None:
            self._complain("there is a token and a username", "keep one of them")
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token.reveal()}"
        elif login is not None and password is not None:
            from base64 import b64encode

            both = b64encode(f"{login}:{password.reveal()}".encode()).decode()
            self._headers["Authorization"] = f"Basic {both}"
            self._redact = _also(self._redact, both)
        if not _fits_header(self._headers.get("Authorization", "")):
            self._complain("the token has a character that no header has", "correct it")
        if settings["ca_file"] is not None and not self._secure:
            self._complain("ca_file is of no use without https", "correct the address, or leave it out")
        if self._secure:
            self._trust(settings)

    def _trust(self, settings: Settings) -> None:
        path = settings.path("ca_file") if settings["ca_file"] is not None else None
        try:
            self._context = client_context(path)
        except OSError as error:
            self._complain(f"ca_file {path}: {error.strerror or error}", "name a file with certificates in PEM")

    def _complain(self, what: str, mend: str) -> None:
        self._problems.append(str(ConfigError(self._redact(what), where=self._where, mend=mend)))

    def check(self) -> tuple[str, ...]:
        """What is wrong with the settings of HTTP."""
        return tuple(self._problems)

    def warm_up(self, *, timeout_s: float) -> None:
        """Connect, with the whole TLS handshake, and keep the connection. Raises DeliveryError."""
        try:
            self._connect(Deadline(self._clock, timeout_s))
        except OSError as error:
            raise failure(error, place=self.place, where=self._where, redact=self._redact) from None

    def post(
        self,
        body: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] = {},
        target: str | None = None,
        method: str = "POST",
    ) -> Answer:
        """Send it and have it taken. Raises DeliveryError for every answer that is not 2xx."""
        deadline = Deadline(self._clock, timeout_s)
        every = {**self._headers, "Content-Type": "application/json", **headers}
        try:
            status, after, raw = self._exchange(method, target or self._target, body, every, deadline)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._failure(error) from None
        answer = Answer(status=status, text=raw.decode("utf-8", "replace"))
        if not 200 <= status < 300:
            raise self._refusal(answer, after)
        return answer

    def target_below(self, path: str, *, instead_of: str = "") -> str:
        """The address's path with another one below it, or in place of the end that it may have."""
        return self._target.partition("?")[0].rstrip("/").removesuffix(instead_of) + path

    def left(self, deadline: Deadline) -> float:
        """What is left of the time for several requests. Raises DeliveryError."""
        try:
            return deadline.left()
        except TimeoutError as error:
            raise failure(error, place=self.place, where=self._where, redact=self._redact) from None

    def refused(self, what: str, *, recoverable: bool = False) -> DeliveryError:
        """An error for an answer that a channel does not take for a yes."""
        return DeliveryError(
            self._redact(f"{self.place} {what}"), where=self._where, recoverable=recoverable, mend=None
        )

    def _exchange(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> tuple[int, str | None, bytes]:
        kept = self._sock is not None and self._sock.is_quiet()
        if not kept:
            self._connect(deadline)
        try:
            return self._once(method, target, body, headers, deadline)
        except _STALE:
            if not kept:
                raise
            self._connect(deadline)
            return self._once(method, target, body, headers, deadline)

    def _once(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> tuple[int, str | None, bytes]:
        sock = self._sock
        assert sock is not None
        sock.start(deadline)
        connection = _Connection(self._host)
        connection.sock = sock
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        after = response.getheader("Retry-After")
        # Whether it was taken is known by now: a body that does not end must not make it a failure, nor take long.
        try:
            sock.deadline = Deadline(self._clock, min(_BODY_S, deadline.left()))
            raw = response.read(_KEPT_BYTES)
        except (OSError, http.client.HTTPException):
            raw = b""
        self._endpoint.remember(sock)
        if response.will_close or not _is_read(response):
            self.close()
        return response.status, after, raw

    def _connect(self, deadline: Deadline) -> None:
        self.close()
        plain = self._endpoint.connect(deadline)
        try:
            if self._secure:
                if self._context is None:
                    raise OSError("no trusted authority is known")  # noqa: TRY301  told like what the library raises
                self._sock = self._endpoint.secure(plain, self._context)
            else:
                self._sock = plain
        except BaseException:
            plain.close()
            raise

    def _failure(self, error: BaseException) -> DeliveryError:
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            what = f"{self.place} answered what is no HTTP ({type(error).__name__})"
            return DeliveryError(self._redact(what), where=self._where, mend="see that this is the receiver you meant")
        return failure(error, place=self.place, where=self._where, redact=self._redact)

    def _refusal(self, answer: Answer, after: str | None) -> DeliveryError:
        what = f"{self.place} answered {answer.status}"
        if 300 <= answer.status < 400:
            return DeliveryError(f"{what}, a redirect", where=self._where, mend="write the final address")
        said = _sentence(answer.text)
        later = answer.status in _LATER | _NOT_OF_THE_NOTICE or answer.status >= 500 or answer.status < 200
        return DeliveryError(
            self._redact(f"{what}: {said}" if said else what),
            where=self._where,
            mend=_MENDS.get(answer.status),
            recoverable=later,
            retry_after_s=retry_after(after, self._clock.wall()) if later else None,
        )

    def close(self) -> None:
        """Give the connection back."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


_MENDS = {
    401: "see that the credentials are right",
    403: "see that the credentials are right and allowed to do this",
    404: "see that the address is right",
    410: "see that the receiver still exists",
}


class PostingChannel:
    """What the channels that post have in common; each says how a notice looks and what an answer means."""

    kind = ""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.name = settings.name
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.poster = Poster(settings, clock=self.clock)

    @property
    def destination(self) -> tuple[object, ...]:
        """What makes two channels the same to whoever reads them."""
        return (self.kind, self.settings["url"])

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings, one line each; nothing is sent."""
        return self.poster.check()

    def ready(self) -> None:
        """Raises DeliveryError, for good, where the settings do not allow to send."""
        for problem in self.check():
            raise DeliveryError(f"not sent, its settings are wrong: {problem}", recoverable=False)

    def warm_up(self) -> None:
        """Connect as `send` will, with the TLS handshake; no request is made. Raises DeliveryError."""
        self.ready()
        self.poster.warm_up(timeout_s=self.settings["timeout"])

    def close(self) -> None:
        """Give the connection back."""
        self.poster.close()


class _Connection(http.client.HTTPConnection):
    """Never connects by itself: it has its socket."""

    auto_open = 0

    def close(self) -> None:
        """Let go of the socket, and leave it open: the answer may still be read from it, and it is not ours."""
        self.sock = None


def _is_read(response: http.client.HTTPResponse) -> bool:
    """Whether the answer was read to its end, so that the next one can follow."""
    if response.isclosed():
        return True
    response.close()
    return False


def _also(redact: Any, more: str) -> Any:
    return lambda text: redact(text.replace(more, "***"))


def _fits_header(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _sentence(text: str) -> str:
    """The beginning of an answer in one printable line."""
    line = " ".join(text.split())[: _SHOWN * 2]
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def as_json(document: object) -> bytes:
    """The document in UTF-8. What JSON has no words for (NaN, half a character of a file name) is replaced."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def retry_after(value: str | None, now_unix_s: float) -> float | None:
    """Seconds that a Retry-After asks for (RFC 9110, 10.2.3: a number or a date), 0 to a day; None for nonsense."""
    text = value.strip() if value is not None else ""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_RETRY_S) if len(text) < 20 else LONGEST_RETRY_S
    try:
        parsed = parsedate_tz(text)
        seconds = mktime_tz(parsed) - now_unix_s if parsed is not None else None
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return min(max(0.0, float(seconds)), LONGEST_RETRY_S) if seconds is not None else None
