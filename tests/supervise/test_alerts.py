"""What there is to tell of kernel kills, read from boxes: each death once, whoever reads it and how often."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from memwarden.blackbox import BlackBox
from memwarden.clock import SystemClock
from memwarden.supervise.alerts import DEATH_NEWS_S, Helper, tell_of_deaths
from memwarden.supervise.deaths import Kill
from memwarden.supervise.record import DEATH, KILL
from memwarden.supervise.tree import Tree, descendants
from memwarden.tell.sender import Teller, build_channels
from memwarden.tell.settings import parse
from tests.supervise.processes import is_alive, kill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memwarden.tell.outbox import Told

MIB = 1 << 20
NOW = SystemClock().wall()
# Of no process that lives.
MASTER, ONE, OTHER = (1 << 22) + 1, (1 << 22) + 2, (1 << 22) + 3


class Folder:
    """A run folder with what a supervisor and its workers left, and who tells of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.master = self.box(MASTER, kind="outside")
        self.master.place(400 * MIB, "--limit", cgroup=None, oom_kills=None)

    def box(self, pid: int, *, kind: str = "inside") -> BlackBox:
        return BlackBox(
            str(self.path / "run"), pid=pid, unix_s=NOW - 100, monotonic_s=1.0, kind=kind, supervisor_pid=9,
            start_ticks=pid, argv="python web.py",
        )  # fmt: skip

    def worker(self, pid: int, *, last_s: float = 10.0) -> None:
        made = self.box(pid)
        made.begin(NOW - last_s, 1.0, "GET /report", None, 1)
        made.tick(NOW - last_s, 1.0, 90 * MIB, 390 * MIB, 400 * MIB, 0, 0.0)
        made.close()

    def kernel_kills(self, *victims: int, ago_s: float = 5.0, count: int = 1, certain: bool = True) -> None:
        self.master.event(NOW - ago_s, 1.0, KILL, Kill(count=count, victims=victims, certain=certain).text)

    def end(self, verdict: str, code: int) -> None:
        self.master.event(NOW - 1, 1.0, DEATH, "")
        self.master.end_life(verdict, exit_status=code)

    def tell(self) -> list[Told]:
        settings = parse({"service": "web", "channels": {"log": {"kind": "log"}}}, "test: alerts")
        assert settings is not None
        found, channels = build_channels(settings, {})
        teller = Teller(found, channels, target="web", host="host", store_folder=str(self.path), run_folder=None)
        tell_of_deaths(teller, str(self.path / "run"), now_unix_s=NOW)
        return sorted(teller.once(within_s=1.0), key=lambda told: told.id)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.master.close()


def test_a_victim_with_a_box_of_its_own_is_told_as_that_death(folder: Folder) -> None:
    folder.worker(ONE)
    folder.kernel_kills(ONE)
    (told,) = folder.tell()
    assert told.id.startswith(f"death-{ONE}-{int(NOW - 100)}")
    assert (told.key, told.level.name, told.details["pid"]) == ("oom_kill:web", "EMERGENCY", ONE)
    assert "in flight: GET /report" in told.text
    assert "probably" not in told.title + told.text


def test_victims_without_boxes_are_told_as_what_the_supervisor_saw(folder: Folder) -> None:
    folder.kernel_kills(ONE, OTHER, count=2)
    (told,) = folder.tell()
    assert told.id.startswith(f"kill-{MASTER}-")
    assert f"killed 2 process(es) of the tree for memory: pid {ONE}, {OTHER}; limit 400 MiB" in told.text
    assert (told.details["pid"], told.details["limit_bytes"]) == (MASTER, 400 * MIB)


def test_one_with_and_one_without_a_box_are_both_told(folder: Folder) -> None:
    folder.worker(ONE)
    folder.kernel_kills(ONE, OTHER, count=2)
    assert [told.id.split("-")[0] for told in folder.tell()] == ["death", "kill"]


@pytest.mark.parametrize("boxes", [True, False])
def test_it_is_told_once_however_often_it_is_found_and_the_end_of_the_command_adds_nothing(
    folder: Folder, boxes: bool
) -> None:
    if boxes:
        folder.worker(ONE)
    folder.kernel_kills(ONE)
    assert len(folder.tell()) == 1
    folder.end("oom_kill_of_descendant", 0)
    assert folder.tell() == []


def test_the_commands_own_kill_is_told_after_one_of_a_worker(folder: Folder) -> None:
    folder.kernel_kills(ONE)
    folder.tell()
    folder.end("oom_kill", 137)
    (told,) = folder.tell()
    assert told.id.startswith(f"death-{MASTER}-")


def test_a_kill_that_may_have_been_anothers_says_so(folder: Folder) -> None:
    folder.kernel_kills(ONE, certain=False)
    (told,) = folder.tell()
    assert told.title.startswith("probably")
    assert "the kernel probably killed" in told.text


def test_what_is_a_day_old_is_no_news(folder: Folder) -> None:
    folder.worker(ONE, last_s=DEATH_NEWS_S + 20)
    folder.kernel_kills(ONE, OTHER, count=2, ago_s=DEATH_NEWS_S + 10)
    assert folder.tell() == []


# --- the process that tells -----------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A child of ours that has one too."""
    code = "import signal, subprocess, sys; subprocess.Popen(['sleep', '60']); print(flush=True); signal.pause()"
    made = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    made.stdout.readline()
    below = descendants(made.pid)
    yield made
    for pid in (*below, made.pid):
        kill(pid)
    made.communicate()


def test_a_helper_and_what_it_starts_are_nothing_of_the_commands(child: subprocess.Popen[str]) -> None:
    found = Tree(None).pids()
    assert child.pid in found
    (below,) = descendants(child.pid)
    assert below in found
    assert set(Tree(None, helper=lambda: child.pid).pids()) == set(found) - {child.pid, below}


def test_one_runs_at_a_time_and_what_is_asked_for_meanwhile_is_done_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is nobody to be told: it ends at once
    now_s = [0.0]
    helper = Helper(lambda: now_s[0])
    helper.ask()
    first = helper.pid()
    assert first is not None
    with open(f"/proc/{first}/oom_score_adj") as file:
        assert file.read() == "1000\n"
    helper.ask()
    helper.step()
    assert helper.pid() == first
    helper.reaped(*os.waitpid(first, 0))
    assert helper.pid() is None
    helper.step()
    assert helper.pid() is None  # it rests
    now_s[0] = 5.0
    helper.step()
    second = helper.pid()
    assert second not in (None, first)
    assert helper.end(in_haste=False)
    assert second is not None
    assert not is_alive(second)
    now_s[0] = 10.0
    helper.step()
    assert helper.pid() is None


def test_one_that_is_killed_is_started_again_three_times_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    now_s = [0.0]
    helper = Helper(lambda: now_s[0])
    helper.ask()
    for _ in range(3):
        pid = helper.pid()
        assert pid is not None
        kill(pid)
        helper.reaped(*os.waitpid(pid, 0))
        now_s[0] += 5.0
        helper.step()
    assert helper.pid() is None


def test_at_the_end_what_takes_too_long_is_killed_and_nothing_is_started_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    times_s = [0.0, 0.0, 0.0, 100.0]
    helper = Helper(lambda: times_s.pop(0) if len(times_s) > 1 else times_s[0])
    helper.ask()
    first = helper.pid()
    assert first is not None
    helper.ask()
    assert helper.end(in_haste=True)
    assert not is_alive(first)
    assert helper.pid() is None
