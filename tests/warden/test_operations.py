"""Operations: what is measured, what overlaps, what is left when it fails."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tests.warden.conftest import MIB, PATIENCE_S, box_of

if TYPE_CHECKING:
    from memwarden import Operation, Warden
    from memwarden.blackbox import InFlight
    from tests.warden.conftest import Stage


def last(warden: Warden) -> Operation:
    return warden.operations[-1]


def in_flight(warden: Warden) -> tuple[InFlight, ...]:
    return box_of(warden).in_flight


def test_before_after_difference_peak_and_duration(stage: Stage) -> None:
    warden = stage.warden()
    stage.machine.set_rss(100 * MIB)
    with warden.operation("import") as operation:
        assert operation.result is None
        stage.machine.set_rss(300 * MIB)
        stage.clock.advance(1.5)
        warden.check()
        stage.machine.set_rss(150 * MIB)
        stage.clock.advance(0.5)
    found = operation.result
    assert found is not None
    assert found is last(warden)
    assert (found.before_bytes, found.after_bytes, found.peak_bytes) == (100 * MIB, 150 * MIB, 300 * MIB)
    assert (found.difference_bytes, found.duration_s, found.samples) == (50 * MIB, 2.0, 3)
    assert not found.overlapped
    assert not found.failed


def test_the_peak_is_sampled_by_the_loop(stage: Stage) -> None:
    warden = stage.warden()
    operation = warden.operation("import")

    def on_wait(number: int) -> None:
        if number == 2:
            operation.__enter__()
        stage.machine.set_rss((50 + 100 * (number == 5)) * MIB)

    stage.run(warden, 10, on_wait)
    operation.__exit__(None, None, None)
    assert operation.result is not None
    assert operation.result.peak_bytes == 150 * MIB
    assert operation.result.samples == 2 + 9


def test_an_exception_passes_through_and_is_noted(stage: Stage) -> None:
    warden = stage.warden()
    with pytest.raises(ZeroDivisionError), warden.operation("divide"):
        raise ZeroDivisionError
    assert last(warden).failed
    assert not warden._in_flight


def test_nested_ones_overlap_and_one_after_the_other_do_not(stage: Stage) -> None:
    warden = stage.warden()
    with warden.operation("outer"), warden.operation("inner"):
        pass
    assert [(each.name, each.overlapped) for each in warden.operations] == [("inner", True), ("outer", True)]
    with warden.operation("alone"):
        pass
    assert not last(warden).overlapped


def test_two_that_begin_together_in_two_threads_both_overlap(stage: Stage) -> None:
    warden = stage.warden()
    together = threading.Barrier(2)

    def work() -> None:
        for _ in range(200):
            with warden.operation("work"):
                together.wait(PATIENCE_S)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE_S)
    assert all(each.overlapped for each in warden.operations)


def test_as_a_decorator_every_call_is_one(stage: Stage) -> None:
    warden = stage.warden()

    @warden.operation("add")
    def add(one: int, *, other: int = 1) -> int:
        """Adds."""
        return one + other

    assert (add(1), add(1, other=4)) == (2, 5)
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert [each.name for each in warden.operations] == ["add", "add"]
    with pytest.raises(TypeError):
        add("x")  # type: ignore[arg-type]
    assert last(warden).failed


def test_a_decorated_function_that_calls_itself_overlaps_itself(stage: Stage) -> None:
    warden = stage.warden()

    @warden.operation("count")
    def count(number: int) -> int:
        return 0 if not number else 1 + count(number - 1)

    assert count(3) == 3
    assert [each.overlapped for each in warden.operations] == [True] * 4


def test_coroutine_functions_and_async_with(stage: Stage) -> None:
    warden = stage.warden()

    @warden.operation("fetch")
    async def fetch(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def main() -> tuple[int, int]:
        async with warden.operation("page"):
            one, two = await asyncio.gather(fetch(1), fetch(2))
            return one, two

    assert asyncio.run(main()) == (1, 2)
    assert sorted((each.name, each.overlapped) for each in warden.operations) == [
        ("fetch", True), ("fetch", True), ("page", True),
    ]  # fmt: skip


def test_a_cancelled_coroutine_ends_its_operation(stage: Stage) -> None:
    warden = stage.warden()

    @warden.operation("wait")
    async def wait() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert last(warden).failed
    assert not warden._in_flight


def test_one_object_used_twice_starts_anew(stage: Stage) -> None:
    warden = stage.warden()
    operation = warden.operation("again")
    stage.machine.set_rss(400 * MIB)
    with operation:
        pass
    stage.machine.set_rss(100 * MIB)
    with operation:
        pass
    assert last(warden).peak_bytes == 100 * MIB
    assert last(warden).samples == 2


def test_the_black_box_knows_what_is_in_flight(stage: Stage) -> None:
    with stage.warden() as warden:
        with warden.operation("import of contacts"), warden.operation("page 7"):
            found = {each.name: each for each in in_flight(warden)}
            assert set(found) == {"import of contacts", "page 7"}
            assert found["page 7"].thread == threading.get_ident()
        assert in_flight(warden) == ()


def test_more_than_64_at_once_are_measured_all_the_same(stage: Stage) -> None:
    with stage.warden() as warden:
        many = [warden.operation(str(number)) for number in range(100)]
        for each in many:
            each.__enter__()
        assert len(in_flight(warden)) == 64
        for each in many:
            each.__exit__(None, None, None)
        assert in_flight(warden) == ()
        assert len(warden.operations) == 100


def test_one_that_outlives_a_restart_leaves_the_new_box_alone(stage: Stage) -> None:
    warden = stage.warden().start()
    old = warden.operation("old")
    old.__enter__()
    warden.stop()
    warden.start()
    with warden.operation("new"):
        old.__exit__(None, None, None)
        assert [each.name for each in in_flight(warden)] == ["new"]
        with warden.operation("newer"):
            assert {each.name for each in in_flight(warden)} == {"new", "newer"}
    assert old.result is not None


def test_one_that_outlives_the_warden_ends_quietly(stage: Stage) -> None:
    warden = stage.warden().start()
    with warden.operation("long"):
        warden.stop()
    assert last(warden).name == "long"
