"""A loop over items that stops before the limit and keeps what is done (row B3).

It looks before it takes an item, so that nothing is lost: what was not done is still in the iterator. It stops where
the breaker refuses, and where one more step as large as the largest seen would pass the limit.
"""

from __future__ import annotations

from itertools import chain

from memwarden.errors import MemoryPressureError
from memwarden.facts import Fact
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

    from memwarden.act.breaker import Circuit
    from memwarden.act.gauge import View

_END = object()


class Partial(Fact):
    """What a guarded loop did: `done` items with their `results`, what is `left`, and `why` it stopped.

    `left` iterates over what was not done, `left_count` says how many where that is known. `why` is None where all
    was done, else a MemoryPressureError, or the MemoryError that an item ended with: that item is left too.
    """

    done: int
    results: list[Any]
    left: Any  # an iterator; of `guard_async` an asynchronous one
    left_count: int | None
    why: MemoryPressureError | MemoryError | None = None

    def __repr__(self) -> str:
        """Without the results: asyncio.run asks for it (3.11), and the text of 100 MiB is 400 MiB more."""
        return f"<Partial: {self.done} done, {self.left_count} left, why={self.why!r}>"

    @property
    def complete(self) -> bool:
        """Whether everything was done."""
        return self.why is None


class _Steps:
    """The largest growth from one view to the next while a loop runs."""

    def __init__(self) -> None:
        self._last: View | None = None
        self._largest_bytes = 0

    def no_room_for_another(self, view: View) -> str:
        """Why the next step may pass the limit; empty where it would not."""
        used, limit = view.used_bytes, view.limit_bytes
        if used is None or limit is None:
            return ""
        if self._last is not view:
            before = self._last.used_bytes if self._last is not None else None
            self._last = view
            self._largest_bytes = max(self._largest_bytes, used - (used if before is None else before))
        if view.forced or self._largest_bytes <= 0 or used + self._largest_bytes <= limit:
            return ""
        step, rest = format_bytes(self._largest_bytes), format_bytes(max(0, limit - used))
        return f"the next step may take {step} as one before did, and only {rest} of {format_bytes(limit)} are left"


class Loop:
    """The state of one guarded loop, whichever way it is driven."""

    def __init__(self, circuit: Circuit, items: Any) -> None:
        self.circuit = circuit
        self.results: list[Any] = []
        self.why: MemoryPressureError | MemoryError | None = None
        self._steps = _Steps()
        self._total = len(items) if hasattr(items, "__len__") else None

    def may_go_on(self) -> bool:
        """Look before the next item is taken."""
        try:
            self.circuit.check_closely()
        except MemoryPressureError as error:
            self.why = error
        return self._has_room()

    async def may_go_on_async(self) -> bool:
        """The same; relieving is waited for while the event loop goes on."""
        try:
            await self.circuit.check_closely_async()
        except MemoryPressureError as error:
            self.why = error
        return self._has_room()

    def _has_room(self) -> bool:
        if self.why is None:
            reason = self._steps.no_room_for_another(self.circuit.view)
            if reason:
                self.why = self.circuit.refusal(reason)
        return self.why is None

    def partial(self, left: Any) -> Partial:
        """The end."""
        done = len(self.results)
        count = 0 if self.why is None else None if self._total is None else max(0, self._total - done)
        return Partial(done=done, results=self.results, left=left, left_count=count, why=self.why)


def run(circuit: Circuit, items: Any, function: Callable[[Any], Any] | None) -> Partial:
    """Take item after item, or call the function with each."""
    loop, source = Loop(circuit, items), iter(items)
    left: Iterator[Any] = source
    item: Any = _END
    try:
        while loop.may_go_on():
            item = next(source, _END)
            if item is _END:
                break
            loop.results.append(item if function is None else function(item))
            item = _END
    except (MemoryError, MemoryPressureError) as error:
        loop.why = error
        left = source if item is _END else chain((item,), source)
    return loop.partial(left)


async def run_async(circuit: Circuit, items: Any, function: Callable[[Any], Any] | None) -> Partial:
    """The same over a plain or an asynchronous iterable, with a plain or a coroutine function.

    Other tasks have their turn after every item.
    """
    import asyncio

    loop = Loop(circuit, items)
    source = aiter(items) if hasattr(items, "__aiter__") else _in_async(iter(items))
    left: AsyncIterator[Any] = source
    item: Any = _END
    try:
        while await loop.may_go_on_async():
            item = await anext(source, _END)
            if item is _END:
                break
            found = item if function is None else function(item)
            loop.results.append(await found if hasattr(found, "__await__") else found)
            item = _END
            await asyncio.sleep(0)
    except (MemoryError, MemoryPressureError) as error:
        loop.why = error
        left = source if item is _END else _chain_async(item, source)
    return loop.partial(left)


class _in_async:  # noqa: N801  reads as a conversion
    """A plain iterator as an asynchronous one. Not a generator: an error of the iterator must not end it."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source

    def __aiter__(self) -> _in_async:
        return self

    async def __anext__(self) -> Any:
        item = next(self._source, _END)
        if item is _END:
            raise StopAsyncIteration
        return item


async def _chain_async(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item
