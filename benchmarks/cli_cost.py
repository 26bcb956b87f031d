"""What the command line costs: CPU of `--help` beside a bare argparse program, and memory of `monitor`.

Whole processes that take turns, user and system time as wait4(2) tells it, medians. The console script of
an installed package starts the same way: an interpreter with site-packages that imports one function.
"""

from __future__ import annotations

import os
import re
import select
import statistics
import subprocess
import sys
import time

from benchmarks import Figure
from benchmarks.arms import SOURCE
from benchmarks.supervisor_cost import rss_mib

START = "import sys; from memwarden.cli import main; sys.exit(main())"
COMMANDS = ("run", "monitor", "analyze", "status", "postmortem", "doctor", "simulate", "config")
_ENVIRON = {**os.environ, "PYTHONPATH": SOURCE, "COLUMNS": "100"}
SETTLE_S = 4.0


def main() -> list[Figure]:
    """`--help` of the whole and of each command, then the monitor."""
    return [*_help(), *_monitor()]


def _memwarden(*words: str) -> list[str]:
    return [sys.executable, "-c", START, *words]


def _argparse(options: int, commands: int) -> list[str]:
    """A program that does nothing but have so many options and sub-commands, asked for its help."""
    lines = ["import argparse", "parser = argparse.ArgumentParser(description='a program')"]
    lines += [f"parser.add_argument('--option-{n}', metavar='N', help='the option {n}')" for n in range(options)]
    if commands:
        lines.append("commands = parser.add_subparsers()")
        lines += [f"commands.add_parser('command-{n}', help='the command {n}')" for n in range(commands)]
    return [sys.executable, "-c", "\n".join([*lines, "parser.parse_args()"]), "--help"]


def _help(*, rounds: int = 15) -> list[Figure]:
    """Each arm beside an argparse program of its own size; the bare interpreter tells how much is Python's start."""
    arms = {"--help": _memwarden("--help"), "nothing": [sys.executable, "-c", "pass"]}
    peers = {"--help": _argparse(0, len(COMMANDS))}
    for name in COMMANDS:
        if _options(name) == 0:
            print(f"memwarden {name}: has no help")
            continue
        arms[f"{name} --help"] = _memwarden(name, "--help")
        peers[f"{name} --help"] = _argparse(_options(name), 0)
    running = {**arms, **{f"argparse for {name}": peer for name, peer in peers.items()}, "again": arms["--help"]}
    seen: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(rounds + 1):
        for name, command in running.items():
            cpu_ms = _cpu_ms(command)
            if turn:
                seen[name].append(cpu_ms)
    cost = {name: statistics.median(times) for name, times in seen.items()}
    base = f"; a bare interpreter {cost['nothing']:.1f} ms; A/A {cost['again'] / cost['--help']:.3f}"
    return [
        Figure(
            f"memwarden {name}: CPU over a bare argparse program",
            cost[name] / cost[f"argparse for {name}"],
            "x",
            at_most=1.5 if name == "--help" else None,
            beside=f"{cost[name]:.1f} ms over {cost[f'argparse for {name}']:.1f} ms{base}",
        )
        for name in peers
    ]


def _options(name: str) -> int:
    done = subprocess.run(
        _memwarden(name, "--help"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_ENVIRON
    )
    return len(re.findall(r"^  -", done.stdout, re.MULTILINE))


def _cpu_ms(command: list[str]) -> float:
    """User and system milliseconds of a whole process."""
    process = subprocess.Popen(command, env=_ENVIRON, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return 1000 * (used.ru_utime + used.ru_stime)


def _monitor() -> list[Figure]:
    """On a terminal, where the table is drawn; what it draws is thrown away."""
    figures = []
    for name, words, bound in (("plain table", [], 20.0), ("rich table", ["--rich"], 26.0)):
        ours, theirs = os.openpty()
        command = _memwarden("monitor", "--pid", str(os.getpid()), "--interval", "0.5", *words)
        process = subprocess.Popen(command, env=_ENVIRON, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = _read_for(ours, SETTLE_S)
        try:
            process.wait(timeout=0.5)
            print(f"monitor, {name}: not measured, it ended by itself: {seen.strip().splitlines()[-1:]}")
        except subprocess.TimeoutExpired:
            figures.append(Figure(f"monitor, {name}: resident", rss_mib(process.pid), " MiB", at_most=bound))
            process.terminate()
        process.wait()
        os.close(ours)
    return figures


def _read_for(fd: int, seconds: float) -> str:
    """What comes within this time."""
    parts = []
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        if select.select([fd], [], [], left_s)[0]:
            try:
                parts.append(os.read(fd, 65536))
            except OSError:  # the other end was closed
                break
    return b"".join(parts).decode(errors="replace")
