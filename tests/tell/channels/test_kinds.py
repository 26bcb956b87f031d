"""What each receiver gets: the documents of Slack, PagerDuty, Alertmanager, a command, a log."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import DeliveryError
from memwarden.facts import Level
from memwarden.tell.channels.pagerduty import dedup_key
from memwarden.tell.channels.slack import _cut_escaped
from memwarden.tell.channels.template import describe, escape_slack, iso_time
from memwarden.tell.signals import ONCE
from memwarden.testing import FakeClock
from tests.tell.channels.conftest import notice
from tests.tell.channels.receivers import OK, Receiver, answer
from tests.tell.channels.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memwarden.ports import Channel

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PATIENT_S = 30.0


def posted(server: Receiver) -> list[Any]:
    return [json.loads(each.body) for each in server.requests]


# --- Slack -----------------------------------------------------------------------------------------------------------


def test_slack_gets_blocks_within_its_limits(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server = receiver()
    channel = make("slack", url=server.url, channel="#ops", username="warden")
    long = [notice(number, title="t" * 500, text="&" * 9000, host="h" * 4000) for number in range(30)]
    channel.send(long, timeout_s=PATIENT_S)
    messages = posted(server)
    assert len(messages) == 3
    headers = 0
    for message in messages:
        assert (message["channel"], message["username"]) == ("#ops", "warden")
        assert len(message["blocks"]) <= 50
        for block in message["blocks"]:
            if block["type"] == "header":
                headers += 1
                assert len(block["text"]["text"]) <= 150
            elif block["type"] == "section":
                assert len(block["text"]["text"]) <= 3000
            elif block["type"] == "context":
                assert len(block["elements"][0]["text"]) <= 3000
    assert headers == 30


def test_slack_cannot_be_made_to_mention_anybody(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver()
    evil = "<!channel> <@U123> <https://evil.example|click>"
    make("slack", url=server.url).send([notice(title=evil, text=evil, target=evil)], timeout_s=PATIENT_S)
    (message,) = posted(server)
    assert "<" not in message["text"]
    for block in message["blocks"]:
        if block.get("text", {}).get("type") == "mrkdwn":
            assert "<" not in block["text"]["text"]


@unhurried
@given(st.text(alphabet="&<>ab", max_size=60), st.integers(min_value=10, max_value=40))
def test_slack_text_is_cut_between_characters(text: str, longest: int) -> None:
    cut = _cut_escaped(escape_slack(text), longest)
    assert len(cut) <= longest
    plain = cut.removesuffix("...").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert text.startswith(plain)


def test_slack_says_no_in_its_own_way(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server = receiver(answer(200, '{"ok": false, "error": "channel_not_found"}'))
    with pytest.raises(DeliveryError, match="channel_not_found") as caught:
        make("slack", url=server.url).send([notice()], timeout_s=PATIENT_S)
    assert not caught.value.recoverable


def test_what_slack_took_of_a_batch_is_not_told_again(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver(OK, answer(503), OK)
    channel = make("slack", url=server.url)
    many = [notice(number) for number in range(20)]
    with pytest.raises(DeliveryError):
        channel.send(many, timeout_s=PATIENT_S)
    channel.send(many, timeout_s=PATIENT_S)
    headers = [[b for b in message["blocks"] if b["type"] == "header"] for message in posted(server)]
    assert [len(each) for each in headers] == [12, 8, 8]


# --- PagerDuty -------------------------------------------------------------------------------------------------------


def test_pagerduty_triggers_and_resolves_the_same_incident(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver(answer(202, '{"status": "success"}'))
    channel = make("pagerduty", url=server.url, runbook="https://wiki/x", secrets={"routing_key": "R" * 32})
    turns = ("raised", "changed", "acknowledged", "recovered")
    for number, what in enumerate(turns):
        channel.send([notice(1, what=what, delivery_id=f"d{number}")], timeout_s=PATIENT_S)
    events = posted(server)
    assert [each["event_action"] for each in events] == ["trigger", "trigger", "acknowledge", "resolve"]
    assert len({each["dedup_key"] for each in events}) == 1
    assert {each["routing_key"] for each in events} == {"R" * 32}
    payload = events[0]["payload"]
    assert (payload["severity"], payload["source"], payload["component"]) == ("error", "node-7", "api")
    assert payload["custom_details"]["delivery_id"] == "d0"
    assert events[0]["links"] == [{"href": "https://wiki/x", "text": "Runbook"}]


def test_a_pagerduty_test_leaves_nobody_paged(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server = receiver(answer(202))
    channel = make("pagerduty", url=server.url, secrets={"routing_key": "R" * 32})
    channel.send([notice(what="test", level=Level.NORMAL)], timeout_s=PATIENT_S)
    assert [each["event_action"] for each in posted(server)] == ["trigger", "resolve"]


def test_pagerduty_limits_hold(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server = receiver(answer(202))
    channel = make("pagerduty", url=server.url, secrets={"routing_key": "R" * 32})
    huge = notice(title="t" * 5000, key="k" * 5000, text="x" * 600_000)
    channel.send([huge], timeout_s=PATIENT_S)
    (event,) = posted(server)
    assert len(event["dedup_key"]) <= 255
    assert len(event["payload"]["summary"]) <= 1024
    assert len(server.requests[0].body) <= 512_000


def test_states_of_other_hosts_are_other_incidents() -> None:
    assert dedup_key(notice(host="a")) != dedup_key(notice(host="b"))
    assert dedup_key(notice(key="k" * 500)) != dedup_key(notice(key="k" * 501))


def test_what_pagerduty_took_of_a_batch_is_not_sent_again(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver(answer(202), answer(429, Retry_After="3"), answer(202))
    channel = make("pagerduty", url=server.url, secrets={"routing_key": "R" * 32})
    three = [notice(number) for number in range(3)]
    with pytest.raises(DeliveryError) as caught:
        channel.send(three, timeout_s=PATIENT_S)
    assert caught.value.retry_after_s == 3.0
    channel.send(three, timeout_s=PATIENT_S)
    sent = [each["payload"]["custom_details"]["delivery_id"] for each in posted(server)]
    assert sent == ["delivery-0", "delivery-1", "delivery-1", "delivery-2"]


# --- Alertmanager ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "/", "/am/", "/api/v2/alerts", "/am/api/v2/alerts/"])
def test_alertmanagers_address_may_be_written_either_way(
    end: str, receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver(b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"versionInfo": 1}')
    channel = make("alertmanager", url=server.url + end, clock=FakeClock())
    channel.warm_up()
    channel.send([notice()], timeout_s=PATIENT_S)
    below = "/am" if end.startswith("/am") else ""
    assert [each.target for each in server.requests] == [f"{below}/api/v2/status", f"{below}/api/v2/alerts"]


def test_alertmanager_labels(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server, clock = receiver(), FakeClock()
    channel = make("alertmanager", url=f"{server.url}/am/", clock=clock, labels={"team": "web"}, expires="2h")
    channel.send([notice(unix_s=clock.wall() - 60)], timeout_s=PATIENT_S)
    assert server.requests[0].target == "/am/api/v2/alerts"
    (alert,) = posted(server)[0]
    assert alert["labels"] == {"team": "web", "alertname": "memwarden_high_usage", "instance": "node-7",
                               "target": "api",
                               "key": "api/high_usage/1", "severity": "critical"}  # fmt: skip
    assert alert["startsAt"] == "2027-01-15T07:59:00Z"
    assert alert["endsAt"] == "2027-01-15T10:00:00Z"


def on_and_over(server: Receiver) -> list[tuple[set[str], set[str]]]:
    """For each request the severities that are on, and those that are over."""
    found = []
    for alerts in posted(server):
        on: set[str] = set()
        over: set[str] = set()
        for each in alerts:
            (on if each["endsAt"] > "2027-01-15T08:00:00Z" else over).add(each["labels"]["severity"])
        found.append((on, over))
    return found


def test_a_changed_level_takes_the_place_of_the_one_before(
    receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server = receiver()
    turns = [
        notice(level=Level.WARNING),
        notice(level=Level.EMERGENCY, what="changed"),
        notice(level=Level.EMERGENCY, what="reminded"),
        notice(level=Level.NORMAL, what="recovered"),
    ]
    channel = make("alertmanager", url=server.url, clock=FakeClock())
    for each in turns:
        channel.send([each], timeout_s=PATIENT_S)
    assert on_and_over(server) == [
        ({"warning"}, set()), ({"emergency"}, {"warning"}), ({"emergency"}, set()), (set(), {"emergency"}),
    ]  # fmt: skip


def test_after_a_restart_nothing_stays_on(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    server = receiver()
    for each in (notice(level=Level.EMERGENCY, what="changed"), notice(level=Level.NORMAL, what="recovered")):
        make("alertmanager", url=server.url, clock=FakeClock()).send([each], timeout_s=PATIENT_S)
    assert on_and_over(server) == [
        ({"emergency"}, {"info", "warning", "critical"}), (set(), {"info", "warning", "critical", "emergency"}),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**400), 1e299, float("inf"), -1], ids=range(6))
@pytest.mark.parametrize("name", ["a", "a_bytes", "a_s", "a_ratio", "a_percent", "a_unix_s", "a_bytes_per_minute"])
def test_every_figure_has_words(name: str, value: float) -> None:
    ((_, words),) = describe({name: value})
    assert words


@pytest.mark.parametrize(
    ("kind", "details", "minutes"),
    [
        ("spike", {}, 10), ("collections", {}, 10), ("custom", {ONCE: True}, 10), ("custom", {}, 1440),
        ("high_usage", {ONCE: "yes"}, 1440),
    ],
)  # fmt: skip
def test_what_happened_once_is_shown_for_ten_minutes(
    kind: str, details: dict[str, Any], minutes: int, receiver: Callable[..., Receiver], make: Callable[..., Channel]
) -> None:
    server, clock = receiver(), FakeClock()
    make("alertmanager", url=server.url, clock=clock).send([notice(kind=kind, details=details)], timeout_s=PATIENT_S)
    (alert,) = posted(server)[0]
    assert alert["endsAt"] == iso_time(clock.wall() + minutes * 60)


def test_what_is_no_alertmanager_is_found(receiver: Callable[..., Receiver], make: Callable[..., Channel]) -> None:
    with pytest.raises(DeliveryError, match="is no Alertmanager"):
        make("alertmanager", url=receiver().url).warm_up()
    with pytest.raises(DeliveryError, match="401"):
        make("alertmanager", url=receiver(answer(401)).url).warm_up()


@pytest.mark.parametrize("labels", [{"severity": "x"}, {"a-b": "x"}, {"__x": "y"}, {"a": ""}, {"a": 1}, "x"])
def test_labels_that_are_none_are_found(labels: Any, make: Callable[..., Channel]) -> None:
    assert len(make("alertmanager", url="http://localhost", labels=labels).check()) == 1


# --- a command -------------------------------------------------------------------------------------------------------


def program(folder: Path, text: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(text)
    return [sys.executable, "-I", "-S", str(path)]


def test_a_command_gets_the_notices_and_few_variables(make: Callable[..., Channel], tmp_path: Path) -> None:
    os.environ["MEMWARDEN_TEST_HIDDEN"] = "x"  # of the process that tells
    out = str(tmp_path / "out")
    text = f"import json, os, sys; json.dump([json.load(sys.stdin), dict(os.environ)], open({out!r}, 'w'))"
    try:
        make("command", command=program(tmp_path, text)).send([notice(1), notice(2)], timeout_s=PATIENT_S)
    finally:
        del os.environ["MEMWARDEN_TEST_HIDDEN"]
    document, environ = json.loads((tmp_path / "out").read_text())
    assert [each["delivery_id"] for each in document["notices"]] == ["delivery-1", "delivery-2"]
    assert "MEMWARDEN_TEST_HIDDEN" not in environ


@pytest.mark.parametrize(("code", "later"), [(1, True), (75, True), (64, False), (78, False), (255, True)])
def test_a_command_says_by_its_code_whether_to_try_again(
    code: int, later: bool, make: Callable[..., Channel], tmp_path: Path
) -> None:
    command = program(tmp_path, f"import sys; print('line one\\nno\\x1b[31m luck', file=sys.stderr); sys.exit({code})")
    with pytest.raises(DeliveryError, match=f"ended with {code}: line one no.*luck") as caught:
        make("command", command=command).send([notice()], timeout_s=PATIENT_S)
    assert caught.value.recoverable is later


def test_a_command_that_hangs_is_killed_with_its_children(make: Callable[..., Channel], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    text = f"""
import os, time, sys
child = os.fork()
if child:
    with open({str(pids) + ".new"!r}, "w") as file:
        file.write(f"{{os.getpid()}} {{child}}")
    os.rename({str(pids) + ".new"!r}, {str(pids)!r})
while True:
    sys.stderr.write("x" * 10000)
    time.sleep(0.01)  # it hangs and talks, and leaves the processor to others until it is killed
"""
    channel = make("command", command=program(tmp_path, text))
    with pytest.raises(DeliveryError, match="did not end in time and was killed"):
        channel.send([notice()], timeout_s=5)
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: _is_gone(int(pid)))  # type: ignore[misc]  # mypy knows no lambda with a default


def _is_gone(pid: int) -> bool:
    """Gone, or dead and waiting for its parent, which is init's business."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_a_command_that_leaves_something_running_is_not_waited_for(
    make: Callable[..., Channel], tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    text = f"""
import os, signal
if os.fork():
    os._exit(0)
os.setsid()
with open({str(pid)!r}, "w") as file:
    file.write(str(os.getpid()))
signal.pause()  # until the test ends it
"""
    try:
        make("command", command=program(tmp_path, text)).send([notice()], timeout_s=PATIENT_S)
    finally:
        wait_for(lambda: pid.exists() and pid.read_text() != "")
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("command", ["ls -l", [], [""], ["/no/such/program"], ["/etc/passwd"], [1], ["a\nb"]])
def test_a_command_that_is_none_is_found(command: Any, make: Callable[..., Channel]) -> None:
    channel = make("command", command=command)
    assert len(channel.check()) == 1
    with pytest.raises(DeliveryError) as caught:
        channel.send([notice()], timeout_s=PATIENT_S)
    assert not caught.value.recoverable


def test_a_command_is_named_from_the_folder_of_the_settings_wherever_the_process_is(
    make: Callable[..., Channel], tmp_path: Path
) -> None:
    page = tmp_path / "bin" / "page"
    page.parent.mkdir()
    page.write_text("#!/bin/sh\npwd > $1\n")
    page.chmod(0o755)
    for name in ("./bin/page", "bin/page"):
        channel = make("command", command=[name, str(tmp_path / "out")])
        assert channel.check() == ()
        channel.send([notice()], timeout_s=PATIENT_S)
        assert (tmp_path / "out").read_text() == "/\n"


def test_no_shell_reads_a_command(make: Callable[..., Channel], tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f"import sys; open({str(out)!r}, 'w').write(sys.argv[1])"
    make("command", command=[*program(tmp_path, text), "$(id); `id` | cat"]).send([notice()], timeout_s=PATIENT_S)
    assert out.read_text() == "$(id); `id` | cat"


# --- a log -----------------------------------------------------------------------------------------------------------


def test_a_log_has_the_level_and_one_line(make: Callable[..., Channel], caplog: pytest.LogCaptureFixture) -> None:
    channel = make("log")
    with caplog.at_level(logging.INFO, logger="memwarden.alerts"):
        channel.send([notice(number, level=level, text="a\nb") for number, level in enumerate(Level)], timeout_s=1)
        channel.send([notice(9, what="recovered", level=Level.NORMAL)], timeout_s=1)
    assert [each.levelno for each in caplog.records] == [20, 30, 40, 50, 30]
    assert caplog.messages[2] == (
        "[CRITICAL] api uses 91 % of its memory (2): a | b | used: 466 MiB | limit: 512 MiB | "
        "holders: cache 200 MiB; pool 90 MiB (api on node-7)"
    )
    assert caplog.messages[4].startswith("[RECOVERED] api uses")


# --- Apprise --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what it imports
def test_apprise_says_why_and_nobody_logs_the_path_of_its_address(
    receiver: Callable[..., Receiver], make: Callable[..., Channel], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("apprise")
    caplog.set_level(logging.DEBUG)
    server = receiver(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
    url = f"{server.url.replace('http', 'json')}/T0PSECRETPATH9"
    channel = make("apprise", secrets={"urls": url})
    with pytest.raises(DeliveryError, match=r"a service did not take it: .*410") as caught:
        channel.send([notice()], timeout_s=PATIENT_S)
    assert server.requests[0].target == "/T0PSECRETPATH9"
    logging.getLogger("urllib3.connectionpool").debug("as before")
    assert "as before" in caplog.text
    assert "T0PSECRETPATH9" not in caplog.text + str(caught.value)
    channel.close()
