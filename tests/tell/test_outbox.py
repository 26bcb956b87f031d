"""Deliveries: leases, rests, death; caps; a store that is locked, full or damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from memwarden.errors import StoreError
from memwarden.facts import Level, Notice
from memwarden.store import FILE_NAME
from memwarden.tell import outbox as rooms
from memwarden.tell.members import is_foreign, is_gone, member_of, member_with, own_member
from memwarden.tell.outbox import MOST_EVENTS, MOST_STATES, Outbox
from memwarden.tell.signals import settled
from memwarden.testing import FakeClock

from .conftest import CHANNELS, Desk, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from memwarden.tell.settings import ChannelUse

HOUR = 3600.0


def chat(desk: Desk) -> ChannelUse:
    return desk.settings.policy.channels["chat"]


def ids(claim: rooms.Claim | None) -> list[str]:
    assert claim is not None
    return [notice.delivery_id for notice in claim.notices]


def test_what_is_claimed_by_one_is_not_by_another_until_its_lease_is_over_or_it_is_gone(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    first = desk.outbox.claim(chat(desk))
    other = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    other._me = "1:2:3"  # another process that cannot be seen from here
    assert (len(ids(first)), other.claim(chat(desk))) == (1, None)
    desk.clock.advance(44)
    assert other.claim(chat(desk)) is None
    desk.clock.advance(2)  # 30 s for the try and 15 more
    again = other.claim(chat(desk))
    assert again is not None
    assert (ids(again), again.attempts) == (ids(first), 2)
    other.close()


def test_what_a_dead_process_had_claimed_is_free_at_once(desk: Desk) -> None:
    code = f"""
import os, sys
from memwarden.testing import FakeClock
from tests.tell.conftest import settings_of
from memwarden.tell.outbox import Outbox
outbox = Outbox(settings_of(), folder={desk.folder!r}, clock=FakeClock())
claim = outbox.claim(settings_of().policy.channels["chat"])
print(claim.notices[0].delivery_id, flush=True)
os.kill(os.getpid(), 9)
"""
    desk.outbox.take([desk.signal("raised", 2)])
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": "src:."},
    )
    assert done.returncode == -9, done.stderr
    # The clock here stands long before that process's lease ends.
    assert ids(desk.outbox.claim(chat(desk))) == [done.stdout.strip()]


def test_of_one_channel_one_batch_is_under_way_but_what_is_urgent_does_not_wait(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    other = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    other._me = "1:2:3"
    first = other.claim(chat(desk))
    desk.outbox.take([desk.signal("cleared", 0)])
    assert desk.outbox.claim(chat(desk)) is None  # a recovery does not overtake what it ends
    desk.outbox.take([desk.signal("raised", 3, target="other")])
    urgent = desk.outbox.claim(chat(desk))
    assert urgent is not None
    assert [n.level for n in urgent.notices] == [Level.EMERGENCY]
    other.sent("chat", ids(first))
    desk.outbox.sent("chat", ids(urgent))
    assert [n.what for n in (desk.outbox.claim(chat(desk)) or urgent).notices] == ["recovered"]
    other.close()


def test_what_comes_together_goes_together_and_in_order(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(group_wait="10s")
    for number in range(30):
        desk.outbox.take([desk.signal("raised", 2, target=f"t{number}")])
    assert desk.outbox.claim(chat(desk)) is None
    assert desk.outbox.next_due("chat") == pytest.approx(desk.clock.wall() + 10)
    desk.clock.advance(10)
    batch = desk.outbox.claim(chat(desk))
    assert batch is not None
    assert [n.target for n in batch.notices] == [f"t{number}" for number in range(20)]
    desk.outbox.sent("chat", ids(batch))
    rest = desk.outbox.claim(chat(desk))
    assert rest is not None
    assert [n.target for n in rest.notices] == [f"t{number}" for number in range(20, 30)]


def test_an_emergency_waits_for_nobody(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(group_wait="10s")
    desk.outbox.take([desk.signal("raised", 2), desk.signal("raised", 3, target="worse")])
    batch = desk.outbox.claim(chat(desk))
    assert batch is not None
    assert [n.target for n in batch.notices] == ["worse"]


def test_what_is_urgent_does_not_overtake_the_end_of_the_same(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(group_wait="5s")
    desk.say("raised", 2)
    desk.pass_s(30, step_s=1)
    desk.say("raised", 2, target="other")
    desk.say("cleared", 0)
    desk.pass_s(1, step_s=1)
    desk.say("raised", 3)
    assert [(n.what, n.target) for _, n in desk.got["chat"][1:]] == [("recovered", "shop"), ("raised", "shop")]
    desk.pass_s(30, step_s=1)
    assert desk.got["chat"][-1][1].target == "other"


def test_an_end_that_was_overtaken_is_not_told(desk: Desk) -> None:
    desk.say("raised", 2)
    desk.outbox.take([desk.signal("cleared", 0)])
    slow = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    slow._me = "1:2:3"
    claim = slow.claim(chat(desk))
    desk.say("raised", 3)  # goes out while the end of the one before is under way, and fails
    slow.failed(chat(desk), ids(claim), "refused", recoverable=True)
    desk.pass_s(60)
    slow.close()
    assert [(n.what, n.level) for _, n in desk.got["chat"]] == [("raised", 2), ("raised", 3)]
    went = {told.what: told.deliveries for told in desk.outbox.history() if told.what == "recovered"}
    assert ("chat", "dead", 1, rooms.OVERTAKEN) in went["recovered"]


def of(desk: Desk, what: str, channel: str = "chat") -> list[tuple[str, int, str]]:
    """How the deliveries of these events went, the oldest first."""
    told = [each for each in reversed(desk.outbox.history()) if each.what == what]
    return [(s, n, e) for each in told for c, s, n, e in each.deliveries if c == channel]


@pytest.mark.parametrize("worse", [2, 3])
def test_what_a_worse_one_of_the_same_overtakes_while_both_wait_is_not_told(
    make_desk: Callable[..., Desk], worse: int
) -> None:
    desk = make_desk(group_wait="10s")
    desk.outbox.take([desk.signal("raised", 1)])
    desk.clock.advance(8)
    desk.outbox.take([desk.signal("raised", worse)])
    desk.pass_s(2, step_s=1)  # and it waits no longer than the one that it is instead of
    assert [(n.what, n.level) for _, n in desk.got["chat"]] == [("changed", worse)]
    assert of(desk, "raised") == [("dead", 0, rooms.OVERTAKEN)]
    assert {each.dead for each in desk.outbox.channels()} == {0}


def test_what_failed_is_not_told_after_a_worse_one_of_the_same_though_the_batch_was_full(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 1)])
    desk.outbox.failed(chat(desk), ids(desk.outbox.claim(chat(desk))), "503", recoverable=True)
    desk.clock.advance(2)
    desk.outbox.take([desk.signal("raised", 3, target=f"t{number}") for number in range(19)])
    desk.outbox.take([desk.signal("raised", 3)])
    desk.pass_s(60, step_s=1)
    assert [n.level for _, n in desk.got["chat"] if n.target == "shop"] == [3]
    assert of(desk, "raised")[0] == ("dead", 1, rooms.OVERTAKEN)


def test_what_is_under_way_elsewhere_overtakes_too_and_is_not_sent_twice(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 1)])
    desk.outbox.failed(chat(desk), ids(desk.outbox.claim(chat(desk))), "503", recoverable=True)
    desk.clock.advance(2)
    desk.outbox.take([desk.signal("raised", 3)])
    other = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    other._me = "1:2:3"
    claim = other.claim(chat(desk))
    assert [n.level for n in claim.notices] == [3]  # type: ignore[union-attr]
    assert desk.outbox.claim(chat(desk)) is None
    other.failed(chat(desk), ids(claim), "503", recoverable=True)
    other.close()
    desk.pass_s(60, step_s=1)
    assert [n.level for _, n in desk.got["chat"]] == [3]


def test_an_end_between_two_beginnings_that_wait_stays_between_them(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(group_wait="10s", cool_down="0s", flap_for="0s")
    for what, level in (("raised", 1), ("cleared", 0), ("raised", 2)):
        desk.outbox.take([desk.signal(what, level)])
        desk.clock.advance(1)
    desk.pass_s(10)
    assert desk.whats("chat") == ["raised", "recovered", "raised"]


def test_of_what_happened_each_counts(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels={"chat": {"kind": "slack", "throttle": "0s"}}, group_wait="10s")
    for kind in ("oom_kill", "custom"):
        for _ in range(2):
            desk.outbox.take([settled(desk.signal("seen", 2, kind=kind))])
    desk.pass_s(10)
    assert [n.kind for _, n in desk.got["chat"]] == ["oom_kill", "oom_kill", "custom", "custom"]


def test_a_lower_level_overtakes_nothing_and_other_channels_hear_theirs(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(group_wait="10s", remind="5s", channels={**CHANNELS, "log": {"kind": "log", "throttle": "0s"}})
    desk.outbox.take([desk.signal("raised", 3)])
    desk.outbox.take([desk.signal("raised", 1)])
    desk.clock.advance(6)
    desk.outbox.wake()  # a reminder at WARNING, while the EMERGENCY still waits
    desk.pass_s(11, step_s=1)
    assert [(n.what, n.level) for _, n in desk.got["log"]][:2] == [("raised", 3), ("reminded", 1)]
    assert desk.whats("chat")[0] == "raised"


def test_what_a_receiver_never_takes_holds_up_nothing_else(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2, target=name) for name in ("bad", "mate", "mate2")])
    got: list[list[str]] = []
    for number in range(20):
        claim = desk.outbox.claim(chat(desk))
        if claim is not None and any(each.target == "bad" for each in claim.notices):
            desk.outbox.failed(chat(desk), ids(claim), "500", recoverable=True)
        elif claim is not None:
            got.append([each.target for each in claim.notices])
            desk.outbox.sent("chat", ids(claim))
        if number == 5:
            desk.outbox.take([desk.signal("raised", 2, target="later")])
        desk.clock.advance(301)
    assert got == [["later"], ["mate"], ["mate2"]]


def test_a_message_whose_senders_were_killed_stays_one(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2, target=name) for name in "ab"])
    for _ in range(6):
        claim = desk.outbox.claim(chat(desk))
        assert [each.target for each in claim.notices] == ["a", "b"]  # type: ignore[union-attr]
        desk.restart()
        desk.clock.advance(46)


def test_a_channel_that_is_down_gets_the_same_messages_again(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2, target=name) for name in "ab"])
    for _ in range(12):
        claim = desk.outbox.claim(chat(desk))
        assert [each.target for each in claim.notices] == ["a", "b"]  # type: ignore[union-attr]
        desk.outbox.failed(chat(desk), ids(claim), "refused", recoverable=True)
        desk.clock.advance(301)


@pytest.mark.parametrize("back_s", [86_400.0, 3600.0 * 24 * 365])
def test_a_clock_that_was_set_back_delays_nothing_for_longer_than_it_could_wait(desk: Desk, back_s: float) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    claim = desk.outbox.claim(chat(desk))
    desk.outbox.failed(chat(desk), ids(claim), "503", recoverable=True)
    leased = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    leased._me = "1:2:3"
    desk.clock.advance(2)
    leased.claim(chat(desk))
    leased.close()
    desk.clock._unix_offset_s -= back_s
    assert desk.outbox.next_due("chat") == 0.0
    assert ids(desk.outbox.claim(chat(desk))) == ids(claim)


def test_a_channel_that_fails_rests_longer_each_time_and_is_down_after_its_attempts(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    rests, downs = [], []
    for _ in range(12):
        claim = desk.outbox.claim(chat(desk))
        failure = desk.outbox.failed(chat(desk), ids(claim), "refused", recoverable=True)
        rests.append(failure.not_before_unix_s - desk.clock.wall())
        downs.append(failure.down_now)
        assert desk.outbox.claim(chat(desk)) is None
        desk.clock.advance(rests[-1])
    # A random of 0.5 takes three quarters of it.
    assert [round(each, 2) for each in rests[:5]] == [0.75, 1.5, 3.0, 6.0, 12.0]
    assert max(rests) == pytest.approx(225, rel=1e-6)
    assert downs == [number == 2 for number in range(12)]
    (state,) = [each for each in desk.outbox.channels() if each.name == "chat"]
    assert (state.failures, state.error, state.pending, state.dead) == (12, "refused", 1, 0)
    claim = desk.outbox.claim(chat(desk))
    assert desk.outbox.sent("chat", ids(claim))
    assert desk.outbox.next_due("chat") is None


def test_whether_a_channel_delivers_is_a_state_of_the_same_transaction(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    for _ in range(3):
        claim = desk.outbox.claim(chat(desk))
        desk.outbox.failed(chat(desk), ids(claim), "refused", recoverable=True)
        desk.clock.advance(301)
    desk.restart()  # whoever counted it may be killed right then
    desk.outbox.sweep()
    (state,) = [each for each in desk.outbox.incidents() if each.kind == "custom"]
    assert (state.target, state.text, set(state.channels)) == ("channel chat", "refused", {"mail"})
    desk.outbox.sent("chat", ids(desk.outbox.claim(chat(desk))))
    assert [each.kind for each in desk.outbox.incidents()] == ["high_usage"]
    desk.deliver()
    assert [n.what for _, n in desk.got["mail"] if n.kind == "custom"] == ["raised", "recovered"]


def test_a_channel_that_refuses_one_notice_after_the_other_for_good_does_not_deliver(desk: Desk) -> None:
    for number in range(4):
        desk.outbox.take([desk.signal("raised", 2, target=f"t{number}")])
        done = desk.outbox.failed(chat(desk), ids(desk.outbox.claim(chat(desk))), "400", recoverable=False)
        assert (done.dead, done.down_now) == (1, number == 2)  # and it does not rest: the next may be better
    (state,) = [each for each in desk.outbox.incidents() if each.kind == "custom"]
    assert (state.target, state.text, set(state.channels)) == ("channel chat", "400", {"mail"})
    (channel,) = [each for each in desk.outbox.channels() if each.name == "chat"]
    assert (channel.failures, channel.dead, channel.error) == (4, 4, "400")
    desk.say("raised", 2, target="taken")
    assert [each for each in desk.outbox.incidents() if each.kind == "custom"] == []


def test_one_notice_that_is_refused_for_good_between_others_is_no_fault_of_the_channel(desk: Desk) -> None:
    for number in range(8):
        desk.outbox.take([desk.signal("raised", 2, target=f"t{number}")])
        claim = ids(desk.outbox.claim(chat(desk)))
        if number % 2:
            desk.outbox.sent("chat", claim)
        else:
            desk.outbox.failed(chat(desk), claim, "400", recoverable=False)
    assert {each.kind for each in desk.outbox.incidents()} == {"high_usage"}


def test_a_channel_that_is_no_more_does_not_fail_for_ever(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    for _ in range(3):
        claim = desk.outbox.claim(chat(desk))
        desk.outbox.failed(chat(desk), ids(claim), "refused", recoverable=True)
        desk.clock.advance(301)
    desk.settings = settings_of(channels={"mail": {"kind": "smtp"}})
    desk.restart()
    desk.outbox.sweep()
    assert [each.kind for each in desk.outbox.incidents()] == ["high_usage"]


def test_retry_after_is_kept_to(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    claim = desk.outbox.claim(chat(desk))
    failure = desk.outbox.failed(chat(desk), ids(claim), "429", recoverable=True, retry_after_s=77)
    assert failure.not_before_unix_s == pytest.approx(desk.clock.wall() + 77)
    desk.clock.advance(76)
    assert desk.outbox.claim(chat(desk)) is None
    desk.clock.advance(2)
    failure = desk.outbox.failed(
        chat(desk), ids(desk.outbox.claim(chat(desk))), "x", recoverable=True, retry_after_s=1e9
    )
    assert failure.not_before_unix_s == pytest.approx(desk.clock.wall() + HOUR)


def test_what_fails_for_good_is_dead_and_what_is_too_old_too(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.outbox.take([desk.signal("raised", 2)])
    desk.outbox.failed(chat(desk), ids(desk.outbox.claim(chat(desk))), "no such hook", recoverable=False)
    assert desk.outbox.next_due("chat") is None
    desk.outbox.take([desk.signal("raised", 2, target="other")])
    desk.outbox.failed(chat(desk), ids(desk.outbox.claim(chat(desk))), "down", recoverable=True)
    desk.clock.advance(86_401)
    last = desk.outbox.claim(chat(desk))  # tried once more, however long nobody was there
    assert desk.outbox.failed(chat(desk), ids(last), "still down", recoverable=True).dead == 1
    assert desk.outbox.claim(chat(desk)) is None
    desk.outbox.take([desk.signal("raised", 2, target="third")])
    desk.clock.advance(8 * 86_400)
    desk.outbox.prune()
    desk.settings = settings_of(channels={"mail": {"kind": "smtp"}})
    desk.restart()
    desk.clock.advance(86_400)
    desk.outbox.prune()  # also for one that is no channel any more
    history = desk.outbox.history(kind="high_usage")
    went = {told.target: {c: (s, e) for c, s, _, e in told.deliveries}["chat"] for told in history}
    assert went == {"shop": ("dead", "no such hook"), "other": ("dead", "given up: still down"),
        "third": ("dead", "given up: ")}  # fmt: skip
    assert "channel chat: 1 notice(s) were given up" in caplog.text


@pytest.mark.parametrize(("after", "tries", "dead_after"), [(3, 5, 3), (7200.0, 5, 5), (1, 2, 1), (None, 5, 6)])
def test_a_channel_may_give_up_after_tries_or_a_time_of_its_own(
    desk: Desk, after: float | None, tries: int, dead_after: int
) -> None:
    """Half an hour passes after each try; the notices of others and of the next one are not touched."""
    use = chat(desk).replace(give_up_after=after)
    desk.outbox.take([desk.signal("raised", 2)])
    dead = []
    for _ in range(tries):
        claim = desk.outbox.claim(use)
        if claim is None:
            break
        dead.append(desk.outbox.failed(use, ids(claim), "down", recoverable=True).dead)
        desk.clock.advance(1801)
    assert dead == ([0] * (dead_after - 1) + [1])[:tries]
    (told,) = desk.outbox.history(key="high_usage:shop")
    expected = "dead" if dead_after <= tries else "pending"
    assert {channel: state for channel, state, _, _ in told.deliveries} == {"chat": expected, "mail": "pending"}


def test_a_machine_that_slept_tries_for_a_while_before_it_gives_up(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 3)])
    desk.clock.advance(25 * HOUR)
    dead = []
    for _ in range(4):
        claim = desk.outbox.claim(chat(desk))
        dead.append(desk.outbox.failed(chat(desk), ids(claim), "no network yet", recoverable=True).dead)
        desk.clock.advance(1210)
    assert dead == [0, 0, 0, 1]


def test_history_is_queried_and_kept_for_its_time(desk: Desk) -> None:
    desk.say("raised", 2, target="shop-1")
    desk.clock.advance(86_400)
    desk.say("raised", 1, target="shop-2", kind="leak")
    outbox = desk.outbox
    assert [each.target for each in outbox.history()] == ["shop-2", "shop-1"]
    assert [each.target for each in outbox.history(kind="leak")] == ["shop-2"]
    assert [each.target for each in outbox.history(target="shop-*", most=1)] == ["shop-2"]
    assert [each.target for each in outbox.history(since_unix_s=desk.clock.wall() - 1)] == ["shop-2"]
    assert [each.target for each in outbox.history(key="high_usage:shop-1")] == ["shop-1"]
    desk.clock.advance(29.5 * 86_400)
    outbox.prune()
    assert [each.target for each in outbox.history()] == ["shop-2"]


def test_members_that_are_gone_without_a_word_are_in_nothing_any_more(desk: Desk) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    desk.say("raised", 2, member=member_with(child.pid))
    desk.say("raised", 2, member=own_member())
    desk.say("raised", 2, member="check cron", target="other")
    assert desk.outbox.sweep() == 0
    child.kill()
    child.communicate()
    assert desk.outbox.sweep() == 1
    assert desk.whats("chat") == ["raised", "raised"]
    desk.say("cleared", 0, member=own_member())
    assert desk.whats("chat")[-1] == "recovered"
    foreign = member_of(1, 5).replace(member_of(1, 5).partition(":")[0], "123")
    desk.say("raised", 2, member=foreign, target="third")
    assert desk.outbox.sweep() == 0
    desk.clock.advance(3601)
    assert desk.outbox.sweep() == 1


@pytest.mark.parametrize(
    ("member", "gone"),
    [("", False), ("check shop", False), ("1:2", False), ("0:1:1", False), ("9:9:9:9", False), ("x:1:1", False)],
)
def test_what_is_no_process_is_never_gone(member: str, gone: bool) -> None:
    assert is_gone(member) is gone
    assert is_gone(own_member()) is False
    assert is_foreign(own_member()) is False


# --- caps ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(3600 if os.environ.get("MEMWARDEN_SOAK") else 120)
def test_a_flood_is_capped_and_the_file_with_it(make_desk: Callable[..., Desk]) -> None:
    """Signals of ever new states, no receiver: rows and bytes stay within their caps. A million under soak."""
    count = 1_000_000 if os.environ.get("MEMWARDEN_SOAK") else 15_000
    desk = make_desk(channels={"chat": {"kind": "slack"}})
    sizes = []
    for number in range(0, count, 100):
        desk.clock.advance(1)
        batch = [
            desk.signal("seen", 1, kind="custom", target=f"t{number + each}", text="x" * 500) for each in range(100)
        ]
        desk.outbox.take(batch)
        if number % (count // 5) == 0:
            sizes.append(_resident())
    with sqlite3.connect(os.path.join(desk.folder, FILE_NAME)) as db:
        rows = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}
    db.close()
    assert rows["alert_states"] <= MOST_STATES + 100
    assert rows["alert_events"] <= MOST_EVENTS + rooms.PRUNE_EVERY + rooms.MOST_PENDING
    assert rows["alert_taken"] <= rooms.MOST_TAKEN + rooms.PRUNE_EVERY + 100
    assert os.path.getsize(os.path.join(desk.folder, FILE_NAME)) < 64 << 20
    assert sizes[-1] - sizes[1] < 8 << 20
    print(f"{count} signals: {rows}, memory {[size >> 10 for size in sizes]} KiB")
    waiting = [each for each in desk.outbox.channels() if each.name == "chat"]
    assert waiting[0].pending <= rooms.MOST_PENDING + rooms.PRUNE_EVERY + 100


def test_what_is_urgent_is_capped_too(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels={"chat": {"kind": "slack"}})
    for number in range(rooms.MOST_PENDING + 50):
        desk.outbox.take([desk.signal("seen", 3, kind="oom_kill", target=f"t{number}")])
    desk.outbox.prune()
    assert [each.pending for each in desk.outbox.channels()] == [rooms.MOST_PENDING]


TABLES = ("alert_states", "alert_events", "alert_deliveries", "alert_taken")


def _resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096


def test_states_that_are_on_are_not_pushed_out_and_what_has_no_room_is_counted(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 1, target=f"t{number}") for number in range(MOST_STATES + 5)])
    assert (len(desk.outbox.incidents()), desk.outbox.dropped) == (MOST_STATES, 5)


def test_long_texts_and_details_are_cut(desk: Desk) -> None:
    desk.say("raised", 2, title="t" * 5000, text="x" * 50_000, details={"a": 1, "b": "y" * 10_000})
    _, notice = desk.got["chat"][0]
    assert (len(notice.title), len(notice.text), dict(notice.details)) == (200, 2000, {"a": 1})


# --- a store that fails -------------------------------------------------------------------------------------------


def test_a_damaged_store_is_moved_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"no database at all" * 1000)
    found = Outbox(settings_of(), folder=str(tmp_path), clock=FakeClock())
    (moved,) = found.moved
    with open(moved, "rb") as file:
        assert file.read(11) == b"no database"
    assert (found.degraded, found.history()) == ("", [])
    assert "it was moved to" in caplog.text
    found.close()


def test_one_that_is_damaged_while_it_is_open_is_too(desk: Desk) -> None:
    desk.say("raised", 2)
    desk.outbox.close()
    path = os.path.join(desk.folder, FILE_NAME)
    for end in ("-wal", "-shm"):
        if os.path.exists(path + end):
            os.unlink(path + end)
    with closing(sqlite3.connect(path)) as db:
        pages = [row[0] for row in db.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name LIKE 'alert%'")]
    with open(path, "r+b") as file:  # not those of the schema: it opens all the same
        for page in filter(None, pages):
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)
    outbox = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    with pytest.raises(StoreError) as caught:
        outbox.take([desk.signal("raised", 3)])
    assert outbox.reopen(caught.value)
    assert len(outbox.moved) == 1
    assert outbox.take([desk.signal("raised", 3)]) == 2
    outbox.close()


def _break(desk: Desk, *tables: str) -> None:
    """Overwrite the first page of each, which is all of a small one."""
    desk.outbox.close()
    path = os.path.join(desk.folder, FILE_NAME)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = ?"
        pages = [db.execute(query, (name,)).fetchone()[0] for name in tables]
    with open(path, "r+b") as file:
        for page in pages:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)


def test_what_waits_in_a_damaged_store_goes_out_of_the_new_one(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.outbox.take([desk.signal("raised", 2, id="waits")])
    desk.outbox.silence((("target", "other"),), desk.clock.wall() + 60, "me", "deploy")
    _break(desk, "alert_taken")
    outbox = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    with pytest.raises(StoreError) as caught:
        outbox.take([desk.signal("raised", 3, target="other")])
    assert outbox.reopen(caught.value)
    assert "2 notice(s) that waited in it go out" in caplog.text
    assert ids(outbox.claim(chat(desk))) == ["waits.0.chat"]
    assert [(each.key, each.level) for each in outbox.incidents()] == [("high_usage:shop", Level.CRITICAL)]
    assert [each.author for each in outbox.silences()] == ["me"]
    outbox.close()


@pytest.mark.parametrize("broken", ["alert_states", "alert_events", "alert_deliveries", "alert_silences"])
def test_what_cannot_be_read_of_it_takes_nothing_else_along(desk: Desk, broken: str) -> None:
    desk.outbox.take([desk.signal("raised", 2, id="waits")])
    desk.outbox.silence((("target", "other"),), desk.clock.wall() + 60, "me", "deploy")
    _break(desk, "alert_taken", broken)
    outbox = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    with pytest.raises(StoreError) as caught:
        outbox.take([desk.signal("raised", 3)])
    assert outbox.reopen(caught.value)
    counts = {
        "alert_states": len(outbox.incidents()), "alert_silences": len(outbox.silences()),
        "alert_events": len(outbox.history()), "alert_deliveries": int(outbox.claim(chat(desk)) is not None),
    }  # fmt: skip
    gone = {broken} | ({"alert_deliveries"} if broken == "alert_events" else set())
    assert {name for name, count in counts.items() if not count} == gone
    outbox.close()


def test_who_still_writes_a_file_that_was_moved_goes_on_in_the_new_one(desk: Desk) -> None:
    other = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    other.take([desk.signal("raised", 1, id="before")])
    path = os.path.join(desk.folder, FILE_NAME)
    for end in ("-wal", "-shm", ""):
        os.replace(path + end, path + ".damaged-1" + end)
    desk.restart()
    desk.say("raised", 2, id="there", target="bank")
    other.take([desk.signal("raised", 3, id="after", target="mill")])
    assert {each.target for each in other.incidents()} == {"shop", "bank", "mill"}
    other.close()
    desk.deliver()
    assert sorted(n.target for _, n in desk.got["chat"]) == ["bank", "mill", "shop"]


def test_what_was_moved_and_not_read_the_next_one_reads(desk: Desk, tmp_path: Path) -> None:
    desk.outbox.take([desk.signal("raised", 3)])
    desk.outbox.close()
    path = os.path.join(desk.folder, FILE_NAME)
    os.replace(path, path + ".damaged-1")
    with open(path + ".unread", "w", encoding="utf-8") as note:  # killed before it was read
        note.write(FILE_NAME + ".damaged-1")
    desk.restart()
    desk.deliver()
    assert (desk.whats("chat"), os.path.exists(path + ".unread")) == (["raised"], False)


def test_of_all_who_go_on_in_memory_one_sends_what_waits(desk: Desk) -> None:
    desk.outbox.take([desk.signal("raised", 3)])
    other = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    desk.outbox.into_memory()
    other.into_memory()
    assert len(ids(desk.outbox.claim(chat(desk)))) == 1
    assert other.claim(chat(desk)) is None
    desk.outbox.close()
    assert other.recover()
    other.into_memory()  # the first one is gone
    assert other.claim(chat(desk)) is not None
    other.close()


def test_a_locked_store_is_an_error_and_goes_on_in_memory_and_comes_back(desk: Desk) -> None:
    lock = sqlite3.connect(os.path.join(desk.folder, FILE_NAME), isolation_level=None)
    desk.outbox._store._db.execute("PRAGMA busy_timeout = 10")
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked") as caught:
        desk.outbox.take([desk.signal("raised", 2)])
    assert not desk.outbox.reopen(caught.value)
    desk.outbox.into_memory()
    assert "kept in memory" in desk.outbox.degraded
    assert desk.outbox.take([desk.signal("raised", 2, id="in memory")]) == 2
    lock.execute("ROLLBACK")
    lock.close()
    assert desk.outbox.recover()
    assert not desk.outbox.recover()
    desk.restart()
    assert [each.key for each in desk.outbox.incidents()] == ["high_usage:shop"]
    assert ids(desk.outbox.claim(chat(desk))) == ["in memory.0.chat"]
    assert desk.outbox.take([desk.signal("raised", 2, id="in memory")]) == 0


def test_what_went_out_of_memory_is_counted_in_the_file_once(desk: Desk) -> None:
    desk.say("raised", 2)
    desk.outbox.take([desk.signal("raised", 3, target="waits")])
    desk.outbox.into_memory()
    desk.say("raised", 2, target="new")  # and what is urgent goes along
    for _ in range(2):
        desk.outbox.recover()
    desk.restart()
    assert {each.name: each.sent for each in desk.outbox.channels()} == {"chat": 3, "mail": 3}
    desk.deliver()
    assert len(desk.got["chat"]) == 3


def test_what_others_wrote_meanwhile_is_not_undone_by_who_comes_back_from_memory(desk: Desk) -> None:
    desk.say("raised", 1)
    desk.say("cleared", 0)
    desk.pass_s(2.5 * HOUR, step_s=600)
    back = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    back.into_memory()
    desk.say("raised", 2)
    assert back.recover()
    back.close()
    assert [each.level for each in desk.outbox.incidents()] == [Level.CRITICAL]
    desk.say("cleared", 0)
    assert desk.whats("chat") == ["raised", "recovered"] * 2


def test_what_two_wrote_apart_is_one_again(desk: Desk) -> None:
    for member in ("stays", "leaves here", "leaves there"):
        desk.say("raised", 2, member=member)
    back = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    back.into_memory()
    desk.clock.advance(1)
    desk.outbox.acknowledge("high_usage:shop", "alice")
    desk.say("cleared", 0, member="leaves there")
    desk.say("raised", 2, member="new there")
    desk.clock.advance(1)
    back.take([desk.signal("cleared", 0, member="leaves here"), desk.signal("raised", 3, member="new here")])
    assert back.recover()
    back.close()
    (state,) = desk.outbox.incidents()
    assert (dict(state.members), state.acked_by) == ({"stays": 2, "new there": 2, "new here": 3}, "alice")
    for member in state.members:
        desk.say("cleared", 0, member=member)
    desk.pass_s(60)
    assert (desk.whats("chat")[-1], desk.outbox.incidents()) == ("recovered", [])


def test_what_ended_in_both_is_over(desk: Desk) -> None:
    desk.say("raised", 2, member="m1")
    desk.say("raised", 2, member="m2")
    back = Outbox(desk.settings, folder=desk.folder, clock=desk.clock)
    back.into_memory()
    desk.say("cleared", 0, member="m1")
    back.take([desk.signal("cleared", 0, member="m2")])
    assert back.recover()
    back.close()
    desk.pass_s(60)
    assert (desk.whats("chat"), desk.outbox.incidents()) == (["raised", "recovered"], [])


def test_a_full_disk_is_an_error_and_nothing_is_half_written(desk: Desk) -> None:
    desk.say("raised", 2)
    pages = desk.outbox._store._db.execute("PRAGMA page_count").fetchone()[0]
    desk.outbox._store._db.execute(f"PRAGMA max_page_count = {pages}")
    many = [desk.signal("raised", 2, target=f"t{number}", text="x" * 2000) for number in range(1000)]
    with pytest.raises(StoreError, match="full"):
        desk.outbox.take(many)
    desk.outbox._store._db.execute("PRAGMA max_page_count = 1000000")
    states = {each.key for each in desk.outbox.incidents()}
    events = {each.key for each in desk.outbox.history(most=2000)}
    assert states == events == {"high_usage:shop"}


def test_a_probe_finds_a_full_disk_and_leaves_nothing(desk: Desk) -> None:
    db = desk.outbox._store._db
    desk.outbox.probe()
    assert db.execute("SELECT count(*) FROM alert_taken").fetchone() == (0,)
    db.execute("VACUUM")
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StoreError, match="full"):
        desk.outbox.probe()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer memwarden"):
        Outbox(settings_of(), folder=str(tmp_path), clock=FakeClock())
    assert [name for name in os.listdir(tmp_path) if "damaged" in name] == []


def test_a_test_notice_is_queued_like_any_other(desk: Desk) -> None:
    notice = Notice(
        delivery_id="test-1", key="test:host", kind="test", what="test", level=Level.WARNING, title="t", text="x",
        unix_s=1.0, target="host", host="host",
    )  # fmt: skip
    desk.outbox.test(notice, ["chat"])
    desk.deliver()
    assert [n.delivery_id for _, n in desk.got["chat"]] == ["test-1.chat"]


def test_the_reasons_are_in_the_log_for_whoever_asks(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "memwarden.tell")
    desk.say("raised", 2)
    assert "high_usage:shop began: {'mail': 'new', 'chat': 'new', 'lead': 'tier'}" in caplog.text


def test_asking_whether_a_store_is_sound_makes_none(tmp_path: Path) -> None:
    assert not rooms._is_sound(str(tmp_path / FILE_NAME))
    assert os.listdir(tmp_path) == []
