"""Mail through an SMTP server: text and HTML, STARTTLS or TLS from the first byte, with or without a login.

Several notices go as one mail. A mail's Message-ID is made of the delivery ids, so that a mail that was sent twice is
one to the reader's program, and notices about one state refer to the same first one, so that they are one thread.
A recipient that the server refuses while it takes others is named in the log; those whose turn is still to come
(greylisting) are tried again alone.
"""

from __future__ import annotations

import hashlib
import logging
import smtplib
import socket
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import formatdate, parseaddr

from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, DeliveryError
from memwarden.facts import Level
from memwarden.tell.channels.settings import Option, parse_email, parse_emails, parse_secret, parse_text
from memwarden.tell.channels.taken import Taken
from memwarden.tell.channels.template import Template, clean_line, escape_html, subject, template_option
from memwarden.tell.channels.wire import Deadline, Endpoint, client_context, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings
    from memwarden.tell.channels.wire import TimedSocket

__all__ = ["OPTIONS", "SmtpChannel"]

# RFC 8314: 465 is TLS from the first byte, 587 submission; 25 is what relays within a network use.
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_SHOWN = 200
# 552: the mail has more bytes than are taken (RFC 5321), which MAIL FROM may say already.
_TOO_LARGE = 552
_QUIT_S = 2.0


def _parse_security(value: Any, *, where: str) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _PORTS:
        raise ConfigError(f"{value!r} is no security", where=where, mend=f"write {', '.join(_PORTS)}")
    return word


def _parse_port(value: Any, *, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise ConfigError(f"{value!r} is no port", where=where, mend="write a number from 1 to 65535")
    return value


def _parse_host(value: Any, *, where: str) -> str:
    text = parse_text(value, where=where).strip("[]")
    if not text.isascii() or set(text) & set(" /@?#\\") or any(len(label) > 63 for label in text.split(".")):
        raise ConfigError(f"{value!r} is no host", where=where, mend="write a name or an address alone")
    return text


OPTIONS = (
    Option(name="host", parse=_parse_host, about="the mail server", required=True),
    Option(name="port", parse=_parse_port, about="its port, if not the usual one"),
    Option(name="security", parse=_parse_security, about="starttls, tls or none", default="starttls"),
    Option(name="username", parse=parse_text, about="the login"),
    Option(name="password", parse=parse_secret, about="its password", secret=True),
    Option(name="from", parse=parse_email, about="whom the mail is from", required=True),
    Option(name="to", parse=parse_emails, about="who gets it", required=True),
    Option(name="subject_prefix", parse=parse_text, about="what each subject begins with", default="[memwarden]"),
    Option(name="ca_file", parse=parse_text, about="the authorities that sign its certificate, if not public ones"),
    template_option(),
    template_option("template_html"),
)

_PAGE = '<!DOCTYPE html><html><head><meta charset="utf-8"></head><body>{}</body></html>'


class SmtpChannel:
    """See the module."""

    kind = "smtp"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.name = settings.name
        self._settings = settings
        self._clock: Clock = clock or SystemClock()
        self._taken = Taken()
        self._told: set[str] = set()
        self._problems: list[str] = []
        self._context: ssl.SSLContext | None = None
        self._host: str = settings["host"]
        self._port: int = settings["port"] or _PORTS[settings["security"]]
        self._place = f"smtp://{self._host}:{self._port}"
        self._endpoint = Endpoint(self._host, self._port)
        self._text: Template | None = None
        self._html: Template | None = None
        self._prepare(settings)

    def _prepare(self, settings: Settings) -> None:
        try:
            self._text = Template.of(settings, "template", "smtp.txt")
            self._html = Template.of(settings, "template_html", "smtp.html")
        except ConfigError as error:
            self._problems.append(str(error))
        if (settings["username"] is None) != (settings["password"] is None):
            self._complain("username and password belong together", "write both, or neither")
        if settings["security"] == "none":
            if settings["password"] is not None and not _is_loopback(self._host):
                self._complain("the password would travel in the clear", 'write security = "starttls" or "tls"')
            return
        path = settings.path("ca_file") if settings["ca_file"] is not None else None
        try:
            self._context = client_context(path)
        except OSError as error:
            self._complain(f"ca_file {path}: {error.strerror or error}", "name a file with certificates in PEM")

    def _complain(self, what: str, mend: str) -> None:
        self._problems.append(str(ConfigError(what, where=self._settings.where, mend=mend)))

    @property
    def destination(self) -> tuple[object, ...]:
        """The people who get it."""
        return (self.kind, frozenset(parseaddr(each)[1].lower() for each in self._settings["to"]))

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings."""
        return tuple(self._problems)

    def warm_up(self) -> None:
        """Connect, shake hands and log in, and leave again. Raises DeliveryError."""
        self._ready()
        self._talk((), timeout_s=self._settings["timeout"])

    def close(self) -> None:
        """Nothing is kept: servers end idle connections within minutes."""

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """One mail to all recipients. Raises DeliveryError."""
        self._ready()
        mails = list(self._due(notices))
        if mails:
            self._talk(mails, timeout_s=timeout_s)

    def _ready(self) -> None:
        for problem in self.check():
            raise DeliveryError(f"not sent, its settings are wrong: {problem}", recoverable=False)

    def _due(self, notices: Sequence[Notice]) -> Iterator[tuple[list[str], list[Notice]]]:
        """Who has still to get which of them: everybody all, unless an earlier try got half of the way."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for recipient in self._settings["to"]:
            missing = (i for i, each in enumerate(notices) if (each.delivery_id, recipient) not in self._taken)
            groups.setdefault(tuple(missing), []).append(recipient)
        for indices, recipients in groups.items():
            if indices:
                yield recipients, [notices[index] for index in indices]

    def _talk(self, mails: Sequence[tuple[list[str], Sequence[Notice]]], *, timeout_s: float) -> None:
        """One session: all of it within the time. Raises DeliveryError."""
        client = _Client(self._endpoint)
        try:
            client.begin(Deadline(self._clock, timeout_s), self._settings["security"], self._context)
            if self._settings["username"] is not None:
                client.login(self._settings["username"], self._settings["password"].reveal())
            for recipients, notices in mails:
                self._mail(client, recipients, notices)
            client.leave()
        except smtplib.SMTPException as error:
            raise self._refusal(error) from None
        except OSError as error:
            raise failure(error, place=self._place, where=self._settings.where, redact=self._settings.redact) from None
        finally:
            client.close()

    def _mail(self, client: _Client, recipients: list[str], notices: Sequence[Notice]) -> None:
        """One mail; remembers who has it. Raises SMTPException where nobody, or not yet everybody, has."""
        raw = self.message(recipients, notices).as_bytes()
        code, said = client.mail(parseaddr(self._settings["from"])[1], self._options(client, raw))
        if code != 250:
            raise smtplib.SMTPSenderRefused(code, said, self._settings["from"])
        refused: dict[str, tuple[int, bytes]] = {}
        for recipient in recipients:
            code, said = client.rcpt(parseaddr(recipient)[1])
            if code not in (250, 251):
                refused[recipient] = (code, said)
        if len(refused) == len(recipients):
            client.rset()
            raise smtplib.SMTPRecipientsRefused(refused)
        code, said = client.data(raw)
        if code != 250:
            raise smtplib.SMTPDataError(code, said)
        for recipient in recipients:
            if recipient not in refused:
                for each in notices:
                    self._taken.add((each.delivery_id, recipient))
        self._after(refused)

    def _after(self, refused: dict[str, tuple[int, bytes]]) -> None:
        """Some have it: who may have it later is an error, who never will is said once and does not stop the others."""
        for recipient, (code, said) in refused.items():
            if code >= 500 and recipient not in self._told:
                self._told.add(recipient)
                words = self._settings.redact(_decoded(said))
                logging.getLogger("memwarden.tell").warning(
                    "%s: the mail server refuses %s (%d %s); the others have the mail",
                    self._settings.where, recipient, code, words,
                )  # fmt: skip
        later = {recipient: answer for recipient, answer in refused.items() if answer[0] < 500}
        if later:
            raise smtplib.SMTPRecipientsRefused(later)

    @staticmethod
    def _options(client: _Client, raw: bytes) -> list[str]:
        return [f"size={len(raw)}"] if client.has_extn("size") else []

    def message(self, recipients: Sequence[str], notices: Sequence[Notice]) -> EmailMessage:
        """The mail."""
        assert self._text is not None
        assert self._html is not None
        mail = EmailMessage(policy=SMTP_POLICY)
        sender = self._settings["from"]
        domain = parseaddr(sender)[1].rpartition("@")[2]
        mail["Subject"] = clean_line(f"{self._settings['subject_prefix']} {subject(notices)}")[:_SHOWN]
        mail["From"] = sender
        mail["To"] = ", ".join(recipients)
        mail["Date"] = formatdate(self._clock.wall())
        mail["Message-ID"] = f"<{_digest(each.delivery_id for each in notices)}@{domain}>"
        mail["References"] = " ".join(dict.fromkeys(f"<{_digest([each.key])}@{domain}>" for each in notices[:20]))
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        worst = max(each.level for each in notices)
        if worst >= Level.CRITICAL and any(each.what != "recovered" for each in notices):
            mail["Importance"] = "high"
        mail["X-Memwarden-Level"] = worst.name
        mail["X-Memwarden-Delivery-Id"] = clean_line(", ".join(each.delivery_id for each in notices[:20]))
        mail.set_content("\n\n".join(self._text.fill(each) for each in notices))
        html = "\n<hr>\n".join(self._html.fill(each, escape_html) for each in notices)
        mail.add_alternative(_PAGE.format(html), subtype="html")
        return mail

    def _refusal(self, error: smtplib.SMTPException) -> DeliveryError:
        redact, where = self._settings.redact, self._settings.where
        if isinstance(error, smtplib.SMTPRecipientsRefused):
            answers = error.recipients
            said = "; ".join(f"{who}: {code} {_decoded(words)}" for who, (code, words) in answers.items())
            mend = "see that `to` is right" if all(code >= 500 for code, _ in answers.values()) else None
            return DeliveryError(redact(f"{self._place} refuses {said}"), where=where, mend=mend)
        if isinstance(error, smtplib.SMTPResponseException):
            said, code = _decoded(error.smtp_error), error.smtp_code
            login = isinstance(error, smtplib.SMTPAuthenticationError)
            what = f"{'refuses the login' if login else 'answered'} ({code} {said})"
            mend = "see that username and password are right" if login else None
            # What it says of this mail it says after the data, or of its size; the rest is about us, and can be mended.
            of_mail = isinstance(error, smtplib.SMTPDataError) or code == _TOO_LARGE
            later = not (of_mail and 500 <= code < 600)  # -1: what is no answer at all
            return DeliveryError(redact(f"{self._place} {what}"), where=where, mend=mend, recoverable=later)
        if isinstance(error, smtplib.SMTPNotSupportedError):
            what = f"{self._place} cannot do what is asked: {error}"
            return DeliveryError(redact(what), where=where, mend="correct security or the login")
        text = clean_line(str(error))[:_SHOWN]
        return DeliveryError(redact(f"{self._place} broke off ({text or type(error).__name__})"), where=where)


def _is_loopback(host: str) -> bool:
    """Whether it is this machine by its name or address; a name that only begins like one is anybody's."""
    if host.lower() == "localhost":
        return True
    for family, prefix in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, bytes(15) + b"\1")):
        try:
            return socket.inet_pton(family, host).startswith(prefix)
        except OSError:
            continue
    return False


class _Client(smtplib.SMTP):
    """The standard client on a socket with one deadline for the session."""

    def __init__(self, endpoint: Endpoint) -> None:
        # Without a name of its own it would ask DNS for one, which can take as long as it likes.
        super().__init__(local_hostname=_own_name())
        self._endpoint = endpoint
        self._host = endpoint.host  # what `login` and TLS go by

    def begin(self, deadline: Deadline, security: str, context: ssl.SSLContext | None) -> None:
        """Connect, greet, and encrypt as asked. Raises OSError and SMTPException."""
        sock = self._endpoint.connect(deadline)
        self._use(sock)
        if security == "tls":
            self._use(self._secure(sock, context))
        code, said = self.getreply()
        if code != 220:
            raise smtplib.SMTPConnectError(code, said)
        self.ehlo_or_helo_if_needed()
        if security == "starttls":
            if not self.has_extn("starttls"):
                raise smtplib.SMTPNotSupportedError("it offers no STARTTLS")
            code, said = self.docmd("STARTTLS")
            if code != 220:
                raise smtplib.SMTPResponseException(code, said)
            self._use(self._secure(sock, context))
            self.ehlo_or_helo_if_needed()

    def _secure(self, sock: TimedSocket, context: ssl.SSLContext | None) -> TimedSocket:
        if context is None:
            raise OSError("no trusted authority is known")
        return self._endpoint.secure(sock, context)

    def _use(self, sock: TimedSocket) -> None:
        """Begin anew on it: nothing that was said before, or came in the clear with it, counts (RFC 3207, 4.2)."""
        self.sock = sock  # type: ignore[assignment]  # a socket in all that smtplib asks of it
        self.file = None
        self.helo_resp = self.ehlo_resp = None
        self.esmtp_features: dict[str, str] = {}
        self.does_esmtp = False

    def leave(self) -> None:
        """Say good-bye, and do not wait long for the answer: the mails are taken."""
        sock: Any = self.sock
        self._endpoint.remember(sock)
        sock.deadline = Deadline(SystemClock(), _QUIT_S)
        try:
            self.docmd("QUIT")
        except (OSError, smtplib.SMTPException):
            return


def _own_name() -> str:
    """The name of this host as far as it is known without asking anybody."""
    name = socket.gethostname()
    return name if name.isascii() and name.replace("-", "").replace(".", "").isalnum() else "localhost"


def _decoded(words: bytes | str) -> str:
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    return clean_line(text)[:_SHOWN]


def _digest(words: Any) -> str:
    return hashlib.sha256("\n".join(sorted(words)).encode("utf-8", "replace")).hexdigest()[:32]
