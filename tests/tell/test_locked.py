"""A store that somebody else has locked: an EMERGENCY is on the wire all the same, once, whatever happens then."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.blackbox import find_boxes, read_posts
from memwarden.clock import SystemClock
from memwarden.config import Config
from memwarden.errors import DeliveryError
from memwarden.store import BUSY_S, FILE_NAME
from memwarden.supervise.service.service import Service
from memwarden.tell.outbox import Outbox
from memwarden.tell.sender import MOST_KEPT, Teller, build_channels
from memwarden.tell.settings import parse
from memwarden.testing import RecordingChannel

from .test_kills import ROOT, Receiver
from .test_sender import PATIENCE_S, Hanging, Rig, draft, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

ON_THE_WIRE_S = 1.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Locked:
    """Another connection that holds the store exclusively: for 5 s, or until it is let go before."""

    def __init__(self, folder: str, *, lasts_s: float = BUSY_S) -> None:
        self._path = os.path.join(folder, FILE_NAME)
        self._lasts_s = lasts_s
        self._let_go, self._has = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)

    def _hold(self) -> None:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=PATIENCE_S)
        db.execute("BEGIN EXCLUSIVE")
        self._has.set()
        self._let_go.wait(self._lasts_s)
        db.execute("ROLLBACK")
        db.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._has.wait(PATIENCE_S)
        return self

    def let_go(self) -> None:
        self._let_go.set()
        self._thread.join(PATIENCE_S)

    @property
    def held(self) -> bool:
        return self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.let_go()


def hook(receiver: Receiver) -> dict[str, Any]:
    host, port = receiver.server.server_address[:2]
    return {"kind": "webhook", "url": f"http://{host!s}:{port}/", "timeout": "5s"}


def teller_of(rig: Rig, table: dict[str, Any]) -> Teller:
    """One with real channels, warm: what it was told for a start has arrived."""
    settings = parse({"group_wait": "0s", **table}, "test: alerts")
    assert settings is not None
    found, channels = build_channels(settings, {})
    teller = Teller(found, channels, target="shop", host="host", store_folder=rig.folder, run_folder=rig.run_folder)
    teller.attach(rig.box())
    rig._made.append(teller)
    teller.start()
    return teller


def history_of(rig: Rig, teller: Teller) -> list[tuple[str, str, tuple[tuple[str, str, int, str], ...]]]:
    outbox = Outbox(teller.settings, folder=rig.folder, clock=SystemClock())
    found = [(told.key, told.what, told.deliveries) for told in reversed(outbox.history())]
    outbox.close()
    return found


def test_an_emergency_is_on_the_wire_within_a_second_and_told_once(rig: Rig, receiver: Receiver) -> None:
    teller = teller_of(rig, {"channels": {"hook": hook(receiver)}})
    teller.tell(draft("seen", 1, kind="custom"))
    until(lambda: len(receiver.got) == 1, "a warm channel")
    with Locked(rig.folder) as locked:
        start_s = time.monotonic()
        name = teller.tell(draft("raised", 3))
        until(lambda: len(receiver.got) == 2, "the emergency")
        took_s = time.monotonic() - start_s
        assert locked.held
        (path,) = find_boxes(rig.run_folder)
        assert len(read_posts(path)) == 1  # it stands where it stood: the store does not know of it
    print(f"on the wire after {took_s * 1000:.0f} ms, while the store was locked for {BUSY_S:g} s")
    assert took_s <= ON_THE_WIRE_S
    until(lambda: read_posts(path) == (), "that the store took it in")
    teller.tell(draft("cleared", 0))
    until(lambda: len(receiver.got) == 3, "its end")
    teller.stop()
    assert [each["delivery_id"] for each in receiver.got][1] == f"{name}.0.hook"
    assert [each["what"] for each in receiver.got] == ["raised", "raised", "recovered"]
    assert [(key.partition(":")[0], what, went[0][1]) for key, what, went in history_of(rig, teller)] == [
        ("custom", "raised", "sent"), ("high_usage", "raised", "sent"), ("high_usage", "recovered", "sent"),
    ]  # fmt: skip


def test_one_that_comes_while_the_threads_wait_for_the_store_cuts_their_waiting_short(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    teller.tell(draft("seen", 1, kind="custom"))
    ops.wait_for(1)
    with Locked(rig.folder) as locked:
        teller.tell(draft("raised", 2, kind="leak"))  # not urgent: it waits for the store
        store = teller.outbox._store  # type: ignore[union-attr]  # it runs
        until(store._lock.locked, "a thread that waits for the store")
        start_s = time.monotonic()
        teller.tell(draft("raised", 3))
        found = ops.wait_for(2)[1]
        took_s = time.monotonic() - start_s
        assert locked.held
    assert (found.key, found.level.name) == ("high_usage:shop", "EMERGENCY")
    assert took_s <= ON_THE_WIRE_S
    assert ops.wait_for(3)[2].key == "leak:shop"  # and what was not urgent came when the lock was gone
    teller.stop()
    assert len(ops.notices) == 4 - 1


def test_what_is_on_already_is_not_told_again_past_the_store(rig: Rig) -> None:
    """Silences, throttles and what was told count there too: the same steps are taken on what can be read."""
    ops, other = RecordingChannel("ops"), RecordingChannel("other")
    teller = rig.teller(ops, other, cool_down="0s")
    teller.tell(draft("raised", 3))
    ops.wait_for(1)
    other.wait_for(1)
    outbox = teller.outbox
    assert outbox is not None
    outbox.silence((("target", "quiet"),), SystemClock().wall() + 600, "me", "a deploy")
    with Locked(rig.folder):
        for target in ("shop", "quiet"):
            teller.tell(draft("raised", 3), target=target)
        last = teller.tell(draft("raised", 3), target="next")
        assert ops.wait_for(2)[1].delivery_id == f"{last}.0.ops"
        assert other.wait_for(2)[1].delivery_id == f"{last}.0.other"
    until(lambda: len(outbox.incidents()) == 3, "that the store took all of them in")
    teller.stop()
    assert [each.target for each in ops.notices] == ["shop", "next"]
    assert [each.target for each in other.notices] == ["shop", "next"]


def test_a_receiver_that_fails_meanwhile_is_tried_again_and_a_dead_one_holds_up_nobody(rig: Rig) -> None:
    bad, dead, ops = RecordingChannel("bad"), Hanging("dead"), RecordingChannel("ops")
    teller = rig.teller(bad, dead, ops)
    until(lambda: teller.outbox is not None, "a store")
    bad.fail_with = DeliveryError("no answer", where="channel bad")
    with Locked(rig.folder, lasts_s=PATIENCE_S) as locked:
        name = teller.tell(draft("raised", 3))
        assert ops.wait_for(1)[0].delivery_id == f"{name}.0.ops"
        until(lambda: bad.tries == 1, "a try that failed")
        bad.fail_with = None
        assert dead.reached.wait(PATIENCE_S)
        locked.let_go()
        assert bad.wait_for(1)[0].delivery_id == f"{name}.0.bad"
    dead.let_go.set()
    dead.wait_for(1)
    teller.stop()
    assert [len(each.notices) for each in (bad, dead, ops)] == [1, 1, 1]
    (raised,) = history_of(rig, teller)
    assert {(channel, state) for channel, state, _, _ in raised[2]} == {
        ("bad", "sent"), ("dead", "sent"), ("ops", "sent")
    }  # fmt: skip


def test_a_channel_that_was_down_and_delivers_past_the_store_is_said_to_deliver_again(rig: Rig) -> None:
    bad, ops = RecordingChannel("bad"), RecordingChannel("ops")
    bad.fail_with = DeliveryError("no answer", where="channel bad")
    teller = rig.teller(bad, ops)
    teller.tell(draft("raised", 2, kind="leak"))
    assert ops.wait_for(2)[1].title == "alert channel bad does not deliver"
    with Locked(rig.folder, lasts_s=PATIENCE_S) as locked:
        bad.fail_with = None
        name = teller.tell(draft("raised", 3))
        assert bad.wait_for(1)[0].delivery_id == f"{name}.0.bad"
        assert locked.held
    assert ops.wait_for(4)[3].title == "over: alert channel bad does not deliver"


def test_a_store_locked_for_long_goes_on_in_memory_where_what_stands_is_known(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    teller.tell(draft("raised", 2))
    teller.tell(draft("raised", 2, kind="leak"))
    ops.wait_for(2)
    outbox = teller.outbox
    assert outbox is not None
    with Locked(rig.folder, lasts_s=PATIENCE_S * 3):
        teller.tell(draft("raised", 3))
        ops.wait_for(3)
        outbox.into_memory()  # what two waits in vain lead to
        teller.tell(draft("cleared", 0, kind="leak"))
        assert ops.wait_for(4)[3].what == "recovered"  # of what was told before it was locked
        teller._say_standing()
        teller.tell(draft("seen", 1, kind="custom"), target="other")
        assert ops.wait_for(5)[4].kind == "custom"
        (path,) = find_boxes(rig.run_folder)
        assert len(read_posts(path)) > 0  # the file knows nothing of them
        for number in range(20):
            teller.tell(draft("seen", 1, kind="custom"), target=f"t{number}")
        ops.wait_for(25)
        teller.look()
        until(lambda: len(read_posts(path)) == MOST_KEPT, "that what is delivered makes room for what comes")
        assert not outbox.recover()
    assert outbox.recover()
    teller.look()
    until(lambda: read_posts(path) == (), "that the file knows of them")
    teller.tell(draft("cleared", 0))
    ops.wait_for(26)
    teller.stop()
    assert [(each.key, each.what) for each in ops.notices if not each.target.startswith("t")] == [
        ("high_usage:shop", "raised"), ("leak:shop", "raised"), ("high_usage:shop", "changed"),
        ("leak:shop", "recovered"), ("custom:other", "raised"), ("high_usage:shop", "recovered"),
    ]  # fmt: skip
    assert all(went and went[0][1] == "sent" for _, _, went in history_of(rig, teller))


def test_the_service_sends_what_living_processes_left_past_a_locked_store(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    living = rig.teller(RecordingChannel("ops"), start=False, deliver="service")
    settings = parse({"channels": {"ops": ops}, "group_wait": "0s", "deliver": "service"}, "test: alerts")
    assert settings is not None
    service = Service(rig.folder, rig.run_folder, config=Config(), alerts=build_channels(settings, {}), environ={})
    assert service._teller is not None
    rig._made.append(service._teller)
    service._teller.start()
    service._wait_for_outbox(threading.Event())
    service.round()
    with Locked(rig.folder) as locked:
        start_s = time.monotonic()
        name = living.tell(draft("raised", 3))
        for _ in range(3):
            service.round()
        assert ops.wait_for(1)[0].delivery_id == f"{name}.0.ops"
        took_s = time.monotonic() - start_s
        assert locked.held
    assert took_s <= ON_THE_WIRE_S
    service.round()
    (path,) = [path for path in find_boxes(rig.run_folder) if path == living._box.path]  # type: ignore[union-attr]  # it has one
    until(lambda: read_posts(path) == (), "that the store took it in")
    service._end()
    service._boxes.close()
    assert service._history is not None
    service._history.close()
    assert len(ops.notices) == 1


TELLS = """
import json, os, sys
from memwarden.blackbox import BlackBox
from memwarden.clock import SystemClock
from memwarden.facts import Level
from memwarden.tell.rules import Draft
from memwarden.tell.sender import Teller, build_channels
from memwarden.tell.settings import parse

table, folder = json.loads(sys.argv[1]), sys.argv[2]
clock = SystemClock()
box = BlackBox(folder + "/run", pid=os.getpid(), unix_s=clock.wall(), monotonic_s=clock.monotonic(), posts=True)
found, channels = build_channels(parse(table, "x: alerts"), {})
teller = Teller(found, channels, target="shop", host="host", store_folder=folder, run_folder=folder + "/run")
teller.attach(box)
teller.start()
for line in sys.stdin:
    words = line.split()
    level = Level(int(words[1]))
    draft = Draft(kind=words[2], what=words[0], level=level, title="title", text="text")
    print(teller.tell(draft, target=words[3]), flush=True)
"""


@pytest.mark.parametrize("kill_at", ["before", "between", "after"])
def test_killed_between_the_sending_and_the_marking_nothing_is_lost_and_the_id_is_the_same(
    kill_at: str, tmp_path: Path, receiver: Receiver
) -> None:
    """`before` the receiver has kept it, once it has, and once it has answered; the store is locked all the time."""
    table = {"group_wait": "0s", "channels": {"hook": hook(receiver)}}
    child = subprocess.Popen(
        [sys.executable, "-c", TELLS, json.dumps(table), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def say(line: str) -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    say("seen 1 custom warm")
    until(lambda: receiver.answered == 1, "a warm channel")
    with Locked(str(tmp_path), lasts_s=PATIENCE_S) as locked:
        receiver.victim, receiver.kill_at = child.pid, kill_at
        say("raised 3 high_usage shop")
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
        assert locked.held
    child.communicate()
    settings = parse(table, "x: alerts")
    assert settings is not None
    found, channels = build_channels(settings, {})
    for _ in range(2):
        Teller(
            found, channels, target="shop", host="host", store_folder=str(tmp_path), run_folder=str(tmp_path / "run")
        ).once(within_s=PATIENCE_S)  # fmt: skip
    seen = [each["delivery_id"] for each in receiver.got if each["target"] == "shop" and each["what"] == "raised"]
    assert (len(seen), len(set(seen))) == (2, 1)
    assert seen[0].endswith(".0.hook")
    assert [each["what"] for each in receiver.got if each["target"] == "shop"][-1] == "recovered"
