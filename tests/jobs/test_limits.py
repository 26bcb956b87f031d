"""A job's limit where less is allowed: what is used then, and that it is said in true words, once for each worker."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from memwarden.jobs.worker import within_machine
from memwarden.sense import Machine
from tests.jobs.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
# A worker, as an engine has it: its children are forked from it, and each has a part of the same two jobs.
_WORKER = textwrap.dedent(
    """
    import logging, os, resource, sys
    from memwarden.jobs.worker import within_machine

    logging.basicConfig(format="%(message)s")
    resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, resource.RLIM_INFINITY))
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            print(within_machine(f"job {child % 2}", 1 << 40), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """
)


def test_it_is_said_once_for_all_children_of_a_worker_and_calls_the_bound_by_its_name() -> None:
    done = subprocess.run([sys.executable, "-c", _WORKER], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [str(int((600 << 20) * 0.8))] * 4
    first, second = done.stderr.splitlines()
    assert first.startswith("job 0: its limit of 1 TiB is too near to what this process may have now, or above it")
    assert "(RLIMIT_DATA in /proc/self/limits: 600 MiB); 480 MiB are used" in first
    assert second.startswith("job 1: ")


@pytest.mark.parametrize(
    ("limit", "total_kib", "words"),
    [
        ("max", 400 << 10, "what this machine has, or above it (MemTotal in /proc/meminfo: 400 MiB)"),
        (str(300 * MIB), 400 << 10, "what this container may have, or above it (/sys/fs/cgroup/memory.max: 300 MiB)"),
    ],
    ids=["machine", "container"],
)
def test_a_bound_of_the_machine_or_the_container_is_called_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str, total_kib: int, words: str
) -> None:
    for name, text in {
        "proc/self/cgroup": "0::/\n", "proc/meminfo": f"MemTotal: {total_kib} kB\n",
        "proc/self/mountinfo": "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n", "sys/fs/cgroup/memory.current": "1\n",
        "sys/fs/cgroup/memory.stat": "anon 0\n", "sys/fs/cgroup/cgroup.controllers": "memory\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert within_machine(f"job of {words}", 1 << 40, Machine(str(tmp_path))) < 400 * MIB
    assert words in caplog.text
    assert within_machine(f"job of {words}", 100 * MIB, Machine(str(tmp_path))) == 100 * MIB
    assert len(caplog.records) == 1
