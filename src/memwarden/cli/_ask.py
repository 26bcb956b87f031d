"""Asking a guarded process to do something: a command into its black box, and the answer out of it."""

from __future__ import annotations

import os
import sys
from threading import Event

from memwarden.blackbox import read_answer, send_command
from memwarden.cli._boxes import box_folder, not_guarded
from memwarden.errors import BlackBoxError, MemwardenError
from memwarden.sense import Machine, SystemClock
from memwarden.supervise.autopsy import is_alive, read_all
from memwarden.units import format_bytes, format_duration, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

    from memwarden.blackbox import Box
    from memwarden.ports import Clock

POLL_S = 0.05


def add_arguments(parser: ArgumentParser) -> None:
    """The options that both commands have."""
    parser.add_argument("--pid", type=int, help="the process; needed where more than one is guarded")
    parser.add_argument("--dir", help="the MEMWARDEN_DIR or the folder to look in")
    parser.add_argument("--timeout", default="5s", help="how long to wait for the answer (default: 5s)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(verb: str, args: Namespace) -> int:
    """Ask, wait, print. Raises MemwardenError where nobody is there or nobody answers."""
    timeout_s = parse_duration(args.timeout, where="--timeout")
    box = _find(args.pid, box_folder(args.dir))
    if sys.stderr.isatty():
        print(f"asking pid {box.pid}; it looks for commands every second", file=sys.stderr)
    answer = ask(box, verb, timeout_s, SystemClock())
    if args.format == "json":
        import json

        print(json.dumps({"pid": box.pid, **answer}, indent=2))
    else:
        _print(box.pid, answer)
    return 0


def ask(box: Box, verb: str, timeout_s: float, clock: Clock) -> dict[str, Any]:
    """The answer of a process. Raises BlackBoxError; a command that nobody took in time is withdrawn."""
    import json

    identity = int.from_bytes(os.urandom(8), "little") | 1  # zero is no command
    send_command(box.path, identity, verb)
    end_s, never = clock.monotonic() + timeout_s, Event()
    while (text := read_answer(box.path, identity)) is None:
        left_s = end_s - clock.monotonic()
        if left_s <= 0:
            send_command(box.path, 0, "")
            mend = "it may be stopped, or at work in C code; try a longer --timeout"
            raise BlackBoxError(f"no answer within {format_duration(timeout_s)}", where=f"pid {box.pid}", mend=mend)
        clock.wait(never, min(POLL_S, left_s))
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise BlackBoxError("its answer is damaged", where=f"pid {box.pid}", mend="ask again") from error
    if "error" in answer:
        raise MemwardenError(str(answer["error"]), where=f"pid {box.pid}")
    return answer


def _find(pid: int | None, folder: str) -> Box:
    machine = Machine()
    boxes = [box for box in read_all(folder)[0] if box.kind == "inside" and not box.ended and is_alive(machine, box)]
    if pid is not None:
        found = next((box for box in boxes if box.pid == pid), None)
        if found is None:
            raise not_guarded(machine, pid, folder)
        return found
    pids = sorted({box.pid for box in boxes})
    if not pids:
        raise BlackBoxError("no process of this user is guarded", where=folder, mend="start a Warden in it")
    if len(pids) > 1:
        raise BlackBoxError(f"{len(pids)} processes are guarded: {_some(pids)}", where=folder, mend="name one by --pid")
    return boxes[0]


def _some(pids: list[int]) -> str:
    return ", ".join(map(str, pids[:10])) + (", ..." if len(pids) > 10 else "")


def _print(pid: int, answer: dict[str, Any]) -> None:
    for row in answer["outcomes"]:
        print(f"{row['action']}: {_say(row)}")
    if answer["left_out"]:
        print(f"and {answer['left_out']} more; `memwarden status --pid {pid} --format json` lists the last ones")
    if not answer["outcomes"]:
        print("nothing was due")
    used, limit = format_bytes(answer["used_bytes"]), format_bytes(answer["limit_bytes"])
    print(f"pid {pid} is at {answer['level']}, {used} of {limit}")


def _say(row: dict[str, Any]) -> str:
    for key in ("error", "skipped"):
        if key in row:
            return f"{'failed' if key == 'error' else 'left out'}: {row[key]}"
    freed = row.get("freed_bytes")
    if freed is None:
        words = "an unknown amount freed"
    else:
        words = f"{format_bytes(freed)} freed" if freed >= 0 else f"nothing freed, {format_bytes(-freed)} more in use"
    objects = f", {row['objects']} objects" if row.get("objects") is not None else ""
    return f"{words} in {row['duration_s'] * 1000:.0f} ms{objects}"
