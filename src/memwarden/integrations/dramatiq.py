"""Memory-aware jobs on Dramatiq.

    broker = RedisBroker(url=...)         # or RabbitmqBroker
    jobs = Jobs(broker)                   # once, where the broker is made
    jobs.submit(total, count=1000)        # `total` is a function under @job

    dramatiq shop --processes 2 --threads 4

A worker process of Dramatiq lives on, has threads, and takes all others along when it ends. So a part is not performed
in it, but in a child of a small process beside it (`forge`), which is forked before there are threads: memory ends with
every part, a child that was killed is seen with its peak, and the worker process stays what it was. A message is one of
the actor `memwarden.part`, acknowledged behind the part. `--threads` is how many parts a process has at once.

What is not here: Dramatiq's time limit, which raises anywhere in a thread; `@job(timeout=...)` stops a part at a safe
point. Memory of ordinary actors.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from memwarden.errors import ConfigError, JobError, MissingExtraError, StoreError
from memwarden.jobs.ledger import RESEND_S, Worker
from memwarden.jobs.port import Abilities, Message, QueueCount

try:
    from dramatiq import JSONEncoder, Middleware, actor, get_encoder
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.errors import DramatiqError
except ImportError as error:
    raise MissingExtraError("memory-aware jobs on Dramatiq", "dramatiq") from error

from memwarden.integrations.forge import Forge
from memwarden.integrations.keeper import SWEEP_S, Gate, Keeper, gate_for
from memwarden.integrations.submitting import Submitting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq import Broker

    from memwarden.jobs.ledger import Ledger
    from memwarden.jobs.port import Engine
    from memwarden.ports import Watch

__all__ = ["Jobs"]

_log = logging.getLogger("memwarden.jobs")
ACTOR = "memwarden.part"
# Parts are performed in processes of their own. What follows from one would be put into that process's copy.
IN_MEMORY = "memory-aware jobs cannot be performed on a StubBroker, whose queues are in this process's memory"
INSTEAD = "in tests run them on the local engine: memwarden.jobs.Runner"


class Jobs(Submitting, Middleware):
    """Memory-aware jobs on this broker: the engine, its middleware and its actor.

    Workers take from `queues`, and a job that names none goes to the first of them. `pressure` is as for Celery's, the
    rest as Submitting says; the broker is its owner's.
    Raises ConfigError where messages are not JSON.
    """

    name = "dramatiq"
    can = Abilities(fresh=True, counts=True)

    def __init__(
        self, broker: Broker, *, queues: Sequence[str] = ("default",), folder: str | None = None,
        ledger: Ledger | str | None = None, pressure: Watch | bool | None = None, sweep_s: float = SWEEP_S,
        resend_s: float = RESEND_S,
    ) -> None:  # fmt: skip
        if not isinstance(get_encoder(), JSONEncoder):
            raise ConfigError(
                f"is {type(get_encoder()).__name__}, and messages of memory-aware jobs are JSON",
                where="dramatiq.set_encoder", mend="leave Dramatiq's own",
            )  # fmt: skip
        super().__init__(folder=folder, ledger=ledger, resend_s=resend_s)
        self.broker = broker
        self._first_queue = queues[0]
        self._pressure, self._sweep_s = pressure, sweep_s
        self._forge: Forge | None = None
        self._is_of_dramatiq = False  # whether this process is one that its command started, and not its owner's
        first = type(broker.middleware[0]) if broker.middleware else None
        broker.add_middleware(self, before=first)  # hooks before something: others start threads where this forks
        broker.add_middleware(_Boot(self))  # hooks behind something run from the last to the first
        for queue in queues:
            broker.declare_queue(queue)

        def part(text: str) -> None:
            self._part(text)

        # No tries of Dramatiq's own: the ledger has them. A part's time has no limit here.
        options: dict[str, Any] = {"max_retries": 0, "time_limit": float("inf")}
        self.actor = actor(actor_name=ACTOR, queue_name=queues[0], broker=broker, **options)(part)

    @property
    def default_queue(self) -> str:
        """The first that workers take from."""
        return self._first_queue

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """One message to the actor `memwarden.part`. Raises JobError."""
        message = self.actor.message(text).copy(queue_name=queue)
        if message_id:
            message = message.copy(message_id=message_id)
        try:
            self.broker.declare_queue(queue)
            self.broker.enqueue(message)
        except Exception as error:
            if not (isinstance(error, (DramatiqError, OSError)) or _is_of_a_broker(error)):
                raise
            raise JobError(
                f"cannot be reached ({type(error).__name__}: {error})", where="broker", mend="see that it runs"
            ) from error

    def statistics(self) -> tuple[QueueCount, ...]:
        """What waits in the queues that are declared here, and of open jobs. () where the broker cannot be asked."""
        known = self.ledger.queues_waiting(self.name)
        try:
            return tuple(
                QueueCount(queue=name, waiting=self._waiting(name))
                for name in sorted(known | self.broker.get_declared_queues())
            )
        except Exception as error:
            if not (isinstance(error, (DramatiqError, OSError)) or _is_of_a_broker(error)):
                raise
            _log.warning("queues cannot be counted: %s", error)
            return ()

    def _waiting(self, queue: str) -> int | None:
        broker: Any = self.broker
        if hasattr(broker, "get_queue_message_counts"):  # RabbitMQ's
            return int(broker.get_queue_message_counts(queue)[0])
        if hasattr(broker, "client") and hasattr(broker, "namespace"):  # Redis's has no call for it
            return int(broker.client.llen(f"{broker.namespace}:{queue}"))
        return None

    # --- in a worker process -------------------------------------------------------------------------------------

    def _part(self, text: str) -> None:
        if isinstance(self.broker, StubBroker):
            self.ledger.give_up(Message.decode(text), Worker.here(), IN_MEMORY)
            raise JobError(IN_MEMORY, where=ACTOR, mend=INSTEAD)
        if self._forge is None:
            raise JobError("can only be performed in a worker", where=ACTOR, mend="start dramatiq")
        try:
            said = self._forge.run(text)
        except JobError as error:
            self._lost(text, error)
            raise
        refused = said.get("refused")
        if refused is not None:
            _log.error("a message was refused: %s", refused)
            self.refused(text, refused)
            raise JobError(refused)
        if "unreachable" in said:
            _log.error("the ledger cannot be reached: %s; the message is sent again later", said["unreachable"])
            raise JobError(said["unreachable"])
        if said.get("what") == "dropped":
            self.dropped(text)

    def _lost(self, text: str, error: JobError) -> None:
        """Without its forge, and with threads, this process can work no more: what it was given goes to another one."""
        message = Message.decode(text)
        try:
            self.ledger.postpone(message, 0.0, str(error))
        except StoreError as why:
            _log.warning("part %d of job %s is sent again later (%s)", message.part, message.root, why)
        if self._is_of_dramatiq:
            _log.critical("%s; this worker process ends", error)
            os.kill(os.getpid(), signal.SIGTERM)

    def after_process_boot(self, broker: Broker) -> None:
        """A worker process was forked, and has no threads yet."""
        self._is_of_dramatiq = True
        self._start()

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """A Worker without the command line: the last moment before its threads."""
        self._start()

    def _start(self) -> None:
        if self._forge is not None:
            return
        if isinstance(self.broker, StubBroker):
            _log.warning("%s; %s. Ordinary actors are not concerned", IN_MEMORY, INSTEAD)
            return
        if threading.active_count() > 1:
            _log.warning("this process has threads already, which forked children may not survive: start Jobs earlier")
        self.ledger.running(self.name)
        self._forge = Forge(self, lambda: self.ledger, self._keep)
        self._forge.start()

    def _keep(self, engine: Engine) -> tuple[Keeper, Gate | None]:
        """In the forge."""
        keeper = Keeper(engine, self.ledger, folder=self.folder, sweep_s=self._sweep_s)
        gate = gate_for(self._pressure)
        _log.info(
            "what dies comes back: %s; a message that was taken and not begun: %g s", keeper.recovery,
            self.ledger.resend_s,
        )  # fmt: skip
        return keeper, gate

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """SIGTERM: parts stop at their next safe point, once no thread takes another message (their rest)."""
        for thread in worker.workers:
            thread.stop()  # as the worker does next, and only once more
        if self._forge is not None:
            self._forge.drain()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """No thread waits for a part any more."""
        if self._forge is not None:
            self._forge.close()
            self._forge = None
        self.close()


class _Boot(Middleware):
    """Has the forge started before other middleware (the time limit's) starts its threads in a new process."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def after_process_boot(self, broker: Broker) -> None:
        self._jobs.after_process_boot(broker)


def _is_of_a_broker(error: BaseException) -> bool:
    """Dramatiq lets some errors of its brokers' clients through."""
    return type(error).__module__.partition(".")[0] in ("redis", "pika")
