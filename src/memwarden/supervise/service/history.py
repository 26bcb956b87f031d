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

__all__ = ["FILE_NAME", "MOST_BYTES", "History", "Life", "Point", "Summary"]

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


# Averages are of buckets and not of ticks: a process that is short of memory is looked at more often.
# total() and not sum() of sums: those of years do not fit SQLite's integers, and its sum() fails then.
_SUMMARY = """
    SELECT count(*), min(at), max(at), avg(CASE WHEN used_count THEN used_sum * 1.0 / used_count END), max(used_max),
        avg(CASE WHEN rss_count THEN rss_sum * 1.0 / rss_count END), max(rss_max),
        max(CASE WHEN limit_max THEN used_max * 1.0 / limit_max END), max(limit_max), min(nullif(limit_max, 0))
    FROM {name} WHERE life IN ({lives}) AND at >= :from AND at < :to
"""
# Fine buckets are read only where a coarse one says that there was something: CROSS keeps SQLite to that order.
_TROUBLE = """
    SELECT count(DISTINCT CASE WHEN m.level_max >= 1 THEN m.at END),
        count(DISTINCT CASE WHEN m.level_max >= 2 THEN m.at END),
        count(DISTINCT CASE WHEN m.limit_max AND m.used_max >= :warning * m.limit_max THEN m.at END),
        count(DISTINCT CASE WHEN m.limit_max AND m.used_max >= :critical * m.limit_max THEN m.at END)
    FROM {name} AS h CROSS JOIN {fine} AS m ON m.life = h.life AND m.at >= h.at AND m.at < h.at + {step_s}
    WHERE h.life IN ({lives}) AND h.at >= :from AND h.at < :to
        AND (h.level_max >= 1 OR (h.limit_max AND h.used_max >= :warning * h.limit_max))
        AND (m.level_max >= 1 OR (m.limit_max AND m.used_max >= :warning * m.limit_max))
"""
_COURSE = """
    SELECT at / ? * ? AS start, sum(count), total(used_count), total(used_sum), min(used_min), max(used_max),
        total(rss_count), total(rss_sum), min(rss_min), max(rss_max), max(limit_max), max(level_max)
    FROM {name} WHERE life IN ({lives}) AND at >= ? AND at < ? GROUP BY start ORDER BY start
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


class Summary(Fact):
    """The buckets of some lives within a time, of one tier, as one: of what counts against the limit where it is known.

    `peak_ratio` (0-1) is the highest of any bucket over the limit of that bucket; `limit_bytes` is that of the last
    one. `at_level` says in how many of the fine tier's buckets any was at WARNING, and at CRITICAL, or above;
    `at_share` in how many one was at those lines of its limit.
    """

    first_unix_s: int
    last_unix_s: int
    average_bytes: float | None
    peak_bytes: int | None
    peak_ratio: float | None
    limit_bytes: int | None
    least_limit_bytes: int | None
    most_limit_bytes: int | None
    at_level: tuple[int, int]
    at_share: tuple[int, int]


class History:
    """Opens the file in a folder. Raises StoreError where it cannot be used.

    A damaged one is moved aside, loudly. Whoever only reads it (`repair` false) gets the error instead; nothing is
    made or changed then, and no writer is waited for.
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
        self._clock, self._most_bytes, self._reads = clock, most_bytes, not repair
        self._log = logging.getLogger(_LOG)
        self.file = object()  # another one whenever another file is begun: what was known of lives is of the one before
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
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if self._reads else os.O_CREAT)
            os.close(os.open(self.path, flags, 0o600))  # the log and the shared memory get its mode
        except OSError as error:
            raise StoreError(
                f"cannot be opened: {error.strerror}", where=self.path, mend="set MEMWARDEN_DIR"
            ) from error
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}").close()
            if self._reads:
                self._look(db)
                return db
            db.execute("PRAGMA auto_vacuum = INCREMENTAL").close()  # counts for a new file only
            db.execute("PRAGMA journal_mode = WAL").close()
            db.execute("PRAGMA synchronous = NORMAL").close()
            db.execute("PRAGMA journal_size_limit = 4194304").close()
            self._make(db)
        except BaseException:
            db.close()
            raise
        return db

    def _look(self, db: sqlite3.Connection) -> int:
        """The version of what is there already. Raises StoreError for one of the future, and where there is nothing."""
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            mend = "update memwarden, or set MEMWARDEN_DIR to another folder"
            raise StoreError(f"was made by a newer memwarden (schema {version})", where=self.path, mend=mend)
        if self._reads:
            if version < 1:
                raise StoreError("there is nothing in it", where=self.path, mend="`memwarden serve` fills it")
            db.execute("SELECT count(*) FROM lives").fetchone()
        return version

    def _make(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            if self._look(db) < 1:
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
        self.file = object()
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
    ) -> bool:
        """Add ticks of one life to every tier. Those up to the last one that was added before are left out.

        `lost` is how many are known to be lost of that life by now. False where that life is not on record (any more),
        and then nothing was added. Raises StoreError, and then nothing was added either.
        """
        with self._transaction() as db:
            row = db.execute("SELECT last FROM lives WHERE id = ?", (life,)).fetchone()
            if row is None:
                return False
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
        return True

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

    def seen(self, from_s: float, to_s: float, *, most: int = MOST_LIVES) -> tuple[Life, ...]:
        """The lives that began before `to_s` and were seen after `from_s`, those seen last first. Raises StoreError."""
        with self._transaction("BEGIN") as db:
            where = "WHERE seen_unix_s >= ? AND start_unix_s < ? ORDER BY seen_unix_s DESC, id DESC LIMIT ?"
            return tuple(_lives(db, where, (from_s, to_s, most)))

    def summary(
        self, lives: Sequence[int], tier: Tier, from_s: float, to_s: float, *, lines: tuple[float, float], fine: Tier
    ) -> Summary | None:
        """All buckets of these lives that begin in [from_s, to_s) as one; None without any. Raises StoreError.

        `lines` are the shares of the limit (0-1) of WARNING and CRITICAL, `fine` the tier in which the time there is
        counted: `tier` itself, or a finer one that reaches back as far.
        """
        name, chosen = f"{tier.name}s", ",".join(str(int(each)) for each in lives)
        of = {"from": from_s, "to": to_s, "warning": lines[0], "critical": lines[1]}
        with self._transaction("BEGIN") as db:
            query = _SUMMARY.format(name=name, lives=chosen)
            count, first, last, *rest = db.execute(query, of).fetchone()
            if not count:
                return None
            query = _TROUBLE.format(name=name, fine=f"{fine.name}s", step_s=tier.step_s, lives=chosen)
            counts = db.execute(query, of).fetchone()
            query = f"SELECT max(limit_max) FROM {name} WHERE life IN ({chosen}) AND at = ?"  # noqa: S608  our own names
            limit = db.execute(query, (last,)).fetchone()[0]
        used, used_max, rss, rss_max, ratio, most, least = rest
        return Summary(
            first_unix_s=first, last_unix_s=last, average_bytes=rss if used is None else used,
            peak_bytes=rss_max if used_max is None else used_max, peak_ratio=ratio, limit_bytes=limit or most or None,
            least_limit_bytes=least, most_limit_bytes=most or None, at_level=(counts[0], counts[1]),
            at_share=(counts[2], counts[3]),
        )  # fmt: skip

    def course(self, lives: Sequence[int], tier: Tier, from_s: float, to_s: float, *, step_s: int) -> tuple[Point, ...]:
        """As `points`, of several lives as one and joined to buckets of `step_s`, a multiple of the tier's.

        Raises StoreError.
        """
        query = _COURSE.format(name=f"{tier.name}s", lives=",".join(str(int(each)) for each in lives))
        with self._transaction("BEGIN") as db:
            return tuple(_point(row) for row in db.execute(query, (step_s, step_s, from_s, to_s)))

    def begin(self, tier: Tier) -> int | None:
        """When the oldest bucket of this tier begins, in Unix seconds; None without any. Raises StoreError."""
        with self._transaction("BEGIN") as db:
            # By life, since that is how the rows lie.
            query = f"SELECT min((SELECT min(at) FROM {tier.name}s WHERE life = id)) FROM lives"  # noqa: S608  our names
            found: int | None = db.execute(query).fetchone()[0]
        return found

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
