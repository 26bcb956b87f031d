"""Worker programs of the engines, and the bench that the contract suite asks for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from memwarden.supervise.signals import pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memwarden.jobs import Engine, Ledger

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATIENCE_S = 60.0


class Program:
    """A worker program with its children. Its output goes into a file."""

    def __init__(self, command: list[str], folder: str, *, name: str = "worker", **environment: str) -> None:
        self.command, self.folder = command, folder
        self.log = os.path.join(folder, f"{name}.log")
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MEMWARDEN_")},
            "PYTHONPATH": os.pathsep.join([os.path.join(ROOT, "src"), ROOT]), "MEMWARDEN_DIR": folder,
            "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "2", **environment,
            "TMPDIR": folder,  # who is killed does not tidy up
        }  # fmt: skip
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                self.command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def again(self) -> None:
        """Start it anew."""
        self.process = self._start()

    def text(self) -> str:
        """What it has said so far."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def until(self, words: str, *, times: int = 1) -> None:
        """Wait until it says so."""
        for _ in range(int(PATIENCE_S / 0.02)):
            if self.text().count(words) >= times:
                return
            if self.process.poll() is not None:
                break
            pause(0.02)
        raise AssertionError(f"never said {words!r}: {self.text()[-3000:]}")

    def ask_to_end(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL it and all of its session (its own, made above)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """SIGTERM, and where that is not heard SIGKILL; nothing of its session stays."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        self.kill()


@contextlib.contextmanager
def program(command: list[str], folder: str, *, name: str = "worker", **environment: str) -> Iterator[Program]:
    """It runs meanwhile."""
    made = Program([sys.executable, *command], folder, name=name, **environment)
    try:
        yield made
    finally:
        made.end()


class Bench:
    """See tests.jobs.contract: an engine whose workers run already, and a folder of the test's own."""

    has_processes = True

    def __init__(self, engine: Engine, ledger: Ledger, folder: str) -> None:
        self.engine, self.ledger, self.folder = _Noting(engine), ledger, folder

    @property
    def sent(self) -> list[str]:
        return self.engine.sent

    def start(self, workers: int = 2) -> None:
        """They run."""

    def work(self) -> None:
        """They do."""

    def kill_one(self) -> bool:
        """SIGKILL a process that has a part in hand."""
        for part in self.ledger.running(self.engine.name):
            if part.holder is not None and part.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(json.loads(part.holder)["pid"], signal.SIGKILL)
                    return True
        return False


class _Noting:
    """An engine that notes what is sent through it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sent: list[str] = []

    def send(self, text: str, **options: Any) -> None:
        self.sent.append(text)
        self._engine.send(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def wait_for(condition: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait for it."""
    for _ in range(int(patience_s / 0.02)):
        if condition():
            return
        pause(0.02)
    raise AssertionError(f"never saw: {what}")
