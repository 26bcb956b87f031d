"""Where the commands look for black boxes."""

from __future__ import annotations

import os

from memwarden.blackbox import directory, find_boxes
from memwarden.config import settle
from memwarden.errors import BlackBoxError, MemwardenError, ProcessNotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Machine


def box_folder(named: str | None) -> str:
    """The folder with the boxes: of a MEMWARDEN_DIR or itself, when named; else where the settings say.

    Raises BlackBoxError where the named one is no folder, and ConfigError.
    """
    if named is None:
        return directory(settle(environ=os.environ).config.directory, os.environ, os.getuid())
    if not os.path.isdir(named):
        raise BlackBoxError("is no folder", where=named, mend="name a MEMWARDEN_DIR, or a folder with .box files")
    below = directory(named, os.environ, os.getuid())
    try:
        return named if not os.path.isdir(below) and find_boxes(named) else below
    except OSError as error:
        raise BlackBoxError(f"cannot be looked into: {error.strerror}", where=named, mend="name another") from error


def not_guarded(machine: Machine, pid: int, folder: str) -> MemwardenError:
    """What to say of a pid that has no living box: there is no such process, or nobody guards it."""
    if not machine.exists(f"/proc/{pid}/stat"):
        return ProcessNotFoundError(pid)
    return BlackBoxError(f"pid {pid} is not guarded by memwarden", where=folder, mend="`memwarden status` lists who is")
