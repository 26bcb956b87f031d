"""`memwarden gc` and `memwarden cleanup` on real running processes: the answer, or one line why there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.blackbox import BlackBox, find_boxes, read_box, send_command
from memwarden.cli._ask import ask
from memwarden.errors import BlackBoxError, MemwardenError
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

NO_PID = 4_194_303

GUARDED = """
import gc, sys
from memwarden import Warden

class Ring:
    def __init__(self):
        self.me, self.data = self, bytes(1000)

gc.disable()
warden = Warden(interval="1h")
warden.start()
warden.add_strategy("own", lambda: None)
for _ in range(30_000):
    Ring()
print("ready", flush=True)
sys.stdin.read()
"""


def _run(*words: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memwarden", *words], capture_output=True, text=True, timeout=60,
        env={**os.environ, **(environ or {})},
    )  # fmt: skip


def _document(*words: str) -> dict[str, Any]:
    done = _run(*words, "--format", "json", "--timeout", "30s")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("memwarden")
    assert done.stderr.count("\n") == 1
    for text in expected:
        assert text in done.stderr


@pytest.fixture
def guarded() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_running_process_collects_and_cleans_up_when_asked(guarded: subprocess.Popen[str]) -> None:
    found = _document("gc", "--pid", str(guarded.pid))
    (collected,) = found["outcomes"]
    assert (found["pid"], found["verb"], collected["action"]) == (guarded.pid, "gc", "collect")
    assert collected["objects"] >= 30_000
    assert collected["freed_bytes"] > 10 << 20
    everything = _document("cleanup", "--all")
    assert [each["action"] for each in everything["outcomes"]][:3] == ["trim", "collect", "own"]
    done = _run("cleanup", "--pid", str(guarded.pid), "--timeout", "30s")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pid {guarded.pid} is at NORMAL" in done.stdout


def test_a_process_that_stands_still_gives_no_answer_and_finds_no_command_later(
    guarded: subprocess.Popen[str],
) -> None:
    os.kill(guarded.pid, signal.SIGSTOP)
    try:
        _refused(_run("gc", "--timeout", "200ms"), f"pid {guarded.pid}: no answer within 200 ms")
    finally:
        os.kill(guarded.pid, signal.SIGCONT)
    assert _document("cleanup")["verb"] == "cleanup"
    (path,) = find_boxes(os.path.join(os.environ["MEMWARDEN_DIR"], "run"))
    assert "memwarden gc" not in " ".join(event.text for event in read_box(path).events)


@pytest.mark.parametrize("command", ["gc", "cleanup"])
def test_nobody_to_ask_is_one_line(command: str) -> None:
    _refused(_run(command), "no process of this user is guarded")
    _refused(_run(command, "--pid", str(NO_PID)), f"no process with pid {NO_PID}")
    _refused(_run(command, "--pid", str(os.getpid())), f"pid {os.getpid()} is not guarded")
    _refused(_run(command, "--timeout", "soon"), "--timeout")


def _box(folder: str, pid: int) -> BlackBox:
    return BlackBox(folder, pid=pid, unix_s=1.0, monotonic_s=1.0)


def test_of_several_one_must_be_named_and_one_whose_watch_has_stopped_is_not_guarded(tmp_path: Path) -> None:
    box, other = _box(f"{tmp_path}/run", os.getpid()), _box(f"{tmp_path}/run", os.getppid())
    _refused(_run("gc", "--dir", str(tmp_path)), "2 processes are guarded", "--pid")
    box.end_life("stopped")
    other.end_life("stopped")
    _refused(_run("gc", "--dir", str(tmp_path)), "no process of this user is guarded")


class Served(FakeClock):
    """Time passes, and at the first wait the process answers."""

    def __init__(self, box: BlackBox, text: str) -> None:
        super().__init__()
        self.taken: list[tuple[int, str]] = []
        self._box, self._text = box, text

    def wait(self, event: threading.Event, seconds: float) -> bool:
        command = self._box.command()
        if command is not None:
            self.taken.append(command)
            self._box.answer(command[0], self._text)
        return super().wait(event, seconds)


@pytest.mark.parametrize(
    ("text", "error"), [('{"error": "not known"}', "not known"), ("{", "damaged"), ("", "damaged")]
)
def test_an_answer_that_is_none_is_said(tmp_path: Path, text: str, error: str) -> None:
    box = _box(f"{tmp_path}", 5)
    assert box.path is not None
    clock = Served(box, text)
    with pytest.raises(MemwardenError, match=error):
        ask(read_box(box.path), "gc", 5.0, clock)
    assert [verb for _, verb in clock.taken] == ["gc"]


def test_without_an_answer_the_command_is_withdrawn(tmp_path: Path) -> None:
    box = _box(f"{tmp_path}", 5)
    assert box.path is not None
    clock = FakeClock()
    with pytest.raises(BlackBoxError, match="no answer within 5 s"):
        ask(read_box(box.path), "gc", 5.0, clock)
    assert sum(clock.waited_s) == pytest.approx(5.0)
    assert box.command() is None
    send_command(box.path, 7, "ping")
    assert box.command() == (7, "ping")
