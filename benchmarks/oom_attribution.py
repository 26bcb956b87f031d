"""Real kernel OOM kills and plain SIGKILLs under `memwarden run`: how many were told right, and how soon.

Each round starts the real command line with a limit of 64 MiB. The moment of a death is when its pidfd
becomes readable, the moment of recognition when the line about it can be read. The same rounds run on this
machine and, where user-mode Linux is installed, on a kernel with cgroup v2.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 50
# A second kernel without hardware support: a round there takes 5 to 8 s.
GUEST_S = 3600
_SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
_PROGRAM = "import sys; from memwarden.cli import main; sys.exit(main())"

# Says who it is, waits for a word, and grows until it is killed; or holds 40 of its 64 MiB and waits.
_HOG = """
import os, sys
print(os.getpid(), flush=True)
sys.stdin.readline()
held = []
while True: held.append(b"x" * (2 << 20))
"""
_BURST = """
import signal, sys
signal.sigtimedwait([], float(sys.argv[1]))
held = []
while True: held.append(bytearray(b"x") * (16 << 20))
"""
_HOLDER = """
import os, sys
print(os.getpid(), flush=True)
held = b"x" * (40 << 20)
print("full", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""
_PARENT = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-I", "-S", "-c", {_HOG!r}])
print(os.getpid(), flush=True)
sys.stdin.readline()
"""
_LAST_SEEN = re.compile(r"last seen [\d.]+ [KM]?i?B ([\d.]+) (ms|s) before the end")


class Round:
    """One `memwarden run` of a piece of Python, with pipes to it."""

    def __init__(self, code: str) -> None:
        options = ["--limit", "64M", "--fence", "off", "--brake", "100ms"]
        words = ["run", *options, "--", sys.executable, "-I", "-S", "-c", code]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # a line is told when it can be read, and what follows stays for communicate()
            env={**os.environ, "PYTHONPATH": _SOURCE},
        )
        self.said = ""

    def pid(self) -> int:
        """The pid that the program inside prints next."""
        return int(self.process.stdout.readline())

    def go(self) -> None:
        """The word that it waits for."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def seconds_until_told(self, victim: int, *words: str) -> float | None:
        """From the victim's death to the first line with one of the words; None where it is never said."""
        pidfd = os.pidfd_open(victim)
        self.go()
        select.select([pidfd], [], [])
        died_s = time.monotonic()
        os.close(pidfd)
        for raw in self.process.stderr:
            line = raw.decode()
            self.said += line
            if any(word in line for word in words):
                return time.monotonic() - died_s
        return None

    def end(self) -> int:
        """Its exit code; the rest of what it said is in `said`."""
        _, rest = self.process.communicate()
        self.said += rest.decode()
        return self.process.returncode


def kernel_kill() -> tuple[float | None, float]:
    """The command itself: seconds until recognised, and the age of the last look in seconds."""
    one = Round(_HOG)
    told_s = one.seconds_until_told(one.pid(), "(OOM kill)")
    code = one.end()
    seen = _LAST_SEEN.search(one.said)
    age_s = float(seen[1]) / (1000 if seen[2] == "ms" else 1) if seen else float("inf")
    return told_s if code == 128 + signal.SIGKILL else None, age_s


def kill_out_of_a_calm(calm_s: float) -> float:
    """The age of the last record, in seconds, when a burst to 256 MiB comes after nothing has moved for so long."""
    program = [sys.executable, "-I", "-S", "-c", _BURST, str(calm_s)]
    words = ["run", "--limit", "256M", "--fence", "off", "--swap", "0", "--brake", "100ms", "--", *program]
    command = [sys.executable, "-c", _PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _SOURCE})
    seen = _LAST_SEEN.search(done.stderr)
    return float(seen[1]) / (1000 if seen[2] == "ms" else 1) if seen else float("inf")


def kill_of_a_grandchild() -> float | None:
    """Only a process of the command: seconds until told. The command ends with 0 afterwards."""
    one = Round(_PARENT)
    told_s = one.seconds_until_told(one.pid(), "the kernel killed 1 process")
    one.pid()
    one.go()
    code = one.end()
    return told_s if code == 0 and "after the kernel killed a process of it" in one.said else None


def plain_kill(kind: int) -> bool:
    """Whether a plain SIGKILL was told right: by itself near the limit, from outside, or after a real OOM kill."""
    one = Round(_PARENT if kind == 2 else _HOLDER)
    pid = one.pid()
    if kind == 2:
        one.seconds_until_told(pid, "the kernel killed 1 process")
        pid = one.pid()
    else:
        one.process.stdout.readline()
    if kind == 0:
        one.go()
    else:
        os.kill(pid, signal.SIGKILL)
    return one.end() == 128 + signal.SIGKILL and "not by the kernel for memory" in one.said


def campaign(rounds: int) -> dict[str, Any]:
    """All rounds, as plain numbers."""
    kills = [kernel_kill() for _ in range(rounds)]
    below = [kill_of_a_grandchild() for _ in range(rounds)]
    plain = [plain_kill(number % 3) for number in range(rounds)]
    calm = [kill_out_of_a_calm(1.2 + number % 10 / 10) for number in range(rounds // 5)]  # at all phases of a second
    return {
        "rounds": rounds,
        "kills_s": [told for told, _ in kills if told is not None],
        "ages_s": [age for _, age in kills],
        "below_s": [told for told in below if told is not None],
        "mistaken": plain.count(False),
        "calm_ages_s": calm,
    }


def figures(kernel: str, seen: dict[str, Any]) -> list[Figure]:
    """The rows of one kernel."""
    rounds = seen["rounds"]
    rows = []
    for what, times in (("kernel kills", seen["kills_s"]), ("kills of a grandchild only", seen["below_s"])):
        beside = f"median {statistics.median(times) * 1000:.1f} ms" if times else ""
        rows += [
            Figure(f"{kernel}: {what} recognised of {rounds}", len(times), at_least=rounds),
            Figure(f"{kernel}: {what}, slowest to be told", max(times, default=-1), " s", at_most=1, beside=beside),
        ]
    rows.append(Figure(f"{kernel}: plain SIGKILLs mistaken of {rounds}", seen["mistaken"], at_most=0))
    oldest = max(seen["ages_s"]) * 1000
    rows.append(Figure(f"{kernel}: oldest last record at a kill", oldest, " ms", at_most=100))
    oldest = max(seen["calm_ages_s"]) * 1000
    what = f"{kernel}: oldest last record at a kill by a burst of 256 MiB out of a calm"
    beside = f"median of {len(seen['calm_ages_s'])} {statistics.median(seen['calm_ages_s']) * 1000:.0f} ms"
    rows.append(Figure(what, oldest, " ms", at_most=100, beside=beside))
    return rows


def main() -> Iterator[Figure]:
    """The cgroups of this machine, and v2 in user-mode Linux where it is installed."""
    yield from figures("here", campaign(ROUNDS))
    sys.path.insert(0, os.path.dirname(_SOURCE))
    from tests.uml.kernel import run_in_uml, uml_missing_reason

    reason = uml_missing_reason()
    if reason is not None:
        print(f"not measured on cgroup v2: {reason}", file=sys.stderr)
        return
    guest = run_in_uml([sys.executable, "-m", "benchmarks.oom_attribution", str(ROUNDS)], timeout_s=GUEST_S)
    yield from figures("v2", guest.checked().json())


if __name__ == "__main__":
    print(json.dumps(campaign(int(sys.argv[1]))))
