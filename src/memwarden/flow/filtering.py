"""`flow.filtered`: rows that satisfy every predicate, one by one, nothing materialised, and no row read too many."""

from __future__ import annotations

from memwarden.errors import ConfigError, HandlerError
from memwarden.flow.chunked import check_count, check_policies, chunks
from memwarden.flow.mapping import DeadLetter, keep_letter
from memwarden.flow.sources import is_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

__all__ = ["Filtered", "filtered"]


class Filtered:
    """What `filtered` gives: iterate over it, with `for` or `async for`.

    `seen` rows were read and `passed` handed out by the last run; `dead` are rows that a predicate failed at.
    """

    def __init__(
        self,
        source: Any,
        predicates: tuple[Callable[[Any], Any], ...],
        *,
        limit: int | None,
        until: Callable[[Any], Any] | None,
        on_error: tuple[str, ...],
        dead: list[DeadLetter] | None = None,
    ) -> None:
        self._source = source
        self._predicates = predicates
        self._limit = limit
        self._until = until
        self._on_error = on_error
        self.seen = 0
        self.passed = 0
        self.dead: list[DeadLetter] = [] if dead is None else dead

    def __iter__(self) -> Iterator[Any]:
        self.seen = self.passed = 0
        if self._limit == 0:
            return
        rows = iter(self._source)
        try:
            for row in rows:
                self.seen += 1
                try:
                    over = self._until is not None and self._until(row)
                    good = not over and all(predicate(row) for predicate in self._predicates)
                except Exception as error:  # noqa: BLE001  a predicate may raise anything; the policy decides
                    self._failed(error)
                    continue
                if over:
                    break
                if good:
                    self.passed += 1
                    yield row
                    if self.passed == self._limit:
                        break
        finally:
            close = getattr(rows, "close", None)
            if close is not None:
                close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.seen = self.passed = 0
        if self._limit == 0:
            return
        rows = aiter(self._source) if hasattr(self._source, "__aiter__") else _awaited(iter(self._source))
        try:
            async for row in rows:
                self.seen += 1
                try:
                    over = self._until is not None and await _answer(self._until(row))
                    good = not over and await self._all(row)
                except Exception as error:  # noqa: BLE001  as above
                    self._failed(error)
                    continue
                if over:
                    break
                if good:
                    self.passed += 1
                    yield row
                    if self.passed == self._limit:
                        break
        finally:
            close = getattr(rows, "aclose", None)
            if close is not None:
                await close()

    async def _all(self, row: Any) -> bool:
        for predicate in self._predicates:
            if not await _answer(predicate(row)):
                return False
        return True

    def _failed(self, error: Exception) -> None:
        row = self.seen - 1
        if "continue" in self._on_error:
            text = f"{type(error).__name__}: {error}"[:500]
            keep_letter(self.dead, DeadLetter(chunk=-1, first=row, last=row, error=text, attempts=1))
            return
        what = f"a predicate failed at row {row}: {type(error).__name__}: {error}"
        raise HandlerError(
            what, first=row, last=row, chunk=-1, mend='on_error="continue" leaves such rows out'
        ) from error


async def _answer(found: Any) -> Any:
    return await found if hasattr(found, "__await__") else found


async def _awaited(rows: Iterator[Any]) -> AsyncIterator[Any]:
    try:
        for row in rows:
            yield row
    finally:
        close = getattr(rows, "close", None)
        if close is not None:
            close()


class _Flat:
    """The rows of chunks."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._found:
            yield from chunk

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for chunk in self._found:
            for row in chunk:
                yield row


def filtered(
    source: Any,
    *predicates: Callable[[Any], Any],
    limit: int | None = None,
    until: Callable[[Any], Any] | None = None,
    on_error: str = "stop",
    parallel: int = 1,
    processes: bool = False,
    **options: Any,
) -> Filtered:
    """The rows of a source for which every predicate is true, in order; coroutine functions too under `async for`.

    It stops after `limit` rows, or before the first row for which `until` is true, and then nothing more is read from
    the source, which is closed. A plain iterable is read row by row. With any further option it is read as by
    `chunks`, which takes the same ones (budget, prefetch, cache, ...), and so are paths and cursors; then up to a
    chunk is read ahead. With `parallel` the predicates are called in that many threads (or `processes`), not `until`.

    A predicate that raises is a HandlerError that names the row; on_error="continue" leaves the row out (`dead`).
    """
    wrong = next((each for each in (*predicates, until) if each is not None and not callable(each)), None)
    if wrong is not None:
        what = f"a {type(wrong).__name__} is no predicate"
        raise ConfigError(what, where="filtered", mend="give functions that take a row")
    if limit is not None:
        check_count(limit, "limit", 0)
    check_policies((on_error,))
    pathlike = isinstance(source, str) or hasattr(source, "__fspath__") or hasattr(source, "fetchmany")
    rows, dead = source, None
    if parallel > 1 or processes:
        stream = chunks(source, parallel=parallel, processes=processes, on_error=on_error, **options)
        dead = stream.dead
        rows, predicates = _Flat(stream.map(_Keep(predicates), on_error=_bisecting(on_error))), ()
    elif options or pathlike:
        rows = _Flat(chunks(source, **options))
    elif not hasattr(source, "__iter__") and not is_async(source):
        raise ConfigError(f"a {type(source).__name__} is no source of rows", where="source", mend="give an iterable")
    return Filtered(rows, predicates, limit=limit, until=until, on_error=(on_error,), dead=dead)


def _bisecting(on_error: str) -> str:
    """A row that a predicate fails at is found among those of its chunk."""
    return "bisect" if on_error == "continue" else on_error


class _Keep:
    """Filters a chunk; picklable where the predicates are."""

    def __init__(self, predicates: tuple[Callable[[Any], Any], ...]) -> None:
        self._predicates = predicates

    def __call__(self, chunk: Any) -> list[Any]:
        return [row for row in chunk if all(predicate(row) for predicate in self._predicates)]
