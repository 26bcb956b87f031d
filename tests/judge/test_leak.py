from __future__ import annotations

from math import exp, isfinite, nan
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden.judge.leak import PARTS, UNACCUSED, judge, plain_rule
from memwarden.judge.leak_model import AGAINST, MODELS, SAYS, Model, figure_of
from memwarden.judge.shape import MIDDLES, closed_gaps, floors, middles, shape
from memwarden.judge.signs import Columns, signs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 1 << 20
seeds = st.integers(0, 10**6)
few = settings(max_examples=25, deadline=None)


def columns(values: Sequence[float], *, step_s: float = 1.0, start_s: float = 0.0, **more: Any) -> Columns:
    t_s = [start_s + i * step_s for i in range(len(values))]
    return Columns(t_s, {"rss_bytes": values, **more})


def course(
    curve: Callable[[float], float], *, seed: int = 1, n: int = 160, noise: float = 0.004, mib: float = 100
) -> list[float]:
    """A base times a curve over 0-1, with noise as a share of the base."""
    rng = Random(seed)
    return [mib * MIB * max(curve(i / (n - 1)) + rng.gauss(0, noise), 0.01) for i in range(n)]


def test_a_line_without_end_is_accused() -> None:
    look = judge(columns(course(lambda x: 1 + 0.4 * x)))
    assert look.accused
    assert look.cause == "unknown"
    assert look.confidence >= 60
    assert look.growth_bytes_per_minute == pytest.approx(0.4 * 100 * MIB / 160 * 60, rel=0.1)


@given(st.integers(0, 1 << 40), st.integers(1, 300))
@few
def test_a_constant_is_never_accused(value: int, n: int) -> None:
    assert not judge(columns([float(value)] * n)).accused


@given(seeds, st.floats(0.0001, 0.05))
@few
def test_noise_is_never_accused(seed: int, noise: float) -> None:
    assert not judge(columns(course(lambda _: 1.0, seed=seed, noise=noise))).accused


@given(seeds, st.floats(0.15, 0.85), st.floats(0.02, 2.0))
@few
def test_one_step_is_never_accused(seed: int, at: float, height: float) -> None:
    look = judge(columns(course(lambda x: 1 + height * (x > at), seed=seed, noise=0.002)))
    assert not look.accused


@given(seeds, st.floats(0.04, 0.15), st.floats(0.05, 2.0))
@few
def test_what_has_saturated_is_never_accused(seed: int, share: float, height: float) -> None:
    look = judge(columns(course(lambda x: 1 + height * (1 - exp(-x / share)), seed=seed, noise=0.002)))
    assert not look.accused


@given(seeds, st.floats(0.2, 0.6), st.floats(0.05, 2.0))
@few
def test_a_ramp_that_has_stopped_is_never_accused(seed: int, end: float, height: float) -> None:
    look = judge(columns(course(lambda x: 1 + height * min(x / end, 1), seed=seed, noise=0.002)))
    assert not look.accused


@given(seeds, st.floats(0.5, 3.0))
@settings(max_examples=25, deadline=None, derandomize=True)  # fewer than one in a thousand is, by the luck of its noise
def test_memory_that_follows_rising_traffic_is_not_accused(seed: int, factor: float) -> None:
    rng = Random(seed)
    rates = [(1 + factor * i / 160) * rng.uniform(0.6, 1.4) for i in range(160)]
    flight = [sum(rates[max(i - 1, 0) : i + 1]) / 2 for i in range(160)]
    work, done = [], 0.0
    for rate in rates:
        done += rate
        work.append(done * 100)
    values = [100 * MIB * (1 + 0.1 * each) for each in flight]
    look = judge(columns(values, work_done=work))
    assert not look.accused


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_under_falling_traffic_is_seen_at_equal_traffic(seed: int) -> None:
    rng = Random(seed)
    rates = [(1.6 - 1.2 * (i / 160) ** 2) * rng.uniform(0.97, 1.03) for i in range(160)]
    work, done, blocks = [], 0.0, []
    for rate in rates:
        done += rate
        work.append(done * 100)
        blocks.append(1e6 * (1 + 0.5 * rate + 0.3 * done / 160 + rng.gauss(0, 0.003)))
    rss = [100 * MIB + 64 * each for each in blocks]
    found = signs(columns(rss, work_done=work, python_blocks=blocks))
    assert found["blocks_growth"] < 0
    assert found["blocks_partial_sure"] > 10
    assert judge(columns(rss, work_done=work, python_blocks=blocks)).barred == ""


@given(st.lists(st.one_of(st.floats(0, 1e18), st.just(nan)), min_size=1, max_size=120), st.data())
@few
def test_no_input_gives_a_figure_that_is_not_finite(values: list[float], data: st.DataObject) -> None:
    other = st.lists(st.one_of(st.floats(0, 1e15), st.just(nan)), min_size=len(values), max_size=len(values))
    if all(map(lambda v: v != v, values)):  # noqa: C417, PLR0124  NaN
        values[0] = 1.0
    names = ("work_done", "python_blocks", "native_in_use_bytes", "declared_cache_bytes", "anon_bytes", "gc_collected")
    more: dict[str, Any] = {name: data.draw(other) for name in names}
    known = columns([0.0 if v != v else v for v in values], **more)  # noqa: PLR0124
    look = judge(known, limit_bytes=512 * MIB)
    assert look.score is None or 0 <= look.score <= 1
    assert 0 <= look.confidence <= 100
    assert look.growth_bytes_per_minute is None or isfinite(look.growth_bytes_per_minute)
    assert all(isfinite(value) for _, value in look.parts)
    assert not any("nan" in sentence for sentence in look.evidence)


@given(seeds, st.floats(-0.1, 1.0), st.floats(-1e6, 1e6), st.sampled_from([0.25, 2.0, 64.0]))
@few
def test_when_it_began_and_how_fast_the_clock_ran_change_nothing(
    seed: int, growth: float, start_s: float, step_s: float
) -> None:
    values = course(lambda x: 1 + growth * x, seed=seed)
    here, there = judge(columns(values)), judge(columns(values, start_s=round(start_s), step_s=step_s))
    assert (there.accused, there.cause) == (here.accused, here.cause)
    assert there.score == pytest.approx(here.score, abs=1e-6)


@given(seeds, st.floats(-0.1, 1.0), st.sampled_from([0.25, 4.0, 1024.0]))
@few
def test_how_large_the_process_is_changes_nothing(seed: int, growth: float, factor: float) -> None:
    values = course(lambda x: 1 + growth * x, seed=seed)
    here, there = judge(columns(values)), judge(columns([v * factor for v in values]))
    assert (there.accused, there.cause, there.confidence) == (here.accused, here.cause, here.confidence)
    assert there.score == pytest.approx(here.score, abs=1e-6)


@given(st.floats(0.05, 3.0), st.integers(20, 140), st.floats(30, 1e5))
@few
def test_what_changed_while_nobody_watched_is_no_growth(jump: float, at: int, asleep_s: float) -> None:
    values = [100.0 * MIB] * at + [100.0 * MIB * (1 + jump)] * (160 - at)
    t_s = [float(i) + (asleep_s if i >= at else 0) for i in range(160)]
    assert not judge(Columns(t_s, {"rss_bytes": values})).accused
    times, left = closed_gaps(t_s, values)
    assert max(left) == min(left)
    assert times[-1] == pytest.approx(159)


def test_a_restarted_program_is_judged_from_its_restart() -> None:
    values = course(lambda x: 1 + (x if x < 0.5 else 0))
    work = [float(i % 80) * 10 for i in range(160)]
    assert not judge(columns(values, work_done=work)).accused


def test_too_few_samples_are_said_to_be_too_few() -> None:
    look = judge(columns(course(lambda x: 1 + x, n=20)))
    assert (look.accused, look.score) == (False, None)
    assert look.evidence[0].startswith("too few samples")


def test_a_declared_cache_that_fills_is_no_leak_and_named() -> None:
    cache = [40.0 * MIB * i / 160 for i in range(160)]
    values = [v + c for v, c in zip(course(lambda _: 1.0), cache, strict=True)]
    assert judge(columns(values)).accused
    look = judge(columns(values, declared_cache_bytes=cache))
    assert (look.accused, look.cause) == (False, "cache")


def live(python: float, native: float, resident: float) -> Columns:
    work = [float(i * 10) for i in range(160)]
    return columns(
        course(lambda x: 1 + resident * x),
        work_done=work,
        python_blocks=course(lambda x: 1 + python * x, seed=2, mib=0.5),
        native_in_use_bytes=course(lambda x: 1 + native * x, seed=3, mib=30),
    )


@pytest.mark.parametrize(
    ("python", "native", "resident", "cause"), [(0.5, 0.0, 0.2, "python"), (0.0, 0.7, 0.22, "native")]
)
def test_the_cause_is_who_grew(python: float, native: float, resident: float, cause: str) -> None:
    look = judge(live(python, native, resident))
    assert (look.accused, look.cause) == (True, cause)


def test_what_only_the_allocator_holds_is_fragmentation() -> None:
    assert judge(live(0.0, 0.0, 0.15)).cause == "fragmentation"


def test_a_high_peak_alone_accuses_nobody_and_scores_little() -> None:
    look = judge(columns(course(lambda _: 1.0)), limit_bytes=101 * MIB)
    assert not look.accused
    assert dict(look.parts)["high peak"] == PARTS["high peak"]
    assert look.confidence <= UNACCUSED


def test_the_five_parts_are_those_of_the_requirement() -> None:
    look = judge(columns(course(lambda x: 1 + x)), limit_bytes=210 * MIB, freed_ratio=0.0)
    assert dict(look.parts) == pytest.approx({**PARTS, "other": 0}, rel=0.1)
    assert dict(judge(columns(course(lambda x: 1 + x)), freed_ratio=1.0).parts)["low collection efficiency"] == 0


def test_the_plain_rule_is_half_as_much_again_over_sixty_samples() -> None:
    assert plain_rule([100.0] * 60 + [150.0] * 59)
    assert not plain_rule([100.0] * 60 + [149.0] * 59)
    assert not plain_rule([100.0] * 30 + [200.0] * 29)
    assert plain_rule([1.0, 2.0, 3.0], ratio=2.0, samples=3)


def test_every_number_of_the_model_can_be_explained() -> None:
    assert set(MODELS) == {"resident", "blocks", "live"}
    assert set(SAYS) >= AGAINST
    for kind, model in MODELS.items():
        assert model.rules
        asked = [each for sign, line, *sides in model.rules for each in ((sign, line), *(side[:2] for side in sides))]
        for sign, line in asked:
            assert figure_of(sign) in SAYS
            assert isfinite(line)
            assert kind != "resident" or not sign.startswith(("blocks", "live"))


RULES = Model(-0.5, (("resident_tau", 0.5, ("resident_step", 1.0, -0.5, -2.0), ("resident_step", 1.0, 3.0, -1.0)),))


@pytest.mark.parametrize(("tau", "step", "total"), [(0.4, 0, -1), (0.4, 2, -2.5), (0.9, 0, 2.5), (0.9, 2, -1.5)])
def test_a_rule_asks_two_questions_and_its_answer_is_added(tau: float, step: float, total: float) -> None:
    assert RULES.score({"resident_tau": tau, "resident_step": step}) == pytest.approx(1 / (1 + exp(-total)))


def test_an_unknown_sign_is_above_no_line_and_no_reason() -> None:
    assert RULES.score({}) == RULES.score({"resident_tau": nan}) == RULES.score({"resident_tau": 0, "resident_step": 0})
    assert RULES.reasons({}) == []


def test_the_reasons_are_the_signs_that_speak_for_the_answer() -> None:
    assert RULES.reasons({"resident_tau": 0.9, "resident_step": 0}) == [
        "resident memory: its floors rise in order",
        "resident memory: it is no step",
    ]
    assert RULES.reasons({"resident_tau": 0.9, "resident_step": 2}) == ["resident memory: it is a step"]


@given(st.lists(st.floats(0, 1e15), min_size=8, max_size=40))
@few
def test_a_shape_is_finite_whatever_the_floors(ys: list[float]) -> None:
    assert all(isfinite(value) for value in shape(list(zip(map(float, range(len(ys))), ys, strict=True))).values())


@given(st.lists(st.floats(0, 1e15), min_size=0, max_size=90))
@few
def test_the_middles_are_finite_whatever_the_values(ys: list[float]) -> None:
    found = middles([float(i) for i in range(len(ys))], ys)
    assert tuple(found) == MIDDLES
    assert all(isfinite(value) for value in found.values())


def test_an_even_rise_is_told_from_one_step() -> None:
    places = [float(i) for i in range(120)]
    ramp, step = middles(places, [100 + i for i in places]), middles(places, [100 + 100 * (i > 61) for i in places])
    assert ramp["even"] == pytest.approx(1, abs=0.01)
    assert step["even"] < 0.4
    assert ramp["slowest"] == pytest.approx(1, abs=0.05)
    assert step["typical"] == 0
    assert step["without_four"] <= 0 < ramp["without_four"]


def test_a_floor_is_the_lowest_of_its_share_of_the_time() -> None:
    values = [10.0 + (i % 10 != 3) for i in range(100)]
    found = floors([float(i) for i in range(100)], values, most=10)
    assert [value for _, value in found] == [10.0] * 10
    assert floors([0.0, 1.0], [1.0, 2.0]) == []


def test_shared_memory_that_grows_is_seen_though_it_is_not_anonymous() -> None:
    anon = course(lambda _: 1.0)
    shared = [v + 60 * MIB * i / 160 for i, v in enumerate(anon)]
    assert signs(columns(shared, anon_bytes=anon))["resident_growth"] > 0.2
