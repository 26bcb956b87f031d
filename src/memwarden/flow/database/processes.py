"""Workers that are processes, for handlers that compute: threads of one interpreter do that one after the other.

Each is a new interpreter (forkserver, else spawn: a forked child would share connections, and locks that a thread
holds), makes an engine of its own, and works on one range of the key after the other exactly as a thread does, with its
checkpoints and its share of the budget. What it did it tells after each chunk through a pipe. When one fails or dies
the others end behind their present chunks; when the process that started them dies, they do so too.

Nothing but the order and counts goes through the pipes: rows are read where they are worked on.
"""

from __future__ import annotations

import pickle
import signal
from collections import deque
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import wait
from os.path import dirname
from typing import TYPE_CHECKING, Any

from memwarden.clock import SystemClock
from memwarden.errors import ChunkError, ConfigError, FlowError
from memwarden.facts import Fact
from memwarden.flow.database.checkpoints import StoreLedger, TableLedger
from memwarden.flow.database.faults import Patience
from memwarden.flow.database.progress import Tally
from memwarden.flow.database.reader import Reader
from memwarden.flow.database.run import Run, Threads
from memwarden.flow.database.statement import analyse
from memwarden.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

    import sqlalchemy as sa

    from memwarden.store import Checkpoint, DeadLetter

__all__ = ["Crew", "Order"]


class Order(Fact):
    """What a worker is told to do. `url` and `into` (None: the same) are where it reads and writes."""

    statement: Any
    handler: Callable[..., Any]
    url: sa.URL
    into: sa.URL | None
    engine: Callable[[sa.URL], sa.Engine]
    key: Any
    resumable: bool | None
    parameters: Mapping[str, Any] | None
    rows: int
    limit_bytes: int
    retries: int
    timeout_s: float | None
    snapshot: bool
    salt: str
    name: str | None
    store: str | None
    beside: str
    checkpoint_s: float | None
    by_row: bool
    on_error: str
    error_callback: Callable[..., object] | None
    most_dead: int
    max_results: int
    collect: Callable[..., Any] | None


# What of an order is the caller's own and may not go through a pipe, and how to mend it.
_FUNCTION = "define it at the top of a module (or a functools.partial of one that is)"
_MENDS = {
    "handler": _FUNCTION,
    "processes": _FUNCTION,
    "collect": _FUNCTION,
    "error_callback": _FUNCTION,
    "statement": "select the columns of the table (Entity.__table__) and not of a mapped class, or pass SQL text",
    "key": "name the columns as texts",
    "parameters": "pass numbers, texts, dates",
}


def _packed(order: Order) -> bytes:
    """The order as it is sent. Raises ConfigError that names what cannot be."""
    for name, mend in _MENDS.items():
        value = getattr(order, "engine" if name == "processes" else name)
        try:
            pickle.dumps(value)
        except Exception as error:
            what = f"cannot be handed to a process ({error})"
            raise ConfigError(what, where=name, mend=mend) from error
    return pickle.dumps(order)


class _Worker:
    """One process and the pipe to it. `counts` is what it told last."""

    def __init__(self, context: ForkServerContext | SpawnContext, number: int, order: bytes) -> None:
        self.pipe, theirs = context.Pipe()
        self.counts = Tally.NOTHING
        self.part: Checkpoint | None = None
        name = f"memwarden-chunks-{number}"
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, order), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, part: Checkpoint) -> None:
        """The next part."""
        self.part = part
        self._send(part)

    def end(self) -> None:
        """Let it end, behind its present chunk."""
        self._send(None)

    def _send(self, what: Checkpoint | None) -> None:
        with suppress(OSError):  # it is gone: the end of its pipe says so
            self.pipe.send(what)

    def close(self) -> None:
        """It has ended, or ends now."""
        self.pipe.close()
        self.process.join()
        self.process.close()


class Crew:
    """So many processes over the parts of a run. `dead` are the first letters of what was given up."""

    def __init__(self, order: Order, parts: Iterable[Checkpoint], count: int, tally: Tally) -> None:
        self._order, self._tally, self._count = order, tally, count
        self._parts = deque(parts)
        self._text = _packed(order)
        self.dead: list[DeadLetter] = []

    def run(self) -> None:
        """Have all done. Raises what the first of them raised; ChunkError or FlowError where one died."""
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        context: Any = get_context(method)
        busy: dict[Any, _Worker] = {}
        failed: BaseException | None = None
        try:
            for number in range(min(self._count, len(self._parts))):
                worker = _Worker(context, number, self._text)
                busy[worker.pipe] = worker
                worker.give(self._parts.popleft())
            while busy:
                for pipe in wait(list(busy)):
                    worker = busy[pipe]
                    error = self._hear(worker)
                    if error is not None:
                        failed = failed or error
                        for other in busy.values():
                            other.end()
                    elif worker.part is not None:  # it is at it
                        continue
                    elif failed is None and self._parts:
                        worker.give(self._parts.popleft())
                        continue
                    worker.end()
                    del busy[pipe]
                    worker.close()
        finally:
            for worker in busy.values():
                worker.end()
            for worker in busy.values():
                worker.close()
        if failed is not None:
            raise failed

    def _hear(self, worker: _Worker) -> BaseException | None:
        """One message: counts, the end of a part, or what went wrong."""
        try:
            kind, value, letters = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            return self._died(worker)
        if kind == "failed":
            error, cause = value
            error.__cause__ = cause
            return error  # type: ignore[no-any-return]  # pickle.loads has no type
        self._tally.add(worker.counts, value)
        worker.counts = value
        self.dead += letters[: max(0, self._order.max_results - len(self.dead))]
        if kind == "part":
            worker.part = None
        if self._tally.dead_rows > self._order.most_dead and letters:
            what = f"failed, and with it more than {self._order.most_dead} rows: {letters[-1].error}"
            mend = "see what is wrong with all of them, or raise most_dead"
            return ChunkError(what, chunk=letters[-1].chunk, attempts=letters[-1].attempts, mend=mend)
        return None

    def _died(self, worker: _Worker) -> FlowError:
        code = worker.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = f"{how}, in part {worker.part.part if worker.part else '?'}"
        if code == -signal.SIGKILL:
            mend = "it may have been killed for memory: lower parallel= or budget="
        else:
            mend = 'see its own messages; a script starts its work under if __name__ == "__main__"'
        if self._order.name is not None:
            mend += "; started again it goes on where it was"
        return FlowError(what, where="a process of parallel=", mend=mend)


# --- in the process ------------------------------------------------------------------------------------------------


class _Stop:
    """Set when anything comes through the pipe while a part is in work: it is the end, or that of who started us."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._set = False

    def is_set(self) -> bool:
        return self._set or self._pipe.poll()

    def set(self) -> None:
        self._set = True


def _work(pipe: Connection, text: bytes) -> None:
    """The whole life of a worker."""
    # An interrupt from the terminal reaches every process; who started this one says when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(pipe, _unpacked(text))
    except (EOFError, BrokenPipeError):  # nobody waits for it any more
        return
    except Exception as error:  # noqa: BLE001  it is raised where the run was started
        pipe.send(("failed", _portable(error), ()))


def _unpacked(text: bytes) -> Order:
    try:
        order: Order = pickle.loads(text)  # noqa: S301  from the process that started this one
    except Exception as error:
        what = f"cannot be found by a new process ({type(error).__name__}: {error})"
        mend = "define it in a module that can be imported, not in a shell or a notebook"
        raise ConfigError(what, where="handler", mend=mend) from error
    return order


def _portable(error: Exception) -> tuple[Exception, BaseException | None]:
    """The error and its cause, as far as they can be sent."""
    cause: BaseException | None = error.__cause__
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    except Exception:  # noqa: BLE001  errors may hold anything
        error = FlowError(f"a process failed: {type(error).__name__}: {error}")
    try:
        pickle.loads(pickle.dumps(cause))  # noqa: S301  our own
    except Exception:  # noqa: BLE001  as above
        cause = FlowError(f"{type(cause).__name__}: {cause}")
    return error, cause


def _serve(pipe: Connection, order: Order) -> None:
    source = order.engine(order.url)
    into = source if order.into is None else order.engine(order.into)
    clock = SystemClock()
    place = Threads(clock, order.timeout_s)
    store = None if order.store is None else Store(dirname(order.store))
    try:
        plan = analyse(order.statement, source.dialect, key=order.key, resumable=order.resumable)
        patience = Patience(order.retries, place.pause)
        ledger: TableLedger | StoreLedger | None = None
        if order.name is not None:
            ledger = TableLedger(into, order.beside) if store is None else StoreLedger(store)

        def open_reader() -> Reader:
            return Reader(
                plan, source, rows=order.rows, limit_bytes=order.limit_bytes, patience=patience,
                parameters=order.parameters, snapshot=order.snapshot, salt=order.salt,
            )  # fmt: skip

        def tell(kind: str) -> None:
            letters, run.dead[:] = list(run.dead), []
            pipe.send((kind, tally.counts(), letters))

        tally = Tally(order.name, clock, tell=lambda _: tell("counts"))
        run = Run(
            name=order.name, handler=order.handler, by_row=order.by_row, place=place, into=into, ledger=ledger,
            open_reader=open_reader, parts=(), patience=patience, tally=tally, on_error=order.on_error,
            error_callback=order.error_callback, most_dead=order.most_dead, max_results=order.max_results,
            collect=order.collect, checkpoint_s=order.checkpoint_s, clock=clock, stop=_Stop(pipe),
        )  # fmt: skip
        while (part := pipe.recv()) is not None:
            run.work_on(part)
            tell("part")
    finally:
        place.close()
        if store is not None:
            store.close()
        source.dispose()
        into.dispose()
