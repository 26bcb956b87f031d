"""Whatever comes back from a receiver: a yes or a DeliveryError of one line, in bounded time, and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import DeliveryError
from memwarden.tell.channels import build
from tests.tell.channels.conftest import WHERE, notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memwarden.ports import Channel

EXAMPLES = 3000 if os.environ.get("MEMWARDEN_SOAK") else 40
PIECES = st.sampled_from([
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 429 Slow\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 503\r\n", b"HTTP/9.9 999 \r\n",
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-5\r\n",
    b"Retry-After: 1\r\n", b"Retry-After: \xff\r\n", b"Retry-After: Fri, 31 Dec 99999 23:59:59 GMT\r\n",
    b"Connection: close\r\n", b"Location: http://x/\r\n", b"\r\n", b"\n",
    b" folded\r\n", b":\r\n", b"a" * 3000 + b"\r\n",
    b"220 hi\r\n", b"220-hi\r\n", b"250 ok\r\n", b"250-SIZE 1\r\n250 AUTH PLAIN\r\n", b"354 go\r\n",
    b"421 no\r\n", b"535 no\r\n",
    b"550 no\r\n", b"abc\r\n", b"25\r\n", b"-1 x\r\n", b'{"ok": false}', b"[[[[[[", b"\0\0\0",
])  # fmt: skip
ANSWERS = st.lists(PIECES | st.binary(max_size=40), max_size=14)


class Parrot:
    """Says the given bytes to whoever connects, a piece for each thing it hears, and hangs up."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.pieces: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._ended = False
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            connection, _ = self._listening.accept()
            with connection:
                connection.settimeout(0.02)
                try:
                    for piece in self.pieces:
                        connection.sendall(piece)
                        try:
                            connection.recv(65536)
                        except TimeoutError:
                            continue
                except OSError:
                    continue

    def close(self) -> None:
        self._ended = True
        socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        self._thread.join(30)
        self._listening.close()


@pytest.fixture(scope="module")
def parrot() -> Iterator[Parrot]:
    found = Parrot()
    yield found
    found.close()


def channel_to(kind: str, port: int) -> Channel:
    tables: dict[str, dict[str, Any]] = {
        "slack": {"url": f"http://127.0.0.1:{port}/x"},
        "smtp": {"host": "127.0.0.1", "port": port, "security": "none", "from": "w@example.org",
                 "to": ["a@example.org", "b@example.org"], "username": "u", "password_env": "P"},
    }  # fmt: skip
    (found,) = build({"ops": {"kind": kind, **tables[kind]}}, where=WHERE, environ={"P": "secret"})
    return found.channel


@pytest.mark.parametrize("kind", ["slack", "smtp"])
def test_any_answer_is_a_yes_or_an_error_of_ours(kind: str, parrot: Parrot) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ANSWERS)
    def check(pieces: list[bytes]) -> None:
        parrot.pieces = pieces
        channel = channel_to(kind, parrot.port)
        try:
            channel.send([notice()], timeout_s=5)
        except DeliveryError as error:
            said = error
        else:
            return
        finally:
            channel.close()
        assert "\n" not in str(said)
        assert len(str(said)) < 2000
        assert said.retry_after_s is None or 0 <= said.retry_after_s <= 86_400

    check()
