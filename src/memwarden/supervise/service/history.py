"""The history of every guarded process: one SQLite file beside the store, written by the service alone.

Three tiers (1 s for a day, 1 min for 30 days, 1 h for two years) hold minimum, maximum, sum and count of the memory in
use and of the resident memory, and the largest limit and level. Ticks go into all three at once, with the number of the
last one that was folded in the same transaction: none is lost or counted twice, whenever the service dies.

The file has a cap (`MOST_BYTES`, 256 MiB): above it the finest tier gives way first, from its oldest end. Every change
is a transaction of at most some hundred rows, and what was freed is given back some pages at a time.

It is a file of its own because it may be lost: what is in the store (alerts, checkpoints) must not wait for it, share
its cap, or be moved away with it when it is damaged (docs/decisions/011-history-in-a-file-of-its-own.md).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import contextmanager

from memwarden.errors import StoreError
from memwarden.facts import Fact, Level
from memwarden.mounts import NETWORK, file_system
from memwarden.supervise.service.fold import COLUMNS, LARGEST, TIERS, Tier, fold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from memwarden.ports import Clock

__all__ = ["FILE_NAME", "MOST_BYTES", "History", "Life", "Point"]

FILE_NAME = "history.db"
# A day of twenty processes at one tick a second takes 95 MiB (benchmarks/service.py); their 30 days of minutes are half
# as many rows, two years of hours a fifth.
MOST_BYTES = 256 << 20
# Room is made down to this share of the cap, so that it is not made at every round.
_ROOM_RATIO = 0.9
# A fold that finds it locked is made up for by the next one; the loop, which has more to do, is not held up by it.
BUSY_S = 0.25
CACHE_KIB = 512
# Rows of one transaction of expiry: a few milliseconds, so that readers and the next fold do not wait.
EXPIRE_ROWS = 2000
VACUUM_PAGES = 256
# Lives of which nothing is kept any more are forgotten; beyond so many the oldest go with all that is theirs.
MOST_LIVES = 5_000
# Damaged files that are kept for somebody to look into.
_KEPT_DAMAGED = 2
_VERSION = 1
_LOG = "memwarden.service"

_TABLE = """
    CREATE TABLE {name} (
        life INTEGER NOT NULL, at INTEGER NOT NULL, count INTEGER NOT NULL,
        used_count INTEGER NOT NULL, used_sum INTEGER NOT NULL, used_min INTEGER, used_max INTEGER,
        rss_count INTEGER NOT NULL, rss_sum INTEGER NOT NULL, rss_min INTEGER, rss_max INTEGER,
        limit_max INTEGER NOT NULL, level_max INTEGER NOT NULL, PRIMARY KEY (life, at)
    ) WITHOUT ROWID
"""
_LIVES = """
    CREATE TABLE lives (
        id INTEGER PRIMARY KEY, box TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, pid INTEGER NOT NULL,
        start_ticks INTEGER NOT NULL, start_unix_s REAL NOT NULL, argv TEXT NOT NULL, last INTEGER NOT NULL,
        lost INTEGER NOT NULL, seen_unix_s REAL NOT NULL, verdict TEXT, told INTEGER NOT NULL
    )
"""
_MERGE = """
    INSERT INTO {name} (life, at, {columns}) VALUES ({marks}) ON CONFLICT (life, at) DO UPDATE SET
        count = count + excluded.count, used_count = used_count + excluded.used_count,
        used_sum = min(used_sum + excluded.used_sum, {largest}), rss_count = rss_count + excluded.rss_count,
        rss_sum = min(rss_sum + excluded.rss_sum, {largest}),
        used_min = CASE WHEN used_min IS NULL THEN excluded.used_min WHEN excluded.used_min IS NULL THEN used_min
            ELSE min(used_min, excluded.used_min) END,
        used_max = CASE WHEN used_max IS NULL THEN excluded.used_max WHEN excluded.used_max IS NULL THEN used_max
            ELSE max(used_max, excluded.used_max) END,
        rss_min = CASE WHEN rss_min IS NULL THEN excluded.rss_min WHEN excluded.rss_min IS NULL THEN rss_min
            ELSE min(rss_min, excluded.rss_min) END,
        rss_max = CASE WHEN rss_max IS NULL THEN excluded.rss_max WHEN excluded.rss_max IS NULL THEN rss_max
            ELSE max(rss_max, excluded.rss_max) END,
        limit_max = max(limit_max, excluded.limit_max), level_max = max(level_max, excluded.level_max)
"""


class Life(Fact):
    """One life of a guarded process, as a black box told it. `last` is the number of its last tick that was folded.

    `verdict` is how it ended, None while it is not known to have; `told` whether its end was told or needs no telling.
    """

    id: int
    box: str
    kind: str
    pid: int
    start_ticks: int
    start_unix_s: float
    argv: str
    last: int = 0
    lost: int = 0
    seen_unix_s: float = 0.0
    verdict: str | None = None
    told: bool = False


class Point(Fact):
    """One bucket: `count` ticks from `unix_s` on. Averages are of the ticks in which the figure was known."""

    unix_s: int
    count: int
    used_min: int | None
    used_average: float | None
    used_max: int | None
    rss_min: int | None
    rss_average: float | None
    rss_max: int | None
    limit_bytes: int | None
    level: Level


class History:
    """Opens the file in a folder. Raises StoreError where it cannot be used.

    A damaged one is moved aside, loudly; whoever only reads it (`repair` false) gets the error instead.
    """

    def __init__(
        self,
        folder: str,
        *,
        clock: Clock,
        most_bytes: int = MOST_BYTES,
        repair: bool = True,
        mounts: str = "/proc/self/mountinfo",
    ) -> None:
        self.path = os.path.join(folder, FILE_NAME)
        self._clock, self._most_bytes = clock, most_bytes
        self._log = logging.getLogger(_LOG)
        self._refuse_network(folder, mounts)
        try:
            self._db = self._open()
        except sqlite3.OperationalError as error:
            raise self._error(error) from error
        except sqlite3.DatabaseError as error:
            if not repair:
                raise self._error(error) from error
            self._move_aside(error)
            try:
                self._db = self._open()
            except sqlite3.Error as again:
                raise self._error(again) from again

    def _refuse_network(self, folder: str, mounts: str) -> None:
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with open(mounts, "rb") as file:
                kind = file_system(file.read(), os.path.realpath(folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"cannot be made: {error.strerror}", where=folder, mend="set MEMWARDEN_DIR") from error
        if kind in NETWORK:
            what = f"is on a network file system ({kind}), where SQLite's write-ahead log loses data"
            raise StoreError(what, where=folder, mend="set MEMWARDEN_DIR to a folder of this machine")

    def _open(self) -> sqlite3.Connection:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(self.path, flags, 0o600))  # the log and the shared memory get its mode
        except OSError as error:
            raise StoreError(
                f"cannot be opened: {error.strerror}", where=self.path, mend="set MEMWARDEN_DIR"
            ) from error
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}").close()
            db.execute("PRAGMA auto_vacuum = INCREMENTAL").close()  # counts for a new file only
            db.execute("PRAGMA journal_mode = WAL").close()
            db.execute("PRAGMA synchronous = NORMAL").close()
            db.execute("PRAGMA journal_size_limit = 4194304").close()
            self._make(db)
        except BaseException:
            db.close()
            raise
        return db

    def _make(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                mend = "update memwarden, or set MEMWARDEN_DIR to another folder"
                raise StoreError(f"was made by a newer memwarden (schema {version})", where=self.path, mend=mend)
            if version < 1:
                db.execute(_LIVES)
                for tier in TIERS:
                    db.execute(_TABLE.format(name=f"{tier.name}s"))
                db.execute(f"PRAGMA user_version = {_VERSION}")
            # A damaged page of the tables that are always read shows now, and not in the middle of the night.
            db.execute("SELECT count(*) FROM lives").fetchone()
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        """Keep what is damaged under another name, the last two of them, and say so."""
        to = f"{self.path}.damaged-{int(self._clock.wall() * 1000)}"
        for end in ("", "-wal", "-shm"):
            try:
                os.replace(self.path + end, to + end)
            except FileNotFoundError:
                continue
        self._log.error("%s is damaged (%s): it was moved to %s, and a new one is begun", self.path, error, to)
        folder, name = os.path.split(self.path)
        old = sorted(each for each in os.listdir(folder) if each.startswith(f"{name}.damaged-") and each[-1].isdigit())
        for each in old[:-_KEPT_DAMAGED]:
            self._log.warning(
                "%s is removed: %d newer damaged ones are kept", os.path.join(folder, each), _KEPT_DAMAGED
            )
            for end in ("", "-wal", "-shm"):
                try:
                    os.unlink(os.path.join(folder, each + end))
                except FileNotFoundError:
                    continue

    def reopen(self, error: StoreError) -> bool:
        """After an error: a new file where this one is damaged. Whether it was. Raises StoreError."""
        cause = error.__cause__
        if not isinstance(cause, sqlite3.DatabaseError) or isinstance(cause, sqlite3.OperationalError):
            return False
        self._db.close()
        self._move_aside(cause)
        try:
            self._db = self._open()
        except sqlite3.Error as again:
            raise self._error(again) from again
        return True

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All of it or nothing. Raises StoreError."""
        db = self._db
        try:
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> StoreError:
        return StoreError(str(error), where=self.path, mend="see that it can be written, and that the disk has room")

    # --- folding ---------------------------------------------------------------------------------------------------

    def life(self, box: str, *, kind: str, pid: int, start_ticks: int, start_unix_s: float, argv: str) -> Life:
        """The life that a box of this name tells of; it is begun where it is not known. Raises StoreError."""
        now = self._clock.wall()
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO lives (box, kind, pid, start_ticks, start_unix_s, argv, last, lost, "
                "seen_unix_s, told) VALUES (?,?,?,?,?,?,0,0,?,0)",
                (box, kind, pid, start_ticks, start_unix_s, argv, now),
            )
            (found,) = _lives(db, "WHERE box = ?", (box,))
        return found

    def fold(
        self, life: int, ticks: Sequence[tuple[int, float, int | None, int | None, int | None, int]], *, lost: int = 0
    ) -> None:
        """Add ticks of one life to every tier. Those up to the last one that was added before are left out.

        `lost` is how many are known to be lost of that life by now. Raises StoreError, and then nothing was added.
        """
        with self._transaction() as db:
            row = db.execute("SELECT last FROM lives WHERE id = ?", (life,)).fetchone()
            if row is None:
                return
            fresh = [tick for tick in ticks if tick[0] > row[0]]
            for tier in TIERS:
                buckets = fold(fresh, tier.step_s)
                db.executemany(
                    _merge_into(tier), [(life, at, *bucket.values()) for at, bucket in sorted(buckets.items())]
                )
            last = max((tick[0] for tick in fresh), default=row[0])
            db.execute(
                "UPDATE lives SET last = ?, lost = max(lost, ?), seen_unix_s = max(seen_unix_s, ?) WHERE id = ?",
                (last, lost, max((tick[1] for tick in fresh), default=0.0), life),
            )

    def end(self, life: int, verdict: str, *, told: bool) -> None:
        """How it ended, and whether that was told or needs no telling. Raises StoreError."""
        with self._transaction() as db:
            db.execute("UPDATE lives SET verdict = ?, told = ? WHERE id = ?", (verdict, int(told), life))

    # --- asking ------------------------------------------------------------------------------------------------------

    def lives(self, *, pid: int | None = None, most: int = 100) -> tuple[Life, ...]:
        """The lives on record, those seen last first. Raises StoreError."""
        with self._transaction("BEGIN") as db:
            where, values = ("WHERE pid = ?", (pid,)) if pid is not None else ("", ())
            return tuple(_lives(db, f"{where} ORDER BY seen_unix_s DESC, id DESC LIMIT ?", (*values, most)))

    def points(self, life: int, tier: Tier, from_s: float, to_s: float, *, most: int = 10_000) -> tuple[Point, ...]:
        """The buckets of one life that begin in [from_s, to_s), in order, at most so many. Raises StoreError."""
        query = (
            f"SELECT at, {', '.join(COLUMNS)} FROM {tier.name}s "  # noqa: S608  our own names
            "WHERE life = ? AND at >= ? AND at < ? ORDER BY at LIMIT ?"
        )
        with self._transaction("BEGIN") as db:
            return tuple(_point(row) for row in db.execute(query, (life, from_s, to_s, most)))

    @property
    def size_bytes(self) -> int:
        """Of the file, without what SQLite would give back. Raises StoreError."""
        try:
            pages, free, size = (
                self._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        except sqlite3.Error as error:
            raise self._error(error) from error
        return int((pages - free) * size)

    # --- keeping it small --------------------------------------------------------------------------------------------

    def expire(self) -> bool:
        """Remove some of what is too old, or too much. Whether there is more of it. Raises StoreError.

        One bounded transaction; call it again as long as it says so.
        """
        now = self._clock.wall()
        for tier in TIERS:
            if self._remove(tier, now - tier.keep_s):
                return True
        if self.size_bytes > self._most_bytes and self._make_room():
            return True
        return self._forget_lives(now)

    def _remove(self, tier: Tier, before_s: float, *, most: int = EXPIRE_ROWS) -> int:
        """Rows of that tier that begin before then, at most so many; how many it were."""
        name, removed = f"{tier.name}s", 0
        with self._transaction() as db:
            # By life, since that is how the rows lie; the first of each tells whether it has any.
            for (life,) in db.execute("SELECT id FROM lives").fetchall():
                first = db.execute(f"SELECT min(at) FROM {name} WHERE life = ?", (life,)).fetchone()[0]  # noqa: S608  our names
                if first is None or first >= before_s:
                    continue
                removed += db.execute(
                    f"DELETE FROM {name} WHERE life = ? AND at IN "  # noqa: S608  our own names
                    f"(SELECT at FROM {name} WHERE life = ? AND at < ? ORDER BY at LIMIT ?)",
                    (life, life, before_s, most - removed),
                ).rowcount
                if removed >= most:
                    break
        return removed

    def _make_room(self) -> bool:
        """The oldest tenth of the finest tier that has any; the coarser ones tell of the same time."""
        for tier in TIERS:
            name = f"{tier.name}s"
            with self._transaction("BEGIN") as db:
                oldest = [
                    row[0]
                    for (life,) in db.execute("SELECT id FROM lives").fetchall()
                    if (row := db.execute(f"SELECT min(at) FROM {name} WHERE life = ?", (life,)).fetchone())[0]  # noqa: S608  our names
                    is not None
                ]
            if not oldest:
                continue
            first, now = min(oldest), self._clock.wall()
            before = first + max(tier.step_s, (now - first) * (1 - _ROOM_RATIO))
            removed = self._remove(tier, before)
            if removed:
                self._log.warning("%s is at its cap: the oldest of its %s tier goes early", self.path, tier.name)
                return True
        return False

    def _forget_lives(self, now: float) -> bool:
        """Lives of which nothing is left, and the oldest beyond the most that are kept."""
        kept_s = TIERS[-1].keep_s
        with self._transaction() as db:
            count = db.execute("SELECT count(*) FROM lives").fetchone()[0]
            old = db.execute(
                "SELECT id FROM lives WHERE seen_unix_s < ? OR (? AND verdict IS NOT NULL) "
                "ORDER BY seen_unix_s LIMIT 10",
                (now - kept_s, count > MOST_LIVES),
            ).fetchall()
            removed = 0
            for (life,) in old:
                for tier in TIERS:
                    removed += db.execute(f"DELETE FROM {tier.name}s WHERE life = ?", (life,)).rowcount  # noqa: S608  our names
                db.execute("DELETE FROM lives WHERE id = ?", (life,))
                if removed > EXPIRE_ROWS:
                    break
        return bool(old)

    def give_back(self) -> None:
        """Give some of the freed pages back to the disk, and the log's. Raises StoreError."""
        try:
            self._db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise self._error(error) from error


def _merge_into(tier: Tier) -> str:
    marks = ",".join("?" * (len(COLUMNS) + 2))
    return _MERGE.format(name=f"{tier.name}s", columns=", ".join(COLUMNS), marks=marks, largest=LARGEST)


def _lives(db: sqlite3.Connection, rest: str, values: tuple[object, ...]) -> list[Life]:
    found = []
    for row in db.execute(f"SELECT {', '.join(Life._fields)} FROM lives {rest}", values):  # noqa: S608  our own names
        fields = dict(zip(Life._fields, row, strict=True))
        found.append(Life(**{**fields, "told": bool(fields["told"])}))
    return found


def _point(row: tuple[int, ...]) -> Point:
    at, *rest = row
    it = dict(zip(COLUMNS, rest, strict=True))
    return Point(
        unix_s=at,
        count=it["count"],
        used_min=it["used_min"],
        used_average=it["used_sum"] / it["used_count"] if it["used_count"] else None,
        used_max=it["used_max"],
        rss_min=it["rss_min"],
        rss_average=it["rss_sum"] / it["rss_count"] if it["rss_count"] else None,
        rss_max=it["rss_max"],
        limit_bytes=it["limit_max"] or None,
        level=Level(min(it["level_max"], Level.EMERGENCY)),
    )
