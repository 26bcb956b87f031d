"""One suite for both sensors: the same port means the same figures."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from memwarden.errors import ProcessNotFoundError
from memwarden.sense import Machine, Sensor, make_sensor
from memwarden.sense import tree as linux_tree
from memwarden.sense.portable import PortableSensor, find, processes, usage
from memwarden.testing import FakeClock, FakeMachine

if TYPE_CHECKING:
    from memwarden.ports import MemorySensor

MIB = 1 << 20
SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")
KINDS = [Sensor, PortableSensor]
both = pytest.mark.parametrize("kind", KINDS, ids=["proc", "psutil"])


@both
def test_a_reading_is_of_this_process_and_its_resident_bytes_are_those_of_the_kernel(
    kind: type[Sensor | PortableSensor],
) -> None:
    sensor = kind(heap=False)
    reading = sensor.read()
    kernel = linux_tree.usage(Machine(), os.getpid()).rss_bytes
    assert reading.pid == os.getpid()
    assert reading.rss_bytes is not None
    assert abs(reading.rss_bytes - kernel) < MIB
    assert abs((sensor.rss_bytes() or 0) - kernel) < MIB


@both
def test_resident_bytes_follow_what_is_taken(kind: type[Sensor | PortableSensor]) -> None:
    sensor = kind(heap=False)
    before = sensor.rss_bytes() or 0
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * (64 * MIB))  # a mapping of its own: freed memory of this process has no part in it
        assert (sensor.rss_bytes() or 0) - before > 60 * MIB


@both
def test_an_explicit_limit_binds_this_process_and_what_counts_is_its_resident_memory(
    kind: type[Sensor | PortableSensor],
) -> None:
    sensor = kind(setting_bytes=MIB, setting_source="the test", heap=False)
    reading = sensor.read()
    assert (reading.limit_bytes, reading.limit_source, reading.scope) == (MIB, "the test", "process")
    assert sensor.limit().kind == "setting"
    assert reading.used_bytes is not None
    assert reading.rss_bytes is not None
    assert abs(reading.used_bytes - reading.rss_bytes) < MIB
    assert reading.headroom_bytes == MIB - reading.used_bytes
    assert reading.pressure_ratio == reading.used_bytes / MIB


@both
def test_a_limit_can_be_changed_while_it_runs_and_never_raises_what_the_system_sets(
    kind: type[Sensor | PortableSensor],
) -> None:
    sensor = kind(heap=False)
    natural = sensor.limit().bytes
    assert natural is not None
    assert sensor.set_limit(2 * MIB).bytes == 2 * MIB
    assert sensor.read().limit_bytes == 2 * MIB
    assert sensor.set_limit(natural * 2).bytes == natural
    assert sensor.set_limit(None).bytes == natural


@both
def test_the_machines_memory_is_in_the_chain(kind: type[Sensor | PortableSensor]) -> None:
    total = kind(heap=False).read().around.machine_total_bytes
    chain = kind(heap=False).limit().chain
    assert total is not None
    assert [each.bytes for each in chain if each.kind == "machine"] == [total]


@both
def test_bounds_are_in_order_and_unknown_figures_have_a_reason(kind: type[Sensor | PortableSensor]) -> None:
    reading = kind(heap=False).read()
    assert reading.used_bytes is not None
    assert 0 < (reading.used_low_bytes or reading.used_bytes) <= reading.used_bytes
    around = reading.around
    missing = [name for name in ("anon_bytes", "swap_bytes", "oom_kills") if getattr(around, name) is None]
    assert set(missing) <= {name for name, _ in around.unknown}


@both
def test_another_process_is_read_by_its_pid_and_its_end_is_said(kind: type[Sensor | PortableSensor]) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    sensor = kind(pid=child.pid, heap=False)
    reading = sensor.read()
    assert child.stdin is not None
    child.stdin.close()
    child.wait(timeout=20)
    assert reading.pid == child.pid
    assert 0 < (reading.rss_bytes or 0) < 100 * MIB
    with pytest.raises(ProcessNotFoundError, match=f"pid {child.pid}"):
        sensor.read()


@both
def test_a_forked_child_reads_itself(kind: type[Sensor | PortableSensor]) -> None:
    sensor = kind(heap=False)
    sensor.read()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        told = sensor.read()
        os.write(write_end, b"right" if told.pid == os.getpid() else b"wrong")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    try:
        assert os.read(read_end, 10) == b"right"
    finally:
        os.close(read_end)


@both
def test_what_moves_slowly_is_read_once_a_second(kind: type[Sensor | PortableSensor]) -> None:
    clock = FakeClock()
    sensor = kind(clock=clock, heap=False)
    first = sensor.read().around
    clock.advance(0.5)
    assert sensor.read().around is first
    clock.advance(0.6)
    assert sensor.read().around is not first


def test_both_have_the_same_methods() -> None:
    def names(kind: type[object]) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert names(Sensor) - {"rss_bytes"} <= names(PortableSensor)
    sensors: list[MemorySensor] = [Sensor(heap=False), PortableSensor(heap=False)]  # what mypy checks, too
    assert all(each.limit().bytes == each.read().limit_bytes for each in sensors)


def test_processes_through_psutil_are_those_of_proc() -> None:
    mine = find(os.getpid())
    ours = linux_tree.find(Machine(), os.getpid())
    assert (mine.pid, mine.ppid, mine.cmdline) == (ours.pid, ours.ppid, ours.cmdline)
    assert os.getpid() in {each.pid for each in processes()}
    assert abs(usage(os.getpid()).rss_bytes - linux_tree.usage(Machine(), os.getpid()).rss_bytes) < MIB
    with pytest.raises(ProcessNotFoundError):
        find(4_194_305)


def test_the_system_chooses_the_sensor_and_a_captured_folder_is_always_linux() -> None:
    assert isinstance(make_sensor(Machine(), system="linux", heap=False), Sensor)
    assert isinstance(make_sensor(Machine(), system="darwin", heap=False), PortableSensor)
    assert isinstance(make_sensor(Machine(), system="win32", heap=False), PortableSensor)
    with FakeMachine() as folder:
        assert isinstance(make_sensor(folder, system="darwin"), Sensor)


# What a system without /proc does not have. `sys.platform` and `os` are changed before memwarden is imported, and the
# machine finds no file, as it would there.
ELSEWHERE = """
import os, sys
import psutil  # it knows only the system that it was built for, so it is loaded before that changes
for name in {missing}:
    delattr(os, name)
sys.platform = "{system}"
from memwarden.sense import machine, tree
class Bare(machine.Machine):
    def __init__(self):
        super().__init__()
        self.root = "/no/such/root"
here = Bare()
assert here.page_size >= 4096
assert here.forked() is False and here.start_ticks() == 0 and here.listdir and not here.exists("/proc")
"""
MISSING = {
    "darwin": ["posix_fallocate", "pread"],  # pread is there on macOS: the fall-back is tried all the same
    "win32": ["posix_fallocate", "pread", "register_at_fork", "sysconf", "getuid", "O_CLOEXEC"],
}


def run_elsewhere(system: str, code: str, *, path: str = SOURCE) -> subprocess.CompletedProcess[str]:
    script = ELSEWHERE.format(missing=MISSING[system], system=system) + code
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_warden_works_where_there_is_no_proc(system: str) -> None:
    code = """
from memwarden import Warden
with Warden("1G", machine=here) as warden:
    assert type(warden._sensor).__name__ == "PortableSensor"
    assert warden.reading.rss_bytes > 1 << 20 and warden.limit.bytes == 1 << 30
    with warden.operation("x") as operation:
        bytearray(1 << 20)
    assert operation.result.samples >= 2
    warden.emergency_cleanup()
    assert warden.errors == 0, warden.errors
pids = tree.tree(here, os.getpid())
assert pids == [os.getpid()], pids
assert tree.add_up(here, pids).rss_bytes > 1 << 20 and tree.add_up(here, pids).anon_bytes is None
print("well")
"""
    done = run_elsewhere(system, code)
    assert (done.stdout, done.stderr) == ("well\n", "")


def test_without_psutil_the_extra_is_named_at_start() -> None:
    code = """
sys.modules["psutil"] = None
from memwarden import Warden
from memwarden.errors import MissingExtraError
try:
    Warden(machine=here)
except MissingExtraError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    done = run_elsewhere("darwin", code)
    assert done.stdout == "reading memory on this system needs an extra; pip install 'memwarden[psutil]'\n", done.stderr
