"""The loop: pace, levels, callbacks, actions. A fake machine, a fake clock, real threads."""

from __future__ import annotations

import asyncio
import os
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden import ConfigError, Level, Warden
from memwarden.testing import FakeClock, FakeMachine, reading
from tests.warden.conftest import MIB, PATIENCE_S, Stage, box_of

if TYPE_CHECKING:
    from pathlib import Path

    from memwarden.facts import Reading
    from tests.warden.conftest import Heard

N, W, C, E = Level.NORMAL, Level.WARNING, Level.CRITICAL, Level.EMERGENCY


# --- presets and the limit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "lines", "interval_s"),
    [
        ("render", (0.60, 0.75, 0.90), 15.0),
        ("local", (0.80, 0.90, 0.95), 30.0),
        ("balanced", (0.70, 0.85, 0.95), 15.0),
        (None, (0.75, 0.90, 0.95), 15.0),
    ],
)
def test_the_presets_are_those_of_row_m4(
    stage: Stage, preset: str | None, lines: tuple[float, ...], interval_s: float
) -> None:
    config = stage.warden(preset=preset).config
    assert (config.warning, config.critical, config.emergency) == lines
    assert config.interval_s == interval_s


def test_render_is_recognised_and_warns_at_307_384_and_461_of_512_mb() -> None:
    with FakeMachine(environ={"RENDER": "true"}) as machine:
        for share, megabytes, level in ((0.60, 307, W), (0.75, 384, C), (0.90, 461, E)):
            edge = 512 * MIB * share
            assert round(edge / MIB) == megabytes
            below, above = Warden(machine=machine, clock=FakeClock()), Warden(machine=machine, clock=FakeClock())
            machine.set_usage(int(edge) - 4096)
            assert below.level == level - 1
            machine.set_usage(int(edge) + 1)
            assert above.level is level


def test_elsewhere_the_preset_follows_the_platform(stage: Stage) -> None:
    assert stage.warden(preset="auto").origins["warning"] == "preset local"
    with FakeMachine(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) as machine:
        assert Warden(machine=machine).origins["warning"] == "preset balanced"


def test_a_limit_set_while_running_is_judged_at_once_and_says_who_set_it(stage: Stage, heard: Heard) -> None:
    stage.used(0.5)  # 256 MiB
    warden = stage.warden(dwell=3600)
    warden.on_change(heard)
    stage.run(warden, 2)
    assert warden.level is N
    warden.limit = "260M"
    assert warden.level is E
    assert warden.limit.bytes == 260 * MIB
    assert "set while running" in warden.limit.source
    warden.limit = None
    assert warden.level is N
    assert warden.limit.bytes == 512 * MIB
    assert heard.wait_for(2) == [(N, E), (E, N)]


def test_a_limit_set_before_the_start_counts_too(stage: Stage) -> None:
    stage.used(0.5)
    warden = stage.warden("300M")
    assert warden.level is W
    warden.limit = 1 << 40
    assert warden.limit.bytes == 512 * MIB  # it can only lower what the system sets
    assert warden.level is N


@pytest.mark.parametrize("value", ["much", "-5M", "12Q", -1])
def test_a_limit_that_is_none_is_refused_and_changes_nothing(stage: Stage, value: str | int) -> None:
    warden = stage.warden("300M")
    with pytest.raises(ConfigError):
        warden.limit = value
    assert warden.limit.bytes == 300 * MIB


def test_the_container_is_resized_while_it_runs(stage: Stage) -> None:
    warden = stage.warden()
    assert stage.look(warden, 0.5) is N
    stage.machine.set_limit(270 * MIB)
    stage.clock.advance(31.0)
    assert warden.check().level is C
    assert warden.limit.bytes == 270 * MIB


# --- pace ----------------------------------------------------------------------------------------------------------


def test_it_looks_as_often_as_the_headroom_asks_for(stage: Stage) -> None:
    warden = stage.warden(interval=60, min_interval=0.01)
    assert stage.run(warden, 2)[-1] == pytest.approx(462 / 32 / 4)  # 462 MiB at 32 MiB/s, four looks
    stage.used(0.70)
    stage.clock.advance(60)
    warden.check()
    assert warden._pace() == pytest.approx(512 * 0.3 / 32 / 4, rel=1e-3)


@pytest.mark.parametrize(("ratio", "longest_s"), [(0.80, 1.0), (0.91, 0.25), (0.953, 0.1), (0.999, 0.01), (1.2, 0.01)])
def test_the_higher_the_level_the_faster_it_looks(stage: Stage, ratio: float, longest_s: float) -> None:
    warden = stage.warden(interval=60, relieve=False, min_interval=0.01)
    stage.used(ratio, limit=512 * MIB)
    warden.check()
    assert 0.01 <= warden._pace() <= longest_s


def test_growth_makes_it_look_faster(stage: Stage) -> None:
    stage.machine.set_limit(4096 * MIB)
    warden = stage.warden(interval=60)
    for i in range(20):
        stage.machine.set_usage(100 * MIB + i * 100 * MIB)
        stage.clock.advance(1.0)
        warden.check()
    left = 4096 * MIB - 2000 * MIB
    assert warden._pace() == pytest.approx(left / (100 * MIB) / 4)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ratio=st.floats(0.0, 2.0), interval_s=st.floats(0.05, 100.0), shortest_s=st.floats(0.001, 0.05))
def test_the_pace_stays_between_the_shortest_and_the_interval(
    stage: Stage, ratio: float, interval_s: float, shortest_s: float
) -> None:
    warden = Warden(
        machine=stage.machine, clock=stage.clock, interval=interval_s, min_interval=shortest_s, relieve=False
    )
    stage.used(ratio)
    warden.check()
    assert shortest_s <= warden._pace() <= interval_s


def test_while_an_operation_is_in_flight_and_a_moment_longer_it_looks_faster(stage: Stage) -> None:
    warden = stage.warden(interval=60)
    warden.check()
    calm_s = warden._pace()
    with warden.operation("import"):
        assert warden._pace() == 0.25
    assert warden._pace() == 0.25
    stage.clock.advance(1.1)
    assert warden._pace() == calm_s > 1


def test_a_thousand_short_operations_wake_the_loop_a_few_times_at_most(stage: Stage) -> None:
    warden = stage.warden(interval=60)
    stage.run(warden, 3)
    before = warden.ticks
    for _ in range(1000):
        with warden.operation("request"):
            pass
    assert warden.ticks - before <= 2


def test_without_a_limit_it_looks_at_its_interval() -> None:
    with FakeMachine({"/proc/self/statm": "10 10 0 0 0 0 0\n"}) as machine:
        warden = Warden(machine=machine, clock=FakeClock(), interval=7)
        assert warden.check().reasons[0].code == "unknown"
        assert warden._pace() == 7


def test_a_late_tick_says_how_late(stage: Stage) -> None:
    warden = stage.warden()

    def on_wait(number: int) -> None:
        if number == 3:
            stage.clock.advance(1.9)  # one json.loads of 30 MB

    stage.run(warden, 6, on_wait)
    assert [round(tick.late_s, 3) for tick in box_of(warden).ticks] == [0, 0, 0, 1.9, 0, 0, 0]


MEMINFO = (
    "MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {free} kB\nBuffers: 0 kB\nCached: 0 kB\n"
    "Shmem: 0 kB\nSReclaimable: 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
)


def test_a_still_process_costs_a_glance_which_is_recorded_and_what_moves_is_read_whole(stage: Stage) -> None:
    warden = stage.warden(interval=1)
    whole: list[float] = []

    def on_wait(number: int) -> None:
        if number == 8:
            stage.used(0.5)
        whole.append(warden.reading.monotonic_s)

    stage.run(warden, 12, on_wait)
    start_s = whole[0]
    assert [seen - start_s for seen in whole] == [0, 0, 0, 3, 3, 3, 6, 6, 8, 8, 8, 11]
    ticks = box_of(warden).ticks
    assert len(ticks) == warden.ticks == 13
    assert [tick.used_bytes == 256 * MIB for tick in ticks] == [False] * 8 + [True] * 5


@pytest.mark.parametrize(("total_mib", "free_mib", "seen_at"), [(8192, 6000, 3), (256, 100, 1)])
def test_the_whole_machine_is_counted_as_often_as_its_headroom_asks_for(
    total_mib: int, free_mib: int, seen_at: int
) -> None:
    """No limit of its own, and others take 10 MiB after the first look."""
    with FakeMachine(limit_bytes=None, used_bytes=50 * MIB) as machine:
        stage = Stage(machine)

        def available(mib: int) -> None:
            machine.write("/proc/meminfo", MEMINFO.format(total=total_mib << 10, free=mib << 10))

        available(free_mib)
        warden = stage.warden(interval=1, relieve=False)

        def on_wait(number: int) -> None:
            if number == 1:
                available(free_mib - 10)

        stage.run(warden, 6, on_wait)
        before = (total_mib - free_mib) * MIB
        used = [tick.used_bytes for tick in box_of(warden).ticks]
        assert used == [before] * seen_at + [before + 10 * MIB] * (7 - seen_at)
        stage.close()


# --- callbacks -----------------------------------------------------------------------------------------------------


def test_each_change_is_told_once_in_order_with_its_reading(stage: Stage, heard: Heard) -> None:
    warden = stage.warden(relieve=False)
    warden.on_change(heard)
    for ratio in (0.5, 0.8, 0.8, 0.92, 0.99, 0.6, 0.6):
        stage.look(warden, ratio)
    assert heard.wait_for(4) == [(N, W), (W, C), (C, E), (E, N)]
    assert [each.used_bytes for each in heard.readings] == [int(512 * MIB * r) for r in (0.8, 0.92, 0.99, 0.6)]
    assert heard.threads == {"memwarden-callbacks"}


def test_a_start_above_a_line_is_a_change(stage: Stage, heard: Heard) -> None:
    stage.used(0.8)
    warden = stage.warden()
    warden.on_change(heard)
    warden.start()
    assert heard.wait_for(1) == [(N, W)]


def test_a_callback_can_be_taken_back(stage: Stage, heard: Heard) -> None:
    warden, other = stage.warden(relieve=False), heard
    take_back = warden.on_change(lambda *_: pytest.fail("it was taken back"))
    warden.on_change(other)
    take_back()
    take_back()
    stage.look(warden, 0.8)
    assert heard.wait_for(1)


def test_a_callback_that_raises_stops_neither_the_next_nor_the_watch(
    stage: Stage, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(old: Level, new: Level, reading: Reading) -> None:
        raise RuntimeError("pager is down")

    warden = stage.warden(relieve=False)
    warden.on_change(broken)
    warden.on_change(heard)
    stage.look(warden, 0.8)
    stage.look(warden, 0.5)
    assert heard.wait_for(2) == [(N, W), (W, N)]
    assert "pager is down" in caplog.text


def test_a_callback_that_hangs_does_not_stop_the_watch(stage: Stage) -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(old: Level, new: Level, reading: Reading) -> None:
        entered.set()
        release.wait(PATIENCE_S)

    warden = stage.warden(relieve=False)
    warden.on_change(hang)
    stage.used(0.8)
    before = warden.ticks
    stage.run(warden, 50)
    assert entered.wait(PATIENCE_S)
    assert warden.ticks >= before + 50
    release.set()


def test_a_coroutine_function_runs_on_the_loop_that_ran_when_it_was_given(stage: Stage) -> None:
    async def main() -> bool:
        here, found = asyncio.get_running_loop(), asyncio.Event()
        warden = stage.warden(relieve=False)
        where: list[object] = []

        async def callback(old: Level, new: Level, reading: Reading) -> None:
            where.append(asyncio.get_running_loop())
            found.set()

        warden.on_change(callback)
        await asyncio.to_thread(stage.look, warden, 0.8)
        await asyncio.wait_for(found.wait(), PATIENCE_S)
        return where == [here]

    assert asyncio.run(main())


def test_a_coroutine_function_without_a_loop_gets_one(stage: Stage, heard: Heard) -> None:
    async def callback(old: Level, new: Level, reading: Reading) -> None:
        await asyncio.sleep(0)
        heard(old, new, reading)

    warden = stage.warden(relieve=False)
    warden.on_change(callback)
    stage.look(warden, 0.8)
    assert heard.wait_for(1) == [(N, W)]


def test_a_coroutine_function_whose_loop_has_ended_gets_one_too(stage: Stage, heard: Heard) -> None:
    warden = stage.warden(relieve=False)

    async def callback(old: Level, new: Level, reading: Reading) -> None:
        heard(old, new, reading)

    async def main() -> None:
        warden.on_change(callback)

    asyncio.run(main())
    stage.look(warden, 0.8)
    assert heard.wait_for(1) == [(N, W)]


def test_a_callback_may_stop_the_warden(stage: Stage) -> None:
    stopped = threading.Event()
    warden = stage.warden(relieve=False)

    def callback(old: Level, new: Level, reading: Reading) -> None:
        warden.stop()
        stopped.set()

    warden.on_change(callback)
    stage.used(0.8)
    warden.start()
    assert stopped.wait(PATIENCE_S)
    assert not warden.running


def test_a_callback_may_ask_the_warden_anything(stage: Stage) -> None:
    asked = threading.Event()
    warden = stage.warden(relieve=False)

    def callback(old: Level, new: Level, reading: Reading) -> None:
        assert warden.check().level is W
        warden.limit = "511M"
        with warden.operation("page somebody"):
            warden.trend()
        asked.set()

    warden.on_change(callback)
    stage.used(0.8)
    warden.start()
    assert asked.wait(PATIENCE_S)


# --- actions -------------------------------------------------------------------------------------------------------


def acted(warden: Warden) -> list[str]:
    return [outcome.action for outcome in warden.outcomes if not outcome.skipped]


def test_below_critical_it_does_nothing(stage: Stage) -> None:
    warden = stage.warden()
    stage.look(warden, 0.89)
    assert acted(warden) == []


def test_critical_trims_first_and_collects_only_when_that_was_not_enough(stage: Stage) -> None:
    stage.machine.trim_frees_bytes = 100 * MIB
    warden = stage.warden()
    stage.look(warden, 0.92)
    assert acted(warden) == ["trim"]
    assert warden.outcomes[0].freed_bytes == 100 * MIB // 4096 * 4096
    other = stage.warden()
    stage.machine.trim_frees_bytes = 0
    stage.look(other, 0.92)
    assert acted(other) == ["trim", "collect"]


def test_an_emergency_runs_everything_even_if_the_first_was_enough(stage: Stage) -> None:
    stage.machine.trim_frees_bytes = 400 * MIB
    warden = stage.warden()
    stage.look(warden, 0.99)
    assert acted(warden) == ["trim", "collect"]


def test_an_emergency_waits_for_no_cool_down(stage: Stage) -> None:
    stage.machine.trim_frees_bytes = 0
    warden = stage.warden(dwell=60)
    stage.look(warden, 0.92)
    assert acted(warden) == ["trim", "collect"]
    stage.look(warden, 0.99, after_s=0.5)
    assert acted(warden) == ["trim", "collect", "trim", "collect"]
    stage.look(warden, 0.99, after_s=0.5)
    assert len(acted(warden)) == 4  # it begins once


def test_after_two_useless_tries_it_abstains_until_the_level_fell(stage: Stage) -> None:
    warden = stage.warden(dwell=1)
    for _ in range(100):
        stage.look(warden, 0.92, after_s=60.0)
    assert [name for name in acted(warden) if name != "snapshots"] == ["trim", "collect"] * 2
    assert acted(warden).count("snapshots") == 2  # there was half an hour of them only later
    stage.look(warden, 0.5, after_s=10.0)
    stage.look(warden, 0.5, after_s=10.0)
    assert warden.level is N
    stage.clock.advance(700)
    stage.look(warden, 0.92)
    assert acted(warden)[-3:] == ["trim", "collect", "snapshots"]


def test_collections_by_hand_when_calm_do_not_tire_the_ladder(stage: Stage) -> None:
    warden = stage.warden()
    for _ in range(5):
        assert warden.collect("by hand").action == "collect"
    stage.clock.advance(3600)
    stage.look(warden, 0.92)
    assert acted(warden)[5:] == ["trim", "collect"]


def test_told_not_to_it_does_not_act_and_still_tells(stage: Stage, heard: Heard) -> None:
    warden = stage.warden(relieve=False)
    warden.on_change(heard)
    stage.look(warden, 0.99)
    assert stage.machine.trims == 0
    assert acted(warden) == []
    assert heard.wait_for(1) == [(N, E)]


def test_told_not_to_collect_it_only_trims(stage: Stage) -> None:
    warden = stage.warden(proactive_gc=False)
    stage.look(warden, 0.99)
    assert acted(warden) == ["trim"]


def test_the_loop_acts_by_itself_and_writes_it_down(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "memwarden.warden")
    stage.machine.trim_frees_bytes = 200 * MIB
    warden = stage.warden()

    def rise(number: int) -> None:
        if number == 2:
            stage.used(0.92)

    stage.run(warden, 4, rise)
    assert acted(warden) == ["trim"]
    assert "trim (CRITICAL by itself): 200 MiB freed" in caplog.text


def test_on_an_event_loop_a_check_never_acts(stage: Stage) -> None:
    warden = stage.warden()

    async def handler() -> Level:
        return stage.look(warden, 0.99)

    assert asyncio.run(handler()) is E
    assert acted(warden) == []


def test_reading_the_level_never_acts(stage: Stage) -> None:
    warden = stage.warden()
    stage.used(0.99)
    assert warden.level is E
    assert warden.reading.used_bytes
    assert acted(warden) == []


def test_relieve_runs_what_is_due_and_the_emergency_cleanup_everything(stage: Stage) -> None:
    warden = stage.warden()
    assert [each.action for each in warden.relieve()] == ["trim"]  # a calm machine: the first was enough
    assert [each.action for each in warden.emergency_cleanup()] == ["trim", "collect"]
    assert [each.action for each in warden.emergency_cleanup()] == ["trim", "collect"]


# --- valves --------------------------------------------------------------------------------------------------------


def test_a_file_forces_a_level_and_its_end_gives_it_back(stage: Stage, heard: Heard, tmp_path: Path) -> None:
    valve = tmp_path / "pressure"
    warden = stage.warden(pressure_file=str(valve))
    warden.on_change(heard)
    assert warden.check().level is N
    for word, level in (("critical\n", C), ("EMERGENCY", E), ("healthy", N), ("warning  ", W), ("nonsense", N)):
        valve.write_text(word)
        found = warden.check()
        assert found.level is level
        assert [each.code for each in found.reasons] == ([] if word == "nonsense" else ["forced"])
    valve.unlink()
    assert warden.check().level is N
    assert heard.wait_for(5) == [(N, C), (C, E), (E, N), (N, W), (W, N)]


@pytest.mark.parametrize("how", ["argument", "MEMWARDEN_ENABLED", "MEMORY_MONITORING_ENABLED"])
def test_switched_off_every_call_is_a_no_op(how: str, heard: Heard) -> None:
    before = set(threading.enumerate())
    with FakeMachine(environ={} if how == "argument" else {how: "false"}) as machine:
        machine.set_usage(511 * MIB)
        warden = Warden(machine=machine, enabled=False) if how == "argument" else Warden(machine=machine)
        warden.on_change(heard)
        with warden:
            assert not warden.running
            assert warden.level is N
            assert warden.check("here").reasons[0].code == "disabled"
            assert warden.reading.used_bytes is None
            with warden.operation("load") as operation:
                pass
            assert operation.result is not None
            assert operation.result.peak_bytes is None
            assert warden.collect().skipped
            assert warden.relieve() == []
            assert warden.emergency_cleanup() == []
            assert warden.trend().samples == 0
            warden.limit = "100M"
            assert warden.operation("f")(lambda: 5)() == 5
        assert machine.trims == 0
    assert heard.changes == []
    assert set(threading.enumerate()) == before


def test_trend_and_advice_follow_what_the_ticks_saw(stage: Stage) -> None:
    warden = stage.warden(relieve=False)
    for i in range(120):
        stage.look(warden, 0.2 + i * 0.003, after_s=5.0)
    assert warden.trend().growth_bytes_per_minute == pytest.approx(512 * MIB * 0.036, rel=0.05)
    assert warden.trend().increasing
    assert warden.forecast().seconds_to_limit is not None
    assert (warden.recommended_limit() or 0) > 0.55 * 512 * MIB
    assert warden.recommendations()


# --- one tick ------------------------------------------------------------------------------------------------------


def test_a_tick_that_fails_is_counted_and_the_loop_goes_on(stage: Stage) -> None:
    warden = stage.warden()

    def break_it(number: int) -> None:
        if number == 2:
            warden._sensor.read = _broken  # type: ignore[method-assign]
        if number == 4:
            del warden._sensor.read

    stage.run(warden, 8, break_it)
    assert warden.errors == 2
    assert warden.ticks == 1 + 6


def _broken() -> Reading:
    raise RuntimeError("the machine is on fire")


def test_a_machine_that_goes_dark_keeps_its_level(stage: Stage) -> None:
    warden = stage.warden(relieve=False)
    assert stage.look(warden, 0.92) is C
    for path in ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"):
        stage.machine.write(path, "")
    stage.clock.advance(1.0)
    verdict = warden.check()
    assert (verdict.level, verdict.reasons[0].code) == (C, "unknown")


def test_a_look_from_within_a_look_gives_the_last_verdict(stage: Stage) -> None:
    """A signal handler or a finalizer that runs in the middle of a tick asks: no deadlock, no tick within a tick."""
    warden = stage.warden()
    stage.used(0.8)
    warden.check()
    asked: list[Level] = []
    read = warden._sensor.read

    def interrupted() -> Reading:
        if len(asked) < 1:
            asked.append(warden.check().level)
        return read()

    warden._sensor.read = interrupted  # type: ignore[method-assign]
    ticks = warden.ticks
    stage.used(0.5)
    warden.check()
    assert asked == [W]
    assert warden.ticks == ticks + 1


def test_many_threads_ask_at_once_and_every_change_is_told_once(stage: Stage, heard: Heard) -> None:
    warden = stage.warden(relieve=False, dwell=0)
    warden.on_change(heard)
    warden.check()
    start, failures = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait(PATIENCE_S)
        try:
            for i in range(60):
                if number == 0:
                    stage.used((0.5, 0.8, 0.92)[i % 3])
                with warden.operation(f"worker {number}"):
                    warden.check()
                    warden.trend()
                if number == 1 and i % 10 == 0:
                    warden.limit = f"{500 + i}M"
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE_S)
    assert failures == []
    warden.stop()
    assert all(old == before for (_, before), (old, _) in pairwise(heard.changes))
    assert len(warden._in_flight) == 0
    assert warden.ticks >= 8 * 60


def test_a_reading_made_for_tests_weighs_like_a_real_one(stage: Stage) -> None:
    warden = stage.warden()
    stage.used(0.8)
    assert reading(int(512 * MIB * 0.8)).usage_ratio == warden.reading.usage_ratio
    assert os.getpid() != warden.reading.pid  # a folder leaks nothing of this process in
