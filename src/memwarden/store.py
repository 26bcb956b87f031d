"""The one SQLite file: what must outlive the process and is no black box: checkpoints, dead letters, alerts.

The file is `memwarden.db` in MEMWARDEN_DIR, else in the user's state directory; 0600 in a folder of 0700. It is in WAL
mode with `synchronous = NORMAL`: whatever was written survives a SIGKILL of the process; a power cut may take the last
moments. WAL needs shared memory, so a network file system is refused. On tmpfs it works, and `notes` says that it
counts towards the memory limit and does not survive the machine. Where nothing can be written it lives in memory,
which `degraded` says and a warning in the log: then nothing survives.

Safe across threads, and across forks: a child opens the file anew.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from contextlib import contextmanager

from memwarden.clock import SystemClock
from memwarden.errors import CheckpointError, StoreError
from memwarden.facts import Fact
from memwarden.mounts import NETWORK, file_system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from memwarden.ports import Clock

__all__ = ["Checkpoint", "DeadLetter", "Store", "is_failing", "is_locked", "state_directory"]

FILE_NAME = "memwarden.db"
# How long a writer waits for another one: writes here take well under a millisecond.
BUSY_S = 5.0
# One that may be asked to hurry meanwhile waits in slices of this, and lets other threads have a turn in between.
SLICE_S, TURN_S = 0.02, 0.005
# Opening waits for at least so long, hurry or not: whoever has a file then makes it or brings it up, which takes
# milliseconds, and who went on in memory would be alone there. Nine at once on one busy core took 0.2 s.
OPEN_S = 1.0
IN_MEMORY = frozenset({"tmpfs", "ramfs"})

# One script per version of the schema; a file is brought up by those that it lacks. Never edit one that was released.
_MIGRATIONS = (
    """
    CREATE TABLE checkpoints (
        name TEXT NOT NULL, part INTEGER NOT NULL, plan TEXT NOT NULL, low TEXT, high TEXT, position TEXT, pending TEXT,
        rows INTEGER NOT NULL, bytes INTEGER NOT NULL, done INTEGER NOT NULL, version INTEGER NOT NULL,
        updated_unix_s REAL NOT NULL, PRIMARY KEY (name, part)
    ) WITHOUT ROWID;
    CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, chunk TEXT NOT NULL, low TEXT, high TEXT, rows INTEGER NOT NULL,
        error TEXT NOT NULL, attempts INTEGER NOT NULL, unix_s REAL NOT NULL
    );
    CREATE INDEX dead_letters_of ON dead_letters (name, id);
    """,
    # The ledger of jobs; `memwarden.jobs.ledger` says what the columns mean.
    """
    CREATE TABLE jobs (
        id VARCHAR(40) NOT NULL PRIMARY KEY, name VARCHAR(200) NOT NULL, type VARCHAR(100) NOT NULL,
        queue VARCHAR(100) NOT NULL, priority INTEGER NOT NULL, state VARCHAR(20) NOT NULL, arguments TEXT NOT NULL,
        options TEXT NOT NULL, unique_key VARCHAR(250), touched INTEGER NOT NULL, created_unix_s FLOAT NOT NULL,
        finished_unix_s FLOAT, expires_unix_s FLOAT, parts INTEGER NOT NULL, result TEXT, error TEXT
    );
    CREATE UNIQUE INDEX jobs_unique ON jobs (unique_key);
    CREATE INDEX jobs_state ON jobs (state, created_unix_s);
    CREATE INDEX jobs_expire ON jobs (expires_unix_s);
    CREATE TABLE job_parts (
        root VARCHAR(40) NOT NULL, part INTEGER NOT NULL, path VARCHAR(250) NOT NULL, parent INTEGER,
        mode VARCHAR(10) NOT NULL, state VARCHAR(20) NOT NULL, low TEXT, high TEXT, position TEXT, pending TEXT,
        chunk INTEGER NOT NULL, careful INTEGER NOT NULL, deaths INTEGER NOT NULL, blamed TEXT,
        blamed_deaths INTEGER NOT NULL, innocent INTEGER NOT NULL, errors INTEGER NOT NULL, attempt INTEGER NOT NULL,
        sent INTEGER NOT NULL, due_unix_s FLOAT NOT NULL, engine VARCHAR(40) NOT NULL, queue VARCHAR(100) NOT NULL,
        priority INTEGER NOT NULL, holder TEXT, pid INTEGER, beat INTEGER NOT NULL, items INTEGER NOT NULL,
        share INTEGER NOT NULL, result TEXT, error TEXT, updated_unix_s FLOAT NOT NULL, PRIMARY KEY (root, part)
    );
    CREATE INDEX job_parts_ready ON job_parts (state, engine, due_unix_s);
    CREATE INDEX job_parts_path ON job_parts (root, path);
    CREATE INDEX job_parts_parent ON job_parts (root, parent, state);
    CREATE TABLE job_attempts (
        root VARCHAR(40) NOT NULL, part INTEGER NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
        started_unix_s FLOAT NOT NULL, ended_unix_s FLOAT, ending VARCHAR(20), base_bytes BIGINT, peak_bytes BIGINT,
        growth_bytes BIGINT, items INTEGER, text TEXT, PRIMARY KEY (root, part, attempt)
    );
    CREATE TABLE job_quarantine (
        root VARCHAR(40) NOT NULL, part INTEGER NOT NULL, low TEXT, high TEXT, whole INTEGER NOT NULL,
        deaths INTEGER NOT NULL, kind VARCHAR(20) NOT NULL, text TEXT, unix_s FLOAT NOT NULL, retried INTEGER NOT NULL
    );
    CREATE INDEX job_quarantine_of ON job_quarantine (root, part);
    CREATE TABLE job_events (
        unix_s FLOAT NOT NULL, kind VARCHAR(40) NOT NULL, root VARCHAR(40) NOT NULL, name VARCHAR(200) NOT NULL,
        text TEXT NOT NULL, details TEXT NOT NULL
    );
    CREATE INDEX job_events_when ON job_events (unix_s);
    CREATE TABLE job_sizes (
        name VARCHAR(200) NOT NULL, kind VARCHAR(40) NOT NULL, histogram TEXT NOT NULL, unix_s FLOAT NOT NULL,
        PRIMARY KEY (name, kind)
    );
    """,
    """
    CREATE TABLE alert_states (
        key TEXT PRIMARY KEY, kind TEXT NOT NULL, target TEXT NOT NULL, scope TEXT NOT NULL, level INTEGER NOT NULL,
        open INTEGER NOT NULL, wake_unix_s REAL, changed_unix_s REAL NOT NULL, state TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX alert_states_due ON alert_states (wake_unix_s) WHERE wake_unix_s IS NOT NULL;
    CREATE INDEX alert_states_open ON alert_states (open, level);
    CREATE TABLE alert_events (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, kind TEXT NOT NULL, what TEXT NOT NULL,
        level INTEGER NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, unix_s REAL NOT NULL, target TEXT NOT NULL,
        host TEXT NOT NULL, details TEXT NOT NULL, why TEXT NOT NULL
    );
    CREATE INDEX alert_events_at ON alert_events (unix_s);
    CREATE TABLE alert_deliveries (
        id TEXT PRIMARY KEY, event INTEGER NOT NULL, channel TEXT NOT NULL, state TEXT NOT NULL,
        urgent INTEGER NOT NULL, attempts INTEGER NOT NULL, due_unix_s REAL NOT NULL, made_unix_s REAL NOT NULL,
        done_unix_s REAL, owner TEXT NOT NULL, lease_unix_s REAL NOT NULL, error TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX alert_deliveries_of ON alert_deliveries (event);
    CREATE INDEX alert_deliveries_pending ON alert_deliveries (channel, event) WHERE state = 'pending';
    CREATE TABLE alert_channels (
        name TEXT PRIMARY KEY, failures INTEGER NOT NULL, not_before_unix_s REAL NOT NULL, since_unix_s REAL,
        sent INTEGER NOT NULL, dead INTEGER NOT NULL, error TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE alert_silences (
        number INTEGER PRIMARY KEY AUTOINCREMENT, matcher TEXT NOT NULL, until_unix_s REAL NOT NULL,
        author TEXT NOT NULL, comment TEXT NOT NULL, made_unix_s REAL NOT NULL
    );
    CREATE TABLE alert_taken (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
    """,
    # What waits in a broker, as a worker last counted it.
    """
    CREATE TABLE job_queues (
        engine VARCHAR(40) NOT NULL, queue VARCHAR(100) NOT NULL, waiting BIGINT, taken BIGINT, unix_s FLOAT NOT NULL,
        PRIMARY KEY (engine, queue)
    );
    """,
    # What of a job is open, to be sent, failed: without a look at all its parts.
    "CREATE INDEX job_parts_state ON job_parts (root, state, part)",
    # Whose alerts they are (decision 015): of before it is '', which anybody may take over.
    """
    CREATE TABLE alert_states_of (
        origin TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL, scope TEXT NOT NULL,
        level INTEGER NOT NULL, open INTEGER NOT NULL, wake_unix_s REAL, changed_unix_s REAL NOT NULL,
        state TEXT NOT NULL, PRIMARY KEY (origin, key)
    ) WITHOUT ROWID;
    INSERT INTO alert_states_of SELECT '', key, kind, target, scope, level, open, wake_unix_s, changed_unix_s, state
        FROM alert_states;
    DROP TABLE alert_states;
    ALTER TABLE alert_states_of RENAME TO alert_states;
    CREATE INDEX alert_states_due ON alert_states (wake_unix_s) WHERE wake_unix_s IS NOT NULL;
    CREATE INDEX alert_states_open ON alert_states (open, level);
    CREATE INDEX alert_states_key ON alert_states (key);
    CREATE TABLE alert_channels_of (
        origin TEXT NOT NULL, name TEXT NOT NULL, failures INTEGER NOT NULL, not_before_unix_s REAL NOT NULL,
        since_unix_s REAL, sent INTEGER NOT NULL, dead INTEGER NOT NULL, error TEXT NOT NULL,
        PRIMARY KEY (origin, name)
    ) WITHOUT ROWID;
    INSERT INTO alert_channels_of SELECT '', name, failures, not_before_unix_s, since_unix_s, sent, dead, error
        FROM alert_channels;
    DROP TABLE alert_channels;
    ALTER TABLE alert_channels_of RENAME TO alert_channels;
    ALTER TABLE alert_events ADD COLUMN origin TEXT NOT NULL DEFAULT '';
    CREATE INDEX alert_events_of ON alert_events (key, seq);
    ALTER TABLE alert_deliveries ADD COLUMN origin TEXT NOT NULL DEFAULT '';
    ALTER TABLE alert_deliveries ADD COLUMN tried_unix_s REAL;
    """,
)


class Checkpoint(Fact):
    """How far one part of a named run has come. Keys are JSON texts; None is the start or the end.

    `position` is the last key that is done, `pending` the id and last key of a chunk that was handed out and is not
    known to be done. `version` counts the writes: two runs of one name cannot both write the next one.
    """

    name: str
    part: int
    plan: str
    low: str | None = None
    high: str | None = None
    position: str | None = None
    pending: str | None = None
    rows: int = 0
    bytes: int = 0
    done: bool = False
    version: int = 0
    updated_unix_s: float = 0.0


class DeadLetter(Fact):
    """Rows that were given up: after the key `low` (the first of them, where there is one only) up to `high`."""

    name: str
    chunk: str
    low: str | None
    high: str | None
    rows: int
    error: str
    attempts: int
    unix_s: float


def state_directory(setting: str | None, environ: Mapping[str, str]) -> str | None:
    """MEMWARDEN_DIR (or the setting), else the user's state directory; None where neither is known."""
    if setting or environ.get("MEMWARDEN_DIR"):
        return setting or environ["MEMWARDEN_DIR"]
    home = environ.get("XDG_STATE_HOME") or (f"{environ['HOME']}/.local/state" if environ.get("HOME") else "")
    return os.path.join(home, "memwarden") if home else None


class Store:
    """Opens the file in `folder` (None: the usual place). Raises StoreError where it must not or cannot be used.

    `memory`, where given, says why it is to live in memory and not in a file; with `or_memory` false it never does so
    by itself, and what keeps it from its file is a StoreError. `reading` is for whoever only looks: no file is made,
    nothing lives in memory in its stead, and others write while it reads.

    Every call is one transaction of its own, and waits at most 5 s for other writers; not even that where `hurry`,
    which is asked meanwhile, says so. A file that somebody else has locked when it is to be opened is no reason for
    memory: the first call that finds it free opens it, and those before are a StoreError.
    """

    def __init__(
        self,
        folder: str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Clock | None = None,
        mounts: str = "/proc/self/mountinfo",
        memory: str = "",
        reading: bool = False,
        or_memory: bool = True,
        hurry: Callable[[], bool] | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._reads = reading
        self._hurry = hurry
        self._retired = False
        self._turn = threading.Event()  # that nobody sets
        self._lock = threading.Lock()
        self._inherited: list[sqlite3.Connection] = []
        self._openings: dict[int, threading.Lock] = {}  # of each process that opens it, by its pid
        self._db: sqlite3.Connection
        self._is_open, self._pid = False, os.getpid()
        self.notes: tuple[str, ...] = ()
        self.degraded = ""
        self.path: str | None = None
        self._file: tuple[int, int] | None = None
        found = state_directory(folder, environ)
        try:
            if memory:
                raise OSError(memory)  # noqa: TRY301  one way out for all that keeps it from its file
            if found is None:
                raise OSError("no folder is known: set MEMWARDEN_DIR")  # noqa: TRY301
            self.path = self._place(found, mounts) if not reading else _existing(found, mounts)
            self._db = self._open(self.path)
            self._file = _file_at(self.path)
        except (OSError, sqlite3.OperationalError) as error:
            if or_memory and not reading and _is_busy(error):
                return
            if reading:
                raise _unreadable(error, found) from error
            if not or_memory:
                where, mend = self.path or found or "store", "see that it can be written, or set MEMWARDEN_DIR"
                raise StoreError(f"cannot be used: {_why(error)}", where=where, mend=mend) from error
            self._db = self._in_memory(found, error)
            if not memory:  # whoever gives a reason has said it
                logging.getLogger("memwarden.store").warning("%s", self.degraded)
        self._is_open = True

    def _place(self, folder: str, mounts: str) -> str:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.stat(folder).st_uid == os.geteuid() and os.stat(folder).st_mode & 0o077:
            os.chmod(folder, 0o700)
        if (kind := _local_kind(folder, mounts)) in IN_MEMORY:
            self.notes = (f"{folder} is on {kind}: it counts towards the memory limit, and is lost at a restart",)
        path = os.path.join(folder, FILE_NAME)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            # It is not opened here: closing it again would drop the locks that another Store of this process has on it
            # (POSIX; sqlite.org/howtocorrupt, 2.2), and whoever closes the file next would take its log away.
            if os.path.islink(path):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
            if not os.access(path, os.R_OK | os.W_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), path) from None
        return path

    def _open(self, path: str) -> sqlite3.Connection:
        # isolation_level None: transactions are begun by us. WAL and its shared memory get the file's own mode.
        wait_s = BUSY_S if self._hurry is None else SLICE_S
        db = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            # SQLite waits for nobody in this one, whatever its time-out (SQLITE_BUSY comes at once).
            self._patiently(lambda: db.execute("PRAGMA journal_mode = WAL").close(), least_s=OPEN_S)
            db.execute("PRAGMA synchronous = NORMAL").close()
            # Whoever only looks waits for no writer, unless there is something to bring up.
            if not self._reads or db.execute("PRAGMA user_version").fetchone()[0] != len(_MIGRATIONS):
                self._patiently(lambda: _migrate(db, path), least_s=OPEN_S)
        except sqlite3.OperationalError:
            db.close()
            raise
        except sqlite3.DatabaseError as error:
            db.close()
            raise StoreError(f"is no usable database ({error})", where=path, mend="move it away") from error
        except BaseException:
            db.close()
            raise
        return db

    def _in_memory(self, folder: str | None, error: OSError | sqlite3.OperationalError) -> sqlite3.Connection:
        self.path, self.notes = None, ()
        self.degraded = f"{folder or 'store'}: {_why(error)}; kept in memory, nothing survives this process"
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _migrate(db, ":memory:")
        return db

    @property
    def is_moved(self) -> bool:
        """Whether there is another file in its place by now, or none: what is written here nobody else will read."""
        return self.path is not None and self._is_open and _file_at(self.path) != self._file

    def close(self) -> None:
        """Close the file. A second close is a no-op, and so is one in a forked child, where nothing was opened yet."""
        self._retired = True
        if self._pid != os.getpid():  # the lock may be held by a thread that did not come along
            return
        with self._lock:
            if self._is_open:
                self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def retire(self) -> None:
        """Have nobody begin anything here any more, which is a StoreError from now on: another one takes its place."""
        self._retired = True

    @contextmanager
    def transaction(self, *, patient: bool = True) -> Iterator[sqlite3.Connection]:
        """One write transaction of a room that keeps its own tables here (jobs, alerts): all of it, or nothing.

        Raises StoreError for whatever SQLite says. Not re-entrant: no other call of this Store within it. One that is
        not `patient` waits for nobody for longer than a slice, in a Store that may be hurried.
        """
        with self._begun("BEGIN" if self._reads else "BEGIN IMMEDIATE", patient=patient) as db:
            yield db

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One look at all of it as it is at one moment, which no other writer keeps waiting. Raises StoreError."""
        with self._begun("BEGIN", patient=True) as db:
            yield db

    @contextmanager
    def _begun(self, how: str, *, patient: bool) -> Iterator[sqlite3.Connection]:
        db = self._db if self._is_open and self._pid == os.getpid() else self._reopened()
        try:
            lock = self._begin(db, how, patient=patient)
            try:
                yield db
                db.execute("COMMIT")
            finally:
                try:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                finally:
                    lock.release()
        except sqlite3.Error as error:
            raise _store_error(error, self.path or "store") from error

    def _begin(self, db: sqlite3.Connection, how: str, *, patient: bool) -> threading.Lock:
        """Begin, and hold the lock of this Store, which is given back while another process is waited for."""
        lock = self._lock

        def begin() -> None:
            lock.acquire()
            try:
                if self._retired:
                    raise sqlite3.ProgrammingError("the store is closed")  # noqa: TRY301  gives the lock back too
                db.execute(how)
            except BaseException:
                lock.release()
                raise

        self._patiently(begin, patient=patient)
        return lock

    def _patiently(self, step: Callable[[], None], *, patient: bool = True, least_s: float = 0.0) -> None:
        """Have it done, in slices where somebody may ask to hurry; one slice, or `least_s`, at the least.

        Raises sqlite3.Error.
        """
        clock = SystemClock()  # whatever clock we live by: it is a real process that is waited for
        start_s = clock.monotonic()
        while True:
            try:
                step()
            except sqlite3.OperationalError as error:
                waited_s = clock.monotonic() - start_s
                if not _is_busy(error) or waited_s >= BUSY_S:
                    raise
                in_haste = self._hurry is not None and (not patient or self._hurry())
                if in_haste and waited_s >= least_s:
                    raise
            else:
                return
            clock.wait(self._turn, TURN_S)

    def _reopened(self) -> sqlite3.Connection:
        """Open what is not open yet here: after a fork, or where somebody had it locked. Raises StoreError."""
        # A lock of this process alone: two threads of it begin at once, and none of the parent's can hold it.
        with self._openings.setdefault(os.getpid(), threading.Lock()):
            if self._pid != os.getpid():
                self._after_fork()
            if not self._is_open:
                assert self.path is not None  # only a file is left unopened
                try:
                    self._db, self._file = self._open(self.path), _file_at(self.path)
                except sqlite3.Error as error:
                    raise _store_error(error, self.path) from error
                self._is_open = True
            return self._db

    def _after_fork(self) -> None:
        # The parent's connection must not be used here nor closed: its locks are the parent's (sqlite.org/howtocorrupt,
        # "carrying an open database connection across a fork"). So it is kept and never touched.
        self._lock, self._turn = threading.Lock(), threading.Event()
        if self._is_open:
            self._inherited.append(self._db)
        self._is_open, self._pid = False, os.getpid()
        if self.path is None:
            why = OSError("forked: what the parent kept in memory is not here")
            self._db, self._is_open = self._in_memory(None, why), True
            logging.getLogger("memwarden.store").warning("%s", self.degraded)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def checkpoints(self, name: str) -> tuple[Checkpoint, ...]:
        """Where each part of this run is, in the order of the parts; empty where there is none."""
        with self.transaction() as db:
            return read_checkpoints(db, name)

    def write(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write the next version of it; what was written. Raises CheckpointError where somebody else wrote one."""
        return self.write_all((checkpoint,))[0]

    def write_all(self, checkpoints: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
        """All of them, or none."""
        now = self._clock.wall()
        after = tuple(each.replace(version=each.version + 1, updated_unix_s=now) for each in checkpoints)
        with self.transaction() as db:
            for each in after:
                write_checkpoint(db, each)
        return after

    def forget(self, name: str) -> None:
        """Have this run begin anew the next time; its dead letters go too."""
        with self.transaction() as db:
            db.execute("DELETE FROM checkpoints WHERE name = ?", (name,))
            db.execute("DELETE FROM dead_letters WHERE name = ?", (name,))

    # --- dead letters ------------------------------------------------------------------------------------------

    def bury(self, letter: DeadLetter) -> None:
        """Keep one."""
        values = [getattr(letter, field) for field in DeadLetter._fields]
        with self.transaction() as db:
            db.execute(f"INSERT INTO dead_letters ({', '.join(DeadLetter._fields)}) VALUES (?,?,?,?,?,?,?,?)", values)  # noqa: S608

    def dead_letters(self, name: str, *, most: int = 100) -> tuple[DeadLetter, ...]:
        """The newest ones of a run, at most so many."""
        with self.transaction() as db:
            columns = ", ".join(DeadLetter._fields)
            query = f"SELECT {columns} FROM dead_letters WHERE name = ? ORDER BY id DESC LIMIT ?"  # noqa: S608
            found = db.execute(query, (name, most)).fetchall()
        return tuple(DeadLetter(**dict(zip(DeadLetter._fields, row, strict=True))) for row in found)


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# The same statements serve the table of this file and the one in a sink of sqlite3 (`jobs.sink`): all names are ours.


def read_checkpoints(
    db: sqlite3.Connection, name: str, *, part: int | None = None, table: str = "checkpoints"
) -> tuple[Checkpoint, ...]:
    """Where each part of this run is, in the order of the parts; or that one part alone."""
    query = f"SELECT {', '.join(Checkpoint._fields)} FROM {table} WHERE name = ?"  # noqa: S608  our names
    if part is None:
        return tuple(_checkpoint(row) for row in db.execute(f"{query} ORDER BY part", (name,)))
    return tuple(_checkpoint(row) for row in db.execute(f"{query} AND part = ?", (name, part)))


def _checkpoint(row: tuple[object, ...]) -> Checkpoint:
    values = dict(zip(Checkpoint._fields, row, strict=True))
    return Checkpoint(**{**values, "done": bool(values["done"])})  # type: ignore[arg-type]


def write_checkpoint(db: sqlite3.Connection, it: Checkpoint, *, table: str = "checkpoints") -> None:
    """Write this version, in the transaction of `db`. Raises CheckpointError where somebody else wrote it."""
    values = [getattr(it, field) for field in Checkpoint._fields]
    if it.version == 1:
        marks = ",".join("?" * len(values))
        query = f"INSERT OR IGNORE INTO {table} ({', '.join(Checkpoint._fields)}) VALUES ({marks})"  # noqa: S608  our names
        done = db.execute(query, values).rowcount
    else:
        sets = ", ".join(f"{field} = ?" for field in Checkpoint._fields)
        query = f"UPDATE {table} SET {sets} WHERE name = ? AND part = ? AND version = ?"  # noqa: S608  our names
        done = db.execute(query, (*values, it.name, it.part, it.version - 1)).rowcount
    if done != 1:
        raise CheckpointError.taken(it.name)


def _local_kind(folder: str, mounts: str) -> str:
    """The kind of the file system. Raises StoreError for one of the network."""
    kind = _kind_of(folder, mounts)
    if kind in NETWORK:
        raise StoreError(
            f"is on a network file system ({kind}), where SQLite's write-ahead log loses data",
            where=folder,
            mend="set MEMWARDEN_DIR to a folder of this machine",
        )
    return kind


def _existing(folder: str, mounts: str) -> str:
    """The file in it that is there already. Raises OSError, and StoreError for a file system of the network."""
    path = os.path.join(folder, FILE_NAME)
    _local_kind(folder, mounts)
    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    os.stat(path)
    if not os.access(path, os.R_OK | os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
    return path


def _unreadable(error: OSError | sqlite3.OperationalError, folder: str | None) -> StoreError:
    where = os.path.join(folder, FILE_NAME) if folder else "store"
    if isinstance(error, FileNotFoundError):
        return StoreError("there is none yet", where=where)
    return StoreError(getattr(error, "strerror", None) or str(error), where=where, mend="see that it can be read")


# Another connection has it: SQLITE_BUSY and SQLITE_LOCKED.
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def _is_busy(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def _why(error: OSError | sqlite3.Error) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


_MENDS = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_CORRUPT: "move it away",
    sqlite3.SQLITE_NOTADB: "move it away",
}


def _store_error(error: sqlite3.Error, where: str) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return StoreError("is locked by another process", where=where, mend=f"`fuser {where}` says by which")
    mend = _MENDS.get(code, "see that it can be written")
    return StoreError(str(error), where=where, mend=mend)


def is_locked(error: StoreError) -> bool:
    """Whether somebody else has it locked, and nothing is wrong with it."""
    return _is_busy(error.__cause__)


def is_failing(error: StoreError) -> bool:
    """Whether something is wrong with the file (full, read-only, damaged); not where it is locked, or closed by us."""
    return getattr(error.__cause__, "sqlite_errorcode", None) is not None and not is_locked(error)


def _migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the schema up, each step with its number in one transaction; two that start at once take turns."""
    if db.execute("PRAGMA user_version").fetchone()[0] == len(_MIGRATIONS):
        return  # nothing to write, so nobody who writes just now need be waited for
    db.execute("BEGIN IMMEDIATE")
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"was made by a newer memwarden (schema {version}, known are {len(_MIGRATIONS)})",
                where=path,
                mend="update memwarden, or set MEMWARDEN_DIR to another folder",
            )
        for number in range(version, len(_MIGRATIONS)):
            for statement in _MIGRATIONS[number].split(";"):
                if statement.strip():
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {number + 1}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _kind_of(folder: str, mounts: str) -> str:
    try:
        with open(mounts, "rb") as file:
            return file_system(file.read(), os.path.realpath(folder))
    except OSError:  # not Linux, or no /proc: nothing is known, nothing is refused
        return ""
