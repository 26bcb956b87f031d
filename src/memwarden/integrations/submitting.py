"""What every adapter's `Jobs` has beside its engine: the ledger of this machine, how a job gets into it, and what is
written and said of messages that a worker can do nothing with.
"""

from __future__ import annotations

import logging
import mmap

from memwarden.errors import JobError, StoreError
from memwarden.jobs import submit as submit_job
from memwarden.jobs.definition import job_of
from memwarden.jobs.ledger import RESEND_S, Ledger
from memwarden.jobs.places import LEDGER_VARIABLE, open_place
from memwarden.jobs.port import Engine, Message
from memwarden.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from memwarden.jobs.definition import Job
    from memwarden.jobs.shared import SharedPlace

__all__ = ["Submitting", "Tally"]

_log = logging.getLogger("memwarden.jobs")
# A part whose job this worker does not know comes again after 2 s, then after twice as long each time, up to this.
LONGEST_S = 60.0


class Tally:
    """How often each name was met, by this process and all that are forked from it. For logs and pauses, not for truth.

    A name has one of 512 places by its hash, which is kept beside the count; whoever was pushed out of its place is met
    as new.
    """

    PLACES, BYTES, MOST = 512, 8, 255

    def __init__(self) -> None:
        self._table = mmap.mmap(-1, self.PLACES * self.BYTES)  # anonymous and shared

    def add(self, name: str) -> int:
        """Met once more; how often that was, MOST at most."""
        mark = hash(name) % (1 << 56)  # the same in every fork
        at = mark % self.PLACES * self.BYTES
        known = mark.to_bytes(self.BYTES - 1)
        count = self._table[at] + 1 if self._table[at + 1 : at + self.BYTES] == known else 1
        self._table[at : at + self.BYTES] = min(count, self.MOST).to_bytes(1) + known
        return min(count, self.MOST)


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
        self._dropped, self._refused = Tally(), Tally()

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

    @property
    def where(self) -> str:
        """The ledger's file, or its URL without a password."""
        place = self._place
        if place is None:
            return "the one that Jobs was given"
        return str(place.path if isinstance(place, Store) else place.where)

    # --- in a worker, of a message that it could do nothing with -------------------------------------------------

    def dropped(self, text: str) -> None:
        """There was nothing to do for it. Where that is because its job is not in this ledger, say so, once for a job.

        It is not put back: no worker with this ledger could do it, and the submitter's ledger has it sent again.
        """
        message = Message.decode(text)
        if self._dropped.add(message.root) > 1:  # also for one that is known: a doubled message costs one look
            return
        try:
            known = self.ledger.status(message.root) is not None
        except StoreError as error:
            _log.debug("whether job %.40r is known cannot be seen: %s", message.root, error)
            return
        if not known:
            _log.warning(
                "job %.40r is not in the ledger of this worker (%s): its message was dropped, and what is sent of it "
                "again will be. Unless it is over and forgotten, it was submitted to another ledger: give worker and "
                "submitter the same MEMWARDEN_DIR or %s", message.root, self.where, LEDGER_VARIABLE,
            )  # fmt: skip

    def refused(self, text: str, why: str) -> None:
        """The job is not known in this worker: write down why, and have it sent again soon, to whoever takes it."""
        try:
            message = Message.decode(text)
            self.ledger.postpone(message, min(LONGEST_S, 2.0 ** self._refused.add(message.id)), why)
        except JobError:  # none of ours
            return
        except StoreError as error:
            _log.warning("why it was refused could not be written: %s", error)

    # --- for whoever submits -------------------------------------------------------------------------------------

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
