"""`memwarden config`: every setting, its value, and where that came from."""

from __future__ import annotations

import sys

from memwarden.config import SETTINGS, Config, Settled, settle, table
from memwarden.errors import ConfigError
from memwarden.sense import Machine, find_cgroup, identify
from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

# Variables that are no settings: where the settings are, which preset, and who watches.
_OTHERS = {"MEMWARDEN_CONFIG", "MEMWARDEN_PRESET", "MEMWARDEN_SUPERVISOR"}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")
    parser.add_argument("--preset", default="auto", help="render, local, balanced, none, or auto: by the platform")


def run(args: Namespace) -> int:
    """Print the settings as a Warden started here would have them."""
    machine = Machine()
    platform = identify(machine, find_cgroup(machine)[0])
    preset = None if args.preset == "none" else args.preset
    settled = settle(environ=machine.environ, platform=platform.name, preset=preset)
    code, wrong = _alerts(machine.environ)
    for line in (*_unread(machine.environ), *wrong):
        print(f"memwarden config: {line}", file=sys.stderr)
    if args.format == "json":
        import json

        rows = {
            each.name: {
                "value": getattr(settled.config, each.key),
                "origin": settled.origins[each.key],
                "variable": each.variable,
                "aliases": [alias for alias, _ in each.aliases],
            }
            for each in SETTINGS
        }
        json.dump({"platform": platform.name, "preset": settled.preset, "settings": rows}, sys.stdout, indent=2)
        print()
        return code
    print(f"platform {platform.name} ({platform.recognised}), preset {settled.preset or 'none'}")
    _print_table(settled)
    return code


def _alerts(environ: Mapping[str, str]) -> tuple[int, Sequence[str]]:
    """What is wrong in the table `[alerts]`, a line for each; 2 where nothing could start with it."""
    found, where = table("alerts", environ=environ)
    if not found:
        return 0, ()
    from memwarden.tell.sender import build_channels, complaints
    from memwarden.tell.settings import parse

    try:
        settings = parse(found, where or "alerts")
        return 0, complaints(build_channels(settings, environ)[1]) if settings is not None else ()
    except ConfigError as error:
        return 2, (str(error),)


def _unread(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that looks like ours and that nothing reads: most likely a slip of the pen."""
    from difflib import get_close_matches

    known = {each.variable for each in SETTINGS} | {alias for each in SETTINGS for alias, _ in each.aliases}
    lines = []
    for name in sorted(environ):
        if name.startswith("MEMWARDEN_") and name not in known | _OTHERS:
            near = get_close_matches(name, known | _OTHERS, n=1)
            lines.append(f"{name} is set and nothing reads it" + (f"; did you mean {near[0]}?" if near else ""))
    return lines


def _print_table(settled: Settled) -> None:
    rows = [("setting", "value", "origin", "variable", "what it is for")]
    for each in SETTINGS:
        names = " ".join((each.variable, *(alias for alias, _ in each.aliases)))
        rows.append((each.name, show(settled.config, each.key), settled.origins[each.key], names, each.about))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())


def show(config: Config, key: str) -> str:
    """A setting's value for people, by the unit in its name."""
    value = getattr(config, key)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if key.endswith("_bytes"):
        return format_bytes(value)
    if key.endswith("_s"):
        return format_duration(value)
    return format_ratio(value) if isinstance(value, float) else str(value)
