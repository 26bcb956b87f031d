"""A function over a large input, chunk by chunk, on Dask's workers: ranges of keys are sent, and no rows.

    with Client(...) as client:
        for result in map_chunks(client, count_words, lambda: "/data/lines.txt", chunk=10_000, limit="256M"):
            ...

Results come one after the other in the order of the keys, whoever was done first. As many ranges are on their way as
fit into the workers' memory, `limit` each, so neither this process nor a worker ever holds more; a range whose items
take more than that is handed to the function in several chunks. A worker that dies gives its ranges to another one.

What is not here: a ledger. What a function writes elsewhere may be written twice when its worker dies (Dask cannot
know how far it came); what it returns comes once. For exactly once, and for what goes on after this process has ended,
use @job.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from memwarden.errors import ConfigError, JobError, MissingExtraError
from memwarden.flow.sizing import Sizer
from memwarden.jobs.profiles import whole
from memwarden.jobs.sources import source_of
from memwarden.sense import Machine
from memwarden.units import format_bytes, parse_bytes

try:
    from distributed import Client, KilledWorker, get_worker, wait
except ImportError as error:
    raise MissingExtraError("chunk maps on Dask", "dask") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["map_chunks"]

# Dask's worker spills and pauses from here on; what is planned stays below (distributed.worker.memory.target).
FILL = 0.6
# The items of a chunk take at most this part of the limit: what a function makes of them is a multiple (as for jobs).
CHUNK_PART = 8
# Ranges that wait at the workers for each that is worked on, so that none is idle for a round trip.
AHEAD = 2


def map_chunks(
    client: Any,
    function: Callable[..., Any],
    items: Callable[..., Any],
    *,
    chunk: int,
    limit: str | int = "256M",
    retries: int = 3,
    in_flight: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """`function(chunk, **arguments)` for each chunk of at most so many items, its results in the order of the keys.

    `items(**arguments)` gives the input, here and in each worker: a sequence, the path of a file with lines, a
    `jobs.Rows`, or any Splittable. `limit` is what one range may take in a worker; a worker works on as many at once
    as fit into its memory limit. `in_flight` bounds the ranges on their way; None is what fits into all workers, and
    as many again that wait. A function that raises is tried again `retries` times.

    Raises ConfigError and JobError for what cannot be used, before anything is sent; then what the function raises, or
    JobError where a range kills its workers. Closing the iterator cancels what is on its way.
    """
    if not isinstance(client, Client) or client.asynchronous:
        raise ConfigError(f"is a {type(client).__name__}", where="client", mend="give a distributed.Client, not async")
    given = dict(arguments or {})
    whole(chunk, "chunk")
    whole(retries, "retries", least=0)
    limit_bytes = parse_bytes(limit, where="limit")
    window = whole(in_flight, "in_flight") if in_flight is not None else _window(client, limit_bytes)
    source = source_of(items(**given), job=getattr(function, "__name__", "function"))
    return _mapped(
        client, function=function, items=items, given=given, chunk=chunk, limit_bytes=limit_bytes, retries=retries,
        window=window, source=source,
    )  # fmt: skip


def _window(client: Any, limit_bytes: int) -> int:
    """How many ranges fit into the memory of all workers, and as many ahead. Raises ConfigError where none does."""
    room = 0
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError("has no workers", where="client", mend="start some, or wait for them (wait_for_workers)")
    for each in workers.values():
        fits = each["nthreads"] if not each["memory_limit"] else int(each["memory_limit"] * FILL) // limit_bytes
        room += min(each["nthreads"], fits)
    if room == 0:
        most = max(each["memory_limit"] for each in workers.values())
        raise ConfigError(
            f"{format_bytes(limit_bytes)} do not fit into {FILL:.0%} of any worker's memory limit (at most "
            f"{format_bytes(most)})", where="limit", mend="lower it, or give the workers more (--memory-limit)",
        )  # fmt: skip
    return room * AHEAD


def _mapped(
    client: Any, *, function: Callable[..., Any], items: Callable[..., Any], given: dict[str, Any], chunk: int,
    limit_bytes: int, retries: int, window: int, source: Any,
) -> Iterator[Any]:  # fmt: skip
    sent: deque[tuple[str | None, str | None, Any]] = deque()
    keys = source.cut(None, None, chunk)
    low: str | None = None
    ended = False
    name = f"memwarden-{getattr(function, '__name__', 'chunk')}-{secrets.token_hex(6)}"

    def send(low: str | None, high: str | None, suffix: str = "") -> Any:
        return client.submit(
            _range, low, high, function=function, items=items, given=given, chunk=chunk, limit_bytes=limit_bytes,
            pure=False, retries=retries, key=f"{name}-{low}{suffix}",
        )  # fmt: skip

    try:
        while sent or not ended:
            while not ended and len(sent) < window:
                high = next(keys, None)
                ended = high is None
                sent.append((low, high, send(low, high)))
                low = high
            first, last, future = sent.popleft()
            where = f"items behind {first or 'the start'} up to {last or 'the end'}"
            try:
                found = _result(future, where)
            except KilledWorker:
                # Dask counts a death against all that the worker had. Alone it shows who it was.
                wait([each for _, _, each in sent])  # type: ignore[no-untyped-call]  # Dask's
                found = _result_alone(send(first, last, "-alone"), where)
            yield from found
    finally:
        client.cancel([future for _, _, future in sent])
        close = getattr(keys, "close", None)
        if close is not None:
            close()


def _result(future: Any, where: str) -> list[Any]:
    try:
        found: list[Any] = future.result()
    except KilledWorker:
        raise
    except Exception as error:
        error.add_note(f"memwarden: at the {where}")
        raise
    finally:
        future.release()
    return found


def _result_alone(future: Any, where: str) -> list[Any]:
    try:
        return _result(future, where)
    except KilledWorker as error:
        raise JobError(
            f"killed every worker that tried them ({error})", where=where,
            mend="raise the workers' memory limit, or lower chunk",
        ) from error  # fmt: skip


# --- in a worker ---------------------------------------------------------------------------------------------------


class _Room:
    """How many ranges this worker process may have at once, by its memory limit: decided by the first."""

    lock = threading.Lock()
    slots: threading.Semaphore | None = None


def _slots(limit_bytes: int) -> threading.Semaphore:
    with _Room.lock:
        if _Room.slots is None:
            most = get_worker().memory_manager.memory_limit
            _Room.slots = threading.Semaphore(max(1, int(most * FILL) // limit_bytes) if most else 1 << 16)
        return _Room.slots


def _range(
    low: str | None, high: str | None, *, function: Callable[..., Any], items: Callable[..., Any],
    given: dict[str, Any], chunk: int, limit_bytes: int,
) -> list[Any]:  # fmt: skip
    """The results of one range's chunks; usually one."""
    with _slots(limit_bytes):
        source = source_of(items(**given), job=getattr(function, "__name__", "function"))
        sizer, size = Sizer(), 0
        results: list[Any] = []
        held: list[Any] = []
        pairs = source.read(low, high)
        try:
            for _, item in pairs:
                its_size = sizer(item)
                if held and (len(held) >= chunk or size + its_size > limit_bytes // CHUNK_PART):
                    results.append(function(held, **given))
                    held, size = [], 0
                held.append(item)
                size += its_size
            if held:
                results.append(function(held, **given))
        finally:
            close = getattr(pairs, "close", None)
            if close is not None:
                close()
        del held
        Machine().trim()  # what a range took goes back before the next one is judged by it
        return results
