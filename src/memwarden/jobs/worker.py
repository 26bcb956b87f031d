"""What a worker does with a message; `port` says what it promises to whoever calls it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import mmap
import secrets
import sys
import threading
import zlib
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from memwarden.act.fence import refusal
from memwarden.clock import SystemClock
from memwarden.errors import JobError, KeyOrderError, StatementError, StoreError
from memwarden.facts import Fact
from memwarden.flow.sizing import Sizer
from memwarden.jobs import run as runs
from memwarden.jobs.definition import find, job_of
from memwarden.jobs.guard import Guard
from memwarden.jobs.ledger import (
    KEY_CHARACTERS,
    KEY_SEPARATOR,
    MOST_RESULT_BYTES,
    WINDOW,
    LostError,
    Worker,
    as_json,
)
from memwarden.jobs.plan import Growth, share_of, should_split
from memwarden.jobs.port import LEASE_S, Ending, Message
from memwarden.jobs.profiles import short_text, whole
from memwarden.jobs.run import Run, Stopped
from memwarden.sense import Machine, find_limit
from memwarden.units import format_bytes, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from memwarden.jobs.definition import Bound, Job
    from memwarden.jobs.leaks import Runs
    from memwarden.jobs.ledger import Claim, Ledger, Watch
    from memwarden.jobs.port import Engine
    from memwarden.jobs.sources import Splittable
    from memwarden.ports import Clock

__all__ = ["perform", "submit", "sweep"]

_log = logging.getLogger("memwarden.jobs")
# A chunk takes at most this part of the limit, whatever its number of items.
CHUNK_PART = 8
# What JSON gives back as it was; so most results cost nothing more.
_AS_THEY_ARE = frozenset({int, float, str, bool, type(None)})
# No deeper than that: a part whose halves of halves are still too large holds items that are too large.
DEEPEST = 20
# Higher than anybody needs, and in every ledger's bounds.
MOST_PRIORITY = 10**9


def submit(
    job: Job | type,
    arguments: Mapping[str, Any],
    *,
    engine: Engine,
    ledger: Ledger,
    queue: str = "default",
    priority: int = 0,
    delay_s: float = 0.0,
    unique: str | None = None,
) -> str:
    """Write the job down and send its first message; its id. Where one with this `unique` key is open, that one's id.

    Where the broker is away the job is written all the same, and `sweep` sends it. Raises JobError for what is no job,
    for arguments that are no JSON or that it does not take, ConfigError for figures that cannot be used, StoreError
    where it could not be written.
    """
    made = job_of(job)
    short_text(queue, "queue")
    whole(priority, "priority", least=-MOST_PRIORITY, most=MOST_PRIORITY)
    if unique is not None:
        short_text(unique, "unique", most=KEY_CHARACTERS - len(KEY_SEPARATOR) - len(made.name))
    root, new = ledger.submit(
        made.name, made.arguments((), arguments), type=made.type, chunk=made.profile.chunk, engine=engine.name,
        queue=queue, priority=priority, delay_s=parse_duration(delay_s, where="delay_s"),
        unique=unique, options={**made.options(), "limit_bytes": made.profile.limit_bytes},
    )  # fmt: skip
    if new:
        try:
            _send(ledger.outbox(root), engine, ledger)
        except StoreError as error:  # whoever got an error now would submit it once more
            _log.warning("job %s is written down and not sent (%s); a worker's sweep sends it", root, error)
    return root


def sweep(engine: Engine, ledger: Ledger, watch: Watch) -> int:
    """Take parts back from workers that are gone, send what is due and unsent; how many were sent. See `port`."""
    for claimed, kind, why in watch.dead(ledger.running(engine.name)):
        if ledger.died(claimed, kind=kind, text=why):
            _log.warning("job %s part %d: its worker is gone (%s)", claimed[0], claimed[1], why)
    ledger.expire()
    return _send(ledger.unsent(engine.name, delayed=engine.can.delay), engine, ledger)


def _send(messages: Sequence[Message], engine: Engine, ledger: Ledger) -> int:
    """Send them; how many got through. What is not due yet waits where it cannot delay.

    Where one fails the rest of its queue is left for later; with the second such queue it is the broker that is away.
    """
    sent, failed = 0, set[str]()
    for message in messages:
        queue, priority, delay_s = ledger.where(message)
        if queue in failed or (delay_s > 0 and not engine.can.delay):
            continue
        rank = min(max(priority, 0), 9)  # as brokers have it
        # Its own each time: a broker's client may still be at clearing away the one before.
        name = f"{message.id}-{secrets.token_hex(2)}"
        try:
            engine.send(message.encode(), queue=queue, delay_s=delay_s, priority=rank, message_id=name)
        except (JobError, OSError) as error:
            _log.warning("%s: cannot send to queue %s (%s); it is kept and sent later", engine.name, queue, error)
            failed.add(queue)
            if len(failed) > 1:
                break
            continue
        ledger.mark_sent(message)
        sent += 1
    return sent


def perform(
    text: str | bytes,
    *,
    engine: Engine,
    ledger: Ledger,
    stop: Callable[[], bool] | None = None,
    worker: Worker | None = None,
    shed: Callable[[int], object] | None = None,
    limit_bytes: int | None = None,
    clock: Clock | None = None,
) -> Ending:
    """Do what a message asks for; see `port` for what it returns, and the little that it raises.

    `shed(bytes)` gives memory back at the warning line (a Warden's `relieve`). `limit_bytes` lowers the job's limit.
    """
    message = Message.decode(text)
    job = find(message.job)
    who = worker or Worker.here()
    context = _Context(
        engine=engine, ledger=ledger, stop=stop, worker=who, shed=shed, clock=clock or SystemClock(),
        limit_bytes=limit_bytes,
    )  # fmt: skip
    ending = _one(message, job, context)
    while ending.what in ("split", "done") and not ending.fresh:
        # The broker took none of the messages that follow: the work goes on here, part after part.
        stranded = [each for each in ledger.outbox(message.root) if ledger.where(each)[2] <= 0]
        if not stranded or _send(stranded, engine, ledger):
            break
        ending = _one(stranded[0], job, context)
    return ending


# The share of what this process may have at all, that a job's limit may be: above it the kernel is first.
MACHINE_SHARE = 0.8
_runs: list[Runs] = []  # made with the first part of a worker that lives on: the judge is not imported for nothing
# One byte for a job whose limit was said to be lowered, by its name's checksum. Children that are forked share it: a
# worker says it once, however many children it has.
_lowered = mmap.mmap(-1, mmap.PAGESIZE)
_WHOSE = {
    "machine": "this machine has", "container": "this container may have", "process": "this process may have now",
}  # fmt: skip


def within_machine(job: str, limit_bytes: int, machine: Machine | None = None) -> int:
    """The job's limit, or less where this machine, container or process may not have as much; said once per worker."""
    found = find_limit(machine or Machine())
    most = limit_bytes if found.bytes is None else int(found.bytes * MACHINE_SHARE)
    if limit_bytes <= most:
        return limit_bytes
    place = zlib.crc32(job.encode()) % len(_lowered)
    if not _lowered[place]:
        _lowered[place] = 1
        _log.warning(
            "%s: its limit of %s is too near to what %s, or above it (%s: %s); %s are used", job,
            format_bytes(limit_bytes), _WHOSE[found.scope], found.source, format_bytes(found.bytes),
            format_bytes(most), extra={"job": job},
        )  # fmt: skip
    return most


class _Context(Fact):
    """What stays the same from part to part."""

    engine: Engine
    ledger: Ledger
    stop: Callable[[], bool] | None
    worker: Worker
    shed: Callable[[int], object] | None
    clock: Clock
    limit_bytes: int | None


def _one(message: Message, job: Job, context: _Context) -> Ending:
    ledger = context.ledger
    found = ledger.claim(message, context.worker)
    if isinstance(found, str):
        return Ending(what=found, delay_s=ledger.where(message)[2] if found == "later" else 0.0)
    attempt = _Attempt(found, job, context)
    with _Heart(ledger, found):
        ending = attempt.run()
    return ending.replace(fresh=True) if attempt.leaks else ending


class _AwayError(StoreError):
    """The ledger cannot be reached. A StoreError of another kind is one that the job's own code raised."""


class _Book:
    """The ledger as an attempt has it: what it raises is told from what the job's code raises, wherever that is."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._ledger, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _told_apart():
                return method(*args, **kwargs)

        return call

    def results(self, root: str) -> Iterator[Any]:
        """As the ledger's; asked while they are read."""
        found = self._ledger.results(root)
        while True:
            with _told_apart():
                try:
                    value = next(found)
                except StopIteration:
                    return
            yield value


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise _AwayError(error.what, where=error.where, mend=error.mend) from error


class _Heart:
    """Beats while an attempt runs, from a thread: a chunk may take long."""

    def __init__(self, ledger: Ledger, claim: Claim) -> None:
        self._ledger, self._claim = ledger, claim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="memwarden-job-heart", daemon=True)

    def _beat(self) -> None:
        while not self._over.wait(LEASE_S / 4):
            try:
                self._ledger.beat(self._claim)
            except LostError:
                return
            except StoreError as error:
                _log.warning("heartbeat: %s", error)

    def __enter__(self) -> None:
        with contextlib.suppress(RuntimeError):  # no thread can be had any more: then chunks do the beating
            self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():  # it would be there when the next part is forked
            self._thread.join(1.0)


class _Attempt:
    """One worker at one part."""

    def __init__(self, claim: Claim, job: Job, context: _Context) -> None:
        self.claim, self.job, self.engine = claim, job, context.engine
        self.ledger = cast("Ledger", _Book(context.ledger))
        profile = job.profile
        limit = min(profile.limit_bytes, context.limit_bytes or profile.limit_bytes)
        if context.limit_bytes is None:  # else whoever gave it knows what there is
            limit = within_machine(job.name, limit)
        self.profile = profile.replace(limit_bytes=limit)
        self._asked = context.stop
        self._clock = context.clock
        self._start_s = self._clock.monotonic()
        self._timeout_s: float | None = claim.options.get("timeout_s")
        self.guard = Guard(job.name, self.profile.limit_bytes, shed=context.shed)
        self._bound: Bound
        self._sizer = Sizer()
        self._runner: Any = None  # of coroutines
        self.sink: Any = None
        self.leaks = False
        self._each: float | None = None  # bytes that an item keeps, as far as it was learned
        self._is_telling = False  # whether its peak says what a part takes: not where it only began, cut or folded
        self._counted: tuple[int | None, int] | None = None  # items that were left when so many were done
        self.result: Any = None
        self.has_result = False

    # --- the frame ---------------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """All of it, with every way that it can end."""
        try:
            try:
                self.guard.enter()
                return self._work()
            except Stopped as stopped:
                return self._stopped(stopped)
            except (LostError, _AwayError):
                raise
            except MemoryError as error:
                return self._stopped(Stopped("memory_error", _in_words(error)))
            except (JobError, StatementError, KeyOrderError) as error:  # it would be the same the next time
                return self._failed(error, final=True)
            except Exception as error:  # noqa: BLE001  a job may raise anything
                if refusal(error) is not None:  # the fence refused, and an extension made another error of it
                    return self._stopped(Stopped("memory_error", _in_words(error)))
                return self._failed(error, final=False)
            except BaseException as error:  # whatever it is, the rest is not lost
                if _is_cancelled(error) and not self._is_told_to_end():
                    return self._failed(error, final=False)
                with contextlib.suppress(LostError, _AwayError):  # what ends the process goes out, whatever else is
                    self._ended_by(error)
                raise
        except _AwayError:
            # It may be there again by now. Else the part comes back with the end of this process, or of its lease.
            with contextlib.suppress(LostError, _AwayError):
                self._follow(self.ledger.stop(self.claim, kind="drain", figures=self._figures()))
            raise
        except LostError:
            status = self.ledger.status(self.claim.part.root)
            cancelled = status is not None and status.state == "cancelled"
            return Ending(what="cancelled" if cancelled else "dropped", fresh=self.guard.is_over)
        finally:
            if self._runner is not None:
                self._runner.close()
            if self.sink is not None:
                self.sink.close()
            self._learn()

    def _is_told_to_end(self) -> bool:
        return self._asked is not None and self._asked()

    def _ended_by(self, error: BaseException) -> None:
        """The process is to end; where nobody asked for it the job's own code did, and does it again: a death."""
        kind = "drain" if self._is_told_to_end() else "crash"
        text = _in_words(error)
        self._follow(self.ledger.stop(self.claim, kind=kind, text=text, figures=self._figures()))

    def _learn(self) -> None:
        """What it took, for the next time."""
        figures = self.guard.exit()
        if not self.engine.can.fresh and figures.current_bytes is not None:
            if not _runs:
                from memwarden.jobs.leaks import Runs

                _runs.append(Runs())
            words = _runs[0].over(self.job.name, figures.current_bytes, limit_bytes=self.profile.limit_bytes)
            if words:
                self.leaks = True
                _log.warning("%s: %s", self.job.name, words, extra={"job": self.job.name})
                with contextlib.suppress(_AwayError):
                    self.ledger.note("job_leak", self.claim.part.root, words)
        with contextlib.suppress(_AwayError):
            if self._is_telling and figures.peak_bytes is not None:
                self.ledger.learn(self.job.name, "peak_bytes", float(figures.peak_bytes))
            if self._each is not None:
                self.ledger.learn(self.job.name, "bytes_per_item", self._each)

    def _work(self) -> Ending:
        part, mode = self.claim.part, self.claim.part.mode
        self._bound = self.job.bind(self.claim.arguments)
        self._take_result()
        if mode == "finish":
            return self._fold()
        if self.guard.is_over:
            error = JobError(
                f"this process holds {format_bytes(self.guard.current_bytes)} before the job has begun, and its limit "
                f"is {format_bytes(self.profile.limit_bytes)}", where=f"job {self.job.name!r}",
                mend="raise the limit, or import less in its worker",
            )  # fmt: skip
            # A process that had other jobs before may be full of theirs: a fresh one will do, and is asked for.
            return self._failed(error, final=self.engine.can.fresh)
        source = self._bound.source()
        if source is None:
            return self._body()
        if mode == "cut":
            return self._cut(source, part.share, "the rest") or self._handle(source)
        return self._handle(source)

    def _take_result(self) -> None:
        if self.claim.part.result is not None:
            self.result, self.has_result = json.loads(self.claim.part.result), True

    def _figures(self) -> dict[str, int | None]:
        found = self.guard.figures
        done = self.claim.part.items - self.claim.began_items
        return {
            "base_bytes": found.base_bytes, "peak_bytes": found.peak_bytes, "growth_bytes": found.growth_bytes,
            "items": done,
        }  # fmt: skip

    def _follow(self, messages: Sequence[Message]) -> None:
        _send(messages, self.engine, self.ledger)

    def _stopped(self, stopped: Stopped) -> Ending:
        self.guard.read()
        self._is_telling = stopped.kind in ("soft_stop", "memory_error")
        messages = self.ledger.stop(self.claim, kind=stopped.kind, text=stopped.text, figures=self._figures())
        self._follow(messages)
        return Ending(what="again", fresh=stopped.kind != "drain", text=stopped.text)

    def _failed(self, error: BaseException, *, final: bool) -> Ending:
        text = _in_words(error)
        _log.warning("%s: part %d failed: %s", self.job.name, self.claim.part.part, text, extra={"job": self.job.name})
        given_up, delay_s, messages = self.ledger.fail(self.claim, text, final=final, figures=self._figures())
        self._follow(messages)
        return Ending(what="failed" if given_up else "later", delay_s=delay_s, fresh=self.guard.is_over, text=text)

    def _done(self) -> Ending:
        self._is_telling = self.claim.part.mode != "finish"
        messages = self.ledger.finish(self.claim, self._result_text(), figures=self._figures())
        self._follow(messages)
        if self.sink is not None:
            self.sink.forget()
        return Ending(what="done", fresh=self.guard.is_over)

    def _result_text(self) -> str | None:
        return self._as_text(self.result) if self.has_result else None

    def _why_stop(self) -> str:
        """Why to stop at this safe point; "" where there is no reason."""
        if self._is_told_to_end():
            return "drain"
        if self._timeout_s is not None and self._clock.monotonic() - self._start_s > self._timeout_s:
            return "timeout"
        return ""

    def _call(self, run: Run, *chunk: Any) -> Any:
        if not self._bound.is_async:
            return self._bound.call(*chunk, run=run)
        if self._runner is None:
            import asyncio

            self._runner = asyncio.Runner()
        return self._runner.run(self._bound.call(*chunk, run=run))

    def _keep_result(self, value: Any) -> None:
        """As JSON has it, at once: so `reduce` gets the same whether the part was stopped in between or not."""
        if value is None:
            return
        value = self._as_kept(value)
        if self.has_result and self._bound.reduce is not None:
            value = self._as_kept(self._bound.reduce(self.result, value))
        self.result, self.has_result = value, True

    def _as_kept(self, value: Any) -> Any:
        return value if type(value) in _AS_THEY_ARE else json.loads(self._as_text(value))

    def _as_text(self, value: Any) -> str:
        return as_json(value, "its result", MOST_RESULT_BYTES, where=f"job {self.job.name!r}")

    def _new_run(self, **more: Any) -> Run:
        part = self.claim.part
        return Run(
            id=part.root, part=part.part, attempt=part.attempt, name=self.job.name, guard=self.guard,
            stop=self._why_stop, **more,
        )  # fmt: skip

    # --- the three kinds of work -------------------------------------------------------------------------------

    def _body(self) -> Ending:
        def keep(cursor: str, items: int) -> None:
            self.claim = self.ledger.advance(self.claim, cursor, items)

        run = self._new_run(keep=keep, cursor=self.claim.part.position)
        token = runs.entered(run)
        try:
            self._keep_result(self._call(run))
        finally:
            runs.left(token)
        return self._done()

    def _fold(self) -> Ending:
        self.result, self.has_result = None, False
        for value in self.ledger.results(self.claim.part.root):
            why = self._why_stop()
            if why:
                raise Stopped(why)
            self._keep_result(value)
            if self.guard.check("reduce"):
                raise JobError(
                    "its reduced result does not fit into its limit", where=f"job {self.job.name!r}",
                    mend="reduce to something smaller",
                )  # fmt: skip
        return self._done()

    def _handle(self, source: Splittable) -> Ending:
        self._find_place()
        split = self._split_at_once(source)
        if split is not None:
            return split
        run = self._new_run(may_split=self.profile.split)
        run.connection_of = None if self.sink is None else self.sink.connection
        growth, token = Growth(), runs.entered(run)
        reader = _Chunker(source, self.claim.part.cursor, self.claim.part.high, self._sizer)
        try:
            while True:
                run.check("chunk")
                part = self.claim.part
                careful = part.careful > 0
                items, high = reader.next(1 if careful else part.chunk, self.profile.limit_bytes // CHUNK_PART)
                if not items:
                    self._each = self._kept_by_each(growth)
                    return self._done()
                if careful:
                    self.ledger.announce(self.claim, high)
                run.low, run.high, count = part.cursor, high, len(items)
                try:
                    value = self._call(run, items)
                    if self._bound.reduce is not None:  # else it would be the last chunk's, or that of no part at all
                        self._keep_result(value)
                    del value
                    if self.sink is not None:
                        self.sink.commit(high, count, self._result_text())
                except BaseException:
                    if self.sink is not None:
                        self.sink.undo()
                    raise
                del items
                self.claim = self.ledger.advance(self.claim, high, count, self._result_text())
                each = growth.saw(count, self.guard.read())
                split = self._split_as_asked(source, run.wanted_share) or self._split_if_growing(source, each)
                run.wanted_share = None
                if split is not None:
                    return split
        finally:
            reader.close()
            runs.left(token)

    def _find_place(self) -> None:
        """Where to go on: what the sink says, where there is one; and without the item that killed three workers."""
        sink = self._bound.sink()
        if sink is not None:
            from memwarden.jobs.sink import Sink

            self.sink = Sink(sink, self.claim.part, job=self.job.name)
            self.ledger.beat(self.claim)  # whoever lost the part stops here: its row may be gone, and be made anew
            if self.sink.position not in (None, self.claim.part.position):
                done = self.sink.items - self.claim.part.items
                if done > 0:  # committed there, and the worker died before it could say so here
                    self.claim = self.ledger.advance(self.claim, self.sink.position, done, self.sink.result)
                    self._take_result()
        if self.claim.part.is_condemned:
            if self.sink is not None:
                self.sink.skip(self.claim.part.pending)
            self.claim = self.ledger.leave_out(self.claim)

    def _kept_by_each(self, growth: Growth) -> float | None:
        """What an item kept, known at the part's end: also how little, or what was learned once would hold for ever.

        A part too short to tell, as it was cut by what was learned, tells at least where that was too much.
        """
        figures, done = self.guard.figures, self.claim.part.items - self.claim.began_items
        if growth.each is not None or not done or figures.growth_bytes is None:
            return growth.each
        most, learned = max(0, figures.growth_bytes) / done, self.ledger.learned(self.job.name, "bytes_per_item")
        return most if learned is not None and most < learned else None

    # --- splitting ---------------------------------------------------------------------------------------------

    def _left(self, source: Splittable) -> int | None:
        """How many items are left. Counting may be a walk through an index: again when half of them are done."""
        counted, done = self._counted or (None, 0)
        since = self.claim.part.items - done
        if counted is None or 2 * since > counted:
            counted, since = self._count(source), 0
            self._counted = counted, self.claim.part.items
        return None if counted is None else max(0, counted - since)

    def _count(self, source: Splittable) -> int | None:
        part = self.claim.part
        if self._bound.has_size and part.part == 0:
            count = self._bound.size()
            return None if count is None else max(0, count - part.items)
        return source.count(part.cursor, part.high)

    def _split_at_once(self, source: Splittable) -> Ending | None:
        """Before the first item, where what an item keeps is given, or remembered from earlier runs."""
        if not self.profile.split:
            return None
        each = self.claim.options.get("bytes_per_item") or self.ledger.learned(self.job.name, "bytes_per_item")
        if each is None:
            return None
        return self._split_by(source, float(each), self.guard.base_bytes or 0)

    def _split_if_growing(self, source: Splittable, each: float | None) -> Ending | None:
        if each is None:
            return None
        self._each = each
        return self._split_by(source, each, self.guard.current_bytes or 0) if self.profile.split else None

    def _split_as_asked(self, source: Splittable, share: int | None) -> Ending | None:
        if share is None:
            return None
        if share == 0:
            left = self._left(source)
            share = 1 if left is None else (left + 1) // 2
        return self._cut(source, max(1, share), "asked for by split()")

    def _split_by(self, source: Splittable, each: float, held_bytes: int) -> Ending | None:
        count = self._left(source)
        limit = self.profile.limit_bytes
        if count is None or not should_split(count, each, limit_bytes=limit, base_bytes=held_bytes):
            return None
        share = share_of(each, limit_bytes=limit, base_bytes=self.guard.base_bytes or 0)
        if share >= count:
            return None
        return self._cut(source, share, f"{count} items of {format_bytes(each)} do not fit into {format_bytes(limit)}")

    def _cut(self, source: Splittable, share: int, why: str) -> Ending | None:
        part = self.claim.part
        if len(part.path) >= DEEPEST * 10:
            return None
        with contextlib.closing(_closable(source.cut(part.cursor, part.high, share))) as keys:
            found = list(islice(keys, WINDOW))
        if not found and part.mode != "cut":
            return None
        if self.sink is not None:
            self.sink.fence()
        messages = self.ledger.cut(
            self.claim, found, share=share, over=len(found) < WINDOW, ended=True, result=self._result_text(),
            text=why, figures=self._figures(),
        )  # fmt: skip
        self._follow(messages)
        if self.sink is not None:  # what is left of the part is only cut, by the ledger's place
            self.sink.forget()
        return Ending(what="split", fresh=self.guard.is_warm, text=why)


def _closable(keys: Iterator[str]) -> Any:
    return keys if hasattr(keys, "close") else (key for key in keys)


def _in_words(error: BaseException) -> str:
    """Its kind, and what it says where it says anything: a MemoryError is silent more often than not."""
    said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _is_cancelled(error: BaseException) -> bool:
    """Whether a task of the job's own was cancelled; nobody has one who has not imported asyncio."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


class _Chunker:
    """Items into chunks of at most so many, and so many bytes unless a single one is larger."""

    def __init__(self, source: Splittable, low: str | None, high: str | None, sizer: Sizer) -> None:
        self._pairs = source.read(low, high)
        self._sizer = sizer
        self._held: tuple[str, Any, int] | None = None

    def next(self, rows: int, target_bytes: int) -> tuple[list[Any], str | None]:
        """The next items and the key of the last; none at the end."""
        items: list[Any] = []
        size, last = 0, None
        if self._held is not None:
            last, item, size = self._held
            items.append(item)
            self._held = None
            del item
        while len(items) < rows:
            pair = next(self._pairs, None)
            if pair is None:
                break
            its_size = self._sizer(pair[1])
            if items and size + its_size > target_bytes:
                self._held = (*pair, its_size)
                break
            last = pair[0]
            items.append(pair[1])
            size += its_size
        return items, last

    def close(self) -> None:
        """Have the source close what it opened."""
        self._held = None
        close = getattr(self._pairs, "close", None)
        if close is not None:
            close()
