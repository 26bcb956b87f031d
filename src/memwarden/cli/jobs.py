"""`memwarden jobs`: what runs, waits and has failed; the ledger; quarantine; retry, cancel; and the worker."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from memwarden.cli._output import columns, one_line, write_output
from memwarden.errors import ConfigError, JobError
from memwarden.units import format_bytes, format_duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence
    from typing import Any

    from memwarden.jobs.ledger import Ledger, Status

DESCRIPTION = (
    "Memory-aware jobs of this user's store, or of a database: status, statistics, ledger, quarantine, retry, a worker."
)


MOST = 50


def add_arguments(parser: ArgumentParser) -> None:
    """The subcommands; without one it is `list`."""
    from argparse import SUPPRESS

    parser.description = DESCRIPTION
    parser.add_argument("--dir", help="the MEMWARDEN_DIR to look in")
    parser.add_argument("--ledger", metavar="URL", help="the database to look in (default: $MEMWARDEN_LEDGER)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=False)
    parser.set_defaults(command="list", state=None, most=MOST)

    def add(name: str, about: str, *, machine_readable: bool = True) -> ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.add_argument("--dir", default=SUPPRESS, help="the MEMWARDEN_DIR to look in")
        if machine_readable:
            made.add_argument("--ledger", metavar="URL", default=SUPPRESS, help="the database to look in")
            made.add_argument("--format", choices=("table", "json"), default=SUPPRESS, help="how to print")
        return made

    made = add("list", "the newest jobs")
    made.add_argument("--state", choices=("open", "done", "failed", "cancelled"), help="only those of this state")
    made.add_argument("--most", type=int, default=MOST, metavar="N", help=f"at most so many (default {MOST})")
    add("status", "one job: its parts, attempts, deaths, result").add_argument("id", metavar="ID")
    add("stats", "what waits, runs and has failed, per engine, queue and job type")
    add("ledger", "every attempt at a job's parts, the newest first").add_argument("id", metavar="ID")
    add("quarantine", "items that killed three workers").add_argument("id", metavar="ID", nargs="?")
    add("retry", "do what failed and what was quarantined after all").add_argument("id", metavar="ID")
    add("cancel", "begin nothing more of a job").add_argument("id", metavar="ID")
    made = add("work", "run the jobs of the local engine until SIGTERM", machine_readable=False)
    made.add_argument(
        "--import", dest="modules", action="append", default=[], metavar="MODULE", help="has jobs; may be repeated"
    )
    made.add_argument("--workers", type=int, metavar="N", help="parts at once (default: one for each core)")
    made.add_argument("--memory", metavar="SIZE", help="of all parts together (default: 80%% of the limit here)")
    made.add_argument("--queue", action="append", default=[], metavar="NAME", help="serve only this; may be repeated")
    made.add_argument("--start", choices=("auto", "fork", "spawn"), default="auto", help="how a part's process begins")
    made.add_argument("--fence", choices=("auto", "on", "off"), default="auto", help="refuse what passes a hard limit")
    made.add_argument("--no-cgroup", action="store_true", help="make no memory cgroups for parts")
    made.add_argument("--grace", default="30s", metavar="TIME", help="for parts to stop at SIGTERM (default 30s)")
    made.add_argument("--until-idle", action="store_true", help="end when no part is left, nor at work elsewhere")


def run(args: Namespace) -> int:
    """One of them."""
    if args.command == "work":
        return _work(args)
    from memwarden.jobs.ledger import Ledger
    from memwarden.jobs.places import open_place

    looks: dict[str, Callable[[Namespace, Ledger], int]] = {
        "list": _list, "status": _status, "stats": _stats, "ledger": _ledger, "quarantine": _quarantine,
    }  # fmt: skip
    with contextlib.closing(open_place(args.dir, url=args.ledger, reading=True)) as place:
        if args.command in looks:
            return looks[args.command](args, Ledger(place))
        _found(Ledger(place), args.id)  # what is only looked for is not made by that
    changes: dict[str, Callable[[Namespace, Ledger], int]] = {"retry": _retry, "cancel": _cancel}
    with contextlib.closing(open_place(args.dir, url=args.ledger)) as place:
        return changes[args.command](args, Ledger(place))


# --- the worker ----------------------------------------------------------------------------------------------------


def _work(args: Namespace) -> int:
    import logging
    import signal
    from importlib import import_module

    from memwarden.jobs.places import LEDGER_VARIABLE
    from memwarden.jobs.runner import Runner

    if args.ledger:
        mend = "leave it out: parts of the local engine are in this machine's store"
        raise ConfigError("is for workers of a broker", where="--ledger", mend=mend)
    logging.basicConfig(level=logging.WARNING, format="memwarden jobs: %(message)s")
    if args.dir is None and os.environ.get(LEDGER_VARIABLE):
        print(
            f"memwarden jobs: {LEDGER_VARIABLE} is for workers of a broker and not used here: parts of the local engine"
            " are in this machine's store (`memwarden jobs --dir DIR list` shows it)", file=sys.stderr,
        )  # fmt: skip
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in args.modules:
        try:
            import_module(module)
        except ImportError as error:
            mend = "name a module that can be imported from this folder"
            raise ConfigError(f"cannot be imported ({error})", where=f"--import {module}", mend=mend) from error
    runner = Runner(
        args.dir, workers=args.workers, memory=args.memory, queues=args.queue, start=args.start, fence=args.fence,
        cgroup=not args.no_cgroup, modules=args.modules, grace=args.grace,
    )  # fmt: skip
    with runner:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: runner.stop())
        runner.begin()
        for note in runner.notes:
            print(f"memwarden jobs: {note}", file=sys.stderr)
        words = f"{runner.workers} at once within {format_bytes(runner.budget.limit_bytes)}, of {runner.store.path}"
        print(f"memwarden jobs: working, {words}", file=sys.stderr, flush=True)
        runner.run(until_idle=args.until_idle)
    return 0


# --- what people read ----------------------------------------------------------------------------------------------


def _print(args: Namespace, document: Any, heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> int:
    if args.format == "json":
        import json

        write_output(json.dumps(document, indent=2) + "\n", None)
    elif rows:
        write_output("\n".join(columns([heads, *rows])) + "\n", None)
    else:
        print(empty, file=sys.stderr)
    return 0


def _list(args: Namespace, ledger: Ledger) -> int:
    from memwarden.jobs.profiles import whole

    found = ledger.jobs(state=args.state, most=whole(args.most, "--most"))
    now = time.time()
    rows = [
        (
            each.id, each.state, one_line(each.name, 50), each.type or "-", str(each.items),
            " ".join(f"{count} {state}" for state, count in sorted(each.parts.items())),
            format_bytes(each.peak_bytes) if each.peak_bytes is not None else "-",
            str(each.quarantined), f"{format_duration(now - each.created_unix_s)} ago",
        )
        for each in found
    ]  # fmt: skip
    heads = ("ID", "STATE", "JOB", "TYPE", "ITEMS", "PARTS", "PEAK", "QUARANTINED", "SUBMITTED")
    return _print(args, [each.as_dict() for each in found], heads, rows, "no job is in this store")


def _found(ledger: Ledger, root: str) -> Status:
    status = ledger.status(root)
    if status is None:
        raise JobError("is not known here", where=f"job {root}", mend="`memwarden jobs list` shows them")
    return status


def _status(args: Namespace, ledger: Ledger) -> int:
    status = _found(ledger, args.id)
    document = status.as_dict()
    document["result"] = None
    with contextlib.suppress(JobError):  # it is not done, or its result is not kept any longer
        document["result"] = ledger.result(args.id)
    rows = [(name, one_line(value, 200)) for name, value in document.items() if value is not None]
    return _print(args, document, ("FIELD", "VALUE"), rows, "")


def _stats(args: Namespace, ledger: Ledger) -> int:
    found = ledger.statistics()
    parts = ("waiting", "delayed", "running", "done", "failed")
    others = ("jobs_open", "jobs_done", "jobs_failed", "jobs_cancelled", "broker_waiting", "broker_taken")
    names = ("engine", "queue", "type", *parts, *others)
    rows = [["-" if row[name] is None else one_line(row[name]) or "-" for name in names] for row in found]
    heads = [f"{'PARTS ' if name in parts else ''}{name.upper().replace('_', ' ')}" for name in names]
    return _print(args, found, heads, rows, "no job is in this store")


def _ledger(args: Namespace, ledger: Ledger) -> int:
    _found(ledger, args.id)
    found = ledger.attempts(args.id)
    rows = [
        (
            str(row["part"]), str(row["attempt"]), row["ending"] or "running",
            format_duration(row["ended_unix_s"] - row["started_unix_s"]) if row["ended_unix_s"] else "-",
            format_bytes(row["peak_bytes"]) if row["peak_bytes"] is not None else "-",
            str(row["items"] if row["items"] is not None else "-"), str(row["worker"]["pid"]), one_line(row["text"]),
        )
        for row in found
    ]  # fmt: skip
    heads = ("PART", "ATTEMPT", "ENDED BY", "TOOK", "PEAK", "ITEMS", "PID", "WHY")
    return _print(args, found, heads, rows, "it was not begun yet")


def _quarantine(args: Namespace, ledger: Ledger) -> int:
    if args.id is not None:
        _found(ledger, args.id)
    found = ledger.quarantined(args.id)
    rows = [
        (
            each.root, str(each.part), one_line(each.low or "the start", 40),
            one_line(each.high or ("the end" if each.whole else "?"), 40), str(each.deaths), each.kind,
            "yes" if each.retried else "no", one_line(each.text),
        )
        for each in found
    ]  # fmt: skip
    heads = ("JOB", "PART", "BEHIND", "UP TO", "DEATHS", "KIND", "RETRIED", "WHY")
    return _print(args, [each.as_dict() for each in found], heads, rows, "nothing is in quarantine")


def _retry(args: Namespace, ledger: Ledger) -> int:
    count = ledger.retry(args.id)
    rows = [(args.id, str(count))]
    return _print(args, {"id": args.id, "parts": count}, ("JOB", "PARTS TO BE DONE AGAIN"), rows, "")


def _cancel(args: Namespace, ledger: Ledger) -> int:
    done = ledger.cancel(args.id)
    word = "cancelled" if done else "was over already"
    return _print(args, {"id": args.id, "cancelled": done}, ("JOB", "IT IS"), [(args.id, word)], "")
