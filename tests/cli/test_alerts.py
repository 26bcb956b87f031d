"""`memwarden alerts` and `monitor --webhook`: by hand, for cron, and every wrong input in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.tell.test_kills import ROOT, Receiver

from memwarden.blackbox import BlackBox
from memwarden.cli import main
from memwarden.clock import SystemClock
from memwarden.facts import Level
from memwarden.store import FILE_NAME
from memwarden.tell.outbox import Outbox
from memwarden.tell.rules import Draft
from memwarden.tell.sender import Teller, posted
from memwarden.tell.settings import AlertSettings, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "T0PSECRETTOKEN123"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Place:
    """A folder with a memwarden.toml, and a receiver whose address has a secret in it."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        host, port = receiver.server.server_address[:2]
        self.folder, self.receiver = folder, receiver
        self.url = f"http://{host!s}:{port}/hooks/{SECRET}"
        hook = f'[alerts.channels.hook]\nkind = "webhook"\nurl = "{self.url}"\n'
        self.write(f'[alerts]\nservice = "shop"\ngroup_wait = "0s"\n{hook}')

    def write(self, text: str, *, level: str = "1%") -> None:
        lines = f'dir = "{self.folder}/state"\nwarning = "{level}"\ncritical = "98%"\nemergency = "99%"\n'
        lines += 'leave_gap = "0.5%"\n'
        (self.folder / "memwarden.toml").write_text(lines + text)

    def run(self, *words: str, code: int = 0) -> Ran:
        """The command line, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = main(list(words))
        return self._checked(Ran(found, out.getvalue(), err.getvalue()), code)

    def start(self, *words: str, code: int = 0) -> Ran:
        """The same in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "memwarden", *words], capture_output=True, text=True, cwd=self.folder, timeout=60,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.path.join(ROOT, "src")},
        )  # fmt: skip
        return self._checked(Ran(done.returncode, done.stdout, done.stderr), code)

    @staticmethod
    def _checked(ran: Ran, code: int) -> Ran:
        assert ran.code == code, ran
        assert SECRET not in ran.stdout + ran.stderr
        return ran

    def json(self, *words: str) -> Any:
        return json.loads(self.run("alerts", *words, "--format", "json").stdout)


@pytest.fixture
def place(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MEMWARDEN_DIR")  # the file says where
    return Place(tmp_path, receiver)


def test_from_a_look_to_its_end_by_hand(place: Place) -> None:
    found = place.json("check")
    assert (found["level"], [each["what"] for each in found["told"]]) == ("WARNING", ["raised"])
    assert place.json("check")["told"] == []
    assert place.run("alerts", "check", "--fail", code=1).stdout.startswith("WARNING")
    (state,) = place.json("list")["alerts"]
    assert (state["level"], state["open"]) == ("WARNING", True)
    assert (state["channels"]["hook"]["level"], state["channels"]["hook"]["episode"]) == ("WARNING", 1)
    assert "          told hook (" in place.run("alerts", "list").stdout
    key = state["key"]
    assert place.json("ack", key, "--by", "alice")["acked_by"] == "alice"
    assert "acknowledged by alice" in place.run("alerts", "list").stdout
    assert "resolved: " in place.run("alerts", "resolve", key).stdout
    assert "1 told: 1 delivered" in place.run("alerts", "deliver").stdout
    assert [each["what"] for each in place.receiver.got] == ["raised", "recovered"]
    whats = [each["what"] for each in place.json("history")]
    assert whats == ["recovered", "acknowledged", "raised"]
    empty = place.run("alerts", "history", "--kind", "leak")
    assert (empty.stdout, empty.stderr) == ("", "memwarden alerts: nothing like that is in the history\n")
    assert "nothing is on" in place.run("alerts", "list").stdout
    assert place.json("list", "--all")["alerts"][0]["open"] is False


def test_what_stands_in_a_slot_alone_is_on_too(place: Place) -> None:
    clock = SystemClock()
    box = BlackBox(f"{place.folder}/state/run", pid=os.getpid(), unix_s=clock.wall(), monotonic_s=0.0, posts=True)
    teller = Teller(AlertSettings(policy=Policy()), (), target="shop", host="host")
    teller.attach(box)
    for kind, what in (("high_usage", "raised"), ("leak", "raised"), ("leak", "cleared")):
        teller.tell(Draft(kind=kind, what=what, level=Level.EMERGENCY, title="full", text="text"))
    shown = place.run("alerts", "list").stdout
    assert shown.startswith("EMERGENCY high_usage:shop  said ")
    assert ("not in the store yet" in shown, "leak" in shown, "nothing is on" in shown) == (True, False, False)
    assert [(each["key"], each["level"]) for each in place.json("list")["unstored"]] == [
        ("high_usage:shop", "EMERGENCY")
    ]
    place.run("alerts", "deliver")  # of a process that lives it takes nothing, but it may be in the store all the same
    outbox = Outbox(AlertSettings(policy=Policy()), folder=f"{place.folder}/state", clock=clock)
    outbox.take([each for _, _, each in posted(f"{place.folder}/state/run") if each is not None])
    outbox.close()
    assert place.json("list")["unstored"] == []
    box.close()


def test_a_channel_that_is_configured_no_more_is_said_to_be(place: Place) -> None:
    table = '[alerts]\n[alerts.channels.hook]\nkind = "webhook"\nurl = "http://127.0.0.1:9/x"\n'
    place.write(table)
    place.run("alerts", "check")
    place.write('[alerts]\n[alerts.channels.log]\nkind = "log"\n')
    (line,) = [each for each in place.run("alerts", "list").stdout.splitlines() if each.startswith("channel hook")]
    assert line == (
        "channel hook: 0 sent, 1 waiting, 0 given up, not configured any more: "
        "what waits is given up 7 d after it was made"
    )


def test_a_silence_is_set_shown_and_ended(place: Place) -> None:
    number = place.json("silence", "kind=high_usage", "--for", "2h", "--comment", "a deploy")["number"]
    place.run("alerts", "check")
    assert place.receiver.got == []
    assert "a deploy" in place.run("alerts", "list").stdout
    place.run("alerts", "silence", "--end", str(number))
    place.run("alerts", "check")
    assert [each["what"] for each in place.receiver.got] == ["raised"]


def test_a_silence_says_what_it_covers(place: Place) -> None:
    place.run("alerts", "check")
    (key,) = [each["key"] for each in place.json("list")["alerts"]]
    assert "key=foo covers of what is on: nothing" in place.run("alerts", "silence", "foo").stdout
    assert f"kind=high* covers of what is on: {key}" in place.run("alerts", "silence", "kind=high*").stdout
    assert place.json("silence", "level=WARN*")["covers"] == [key]


def test_a_collector_that_fails_is_a_failure_of_the_test(place: Place) -> None:
    table = '[alerts.channels.log]\nkind = "log"\n[alerts.collectors]\ncpu = true\ndisk = "/nonexistent"\n'
    place.write(table)
    lines = place.run("alerts", "test", code=1).stdout.splitlines()
    assert lines[1] == "collector disk: FAILED: /nonexistent: No such file or directory"
    assert lines[2].startswith("store: ok")


def test_test_sends_by_every_channel_and_looks_at_the_store(place: Place) -> None:
    rows = place.json("test")
    assert [(row["channel"], row["ok"]) for row in rows] == [("hook", True), ("store", True)]
    (notice,) = place.receiver.got
    assert (notice["kind"], notice["what"], notice["target"]) == ("test", "test", "shop")


def test_a_receiver_that_is_not_there_is_a_failure_of_the_test(place: Place) -> None:
    place.write('[alerts.channels.hook]\nkind = "webhook"\nurl = "http://127.0.0.1:9/x"\n')
    assert "hook: FAILED: " in place.run("alerts", "test", code=1).stdout


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('kind = "webhook"\nurl = "nonsense"', "is no http or https address"),
        ('kind = "webhook"', "url"),
        ('kind = "pager"', "is no kind of channel"),
        ('kind = "smtp"\nhost = "localhost"\nfrom = "a@b.c"\nto = []', "has no recipient"),
        ('kind = "smtp"\nhost = "localhost"\nfrom = "a@b.c"\nto = "nobody"', "is no mail address"),
        ('kind = "webhook"\nurl_env = "NOT_SET"', "NOT_SET is not set"),
        ('kind = "log"\nthrottel = "5m"', "there is no setting 'throttel'; did you mean 'throttle'?"),
        ('kind = "log"\ntimeout = "soon"', "'soon' is not a duration"),
        ('kind = "log"\ngive_up_after = 0', "0 is no number from 1 to 20"),
        ('kind = "log"\ngive_up_after = "0s"', "is neither tries nor a time; write 3, or"),
        ('kind = "smtp"\nhost = "localhost"\nfrom = "a@b.c"\nto = ""', "to: has no recipient"),
        ('kind = "smtp"\nhost = ""\nfrom = "a@b.c"\nto = "a@b.c"', "host: is empty"),
    ],
)
def test_a_channel_that_is_wrong_is_one_clear_line(place: Place, table: str, words: str) -> None:
    place.write(f"[alerts.channels.hook]\n{table}\n")
    (line, _) = place.run("alerts", "test", code=1).stdout.splitlines()
    assert line.startswith("hook: FAILED: memwarden.toml: alerts.channels.hook")
    assert words in line
    (checked,) = place.run("config").stderr.splitlines()
    assert checked == f"memwarden config: {line.removeprefix('hook: FAILED: ')}"


def test_a_table_that_nothing_starts_with_fails_the_configuration_check(place: Place) -> None:
    place.write('[alerts]\nremaind = "4h"\n[alerts.channels.log]\nkind = "log"\n')
    (line,) = place.run("config", "--format", "json", code=2).stderr.splitlines()
    assert line == "memwarden config: memwarden.toml: alerts: there is no setting 'remaind'; did you mean 'remind'?"


def test_a_channel_that_fails_is_listed_with_what_becomes_of_its_notices(place: Place) -> None:
    table = '[alerts]\n[alerts.channels.hook]\nkind = "webhook"\nurl = "http://127.0.0.1:9/x"\nattempts = 1\n'
    place.write(f"{table}")
    place.run("alerts", "check")
    shown = place.run("alerts", "list").stdout.splitlines()[-1]
    assert shown.startswith("channel hook: 0 sent, 1 waiting, 0 given up, failing for ")
    assert "(1 failure, down); tried again in " in shown
    assert "a notice is given up after 1 d: " in shown
    place.write(f"{table}give_up_after = 3\n")
    assert "a notice is given up after 3 tries: " in place.run("alerts", "list").stdout


def test_what_only_waits_on_is_not_counted_as_told(place: Place) -> None:
    hook = '[alerts]\n[alerts.channels.hook]\nkind = "webhook"\nurl = "http://127.0.0.1:9/x"\n'
    place.write(hook)
    assert place.run("alerts", "check").stdout.endswith("of the limit; 0 told, 1 waiting\n")
    place.write(f'{hook}[alerts.channels.log]\nkind = "log"\n')
    assert place.run("alerts", "check").stdout.endswith("; 1 told, 1 waiting\n")
    assert place.run("alerts", "check").stdout.endswith("; 0 told, 1 waiting\n")
    assert place.run("alerts", "deliver").stdout == "0 told: 0 delivered, 1 waiting\n"


def test_one_look_tells_also_while_somebody_else_has_the_store_locked(place: Place) -> None:
    place.run("alerts", "list")
    with contextlib.closing(sqlite3.connect(place.folder / "state" / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = place.start("alerts", "check")
    assert done.stdout.endswith("1 told\n")
    assert [notice["what"] for notice in place.receiver.got] == ["raised"]
    (line,) = [line for line in done.stderr.splitlines() if "store" in line or "memory, and" in line]
    assert "is locked by another process" in line
    assert "it is told from memory" in line
    place.start("alerts", "check")  # the store knows nothing of it, and it lasts
    assert [notice["what"] for notice in place.receiver.got] == ["raised", "raised"]


def test_a_store_that_somebody_else_has_locked_is_one_line_and_not_an_empty_one(place: Place) -> None:
    place.run("alerts", "check")
    with contextlib.closing(sqlite3.connect(place.folder / "state" / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        (line,) = place.run("alerts", "list", code=2).stderr.splitlines()
    assert f"state/{FILE_NAME}: is locked by another process; `fuser " in line


def test_one_receiver_configured_twice_is_said(place: Place) -> None:
    again = f'[alerts.channels.{{}}]\nkind = "webhook"\nurl = "{place.url}"\n'
    place.write(again.format("one") + again.format("two"))
    lines = place.run("alerts", "test", code=1).stdout.splitlines()
    assert "goes to the same as one" in lines[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ack", "nothing"], "'nothing' is not on; these are: nothing"),
        (["silence"], "no matcher given"),
        (["silence", "*", "--for", "never"], "'never' is not a duration"),
        (["silence", "nonsense=1"], "matches nothing"),
        (["silence", "level=xx"], "'level=xx' matches nothing; level is one of warning, critical, emergency"),
        (["silence", "kind=leek"], "'kind=leek' matches nothing; kind is one of high_usage, "),
        (["silence", "--end", "7"], "silence 7 is not in force"),
        (["history", "--since", "x"], "'x' is not a duration"),
        (["history", "--limit", "0"], "0 is none"),
        (["test", "--channel", "x"], "there is no channel 'x' in use"),
        (["nonsense"], "invalid choice"),
        ([], "no verb given; write one of list, history"),
    ],
)
def test_wrong_words_are_one_line(place: Place, words: list[str], said: str) -> None:
    done = place.run("alerts", *words, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["test", "check", "deliver"])
def test_without_a_table_there_is_nobody_to_tell(place: Place, verb: str) -> None:
    place.write("")
    assert "add a table [alerts.channels.NAME]" in place.run("alerts", verb, code=2).stderr
    assert "nothing is on" in place.run("alerts", "list").stdout


def test_a_damaged_store_is_said_moved_and_done_without(place: Place) -> None:
    os.makedirs(place.folder / "state")
    (place.folder / "state" / FILE_NAME).write_bytes(b"nonsense" * 1000)
    done = place.start("alerts", "test")
    assert "it was moved to" in done.stderr
    assert [row["ok"] for row in place.json("test")] == [True, True]


def test_a_store_that_cannot_be_written_is_said(place: Place) -> None:
    (place.folder / "state").write_text("a file, no folder")
    done = place.run("alerts", "test", code=1)
    assert "store: FAILED: " in done.stdout
    for verb in (("list",), ("history",), ("silence", "*")):  # never "nothing is on"
        ran = place.run("alerts", *verb, code=2)
        assert (ran.stdout, len(ran.stderr.splitlines())) == ("", 1)


def test_no_secret_is_in_the_store_or_shown_by_config(place: Place) -> None:
    place.start("alerts", "check")
    place.start("config")
    with open(place.folder / "state" / FILE_NAME, "rb") as file:
        assert SECRET.encode() not in file.read()
    with sqlite3.connect(place.folder / "state" / FILE_NAME) as db:
        assert db.execute("SELECT count(*) FROM alert_events").fetchone() == (1,)
    db.close()


# --- monitor ------------------------------------------------------------------------------------------------------


def test_monitor_tells_a_webhook_at_the_threshold_and_at_its_end(place: Place) -> None:
    place.write("", level="97%")
    done = place.run(
        "monitor", "--duration", "1s", "--interval", "100ms", "--threshold", "0.1%", "--webhook", place.url
    )
    assert [(each["kind"], each["what"]) for each in place.receiver.got] == [
        ("high_usage", "raised"), ("high_usage", "recovered"),
    ]  # fmt: skip
    assert "the monitor ended" in place.receiver.got[1]["text"]
    assert "watching" in done.stderr


@pytest.mark.parametrize("status", [400, 500])
def test_monitor_says_what_it_could_not_deliver(place: Place, status: int) -> None:
    place.write("", level="97%")
    place.receiver.status = status
    done = place.run(
        "monitor", "--duration", "1s", "--interval", "100ms", "--threshold", "0.1%", "--webhook", place.url
    )
    (line,) = [each for each in done.stderr.splitlines() if "delivered" in each]
    assert "alert(s) by webhook were not delivered: " in line
    assert f"answered {status}" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--webhook", "nonsense"], "--webhook.url: is no http or https address"),
        (["--email", "nobody"], "--email.to"),
        (["--slack", "env:NOT_SET"], "NOT_SET is not set"),
    ],
)
def test_monitor_says_what_is_wrong_before_it_begins(place: Place, words: list[str], said: str) -> None:
    done = place.run("monitor", "--duration", "1s", *words, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
