"""What the demo runs: the service under `memwarden run`, the monitor that records it, memwarden's commands.

Every process is ended on the way out, whatever happened: first asked, then made to.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HOST = "127.0.0.1"
SERVE = Path(__file__).resolve().parent / "serve.py"
PATIENCE_S = 10.0


class Stage:
    """One service on one port, and everything memwarden is asked about it. `folder` is for its run files."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = free_port()
        self.environ = {**os.environ, "MEMWARDEN_DIR": str(folder), **settings}
        self.said: list[str] = []  # the supervisor's words and the service's log, line by line
        self._told = 0

    @contextmanager
    def service(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Run the service under `memwarden run` with these options. Gives the supervisor."""
        command = memwarden("run", *options, "--", sys.executable, str(SERVE), "--port", str(self.port))
        with started(command, self.environ, stderr=subprocess.PIPE) as supervisor:
            listener = Thread(target=self._listen, args=(supervisor,), name="supervisor-says", daemon=True)
            listener.start()
            yield supervisor
        listener.join(PATIENCE_S)

    def _listen(self, supervisor: subprocess.Popen[str]) -> None:
        for line in supervisor.stderr or ():
            self.said.append(line.rstrip())

    def news(self) -> list[str]:
        """What the supervisor said since it was last asked for, without the service's own log."""
        lines, self._told = self.said[self._told :], len(self.said)
        return [line for line in lines if line.startswith("memwarden: ")]

    @contextmanager
    def recorded(self, supervisor: subprocess.Popen[str], limit: str, trace: Path) -> Iterator[subprocess.Popen[str]]:
        """Let `memwarden monitor` write the memory of the supervisor's process tree to a file, against this limit."""
        watch = ("--pid", str(supervisor.pid), "--tree", "--limit", limit, "--interval", "250ms")
        command = memwarden("monitor", *watch, "--export", str(trace), "--quiet")
        with started(command, self.environ) as monitor:
            yield monitor

    def memwarden(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What a memwarden command answers."""
        return self.run(*memwarden(*arguments))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """What a program says until it ends."""
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, timeout=60)

    def ask(self, path: str, method: str = "GET", *, timeout_s: float = 2.0) -> tuple[int, bytes]:
        """Status and body of an answer; status 0 where no whole answer came."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def health(self) -> dict[str, Any] | None:
        """What the service says of itself; None while it does not."""
        status, body = self.ask("/health")
        return json.loads(body) if status == 200 else None

    def healthy(self, *, within_s: float, not_pid: int = 0) -> dict[str, Any] | None:
        """Wait for the service, or for the one that follows `not_pid`, to answer and to know its limit."""
        ends_s = time.monotonic() + within_s
        while time.monotonic() < ends_s:
            now = self.health()
            if now and now["pid"] != not_pid and now["limit_bytes"]:
                return now
            time.sleep(0.1)  # nothing tells us that a service is up but its answer
        return None


def memwarden(*arguments: str) -> list[str]:
    """The command line that runs memwarden with this Python."""
    return [sys.executable, "-m", "memwarden", *arguments]


@contextmanager
def started(command: list[str], environ: dict[str, str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that is ended on the way out."""
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, text=True, **pipes) as process:
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> int:
    """Ask a program to end, wait, make it where it does not; returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def free_port() -> int:
    """A port that nobody listens on: fixed, so that the service comes back on it after a restart."""
    with socket.socket() as door:
        door.bind((HOST, 0))
        return int(door.getsockname()[1])
