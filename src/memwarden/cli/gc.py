"""`memwarden gc`: have a running guarded process collect its garbage, and say what that returned."""

from __future__ import annotations

from memwarden.cli import _ask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    _ask.add_arguments(parser)


def run(args: Namespace) -> int:
    """Ask it."""
    return _ask.run("gc", args)
