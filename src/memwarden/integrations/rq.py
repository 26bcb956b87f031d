"""Memory-aware jobs on RQ: a worker class, and the engine that sends to it.

    jobs = Jobs(Redis())
    jobs.submit(total, count=1000)        # `total` is a function under @job

    rq worker --worker-class memwarden.integrations.rq.MemoryWorker --serializer json

RQ forks a work horse for each message, so memory ends with every part, and a horse that was killed is seen with the
peak it had (wait4's rusage). Messages are JSON: RQ's usual pickle would run whatever somebody puts into Redis. The
worker looks around between waits, in its one thread: it sweeps (one worker of the machine does), has the horse stop at
its next safe point when it is told to end, and takes no more messages while memory is short.

What is not here: `SimpleWorker`, which has no process for a job, and RQ's own time-outs, which interrupt a part
anywhere; `@job(timeout=...)` stops it at a safe point.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from memwarden.errors import ConfigError, JobError, MissingExtraError, StoreError
from memwarden.jobs import perform
from memwarden.jobs.ledger import RESEND_S, Claim, LostError
from memwarden.jobs.port import Abilities, QueueCount
from memwarden.jobs.signals import handle_here

try:
    from redis.exceptions import RedisError
    from rq import Queue, Worker
    from rq.registry import StartedJobRegistry
    from rq.serializers import JSONSerializer
except ImportError as error:
    raise MissingExtraError("memory-aware jobs on RQ", "rq") from error

from memwarden.integrations.keeper import SWEEP_S, Gate, Keeper, gate_for
from memwarden.integrations.submitting import Submitting

if TYPE_CHECKING:
    from memwarden.jobs.ledger import Ledger
    from memwarden.ports import Watch

__all__ = ["Jobs", "MemoryWorker", "part"]

_log = logging.getLogger("memwarden.jobs")
FUNCTION = f"{__name__}.part"
# A message that was refused is kept for somebody to look at for so long.
REFUSED_S = 86400


class Jobs(Submitting):
    """Memory-aware jobs over this Redis connection, which is its owner's; the rest is as Submitting says."""

    name = "rq"
    can = Abilities(fresh=True, counts=True)

    def __init__(
        self,
        connection: Any,
        *,
        folder: str | None = None,
        ledger: Ledger | str | None = None,
        resend_s: float = RESEND_S,
    ) -> None:
        super().__init__(folder=folder, ledger=ledger, resend_s=resend_s)
        self.connection = connection

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """One RQ job without a time-out, of which nothing stays when it has run. Raises JobError."""
        try:
            Queue(queue, connection=self.connection, serializer=JSONSerializer).enqueue_call(
                FUNCTION, args=(text,), timeout=-1, result_ttl=0, failure_ttl=REFUSED_S, description=TITLE,
                job_id=message_id or None,
            )  # fmt: skip
        except RedisError as error:
            raise JobError(
                f"cannot be reached ({type(error).__name__}: {error})", where="Redis", mend="see that it runs"
            ) from error

    def statistics(self) -> tuple[QueueCount, ...]:
        """What waits, and what workers have, in every queue of this Redis. () where it cannot be asked."""
        try:
            # The registry's own `count` also fails what it takes for abandoned: counting changes nothing here.
            return tuple(
                QueueCount(
                    queue=each.name,
                    waiting=each.count,
                    taken=int(self.connection.zcard(StartedJobRegistry(queue=each).key)),
                )
                for each in sorted(Queue.all(connection=self.connection), key=lambda queue: str(queue.name))
            )
        except RedisError as error:
            _log.warning("queues cannot be counted: %s", error)
            return ()


TITLE = "memwarden.part"
STOPPED = "stopped by RQ's stop command, and given up"


class _Here:
    """What a work horse inherits from its worker by the fork."""

    jobs: Jobs | None = None
    # Anonymous and shared: the worker writes, its horse reads.
    word = mmap.mmap(-1, mmap.PAGESIZE)


def part(text: str) -> str:
    """What RQ calls in a work horse. Raises for what must not be tried again; RQ keeps it among the failed ones."""
    jobs = _Here.jobs
    if jobs is None:
        raise JobError(
            "needs memwarden's worker", where=TITLE,
            mend="rq worker --worker-class memwarden.integrations.rq.MemoryWorker --serializer json",
        )  # fmt: skip
    try:
        ending = perform(text, engine=jobs, ledger=jobs.ledger, stop=lambda: _Here.word[0] != 0)
    except JobError as error:
        _log.error("a message was refused: %s", error)
        jobs.refused(text, str(error))
        raise
    except StoreError as error:
        _log.error("the ledger cannot be reached: %s; the message is sent again later", error)
        raise
    if ending.what == "dropped":
        jobs.dropped(text)
    return ending.what


class MemoryWorker(Worker):
    """RQ's forking worker, which also keeps the ledger of memory-aware jobs.

    `jobs` is a Jobs over the same connection (made where not given). `pressure` is a Warden or anything with its
    `check()`, None one for this machine or container, False none.
    """

    def __init__(
        self, queues: Any, *args: Any, jobs: Jobs | None = None, pressure: Watch | bool | None = None,
        sweep_s: float = SWEEP_S, **kwargs: Any,
    ) -> None:  # fmt: skip
        kwargs["serializer"] = kwargs.get("serializer") or JSONSerializer
        kwargs["job_monitoring_interval"] = max(1, int(sweep_s))
        self._pressure, self._sweep_s = pressure, sweep_s
        self._keeper: Keeper | None = None
        self._watched_pid = 0
        self._gate: Gate | None = None
        super().__init__(queues, *args, **kwargs)
        if self.serializer is not JSONSerializer:
            raise ConfigError(
                f"is {self.serializer}, and messages of memory-aware jobs are JSON", where="serializer",
                mend="start the worker with --serializer json; jobs that need pickle get a worker of their own",
            )  # fmt: skip
        self.jobs = jobs or Jobs(self.connection)

    @property
    def dequeue_timeout(self) -> int:
        """It looks around as often as this."""
        return max(1, int(self._sweep_s))

    def bootstrap(self, *args: Any, **kwargs: Any) -> None:
        """Start: what would fail later fails here. Raises StoreError."""
        self.jobs.ledger.running(self.jobs.name)
        _Here.jobs = self.jobs
        _Here.word[0] = 0
        self._keeper = Keeper(self.jobs, self.jobs.ledger, folder=self.jobs.folder, sweep_s=self._sweep_s)
        self._gate = gate_for(self._pressure)
        super().bootstrap(*args, **kwargs)
        resend = self.jobs.ledger.resend_s
        self.log.info(
            "memwarden: what dies comes back: %s; a message that was taken and not begun: %g s",
            self._keeper.recovery, resend,
        )  # fmt: skip

    def teardown(self) -> None:
        """Let another worker of the machine sweep."""
        if self._keeper is not None:
            self._keeper.close()
        super().teardown()  # type: ignore[no-untyped-call]  # RQ's

    def _tick(self) -> None:
        if self._keeper is not None and not self.is_horse:
            self._keeper.tick()

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """RQ's, at each turn of its wait for work."""
        super().heartbeat(*args, **kwargs)
        self._tick()

    def maintain_heartbeats(self, *args: Any, **kwargs: Any) -> None:
        """RQ's, while a horse runs."""
        super().maintain_heartbeats(*args, **kwargs)
        self._tick()

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        """Not while memory is short."""
        gate = self._gate
        if gate is not None and gate.look():
            self.log.warning("memory is short (%s): no more messages are taken until it is NORMAL", gate.words)
            while gate.look():
                threading.Event().wait(1.0)  # SIGTERM ends it by RQ's StopRequested
                self.heartbeat()
            self.log.warning("messages are taken again (%s)", gate.words)
        return super().dequeue_job_and_maintain_ttl(*args, **kwargs)

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM: the horse stops at its next safe point."""
        _Here.word[0] = 1
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]  # RQ's

    def setup_work_horse_signals(self) -> None:
        """A SIGTERM for all of a service's processes is the worker's to answer: the horse is told by it.

        What the horse starts can be told to end.
        """
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]  # RQ's
        handle_here(signal.SIGTERM)

    def monitor_work_horse(self, *args: Any, **kwargs: Any) -> None:
        """RQ's, which forgets the horse's number before it says that it was stopped."""
        self._watched_pid = self.horse_pid
        super().monitor_work_horse(*args, **kwargs)

    def handle_job_failure(self, job: Any, *args: Any, **kwargs: Any) -> None:
        """RQ's. What was stopped by its stop command is not to be tried again: the part is given up."""
        if self._stopped_job_id is not None and self._stopped_job_id == job.id:
            self._give_up(self._watched_pid)
        super().handle_job_failure(job, *args, **kwargs)

    def _give_up(self, pid: int) -> None:
        ledger = self.jobs.ledger
        try:
            its = {claimed for claimed, _ in ledger.claims_of(pid)}
            for part in ledger.running(self.jobs.name) if its else ():
                if (part.root, part.part, part.attempt) in its:
                    ledger.fail(Claim(part=part, job="", type="", arguments={}, options={}), STOPPED, final=True)
                    self.log.warning("memwarden: part %d of job %s: %s", part.part, part.root, STOPPED)
        except LostError:  # its job was cancelled, or it was taken for dead
            return
        except StoreError as error:
            self.log.warning("memwarden: a stopped part could not be given up (%s): it comes back", error)

    def handle_work_horse_killed(self, job: Any, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """A horse died: how, and how much memory it had at most."""
        super().handle_work_horse_killed(job, retpid, ret_val, rusage)  # type: ignore[no-untyped-call]  # RQ's
        if self._keeper is not None and retpid:
            status = None if ret_val is None else os.waitstatus_to_exitcode(ret_val)
            peak = rusage.ru_maxrss * 1024 if rusage is not None else None
            self._keeper.gone(retpid, status, peak_bytes=peak)
