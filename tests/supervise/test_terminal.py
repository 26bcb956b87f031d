"""Job control on a real terminal: Ctrl-C, Ctrl-Z, fg and a resize work as without us."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from tests.supervise.processes import PATIENCE_S, command_line, environment, kill

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal:
    """An interactive shell on a terminal of its own, as a person has it."""

    def __init__(self) -> None:
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment(PS1="$ ", HISTFILE="", TERM="dumb"))
        self._text = ""
        self.read_until("$ ")

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def resize_until(self, mark: str) -> None:
        """Drag the corner: a size after the other, as a person does, until it is noticed."""
        for rows in range(40, 60):
            fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
            if select.select([self._screen], [], [], PATIENCE_S / 20)[0]:
                break
        self.read_until(mark)

    def read_until(self, mark: str) -> str:
        """What appeared up to and with the mark."""
        while mark not in self._text:
            ready, _, _ = select.select([self._screen], [], [], PATIENCE_S)
            assert ready, f"never saw {mark!r} after {self._text!r}"
            self._text += os.read(self._screen, 4096).decode(errors="replace")
        end = self._text.index(mark) + len(mark)
        seen, self._text = self._text[:end], self._text[end:]
        return seen

    def close(self) -> None:
        """End the shell and every job of its session, also one that a failed test left in the background."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            if int(name) != self.pid and _session_of(int(name)) == self.pid:
                kill(int(name))
        kill(self.pid)
        os.close(self._screen)
        os.waitpid(self.pid, 0)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


CHILD = """
import os, signal, sys
def hear(number, frame):
    os.write(1, b"<" + signal.Signals(number).name.encode() + b">")
    if number == signal.SIGINT: sys.exit(3)
for number in (signal.SIGINT, signal.SIGCONT, signal.SIGWINCH): signal.signal(number, hear)
os.write(1, b"<ready>")
while True: signal.pause()
"""


def start_in(terminal: Terminal, tmp_path: os.PathLike[str], *options: str) -> None:
    script = os.path.join(tmp_path, "child.py")
    with open(script, "w") as file:
        file.write(CHILD)
    terminal.type(" ".join([*command_line(*options), "--", sys.executable, script]) + "\n")
    terminal.read_until("<ready>")


def test_ctrl_c_reaches_the_command_once_and_ends_it(terminal: Terminal, tmp_path: os.PathLike[str]) -> None:
    start_in(terminal, tmp_path, "--restart", "always")
    terminal.type("\x03")
    seen = terminal.read_until("$ ")
    assert seen.count("<SIGINT>") == 1
    assert "next:" not in seen
    terminal.type("echo code=$?\n")
    terminal.read_until("code=3")


def test_ctrl_z_stops_the_job_and_fg_brings_it_back(terminal: Terminal, tmp_path: os.PathLike[str]) -> None:
    start_in(terminal, tmp_path)
    for _ in range(2):
        terminal.type("\x1a")
        terminal.read_until("Stopped")
        terminal.read_until("$ ")
        terminal.type("fg\n")
        terminal.read_until("<SIGCONT>")
    terminal.type("\x03")
    terminal.read_until("<SIGINT>")


def test_a_resize_reaches_the_command(terminal: Terminal, tmp_path: os.PathLike[str]) -> None:
    start_in(terminal, tmp_path)
    terminal.resize_until("<SIGWINCH>")
    terminal.type("\x03")
    terminal.read_until("$ ")


def test_ctrl_z_sent_by_kill_to_us_alone_stops_both(terminal: Terminal, tmp_path: os.PathLike[str]) -> None:
    start_in(terminal, tmp_path)
    terminal.type("\x1a")
    terminal.read_until("$ ")
    terminal.type("bg; kill -TSTP $(jobs -p); wait -f; jobs\n")
    terminal.read_until("Stopped")
    terminal.type("kill -CONT $(jobs -p)\n")  # to us alone: the command must run again as well
    terminal.read_until("<SIGCONT>")
    terminal.type("kill -TERM $(jobs -p); wait\n")
    terminal.read_until("$ ")


def test_a_background_job_that_reads_the_terminal_is_stopped(terminal: Terminal) -> None:
    terminal.type(" ".join(command_line("--", "cat", "&")) + "\n")
    terminal.read_until("$ ")
    terminal.type("wait -n; jobs\n")
    terminal.read_until("Stopped")
    terminal.read_until("$ ")
    terminal.type("fg\n")
    terminal.read_until("-- cat\r\n")
    terminal.type("hello\n")
    terminal.read_until("hello\r\nhello")
    terminal.type("\x04")
    terminal.read_until("$ ")


def test_a_shell_as_command_has_job_control_and_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.type(" ".join(command_line("--", "bash", "--norc", "--noprofile", "-i")) + "\n")
    terminal.type("sh -c 'echo in\"\"ner; exec cat'\n")
    terminal.read_until("inner")
    terminal.type("\x1a")
    terminal.read_until("exec cat'\r\n")
    terminal.type("fg\n")
    terminal.read_until("exec cat'\r\n")
    terminal.type("hello\n")
    terminal.read_until("hello\r\nhello")  # it is in the foreground from here on
    terminal.type("\x03")
    terminal.read_until("$ ")
    terminal.type("exit 4\n")
    terminal.read_until("exit\r\n")
    terminal.type("echo out''er $?; cat\n")
    terminal.read_until("outer 4")
    terminal.type("again\n")
    terminal.read_until("again\r\nagain")
