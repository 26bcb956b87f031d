"""What is said about a death, from boxes that were written with a clock that stands still."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.blackbox import ASKED, BlackBox, LeakState, directory, read_box
from memwarden.supervise.autopsy import Autopsy, deaths, examine, headline, is_alive, read_all, same_life, tell
from memwarden.supervise.deaths import Death, Kill
from memwarden.supervise.record import DEATH, EVIDENCE, KILL, BoxRecord, NoRecord, no_record
from memwarden.testing import FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
T0 = 1_800_000_000.0
GROUP = "/sys/fs/cgroup"


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    with FakeMachine() as made:
        yield made


def _box(
    folder: Path, *, kind: str = "inside", pid: int = 77, born: float = 0.0, start: int = 500, under: int = 0
) -> BlackBox:
    return BlackBox(
        str(folder),
        pid=pid,
        unix_s=T0 + born,
        monotonic_s=1000.0 + born,
        kind=kind,
        supervisor_pid=under,
        start_ticks=start,
        argv="python -m shop",
    )


def _tick(box: BlackBox, at: float, used: int | None, *, late: float = 0.0) -> None:
    box.tick(T0 + at, 1000.0 + at, used, used, 512 * MIB, 0, late)


def _die(
    box: BlackBox,
    at: float,
    verdict: str,
    *evidence: str,
    peak: int | None = None,
    code: int = 137,
    certain: bool = True,
) -> None:
    for text in evidence:
        box.event(T0 + at, 1000.0 + at, EVIDENCE, text)
    box.event(T0 + at, 1000.0 + at, DEATH, "" if certain else "probably", before_bytes=peak)
    box.end_life(verdict, exit_status=code)


def _all(machine: FakeMachine, folder: Path, **which: Any) -> list[Autopsy]:
    boxes, complaints = read_all(str(folder))
    assert complaints == []
    return deaths(machine, boxes, **which)


def _stat(start: int, state: str = "S") -> str:
    return f"77 (py (x) thon) {state} 1 {'0 ' * 17}{start} 0 0\n"


def test_both_witnesses_of_one_death_are_heard(machine: FakeMachine, tmp_path: Path) -> None:
    outside, inside = _box(tmp_path, kind="outside"), _box(tmp_path, born=0.2)
    outside.place(512 * MIB, "memory.max", cgroup=None, oom_kills=None)
    for n in range(100):
        _tick(outside, n / 10, (100 + n) * MIB)
    for n in range(3):
        _tick(inside, n * 2.0, (100 + n) * MIB, late=0.5 * n)
    inside.begin(T0 + 3, 1003.0, "GET /report", 120 * MIB, 1)
    inside.event(T0 + 4, 1004.0, "action", "collected: freed 3 MiB")
    inside.event(T0 + 4, 1004.0, "level", "NORMAL -> WARNING")
    inside.put_leak(
        LeakState(stage="confirmed", since_unix_s=T0, unix_s=T0 + 2, text="confirmed: it goes on", growing=("dict +7",))
    )
    _die(outside, 10.0, "oom_kill", "oom_kill of x rose from 0 to 1", "the kernel log names it", peak=511 * MIB)
    outside.close()
    inside.close()
    (found,) = _all(machine, tmp_path)
    assert (found.verdict, found.certain, found.exit_status) == ("oom_kill", True, 137)
    assert found.evidence == ("oom_kill of x rose from 0 to 1", "the kernel log names it")
    assert (found.ended_unix_s, found.peak_bytes, found.limit_source) == (T0 + 10, 511 * MIB, "memory.max")
    assert found.last_bytes == 199 * MIB
    assert found.last_ago_s == pytest.approx(0.1)
    assert found.growth_bytes == 50 * MIB
    assert found.growth_s == pytest.approx(5.0)
    assert found.blind_s == pytest.approx(6.0)
    assert found.longest_late_s == pytest.approx(1.0)
    assert [each.name for each in found.in_flight] == ["GET /report"]
    assert len(found.boxes) == 2
    lines = tell(found)
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith("python -m shop (pid 77) was killed by the kernel for memory (OOM kill), exit code 137")
    for expected in (
        "  evidence   the kernel log names it",
        "  limit      512 MiB  (memory.max)",
        "  peak       511 MiB  (99.8 % of the limit)",
        "  last seen  199 MiB, 100 ms before the end",
        "  growth     +50.0 MiB in the last 5 s (10 MiB/s)",
        "  blind      it had last looked itself 6 s before the end; its latest tick ever came 1 s late",
        "  in flight  GET /report, since 7 s, begun at 120 MiB resident",
        "  leak       8 s before: confirmed: it goes on",
        "  grows      dict +7",
        "  level      6 s before: NORMAL -> WARNING",
        "  action     6 s before: collected: freed 3 MiB",
    ):
        assert expected in lines
    rows = lines[lines.index("  before     in use       resident     level") + 1 :]
    assert len(rows) == 10
    assert rows[-1].startswith("  100 ms ")


def test_the_last_look_is_that_of_whoever_looked_last(machine: FakeMachine, tmp_path: Path) -> None:
    outside, inside = _box(tmp_path, kind="outside"), _box(tmp_path)
    _tick(outside, 1.0, 100 * MIB)
    _tick(inside, 1.9, 300 * MIB)
    _die(outside, 2.0, "killed", "a SIGKILL")
    outside.close()
    inside.close()
    (found,) = _all(machine, tmp_path)
    assert (found.last_bytes, found.peak_bytes) == (300 * MIB, 300 * MIB)
    assert found.last_ago_s == pytest.approx(0.1)


def test_a_reused_pid_is_another_life(machine: FakeMachine, tmp_path: Path) -> None:
    first, second = _box(tmp_path, start=500), _box(tmp_path, born=60.0, start=6500)
    outside = _box(tmp_path, kind="outside", born=60.0, start=6500)
    _tick(first, 1.0, 100 * MIB)
    _tick(second, 61.0, 200 * MIB)
    _die(outside, 62.0, "failed", "exit code 3", code=3)
    for box in (first, second, outside):
        box.close()
    later, earlier = _all(machine, tmp_path)
    assert (later.verdict, later.peak_bytes, later.exit_status) == ("failed", 200 * MIB, 3)
    assert (earlier.verdict, earlier.peak_bytes, earlier.exit_status) == ("unknown", 100 * MIB, None)
    assert same_life(read_box(str(second.path)), read_all(str(tmp_path))[0])[1].path == outside.path
    assert len(same_life(read_box(str(first.path)), read_all(str(tmp_path))[0])) == 1


def test_who_lives_is_told_by_pid_and_start(machine: FakeMachine, tmp_path: Path) -> None:
    box, undated = _box(tmp_path, start=500), _box(tmp_path, born=1.0, start=0)
    box.close()
    undated.close()
    found, unknown = read_box(str(box.path)), read_box(str(undated.path))
    assert not is_alive(machine, found)
    machine.write("/proc/77/stat", _stat(500))
    assert is_alive(machine, found)
    assert is_alive(machine, unknown)
    machine.write("/proc/77/stat", _stat(501))
    assert not is_alive(machine, found)
    for text in (_stat(500, "Z"), _stat(500, "X"), ""):
        machine.write("/proc/77/stat", text)
        assert not is_alive(machine, found), text
    assert _all(machine, tmp_path, pid=78) == []
    machine.write("/proc/77/stat", _stat(500))
    assert [each.start_unix_s for each in _all(machine, tmp_path)] == []


def test_an_oom_kill_that_no_supervisor_saw_is_inferred_from_the_counter_and_called_probable(
    machine: FakeMachine, tmp_path: Path
) -> None:
    box = _box(tmp_path)
    box.place(512 * MIB, "memory.max", cgroup=GROUP, oom_kills=2)
    _tick(box, 1.0, 500 * MIB)
    box.close()
    machine.write(f"{GROUP}/memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 3\n")
    (found,) = _all(machine, tmp_path)
    assert (found.verdict, found.certain, found.exit_status) == ("oom_kill", False, None)
    assert found.evidence == (
        f"oom_kill of {GROUP} rose from 2 to 3 since it was last seen",
        "no supervisor saw the end",
    )
    assert "probably was killed by the kernel" in headline(found)


@pytest.mark.parametrize("events", ["oom_kill 2\n", "oom_kill 1\n", "oom 9\n", "", "garbage\n"])
def test_a_counter_that_did_not_rise_or_cannot_be_read_accuses_nobody(
    events: str, machine: FakeMachine, tmp_path: Path
) -> None:
    box = _box(tmp_path)
    box.place(None, "", cgroup=GROUP, oom_kills=2)
    box.close()
    machine.write(f"{GROUP}/memory.events", events)
    (found,) = _all(machine, tmp_path)
    assert (found.verdict, found.certain) == ("unknown", False)
    assert "probably" not in headline(found)
    assert "left no goodbye" in headline(found)


def test_the_counter_of_v1_is_read_too(machine: FakeMachine, tmp_path: Path) -> None:
    box = _box(tmp_path)
    box.place(None, "", cgroup="/sys/fs/cgroup/memory/x", oom_kills=0)
    box.close()
    machine.write("/sys/fs/cgroup/memory/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert _all(machine, tmp_path)[0].verdict == "oom_kill"


def test_a_clean_end_is_certain_and_what_the_supervisor_doubts_is_probable(
    machine: FakeMachine, tmp_path: Path
) -> None:
    clean = _box(tmp_path, pid=1)
    clean.end_life("clean")
    doubtful = _box(tmp_path, kind="outside", pid=2)
    _die(doubtful, 5.0, "killed", "no counter here", certain=False)
    wordless = _box(tmp_path, kind="outside", pid=3)
    _die(wordless, 4.0, "crashed", certain=False)
    for box in (clean, doubtful, wordless):
        box.close()
    found = {each.pid: each for each in _all(machine, tmp_path)}
    assert (found[1].verdict, found[1].certain) == ("clean", True)
    assert (found[2].certain, found[2].evidence) == (False, ("no counter here",))
    assert (found[3].certain, found[3].evidence) == (False, ())


def test_a_box_with_nothing_in_it_tells_what_little_there_is(machine: FakeMachine, tmp_path: Path) -> None:
    _box(tmp_path).close()
    (found,) = _all(machine, tmp_path)
    assert (found.peak_bytes, found.last_ago_s, found.growth_bytes, found.blind_s) == (None, None, None, None)
    lines = tell(found)
    assert "  limit      unknown" in lines
    assert "  peak       unknown" in lines


def test_unknown_readings_are_not_counted_as_zero(machine: FakeMachine, tmp_path: Path) -> None:
    box = _box(tmp_path)
    _tick(box, 1.0, 100 * MIB)
    _tick(box, 2.0, None)
    _tick(box, 3.0, 90 * MIB)
    _tick(box, 4.0, None)
    box.close()
    (found,) = _all(machine, tmp_path)
    assert found.peak_bytes == 100 * MIB
    assert (found.growth_bytes, found.growth_s) == (-10 * MIB, 2.0)
    assert found.last_bytes is None
    assert "  last seen  unknown, 0 ms before the end" in tell(found)


def test_two_ticks_of_one_moment_give_no_rate(machine: FakeMachine, tmp_path: Path) -> None:
    box = _box(tmp_path)
    _tick(box, 1.0, 100 * MIB)
    _tick(box, 1.0, 200 * MIB)
    box.close()
    assert not [line for line in tell(_all(machine, tmp_path)[0]) if "growth" in line]


def test_damaged_records_are_counted_and_told(machine: FakeMachine, tmp_path: Path) -> None:
    box = _box(tmp_path)
    for n in range(5):
        _tick(box, float(n), n * MIB)
    box.close()
    with open(str(box.path), "r+b") as file:
        file.seek(256 * 1024 - 2880 * 64 + 2 * 64 + 20)
        file.write(b"\xff")
    (found,) = _all(machine, tmp_path)
    assert (found.damaged, len(found.ticks)) == (1, 4)
    assert tell(found)[-1] == "  1 record(s) were being written or are damaged, and left out"


def test_a_torn_state_leaves_the_ticks(machine: FakeMachine, tmp_path: Path) -> None:
    box = _box(tmp_path)
    _tick(box, 1.0, 5 * MIB)
    box.close()
    with open(str(box.path), "r+b") as file:
        file.seek(700)
        file.write(b"\xff")
    (found,) = _all(machine, tmp_path)
    assert (found.damaged, found.peak_bytes, found.limit_bytes, found.verdict) == (1, 5 * MIB, None, "unknown")


def test_a_file_that_is_no_box_is_a_complaint_and_no_death(machine: FakeMachine, tmp_path: Path) -> None:
    (tmp_path / "inside-1-1.box").write_bytes(b"x")
    _box(tmp_path).close()
    boxes, complaints = read_all(str(tmp_path))
    assert len(boxes) == 1
    assert len(complaints) == 1
    assert complaints[0].startswith(f"{tmp_path}/inside-1-1.box: is no black box")
    assert read_all(str(tmp_path / "none")) == ([], [])


def test_hostile_texts_stay_in_their_line(machine: FakeMachine, tmp_path: Path) -> None:
    box = BlackBox(str(tmp_path), pid=77, unix_s=T0, monotonic_s=1.0, argv="a\nb\x1b[2J\ud800")
    box.place(1, "x\ry", cgroup=None, oom_kills=None)
    box.begin(T0, 1.0, "op\n  evidence   forged", 1, 1)
    box.event(T0, 1.0, "action", "did\nit")
    box.close()
    found = examine(machine, (read_box(str(box.path)),))
    assert all(line.isprintable() for line in tell(found))


# --- the record that the supervisor writes ---------------------------------------------------------------------------


def test_what_the_supervisor_records_is_what_the_autopsy_tells(machine: FakeMachine) -> None:
    long = "a SIGKILL, and oom_kill of " + "kubepods-burstable.slice/" * 4 + " did not move: not the kernel"
    record = BoxRecord(os.getpid(), ("python", "-m", "shop"), 512 * MIB, "--limit")
    record.tick(monotonic_s=1.0, unix_s=T0, usage_bytes=9 * MIB, rss_bytes=5 * MIB, limit_bytes=512 * MIB, processes=2)
    record.event("an alarm")
    death = Death(verdict="killed", exit_code=137, signal=9, certain=False, evidence=(long, "and another"))
    record.end(death, peak_bytes=77 * MIB)
    boxes, complaints = read_all(directory(None, os.environ, os.getuid()))
    assert complaints == []
    (box,) = boxes
    assert (box.kind, box.pid, box.supervisor_pid, box.argv) == ("outside", os.getpid(), os.getpid(), "python -m shop")
    assert box.start_ticks > 0
    assert [event.kind for event in box.events] == ["event", EVIDENCE, EVIDENCE, DEATH]
    (found,) = deaths(machine, boxes)
    assert (found.verdict, found.certain, found.exit_status, found.peak_bytes) == ("killed", False, 137, 77 * MIB)
    assert found.evidence == (long, "and another")
    assert (found.limit_bytes, found.limit_source) == (512 * MIB, "--limit")
    assert headline(found).startswith(f"python -m shop (pid {os.getpid()}) probably was killed by a SIGKILL")


def test_a_record_of_a_pid_that_is_gone_already_has_no_start(machine: FakeMachine) -> None:
    BoxRecord(4_194_303, ("x",), None, "").end(Death(verdict="clean", exit_code=0), peak_bytes=None)
    (box,) = read_all(directory(None, os.environ, os.getuid()))[0]
    assert (box.start_ticks, box.limit_bytes) == (0, None)
    assert deaths(machine, [box])[0].verdict == "clean"


def test_where_no_box_can_be_made_the_supervisor_is_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    monkeypatch.setenv("MEMWARDEN_DIR", str(tmp_path))
    with pytest.raises(OSError, match="run: File exists"):
        BoxRecord(1, ("x",), None, "")
    nothing = no_record(1, ("x",), None, "")
    assert isinstance(nothing, NoRecord)
    nothing.event("x")
    nothing.end(Death(verdict="clean", exit_code=0), peak_bytes=None)


def _kill(box: BlackBox, at: float, *victims: int, count: int = 1) -> None:
    box.event(T0 + at, 1000.0 + at, KILL, Kill(count=count, victims=victims).text)


def _worker(folder: Path, pid: int, *, until: float, kills: int = 0) -> None:
    box = _box(folder, pid=pid, start=pid, under=9)
    box.place(512 * MIB, "memory.max", cgroup=GROUP, oom_kills=kills)
    _tick(box, until, 100 * MIB)
    box.close()


def _count_kills(machine: FakeMachine, number: int) -> None:
    machine.write(f"{GROUP}/memory.events", f"oom 0\noom_kill {number}\n")


def test_a_worker_that_its_supervisor_saw_killed_was_killed_though_the_counter_is_gone(
    machine: FakeMachine, tmp_path: Path
) -> None:
    master = _box(tmp_path, kind="outside", under=9)
    _kill(master, 5.0, 80)
    master.close()
    _worker(tmp_path, 80, until=4.0)
    (path,) = [box.path for box in read_all(str(tmp_path))[0] if box.kind == "inside"]
    alone = examine(machine, (read_box(path),))  # as the service asks, which has the boxes of one life only
    (found,) = [death for death in _all(machine, tmp_path) if death.pid == 80]
    for each in (alone, found):
        assert (each.verdict, each.certain) == ("oom_kill", True)
        assert "pid 80" in each.evidence[0]


@pytest.mark.parametrize(
    ("pid", "until", "under"), [(81, 4.0, 9), (80, 6.0, 9), (80, 4.0, 8)], ids=["another", "later", "elsewhere"]
)
def test_a_kill_on_record_is_of_nobody_else(
    machine: FakeMachine, tmp_path: Path, pid: int, until: float, under: int
) -> None:
    master = _box(tmp_path, kind="outside", under=under)
    _kill(master, 5.0, 80)
    master.close()
    _worker(tmp_path, pid, until=until)
    (found,) = [death for death in _all(machine, tmp_path) if death.pid == pid]
    assert found.verdict == "unknown"


def test_a_risen_counter_accuses_nobody_where_every_kill_is_known_to_be_anothers(
    machine: FakeMachine, tmp_path: Path
) -> None:
    _count_kills(machine, 2)
    master = _box(tmp_path, kind="outside", under=9)
    _kill(master, 5.0, 80)
    _worker(tmp_path, 81, until=4.0)
    (found,) = [death for death in _all(machine, tmp_path) if death.pid == 81]
    assert (found.verdict, found.certain) == ("oom_kill", False)  # one of the two is nobody's yet
    _kill(master, 6.0, 82)
    master.close()
    (found,) = [death for death in _all(machine, tmp_path) if death.pid == 81]
    assert found.verdict == "unknown"
    assert "none of them" in found.evidence[1]


def test_with_more_suspects_than_kills_each_of_them_was_only_probably_killed(
    machine: FakeMachine, tmp_path: Path
) -> None:
    master = _box(tmp_path, kind="outside", under=9)
    _kill(master, 5.0, 80, 81)
    master.close()
    _worker(tmp_path, 80, until=4.0)
    (found,) = [death for death in _all(machine, tmp_path) if death.pid == 80]
    assert (found.verdict, found.certain) == ("oom_kill", False)


@pytest.mark.parametrize(("on_record", "verdict"), [(True, "after_oom_kill"), (False, "oom_kill_of_descendant")])
def test_an_end_after_kills_that_are_on_record_is_told_from_one_that_is_their_only_witness(
    machine: FakeMachine, tmp_path: Path, on_record: bool, verdict: str
) -> None:
    master = _box(tmp_path, kind="outside", under=9)
    if on_record:
        _kill(master, 5.0, 80)
    _die(master, 6.0, "oom_kill_of_descendant", code=0)
    master.close()
    (found,) = _all(machine, tmp_path)
    assert found.verdict == verdict
    assert "ended after the kernel killed a process of it" in headline(found)


@pytest.mark.parametrize(
    ("last", "end", "verdict"),
    [
        (4.0, "asked", "ended_with_command"),
        (4.0, "over", "ended_with_command"),
        (1.0, "asked", "unknown"),
        (4.0, "", "unknown"),
    ],
    ids=["when it was told to end", "when it had ended", "long before", "while it went on"],
)
def test_who_goes_when_all_of_the_command_is_to_go_is_not_gone_without_a_word(
    machine: FakeMachine, tmp_path: Path, last: float, end: str, verdict: str
) -> None:
    master = _box(tmp_path, kind="outside", under=9)
    if end == "asked":
        master.event(T0 + 5.0, 1005.0, ASKED, "SIGTERM came")
    elif end == "over":
        _die(master, 5.0, "clean", code=0)
    master.close()
    _worker(tmp_path, 80, until=last)
    (found,) = [death for death in _all(machine, tmp_path) if death.pid == 80]
    assert found.verdict == verdict
