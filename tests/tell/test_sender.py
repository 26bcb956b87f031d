"""The teller with real threads, a real store and black boxes: nothing is lost, nobody waits for a dead receiver."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.blackbox import BlackBox, find_boxes, read_posts
from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, DeliveryError, StoreError
from memwarden.facts import Level
from memwarden.store import FILE_NAME
from memwarden.supervise.signals import pause
from memwarden.tell.collectors import Collectors
from memwarden.tell.members import own_member
from memwarden.tell.outbox import Outbox
from memwarden.tell.rules import Draft, of_death, of_job_split
from memwarden.tell.sender import Teller, adopt, build_channels, complaints, piecewise
from memwarden.tell.settings import parse
from memwarden.tell.signals import Signal, from_text, to_text
from memwarden.tell.turns import turns_of
from memwarden.testing import FakeClock, RecordingChannel

from .conftest import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from memwarden.facts import Notice

PATIENCE_S = 20.0
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        pause(0.01)
    raise AssertionError(f"never saw: {what}")


def draft(what: str = "raised", level: int = 2, **more: Any) -> Draft:
    values = {"kind": "high_usage", "title": "title", "text": "text", **more}
    return Draft(what=what, level=Level(level), **values)


def signal_of(**more: Any) -> Signal:
    values: dict[str, Any] = {
        "id": f"{time.time_ns()}", "key": f"high_usage:{more.get('target', 't')}", "kind": "high_usage",
        "what": "raised", "level": Level.CRITICAL, "title": "title", "text": "text", "unix_s": 1.0, "target": "t",
        "host": "h", "member": "m",
    }  # fmt: skip
    return Signal(**{**values, **more})


class Hanging(RecordingChannel):
    """Holds whoever sends until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.let_go = threading.Event()
        self.reached = threading.Event()

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        self.reached.set()
        self.let_go.wait(PATIENCE_S)
        super().send(notices, timeout_s=timeout_s)


class Rig:
    """Tellers in one folder, stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.run_folder = str(folder / "run")
        self._made: list[Teller] = []

    def box(self) -> BlackBox:
        clock = SystemClock()
        return BlackBox(
            self.run_folder, pid=os.getpid(), unix_s=clock.wall(), monotonic_s=clock.monotonic(), posts=True
        )

    def teller(self, *channels: RecordingChannel, start: bool = True, **table: Any) -> Teller:
        given: dict[str, Any] = {"channels": {each.name: each for each in channels}, "group_wait": "0s", **table}
        settings = parse(given, "test: alerts")
        assert settings is not None
        found, made = build_channels(settings, {})
        teller = Teller(found, made, target="shop", host="host", store_folder=self.folder, run_folder=self.run_folder)
        teller.attach(self.box())
        self._made.append(teller)
        if start:
            teller.start()
        return teller

    def close(self) -> None:
        for teller in self._made:
            teller.stop(patience_s=1.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_what_is_told_arrives_and_its_end_too(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    teller.tell(draft())
    ops.wait_for(1)
    teller.tell(draft("cleared", 0))
    raised, over = ops.wait_for(2)
    assert (raised.what, over.what, raised.key, raised.target) == ("raised", "recovered", "high_usage:shop", "shop")
    teller.stop()
    assert (ops.warmed, ops.closed, teller.running) == (1, 1, False)


def test_what_is_told_before_it_starts_and_at_its_very_end_arrives(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False, group_wait="10m")
    for number in range(20):
        teller.tell(
            draft(target=f"t{number}", kind="custom") if number < 0 else draft(kind="custom", title=f"{number}")
        )
    teller.start()
    teller.tell(draft("cleared", 0, kind="custom"))
    teller.stop()
    assert [notice.what for notice in ops.notices] == ["raised", "recovered"]


def test_a_receiver_that_hangs_holds_up_nobody_else_nor_whoever_tells(rig: Rig) -> None:
    dead, ops = Hanging("dead"), RecordingChannel("ops")
    teller = rig.teller(dead, ops)
    teller.tell(draft())
    assert dead.reached.wait(PATIENCE_S)
    for number in range(50):
        teller.tell(draft("seen", 1, kind="custom", title=str(number)), target=f"t{number}")
    assert len(ops.wait_for(51)) == 51
    assert dead.notices == ()
    dead.let_go.set()
    assert len(dead.wait_for(51)) == 51


def test_a_receiver_that_fails_is_tried_again_said_to_be_down_and_up_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memwarden.tell")
    bad, ops = RecordingChannel("bad"), RecordingChannel("ops")
    bad.fail_with = DeliveryError("no answer", where="channel bad")
    teller = rig.teller(bad, ops)
    teller.tell(draft())
    down = ops.wait_for(2)[1]  # after three tries, 0.5 to 3.5 s
    assert (down.key, down.what, down.title) == ("custom:channel bad", "raised", "alert channel bad does not deliver")
    bad.fail_with = None
    assert bad.wait_for(1)[0].key == "high_usage:shop"
    assert ops.wait_for(3)[2].what == "recovered"
    assert [notice.key for notice in bad.notices if "channel" in notice.key] == []
    assert "channel bad is down, failures running: 3; what is for it waits and is tried on" in caplog.text
    assert "channel bad delivers again" in caplog.text


def test_pagerduty_alone_of_all_kinds_is_told_who_acknowledged() -> None:
    tables = {
        "pager": {"kind": "pagerduty", "routing_key_env": "KEY"}, "log": {"kind": "log"},
        "twice": {"kind": "pagerduty", "routing_key_env": "KEY"}, "wrong": {"kind": "pagerduty"},
    }  # fmt: skip
    settings, _ = build_channels(settings_of(channels=tables), {"KEY": "0" * 32})
    uses = settings.policy.channels
    assert {name: use.acks for name, use in uses.items()} == {
        "pager": True, "log": False, "twice": True, "wrong": False,
    }  # fmt: skip


def test_what_is_acknowledged_elsewhere_reaches_a_channel_that_passes_it_on(rig: Rig) -> None:
    pager, ops = RecordingChannel("pager"), RecordingChannel("ops")
    pager.passes_acknowledged = True  # type: ignore[attr-defined]
    teller = rig.teller(pager, ops)
    teller.tell(draft())
    pager.wait_for(1)
    ops.wait_for(1)
    elsewhere = Outbox(settings_of(), folder=rig.folder, clock=SystemClock())
    elsewhere.acknowledge("high_usage:shop", "alice")
    elsewhere.close()
    assert pager.wait_for(2)[1].what == "acknowledged"
    assert len(ops.notices) == 1


def test_what_is_resolved_and_lasts_is_on_again_and_stays_so(rig: Rig) -> None:
    waits = FakeClock()
    teller = rig.teller(RecordingChannel("ops"), start=False)
    teller._waits = waits
    with_outbox = teller.open_outbox()
    teller._outbox = with_outbox
    teller.tell(draft())
    teller.tell(draft(kind="leak"))
    teller.tell(draft("cleared", 0, kind="leak"))

    def seen() -> list[tuple[str, int, bool]]:
        waits.advance(5)
        for _ in range(2):
            teller.round()
        return sorted((each.key, each.episode, each.open) for each in with_outbox.incidents(all_of_them=True))

    leak = ("leak:shop", 1, False)
    assert seen() == [("high_usage:shop", 1, True), leak]
    with_outbox.resolve("high_usage:shop", "alice")
    assert [seen() for _ in range(3)] == [[("high_usage:shop", 2, True), leak]] * 3
    teller.tell(draft("cleared", 0))
    seen()
    with_outbox.resolve("high_usage:shop", "alice")
    assert {on for key, _, on in seen() if key == "leak:shop"} == {False}
    assert seen()[0] == ("high_usage:shop", 2, False)
    teller._outbox = None
    with_outbox.close()


def test_a_channel_that_raises_anything_is_named_by_type_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RecordingChannel):
        def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
            self.tries += 1
            raise RuntimeError("password=hunter2")

    caplog.set_level(logging.DEBUG, "memwarden")
    broken = Broken("broken")
    teller = rig.teller(broken)
    teller.tell(draft())
    until(lambda: broken.tries >= 2, "two tries")
    teller.stop()
    assert "the channel raised RuntimeError" in caplog.text
    assert "hunter2" not in caplog.text
    with open(os.path.join(rig.folder, FILE_NAME), "rb") as file:
        assert b"hunter2" not in file.read()


def test_of_a_batch_only_what_will_never_be_taken_is_dead(rig: Rig) -> None:
    class Picky(RecordingChannel):
        def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
            if any(notice.target == "t3" for notice in notices):
                raise DeliveryError("too large", recoverable=False)
            super().send(notices, timeout_s=timeout_s)

    picky = Picky("picky")
    teller = rig.teller(picky, start=False)
    for number in range(6):
        teller.tell(draft("seen", 1, kind="custom"), target=f"t{number}")
    teller.start()
    assert [notice.target for notice in picky.wait_for(5)] == ["t0", "t1", "t2", "t4", "t5"]
    teller.stop()
    outbox = Outbox(teller.settings, folder=rig.folder, clock=SystemClock())
    assert [told.target for told in outbox.history() if told.deliveries[0][1] == "dead"] == ["t3"]
    outbox.close()


def test_more_than_the_slots_hold_waits_in_memory_and_more_than_that_is_counted(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False)
    for number in range(400):
        teller.tell(draft("raised" if number == 20 else "seen", 1, kind="custom"), target=f"t{number}")
    assert teller.lost == 400 - 256 - 13
    teller.tell(draft("raised", 3))  # the reserved slots are for this one
    box = teller._box
    assert box is not None
    assert from_text(box.posts()[-1].text).level is Level.EMERGENCY  # type: ignore[union-attr]  # it is ours
    teller.start()
    notices = ops.wait_for(256 + 13 + 1)
    assert len(notices) == 270
    assert "t20" in {notice.target for notice in notices}  # a state is not dropped for what happens once
    assert "131 alert(s) were dropped: more came than can be kept" in caplog.text


def test_one_more_of_the_same_takes_the_place_of_the_one_before_where_no_slot_is_free(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False)
    for level in (2, 1, 3, 2):  # a lower level does not take the place of a higher one
        for number in range(13):
            teller.tell(draft("raised", level, text=f"at {level}"), target=f"t{number}")
    box = teller._box
    assert box is not None
    told = [from_text(post.text) for post in box.posts()]
    assert [signal.level for signal in told if signal is not None] == [Level(3)] * 13
    teller.tell(draft("cleared", 0), target="t0")
    assert teller._queue[-1][1].what == "cleared"  # the end of a state takes nobody's place
    teller.start()
    notices = ops.wait_for(14)
    assert {notice.target for notice in notices if notice.level is Level.EMERGENCY} == {f"t{n}" for n in range(13)}
    assert [notice.target for notice in notices if notice.what == "recovered"] == ["t0"]


WAITS = """
import os, signal, sys, time
from memwarden.blackbox import BlackBox
from memwarden.clock import SystemClock
from memwarden.facts import Level
from memwarden.tell.rules import Draft
from memwarden.tell.sender import Teller
from tests.tell.conftest import settings_of

keys, clock = int(sys.argv[2]), SystemClock()
box = BlackBox(sys.argv[1], pid=os.getpid(), unix_s=clock.wall(), monotonic_s=clock.monotonic(), posts=True)
teller = Teller(settings_of(), (), target="shop", host="host")
teller.attach(box)
start = time.perf_counter()
for number in range(50):
    draft = Draft(kind="high_usage", what="raised", level=Level.WARNING, title=str(number), text="x")
    teller.tell(draft, target=f"t{number % keys}")
print(f"{(time.perf_counter() - start) / 50 * 1e6:.0f} us each", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("keys", "kept"), [(50, 13), (13, 13), (5, 5)])
def test_of_fifty_that_wait_at_a_sigkill_the_newest_of_each_of_thirteen_states_is_kept(
    keys: int, kept: int, rig: Rig
) -> None:
    environ = {**os.environ, "PYTHONPATH": "src:."}
    words = [sys.executable, "-c", WAITS, rig.run_folder, str(keys)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environ)
    assert done.returncode == -9, done.stderr
    (path,) = find_boxes(rig.run_folder)
    found = [from_text(post.text) for post in read_posts(path)]
    newest = {signal.target: signal for signal in found if signal is not None}
    titles = {target: int(signal.title) for target, signal in newest.items()}
    print(f"{keys} states: {len(titles)} of them are in slots; {done.stdout.strip()}")
    assert len(titles) == kept
    if keys <= 13:  # of each the newest
        assert titles == {f"t{number % keys}": number for number in range(50 - keys, 50)}
        assert all(signal.details["repeated"] > 1 for signal in newest.values())


def test_what_waits_in_memory_is_in_the_store_at_once(rig: Rig) -> None:
    """A crowd that the slots cannot hold: how long a SIGKILL could take what is in memory alone."""
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    teller.tell(draft())
    ops.wait_for(1)
    for number in range(50):
        teller.tell(draft(), target=f"t{number}")
    told_s = time.perf_counter()
    until(lambda: not teller._queue, "that nothing waits in memory")
    took_s = time.perf_counter() - told_s
    print(f"50 at once: {took_s * 1000:.0f} ms until none of them was in memory alone")
    assert took_s < 2.0
    ops.wait_for(51)


# --- a store that fails -------------------------------------------------------------------------------------------


def test_alerts_go_on_from_memory_while_the_store_is_locked(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    teller.tell(draft("seen", 1, kind="custom"))
    ops.wait_for(1)
    lock = sqlite3.connect(os.path.join(rig.folder, FILE_NAME), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    teller.tell(draft())
    ops.wait_for(2)
    assert "kept in memory only until the store can be written again" in caplog.text
    lock.execute("ROLLBACK")
    lock.close()
    teller._due["recover"] = 0.0
    teller.tell(draft("cleared", 0))
    ops.wait_for(3)
    outbox = teller.outbox
    assert outbox is not None
    until(lambda: not outbox.degraded, "the store again")
    teller.stop()
    again = Outbox(teller.settings, folder=rig.folder, clock=SystemClock())
    assert [told.what for told in again.history(key="high_usage:shop")] == ["recovered", "raised"]
    again.close()


def test_a_store_that_breaks_is_moved_aside_said_and_what_lasts_is_said_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    ops = RecordingChannel("ops")
    first = rig.teller(ops)
    first.tell(draft())
    ops.wait_for(1)
    first.stop()
    path = os.path.join(rig.folder, FILE_NAME)
    with open(path, "wb") as file:
        file.write(b"garbage" * 5000)
    second = RecordingChannel("ops")
    teller = rig.teller(second)
    said = second.wait_for(1)[0]
    assert (said.kind, said.title) == ("custom", "the store of alerts was damaged")
    assert [name for name in os.listdir(rig.folder) if "damaged" in name] != []
    teller.tell(draft())
    assert second.wait_for(2)[1].key == "high_usage:shop"


def test_a_store_of_a_newer_version_is_left_alone_and_alerts_go_on(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with sqlite3.connect(os.path.join(rig.folder, FILE_NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    ops = RecordingChannel("ops")
    rig.teller(ops).tell(draft())
    assert len(ops.wait_for(1)) == 1
    assert "newer memwarden" in caplog.text


# --- those who died -----------------------------------------------------------------------------------------------

DIES = """
import os, sys
from memwarden.blackbox import BlackBox
from memwarden.clock import SystemClock
from memwarden.facts import Level
from memwarden.tell.rules import Draft
from memwarden.tell.sender import Teller
from tests.tell.conftest import settings_of

clock = SystemClock()
box = BlackBox(sys.argv[1], pid=os.getpid(), unix_s=clock.wall(), monotonic_s=clock.monotonic(), posts=True)
teller = Teller(settings_of(), (), target="shop", host="host")
teller.attach(box)
print(teller.tell(Draft(kind="high_usage", what="raised", level=Level.EMERGENCY, title="t", text="x")), flush=True)
os.kill(os.getpid(), 9)
"""


def die(run_folder: str) -> str:
    """A process that leaves an EMERGENCY in its box and is killed; the signal's id."""
    environ = {**os.environ, "PYTHONPATH": "src:."}
    done = subprocess.run(
        [sys.executable, "-c", DIES, run_folder], capture_output=True, text=True, cwd=ROOT, env=environ
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def test_whoever_comes_next_delivers_what_a_killed_one_left_once_and_says_that_it_is_over(rig: Rig) -> None:
    name = die(rig.run_folder)
    ops, other = RecordingChannel("ops"), RecordingChannel("ops")
    rig.teller(ops)
    rig.teller(other)
    until(lambda: len(ops.notices + other.notices) >= 2, "raised and recovered")
    raised, over = sorted(ops.notices + other.notices, key=lambda notice: notice.what)
    assert (raised.delivery_id, raised.what, over.what) == (f"{name}.0.ops", "raised", "recovered")
    assert "is gone" in over.text
    assert [read_posts(path) for path in find_boxes(rig.run_folder)] == [(), (), ()]
    third = RecordingChannel("ops")
    rig.teller(third).once(within_s=1.0)
    assert third.notices == ()


def test_the_service_takes_from_the_living_too_and_each_signal_counts_once(rig: Rig) -> None:
    living = rig.teller(RecordingChannel("ops"), start=False, deliver="service")
    living.start()
    assert living.running
    living.tell(draft("raised", 3))
    outbox = Outbox(living.settings, folder=rig.folder, clock=SystemClock())
    now = SystemClock().wall()
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=now) == 0  # it lives, and may deliver by itself
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=now, living=True) == 1
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=now, living=True) == 0
    for number in range(20):
        living.tell(draft("seen", 1, kind="custom"), target=f"t{number}")
    for _ in range(4):
        adopt(outbox, rig.run_folder, own=None, now_unix_s=now, living=True)
        living.tick()
    assert len(outbox.history()) == 21
    outbox.close()


def test_one_that_nobody_took_for_long_is_anybodys(rig: Rig) -> None:
    living = rig.teller(RecordingChannel("ops"), start=False)
    living.tell(draft("raised", 3))
    outbox = Outbox(living.settings, folder=rig.folder, clock=SystemClock())
    later = SystemClock().wall() + 61
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=later) == 1
    outbox.close()


def test_foreign_text_in_a_box_is_taken_away_and_believed_in_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    box = rig.box()
    for text in ("nonsense", "{}", '{"id": 1}', "[]", "\x00\x01"):
        assert box.post(SystemClock().wall(), 0.0, text)
    outbox = Outbox(settings_of(), folder=rig.folder, clock=SystemClock())
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=0.0) == 0
    assert box.posts() == ()
    assert adopt(outbox, "/nowhere/at/all", own=None, now_unix_s=0.0) == 0
    outbox.close()
    assert caplog.messages == ["5 slot(s) of black boxes held what is no alert of this version, and were emptied"]


# --- what nobody foresaw ------------------------------------------------------------------------------------------


def test_half_a_character_in_a_name_stops_nobody(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False)
    teller.tell(draft("seen", 1, kind="spike", title="spill \udce9", details={"\udcff": ["\udce9"]}))
    teller.tell(draft(kind="leak"), target="caf\udce9.py")
    teller.start()
    spike, leak = ops.wait_for(2)
    assert (spike.title, leak.key) == ("spill \\udce9", "leak:caf\\udce9.py")
    assert spike.details["\\udcff"] == ["\\udce9"]


def test_half_a_character_in_one_box_keeps_nobody_from_the_others(rig: Rig) -> None:
    boxes = [rig.box() for _ in range(3)]
    for number, box in enumerate(boxes):
        signal = signal_of(target=f"t{number}", title="job \udcff" if number == 1 else "job")
        assert box.post(signal.unix_s, 1.0, to_text(signal))
    outbox = Outbox(settings_of(), folder=rig.folder, clock=SystemClock())
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=signal.unix_s, living=True) > 0
    assert {each.target for each in outbox.incidents()} == {"t0", "t1", "t2"}
    assert [box.posts() for box in boxes] == [(), (), ()]
    outbox.close()


class Choosy(Outbox):
    """Fails at one signal in a way that nobody foresaw."""

    failure: Exception = ValueError("what is this?")

    def take(self, signals: Sequence[Signal], *, patient: bool = True) -> int:
        if any(signal.target == "odd" for signal in signals):
            raise self.failure
        return super().take(signals, patient=patient)


def test_what_the_outbox_cannot_take_is_dropped_and_said_and_the_others_are_taken(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    teller = rig.teller(RecordingChannel("ops"), start=False)
    for target in ("a", "odd", "b"):
        teller.tell(draft(), target=target)
    outbox = teller._outbox = Choosy(teller.settings, folder=rig.folder, clock=SystemClock())
    teller._take_in(outbox)
    box = teller._box
    assert box is not None
    assert sorted(each.target for each in outbox.incidents()) == ["a", "b"]
    assert (box.posts(), len(teller._queue)) == ((), 0)
    assert "1 alert(s) cannot be kept and are dropped, first 'title' of 'odd'" in caplog.text
    for target in ("odd", "c"):
        teller.tell(draft(), target=target)
    assert adopt(outbox, rig.run_folder, own=None, now_unix_s=SystemClock().wall(), living=True) > 0
    assert (box.posts(), len(outbox.incidents())) == ((), 3)
    outbox.close()


@pytest.mark.parametrize("failure", [MemoryError(), StoreError("locked"), OSError(24, "too many open files")])
def test_what_is_no_fault_of_a_signal_costs_none(failure: Exception) -> None:
    def step(signals: Sequence[Signal]) -> int:
        raise failure

    with pytest.raises(type(failure)):
        piecewise(step, [signal_of(target="a"), signal_of(target="b")])


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_of_many_exactly_those_are_left_out_that_fail(good: list[bool]) -> None:
    signals = [signal_of(id=str(number)) for number in range(len(good))]

    def step(some: Sequence[Signal]) -> list[str]:
        if not all(good[int(each.id)] for each in some):
            raise ValueError("one of these")
        return [each.id for each in some]

    made, bad = piecewise(step, signals)
    assert [name for names in made for name in names] == [each.id for each in signals if good[int(each.id)]]
    assert [signal.id for signal, _ in bad] == [each.id for each in signals if not good[int(each.id)]]


def test_a_figure_that_is_none_is_unknown_and_the_box_stays(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False)
    teller.tell(draft(kind="spike", details={"a_ratio": float("nan"), "a_bytes": 10**400, "b": float("inf")}))
    box = teller._box
    assert box is not None
    assert len(box.posts()) == 1
    teller.start()
    assert ops.wait_for(1)[0].details["a_bytes"] is None


def test_the_end_of_a_state_comes_after_its_beginning_though_the_clock_was_set_back(rig: Rig) -> None:
    ops, clock = RecordingChannel("ops"), FakeClock()
    settings, channels = build_channels(settings_of(channels={"ops": ops}), {})
    teller = Teller(settings, channels, target="shop", host="h", store_folder=rig.folder, clock=clock)
    teller.attach(rig.box())
    teller.tell(draft())
    clock.advance(1.0)
    clock._unix_offset_s -= 60
    teller.tell(draft("cleared", 0))
    for number in range(15):  # more than there are slots
        clock.advance(1.0)
        teller.tell(draft("seen", 1, kind="custom"), target=f"t{number}")
    teller.once(within_s=PATIENCE_S)
    outbox = Outbox(settings, folder=rig.folder, clock=clock)
    assert outbox.incidents() == []
    assert [each.target for each in reversed(outbox.history(kind="custom"))] == [f"t{number}" for number in range(15)]
    outbox.close()


def test_what_a_process_left_in_its_first_box_is_taken_before_what_is_in_its_second(rig: Rig) -> None:
    first, second = rig.box(), rig.box()
    for box, what in ((first, "raised"), (second, "cleared")):
        assert box.post(1.0, 1.0, to_text(signal_of(id=what, what=what, kind="leak", key="leak:t")))
    outbox = Outbox(settings_of(), folder=rig.folder, clock=SystemClock())
    adopt(outbox, rig.run_folder, own=None, now_unix_s=1.0, living=True)
    assert outbox.incidents() == []
    outbox.close()


# --- whoever interrupts -------------------------------------------------------------------------------------------

INTERRUPTED = """
import faulthandler, signal, sys, threading
from memwarden.blackbox import BlackBox
from memwarden.facts import Level
from memwarden.tell.rules import Draft
from memwarden.tell.sender import Teller
from tests.tell.conftest import settings_of

faulthandler.dump_traceback_later(30, exit=True)
teller = Teller(settings_of(), (), target="shop", host="host")
teller.attach(BlackBox(sys.argv[1], pid=1, unix_s=1.0, monotonic_s=1.0, posts=True))
draft = Draft(kind="spike", what="seen", level=Level.WARNING, title="a", text="b")
heard, ids = [], []

def handler(*_):
    heard.append(teller.tell(draft))
    signal.setitimer(signal.ITIMER_REAL, 0.0002 + len(heard) % 17 * 0.00005)

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001)
while len(heard) < 3000:
    ids.append(teller.tell(draft))
signal.setitimer(signal.ITIMER_REAL, 0.0)
ids.append(teller.tell(draft))  # what a handler left at the very end of a telling goes over the top until the next one
print(len(set(ids + heard)) == len(ids) + len(heard), len(teller._queue), teller._leaving)
"""


def test_a_signal_handler_may_tell_whatever_it_interrupts(rig: Rig) -> None:
    environ = {**os.environ, "PYTHONPATH": "src:."}
    words = [sys.executable, "-c", INTERRUPTED, rig.run_folder]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environ)
    assert done.stdout.split() == ["True", "256", "False"], done.stderr


def interrupted(teller: Teller, number: int) -> tuple[int, list[str]]:
    """Tell, and tell something else in the middle of it: at the line of that number. How many lines, and what."""
    lines, told = 0, []

    def at_line(frame: object, event: str, _: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                told.append(teller.tell(draft("raised", 3, kind="leak")))
        return at_line

    sys.settrace(at_line)
    try:
        told.append(teller.tell(draft()))
    finally:
        sys.settrace(None)
    return lines, told


def test_at_whichever_line_it_is_interrupted_nothing_is_lost_and_nothing_is_told_twice(rig: Rig) -> None:
    number = 0
    while True:
        teller = rig.teller(RecordingChannel("ops"), start=False)
        lines, told = interrupted(teller, number)
        box = teller._box
        assert box is not None
        kept = [from_text(post.text) for post in box.posts()]
        assert {each.id for each in kept if each} | {each.id for _, each in teller._queue} == set(told)
        assert len(set(told)) == len(told)
        box.close(remove=True)
        if number and len(told) == 1:
            break
        number += 1
    assert number > lines > 30


# --- threads that are not there -----------------------------------------------------------------------------------


class Threadless:
    """Stands for a courier that can have no thread for some time."""

    name, is_urged, is_alive = "ops", False, False

    def __init__(self, failures: int) -> None:
        self.failures, self.tries = failures, 0

    def start(self) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise RuntimeError("can't start new thread")
        self.is_alive = True

    def look(self) -> None:
        pass


def test_a_courier_without_a_thread_has_one_as_soon_as_there_is_any(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    teller, worker = rig.teller(RecordingChannel("ops"), start=False), Threadless(2)
    outbox = teller._outbox = Outbox(teller.settings, folder=rig.folder, clock=SystemClock())
    teller._workers = [worker]  # type: ignore[list-item]  # as one to its teller
    for _ in range(4):
        teller.round()
    assert (worker.tries, worker.is_alive) == (3, True)
    assert caplog.messages == ["what is for channel ops waits: can't start new thread; it is tried again"]
    outbox.close()


# For a process of its own: CPython 3.11 keeps the state of a thread that was refused, under the identity of the one
# that asked, and what PyThreadState_SetAsyncExc is to raise in that one goes there from then on.
THREADLESS = """
import sys, threading
from pathlib import Path
from memwarden.testing import RecordingChannel
from tests.tell.test_sender import PATIENCE_S, Rig, draft

ops, rig = RecordingChannel("ops"), Rig(Path(sys.argv[1]))
teller = rig.teller(ops, start=False)
teller.tell(draft())
threading.stack_size(1 << 46)  # more than there are addresses: no thread can be had
try:
    teller.start()
except RuntimeError as error:
    print(error)
told = teller.once(within_s=PATIENCE_S)
print(len(told), len(ops.notices), teller.running)
"""


def test_what_runs_once_delivers_in_its_own_thread_where_it_can_have_no_other(tmp_path: Path) -> None:
    words = [sys.executable, "-c", THREADLESS, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == "can't start new thread\n1 1 False\n"


def test_a_teller_whose_thread_is_gone_does_not_run_and_can_be_started_again(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False)
    gone = teller._thread = threading.Thread(target=int)
    gone.start()
    gone.join(PATIENCE_S)
    assert not teller.running
    teller.tell(draft())
    teller.start()
    assert teller.running
    ops.wait_for(1)


def test_a_channel_of_two_tellers_serves_one_at_a_time_and_is_closed_by_the_last(rig: Rig) -> None:
    class Narrow(Hanging):
        at_once = most = 0

        def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            super().send(notices, timeout_s=timeout_s)
            self.at_once -= 1

    ops = Narrow("ops")
    first = rig.teller(ops)
    first.tell(draft())
    assert ops.reached.wait(PATIENCE_S)
    first.stop(patience_s=0.0)
    second = rig.teller(ops)
    second.tell(draft(kind="leak"))
    until(lambda: second.taken > 0, "that the second has it")
    ops.let_go.set()
    ops.wait_for(2)
    until(lambda: first.outbox is None, "the end of the first")
    assert (ops.most, ops.closed) == (1, 0)
    second.stop()
    assert ops.closed == 1


def test_a_forked_child_waits_for_nobodys_turn() -> None:
    ops = RecordingChannel("ops")
    turns = turns_of(ops)
    assert turns_of(ops) is turns
    with turns.turn:
        child = os.fork()
        if not child:
            os._exit(int(not turns_of(ops).turn.acquire(timeout=0.0)))
        assert os.waitpid(child, 0)[1] == 0


# --- details ------------------------------------------------------------------------------------------------------


def test_collectors_say_their_figures_within_their_time_and_never_for_an_emergency(rig: Rig) -> None:
    ops, hang = RecordingChannel("ops"), threading.Event()
    teller = rig.teller(ops, start=False, collectors={"cpu": True, "disk": "/", "connections": True, "timeout": "5s"})
    asked: list[int] = []

    def queue() -> int:
        asked.append(1)
        return 7

    teller.collectors.add("queue", queue)
    teller.collectors.add("slow", lambda: hang.wait(PATIENCE_S), limit_s=0.05)
    teller.collectors.add("broken", lambda: 1 / 0)
    teller.collectors.add("odd", lambda: {"a": float("inf"), "b": object})
    teller.start()
    teller.tell(draft("raised", 3))
    (emergency,) = ops.wait_for(1)
    assert (asked, "cpu" in emergency.details) == ([], False)
    teller.tell(draft("raised", 2, kind="leak"))
    found = ops.wait_for(2)[1].details
    assert (found["queue"], found["broken"]) == (7, "failed: ZeroDivisionError")
    assert found["slow"] in ("not done within 0.05 s", "not done within 0.05 s")
    assert set(found["cpu"]) == {"load_1min", "processors"}
    assert found["disk"]["path"] == "/"
    assert isinstance(found["connections"], int)
    assert found["odd"]["a"] == "inf"
    hang.set()


def test_a_figure_or_a_value_that_cannot_be_said_keeps_no_alert(rig: Rig) -> None:
    class Silent:
        def __str__(self) -> str:
            raise ValueError("no words")

    def fails() -> dict[str, Any]:
        raise RuntimeError("no trend")

    ops = RecordingChannel("ops")
    teller = rig.teller(ops, start=False)
    teller.describe = fails
    teller.collectors.add("a_percent", lambda: 10**400)
    teller.collectors.add("silent", Silent)
    teller.collectors.add("name", lambda: "caf\udce9")
    teller.collectors.add("many", lambda: {Silent(): 1})
    teller.start()
    teller.tell(draft())
    found = ops.wait_for(1)[0].details
    assert {name: found[name] for name in ("a_percent", "silent", "name", "many")} == {
        "a_percent": "too large", "silent": "failed: ValueError", "name": "caf\\udce9", "many": "failed: ValueError",
    }  # fmt: skip


def test_one_that_hangs_is_asked_no_more_until_it_is_done() -> None:
    hang, asked = threading.Event(), []
    collectors = Collectors()

    def slow() -> None:
        asked.append(1)
        hang.wait(PATIENCE_S)

    collectors.add("slow", slow, limit_s=0.01)
    collectors.collect(0.0)
    assert (collectors.collect(100.0), len(asked)) == ({"slow": "still not done from the last time"}, 1)
    hang.set()
    until(lambda: not collectors._busy, "it is done")
    collectors.collect(200.0)
    assert len(asked) == 2
    collectors.remove("slow")
    assert collectors.collect(300.0) == {}


def test_nobody_is_waited_for_when_there_is_hurry() -> None:
    hang, looks = threading.Event(), []

    def hurry() -> bool:
        looks.append(1)
        return True

    collectors = Collectors()
    collectors.add("slow", lambda: hang.wait(PATIENCE_S), limit_s=PATIENCE_S)
    found = collectors.collect(0.0, hurry=hurry)
    assert (found, len(looks)) == ({"slow": f"not done within {PATIENCE_S:g} s"}, 1)
    hang.set()


def test_the_runbook_stands_in_every_notice_and_muted_types_in_none(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops, runbook="https://wiki.example/memory", mute=["spike"])
    teller.tell(draft("seen", 1, kind="spike"))
    teller.tell(of_job_split("import", 8, "512 MiB do not fit"))
    teller.tell(of_death(
        command="app", pid=1, certain=False, peak_bytes=1, limit_bytes=2, limit_source="x", in_flight=["a"]
    ))  # fmt: skip
    kinds = {notice.kind: notice for notice in ops.wait_for(2)}
    assert set(kinds) == {"job_split", "oom_kill"}
    assert all(notice.details["runbook"] == "https://wiki.example/memory" for notice in kinds.values())
    assert "probably killed it for memory" in kinds["oom_kill"].text


# --- settings of channels -----------------------------------------------------------------------------------------


def test_a_channel_that_is_wrong_stops_nobody_and_says_so(rig: Rig) -> None:
    settings = parse(
        {"channels": {"hook": {"kind": "webhook", "url": "no address"}, "ops": RecordingChannel("ops")}}, "x: alerts"
    )
    assert settings is not None
    found, channels = build_channels(settings, {})
    assert [channel.name for channel in channels] == ["hook", "ops"]
    (line,) = complaints(channels)
    assert line.startswith("x: alerts.channels.hook.url: ")
    with pytest.raises(ConfigError, match="calls itself 'b'"):
        build_channels(settings.replace(channels={"ops": RecordingChannel("b")}), {})
    assert found.policy.channels["ops"].throttle_s == 300
    assert own_member() != ""


def test_a_teller_stopped_while_a_receiver_hangs_ends_by_itself_later_and_closes_its_store(rig: Rig) -> None:
    ops = Hanging("ops")
    teller = rig.teller(ops)
    teller.tell(draft())
    assert ops.reached.wait(PATIENCE_S)
    outbox = teller.outbox
    assert outbox is not None
    teller.stop(patience_s=0.0)
    assert outbox.history()  # still there for the courier, which has to mark what it sends
    ops.let_go.set()
    until(lambda: teller.outbox is None, "the end of its thread")
    assert len(ops.notices) == 1
    with pytest.raises(StoreError, match="closed"):
        outbox.history()


def test_a_teller_stopped_before_it_has_opened_its_store_leaves_no_thread(rig: Rig) -> None:
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    teller.stop(patience_s=0.0)
    mine = [each for each in threading.enumerate() if each.name.startswith("memwarden-tell")]
    for thread in mine:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in mine)
    assert teller.outbox is None
