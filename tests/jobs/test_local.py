"""The local engine for real: processes, kernel limits, kills."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from memwarden.jobs import Runner
from tests.jobs.contract import EngineContract

if TYPE_CHECKING:
    from collections.abc import Iterator


class LocalBench:
    """A runner whose loop is turned by the waiting test; its parts begin small, whatever this process holds."""

    has_processes = True

    def __init__(self, folder: str, **options: object) -> None:
        self.folder = folder
        self.runner = Runner(folder, memory="2G", workers=2, **options)  # type: ignore[arg-type]  # from a test
        self.ledger, self.engine = self.runner.ledger, self.runner.engine
        self.sent: list[str] = []
        send = self.engine.send

        def record(text: str, **options: object) -> None:
            self.sent.append(text)
            send(text, **options)  # type: ignore[arg-type]  # handed on

        self.engine.send = record  # type: ignore[method-assign]  # to see what would be sent

    def start(self, workers: int = 2) -> None:
        self.runner.begin()

    def work(self) -> None:
        self.runner.turn()

    def kill_one(self) -> bool:
        self.work()
        busy = {part.pid for part in self.ledger.running()}
        for pid in self.runner.pids:
            if pid in busy:
                os.kill(pid, signal.SIGKILL)
                return True
        return False


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBench]:
    made = LocalBench(str(tmp_path_factory.mktemp("bench")), start="spawn", modules=("tests.jobs.work",))
    try:
        yield made
    finally:
        made.runner.close()


class TestLocal(EngineContract):
    """The contract, each part started anew. Parts are forked in test_survival, where the worker is a small process."""
