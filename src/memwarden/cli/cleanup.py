"""`memwarden cleanup`: have a running guarded process climb its cleanup ladder, and say what that returned."""

from __future__ import annotations

from memwarden.cli import _ask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    _ask.add_arguments(parser)
    parser.add_argument("--all", action="store_true", help="every strategy, whether it is due or not")


def run(args: Namespace) -> int:
    """Ask it."""
    return _ask.run("cleanup --all" if args.all else "cleanup", args)
