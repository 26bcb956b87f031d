"""What a job's code gets: its safe points, its place in the data, and the transaction of its chunk."""

from __future__ import annotations

import contextvars
import json
import logging

from memwarden.errors import JobError
from memwarden.jobs.profiles import whole
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from memwarden.jobs.guard import Guard

__all__ = ["Run", "Stopped", "current"]

_log = logging.getLogger("memwarden.jobs")
_current: contextvars.ContextVar[Run] = contextvars.ContextVar("memwarden_job")


class Stopped(BaseException):
    """The job ends at this safe point; its rest goes on elsewhere. `kind`: soft_stop, drain, timeout.

    No `except Exception` of a job swallows it.
    """

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Run:
    """One attempt at one part. `id` is the job's, `arguments` its own; `chunk_id` names the chunk in hand.

    `low` and `high` are the keys (JSON texts) around the items in hand: behind `low`, up to `high`.
    """

    def __init__(
        self, *, id: str, part: int, attempt: int, name: str, guard: Guard, stop: Callable[[], str],  # noqa: A002  it is called so everywhere
        keep: Callable[[str, int], None] | None = None, cursor: str | None = None, may_split: bool = False,
    ) -> None:  # fmt: skip
        self.id = id
        self.part = part
        self.attempt = attempt
        self.name = name
        self.guard = guard
        self.low: str | None = None
        self.high: str | None = None
        self.connection_of: Callable[[], Any] | None = None
        self._stop = stop
        self._keep = keep
        self._cursor = cursor
        self._may_split = may_split
        self.wanted_share: int | None = None
        self._told = False

    # --- safe points -------------------------------------------------------------------------------------------

    def check(self, operation: str = "check") -> None:
        """A safe point: one reading, one record. Where the limit is reached the job ends here and goes on elsewhere."""
        over = self.guard.check(operation)
        if not self._told and self._keep is not None and self._cursor is None and self.guard.is_warm:
            self._told = True
            _log.warning(
                "%s holds %s of %s and has no items to split or to resume by: at the limit it is stopped; "
                "give @job(items=...), or keep its place by run.save()",
                self.name, format_bytes(self.guard.current_bytes), format_bytes(self.guard.limit_bytes),
                extra={"job": self.name},
            )  # fmt: skip
        if over:
            raise Stopped("soft_stop", f"{format_bytes(self.guard.current_bytes)} held at {operation!r}")
        why = self._stop()
        if why:
            raise Stopped(why)

    def each(self, items: Iterable[Any], operation: str = "item") -> Iterator[Any]:
        """The items, with a safe point before each."""
        for item in items:
            self.check(operation)
            yield item

    def split(self, items: int | None = None) -> bool:
        """Have the rest cut into parts of so many items (None: halves) behind the chunk in hand. Whether it will be.

        Raises JobError in a job without items.
        """
        if self._keep is not None:
            raise JobError("has no items to cut", where=f"job {self.name!r}", mend="give @job(items=...)")
        if items is not None:
            whole(items, "items")
        if self._may_split:
            self.wanted_share = items or 0
        return self._may_split

    # --- a body that keeps its own place -----------------------------------------------------------------------

    @property
    def cursor(self) -> Any:
        """What `save` was given last, in this attempt or in one before; None at the start."""
        return None if self._cursor is None else json.loads(self._cursor)

    def save(self, cursor: Any, *, items: int = 1) -> None:
        """Keep this JSON value as the place to go on from; so many items are done since the last one.

        Only for a body without `items=`: there the cursor is kept by the loop. Raises JobError.
        """
        if self._keep is None:
            raise JobError("keeps its place by itself", where=f"job {self.name!r}", mend="leave run.save() out")
        from memwarden.jobs.ledger import as_json

        text = as_json(cursor, "its cursor", 4096, where=f"job {self.name!r}")
        self._keep(text, items)
        self._cursor = text

    # --- the chunk in hand -------------------------------------------------------------------------------------

    @property
    def chunk_id(self) -> str:
        """The same when the same items are handed out again: an idempotency key for whoever writes elsewhere."""
        from hashlib import sha256

        return sha256(f"{self.id}|{self.low}|{self.high}".encode()).hexdigest()[:16]

    @property
    def connection(self) -> Any:
        """The SQLAlchemy connection of the job's `sink`, in the transaction that this chunk is committed with."""
        if self.connection_of is None:
            raise JobError("has no sink", where=f"job {self.name!r}", mend="give @job(sink=engine)")
        return self.connection_of()


def current() -> Run:
    """The run of the job that is at work in this thread or task. Raises JobError outside of one."""
    found = _current.get(None)
    if found is None:
        raise JobError("no job is at work here", mend="call it from a function under @job")
    return found


def entered(run: Run) -> contextvars.Token[Run]:
    """Make it the current one."""
    return _current.set(run)


def left(token: contextvars.Token[Run]) -> None:
    """Make the one before it the current one again."""
    _current.reset(token)
