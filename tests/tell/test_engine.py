"""Whom to tell, when: by hand-made series, by hypothesis, and over a simulated month with restarts."""

from __future__ import annotations

import tempfile
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import ConfigError
from memwarden.facts import Level
from memwarden.tell.engine import HANDOVER_S, REASONS, Incident, parse_matcher
from memwarden.tell.members import member_of
from memwarden.tell.outbox import Outbox
from memwarden.tell.rules import LevelRules
from memwarden.tell.settings import AlertSettings, Maintenance, Policy

from .conftest import Desk, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

MIN, HOUR = 60.0, 3600.0


def why(desk: Desk) -> dict[str, str]:
    """The reasons of the newest event."""
    return dict(desk.outbox.history(most=1)[0].why)


# --- begin, rise, end ---------------------------------------------------------------------------------------------


def test_a_state_is_told_when_it_begins_and_when_it_is_over_with_duration_peak_and_what_was_done(desk: Desk) -> None:
    desk.say("raised", 2, details={"used_bytes": 900, "used_ratio": 0.9})
    desk.pass_s(60)
    desk.say("raised", 2, details={"used_bytes": 950, "used_ratio": 0.95})
    desk.outbox.take([desk.signal("seen", 1, kind="action", text="trim freed 3 MiB")])
    desk.pass_s(60)
    desk.say("cleared", 0)
    assert [what for what in desk.whats("mail") if what != "raised"] == ["recovered"]
    _, over = desk.got["mail"][-1]
    assert (over.key, over.level, over.details["lasted_s"]) == ("high_usage:shop", Level.CRITICAL, 120.0)
    assert (over.details["peak_bytes"], over.details["peak_ratio"]) == (950, 0.95)
    assert over.details["actions"] == ["trim freed 3 MiB"]
    assert "it lasted 2 min" in over.text
    assert desk.outbox.incidents() == []


def test_the_end_names_the_worst_in_its_title_and_the_figures_of_now_beside_the_peak(desk: Desk) -> None:
    def used(share: float, **more: object) -> dict[str, object]:
        return {"used_bytes": int(share * 100), "used_ratio": share, "limit_bytes": 100, **more}

    desk.say("raised", 2, title="memory CRITICAL: 90 %", details=used(0.9, in_flight=["import"]))
    desk.say("raised", 1, title="memory WARNING a moment ago, now 24 %", details=used(0.24))
    desk.say("cleared", 0, details=used(0.2, peak_ratio=0.93, peak_bytes=93))
    (over,) = [notice for _, notice in desk.got["chat"] if notice.what == "recovered"]
    assert over.title == "over: memory CRITICAL: 90 %"
    wanted = {"used_bytes": 20, "used_ratio": 0.2, "limit_bytes": 100, "peak_bytes": 93, "peak_ratio": 0.93}
    assert {name: over.details[name] for name in wanted} == wanted
    assert "in_flight" not in over.details


@pytest.mark.parametrize("how", ["gone", "resolved", "one of two"])
def test_who_ends_it_without_figures_leaves_no_old_ones(desk: Desk, how: str) -> None:
    gone = member_of(1 << 22, 7)
    desk.say("raised", 2, scope="process", member=gone, details={"used_bytes": 90, "limit_bytes": 100})
    if how == "one of two":
        desk.say("raised", 2, scope="process", member="m2", details={"used_bytes": 95, "limit_bytes": 100})
        desk.say("cleared", 0, scope="process", member=gone, details={"used_bytes": 1})
        (incident,) = desk.outbox.incidents()
        assert (incident.details["used_bytes"], incident.peak_bytes) == (95, 95)
        return
    if how == "gone":
        desk.outbox.sweep()
    else:
        desk.outbox.resolve("high_usage:shop", "alice")
    desk.deliver()
    (over,) = [notice for _, notice in desk.got["chat"] if notice.what == "recovered"]
    assert ("used_bytes" in over.details, over.details["limit_bytes"], over.details["peak_bytes"]) == (False, 100, 90)


def test_the_same_again_is_no_news_and_a_higher_level_is(desk: Desk) -> None:
    for level in (1, 1, 1, 2, 2, 1, 2, 3, 3):
        desk.say("raised", level)
        desk.pass_s(5)
    assert [(n.what, n.level.name) for _, n in desk.got["chat"]] == [
        ("raised", "WARNING"), ("changed", "CRITICAL"), ("changed", "EMERGENCY"),
    ]  # fmt: skip


def test_a_channel_hears_from_its_least_level_on(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels={"all": {"kind": "slack"}, "bad": {"kind": "slack", "min_level": "critical"}})
    desk.say("raised", 1)
    assert (desk.whats("all"), desk.whats("bad"), why(desk)) == (["raised"], [], {"all": "new", "bad": "level"})
    desk.say("raised", 2)
    assert (desk.whats("all"), desk.whats("bad")) == (["raised", "changed"], ["raised"])
    desk.say("cleared", 0)
    assert desk.whats("bad")[-1] == "recovered"


def test_it_is_over_when_nobody_is_in_it_any_more(desk: Desk) -> None:
    """Eight workers, one notice; and one recovery, with the last of them."""
    for worker in range(8):
        desk.say("raised", 2, member=f"worker {worker}")
    assert desk.whats("chat") == ["raised"]
    for worker in range(8):
        assert desk.whats("chat") == ["raised"]
        desk.say("cleared", 0, member=f"worker {worker}")
    assert desk.whats("chat") == ["raised", "recovered"]


def test_what_is_over_and_was_never_on_is_nothing(desk: Desk) -> None:
    assert desk.say("cleared", 0) == 0
    assert (desk.outbox.history(), desk.outbox.incidents(all_of_them=True)) == ([], [])


def test_a_signal_counts_once_however_often_it_comes(desk: Desk) -> None:
    signal = desk.signal("raised", 3)
    assert desk.outbox.take([signal, signal]) == 2
    assert desk.outbox.take([signal]) == 0
    desk.restart()
    assert desk.outbox.take([signal]) == 0
    desk.deliver()
    assert [n.delivery_id for _, n in desk.got["mail"]] == [f"{signal.id}.0.mail"]


# --- cool-down, throttle, flapping --------------------------------------------------------------------------------


def test_a_state_that_comes_back_rests_for_cool_down_and_throttle_and_a_worse_one_does_not(desk: Desk) -> None:
    desk.say("raised", 1)
    desk.pass_s(60)
    desk.say("cleared", 0)
    desk.pass_s(60)
    desk.say("raised", 1)
    desk.pass_s(5 * MIN)
    assert desk.whats("chat") == ["raised", "recovered"]
    assert why(desk) == {"mail": "cooling", "chat": "cooling", "lead": "tier"}
    desk.pass_s(15 * MIN)
    assert desk.times("chat")[2:] == [(660.0, "raised")]  # ten minutes after it was said to be over
    assert desk.times("mail")[2:] == [(960.0, "raised")]  # fifteen for mail
    desk.say("raised", 2)
    assert desk.whats("chat")[-1] == "changed"


def test_a_worse_one_passes_the_cool_down(desk: Desk) -> None:
    desk.say("raised", 1)
    desk.say("cleared", 0)
    desk.pass_s(10)
    desk.say("raised", 2)
    assert [(n.what, n.level.name) for _, n in desk.got["chat"]][2:] == [("raised", "CRITICAL")]


def test_what_comes_and_goes_is_over_after_an_hour_of_quiet(desk: Desk) -> None:
    desk.say("raised", 1)
    desk.say("cleared", 0)
    desk.pass_s(20 * MIN)
    desk.say("raised", 1)
    desk.pass_s(60)
    desk.say("cleared", 0)
    desk.pass_s(59 * MIN)
    assert desk.whats("chat") == ["raised", "recovered", "raised"]
    desk.pass_s(60)
    assert desk.whats("chat")[3:] == ["recovered"]


def flap(series: list[tuple[float, float]]) -> Desk:
    """(seconds, ratio) through the rules of a process and the engine, as a Warden does it; 75 % is the line."""
    with tempfile.TemporaryDirectory(prefix="memwarden-flap-") as folder:
        desk = Desk(folder, settings_of())
        found = desk.settings
        rules = LevelRules(
            raise_for_s=found.raise_for_s, clear_for_s=found.clear_for_s, clear_below=0.70, clear_gap=found.clear_gap
        )
        for seconds, ratio in series:
            desk.clock.advance(seconds)
            level = Level.WARNING if ratio >= 0.75 else Level.NORMAL
            for change in rules.weigh(level, ratio, desk.clock.monotonic()):
                desk.outbox.take([desk.signal(change.what, change.level, kind=change.kind)])
            desk.outbox.wake()
            desk.deliver()
        desk.outbox.close()
    return desk


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_crossings_in_an_hour_are_at_most_three_notices(seed: int) -> None:
    rng = Random(seed)
    gaps = [rng.expovariate(1) ** (1 + 2 * seed) for _ in range(1000)]
    scale = 3600 / sum(gaps)
    desk = flap([(gap * scale, 0.80 if number % 2 else 0.60) for number, gap in enumerate(gaps)])
    assert desk.clock.wall() - desk.start == pytest.approx(3600)
    assert {name: len(got) for name, got in desk.got.items() if len(got) > 3} == {}


def test_without_any_of_this_each_crossing_would_be_a_notice() -> None:
    """The control: rules that wait for nothing raise 500 times."""
    rules = LevelRules(raise_for_s=0, clear_for_s=0, clear_below=0.75, clear_gap=0.05)
    levels = [Level.WARNING if number % 2 else Level.NORMAL for number in range(1000)]
    changes = [each for n, level in enumerate(levels) for each in rules.weigh(level, 0.8 if level else 0.6, n * 3.6)]
    assert len([each for each in changes if each.what == "raised"]) == 500


@settings(unhurried, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 3.0, 40.0, 70.0, 130.0, 700.0, 1000.0]), st.booleans()), min_size=1, max_size=60
    )
)
def test_no_series_gets_more_than_three_notices_in_any_hour(series: list[tuple[float, bool]]) -> None:
    """Slow ones too, that raise-for and clear-for let through: at one level, at most three within an hour."""
    desk = flap([(gap, 0.80 if high else 0.60) for gap, high in series] + [(30.0, 0.60)] * 300)
    for got in desk.got.values():
        times = [at for at, _ in got]
        for first in times:
            assert len([at for at in times if first <= at < first + HOUR - 1]) <= 3, times
    for name in ("mail", "chat"):
        whats = desk.whats(name)
        assert whats.count("raised") == whats.count("recovered")  # at its end it was quiet for long


# --- held: silences, maintenance, inhibition ------------------------------------------------------------------------


def test_a_silence_holds_and_lets_go(desk: Desk) -> None:
    number = desk.outbox.silence(parse_matcher("kind=high_* target=shop"), desk.clock.wall() + HOUR, "me", "a deploy")
    desk.say("raised", 2)
    assert (desk.whats("chat"), why(desk)) == ([], {"*": "silenced"})
    assert desk.outbox.silences()[0].comment == "a deploy"
    desk.say("raised", 1, target="other")
    assert desk.whats("chat") == ["raised"]
    desk.pass_s(10 * MIN)
    assert desk.outbox.end_silence(number)
    assert not desk.outbox.end_silence(number)
    desk.pass_s(1)
    assert [n.target for _, n in desk.got["chat"]] == ["other", "shop"]
    assert why(desk)["chat"] == "lasts"


def test_a_silence_ends_by_itself_and_what_was_over_meanwhile_is_not_told(desk: Desk) -> None:
    desk.outbox.silence(parse_matcher("*"), desk.clock.wall() + HOUR, "me", "")
    desk.say("raised", 2)
    desk.say("raised", 2, target="other")
    desk.say("cleared", 0, target="other")
    assert why(desk) == {"*": "untold"}
    desk.pass_s(HOUR + 30)
    assert [n.target for _, n in desk.got["chat"]] == ["shop"]


def test_recovery_is_told_though_silenced_to_whoever_heard_of_it(desk: Desk) -> None:
    desk.say("raised", 2)
    desk.outbox.silence(parse_matcher("*"), desk.clock.wall() + HOUR, "me", "")
    desk.say("cleared", 0)
    assert desk.whats("chat") == ["raised", "recovered"]


def test_maintenance_holds_what_is_below_its_level(make_desk: Callable[..., Desk]) -> None:
    window = {"name": "backup", "start": "2027-01-15T08:00", "end": "2027-01-15T09:00", "utc": True}
    desk = make_desk(maintenance=[window])
    assert desk.clock.wall() == 1_800_000_000.0  # 2027-01-15 08:00 UTC
    desk.say("raised", 2)
    assert why(desk) == {"*": "maintenance"}
    desk.say("raised", 3, target="other")
    assert [n.target for _, n in desk.got["chat"]] == ["other"]
    desk.pass_s(HOUR + 30)
    assert [n.target for _, n in desk.got["chat"]] == ["other", "shop"]


def test_an_emergency_silences_warnings_of_the_same_target_until_it_is_over(desk: Desk) -> None:
    desk.say("raised", 3)
    desk.say("raised", 1, kind="rapid_growth")
    assert why(desk) == {"*": "inhibited"}
    desk.say("raised", 2, kind="leak")
    desk.say("raised", 1, kind="rapid_growth", target="other")
    assert [n.key for _, n in desk.got["chat"]] == ["high_usage:shop", "leak:shop", "rapid_growth:other"]
    desk.say("cleared", 0)
    desk.pass_s(30)
    assert desk.got["chat"][-1][1].key == "rapid_growth:shop"


def test_a_short_machine_silences_what_is_about_single_processes(desk: Desk) -> None:
    desk.say("raised", 2, target="machine host", scope="machine")
    desk.say("raised", 1, scope="process", kind="leak")
    assert why(desk) == {"*": "machine"}
    desk.say("raised", 1, scope="container", target="other")
    assert desk.got["chat"][-1][1].target == "other"


@pytest.mark.parametrize("text", ["", "nonsense=1", "kind=", "level"])
def test_a_matcher_that_says_nothing_is_refused(text: str) -> None:
    if text == "level":
        assert parse_matcher(text) == (("key", "level"),)
        return
    with pytest.raises(ConfigError):
        parse_matcher(text)


# --- what happens once ------------------------------------------------------------------------------------------------


def test_what_happens_once_is_told_and_the_others_as_a_number(desk: Desk) -> None:
    for _ in range(20):
        desk.say("seen", 1, kind="spike")
        desk.clock.advance(1)
    assert desk.whats("chat") == ["raised"]
    desk.pass_s(20 * MIN)
    ((at, what),) = desk.times("chat")[1:]
    assert (300 <= at <= 331, what) == (True, "raised")
    assert "and 18 more" in desk.got["chat"][1][1].text
    assert desk.outbox.incidents() == []


def test_what_is_no_warning_stands_in_the_history_alone(desk: Desk) -> None:
    desk.say("seen", 0, kind="action")
    assert (desk.whats("chat"), [told.why for told in desk.outbox.history()]) == (
        [], [{"mail": "level", "chat": "level", "lead": "tier"}],
    )  # fmt: skip
    desk.say("seen", 1, kind="action")
    assert desk.whats("chat") == ["raised"]


def test_a_worse_one_passes_at_once(desk: Desk) -> None:
    desk.say("seen", 1, kind="custom")
    desk.say("seen", 2, kind="custom")
    assert [n.level.name for _, n in desk.got["chat"]] == ["WARNING", "CRITICAL"]


# --- escalation -------------------------------------------------------------------------------------------------------

CHAIN = {"ops": {"kind": "slack"}, **{f"level{n}": {"kind": "slack", "tier": n} for n in (1, 2, 3)}}


def test_each_level_hears_at_its_time_and_all_hear_that_it_is_over(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels=CHAIN)
    desk.say("raised", 2)
    desk.pass_s(40 * MIN)
    assert [desk.times(f"level{n}") for n in (1, 2, 3)] == [
        [(300.0, "escalated")], [(900.0, "escalated")], [(1800.0, "escalated")],
    ]  # fmt: skip
    desk.say("cleared", 0)
    assert all(desk.whats(name)[-1] == "recovered" for name in CHAIN)


@pytest.mark.parametrize("how", ["acknowledged", "over", "below"])
def test_it_stops_on_acknowledge_on_recovery_and_below_its_level(make_desk: Callable[..., Desk], how: str) -> None:
    desk = make_desk(channels=CHAIN)
    desk.say("raised", 2)
    desk.pass_s(6 * MIN)
    if how == "acknowledged":
        (found,) = desk.outbox.acknowledge("high_usage:shop", "alice")
        assert (found.acked_by, desk.outbox.incidents()[0].acked_by) == ("alice", "alice")
    else:
        desk.say("cleared" if how == "over" else "raised", 0 if how == "over" else 1)
    desk.pass_s(3 * HOUR)
    assert "escalated" in desk.whats("level1")
    assert "escalated" not in desk.whats("level2") + desk.whats("level3")


def test_what_becomes_worse_than_what_was_acknowledged_is_told_and_escalates_on(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels=CHAIN)
    desk.say("raised", 2)
    desk.outbox.acknowledge("high_usage:shop", "alice")
    desk.pass_s(10 * MIN)
    desk.say("raised", 3)
    assert desk.whats("ops") == ["raised", "changed"]
    desk.pass_s(30)
    assert desk.whats("level1") == ["escalated"]


GONE = member_of(4_194_000, 1)


@pytest.mark.parametrize("how", ["stops", "dies"])
def test_what_one_left_another_goes_on_with_and_nobody_hears_of_it(desk: Desk, how: str) -> None:
    desk.say("raised", 3, member=GONE)
    desk.pass_s(MIN)
    if how == "stops":
        desk.say("left", 0, member=GONE)
    else:
        assert desk.outbox.sweep() == 1
    desk.pass_s(HANDOVER_S - 1, step_s=1)
    desk.say("raised", 1, kind="leak")
    assert why(desk) == {"*": "inhibited"}
    desk.say("raised", 3, member="next")
    desk.pass_s(HOUR)
    assert (desk.whats("chat"), desk.whats("lead")) == (["raised"], ["escalated"])
    desk.say("cleared", 0, member="next")
    assert [n.what for _, n in desk.got["chat"] if n.kind == "high_usage"] == ["raised", "recovered"]


def test_what_nobody_goes_on_with_is_over(desk: Desk) -> None:
    desk.say("raised", 3, member="m1")
    desk.say("raised", 3, member="m2")
    desk.say("left", 0, member="m1")
    desk.pass_s(2 * HANDOVER_S)
    assert desk.whats("chat") == ["raised"]
    desk.say("left", 0, member="m2", text="its Warden was stopped")
    assert desk.whats("chat") == ["raised"]
    desk.pass_s(HANDOVER_S, step_s=1)
    assert desk.whats("chat") == ["raised", "recovered"]
    assert "its Warden was stopped" in desk.got["chat"][-1][1].text


def test_the_last_one_who_says_that_it_is_over_waits_for_nobody(desk: Desk) -> None:
    desk.say("raised", 3, member="m1")
    desk.say("left", 0, member="m1")
    desk.say("cleared", 0, member="m2")
    assert desk.whats("chat") == ["raised", "recovered"]


def test_what_nobody_else_can_see_ends_with_who_saw_it(desk: Desk) -> None:
    desk.say("raised", 3, member=GONE)
    assert desk.outbox.sweep(lambda: False) == 1
    desk.deliver()
    assert desk.whats("chat") == ["raised", "recovered"]


def test_what_was_left_is_over_as_soon_as_nobody_is_there_to_take_it_up(desk: Desk) -> None:
    desk.say("raised", 3, member="m1")
    desk.say("left", 0, member="m1")
    desk.outbox.sweep()
    desk.deliver()
    assert desk.whats("chat") == ["raised"]
    desk.outbox.sweep(lambda: False)
    desk.deliver()
    assert (desk.whats("chat"), desk.outbox.incidents()) == (["raised", "recovered"], [])


def test_what_is_of_one_process_ends_with_it(desk: Desk) -> None:
    desk.say("raised", 2, kind="leak", scope="process", member=GONE)
    desk.outbox.sweep()
    desk.deliver()
    assert desk.whats("chat") == ["raised", "recovered"]


def test_one_that_is_over_and_watched_may_be_acknowledged_and_its_end_is_told(desk: Desk) -> None:
    for _ in range(2):
        desk.say("raised", 1)
        desk.pass_s(MIN)
        desk.say("cleared", 0)
        desk.pass_s(20 * MIN)
    desk.outbox.acknowledge("high_usage:shop", "alice")
    desk.pass_s(5 * HOUR, step_s=600)
    assert (desk.whats("chat")[-1], desk.outbox.incidents()) == ("recovered", [])


def test_who_acknowledges_need_not_know_the_channels(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk()
    window = Maintenance(name="deploy", start_unix_s=desk.start, end_unix_s=desk.start + HOUR)
    desk.settings = desk.settings.replace(policy=desk.settings.policy.replace(maintenance=(window,)))
    desk.restart()
    desk.say("raised", 2)
    elsewhere = Outbox(AlertSettings(policy=Policy()), folder=desk.folder, clock=desk.clock)
    elsewhere.acknowledge("high_usage:shop", "alice")
    elsewhere.close()
    desk.pass_s(2 * HOUR)
    assert desk.whats("chat") == ["raised"]


def acking(desk: Desk, *names: str) -> None:
    """Have the receivers of these channels know acknowledgements."""
    policy = desk.settings.policy
    channels = {name: use.replace(acks=name in names) for name, use in policy.channels.items()}
    desk.settings = desk.settings.replace(policy=policy.replace(channels=channels))
    desk.restart()


@pytest.mark.parametrize("meanwhile", ["nothing", "said again", "silenced", "restart"])
def test_who_acknowledges_is_told_once_to_who_can_pass_it_on_and_heard_of_it(desk: Desk, meanwhile: str) -> None:
    acking(desk, "chat", "lead")  # the lead hears nothing of it, and so nothing of this either
    desk.say("raised", 2)
    elsewhere = Outbox(AlertSettings(policy=Policy()), folder=desk.folder, clock=desk.clock)
    elsewhere.acknowledge("high_usage:shop", "alice")
    elsewhere.close()
    if meanwhile == "said again":
        desk.say("raised", 2)
    elif meanwhile == "silenced":
        desk.outbox.silence(parse_matcher("*"), desk.clock.wall() + HOUR, "me", "")
    elif meanwhile == "restart":
        desk.restart()
    desk.pass_s(HOUR)
    desk.say("cleared", 0)
    desk.pass_s(30)
    assert {name: desk.whats(name) for name in desk.got} == {
        "chat": ["raised", "acknowledged", "recovered"], "mail": ["raised", "recovered"], "lead": [],
    }  # fmt: skip
    (said,) = [notice for _, notice in desk.got["chat"] if notice.what == "acknowledged"]
    assert (said.title, said.text, said.level) == ("acknowledged: title", "by alice", 2)


def test_one_that_is_only_watched_and_one_that_becomes_worse_are_acknowledged_each_time(desk: Desk) -> None:
    acking(desk, "chat")
    desk.say("raised", 1)
    for level in (2, 3):
        desk.outbox.acknowledge("high_usage:shop", "alice")
        desk.pass_s(30)
        desk.say("raised", level)
    desk.say("cleared", 0)
    desk.pass_s(HOUR / 2)
    desk.say("raised", 1)  # twice within an hour: when it is quiet again, it is watched for long
    desk.say("cleared", 0)
    desk.outbox.acknowledge("high_usage:shop", "alice")
    desk.pass_s(3 * HOUR)
    expected = ["raised", "acknowledged", "changed", "acknowledged", "changed", "recovered"]
    assert desk.whats("chat") == [*expected, "raised", "acknowledged", "recovered"]


def test_what_is_over_and_only_watched_holds_nothing_back(desk: Desk) -> None:
    for _ in range(2):
        desk.say("raised", 3)
        desk.pass_s(MIN)
        desk.say("cleared", 0)
        desk.pass_s(20 * MIN)
    assert [each.key for each in desk.outbox.incidents()] == ["high_usage:shop"]
    desk.say("raised", 1, kind="leak")
    assert desk.got["chat"][-1][1].kind == "leak"


def test_what_one_channel_heard_another_hears_of_when_its_rest_is_over(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels={"log": {"kind": "log"}, "chat": {"kind": "slack", "throttle": "5m"}})
    policy = desk.settings.policy
    uses = {**policy.channels, "log": policy.channels["log"].replace(throttle_s=0.0)}
    desk.settings = desk.settings.replace(policy=policy.replace(channels=uses))
    desk.restart()
    for words in ("first", "second", "third"):
        desk.say("seen", 3, kind="oom_kill", text=words)
        desk.pass_s(MIN)
    desk.pass_s(HOUR)
    assert [notice.text for _, notice in desk.got["log"]] == ["first", "second", "third"]
    assert [notice.text for _, notice in desk.got["chat"]] == ["first", "third (and 1 more since the last notice)"]
    assert desk.times("chat")[-1][0] == 5 * MIN


def test_a_resolved_one_is_over_and_raised_again_if_it_is_not(desk: Desk) -> None:
    desk.say("raised", 2)
    assert len(desk.outbox.resolve("high_usage:shop", "alice")) == 1
    desk.deliver()
    assert "resolved by alice" in desk.got["chat"][-1][1].text
    assert desk.outbox.resolve("high_usage:shop", "alice") == ()
    assert desk.outbox.acknowledge("nothing", "alice") == ()
    desk.say("raised", 2)
    desk.pass_s(11 * MIN)
    assert desk.whats("chat") == ["raised", "recovered", "raised"]


def test_what_fell_due_while_nobody_ran_is_told_at_once_and_once(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels=CHAIN)
    desk.say("raised", 2)
    desk.clock.advance(20 * MIN)
    desk.restart()
    desk.outbox.wake()
    desk.deliver()
    assert [desk.times(f"level{n}") for n in (1, 2, 3)] == [[(1200.0, "escalated")], [(1200.0, "escalated")], []]
    desk.restart()
    desk.pass_s(20 * MIN)
    assert [len(desk.got[f"level{n}"]) for n in (1, 2, 3)] == [1, 1, 1]


def test_a_month_with_restarts_at_random_every_step_at_its_time_and_none_twice(make_desk: Callable[..., Desk]) -> None:
    """Incidents of hours, ticks of a minute, a restart every few hours: each step within a tick of its time."""
    rng, tick_s = Random(7), 60.0
    desk = make_desk(channels=CHAIN, cool_down="0s", flap_for="0s", remind="never")
    expected: dict[str, list[float]] = {name: [] for name in CHAIN}
    end = desk.start + 30 * 86_400
    restarts = incidents = 0
    on_until, off_until, begun, due = 0.0, desk.start + HOUR, 0.0, 0.0
    while desk.clock.wall() < end:
        desk.clock.advance(tick_s)
        now = desk.clock.wall()
        if not begun and now >= off_until:
            begun, on_until = now, now + rng.choice([120, 600, 1200, 7200])
            incidents += 1
            desk.outbox.take([desk.signal("raised", 2)])
            due = now
            expected["ops"].append(now)
        elif begun and now >= on_until:
            for number, after_s in ((1, 300), (2, 900), (3, 1800)):
                if now >= begun + after_s + tick_s:
                    expected[f"level{number}"].append(begun + after_s)
            desk.outbox.take([desk.signal("cleared", 0)])
            due = now
            begun, off_until = 0.0, now + rng.uniform(600, 6 * HOUR)
        if rng.random() < 0.005:
            desk.restart()
            restarts += 1
            due = now
        if now >= (due or now):
            due = desk.outbox.wake() or end
            desk.deliver()
    assert (incidents > 100, restarts > 100) == (True, True)
    for name, times in expected.items():
        told = [desk.start + at for at, n in desk.got[name] if n.what in ("raised", "escalated")]
        told = [at for at in told if not begun or at < begun]  # the last one may still be on
        wanted = [at for at in times if not begun or at < begun]
        assert len(told) == len(wanted), name
        assert all(0 <= at - due <= tick_s for at, due in zip(told, wanted, strict=True)), name


def test_reminders_come_while_it_lasts_and_end_when_acknowledged(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(channels={"ops": {"kind": "slack"}}, remind="4h")
    desk.say("raised", 1)
    desk.pass_s(9 * HOUR, step_s=600)
    assert desk.times("ops") == [(0.0, "raised"), (4 * HOUR, "reminded"), (8 * HOUR, "reminded")]
    desk.outbox.acknowledge("high_usage:shop", "alice")
    desk.pass_s(9 * HOUR, step_s=600)
    assert len(desk.got["ops"]) == 3


# --- whatever comes ---------------------------------------------------------------------------------------------------

SIGNALS = st.tuples(
    st.sampled_from(["raised", "cleared", "seen", "ack", "resolve", "silence", "restart"]),
    st.integers(1, 3),
    st.sampled_from(["m1", "m2"]),
    st.sampled_from(["high_usage", "leak", "spike"]),
    st.sampled_from([0.0, 1.0, 60.0, 400.0, 4000.0]),
)


@settings(unhurried, max_examples=60)
@given(st.lists(SIGNALS, max_size=40))
def test_whatever_comes_each_state_is_told_in_turn(
    steps: list[tuple[str, int, str, str, float]],
) -> None:
    """Never a recovery without a beginning, never two beginnings without an end, a named reason for everything."""
    with tempfile.TemporaryDirectory(prefix="memwarden-steps-") as folder:
        desk = Desk(folder, settings_of())
        try:
            _each_in_turn(desk, steps)
        finally:
            desk.outbox.close()


def _each_in_turn(desk: Desk, steps: list[tuple[str, int, str, str, float]]) -> None:
    for what, level, member, kind, seconds in steps:
        if what == "ack":
            desk.outbox.acknowledge(f"{kind}:shop", "me")
        elif what == "resolve":
            desk.outbox.resolve(f"{kind}:shop", "me")
        elif what == "silence":
            desk.outbox.silence(parse_matcher(f"kind={kind}"), desk.clock.wall() + seconds, "me", "")
        elif what == "restart":
            desk.restart()
        else:
            is_spike = kind == "spike"
            desk.say("seen" if is_spike else "raised" if what == "seen" else what, level, member=member, kind=kind)
        desk.pass_s(seconds, step_s=200)
    for member in ("m1", "m2"):
        for kind in ("high_usage", "leak"):
            desk.say("cleared", 0, member=member, kind=kind)
    desk.pass_s(2 * HOUR, step_s=600)
    for got in desk.got.values():
        on: set[str] = set()
        for _, notice in got:
            if notice.kind == "spike":
                continue
            if notice.what == "recovered":
                assert notice.key in on
                on.discard(notice.key)
            elif notice.what in ("raised", "escalated"):
                assert notice.key not in on or notice.what == "escalated"
                on.add(notice.key)
            else:
                assert notice.key in on
        assert on == set()
        ids = [notice.delivery_id for _, notice in got]
        assert len(ids) == len(set(ids))
    reasons = {reason for told in desk.outbox.history(most=1000) for reason in told.why.values()}
    assert reasons <= set(REASONS)
    assert desk.outbox.incidents() == []
    desk.outbox.close()


def test_members_and_actions_are_bounded(desk: Desk) -> None:
    for number in range(300):
        desk.outbox.take([desk.signal("raised", 1, member=f"m{number}")])
        desk.outbox.take([desk.signal("seen", 1, kind="action", text=f"did {number}")])
    (found,) = desk.outbox.incidents()
    assert isinstance(found, Incident)
    assert (len(found.members), len(found.actions), found.actions[-1]) == (200, 10, "did 299")
