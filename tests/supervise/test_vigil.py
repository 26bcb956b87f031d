"""The sleep of the supervisor: the twin in C and the one in Python do and say the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from binascii import crc32
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.blackbox import STILL
from memwarden.sense.source import NumberFile
from memwarden.supervise.vigil import DUE, MOVED, SIGNALLED, Vigil, make_vigil

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAKEN = (signal.SIGUSR1,)
STEP_S = 0.001
MOST = (1 << 63) - 1


def native() -> type[Vigil]:
    """The one in C; a skip where it was not built."""
    module = pytest.importorskip("memwarden._native._vigil")
    kind: type[Vigil] = module.Vigil
    return kind


@pytest.fixture(params=["python", "c"])
def kind(request: pytest.FixtureRequest) -> type[Vigil]:
    return Vigil if request.param == "python" else native()


@pytest.fixture(autouse=True)
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)
    yield
    signal.sigtimedwait(TAKEN, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class World:
    """The files that a vigil watches, and one that watches them."""

    def __init__(self, folder: Path, kind: type[Vigil]) -> None:
        self.folder = folder
        self.write("usage", "1000\n")
        self.write("events", "oom_kill 0\n")
        self.write("newest", "41\n")
        self.write("procs", "40\n")
        self.vigil = kind(TAKEN, self.path("usage"))
        self.buffer = bytearray(64)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def heed(self, *, door: bool = False) -> None:
        gate = (self.path("newest"), self.path("procs")) if door else ()
        self.vigil.heed((self.path("events"),), *gate)

    def doze(self, *, for_s: float = 5 * STEP_S) -> tuple[float, int, int]:
        """Until the time is over, at the latest."""
        return self.vigil.doze(STEP_S, time.monotonic() + for_s, 900, 1100, self.buffer, 8, 7)

    def is_still(self) -> bool:
        """Whether a glance says so, in as long as it takes to get one: a busy machine lets it sleep past its time."""
        for _ in range(1000):
            seen_s, _, why = self.doze()
            if seen_s or why != DUE:
                return why == DUE
        raise AssertionError("never glanced")

    def moved(self) -> bool:
        """Whether the next glance says so, in as long as it takes."""
        return self.doze(for_s=3600.0)[2] == MOVED


@pytest.fixture
def world(tmp_path: Path, kind: type[Vigil]) -> Iterator[World]:
    made = World(tmp_path, kind)
    yield made
    made.vigil.close()


def test_while_nothing_moves_it_sleeps_until_it_is_due(world: World) -> None:
    world.heed()
    began_s = time.monotonic()
    until_s = began_s + 0.5
    seen_s, seen, why = world.vigil.doze(STEP_S, until_s, 1000, 1000, world.buffer, 8, 7)
    assert (seen, why) == (1000, DUE)
    assert began_s < seen_s < until_s <= time.monotonic()


def test_each_glance_is_written_down(world: World) -> None:
    world.heed()
    world.write("usage", "1050\n")
    seen_s, seen, _ = world.doze(for_s=0.5)
    body = bytes(world.buffer[8 : 8 + STILL.size])
    assert STILL.unpack(body) == (7, seen_s, 1050)
    assert seen == 1050
    assert world.buffer[8 + STILL.size : 40] == crc32(body).to_bytes(8, "little")
    assert bytes(world.buffer[:8] + world.buffer[40:]) == bytes(32)


@pytest.mark.parametrize("usage", ["899", "1101", "", "max", "-1000", "1000x", "1" * 300, "9" * 30])
def test_usage_out_of_its_bounds_or_unreadable_is_a_move(world: World, usage: str) -> None:
    world.heed()
    world.write("usage", f"{usage}\n")
    assert world.doze(for_s=3600.0) == (0.0, 0, MOVED)
    assert world.buffer == bytes(64)


def test_what_cannot_be_read_is_no_number_within_bounds_below_zero(world: World) -> None:
    world.heed()
    world.write("usage", "9" * 30)
    assert world.vigil.doze(STEP_S, 1e12, -(1 << 20), 1 << 20, world.buffer, 0, 1)[2] == MOVED


def test_a_heeded_file_that_reads_otherwise_is_a_move(world: World) -> None:
    world.heed()
    world.write("events", "oom_kill 1\n")
    assert world.moved()
    world.heed()
    assert world.is_still()


def test_a_heeded_file_that_was_never_there_is_a_move(world: World) -> None:
    world.vigil.heed((world.path("nothing"),))
    assert world.moved()


def test_somebody_who_joined_is_a_move_and_somebody_elsewhere_is_none(world: World) -> None:
    world.heed(door=True)
    world.write("newest", "42\n")
    assert world.is_still()
    world.write("newest", "43\n")
    world.write("procs", "40\n43\n")
    assert world.moved()


def test_the_list_is_read_only_when_a_pid_was_given(world: World) -> None:
    """And once after that: a pid is given before its process joins."""
    world.heed(door=True)
    assert world.is_still()
    world.write("procs", "40\n43\n")
    assert world.is_still()
    world.write("newest", "44\n")
    assert world.moved()


def test_without_a_door_nobody_is_counted(world: World) -> None:
    world.heed(door=True)
    world.heed()
    world.write("newest", "43\n")
    world.write("procs", "40\n43\n")
    assert world.is_still()


def test_a_signal_ends_the_sleep_and_is_handed_on(world: World) -> None:
    world.heed()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    assert world.doze(for_s=3600.0)[2] == SIGNALLED
    assert world.vigil.info is not None
    info = signal.struct_siginfo(world.vigil.info)
    assert (info.si_signo, info.si_pid, info.si_uid) == (signal.SIGUSR1, os.getpid(), os.getuid())
    world.doze()
    assert world.vigil.info is None


def test_what_moved_by_the_time_it_is_due_has_moved(world: World) -> None:
    """Or the growth would be laid to the time since the last look, and not since the last glance."""
    world.heed()
    assert world.vigil.doze(0.0, 0.0, 900, 1100, world.buffer, 0, 0) == (0.0, 0, DUE)
    world.write("usage", "5000\n")
    assert world.vigil.doze(0.0, 0.0, 900, 1100, world.buffer, 0, 0) == (0.0, 0, MOVED)
    assert world.buffer == bytes(64)


@pytest.mark.parametrize(("at", "step_s"), [(-1, 0.0), (33, 0.0), (1 << 40, 0.0), (0, -1.0), (0, float("nan"))])
def test_no_room_or_no_time_is_refused(world: World, at: int, step_s: float) -> None:
    with pytest.raises(ValueError, match="no room in the buffer, or no time"):
        world.vigil.doze(step_s, 0.0, 0, 0, world.buffer, at, 0)


def test_it_gives_its_descriptors_back(tmp_path: Path, kind: type[Vigil]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        one = World(tmp_path, kind)
        one.heed(door=True)
        one.doze()
        one.vigil.heed((one.path("events"), one.path("procs")))
        one.heed(door=True)
        one.vigil.close()
    assert len(os.listdir("/proc/self/fd")) == before


TEXTS = st.one_of(
    st.text("0123456789 \t\nx-", max_size=30), st.lists(st.integers(0, 1 << 70)).map(lambda n: " ".join(map(str, n)))
)


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vigil") / "numbers"


@given(text=TEXTS, index=st.integers(0, 6), scale=st.integers(1, 4096))
def test_both_read_the_number_as_a_number_file_does(one_file: Path, text: str, index: int, scale: int) -> None:
    one_file.write_text(text)
    value = NumberFile(str(one_file), index=index, scale=scale).value()
    for kind in (Vigil, native()):
        one = kind(TAKEN, str(one_file), index=index, scale=scale)
        if value is None or value >= MOST:
            assert outcome(one, -MOST, MOST - 1) == MOVED
        else:
            assert outcome(one, value, value, for_s=0.0005) == DUE
            assert outcome(one, value + 1, MOST) == MOVED
            assert outcome(one, -MOST, value - 1) == MOVED
        one.close()


def outcome(one: Vigil, least: int, most: int, *, for_s: float = 60.0) -> int:
    """Why a sleep without length ends."""
    return one.doze(0.0, time.monotonic() + for_s, least, most, bytearray(32), 0, 1)[2]


def test_the_one_in_c_is_taken_where_it_was_built() -> None:
    made = make_vigil(TAKEN, "/proc/self/statm", index=1, scale=4096)
    assert type(made) is native()
    made.close()
