"""Prefetching: chunks are filled in the background while the last one is handled, a fixed number of them ahead.

One thread (or task) owns the source from its opening to its closing, so that nobody closes what another one reads. From
CRITICAL on it fills only what is waited for.
"""

from __future__ import annotations

import threading
from collections import deque

from memwarden.facts import Level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from typing import Any

    from memwarden.flow.cutter import Chunk

__all__ = ["ahead", "ahead_async"]

# How often a squeezed thread looks whether the squeeze is over.
_LOOK_S = 0.25
# A source that hangs in a read cannot be interrupted. Leaving the loop waits so long for it, then leaves it its thread,
# which closes it when it comes back.
_JOIN_S = 10.0


class _Ahead:
    """The thread and its queue. `fill` gives the next chunk, None at the end; only the thread calls it."""

    def __init__(
        self, fill: Callable[[], Chunk[Any] | None], close: Callable[[], object], depth: int, level: Callable[[], Level]
    ) -> None:
        self._fill = fill
        self._close = close
        self._depth = depth
        self._level = level
        self._state = threading.Condition()
        self._queue: deque[Chunk[Any] | BaseException | None] = deque()
        self._waiting = False
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="memwarden-prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            while self._may_fill():
                chunk = self._fill()
                self._put(chunk)
                if chunk is None:
                    break
                del chunk  # whoever takes it is the only one to hold it
        except BaseException as failure:  # noqa: BLE001  it is raised where the chunk is waited for
            error = failure
        try:
            self._close()
        except BaseException as failure:  # noqa: BLE001  as above; the first one says more
            error = error or failure
        if error is not None:
            self._put(error)

    def _may_fill(self) -> bool:
        with self._state:
            while not self._stopped:
                squeezed = self._level() >= Level.CRITICAL
                if len(self._queue) < self._depth and (self._waiting or not squeezed):
                    return True
                self._state.wait(_LOOK_S if squeezed else None)
        return False

    def _put(self, item: Chunk[Any] | BaseException | None) -> None:
        with self._state:
            self._queue.append(item)
            self._waiting = False
            self._state.notify_all()

    def take(self) -> Chunk[Any] | None:
        """The next chunk, waited for."""
        with self._state:
            while not self._queue:
                self._waiting = True
                self._state.notify_all()
                self._state.wait()
            item = self._queue.popleft()
            self._state.notify_all()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """Ask it to end."""
        with self._state:
            self._stopped = True
            self._queue.clear()
            self._state.notify_all()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            import warnings

            warnings.warn("a source hangs in a read; its prefetch thread is left behind", ResourceWarning, stacklevel=2)


def ahead(
    fill: Callable[[], Chunk[Any] | None],
    close: Callable[[], object],
    let_go: Callable[[Chunk[Any]], object],
    finish: Callable[[], object],
    *,
    depth: int,
    level: Callable[[], Level],
) -> Generator[Chunk[Any], None, None]:
    """The chunks that `fill` gives, so many of them ready or in the making while one is handled."""
    thread = _Ahead(fill, close, depth, level)
    try:
        while (chunk := thread.take()) is not None:
            yield chunk
            let_go(chunk)
            del chunk
    finally:
        thread.stop()
        finish()
        thread.join()


async def ahead_async(
    fill: Callable[[], Awaitable[Chunk[Any] | None]],
    close: Callable[[], Awaitable[object]],
    let_go: Callable[[Chunk[Any]], object],
    finish: Callable[[], object],
    *,
    depth: int,
    level: Callable[[], Level],
) -> AsyncGenerator[Chunk[Any], None]:
    """The same with a task."""
    import asyncio

    queue: asyncio.Queue[Chunk[Any] | BaseException | None] = asyncio.Queue()
    slots, wanted = asyncio.Semaphore(depth), asyncio.Event()

    async def work() -> None:
        try:
            while True:
                await slots.acquire()
                # Two things may end it, and the level has no event.
                while level() >= Level.CRITICAL and not wanted.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
                chunk = await fill()
                queue.put_nowait(chunk)
                wanted.clear()
                if chunk is None:
                    return
                del chunk
        except Exception as error:  # noqa: BLE001  it is raised where the chunk is waited for
            queue.put_nowait(error)

    task = asyncio.ensure_future(work())
    try:
        while True:
            if queue.empty():
                wanted.set()
            chunk = await queue.get()
            slots.release()
            if isinstance(chunk, BaseException):
                raise chunk
            if chunk is None:
                break
            yield chunk
            let_go(chunk)
            del chunk
    finally:
        task.cancel()
        finish()
        try:
            await asyncio.gather(task, return_exceptions=True)
        finally:
            await close()
