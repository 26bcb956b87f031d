"""One contract for both readers of one number: the C reader and its twin in Python."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.sense import source
from memwarden.sense.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

try:
    from memwarden._native import _reader
except ImportError:
    _reader = None  # type: ignore[assignment]

PAGE = os.sysconf("SC_PAGE_SIZE")
GROWTH_BYTES = 48 << 20


class Reader(Protocol):
    @property
    def path(self) -> str: ...
    def value(self) -> int | None: ...
    def close(self) -> None: ...


class Make(Protocol):
    def __call__(self, path: str, *, index: int = 0, scale: int = 1) -> Reader: ...


def native() -> Make:
    if _reader is None:
        pytest.skip("the C reader is not built")
    return _reader.NumberFile


@pytest.fixture(params=["pure", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    return native() if request.param == "native" else source.NumberFile


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], str]:
    def write(text: bytes) -> str:
        path = tmp_path / "number"
        path.write_bytes(text)
        return str(path)

    return write


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- what it reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "index", "scale", "expected"),
    [
        (b"4096\n", 0, 1, 4096),
        (b"0\n", 0, 1, 0),
        (b"4093 3450 1890 1 0 1700 0\n", 1, 4096, 3450 * 4096),
        (b"4093 3450 1890 1 0 1700 0\n", 6, 4096, 0),
        (b"  12\t34\r\n\v\f56", 2, 1, 56),
        (b"007", 0, 1, 7),
        (b"18446744073709551615", 0, 1, 2**64 - 1),
        (b"18446744073709551616", 0, 1, 2**64),
        (b"9223372036854771712", 0, 4096, 9223372036854771712 * 4096),
        (b"99999999999999999999", 0, 2**62, 99999999999999999999 * 2**62),
        (b"1" * 255, 0, 3, int("3" * 255)),
        (b"", 0, 1, None),
        (b" \n", 0, 1, None),
        (b"12\n", 1, 1, None),
        (b"12\n", 2**40, 1, None),
        (b"max\n", 0, 1, None),
        (b"-5\n", 0, 1, None),
        (b"+5\n", 0, 1, None),
        (b"1_0\n", 0, 1, None),
        (b"12kB\n", 0, 1, None),
        (b"1\x002\n", 0, 1, None),
        (b"x 12\n", 1, 1, 12),
        (b"7".ljust(255), 0, 1, 7),
        (b"7".ljust(256), 0, 1, None),
        (b"1" * 5000, 0, 1, None),
    ],
)
def test_it_reads_the_nth_unsigned_number_times_the_scale_and_nothing_else(
    make: Make, written: Callable[[bytes], str], *, text: bytes, index: int, scale: int, expected: int | None
) -> None:
    assert make(written(text), index=index, scale=scale).value() == expected


@given(
    text=st.binary(max_size=64)
    | st.lists(st.sampled_from([b"1", b"0", b"99999999999999999999", b" ", b"\n", b"-", b"a", b"\0"])).map(b"".join),
    index=st.integers(0, 4),
    scale=st.sampled_from([1, 1024, 4096, 2**62]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_twins_agree_on_any_text(tmp_path: Path, text: bytes, index: int, scale: int) -> None:
    path = tmp_path / "any"
    path.write_bytes(text)
    pure = source.NumberFile(str(path), index=index, scale=scale).value()
    assert native()(str(path), index=index, scale=scale).value() == pure


def test_it_carries_what_it_was_made_from(make: Make) -> None:
    reader = make("/proc/self/statm", index=1, scale=PAGE)
    assert [getattr(reader, name) for name in ("path", "index", "scale")] == ["/proc/self/statm", 1, PAGE]


@pytest.mark.parametrize("wrong", [{"index": -1}, {"scale": 0}, {"scale": -4096}])
def test_a_negative_index_or_scale_is_a_mistake_in_the_program(make: Make, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="index must be 0 or more, and scale 1 or more"):
        make("/proc/self/statm", **wrong)


@pytest.mark.parametrize("path", ["", "/", "/proc/self/none", "/proc/self/statm/x", "a\0b", "\ud800"])
def test_a_path_that_names_no_file_is_unknown_and_not_an_error(make: Make, path: str) -> None:
    reader = make(path)
    assert [reader.value(), reader.value()] == [None, None]


def test_a_file_name_that_is_no_text_is_read_all_the_same(make: Make, tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xff")
    with open(name, "wb") as file:
        file.write(b"5\n")
    assert make(name).value() == 5


def test_rss_of_this_process_is_what_psutil_says(make: Make) -> None:
    psutil = pytest.importorskip("psutil")
    ours = make("/proc/self/statm", index=1, scale=PAGE).value()
    assert ours is not None
    assert abs(ours - psutil.Process().memory_info().rss) < 2 << 20


# --- what it keeps ----------------------------------------------------------------------------------------


def test_it_sees_the_file_change_in_place(make: Make, written: Callable[[bytes], str]) -> None:
    reader = make(written(b"1\n"))
    seen = [reader.value()]
    written(b"22\n")
    seen.append(reader.value())
    written(b"max\n")
    seen.append(reader.value())
    assert seen == [1, 22, None]


def test_a_file_that_appears_later_is_found(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "late"
    reader = make(str(path))
    before = reader.value()
    path.write_bytes(b"3\n")
    assert (before, reader.value()) == (None, 3)


def test_a_replaced_file_is_found_after_close(make: Make, tmp_path: Path) -> None:
    path, other = tmp_path / "number", tmp_path / "other"
    path.write_bytes(b"1\n")
    reader = make(str(path))
    reader.value()
    other.write_bytes(b"2\n")
    other.replace(path)
    kept = reader.value()  # a captured folder is still; kernel files are never replaced, they end
    reader.close()
    assert (kept, reader.value()) == (1, 2)


def test_the_file_of_an_ended_process_is_unknown(make: Make) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        reader = make(f"/proc/{process.pid}/statm", index=1)
        while_alive = reader.value()
    assert while_alive is not None
    assert reader.value() is None


def test_a_descriptor_closed_behind_our_back_is_opened_again(make: Make) -> None:
    reader = make("/proc/self/statm", index=1)
    before = descriptors_of("statm")
    reader.value()
    (ours,) = descriptors_of("statm") - before
    os.close(ours)
    assert reader.value() is not None
    reader.close()


def descriptors_of(name: str) -> set[int]:
    """Our open descriptors of files whose path ends so."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            if os.readlink(f"/proc/self/fd/{fd}").endswith(name):
                found.add(int(fd))
    return found


def test_a_number_that_became_somebody_elses_descriptor_is_not_closed(make: Make) -> None:
    reader = make("/proc/self/statm", index=1)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    reader.value()
    assert spare in descriptors_of("statm"), "the lowest free number is the one that the reader got"
    theirs, end = os.pipe()
    os.dup2(theirs, spare)
    reader.close()
    still_theirs = os.fstat(spare).st_ino == os.fstat(theirs).st_ino
    for fd in (spare, theirs, end):
        os.close(fd)
    assert still_theirs


def test_a_thousand_readers_leave_no_descriptor_and_no_reference(make: Make) -> None:
    path = f"/proc/{os.getpid()}/statm"  # a string of our own: a literal is shared
    kind = type(make(path))

    def rounds(count: int) -> None:
        for number in range(count):
            reader = make(path, index=1, scale=PAGE)
            reader.value()
            if number % 2:
                reader.close()

    rounds(10)
    gc.collect()
    before = open_descriptors(), sys.getrefcount(path), sys.getrefcount(kind)
    rounds(1000)
    gc.collect()
    assert (open_descriptors(), sys.getrefcount(path), sys.getrefcount(kind)) == before


def test_readings_keep_no_memory(make: Make, written: Callable[[bytes], str]) -> None:
    readers = [make(written(b"1234567890 99999999999999999999"), index=i, scale=1 << 20) for i in range(3)]

    def rounds(count: int) -> int:
        for _ in range(count):
            for reader in readers:
                reader.value()
            readers[0].close()
        gc.collect()
        return sys.getallocatedblocks()

    rounds(10)
    blocks = rounds(10)
    assert abs(rounds(20_000) - blocks) < 100


# --- the cgroup that comes back ---------------------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[tuple[str, str]]:
    """A fresh memory cgroup and the name of its limit file."""
    for parent, name in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        folder = f"{parent}/memwarden-test-{os.getpid()}"
        try:
            os.mkdir(folder)
        except OSError:
            continue
        try:
            if os.path.exists(f"{folder}/{name}"):
                yield folder, name
                return
        finally:
            os.rmdir(folder)
    pytest.skip("no memory cgroup can be made here")


@pytest.mark.kernel
def test_a_cgroup_that_was_removed_is_unknown_and_known_again_when_it_is_back(
    make: Make, cgroup: tuple[str, str]
) -> None:
    folder, name = cgroup

    def limit(bytes_: int) -> None:
        with open(f"{folder}/{name}", "w") as file:
            file.write(str(bytes_))

    limit(8 << 20)
    reader = make(f"{folder}/{name}")
    seen = [reader.value()]
    os.rmdir(folder)
    seen.append(reader.value())
    os.mkdir(folder)
    limit(16 << 20)
    seen.append(reader.value())
    os.rmdir(folder)
    os.mkdir(folder)
    limit(32 << 20)
    seen.append(reader.value())
    assert seen == [8 << 20, None, 16 << 20, 32 << 20]


# --- processes --------------------------------------------------------------------------------------------


def own_and_fresh(reader: Reader, make: Make, parent_bytes: int) -> tuple[int, int]:
    """What the inherited reader says in this process, grown above its parent, and what one opened here says.

    A fork begins without the file pages of its parent, which may be more than the growth.
    """
    here = make("/proc/self/statm", index=1, scale=PAGE)
    ballast = bytearray(b"x") * (GROWTH_BYTES + max(0, parent_bytes - (here.value() or 0)))
    own, fresh = reader.value(), here.value()
    del ballast
    return own or 0, fresh or 0


def forked(fork: Callable[[], int], work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Do the work in a child made by `fork`, and bring its answer back."""
    ours, theirs = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.write(theirs, b"%d %d" % work())
        finally:
            os._exit(0)
    os.close(theirs)
    answer = os.read(ours, 100)
    os.close(ours)
    os.waitpid(pid, 0)
    own, fresh = answer.split()
    return int(own), int(fresh)


def c_fork() -> int:
    """A fork that runs no Python hook."""
    return int(ctypes.PyDLL(None).fork())


@pytest.mark.parametrize("fork", [os.fork, c_fork], ids=["os.fork", "fork in C"])
def test_a_forked_child_reads_its_own_memory_and_so_does_its_child(make: Make, fork: Callable[[], int]) -> None:
    reader = make("/proc/self/statm", index=1, scale=PAGE)
    parent = reader.value() or 0

    def child() -> tuple[int, int]:
        own, fresh = own_and_fresh(reader, make, parent)
        assert abs(own - fresh) < 1 << 20
        return forked(fork, lambda: own_and_fresh(reader, make, parent))

    for own, fresh in (forked(fork, lambda: own_and_fresh(reader, make, parent)), forked(fork, child)):
        assert fresh > parent + GROWTH_BYTES // 2, "the child grew, so the parent's figure would be told apart"
        assert abs(own - fresh) < 1 << 20
    after = reader.value() or 0
    assert abs(after - parent) < 8 << 20, "the parent goes on reading itself"


def test_a_child_keeps_one_descriptor_and_the_parents_is_closed(make: Make) -> None:
    reader = make("/proc/self/statm", index=1)
    reader.value()

    def child() -> tuple[int, int]:
        before = open_descriptors()
        reader.value()
        return before, open_descriptors()

    before, after = forked(os.fork, child)
    assert before == after


def _in_multiprocessing(reader: Reader, make: Make, parent: int, answer: Connection) -> None:
    answer.send(own_and_fresh(reader, make, parent))


def test_a_multiprocessing_child_reads_its_own_memory(make: Make) -> None:
    reader = make("/proc/self/statm", index=1, scale=PAGE)
    parent = reader.value() or 0
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_multiprocessing, args=(reader, make, parent, theirs))
    process.start()
    own, fresh = ours.recv()
    process.join()
    for end in (ours, theirs):
        end.close()
    process.close()
    assert fresh > parent + GROWTH_BYTES // 2
    assert abs(own - fresh) < 1 << 20


def test_a_program_started_by_exec_inherits_no_descriptor_of_ours(make: Make) -> None:
    reader = make("/proc/self/statm", index=1)
    reader.value()
    program = "ls -l /proc/self/fd"
    done = subprocess.run(program.split(), close_fds=False, capture_output=True, text=True, check=True)
    reader.close()
    assert "pipe:" in done.stdout, "the program saw its descriptors"
    assert "statm" not in done.stdout


# --- threads ----------------------------------------------------------------------------------------------


def hammer(work: Callable[[], None], *, threads: int = 4) -> list[BaseException]:
    """Run the work in some threads at once, switching as often as Python can."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return failures


def test_threads_share_a_reader(make: Make, written: Callable[[bytes], str]) -> None:
    reader = make(written(b"123 456\n"), index=1, scale=2)
    seen: set[int | None] = set()
    failures = hammer(lambda: seen.update({reader.value() for _ in range(3000)}))
    assert (failures, seen) == ([], {912})


def test_threads_that_close_and_read_one_reader_lose_no_descriptor(make: Make, written: Callable[[bytes], str]) -> None:
    reader = make(written(b"123 456\n"), index=1)
    before = open_descriptors()

    def work() -> None:
        for _ in range(1000):
            reader.value()
            reader.close()

    failures = hammer(work)
    assert (failures, reader.value()) == ([], 456)
    reader.close()
    assert open_descriptors() == before


# --- which of the two -------------------------------------------------------------------------------------


def chosen(prelude: str = "") -> str:
    program = f"""
import sys
{prelude}
from memwarden.sense.machine import Machine
number = Machine().number("/proc/self/statm")
print(type(number).__module__, number.value() > 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_machine_takes_the_c_reader_where_it_is_built() -> None:
    native()
    assert chosen() == "memwarden._native._reader True"
    assert type(Machine().number("/proc/self/statm")).__module__ == "memwarden._native._reader"


def test_the_machine_takes_the_python_reader_where_the_c_one_cannot_be_imported() -> None:
    assert chosen("sys.modules['memwarden._native._reader'] = None") == "memwarden.sense.source True"


def test_the_c_reader_works_in_an_interpreter_with_its_own_gil() -> None:
    native()
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    interpreters = pytest.importorskip(name)
    program = """
from memwarden._native._reader import NumberFile
assert NumberFile("/proc/self/statm", index=1).value() > 0
"""
    for _ in range(3):
        inner = interpreters.create()
        try:
            failed = interpreters.run_string(inner, program)
        finally:
            interpreters.destroy(inner)
        assert failed is None
