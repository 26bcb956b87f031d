"""The harness itself: a kernel of its own, a real limit in it, and nothing left behind."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.supervise.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.uml.kernel import Result

    Run = Callable[..., Result]

pytestmark = pytest.mark.uml

_MANY_CHECKS = textwrap.dedent(
    """
    import json, os, subprocess, sys
    leaf = "/sys/fs/cgroup/box"
    os.mkdir(leaf)
    open(f"{leaf}/memory.max", "w").write(str(100 << 20))
    hog = '''
    import os
    open("/sys/fs/cgroup/box/cgroup.procs", "w").write("0")
    held = []
    while True:
        held.append(bytearray(b"x") * (1 << 20))
    '''
    import textwrap
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(hog)]).returncode
    events = dict(line.split() for line in open(f"{leaf}/memory.events"))
    open(os.environ["MEMWARDEN_UML_OUT"] + "/note", "w").write("left")
    import memwarden.units
    print("some other line")
    print(json.dumps({
        "kernel": os.uname().release,
        "code": code,
        "oom_kill": int(events["oom_kill"]),
        "memory_max": open(f"{leaf}/memory.max").read(),
        "shm": os.path.ismount("/dev/shm"),
        "swap_kib": [int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("SwapTotal")][0],
        "pid_one_is_not_us": os.getpid() != 1,
    }))
    """
)


def test_a_real_v2_limit_kills_in_the_guest_and_one_boot_carries_many_checks(uml: Run) -> None:
    result = uml(_MANY_CHECKS, swap_bytes=0)
    seen = result.json()
    assert seen["kernel"] != os.uname().release
    assert seen["code"] == -9
    assert seen["oom_kill"] == 1
    assert seen["memory_max"] == f"{100 << 20}\n"
    assert seen["shm"]
    assert seen["pid_one_is_not_us"]
    assert seen["swap_kib"] == 0
    assert result.files == {"note": b"left"}


def test_the_command_gets_swap_where_it_was_asked_for(uml: Run) -> None:
    result = uml(["grep", "SwapTotal", "/proc/meminfo"], swap_bytes=64 << 20).checked()
    assert int(result.stdout.split()[1]) == (64 << 10) - 4  # the header page is not swap


@pytest.mark.parametrize(
    ("cgroups", "probe"),
    [
        ("v1", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        ("hybrid", "/sys/fs/cgroup/unified/memory.stat"),
        ("v2", "/sys/fs/cgroup/memory.stat"),
    ],
)
def test_each_mode_has_its_memory_controller(uml: Run, cgroups: str, probe: str) -> None:
    assert uml(["cat", probe], cgroups=cgroups).checked().stdout


def test_the_exit_code_is_the_commands_own(uml: Run) -> None:
    assert uml(["sh", "-c", "echo out; echo err >&2; exit 7"]).exit_code == 7
    assert uml(["sh", "-c", "kill -KILL $$"]).exit_code == -9
    unknown = uml(["no-such-command"])
    assert unknown.exit_code == 127
    assert "no-such-command" in unknown.stderr


def test_a_hanging_guest_is_killed_whole_and_its_output_is_kept(uml: Run) -> None:
    mark = f"memwarden.test={os.getpid()}"  # a word on its kernel's command line: other guests may run beside it
    command = ["sh", "-c", "echo begun; sleep 1000 & exec sleep 1000"]
    result = uml(command, timeout_s=6, kernel_arguments=[mark])
    assert result.exit_code is None
    assert "time limit" in result.failure
    assert result.stdout == "begun\n"
    # Killed they all are; the last of its processes may take a moment to go.
    until(lambda: not _uml_processes(mark), what="the guest gone")


def test_a_guest_kernel_that_panics_is_told_from_a_command_that_failed(uml: Run) -> None:
    result = uml(["sh", "-c", "echo begun; echo c > /proc/sysrq-trigger; sleep 1000"], timeout_s=90)
    assert result.exit_code is None
    assert "ended before its command" in result.failure
    assert "panic" in result.console


def test_the_memory_of_the_guest_is_its_own_and_not_the_hosts(uml: Run) -> None:
    hog = "held = []\nwhile True: held.append(bytearray(b'x') * (32 << 20))"
    result = uml(hog, mem="128M", timeout_s=110)
    assert result.exit_code == -9  # the guest's own OOM killer, without a cgroup


def _uml_processes(mark: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read()
        except OSError:
            continue
        if mark.encode() in words:
            found.append(int(name))
    return found
