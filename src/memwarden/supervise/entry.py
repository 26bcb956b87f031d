"""From settings to a supervisor that weighs little.

`hand_over` replaces the process that parsed the command line by a fresh interpreter without site-packages,
the same process to everybody outside: pid, descriptors, terminal and environment stay. `main` is what runs in
it. Measured (RssAnon): argparse and what site-packages pull in cost 1.5-4.5 MiB that the guarded container
would pay for ever.
"""

from __future__ import annotations

import os

from memwarden.errors import MemwardenError
from memwarden.supervise.record import BoxRecord
from memwarden.supervise.settings import command_line, from_words
from memwarden.supervise.spawn import become_subreaper
from memwarden.supervise.supervisor import Supervisor, say_on_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.supervise.settings import Settings


def hand_over(settings: Settings) -> int:
    """Become the supervisor: does not return, or where it must supervises from this heavier process."""
    try:
        become_subreaper()  # here, because ctypes would stay in the lean process; the exec keeps it
    except OSError as error:
        say_on_stderr([f"orphans will not be seen ({error.strerror})"])
    words = command_line(settings)
    if words is not None:
        try:
            os.execv(words[0], words)
        except OSError as error:
            say_on_stderr([f"stays in the larger process ({error.strerror})"])
    return supervise(settings)


def supervise(settings: Settings) -> int:
    """Run it to the end. Returns the exit code; our own failures are one line on stderr."""
    try:
        return Supervisor(settings, open_recorder=BoxRecord).run()
    except MemwardenError as error:
        say_on_stderr([str(error)])
        return error.exit_code


def main(words: list[str]) -> int:
    """The lean process."""
    return supervise(from_words(words))
