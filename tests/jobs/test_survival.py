"""What dies and what is left: runners and workers killed at random, kernel kills, exactly once where it is promised."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.jobs import Ledger, Runner
from memwarden.store import Store
from memwarden.supervise.signals import pause
from tests.jobs import work
from tests.jobs.processes import end, start, until
from tests.supervise.processes import is_alive, no_cgroup_reason

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
KILLS = 100 if SOAK else 10
# Parts begin small, whatever this process holds of other tests.
ANEW: dict[str, Any] = {"start": "spawn", "modules": ("tests.jobs.work",)}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("jobs"))


@pytest.fixture
def database(folder: str, monkeypatch: pytest.MonkeyPatch) -> str:
    path = f"{folder}/data.db"
    monkeypatch.setenv("MEMWARDEN_TEST_DATABASE", path)
    return path


@pytest.fixture
def ledger(folder: str) -> Iterator[Ledger]:
    with Store(folder) as store:
        yield Ledger(store)


def state(ledger: Ledger, root: str) -> str:
    found = ledger.status(root)
    assert found is not None
    return found.state


def attempts(ledger: Ledger) -> list[int]:
    """The pids that have a part now."""
    return [part.pid for part in ledger.running() if part.pid is not None]


def kill_runner(process: subprocess.Popen[str], ledger: Ledger) -> None:
    """SIGKILL it; its children must go with it."""
    children = attempts(ledger)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not any(is_alive(pid) for pid in children), "the end of its children")


@pytest.mark.slow
@pytest.mark.parametrize("job", [work.copies, work.copies_in_parts], ids=["whole", "parts"])
def test_every_row_exactly_once_though_workers_and_runners_are_killed(
    folder: str, database: str, ledger: Ledger, job: Any
) -> None:
    """Chunk and cursor share a database: whatever is killed, each row's effect is there once, and so is its result."""
    chance = random.Random(7)
    count = (140 if SOAK else 60) * KILLS
    work.make_rows(database, count)
    with Runner(folder, memory="1G") as runner:
        root = runner.submit(job, {"count": count, "pause_s": 0.004})
    process = start(folder)
    kills = 0
    try:
        while kills < KILLS and state(ledger, root) == "open":
            pause(chance.uniform(0.05, 0.4))
            if kills % 4 == 3:
                kill_runner(process, ledger)
                kills += 1
                process = start(folder)
                until(lambda: bool(attempts(ledger)) or state(ledger, root) != "open", "a new beginning")
                continue
            for pid in chance.sample(alive := attempts(ledger), min(1, len(alive))):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills += 1
        until(lambda: state(ledger, root) != "open", "the end of the job")
    finally:
        end(process)
    assert kills >= KILLS // 2
    assert state(ledger, root) == "done", (ledger.status(root), ledger.attempts(root, most=20))
    assert work.rows_done(database) == work.rows_there(database)
    assert ledger.result(root) == count


def test_control_arm_without_the_shared_transaction_rows_come_twice(folder: str, ledger: Ledger) -> None:
    """The same kill, with effects elsewhere: at most the chunk in hand is done again, and it can be seen."""
    with Runner(folder, memory="1G", workers=1, **ANEW) as runner:
        root = runner.submit(work.total, {"count": 100, "path": f"{folder}/effects.db"})
        message = runner.ledger.outbox(root)
        assert message == []
        claim = runner.ledger.claim(_message(runner, root), _gone_worker())
        assert not isinstance(claim, str)
        work.note(f"{folder}/effects.db", list(range(10)))  # it did its first chunk, and died before the cursor moved
        runner.run(until_idle=True)
        assert runner.status(root).state == "done"
    done = work.effects(f"{folder}/effects.db")
    assert set(done) == set(range(100))
    assert sum(done.values()) == 110


def _message(runner: Runner, root: str) -> Any:
    from memwarden.jobs import Message

    return Message(job="tests.jobs.work:total", root=root, part=0, attempt=0)


def _gone_worker() -> Any:
    from memwarden.jobs.ledger import Worker

    return Worker.here().replace(pid=2**22 - 1, start="1")


@pytest.mark.kernel
def test_what_the_kernel_kills_is_recognised_quarantined_and_the_rest_is_done(folder: str) -> None:
    if no_cgroup_reason():
        pytest.skip(no_cgroup_reason())
    with Runner(folder, memory="1G", workers=1, fence="off", **ANEW) as runner:
        given = {"count": 40, "poison": 13, "path": f"{folder}/effects.db", "how": "hog"}
        root = runner.submit(work.poisoned, given)
        runner.run(until_idle=True)
        status = runner.status(root)
        assert (status.state, status.quarantined, status.endings["oom_kill"]) == ("done", 1, 3)
        (found,) = runner.ledger.quarantined(root)
        assert (found.low, found.high, found.kind, found.deaths) == ("12", "13", "oom_kill", 3)
    assert work.effects(f"{folder}/effects.db").keys() == set(range(40)) - {13}


@pytest.mark.kernel
def test_behind_the_fence_the_same_item_is_a_memory_error_and_no_kernel_kill(folder: str) -> None:
    if no_cgroup_reason():
        pytest.skip(no_cgroup_reason())
    with Runner(folder, memory="1G", workers=1, fence="on", **ANEW) as runner:
        given = {"count": 40, "poison": 13, "path": f"{folder}/effects.db", "how": "hog"}
        root = runner.submit(work.poisoned, given)
        runner.run(until_idle=True)
        status = runner.status(root)
        assert (status.state, status.quarantined) == ("done", 1)
        assert "oom_kill" not in status.endings
        assert status.endings["memory_error"] == 3
    assert work.effects(f"{folder}/effects.db").keys() == set(range(40)) - {13}


@pytest.mark.kernel
@pytest.mark.slow
def test_runs_below_what_the_whole_job_needs_all_complete(folder: str) -> None:
    """It would need 480 MiB as a whole and may have 160: not one kernel kill, nothing lost, nothing twice."""
    if no_cgroup_reason():
        pytest.skip(no_cgroup_reason())
    rounds = 100 if SOAK else 5
    with Runner(folder, memory="1G", workers=2, fence="off", **ANEW) as runner:
        roots = [
            runner.submit(work.leaks, {"count": 60, "mib": 8, "path": f"{folder}/{number}.db"})
            for number in range(rounds)
        ]
        runner.run(until_idle=True)
        endings = [runner.status(root).endings for root in roots]
        assert [runner.result(root) for root in roots] == [60] * rounds
    assert all(set(each) == {"soft_stop", "done"} for each in endings)
    assert all(work.effects(f"{folder}/{n}.db") == dict.fromkeys(range(60), 1) for n in range(rounds))


def test_a_body_that_cannot_be_split_says_so_and_ends_with_a_clear_line(folder: str, ledger: Ledger) -> None:
    with Runner(folder, memory="1G") as runner:
        root = runner.submit(work.swells, {"mib": 400})
    process = start(folder, "--fence", "off", "--until-idle")
    said = process.communicate(timeout=60)[1]
    status = ledger.status(root)
    assert status is not None
    assert (status.state, status.endings) == ("failed", {"soft_stop": 3})
    assert "three deaths at one place, the last: soft_stop" in str(status.error)
    assert said.count("no items to split or to resume by") == 3  # once in each of the three processes


def test_what_hangs_is_ended_at_its_time_out_and_quarantined(folder: str) -> None:
    path = f"{folder}/effects.db"
    with Runner(folder, memory="1G", workers=1, **ANEW) as runner:
        root = runner.submit(work.hangs, {"count": 5, "path": path, "forever": 2})
        runner.run(until_idle=True)
        status = runner.status(root)
    assert (status.state, status.quarantined, status.endings["timeout"]) == ("done", 1, 3)
    assert set(work.effects(path)) == set(range(5))


def test_a_worker_told_to_stop_keeps_the_place_of_its_parts(folder: str, ledger: Ledger) -> None:
    path, count = f"{folder}/effects.db", 100
    with Runner(folder, memory="1G") as runner:
        root = runner.submit(work.slow, {"count": count, "path": path})
    process = start(folder)
    until(lambda: bool(work.effects(path)), "its first effects")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    status = ledger.status(root)
    assert status is not None
    assert (status.state, status.endings) == ("open", {"drain": 1})
    process = start(folder, "--until-idle")
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, state(ledger, root)) == (0, "done"), (
        said,
        ledger.status(root),
        ledger.running(),
        ledger.next_due_s("local"),
    )
    assert work.effects(path) == dict.fromkeys(range(count), 1)


def test_a_cancelled_body_that_never_looks_is_ended(folder: str) -> None:
    """It reaches no safe point; the runner asks, waits for the grace, and ends its process."""
    path = f"{folder}/effects.db"
    with Runner(folder, memory="1G", workers=1, grace="100ms", **ANEW) as runner:
        root = runner.submit(work.hangs_for_ever, {"path": path})
        runner.begin()

        def begun() -> bool:
            runner.turn()
            return bool(work.effects(path))

        until(begun, "its first effect")
        (pid,) = runner.pids
        assert runner.ledger.cancel(root)
        runner.run(until_idle=True)
        assert not is_alive(pid)
        assert runner.status(root).state == "cancelled"


def test_a_part_whose_process_never_gets_to_it_is_given_up(folder: str) -> None:
    """Its module ends the process while it is imported: that is not tried for ever."""
    with Runner(folder, memory="1G", workers=1, start="spawn", modules=("tests.jobs.ends_at_import",)) as runner:
        root = runner.submit(work.total, {"count": 3})
        runner.run(until_idle=True)
        status = runner.status(root)
    assert status.state == "failed"
    assert "5 times its process ended before it took the part (crash" in str(status.error)


def test_two_runners_share_one_ledger(folder: str, ledger: Ledger) -> None:
    path = f"{folder}/effects.db"
    with Runner(folder, memory="1G") as runner:
        roots = [runner.submit(work.slow, {"count": 50, "path": path}) for _ in range(8)]
    both = [start(folder, "--until-idle") for _ in range(2)]
    try:
        until(lambda: all(state(ledger, root) == "done" for root in roots), "the end of all jobs")
    finally:
        for process in both:
            end(process)
    assert work.effects(path) == dict.fromkeys(range(50), 8)


def test_nothing_is_left_behind(folder: str) -> None:
    """No cgroup, no process, no row of the ledger that is still running."""
    with Runner(folder, memory="4G", workers=2, **ANEW) as runner:
        for _ in range(3):
            runner.submit(work.slow, {"count": 10_000, "path": f"{folder}/effects.db"})
        runner.begin()

        def both_at_work() -> bool:
            runner.turn()
            return len(attempts(runner.ledger)) == 2

        until(both_at_work, "both at work")
        pids = runner.pids
        slots = runner._slots
        assert slots is not None
        outer = slots._confinement.cgroup
    assert not any(is_alive(pid) for pid in pids)
    if outer is not None and outer.own:
        assert not os.path.exists(outer.path)
    with closing(sqlite3.connect(f"{folder}/memwarden.db")) as db:
        assert db.execute("SELECT COUNT(*) FROM job_parts WHERE state = 'running'").fetchone() == (0,)
