"""Jobs for tests, importable by every worker. Effects go into a SQLite file, so that each item can be counted."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from typing import Any

from memwarden.jobs import Run, job
from memwarden.jobs.child import EXIT_NO_STORE

MIB = 1 << 20


def note(path: str, items: list[int]) -> None:
    """One row for each item done, in one transaction."""
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS effects (item INTEGER, pid INTEGER)")
        db.executemany("INSERT INTO effects VALUES (?, ?)", [(item, os.getpid()) for item in items])


def effects(path: str) -> dict[int, int]:
    """How often each item was done."""
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS effects (item INTEGER, pid INTEGER)")
        return dict(db.execute("SELECT item, COUNT(*) FROM effects GROUP BY item").fetchall())


def numbers(count: int) -> range:
    return range(count)


def added(so_far: int, value: int) -> int:
    return so_far + value


def joined(so_far: list[int], value: list[int]) -> list[int]:
    return so_far + value


@job(items=numbers, chunk=10, limit="1G", reduce=added)
def total(chunk: list[int], count: int, path: str = "") -> int:
    if path:
        note(path, chunk)
    return sum(chunk)


@job(items=numbers, chunk=10, limit="1G", reduce=joined, backoff=0.0)
def in_order(chunk: list[int], count: int) -> list[int]:
    return list(chunk)


@job(items=numbers, chunk=5, limit="1G", reduce=joined, bytes_per_item="64M")
def splits_at_once(chunk: list[int], count: int) -> list[int]:
    return list(chunk)


held: list[bytes] = []


@job(items=numbers, chunk=2, limit="160M", split=False, reduce=added)
def leaks(chunk: list[int], count: int, mib: int, path: str) -> int:
    """Keeps so much for each item for ever: ends only by going on in fresh processes."""
    held.extend(b"x" * (mib * MIB) for _ in chunk)
    note(path, chunk)
    return len(chunk)


@job(items=numbers, chunk=2, limit="160M", split=True, reduce=added)
def grows(chunk: list[int], count: int, mib: int, path: str) -> int:
    """The same, and may split."""
    return leaks(chunk, count, mib, path)  # type: ignore[no-any-return]  # a job's call has no type


@job(items=numbers, chunk=8, limit="1G", reduce=added)
def poisoned(chunk: list[int], count: int, poison: int, path: str, how: str = "kill") -> int:
    """One item kills its worker, each time."""
    done = []
    for item in chunk:
        if item == poison:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif how == "memory":
                raise MemoryError
            elif how == "exit":
                sys.exit(3)
            elif how == "hog":
                hog = [b"x" * (16 * MIB) for _ in range(200)]
                del hog
        done.append(item)
    note(path, done)
    return len(done)


@job(items=numbers, chunk=8, limit="96M", split=False, reduce=joined)
def wide(chunk: list[int], count: int, mib: int) -> list[int]:
    """Has all that its chunk needs at once, and lets it go: a smaller chunk needs less."""
    at_once = [b"x" * (mib * MIB) for _ in chunk]
    return [item * len(block) for item, block in zip(chunk, at_once, strict=True)]


@job(items=numbers, chunk=5, limit="1G", reduce=added)
def slow(chunk: list[int], count: int, path: str, pause_s: float = 0.01) -> int:
    for _item in chunk:
        time.sleep(pause_s)  # noqa: TID251  a real worker at real work, to be killed at it
    note(path, chunk)
    return len(chunk)


@job(items=numbers, chunk=10, limit="1G", retries=2, backoff=0.0)
def fails(chunk: list[int], count: int, path: str, times: int) -> None:
    """The first so many attempts fail."""
    note(path, [-1])
    if effects(path)[-1] <= times:
        raise ValueError("not yet")
    note(path, chunk)


@job(chunk=5, limit="1G", type="bulk", bytes_per_item="16M", backoff=0.0)
class Notes:
    """A class as a job, with all that one may have; its items do not fit into one part."""

    def __init__(self, count: int, path: str) -> None:
        self.count, self.path = count, path

    def items(self) -> range:
        return range(self.count)

    def sized(self) -> int:
        return self.count

    def sink(self) -> str:
        return self.path

    def handle(self, chunk: list[int], run: Run) -> list[int]:
        run.connection.executemany("INSERT INTO effects VALUES (?, ?)", [(item, os.getpid()) for item in chunk])
        return chunk

    @staticmethod
    def reduce(so_far: list[int], value: list[int]) -> list[int]:
        return joined(so_far, value)


@job(limit="1G")
class Body:
    """A class whose `handle` is the whole body."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    async def handle(self) -> int:
        return self.count * 2


@job(limit="1G")
class HasItemsThatAreNoMethod:
    items = (1, 2)

    def handle(self, chunk: list[int]) -> None: ...


@job(limit="1G")
class HasASinkAndNoItems:
    sink = "nowhere.db"

    def handle(self) -> None: ...


@job(limit="1G")
async def waits(count: int) -> int:
    """A coroutine function as a whole body."""
    import asyncio

    await asyncio.sleep(0)
    return count


@job(limit="1G", retries=0)
def starts_others(forks: bool) -> list[int]:
    """How a program and a process end that the job started and tells to end."""
    import subprocess

    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    program.terminate()
    ends = [program.wait(20)]
    if forks:
        process = os.fork()
        if process == 0:
            signal.alarm(20)
            signal.pause()
            os._exit(0)
        os.kill(process, signal.SIGTERM)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    return ends


@job(limit="1G", retries=1, backoff=0.0)
def ends(how: str) -> None:
    """Ends its process by itself, or its task."""
    if how == "exit":
        sys.exit(0)
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "cancel":
        import asyncio

        raise asyncio.CancelledError
    os._exit(0)


@job(limit="1G")
def dies_behind_its_work() -> str:
    """As a library does that crashes when its process ends."""
    import atexit

    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    return "done"


@job(limit="1G")
def keeps_its_place(run: Run, count: int, path: str) -> int:
    """A body that saves its own cursor, and stops once by an error of its own."""
    start = run.cursor or 0
    for number in range(start, count):
        run.check("number")
        note(path, [number])
        run.save(number + 1)
        if number == count // 2 and run.attempt == 1:
            raise ValueError("half way")
    return start


@job(limit="1G")
def no_json() -> Any:
    return {1, 2}


# --- jobs over a database ------------------------------------------------------------------------------------------


def _engine(path: str) -> Any:
    import sqlalchemy as sa

    return sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})


def _database() -> Any:
    return _engine(os.environ["MEMWARDEN_TEST_DATABASE"])


def rows_of(count: int) -> Any:
    import sqlalchemy as sa

    from memwarden.jobs import Rows

    items = sa.table("items", sa.column("id", sa.Integer), sa.column("text", sa.Text))
    return Rows(sa.select(items.c.id, items.c.text), _database(), key="id")


def make_rows(path: str, count: int) -> None:
    """A table of so many rows whose ids have gaps, and an empty one for what is done."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, text TEXT)")
        db.execute("CREATE TABLE done (id INTEGER, pid INTEGER)")
        db.executemany("INSERT INTO items VALUES (?, ?)", [(3 * n + n % 2, "x" * (n % 97)) for n in range(count)])


def rows_done(path: str) -> list[int]:
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        return [row[0] for row in db.execute("SELECT id FROM done ORDER BY id").fetchall()]


def rows_there(path: str) -> list[int]:
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        return [row[0] for row in db.execute("SELECT id FROM items ORDER BY id").fetchall()]


@job(items=rows_of, chunk=5, limit="1G", sink=_database, reduce=added, backoff=0.0, retries=1000)
def copies(chunk: list[Any], run: Run, count: int, pause_s: float = 0.0) -> int:
    """Each row's effect is in the transaction of the cursor."""
    import sqlalchemy as sa

    for row in chunk:
        time.sleep(pause_s)  # noqa: TID251  a real worker at real work, to be killed at it
        run.connection.execute(sa.text("INSERT INTO done VALUES (:id, :pid)"), {"id": row.id, "pid": os.getpid()})
    return len(chunk)


@job(items=rows_of, chunk=5, limit="256M", sink=_database, reduce=added, bytes_per_item="4M", backoff=0.0)
def copies_in_parts(chunk: list[Any], run: Run, count: int, pause_s: float = 0.0) -> int:
    return copies(chunk, run, count, pause_s)  # type: ignore[no-any-return]  # a job's call has no type


@job(limit="1G", items=numbers, chunk=1)
def ends_like_one_without_its_ledger(chunk: list[int], count: int) -> None:
    os._exit(EXIT_NO_STORE)


@job(limit="160M")
def swells(run: Run, mib: int) -> int:
    """A body without items that grows past its limit."""
    for number in range(mib):
        held.append(b"x" * MIB)
        run.check(f"step {number}")
    return mib


@job(limit="64M", timeout=0.3, items=numbers, chunk=1, backoff=0.0)
def hangs(chunk: list[int], count: int, path: str, forever: int = -1) -> None:
    note(path, chunk)
    if chunk[0] == forever:
        time.sleep(3600)  # noqa: TID251  it hangs


@job(items=numbers, chunk=5, limit="1G", reduce=joined)
def asks_to_split(chunk: list[int], run: Run, count: int) -> list[int]:
    if run.part == 0 and run.low is not None:
        run.split(7)
    return list(chunk)


@job(limit="1G")
def splits_nothing(run: Run) -> None:
    run.split()


@job(items=numbers, chunk=5, limit="1G", type="notification", reduce=added)
def never_splits(chunk: list[int], run: Run, count: int) -> int:
    return int(run.split())


@job(limit="1G", items=lambda: iter([1]))
def has_bad_items(chunk: list[int]) -> None: ...


@job(limit="96M", items=lambda path: path, chunk=1)
def reads_lines(chunk: list[bytes], path: str) -> None: ...


@job(limit="1M", items=numbers)
def has_a_tiny_limit(chunk: list[int], count: int) -> None: ...


@job(type="nightly", items=numbers)
def has_no_type(chunk: list[int], count: int) -> None: ...


leaked: list[bytes] = []


@job(limit="2G")
def leaks_a_little(mib: float) -> int:
    leaked.append(b"x" * int(mib * MIB))
    return len(leaked)


@job(limit="64M")
def hangs_for_ever(path: str) -> None:
    note(path, [1])
    time.sleep(3600)  # noqa: TID251  it hangs
