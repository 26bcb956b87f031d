"""Admission by bytes: never more than the line, nothing counted twice, everybody served in turn or refused in time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from memwarden import ConfigError, Level, MemoryPressureError
from memwarden.act.admission import CLASSES, Admission, shed_share
from memwarden.act.gauge import View
from memwarden.budget import Budget
from memwarden.facts import Verdict
from memwarden.testing import FakeClock, pressure, reading

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1_000_000
PATIENCE_S = 20.0
LINES = {"warning": 0.75, "batch": 0.9, "interactive": 0.95, "critical": 1.0}


class Memory:
    """A Watch on memory that a test fills; `verdict` is as old as the last `check`, as a running Warden's is."""

    def __init__(self, clock: FakeClock, used: int = 0) -> None:
        self.clock = clock
        self.used = used
        self.level = Level.NORMAL
        self.looks = 0
        self.lock = threading.Lock()
        self.verdict: Verdict = self._now()

    def _now(self) -> Verdict:
        found = reading(self.used, LIMIT, monotonic_s=self.clock.monotonic())
        return Verdict(level=self.level, since_s=0.0, reading=found)

    def check(self) -> Verdict:
        self.looks += 1
        self.verdict = self._now()
        return self.verdict


class Desk:
    """An Admission, its memory and its clock. The chance is the worst unless a test says otherwise."""

    def __init__(self, used: int = 0, *, chance: Callable[[], float] = lambda: 1.0, **options: Any) -> None:
        self.clock = FakeClock()
        self.memory = Memory(self.clock, used)
        self.admission = Admission(self.memory, clock=self.clock, chance=chance, **options)

    def use(self, used: int, *, later_s: float = 1.0) -> None:
        self.memory.used = used
        self.clock.advance(later_s)

    def admits(self, size: int, priority: str = "interactive", **options: Any) -> bool:
        try:
            with self.admission.admit(size, priority=priority, **options):
                return True
        except MemoryPressureError:
            return False


# --- the decision -------------------------------------------------------------------------------------------------


def test_it_admits_up_to_the_line_of_the_class_and_not_a_byte_more() -> None:
    for priority, line in (("batch", 900_000), ("interactive", 950_000), ("critical", 1_000_000)):
        desk = Desk(100_000)
        assert desk.admits(line - 100_000, priority)
        assert not desk.admits(line - 100_000 + 1, priority)


def test_promises_to_work_under_way_count() -> None:
    desk = Desk()
    with desk.admission.admit(600_000):
        assert (desk.admission.promised_bytes, desk.admission.under_way) == (600_000, 1)
        assert not desk.admits(350_001)
        assert desk.admits(350_000)
    desk.use(0)
    assert desk.admits(950_000)


def test_a_promise_fades_as_memory_grows_by_it() -> None:
    desk = Desk()
    with desk.admission.admit(600_000):
        desk.use(400_000)
        assert desk.admits(350_000)  # 400,000 used and 200,000 to come: nothing is counted twice
        desk.use(400_000)
        assert not desk.admits(350_001)
        desk.use(600_000)
        assert desk.admits(350_000)
        desk.use(640_000)  # by somebody else
        assert not desk.admits(310_001)
        assert desk.admits(310_000)


def test_a_promise_that_ended_counts_until_a_reading_was_taken_after_its_end() -> None:
    """What it took is in no reading yet: without this a burst of short work would overrun the line."""
    desk = Desk(max_age=0.05)
    with desk.admission.admit(600_000):
        desk.memory.used = 600_000  # and it keeps it
        desk.clock.advance(0.01)
    assert desk.admission.promised_bytes == 600_000
    assert not desk.admits(400_000)
    desk.use(600_000)
    assert desk.admits(350_000)
    assert desk.admission.promised_bytes <= 350_000


def test_in_a_steady_flow_the_memory_of_ended_work_is_not_held_against_the_next() -> None:
    """Ten under way, each of a tenth of the line; one ends and frees, the next takes as much: never refused."""
    desk = Desk()
    held: list[Any] = []
    for number in range(200):
        desk.use(90_000 * len(held))
        if len(held) == 10:
            held.pop(0).__exit__(None, None, None)
            desk.use(90_000 * len(held))
        work = desk.admission.admit(90_000)
        work.__enter__()
        held.append(work)
        assert desk.admission.under_way == len(held), number
    assert desk.admission.counts.refused == 0


def test_what_is_larger_than_the_line_is_refused_for_good_at_once() -> None:
    desk = Desk()
    with (
        pytest.raises(MemoryPressureError, match="smaller parts") as caught,
        desk.admission.admit(950_001, timeout_s=PATIENCE_S),
    ):
        pass
    assert (caught.value.transient, caught.value.retry_after_s) == (False, None)
    assert desk.clock.waited_s == []


def test_a_refusal_says_what_is_used_and_promised_and_by_whom() -> None:
    budget = Budget("1M")
    cache = budget.account("cache")
    cache.reserve(300_000)
    desk = Desk(500_000, budget=budget)
    with desk.admission.admit(102_400), pytest.raises(MemoryPressureError) as caught:
        desk.admission.admit(400_000).__enter__()
    error = caught.value
    assert (error.usage_bytes, error.threshold, error.limit_bytes) == (500_000, 0.95, LIMIT)
    assert (error.transient, error.retry_after_s, error.holders) == (True, 1.0, (("cache", 300_000),))
    assert str(error) == (
        "interactive work of 390.6 KiB does not fit: 488.3 KiB of 976.6 KiB are used and 100 KiB are promised, "
        "its line is 95 %; try again in 1 s"
    )


def test_retry_after_is_how_long_recovery_took() -> None:
    desk = Desk(950_000)
    assert not desk.admits(1000)
    desk.use(950_000, later_s=12)
    assert not desk.admits(1000)
    desk.use(0, later_s=8)
    assert desk.admits(1000)
    desk.use(950_000, later_s=100)
    with pytest.raises(MemoryPressureError) as caught:
        desk.admission.admit(1000).__enter__()
    assert caught.value.retry_after_s == 20.0


def test_near_the_line_it_takes_a_younger_reading_before_it_refuses() -> None:
    desk = Desk(940_000)
    assert desk.admits(1000)
    desk.use(100_000, later_s=0.01)
    assert desk.admits(500_000)


def test_of_a_budget_what_is_held_counts_and_what_is_admitted_is_held() -> None:
    budget = Budget(LIMIT)
    other = budget.account("other")
    other.reserve(500_000)
    admission = Admission(budget, clock=FakeClock(), chance=lambda: 1.0)
    with admission.admit(300_000):
        assert budget.held_bytes == 800_000
        with pytest.raises(MemoryPressureError):
            admission.admit(200_000).__enter__()
        other.release(400_000)
        with admission.admit(500_000):
            assert budget.held_bytes == 900_000
    assert budget.held_bytes == 100_000
    assert admission.promised_bytes == 0


def test_where_no_limit_is_known_everybody_is_admitted() -> None:
    class Nobody:
        verdict = None

    with Admission(Nobody()).admit(1 << 50):
        pass


# --- shedding -----------------------------------------------------------------------------------------------------


def _view(ratio: float, level: Level = Level.NORMAL) -> View:
    return View(
        used_bytes=int(ratio * LIMIT), limit_bytes=LIMIT, ratio=ratio, level=level, forced=False, monotonic_s=0.0
    )


@pytest.mark.parametrize(
    ("priority", "ratio", "share"),
    [
        ("batch", 0.74, 0.0), ("batch", 0.75, 0.0), ("batch", 0.825, 0.5), ("batch", 0.9, 1.0), ("batch", 1.1, 1.0),
        ("interactive", 0.9, 0.0), ("interactive", 0.925, 0.5), ("interactive", 0.95, 1.0), ("critical", 1.2, 0.0),
    ],
)  # fmt: skip
def test_the_share_that_is_shed_rises_from_line_to_line(priority: str, ratio: float, share: float) -> None:
    assert shed_share(_view(ratio), LINES, priority) == pytest.approx(share)


def test_a_level_that_was_judged_or_forced_counts_as_being_there() -> None:
    assert shed_share(_view(0.3, Level.CRITICAL), LINES, "batch") == 1.0
    assert shed_share(_view(0.3, Level.CRITICAL), LINES, "interactive") == 0.0
    assert shed_share(_view(0.3, Level.EMERGENCY), LINES, "interactive") == 1.0
    assert shed_share(_view(0.3, Level.EMERGENCY), LINES, "critical") == 0.0


@given(st.floats(0, 1.3), st.floats(0, 1.3), st.sampled_from(CLASSES), st.sampled_from(Level))
def test_more_pressure_never_sheds_less_and_a_higher_class_never_more(
    one: float, other: float, priority: str, level: Level
) -> None:
    low, high = sorted((one, other))
    assert shed_share(_view(low, level), LINES, priority) <= shed_share(_view(high, level), LINES, priority)
    shares = [shed_share(_view(one, level), LINES, each) for each in CLASSES]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_by_count_about_the_right_share_is_shed() -> None:
    desk = Desk(int(0.825 * LIMIT), chance=random.Random(7).random)
    admitted = sum(desk.admits(1, "batch") for _ in range(2000))
    assert 900 < admitted < 1100
    assert desk.admission.counts.shed == 2000 - admitted
    assert all(desk.admits(1, "interactive") for _ in range(100))


# --- waiting ------------------------------------------------------------------------------------------------------


def test_a_wait_ends_when_memory_falls_without_anybody_telling() -> None:
    desk = Desk(940_000)
    pauses: list[float] = []

    def fall(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            desk.memory.used = 0

    desk.clock.on_wait = fall
    assert desk.admits(100_000, timeout_s=10)
    assert len(pauses) == 5
    assert max(pauses) <= 0.05


def test_a_wait_that_helps_nothing_ends_in_time_and_leaves_nothing_behind() -> None:
    desk = Desk(940_000)
    start_s = desk.clock.monotonic()
    assert not desk.admits(100_000, timeout_s=2)
    assert desk.clock.monotonic() - start_s == pytest.approx(2)
    assert desk.admission.counts.timed_out == 1
    assert not any(desk.admission._queues)
    assert desk.admits(1000)


def _waiting(admission: Admission) -> int:
    return sum(len(queue) for queue in admission._queues)


def test_a_higher_class_goes_first_and_within_a_class_the_first_comes_first() -> None:
    budget = Budget(LIMIT)
    admission = Admission(budget, chance=lambda: 1.0)
    order: list[str] = []

    def work(name: str, priority: str) -> None:
        with admission.admit(600_000, priority=priority, timeout_s=PATIENCE_S):
            order.append(name)

    threads = []
    with admission.admit(600_000):
        for name in ("batch", "interactive 1", "interactive 2", "critical"):
            threads.append(threading.Thread(target=work, args=(name, name.split()[0])))
            threads[-1].start()
            while _waiting(admission) < len(threads):
                threads[-1].join(0.001)
        with pytest.raises(MemoryPressureError):  # it would fit, and others were first
            admission.admit(1000, priority="batch").__enter__()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == ["critical", "interactive 1", "interactive 2", "batch"]
    assert budget.held_bytes == 0


def test_coroutines_wait_in_turn_while_the_loop_goes_on() -> None:
    admission = Admission(Budget(LIMIT), chance=lambda: 1.0)
    order: list[int] = []

    async def work(number: int) -> None:
        async with admission.admit(600_000, timeout_s=PATIENCE_S):
            order.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(20)))
        with pytest.raises(MemoryPressureError):
            async with admission.admit(600_000), admission.admit(600_000, timeout_s=0.02):
                pass

    asyncio.run(main())
    assert order == list(range(20))
    assert admission.counts.timed_out == 1
    assert admission.under_way == 0


def test_a_cancelled_coroutine_gives_its_place_and_its_bytes_back() -> None:
    budget = Budget(LIMIT)
    admission = Admission(budget, chance=lambda: 1.0)

    async def work() -> None:
        async with admission.admit(600_000, timeout_s=PATIENCE_S):
            await asyncio.sleep(0)

    async def main(*, just_granted: bool) -> None:
        holder = admission.admit(600_000)
        holder.__enter__()
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        assert _waiting(admission) == 1
        if just_granted:
            holder.__exit__(None, None, None)
            assert budget.held_bytes == 600_000
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        holder.__exit__(None, None, None)
        assert (budget.held_bytes, _waiting(admission), admission.under_way) == (0, 0, 0)

    asyncio.run(main(just_granted=False))
    asyncio.run(main(just_granted=True))


def test_work_that_was_dropped_gives_back() -> None:
    budget = Budget(LIMIT)
    admission = Admission(budget, chance=lambda: 1.0)
    work = admission.admit(600_000)
    work.__enter__()
    knot: list[Any] = [work]
    knot.append(knot)
    del work, knot
    with admission._gate:
        gc.collect()
        assert budget.held_bytes == 600_000
    assert (budget.held_bytes, admission.under_way) == (0, 0)


# --- many at once -------------------------------------------------------------------------------------------------


class Flow(RuleBasedStateMachine):
    """Work that is admitted, takes what it was promised in steps, frees it and ends, in any order, with old readings.

    The truth is what is used and what work under way may still take; it never goes above the line.
    """

    works = Bundle("works")

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(max_age=1.0)
        self.left: dict[int, tuple[Any, int, int]] = {}  # id -> (work, promised and not taken, taken)

    @rule(target=works, size=st.integers(1, 300_000))
    def admit(self, size: int) -> int:
        work = self.desk.admission.admit(size)
        try:
            work.__enter__()
        except MemoryPressureError:
            return -1
        self.left[id(work)] = (work, size, 0)
        return id(work)

    @rule(key=works, share=st.floats(0, 1))
    def take(self, key: int, share: float) -> None:
        if key in self.left:
            work, left, taken = self.left[key]
            now = int(left * share)
            self.left[key] = (work, left - now, taken + now)
            self.desk.memory.used += now
            self.desk.clock.advance(0.01)

    @rule(key=consumes(works))
    def end(self, key: int) -> None:
        if key in self.left:
            work, _, taken = self.left.pop(key)
            self.desk.memory.used -= taken
            self.desk.clock.advance(0.01)
            work.__exit__(None, None, None)

    @rule(seconds=st.floats(0.001, 3))
    def wait(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)

    @invariant()
    def never_over_the_line(self) -> None:
        truth = self.desk.memory.used + sum(left for _, left, _ in self.left.values())
        assert truth <= 0.95 * LIMIT * 1.02
        assert self.desk.admission.promised_bytes >= 0
        assert self.desk.admission.under_way == len(self.left)


Flow.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestFlow = Flow.TestCase


def test_a_thousand_at_once_are_never_over_admitted_by_more_than_two_percent() -> None:
    """50 threads with 20 promises each, which take their bytes in their own time, while readings are 50 ms old."""
    clock = FakeClock()
    memory = Memory(clock)
    admission = Admission(memory, chance=lambda: 1.0, clock=clock)
    truth, highest, most_under_way = 0, 0, 0
    lock, start = threading.Lock(), threading.Barrier(50)

    def change(promised: int, used: int) -> None:
        nonlocal truth, highest
        with lock:
            truth += promised
            memory.used += used
            clock.advance(0.0005)
            highest = max(highest, truth)

    def one(size: int) -> Any:
        work = admission.admit(size)
        work.__enter__()
        change(size, 0)
        return work

    def work(number: int) -> None:
        nonlocal most_under_way
        dice, mine = random.Random(number), list[tuple[Any, int]]()
        for turn in range(80):
            if turn == 20:
                start.wait(PATIENCE_S)
                most_under_way = max(most_under_way, admission.under_way)
            size = dice.randrange(200, 1800)
            with contextlib.suppress(MemoryPressureError):
                mine.append((one(size), size))
            if mine and turn >= 20:
                ended, size = mine.pop(0)
                change(0, size)  # it takes what it was promised
                change(-size, -size)  # and frees it
                ended.__exit__(None, None, None)
        for ended, size in mine:
            change(-size, 0)
            ended.__exit__(None, None, None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    often_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S * 2)
    sys.setswitchinterval(often_s)
    assert (admission.under_way, truth) == (0, 0)
    assert most_under_way > 800
    assert highest > 0.85 * 0.95 * LIMIT  # it was full, else nothing is proved
    assert highest <= 0.95 * LIMIT * 1.02


# --- wrong input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "1M", None, 1 << 70])
def test_a_size_that_is_none_is_one_line(size: Any) -> None:
    with pytest.raises(ConfigError, match="estimate_bytes"):
        Desk().admission.admit(size)


@pytest.mark.parametrize(
    "options", [{"priority": "urgent"}, {"priority": ["batch"]}, {"timeout_s": -1}, {"timeout_s": float("nan")}]
)
def test_a_class_or_a_time_out_that_is_none_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Desk().admission.admit(1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"warning": 0.95}, {"critical": 0.5}, {"emergency": 0.9}, {"warning": 0}, {"warning": "much"},
        {"critical": 0.95}, {"max_age": -1},
    ],
)  # fmt: skip
def test_lines_out_of_order_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Desk(**options)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_none_is_one_line() -> None:
    with pytest.raises(ConfigError, match="Warden or a Budget"):
        Admission("512M")  # type: ignore[arg-type]


def test_one_admittance_is_for_one_piece_of_work() -> None:
    work = Admission(pressure(Level.NORMAL)).admit(1)
    with work, pytest.raises(ConfigError, match="entered already"), work:
        pass


def test_time_that_jumps_is_tolerated() -> None:
    desk = Desk()
    for jump_s in (1e6, -1e6, -5e5, 0.1):
        desk.clock.advance(jump_s)
        with desk.admission.admit(500_000):
            assert not desk.admits(500_000)
        desk.clock.advance(1)
