from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.errors import ConfigError, NotPermittedError, ProcessNotFoundError
from memwarden.sense import Machine, tree
from memwarden.sense.tree import _parse_stat
from memwarden.testing import FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


def stat(pid: int, ppid: int, name: str, *, state: str = "S", start: int = 77) -> str:
    return f"{pid} ({name}) {state} {ppid} " + "0 " * 17 + f"{start} " + "0 " * 20 + "\n"


def status(rss: int, anon: int, shmem: int = 0, swap: int = 0) -> str:
    return f"VmRSS:\t{rss} kB\nRssAnon:\t{anon} kB\nRssShmem:\t{shmem} kB\nVmSwap:\t{swap} kB\n"


@pytest.fixture
def village() -> Iterator[FakeMachine]:
    """A root with two children, one of which has one of its own; a stranger, a zombie and a kernel thread."""
    people = (
        (10, 1, "gunicorn", "/usr/bin/python3\0/usr/bin/gunicorn\0app:app\0", "S"),
        (11, 10, "gunicorn", "gunicorn: worker [app]\0\0\0", "S"),
        (12, 10, "gunicorn", "gunicorn: worker [app]\0\0\0", "S"),
        (13, 12, "sh) (", "sh\0-c\0sleep 9\0", "S"),
        (20, 1, "postgres", "postgres\0", "S"),
        (21, 10, "gunicorn", "", "Z"),
        (2, 0, "kthreadd", "", "S"),
        (30, 1, "bash", "bash\0-c\0memwarden monitor --match gunicorn\0", "S"),
        (31, 30, "python3", "python3\0-m\0memwarden\0monitor\0--match\0gunicorn\0", "S"),
    )
    with FakeMachine() as machine:
        for pid, ppid, name, words, state in people:
            machine.write(f"/proc/{pid}/stat", stat(pid, ppid, name, state=state))
            machine.write(f"/proc/{pid}/cmdline", words)
        machine.write("/proc/10/status", status(100, 60, 30, 1))
        machine.write("/proc/11/status", status(120, 80, 30, 2))
        machine.write("/proc/12/status", status(110, 70, 20, 0))
        machine.write("/proc/13/status", status(10, 5))
        machine.write("/proc/21/status", "Name:\tgunicorn\nState:\tZ (zombie)\n")
        yield machine


def test_a_tree_is_the_root_and_all_living_descendants(village: FakeMachine) -> None:
    assert tree.tree(village, 10) == [10, *sorted(tree.tree(village, 10)[1:3]), 13]
    assert set(tree.tree(village, 10)) == {10, 11, 12, 13}


def test_the_tree_of_a_pid_that_is_gone_or_a_zombie_is_empty(village: FakeMachine) -> None:
    assert tree.tree(village, 999) == []
    assert tree.tree(village, 21) == []


def test_a_ring_of_parents_ends_the_walk(village: FakeMachine) -> None:
    village.write("/proc/10/stat", stat(10, 13, "gunicorn"))
    assert set(tree.tree(village, 10)) == {10, 11, 12, 13}


def test_a_name_with_brackets_and_spaces_is_read_whole(village: FakeMachine) -> None:
    found = tree.find(village, 13)
    assert (found.name, found.ppid, found.start_ticks, found.cmdline) == ("sh) (", 12, 77, "sh -c sleep 9")


def test_a_name_matches_in_names_and_command_lines_but_no_zombie_nor_kernel_thread(village: FakeMachine) -> None:
    assert [each.pid for each in tree.match(village, "gunicorn")] == [10, 11, 12]
    assert [each.pid for each in tree.match(village, r"worker \[app\]$")] == [11, 12]
    assert [each.pid for each in tree.match(village, "kthreadd")] == []


def test_a_monitor_and_the_shell_that_spells_it_never_match(village: FakeMachine) -> None:
    assert not {30, 31} & {each.pid for each in tree.match(village, "gunicorn|memwarden|bash")}


def test_this_process_never_matches_itself() -> None:
    me = tree.find(Machine(), os.getpid())
    with child("x = 'a-name-like-no-other'") as pid:
        assert [each.pid for each in tree.match(Machine(), "a-name-like-no-other")] == [pid]
    assert me.pid not in {each.pid for each in tree.match(Machine(), ".")}


@pytest.mark.parametrize("pattern", ["(", "*", "[a-", ""])
def test_what_is_no_regular_expression_is_refused_in_one_line(pattern: str, village: FakeMachine) -> None:
    with pytest.raises(ConfigError, match="--match") as found:
        tree.match(village, pattern)
    assert "\n" not in str(found.value)


def test_a_sum_counts_shared_memory_once_and_says_the_summed_rss_beside_it(village: FakeMachine) -> None:
    total = tree.add_up(village, [10, 11, 12])
    assert total.rss_bytes == 330 * 1024
    assert total.anon_bytes == 210 * 1024
    assert total.shmem_bytes == 30 * 1024
    assert total.held_bytes == (210 + 30 + 3) * 1024


def test_who_vanished_is_left_out_and_a_zombie_holds_nothing(village: FakeMachine) -> None:
    total = tree.add_up(village, [10, 999, 21])
    assert [each.pid for each in total.parts] == [10, 21]
    assert total.anon_bytes == 60 * 1024
    assert total.unknown == ()


def test_a_kernel_that_does_not_tell_anonymous_memory_leaves_it_unknown_and_never_zero(village: FakeMachine) -> None:
    village.write("/proc/11/status", "VmRSS:\t120 kB\n")
    total = tree.add_up(village, [10, 11])
    assert total.anon_bytes is None
    assert total.held_bytes >= 220 * 1024


def test_the_sum_of_nobody_is_zero(village: FakeMachine) -> None:
    assert tree.add_up(village, []).held_bytes == 0


class _Guarded(FakeMachine):
    """A machine where one process belongs to somebody else."""

    def read(self, path: str) -> bytes:
        if path in ("/proc/11/status", "/proc/12/smaps_rollup", "/proc/20/stat"):
            raise PermissionError(13, "Permission denied")
        return super().read(path)


def test_what_may_not_be_read_is_counted_with_its_reason() -> None:
    with _Guarded() as machine:
        machine.write("/proc/10/status", status(100, 60))
        machine.write("/proc/11/status", status(100, 60))
        total = tree.add_up(machine, [10, 11])
        assert [each.pid for each in total.parts] == [10]
        assert total.unknown == (("Permission denied (status)", 1),)


def test_pss_that_may_not_be_read_leaves_the_rest_known_and_the_sum_of_pss_unknown() -> None:
    with _Guarded() as machine:
        machine.write("/proc/12/status", status(100, 60))
        total = tree.add_up(machine, [12], pss=True)
        assert (total.anon_bytes, total.pss_bytes) == (60 * 1024, None)
        assert total.unknown[0][1] == 1


def test_a_foreign_process_is_named_as_such() -> None:
    with _Guarded() as machine, pytest.raises(NotPermittedError, match="process 20 may not be read"):
        tree.find(machine, 20)


def test_a_pid_that_is_nobodys_is_not_found() -> None:
    with pytest.raises(ProcessNotFoundError, match="no process with pid 4194305"):
        tree.find(Machine(), 4_194_305)  # above the largest pid_max of any kernel


@given(st.binary(max_size=300))
def test_no_stat_file_whatever_it_holds_raises(raw: bytes) -> None:
    found = _parse_stat(raw)
    assert found is None or found.pid >= 0


# --- real processes --------------------------------------------------------------------------------------------


@contextmanager
def child(code: str, *, before: str = "") -> Iterator[int]:
    """A Python that runs the code, says so, and lives until this block ends."""
    script = f"{before}\n{code}\nimport sys\nprint('ready', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


FORKS = """
import os
data = [bytes(4000) for _ in range(15_000)]
ends, kids = [], []
for _ in range(4):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(w)
        for end in ends:
            os.close(end)
        os.read(r, 1)
        os._exit(0)
    os.close(r)
    ends.append(w)
"""


def test_real_forks_are_a_tree_whose_rss_counts_the_same_pages_many_times_and_whose_pss_does_not() -> None:
    machine = Machine()
    with child(FORKS) as pid:
        pids = tree.tree(machine, pid)
        total = tree.add_up(machine, pids, pss=True)
        alone = tree.usage(machine, pid)
    assert len(pids) == 5
    assert total.pss_bytes is not None
    assert total.rss_bytes > 4 * alone.rss_bytes
    assert total.pss_bytes < 2 * alone.rss_bytes


def test_real_shared_memory_is_counted_once() -> None:
    code = "import mmap\nblock = mmap.mmap(-1, 32 << 20)\nblock.write(b'x' * (32 << 20))"
    machine = Machine()
    with child(FORKS, before=code) as pid:
        total = tree.add_up(machine, tree.tree(machine, pid))
    assert total.shmem_bytes is not None
    assert 31 * MIB <= total.shmem_bytes <= 34 * MIB


def test_a_process_that_ends_meanwhile_is_no_error() -> None:
    with child("pass") as pid:
        pass
    assert tree.add_up(Machine(), [os.getpid(), pid]).parts[0].pid == os.getpid()
    assert len(tree.add_up(Machine(), [os.getpid(), pid]).parts) == 1
    assert tree.usage(Machine(), os.getpid()).rss_bytes >= mmap.PAGESIZE
