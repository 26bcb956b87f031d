"""What can go wrong, as one tree. Every error says what, where and how to mend it.

MemwardenError
├── ConfigError (ValueError)          a setting that cannot be used
│   └── UnitError                     text that is no size, ratio or duration
├── MissingExtraError (ImportError)   a feature whose extra is not installed
├── ProcessNotFoundError              no process with that pid, or it ended
├── NotPermittedError                 the process or file belongs to somebody else
├── MemoryPressureError               refused for memory: for now, or for good
├── TraceError                        a trace file that cannot be read as one
├── BlackBoxError                     a black box file that cannot be read as one
├── PoolError                         a pool that cannot give an object, or not take one back
│   ├── PoolTimeoutError (TimeoutError)  none came free in time
│   ├── PoolClosedError               it was closed
│   ├── FactoryError                  its factory raised, hung, or gave what is no new object
│   └── NotBorrowedError (ValueError) what was returned is not its own, or was returned before
├── ServiceError                      a container that cannot give a service
│   ├── ServiceNotFoundError (LookupError)  nothing is registered under that key
│   ├── ServiceFactoryError           its factory raised
│   ├── AsyncServiceError             it can only be awaited
│   └── ContainerClosedError          the container was closed
├── CircularDependencyError           what is being made needs itself; `path` is the way round
├── FlowError                         a stream could not go on
│   ├── SourceError                   what it reads from failed, or is nothing that can be read
│   ├── HandlerError                  what it hands its chunks to failed
│   ├── OversizeError                 one row is larger than a chunk may be
│   ├── StatementError (ValueError)   a statement that cannot be read in chunks as it is
│   ├── KeyOrderError                 keys that do not increase: duplicates, NULL, a source that lies about its order
│   ├── CheckpointError               a checkpoint of something else, or one that somebody else goes on with
│   ├── ChunkTimeoutError (TimeoutError) a chunk took longer than it may
│   ├── ChunkError                    a chunk of a database run failed for good
│   └── ReleasedError                 a chunk was read after the next one was asked for
├── MemoryRefused (MemoryError)       the fence refused an allocation, whatever it looked like at first
├── DeliveryError                     a channel could not deliver; whether it is worth another try
├── JobError                          a job that cannot be made, sent or run as asked
├── StoreError                        the store's file cannot or must not be used
└── SuperviseError                    `memwarden run` itself could not do its work

`exit_code` is what the command line returns for it: 2 (wrong usage or input) unless said otherwise.

`args` are what the constructor takes, in its order, so that `type(error)(*error.args)` is the same error: so it comes
back from whatever carries errors as a class and its arguments, as Celery's results do.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class MemwardenError(Exception):
    """The root: one clear line.

    `what` went wrong, `where` it was found (a file, a variable, an option) and how to `mend` it.
    """

    exit_code = 2

    def __init__(self, what: str, where: str | None = None, mend: str | None = None) -> None:
        self.what = what
        self.where = where
        self.mend = mend
        super().__init__(what)  # an OSError takes two arguments for a number and a text
        self.args = (what, where, mend) if mend else (what, where) if where else (what,)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return _in_one_line(f"{line}; {self.mend}" if self.mend else line)


def _rebuild(cls: type[MemwardenError], args: tuple[object, ...], state: dict[str, object]) -> MemwardenError:
    """From a pickle, with whatever was added to it since."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _in_one_line(text: str) -> str:
    """Nothing that breaks the line or moves a terminal's cursor: file names and settings are foreign text."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ConfigError(MemwardenError, ValueError):
    """A setting that cannot be used; `where` names the argument, variable or file it came from."""


class UnitError(ConfigError):
    """Text that is no size, ratio or duration."""


class MissingExtraError(MemwardenError, ImportError):
    """A feature whose third party is not installed; the message names the extra to install."""

    def __init__(self, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{feature} needs an extra", mend=f"pip install 'memwarden[{extra}]'")
        self.args = feature, extra


class ProcessNotFoundError(MemwardenError):
    """No process with that pid, or it ended while it was read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        super().__init__(f"no process with pid {pid}", mend="give the pid of a running process")
        self.args = (pid,)


class NotPermittedError(MemwardenError):
    """The process or file belongs to somebody else."""


class MemoryPressureError(MemwardenError):
    """Refused because of memory: for now (`transient`), or for good (it cannot fit, or it has not eased for long).

    `usage_bytes` of `limit_bytes` were in use and `threshold` (0-1 of the limit) was the line; None is unknown.
    `retry_after_s` says when asking again makes sense, None where it does not. `holders` are the largest known ones,
    (name, bytes): whoever is refused is usually innocent. Not a MemoryError: the interpreter has not run out, and
    what answers a MemoryError (dying, most often) does not fit.
    """

    def __init__(  # noqa: PLR0917  so it is made again from its `args`
        self,
        what: str,
        usage_bytes: int | None,
        threshold: float,
        limit_bytes: int | None,
        transient: bool = True,
        retry_after_s: float | None = None,
        holders: tuple[tuple[str, int], ...] = (),
        mend: str | None = None,
    ) -> None:
        self.usage_bytes = usage_bytes
        self.threshold = threshold
        self.limit_bytes = limit_bytes
        self.transient = transient
        self.retry_after_s = retry_after_s if transient else None
        self.holders = tuple((name, size) for name, size in holders)
        super().__init__(what, mend=mend)
        self.args = what, usage_bytes, threshold, limit_bytes, transient, self.retry_after_s, self.holders, mend


class TraceError(MemwardenError):
    """A trace file that cannot be read as one; `where` names the file and the line."""


class BlackBoxError(MemwardenError):
    """A black box file that cannot be read as one."""


class PoolError(MemwardenError):
    """A pool that cannot give an object, or not take one back; `pool` is its name."""

    def __init__(self, what: str, pool: str, mend: str | None = None) -> None:
        self.pool = pool
        super().__init__(what, where=f"pool {pool!r}", mend=mend)
        self.args = what, pool, mend


class PoolTimeoutError(PoolError, TimeoutError):
    """No object came free in time. `sites` are the places that hold the most of them, (place, count)."""

    def __init__(self, what: str, pool: str, mend: str, sites: tuple[tuple[str, int], ...] = ()) -> None:
        self.sites = tuple((place, count) for place, count in sites)
        super().__init__(what, pool=pool, mend=mend)
        self.args = what, pool, mend, self.sites


class PoolClosedError(PoolError):
    """The pool was closed."""


class FactoryError(PoolError):
    """The pool's factory (`factory`, by name) raised, was not done in time (`hung`), or gave what is no new object."""

    def __init__(self, what: str, pool: str, factory: str, hung: bool = False, mend: str | None = None) -> None:
        self.factory = factory
        self.hung = hung
        super().__init__(what, pool=pool, mend=mend)
        self.args = what, pool, factory, hung, mend


class NotBorrowedError(PoolError, ValueError):
    """What was returned was never borrowed there, or was returned before (`again`)."""

    def __init__(self, what: str, pool: str, again: bool, mend: str | None = None) -> None:
        self.again = again
        super().__init__(what, pool=pool, mend=mend)
        self.args = what, pool, again, mend


class ServiceError(MemwardenError):
    """A container that cannot give a service; `key` is the service's name."""

    def __init__(self, what: str, key: str, where: str | None = None, mend: str | None = None) -> None:
        self.key = key
        super().__init__(what, where=where, mend=mend)
        self.args = what, key, where, mend


class ServiceNotFoundError(ServiceError, LookupError):
    """Nothing is registered under that key, or no condition holds."""


class ServiceFactoryError(ServiceError):
    """What makes the service raised, or could not be given what it needs; `path` leads to it from what was asked."""

    def __init__(self, what: str, key: str, path: tuple[str, ...], mend: str | None = None) -> None:
        self.path = tuple(path)
        super().__init__(what, key=key, where=" -> ".join(path), mend=mend)
        self.args = what, key, self.path, mend


class AsyncServiceError(ServiceError):
    """It is made by a coroutine, itself or through what it needs, and can only be awaited."""


class ContainerClosedError(ServiceError):
    """The container was closed."""


class CircularDependencyError(MemwardenError):
    """What is being made needs itself. `path` is the way round, its first name also its last."""

    def __init__(self, path: tuple[str, ...], mend: str | None = None) -> None:
        self.path = tuple(path)
        super().__init__(f"it needs itself: {' -> '.join(path)}", where=path[-1], mend=mend)
        self.args = self.path, mend


class FlowError(MemwardenError):
    """A stream could not go on. The error that it met is its cause."""

    exit_code = 1


class SourceError(FlowError):
    """What a stream reads from failed behind `rows` rows, or is nothing that can be read (`rows` is 0)."""

    def __init__(self, what: str, rows: int = 0, where: str | None = None, mend: str | None = None) -> None:
        self.rows = rows
        super().__init__(what, where=where, mend=mend)
        self.args = what, rows, where, mend


class HandlerError(FlowError):
    """What a stream hands its chunks to failed at the rows from `first` to `last` (counted from 0, inclusive)."""

    def __init__(  # noqa: PLR0917  as above
        self, what: str, first: int, last: int, chunk: int, attempts: int = 1, mend: str | None = None
    ) -> None:
        self.first = first
        self.last = last
        self.chunk = chunk
        self.attempts = attempts
        super().__init__(what, mend=mend)
        self.args = what, first, last, chunk, attempts, mend


class OversizeError(FlowError):
    """One row, `index` counted from 0, is larger than a chunk may be."""

    def __init__(self, what: str, index: int, size_bytes: int, target_bytes: int) -> None:
        self.index = index
        self.size_bytes = size_bytes
        self.target_bytes = target_bytes
        super().__init__(what, mend='raise the budget, or give oversize="pass" or "skip"')
        self.args = what, index, size_bytes, target_bytes


class StatementError(FlowError, ValueError):
    """A statement that cannot be read in chunks as it is; the message says what to change."""


class KeyOrderError(FlowError):
    """Keys that do not strictly increase: rows would be lost or repeated, so reading stops."""


class CheckpointError(FlowError):
    """A checkpoint that belongs to something else, or that somebody else goes on with."""

    @classmethod
    def taken(cls, name: str) -> CheckpointError:
        """Another process wrote the next version."""
        return cls(
            "another run of this name is going on; this one stops and nothing of it was kept twice",
            where=f"checkpoint {name!r}",
            mend="let one of them run, or give each a name of its own",
        )


class ChunkTimeoutError(FlowError, TimeoutError):
    """A chunk took longer than it may."""


class ChunkError(FlowError):
    """A chunk failed for good. `__cause__` is the last error; everything before this chunk is done.

    `chunk` is its id, `low` and `high` the key before it and its last key, `attempts` how often it was tried.
    """

    def __init__(  # noqa: PLR0917  as above
        self, what: str, chunk: str, low: object = None, high: object = None, rows: int = 0, attempts: int = 1,
        mend: str | None = None,
    ) -> None:  # fmt: skip
        self.chunk = chunk
        self.low = low
        self.high = high
        self.rows = rows
        self.attempts = attempts
        super().__init__(what, where=f"chunk {chunk}", mend=mend)
        self.args = what, chunk, low, high, rows, attempts, mend


class ReleasedError(FlowError):
    """A chunk was read after the next one was asked for: its rows are gone by then."""


class MemoryRefused(MemwardenError, MemoryError):  # noqa: N818  it is what a refused allocation is called everywhere here
    """The fence refused an allocation. Sizes in bytes, None where they are not known.

    `soft_bytes` is where the fence stood, `room_bytes` what could still be mapped when the exception was seen (what
    it held is given back by then), `limit_bytes` and `headroom_bytes` those of the last reading.
    """

    def __new__(cls, *args: object, **_figures: object) -> Self:
        # MemoryError's own keeps a free list and makes no subclasses by this name; Exception's does.
        return Exception.__new__(cls, *args)

    def __init__(
        self,
        what: str,
        soft_bytes: int | None = None,
        room_bytes: int | None = None,
        limit_bytes: int | None = None,
        headroom_bytes: int | None = None,
    ) -> None:
        super().__init__(
            f"memory was refused ({what})",
            where="fence",
            mend="take less at once, or raise the limit",
        )
        self.soft_bytes = soft_bytes
        self.room_bytes = room_bytes
        self.limit_bytes = limit_bytes
        self.headroom_bytes = headroom_bytes
        self.args = what, soft_bytes, room_bytes, limit_bytes, headroom_bytes


class DeliveryError(MemwardenError):
    """A channel could not deliver.

    `recoverable` says whether the same again may work later; `retry_after_s` is what the receiver asked for.
    """

    def __init__(
        self,
        what: str,
        where: str | None = None,
        mend: str | None = None,
        recoverable: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.recoverable = recoverable
        self.retry_after_s = retry_after_s
        self.args = what, where, mend, recoverable, retry_after_s


class JobError(MemwardenError):
    """A job that cannot be made, sent or run as asked."""


class StoreError(MemwardenError):
    """The store's file cannot or must not be used; `where` names it."""


class SuperviseError(MemwardenError):
    """`memwarden run` itself could not do its work."""

    exit_code = 125
