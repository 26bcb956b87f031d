"""A way to a broker that a test can cut: what a broken network does, on any broker."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


class Proxy:
    """Hands bytes on between whoever connects and the server of a URL; `url` is the same by this way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or {"redis": 6379}.get(parts.scheme, 5672))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        credentials = parts.netloc.rpartition("@")[0]
        self.url = parts._replace(netloc=f"{credentials + '@' if credentials else ''}127.0.0.1:{self.port}").geturl()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._orders: list[str] = []
        self._away = False
        self._obeyed = threading.Semaphore(0)
        self.broken = 0  # connections, so far
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _order(self, what: str) -> None:
        self._orders.append(what)
        self._wake.send(b".")
        assert self._obeyed.acquire(timeout=10)

    def cut(self) -> int:
        """Break every connection, and how many there were; new ones are let through."""
        before = self.broken
        self._order("cut")
        return self.broken - before

    def away(self) -> None:
        """Break every connection, and refuse new ones."""
        self._order("away")

    def back(self) -> None:
        """Let new ones through again."""
        self._order("back")

    def close(self) -> None:
        """No more."""
        self._order("close")
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is self._woken:
                    self._woken.recv(64)
                    while self._orders:
                        is_over = self._obey(self._orders.pop(0))
                        self._obeyed.release()
                        if is_over:
                            return
                elif connection is self._listening:
                    self._accept()
                elif connection in self._pairs:
                    self._hand_on(connection)

    def _obey(self, what: str) -> bool:
        if what == "back":
            self._away = False
            return False
        self._away = what == "away"
        self.broken += len(self._pairs) // 2
        for connection in list(self._pairs):
            self._drop(connection)
        if what == "close":
            self._selector.close()
            for each in (self._listening, self._wake, self._woken):
                each.close()
        return what == "close"

    def _accept(self) -> None:
        one, _ = self._listening.accept()
        if self._away:
            one.close()
            return
        try:
            other = socket.create_connection(self._target, timeout=5)
        except OSError:
            one.close()
            return
        for each, its in ((one, other), (other, one)):
            self._pairs[each] = its
            self._selector.register(each, selectors.EVENT_READ)

    def _hand_on(self, connection: socket.socket) -> None:
        try:
            text = connection.recv(65536)
            if text:
                self._pairs[connection].sendall(text)
                return
        except OSError:
            pass
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        other = self._pairs.get(connection)
        for each in (connection, other):
            if each is not None and self._pairs.pop(each, None) is not None:
                self._selector.unregister(each)
                each.close()


@contextlib.contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """It runs meanwhile."""
    made = Proxy(url)
    try:
        yield made
    finally:
        made.close()
