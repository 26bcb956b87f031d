"""A container made of files, a clock that jumps, and a Warden between them: nothing here sleeps."""

from __future__ import annotations

import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import Warden
from memwarden.blackbox import read_box
from memwarden.testing import FakeClock, FakeMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memwarden.blackbox import Box
    from memwarden.facts import Level, Reading

MIB = 1 << 20
PATIENCE_S = 20.0  # how long a test waits for another thread before it fails; it never takes that long


class Stage:
    """One fake machine and clock; every Warden made here is stopped at the end."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.clock = FakeClock(waits=0)  # a loop that is started rests at once; `run` lets it go on
        self._made: list[Warden] = []

    def warden(self, limit: str | float | None = None, **config: Any) -> Warden:
        """Lines 75 / 90 / 95 % of 512 MiB and no dwell, unless told otherwise."""
        config = {"preset": None, "dwell": 0, **config}
        made = Warden(limit, machine=self.machine, clock=self.clock, **config)
        self._made.append(made)
        return made

    def used(self, ratio: float, *, limit: int = 512 * MIB) -> None:
        self.machine.set_usage(int(limit * ratio))
        self.machine.set_rss(int(limit * ratio))

    def look(self, warden: Warden, ratio: float, *, after_s: float = 20.0) -> Level:
        """One look by hand, so long after the last one."""
        self.used(ratio)
        self.clock.advance(after_s)
        return warden.check().level

    def run(self, warden: Warden, waits: int, on_wait: Callable[[int], None] | None = None) -> list[float]:
        """Start it and let its own thread make so many waits; the seconds of each."""
        made = 0

        def count(_seconds: float) -> None:
            nonlocal made
            made += 1
            if on_wait is not None:
                on_wait(made)

        self.clock.__init__(self.clock.monotonic(), waits=waits, on_wait=count)  # type: ignore[misc]
        warden.start()
        assert self.clock.rested.wait(PATIENCE_S)
        return self.clock.waited_s

    def close(self) -> None:
        for each in self._made:
            each.stop()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with FakeMachine(used_bytes=50 * MIB) as machine:
        made = Stage(machine)
        yield made
        made.close()


def box_of(warden: Warden) -> Box:
    """What somebody would read in its black box now, though it be one in plain memory."""
    box = warden._own_box()
    assert box is not None
    with tempfile.NamedTemporaryFile(suffix=".box") as file:
        file.write(bytes(box._map))
        file.flush()
        found = read_box(file.name)
    assert found.damaged == 0
    return found


class Heard:
    """A callback that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.changes: list[tuple[Level, Level]] = []
        self.readings: list[Reading] = []
        self.threads: set[str] = set()
        self._more = threading.Condition()

    def __call__(self, old: Level, new: Level, reading: Reading) -> None:
        with self._more:
            self.changes.append((old, new))
            self.readings.append(reading)
            self.threads.add(threading.current_thread().name)
            self._more.notify_all()

    def wait_for(self, count: int) -> list[tuple[Level, Level]]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.changes) >= count, PATIENCE_S), self.changes
            return list(self.changes)


@pytest.fixture
def heard() -> Heard:
    return Heard()
