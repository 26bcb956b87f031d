"""`memwarden doctor`: the limit and who says so, what this machine can do, and what we cost on it."""

from __future__ import annotations

import os
import sys

from memwarden.blackbox import directory
from memwarden.config import settle
from memwarden.errors import MemwardenError
from memwarden.sense import Machine, Sensor
from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--root", metavar="FOLDER", help="read a captured machine instead of this one")
    parser.add_argument("--pid", type=int, help="another process of this machine")
    parser.add_argument("--capture", metavar="FILE.tar", help="write this machine down for a bug report")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how to print (default: text)")


def run(args: Namespace) -> int:
    """Examine a machine; 0 also where parts of it cannot be read: that is what the answer says."""
    if args.capture and args.pid is not None:
        raise MemwardenError("writes down this process only", where="--capture", mend="leave --pid out")
    machine = _machine(args.root)
    if args.pid is not None and not machine.exists(f"/proc/{args.pid}/status"):
        from memwarden.errors import ProcessNotFoundError

        raise ProcessNotFoundError(args.pid)
    if args.capture:
        from memwarden.cli._capture import capture

        count = capture(machine, args.capture)
        print(f"{count} files written to {args.capture}; look through it before you send it", file=sys.stderr)
        return 0
    document = examine(machine, args.pid)
    if args.format == "json":
        import json

        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(tell(document)))
    return 0


def _machine(root: str | None) -> Machine:
    if root is None:
        return Machine()
    if not os.path.isdir(os.path.join(root, "proc")):
        raise MemwardenError(
            "holds no captured machine", where=root, mend="name a folder with proc/ and sys/ in it, as --capture writes"
        )
    return Machine(root)


def examine(machine: Machine, pid: int | None = None) -> dict[str, Any]:
    """Everything as plain data."""
    settled = (
        settle(environ=machine.environ) if machine.live else None
    )  # a captured folder has no configuration of ours
    setting = settled.config.limit_bytes if settled else None
    origin = f"limit ({settled.origins['limit_bytes']})" if settled else ""
    sensor = Sensor(machine, pid=pid, setting_bytes=setting, setting_source=origin)
    reading = sensor.read()
    place, limit = sensor.place, sensor.limit()
    return {
        "limit_bytes": limit.bytes,
        "limit_source": limit.source,
        "limit_kind": limit.kind,
        "limit_scope": limit.scope,
        "limit_explained": limit.explain(),
        "used_bytes": reading.used_bytes,
        "used_low_bytes": reading.used_low_bytes,
        "headroom_bytes": reading.headroom_bytes,
        "platform": place.platform.name,
        "platform_recognised": place.platform.recognised,
        "cgroup_version": place.cgroup.version if place.cgroup else None,
        "cgroup": place.cgroup.folder if place.cgroup else None,
        "cgroup_reason": place.cgroup_reason,
        "chain": [each.as_dict() for each in limit.chain],
        "reading": reading.flat(),
        "capabilities": _capabilities(machine, sensor),
        "cost_us": _cost(sensor) if machine.live else None,
        "box_folder": directory(settled.config.directory, machine.environ, os.getuid()) if settled else None,
    }


def _capabilities(machine: Machine, sensor: Sensor) -> dict[str, bool | str | None]:
    """What works here; None where a captured folder cannot tell."""
    reading, place = sensor.read(), sensor.place
    folder = place.cgroup.folder if place.cgroup else None
    return {
        "cgroup_limit": place.limit.kind == "cgroup",
        "oom_kill_counter": reading.around.oom_kills is not None,
        "container_peak": reading.around.container_peak_bytes is not None,
        "psi": reading.psi_some_total_us is not None,
        "psi_of_container": bool(folder and machine.exists(f"{folder}/memory.pressure")),
        "swap": bool(reading.around.machine_swap_total_bytes),
        "can_make_cgroup": _can_make_cgroup(machine, folder) if machine.live else None,
        "native_reader": _has_native("_reader") if machine.live else None,
        "native_sizes": _has_native("_sizes") if machine.live else None,
        "native_heap": _has_native("_heap") if machine.live else None,
        "native_vigil": _has_native("_vigil") if machine.live else None,
        "allocator": machine.allocator() if machine.live else None,
        "malloc_trim": machine.trim() is not None if machine.live else None,
        "mallinfo2": machine.native_in_use_bytes() is not None if machine.live else None,
        "forked": machine.forked(),
    }


def _can_make_cgroup(machine: Machine, folder: str | None) -> bool:
    """Whether `memwarden run` could make one below or beside ours: by permission, without making it."""
    return folder is not None and (
        os.access(machine.path(folder), os.W_OK) or os.access(os.path.dirname(folder), os.W_OK)
    )


def _has_native(part: str) -> bool:
    """Whether this accelerator was built: readings and checks, sizes of rows, a stream's heap, a supervisor's sleep."""
    from importlib.util import find_spec

    return find_spec(f"memwarden._native.{part}") is not None


def _cost(sensor: Sensor) -> dict[str, float]:
    """Microseconds of this thread's CPU time for one reading of each kind, here and now: best of five."""
    return {
        name: _time(call) for name, call in (("rss", sensor.rss_bytes), ("tick", sensor.tick), ("read", sensor.read))
    }


def _time(call: Any, rounds: int = 200) -> float:
    from time import thread_time_ns

    best = float("inf")
    for _ in range(5):
        start = thread_time_ns()
        for _ in range(rounds):
            call()
        best = min(best, (thread_time_ns() - start) / rounds / 1000)
    return round(best, 2)


def tell(found: dict[str, Any]) -> list[str]:
    """The examination in words: the answer first, then the chain that led to it."""
    used, limit = found["used_bytes"], found["limit_bytes"]
    share = f" ({format_ratio(used / limit)})" if used is not None and limit else ""
    lines = [
        f"limit     {found['limit_explained']}",
        f"in use    {format_bytes(used)}{share}, of which {format_bytes(found['used_low_bytes'])} cannot be reclaimed",
        f"platform  {found['platform']} ({found['platform_recognised']})",
        f"cgroup    {_say_cgroup(found)}",
        "",
        "chain of limits, in the order of the search:",
    ]
    for each in found["chain"]:
        mark = ">" if each["source"] == found["limit_source"] else " "
        size = format_bytes(each["bytes"]) if each["bytes"] is not None else "-"
        note = f"  ({each['note']})" if each["note"] else ""
        lines.append(f"{mark} {each['kind']:<8} {size:>10}  {each['source']}{note}")
    lines += ["", "what works here:"]
    lines += [f"  {name.replace('_', ' '):<18} {_say(value)}" for name, value in found["capabilities"].items()]
    unknown = found["reading"]["unknown"]
    lines += [f"  unknown: {name}: {reason}" for name, reason in unknown.items()]
    if found["cost_us"]:
        costs = ", ".join(f"{name} {cost:g} us" for name, cost in found["cost_us"].items())
        at_10_hz = format_duration(found["cost_us"]["read"] * 10 / 1e6 * 3600)
        lines += ["", f"what a reading costs on this machine: {costs}; ten whole ones a second are {at_10_hz} an hour"]
    return lines


def _say_cgroup(found: dict[str, Any]) -> str:
    if found["cgroup_version"] is None:
        return f"none: {found['cgroup_reason']}"
    return f"v{found['cgroup_version']} {found['cgroup']}"


def _say(value: bool | str | None) -> str:
    if isinstance(value, str):
        return value
    return "unknown" if value is None else "yes" if value else "no"
