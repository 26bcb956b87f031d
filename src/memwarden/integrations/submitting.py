"""What every adapter's `Jobs` has beside its engine: the ledger of this machine, and how a job gets into it."""

from __future__ import annotations

from memwarden.jobs import submit as submit_job
from memwarden.jobs.definition import job_of
from memwarden.jobs.ledger import RESEND_S, Ledger
from memwarden.jobs.places import open_place
from memwarden.jobs.port import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from memwarden.jobs.definition import Job
    from memwarden.jobs.shared import SharedPlace
    from memwarden.store import Store

__all__ = ["Submitting"]


class Submitting(Engine):
    """An engine that submits to a ledger of its own, or to one that is given.

    `folder` holds the ledger of this machine's workers. Those of several machines need one in a database: `ledger` is
    its URL (PostgreSQL, MariaDB), or a Ledger of your own. Without both it is where MEMWARDEN_LEDGER says, a URL too,
    or in MEMWARDEN_DIR. A message that was sent and not taken for `resend_s` is sent again: the broker lost it, or is
    that far behind, and then the second one is dropped. Where a worker counts that it is only behind, that takes eight
    times as long.
    """

    def __init__(
        self, *, folder: str | None = None, ledger: Ledger | str | None = None, resend_s: float = RESEND_S
    ) -> None:
        self.folder = folder
        self._ledger = None if isinstance(ledger, str) else ledger
        self._url, self._resend_s = ledger if isinstance(ledger, str) else None, resend_s
        self._place: Store | SharedPlace | None = None

    @property
    def default_queue(self) -> str:
        """Where a job goes that names no queue."""
        return "default"

    @property
    def ledger(self) -> Ledger:
        """Where everything is written. Raises StoreError where it would not survive this process."""
        if self._ledger is None:
            self._place = open_place(self.folder, url=self._url)
            self._ledger = Ledger(self._place, resend_s=self._resend_s)
        return self._ledger

    def close(self) -> None:
        """Close what was opened here. A Ledger that was given in is its owner's."""
        if self._place is not None:
            self._place.close()
            self._place = self._ledger = None

    def submit(
        self, job: Job | type, /, *args: Any, queue: str | None = None, priority: int = 0, delay_s: float = 0.0,
        unique: str | None = None, **kwargs: Any,
    ) -> str:  # fmt: skip
        """Write the job down and send its first message; its id, for `ledger.status`, `.result`, `.cancel`.

        What the job itself calls queue, priority, delay_s or unique goes through `jobs.submit`. Raises JobError.
        """
        arguments = job_of(job).arguments(args, kwargs)
        return submit_job(
            job, arguments, engine=self, ledger=self.ledger, queue=queue or self.default_queue, priority=priority,
            delay_s=delay_s, unique=unique,
        )  # fmt: skip
