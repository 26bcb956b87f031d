"""Every black box of a run folder: its ticks go into the history, and its end is told once.

A box is kept open while its process may still write. One whose process is gone is folded to its end; then the autopsy
of that life says how it ended, with the supervisor's own box as the second witness where there is one. A supervisor
writes its verdict some milliseconds after the death: it is waited for while that supervisor lives.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager

from memwarden.blackbox import TickReader, find_boxes, read_box
from memwarden.errors import BlackBoxError, MemwardenError
from memwarden.supervise.autopsy import examine
from memwarden.tell.members import is_gone, member_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memwarden.ports import Clock, Machine
    from memwarden.supervise.autopsy import Autopsy
    from memwarden.supervise.service.history import History, Life

__all__ = ["Boxes"]

# Descriptors that are kept: far beyond the 64 dead ones of a folder and what one user guards on one machine.
MOST_BOXES = 512
# How long the verdict of a living supervisor is waited for.
VERDICT_S = 10.0
# Ends before the service came are told when they are so fresh: who starts it after a crash wants to know of that crash.
FRESH_S = 3600.0
_LOG = "memwarden.service"


class _Watched:
    """One box that is followed."""

    def __init__(self, reader: TickReader) -> None:
        self.reader = reader
        self.life: Life | None = None
        self.file: object = None  # of the history, which that life is in
        self.gone_s: float | None = None  # since when its process is gone, monotonic

    @property
    def identity(self) -> tuple[int, int]:
        """The process, whichever box tells of it."""
        return self.reader.pid, self.reader.start_ticks or int(self.reader.start_unix_s)

    @property
    def is_alive(self) -> bool:
        """Whether its process lives."""
        return not is_gone(member_of(self.reader.pid, self.reader.start_ticks))


class Boxes:
    """The boxes of one folder. `on_end(autopsy)` is called once for each death, and again where it raises."""

    def __init__(self, folder: str, *, machine: Machine, clock: Clock, on_end: Callable[[Autopsy], None]) -> None:
        self._folder, self._machine, self._clock, self._on_end = folder, machine, clock, on_end
        self._watched: dict[str, _Watched] = {}
        self._done: set[str] = set()
        self._complained: set[str] = set()
        self._log = logging.getLogger(_LOG)

    def __len__(self) -> int:
        return len(self._watched)

    @property
    def living(self) -> int:
        """How many boxes have a process that lives."""
        return sum(each.gone_s is None for each in self._watched.values())

    def has_posts(self) -> bool:
        """Whether anybody left something to be told."""
        for each in self._watched.values():
            try:
                if each.reader.has_posts():
                    return True
            except OSError:
                continue
        return False

    def close(self) -> None:
        """Close all."""
        for each in self._watched.values():
            each.reader.close()
        self._watched.clear()

    @property
    def is_waiting(self) -> bool:
        """Whether somebody is gone whose end is still to be seen to."""
        return any(each.gone_s is not None for each in self._watched.values())

    def scan(self) -> None:
        """See which boxes came and went, and whose process is gone."""
        try:
            paths = find_boxes(self._folder)
        except OSError as error:
            self._complain(self._folder, f"{self._folder}: cannot be looked into: {error.strerror}")
            return
        for path in set(self._watched) - set(paths):  # removed by whoever keeps the folder small
            self._watched.pop(path).reader.close()
        self._done &= set(paths)
        self._complained &= {*paths, self._folder}
        for path in paths[:MOST_BOXES]:
            if path not in self._watched and path not in self._done:
                self._begin(path)
        if len(paths) > MOST_BOXES:
            self._complain("many", f"{self._folder}: only the newest {MOST_BOXES} of {len(paths)} boxes are followed")
        for each in self._watched.values():
            if each.gone_s is None and not each.is_alive:
                each.gone_s = self._clock.monotonic()

    def _begin(self, path: str) -> None:
        try:
            self._watched[path] = _Watched(TickReader(path))
        except BlackBoxError as error:
            # It may be one that is just being made: it is tried again, and complained about once.
            self._complain(path, str(error))

    def _complain(self, about: str, words: str) -> None:
        if about not in self._complained:
            self._complained.add(about)
            self._log.warning("%s", words)

    def fold(self, history: History | None) -> None:
        """Add what is new to the history. Raises StoreError; what was not added then comes the next time."""
        if history is not None:
            for path, each in self._watched.items():
                with self._apart(path):
                    self._fold(history, path, each)

    def see_to_ends(self, history: History | None) -> None:
        """Have the deaths told that were not. Raises what `on_end` raises, and StoreError."""
        for path, each in tuple(self._watched.items()):
            if each.gone_s is not None and path in self._watched:
                with self._apart(path, ends=True):
                    self._see_to_end(history, path, each)

    @contextmanager
    def _apart(self, path: str, *, ends: bool = False) -> Iterator[None]:
        """What nobody foresaw of one box (it may be made up) is said once, and keeps nobody from the others."""
        try:
            yield
        except (MemwardenError, OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the others go on
            self._complain(path, f"{path}: cannot be followed: {error!r}")
            if ends:
                self._finish(path)

    def _fold(self, history: History, path: str, each: _Watched) -> None:
        reader = each.reader
        if each.life is None or each.file is not history.file:
            each.life, each.file = history.life(
                os.path.basename(path), kind=reader.kind, pid=reader.pid, start_ticks=reader.start_ticks,
                start_unix_s=reader.start_unix_s, argv=reader.argv,
            ), history.file  # fmt: skip
            reader.last, reader.lost = each.life.last, each.life.lost
        before, lost = reader.last, reader.lost
        try:
            ticks = reader.read()
        except OSError as error:
            self._complain(reader.path, f"{reader.path}: cannot be read: {error.strerror}")
            return
        if not ticks and reader.lost == lost:
            return
        known = False
        try:
            known = history.fold(each.life.id, ticks, lost=reader.lost)
        finally:
            if not known:
                reader.last, reader.lost = before, lost  # nothing was added: read again
                each.life = None

    def _see_to_end(self, history: History | None, path: str, each: _Watched) -> None:
        if each.life is not None and each.life.told:
            self._finish(path)
            return
        witnesses = [other for other in self._watched.values() if other.identity == each.identity]
        if self._is_waited_for(witnesses):
            return
        autopsy = self._examine(witnesses)
        if autopsy is None:
            self._finish(path)
            return
        if self._clock.wall() - autopsy.ended_unix_s <= FRESH_S:
            self._on_end(autopsy)
        for other_path, other in tuple(self._watched.items()):
            if other.identity != each.identity:
                continue
            if history is not None:
                self._fold(history, other_path, other)
                if other.life is not None:
                    history.end(other.life.id, autopsy.verdict, told=True)
            self._finish(other_path)

    def _is_waited_for(self, witnesses: list[_Watched]) -> bool:
        """Whether a supervisor is about to say how it ended."""
        for each in witnesses:
            reader = each.reader
            if reader.kind != "outside" or reader.state()[0]:
                continue
            alone_s = self._clock.monotonic() - (each.gone_s if each.gone_s is not None else self._clock.monotonic())
            if alone_s < VERDICT_S and os.path.exists(f"/proc/{reader.supervisor_pid}"):
                return True
        return False

    def _examine(self, witnesses: list[_Watched]) -> Autopsy | None:
        boxes = []
        for each in witnesses:
            try:
                boxes.append(read_box(each.reader.path))
            except BlackBoxError as error:
                self._complain(each.reader.path, str(error))
        return examine(self._machine, tuple(boxes)) if boxes else None

    def _finish(self, path: str) -> None:
        self._done.add(path)
        each = self._watched.pop(path, None)
        if each is not None:
            each.reader.close()
