"""The ladder: what is due, in order, measured, and let go where it does not help."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from memwarden.act import Collect, Ladder, Trim
from memwarden.testing import FakeClock, FakeMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from memwarden.facts import Outcome
    from memwarden.ports import Machine

MIB = 1 << 20


class Heap:
    """Resident memory that actions give back."""

    def __init__(self) -> None:
        self.bytes: int | None = 1000 * MIB

    def read(self) -> int | None:
        return self.bytes


class Step:
    """An action that frees so much and takes so long."""

    def __init__(
        self, name: str, heap: Heap, clock: FakeClock, *, frees: int = 0, takes_s: float = 0.0,
        holds_gil: bool = False, fork_unsafe: bool = False, cooldown_s: float = 10.0,
        priority: int = 50, above: float = 0.0, foreign: bool = False,
    ) -> None:  # fmt: skip
        self.priority, self.above, self.foreign = priority, above, foreign
        self.name, self.holds_gil, self.fork_unsafe, self.cooldown_s = name, holds_gil, fork_unsafe, cooldown_s
        self.frees, self.takes_s = frees, takes_s
        self.runs = 0
        self._heap, self._clock = heap, clock

    def idle(self) -> bool:
        return False

    def apply(self, machine: Machine) -> int | None:
        self.runs += 1
        self._clock.advance(self.takes_s)
        if self._heap.bytes is not None:
            self._heap.bytes -= self.frees
        return 7


class Broken(Step):
    def apply(self, machine: Machine) -> int | None:
        super().apply(machine)
        raise RuntimeError("no cache here")


class Workshop:
    def __init__(self, machine: FakeMachine) -> None:
        self.machine, self.clock, self.heap = machine, FakeClock(), Heap()
        self.forked = False

    def ladder(self, *steps: Step, gil_share: float = 0.01) -> Ladder:
        return Ladder(
            steps, machine=self.machine, clock=self.clock, resident_bytes=self.heap.read, gil_share=gil_share,
            forked=lambda: self.forked,
        )  # fmt: skip

    def step(self, name: str = "step", *, kind: type[Step] = Step, **options: float) -> Step:
        return kind(name, self.heap, self.clock, **options)  # type: ignore[arg-type]


@pytest.fixture
def shop() -> Iterator[Workshop]:
    with FakeMachine() as machine:
        yield Workshop(machine)


def never() -> bool:
    return False


def names(outcomes: Iterable[Outcome]) -> list[str]:
    return [outcome.action for outcome in outcomes]


def climbs(shop: Workshop, ladder: Ladder, *, seconds: float, every_s: float = 1.0) -> list[str]:
    found = []
    for _ in range(int(seconds / every_s)):
        found += names(ladder.climb("test", enough=never))
        shop.clock.advance(every_s)
    return found


def test_an_outcome_says_what_was_measured(shop: Workshop) -> None:
    (outcome,) = shop.ladder(shop.step(frees=100 * MIB, takes_s=0.5)).climb("CRITICAL", enough=never)
    assert (outcome.before_bytes, outcome.after_bytes, outcome.freed_bytes) == (1000 * MIB, 900 * MIB, 100 * MIB)
    assert (outcome.duration_s, outcome.objects, outcome.reason) == (0.5, 7, "CRITICAL")
    assert not outcome.error


def test_it_stops_as_soon_as_enough_was_freed(shop: Workshop) -> None:
    first, second = shop.step("first", frees=100 * MIB), shop.step("second")
    ladder = shop.ladder(first, second)
    assert names(ladder.climb("test", enough=lambda: True)) == ["first"]
    assert second.runs == 0


def test_an_action_rests_for_its_cool_down(shop: Workshop) -> None:
    step = shop.step(frees=50 * MIB, cooldown_s=10.0)
    assert len(climbs(shop, shop.ladder(step), seconds=31)) == 4  # at 0, 10, 20 and 30 s


def test_after_a_useless_try_it_rests_twice_as_long_and_after_two_it_abstains(shop: Workshop) -> None:
    step = shop.step(frees=0, cooldown_s=10.0)
    ladder = shop.ladder(step)
    assert len(climbs(shop, ladder, seconds=19)) == 1
    assert len(climbs(shop, ladder, seconds=5)) == 1  # at 20 s
    assert climbs(shop, ladder, seconds=3600, every_s=10.0) == []
    ladder.rest()
    assert len(climbs(shop, ladder, seconds=1)) == 1


def test_less_than_one_percent_is_useless_and_one_percent_is_not(shop: Workshop) -> None:
    little, enough = shop.step("little", frees=9 * MIB), shop.step("enough", frees=10 * MIB)
    found = climbs(shop, shop.ladder(little, enough), seconds=1000)
    assert found.count("little") == 2
    assert found.count("enough") == 100


def test_what_could_not_be_measured_did_not_help(shop: Workshop) -> None:
    shop.heap.bytes = None
    step = shop.step()
    outcome = shop.ladder(step).apply(step, "test")
    assert outcome.freed_bytes is None
    assert len(climbs(shop, shop.ladder(step), seconds=3600, every_s=10)) == 2


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_what_holds_the_gil_keeps_its_share_of_wall_time(shop: Workshop, share: float) -> None:
    step = shop.step(frees=50 * MIB, takes_s=2.0, holds_gil=True, cooldown_s=1.0)
    shop.heap.bytes = 1 << 50
    step.frees = 1 << 45
    start_s = shop.clock.monotonic()
    climbs(shop, shop.ladder(step, gil_share=share), seconds=2000)
    spent = step.runs * 2.0 / (shop.clock.monotonic() - start_s)
    assert 0.5 * share < spent <= share * 1.2


def test_an_emergency_waits_for_no_cool_down_but_for_the_share(shop: Workshop) -> None:
    trim = shop.step("trim", cooldown_s=600.0)
    collect = shop.step("collect", cooldown_s=600.0, holds_gil=True, takes_s=1.0)
    ladder = shop.ladder(trim, collect)
    assert names(ladder.climb("test", enough=never)) == ["trim", "collect"]
    assert names(ladder.climb("test", enough=never)) == []
    assert names(ladder.climb("test", enough=never, urgent=True)) == ["trim"]
    shop.clock.advance(100.0)
    assert names(ladder.climb("test", enough=never, urgent=True)) == ["trim", "collect"]


def test_an_action_that_raises_is_an_outcome_and_the_next_one_runs(shop: Workshop) -> None:
    broken, next_one = shop.step("broken", kind=Broken), shop.step("next", frees=50 * MIB)
    first, second = shop.ladder(broken, next_one).climb("test", enough=never)
    assert first.error == "RuntimeError: no cache here"
    assert first.freed_bytes == 0
    assert second.freed_bytes == 50 * MIB


def test_an_outcome_is_known_before_the_next_action_begins(shop: Workshop) -> None:
    first, second = shop.step("first"), shop.step("second")
    for found in (shop.ladder(first, second).climb("test", enough=never), shop.ladder(first, second).run_all("test")):
        before = second.runs
        assert next(found).action == "first"
        assert second.runs == before


def test_all_runs_all_whatever_the_cool_down(shop: Workshop) -> None:
    steps = [shop.step("one"), shop.step("two", kind=Broken), shop.step("three")]
    ladder = shop.ladder(*steps)
    for _ in range(3):
        assert names(ladder.run_all("test")) == ["one", "two", "three"]
    assert [step.runs for step in steps] == [3, 3, 3]


def test_in_a_forked_process_what_unshares_pages_is_left_out_and_says_so(shop: Workshop) -> None:
    step, safe = shop.step("unsafe", fork_unsafe=True), shop.step("safe")
    ladder = shop.ladder(step, safe)
    shop.forked = True
    assert names(ladder.climb("test", enough=never)) == ["safe"]
    skipped, _ = ladder.run_all("test")
    assert "forked" in skipped.skipped
    assert skipped.before_bytes is None
    assert step.runs == 0


def test_a_thousand_useless_tries_by_hand_are_no_error(shop: Workshop) -> None:
    step = shop.step(frees=0)
    ladder = shop.ladder(step)
    for _ in range(1200):
        ladder.apply(step, "by hand")
    assert step.runs == 1200


def in_child(work: Callable[[], bytes]) -> bytes:
    """What a forked child says."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        found = answer.read()
    os.waitpid(pid, 0)
    return found


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("frozen", "said"), [(False, b"forked"), (True, b"")])
def test_in_a_real_fork_collecting_is_left_out_unless_the_heap_was_frozen(frozen: bool, said: bytes) -> None:
    from memwarden.sense import Machine, SystemClock

    machine = Machine()

    def work() -> bytes:
        if frozen:
            gc.freeze()
        ladder = Ladder(
            (Trim(), Collect()), machine=machine, clock=SystemClock(), resident_bytes=lambda: 1, forked=machine.forked
        )
        skipped = [each.skipped for each in ladder.run_all("test") if each.skipped]
        return b"forked" if skipped and "forked" in skipped[0] else b""

    assert in_child(work) == said


def test_the_real_actions_return_what_they_promise() -> None:
    with FakeMachine() as machine:
        machine.trim_frees_bytes = 10 * MIB
        assert Trim().apply(machine) is None
        assert machine.trims == 1

        class Ring:
            def __init__(self) -> None:
                self.self = self

        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                Ring()
            assert (Collect().apply(machine) or 0) >= 50
        finally:
            gc.enable()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_parent_of_a_living_forked_child_leaves_out_what_would_unshare_its_pages() -> None:
    from memwarden.sense import Machine, SystemClock

    machine = Machine()
    assert not machine.has_forked_children()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    ladder = Ladder((Collect(),), machine=machine, clock=SystemClock(), resident_bytes=lambda: 1,
                    forked=machine.has_forked_children)  # fmt: skip
    try:
        (skipped,) = ladder.run_all("test")
        assert "forked" in skipped.skipped
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)
    assert not machine.has_forked_children()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as executed:
        assert not machine.has_forked_children()
        executed.communicate(b"\n")
