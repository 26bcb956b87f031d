"""Runs callbacks in a thread of their own, in order, so that one that hangs or raises does not stop the watch."""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from queue import SimpleQueue
    from typing import Any

# A coroutine of a callback that takes longer is let go, so that the next callbacks get their turn.
COROUTINE_S = 30.0


class Subscriber:
    """A callback that was given to a Warden, what gave it, and the event loop that ran at that moment."""

    __slots__ = ("callback", "given_to", "loop")

    def __init__(self, callback: Any, given_to: str) -> None:
        self.callback = callback
        self.given_to = given_to
        self.loop = running_loop()


class Messenger:
    """The thread; it lives until `end`."""

    def __init__(self, log: Any) -> None:
        from queue import SimpleQueue

        self._log = log
        self._queue: SimpleQueue[tuple[Subscriber, tuple[Any, ...]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="memwarden-callbacks", daemon=True)
        self._thread.start()

    def send(self, subscriber: Subscriber, words: tuple[Any, ...]) -> None:
        """Have it called with these soon."""
        self._queue.put((subscriber, words))

    def end(self) -> None:
        """End after what is still to be run."""
        self._queue.put(None)

    def stop(self) -> None:
        """Run what is still to be run, for at most five seconds, and end."""
        self.end()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            subscriber, words = message
            try:
                found = subscriber.callback(*words)
                if found is not None and hasattr(found, "__await__"):
                    _run_coroutine(found, subscriber.loop)
            except Exception:  # noqa: BLE001  a user's callback may raise anything
                self._log.exception("a callback of %s failed; the watch goes on", subscriber.given_to)
            del subscriber, words, message


def _run_coroutine(coroutine: Any, loop: Any) -> None:
    """On the event loop that was running when the callback was given, else on one of its own."""
    import asyncio

    if loop is None or not loop.is_running():
        asyncio.run(coroutine)
        return
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # it was closed just now
        coroutine.close()
        raise
    future.result(timeout=COROUTINE_S)


def running_loop() -> Any:
    """The event loop that runs in this thread; None where none does."""
    asyncio = sys.modules.get("asyncio")  # nobody runs a loop who has not imported it
    if asyncio is None:
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
