"""The systemd rung: become a process of a delegated scope, where a cgroup of our own can then be made.

`systemd-run --scope` registers a scope for its own process and then executes what it was given: pid,
descriptors, environment and terminal stay. So the supervisor goes through it once more and finds itself alone
in a cgroup that is its own to divide. Whether that works (a session bus, a polkit rule, the memory controller
handed to users) only shows when it is tried: a tiny scope with a limit is made first, and the limit read
back.
"""

from __future__ import annotations

import os
import select
import signal
import time

from memwarden.supervise.settings import command_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.supervise.settings import Settings

_BOOTED_WITH_SYSTEMD = "/run/systemd/system"  # sd_booted(3)
_PROBE_BYTES = 64 << 20
_PROBE_TIME_S = 5.0
# systemd mounts the unified hierarchy there; what is printed is the limit of the scope that the probe is in.
_PROBE = 'read -r line < /proc/self/cgroup; exec cat "/sys/fs/cgroup${line#0::}/memory.max"'


def enter(settings: Settings, mask: set[int]) -> str:
    """Go through a scope: does not return where that works, else the reason in words.

    `mask` is the signal mask to go with, the one that the command must get in the end.
    """
    program = _systemd_run()
    words = command_line(settings.replace(scoped=True))
    if settings.scoped:
        return "systemd scope: it gave us no cgroup that we may divide"
    if not os.path.isdir(_BOOTED_WITH_SYSTEMD) or program is None or words is None:
        return "systemd scope: systemd does not run here"
    start = [program, "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "-p", "MemoryAccounting=yes"]
    if os.geteuid() != 0:
        start.insert(1, "--user")
    answer = _output([*start, "-p", f"MemoryMax={_PROBE_BYTES}", "--", "/bin/sh", "-c", _PROBE])
    if answer.strip() != str(_PROBE_BYTES).encode():
        return f"systemd scope: a probe with {' '.join(start[:2])} did not get its limit"
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execv(program, [*start, "--", *words])
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        return f"systemd scope: {error.strerror}"


def _systemd_run() -> str | None:
    folders = os.environ.get("PATH", os.defpath).split(":")
    paths = (f"{folder}/systemd-run" for folder in folders if folder)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _output(words: list[str]) -> bytes:
    """What a short program prints; nothing where it takes longer than 5 s."""
    ours, theirs = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    redirect = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, theirs, 1),
        (os.POSIX_SPAWN_DUP2, null, 2),
    ]
    pid = os.posix_spawn(words[0], words, os.environ, file_actions=redirect, setsigmask=())
    os.close(theirs)
    os.close(null)
    text = _read_until(ours, time.monotonic() + _PROBE_TIME_S)
    os.close(ours)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return text


def _read_until(descriptor: int, deadline_s: float) -> bytes:
    text = b""
    while (left_s := deadline_s - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left_s)[0]:
            break
        part = os.read(descriptor, 4096)
        if not part:
            break
        text += part
    return text
