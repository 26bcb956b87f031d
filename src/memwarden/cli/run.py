"""`memwarden run -- COMMAND`: parse and check, then become the supervisor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from memwarden.config import settle, table
from memwarden.errors import ConfigError
from memwarden.supervise import allocator
from memwarden.supervise.settings import CGROUP_MODES, FENCE_MODES, RESTART_POLICIES, Settings
from memwarden.units import MIB, format_bytes, parse_bytes, parse_duration, parse_ratio

if TYPE_CHECKING:
    import argparse

# Below it no Python starts, and "512" for 512M is the usual slip.
_SMALLEST_LIMIT = 2 * MIB

DESCRIPTION = (
    "Run any command under watch: a memory limit of its own, kernel OOM kills told from other deaths, "
    "a post-mortem, and a restart policy. The exit code is the command's own."
)
EPILOG = (
    "exit codes: the command's own, 128 + signal, 137 for a kernel OOM kill; 125 memwarden itself failed, "
    "126 the command cannot be executed, 127 it was not found; 2 wrong usage"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `memwarden run`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.usage = "memwarden run [options] -- COMMAND [ARGUMENT ...]"
    add = parser.add_argument
    memory = parser.add_argument_group("memory")
    memory.add_argument("--limit", metavar="SIZE", help="512M, 1.5G, or 80%% of the container's or machine's limit")
    memory.add_argument("--swap", metavar="SIZE", default="0", help="swap it may use on top of the limit (default 0)")
    memory.add_argument(
        "--cgroup",
        choices=CGROUP_MODES,
        default="auto",
        help="auto: a cgroup, else an rlimit and the reason; require: a cgroup or fail; off: an rlimit",
    )
    memory.add_argument("--oom-group", action="store_true", help="a kernel OOM kill takes all processes (cgroup v2)")
    memory.add_argument(
        "--fence",
        choices=FENCE_MODES,
        default="auto",
        help="refuse what does not fit with a MemoryError before the kernel kills; auto: for Python programs that "
        "are no known server and have loaded nothing that crashes then (default auto)",
    )
    memory.add_argument(
        "--brake",
        metavar="TIME",
        default="2s",
        help="how long the alarm line may slow it down (cgroup v2 without a fence, default 2s)",
    )
    memory.add_argument("--allocator", choices=allocator.PRESETS, default="default", help=allocator.HELP)
    again = parser.add_argument_group("restart")
    again.add_argument("--restart", choices=RESTART_POLICIES, default="no", help="after which deaths (default no)")
    again.add_argument("--max-restarts", metavar="N", type=int, help="at most so many (default: any number)")
    again.add_argument(
        "--restart-delay",
        metavar="TIME",
        default="1s",
        help="the first delay; it doubles up to 60 s (default 1s)",
    )
    add("--stop-grace", metavar="TIME", default="10s", help="from SIGTERM to SIGKILL (default 10s)")
    add(
        "--serve",
        action="store_true",
        help="have a service run beside it: history, alerts delivered by a process of its own, deaths told",
    )
    add("--quiet", action="store_true", help="say nothing on stderr but what stops memwarden itself")
    add("command", nargs="...", metavar="COMMAND", help="the program and its arguments, after --")


def run(args: argparse.Namespace) -> int:
    """Become the supervisor of the command; returns its exit code only where no exec is possible."""
    settings = settings_of(args)
    folder = settle(environ=os.environ).config.directory
    if folder is not None:  # a file may have said so, which neither the lean process nor the command's Warden reads
        os.environ["MEMWARDEN_DIR"] = folder
    if args.serve:
        from memwarden.supervise.service.beside import start

        start(os.getpid())  # we become the supervisor, with this very pid
    from memwarden.supervise import entry

    return entry.hand_over(settings)


def settings_of(args: argparse.Namespace) -> Settings:
    """The checked settings. Raises ConfigError, one clear line, before anything is made or started."""
    command = tuple(args.command[1:] if args.command[:1] == ["--"] else args.command)
    if not command:
        raise ConfigError(
            "no command given",
            where="memwarden run",
            mend="write it after --: memwarden run -- python app.py",
        )
    limit, source = _limit(args.limit) if args.limit is not None else (None, "")
    return Settings(
        command=command,
        limit_bytes=limit,
        limit_source=source,
        swap_bytes=_swap(args.swap),
        cgroup=_cgroup_mode(args.cgroup, limit),
        oom_group=args.oom_group,
        fence=args.fence,
        restart=args.restart,
        max_restarts=_count(args.max_restarts),
        restart_delay_s=parse_duration(args.restart_delay, where="--restart-delay"),
        stop_grace_s=parse_duration(args.stop_grace, where="--stop-grace"),
        brake_s=parse_duration(args.brake, where="--brake"),
        environment=allocator.variables(args.allocator, os.environ),
        quiet=args.quiet,
        alerts=_has_alerts(),
    )


def _has_alerts() -> bool:
    """Whether people are to be told of deaths. Raises ConfigError for a table that cannot be used."""
    found, where = table("alerts", environ=os.environ)
    if not found:
        return False
    from memwarden.tell.settings import parse

    return parse(found, where) is not None


def _limit(text: str) -> tuple[int, str]:
    """The limit in bytes, and the words that say where it comes from."""
    if text.strip().endswith("%"):
        return _share(text)
    size = parse_bytes(text, where="--limit")
    if size < _SMALLEST_LIMIT:
        raise ConfigError(
            f"{text} is {format_bytes(size)}, too small for any program",
            where="--limit",
            mend=f"did you mean {text}M?",
        )
    return size, f"--limit {text}"


def _share(text: str) -> tuple[int, str]:
    ratio = parse_ratio(text, where="--limit")
    from memwarden.sense import find_limit
    from memwarden.sense.machine import Machine

    whole = find_limit(Machine())
    if whole.bytes is None:
        raise ConfigError(
            "no limit of this machine could be read", where=f"--limit {text}", mend="give a size such as 512M"
        )
    size = int(whole.bytes * ratio)
    if size < _SMALLEST_LIMIT:
        raise ConfigError(f"{format_bytes(size)} is too small for any program", where=f"--limit {text}")
    return size, f"--limit {text} of {whole.explain()}"


def _swap(text: str) -> int:
    return 0 if text.strip() in ("0", "none") else parse_bytes(text, where="--swap")


def _cgroup_mode(mode: str, limit_bytes: int | None) -> str:
    if mode == "require" and limit_bytes is None:
        raise ConfigError("needs a limit to put on the cgroup", where="--cgroup require", mend="add --limit SIZE")
    return mode


def _count(number: int | None) -> int | None:
    if number is not None and number < 0:
        raise ConfigError(f"{number} is less than none", where="--max-restarts", mend="give 0 or more")
    return number
