"""`memwarden analyze FILE`: what a recording of memory says, as text, JSON or a page with plots."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from memwarden.errors import ConfigError
from memwarden.units import parse_bytes, parse_duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from memwarden.cli._analysis import Analysis

FINDING = 1


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `analyze`."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="a trace, mprof .dat or psrecord log; - is stdin")
    parser.add_argument("--format", choices=("text", "json", "html"), default="text", help="default: text")
    parser.add_argument("--output", metavar="PATH", help="write there, whole or not at all, and not to stdout")
    parser.add_argument("--limit", metavar="SIZE", help="judge against this limit, and not the trace's own: 512M")
    parser.add_argument(
        "--window", metavar="TIME", help="trend and forecast over the last 30m, 6h, ... (default: all of it)"
    )
    parser.add_argument(
        "--fail-on",
        choices=("growth", "limit", "leak"),
        action="append",
        default=[],
        help="exit 1 when memory is increasing, when the limit was or will be reached, when a leak is suspected; "
        "may be repeated",
    )
    parser.add_argument(
        "--leak-rule",
        choices=("signs", "plain"),
        default="signs",
        help="plain: the rule of the older systems, half as much again over 60 samples (default: signs)",
    )


def run(args: Namespace) -> int:
    """Analyse, print, and say by the exit code whether what was asked to fail on was found.

    Raises MemwardenError (one clear line, exit code 2) for input or output that cannot be used.
    """
    from memwarden.cli._analysis import examine
    from memwarden.cli._output import write_output
    from memwarden.sense.trace import read_trace

    limit = None if args.limit is None else parse_bytes(args.limit, where="--limit")
    window_s = None if args.window is None else parse_duration(args.window, where="--window")
    if window_s is not None and window_s <= 0:
        raise ConfigError(f"{args.window!r} is no length of time", where="--window", mend="write 30m or 6h")
    found = []
    for path in args.files:
        trace = read_trace(path)
        if warning := trace.warning():
            print(f"memwarden: {warning}", file=sys.stderr)
        found.append(examine(trace, limit_bytes=limit, window_s=window_s, leak_rule=args.leak_rule))
    write_output(_render(found, args.format), args.output)
    return FINDING if any(_fails(a, on) for a in found for on in args.fail_on) else 0


def _render(found: Sequence[Analysis], form: str) -> str:
    from memwarden.cli import _analysis

    if form == "html":
        from memwarden.cli._analysis_page import page

        return page(found)
    if form == "text":
        return "\n".join(_analysis.as_text(a) for a in found)
    import json

    objects = [_analysis.as_json(a) for a in found]
    return json.dumps(objects[0] if len(objects) == 1 else {"traces": objects}, indent=2, allow_nan=False) + "\n"


def _fails(a: Analysis, on: str) -> bool:
    if on == "growth":
        return a.trend.increasing
    if on == "leak":
        return a.leak.suspected
    reached = a.peak_ratio is not None and a.peak_ratio >= 1
    return reached or a.forecast.seconds_to_limit is not None
