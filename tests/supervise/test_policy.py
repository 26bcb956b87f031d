"""Restart policy, pace, brake, signals, settings: all that is decided without a process."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.act.fence import reserve_bytes
from memwarden.errors import SuperviseError
from memwarden.supervise import deaths, signals
from memwarden.supervise.cgroup import ALARM_LEAVE_RATIO, ALARM_RATIO
from memwarden.supervise.deaths import Death
from memwarden.supervise.postmortem import LifeStory, render
from memwarden.supervise.restart import RestartPolicy, is_wanted
from memwarden.supervise.settings import Settings, from_words, to_words
from memwarden.supervise.watch import (
    CALM_TICK_S,
    FASTEST_TICK_S,
    SLOWEST_TICK_S,
    Brake,
    History,
    Look,
    Pace,
    rest_after,
)

GIB, MIB = 1 << 30, 1 << 20


def death(verdict: str = deaths.FAILED, code: int = 1) -> Death:
    return Death(verdict=verdict, exit_code=code)


OOM = death(deaths.OOM_KILL, 137)


def policy(**settings: Any) -> RestartPolicy:
    return RestartPolicy(Settings(command=("x",), **settings), chance=lambda: 0.5)


# --- restart -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("no", []),
        ("on-oom", ["oom", "worker"]),
        ("on-failure", ["oom", "worker", "failed", "killed"]),
        ("always", ["oom", "worker", "failed", "killed", "clean", "worker, fine"]),
    ],
)
def test_each_policy_restarts_after_the_deaths_it_names(name: str, wanted: list[str]) -> None:
    every = {
        "oom": OOM,
        "worker": death(deaths.OOM_KILL_OF_DESCENDANT, 1),
        "failed": death(),
        "killed": death(deaths.KILLED, 137),
        "clean": death(deaths.CLEAN, 0),
        "worker, fine": death(deaths.OOM_KILL_OF_DESCENDANT, 0),
    }
    assert [key for key, value in every.items() if is_wanted(name, value)] == wanted


def test_delays_double_up_to_the_cap() -> None:
    asked = policy(restart="always", crash_loop_deaths=99)
    delays = [asked.after(OOM, lived_s=0.1, now_s=float(at)).delay_s for at in range(8)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_long_life_starts_the_doubling_anew() -> None:
    asked = policy(restart="always", crash_loop_deaths=99)
    for at in range(4):
        asked.after(OOM, lived_s=0.1, now_s=float(at))
    assert asked.after(OOM, lived_s=61.0, now_s=100.0).delay_s == 1


@given(st.floats(0, 1))
def test_chance_moves_a_delay_by_a_fifth_at_most(chance: float) -> None:
    asked = RestartPolicy(Settings(command=("x",), restart="always"), chance=lambda: chance)
    delay_s = asked.after(OOM, lived_s=0.0, now_s=0.0).delay_s
    assert delay_s is not None
    assert 0.799 <= delay_s <= 1.201


def test_five_deaths_in_ten_minutes_are_a_crash_loop_and_said_so() -> None:
    asked = policy(restart="always")
    decisions = [asked.after(OOM, lived_s=1.0, now_s=100.0 * at) for at in range(5)]
    assert [d.delay_s is None for d in decisions] == [False, False, False, False, True]
    assert "crash loop" in decisions[-1].why


def test_five_deaths_in_eleven_minutes_are_none() -> None:
    asked = policy(restart="always")
    decisions = [asked.after(OOM, lived_s=1.0, now_s=165.0 * at) for at in range(5)]
    assert all(d.delay_s is not None for d in decisions)


def test_max_restarts_is_the_end() -> None:
    asked = policy(restart="always", max_restarts=1)
    decisions = [asked.after(OOM, lived_s=1.0, now_s=float(at)) for at in range(2)]
    assert [d.delay_s is None for d in decisions] == [False, True]


# --- pace ----------------------------------------------------------------------------------------------------------


def calm(limit: int, usage: int) -> float:
    """The interval after an hour in which nothing moved."""
    pace = Pace()
    pace.interval_s(now_s=0.0, usage_bytes=usage, limit_bytes=limit)
    return pace.interval_s(now_s=3600.0, usage_bytes=usage, limit_bytes=limit)


def test_calm_and_far_from_the_limit_sleeps_longest() -> None:
    assert calm(64 * GIB, GIB) == SLOWEST_TICK_S


def test_a_small_headroom_keeps_the_record_fresh_however_calm_it_is() -> None:
    assert calm(200 * MIB, 20 * MIB) == CALM_TICK_S
    assert CALM_TICK_S < 0.1


def test_growth_is_looked_at_four_times_before_it_arrives() -> None:
    pace = Pace()
    pace.interval_s(now_s=0.0, usage_bytes=0, limit_bytes=GIB)
    pace.interval_s(now_s=3600.0, usage_bytes=0, limit_bytes=GIB)
    wait_s = pace.interval_s(now_s=3601.0, usage_bytes=GIB // 2, limit_bytes=GIB)
    assert wait_s == CALM_TICK_S  # a quarter of one second left would be 250 ms
    wait_s = pace.interval_s(now_s=3601.1, usage_bytes=GIB * 9 // 10, limit_bytes=GIB)
    assert wait_s == FASTEST_TICK_S


def test_cache_that_gives_way_counts_as_headroom() -> None:
    held = Pace().interval_s(now_s=0.0, usage_bytes=GIB, limit_bytes=GIB)
    free = Pace().interval_s(now_s=0.0, usage_bytes=GIB, limit_bytes=GIB, gives_way=GIB // 2)
    assert (held, free > held) == (FASTEST_TICK_S, True)


@given(st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 1 << 40)), max_size=30), st.integers(1, 1 << 40))
def test_every_interval_is_within_its_bounds(steps: list[tuple[float, int]], limit: int) -> None:
    pace, now_s = Pace(), 0.0
    for passed_s, usage in steps:
        now_s += passed_s
        wait_s = pace.interval_s(now_s=now_s, usage_bytes=usage, limit_bytes=limit)
        assert FASTEST_TICK_S <= wait_s <= SLOWEST_TICK_S


# --- rest ----


def at(usage: int | None) -> Look:
    return Look(at_s=10.0, usage_bytes=usage, rss_bytes=usage, pids=frozenset())


def test_who_cannot_be_read_is_looked_at() -> None:
    assert rest_after(at(None), pace_s=1.0, limit_bytes=GIB) is None


def test_at_the_limit_nothing_may_move_unseen() -> None:
    rest = rest_after(at(GIB), pace_s=FASTEST_TICK_S, limit_bytes=GIB)
    assert rest is not None
    assert (rest.least_bytes, rest.most_bytes, rest.step_s) == (GIB, GIB, FASTEST_TICK_S)


def test_a_rest_keeps_the_pace_of_the_looks_and_lasts_a_second() -> None:
    rest = rest_after(at(20 * MIB), pace_s=CALM_TICK_S, limit_bytes=200 * MIB)
    assert rest is not None
    assert (rest.step_s, rest.until_s) == (CALM_TICK_S, 11.0)
    assert (rest.least_bytes, rest.most_bytes) == (20 * MIB - 180 * MIB // 64, 20 * MIB + 180 * MIB // 64)


def test_a_fence_is_moved_four_times_a_second_and_rests_within_half_its_reserve() -> None:
    rest = rest_after(at(GIB), pace_s=1.0, limit_bytes=8 * GIB, fence_s=0.05)
    assert rest is not None
    assert (rest.step_s, rest.until_s) == (0.05, 10.25)
    assert rest.most_bytes - GIB <= reserve_bytes(100 * MIB) // 2


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_what_may_move_unseen_is_a_small_part_of_the_headroom(usage: int, limit: int, gives_way: int) -> None:
    rest = rest_after(at(usage), pace_s=0.5, limit_bytes=limit, gives_way=gives_way)
    assert rest is not None
    assert rest.least_bytes <= usage <= rest.most_bytes
    assert rest.most_bytes - usage <= max(0, limit - usage + gives_way) // 64


# --- brake ---------------------------------------------------------------------------------------------------------


class Car:
    """A brake and its clock."""

    def __init__(self) -> None:
        self.brake = Brake(100 * MIB, brake_s=2.0)
        self.step(at=0.0, used=10, high=0)

    def step(self, *, at: float, used: int, high: int) -> str:
        return self.brake.step(now_s=at, usage_bytes=used * MIB, high_count=high)


def test_the_line_is_lifted_after_the_brake_time_and_not_before() -> None:
    car = Car()
    assert car.step(at=1.0, used=94, high=3) == "alarm"
    assert car.step(at=2.9, used=94, high=9) == ""
    assert car.step(at=3.0, used=94, high=9) == "lift"
    assert car.step(at=9.0, used=94, high=9) == ""


def test_the_line_comes_back_below_the_leave_line_only() -> None:
    car = Car()
    car.step(at=1.0, used=94, high=3)
    car.step(at=3.0, used=94, high=3)
    assert car.step(at=4.0, used=int(100 * ALARM_LEAVE_RATIO) + 1, high=3) == ""
    assert car.step(at=5.0, used=80, high=3) == "set"


def test_usage_that_falls_in_time_leaves_the_line_where_it_is() -> None:
    car = Car()
    car.step(at=1.0, used=94, high=3)
    assert car.step(at=1.5, used=80, high=3) == ""
    assert car.step(at=60.0, used=80, high=3) == ""
    assert car.brake.deadline_s() is None


@given(st.lists(st.tuples(st.floats(0.01, 3), st.integers(0, 120), st.integers(0, 2)), max_size=60))
def test_no_alarm_holds_longer_than_the_brake_time(steps: list[tuple[float, int, int]]) -> None:
    car, now_s, high, over_since = Car(), 0.0, 0, None
    for passed_s, used, more in steps:
        now_s, high = now_s + passed_s, high + more
        if over_since is not None and now_s - over_since >= 2.0 and used >= 100 * ALARM_RATIO:
            assert car.step(at=now_s, used=used, high=high) == "lift"
            over_since = None
            continue
        what = car.step(at=now_s, used=used, high=high)
        over_since = now_s if what == "alarm" else over_since if car.brake.deadline_s() is not None else None


# --- history and post-mortem ---------------------------------------------------------------------------------------


def test_growth_is_that_of_the_last_seconds_only() -> None:
    history = History()
    for at, used in ((0.0, 90), (8.0, 10), (9.0, 20), (10.0, 50)):
        history.add(Look(at_s=at, usage_bytes=used, rss_bytes=None, pids=frozenset()))
    assert history.growth(2.0) == (40, 2.0)
    assert history.peak_bytes == 90


def test_history_is_bounded_and_keeps_the_newest() -> None:
    history = History()
    for at in range(10_000):
        history.add(Look(at_s=float(at), usage_bytes=at, rss_bytes=None, pids=frozenset()))
    assert history.last == (9999.0, 9999)
    growth = history.growth(1e9)
    assert growth is not None
    assert growth[0] <= 512


STORY = LifeStory(
    command="python app.py",
    pid=7,
    lived_s=3.0,
    limit_bytes=200 * MIB,
    limit_source="--limit 200M",
    peak_bytes=200 * MIB,
    peak_exact=True,
    usage_bytes=190 * MIB,
    usage_ago_s=0.02,
    growth_bytes=180 * MIB,
    growth_s=2.0,
)


def test_a_post_mortem_says_verdict_evidence_figures_and_what_comes_next() -> None:
    judged = Death(verdict=deaths.OOM_KILL, exit_code=137, signal=9, evidence=("the counter rose by 1",))
    text = "\n".join(render(judged, STORY, then="restart 1 in 1.0 s"))
    for part in (
        "OOM kill",
        "counter rose by 1",
        "limit 200 MiB",
        "peak 200 MiB",
        "+180 MiB in its last 2 s",
        "restart 1",
    ):
        assert part in text


def test_a_clean_end_says_nothing() -> None:
    assert render(death(deaths.CLEAN, 0), STORY) == []


def test_an_unproven_kernel_kill_is_called_probable() -> None:
    judged = Death(verdict=deaths.OOM_KILL, exit_code=137, signal=9, certain=False)
    assert "probably" in render(judged, STORY)[0]


# --- signals -------------------------------------------------------------------------------------------------------

TERMINAL, BY_KILL = 0x80, 0


@pytest.mark.parametrize(
    ("number", "code", "where", "what"),
    [
        (signal.SIGTERM, BY_KILL, {}, signals.FORWARD),
        (signal.SIGUSR1, -1, {}, signals.FORWARD),
        (signal.SIGINT, TERMINAL, {}, signals.SEEN),
        (signal.SIGINT, BY_KILL, {}, signals.FORWARD),
        (signal.SIGINT, TERMINAL, {"same_group": False}, signals.FORWARD),
        (signal.SIGWINCH, TERMINAL, {}, signals.SEEN),
        (signal.SIGTSTP, TERMINAL, {}, signals.SEEN),
        (signal.SIGHUP, TERMINAL, {}, signals.SEEN),
        (signal.SIGHUP, TERMINAL, {"session_leader": True}, signals.FORWARD),
        (signal.SIGTERM, BY_KILL, {"from_tree": True}, signals.IGNORE),
        (signal.SIGPIPE, BY_KILL, {"from_tree": True}, signals.IGNORE),
        (signal.SIGCHLD, 1, {}, signals.REAP),
        (signal.SIGCONT, BY_KILL, {}, signals.CONTINUE),
    ],
)
def test_a_signal_goes_to_the_command_once(number: int, code: int, where: dict[str, bool], what: str) -> None:
    facts = {"from_tree": False, "same_group": True, "session_leader": False, **where}
    assert signals.route(number, code, **facts) == what


# --- settings ------------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)


@given(
    st.lists(WORDS, min_size=1, max_size=5),
    st.one_of(st.none(), st.integers(1, 1 << 50)),
    st.sampled_from(["no", "always"]),
    st.floats(0, 100),
    st.lists(st.tuples(st.text("ABC_", min_size=1, max_size=5), WORDS), max_size=3),
    st.booleans(),
)
def test_settings_survive_an_exec(  # noqa: PLR0917  hypothesis gives them by position
    command: list[str],
    limit: int | None,
    restart: str,
    grace_s: float,
    variables: list[tuple[str, str]],
    quiet: bool,
) -> None:
    settings = Settings(
        command=tuple(command),
        limit_bytes=limit,
        restart=restart,
        stop_grace_s=grace_s,
        environment=tuple(variables),
        quiet=quiet,
    )
    assert from_words(to_words(settings)) == settings


def test_words_of_somebody_else_are_refused() -> None:
    with pytest.raises(SuperviseError, match="memwarden run"):
        from_words(["surprise=1", "--", "true"])
