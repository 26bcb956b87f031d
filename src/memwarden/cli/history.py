"""`memwarden history`: what the service kept of a guarded process's memory."""

from __future__ import annotations

import os
import sys
import time

from memwarden.clock import SystemClock
from memwarden.config import settle
from memwarden.errors import ConfigError, StoreError
from memwarden.store import state_directory
from memwarden.supervise.service.fold import TIERS
from memwarden.supervise.service.history import FILE_NAME, History
from memwarden.units import format_bytes, format_duration, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from memwarden.supervise.service.fold import Tier
    from memwarden.supervise.service.history import Life, Point

# What fits a screen, more or less: the tier is the finest one that has fewer buckets in the time asked for.
_ROWS = 120
_TIERS = {tier.name: tier for tier in TIERS}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--pid", type=int, help="the process; without, the lives on record are listed")
    parser.add_argument("--last", metavar="TIME", default="1h", help="how far back (default: 1h)")
    parser.add_argument("--step", choices=tuple(_TIERS), help="the buckets (default: as fits --last)")
    parser.add_argument("--dir", help="the MEMWARDEN_DIR to look in")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")


def run(args: Namespace) -> int:
    """Print it. Raises StoreError where there is no history."""
    last_s = parse_duration(args.last, where="--last")
    folder = state_directory(args.dir or settle(environ=os.environ).config.directory, os.environ)
    if folder is None or not _is_there(os.path.join(folder, FILE_NAME)):
        raise StoreError("there is no history", where=folder or "memwarden history", mend="`memwarden serve` keeps one")
    with History(folder, clock=SystemClock(), repair=False) as history:
        if args.pid is None:
            _print_lives(history.lives(), args.format)
            return 0
        lives = history.lives(pid=args.pid)
        if not lives:
            raise ConfigError(f"nothing is on record of pid {args.pid}", where="--pid", mend="leave it out for a list")
        tier = _TIERS[args.step] if args.step else _tier_for(last_s)
        now = time.time()
        points = history.points(lives[0].id, tier, now - last_s, now + 1)
        _print_points(lives[0], tier, points, args.format)
    return 0


def _is_there(path: str) -> bool:
    """Whether there is one. Raises StoreError where that cannot be seen."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"cannot be looked into: {error.strerror}", where=path, mend="it is another user's") from error
    return True


def _tier_for(last_s: float) -> Tier:
    return next((tier for tier in TIERS if last_s / tier.step_s <= _ROWS and last_s <= tier.keep_s), TIERS[-1])


def _print_lives(lives: tuple[Life, ...], how: str) -> None:
    if how == "json":
        import json

        print(json.dumps({"lives": [each.as_dict() for each in lives]}, indent=2))
        return
    if not lives:
        print("no process is on record", file=sys.stderr)
    now = time.time()
    for each in lives:
        ended = f", {each.verdict}" if each.verdict else ""
        seen = format_duration(max(0.0, now - each.seen_unix_s))
        print(f"{each.pid:>8}  {each.kind:<7}  seen {seen} ago{ended}  {each.argv[:60]}")


def _print_points(life: Life, tier: Tier, points: tuple[Point, ...], how: str) -> None:
    if how == "json":
        import json

        rows = [{**each.as_dict(), "level": each.level.name} for each in points]
        print(json.dumps({"life": life.as_dict(), "step_s": tier.step_s, "points": rows}, indent=2))
        return
    print(f"pid {life.pid}, {life.argv[:80]}: one row for each {tier.name} in which it was looked at", file=sys.stderr)
    print("TIME                 IN USE min    average       max           LIMIT         LOOKS  LEVEL")
    for each in points:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.unix_s))
        sizes = (each.used_min, each.used_average, each.used_max, each.limit_bytes)
        words = "  ".join(f"{format_bytes(size):<12}" for size in sizes)
        print(f"{at}  {words}  {each.count:>5}  {each.level.name}")
