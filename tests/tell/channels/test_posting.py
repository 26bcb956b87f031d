"""Receivers over HTTP that are slow, rude, broken or somebody else: what each means, and that none holds us up."""

from __future__ import annotations

import json
import socket
import ssl
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import DeliveryError
from memwarden.tell.channels.posting import LONGEST_RETRY_S, as_json, retry_after
from memwarden.tell.channels.webhook import SIGNATURE, TIMESTAMP, WebhookChannel, sign, verify
from memwarden.tell.channels.wire import MOST_RECEIVED, Deadline, Endpoint
from memwarden.testing import FakeClock
from tests.tell.channels.conftest import notice
from tests.tell.channels.receivers import OK, Authority, Receiver, answer, reset, until_closed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memwarden.ports import Channel

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PATIENT_S = 30.0


def failed(channel: Channel, *, timeout_s: float = PATIENT_S) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        channel.send([notice()], timeout_s=timeout_s)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_two_hundreds_are_a_yes(status: int, receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    body = b"HTTP/1.1 204 X\r\n\r\n" if status == 204 else answer(status, "thanks")
    make("webhook", url=receiver(body).url).send([notice()], timeout_s=PATIENT_S)


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_work_later_says_so(
    status: int, receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    error = failed(make("webhook", url=receiver(answer(status, "busy", Retry_After="17")).url))
    assert (error.recoverable, error.retry_after_s) == (True, 17.0)
    assert f"answered {status}: busy" in str(error)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_what_will_never_work_says_so(
    status: int, receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    error = failed(make("webhook", url=receiver(answer(status, "no", Retry_After="17")).url))
    assert (error.recoverable, error.retry_after_s) == (False, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    status: int, receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    elsewhere = receiver()
    server = receiver(answer(status, Location=f"{elsewhere.url}/taken"))
    error = failed(make("webhook", url=server.url, secrets={"secret": "a" * 20}))
    assert error.recoverable  # somebody will write the final address
    assert "a redirect; write the final address" in str(error)
    assert elsewhere.requests == []


def test_a_date_to_come_back_at_is_understood(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    clock = FakeClock()
    server = receiver(answer(429, Retry_After=formatdate(clock.wall() + 90, usegmt=True)))
    assert failed(make("webhook", url=server.url, clock=clock)).retry_after_s == pytest.approx(90, abs=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("9" * 15, LONGEST_RETRY_S), ("9" * 5000, LONGEST_RETRY_S),
        ("-1", None), ("1e3", None), ("soon", None), ("", None), (None, None), ("\u0661\u0662", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_S),
        ("Fri, 99 Foo 10000000000 99:99:99", None),
    ],
)  # fmt: skip
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after(text, 1.8e9) == seconds


@unhurried
@given(st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} -?[0-9]{1,12} [0-9:]{1,12} ?\S*"))
def test_retry_after_never_raises_and_stays_within_a_day(text: str) -> None:
    found = retry_after(text, 1.8e9)
    assert found is None or 0 <= found <= LONGEST_RETRY_S


# --- who does not behave ---------------------------------------------------------------------------------------------


def drip(connection: Any) -> None:
    """A byte every 50 ms, for ever: each receive succeeds well within any time-out of its own."""
    until_closed(connection, b"HTTP/1.1 200 OK\r\nX-Filler: " + b"y" * 10_000)


@pytest.mark.parametrize("rude", [until_closed, drip])
def test_a_receiver_that_drips_is_given_up_in_time(
    rude: Any, receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    """It would take the dripping one eight minutes: that this ends proves the time-out of the whole."""
    error = failed(make("webhook", url=receiver(rude).url), timeout_s=0.6)
    assert error.recoverable
    assert "did not answer in time" in str(error)


def test_an_endless_body_does_not_make_a_yes_a_no(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    def taken_but_chatty(connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 10_000)
        until_closed(connection)

    server = receiver(taken_but_chatty)
    channel = make("webhook", url=server.url)
    channel.send([notice(1)], timeout_s=PATIENT_S)
    server.answers[:] = [OK]
    channel.send([notice(2)], timeout_s=PATIENT_S)
    assert len(server.requests) == 2


class Late:
    """A socket over which the time passes once something came."""

    def __init__(self, sock: socket.socket, clock: FakeClock) -> None:
        self._sock, self._clock = sock, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv_into(self, buffer: Any) -> int:
        count = self._sock.recv_into(buffer)
        self._clock.advance(2 * PATIENT_S)
        return count


def test_an_answer_that_comes_with_the_last_of_the_time_is_one(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    clock = FakeClock()
    channel = make("webhook", url=receiver().url, clock=clock)
    assert isinstance(channel, WebhookChannel)
    channel.warm_up()
    sock = channel.poster._sock
    assert sock is not None
    sock.sock = Late(sock.sock, clock)  # type: ignore[assignment]  # as one
    channel.send([notice()], timeout_s=PATIENT_S)


def test_headers_without_end_are_refused(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    def flood(connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X-Filler: " + b"y" * 1000 + b"\r\n")

    error = failed(make("webhook", url=receiver(flood).url))
    assert error.recoverable
    assert MOST_RECEIVED <= 65536


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 2", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\1\2\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n"]
)
def test_an_answer_that_is_none(first: bytes, receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    error = failed(make("webhook", url=receiver(lambda connection: connection.sendall(first)).url))
    assert error.recoverable


def test_a_reset_is_recoverable(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    error = failed(make("webhook", url=receiver(reset).url))
    assert error.recoverable
    assert "cut the connection" in str(error)


def test_nobody_there_is_recoverable(make: Callable[..., Channel]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = failed(make("webhook", url=f"http://127.0.0.1:{port}/x"))
    assert error.recoverable
    assert "refused the connection; see that it runs" in str(error)


def test_a_name_that_is_nobodys_is_recoverable(make: Callable[..., Channel]) -> None:
    error = failed(make("webhook", url="http://nobody.invalid/x"), timeout_s=20)
    assert error.recoverable


def test_a_lookup_that_hangs_is_not_waited_for_and_is_not_started_twice() -> None:
    import threading

    release, calls = threading.Event(), []

    def hang(*words: Any, **_: Any) -> Any:
        calls.append(words)
        release.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    endpoint = Endpoint("slow.example", 80, look_up=hang)
    try:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                endpoint.connect(Deadline(_Clock(), 0.1))
        assert len(calls) == 1
    finally:
        release.set()
        assert endpoint._asking is not None
        endpoint._asking.join(30)


class _Clock:
    def __init__(self) -> None:
        import time

        self.monotonic = time.monotonic
        self.wall = time.time

    def wait(self, event: Any, seconds: float) -> bool:
        return bool(event.wait(seconds))


def test_the_last_known_address_serves_while_lookups_fail(receiver: Callable[..., Receiver]) -> None:
    fail: list[bool] = []
    server = receiver()

    def look_up(host: str, port: int, **options: Any) -> Any:
        if fail:
            raise socket.gaierror(socket.EAI_AGAIN, "no DNS now")
        return socket.getaddrinfo("127.0.0.1", port, **options)

    endpoint = Endpoint("hooks.example", server.port, look_up=look_up)
    endpoint.connect(Deadline(_Clock(), 30)).close()
    fail.append(True)
    endpoint.connect(Deadline(_Clock(), 30)).close()


def test_the_second_address_is_tried_when_the_first_is_dead(receiver: Callable[..., Receiver]) -> None:
    server = receiver()
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = free.getsockname()[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (dead, server.port)]
    Endpoint("hooks.example", 80, look_up=lambda *_, **__: found).connect(Deadline(_Clock(), 30)).close()


# --- kept connections ------------------------------------------------------------------------------------------------


def test_the_connection_is_made_when_warming_up_and_kept(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver()
    channel = make("webhook", url=server.url)
    channel.warm_up()
    for number in range(5):
        channel.send([notice(number)], timeout_s=PATIENT_S)
    assert (server.connections, len(server.requests)) == (1, 5)


def test_a_kept_connection_that_was_closed_meanwhile_is_made_anew(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver(lambda connection: connection.sendall(OK), OK)  # ends after its first answer, without saying so
    channel = make("webhook", url=server.url)
    for number in range(3):
        channel.send([notice(number)], timeout_s=PATIENT_S)
    assert [json.loads(each.body)["notices"][0]["delivery_id"] for each in server.requests] == [
        "delivery-0", "delivery-1", "delivery-2",
    ]  # fmt: skip


def test_a_kept_connection_that_dies_under_the_request_is_tried_once_more(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver(OK, reset, OK)
    channel = make("webhook", url=server.url)
    channel.send([notice(1)], timeout_s=PATIENT_S)
    channel.send([notice(2)], timeout_s=PATIENT_S)
    ids = [each.headers["idempotency-key"] for each in server.requests]
    assert ids == ["delivery-1", "delivery-2", "delivery-2"]  # the same id: a receiver that had it takes it once


def test_what_comes_unasked_ends_a_kept_connection(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    """Else it would be read as the answer to the next request."""
    server = receiver(OK + answer(200, "smuggled"), answer(500, "the real answer"))
    channel = make("webhook", url=server.url)
    channel.send([notice(1)], timeout_s=PATIENT_S)
    with pytest.raises(DeliveryError, match="the real answer"):
        channel.send([notice(2)], timeout_s=PATIENT_S)


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_a_private_authority_is_trusted_when_it_is_named(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], authority: Authority
) -> None:
    server = receiver(tls=authority.good)
    channel = make("webhook", url=server.url, ca_file=authority.path)
    channel.warm_up()
    channel.send([notice()], timeout_s=PATIENT_S)
    assert len(server.requests) == 1


def test_a_session_is_resumed(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], authority: Authority
) -> None:
    server = receiver(tls=authority.good)
    channel = make("webhook", url=server.url, ca_file=authority.path)
    for number in range(3):
        channel.send([notice(number)], timeout_s=PATIENT_S)
        channel.close()
    assert (server.connections, server.sessions_reused) == (3, 2)


def test_a_warm_channel_sends_within_256_kib(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], authority: Authority
) -> None:
    """Of Python's memory, by count: at the limit of a container there is no more to be had."""
    import tracemalloc

    server = receiver(tls=authority.good)
    channel = make("slack", url=server.url, ca_file=authority.path)
    channel.warm_up()
    channel.send([notice(1)], timeout_s=PATIENT_S)
    tracemalloc.start()
    try:
        channel.send([notice(2)], timeout_s=PATIENT_S)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert server.connections == 1
    assert peak <= 256 << 10  # the receiver's share is in it: it lives in this process


def test_an_unknown_authority_is_not_trusted(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], authority: Authority
) -> None:
    server = receiver(tls=authority.good)
    error = failed(make("webhook", url=server.url))
    assert "has a certificate that is not trusted" in str(error)
    assert "ca_file" in str(error)
    assert server.requests == []


def test_the_certificate_of_another_host_is_not_trusted(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], authority: Authority
) -> None:
    server = receiver(tls=authority.of_another_host)
    channel = make("webhook", url=server.url, ca_file=authority.path)
    with pytest.raises(DeliveryError, match="not trusted"):
        channel.warm_up()
    assert server.requests == []


def test_a_receiver_that_speaks_no_tls_is_named(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    def plain(connection: Any) -> None:
        connection.sendall(answer(400, "this is no TLS"))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        import threading

        def once() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                plain(connection)
                until_closed(connection)

        thread = threading.Thread(target=once)
        thread.start()
        error = failed(make("webhook", url=f"https://127.0.0.1:{listening.getsockname()[1]}/"))
        thread.join(30)
    assert "TLS" in str(error)
    assert error.recoverable


def test_a_handshake_that_never_ends_is_given_up(make: Callable[..., Channel]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the backlog takes the connection, nobody speaks
        error = failed(make("webhook", url=f"https://127.0.0.1:{silent.getsockname()[1]}/"), timeout_s=0.5)
    assert "did not answer in time" in str(error)


def test_an_authority_file_that_is_none_is_found_at_the_start(make: Callable[..., Channel], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    (problem,) = make("webhook", url="https://hooks.example.org/x", ca_file="ca.pem").check()
    assert "ca_file" in problem
    assert "PEM" in problem
    assert len(make("webhook", url="https://hooks.example.org/x", ca_file="absent.pem").check()) == 1


def test_old_tls_is_refused(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], authority: Authority
) -> None:
    context = make("webhook", url="https://localhost/", ca_file=authority.path).poster._context  # type: ignore[attr-defined]  # a webhook's
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


# --- authentication, signature ---------------------------------------------------------------------------------------


def test_credentials_travel_as_they_should(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server = receiver()
    make("webhook", url=server.url, secrets={"token": "tok"}).send([notice()], timeout_s=PATIENT_S)
    make("webhook", url=server.url, username="a", secrets={"password": "b:\u00fc"}).send(
        [notice()], timeout_s=PATIENT_S
    )
    assert [each.headers["authorization"] for each in server.requests] == ["Bearer tok", "Basic YTpiOsO8"]


@pytest.mark.parametrize(
    ("table", "secrets", "words"),
    [
        ({"username": "a"}, {}, "belong together"),
        ({}, {"password": "a"}, "belong together"),
        ({"username": "a"}, {"password": "a", "token": "b"}, "keep one"),
        ({}, {"token": "t\u00f6ken"}, "no header has"),
        ({"ca_file": "x"}, {}, "without https"),
    ],
)
def test_credentials_that_do_not_fit_are_found(
    table: dict[str, Any], secrets: dict[str, str], words: str, make: Callable[..., Channel]
) -> None:
    (problem,) = make("webhook", url="http://hooks.example.org/", secrets=secrets, **table).check()
    assert words in problem


def test_the_signature_can_be_checked_and_cannot_be_replayed(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    clock, server, secret = FakeClock(), receiver(), "0123456789abcdef"
    make("webhook", url=server.url, clock=clock, secrets={"secret": secret}).send([notice()], timeout_s=PATIENT_S)
    (got,) = server.requests
    stamp, signature = got.headers[TIMESTAMP.lower()], got.headers[SIGNATURE.lower()]
    key, now_s = secret.encode(), clock.wall()
    assert verify(key, stamp, got.body, signature, now_unix_s=now_s)
    assert not verify(key, stamp, got.body + b" ", signature, now_unix_s=now_s)
    assert not verify(b"another secret...", stamp, got.body, signature, now_unix_s=now_s)
    assert not verify(key, str(int(stamp) + 200), got.body, signature, now_unix_s=now_s)
    assert not verify(key, stamp, got.body, signature, now_unix_s=now_s + 301)
    assert not verify(key, stamp, got.body, signature, now_unix_s=now_s - 301)


def test_the_signature_is_that_of_the_documentation() -> None:
    """Computed by `printf '1800000000.{}' | openssl dgst -sha256 -hmac 0123456789abcdef`."""
    import hashlib
    import hmac

    expected = hmac.new(b"0123456789abcdef", b"1800000000.{}", hashlib.sha256).hexdigest()
    assert sign(b"0123456789abcdef", "1800000000", b"{}") == f"v1={expected}"


@unhurried
@given(st.text(max_size=30), st.binary(max_size=50), st.text(max_size=80))
def test_checking_what_somebody_made_up_says_no(stamp: str, body: bytes, signature: str) -> None:
    assert not verify(b"0123456789abcdef", stamp, body, signature, now_unix_s=1.8e9)


def test_the_id_of_several_is_that_of_the_same_several(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver()
    channel = make("webhook", url=server.url)
    for numbers in ((1,), (1, 2), (2, 1), (1, 3)):
        channel.send([notice(number) for number in numbers], timeout_s=PATIENT_S)
    one, two, turned, others = (each.headers["idempotency-key"] for each in server.requests)
    assert one == "delivery-1"
    assert two == turned
    assert len({one, two, others}) == 3


@settings(unhurried, max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_becomes_json(value: Any) -> None:
    json.loads(as_json(value).decode(), parse_constant=pytest.fail)
