"""Holes in the heap: given back when they weigh, left alone when they are used again."""

from __future__ import annotations

import pytest

from memwarden.flow.holes import Holes
from memwarden.testing import FakeClock

MIB = 1 << 20
TARGET = 32 * MIB


class FakeHeap:
    """A heap of so much; giving back takes 4 ms."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.free = 0
        self.resident = 100 * MIB
        self.trims = 0
        self.looks = 0

    def free_bytes(self) -> int:
        self.looks += 1
        return self.free

    def resident_bytes(self) -> int:
        return self.resident

    def trim(self) -> None:
        self.trims += 1
        self.clock.advance(0.004)
        self.resident -= self.free


def fill(holes: Holes, heap: FakeHeap, *, reused: bool, clock: FakeClock) -> None:
    """A chunk of 32 MiB, one MiB at a time, where the last one was or beside it."""
    holes.begin()
    for size in range(MIB, TARGET + 1, MIB):
        if reused and heap.free:
            heap.free -= MIB
        else:
            heap.resident += MIB
        clock.advance(0.001)
        holes.grew(size, TARGET)
    heap.free += TARGET  # released


def test_holes_that_are_used_again_are_left_alone() -> None:
    clock = FakeClock()
    heap = FakeHeap(clock)
    holes = Holes(heap, clock.monotonic)
    for _ in range(10):
        fill(holes, heap, reused=True, clock=clock)
    assert heap.trims == 0
    assert heap.resident == 132 * MIB


def test_holes_that_are_not_used_go_back() -> None:
    clock = FakeClock()
    heap = FakeHeap(clock)
    holes = Holes(heap, clock.monotonic)
    most = 0
    for _ in range(10):
        fill(holes, heap, reused=False, clock=clock)
        most = max(most, heap.resident)
        heap.free = min(heap.free, heap.resident - 100 * MIB)
    assert heap.trims >= 9
    assert most <= 100 * MIB + 2 * TARGET + 8 * MIB


def test_what_others_keep_is_no_reason() -> None:
    clock = FakeClock()
    heap = FakeHeap(clock)
    heap.free = 500 * MIB  # before the stream, and not resident
    holes = Holes(heap, clock.monotonic)
    holes.begin()
    for size in range(MIB, TARGET + 1, MIB):
        heap.resident += MIB
        holes.grew(size, TARGET)
    assert heap.trims == 0
    heap.resident += 900 * MIB  # an application that grows has no holes
    heap.free = 0
    holes.begin()
    for size in range(MIB, TARGET + 1, MIB):
        holes.grew(size, TARGET)
    assert heap.trims == 0


def test_giving_back_that_does_not_help_is_not_repeated_for_the_same_bytes() -> None:
    clock = FakeClock()

    class Stubborn(FakeHeap):
        def trim(self) -> None:
            self.trims += 1

    heap = Stubborn(clock)
    holes = Holes(heap, clock.monotonic)
    heap.free = heap.resident = 1000 * MIB
    for _ in range(10):
        holes.begin()
        for size in range(MIB, TARGET + 1, MIB):
            clock.advance(1.0)
            holes.grew(size, TARGET)
    assert heap.trims == 1


def test_small_chunks_are_not_looked_at_and_no_heap_is_no_error() -> None:
    clock = FakeClock()
    heap = FakeHeap(clock)
    holes = Holes(heap, clock.monotonic)
    for size in range(0, MIB, 1000):
        holes.grew(size, TARGET)
    assert heap.looks == 0
    Holes(None).grew(TARGET, TARGET)


def test_the_real_heap_has_figures_and_gives_back() -> None:
    heap = pytest.importorskip("memwarden._native._heap")
    kept = [bytes(50_000 + number % 7) for number in range(2000)]
    before = heap.resident_bytes()
    assert before > 90 * MIB
    del kept[::2]
    assert heap.free_bytes() > 40 * MIB
    heap.trim()
    assert heap.resident_bytes() < before - 20 * MIB
    del kept
