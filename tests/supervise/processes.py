"""Real `memwarden run` processes for tests: start one, wait for what it does, never leave one behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from memwarden.sense import Machine, find_cgroup
from memwarden.supervise.cgroup import confine
from memwarden.supervise.signals import pause

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")
PATIENCE_S = 20.0
MIB = 1 << 20

# Grows by 4 MiB at a time, each page written, until somebody stops it.
HOG = "held = []\nwhile True: held.append(b'x' * (4 << 20))"


def command_line(*words: str) -> list[str]:
    """`memwarden run` with these words."""
    return [sys.executable, "-m", "memwarden", "run", *words]


def environment(**more: str) -> dict[str, str]:
    """Ours, with the package to be tested first on the path."""
    return {**os.environ, "PYTHONPATH": SOURCE, **more}


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`memwarden run` to its end."""
    given = {"capture_output": True, "text": True, "timeout": PATIENCE_S * 3, "env": environment()}
    return subprocess.run(command_line(*words), **{**given, **options})


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """`memwarden run`, running, with pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command_line(*words), text=True, env=environment(), **{**pipes, **options})


def python(code: str) -> list[str]:
    """The words that run a piece of Python."""
    return ["--", sys.executable, "-c", code]


def until(condition: Callable[[], bool], *, what: str) -> None:
    """Look again until it is so. Fails after 20 s."""
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        pause(0.01)
    raise AssertionError(f"never saw: {what}")


def state_of(pid: int) -> str:
    """The state letter of a process; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return state_of(pid) not in ("", "Z", "X")


def finish(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """Its output, its messages and its code."""
    out, err = process.communicate(timeout=PATIENCE_S * 2)
    return out, err, process.returncode


def kill(pid: int) -> None:
    """SIGKILL to one process that may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@functools.cache
def no_cgroup_reason() -> str:
    """Why no memory cgroup can be made here; empty where one can."""
    found = confine(64 * MIB)
    found.release()
    return "" if found.own else "no memory cgroup can be made here: " + "; ".join(found.reasons)


def cgroup_folder() -> str:
    """Where memory cgroups of ours appear."""
    here, reason = find_cgroup(Machine())
    assert here is not None, reason
    return here.folder


def left_over(pid: int) -> list[str]:
    """Cgroups that a supervisor with this pid left behind."""
    return [name for name in os.listdir(cgroup_folder()) if name.startswith(f"memwarden-{pid}-")]
