"""Mail against a real server: TLS both ways, logins, recipients that are refused, and servers that misbehave."""

from __future__ import annotations

import logging
import socket
import threading
from email import message_from_bytes
from email.policy import default as default_policy
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import DeliveryError
from memwarden.facts import Level
from tests.tell.channels.conftest import notice
from tests.tell.channels.receivers import LOGIN, PASSWORD, Authority, MailServer, until_closed

if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.ports import Channel

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")

PATIENT_S = 30.0
PEOPLE = ["ops@example.org", "night@example.org", "boss@example.org"]


def table(port: int, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "security": "none", "from": "memwarden <w@example.org>", "to": PEOPLE,
            **more}  # fmt: skip


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_tls_and_a_login(
    security: str, mail_server: Callable[..., MailServer], make: Callable[..., Channel], authority: Authority
) -> None:
    server = mail_server(security=security, tls=authority.good, login=True)
    more = {"security": security, "ca_file": authority.path, "username": LOGIN}
    channel = make("smtp", secrets={"password": PASSWORD}, **table(server.port, **more))
    channel.warm_up()
    assert server.mails == []
    channel.send([notice()], timeout_s=PATIENT_S)
    (mail,) = server.mails
    assert (mail.mail_from, mail.rcpt_tos) == ("w@example.org", PEOPLE)
    assert set(server.logins) == {(LOGIN.encode(), PASSWORD.encode())}


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_certificate_that_is_not_trusted_gets_no_login(
    security: str, mail_server: Callable[..., MailServer], make: Callable[..., Channel], authority: Authority
) -> None:
    server = mail_server(security=security, tls=authority.good, login=True)
    channel = make("smtp", secrets={"password": PASSWORD}, **table(server.port, security=security, username=LOGIN))
    with pytest.raises(DeliveryError, match="not trusted"):
        channel.warm_up()
    assert server.logins == []


def test_a_wrong_password_is_found_by_the_handshake(
    mail_server: Callable[..., MailServer], make: Callable[..., Channel], authority: Authority
) -> None:
    server = mail_server(security="starttls", tls=authority.good, login=True)
    more = {"security": "starttls", "ca_file": authority.path, "username": LOGIN}
    channel = make("smtp", secrets={"password": "hunter2-hunter2"}, **table(server.port, **more))
    with pytest.raises(DeliveryError, match=r"refuses the login .*see that username and password are right") as caught:
        channel.warm_up()
    assert caught.value.recoverable  # somebody may mend it
    assert "hunter2" not in str(caught.value)


def test_a_server_without_starttls_is_not_spoken_to_in_the_clear(
    mail_server: Callable[..., MailServer], make: Callable[..., Channel]
) -> None:
    server = mail_server()
    with pytest.raises(DeliveryError, match="offers no STARTTLS") as caught:
        make("smtp", **table(server.port, security="starttls")).send([notice()], timeout_s=PATIENT_S)
    assert caught.value.recoverable  # somebody may mend it
    assert server.mails == []


def test_what_was_said_before_tls_does_not_count(make: Callable[..., Channel], authority: Authority) -> None:
    """The answer to STARTTLS brings a second one in the same segment (CVE-2011-0411): it must not be believed."""

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            connection.sendall(b"220 hello\r\n")
            file.readline()
            connection.sendall(b"250-hello\r\n250 STARTTLS\r\n")
            file.readline()
            connection.sendall(b"220 go on\r\n250 injected\r\n")
            with authority.good.wrap_socket(connection, server_side=True) as secured:
                while secured.recv(100):
                    secured.sendall(b"421 the true answer\r\n")

    with _server(serve) as port, pytest.raises(DeliveryError, match="421"):
        make("smtp", **table(port, security="starttls", ca_file=authority.path)).warm_up()


class _server:  # noqa: N801  reads as a function
    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._serve = serve
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        connection, _ = self._listening.accept()
        try:
            self._serve(connection)
        except OSError:
            pass
        finally:
            connection.close()

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._listening.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        self._listening.close()


def test_the_mail_is_whole(mail_server: Callable[..., MailServer], make: Callable[..., Channel]) -> None:
    server = mail_server()
    channel = make("smtp", **table(server.port))
    hostile = notice(title="caf\u00e9 <b>&\r\nBcc: evil@example.org", text=".\r\n.leading dot\n\u00fc" + "w" * 2000)
    channel.send([hostile], timeout_s=PATIENT_S)
    mail: Any = message_from_bytes(server.mails[0].content, policy=default_policy)
    assert mail["Subject"] == "[memwarden] [CRITICAL] caf\u00e9 <b>& Bcc: evil@example.org"
    assert mail["Bcc"] is None
    assert mail["To"] == ", ".join(PEOPLE)
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Importance"] == "high"
    assert mail["X-Memwarden-Delivery-Id"] == "delivery-1"
    text, html = (mail.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert "\n.leading dot\n\u00fc" + "w" * 2000 in text.replace("\r\n", "\n")
    assert "caf\u00e9 &lt;b&gt;&amp;" in html
    assert "<b>" not in html
    for line in server.mails[0].content.split(b"\r\n"):
        assert len(line) <= 998
        assert b"\n" not in line


def test_one_state_is_one_thread_and_one_delivery_one_mail(
    mail_server: Callable[..., MailServer], make: Callable[..., Channel]
) -> None:
    server = mail_server()
    first = make("smtp", **table(server.port))
    again = make("smtp", **table(server.port))  # another process, which does not know
    raised, recovered = notice(1), notice(2, key=notice(1).key, what="recovered", level=Level.NORMAL)
    first.send([raised], timeout_s=PATIENT_S)
    again.send([raised], timeout_s=PATIENT_S)
    first.send([recovered], timeout_s=PATIENT_S)
    mails = [message_from_bytes(each.content, policy=default_policy) for each in server.mails]
    assert mails[0]["Message-ID"] == mails[1]["Message-ID"] != mails[2]["Message-ID"]
    assert mails[0]["References"] == mails[2]["References"]
    assert mails[2]["Importance"] is None


def test_one_recipient_who_is_refused_does_not_keep_it_from_the_others(
    mail_server: Callable[..., MailServer], make: Callable[..., Channel], caplog: pytest.LogCaptureFixture
) -> None:
    server = mail_server()
    server.refuse[PEOPLE[1]] = "550 no such user"
    channel = make("smtp", **table(server.port))
    with caplog.at_level(logging.WARNING, logger="memwarden.tell"):
        channel.send([notice(1)], timeout_s=PATIENT_S)
        channel.send([notice(2)], timeout_s=PATIENT_S)
    assert [mail.rcpt_tos for mail in server.mails] == [[PEOPLE[0], PEOPLE[2]]] * 2
    (said,) = (each for each in caplog.messages if "no such user" in each)  # once, for two mails
    assert said.endswith(f"the mail server refuses {PEOPLE[1]} (550 no such user); the others have the mail")


def test_who_is_to_wait_is_tried_again_alone(
    mail_server: Callable[..., MailServer], make: Callable[..., Channel]
) -> None:
    server = mail_server()
    server.refuse[PEOPLE[1]] = "451 greylisted, come back"
    channel = make("smtp", **table(server.port))
    with pytest.raises(DeliveryError, match="greylisted") as caught:
        channel.send([notice()], timeout_s=PATIENT_S)
    assert caught.value.recoverable
    server.refuse.clear()
    channel.send([notice()], timeout_s=PATIENT_S)
    assert [mail.rcpt_tos for mail in server.mails] == [[PEOPLE[0], PEOPLE[2]], [PEOPLE[1]]]


@pytest.mark.parametrize("code", ["550 never", "450 later"])
def test_when_all_are_refused_it_failed(
    code: str, mail_server: Callable[..., MailServer], make: Callable[..., Channel]
) -> None:
    server = mail_server()
    server.refuse.update(dict.fromkeys(PEOPLE, code))
    with pytest.raises(DeliveryError, match=code) as caught:
        make("smtp", **table(server.port)).send([notice()], timeout_s=PATIENT_S)
    assert caught.value.recoverable  # `to` may be mended
    assert server.mails == []


@pytest.mark.parametrize(("answer", "later"), [("554 spam", False), ("452 disk full", True)])
def test_a_mail_that_is_refused_as_a_whole(
    answer: str, later: bool, mail_server: Callable[..., MailServer], make: Callable[..., Channel]
) -> None:
    server = mail_server()
    server.answer = answer
    with pytest.raises(DeliveryError, match=answer) as caught:
        make("smtp", **table(server.port)).send([notice()], timeout_s=PATIENT_S)
    assert caught.value.recoverable is later


def drip(connection: socket.socket) -> None:
    until_closed(connection, b"220-" + b"x" * 10_000)


def flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"220-" + b"x" * 400 + b"\r\n")


def goodbye(connection: socket.socket) -> None:
    connection.sendall(b"421 too busy\r\n")


def web(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("serve", [until_closed, drip, flood, goodbye, web, lambda connection: None])
def test_a_server_that_misbehaves_is_given_up(
    serve: Callable[[socket.socket], None], make: Callable[..., Channel]
) -> None:
    with _server(serve) as port, pytest.raises(DeliveryError) as caught:
        make("smtp", **table(port)).send([notice()], timeout_s=0.6)
    assert caught.value.recoverable


@pytest.mark.parametrize(
    ("more", "secrets", "words"),
    [
        ({"to": []}, {}, "has no recipient"),
        ({"to": ["ops"]}, {}, "'ops' is no mail address"),
        ({"to": ["a@example.org\r\nBcc: b@example.org"]}, {}, "no text in one line"),
        ({"to": ["a@example.org", "A@example.org"]}, {}, "names a recipient twice"),
        ({"from": "a@b@c"}, {}, "is no mail address"),
        ({"to": "Doe, John <j@example.org>"}, {}, "has a sign in the name"),
        ({"to": 'x@example.org, "y" <j@example.org>'}, {}, "has a sign in the name"),
        ({"port": 70000}, {}, "is no port"),
        ({"security": "ssl"}, {}, "write starttls, tls, none"),
        ({"host": "mail.example.org/x"}, {}, "is no host"),
        ({"username": "a"}, {}, "belong together"),
        ({"host": "mail.example.org", "username": "a"}, {"password": "b"}, "in the clear"),
        ({"host": "localhost.example.org", "username": "a"}, {"password": "b"}, "in the clear"),
        ({"host": "127.evil.example", "username": "a"}, {"password": "b"}, "in the clear"),
        ({"host": "::1:2", "username": "a"}, {"password": "b"}, "in the clear"),
        ({"password": "hunter2"}, {}, "is a secret, and is not read from here; write password_env or password_file"),
        ({"security": "tls", "ca_file": "absent.pem"}, {}, "ca_file"),
    ],
)
def test_settings_that_cannot_be_used_are_found(
    more: dict[str, Any], secrets: dict[str, str], words: str, make: Callable[..., Channel]
) -> None:
    (problem,) = make("smtp", secrets=secrets, **{**table(25), **more}).check()
    assert words in problem
    assert "hunter2" not in problem
    assert "\n" not in problem


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.8.7", "::1", "[::1]"])
def test_a_password_may_go_to_this_machine_in_the_clear(host: str, make: Callable[..., Channel]) -> None:
    channel = make("smtp", secrets={"password": "b"}, **{**table(25), "host": host, "username": "a"})
    assert channel.check() == ()
