"""Redis and RabbitMQ for the tests: those of MEMWARDEN_TEST_REDIS and MEMWARDEN_TEST_AMQP, or private ones.

Private ones listen on free ports of the loopback, keep everything in a folder of their own, and are ended by pid.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Read when this is imported: the fixture that keeps settings of the user's out of the tests takes them away.
GIVEN = {"redis": os.environ.get("MEMWARDEN_TEST_REDIS"), "amqp": os.environ.get("MEMWARDEN_TEST_AMQP")}
START_S = 90.0


class Broker:
    """A running server: its URL, and the process where it is a private one."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None, again: Callable[[], object] | None) -> None:
        self.url = url
        self.process = process
        self._again = again

    def restart(self) -> None:
        """Kill it and start it anew on the same port, with what it had on its disk."""
        if self._again is None:
            pytest.skip("a broker that was given is not restarted")
        self._again()

    def numbered(self, number: int) -> Broker:
        """That database of the same Redis, whose queues are its own."""
        return Broker(self.url.replace("/0", f"/{number}"), None, None)


def _program(name: str, *more: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    for each in more:
        packaged = sorted(glob.glob(each))
        found = packaged[-1] if packaged else found
    if not found:
        pytest.skip(f"{name} is not installed here")
    return found


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="memwarden-broker-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # nothing of it is kept
    process.wait()


@contextlib.contextmanager
def _server(
    command: list[str], url: str, folder: str, environment: dict[str, str], ready: Callable[[], bool]
) -> Iterator[Broker]:
    path = os.path.join(folder, "log")

    def start() -> subprocess.Popen[bytes]:
        with open(path, "ab") as log:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        end, turn = time.monotonic() + START_S, threading.Event()
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                _end(process)
                with open(path, encoding="utf-8", errors="replace") as file:
                    raise RuntimeError(f"the broker did not start: {file.read()[-2000:]}")
            turn.wait(0.05)
        return process

    def again() -> None:
        assert broker.process is not None
        _end(broker.process)
        broker.process = start()

    broker = Broker(url, start(), again)
    try:
        yield broker
    finally:
        if broker.process is not None:
            _end(broker.process)


def _answers(port: int, greeting: bytes, expected: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(5)
            connection.sendall(greeting)
            return connection.recv(64).startswith(expected)
    except OSError:
        return False


@contextlib.contextmanager
def redis() -> Iterator[Broker]:
    """Redis. A private one writes each command to its disk, so that a restart finds it."""
    if GIVEN["redis"]:
        yield Broker(GIVEN["redis"], None, None)
        return
    program = _program("redis-server")
    with _folder() as folder:
        port = free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "no", "--daemonize", "no"]
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}

        def ready() -> bool:
            return _answers(port, b"PING\r\n", b"+PONG")

        with _server(command, f"redis://127.0.0.1:{port}/0", folder, environment, ready) as broker:
            yield broker


@contextlib.contextmanager
def rabbitmq() -> Iterator[Broker]:
    """RabbitMQ, with an epmd of its own: the usual one belongs to the machine's own broker."""
    if GIVEN["amqp"]:
        yield Broker(GIVEN["amqp"], None, None)
        return
    program = _program("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")
    with _folder() as folder:
        port, distribution, names = free_port(), free_port(), free_port()
        environment = {
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin", "LC_ALL": "C.UTF-8", "HOME": folder,
            "ERL_EPMD_PORT": str(names), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "NOTIFY_SOCKET": os.path.join(folder, "notify"),  # have the script become the server: one pid, no shell
            "RABBITMQ_NODENAME": f"memwarden{port}@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": os.path.join(folder, "mnesia"), "RABBITMQ_LOG_BASE": folder, "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": os.path.join(folder, "pid"),
            "RABBITMQ_CONF_ENV_FILE": os.path.join(folder, "env.conf"),
            "RABBITMQ_CONFIG_FILE": os.path.join(folder, "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": os.path.join(folder, "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }  # fmt: skip
        for name, text in (("env.conf", ""), ("rabbitmq.conf", "disk_free_limit.absolute = 10MB\n"),
                           ("plugins", "[].\n")):  # fmt: skip
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        mapper = subprocess.Popen(
            [_program("epmd"), "-port", str(names), "-address", "127.0.0.1"], env=environment, cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def ready() -> bool:
            return _answers(port, b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00")

        try:
            url = f"amqp://guest:guest@127.0.0.1:{port}//"
            with _server([program], url, folder, environment, ready) as broker:
                yield broker
        finally:
            _end(mapper)


BROKERS: dict[str, Callable[[], contextlib.AbstractContextManager[Broker]]] = {"redis": redis, "amqp": rabbitmq}
