"""Many settings in one store: each tells its own alerts by its own channels, and what a person does is for all."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.facts import Level
from memwarden.store import _MIGRATIONS, FILE_NAME, Store
from memwarden.tell.members import member_of, own_member
from memwarden.tell.outbox import Outbox
from memwarden.tell.sender import adopt
from memwarden.tell.settings import AlertSettings, Policy, origin_of, parse
from memwarden.tell.signals import from_text, to_text
from memwarden.testing import FakeClock, RecordingChannel

from .conftest import Desk, settings_of
from .test_sender import Rig, draft

if TYPE_CHECKING:
    from collections.abc import Iterator


HOUR = 3600.0


_made: list[Desk] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _made:
        _made.pop().outbox.close()


def desk_of(folder: Path, service: str, clock: FakeClock | None = None, **table: Any) -> Desk:
    """Of a table in code of this service; many in one folder share its clock."""
    desk = Desk(str(folder), settings_of(service=service, **table))
    if clock is not None:
        desk.outbox.close()
        desk.clock, desk.start = clock, clock.wall()
        desk.restart()
    made = desk
    _made.append(made)
    return made


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_each_tells_its_own_to_its_own_channels(tmp_path: Path) -> None:
    ours = desk_of(tmp_path, "shop", channels={"ops": {"kind": "slack"}, "lead": {"kind": "slack", "tier": 1}})
    theirs = desk_of(tmp_path, "bank", ours.clock, channels={"mail": {"kind": "smtp"}, "ops": {"kind": "webhook"}})
    ours.say("raised", 2)
    theirs.deliver()
    ours.clock.advance(301)
    theirs.outbox.wake()  # it comes first
    theirs.outbox.sweep()
    theirs.deliver()
    ours.outbox.wake()
    ours.deliver()
    ours.say("cleared", 0)
    theirs.pass_s(HOUR)
    assert (ours.whats("ops"), ours.whats("lead")) == (["raised", "recovered"], ["escalated", "recovered"])
    assert (theirs.whats("mail"), theirs.whats("ops")) == ([], [])


def test_the_same_key_of_two_is_two_states(tmp_path: Path) -> None:
    ours = desk_of(tmp_path, "shop", channels={"ops": {"kind": "slack"}})
    theirs = desk_of(tmp_path, "bank", ours.clock, channels={"ops": {"kind": "slack"}})
    ours.say("raised", 3, id="ours")
    theirs.say("raised", 1, id="theirs", kind="leak")  # which our emergency does not hold back
    theirs.say("raised", 1, id="again")
    assert [notice.kind for _, notice in theirs.got["ops"]] == ["leak", "high_usage"]
    theirs.say("cleared", 0, id="over")
    assert (theirs.whats("ops")[-1], ours.whats("ops")) == ("recovered", ["raised"])


def test_a_machine_short_of_memory_holds_back_everybodys_processes(tmp_path: Path) -> None:
    ours = desk_of(tmp_path, "shop")
    theirs = desk_of(tmp_path, "bank", ours.clock)
    ours.say("raised", 3, id="a", target="machine host", scope="machine")
    theirs.say("raised", 1, id="b", scope="process")
    assert theirs.whats("chat") == []


def test_a_channel_that_fails_rests_for_its_own_alone(tmp_path: Path) -> None:
    ours = desk_of(tmp_path, "shop")
    theirs = desk_of(tmp_path, "bank", ours.clock)
    use = ours.settings.policy.channels["chat"]
    ours.outbox.take([ours.signal("raised", 2, id="a")])
    claim = ours.outbox.claim(use)
    assert claim is not None
    ours.outbox.failed(use, [each.delivery_id for each in claim.notices], "refused", recoverable=True)
    theirs.say("raised", 2, id="b")
    assert theirs.whats("chat") == ["raised"]
    assert [(each.origin, each.failures) for each in theirs.outbox.channels() if each.name == "chat"] == [
        ("code:bank", 0), ("code:shop", 1),
    ]  # fmt: skip


def test_what_a_person_does_is_for_all_and_told_by_whose_it_is(tmp_path: Path) -> None:
    ours = desk_of(tmp_path, "shop")
    theirs = desk_of(tmp_path, "bank", ours.clock)
    ours.say("raised", 2, id="a")
    theirs.say("raised", 2, id="b")
    person = Outbox(AlertSettings(policy=Policy()), folder=str(tmp_path), clock=ours.clock)
    assert [each.origin for each in person.acknowledge("high_usage:shop", "me")] == ["code:bank", "code:shop"]
    assert len(person.resolve("high_usage:shop", "me")) == 2
    assert len(person.history(key="high_usage:shop")) == 4
    person.close()
    for desk in (ours, theirs):
        desk.pass_s(30)
        assert desk.whats("chat") == ["raised", "recovered"]
        assert "resolved by me" in desk.got["chat"][-1][1].text


def test_what_others_left_for_a_week_is_dropped(tmp_path: Path) -> None:
    gone = desk_of(tmp_path, "gone")
    gone.outbox.take([gone.signal("raised", 2, id="a")])
    ours = desk_of(tmp_path, "shop", gone.clock)
    gone.clock.advance(6 * 86_400)
    ours.outbox.prune()
    assert len(ours.outbox.incidents()) == 1
    gone.clock.advance(2 * 86_400)
    ours.outbox.prune()
    assert (ours.outbox.incidents(), [each.pending for each in ours.outbox.channels()]) == ([], [])


def test_whose_it_is_comes_of_the_file_else_of_the_service(tmp_path: Path) -> None:
    path = tmp_path / "memwarden.toml"
    path.write_text("")
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert origin_of(f"{link}: alerts", "shop") == origin_of(f"{path}: alerts", "bank") == str(path)
    assert origin_of("alerts", "shop") == "code:shop"
    (tmp_path / ("ä" * 100)).write_text("")
    long = origin_of(f"{tmp_path / ('ä' * 100)}: alerts", "")
    assert (long.isascii(), len(long) <= 120, long != origin_of(f"{tmp_path / ('ä' * 100)}", "")) == (True, True, True)
    settings = parse({"channels": {"log": {"kind": "log"}}}, "alerts")
    assert settings is not None
    assert settings.of_target("app.py").origin == "code:app.py"


def test_a_signal_says_whose_it_is_and_older_ones_do_not(tmp_path: Path) -> None:
    signal = desk_of(tmp_path, "shop").signal("raised", 2, origin="code:shop")
    text = to_text(signal)
    assert from_text(text) == signal
    older = {name: value for name, value in json.loads(text).items() if name != "origin"}
    assert from_text(json.dumps(older)) == signal.replace(origin="")


@pytest.mark.parametrize(
    ("whose", "gone", "lay_s", "taken"),
    [
        ("code:shop", True, 0, 1), ("code:shop", False, 0, 0), ("code:shop", False, 61, 1), ("", True, 0, 1),
        ("code:bank", True, 0, 0), ("code:bank", True, 61, 1), ("code:bank", False, 61, 0),
    ],
)  # fmt: skip
def test_slots_are_for_whose_they_are_and_for_others_when_they_were_let_lie(
    rig: Rig, whose: str, gone: bool, lay_s: float, taken: int
) -> None:
    desk = desk_of(Path(rig.folder), "shop")
    now = time.time()
    member = member_of(4_194_000, 1) if gone else own_member()
    signal = desk.signal("raised", 2, origin=whose, member=member, unix_s=now)
    rig.box().post(now - lay_s, 1.0, to_text(signal))
    adopt(desk.outbox, rig.run_folder, own=None, now_unix_s=now)
    assert len(desk.outbox.incidents()) == taken


def test_what_is_kept_since_before_there_were_origins_is_anybodys(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        for name in ("alert_states", "alert_events", "alert_deliveries", "alert_channels", "alert_silences"):
            db.execute(f"DROP TABLE {name}")
        db.execute("DROP TABLE alert_taken")
        db.executescript(_MIGRATIONS[2])
        db.execute(f"PRAGMA user_version = {len(_MIGRATIONS) - 1}")
        state: dict[str, Any] = {
            "key": "high_usage:shop",
            "kind": "high_usage",
            "target": "shop",
            "host": "h",
            "scope": "container",
        }
        state |= {"level": 2, "title": "t", "text": "t", "episode": 1, "open": True, "top": 2, "members": {"m1": 2}}
        state |= {"channels": {"chat": [1.0, 2, 1]}, "actions": [], "untold": 0, "raised_unix_s": 1.0}
        row = ("high_usage:shop", "high_usage", "shop", "container", 2, 1, None, 1.0, json.dumps(state))
        db.execute("INSERT INTO alert_states VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO alert_channels VALUES ('chat', 2, 0.0, 1.0, 7, 0, 'refused')")
        db.commit()
    desk = desk_of(tmp_path, "shop")
    (state_then,) = desk.outbox.incidents()
    assert (state_then.origin, state_then.level) == ("", Level.CRITICAL)
    desk.say("cleared", 0)
    assert desk.whats("chat") == ["recovered"]
    assert [each.origin for each in desk.outbox.incidents(all_of_them=True)] == ["code:shop"]
    assert [(each.origin, each.sent) for each in desk.outbox.channels() if each.name == "chat"] == [("code:shop", 8)]


def test_one_that_stays_in_memory_leaves_no_file(tmp_path: Path) -> None:
    made = Outbox(settings_of(), folder=str(tmp_path), clock=FakeClock(), memory="a monitor", stays=True)
    assert not made.recover()
    made.close()
    assert not os.path.exists(tmp_path / FILE_NAME)


def test_two_tellers_of_one_folder_and_channel_name_reach_their_own_receiver(rig: Rig) -> None:
    ours, theirs = RecordingChannel("ops"), RecordingChannel("ops")
    first = rig.teller(ours, start=False, service="shop", group_wait="10m")
    second = rig.teller(theirs, start=False, service="bank")
    first.tell(draft(level=1))
    outbox = first.open_outbox()
    outbox.take([signal for post in first._box.posts() if (signal := from_text(post.text))])  # type: ignore[union-attr]
    outbox.close()
    second.once(within_s=2)
    assert theirs.notices == ()
    first.once(within_s=5)
    assert [each.what for each in ours.notices] == ["raised"]
