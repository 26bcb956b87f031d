"""The command line: one file per command, loaded when it is called.

A command file has `add_arguments(parser)` and `run(args) -> exit code`. Machine-readable output goes to stdout,
everything else to stderr. Wrong input is one line and exit code 2. The top level knows no argparse: `--help` must be
quick on a machine that is out of memory.
"""

from __future__ import annotations

import errno
import os
import sys

from memwarden.errors import MemwardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from typing import NoReturn

COMMANDS = {
    "run": "run any command under watch: limit, restart, OOM kills recognised, post-mortem",
    "jobs": "memory-aware jobs: status, statistics, ledger, quarantine, retry, and the worker",
    "monitor": "live table of a process, a tree, all that match a name, or the machine",
    "analyze": "a recorded trace: average, peak, spikes, forecast, recommended limit",
    "serve": "the service: history of every guarded process, alerts delivered, deaths told",
    "history": "how much memory a guarded process used, as the service kept it",
    "report": "one page over a day, a week or a month that a manager can read",
    "status": "the guarded processes of this user, as they are now",
    "gc": "have a running guarded process collect its garbage",
    "cleanup": "have a running guarded process climb its cleanup ladder",
    "alerts": "who is told of what: list, history, ack, resolve, silence, test, check, deliver",
    "postmortem": "what was going on when a process died",
    "doctor": "the limit and who says so, what this machine can do, what we cost on it",
    "simulate": "memory pressure or a leak, in a throw-away process",
    "selftest": "proves on this machine, with figures, that what memwarden claims is so",
    "config": "every setting, its value, and where that came from",
}

USAGE = """usage: memwarden COMMAND [OPTIONS]

Keeps Python services and jobs inside their memory limit.

commands:
{commands}

`memwarden COMMAND --help` says what a command can do; `memwarden --version` which version this is.
"""


# What a full or broken output says. Any other OSError is a fault of ours and shows itself whole.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    if argv is None:
        _prepare_streams()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except MemwardenError as error:
        print(f"memwarden: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): end quietly, as every filter does.
        _hush()
        return 141
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
            raise
        print(f"memwarden: standard output: cannot be written: {error.strerror}", file=sys.stderr)
        _hush()
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _prepare_streams() -> None:
    """Streams that were closed (`>&-`) swallow what is printed; a name that cannot be encoded is written out."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open to the end  open as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open to the end
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _hush() -> None:
    """Drop what standard output did not take, or the interpreter tries again, and complains, at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        usage = USAGE.format(commands="\n".join(f"  {name:<11} {about}" for name, about in COMMANDS.items()))
        print(usage, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from memwarden import __version__

        print(f"memwarden {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _unknown(words[0])
    try:
        return _run(words[0], words[1:])
    except SystemExit as end:  # argparse ends so, after --help and after a complaint
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2


def _unknown(word: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`memwarden --help` lists them"
    print(f"memwarden: there is no command {word!r}; {hint}", file=sys.stderr)
    return 2


def _run(name: str, words: Sequence[str]) -> int:
    from importlib import import_module

    command = import_module(f"memwarden.cli.{name}")
    parser = make_parser(name)
    command.add_arguments(parser)
    code: int = command.run(parser.parse_args(words))
    return code


def make_parser(name: str) -> ArgumentParser:
    """A parser whose complaint is one line."""
    from argparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            print(f"memwarden {name}: {message}; see `memwarden {name} --help`", file=sys.stderr)
            sys.exit(2)

    return Parser(prog=f"memwarden {name}", description=COMMANDS.get(name), allow_abbrev=False)
