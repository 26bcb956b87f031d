"""The `[alerts]` table: its defaults, and every wrong line of it said once and clearly."""

from __future__ import annotations

import datetime as dt
import time
import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import ConfigError
from memwarden.facts import Level
from memwarden.tell.settings import Maintenance, parse

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

OPS = {"ops": {"kind": "slack"}}


def settings_of(**table: Any) -> Any:
    return parse({"channels": OPS, **table}, "x: alerts")


def test_the_defaults_are_those_of_the_reference() -> None:
    found = settings_of()
    assert (found.raise_for_s, found.clear_for_s, found.history_s, found.give_up_s) == (30, 60, 30 * 86_400, 86_400)
    policy = found.policy
    assert (policy.cool_down_s, policy.flap_s, policy.steps_s) == (600, 3600, (300, 900, 1800))
    use = policy.channels["ops"]
    assert (use.throttle_s, use.timeout_s, use.attempts, use.level) == (300, 30, 3, Level.WARNING)
    mail = parse({"channels": {"mail": {"kind": "smtp"}}}, "x")
    assert mail is not None
    assert mail.policy.channels["mail"].throttle_s == 900


@pytest.mark.parametrize("table", [{}, {"enabled": False, "channels": OPS}, {"enabled": "off", "channels": OPS}])
def test_nobody_is_told_without_a_table_or_when_it_is_off(table: dict[str, Any]) -> None:
    assert parse(table, "x") is None


def test_a_channel_that_is_off_is_left_out() -> None:
    found = parse({"channels": {**OPS, "off": {"kind": "log", "enabled": False}}}, "x")
    assert found is not None
    assert list(found.policy.channels) == ["ops"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise_fro = '1s'", "x: alerts: there is no setting 'raise_fro'; did you mean 'raise_for'?"),
        ("raise_for = 'soon'", "x: alerts.raise_for: 'soon' is not a duration"),
        ("raise_for = -1", "x: alerts.raise_for: -1 is not a duration"),
        ("clear_gap = 200", "x: alerts.clear_gap: 200 is not between 0 and 100 %"),
        ("runbook = 3", "x: alerts.runbook: is not a line of text"),
        ('service = "a\\nb"', "x: alerts.service: is not a line of text"),
        ("mute = ['spikes']", "x: alerts.mute: 'spikes' is no alert type; did you mean 'spike'?"),
        ("mute = ['spike', 'spike']", "x: alerts.mute: names one twice"),
        ("escalate_from = 'normal'", "x: alerts.escalate_from: 'normal' is no level; write one of warning"),
        ("escalation = ['15m', '5m']", "x: alerts.escalation: times do not rise"),
        ("escalation = ['0s']", "x: alerts.escalation: '0s' is no duration"),
        ("remind = 'x'", "x: alerts.remind: 'x' is not a duration"),
        ("deliver = 'there'", "x: alerts.deliver: 'there' delivers nothing; write here or service"),
        ("history = '0s'", "x: alerts.history: '0s' is no duration"),
        ("channels = 3", "x: alerts.channels: is not a table"),
        ("maintenance = 3", "x: alerts.maintenance: is no list of tables"),
        ("maintenance = [{from = '1:00'}]", "x: alerts.maintenance[0].to: None is no time of day"),
        ("maintenance = [{from = '25:00', to = '1:00'}]", "'25:00' is no time of day"),
        ("maintenance = [{from = '1:00', to = '1:00'}]", "lasts no time"),
        ("maintenance = [{from = '1:00', to = '2:00', days = ['someday']}]", "'someday' is no day"),
        ("maintenance = [{start = '2026-01-02', end = '2026-01-01'}]", "ends before it starts"),
        ("maintenance = [{start = 'x', end = 'y'}]", "'x' is no moment"),
        ("maintenance = [{form = '1:00'}]", "there is no setting 'form'; did you mean 'from'?"),
        ("collectors = {gpu = true}", "there is no setting 'gpu'"),
        ("collectors = {cpu = 'maybe'}", "'maybe' is not a switch"),
        ("collectors = {timeout = '0s'}", "'0s' is no duration"),
        ("channels = {a = {tier = 4}, b = {}}", "x: alerts.channels.a.tier: the escalation has 3 levels"),
        ("channels = {a = {tier = 1}}", "no channel hears at once"),
        ("channels = {}", "no channel is configured"),
        (f"channels = {{{'a' * 65} = {{}}}}", "is no name of a channel"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(text: str, words: str) -> None:
    table = tomllib.loads(text)
    with pytest.raises(ConfigError) as caught:
        parse({"channels": OPS, **table}, "x: alerts")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_channel_is_for_the_channel_to_say() -> None:
    found = parse({"channels": {"ops": {"kind": "slack", "timeout": "soon", "attempts": 0}}}, "x")
    assert found is not None
    assert found.policy.channels["ops"].timeout_s == 30


# Any value that TOML knows, anywhere.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.times() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["raise_for", "clear_gap", "escalation", "maintenance", "collectors", "channels", "mute", "remind", "deliver", "x"]
)


@unhurried
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_no_table_raises_anything_else(table: dict[str, Any]) -> None:
    try:
        parse({"channels": OPS, **table}, "x")
    except ConfigError as error:
        found = str(error)
    else:
        found = ""
    assert "\n" not in found


# --- maintenance ----------------------------------------------------------------------------------------------------


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


def test_a_window_of_every_week_also_across_midnight() -> None:
    found = settings_of(maintenance=[{"from": dt.time(22), "to": "02:00", "days": ["sat"], "utc": True}])
    (window,) = found.policy.maintenance
    # 2026-11-21 is a Saturday.
    assert window.ends(at("2026-11-21T21:59:59")) is None
    assert window.ends(at("2026-11-21T22:00:00")) == at("2026-11-22T02:00:00")
    assert window.ends(at("2026-11-22T01:59:59")) == at("2026-11-22T02:00:00")
    assert window.ends(at("2026-11-22T02:00:00")) is None
    assert window.ends(at("2026-11-22T23:00:00")) is None  # a Sunday
    assert window.ends(at("2026-11-21T01:00:00")) is None  # the Friday before it


@unhurried
@given(st.floats(0, 4e9), st.integers(0, 86_399), st.integers(0, 86_399))
def test_a_window_that_is_on_ends_after_now_and_within_a_day(now: float, from_s: int, to_s: int) -> None:
    window = Maintenance(name="x", from_s=from_s, to_s=to_s, utc=True)
    end = window.ends(now) if from_s != to_s else None
    if end is not None:
        assert now < end + 1e-3
        assert end - now <= 86_400.001
        assert window.ends(end + 0.01) is None


@pytest.mark.parametrize(
    ("from_h", "to_h", "now", "end"),
    [
        (1, 4, "2026-03-29T01:30+01:00", "2026-03-29T04:00+02:00"),  # the night that lacks an hour
        (22, 4, "2026-03-28T23:00+01:00", "2026-03-29T04:00+02:00"),
        (1, 4, "2026-10-25T01:30+02:00", "2026-10-25T04:00+01:00"),  # the one that has one twice
        (1, 4, "2026-07-01T01:30+02:00", "2026-07-01T04:00+02:00"),
    ],
)
def test_a_window_ends_by_the_clock_on_the_wall(
    monkeypatch: pytest.MonkeyPatch, from_h: int, to_h: int, now: str, end: str
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        window = Maintenance(name="night", from_s=from_h * 3600.0, to_s=to_h * 3600.0)
        ends = dt.datetime.fromisoformat(end).timestamp()
        assert window.ends(dt.datetime.fromisoformat(now).timestamp()) == ends
        assert window.ends(ends) is None
    finally:
        monkeypatch.undo()
        time.tzset()
