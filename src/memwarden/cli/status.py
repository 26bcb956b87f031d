"""`memwarden status`: the guarded processes of this user, as they are now."""

from __future__ import annotations

import sys
import time

from memwarden.cli._boxes import box_folder, not_guarded
from memwarden.cli._output import columns
from memwarden.sense import Machine
from memwarden.supervise.autopsy import is_alive, read_all
from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

    from memwarden.blackbox import Box


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--pid", type=int, help="only the process with this pid")
    parser.add_argument("--dir", help="the MEMWARDEN_DIR or the folder to look in")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")


def run(args: Namespace) -> int:
    """Print them, from their black boxes: nothing is asked of the processes themselves."""
    machine = Machine()
    folder = box_folder(args.dir)
    boxes, complaints = read_all(folder)
    living = [box for box in boxes if (args.pid is None or box.pid == args.pid) and is_alive(machine, box)]
    for complaint in complaints:
        print(f"memwarden status: {complaint}", file=sys.stderr)
    if args.pid is not None and not living:
        raise not_guarded(machine, args.pid, folder)
    rows = [as_document(box, time.time()) for box in living]
    if args.format == "json":
        import json

        json.dump({"folder": folder, "processes": rows}, sys.stdout, indent=2)
        print()
    elif rows:
        _print_table(rows)
    else:
        print(f"no guarded process of this user is running (looked in {folder})", file=sys.stderr)
    return 0


def as_document(box: Box, now_unix_s: float) -> dict[str, Any]:
    """What a living box says, as plain data. `seen_s` is how long ago its last tick was."""
    last = box.ticks[-1] if box.ticks else None
    actions = [event for event in box.events if event.kind == "action"]
    return {
        "pid": box.pid,
        "kind": box.kind,
        "command": box.argv,
        "supervisor_pid": box.supervisor_pid or None,
        "up_s": now_unix_s - box.start_unix_s,
        "level": box.level.name if box.kind == "inside" else None,
        "used_bytes": last.used_bytes if last else None,
        "rss_bytes": last.rss_bytes if last else None,
        "limit_bytes": box.limit_bytes,
        "limit_source": box.limit_source,
        "peak_bytes": max((tick.used_bytes for tick in box.ticks if tick.used_bytes is not None), default=None),
        "seen_s": now_unix_s - last.unix_s if last else None,
        "in_flight": [each.name for each in box.in_flight],
        "last_action": actions[-1].text if actions else None,
        "leak": _leak(box),
        "events": [{"unix_s": e.unix_s, "kind": e.kind, "text": e.text} for e in box.events[-20:]],
        "box": box.path,
    }


def _leak(box: Box) -> dict[str, Any] | None:
    """The leak that stands, and what is known about it. None where none does."""
    state = box.leak
    if state is None or state.stage not in {"suspected", "confirmed"}:
        return None
    return {
        "stage": state.stage,
        "unix_s": state.unix_s,
        "since_unix_s": state.since_unix_s,
        "text": state.text,
        "cause": state.cause,
        "confidence": state.confidence,
        "growth_bytes_per_minute": state.growth_bytes_per_minute,
        "growing": list(state.growing),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = [("PID", "WATCHED", "LEVEL", "IN USE", "LIMIT", "%", "RESIDENT", "UP", "SEEN", "COMMAND")]
    for row in rows:
        used, limit = row["used_bytes"], row["limit_bytes"]
        table.append(
            (
                str(row["pid"]),
                row["kind"],
                row["level"] or "-",
                format_bytes(used),
                format_bytes(limit),
                format_ratio(used / limit) if used is not None and limit else "-",
                format_bytes(row["rss_bytes"]),
                format_duration(row["up_s"]),
                f"{format_duration(row['seen_s'])} ago" if row["seen_s"] is not None else "never",
                row["command"][:60],
            )
        )
    print("\n".join(columns(table)))
    for row in rows:
        if row["leak"]:
            print(f"{row['pid']}: leak {row['leak']['text']}")
            for text in row["leak"]["growing"]:
                print(f"{row['pid']}: grows: {text}")
        if row["last_action"]:
            print(f"{row['pid']}: last action: {row['last_action']}")
