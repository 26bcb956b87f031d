"""Whom the channels send to in these tests: real servers on loopback that behave, and that do not."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aiosmtpd.smtp import Envelope, Session

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answer(status: int, body: str = "", **headers: str) -> bytes:
    """A whole response."""
    raw = body.encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """An HTTP server that gives its answers in turn, the last one again and again.

    An answer is the bytes of a response, or a function that does to the connection what it likes.
    """

    def __init__(self, *answers: bytes | Callable[[Any], None], tls: ssl.SSLContext | None = None) -> None:
        self.answers: list[bytes | Callable[[Any], None]] = list(answers) or [OK]
        self.requests: list[Request] = []
        self.connections = 0
        self.sessions_reused = 0
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._ended = False
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if self._ended:
                connection.close()
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            wrapped: socket.socket = connection
            if self._tls is not None:
                wrapped = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(wrapped)
                self.sessions_reused += bool(wrapped.session_reused)
            with contextlib.closing(wrapped), wrapped.makefile("rb") as file:
                while self._one(wrapped, file):
                    pass
        with contextlib.suppress(OSError):
            connection.close()

    def _one(self, connection: socket.socket, file: Any) -> bool:
        first = file.readline().decode().split()
        if not first:
            return False
        headers = {}
        while (line := file.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} came twice"
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", 0)))
        self.requests.append(Request(first[0], first[1], headers, body))
        which = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(which):
            which(connection)
            return False
        connection.sendall(which)
        return True

    def close(self) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        self._listening.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for connection in self._open:
            connection.close()


def until_closed(connection: socket.socket, drop: bytes = b"", each_s: float = 0.05) -> None:
    """Send one byte after the other, or nothing, for as long as somebody is there."""
    connection.settimeout(each_s)
    sent = 0
    with contextlib.suppress(OSError):
        while True:
            if drop:
                connection.sendall(drop[sent % len(drop) :][:1])
                sent += 1
            try:
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue


def reset(connection: socket.socket) -> None:
    """End it with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if isinstance(connection, ssl.SSLSocket):
        connection = connection.unwrap()
    connection.close()


# --- certificates ----------------------------------------------------------------------------------------------------

_CA = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
_LEAF = "basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nsubjectAltName={}\n"


class Authority:
    """A private certificate authority in a folder, and what it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = str(folder / "ca.pem")
        self._make("ca", _CA, ())
        self.good = self._context("good", "IP:127.0.0.1,DNS:localhost")
        self.of_another_host = self._context("other", "DNS:somebody.example")

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self._folder, timeout=60)

    def _make(self, name: str, extensions: str, signer: tuple[str, ...]) -> None:
        (self._folder / f"{name}.ext").write_text(extensions)
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        self._openssl("req", "-new", *key, "-out", f"{name}.csr", "-subj", f"/CN=memwarden test {name}")
        signed = signer or ("-signkey", f"{name}.key")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-days", "2", "-out", f"{name}.pem",
                      "-extfile", f"{name}.ext", *signed)  # fmt: skip

    def _context(self, name: str, names: str) -> ssl.SSLContext:
        self._make(name, _LEAF.format(names), ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        return context


def authority_in(folder: Path) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed here")
    return Authority(folder)


# --- mail ------------------------------------------------------------------------------------------------------------

LOGIN, PASSWORD = "warden", "correct horse battery"


class Mail(NamedTuple):
    mail_from: str
    rcpt_tos: list[str]
    content: bytes


class MailServer:
    """A real SMTP server (aiosmtpd). `refuse` holds the answers to recipients, `answer` that to the mail itself."""

    def __init__(self, *, security: str = "none", tls: ssl.SSLContext | None = None, login: bool = False) -> None:
        self.mails: list[Mail] = []
        self.refuse: dict[str, str] = {}
        self.answer = "250 taken"
        self.logins: list[tuple[bytes, bytes]] = []
        options: dict[str, Any] = {}
        if login:
            options = {
                "authenticator": self._authenticate,
                "auth_required": True,
                "auth_require_tls": security == "starttls",  # it knows of no other TLS
            }
        if security == "starttls":
            options |= {"tls_context": tls, "require_starttls": True}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        implicit = tls if security == "tls" else None
        self._controller = _Controller(self, hostname="127.0.0.1", port=self.port, ssl_context=implicit, **options)
        self._controller.start()

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=(data.login.decode(), data.password.decode()) == (LOGIN, PASSWORD), handled=False)

    async def handle_RCPT(  # noqa: N802  aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802  aiosmtpd's name
        if self.answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.mails.append(Mail(str(envelope.mail_from), envelope.rcpt_tos, envelope.content))
        return self.answer

    def close(self) -> None:
        self._controller.stop()


class _Controller(Controller):
    ready_timeout = 60.0


@contextlib.contextmanager
def closing_all() -> Iterator[Callable[[Any], Any]]:
    """Close everything that was handed to it, in reverse."""
    with contextlib.ExitStack() as stack:

        def keep(thing: Any) -> Any:
            stack.callback(thing.close)
            return thing

        yield keep


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
