"""A job's own database, where chunk and cursor are committed together: every item exactly once, whatever dies when.

The cursor is a row of `memwarden_checkpoints`, the table that `flow.process` uses, and the truth about a part's place:
the ledger follows it. Each attempt writes the next version of that row before it begins, so a worker that was taken
for dead and is not cannot commit any more.

The row goes when its part is done, after the ledger has said so. Who had it before then cannot commit without it; who
comes later makes a new one, and finds out from the ledger that the part is not his before he does anything: so each
attempt asks it behind its fence.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time

from memwarden.errors import CheckpointError, JobError
from memwarden.jobs.ledger import LostError
from memwarden.store import Checkpoint, read_checkpoints, write_checkpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from memwarden.jobs.ledger import Part

__all__ = ["Sink"]

_log = logging.getLogger("memwarden.jobs")
# How long one that writes waits for another one that writes to the same SQLite file.
BUSY_S = 30.0


class Sink:
    """The sink of one attempt: a SQLAlchemy Engine, the path of a SQLite file, or a `sqlite3.Connection` to be its own.

    Raises LostError where another attempt has the part.
    """

    def __init__(self, sink: Any, part: Part, *, job: str) -> None:
        if isinstance(sink, (str, os.PathLike)):
            # IMMEDIATE: whoever is going to write waits for its turn; a reader that becomes a writer could not.
            sink = sqlite3.connect(sink, timeout=BUSY_S, isolation_level="IMMEDIATE")
        self._table, self._connect = _opened(sink, job)
        self._table.open()
        self._connection: Any = None
        found = self._table.load_part(f"job {part.root}", part.part)
        self._checkpoint = found or Checkpoint(name=f"job {part.root}", part=part.part, plan=job)
        self.fence()

    def fence(self) -> None:
        """From here on nothing that an earlier attempt does is committed. Raises LostError."""
        try:
            self._checkpoint = self._table.claim(self._checkpoint)
        except CheckpointError:
            raise LostError from None

    @property
    def position(self) -> str | None:
        """The last key that is done; None where nothing is."""
        return self._checkpoint.position

    @property
    def items(self) -> int:
        """So many are done."""
        return self._checkpoint.rows

    @property
    def result(self) -> str | None:
        """The part's result up to there, as JSON."""
        return self._checkpoint.pending

    def connection(self) -> Any:
        """The connection of the chunk in hand; its first statement that writes begins the transaction."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def commit(self, position: str | None, items: int, result: str | None) -> None:
        """Keep what the chunk wrote, and that it is done. Raises LostError, with all of it undone."""
        connection = self.connection()
        after = self._checkpoint.replace(position=position, rows=self._checkpoint.rows + items, pending=result)
        try:
            after = self._table.write(after, connection)
        except CheckpointError:
            self.undo()
            raise LostError from None
        connection.commit()
        self._checkpoint = after

    def skip(self, position: str | None) -> None:
        """Go on behind this key. Raises LostError."""
        try:
            self._checkpoint = self._table.write(self._checkpoint.replace(position=position), None)
        except CheckpointError:
            raise LostError from None

    def forget(self) -> None:
        """The part is done, and the ledger says so: take its row away. What cannot be taken away stays."""
        try:
            self.undo()
            self._table.forget_part(self._checkpoint)
        except Exception as error:  # noqa: BLE001  any driver's; what is done is done
            _log.warning("a checkpoint of %s stays behind (%s)", self._checkpoint.name, error)

    def undo(self) -> None:
        """Undo what the chunk in hand wrote, and let the connection go: it may be the reason."""
        connection, self._connection = self._connection, None
        if isinstance(connection, sqlite3.Connection):
            connection.rollback()
        elif connection is not None:
            connection.close()

    def close(self) -> None:
        """Let the connection go, and undo what is not committed."""
        self.undo()
        if isinstance(self._table, SqliteTable):
            self._table.close()


def _opened(sink: Any, job: str) -> tuple[Any, Callable[[], Any]]:
    """The table of checkpoints there, and what gives a connection."""
    if isinstance(sink, sqlite3.Connection):
        return SqliteTable(sink), lambda: sink
    if not hasattr(sink, "connect") or hasattr(sink, "sync_engine"):
        mend = "give a SQLAlchemy Engine, the path of a SQLite file, or a function that makes one of them"
        raise JobError(f"its sink is a {type(sink).__name__}", where=f"job {job!r}", mend=mend)
    from memwarden.flow.database.checkpoints import TableLedger
    from memwarden.jobs.statements import own

    engine = own(sink)
    return TableLedger(engine), engine.connect


class SqliteTable:
    """`flow.database`'s table of checkpoints in a SQLite file, without SQLAlchemy: columns and types are the same."""

    NAME = "memwarden_checkpoints"

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def open(self) -> None:
        """Make it where it is missing."""
        self._db.execute(
            f"CREATE TABLE IF NOT EXISTS {self.NAME} (name VARCHAR(200) NOT NULL, part INTEGER NOT NULL, plan TEXT NOT "
            "NULL, low TEXT, high TEXT, position TEXT, pending TEXT, rows BIGINT NOT NULL, bytes BIGINT NOT NULL, done "
            "BOOLEAN NOT NULL, version BIGINT NOT NULL, updated_unix_s DOUBLE NOT NULL, PRIMARY KEY (name, part))"
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def load_part(self, name: str, part: int) -> Checkpoint | None:
        """Where one part of the run is; None before its first checkpoint."""
        return next(iter(read_checkpoints(self._db, name, part=part, table=self.NAME)), None)

    def claim(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write the next version, so that whoever has this one cannot. Raises CheckpointError."""
        return self.write(checkpoint, None)

    def forget_part(self, checkpoint: Checkpoint) -> None:
        """Take the row of this one part away, where it still is of this version."""
        query = f"DELETE FROM {self.NAME} WHERE name = ? AND part = ? AND version = ?"  # noqa: S608  our name
        with self._db:
            self._db.execute(query, (checkpoint.name, checkpoint.part, checkpoint.version))

    def write(self, checkpoint: Checkpoint, connection: sqlite3.Connection | None) -> Checkpoint:
        """Write the next version; without `connection` in a transaction of its own. Raises CheckpointError."""
        after = checkpoint.replace(version=checkpoint.version + 1, updated_unix_s=time.time())
        try:
            write_checkpoint(self._db, after, table=self.NAME)
        except BaseException:
            self._db.rollback()
            raise
        if connection is None:
            self._db.commit()
        return after
