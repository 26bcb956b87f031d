"""Eight real workers of one cgroup: one notice, and no two that clean up at once."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

from memwarden.facts import Finding, Leak
from memwarden.leader import Leader, name_of
from memwarden.warden.notices import REST_S, Spoken, from_line, to_line

from .programs import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from .conftest import Stage

_WORKERS = """
import logging, signal
from memwarden.blackbox import find_boxes, read_box
EIGHT = 8
forced, notices, states = "forced", "notices", "states"
open(forced, "w").close()

class Notices(logging.Handler):
    def emit(self, record):
        line = f"{os.getpid()} {record.getMessage()}" + chr(10)
        fd = os.open(notices, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line.encode())
        os.close(fd)

def work():
    log = logging.getLogger("memwarden.warden")
    log.addHandler(Notices(logging.WARNING))
    log.propagate = False
    warden = Warden(interval="50ms", dwell=0, pressure_file=os.path.abspath(forced), **CONFIG).start()
    said = None
    while True:
        level, ticks = warden.level.name, warden.ticks
        if level != said:
            wait_until(lambda: warden.ticks >= ticks + 2)  # whatever that tick had to say is said
            if warden.level.name == level:
                fd = os.open(states, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(fd, f"{os.getpid()} {level} {int(warden.leads)}\\n".encode())
                os.close(fd)
                said = level
        time.sleep(0.01)

def lines(name):
    try:
        return [line.split() for line in open(name)]
    except FileNotFoundError:
        return []

def latest():
    return {int(pid): (level, leads == "1") for pid, level, leads in lines(states)}

def force(level, among):
    with open(forced + ".new", "w") as file:
        file.write(level)
    os.replace(forced + ".new", forced)
    wait_until(lambda: all(latest().get(pid, ("",))[0] == level for pid in among), 40)

def acted():
    boxes = map(read_box, find_boxes(os.path.join(os.environ["MEMWARDEN_DIR"], "run")))
    return {box.pid for box in boxes if any(event.kind == "action" for event in box.events)}

def spoke():
    return [int(line[0]) for line in lines(notices) if line[1] == "memory"]

workers = []
for _ in range(EIGHT):
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    workers.append(child)
try:
    SCRIPT
finally:
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


def _program(script: str, config: str) -> str:
    body = "\n".join(f"    {line}" for line in script.strip().splitlines())
    return _WORKERS.replace("    SCRIPT", body).replace("CONFIG", config)


def test_eight_workers_are_one_notice_and_the_next_one_takes_over_from_a_leader_that_was_killed(tmp_path: Path) -> None:
    script = """
force("NORMAL", workers)
force("WARNING", workers)
first = spoke()
force("NORMAL", workers)
leader = first[0]
os.kill(leader, signal.SIGKILL)
os.waitpid(leader, 0)
workers.remove(leader)
force("WARNING", workers)
tell(first=first, second=spoke()[len(first):], leads=[pid for pid in workers if latest()[pid][1]], workers=workers)
"""
    ran = run(_program(script, "dict(relieve=False)"), str(tmp_path))
    assert ran.stderr == ""
    (told,) = ran.told
    assert len(told["first"]) == 1
    assert len(told["second"]) == 1
    assert told["second"] == told["leads"]
    assert told["second"][0] in told["workers"]


def test_no_two_of_eight_workers_clean_up_at_once_and_the_leader_is_the_first(tmp_path: Path) -> None:
    script = """
force("NORMAL", workers)
leader = [pid for pid in workers if latest()[pid][1]]
force("CRITICAL", workers)
wait_until(lambda: len(acted()) == EIGHT, 60)
tell(leader=leader)
"""
    ran = run(_program(script, "dict()"), str(tmp_path))
    assert ran.stderr == ""
    done = sorted(
        (event.unix_s - (event.duration_s or 0), event.unix_s, box.pid)
        for box in ran.boxes
        for event in box.events
        if event.kind == "action"
    )
    assert len({pid for _, _, pid in done}) == 8  # each protects itself
    assert [done[0][2]] == ran.told[0]["leader"]
    for (_, end_s, pid), (start_s, _, next_pid) in pairwise(done):
        assert pid == next_pid or start_s >= end_s - 0.002  # the black box has no finer clock than its own


def test_on_a_network_file_system_every_worker_leads_and_says_why_once(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage.machine.live = True
    mounts = stage.machine.read("/proc/self/mountinfo").decode()
    stage.machine.write(
        "/proc/self/mountinfo", f"{mounts}99 23 0:50 / {os.path.realpath(tmp_path)} rw - nfs4 s:/x rw\n"
    )
    both = [stage.warden(directory=str(tmp_path)) for _ in range(2)]
    for each in both:
        each._need_log()
        each._open_box()
        for _ in range(5):
            stage.look(each, 0.3)
            each._hear()
    assert [each.leads for each in both] == [True, True]
    said = [each.getMessage() for each in caplog.records if "no leader" in each.getMessage()]
    assert len(said) == len(both)
    assert all("is on nfs4" in each for each in said)


def test_switched_off_every_worker_speaks_for_itself(tmp_path: Path) -> None:
    script = """
force("NORMAL", workers)
force("WARNING", workers)
tell(spoke=sorted(spoke()), workers=sorted(workers))
"""
    ran = run(_program(script, "dict(relieve=False, leader=False)"), str(tmp_path))
    assert ran.told[0]["spoke"] == ran.told[0]["workers"]


# --- findings of followers --------------------------------------------------------------------------------------------


def _finding(pid: int = 7, what: str = "suspected", unix_s: float = 1e9) -> Finding:
    leak = Leak(stage="suspected", cause="python", confidence=70)
    return Finding(
        kind="leak", what=what, text="it grows by 3 % a\tminute", monotonic_s=5.0, unix_s=unix_s, pid=pid, leak=leak
    )


def test_a_finding_survives_the_way_to_the_leader() -> None:
    found = from_line(to_line(_finding()))
    assert found == _finding().replace(text="it grows by 3 % a minute")
    spike = _finding().replace(kind="spike", leak=None)
    assert from_line(to_line(spike)) == spike.replace(text="it grows by 3 % a minute")


def test_what_is_no_finding_is_none_and_what_cannot_be_printed_is_written_out() -> None:
    for line in ("", "x", "\t" * 8, to_line(_finding()).replace("7", "seven"), to_line(_finding()) + "\tmore"):
        assert from_line(line) is None
    found = from_line(to_line(_finding().replace(text="\x1b[31mred")))
    assert found is not None
    assert found.text == "\\x1b[31mred"


def test_the_same_of_another_worker_is_no_news_and_of_the_same_worker_it_is() -> None:
    spoken = Spoken()
    assert spoken.is_news(_finding(1))
    assert not spoken.is_news(_finding(2))
    assert spoken.is_news(_finding(1))
    assert spoken.is_news(_finding(2, what="confirmed"))
    assert spoken.is_news(_finding(2, unix_s=1e9 + REST_S))


def test_the_leader_tells_what_a_follower_passed_on(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real folder and real locks; a machine of files, so that two Wardens can be two workers here."""
    stage.machine.live = True
    (leader, follower) = (stage.warden(directory=str(tmp_path)) for _ in range(2))
    heard: list[Finding] = []
    for each in (leader, follower):
        each._open_box()
        each._need_log()
    assert (leader.leads, follower.leads) == (True, False)
    leader._call = lambda given_to, *words: heard.extend(words if given_to == "on_leak" else ())  # type: ignore[method-assign]
    now_s = stage.clock.wall()
    for finding in (_finding(4711, unix_s=now_s), _finding(4712, unix_s=now_s), _finding(4713, unix_s=now_s - 86400)):
        follower._tell(finding)
    assert heard == []
    stage.clock.advance(1.0)
    leader._hear()
    assert [each.pid for each in heard] == [4711]
    assert [each.getMessage()[:24] for each in caplog.records if "pid 4711" in each.getMessage()] == [
        "pid 4711: leak suspected"
    ]
    leader.stop()
    stage.clock.advance(1.0)
    follower._hear()
    assert follower.leads


def test_a_follower_leaves_a_critical_level_to_the_leader_for_a_while(stage: Stage, tmp_path: Path) -> None:
    stage.machine.live = True
    warden = stage.warden(directory=str(tmp_path))
    other = Leader(str(tmp_path / "run"), name_of(stage.machine.path("/sys/fs/cgroup")))
    os.makedirs(tmp_path / "run", mode=0o700)
    assert other.leads()
    warden._open_box()
    assert not warden.leads
    stage.look(warden, 0.3)
    stage.look(warden, 0.92)
    assert not warden.outcomes
    stage.look(warden, 0.92, after_s=0.1)
    assert not warden.outcomes
    stage.look(warden, 0.92, after_s=5.0)
    assert warden.outcomes
    other.resign()
