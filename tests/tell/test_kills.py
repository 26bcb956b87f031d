"""SIGKILL at any point of the whole path, with real processes and a real receiver: nothing lost, nothing new twice.

A child tells of states that begin and end, as fast as its slots allow, and says on standard output what it has told. It
is killed at a random moment, or by its receiver: before it answers, or right after. The next child begins in the same
folder. In the end every state that was told must have arrived, at most one batch twice per kill, each with the delivery
id of the first, and every state must be over.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.clock import SystemClock
from memwarden.supervise.signals import pause
from memwarden.tell.outbox import Outbox
from memwarden.tell.sender import Teller, build_channels
from memwarden.tell.settings import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memwarden.tell.settings import AlertSettings

KILLS = 1000 if os.environ.get("MEMWARDEN_SOAK") else 20
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

CHILD = """
import json, os, sys, time
from memwarden.blackbox import BlackBox
from memwarden.clock import SystemClock
from memwarden.facts import Level
from memwarden.tell.rules import Draft
from memwarden.tell.sender import Teller, build_channels
from memwarden.tell.settings import parse

table, folder, life = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
clock = SystemClock()
box = BlackBox(
    folder + "/run", pid=os.getpid(), unix_s=clock.wall(), monotonic_s=clock.monotonic(), posts=True
)
found, channels = build_channels(parse(table, "x: alerts"), {})
teller = Teller(found, channels, target="shop", host="host", store_folder=folder, run_folder=folder + "/run")
teller.attach(box)
teller.start()

def tell(what, target, level):
    draft = Draft(kind="high_usage", what=what, level=Level(level), title="title", text="text")
    name = teller.tell(draft, target=target)
    while teller._queue:  # told is what stands in a slot
        time.sleep(0.001)  # for the thread that empties it; a crossing comes when it comes
    sys.stdout.write(f"{what} {target} {name}\\n")
    sys.stdout.flush()

number = 0
while True:
    number += 1
    target = f"t{life}-{number}"
    tell("raised", target, 3 if number % 3 else 2)
    time.sleep(0.01)  # the pace of the crossings: nothing is waited for
    if number % 2:
        tell("cleared", target, 0)
        time.sleep(0.01)  # likewise
"""


class Receiver:
    """An HTTP receiver that keeps what it got, and can end whoever it gets it from."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.messages = Counter[str]()
        self.keys: dict[str, set[str]] = {}
        self.lives = Counter[tuple[str, str]]()
        self.answered, self.status = 0, 204
        self.more = threading.Event()
        self.victim: int | None = None
        self.kill_at = ""
        self.rng = Random(3)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if len(raw) < int(self.headers["Content-Length"]):
                    return  # whoever sent it was killed in the middle of it
                body = json.loads(raw)
                if receiver.kill_at == "before":
                    receiver.kill()
                receiver.got += body["notices"]
                for notice in body["notices"]:
                    receiver.lives[notice["delivery_id"], self.headers.get("X-Life", "")] += 1
                    receiver.keys.setdefault(notice["delivery_id"], set()).add(self.headers["Idempotency-Key"])
                receiver.messages[self.headers["Idempotency-Key"]] += 1
                if receiver.kill_at == "between":
                    receiver.kill()
                try:
                    self.send_response(receiver.status)
                    self.end_headers()
                except OSError:  # whoever sent it is gone
                    return
                if receiver.kill_at == "after":
                    receiver.kill()
                receiver.answered += 1

            def do_HEAD(self) -> None:
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def kill(self) -> None:
        victim, self.victim, self.kill_at = self.victim, None, ""
        if victim is not None:
            os.kill(victim, signal.SIGKILL)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Locker:
    """Somebody else who has the store locked half of the time, now for longer, now for shorter."""

    def __init__(self, path: str) -> None:
        self._path, self._end, self._rng = path, threading.Event(), Random(5)
        self.times = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._rng.uniform(0.0, 0.3)):
            if not os.path.exists(self._path):
                continue
            with closing(sqlite3.connect(self._path, isolation_level=None, timeout=1.0)) as db:
                try:
                    db.execute("BEGIN EXCLUSIVE")
                except sqlite3.OperationalError:  # somebody writes just now
                    continue
                self.times += 1
                self._end.wait(self._rng.uniform(0.0, 0.6))
                db.execute("ROLLBACK")

    def close(self) -> None:
        self._end.set()
        self._thread.join(10)


@pytest.mark.slow
@pytest.mark.timeout(60 + KILLS * 10)
def test_with_the_store_locked_half_of_the_time_none_is_lost_and_each_comes_once_more_at_most(
    tmp_path: Path, receiver: Receiver
) -> None:
    """What went out past the store may come again after a kill, with the same id, in whatever message.

    Lives so short, and so often locked out, leave more behind than they deliver: somebody who lives longer comes after
    each thirty of them, before a thousand wait, which is more than the store keeps for a channel.
    """
    locker = Locker(str(tmp_path / "memwarden.db"))
    told: dict[str, tuple[str, str]] = {}
    try:
        for first in range(0, KILLS // 2, 30):
            more, table = _live_and_die(tmp_path, receiver, min(30, KILLS // 2 - first), first=first)
            told |= more
            settings = _deliver_the_rest(tmp_path, table)
    finally:
        locker.close()
    settings = _deliver_the_rest(tmp_path, table)
    seen = Counter(each["delivery_id"] for each in receiver.got)
    raised = {name: target for name, (what, target) in told.items() if what == "raised"}
    again = sum(seen.values()) - len(seen)
    print(f"{KILLS // 2} kills, {locker.times} locks: {len(raised)} told, {again} of {len(seen)} notices came again")
    assert locker.times > 0
    assert [name for name in raised if f"{name}.0.hook" not in seen] == []
    assert max(receiver.lives.values()) == 1  # no life sends anything twice: one time more per kill
    over = {each["target"] for each in receiver.got if each["what"] == "recovered"}
    assert set(raised.values()) - over == set()
    once = Counter((each["target"], each["what"]) for each in {e["delivery_id"]: e for e in receiver.got}.values())
    assert max(once.values()) == 1
    outbox = Outbox(settings, folder=str(tmp_path), clock=SystemClock())
    assert (outbox.incidents(), [each.pending for each in outbox.channels()]) == ([], [0])
    outbox.close()


@pytest.mark.slow
@pytest.mark.timeout(60 + KILLS * 10)
def test_no_alert_is_lost_none_is_told_anew_and_each_is_over_in_the_end(tmp_path: Path, receiver: Receiver) -> None:
    kills = Counter[str]()
    told, table = _live_and_die(tmp_path, receiver, KILLS, kills)
    settings = _deliver_the_rest(tmp_path, table)
    seen = Counter(each["delivery_id"] for each in receiver.got)
    raised = {name: target for name, (what, target) in told.items() if what == "raised"}
    lost = [name for name in raised if f"{name}.0.hook" not in seen]
    over = {each["target"] for each in receiver.got if each["what"] == "recovered"}
    again = Counter((each["target"], each["what"]) for each in {e["delivery_id"]: e for e in receiver.got}.values())
    twice = sum(seen.values()) - len(seen)
    repeated = sum(receiver.messages.values()) - len(receiver.messages)
    print(
        f"{KILLS} kills {dict(kills)}: {len(raised)} told, {len(lost)} lost, {len(receiver.messages)} messages of "
        f"which {repeated} came twice ({twice} notices)"
    )
    assert len(raised) >= KILLS
    assert lost == []
    assert repeated <= KILLS
    assert [name for name, keys in receiver.keys.items() if len(keys) > 1] == []  # the whole message came again
    assert set(raised.values()) - over == set()
    anew = [each for each in receiver.got if again[each["target"], each["what"]] > 1]
    assert anew == []
    outbox = Outbox(settings, folder=str(tmp_path), clock=SystemClock())
    assert (outbox.incidents(), [each.pending for each in outbox.channels()]) == ([], [0])
    outbox.close()


def _live_and_die(
    folder: Path, receiver: Receiver, times: int, kills: Counter[str] | None = None, *, first: int = 0
) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """So many lives, each ended by a kill: what they told by id, and their settings."""
    rng = Random(11 + first)
    host, port = receiver.server.server_address[:2]
    table: dict[str, Any] = {
        "group_wait": "0s", "cool_down": "0s", "flap_for": "0s",
        "channels": {"hook": {"kind": "webhook", "url": f"http://{host!s}:{port}/", "timeout": "5s", "throttle": "0s"}},
    }  # fmt: skip
    told: dict[str, tuple[str, str]] = {}
    for life in range(first, first + times):
        how = rng.choice(["time", "time", "before", "between", "after"])
        if kills is not None:
            kills[how] += 1
        table["channels"]["hook"]["headers"] = {"X-Life": str(life)}
        words = [sys.executable, "-c", CHILD, json.dumps(table), str(folder), str(life)]
        for line in _live(words, receiver, how=how, rng=rng):
            what, target, name = line.split()
            told[name] = (what, target)
    return told, table


def _deliver_the_rest(folder: Path, table: dict[str, Any]) -> AlertSettings:
    """As the next ones to come would; the settings."""
    table["channels"]["hook"]["headers"] = {"X-Life": "last"}
    settings = parse(table, "x: alerts")
    assert settings is not None
    found, channels = build_channels(settings, {})
    last = Teller(found, channels, target="shop", host="host", store_folder=str(folder), run_folder=str(folder / "run"))
    for _ in range(3):
        last.once(within_s=20.0)
    return settings


def _live(words: list[str], receiver: Receiver, *, how: str, rng: Random) -> list[str]:
    """One child until its kill; the whole lines that it wrote."""
    environ = {**os.environ, "PYTHONPATH": "src"}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environ)
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        if how == "time":
            pause(rng.uniform(0.0, 0.25))
            child.kill()
        else:
            receiver.victim, receiver.kill_at = child.pid, how
        rest = child.stdout.read()
        child.wait(30)
    finally:
        receiver.victim = None
        if child.poll() is None:
            child.kill()
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    return [line for line in (first + rest).splitlines() if len(line.split()) == 3]
