"""The local engine: jobs over the store's one file, each part in a supervised child, all within one memory budget.

No server, no broker. A part is begun when the peak that is expected of it fits beside those that run: what earlier
runs of the job took, its limit at first. A child dies with its runner; whatever dies, the next runner goes on from
the ledger. Several runners may work on one ledger.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading

from memwarden.budget import Budget
from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, JobError, MemoryPressureError, StoreError
from memwarden.facts import Fact
from memwarden.jobs import child
from memwarden.jobs.child import EXIT_NO_STORE, EXIT_UNKNOWN, Order
from memwarden.jobs.definition import find, store_folder
from memwarden.jobs.ledger import Ledger, Watch, Worker
from memwarden.jobs.local import LocalEngine
from memwarden.jobs.port import Message
from memwarden.jobs.profiles import short_text, whole
from memwarden.jobs.slots import Slot, Slots, kind_of
from memwarden.jobs.worker import submit, sweep
from memwarden.sense import Machine, find_limit
from memwarden.store import Store
from memwarden.units import MIB, format_bytes, parse_bytes, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    from memwarden.budget import Account
    from memwarden.jobs.definition import Job
    from memwarden.jobs.ledger import Part, Status
    from memwarden.ports import Clock

__all__ = ["Runner"]

_log = logging.getLogger("memwarden.jobs")
# The budget, where none is given: this share of the limit that was found. The rest is for the runner and for errors.
BUDGET_SHARE = 0.8
# The kernel's limit of a part above the job's own, at which it stops itself: a chunk may overshoot before it is seen.
HARD_RATIO = 1.25
# What a forked child begins with counts against its limit: above this share of it, it is started anew.
MOST_INHERITED = 0.25
# A part is never expected to take less: an interpreter.
LEAST_EXPECTED = 16 * MIB
# With less an interpreter is killed before it can say that its limit is too small.
LEAST_HARD = 64 * MIB
# A part whose process died so often before it took the part is given up: nobody else would notice.
MOST_STARTS = 5
# Exit codes of a child that say nothing against its part.
_NOT_ITS_FAULT = (EXIT_UNKNOWN, EXIT_NO_STORE)
# What was said, and how often a part could not be begun, is remembered of so many; older ones are said, tried anew.
MOST_REMEMBERED = 1000
SWEEP_S = 1.0
# How long it looks away at most: somebody else may submit a job.
POLL_S = 0.1
# So long a dead child is left to the runner that began it, which knows how it died.
PARENT_S = 5.0
# Above the time-out of a part, which it keeps by itself at its safe points, it is ended from outside.
TIMEOUT_SLACK_S = 1.0
STARTS = ("auto", "fork", "spawn")
FENCES = ("auto", "on", "off")


class _Child(Fact):
    """One part at work."""

    pid: int
    watched: int  # a pidfd, or -1
    part: Part
    job: str
    slot: Slot
    account: Account
    expected_bytes: int
    until_s: float | None
    worker: Worker


class Runner:
    """Submits jobs to the local engine, and runs them: `run()` works until `stop()`, or until nothing is left.

    `store` is a Store, or the folder of one (None: `dir` of the settings, or the usual place). At most `workers` parts
    run at once (None: one for each core), and together they may take `memory` ("2G"; None: 80 % of the limit found
    here). `queues` are those that it serves, () is all. `start`: a part's process is forked, or started anew
    ("spawn"), which `auto` does where this process has threads or is large; `modules` are imported there first.
    `fence` refuses what would pass a part's hard limit.

    Close it, best by a with-statement. `notes` says what it could not have.
    """

    def __init__(
        self,
        store: Store | str | None = None,
        *,
        workers: int | None = None,
        memory: str | int | None = None,
        queues: Sequence[str] = (),
        start: str = "auto",
        fence: str = "auto",
        cgroup: bool = True,
        modules: Sequence[str] = (),
        grace: str | float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        for value, known, where in ((start, STARTS, "start"), (fence, FENCES, "fence")):
            if value not in known:
                raise ConfigError(f"{value!r} is not known", where=where, mend=f"give one of {', '.join(known)}")
        self.workers = whole(os.cpu_count() or 1 if workers is None else workers, "workers")
        self._grace_s = parse_duration(grace, where="grace")
        self._queues = tuple(short_text(each, "queues") for each in _several(queues, "queues"))
        modules = _several(modules, "modules")
        self.budget = Budget(self._budget_bytes(memory))
        self._own_store = None if isinstance(store, Store) else Store(store_folder(store))
        self.store = store if isinstance(store, Store) else self._own_store or Store()
        if self.store.path is None:
            if self._own_store is not None:
                self._own_store.close()
            raise JobError(
                f"its store is in memory only ({self.store.degraded})", where="runner",
                mend="set MEMWARDEN_DIR to a folder that can be written: parts run in processes of their own",
            )  # fmt: skip
        self._clock = clock or SystemClock()
        self.ledger = Ledger(self.store, clock=self._clock)
        self.engine = LocalEngine(self.ledger)
        self._start, self._fence, self._modules = start, fence, modules
        self._slots: Slots | None = None
        self._cgroup = cgroup
        self._children: dict[int, _Child] = {}
        self._watch = Watch(self._clock, parent_s=PARENT_S, one_machine=True)
        self._swept_s = float("-inf")
        self._stop = threading.Event()
        self._failures: dict[tuple[str, int], int] = {}
        self._not_before: dict[tuple[str, int], float] = {}
        self._told: dict[str, None] = {}
        machine = Machine()
        self._resident = machine.number("/proc/self/statm", index=1, scale=machine.page_size)
        self._asked: dict[int, float] = {}

    @staticmethod
    def _budget_bytes(memory: str | int | None) -> int:
        found = find_limit(Machine())
        if memory is None:
            return int(found.bytes * BUDGET_SHARE) if found.bytes else 1 << 40
        asked = parse_bytes(memory, where="memory")
        if asked < LEAST_HARD:
            what = f"{format_bytes(asked)} are too little for the process of any part"
            raise ConfigError(what, where="memory", mend=f"give at least {format_bytes(LEAST_HARD)}")
        if found.bytes is not None and asked > found.bytes:
            whose = "this process may have" if found.scope == "process" else "there are"
            raise ConfigError(
                f"{format_bytes(asked)} are more than the {format_bytes(found.bytes)} {whose} ({found.source})",
                where="memory", mend="give less, or leave it out",
            )  # fmt: skip
        return asked

    @property
    def notes(self) -> tuple[str, ...]:
        """What it could not have, in words."""
        if self._slots is None or not self._slots.why:
            return self.store.notes
        return (*self.store.notes, f"no cgroup for parts: {self._slots.why}")

    # --- jobs --------------------------------------------------------------------------------------------------

    def submit(
        self,
        job: Job | type,
        arguments: Mapping[str, Any] | None = None,
        *,
        queue: str = "default",
        priority: int = 0,
        delay: str | float = 0.0,
        unique: str | None = None,
    ) -> str:
        """Have it run, here or in whatever runner serves its queue; its id.

        It is begun `delay` (seconds) from now at the earliest, those of higher `priority` first. Where a job of the
        same name and `unique` text is not over yet, nothing is added and that one's id is given.
        """
        return submit(
            job, {} if arguments is None else arguments, engine=self.engine, ledger=self.ledger, queue=queue,
            priority=priority, delay_s=parse_duration(delay, where="delay"), unique=unique,
        )  # fmt: skip

    def status(self, root: str) -> Status:
        """A job as it is now. Raises JobError where it is not known."""
        found = self.ledger.status(root)
        if found is None:
            raise JobError("is not known here", where=f"job {root}", mend="`memwarden jobs list` shows them")
        return found

    def result(self, root: str) -> Any:
        """The result of a job that is done. Raises JobError where it is not."""
        return self.ledger.result(root)

    def wait(self, root: str, *, timeout: str | float | None = None) -> Status:
        """Wait until the job is over, whoever runs it. Raises JobError where it takes longer."""
        until_s = None if timeout is None else self._clock.monotonic() + parse_duration(timeout, where="timeout")
        never = threading.Event()
        while (status := self.status(root)).state == "open":
            if until_s is not None and self._clock.monotonic() >= until_s:
                raise JobError("is not over in time", where=f"job {root}", mend="see that a runner serves its queue")
            self._clock.wait(never, POLL_S / 2)
        return status

    def cancel(self, root: str) -> bool:
        """End it: nothing more of it is begun, and what runs here is stopped. False where it is over.

        Raises JobError where it is not known.
        """
        self.status(root)
        done = self.ledger.cancel(root)
        for each in list(self._children.values()):  # the loop may be in another thread
            if each.part.root == root:
                _kill(each.pid, signal.SIGTERM)
        return done

    # --- the loop ----------------------------------------------------------------------------------------------

    def run(self, *, until_idle: bool = False) -> None:
        """Work until `stop`, or until no part is left (`until_idle`); then let those that run come to rest.

        A part that another runner has at work is left too: what comes of it may be for this one.
        """
        self.begin()
        try:
            while not self._stop.is_set():
                self.turn()
                if until_idle and self._is_idle():
                    break
                self._rest()
            self._drain()
        finally:
            self._end_all()

    def _is_idle(self) -> bool:
        """Whether nothing runs, here or elsewhere, and nothing waits."""
        if self._children:
            return False
        left = self.ledger.queues_left(self.engine.name)
        return left.isdisjoint(self._queues) if self._queues else not left

    def begin(self) -> None:
        """Make what parts need; `run` does it, and who turns the loop by himself."""
        if self._slots is None:
            self._slots = Slots(self.budget.limit_bytes or 1 << 40, wanted=self._cgroup)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that have a part now."""
        return tuple(self._children)

    def stop(self) -> None:
        """End `run` soon: parts stop at their next safe point and keep their place. From any thread or signal."""
        self._stop.set()

    def close(self) -> None:
        """End the children and remove what was made for them."""
        self._end_all()
        if self._slots is not None:
            self._slots.close()
            self._slots = None
        self._resident.close()
        if self._own_store is not None:
            self._own_store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def turn(self) -> None:
        """One turn of the loop, which never waits: see who ended, begin what fits."""
        now = self._clock.monotonic()
        self._reap()
        self._end_overdue(now)
        try:
            if now - self._swept_s >= SWEEP_S:
                self._swept_s = now
                sweep(self.engine, self.ledger, self._watch)
                self._end_cancelled(now)
            self._fill()
        except StoreError as error:
            self._say_once(f"the ledger cannot be reached: {error}")

    def _rest(self, most_s: float = POLL_S) -> None:
        """Until a child ends, at most so long."""
        watched = [each.watched for each in self._children.values() if each.watched >= 0]
        if len(watched) < len(self._children):  # a kernel without pidfds
            most_s = min(most_s, 0.01)
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        poll.poll(most_s * 1000)

    # --- beginning ---------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        room = self.workers - len(self._children)
        if room <= 0:
            return
        now = self._clock.monotonic()
        mine = {(each.part.root, each.part.part) for each in self._children.values()}
        for part, name in self.ledger.due(self.engine.name, queues=self._queues, most=self.workers + room):
            key = (part.root, part.part)
            if key in mine or self._not_before.get(key, now) > now:
                continue
            if room <= 0 or not self._begin(part, name):
                return
            room -= 1

    def _begin(self, part: Part, name: str) -> bool:
        """Start it where it fits; false where it has to wait, and all behind it with it."""
        text = _text_of(part, name)
        if text is None:
            self._put_off(part, name, "its name makes too long a message; give it a shorter one", most=1)
            return True
        try:
            job = find(name)
            limit = self._limit_of(job)
        except (JobError, ConfigError) as error:
            if not self._modules or self._start == "fork":
                self._put_off(part, name, f"{error}")
                return True
            job, limit = None, int((self.budget.limit_bytes or 1 << 40) / HARD_RATIO)
        of_main = self._is_of_main(name, job)
        anew = self._starts_anew(of_main, limit)
        if anew and of_main:
            self._put_off(part, name, self._why_not_anew(), most=MOST_STARTS)
            return True
        learned = self.ledger.learned(name, "peak_bytes")
        hard = min(max(int(limit * HARD_RATIO), LEAST_HARD), self.budget.limit_bytes or 1 << 40)
        expected = int(min(hard, max(LEAST_EXPECTED, learned if learned is not None else limit)))
        account = self.budget.account(name)
        try:
            account.reserve(expected)
        except MemoryPressureError:
            account.close()
            return False
        slot = (self._slots or Slots(1 << 40, wanted=False)).take()
        slot.begin(hard)
        order = Order(
            text=text,
            folder=os.path.dirname(self.store.path or ""), runner=os.getpid(), limit_bytes=limit, hard_bytes=hard,
            fence=self._fence, group=slot.folder, modules=self._modules, path=tuple(sys.path),
        )  # fmt: skip
        try:
            pid = self._start_child(order, anew=anew)
        except OSError as error:  # no process, or no memory for one: there may be when others have ended
            account.close()
            self._take_back(slot)
            self._put_off(part, name, f"no process can be had ({error.strerror})")
            return False
        timeout_s = None if job is None else job.options().get("timeout_s")
        until_s = None if timeout_s is None else self._clock.monotonic() + timeout_s + TIMEOUT_SLACK_S
        self._children[pid] = _Child(
            pid=pid, watched=_watch(pid), part=part, job=name, slot=slot, account=account, expected_bytes=expected,
            until_s=until_s, worker=Worker.here(),
        )  # fmt: skip
        return True

    def _limit_of(self, job: Job) -> int:
        """The job's limit, or what the budget has for it where that is less."""
        limit, most = job.profile.limit_bytes, int((self.budget.limit_bytes or 1 << 40) / HARD_RATIO)
        if limit > most:
            self._say_once(
                f"{job.name}: its limit of {format_bytes(limit)} (and a quarter above for the kernel's) is more than "
                f"the budget of {format_bytes(self.budget.limit_bytes)} here; {format_bytes(most)} are used"
            )
        return min(limit, most)

    def _put_off(self, part: Part, name: str, why: str, *, most: int | None = None) -> None:
        """It cannot be begun here now: later, and ever later; where nobody else could, given up after `most` times."""
        key = (part.root, part.part)
        count = self._failures.pop(key, 0) + 1
        message = _message_of(part, name)
        self._say_once(f"{name}: its parts cannot be begun: {why}")
        if most is not None and count >= most:
            self.ledger.give_up(message, Worker.here(), why if count == 1 else f"{count} times {why}")
            return
        self._failures[key] = count
        _keep_newest(self._failures)
        pause_s = min(60.0, 0.1 * 2.0**count)
        self._not_before[key] = self._clock.monotonic() + pause_s  # the ledger may be what cannot be had
        _keep_newest(self._not_before)
        self.ledger.postpone(message, pause_s, why)

    def _start_child(self, order: Order, *, anew: bool) -> int:
        if anew:
            words = [sys.executable, "-m", "memwarden.jobs.child", json.dumps(order.as_dict())]
            return os.posix_spawn(sys.executable, words, os.environ)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            child.run_forked(order, Ledger(self.store, clock=self._clock))
        return pid

    def _is_of_main(self, name: str, job: Job | None) -> bool:
        """Whether nobody else has the job's module: it is this process's own program."""
        module = "" if job is None or self._modules else job.function.__module__
        return name.startswith("__main__:") or module == "__main__"

    def _starts_anew(self, of_main: bool, limit_bytes: int) -> bool:
        """Whether a fork would inherit locks that threads hold, or much of its limit as memory of ours."""
        if self._start != "auto":
            return self._start == "spawn"
        if threading.active_count() > 1:
            return True
        held = None if of_main else self._resident.value()
        return held is not None and held > limit_bytes * MOST_INHERITED

    def _why_not_anew(self) -> str:
        """Why a job of __main__ can have no process; a fork beside threads would hang now and then."""
        others = [each.name for each in threading.enumerate() if each is not threading.current_thread()]
        why = f"this one has other threads ({', '.join(others)[:100]})" if self._start == "auto" else "by start='spawn'"
        return (
            f"its process is started anew ({why}), and so would not have __main__, which it is in; put the job into a "
            "module of its own"
        )

    # --- ending ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for pid in list(self._children):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._bury(pid)

    def _bury(self, pid: int) -> None:
        """End it and what it started, as long as its number is its own; then see how it died."""
        _kill_group(pid)
        _found, status, usage = os.wait4(pid, 0)
        self._ended(self._children.pop(pid), os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)

    def _ended(self, it: _Child, status: int, peak_bytes: int) -> None:
        asked = self._asked.pop(it.pid, None) is not None
        if it.watched >= 0:
            os.close(it.watched)
        it.account.close()
        try:
            claims = self.ledger.claims_of(it.pid)
            if status or claims:
                self._died(it, status, peak_bytes, [each for each, _ in claims], asked=asked)
            else:
                self._failures.pop((it.part.root, it.part.part), None)
        except StoreError as error:
            self._say_once(f"the ledger cannot be reached: {error}")  # the next sweep finds it gone
        finally:
            it.slot.empty()
            self._take_back(it.slot)

    def _take_back(self, slot: Slot) -> None:
        if self._slots is not None:
            self._slots.give_back(slot)

    def _died(
        self, it: _Child, status: int, peak_bytes: int, claims: Sequence[tuple[str, int, int]], *, asked: bool
    ) -> None:
        kind, text = self._cause(it, status)
        for claimed in claims:
            self.ledger.died(claimed, kind=kind, peak_bytes=peak_bytes, text=text)
            if status in _NOT_ITS_FAULT:  # nor is it helped by being tried again at once
                self._put_off(it.part.replace(attempt=claimed[2]), it.job, text)
            _log.warning("%s: part %d died: %s (%s)", it.job, claimed[1], kind, text, extra={"job": it.job})
        if kind == "oom_kill":
            self.ledger.learn(it.job, "peak_bytes", float(max(peak_bytes, it.expected_bytes)), death=True)
        # Who was told to end may do so before it begins; and who has done its part may die of whatever comes behind it.
        if claims or asked or not self.ledger.is_untaken(_message_of(it.part, it.job)):
            return
        why = f"its process ended before it took the part ({kind}: {text})"
        self._put_off(it.part, it.job, why, most=None if kind == "killed" else MOST_STARTS)

    def _cause(self, it: _Child, status: int) -> tuple[str, str]:
        if it.until_s is not None and self._clock.monotonic() >= it.until_s:
            return "timeout", "it took longer than its time-out"
        if status in _NOT_ITS_FAULT:
            return "killed", "it ended by itself: its job or its store could not be had"
        if not status:
            return "crash", "its process ended before the part was done, with exit status 0"
        if not it.slot.folder:
            kind = it.worker.death(status)
            return kind, f"exit status {status}, and no cgroup of its own to tell more"
        verdict, evidence = it.slot.death(it.pid, status)
        return kind_of(verdict), "; ".join(evidence)

    def _end_overdue(self, now: float) -> None:
        for each in self._children.values():
            if each.until_s is not None and now >= each.until_s:
                _kill_group(each.pid)

    def _end_cancelled(self, now: float) -> None:
        """Ask those whose job was cancelled to stop; kill them where they have not by the grace."""
        cancelled = set(self.ledger.cancelled([each.part.root for each in self._children.values()]))
        for pid, each in self._children.items():
            if each.part.root not in cancelled:
                continue
            if pid not in self._asked:
                self._ask_to_end(pid, now)
            elif now - self._asked[pid] >= self._grace_s:
                _kill_group(pid)

    def _ask_to_end(self, pid: int, now: float) -> None:
        self._asked.setdefault(pid, now)
        _kill(pid, signal.SIGTERM)

    def _drain(self) -> None:
        """Ask all to stop at their next safe point, and wait for them as long as the grace lasts."""
        now = self._clock.monotonic()
        until_s = now + self._grace_s
        for pid in self._children:
            self._ask_to_end(pid, now)
        while self._children and self._clock.monotonic() < until_s:
            self._reap()
            if self._children:
                self._rest(0.05)

    def _end_all(self) -> None:
        for pid in list(self._children):
            self._bury(pid)

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told[text] = None
            _keep_newest(self._told)
            _log.warning("%s", text)


def _several(texts: Sequence[str], where: str) -> tuple[str, ...]:
    """Raises ConfigError for what is one text, which would be taken for its letters, or no texts at all."""
    found = () if isinstance(texts, str) or not hasattr(texts, "__iter__") else tuple(texts)
    if texts and (not found or not all(isinstance(each, str) for each in found)):
        raise ConfigError(f"{texts!r:.60} is no list of texts", where=where, mend='give a list such as ["mail"]')
    return found


def _keep_newest(remembered: dict[Any, Any]) -> None:
    """Not more than MOST_REMEMBERED: a runner lives for months."""
    while len(remembered) > MOST_REMEMBERED:
        remembered.pop(next(iter(remembered)))


def _message_of(part: Part, name: str) -> Message:
    return Message(job=name, root=part.root, part=part.part, attempt=part.attempt)


def _text_of(part: Part, name: str) -> str | None:
    """Its message; None where its name makes one that is too long."""
    try:
        return _message_of(part, name).encode()
    except JobError:
        return None


def _watch(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_group(pid: int) -> None:
    """The child and whatever it started; the child alone where it has not come to have a group of its own yet."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        _kill(pid, signal.SIGKILL)
