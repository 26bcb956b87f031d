"""`memwarden selftest`: proves on this machine, with figures, that what memwarden claims is so.

Every check is a real one in throw-away processes, with limits made for it and removed again. What this machine does
not permit, or this version does not have, says so and is neither passed nor failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from memwarden.cli._selftest.bench import FAILED, NOT_HERE, OK, Finding, bench, found
from memwarden.cli._selftest.table import CHECKS, Check
from memwarden.errors import ConfigError, MemwardenError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EPILOG = "exit codes: 0 nothing failed, 1 a check failed; 2 wrong usage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    names = ", ".join(each.name for each in CHECKS)
    parser.epilog = EPILOG
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")
    parser.add_argument("--only", metavar="NAME", action="append", help=f"this check, and others so named: {names}")
    parser.add_argument("--quick", action="store_true", help="less memory and fewer rounds: a few seconds")
    # For the tests: the named check is made without the step that it is about, and must say FAILED.
    parser.add_argument("--broken", metavar="NAME", action="append", default=[], help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Make the checks; 1 where one failed."""
    if not sys.platform.startswith("linux"):
        raise MemwardenError(
            "proves what memwarden does on Linux", where="selftest", mend="`memwarden doctor` runs here"
        )
    _refuse_unknown(args.broken, where="--broken")
    chosen = _chosen(args.only)
    rows: list[dict[str, Any]] = []
    for check, finding, seconds in _made(chosen, quick=args.quick, broken=args.broken):
        rows.append(_row(check, finding, seconds))
        if args.format == "text":
            print(_line(rows[-1]), flush=True)
    failed = [row["name"] for row in rows if row["verdict"] == FAILED]
    if args.format == "json":
        json.dump({"ok": not failed, "quick": args.quick, "checks": rows}, sys.stdout, indent=2)
        print()
    else:
        print(_sum(rows))
    return 1 if failed else 0


def _chosen(only: Sequence[str] | None) -> list[Check]:
    _refuse_unknown(only or (), where="--only")
    return [each for each in CHECKS if only is None or each.name in only]


def _refuse_unknown(names: Sequence[str], *, where: str) -> None:
    known = [each.name for each in CHECKS]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no check {name!r}", where=where, mend=f"the checks are {', '.join(known)}")


def _made(checks: Sequence[Check], *, quick: bool, broken: Sequence[str]) -> Iterator[tuple[Check, Finding, float]]:
    for check in checks:
        start_s = time.monotonic()
        with bench(quick=quick, broken=check.name in broken) as made:
            try:
                finding = check.make(made)
            except MemwardenError as error:
                finding = found(good=False, figure=str(error))
            except Exception as error:  # noqa: BLE001  on a strange machine one check must not take the others along
                finding = found(good=False, figure=f"{type(error).__name__}: {error}")
        yield check, finding, time.monotonic() - start_s


def _row(check: Check, finding: Finding, seconds: float) -> dict[str, Any]:
    return {
        "name": check.name,
        "about": check.about,
        "verdict": finding.verdict,
        "figure": finding.figure,
        "seconds": round(seconds, 3),
        "values": finding.values,
    }


def _line(row: dict[str, Any]) -> str:
    width = max(len(each.name) for each in CHECKS)
    return f"{row['name']:<{width}}  {row['verdict']:<{len(NOT_HERE)}}  {row['seconds']:5.1f} s  {row['figure']}"


def _sum(rows: Sequence[dict[str, Any]]) -> str:
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in (OK, FAILED, NOT_HERE)}
    seconds = sum(row["seconds"] for row in rows)
    return f"{counts[OK]} ok, {counts[FAILED]} failed, {counts[NOT_HERE]} not here, in {seconds:.1f} s"
