"""What the supervisor writes down while it watches, so that it can be read after both are gone.

The seam for the black box: `Supervisor` asks for one Recorder per life of the command.
"""

from __future__ import annotations

import os
import time

from memwarden.blackbox import AGAIN, ASKED, BlackBox, directory
from memwarden.sense import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap
    from typing import Protocol

    from memwarden.supervise.deaths import Death

    class Recorder(Protocol):
        """One life of the command on record."""

        def tick(
            self,
            *,
            monotonic_s: float,
            unix_s: float,
            usage_bytes: int | None,
            rss_bytes: int | None,
            limit_bytes: int | None,
            processes: int,
        ) -> None:
            """One look. `usage_bytes` counts against `limit_bytes`; `rss_bytes` is the command's process."""

        def still_place(self) -> tuple[mmap | bytearray, int, int]:
            """Where a glance is written that sees nothing move since the last tick, and that one's number."""

        def event(self, text: str) -> None:
            """Something happened: an alarm, a stop."""

        def asked(self, text: str) -> None:
            """It is told to end, and all of it with it."""

        def kill(self, text: str) -> None:
            """The kernel killed processes of the tree, in the words of `deaths.Kill`."""

        def end(self, death: Death, *, peak_bytes: int | None, again: str = "") -> None:
            """The life is over, its peak was that; nothing more is written to this record.

            `again` says when the next one begins, if there is to be one.
            """

    # Called with the pid and the words of the command, the limit and who says so, when a life begins.
    OpenRecorder = Callable[[int, tuple[str, ...], int | None, str], Recorder]


class NoRecord:
    """Keeps nothing: for where no black box can be made."""

    def tick(self, **_figures: object) -> None:
        """Nothing."""

    def still_place(self) -> tuple[mmap | bytearray, int, int]:
        """Some bytes that nobody reads."""
        return bytearray(64), 0, 0

    def event(self, text: str) -> None:
        """Nothing."""

    def asked(self, text: str) -> None:
        """Nothing."""

    def kill(self, text: str) -> None:
        """Nothing."""

    def end(self, death: Death, *, peak_bytes: int | None, again: str = "") -> None:
        """Nothing."""


def no_record(_pid: int, _command: tuple[str, ...], _limit_bytes: int | None, _source: str) -> Recorder:
    """The OpenRecorder that keeps nothing."""
    return NoRecord()


# The kind of the event that tells how a life ended; its text is "probably" where that is in doubt, its
# `before_bytes` the peak. Each piece of evidence is an event of its own before it: a long cgroup path needs the room.
DEATH = "death"
EVIDENCE = "evidence"
# The kind of the event of a kernel kill in the tree, which is told for itself.
KILL = "kill"


class BoxRecord:
    """One life of the command in a black box of its own, written from outside."""

    def __init__(self, pid: int, command: tuple[str, ...], limit_bytes: int | None, source: str) -> None:
        folder = directory(None, os.environ, os.getuid())
        self._box = BlackBox(
            folder,
            pid=pid,
            unix_s=time.time(),
            monotonic_s=time.monotonic(),
            kind="outside",
            supervisor_pid=os.getpid(),
            start_ticks=_start_ticks(pid),
            argv=" ".join(command),
        )
        if self._box.reason:
            raise OSError(self._box.reason)
        self._box.place(limit_bytes, source, cgroup=None, oom_kills=None)
        self.still_place = self._box.still_place

    def tick(
        self,
        *,
        monotonic_s: float,
        unix_s: float,
        usage_bytes: int | None,
        rss_bytes: int | None,
        limit_bytes: int | None,
        processes: int,
    ) -> None:
        """One look."""
        self._box.tick(unix_s, monotonic_s, rss_bytes, usage_bytes, limit_bytes)

    def event(self, text: str) -> None:
        """Something happened."""
        self._box.event(time.time(), time.monotonic(), "event", text)

    def asked(self, text: str) -> None:
        """It is told to end, and all of it with it."""
        self._box.event(time.time(), time.monotonic(), ASKED, text)

    def kill(self, text: str) -> None:
        """The kernel killed processes of the tree."""
        self._box.event(time.time(), time.monotonic(), KILL, text)

    def end(self, death: Death, *, peak_bytes: int | None, again: str = "") -> None:
        """How it died, and on what evidence; the file stays for whoever comes next."""
        for text in death.evidence:
            self._box.event(time.time(), time.monotonic(), EVIDENCE, text)
        doubt = "" if death.certain else "probably"
        self._box.event(time.time(), time.monotonic(), DEATH, doubt, before_bytes=peak_bytes)
        if again:
            self._box.event(time.time(), time.monotonic(), AGAIN, again)
        self._box.end_life(death.verdict, exit_status=death.exit_code)
        self._box.close()


def _start_ticks(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return (parse.number(words[19]) or 0) if len(words) > 19 else 0
