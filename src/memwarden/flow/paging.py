"""`flow.lazy`: the rows behind a function that fetches a page, as if they were all there, the next page on its way.

Pages are fetched as they are needed, in the background where `prefetch` says so, all of them within the budget. A
page has `batch` rows; fewer where rows turn out so wide that a page would be a large part of the budget.
"""

from __future__ import annotations

from memwarden.errors import ConfigError, SourceError
from memwarden.flow.chunked import Chunks, check_count, chunks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

    from memwarden.budget import Budget
    from memwarden.flow.mapping import DeadLetter
    from memwarden.ports import Clock, Pressure

__all__ = ["Lazy", "lazy"]


class Pages:
    """A source for `chunks`: the function, how it is asked, and where it stands. Each run opens it anew."""

    def __init__(self, fetch: Callable[..., Any], by: str, start: Any) -> None:
        self.fetch = fetch
        self.by = by
        self.start = start

    def open(self) -> _Pages:
        """From the start."""
        return _Pages(self)

    def open_async(self) -> _AsyncPages:
        """The same, awaited."""
        return _AsyncPages(self)


class _Pages:
    """Reads pages. A failed fetch left it where it was."""

    batches = False
    survives = True

    def __init__(self, pages: Pages) -> None:
        self._fetch = pages.fetch
        self._by_offset = pages.by == "offset"
        self._at: Any = (pages.start or 0) if self._by_offset else pages.start
        self._over = False

    def read(self, rows: int, into: list[Any]) -> bool:
        if self._over:
            return False
        answer = self._fetch(self._at, rows)
        if hasattr(answer, "__await__"):
            answer.close()
            raise ConfigError("it is a coroutine function", where="fetch", mend="write `async for` over it")
        return self._took(answer, rows, into)

    def _took(self, answer: Any, rows: int, into: list[Any]) -> bool:
        if self._by_offset:
            page = _page_of(answer)
            self._at += len(page)
        else:
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise ConfigError(
                    f"it gave a {type(answer).__name__}",
                    where="fetch",
                    mend='with by="cursor" give (rows, next cursor)',
                )
            page, after = _page_of(answer[0]), answer[1]
            if after is not None and after == self._at:
                raise SourceError(
                    f"the cursor {after!r} leads to itself", where="fetch", mend="give the next one, or None"
                )
            self._at, self._over = after, after is None
            into += page
            return not self._over
        into += page
        return bool(page)

    def skip(self, rows: int) -> tuple[int, int] | None:
        """Leave out the page that fails; its first and last row, None where that cannot be done."""
        if not self._by_offset:
            return None
        first = self._at
        self._at += rows
        return first, first + rows - 1

    def close(self) -> None:
        """There is nothing to close."""


class _AsyncPages(_Pages):
    async def read(self, rows: int, into: list[Any]) -> bool:  # type: ignore[override]  # the asynchronous twin
        if self._over:
            return False
        answer = self._fetch(self._at, rows)
        if hasattr(answer, "__await__"):
            answer = await answer
        return self._took(answer, rows, into)

    async def close(self) -> None:  # type: ignore[override]  # the asynchronous twin
        """There is nothing to close."""


def _page_of(answer: Any) -> list[Any]:
    if isinstance(answer, (str, bytes, dict)) or not hasattr(answer, "__iter__"):
        raise ConfigError(f"it gave a {type(answer).__name__}", where="fetch", mend="give a list of rows")
    return list(answer)


class Lazy:
    """What `lazy` gives: iterate over its rows, with `for` or `async for`. `dead` are pages that were left out."""

    def __init__(self, source: Chunks) -> None:
        self._chunks = source
        self.dead: list[DeadLetter] = source.dead

    @property
    def held_bytes(self) -> int:
        """What it holds in the budget now."""
        return self._chunks.held_bytes

    def __iter__(self) -> Iterator[Any]:
        found = self._chunks.pages()
        try:
            for chunk in found:
                yield from chunk
        finally:
            found.close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        found = self._chunks.pages_async()
        try:
            async for chunk in found:
                for row in chunk:
                    yield row
        finally:
            await found.aclose()


def lazy(
    fetch: Callable[..., Any],
    *,
    by: str = "offset",
    start: Any = None,
    batch: int = 500,
    budget: str | float | Budget = "128M",
    prefetch: int = 1,
    cache: Any = None,
    on_error: str | tuple[str, ...] = "stop",
    retries: int = 3,
    backoff: float | str = 0.1,
    pressure: Pressure | None = None,
    name: str = "lazy",
    clock: Clock | None = None,
) -> Lazy:
    """The rows behind `fetch`, one by one, read in pages of `batch` of them, `prefetch` pages ahead.

    With by="offset" it is called as fetch(offset, limit) and gives rows; an empty page is the end (a short one is
    not). With by="cursor" it is called as fetch(cursor, limit) and gives (rows, next cursor); None is the end, and
    `start` the first cursor. A coroutine function is read with `async for`.

    `on_error`: "stop" (SourceError), "retry" (the same page again, `retries` times, `backoff` seconds apart, doubled
    each time), "continue" (the page is left out; by offset only). Parallel work over it: `chunks(lazy(...)).map(...)`.
    """
    if by not in ("offset", "cursor"):
        raise ConfigError(f"{by!r} is no way of paging", where="by", mend='give "offset" or "cursor"')
    if not callable(fetch):
        raise ConfigError(
            f"a {type(fetch).__name__} is no function", where="fetch", mend="give one that fetches a page"
        )
    check_count(batch, "batch", 1)
    return Lazy(
        chunks(
            Pages(fetch, by, start), budget=budget, rows=batch, prefetch=prefetch, cache=cache, on_error=on_error,
            retries=retries, backoff=backoff, pressure=pressure, name=name, clock=clock, page_rows=batch,
            whole_pages=True,
        )
    )  # fmt: skip
