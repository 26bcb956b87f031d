"""What every adapter's `Jobs` has beside its engine: the ledger of this machine, and how a job gets into it."""

from __future__ import annotations

from memwarden.integrations.keeper import open_store
from memwarden.jobs import submit as submit_job
from memwarden.jobs.ledger import RESEND_S, Ledger
from memwarden.jobs.port import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from memwarden.jobs.definition import Job
    from memwarden.store import Store

__all__ = ["Submitting"]


class Submitting(Engine):
    """An engine that submits to a ledger of its own, or to one that is given.

    `folder` holds the ledger (MEMWARDEN_DIR where not given); or give a `ledger` of your own, for workers of several
    machines. A message that was sent and not taken for `resend_s` is sent again: the broker lost it, or is that far
    behind, and then the second one is dropped.
    """

    def __init__(self, *, folder: str | None = None, ledger: Ledger | None = None, resend_s: float = RESEND_S) -> None:
        self.folder = folder
        self._ledger, self._resend_s = ledger, resend_s
        self._store: Store | None = None

    @property
    def default_queue(self) -> str:
        """Where a job goes that names no queue."""
        return "default"

    @property
    def ledger(self) -> Ledger:
        """Where everything is written. Raises StoreError where it would not survive this process."""
        if self._ledger is None:
            self._store = open_store(self.folder)
            self._ledger = Ledger(self._store, resend_s=self._resend_s)
        return self._ledger

    def close(self) -> None:
        """Close the store, where this opened it. What was given in is its owner's."""
        if self._store is not None:
            self._store.close()
            self._store = self._ledger = None

    def submit(
        self, job: Job, /, *args: Any, queue: str | None = None, priority: int = 0, delay_s: float = 0.0,
        unique: str | None = None, **kwargs: Any,
    ) -> str:  # fmt: skip
        """Write the job down and send its first message; its id, for `ledger.status`, `.result`, `.cancel`.

        What the job itself calls queue, priority, delay_s or unique goes through `jobs.submit`. Raises JobError.
        """
        return submit_job(
            job, job.arguments(args, kwargs), engine=self, ledger=self.ledger, queue=queue or self.default_queue,
            priority=priority, delay_s=delay_s, unique=unique,
        )  # fmt: skip
