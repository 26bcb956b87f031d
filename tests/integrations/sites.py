"""A site: one worker behind a line to its broker that can be cut, and the engine of this process, over one ledger.

The test module of an engine says `SITE` (a subclass) and `ON` (the brokers, by name); the fixtures are in conftest.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from tests.integrations.proxy import Proxy, proxy
from tests.integrations.workers import Program, program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from tests.integrations.brokers import Broker

# As `memwarden run` limits a worker whose children the kernel is to kill.
LIMITED = ("-m", "memwarden", "run", "--limit", "500M", "--cgroup", "require", "--fence", "off", "--quiet", "--")


class Site:
    """See the module's text."""

    ready: ClassVar[str]  # what the worker says when it has started
    shut: ClassVar[str] = "no more messages are taken"  # and what when memory is short
    open: ClassVar[str] = "messages are taken again"  # and is not any more
    each_peak: ClassVar[bool] = True  # whether the peak of every child that died is known

    def __init__(self, broker: Broker, line: Proxy, worker: Program, folder: str, ledger: str | None) -> None:
        self.broker, self.line, self.worker, self.folder = broker, line, worker, folder
        self.jobs = self.make(broker.url, folder, ledger)
        self.ledger = self.jobs.ledger

    @classmethod
    @contextlib.contextmanager
    def on(cls, broker: Broker, folder: str, *words: str, **environment: str) -> Iterator[Self]:
        """It runs meanwhile; `words` are put in front of the worker's own."""
        with proxy(broker.url) as line:
            environment = {
                "MEMWARDEN_TEST_BROKER": line.url, "MEMWARDEN_TEST_DATABASE": f"{folder}/data.db",
                **cls.environment(), **environment,
            }  # fmt: skip
            with program([*words, *cls.command(line.url, folder)], folder, **environment) as worker:
                worker.until(cls.ready)
                made = cls(broker, line, worker, folder, environment.get("MEMWARDEN_TEST_LEDGER"))
                try:
                    yield made
                finally:
                    made.close()

    # --- what each engine says -----------------------------------------------------------------------------------

    @classmethod
    def command(cls, url: str, folder: str) -> list[str]:
        """The worker's words, behind the interpreter."""
        raise NotImplementedError

    @classmethod
    def environment(cls) -> dict[str, str]:
        """What the worker needs beside the broker's URL."""
        return {}

    def make(self, url: str, folder: str, ledger: str | None) -> Any:
        """The engine, which submits. `ledger` is the URL of a database; None the one in the folder."""
        raise NotImplementedError

    def texts(self, queue: str) -> list[bytes]:
        """The messages of a queue that nobody takes, whole, as the broker has them."""
        raise NotImplementedError

    # --- what they have in common --------------------------------------------------------------------------------

    def put(self, text: str) -> None:
        """Put a message with this text into the worker's queue, past `submit`."""
        self.jobs.send(text, queue="default")

    def close(self) -> None:
        """Close what this process opened."""
        self.jobs.close()
