"""Rules: raise-for, clear-for, lines of their own; what findings, actions and deaths become."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.facts import Finding, Leak, Level, Outcome
from memwarden.tell.rules import (
    FREQUENT,
    FREQUENT_S,
    CollectionRule,
    LevelRules,
    of_actions,
    of_change,
    of_death,
    of_finding,
)
from memwarden.tell.signals import KINDS
from memwarden.testing import pressure

# The machine's other work is no fault of a test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

N, W, C, E = Level.NORMAL, Level.WARNING, Level.CRITICAL, Level.EMERGENCY


def rules(raise_for_s: float = 30, clear_for_s: float = 60) -> LevelRules:
    return LevelRules(raise_for_s=raise_for_s, clear_for_s=clear_for_s, clear_below=0.70, clear_gap=0.05)


def changes(made: LevelRules, series: list[tuple[float, Level, float]]) -> list[tuple[float, str, str, str]]:
    return [
        (at, each.kind, each.what, each.level.name)
        for at, level, ratio in series
        for each in made.weigh(level, ratio, at)
    ]


def test_a_level_must_last_and_an_emergency_must_not() -> None:
    made = rules()
    assert changes(made, [(0, W, 0.8), (29, W, 0.8)]) == []
    assert changes(made, [(30, W, 0.8)]) == [(30, "high_usage", "raised", "WARNING")]
    assert changes(made, [(31, E, 0.97)]) == [(31, "high_usage", "raised", "EMERGENCY")]
    assert rules().weigh(E, 0.97, 0.0) != ()


def test_a_level_that_was_left_begins_to_last_anew() -> None:
    assert changes(rules(), [(0, W, 0.8), (29, N, 0.6), (30, W, 0.8), (59, W, 0.8)]) == []


def test_levels_that_alternate_last_together_at_the_lower_one() -> None:
    series = [(float(at), C if at % 2 else W, 0.9) for at in range(40)]
    assert changes(rules(), series) == [(30, "high_usage", "raised", "WARNING")]


def test_it_is_over_below_a_line_of_its_own_for_as_long_as_asked() -> None:
    made = rules()
    made.weigh(E, 0.97, 0.0)
    assert changes(made, [(10, N, 0.73), (200, N, 0.72)]) == [(200, "high_usage", "raised", "WARNING")]
    assert changes(made, [(210, N, 0.69), (269, N, 0.69)]) == []
    assert changes(made, [(270, N, 0.69)]) == [(270, "high_usage", "cleared", "NORMAL")]


def test_it_falls_by_steps() -> None:
    made = rules()
    made.weigh(E, 0.97, 0.0)
    assert changes(made, [(1, W, 0.8), (61, W, 0.8)]) == [(61, "high_usage", "raised", "WARNING")]
    assert [(each.kind, each.level) for each in made.standing()] == [("high_usage", W)]


def test_a_limit_that_is_exceeded_is_an_alert_of_its_own() -> None:
    made = rules()
    found = changes(made, [(0, E, 1.01), (1, E, 1.02), (2, E, 0.97), (100, E, 0.97), (101, C, 0.94), (161, C, 0.94)])
    assert [each for each in found if each[1] == "limit_exceeded"] == [
        (0, "limit_exceeded", "raised", "EMERGENCY"), (161, "limit_exceeded", "cleared", "EMERGENCY"),
    ]  # fmt: skip


def test_what_is_unknown_ends_nothing_by_itself() -> None:
    made = rules()
    made.weigh(E, 1.2, 0.0)
    assert [each for at in (10, 100, 200) for each in made.weigh(E, None, at)] == []
    assert made.exceeded


@settings(unhurried, max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.sampled_from([N, W, C, E]), st.floats(0, 1.2)), max_size=60),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_whatever_comes_what_is_raised_is_cleared_in_the_end(
    steps: list[tuple[float, Level, float]], raise_for_s: float, clear_for_s: float
) -> None:
    """Never cleared but when raised, never raised twice at one level, everything over after enough quiet."""
    made = rules(raise_for_s, clear_for_s)
    at = 0.0
    on: dict[str, Level] = {}
    for seconds, level, ratio in [*steps, (1.0, N, 0.1), (clear_for_s + 1, N, 0.1), *[(clear_for_s + 1, N, 0.1)] * 3]:
        at += seconds
        for each in made.weigh(level, ratio, at):
            if each.what == "cleared":
                assert each.kind in on
                del on[each.kind]
            else:
                assert on.get(each.kind) != each.level
                on[each.kind] = each.level
        assert {each.kind: each.level for each in made.standing()} == on
    assert on == {}
    assert list(made.weigh(N, 0.1, at + 1)) == []


def test_a_change_says_usage_limit_and_who_says_so() -> None:
    made = rules()
    verdict = pressure(E).verdict
    assert verdict is not None
    (change,) = made.weigh(E, 0.97, 0.0)
    draft = of_change(change, verdict, {"in_flight": ["import"]})
    assert draft.title == "memory EMERGENCY: 97 % of 512 MiB"
    assert (draft.details["limit_source"], draft.details["in_flight"], draft.scope) == (
        "testing",
        ["import"],
        "container",
    )


def test_a_title_never_belies_its_level_and_the_end_says_the_most_there_was() -> None:
    made = rules(raise_for_s=0)
    verdict = pressure(E).verdict
    assert verdict is not None
    made.weigh(E, 1.1, 0.0, used_bytes=110)
    made.weigh(E, 1.3, 1.0, used_bytes=130)
    made.weigh(N, 0.24, 2.0, used_bytes=24)
    titles = [of_change(each, verdict, {}).title for each in made.standing()]
    assert titles == ["the memory limit of 512 MiB was exceeded", "memory EMERGENCY a moment ago, now 97 % of 512 MiB"]
    ends = [each for at in range(3, 200) for each in made.weigh(N, 0.24, at) if each.what == "cleared"]
    found = [of_change(each, verdict, {}).details for each in ends]
    assert [(each["peak_ratio"], each["peak_bytes"]) for each in found] == [(1.3, 130)] * 2
    (again,) = made.weigh(E, 0.97, 300.0, used_bytes=97)
    assert (again.lasts, again.peak) == (True, (0.97, 97))


@pytest.mark.parametrize(
    ("kind", "what", "found"),
    [
        ("leak", "suspected", ("leak", "raised", W)),
        ("leak", "confirmed", ("leak", "raised", C)),
        ("leak", "withdrawn", ("leak", "cleared", N)),
        ("leak", "resolved", ("leak", "cleared", N)),
        ("rapid growth", "began", ("rapid_growth", "raised", W)),
        ("rapid growth", "ended", ("rapid_growth", "cleared", N)),
        ("spike", "seen", ("spike", "seen", W)),
    ],
)
def test_every_finding_is_a_type_of_alert(kind: str, what: str, found: tuple[str, str, Level]) -> None:
    leak = Leak(stage="suspected", cause="python", confidence=80, growth_bytes_per_minute=1234.5, advice=("look",))
    finding = Finding(kind=kind, what=what, text="text", monotonic_s=1.0, unix_s=2.0, pid=3, leak=leak)
    draft = of_finding(finding, {})
    assert draft is not None
    assert (draft.kind, draft.what, draft.level) == found
    assert draft.kind in KINDS
    assert (draft.details["cause"], draft.details["growth_bytes_per_minute"]) == ("python", 1234)
    assert of_finding(finding.replace(kind="unheard of"), {}) is None


def outcome(action: str, before: int | None, after: int | None, **more: Any) -> Outcome:
    return Outcome(
        action=action, reason="x", before_bytes=before, after_bytes=after, duration_s=0.1, unix_s=1.0, **more
    )


def test_what_was_done_is_one_alert_and_nothing_done_is_none() -> None:
    assert of_actions([outcome("trim", 1, 1, skipped="it rests")], E) is None
    draft = of_actions(
        [outcome("trim", 9 << 20, 5 << 20), outcome("collect", 5, 5), outcome("mine", 1, None, error="ValueError")], E
    )
    assert draft is not None
    assert draft.text == "trim freed 4 MiB, collect freed nothing, mine failed"
    assert draft.details["freed_bytes"] == 4 << 20


@pytest.mark.parametrize(
    ("after", "error", "level"), [(5, None, N), (9, None, N), (1, None, W), (None, "ValueError", W), (None, None, N)]
)
def test_what_was_done_and_freed_nothing_is_no_warning(after: int | None, error: str | None, level: Level) -> None:
    more = {} if error is None else {"error": error}
    draft = of_actions([outcome("trim", 5, after, **more)], E, {"in_flight": ["import"]})
    assert draft is not None
    assert (draft.level, draft.details["in_flight"]) == (level, ["import"])


def test_frequent_collections_are_those_within_ten_minutes() -> None:
    rule = CollectionRule()
    assert [rule.collected(float(at)) for at in range(FREQUENT - 1)] == [None] * (FREQUENT - 1)
    found = rule.collected(FREQUENT_S)
    assert found is not None
    assert (found.kind, found.what) == ("collections", "seen")
    assert rule.collected(FREQUENT_S + 1) is None  # counted anew
    slow = CollectionRule()
    assert [slow.collected(at * FREQUENT_S / 8) for at in range(50)] == [None] * 50


def test_a_death_says_what_is_certain_and_what_is_not() -> None:
    draft = of_death(
        command="app", pid=7, certain=True, peak_bytes=512 << 20, limit_bytes=512 << 20, limit_source="x",
        in_flight=["a", "b"], descendant=True,
    )  # fmt: skip
    assert draft.text == (
        "app (pid 7): the kernel killed a process of it for memory; peak 512 MiB of 512 MiB; in flight: a, b"
    )
    assert (draft.level, draft.title) == (E, "killed by the kernel for memory")
