"""Memory-aware jobs on Celery 5, and ordinary Celery tasks that keep inside a memory limit.

    app = Celery("shop", broker="redis://...")
    jobs = Jobs(app)                      # once, where the app is made
    jobs.submit(total, count=1000)        # `total` is a function under @job
    celery -A shop worker                 # workers need nothing else

A message is one ordinary task, `memwarden.part`: small, acknowledged late, no canvas. The ledger is the truth, so what
Celery delivers twice or loses does no harm. In a worker this adds, by a pool that is prefork's with another child, and
by two bootsteps: the sweep (one process of the machine does it), a stop at the next safe point when the worker is told
to end, children that are replaced when they hold memory that they do not give back, deaths told apart, and a pause of
consumption while memory is short.

`MemoryTask` and `memory_aware` are for tasks that are no jobs: a limit, records, peak and growth, and another try in a
fresh child where the limit is reached.

What is not here: threads, gevent, eventlet and solo pools. Memory goes back to the machine with the process that had
it, and those pools have one process for everything.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import mmap
import os
import resource
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from memwarden.errors import ConfigError, JobError, MemoryPressureError, MissingExtraError, StoreError
from memwarden.flow.forks import renew_in_child
from memwarden.jobs import perform
from memwarden.jobs.guard import FASTEST_BYTES_PER_S, LONGEST_S, SHORTEST_S, Guard
from memwarden.jobs.ledger import RESEND_S
from memwarden.jobs.port import Abilities, QueueCount
from memwarden.jobs.run import Stopped
from memwarden.sense import Machine
from memwarden.units import MIB, format_bytes, parse_bytes

try:
    from billiard.pool import EX_RECYCLE
    from billiard.pool import Pool as ThreadedPool
    from billiard.pool import Worker as ThreadedChild
    from celery import Task, bootsteps
    from celery._state import get_current_worker_task
    from celery.concurrency import ALIASES
    from celery.concurrency.asynpool import AsynPool
    from celery.concurrency.asynpool import Worker as AsynChild
    from celery.concurrency.prefork import TaskPool
    from celery.exceptions import Reject, Retry
    from kombu.exceptions import KombuError
    from kombu.messaging import Producer
except ImportError as error:
    raise MissingExtraError("memory-aware jobs on Celery", "celery") from error

from memwarden.integrations.keeper import SWEEP_S, Gate, Keeper, gate_for
from memwarden.integrations.submitting import Submitting

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from memwarden.jobs.ledger import Ledger
    from memwarden.ports import Watch

__all__ = ["Jobs", "MemoryPool", "MemoryTask", "check", "memory_aware", "memory_of"]

_log = logging.getLogger("memwarden.jobs")
TASK = "memwarden.part"
POOL = f"{__name__}:MemoryPool"
# How often the main process looks: at memory, at deaths, and (every SWEEP_S) for what was lost.
TICK_S = 1.0
# A ledger that cannot be reached is asked again after so long; the broker delivers at once.
PATIENCE_S = 1.0
# A child is replaced only where that gives back so much: what it had at its birth comes with the next one.
LEAST_BYTES = 8 * MIB
# Sending may block a worker's main loop: it gives up after three tries within about a second.
RETRIES = {"max_retries": 2, "interval_start": 0.0, "interval_step": 0.2, "interval_max": 0.4}
CONNECT_S, ANSWER_S = 4.0, 10.0
STAMP = "memwarden"
# What a reader takes for a header that is not there (Celery's message protocol 2 calls these optional).
SILENT: tuple[Any, ...] = (None, "", {}, [None, None])
ZERO = frozenset({"retries", "replaced_task_nesting"})
# Properties that nobody reads: there is no reply, and what is told of the arguments is a header where it is anything.
UNASKED = ("reply_to", "argsrepr", "kwargsrepr")


# --- in a child --------------------------------------------------------------------------------------------------


class _Child:
    """What this process knows of itself: whether it is to be replaced, and whether the worker is to end."""

    def __init__(self) -> None:
        # Anonymous and shared: the main process writes, children forked from it read. Started afresh by another start
        # method a child has one of its own, and then a part runs to its end when the worker is told to stop.
        self._word = mmap.mmap(-1, mmap.PAGESIZE)
        self._machine = Machine()
        page = os.sysconf("SC_PAGE_SIZE")
        self.resident = self._machine.number("/proc/self/statm", index=1, scale=page)
        self.most_bytes: int | None = None
        self.born_bytes = 0
        self.leave = ""
        self._warned = False

    def begin(self) -> None:
        """The child was born."""
        self.leave, self._warned = "", False
        self.born_bytes = self.resident.value() or 0

    @property
    def draining(self) -> bool:
        """Whether the worker was told to end."""
        return self._word[0] != 0

    @draining.setter
    def draining(self, value: bool) -> None:
        self._word[0] = int(value)

    def should_leave(self) -> str:
        """Why this process should be replaced before its next task; "" where there is no reason.

        By what it holds now, and not by its peak: a spike whose memory went back does not cost a child.
        """
        most = self.most_bytes
        if self.leave or most is None:
            return self.leave
        size = self.resident.value()
        if size is None or size < most:
            return ""
        self._machine.trim()
        size = self.resident.value() or 0
        if size < most:
            return ""
        if size - self.born_bytes >= LEAST_BYTES:
            return f"it holds {format_bytes(size)}, at most {format_bytes(most)} are allowed"
        if not self._warned:
            self._warned = True
            _log.warning(
                "children start with %s, and memory_per_child is %s: replacing them would not help; raise it, or load "
                "less before the fork", format_bytes(self.born_bytes), format_bytes(most),
            )  # fmt: skip
        return ""


_child = _Child()


class _Leaving:
    """A pool child that looks at itself before it takes a task, and ends where it should be replaced."""

    def on_loop_start(self, pid: int) -> None:
        _child.begin()
        super().on_loop_start(pid)  # type: ignore[misc]  # Celery's

    def _make_protected_receive(self, conn: Any) -> Any:
        receive = super()._make_protected_receive(conn)  # type: ignore[misc]  # billiard's

        def checked() -> Any:
            why = _child.should_leave()
            if why:
                _log.info("worker child %d is replaced: %s", os.getpid(), why)
                sys.exit(EX_RECYCLE)  # as at worker_max_tasks_per_child: what was done is acknowledged before
            return receive()

        return checked


class _AsynChild(_Leaving, AsynChild):  # type: ignore[misc]  # Celery has no types
    pass


class _ThreadedChild(_Leaving, ThreadedChild):  # type: ignore[misc]  # billiard has no types
    pass


# --- in the main process -----------------------------------------------------------------------------------------


class _Watched:
    """A pool that tells which of its children died, and how."""

    on_gone: Callable[[int, int | None, bool], object] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._timed_out: set[int] = set()
        super().__init__(*args, **kwargs)
        kill = getattr(self, "on_hard_timeout", None)
        if kill is not None:

            def noted(job: Any) -> None:
                self._timed_out.add(job._worker_pid)  # noqa: SLF001  billiard has no other name for it
                kill(job)

            self.on_hard_timeout = noted

    def _join_exited_workers(self, shutdown: bool = False) -> Any:  # billiard passes it by this name
        before = {child.pid: child for child in self._pool}  # type: ignore[attr-defined]  # billiard's, of the pool that this is mixed into
        gone = super()._join_exited_workers(shutdown=shutdown)  # type: ignore[misc]  # billiard's
        for pid, child in before.items() if gone else ():
            if child.exitcode is not None and self.on_gone is not None:
                timed_out = pid in self._timed_out
                self._timed_out.discard(pid)
                self.on_gone(pid, child.exitcode, timed_out)
        return gone

    def tell_the_rest(self) -> None:
        """Of children that ended while the pool did, when nobody looks for them one by one any more."""
        for child in self._pool:  # type: ignore[attr-defined]  # as above
            if child.exitcode is not None and self.on_gone is not None:
                self.on_gone(child.pid, child.exitcode, child.pid in self._timed_out)


class _AsynPool(_Watched, AsynPool):  # type: ignore[misc]  # Celery has no types
    Worker = _AsynChild


class _ThreadedPool(_Watched, ThreadedPool):  # type: ignore[misc]  # billiard has no types
    Worker = _ThreadedChild


class MemoryPool(TaskPool):  # type: ignore[misc]  # Celery has no types
    """Prefork, with children that can be replaced after any task. `Jobs` sets it as `worker_pool`."""

    Pool = _AsynPool
    BlockingPool = _ThreadedPool
    on_down: Callable[[], object] | None = None

    def on_stop(self) -> None:
        """Celery's: the children finish what they have."""
        self._down(super().on_stop)

    def on_terminate(self) -> None:
        """Celery's: they are killed."""
        self._down(super().on_terminate)

    def _down(self, end: Callable[[], object]) -> None:
        pool = self._pool
        end()
        if pool is not None:
            pool.tell_the_rest()
        if self.on_down is not None:
            self.on_down()


class _WorkerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Says at start what cannot work, and has parts stop at their next safe point when the worker ends."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        jobs = worker.app.memwarden_jobs
        try:
            jobs.check(worker.pool_cls, worker.app.amqp.queues.consume_from)
        except (ConfigError, StoreError) as error:
            raise SystemExit(f"memwarden: {error}") from None
        _child.draining = False
        self.enabled = jobs.are_done_here

    def start(self, worker: Any) -> None:
        worker.app.memwarden_jobs.begin(worker)

    def close(self, worker: Any) -> None:
        _child.draining = True

    def stop(self, worker: Any) -> None:
        worker.app.memwarden_jobs.leave()

    terminate = stop


class _ConsumerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Looks around every second, in the event loop: from the thread that forks the children."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, consumer: Any) -> bool:
        return bool(consumer.app.memwarden_jobs.are_done_here)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        self._timer = consumer.timer.call_repeatedly(TICK_S, consumer.app.memwarden_jobs.tick, (consumer,))

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    terminate = stop


class _Sender(Producer):
    """Leaves out what says nothing: it was a third of a message."""

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        if isinstance(body, tuple):  # protocol 2: the last of three is about callbacks and canvases
            body = *body[:-1], _said(body[-1])
        options["headers"] = _said(options.get("headers") or {})
        for name in UNASKED:
            options.pop(name, None)
        return super().publish(body, *args, **options)  # type: ignore[no-untyped-call]  # kombu has few types


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in SILENT and not (name in ZERO and value == 0)}


class Jobs(Submitting):
    """Memory-aware jobs on this app. Makes it the pool, the task and the steps; give `app` to all who share a ledger.

    `folder`, `ledger` and `resend_s` are as Submitting says. `memory_per_child` ("400M") has a child replaced, after
    its task, when it holds more than that then (not when it once did); it is for all tasks. `pressure` is a Warden or
    anything with its `check()`: at CRITICAL the worker takes no more messages until NORMAL, for a minute at most; None
    is a Warden for this machine or container, False switches it off.
    """

    name = "celery"

    def __init__(
        self,
        app: Any,
        *,
        folder: str | None = None,
        ledger: Ledger | str | None = None,
        memory_per_child: str | int | None = None,
        pressure: Watch | bool | None = None,
        sweep_s: float = SWEEP_S,
        resend_s: float = RESEND_S,
    ) -> None:
        super().__init__(folder=folder, ledger=ledger, resend_s=resend_s)
        self.app = app
        self._sweep_s = sweep_s
        self._pressure = pressure
        self._keeper: Keeper | None = None
        self._gate: Gate | None = None
        self._foreign_pool = ""
        self.after_fork()
        renew_in_child(self)
        if memory_per_child is not None:
            _child.most_bytes = parse_bytes(memory_per_child, where="memory_per_child")
        app.conf.worker_pool = POOL
        app.steps["worker"].add(_WorkerStep)
        app.steps["consumer"].add(_ConsumerStep)
        app.memwarden_jobs = self

        def part(text: str) -> str:
            return self._part(text)

        self.task = app.task(
            part, name=TASK, shared=False, acks_late=True, acks_on_failure_or_timeout=True,
            reject_on_worker_lost=False, ignore_result=True, serializer="json", max_retries=0, trail=False,
            store_errors_even_if_ignored=False,
        )  # fmt: skip

    @property
    def default_queue(self) -> str:
        """The app's."""
        return str(self.app.conf.task_default_queue)

    def close(self) -> None:
        """Close what was opened: the connection to the broker, and the store where this opened it."""
        with self._lock:
            self._disconnect()
        super().close()

    # --- the engine ----------------------------------------------------------------------------------------------

    @property
    def can(self) -> Abilities:
        """No delay: Celery's countdown holds the message in a worker; the sweep sends it when it is due.

        Priority where the app has set it up: `queue_order_strategy` "priority" on Redis, `task_queue_max_priority` on
        RabbitMQ.
        """
        conf = self.app.conf
        strategy = (conf.broker_transport_options or {}).get("queue_order_strategy")
        ranked = strategy == "priority" if self._is_redis else bool(conf.task_queue_max_priority)
        return Abilities(priority=ranked, counts=True)

    @property
    def _is_redis(self) -> bool:
        return str(self.app.conf.broker_url or "").partition(":")[0] in ("redis", "rediss", "sentinel", "valkey")

    def after_fork(self) -> None:
        """In a forked child: what was connected is the parent's."""
        self._lock = threading.Lock()
        self._connection: Any = None
        self._producer: Any = None

    def _connect(self) -> Any:
        if self._producer is None:
            options: dict[str, Any] = {"confirm_publish": True, "max_retries": 1}
            options |= (
                {"socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S}
                if self._is_redis
                else {"read_timeout": ANSWER_S, "write_timeout": ANSWER_S}
            )
            self._connection = self.app.connection_for_write(connect_timeout=CONNECT_S, transport_options=options)
            self._producer = _Sender(self._connection, auto_declare=False)  # type: ignore[no-untyped-call]  # as above
        return self._producer

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except (KombuError, OSError) as error:
                _log.debug("closing a broken connection: %s", error)

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """One message of the task `memwarden.part`. Raises JobError where the broker cannot be reached."""
        rank = {"priority": 9 - priority if self._is_redis else priority} if self.can.priority else {}
        with self._lock:
            try:
                producer = self._connect()
                self.task.apply_async(
                    (text,), task_id=message_id or None, producer=producer,
                    queue=self.app.conf.task_default_queue if queue == "default" else queue, retry=True,
                    retry_policy=RETRIES, argsrepr="", kwargsrepr="", add_to_parent=False, **rank,
                )  # fmt: skip
            except Exception as error:
                foreign = self._connection is not None and isinstance(
                    error, self._connection.connection_errors + self._connection.channel_errors
                )
                where = "broker" if self._connection is None else self._connection.as_uri()
                self._disconnect()
                if not foreign and not isinstance(error, (KombuError, OSError)):
                    raise
                raise JobError(
                    f"cannot be reached ({type(error).__name__}: {error})", where=where, mend="see that it runs"
                ) from error

    def statistics(self) -> tuple[QueueCount, ...]:
        """What waits in the queues of the app and of open jobs. () where the broker cannot be asked."""
        with self._lock:
            try:
                self._connect()
                return tuple(self._count())
            except (KombuError, OSError) as error:
                _log.warning("queues cannot be counted: %s", error)
            except self._connection.connection_errors as error:
                _log.warning("queues cannot be counted: %s", error)
            self._disconnect()
            return ()

    def _count(self) -> Iterator[QueueCount]:
        named = self.ledger.queues_waiting(self.name)
        default = self.app.conf.task_default_queue
        for name in sorted((named - {"default"}) | {default, *self.app.amqp.queues}):
            # Its own: asking RabbitMQ for what is not there closes it.
            with contextlib.closing(self._connection.channel()) as channel:
                try:
                    count = channel.queue_declare(queue=name, passive=True).message_count
                except self._connection.channel_errors:
                    count = 0
            yield QueueCount(queue=name, waiting=count)
            if name == default != "default" and "default" in named:  # jobs that name no queue may be under either
                yield QueueCount(queue="default", waiting=count)

    # --- in a child ----------------------------------------------------------------------------------------------

    def _part(self, text: str) -> str:
        """The task. What a job's code raises never leaves `perform`."""
        try:
            if not self.are_done_here:
                raise JobError(  # noqa: TRY301  refused as what is not known here
                    f"was sent to a queue of a worker with the pool {self._foreign_pool!r}", where=TASK,
                    mend="have only prefork workers consume the queues of memory-aware jobs",
                )  # fmt: skip
            ending = perform(text, engine=self, ledger=self.ledger, stop=lambda: _child.draining)
        except JobError as error:
            _log.error("a message was refused: %s", error)
            self.refused(text, str(error))
            raise Reject(str(error), requeue=False) from None
        except StoreError as error:
            _log.error("the ledger cannot be reached: %s", error)
            _child.leave = "the ledger could not be reached"  # a part that it has comes back when it is gone
            threading.Event().wait(PATIENCE_S)
            raise Reject(str(error), requeue=True) from None
        if ending.fresh:
            _child.leave = ending.text or "its last job's memory stays"
        if ending.what == "dropped":
            self.dropped(text)
        return ending.what

    # --- in the main process -------------------------------------------------------------------------------------

    @property
    def are_done_here(self) -> bool:
        """Whether this worker performs parts: by its pool, as `check` saw it."""
        return not self._foreign_pool

    def check(self, pool: Any = MemoryPool, queues: Container[str] | None = None) -> None:
        """Whether a worker with this pool and these queues could work. Raises ConfigError, for its ledger StoreError.

        One with another pool may, where it has only queues (None: any) that no job of this app goes to by itself.
        """
        conf, self._foreign_pool = self.app.conf, ""
        if not (isinstance(pool, type) and issubclass(pool, MemoryPool)):
            self._check_foreign(_as_typed(pool), queues)
            return
        if conf.task_always_eager:
            raise ConfigError(
                "would run jobs where they are submitted, outside of any worker", where="task_always_eager",
                mend="switch it off for workers; in tests use the local engine",
            )  # fmt: skip
        if not {"json", "application/json"} & set(conf.accept_content or ()):
            raise ConfigError(
                f"{sorted(conf.accept_content or ())} leaves out JSON, which all messages are in",
                where="accept_content", mend="add 'json'",
            )  # fmt: skip
        self.app.finalize()
        task = self.app.tasks[TASK]
        if not task.acks_late:
            raise ConfigError(
                f"{TASK} would be acknowledged before it has run: a worker that dies would lose it for "
                f"{self._resend_s:g} s", where="task_annotations", mend=f"leave acks_late of {TASK} as it is",
            )  # fmt: skip
        self.ledger.running(self.name)

    def _check_foreign(self, pool: str, queues: Container[str] | None) -> None:
        if queues is None or self.default_queue in queues:
            raise ConfigError(
                f"memory-aware jobs need the prefork pool, and this worker has {pool!r}", where="worker_pool",
                mend=f"leave --pool away; or give it other queues than {self.default_queue!r}, by -Q; or make your "
                f"pool a subclass of {POOL}",
            )  # fmt: skip
        self._foreign_pool = pool
        print(f"memwarden: no memory-aware jobs here: the pool is {pool!r}, and {self.default_queue!r} is not consumed")

    def remarks(self) -> tuple[str, ...]:
        """What works and could be better, one line each."""
        conf, found = self.app.conf, []
        if conf.worker_prefetch_multiplier != 1:
            found.append(
                f"worker_prefetch_multiplier is {conf.worker_prefetch_multiplier}: messages wait behind a long part "
                "that another worker could take; set it to 1"
            )
        if conf.worker_max_memory_per_child:
            found.append(
                "worker_max_memory_per_child compares the highest memory that a child ever had, so one spike ends it; "
                "Jobs(memory_per_child=...) compares what it holds now"
            )
        if conf.task_time_limit:
            found.append(
                f"task_time_limit ends parts by force after {conf.task_time_limit:g} s; "
                "@job(timeout=...) lets them stop at a safe point"
            )
        return tuple(found)

    @property
    def recovery(self) -> str:
        """How soon a lost part comes back, in words."""
        conf, resend = self.app.conf, self.ledger.resend_s
        if self._is_redis:
            timeout = float((conf.broker_transport_options or {}).get("visibility_timeout", 3600))
            taken = f"{min(timeout, resend):g} s (visibility_timeout {timeout:g} s, ledger {resend:g} s)"
        else:
            taken = f"when the broker sees the connection end (ledger {resend:g} s)"
        known = self._keeper.recovery if self._keeper is not None else ""
        return f"{known}; a message that was taken and not begun: {taken}"

    def begin(self, worker: Any) -> None:
        """A worker has started its pool."""
        self._keeper = Keeper(self, self.ledger, folder=self.folder, sweep_s=self._sweep_s)
        pool = worker.pool._pool  # noqa: SLF001  Celery gives no other way to the processes
        pool.on_gone, worker.pool.on_down = self._gone, self.end
        self._children_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self._gate = gate_for(self._pressure)
        print(f"memwarden: what dies comes back: {self.recovery}", flush=True)
        for line in self.remarks():
            print(f"memwarden: {line}", flush=True)

    def leave(self) -> None:
        """The worker was told to end: another one sweeps while parts come to their safe points."""
        if self._keeper is not None:
            self._keeper.close()

    def end(self) -> None:
        """Its pool is down: nobody dies any more whose death is to be written."""
        self._keeper = None
        self.close()

    def _gone(self, pid: int, status: int | None, timed_out: bool) -> None:
        """Linux counts the highest peak of all children that were waited for: where it rose it is this one's."""
        peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak_bytes = peak_kib * 1024 if peak_kib > self._children_kib else None
        self._children_kib = peak_kib
        if self._keeper is not None:
            self._keeper.gone(pid, status, peak_bytes=peak_bytes, timed_out=timed_out)

    def tick(self, consumer: Any) -> None:
        """Once a second, in the worker's event loop.

        Celery notices a dead child by the end of a pipe, which children that were forked later hold open, else every
        5 s; until then it may give the dead one a message.
        """
        pool = consumer.pool._pool  # noqa: SLF001  as in begin
        if isinstance(pool, _AsynPool):
            pool.maintain_pool()
        if self._gate is not None and consumer.task_consumer is not None:
            self._admit(consumer)
        if self._keeper is not None:
            self._keeper.tick()

    def _admit(self, consumer: Any) -> None:
        gate = self._gate
        assert gate is not None
        was_shut = gate.is_shut
        is_shut = gate.look()
        if is_shut and consumer.task_consumer._active_tags:  # noqa: SLF001  a new connection consumes again
            consumer.task_consumer.cancel()
            if not was_shut:
                _log.warning("memory is short (%s): no more messages are taken until it is NORMAL", gate.words)
        elif was_shut and not is_shut:
            consumer.task_consumer.consume()
            _log.warning("messages are taken again (%s)", gate.words)


def _as_typed(pool: Any) -> str:
    """The name of a pool for --pool, or its place."""
    place = f"{getattr(pool, '__module__', '')}:{getattr(pool, '__qualname__', pool)}"
    return next((name for name, known in ALIASES.items() if known == place), place)


# --- ordinary tasks ----------------------------------------------------------------------------------------------


class _Kept:
    """The process's own number, for guards that come and go: they must not close it."""

    value = staticmethod(_child.resident.value)

    def close(self) -> None:
        pass


_kept = _Kept()


class _Here(threading.local):
    """What is at work in this thread: a memory-aware task, or its guard once it has needed one."""

    now: _Aware | Guard | None = None


_here = _Here()


def check(operation: str = "check") -> None:
    """A safe point of a memory-aware task: at its limit the task ends here, to be tried again in a fresh child.

    Does nothing outside of one.
    """
    guard = _here.now
    if isinstance(guard, _Aware):
        guard = _here.now = guard.open()
    if guard is None:
        return
    guard.read()  # each time: what is not seen here is not in the figures of a task that takes no 0.1 s
    if guard.check(operation):
        raise Stopped("soft_stop", f"{format_bytes(guard.current_bytes)} held at {operation!r}")


class _Aware:
    """One memory-aware task in this process.

    A short task has no guard of its own: memory is looked at behind it, when it is due. As between two checks of a
    guard, that is as soon as the fastest growth could have used up half of what was left. A task that checks, records
    that are written, and figures that are kept with the result (`full`) have one.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.name, self.limit_bytes = name, limit_bytes
        self._due_s = 0.0
        self._full: bool | None = None

    def open(self) -> Guard:
        """A guard that has begun."""
        guard = Guard(self.name, self.limit_bytes, resident=_kept)
        guard.enter()
        return guard

    def run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call it."""
        here = _here
        outer, here.now = here.now, self
        if self._full is not False or _log.isEnabledFor(logging.INFO):
            self._settle()
            if self._full is not False or _log.isEnabledFor(logging.INFO):
                here.now = self.open()
        try:
            return function(*args, **kwargs)
        except (Stopped, MemoryError) as stopped:
            self._again(stopped)
        except Retry as again:  # asked for by the task itself, or by its `autoretry_for`
            if isinstance(again.exc, MemoryError):
                self._leave()
            raise
        finally:
            mine, here.now = here.now, outer
            if isinstance(mine, Guard):
                self._end(mine)
            elif (now := monotonic()) >= self._due_s:
                self._look(now)

    def _settle(self) -> None:
        task = get_current_worker_task()
        if self._full is None and task is not None:
            self._full = bool(task.app.conf.result_extended)

    def _look(self, now: float) -> None:
        size = _kept.value()
        left = self.limit_bytes - (size or 0)
        self._due_s = now + min(LONGEST_S, max(SHORTEST_S, left / FASTEST_BYTES_PER_S / 2))
        if left <= 0:
            _child.leave = f"task {self.name} left {format_bytes(size)}"

    def _end(self, guard: Guard) -> None:
        figures = guard.exit()
        if guard.is_over:
            _child.leave = f"task {self.name} left {format_bytes(guard.current_bytes)}"
        task = get_current_worker_task()
        if self._full and task is not None:
            request = task.request
            values = {
                "base_bytes": figures.base_bytes, "peak_bytes": figures.peak_bytes,
                "growth_bytes": figures.growth_bytes, "limit_bytes": figures.limit_bytes,
            }  # fmt: skip
            request.stamped_headers = [*(request.stamped_headers or ()), STAMP]
            request.stamps = {**(request.stamps or {}), STAMP: values}

    def _again(self, stopped: BaseException) -> NoReturn:
        """Another try in a fresh child; the task's max_retries bound it. Called without a worker, the error itself."""
        refused = MemoryPressureError(
            f"task {self.name!r} stopped at its limit ({stopped})", usage_bytes=_kept.value(), threshold=1.0,
            limit_bytes=self.limit_bytes, transient=True, mend="split its work, or raise its limit",
        )  # fmt: skip
        task = get_current_worker_task()
        if task is None or task.request.called_directly or task.request.is_eager:
            raise refused from stopped
        self._leave()
        raise task.retry(exc=refused, countdown=0)

    def _leave(self) -> None:
        _child.leave = f"task {self.name} stopped at {format_bytes(_kept.value())}"


def memory_of(result: Any) -> Mapping[str, int | None] | None:
    """What a memory-aware task's memory did, from its AsyncResult; None where the back end did not keep it.

    Needs `result_extended = True` and a key-value back end (Redis, Memcached, file system, ...).
    """
    meta = result.backend.get_task_meta(result.id)
    found = meta.get(STAMP)
    return found if isinstance(found, dict) else None


class MemoryTask(Task):  # type: ignore[misc]  # Celery has no types
    """A base for tasks: `@app.task(base=MemoryTask, memory_limit="256M")`, or Celery(task_cls=...) for all.

    Without `memory_limit` it is `job_limit` of the settings.
    """

    abstract = True
    memory_limit: str | int | None = None
    _aware: _Aware | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        aware = self._aware
        if aware is None:
            aware = self._aware = _Aware(self.name, _limit_of(self.memory_limit))
        return aware.run(self.run, args, kwargs)


def _limit_of(limit: str | int | None) -> int:
    if limit is None:
        from memwarden.jobs.definition import settings

        return settings()[""].limit_bytes
    return parse_bytes(limit, where="memory_limit")


def memory_aware(limit: str | int | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function that is to be a task memory-aware: put it below `@app.task`.

    The limit is of the resident bytes of the child; without one it is `job_limit` of the settings. At its limit the
    task ends at its next `check()`, or at a MemoryError, and is tried again in a fresh child, as often as its
    `max_retries` say; then it fails with MemoryPressureError. A child that is still above the limit behind a task is
    replaced.
    """
    if limit is not None:
        parse_bytes(limit, where="limit")

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        name = f"{function.__module__}.{function.__qualname__}"
        aware: _Aware | None = None

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            nonlocal aware
            if aware is None:  # not before: the settings are read where it runs
                aware = _Aware(name, _limit_of(limit))
            return aware.run(function, args, kwargs)

        with contextlib.suppress(ValueError, TypeError):  # what has no signature is checked when it runs
            # Celery checks arguments where a task is sent, and does not look behind a wrapper.
            guarded.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]  # inspect's own
        return guarded

    return make
