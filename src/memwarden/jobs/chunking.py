"""`process_in_chunks`: any iterable or query through a function, chunk by chunk, inside a job or without one."""

from __future__ import annotations

import os

from memwarden.errors import ConfigError, JobError, MemoryPressureError
from memwarden.jobs import plan
from memwarden.jobs.guard import Guard
from memwarden.jobs.profiles import CHUNK, whole
from memwarden.jobs.run import current
from memwarden.jobs.sources import is_query
from memwarden.units import format_bytes, parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["process_in_chunks", "should_split", "split"]

# As in a job: a chunk takes at most this part of the limit.
_PART = 8


def process_in_chunks(
    data: Any, function: Callable[[list[Any]], Any], size: int = CHUNK, *, limit: str | int | None = None,
    name: str = "process_in_chunks",
) -> Iterator[Any]:  # fmt: skip
    """What `function` gives for each chunk of `data`, one after the other, nothing of it kept.

    `data` is whatever `flow.chunks` reads (an iterable, a generator, a file, a cursor), or a statement and its engine
    (a tuple). A chunk has at most `size` items and an eighth of the limit. Before each there is a safe point: at 80 %
    of the limit it is collected, where that paid the last time. At the limit the job around it stops and goes on in a
    fresh process; without a job a MemoryPressureError says how far it came. The limit is the job's, else `limit`, else
    the setting `job_limit`.
    """
    whole(size, "size")
    if not callable(function):
        raise ConfigError(f"{function!r} is no function", where="process_in_chunks", mend="give a function of a chunk")
    try:
        run = current()
    except JobError:
        run = None
    if run is None:
        guard = Guard(name, _limit(limit))
        guard.enter()
    else:
        guard = run.guard
    return _results(data, function, size, guard, None if run is None else run.check)


def _limit(limit: str | int | None) -> int:
    if limit is not None:
        return parse_bytes(limit, where="limit")
    from memwarden.config import settle

    return settle(environ=os.environ).config.job_limit_bytes


def _results(
    data: Any, function: Callable[[list[Any]], Any], size: int, guard: Guard, check: Callable[[str], None] | None
) -> Iterator[Any]:
    done = 0
    chunks = _chunks(data, size, guard.limit_bytes // _PART)
    try:
        for chunk in chunks:
            count = len(chunk)
            yield function(chunk)
            done += count
            del chunk
            if check is not None:
                check("chunk")
            elif guard.check("chunk"):
                raise MemoryPressureError(
                    f"{format_bytes(guard.current_bytes)} of {format_bytes(guard.limit_bytes)} are in use behind "
                    f"{done} items",
                    usage_bytes=guard.current_bytes, threshold=1.0, limit_bytes=guard.limit_bytes, transient=False,
                    mend="let go of results, or make it a job, which goes on in a fresh process",
                )  # fmt: skip
    finally:
        chunks.close()
        if check is None:
            guard.exit()


def _chunks(data: Any, size: int, budget_bytes: int) -> Any:
    if is_query(data):
        from memwarden.flow.database import scan

        return scan(data[0], data[1], rows=size, budget=budget_bytes).chunks()
    from memwarden.flow import chunks

    return (chunk for chunk in chunks(data, rows=size, budget=budget_bytes))


def should_split(count: int, bytes_per_item: str | float, *, limit: str | int | None = None) -> bool:
    """Whether so many items, each of which keeps so many bytes ("2M") until the job ends, do not fit into the limit.

    The limit is that of the job around it, beside what its process held at its start; else `limit`, else `job_limit`.
    """
    if isinstance(bytes_per_item, str):
        bytes_per_item = parse_bytes(bytes_per_item, where="bytes_per_item")
    try:
        guard = current().guard
    except JobError:
        return plan.should_split(count, bytes_per_item, limit_bytes=_limit(limit))
    size = guard.limit_bytes if limit is None else _limit(limit)
    return plan.should_split(count, bytes_per_item, limit_bytes=size, base_bytes=guard.base_bytes or 0)


def split(items: int | None = None) -> bool:
    """Have the rest of the running job cut into parts of so many items (None: halves) behind the chunk in hand.

    False where it will not be: splitting is switched off for the job, its type, or all. Raises JobError outside of a
    job, and in one without items.
    """
    return current().split(items)
