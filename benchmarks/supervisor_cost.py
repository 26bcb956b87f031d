"""What `memwarden run` weighs and burns beside the command that it guards.

The figures are the kernel's own of the supervisor process: resident pages, and nanoseconds on a CPU over a
window of wall time that starts when the command has settled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks import Figure
from benchmarks.arms import PRELUDE, SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

SETTLE_S, WINDOW_S = 3.0, 12.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CALM = ["sleep", "600"]
# A sawtooth close below its limit: the fastest pace that the supervisor knows.
# What no supervisor in Python can be cheaper than: it wakes as often and does nothing.
_EMPTY = "import signal\nwhile True: signal.sigtimedwait([signal.SIGUSR1], {:f})"
_TIGHT = """
import time
held = bytearray(b"x") * (20 << 20)
while True:
    burst = bytearray(b"x") * (30 << 20)
    del burst
    time.sleep(0.3)  # the pace of the sawtooth
"""


def main() -> list[Figure]:
    """Calm with room, calm under a small limit, and as fast as it goes."""
    rows = [
        ("calm, no limit of its own", [], _CALM, 0.2),
        ("calm, 512 MiB", ["--limit", "512M"], _CALM, 0.2),
        ("calm, 512 MiB, fence on", ["--limit", "512M", "--fence", "on"], _CALM, 0.5),
        ("at 20 ms", ["--limit", "64M", "--fence", "off"], [sys.executable, "-I", "-S", "-c", _TIGHT], 1.2),
        ("at 20 ms, fence on", ["--limit", "64M", "--fence", "on"], [sys.executable, "-I", "-S", "-c", _TIGHT], 1.2),
    ]
    # Writes the byte code: compiling leaves a megabyte behind.
    subprocess.run(**_how([], ["true"]), check=True)
    figures = []
    for name, options, command, bound in rows:
        with supervisor(options, command) as pid:
            time.sleep(SETTLE_S)  # the command has started
            before = cpu_ns(pid), wakes(pid), time.monotonic_ns()
            time.sleep(WINDOW_S)  # the window
            after = cpu_ns(pid), wakes(pid), time.monotonic_ns()
            burned, woke, passed = (new - old for new, old in zip(after, before, strict=True))
            paced = f"{woke * 1e9 / passed:.1f} wake-ups a second, {burned / max(1, woke) / 1000:.0f} us each"
            paced += f"; waking as often for nothing {_idle(passed / max(1, woke) / 1e9):.3f} %"
            figures += [
                Figure(
                    f"supervisor, {name}: share of a core",
                    100 * burned / passed,
                    " %",
                    at_most=bound,
                    beside=paced,
                ),
                Figure(f"supervisor, {name}: resident", rss_mib(pid), " MiB", at_most=14.0, beside=bare()),
            ]
    return figures


def _idle(every_s: float) -> float:
    """Per cent of a core that a bare interpreter burns by waking so often."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", _EMPTY.format(every_s)]) as process:
        time.sleep(1.0)  # it has started
        before = cpu_ns(process.pid), time.monotonic_ns()
        time.sleep(WINDOW_S / 2)  # the window
        share = 100 * (cpu_ns(process.pid) - before[0]) / (time.monotonic_ns() - before[1])
        process.kill()
    return share


@contextmanager
def supervisor(options: list[str], command: list[str]) -> Iterator[int]:
    """A supervised command as a user starts it; gives the supervisor's pid."""
    process = subprocess.Popen(**_how(options, command))
    try:
        yield process.pid
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


def _how(options: list[str], command: list[str]) -> dict[str, Any]:
    program = "import sys; from memwarden.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", program, "run", "--quiet", *options, "--", *command]
    return {"args": words, "env": {**os.environ, "PYTHONPATH": SOURCE}}


def bare() -> str:
    """A bare interpreter's resident size, as the peer."""
    program = PRELUDE + "print(rss_bytes())"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return f"a bare interpreter {int(done.stdout) / (1 << 20):.1f} MiB"


def rss_mib(pid: int) -> float:
    """Resident size of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE / (1 << 20)


def cpu_ns(pid: int) -> int:
    """Nanoseconds that a process spent on a CPU: its clock as clock_getcpuclockid(3) names it."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def wakes(pid: int) -> int:
    """How often the process gave the CPU up by itself, which is once per sleep."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("voluntary_ctxt_switches:"):
                return int(line.split()[1])
    return 0
