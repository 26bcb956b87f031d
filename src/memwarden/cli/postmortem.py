"""`memwarden postmortem`: what was going on when a process died."""

from __future__ import annotations

import os
import sys

from memwarden.blackbox import read_box
from memwarden.cli._boxes import box_folder
from memwarden.errors import BlackBoxError
from memwarden.sense import Machine
from memwarden.supervise.autopsy import Autopsy, deaths, examine, headline, is_alive, read_all, same_life, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("file", nargs="?", help="one black box file (default: the latest death of this user)")
    parser.add_argument("--pid", type=int, help="the process with this pid")
    parser.add_argument("--list", action="store_true", help="one line for each death on record")
    parser.add_argument("--all", action="store_true", help="clean ends too")
    parser.add_argument("--dir", help="the MEMWARDEN_DIR or the folder to look in")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(args: Namespace) -> int:
    """Print it; 0 also where nobody died, 2 where a named one is not on record."""
    if args.file and (args.pid is not None or args.list or args.dir):
        raise BlackBoxError("a file is one death already", where=args.file, mend="leave --pid, --list and --dir out")
    machine = Machine()
    found = [_one(machine, args.file)] if args.file else _on_record(machine, args)
    if not args.list:
        found = found[:1]
    if args.format == "json":
        _print_json(found, as_list=args.list)
    elif not found:
        print("no death on record", file=sys.stderr)
    elif args.list:
        print("\n".join(headline(each) for each in found))
    else:
        print("\n".join(tell(found[0])))
    return 0


def _one(machine: Machine, path: str) -> Autopsy:
    """The death that this file tells of, with what its neighbours know of the same process."""
    box = read_box(path)
    if is_alive(machine, box):
        raise BlackBoxError(f"pid {box.pid} is alive", where=path, mend="`memwarden status` shows it")
    neighbours, _ = read_all(os.path.dirname(os.path.abspath(path)))
    return examine(machine, same_life(box, neighbours))


def _on_record(machine: Machine, args: Namespace) -> list[Autopsy]:
    folder = box_folder(args.dir)
    boxes, complaints = read_all(folder)
    for complaint in complaints:
        print(f"memwarden postmortem: {complaint}", file=sys.stderr)
    found = deaths(machine, boxes, pid=args.pid)
    if args.pid is None:
        return found if args.all else [each for each in found if each.verdict not in ("clean", "stopped")]
    if not found and any(box.pid == args.pid for box in boxes):
        raise BlackBoxError(f"pid {args.pid} is alive", where=folder, mend="`memwarden status` shows it")
    if not found:
        raise BlackBoxError(f"no death of pid {args.pid} on record", where=folder, mend="try --list --all")
    return found


def _print_json(found: list[Autopsy], *, as_list: bool) -> None:
    import json

    documents = [as_document(each) for each in found]
    json.dump(documents if as_list else (documents[0] if documents else None), sys.stdout, indent=2)
    print()


def as_document(autopsy: Autopsy) -> dict[str, Any]:
    """The autopsy as plain data."""
    document = autopsy.as_dict()
    for name in ("in_flight", "actions", "levels", "ticks"):
        document[name] = [each.as_dict() for each in document[name]]
    for tick in document["ticks"]:
        tick["level"] = tick["level"].name
    return document
