"""`memwarden report`: one page over a time that a manager can read: kills, limits, leaks, alerts, jobs."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from memwarden.errors import ConfigError, StoreError
from memwarden.units import parse_duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from memwarden.cli._report import Report, Span

FORMATS = ("text", "markdown", "html", "json")
_BY_NAME = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown", ".json": "json"}
# The history keeps two years.
LONGEST_S = 730 * 86_400.0
SHORTEST_S = 60.0
_MEND = "write 24h, 7d or 30d, or a time such as 2026-03-01 or 2026-03-01T08:00"

DESCRIPTION = (
    "One page over a time: was anything killed or near its limit, does anything leak, was anybody told, did the jobs "
    "get done; then every process, alert and queue, and what could be done. From what the service kept (history), the "
    "black boxes, the alerts and the job ledger; what is missing is said to be. Times are of this machine's zone (TZ)."
)
EPILOG = "example: memwarden report --since 7d --output week.html. exit codes: 0; 2 wrong usage"


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `report`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--since", metavar="TIME", default="24h", help="24h, 7d, 30d before --until, or a date (24h)")
    parser.add_argument("--until", metavar="TIME", help="a date, or so long ago (default: now)")
    parser.add_argument("--output", metavar="PATH", help="write there, whole or not at all; - is stdout (the default)")
    parser.add_argument("--format", choices=FORMATS, help="default: as PATH ends (.html, .md, .json), else text")
    parser.add_argument("--dir", help="the MEMWARDEN_DIR to look in")


def run(args: Namespace) -> int:
    """Make it and write it. Raises MemwardenError for what cannot be read or written."""
    from memwarden.cli._output import write_output

    span = span_of(args.since, args.until, time.time())
    path = None if args.output in (None, "-") else args.output
    form = args.format or _BY_NAME.get(os.path.splitext(path or "")[1].lower(), "text")
    text = render(_collect(args.dir, span), form)
    write_output(text, path)
    if path is not None:
        print(f"written: {path}", file=sys.stderr)
    return 0


def render(report: Report, form: str) -> str:
    """The report in one of FORMATS."""
    from memwarden.cli import _document, _report_words

    if form == "json":
        import json

        return json.dumps(_report_words.as_json(report), indent=2, allow_nan=False) + "\n"
    found = _report_words.document(report)
    forms = {"html": _document.as_html, "markdown": _document.as_markdown, "text": _document.as_text}
    return forms[form](found)


def _collect(named: str | None, span: Span) -> Report:
    from memwarden.cli._boxes import box_folder
    from memwarden.cli._report import collect
    from memwarden.cli._targets import lines_here
    from memwarden.config import settle
    from memwarden.jobs.places import LEDGER_VARIABLE
    from memwarden.sense import Machine, SystemClock
    from memwarden.store import state_directory

    folder = state_directory(named or settle(environ=os.environ).config.directory, os.environ)
    if folder is None:
        raise StoreError("no folder is known", where="memwarden report", mend="set MEMWARDEN_DIR, or give --dir")
    machine = Machine()
    lines = lines_here(machine)
    return collect(
        folder, box_folder(named), span, machine=machine, clock=SystemClock(), lines=(lines.warning, lines.critical),
        ledger=None if named else os.environ.get(LEDGER_VARIABLE),
    )  # fmt: skip


def span_of(since: str, until: str | None, now_s: float) -> Span:
    """From the words of the command line. Raises ConfigError."""
    from memwarden.cli._report import Span

    to_s = now_s if until is None else _moment(until, now_s, "--until")
    if to_s > now_s:
        raise ConfigError(f"{until!r} is not over yet", where="--until", mend="leave it out for now")
    to_s = -(-to_s // 60) * 60
    from_s = _moment(since, to_s, "--since")
    if not SHORTEST_S <= to_s - from_s <= LONGEST_S:
        what = f"{since!r} is {'less than a minute' if to_s - from_s < SHORTEST_S else 'more than two years'} before"
        raise ConfigError(f"{what} {'now' if until is None else repr(until)}", where="--since", mend=_MEND)
    return Span(from_s=from_s // 60 * 60, to_s=to_s, now_s=now_s)


def _moment(words: str, before_s: float, where: str) -> float:
    """A date, or so long before that time, in Unix seconds. Raises ConfigError."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(words).timestamp()  # one without a zone is of the machine's own
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return before_s - parse_duration(words, where=where)
    except ConfigError as error:
        raise ConfigError(f"{words!r} is no time", where=where, mend=_MEND) from error
