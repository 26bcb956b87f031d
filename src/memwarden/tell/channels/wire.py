"""Connections whose time-out holds for the whole exchange, whatever the other side does.

A socket's own time-out is per call: who sends one byte a second never hits it. Here every call gets what is left of
one `Deadline`, name lookup and TLS handshake included, and what may be received is capped. Lookups run in a thread
that is not waited for longer (the C library takes as long as it likes), at most one per connection at a time; the
addresses found last serve when a lookup fails.

Nothing here knows HTTP or SMTP: their standard clients are given a `TimedSocket` where they expect a socket.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading

from memwarden.errors import DeliveryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from memwarden.ports import Clock

__all__ = ["Deadline", "Endpoint", "TimedSocket", "client_context", "failure"]

# What a receiver may answer in one exchange: a status, some headers, a sentence. Slack's longest is below 1 KiB.
MOST_RECEIVED = 64 << 10
_READ_BYTES = 4096
# A share of the time that one address of several may take: a dead IPv6 route must not eat what IPv4 needs.
_LEAST_CONNECT_S = 0.25


class Deadline:
    """So many seconds from now, on the monotonic clock."""

    __slots__ = ("_clock", "_end_s")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end_s = clock.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left. Raises TimeoutError where none are."""
        left_s = self._end_s - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


class TooMuchError(OSError):
    """The other side sent more than any answer has."""


class TimedSocket:
    """What `http.client` and `smtplib` use of a socket; each call within what is left of the deadline of `start`."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self.start(deadline)

    def start(self, deadline: Deadline) -> None:
        """Another exchange on the same connection."""
        self.deadline = deadline
        self._received = 0

    def sendall(self, data: Any) -> None:
        """Send it all. Raises OSError; TimeoutError when the time is up."""
        rest = memoryview(data)
        while rest:
            self.sock.settimeout(self.deadline.left())
            rest = rest[self.sock.send(rest) :]

    def recv_into(self, buffer: Any) -> int:
        """Receive some bytes, zero at the end. Raises OSError; TooMuchError above the cap."""
        self.sock.settimeout(self.deadline.left())
        count = self.sock.recv_into(buffer)
        self._received += count
        if self._received > MOST_RECEIVED:
            raise TooMuchError(f"sent more than {MOST_RECEIVED >> 10} KiB")
        return count

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        """A reader of it. Closing that leaves the connection open."""
        return io.BufferedReader(_Received(self), _READ_BYTES)

    def is_quiet(self) -> bool:
        """Whether nothing came meanwhile: what comes unasked is an end, or nothing we could use."""
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it at once, without a TLS farewell, which could wait."""
        self.sock.close()

    def shutdown(self, _how: int) -> None:
        """As of a socket; closing does it."""


class _Received(io.RawIOBase):
    def __init__(self, sock: TimedSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(buffer)


def client_context(ca_file: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, checking certificate and name: the machine's authorities, or those of the file alone.

    Raises OSError (ssl.SSLError is one) where the file cannot be used.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Endpoint:
    """A host and port that is connected to again and again."""

    def __init__(self, host: str, port: int, *, look_up: Callable[..., Any] = socket.getaddrinfo) -> None:
        self.host = host
        self.port = port
        self._look_up = look_up
        self._addresses: list[Any] = []
        self._asking: threading.Thread | None = None
        self._session: ssl.SSLSession | None = None

    def connect(self, deadline: Deadline) -> TimedSocket:
        """A connection, by the first address that answers. Raises OSError."""
        addresses = self._resolve(deadline)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            remaining = len(addresses) - number
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(min(_LEAST_CONNECT_S, deadline.left()), deadline.left() / remaining))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                sock.close()
                if remaining == 1:
                    raise
                deadline.left()
            except BaseException:
                sock.close()
                raise
            else:
                return TimedSocket(sock, deadline)
        raise OSError("has no address")

    def secure(self, plain: TimedSocket, context: ssl.SSLContext) -> TimedSocket:
        """The same connection under TLS, as the session before where the server still knows it.

        Always with the same context. Raises OSError.
        """
        plain.sock.settimeout(plain.deadline.left())
        wrapped = context.wrap_socket(
            plain.sock, server_hostname=self.host, session=self._session, do_handshake_on_connect=False
        )
        secured = TimedSocket(wrapped, plain.deadline)
        try:
            _shake_hands(secured)
        except BaseException:
            wrapped.close()
            raise
        return secured

    def remember(self, secured: TimedSocket) -> None:
        """Keep the session of a connection that worked (TLS 1.3 gives it after the handshake)."""
        if isinstance(secured.sock, ssl.SSLSocket):
            self._session = secured.sock.session

    def _resolve(self, deadline: Deadline) -> list[Any]:
        if _is_literal(self.host):
            return list(self._look_up(self.host, self.port, type=socket.SOCK_STREAM))
        found: list[Any] = []
        failed: list[OSError | UnicodeError] = []

        def ask() -> None:
            try:
                found.extend(self._look_up(self.host, self.port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                failed.append(error)

        if self._asking is None or not self._asking.is_alive():
            try:
                self._asking = threading.Thread(target=ask, name="memwarden-lookup", daemon=True)
                self._asking.start()
            except (RuntimeError, MemoryError):  # no thread can be had: at a limit, where what is known must do
                self._asking = None
                if not self._addresses:
                    ask()
            # With addresses at hand a slow lookup gets half of the time, and they the other.
            wait_s = deadline.left() / 2 if self._addresses else deadline.left()
            if self._asking is not None:
                self._asking.join(wait_s)
        if found:
            self._addresses = list(found)
        if not self._addresses:
            raise failed[0] if failed else TimeoutError("the name lookup takes too long")
        return self._addresses


def _is_literal(host: str) -> bool:
    """Whether it is an address already, which needs no lookup and no thread."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


def _shake_hands(secured: TimedSocket) -> None:
    """The handshake within the deadline: a socket's own time-out would begin anew at every flight."""
    import select

    wrapped = secured.sock
    assert isinstance(wrapped, ssl.SSLSocket)
    wrapped.setblocking(False)
    poll = select.poll()
    while True:
        try:
            wrapped.do_handshake()
        except ssl.SSLWantReadError:
            poll.register(wrapped, select.POLLIN)
        except ssl.SSLWantWriteError:
            poll.register(wrapped, select.POLLOUT)
        else:
            return
        if not poll.poll(secured.deadline.left() * 1000):
            raise TimeoutError("the TLS handshake takes too long")


def failure(error: BaseException, *, place: str, where: str, redact: Callable[[str], str]) -> DeliveryError:
    """What went wrong on the way to `place`, in words. All of it may be better a moment later."""
    what, mend = _words(error)
    return DeliveryError(redact(f"{place} {what}"), where=where, mend=mend)


def _words(error: BaseException) -> tuple[str, str | None]:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or error.reason or "not valid"
        return f"has a certificate that is not trusted ({why})", "name its authority by ca_file, or correct the host"
    if isinstance(error, ssl.SSLError):
        why = (error.reason or str(error)).replace("_", " ").lower()
        if "wrong version number" in why or "http request" in why:
            return f"speaks no TLS on this port ({why})", "see that the port and the security setting fit"
        return f"failed in TLS ({why})", None
    if isinstance(error, socket.gaierror):
        return f"cannot be found ({error.strerror or error})", "see that the name is right and DNS answers"
    if isinstance(error, UnicodeError):
        return "has a name that DNS does not know", "correct the host"
    if isinstance(error, TooMuchError):
        return str(error), "see that this is the receiver that was meant"
    if isinstance(error, TimeoutError):
        return f"did not answer in time{f' ({error})' if error.args and not error.errno else ''}", None
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection", "see that it runs and listens there"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "cut the connection", None
    return f"could not be reached ({getattr(error, 'strerror', None) or error or type(error).__name__})", None
