"""The ledger: every job, part, attempt, death and result, in the store's one file.

A part is a range of keys: what is behind `position` (at first `low`; None is the start) up to and including `high`
(None is the end). Each transaction here moves one boundary: a chunk that is done moves `position`, a child that is cut
off takes the range between the old and the new `position`. So parts are disjoint and complete whatever dies when.

States of a part: *ready* (to be taken; `sent` is the attempt a message was sent for), *running* (a worker has it),
*waiting* (its rest is cut off later, when fewer of its children are open), *done*, *failed*, *cancelled*. Modes:
*work*, *cut* (only cuts its rest into children of `share` items), *finish* (folds the results). States of a job:
*open*, then *done*, *failed*, *cancelled*.

A worker that lost its part, because it was taken for dead, cannot write any more: every write names its attempt.

The SQL is plain enough for any database, and every transaction begins by touching the job's row, which serialises
those of one job; but for what a worker writes at every chunk, which touches its part's row alone and moves `beat`. So
whoever decides about a part has its row held by a beat of its own, or writes only where no beat came in between.
Wall time is used for what people read, and for delays; whether a worker lives is not (see `Watch`).
"""

from __future__ import annotations

import json
import os
import secrets
from math import isfinite
from random import random

from memwarden.clock import SystemClock
from memwarden.errors import JobError, StoreError
from memwarden.facts import Fact
from memwarden.jobs.blame import MOST_DEATHS, Blame, after_death, after_progress
from memwarden.jobs.port import DEATHS, LEASE_S, Message
from memwarden.jobs.sizes import OOM_BUMP, Histogram
from memwarden.sense import parse
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Protocol

    from memwarden.jobs.port import QueueCount
    from memwarden.ports import Clock

    class Rows(Protocol):
        """What an execution gave."""

        rowcount: int

        def fetchall(self) -> list[Any]: ...
        def fetchone(self) -> Any: ...

    class Database(Protocol):
        """A transaction, as sqlite3's connection is one."""

        def execute(self, sql: str, parameters: Mapping[str, Any], /) -> Any: ...

    Figures = Mapping[str, int | None]  # base_bytes, peak_bytes, growth_bytes, items of one attempt

    class Place(Protocol):
        """Where the ledger's tables are: a Store is one."""

        def transaction(self) -> AbstractContextManager[Any]: ...


__all__ = ["Claim", "Ledger", "LostError", "Part", "Quarantined", "Status", "Watch", "Worker"]

# JSON texts longer than this are refused: they would be loaded whole by everybody who looks at the job.
MOST_ARGUMENTS_BYTES = 64 * 1024
MOST_RESULT_BYTES = 256 * 1024
# What is kept of an error's text: a driver's may hold the row that it failed at.
ERROR_CHARACTERS = 500
OPEN = ("ready", "running", "waiting")
# What was sent and never taken for so long is sent again: the broker lost it, or is that far behind (then the second
# message is dropped when it comes).
RESEND_S = 900.0
# Where a worker counted that the broker is only behind, that many times as long: others' messages count there too.
BEHIND = 8
# A heart that stands still in a process that lives: C code that holds the interpreter's lock, or a machine that swaps.
# So many leases are for those; what hangs is for `timeout=`.
ALIVE = 10
# Children of one part that are open at once: enough for any number of local workers, few enough for any broker.
WINDOW = 64
# What a worker counted in a broker is news for so long, of so many queues.
COUNTED_S = 60.0
MOST_QUEUES = 200
MOST_DOUBLINGS = 60  # of a pause: it is above any bound then, and floats end at a thousand
KEY_SEPARATOR = "\x1f"  # in no name: they are printable
KEY_CHARACTERS = 250  # of a job's name, the separator and its `unique` text: what the column of a server holds
FINISH_PATH = "~"  # behind all digits
KEEP_S = 7 * 86400.0
# Jobs that one sweep forgets, each in a transaction of its own: others write between them.
MOST_EXPIRED = 100


_NONE: Figures = {}


class LostError(Exception):
    """The worker was taken for dead, or the job was cancelled: what it does no longer counts."""


class Worker(Fact):
    """Who has a part: enough to see, on the same machine and boot, whether it still runs, and how it may have died.

    `start` and `parent_start` are in clock ticks since boot, so that a pid that was used again is another worker.
    `kills` is the kernel's count of its OOM kills on the whole machine when the part was taken.
    """

    host: str
    boot: str
    pid: int
    start: str
    parent: int = 0
    parent_start: str = ""
    kills: int | None = None

    @classmethod
    def here(cls) -> Worker:
        """The calling process, now."""
        pid, parent = os.getpid(), os.getppid()
        return cls(
            host=os.uname().nodename, boot=_boot(), pid=pid, start=_start(pid) or "", parent=parent,
            parent_start=_start(parent) or "", kills=_kernel_kills(),
        )  # fmt: skip

    def _is_of_here(self) -> bool:
        return bool(self.start) and self.host == os.uname().nodename and self.boot == _boot()

    def is_gone(self) -> bool:
        """Whether it certainly runs no more: false also where that cannot be told from here."""
        return self._is_of_here() and _start(self.pid) not in (self.start, None)

    def lives(self) -> bool:
        """Whether it certainly runs: false also where that cannot be told from here."""
        return self._is_of_here() and _start(self.pid) == self.start

    def is_of_another_boot(self) -> bool:
        """Whether a host of this name had it at another boot: this one before, or another that is called the same."""
        now, then = _boot().partition(" ")[0], self.boot.partition(" ")[0]
        return self.host == os.uname().nodename and bool(now) and bool(then) and now != then

    def lost_its_parent(self) -> bool:
        """Whether its parent is gone too: it went with it, and no item is to blame."""
        known = self._is_of_here() and bool(self.parent_start)
        return known and _start(self.parent) not in (self.parent_start, None)

    def death(self, status: int | None) -> str:
        """The kind of its death, of port.DEATHS, by its exit code or negated signal (None: not known).

        A SIGKILL is the kernel's only if the kernel killed somebody on this machine meanwhile; it may have been
        somebody else, so that is not said for sure. Who is gone together with his parent was killed with it.
        """
        if status is None:
            return "killed" if self.lost_its_parent() else "lost"
        if status != -SIGKILL:
            return "crash"
        now = _kernel_kills()
        return "killed" if now is not None and now == self.kills and self._is_of_here() else "lost"


SIGKILL = 9


def _kernel_kills() -> int | None:
    """The kernel's count of OOM kills since boot (/proc/vmstat, all cgroups); None where it cannot be read."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return parse.keyed(file.read(), (b"oom_kill",)).get(b"oom_kill")
    except OSError:
        return None


def _boot() -> str:
    """The boot of this kernel and this namespace of pids; empty where it cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat (proc(5)); empty when it is gone, or a zombie, which does nothing any more.

    None where it is there and hidden from us, as /proc with `hidepid` hides what others run.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None if _exists(pid) else ""
    return words[19].decode() if len(words) > 19 and words[0] not in (b"Z", b"X") else ""


def _exists(pid: int) -> bool:
    """Whether any process has this number, whoever owns it and whatever /proc shows."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Part(Fact):
    """One row of job_parts, as far as work needs it."""

    root: str
    part: int
    path: str
    parent: int | None
    mode: str
    state: str
    low: str | None
    high: str | None
    position: str | None
    pending: str | None
    chunk: int
    careful: int
    deaths: int
    blamed: str | None
    blamed_deaths: int
    innocent: int
    errors: int
    attempt: int
    sent: int
    due_unix_s: float
    engine: str
    queue: str
    priority: int
    holder: str | None
    pid: int | None
    beat: int
    items: int
    share: int
    result: str | None
    error: str | None
    updated_unix_s: float

    @property
    def cursor(self) -> str | None:
        """Where the rest begins."""
        return self.position if self.position is not None else self.low

    @property
    def is_condemned(self) -> bool:
        """Whether the next item, whose key is `pending`, is to be left out."""
        return (
            self.pending is not None
            and self.blamed == (self.cursor or "")
            and self.deaths + self.blamed_deaths >= MOST_DEATHS
        )

    @property
    def blame(self) -> Blame:
        """What is held against the items at the cursor."""
        return Blame(
            chunk=self.chunk, careful=self.careful, deaths=self.deaths, blamed=self.blamed,
            blamed_deaths=self.blamed_deaths, innocent=self.innocent,
        )  # fmt: skip


_COLUMNS = ", ".join(Part._fields)
# Of the fields of Part, which are ours; what is asked for is always bound.
_PARTS_WHERE = f"SELECT {_COLUMNS} FROM job_parts WHERE "  # noqa: S608  no value of anybody's is in it
_NEW: Mapping[str, Any] = {
    "mode": "work", "state": "ready", "chunk": 1, "careful": 0, "deaths": 0, "blamed_deaths": 0, "innocent": 0,
    "errors": 0, "attempt": 0, "sent": -1, "due_unix_s": 0.0, "beat": 0, "items": 0, "share": 0,
}  # fmt: skip


class Claim(Fact):
    """A part that this worker has, with what its job says."""

    part: Part
    job: str
    type: str
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    began_items: int = 0  # what was done when this attempt began

    @property
    def key(self) -> dict[str, Any]:
        """What names the attempt in SQL."""
        return {"root": self.part.root, "part": self.part.part, "attempt": self.part.attempt}


class Quarantined(Fact):
    """Items that were left out: behind `low` up to `high` (None with `whole` false: not known). JSON texts."""

    root: str
    part: int
    low: str | None
    high: str | None
    whole: bool
    deaths: int
    kind: str
    text: str
    unix_s: float
    retried: bool


# Of the fields of Quarantined, as above.
_QUARANTINED = f"SELECT {', '.join(Quarantined._fields)} FROM job_quarantine "  # noqa: S608  no value is in it


class Status(Fact):
    """A job as it is now. `parts` counts them by state; `endings` the attempts by how they ended.

    `peak_bytes` and `growth_bytes` (end less start) are the most that any attempt had, resident in its process.
    `error` is why it failed; of one that is open, why a part that waits was not begun or did not get through.
    """

    id: str
    name: str
    type: str
    queue: str
    state: str
    created_unix_s: float
    finished_unix_s: float | None
    parts: Mapping[str, int]
    items: int
    attempts: int
    endings: Mapping[str, int]
    peak_bytes: int | None
    growth_bytes: int | None
    quarantined: int
    error: str | None


_SEASON_JOBS = """
    SELECT p.engine, j.queue, j.type, SUM(CASE WHEN j.created_unix_s BETWEEN :since AND :until THEN 1 ELSE 0 END),
        SUM(CASE WHEN j.state = 'done' AND j.finished_unix_s BETWEEN :since AND :until THEN 1 ELSE 0 END),
        SUM(CASE WHEN j.state = 'failed' AND j.finished_unix_s BETWEEN :since AND :until THEN 1 ELSE 0 END),
        SUM(CASE WHEN j.state = 'cancelled' AND j.finished_unix_s BETWEEN :since AND :until THEN 1 ELSE 0 END)
    FROM jobs j JOIN job_parts p ON p.root = j.id AND p.part = 0
    WHERE j.created_unix_s BETWEEN :since AND :until OR j.finished_unix_s BETWEEN :since AND :until
    GROUP BY p.engine, j.queue, j.type
"""
_SEASON_ATTEMPTS = """
    SELECT p.engine, j.queue, j.type, j.options, a.ending, COUNT(*), MAX(a.peak_bytes)
    FROM job_attempts a JOIN job_parts p ON p.root = a.root AND p.part = a.part JOIN jobs j ON j.id = a.root
    WHERE a.ended_unix_s BETWEEN :since AND :until GROUP BY p.engine, j.queue, j.type, j.options, a.ending
"""


class Season(Fact):
    """What happened within a time on one queue, to one job type: jobs, and attempts at their parts by how they ended.

    `peak_bytes` is the most that any attempt had, `peak_ratio` (0-1) the most of the limit that its job was submitted
    with, which is `limit_bytes` where there was one only. None is not known.
    """

    engine: str
    queue: str
    type: str
    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    endings: Mapping[str, int] = {}
    splits: int = 0
    quarantined: int = 0
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    limit_bytes: int | None = None


class Ledger:
    """All of it, over a Store (or whatever has `transaction()`). Safe across threads, processes and forks."""

    def __init__(
        self, place: Place, *, clock: Clock | None = None, random: Callable[[], float] = random,
        resend_s: float = RESEND_S,
    ) -> None:  # fmt: skip
        self._place = place
        self._clock = clock or SystemClock()
        self._random = random
        self.resend_s = resend_s

    # --- jobs --------------------------------------------------------------------------------------------------

    def submit(
        self,
        job: str,
        arguments: Mapping[str, Any],
        *,
        type: str = "",  # noqa: A002  it is called so everywhere
        chunk: int = 1,
        engine: str = "local",
        queue: str = "default",
        priority: int = 0,
        delay_s: float = 0.0,
        unique: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[str, bool]:
        """Write a new job with its one part; its id, and whether it is new (not where one of that key is open).

        Raises JobError for arguments that would not come back from JSON as they were, or are too long.
        """
        text = as_json(arguments, "its arguments", MOST_ARGUMENTS_BYTES, where=f"job {job!r}")
        now, root = self._clock.wall(), secrets.token_hex(12)
        key = None if unique is None else f"{job}{KEY_SEPARATOR}{unique}"
        kept = dict(options or {}) if key is None else {**(options or {}), "unique_key": key}  # for a retry
        row = {
            "id": root, "name": job, "type": type, "queue": queue, "priority": priority, "arguments": text,
            "options": json.dumps(kept), "key": key, "now": now,
        }  # fmt: skip
        part = {"chunk": chunk, "engine": engine, "queue": queue, "priority": priority, "due_unix_s": now + delay_s}
        try:
            with self._place.transaction() as db:
                if key is not None and (found := self._open_one(db, key)) is not None:
                    return found, False
                db.execute(
                    "INSERT INTO jobs (id, name, type, queue, priority, state, arguments, options, unique_key, touched,"
                    " created_unix_s, parts) VALUES (:id, :name, :type, :queue, :priority, 'open', :arguments,"
                    " :options, :key, 0, :now, 0)",
                    row,
                )
                self._add(db, root, part, path="")
        except StoreError:
            if key is None:
                raise
            with self._place.transaction() as db:  # another machine submitted it at the same moment
                found = self._open_one(db, key)
            if found is None:
                raise
            return found, False
        return root, True

    @staticmethod
    def _open_one(db: Database, key: str) -> str | None:
        found = db.execute("SELECT id FROM jobs WHERE unique_key = :key", {"key": key}).fetchone()
        return None if found is None else str(found[0])

    def _add(self, db: Database, root: str, values: Mapping[str, Any], *, path: str | None = None) -> int:
        """A new part with these values of its columns; its number. `path`: None is that below its parent's."""
        db.execute("UPDATE jobs SET parts = parts + 1 WHERE id = :root", {"root": root})
        number = int(db.execute("SELECT parts FROM jobs WHERE id = :root", {"root": root}).fetchone()[0]) - 1
        row = {**dict.fromkeys(Part._fields), **_NEW, **values}
        row |= {"root": root, "part": number, "updated_unix_s": self._clock.wall()}
        row["path"] = f"{values.get('path', '')}{number:010x}" if path is None else path
        marks = ", ".join(f":{name}" for name in Part._fields)
        db.execute(f"INSERT INTO job_parts ({_COLUMNS}) VALUES ({marks})", row)  # noqa: S608  our names
        return number

    @staticmethod
    def _touch(db: Database, root: str) -> tuple[str, str, str, str, str] | None:
        """The job's (state, name, type, arguments, options), its row locked; None where there is none."""
        db.execute("UPDATE jobs SET touched = touched + 1 WHERE id = :root", {"root": root})
        query = "SELECT state, name, type, arguments, options FROM jobs WHERE id = :root"
        found = db.execute(query, {"root": root}).fetchone()
        return None if found is None else tuple(found)

    @staticmethod
    def _part(db: Database, root: str, part: int) -> Part | None:
        query = f"{_PARTS_WHERE}root = :root AND part = :part"
        row = db.execute(query, {"root": root, "part": part}).fetchone()
        return None if row is None else Part(**dict(zip(Part._fields, row, strict=True)))

    # --- what a worker does ------------------------------------------------------------------------------------

    def claim(self, message: Message, worker: Worker) -> Claim | str:
        """Take the part. Else why not: "cancelled", "later" (it is not due), "dropped" (nothing to do)."""
        now = self._clock.wall()
        with self._place.transaction() as db:
            job, part = self._touch(db, message.root), self._part(db, message.root, message.part)
            if job is None or part is None:
                return "dropped"
            if job[0] == "cancelled":
                return "cancelled"
            if part.state != "ready" or part.attempt != message.attempt:
                return "dropped"
            if part.due_unix_s > now:  # by our clock, and this message is spent: another one has to be sent
                query = "UPDATE job_parts SET sent = -1 WHERE root = :root AND part = :part AND attempt = :attempt"
                of = {"root": part.root, "part": part.part, "attempt": part.attempt}
                db.execute(f"{query} AND state = 'ready'", of)
                return "later"
            return self._take(db, job, part, worker, now)

    def _take(self, db: Database, job: tuple[str, ...], part: Part, worker: Worker, now: float) -> Claim:
        holder = json.dumps(worker.as_dict())
        taken = part.replace(state="running", attempt=part.attempt + 1, holder=holder, pid=worker.pid, beat=0)
        db.execute(
            "UPDATE job_parts SET state = 'running', attempt = :attempt, holder = :holder, pid = :pid, beat = 0,"
            " updated_unix_s = :now WHERE root = :root AND part = :part",
            {"attempt": taken.attempt, "holder": holder, "pid": worker.pid, "now": now, "root": part.root,
             "part": part.part},
        )  # fmt: skip
        db.execute(
            "INSERT INTO job_attempts (root, part, attempt, worker, started_unix_s) VALUES"
            " (:root, :part, :attempt, :worker, :now)",
            {"root": part.root, "part": part.part, "attempt": taken.attempt, "worker": holder, "now": now},
        )
        return Claim(
            part=taken, job=job[1], type=job[2], arguments=json.loads(job[3]), options=json.loads(job[4]),
            began_items=part.items,
        )  # fmt: skip

    def _own(self, db: Database, claim: Claim) -> Part:
        """The claim's part as it is written down, its row held. Raises LostError where it is another one's by now."""
        self._touch(db, claim.part.root)
        self._beat(db, claim)
        part = self._part(db, claim.part.root, claim.part.part)
        if part is None:
            raise LostError
        return part

    @staticmethod
    def _beat(db: Database, claim: Claim) -> None:
        query = (
            "UPDATE job_parts SET beat = beat + 1 WHERE root = :root AND part = :part AND attempt = :attempt"
            " AND state = 'running'"
        )
        if db.execute(query, claim.key).rowcount != 1:
            raise LostError

    def beat(self, claim: Claim) -> None:
        """Say that the worker lives. Raises LostError."""
        with self._place.transaction() as db:
            self._beat(db, claim)

    def announce(self, claim: Claim, pending: str | None) -> None:
        """Say which item comes next, by its key: should it kill the worker it can be left out unseen."""
        with self._place.transaction() as db:
            query = (
                "UPDATE job_parts SET pending = :pending, beat = beat + 1 WHERE root = :root AND part = :part AND"
                " attempt = :attempt AND state = 'running'"
            )
            if db.execute(query, {**claim.key, "pending": pending}).rowcount != 1:
                raise LostError

    def advance(self, claim: Claim, position: str | None, items: int, result: str | None = None) -> Claim:
        """So many items up to this key are done; `result` is the part's so far. Raises LostError."""
        blame = after_progress(claim.part.blame, items)
        after = claim.part.replace(
            position=position, pending=None, items=claim.part.items + items, result=result, careful=blame.careful,
            deaths=blame.deaths, blamed=blame.blamed, blamed_deaths=blame.blamed_deaths, innocent=blame.innocent,
        )  # fmt: skip
        with self._place.transaction() as db:
            if not self._set(db, after, "position, pending, items, result, careful, deaths, blamed, blamed_deaths,"
                                        " innocent"):  # fmt: skip
                raise LostError
        return claim.replace(part=after)

    def _set(self, db: Database, part: Part, names: str, *, beat: int | None = None) -> bool:
        """Write these columns of a running part; false where it is not that attempt's any more, or has beaten on."""
        columns = [name.strip() for name in names.split(",")]
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        unmoved = "" if beat is None else " AND beat = :seen"
        query = (
            f"UPDATE job_parts SET {sets}, beat = beat + 1, updated_unix_s = :now WHERE root = :root AND"  # noqa: S608  our names
            f" part = :part AND attempt = :of_attempt AND state = 'running'{unmoved}"
        )
        values = {name: getattr(part, name) for name in columns}
        if beat is not None:
            values["seen"] = beat
        values |= {"now": self._clock.wall(), "root": part.root, "part": part.part, "of_attempt": part.attempt}
        return bool(db.execute(query, values).rowcount == 1)

    def leave_out(self, claim: Claim) -> Claim:
        """Quarantine the item behind the cursor, which is condemned, and go on behind it. Raises LostError."""
        with self._place.transaction() as db:
            part = self._own(db, claim)
            query = "SELECT ending, text FROM job_attempts WHERE root = :root AND part = :part AND attempt = :before"
            of = {"root": part.root, "part": part.part, "before": part.attempt - 1}
            kind, text = db.execute(query, of).fetchone() or ("lost", "")
            self._bury(db, part, part.pending, kind=kind or "lost", text=text or "", whole=False)
            careful = max(0, part.careful - 1)
            after = part.replace(
                position=part.pending, pending=None, blamed=None, blamed_deaths=0, innocent=0, careful=careful,
                deaths=part.deaths if careful else 0,
            )  # fmt: skip
            self._set(db, after, "position, pending, blamed, blamed_deaths, innocent, careful, deaths")
        return claim.replace(part=after)

    def _bury(self, db: Database, part: Part, high: str | None, *, kind: str, text: str, whole: bool) -> None:
        db.execute(
            "INSERT INTO job_quarantine (root, part, low, high, whole, deaths, kind, text, unix_s, retried) VALUES"
            " (:root, :part, :low, :high, :whole, :deaths, :kind, :text, :now, 0)",
            {
                "root": part.root, "part": part.part, "low": part.cursor, "high": high, "whole": int(whole),
                "deaths": part.deaths + part.blamed_deaths, "kind": kind, "text": _kept(text),
                "now": self._clock.wall(),
            },
        )  # fmt: skip
        self._event(db, "job_quarantine", part.root, f"an item was quarantined after {kind}",
                    {"part": part.part, "low": part.cursor, "high": high, "kind": kind})  # fmt: skip

    def finish(self, claim: Claim, result: str | None, figures: Figures = _NONE) -> list[Message]:
        """The part is done, with this result (JSON text). The messages that follow. Raises LostError."""
        with self._place.transaction() as db:
            part = self._own(db, claim).replace(state="done", result=result, holder=None, pid=None)
            self._set(db, part, "state, result, holder, pid")
            self._end_attempt(db, part, "done", figures=figures)
            self._closed(db, part)
            return self._outbox(db, part.root)

    def stop(self, claim: Claim, *, kind: str = "soft_stop", text: str = "", figures: Figures = _NONE) -> list[Message]:
        """Stopped at a safe point for memory ("soft_stop"), or told to ("drain"); or in the middle of a chunk.

        That is "memory_error", or "crash": the job's own code ended its process.

        Its rest is to be taken by a fresh process. A stop for memory without any progress counts as a death, or it
        would stop at the same place for ever.
        """
        with self._place.transaction() as db:
            part = self._own(db, claim)
            at_once = kind in ("memory_error", "crash")
            if at_once or (kind != "drain" and part.items == claim.began_items):
                self._after_death(db, part, kind, text, figures)
            else:
                ready = part.replace(state="ready", sent=-1, holder=None, pid=None, due_unix_s=0.0)
                self._set(db, ready, "state, sent, holder, pid, due_unix_s")
                self._end_attempt(db, part, kind, text=text, figures=figures)
            return self._outbox(db, part.root)

    def cut(
        self,
        claim: Claim,
        keys: Sequence[str],
        *,
        share: int,
        over: bool,
        ended: bool,
        result: str | None = None,
        text: str = "",
        figures: Figures = _NONE,
    ) -> list[Message]:
        """Cut the rest into children at these keys, of about `share` items; the messages that follow.

        `over`: the last child takes all that is left, and the part is done; else it waits until its children are
        fewer, and cuts on then. `ended`: so ends the attempt. Raises LostError.
        """
        with self._place.transaction() as db:
            part = self._own(db, claim)
            low = part.cursor
            borders: list[str | None] = [*keys, part.high] if over else list(keys)
            inherited = {name: getattr(part, name) for name in ("path", "chunk", "engine", "queue", "priority")}
            inherited["parent"] = part.part
            for high in borders:
                self._add(db, part.root, {**inherited, "low": low, "high": high})
                low = high
            if part.mode != "cut":
                words = f"split into parts of about {share} items: {text}"
                self._event(db, "job_split", part.root, words,
                            {"part": part.part, "share": share, "reason": text})  # fmt: skip
            after = part.replace(
                state="done" if over else "waiting" if ended else "running", mode="cut", share=share,
                position=part.high if over else low, result=part.result if result is None else result,
            )  # fmt: skip
            if ended or over:
                after = after.replace(holder=None, pid=None, sent=-1)
            self._set(db, after, "state, mode, share, position, result, holder, pid, sent")
            if ended or over:
                self._end_attempt(db, part, "split", text=text, figures=figures)
            if over:
                self._closed(db, after)
            return self._outbox(db, part.root)

    def fail(
        self, claim: Claim, error: str, *, final: bool = False, figures: Figures = _NONE
    ) -> tuple[bool, float, list[Message]]:
        """The job's own code raised: (whether the part is given up, seconds until the next try, messages).

        Tries are spread over time: twice as long each time, times a random share between a half and one.
        """
        options = claim.options
        with self._place.transaction() as db:
            part = self._own(db, claim)
            part = part.replace(errors=part.errors + 1, error=_kept(error), holder=None, pid=None)
            given_up = final or part.errors > int(options.get("retries", 3))
            pause_s = 0.0
            if given_up:
                after = part.replace(state="failed")
            else:
                pause_s = float(options.get("backoff_s", 1.0)) * 2.0 ** min(part.errors - 1, MOST_DOUBLINGS)
                pause_s = min(pause_s, float(options.get("backoff_most_s", 3600.0))) * (0.5 + self._random() / 2)
                after = part.replace(state="ready", sent=-1, due_unix_s=self._clock.wall() + pause_s)
            self._set(db, after, "state, errors, error, holder, pid, sent, due_unix_s")
            self._end_attempt(db, part, "error", text=error, figures=figures)
            if given_up:
                self._closed(db, after)
            return given_up, pause_s, self._outbox(db, part.root)

    # --- what others do for a worker that died -----------------------------------------------------------------

    def claims_of(self, pid: int) -> list[tuple[tuple[str, int, int], Worker]]:
        """What a process of this machine has: what names each attempt, and the worker as it was when it took it."""
        boot = _boot()
        with self._place.transaction() as db:
            query = "SELECT root, part, attempt, holder FROM job_parts WHERE state = 'running' AND pid = :pid"
            found = db.execute(query, {"pid": pid}).fetchall()
        claims = [((row[0], row[1], row[2]), Worker(**json.loads(row[3]))) for row in found]
        return [each for each in claims if each[1].boot == boot]

    def died(self, claimed: tuple[str, int, int], *, kind: str, peak_bytes: int | None = None, text: str = "") -> bool:
        """The worker of this attempt died so (of DEATHS); its part goes on smaller.

        False where that was known, and where it lives after all: it wrote while this was being written down.
        """
        if kind not in DEATHS:
            raise ValueError(kind)
        root, number, attempt = claimed
        with self._place.transaction() as db:
            self._touch(db, root)
            part = self._part(db, root, number)
            if part is None or part.state != "running" or part.attempt != attempt:
                return False
            return self._after_death(db, part, kind, text, {"peak_bytes": peak_bytes})

    def _after_death(self, db: Database, part: Part, kind: str, text: str, figures: Figures) -> bool:
        blame = after_death(part.blame, kind, part.cursor)
        after = part.replace(
            state="ready", sent=-1, holder=None, pid=None, due_unix_s=0.0, chunk=blame.chunk, careful=blame.careful,
            deaths=blame.deaths, blamed=blame.blamed, blamed_deaths=blame.blamed_deaths, innocent=blame.innocent,
        )  # fmt: skip
        if not after.is_condemned:  # else it is to be left out first, even if it was killed before it could be
            after = after.replace(pending=None)
        # It died before it knew its next key: what it reads there cannot be read.
        unreadable = blame.quarantine and part.pending is None
        if unreadable:
            last = f"{kind} ({text})" if text else kind
            after = after.replace(state="failed", error=_kept(f"three deaths at one place, the last: {last}"))
        if not self._set(db, after, "state, sent, holder, pid, due_unix_s, chunk, careful, deaths, blamed,"
                                    " blamed_deaths, innocent, pending, error", beat=part.beat):  # fmt: skip
            return False
        self._end_attempt(db, part, kind, text=text, figures=figures)
        if unreadable:
            self._bury(db, after, part.high, kind=kind, text=text, whole=True)
            self._closed(db, after)
        return True

    # --- ends --------------------------------------------------------------------------------------------------

    def _end_attempt(self, db: Database, part: Part, ending: str, *, text: str = "", figures: Figures = _NONE) -> None:
        db.execute(
            "UPDATE job_attempts SET ended_unix_s = :now, ending = :ending, text = :text, base_bytes = :base,"
            " peak_bytes = :peak, growth_bytes = :growth, items = :items WHERE root = :root AND part = :part"
            " AND attempt = :attempt",
            {
                "now": self._clock.wall(), "ending": ending, "text": _kept(text) or None,
                "base": figures.get("base_bytes"), "peak": figures.get("peak_bytes"),
                "growth": figures.get("growth_bytes"), "items": figures.get("items"), "root": part.root,
                "part": part.part, "attempt": part.attempt,
            },
        )  # fmt: skip

    def _closed(self, db: Database, part: Part) -> None:
        """One part is over: its parent may cut on; with the last one the job is, or its results are folded."""
        root = part.root
        if part.mode == "finish":
            self._end_job(db, root, part.state, result=part.result, error=part.error)
            return
        if part.parent is not None:
            query = (
                "SELECT COUNT(*) FROM job_parts WHERE root = :root AND parent = :parent AND state IN"
                " ('ready', 'running', 'waiting')"
            )
            (count,) = db.execute(query, {"root": root, "parent": part.parent}).fetchone()
            if count <= WINDOW // 2:
                db.execute(
                    "UPDATE job_parts SET state = 'ready', sent = -1, due_unix_s = 0 WHERE root = :root AND"
                    " part = :parent AND state = 'waiting'",
                    {"root": root, "parent": part.parent},
                )
        query = "SELECT 1 FROM job_parts WHERE root = :root AND state IN ('ready', 'running', 'waiting') LIMIT 1"
        if db.execute(query, {"root": root}).fetchone() is not None:
            return
        query = "SELECT error FROM job_parts WHERE root = :root AND state = 'failed' ORDER BY part LIMIT 1"
        failed = db.execute(query, {"root": root}).fetchone()
        job = db.execute("SELECT options FROM jobs WHERE id = :root", {"root": root}).fetchone()
        if failed is not None:
            self._end_job(db, root, "failed", error=failed[0])
        elif json.loads(job[0]).get("reduce"):
            values = {"engine": part.engine, "queue": part.queue, "priority": part.priority, "mode": "finish"}
            self._add(db, root, values, path=FINISH_PATH)
        else:
            query = "SELECT result FROM job_parts WHERE root = :root AND part = 0 AND mode = 'work'"
            whole = db.execute(query, {"root": root}).fetchone()  # None where it was cut: each has one of its own
            self._end_job(db, root, "done", result=whole and whole[0])

    def _end_job(
        self, db: Database, root: str, state: str, *, result: str | None = None, error: str | None = None
    ) -> None:
        now = self._clock.wall()
        if state == "failed":
            self._event(db, "job_failed", root, f"a job failed: {error or ''}", {})
        (options,) = db.execute("SELECT options FROM jobs WHERE id = :root", {"root": root}).fetchone()
        db.execute(
            "UPDATE jobs SET state = :state, finished_unix_s = :now, expires_unix_s = :expires, result = :result,"
            " error = :error, unique_key = NULL WHERE id = :root",
            {"state": state, "now": now, "expires": now + float(json.loads(options).get("keep_s", KEEP_S)),
             "result": result, "error": error, "root": root},
        )  # fmt: skip

    def cancel(self, root: str) -> bool:
        """Nothing more of it is begun, and who works on it finds out at its next chunk. False where it is over."""
        with self._place.transaction() as db:
            job = self._touch(db, root)
            if job is None or job[0] != "open":
                return False
            db.execute(
                "UPDATE job_parts SET state = 'cancelled', holder = NULL, pid = NULL WHERE root = :root AND state IN"
                " ('ready', 'running', 'waiting')",
                {"root": root},
            )
            db.execute(
                "UPDATE job_attempts SET ended_unix_s = :now, ending = 'cancelled' WHERE root = :root AND"
                " ended_unix_s IS NULL",
                {"now": self._clock.wall(), "root": root},
            )
            self._end_job(db, root, "cancelled")
            return True

    def expire(self) -> int:
        """Forget jobs whose results are not kept any longer, some at a time; how many."""
        now = {"now": self._clock.wall(), "most": MOST_EXPIRED}
        query = "SELECT id FROM jobs WHERE expires_unix_s <= :now ORDER BY expires_unix_s LIMIT :most"
        with self._place.transaction() as db:
            roots = [row[0] for row in db.execute(query, now).fetchall()]
        return sum(self._forget(root) for root in roots)

    def _forget(self, root: str) -> bool:
        """Unless it was tried again meanwhile, or another machine has forgotten it."""
        of = {"root": root, "now": self._clock.wall()}
        with self._place.transaction() as db:
            self._touch(db, root)
            if db.execute("DELETE FROM jobs WHERE id = :root AND expires_unix_s <= :now", of).rowcount != 1:
                return False
            for table in ("job_parts", "job_attempts", "job_quarantine", "job_events"):
                db.execute(f"DELETE FROM {table} WHERE root = :root", {"root": root})  # noqa: S608  our names
            return True

    def cancelled(self, roots: Sequence[str]) -> list[str]:
        """Those of these jobs that were cancelled."""
        if not roots:
            return []
        marks = ", ".join(f":root{index}" for index in range(len(roots)))
        query = f"SELECT id FROM jobs WHERE state = 'cancelled' AND id IN ({marks})"  # noqa: S608  only marks
        with self._place.transaction() as db:
            rows = db.execute(query, {f"root{index}": root for index, root in enumerate(roots)}).fetchall()
        return [row[0] for row in rows]

    # --- messages ----------------------------------------------------------------------------------------------

    def _outbox(self, db: Database, root: str) -> list[Message]:
        query = (
            "SELECT p.part, p.attempt, p.low, p.high, j.name FROM job_parts p JOIN jobs j ON j.id = p.root WHERE"
            " p.root = :root AND p.state = 'ready' AND p.sent < p.attempt ORDER BY p.part LIMIT 200"
        )
        rows = db.execute(query, {"root": root}).fetchall()
        return [Message(job=row[4], root=root, part=row[0], attempt=row[1], low=row[2], high=row[3]) for row in rows]

    def outbox(self, root: str) -> list[Message]:
        """The messages of this job that are to be sent."""
        with self._place.transaction() as db:
            return self._outbox(db, root)

    def where(self, message: Message) -> tuple[str, int, float]:
        """(queue, priority, seconds until it is due)."""
        with self._place.transaction() as db:
            query = "SELECT queue, priority, due_unix_s FROM job_parts WHERE root = :root AND part = :part"
            found = db.execute(query, {"root": message.root, "part": message.part}).fetchone()
        if found is None:
            return "default", 0, 0.0
        return found[0], found[1], max(0.0, found[2] - self._clock.wall())

    def mark_sent(self, message: Message) -> None:
        """It is with the broker."""
        with self._place.transaction() as db:
            db.execute(
                "UPDATE job_parts SET sent = :attempt, updated_unix_s = :now WHERE root = :root AND part = :part AND"
                " attempt = :attempt AND state = 'ready'",
                {"attempt": message.attempt, "root": message.root, "part": message.part, "now": self._clock.wall()},
            )

    def unsent(self, engine: str, *, most: int = 200, delayed: bool = False) -> list[Message]:
        """What this engine has to send: due (for one that can delay, also what is not), and unsent or sent in vain."""
        now = self._clock.wall()
        query = (
            "SELECT p.root, p.part, p.attempt, p.low, p.high, j.name, p.sent FROM job_parts p JOIN jobs j ON"
            " j.id = p.root WHERE p.state = 'ready' AND p.engine = :engine AND ((p.sent < p.attempt AND"
            " p.due_unix_s <= :due) OR (p.sent = p.attempt AND p.due_unix_s <= :old AND p.updated_unix_s <= :old{}))"
            " ORDER BY p.priority DESC, p.due_unix_s LIMIT :most"
        )
        values = {"engine": engine, "due": 1e18 if delayed else now, "old": now - self.resend_s, "most": most}
        with self._place.transaction() as db:
            rows = db.execute(query.format(""), values).fetchall()
            full = self._full(db, engine, now) if any(row[6] == row[2] for row in rows) else []
            if full:
                marks = ", ".join(f":full{index}" for index in range(len(full)))
                values |= {f"full{index}": queue for index, queue in enumerate(full)}
                values["older"] = now - BEHIND * self.resend_s
                later = f" AND (p.queue NOT IN ({marks}) OR p.updated_unix_s <= :older)"
                rows = db.execute(query.format(later), values).fetchall()
        return [Message(job=row[5], root=row[0], part=row[1], attempt=row[2], low=row[3], high=row[4]) for row in rows]

    @staticmethod
    def _full(db: Database, engine: str, now: float) -> list[str]:
        """The queues in which at least half of what was sent still waits: nothing is lost there, they are behind."""
        query = (
            "SELECT q.queue FROM job_queues q WHERE q.engine = :engine AND q.unix_s >= :since AND 2 * q.waiting >="
            " (SELECT COUNT(*) FROM job_parts p WHERE p.state = 'ready' AND p.engine = :engine AND p.queue = q.queue"
            " AND p.sent = p.attempt)"
        )
        return [row[0] for row in db.execute(query, {"engine": engine, "since": now - COUNTED_S}).fetchall()]

    def due(self, engine: str, *, queues: Sequence[str] = (), most: int = 50) -> list[tuple[Part, str]]:
        """Parts that can be begun now with their jobs' names: those of the highest priority, then the oldest, first."""
        marks = ", ".join(f":queue{index}" for index in range(len(queues)))
        query = (
            f"SELECT {', '.join('p.' + name for name in Part._fields)}, j.name FROM job_parts p JOIN jobs j ON"  # noqa: S608  our names
            " j.id = p.root WHERE p.state = 'ready' AND p.engine = :engine AND p.due_unix_s <= :now"
            f"{f' AND p.queue IN ({marks})' if queues else ''} ORDER BY p.priority DESC, j.created_unix_s, p.root,"
            " p.part LIMIT :most"
        )
        values = {"engine": engine, "now": self._clock.wall(), "most": most}
        values |= {f"queue{index}": queue for index, queue in enumerate(queues)}
        with self._place.transaction() as db:
            rows = db.execute(query, values).fetchall()
        return [(Part(**dict(zip(Part._fields, row[:-1], strict=True))), row[-1]) for row in rows]

    def next_due_s(self, engine: str) -> float | None:
        """Seconds until the next part of this engine is due; None where there is none."""
        query = "SELECT MIN(due_unix_s) FROM job_parts WHERE state = 'ready' AND engine = :engine"
        with self._place.transaction() as db:
            (due,) = db.execute(query, {"engine": engine}).fetchone()
        return None if due is None else max(0.0, due - self._clock.wall())

    def postpone(self, message: Message, delay_s: float, error: str) -> None:
        """It cannot be worked on here now, through no fault of the part's: it is due again after so long."""
        with self._place.transaction() as db:
            db.execute(
                "UPDATE job_parts SET due_unix_s = :due, sent = -1, error = :error WHERE root = :root AND part = :part"
                " AND attempt = :attempt AND state = 'ready'",
                {"due": self._clock.wall() + delay_s, "error": _kept(error), "root": message.root,
                 "part": message.part, "attempt": message.attempt},
            )  # fmt: skip

    def is_untaken(self, message: Message) -> bool:
        """Whether this attempt is still to be begun by somebody."""
        query = "SELECT 1 FROM job_parts WHERE root = :root AND part = :part AND attempt = :attempt AND state = 'ready'"
        of = {"root": message.root, "part": message.part, "attempt": message.attempt}
        with self._place.transaction() as db:
            return db.execute(query, of).fetchone() is not None

    def give_up(self, message: Message, worker: Worker, error: str) -> None:
        """It cannot be begun, and never will: the part has failed."""
        claim = self.claim(message, worker)
        if not isinstance(claim, str):
            self.fail(claim, error, final=True)

    # --- what is learned from run to run -------------------------------------------------------------------------

    def learn(self, job: str, kind: str, value: float, *, death: bool = False) -> None:
        """One sample of what a job took: "peak_bytes" of an attempt, "bytes_per_item"."""
        now = self._clock.wall()
        with self._place.transaction() as db:
            of = {"name": job, "kind": kind}
            query = "SELECT histogram FROM job_sizes WHERE name = :name AND kind = :kind"
            row = db.execute(query, of).fetchone()
            histogram = Histogram.from_text(row[0] if row else None)
            histogram.add(value * OOM_BUMP if death else value, now)
            of |= {"histogram": histogram.to_text(), "now": now}  # type: ignore[dict-item]  # mixed on purpose
            query = (
                "INSERT INTO job_sizes (name, kind, histogram, unix_s) VALUES (:name, :kind, :histogram, :now)"
                if row is None
                else "UPDATE job_sizes SET histogram = :histogram, unix_s = :now WHERE name = :name AND kind = :kind"
            )
            db.execute(query, of)

    def learned(self, job: str, kind: str, share: float = 0.9) -> float | None:
        """What this share of the job's samples stays below, recent ones counting most; None before the first."""
        with self._place.transaction() as db:
            query = "SELECT histogram FROM job_sizes WHERE name = :name AND kind = :kind"
            row = db.execute(query, {"name": job, "kind": kind}).fetchone()
        return None if row is None else Histogram.from_text(row[0]).percentile(share)

    # --- what people and other rooms read ------------------------------------------------------------------------

    def _event(self, db: Database, kind: str, root: str, text: str, details: Mapping[str, Any]) -> None:
        (name,) = db.execute("SELECT name FROM jobs WHERE id = :root", {"root": root}).fetchone()
        db.execute(
            "INSERT INTO job_events (unix_s, kind, root, name, text, details) VALUES"
            " (:now, :kind, :root, :name, :text, :details)",
            {"now": self._clock.wall(), "kind": kind, "root": root, "name": name, "text": _kept(text),
             "details": json.dumps(dict(details))},
        )  # fmt: skip

    def note(self, kind: str, root: str, text: str) -> None:
        """Keep an event of this job for whoever alerts."""
        with self._place.transaction() as db:
            self._event(db, kind, root, text, {})

    def running(self, engine: str | None = None) -> list[Part]:
        """The parts that workers have; those of one engine where it is given."""
        query = f"{_PARTS_WHERE}state = 'running'"
        if engine is not None:
            query += " AND engine = :engine"
        with self._place.transaction() as db:
            rows = db.execute(query, {} if engine is None else {"engine": engine}).fetchall()
        return [Part(**dict(zip(Part._fields, row, strict=True))) for row in rows]

    def status(self, root: str) -> Status | None:
        """A job as it is now; None where there is none."""
        with self._place.transaction() as db:
            query = (
                "SELECT id, name, type, queue, state, created_unix_s, finished_unix_s, error FROM jobs WHERE id = :root"
            )
            job = db.execute(query, {"root": root}).fetchone()
            if job is None:
                return None
            of = {"root": root}
            query = "SELECT state, COUNT(*), SUM(items) FROM job_parts WHERE root = :root GROUP BY state"
            parts = db.execute(query, of).fetchall()
            query = (
                "SELECT ending, COUNT(*), MAX(peak_bytes), MAX(growth_bytes) FROM job_attempts WHERE root = :root"
                " GROUP BY ending"
            )
            attempts = db.execute(query, of).fetchall()
            query = "SELECT COUNT(*) FROM job_quarantine WHERE root = :root AND retried = 0"
            (quarantined,) = db.execute(query, of).fetchone()
            error = job[7] if job[7] is not None or job[4] != "open" else self._why_waiting(db, root)
        peaks = [row[2] for row in attempts if row[2] is not None]
        return Status(
            id=job[0], name=job[1], type=job[2], queue=job[3], state=job[4], created_unix_s=job[5],
            finished_unix_s=job[6], error=error, parts={row[0]: row[1] for row in parts},
            items=sum(row[2] or 0 for row in parts), attempts=sum(row[1] for row in attempts),
            endings={row[0] or "running": row[1] for row in attempts}, peak_bytes=max(peaks, default=None),
            growth_bytes=max((row[3] for row in attempts if row[3] is not None), default=None),
            quarantined=quarantined,
        )  # fmt: skip

    @staticmethod
    def _why_waiting(db: Database, root: str) -> str | None:
        """Why a part of an open job could not be begun, or failed and is tried again: the newest of it."""
        query = (
            "SELECT error FROM job_parts WHERE root = :root AND state = 'ready' AND error IS NOT NULL"
            " ORDER BY updated_unix_s DESC LIMIT 1"
        )
        found = db.execute(query, {"root": root}).fetchone()
        return None if found is None else str(found[0])

    def jobs(self, *, state: str | None = None, most: int = 100) -> list[Status]:
        """The newest ones, of that state where it is given."""
        query = "SELECT id FROM jobs ORDER BY created_unix_s DESC, id LIMIT :most"
        values: dict[str, Any] = {"most": most}
        if state is not None:
            query = "SELECT id FROM jobs WHERE state = :state ORDER BY created_unix_s DESC, id LIMIT :most"
            values["state"] = state
        with self._place.transaction() as db:
            rows = db.execute(query, values).fetchall()
        return [found for row in rows if (found := self.status(row[0])) is not None]

    def queues_waiting(self, engine: str) -> set[str]:
        """The queues in which parts of this engine wait. Cheap, however much is on record: an index has them."""
        return self._queues(engine, "state = 'ready'")

    def queues_left(self, engine: str) -> set[str]:
        """The queues in which parts of this engine wait, or are at work."""
        return self._queues(engine, "state IN ('ready', 'running')")

    def _queues(self, engine: str, which: str) -> set[str]:
        query = f"SELECT DISTINCT queue FROM job_parts WHERE {which} AND engine = :engine"  # noqa: S608  our words
        with self._place.transaction() as db:
            return {row[0] for row in db.execute(query, {"engine": engine}).fetchall()}

    def note_queues(self, engine: str, counts: Sequence[QueueCount]) -> None:
        """What a worker has just counted in the broker of this engine. Queues that are gone are forgotten later."""
        now = self._clock.wall()
        known = "UPDATE job_queues SET waiting = :waiting, taken = :taken, unix_s = :now"
        new = (
            "INSERT INTO job_queues (engine, queue, waiting, taken, unix_s)"
            " VALUES (:engine, :queue, :waiting, :taken, :now)"
        )
        with self._place.transaction() as db:
            for each in sorted(counts, key=lambda count: count.queue)[:MOST_QUEUES]:  # in one order on all machines
                row: dict[str, Any] = {"engine": engine, "queue": each.queue[:100], "now": now}
                row |= {"waiting": each.waiting, "taken": each.taken}
                if not db.execute(f"{known} WHERE engine = :engine AND queue = :queue", row).rowcount:
                    db.execute(new, row)
            values = {"engine": engine, "old": now - COUNTED_S}
            db.execute("DELETE FROM job_queues WHERE engine = :engine AND unix_s < :old", values)

    def statistics(self) -> list[dict[str, Any]]:
        """Per engine, queue and job type: parts that wait, are delayed, run, are done, failed; and `jobs` with theirs.

        A job is counted in each queue of its parts: open, done, failed, cancelled.

        `broker_waiting` and `broker_taken` are messages of the whole queue, whatever they are for, as a worker counted
        them within COUNTED_S; None is not known. A queue that only the broker knows has a row of its own.
        """
        now = self._clock.wall()
        query = (
            "SELECT p.engine, p.queue, j.type, SUM(CASE WHEN p.state = 'ready' AND p.due_unix_s <= :now THEN 1 ELSE 0"
            " END), SUM(CASE WHEN p.state = 'ready' AND p.due_unix_s > :now THEN 1 ELSE 0 END),"
            " SUM(CASE WHEN p.state = 'running' THEN 1 ELSE 0 END), SUM(CASE WHEN p.state = 'done' THEN 1 ELSE 0 END),"
            " SUM(CASE WHEN p.state = 'failed' THEN 1 ELSE 0 END), COUNT(DISTINCT j.id),"
            " COUNT(DISTINCT CASE WHEN j.state = 'open' THEN j.id END),"
            " COUNT(DISTINCT CASE WHEN j.state = 'done' THEN j.id END),"
            " COUNT(DISTINCT CASE WHEN j.state = 'failed' THEN j.id END),"
            " COUNT(DISTINCT CASE WHEN j.state = 'cancelled' THEN j.id END)"
            " FROM job_parts p JOIN jobs j ON j.id = p.root GROUP BY p.engine, p.queue, j.type"
            " ORDER BY p.engine, p.queue, j.type"
        )
        names = (
            "engine", "queue", "type", "waiting", "delayed", "running", "done", "failed", "jobs", "jobs_open",
            "jobs_done", "jobs_failed", "jobs_cancelled",
        )  # fmt: skip
        with self._place.transaction() as db:
            rows = db.execute(query, {"now": now}).fetchall()
            counted = db.execute(
                "SELECT engine, queue, waiting, taken FROM job_queues WHERE unix_s BETWEEN :since AND :until"
                " ORDER BY engine, queue",
                {"since": now - COUNTED_S, "until": now + COUNTED_S},
            ).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        known = {(row["engine"], row["queue"]) for row in found}
        alone = [row for row in counted if (row[0], row[1]) not in known]
        found += [dict.fromkeys(names, 0) | {"engine": row[0], "queue": row[1], "type": ""} for row in alone]
        of_broker = {(row[0], row[1]): (row[2], row[3]) for row in counted}
        for row in found:
            row["broker_waiting"], row["broker_taken"] = of_broker.get((row["engine"], row["queue"]), (None, None))
        return found

    def seasons(self, since_unix_s: float, until_unix_s: float) -> list[Season]:
        """What was submitted, ended, split and given up from then until then, per engine, queue and job type.

        A job that expired is not counted any more: `keep` of the job says how long it is on record.
        """
        of = {"since": since_unix_s, "until": until_unix_s}
        counts = (
            "SELECT p.engine, j.queue, j.type, COUNT(*) FROM {0} e JOIN jobs j ON j.id = e.root"
            " JOIN job_parts p ON p.root = j.id AND p.part = 0 WHERE e.unix_s BETWEEN :since AND :until AND {1}"
            " GROUP BY p.engine, j.queue, j.type"
        )
        with self._place.transaction() as db:
            rows = db.execute(_SEASON_JOBS, of).fetchall()
            ended = db.execute(_SEASON_ATTEMPTS, of).fetchall()
            split = db.execute(counts.format("job_events", "e.kind = 'job_split'"), of).fetchall()
            left_out = db.execute(counts.format("job_quarantine", "e.retried = 0"), of).fetchall()
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in rows:
            names = ("submitted", "done", "failed", "cancelled")
            found.setdefault(tuple(row[:3]), {}).update(zip(names, row[3:], strict=True))
        for name, some in (("splits", split), ("quarantined", left_out)):
            for row in some:
                found.setdefault(tuple(row[:3]), {})[name] = row[3]
        for row in ended:
            _add_ending(found.setdefault(tuple(row[:3]), {}), row[3:])
        return [
            Season(engine=engine, queue=queue, type=kind, **values)
            for (engine, queue, kind), values in sorted(found.items())
        ]

    def attempts(self, root: str, *, most: int = 200) -> list[dict[str, Any]]:
        """The newest attempts at a job's parts."""
        names = (
            "part", "attempt", "started_unix_s", "ended_unix_s", "ending", "base_bytes", "peak_bytes", "growth_bytes",
            "items", "text",
            "worker",
        )  # fmt: skip
        query = (
            f"SELECT {', '.join(names)} FROM job_attempts WHERE root = :root"  # noqa: S608  our names
            " ORDER BY started_unix_s DESC, part DESC, attempt DESC LIMIT :most"
        )
        with self._place.transaction() as db:
            rows = db.execute(query, {"root": root, "most": most}).fetchall()
        return [dict(zip(names, (*row[:-1], json.loads(row[-1])), strict=True)) for row in rows]

    def quarantined(self, root: str | None = None, *, most: int = 100) -> list[Quarantined]:
        """What was left out, the newest first."""
        names = Quarantined._fields
        query = f"{_QUARANTINED}ORDER BY unix_s DESC LIMIT :most"
        values: dict[str, Any] = {"most": most}
        if root is not None:
            query = f"{_QUARANTINED}WHERE root = :root ORDER BY unix_s DESC LIMIT :most"
            values["root"] = root
        with self._place.transaction() as db:
            rows = db.execute(query, values).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [
            Quarantined(**{**each, "whole": bool(each["whole"]), "retried": bool(each["retried"])}) for each in found
        ]

    def events(self, *, after_unix_s: float = 0.0, most: int = 100) -> list[dict[str, Any]]:
        """What is worth an alert (job_split, job_quarantine, job_failed, job_leak), the oldest first."""
        query = (
            "SELECT unix_s, kind, root, name, text, details FROM job_events WHERE unix_s > :after ORDER BY unix_s"
            " LIMIT :most"
        )
        with self._place.transaction() as db:
            rows = db.execute(query, {"after": after_unix_s, "most": most}).fetchall()
        names = ("unix_s", "kind", "root", "name", "text", "details")
        return [dict(zip(names, (*row[:-1], json.loads(row[-1])), strict=True)) for row in rows]

    def retry(self, root: str) -> int:
        """Have what failed and what was quarantined done after all; how many parts that are. Raises JobError.

        Each quarantined range becomes a part of its own, whose result comes behind those of the part that left it out.
        The job is open again until they are over, with its `unique` key.
        """
        with self._place.transaction() as db:
            job = self._touch(db, root)
            if job is None:
                raise JobError("is not known here", where=f"job {root}", mend="`memwarden jobs list` shows them")
            if job[0] not in ("done", "failed"):
                raise JobError(f"is {job[0]}", where=f"job {root}", mend="only what is over can be tried again")
            query = f"{_PARTS_WHERE}root = :root AND state = 'failed'"
            rows = db.execute(query, {"root": root}).fetchall()
            failed = [Part(**dict(zip(Part._fields, row, strict=True))) for row in rows]
            items = db.execute(
                "SELECT part, low, high FROM job_quarantine WHERE root = :root AND retried = 0 AND whole = 0",
                {"root": root},
            ).fetchall()
            left = [part for part in failed if part.mode != "finish"]
            if left or items:  # what they give is folded then
                db.execute("DELETE FROM job_parts WHERE root = :root AND mode = 'finish'", {"root": root})
            else:
                left = failed
            if left or items:
                self._reopen(db, root, json.loads(job[4]).get("unique_key"))
            for part in left:
                db.execute(
                    "UPDATE job_parts SET state = 'ready', sent = -1, due_unix_s = 0, errors = 0, error = NULL,"
                    " careful = 0, deaths = 0, blamed = NULL, blamed_deaths = 0, innocent = 0 WHERE root = :root AND"
                    " part = :part",
                    {"root": root, "part": part.part},
                )
            for number, low, high in items:
                self._add_again(db, root, number, low, high)
            return len(left) + len(items)

    def _reopen(self, db: Database, root: str, key: str | None) -> None:
        other = None if key is None else self._open_one(db, key)
        if other is not None:
            mend = "see that it is over first"
            raise JobError(f"has the same unique key as job {other}, which is open", where=f"job {root}", mend=mend)
        db.execute("UPDATE job_quarantine SET retried = 1 WHERE root = :root", {"root": root})
        db.execute(
            "UPDATE jobs SET state = 'open', finished_unix_s = NULL, expires_unix_s = NULL, result = NULL,"
            " error = NULL, unique_key = :key WHERE id = :root",
            {"root": root, "key": key},
        )

    def _add_again(self, db: Database, root: str, number: int, low: str | None, high: str | None) -> None:
        of = self._part(db, root, number)
        if of is None:
            return
        values = {name: getattr(of, name) for name in ("path", "engine", "queue", "priority")}
        if of.parent is None and of.part:  # left out of what was tried again before: beside it, and no deeper
            values["path"] = of.path[:-10]
        self._add(db, root, {**values, "parent": None, "low": low, "high": high})

    def result(self, root: str) -> Any:
        """The result of a job that is done. Raises JobError where it is not, or is not known."""
        with self._place.transaction() as db:
            query = "SELECT state, result, error, expires_unix_s FROM jobs WHERE id = :root"
            found = db.execute(query, {"root": root}).fetchone()
        if found is None:
            raise JobError("is not known here", where=f"job {root}", mend="its result may have expired")
        if found[0] != "done":
            why = f" ({found[2]})" if found[2] else ""
            raise JobError(f"is {found[0]}{why}", where=f"job {root}", mend="only a job that is done has a result")
        if found[3] is not None and found[3] <= self._clock.wall():
            raise JobError(
                "has a result no longer", where=f"job {root}", mend="@job(keep=...) says how long it has one"
            )
        return None if found[1] is None else json.loads(found[1])

    def results(self, root: str) -> Iterator[Any]:
        """The results of the parts that have one, in the order of their keys, a few at a time."""
        query = "SELECT path, result FROM job_parts WHERE root = :root AND mode <> 'finish' AND result IS NOT NULL"
        behind, values = "", {"root": root}
        while True:
            with self._place.transaction() as db:
                rows = db.execute(f"{query}{behind} ORDER BY path LIMIT 100", values).fetchall()
            if not rows:
                return
            for row in rows:
                yield json.loads(row[1])
            behind, values = " AND path > :path", {"root": root, "path": rows[-1][0]}


def _add_ending(values: dict[str, Any], row: Sequence[Any]) -> None:
    """Attempts of one season with the same options that ended alike: (options, ending, count, highest peak)."""
    options, ending, count, peak = row
    endings = values.setdefault("endings", {})
    endings[ending] = endings.get(ending, 0) + count
    if peak is None:
        return
    values["peak_bytes"] = max(peak, values.get("peak_bytes") or 0)
    limit = json.loads(options).get("limit_bytes")
    if not isinstance(limit, int) or limit <= 0:
        return
    values["limit_bytes"] = limit if values.get("limit_bytes", limit) == limit else None
    values["peak_ratio"] = max(peak / limit, values.get("peak_ratio") or 0.0)


class Watch:
    """Sees which workers do not beat any more, by its own monotonic clock: no two clocks are compared.

    Time counts as far as it was looked at, a quarter of the lease from one look to the next at most: while a watcher
    is stopped, or its ledger away, nobody saw a beat, and perhaps nobody could write one.

    A worker that is gone while its parent lives is left to the parent for `parent_s`: it knows how its child died.
    `one_machine`: only this machine's workers reach the ledger, so those of an earlier boot are gone. Elsewhere two
    machines may have one name.
    """

    def __init__(
        self, clock: Clock | None = None, *, lease_s: float = LEASE_S, parent_s: float = 0.0, one_machine: bool = False
    ) -> None:
        self._clock = clock or SystemClock()
        self._lease_s, self._parent_s, self._one_machine = lease_s, parent_s, one_machine
        self._looked_s: float | None = None
        self._seen: dict[tuple[str, int, int], tuple[int, float]] = {}  # the beat, and how long it stood still
        self._gone: dict[tuple[str, int, int], float] = {}

    def dead(self, parts: Sequence[Part]) -> list[tuple[tuple[str, int, int], str, str]]:
        """Of the parts that are running: those whose worker is gone, the kind of its death, why that is thought."""
        now = self._clock.monotonic()
        passed_s = 0.0 if self._looked_s is None else min(now - self._looked_s, self._lease_s / 4)
        seen, gone, found = self._seen, self._gone, []
        self._looked_s, self._seen, self._gone = now, {}, {}
        for part in parts:
            key = (part.root, part.part, part.attempt)
            beat, still_s = seen.get(key, (-1, 0.0))
            still_s = still_s + passed_s if beat == part.beat else 0.0
            worker = None if part.holder is None else Worker(**json.loads(part.holder))
            if worker is not None and worker.is_gone():
                since_s = gone.get(key, now)
                death = self._without_process(worker, now - since_s)
                if death is None:
                    self._gone[key] = since_s
            else:
                death = self._without_beat(worker, still_s)
            if death is None:
                self._seen[key] = (part.beat, still_s)
            else:
                found.append((key, *death))
        return found

    def _without_process(self, worker: Worker, for_s: float) -> tuple[str, str] | None:
        if worker.lost_its_parent() or for_s >= self._parent_s:
            return worker.death(None), "its process is gone"
        return None

    def _without_beat(self, worker: Worker | None, for_s: float) -> tuple[str, str] | None:
        rebooted = worker is not None and worker.is_of_another_boot()
        if rebooted and self._one_machine:
            return "killed", "this machine was started anew since"
        if for_s < self._lease_s:
            return None
        if worker is not None and worker.lives():
            lease_s = ALIVE * self._lease_s
            return ("lost", f"no heartbeat for {lease_s:g} s of a process that lives") if for_s >= lease_s else None
        return "killed" if rebooted else "lost", f"no heartbeat for {self._lease_s:g} s"


def _kept(text: str) -> str:
    """As every database takes it: no lone surrogates (undecodable names), no NUL (PostgreSQL), and not for ever."""
    plain = text[:ERROR_CHARACTERS].encode(errors="backslashreplace").decode()
    return plain.replace("\0", "\\0")[:ERROR_CHARACTERS]


def as_json(value: object, what: str, most_bytes: int, *, where: str) -> str:
    """JSON text that comes back as it was, but for tuples, which come back as lists.

    Raises JobError: what cannot be, where, and what to do instead.
    """
    mend = "give numbers, texts, lists and dictionaries; larger things belong into a file or a database"
    try:
        text = json.dumps(value)
        found = _changed(value) if len(text) <= most_bytes else None
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"{what} cannot be written as JSON ({error})", where=where, mend=mend) from error
    if len(text) > most_bytes:
        raise JobError(
            f"{what} take {format_bytes(len(text))}, at most {format_bytes(most_bytes)} are kept", where=where,
            mend="hand over a key or a path instead of the data",
        )  # fmt: skip
    if found is not None:
        place, why, mend = found
        raise JobError(f"{what} cannot be written as JSON ({why}{place and f' at {place}'})", where=where, mend=mend)
    return text


def _changed(value: object) -> tuple[str, str, str] | None:
    """The place of the first thing in it that would not come back as it was, why, and what to do; None for none."""
    pairs: Iterable[tuple[Any, object]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    elif isinstance(value, float) and not isfinite(value):
        return "", f"{value} is no number of JSON", "give None where there is no number"
    for key, each in pairs:
        if isinstance(value, dict) and not isinstance(key, str):
            return "", f"the key {key!r:.40} is no text", "write it as str(key), or give a list of pairs"
        found = _changed(each) if isinstance(each, (dict, list, tuple, float)) else None
        if found is not None:
            return f"[{key!r:.40}]{found[0]}", *found[1:]
    return None
