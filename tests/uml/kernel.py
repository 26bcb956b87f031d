"""Boots user-mode Linux (Debian package user-mode-linux) for one command and brings back what it did.

The guest is a real Linux kernel run as a plain process: its own cgroup tree, OOM killer and page cache. Its
root is the host's file system, so the same interpreter and the same checkout run inside; files written below
the host's folders are on the host, tmpfs (`/dev/shm`, `/run`) is the guest's own memory. Booting and
switching off cost about 1.5 s together: put many checks into one program and print one JSON line. The kernel
has no PSI.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_GUEST_INIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest_init.py")
_WHOLE_XSTATE = os.path.join(os.path.dirname(_GUEST_INIT), "whole_xstate.c")

# What the kernel must be told so that the memory controller is on the side that the mode mounts it.
_KERNEL_ARGUMENTS = {"v2": ["cgroup_no_v1=all"], "hybrid": ["cgroup_no_v1=memory"], "v1": [], "none": []}

_SWAP_FILE = "swap.img"
_DIED_OF_TIME = "the guest was still running at the time limit and was killed"


@dataclass(frozen=True)
class Result:
    """What one command in the guest did.

    `exit_code` is as `subprocess` gives it (negative for a signal), None where the command never ended:
    `failure` then says why. `files` holds what the command left in the folder named by `MEMWARDEN_UML_OUT`.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    console: str
    failure: str
    duration_s: float
    files: dict[str, bytes] = field(default_factory=dict)

    def checked(self) -> Result:
        """Itself, when the command ended with 0; else an AssertionError that shows all there is to see."""
        assert self.exit_code == 0, (
            f"exit code {self.exit_code} in the guest; {self.failure}\n"
            f"--- stderr\n{self.stderr[-4000:]}\n--- stdout\n{self.stdout[-2000:]}\n"
            f"--- console\n{self.console[-2000:]}"
        )
        return self

    def json(self) -> Any:
        """The last line of stdout as JSON, of a command that ended with 0."""
        return json.loads(self.checked().stdout.strip().splitlines()[-1])


def run_in_uml(
    program: str | Sequence[str],
    *,
    timeout_s: float = 60.0,
    mem: str = "700M",
    cgroups: str = "v2",
    swap_bytes: int = 0,
    environ: Mapping[str, str] | None = None,
    kernel_arguments: Sequence[str] = (),
) -> Result:
    """Run Python source (a str) or a command (a sequence of words) as root of a kernel of its own.

    `cgroups`: `v2` (unified at /sys/fs/cgroup, memory enabled for children of the root), `v1` (memory
    controller at /sys/fs/cgroup/memory), `hybrid` (v1 cpu and pids, v2 memory at /sys/fs/cgroup/unified) or
    `none`. `swap_bytes` gives the guest a swap device. The command runs in the checkout with its `src`
    importable.
    """
    folder = tempfile.mkdtemp(prefix="memwarden-uml-")
    try:
        argv = [sys.executable, "-c", program] if isinstance(program, str) else list(program)
        _write_order(folder, argv=argv, cgroups=cgroups, swap_bytes=swap_bytes, environ=environ or {})
        words = [
            *_KERNEL_ARGUMENTS[cgroups],
            *kernel_arguments,
            *([f"ubd0={folder}/{_SWAP_FILE}"] if swap_bytes else []),
        ]
        started = time.monotonic()
        in_time = _boot(folder, mem=mem, words=words, timeout_s=timeout_s)
        return _collect(folder, in_time=in_time, duration_s=time.monotonic() - started)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def uml_missing_reason() -> str | None:
    """Why there is no second kernel here, or None. The first call boots one (about 1.5 s)."""
    if _binary() is None:
        return "no linux.uml on the path (Debian package user-mode-linux); MEMWARDEN_UML may name one"
    try:
        result = run_in_uml(["true"], timeout_s=60)
    except OSError as error:
        return f"user-mode Linux cannot be started: {error}"
    if result.exit_code == 0:
        return None
    return f"user-mode Linux does not boot here: {result.failure or result.console[-300:]}"


def _binary() -> str | None:
    return os.environ.get("MEMWARDEN_UML") or shutil.which("linux.uml") or shutil.which("linux.uml", path="/usr/bin")


@functools.cache
def _preload() -> dict[str, str]:
    """What the guest's kernel needs in its environment on this processor; `whole_xstate.c` says why."""
    with open("/proc/cpuinfo") as file:
        if " amx_tile" not in file.read():
            return {}
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return {}
    folder = tempfile.mkdtemp(prefix="memwarden-uml-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = f"{folder}/whole_xstate.so"
    made = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, _WHOLE_XSTATE, "-ldl"], check=False)
    return {} if made.returncode else {"LD_PRELOAD": library}


def _guest_environ(folder: str, extra: Mapping[str, str]) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": folder,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join([os.path.join(CHECKOUT, "src"), CHECKOUT]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MEMWARDEN_UML_OUT": f"{folder}/out",
        **extra,
    }


def _write_order(folder: str, *, argv: list[str], cgroups: str, swap_bytes: int, environ: Mapping[str, str]) -> None:
    os.mkdir(f"{folder}/out")
    order = {
        "argv": argv,
        "cgroups": cgroups,
        "cwd": CHECKOUT,
        "environ": _guest_environ(folder, environ),
        "swap_bytes": swap_bytes,
    }
    with open(f"{folder}/order.json", "w") as file:
        json.dump(order, file)
    if swap_bytes:
        with open(f"{folder}/{_SWAP_FILE}", "wb") as file:
            file.truncate(swap_bytes)
    command = shlex.join([sys.executable, "-I", "-S", _GUEST_INIT, folder])
    with open(f"{folder}/init", "w") as file:  # a shell script: a shebang line has no room for a long path
        file.write(f"#!/bin/sh\nexec {command}\n")
    os.chmod(f"{folder}/init", 0o755)


def _boot(folder: str, *, mem: str, words: Sequence[str], timeout_s: float) -> bool:
    """Run the kernel until it switches itself off; false where it had to be killed.

    All its processes (one per guest address space, and helpers) stay in the session begun here: they are
    killed by that group, which also ends what a crashed kernel leaves behind.
    """
    binary = _binary()
    assert binary is not None, "ask uml_missing_reason() first"
    system = [f"mem={mem}", "rootfstype=hostfs", "rootflags=/", "rw", f"init={folder}/init", *words]
    wiring = [
        f"uml_dir={folder}/",
        "umid=guest",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        "panic=1",
        "quiet",
    ]
    with open(f"{folder}/console", "wb") as console:
        process = subprocess.Popen(
            [binary, *system, *wiring],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, **_preload()},
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _kill_group(process)
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all gone by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _left_files(folder: str) -> Iterator[tuple[str, bytes]]:
    for where, _folders, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                yield os.path.relpath(path, folder), file.read()


def _collect(folder: str, *, in_time: bool, duration_s: float) -> Result:
    code = _text(f"{folder}/exit_code")
    failure = _text(f"{folder}/failure")
    if not code and not failure:
        failure = _DIED_OF_TIME if not in_time else "the guest kernel ended before its command did"
    return Result(
        exit_code=int(code) if code else None,
        stdout=_text(f"{folder}/stdout"),
        stderr=_text(f"{folder}/stderr"),
        console=_text(f"{folder}/console"),
        failure=failure,
        duration_s=duration_s,
        files=dict(_left_files(f"{folder}/out")),
    )
