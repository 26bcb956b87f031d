"""The boxes of a folder and the history they go into: each tick into the life that it is of, whatever becomes of it."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.blackbox import BlackBox
from memwarden.errors import StoreError
from memwarden.sense import Machine
from memwarden.supervise.service.boxes import Boxes
from memwarden.supervise.service.fold import TIERS
from memwarden.supervise.service.history import History
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memwarden.supervise.autopsy import Autopsy

DAMAGED = StoreError("is damaged")
DAMAGED.__cause__ = sqlite3.DatabaseError("malformed")


class Folder:
    """Boxes, the clock that they live by, and a history."""

    def __init__(self, path: Path) -> None:
        self.clock, self.run_folder = FakeClock(), str(path / "run")
        self.history = History(str(path), clock=self.clock)
        self.ends: list[Autopsy] = []
        self.boxes = Boxes(self.run_folder, machine=Machine(), clock=self.clock, on_end=self.ends.append)

    def box(self, **more: Any) -> BlackBox:
        self.clock.advance(1.0)
        values = {"pid": os.getpid(), "start_ticks": Machine().start_ticks(), **more}
        found = BlackBox(self.run_folder, unix_s=self.clock.wall(), monotonic_s=self.clock.monotonic(), **values)
        self.boxes.scan()
        return found

    def write(self, box: BlackBox, count: int, used_bytes: int = 2) -> None:
        for _ in range(count):
            box.tick(self.clock.wall(), self.clock.monotonic(), 1, used_bytes, 3)

    def kept(self) -> dict[str, list[tuple[int, int | None, int | None]]]:
        """By box: how many ticks, the least and the most in use."""
        found = {}
        for life in self.history.lives():
            points = self.history.points(life.id, TIERS[2], 0, 1e11)
            found[life.box] = [(point.count, point.used_min, point.used_max) for point in points]
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.boxes.close()
    made.history.close()


def name(box: BlackBox) -> str:
    assert box.path is not None
    return os.path.basename(box.path)


def test_in_a_new_history_each_tick_is_of_its_own_life_and_what_the_rings_hold_is_there_again(folder: Folder) -> None:
    first, second = folder.box(), folder.box()
    folder.write(first, 10, 111)
    folder.write(second, 10, 222)
    folder.boxes.fold(folder.history)
    assert folder.history.reopen(DAMAGED)
    folder.write(second, 5, 222)  # this one comes first now
    third = folder.box()
    folder.write(third, 5, 333)
    folder.boxes.fold(folder.history)
    folder.write(first, 5, 111)
    folder.boxes.fold(folder.history)
    assert folder.kept() == {
        name(first): [(15, 111, 111)],
        name(second): [(15, 222, 222)],
        name(third): [(5, 333, 333)],
    }


def test_a_life_that_is_on_record_no_more_is_begun_again(folder: Folder) -> None:
    box = folder.box()
    folder.write(box, 10)
    folder.boxes.fold(folder.history)
    (life,) = folder.history.lives()
    with folder.history._transaction() as db:
        db.execute("DELETE FROM lives")
        for tier in TIERS:
            db.execute(f"DELETE FROM {tier.name}s")
    folder.write(box, 10)
    assert not folder.history.fold(life.id, [(11, folder.clock.wall(), 1, 2, 3, 0)])
    folder.boxes.fold(folder.history)
    folder.boxes.fold(folder.history)
    assert folder.kept() == {name(box): [(20, 2, 2)]}


@pytest.mark.parametrize("pid", [os.getpid(), 4_194_303], ids=["ours", "of nobody"])
def test_a_box_that_is_made_up_keeps_nobody_from_the_others(
    pid: int, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    good, dead = folder.box(), folder.box(pid=4_194_302, start_ticks=7)
    odd = folder.box(pid=pid, start_ticks=1 << 63)
    for box in (good, dead, odd):
        folder.write(box, 3)
    for _ in range(4):
        folder.boxes.scan()
        folder.boxes.fold(folder.history)
        folder.boxes.see_to_ends(folder.history)
        folder.clock.advance(20.0)
    assert set(folder.kept()) == {name(good), name(dead)}
    assert 4_194_302 in [autopsy.pid for autopsy in folder.ends]
    assert len(folder.ends) <= 2
    assert caplog.text.count("cannot be followed: OverflowError") == 1
