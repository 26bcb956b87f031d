"""The bench of the checks: throw-away processes, cgroups made for them, and what a check says.

Everything that was made is removed again: the processes by pid, the cgroups, the folder of the black boxes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from memwarden.blackbox import directory, find_boxes, read_box
from memwarden.errors import MemwardenError
from memwarden.facts import Fact
from memwarden.supervise.cgroup import confine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from memwarden.blackbox import Box
    from memwarden.supervise.cgroup import MemoryGroup

# A child needs 0.2 s to start and at most two for its work; a machine ten times as slow has its turn, too.
PATIENCE_S = 20.0
CHILD = "memwarden.cli._selftest.child"

OK, FAILED, NOT_HERE = "ok", "FAILED", "not here"


class Finding(Fact):
    """What one check says: `verdict` is ok, FAILED or not here, `figure` what was measured or why it was not."""

    verdict: str
    figure: str
    values: Mapping[str, Any] = {}


def found(good: bool, figure: str, **values: Any) -> Finding:
    """A check that was made, and its figure."""
    return Finding(verdict=OK if good else FAILED, figure=figure, values=values)


def not_here(reason: str) -> Finding:
    """A check that cannot be made: neither passed nor failed."""
    return Finding(verdict=NOT_HERE, figure=reason)


class ChildError(MemwardenError):
    """A throw-away process did not do its part; the text is its last word."""


class Bench:
    """What every check is given. `quick` takes less memory and fewer rounds; `broken` leaves out what is checked."""

    def __init__(self, folder: str, *, quick: bool, broken: bool, patience_s: float = PATIENCE_S) -> None:
        self.folder = folder
        self.quick = quick
        self.broken = broken
        self._patience_s = patience_s

    def environment(self) -> dict[str, str]:
        """Ours without the settings of the user: they would move the lines that are checked."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMWARDEN_", "MEMORY_"))}
        path = os.pathsep.join(each for each in sys.path if each)  # the same memwarden, also from a source tree
        return {**kept, "MEMWARDEN_DIR": self.folder, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def words(self, name: str, **options: int) -> list[str]:
        """The command line of a throw-away process."""
        return [sys.executable, "-m", CHILD, name, *(f"{key}={int(value)}" for key, value in options.items())]

    def start(
        self, words: list[str], prepare: Callable[[], None] | None = None, *, errors: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """A process that is prepared (joins a cgroup, sets a limit) before it becomes the program."""
        return subprocess.Popen(
            words, preexec_fn=prepare,  # noqa: PLW1509  no other thread runs here that could hold a lock in the fork
            env=self.environment(), stdout=subprocess.PIPE, stderr=errors,
            stdin=subprocess.DEVNULL, text=True, cwd=self.folder,
        )  # fmt: skip

    def end(self, words: list[str], prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        """The same, to its end. Raises ChildError where it hangs."""
        return self._ended(self.start(words, prepare))

    def ask(self, name: str, prepare: Callable[[], None] | None = None, **options: int) -> dict[str, Any]:
        """What a throw-away process found. Raises ChildError where it died."""
        return _answer(name, self.end(self.words(name, **options), prepare))

    def ask_all(self, name: str, *options: dict[str, int]) -> list[dict[str, Any]]:
        """The same of several processes side by side. Raises ChildError where one died."""
        with contextlib.ExitStack() as stack:
            started = []
            for each in options:
                started.append(self.start(self.words(name, **each)))
                stack.callback(kill, started[-1])
            return [_answer(name, self._ended(process)) for process in started]

    def _ended(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        try:
            out, err = process.communicate(timeout=self._patience_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"no end within {self._patience_s:g} s", where=f"process {process.pid}") from None
        finally:
            kill(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def boxes(self) -> list[Box]:
        """The black boxes that the processes of this bench wrote, newest first."""
        return [read_box(path) for path in find_boxes(directory(self.folder, {}, os.getuid()))]

    @contextlib.contextmanager
    def cgroup(self, limit_bytes: int) -> Iterator[tuple[MemoryGroup | None, str]]:
        """A memory cgroup with this limit, or the reason why none can be made."""
        made = confine(limit_bytes)
        try:
            yield (made.cgroup, "") if made.own else (None, "; ".join(made.reasons))
        finally:
            made.release()


def _answer(name: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2] or f"ended with {done.returncode}"
        raise ChildError(last, where=f"the process of {name!r}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def kill(process: subprocess.Popen[str]) -> None:
    """Whatever it does: it is gone, and its pipes are closed."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@contextlib.contextmanager
def bench(*, quick: bool, broken: bool = False) -> Iterator[Bench]:
    """A bench with a folder of its own, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="memwarden-selftest-") as folder:
        yield Bench(folder, quick=quick, broken=broken)
