"""What every channel owes to whoever calls it, each against a receiver of its own kind."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from email import message_from_bytes
from email.policy import default as default_policy
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from memwarden.errors import DeliveryError
from memwarden.facts import Level
from memwarden.tell.channels import KINDS
from tests.tell.channels.conftest import notice
from tests.tell.channels.receivers import LOGIN, OK, PASSWORD, Receiver, answer, descriptors, until_closed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memwarden.ports import Channel

# Apprise's own, on Pythons that still have that module.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning"),  # on loopback
]

TOKEN = "T0K3N-aVeryLongOne+/="
PATIENT_S = 30.0
STATUS = answer(200, json.dumps({"versionInfo": {"version": "0.25.0"}}))


class World(NamedTuple):
    """A channel of one kind, what arrived there as text, and a way to make its receiver fail."""

    channel: Channel
    arrived: Callable[[], str]
    fail: Callable[[str], None]


@pytest.fixture(params=sorted(KINDS))
def world(request: pytest.FixtureRequest) -> World:
    return _world(request)


@pytest.fixture(params=sorted(set(KINDS) - {"log"}))
def fallible(request: pytest.FixtureRequest) -> World:
    """A log takes everything."""
    return _world(request)


def _world(request: pytest.FixtureRequest) -> World:
    kind: str = request.param
    found: World = request.getfixturevalue(f"_{kind}" if kind in ("smtp", "log", "command") else "_posting")(kind)
    return found


_TABLES: dict[str, Any] = {
    "slack": lambda url: ({}, {"url": f"{url}/services/{TOKEN}"}),
    "webhook": lambda url: ({}, {"url": f"{url}/hook?token={TOKEN}", "secret": TOKEN}),
    "pagerduty": lambda url: ({"url": f"{url}/v2/enqueue"}, {"routing_key": TOKEN}),
    "alertmanager": lambda url: ({"url": url}, {"token": TOKEN}),
    "apprise": lambda url: ({}, {"urls": f"{url.replace('http', 'json')}/{TOKEN}"}),
}


@pytest.fixture
def _posting(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> Callable[[str], World]:
    def of(kind: str) -> World:
        server = receiver(STATUS if kind == "alertmanager" else OK)
        table, secrets = _TABLES[kind](server.url)
        channel = make(kind, secrets=secrets, **table)

        def fail(how: str) -> None:
            # A rude one repeats all that it got, secrets included.
            said = {"error": lambda c: c.sendall(answer(400, f"bad request {TOKEN} " + str(server.requests[-1]))),
                    "hang": until_closed}[how]  # fmt: skip
            server.answers[:] = [said]

        return World(channel, lambda: "\n".join(each.body.decode() for each in server.requests), fail)

    return of


@pytest.fixture
def _smtp(mail_server: Callable[..., Any], receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> Any:
    def of(_kind: str) -> World:
        server = mail_server(login=True)
        table = {"host": "127.0.0.1", "security": "none", "from": "warden@example.org"}
        people = ["ops@example.org", "Night Shift <night@example.org>"]
        login = {"username": LOGIN, "secrets": {"password": PASSWORD}}
        channel = make("smtp", port=server.port, to=people, **login, **table)

        def arrived() -> str:
            mails = [message_from_bytes(each.content, policy=default_policy) for each in server.mails]
            parts: list[Any] = [mail.get_body(("plain",)) for mail in mails]
            return "\n".join(
                f"{mail['Subject']}\n{part.get_content()}" for mail, part in zip(mails, parts, strict=True)
            )

        def fail(how: str) -> None:
            if how == "error":
                server.answer = f"554 no {PASSWORD}"
            else:
                dead = receiver(until_closed)
                channel._endpoint.port = dead.port  # type: ignore[attr-defined]  # of those channels that have one

        return World(channel, arrived, fail)

    return of


@pytest.fixture
def _log(make: Callable[..., Channel], caplog: pytest.LogCaptureFixture) -> Callable[[str], World]:
    def of(_kind: str) -> World:
        channel = make("log", logger="tests.alerts")
        caplog.set_level(logging.INFO, logger="tests.alerts")

        def arrived() -> str:
            records = [each for each in caplog.records if each.name == "tests.alerts"]
            return "\n".join(
                f"{each.getMessage()} {each.memwarden_notice['delivery_id']}"  # type: ignore[attr-defined]  # from extra=
                for each in records
            )

        return World(channel, arrived, lambda how: None)

    return of


_PROGRAM = """
import os, signal, sys
if os.path.exists({fail!r}):
    with open({fail!r}) as how:
        if how.read() == "hang":
            signal.pause()  # until it is killed
    print("no: {token}", file=sys.stderr)
    sys.exit(64)
with open({out!r}, "ab") as file:
    file.write(sys.stdin.buffer.read() + b"\\n")
"""


@pytest.fixture
def _command(make: Callable[..., Channel], tmp_path: Path) -> Callable[[str], World]:
    def of(_kind: str) -> World:
        out, how_to_fail = tmp_path / "out", tmp_path / "fail"
        program = tmp_path / "page.py"
        program.write_text(_PROGRAM.format(fail=str(how_to_fail), out=str(out), token="-"))
        channel = make("command", command=[sys.executable, "-I", "-S", str(program)])
        return World(channel, lambda: out.read_text() if out.exists() else "", lambda how: _write(how_to_fail, how))

    return of


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_a_right_table_has_nothing_wrong(world: World) -> None:
    assert world.channel.check() == ()
    assert world.channel.name == "ops"


def test_warming_up_tells_nobody(world: World) -> None:
    world.channel.warm_up()
    assert "delivery-" not in world.arrived()


def test_a_notice_arrives_whole(world: World) -> None:
    world.channel.warm_up()
    world.channel.send([notice()], timeout_s=PATIENT_S)
    text = world.arrived()
    for part in ("api uses 91 % of its memory (1)", "466 MiB", "node-7", "api", "cache 200 MiB"):
        assert part in text
    if world.channel.kind != "apprise":  # what it sends is for people alone
        assert "delivery-1" in text


def test_notices_that_come_together_all_arrive(world: World) -> None:
    world.channel.send([notice(number) for number in range(1, 31)], timeout_s=PATIENT_S)
    text = world.arrived()
    assert [number for number in range(1, 31) if f"of its memory ({number})" not in text.replace("\n", " ")] == []


def test_it_can_be_used_again_after_close(world: World) -> None:
    world.channel.send([notice(1)], timeout_s=PATIENT_S)
    world.channel.close()
    world.channel.close()
    world.channel.send([notice(2)], timeout_s=PATIENT_S)
    assert "(2)" in world.arrived()


HOSTILE: dict[str, Any] = {
    "title": "bad\r\nBcc: everybody@example.org\r\n\r\n<b>&\x00\x1b[31m \ud800 title",
    "text": "<script>alert(1)</script> <!channel> & \u202e" + "x" * 100_000,
    "target": "pro\ncess\r\nX-Evil: 1",
    "host": "h\x00st",
    "key": "k" * 1000 + "\r\n",
    "delivery_id": "id\r\nX-Evil: 1",
    "details": {"a\nb": "c\r\nd", "nan": float("nan"), "deep": {"list": [1, {"x": None}]}, "<i>": "<!here>"},
}


def test_hostile_words_arrive_as_words(world: World) -> None:
    world.channel.send([notice(**HOSTILE)], timeout_s=PATIENT_S)
    assert "title" in world.arrived()


def test_every_level_and_every_turn_is_told(world: World) -> None:
    for number, level in enumerate(Level, 1):
        for what in ("raised", "changed", "escalated", "reminded", "recovered", "test"):
            world.channel.send([notice(number, level=level, what=what, delivery_id=f"{level.name}-{what}")],
                               timeout_s=PATIENT_S)  # fmt: skip
    assert world.arrived()


def test_a_refusal_is_an_error_of_one_line_and_names_no_secret(fallible: World) -> None:
    fallible.fail("error")
    with pytest.raises(DeliveryError) as caught:
        fallible.channel.send([notice()], timeout_s=PATIENT_S)
    error: BaseException | None = caught.value
    assert caught.value.recoverable is (fallible.channel.kind == "apprise")  # it does not say what happened
    assert "\n" not in str(error)
    while error is not None:
        shown = f"{error} {error!r} {error.args}"
        assert TOKEN not in shown
        assert PASSWORD not in shown
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_who_does_not_answer_does_not_hold_it_up(fallible: World) -> None:
    """The receiver waits for ever: that this ends proves the time-out."""
    fallible.fail("hang")
    with pytest.raises(DeliveryError) as caught:
        fallible.channel.send([notice()], timeout_s=0.5)
    assert caught.value.recoverable


def test_no_secret_shows_in_a_channel(world: World) -> None:
    shown = f"{world.channel!r} {world.channel}"
    assert TOKEN not in shown
    assert "SECRET" not in shown


def test_nothing_is_left_behind(world: World) -> None:
    world.channel.send([notice()], timeout_s=PATIENT_S)
    world.channel.close()
    before, threads = descriptors(), threading.active_count()
    for number in range(2, 12):
        world.channel.send([notice(number)], timeout_s=PATIENT_S)
        world.channel.close()
    # The receivers live in this process too: each has at most one connection and its thread left to end.
    assert descriptors() <= before + 6
    assert threading.active_count() <= threads + 4


TEMPLATED = sorted({"smtp", "slack", "webhook", "log", "apprise"})
_MINIMAL: dict[str, dict[str, Any]] = {
    "smtp": {"host": "localhost", "from": "a@example.org", "to": "b@example.org", "security": "none"},
    "slack": {"url": "https://hooks.example.org/x"},
    "webhook": {"url": "https://hooks.example.org/x"},
    "log": {},
    "apprise": {"urls": "json://localhost"},
}


@pytest.mark.parametrize("kind", TEMPLATED)
def test_an_unknown_field_of_a_template_is_found_before_anything_burns(
    kind: str, make: Callable[..., Channel], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("$titel of $details, ${details.owner}")
    channel = make(kind, template="mine.txt", **_MINIMAL[kind])
    (problem,) = channel.check()
    assert "mine.txt has an unknown field $titel" in problem
    assert "did you mean $title?" in problem
    with pytest.raises(DeliveryError, match="unknown field"):
        channel.send([notice()], timeout_s=PATIENT_S)


@pytest.mark.parametrize("kind", TEMPLATED)
@pytest.mark.parametrize("content", [b"100 $ of", b"\xff\xfe", b"x" * 70_000, None], ids=str)
def test_a_template_that_is_none_is_found(
    kind: str, content: bytes | None, make: Callable[..., Channel], tmp_path: Path
) -> None:
    if content is None:
        os.mkfifo(tmp_path / "mine.txt")  # nobody writes into it: it must not be waited for
    else:
        (tmp_path / "mine.txt").write_bytes(content)
    assert len(make(kind, template="mine.txt", **_MINIMAL[kind]).check()) == 1


def test_a_template_of_your_own_is_used(
    make: Callable[..., Channel], receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("$state $kind ${details.owner}|${details.used_bytes}|$$5")
    server = receiver()
    make("webhook", url=server.url, template="mine.txt").send(
        [notice(details={"owner": "billing", "used_bytes": 1 << 20})], timeout_s=PATIENT_S
    )
    assert json.loads(server.requests[0].body)["notices"][0]["message"] == "CRITICAL high_usage billing|1 MiB|$5"
