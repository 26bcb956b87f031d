"""What dies and what is left: runners and workers killed at random, kernel kills, exactly once where it is promised."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.jobs import Ledger, Runner
from memwarden.jobs.slots import Slot
from memwarden.store import Store
from memwarden.supervise.cgroup import MemoryGroup
from tests.jobs import work
from tests.jobs.processes import end, start, until
from tests.jobs.toll import SOAK, Toll, at_work
from tests.supervise.processes import is_alive, no_cgroup_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

# How many items a job has while things are killed.
ITEMS = 1200
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


class Workers:
    """A worker command over the folder, that can be killed and started anew."""

    def __init__(self, folder: str, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.process = start(folder)

    def kill_child(self) -> int | None:
        """SIGKILL one that has a part."""
        for pid in at_work(self.ledger, "local"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return 1
        return None

    def kill_runner(self) -> int | None:
        """SIGKILL it at work; its children must go with it."""
        children = at_work(self.ledger, "local")
        if not children:
            return None
        self.process.kill()
        self.process.communicate(timeout=60)
        until(lambda: not any(is_alive(pid) for pid in children), "the end of its children")
        self.process = start(self.folder)
        return len(children)


@pytest.fixture
def workers(folder: str, database: str, ledger: Ledger) -> Iterator[Workers]:
    made = Workers(folder, ledger)
    try:
        yield made
    finally:
        end(made.process)


@pytest.mark.slow
@pytest.mark.timeout(3600 if SOAK else 240)
def test_nothing_is_lost_nor_done_twice_though_workers_and_runners_are_killed(
    workers: Workers, database: str, ledger: Ledger
) -> None:
    """Chunk and cursor in one database: each effect once, whatever dies when. Else a chunk more for each death."""
    toll, rounds = Toll({"children": workers.kill_child, "runners": workers.kill_runner}, random.Random(7)), 0

    def worked_off(job: Any, given: dict[str, Any]) -> str:
        with Runner(workers.folder, memory="1G") as runner:
            root = runner.submit(job, given)
        toll.strike(lambda: state(ledger, root) == "open")
        until(lambda: state(ledger, root) != "open", "the end of the job")
        assert state(ledger, root) == "done", (ledger.status(root), ledger.attempts(root, most=20))
        return root

    while not toll.is_paid:
        rounds += 1
        for name in (database, f"{database}-wal", f"{database}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)
        work.make_rows(database, ITEMS)
        job = work.copies if rounds % 2 else work.copies_in_parts
        root = worked_off(job, {"count": ITEMS, "pause_s": 0.004})
        assert work.rows_done(database) == work.rows_there(database)
        assert ledger.result(root) == ITEMS
        before, path = toll.robbed, f"{workers.folder}/slow-{rounds}.db"
        worked_off(work.slow, {"count": ITEMS // 4, "path": path})
        done = work.effects(path)
        assert set(done) == set(range(ITEMS // 4))
        assert sum(done.values()) - len(done) <= 5 * (toll.robbed - before)
    print(f"local runner: {rounds} rounds, killed {toll}")


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
@pytest.mark.parametrize(
    ("fence", "kind", "other"), [("off", "oom_kill", "memory_error"), ("on", "memory_error", "oom_kill")]
)
def test_an_item_that_never_fits_is_quarantined_and_the_rest_is_done(
    folder: str, fence: str, kind: str, other: str
) -> None:
    """Without the fence the kernel kills its workers, which is seen; behind it the same item is a MemoryError."""
    if no_cgroup_reason():
        pytest.skip(no_cgroup_reason())
    with Runner(folder, memory="1G", workers=1, fence=fence, **ANEW) as runner:
        given = {"count": 40, "poison": 13, "path": f"{folder}/effects.db", "how": "hog"}
        root = runner.submit(work.poisoned, given)
        runner.run(until_idle=True)
        status = runner.status(root)
        assert (status.state, status.quarantined, status.endings[kind]) == ("done", 1, 3)
        assert other not in status.endings
        (found,) = runner.ledger.quarantined(root)
        assert (found.low, found.high, found.kind, found.deaths) == ("12", "13", kind, 3)
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


@pytest.mark.parametrize("how", ["exit", "interrupt", "cancel", "os"])
def test_a_job_that_ends_its_process_by_itself_is_not_begun_for_ever(folder: str, ledger: Ledger, how: str) -> None:
    with Runner(folder, memory="1G", workers=1) as runner:
        root, other = (
            runner.submit(made, given) for made, given in ((work.ends, {"how": how}), (work.waits, {"count": 3}))
        )
        runner.run(until_idle=True)
    status = ledger.status(root)
    assert status is not None
    expected = {"error": 2} if how == "cancel" else {"crash": 3}
    assert (status.state, status.endings) == ("failed", expected)
    assert ledger.result(other) == 3


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


def test_a_part_whose_ledger_went_away_is_not_blamed_and_waits_a_while(folder: str) -> None:
    """Its child says so by its exit code."""
    with Runner(folder, memory="1G", workers=1, start="spawn", modules=("tests.jobs.work",)) as runner:
        root = runner.submit(work.ends_like_one_without_its_ledger, {"count": 2})
        runner.begin()

        def ends_without_it() -> bool:
            runner.turn()
            return bool(runner.status(root).endings.get("killed"))

        until(ends_without_it, "the first of them")
        with runner.store.transaction() as db:
            row = db.execute("SELECT blamed, careful, innocent, due_unix_s > 0 FROM job_parts").fetchone()
        assert tuple(row) == (None, 0, 1, 1)
        assert runner.ledger.attempts(root)[0]["text"] == "it ended by itself: its job or its store could not be had"


def test_a_cgroup_that_could_not_be_limited_tells_nothing_of_a_death(folder: str) -> None:
    slot = Slot(MemoryGroup(f"{folder}/nowhere", version=2, own=True))
    assert not slot.begin(64 << 20)
    assert slot.folder == ""


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
            return len(at_work(runner.ledger, "local")) == 2

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
