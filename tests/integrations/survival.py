"""What every engine must survive, with real workers behind a line that can be cut: suites to inherit from."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import JobError
from memwarden.jobs import job
from memwarden.jobs.port import LEASE_S, MOST_BYTES, Message
from memwarden.store import BUSY_S, FILE_NAME
from memwarden.supervise.signals import pause
from tests.flow.database.servers import SERVERS
from tests.integrations.sites import LIMITED
from tests.integrations.workers import program, wait_for
from tests.jobs import work
from tests.jobs.toll import SOAK, Toll, at_work
from tests.supervise.processes import no_cgroup_reason

if TYPE_CHECKING:
    from memwarden.jobs import Ledger
    from memwarden.jobs.ledger import Status
    from tests.integrations.brokers import Broker
    from tests.integrations.sites import Site

PATIENCE_S = 300.0 if SOAK else 90.0
# How many items a job has while things are killed, and how many a chunk has.
ITEMS = 600
CHUNK = 5


def revive(site: Site) -> None:
    """Start the worker anew where it has ended: RQ's does so when it loses its broker at the wrong moment."""
    if site.worker.process.poll() is not None:
        started = site.worker.text().count(site.ready)
        site.worker.again()
        site.worker.until(site.ready, times=started + 1)


def over(ledger: Ledger, root: str, site: Site | None = None, *, patience_s: float = PATIENCE_S) -> Status:
    """Wait until the job is over."""
    found: list[Status] = []

    def is_over() -> bool:
        status = ledger.status(root)
        assert status is not None
        found[:] = [status]
        if site is not None:
            revive(site)
        return status.state != "open"

    try:
        wait_for(is_over, "the end of the job", patience_s=patience_s)
    except AssertionError:
        raise AssertionError(f"not over: {found}, {ledger.attempts(root, most=5)}") from None
    return found[0]


def fresh_rows(site: Site, count: int) -> str:
    """A new database of so many rows, where the worker looks for it."""
    path = f"{site.folder}/data.db"
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)
    work.make_rows(path, count)
    return path


def kill_child(site: Site) -> int | None:
    """SIGKILL who has a part in hand."""
    for pid in at_work(site.ledger, site.jobs.name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return 1
    return None


def kill_worker(site: Site) -> int | None:
    """SIGKILL a worker at work, with its whole session, and start it anew. What left the session must not go on."""
    children = at_work(site.ledger, site.jobs.name)
    if not children:
        return None
    started = site.worker.text().count(site.ready)
    site.worker.kill()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    site.worker.again()
    site.worker.until(site.ready, times=started + 1)
    return len(children)


def cut(site: Site) -> int | None:
    """Break the line to the broker while there is work. Where the worker ends for it, what it had may go with it."""
    children = at_work(site.ledger, site.jobs.name)
    return len(children) if children and site.line.cut() else None


def is_open(site: Site, root: str) -> bool:
    revive(site)
    status = site.ledger.status(root)
    return status is not None and status.state == "open"


def once_where_the_sink_shares_the_database(site: Site, toll: Toll, job: Any) -> None:
    path = fresh_rows(site, ITEMS)
    root = site.jobs.submit(job, count=ITEMS, pause_s=0.004)
    toll.strike(lambda: is_open(site, root))
    status = over(site.ledger, root, site)
    assert (status.state, site.ledger.result(root)) == ("done", ITEMS)
    assert work.rows_done(path) == work.rows_there(path)


def a_chunk_again_for_each_death_where_it_does_not(site: Site, toll: Toll, path: str) -> None:
    before = toll.robbed
    root = site.jobs.submit(work.slow, count=ITEMS // 4, path=path)
    toll.strike(lambda: is_open(site, root))
    assert over(site.ledger, root, site).state == "done"
    done = work.effects(path)
    assert set(done) == set(range(ITEMS // 4))
    assert sum(done.values()) - len(done) <= CHUNK * (toll.robbed - before)


class Survival:
    """The same tests for each engine."""

    @pytest.mark.slow
    @pytest.mark.timeout(3600 if SOAK else 240)
    def test_nothing_is_lost_nor_done_twice_though_children_workers_and_lines_die(self, site: Site) -> None:
        """Chunk and cursor in one database: each effect once, whatever dies when. Else a chunk more for each death."""
        kinds = {
            "children": lambda: kill_child(site), "workers": lambda: kill_worker(site), "lines": lambda: cut(site),
        }  # fmt: skip
        toll, rounds = Toll(kinds, random.Random(11)), 0
        while not toll.is_paid:
            rounds += 1
            once_where_the_sink_shares_the_database(site, toll, work.copies_in_parts if rounds % 2 else work.copies)
            a_chunk_again_for_each_death_where_it_does_not(site, toll, f"{site.folder}/slow-{rounds}.db")
        print(f"{site.jobs.name} on {site.broker.url.partition(':')[0]}: {rounds} rounds, killed {toll}")

    def test_a_broker_that_goes_away_costs_time_and_no_item(self, site: Site) -> None:
        """Parts are cut and submitted meanwhile; the work goes on when it is back, or goes on in place."""
        path = fresh_rows(site, 300)
        site.line.away()
        root = site.jobs.submit(work.copies_in_parts, count=300)  # by its own line, which holds
        pause(0.3)
        site.line.back()
        assert over(site.ledger, root, site).state == "done"
        assert work.rows_done(path) == work.rows_there(path)

    @pytest.mark.slow
    def test_a_ledger_that_is_locked_for_longer_than_a_writer_waits_costs_no_lease(self, site: Site) -> None:
        """A disk that stalls: the part comes back when it is over, and not when its worker's lease is."""
        path = f"{site.folder}/locked.db"
        root = site.jobs.submit(work.slow, count=100, path=path)
        wait_for(lambda: bool(work.effects(path)), "the first effects")
        lock = "import sqlite3, sys, time; db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60);"
        lock += "db.execute('BEGIN IMMEDIATE'); time.sleep(float(sys.argv[2])); db.execute('ROLLBACK')"
        words = [sys.executable, "-c", lock, f"{site.folder}/memwarden.db", str(BUSY_S + 1.5)]
        subprocess.run(words, check=True, timeout=60)
        status = over(site.ledger, root, site, patience_s=LEASE_S / 2)
        assert status.state == "done"
        done = work.effects(path)
        assert set(done) == set(range(100))
        assert sum(done.values()) - 100 <= CHUNK * (status.attempts - 1)

    def test_told_to_end_it_stops_at_the_next_safe_point(self, site: Site) -> None:
        path = fresh_rows(site, 400)
        root = site.jobs.submit(work.copies, count=400, pause_s=0.01)
        wait_for(lambda: bool(work.rows_done(path)), "the first rows")
        started = site.worker.text().count(site.ready)
        site.worker.ask_to_end()
        status = site.ledger.status(root)
        assert status is not None
        assert status.state == "open"
        assert status.endings.get("drain", 0) >= 1  # a worker with two threads may take the rest once more
        assert len(work.rows_done(path)) < 400
        site.worker.again()
        site.worker.until(site.ready, times=started + 1)
        assert over(site.ledger, root, site).state == "done"
        assert work.rows_done(path) == work.rows_there(path)

    def test_messages_in_the_broker_are_small(self, site: Site) -> None:
        """A kilobyte at most, with all that the engine wraps around our text."""
        for name in ("tests.jobs.work:total", "x" * 200):
            text = Message(job=name, root="a" * 24, part=123456, attempt=12, low="x" * 2000, high="9").encode()
            assert len(text) <= MOST_BYTES
            site.jobs.send(text, queue="parked", message_id=f"{'a' * 24}-123456-12-89ab")
        site.jobs.submit(work.total, count=10, queue="parked")
        found = site.texts("parked")
        assert len(found) == 3
        print(f"{site.jobs.name}: whole messages of {sorted(map(len, found))} bytes")
        assert max(map(len, found)) <= MOST_BYTES, found

    @pytest.mark.parametrize(
        "text",
        [
            Message(job="tests.jobs.work:no_such", root="0" * 24, part=0, attempt=0).encode(),
            Message(job="no.such.module:job", root="0" * 24, part=0, attempt=0).encode(),
            "{}",
            "no message",
        ],
        ids=["job", "module", "fields", "text"],
    )
    def test_what_cannot_be_done_is_refused_and_the_worker_goes_on(self, site: Site, text: str) -> None:
        refused = site.worker.text().count("a message was refused")
        site.put(text)
        site.worker.until("a message was refused", times=refused + 1)
        root = site.jobs.submit(work.total, count=20)
        assert over(site.ledger, root, site).state == "done"

    def test_a_message_of_another_ledger_is_dropped_and_said_once_with_what_to_mend(self, site: Site) -> None:
        root = secrets.token_hex(12)
        for attempt in range(2):
            site.put(Message(job="tests.jobs.work:total", root=root, part=0, attempt=attempt).encode())
        site.worker.until(f"job '{root}' is not in the ledger of this worker ({site.folder}/{FILE_NAME})")
        again = site.jobs.submit(work.total, count=20)
        assert over(site.ledger, again, site).state == "done"
        assert site.worker.text().count(f"job '{root}' is not in the ledger") == 1

    def test_a_doubled_message_is_dropped_and_nothing_is_said(self, site: Site) -> None:
        root = site.jobs.submit(work.total, count=20)
        assert over(site.ledger, root, site).state == "done"
        site.put(Message(job="tests.jobs.work:total", root=root, part=0, attempt=0).encode())
        again = site.jobs.submit(work.total, count=20)
        assert over(site.ledger, again, site).state == "done"
        assert f"job '{root}' is not in the ledger" not in site.worker.text()

    def test_a_job_that_the_worker_does_not_know_says_why_in_the_ledger_and_comes_again_soon(self, site: Site) -> None:
        root = site.jobs.submit(job(name="known to its submitter")(work.numbers), count=1)

        def reason() -> str:
            with site.ledger._place.transaction() as db:
                part = site.ledger._part(db, root, 0)
            assert part is not None
            return part.error or ""

        wait_for(lambda: "import the module that has it before the worker starts" in reason(), "the reason")
        refused = site.worker.text().count("'known to its submitter': is not known here")
        site.worker.until("'known to its submitter': is not known here", times=refused + 1)
        assert site.ledger.cancel(root)

    def test_what_waits_is_counted(self, site: Site) -> None:
        for _ in range(3):
            site.jobs.submit(work.total, count=1, queue="counted")
        for _ in range(3):  # a queue that is not there costs nothing that stays
            counts = {each.queue: each.waiting for each in site.jobs.statistics()}
            assert counts.get("counted") == 3

    def test_a_worker_puts_down_what_waits_in_its_broker_for_everybody_to_see(self, site: Site) -> None:
        """`memwarden jobs stats`, `monitor --jobs` and reports read the ledger, and know no broker."""
        site.jobs.submit(work.total, count=1, queue="unserved")  # no worker serves it
        served = site.jobs.submit(work.total, count=1)
        assert over(site.ledger, served, site).state == "done"

        def counted() -> bool:
            rows = [row for row in site.ledger.statistics() if row["engine"] == site.jobs.name]
            known = {row["queue"]: row["broker_waiting"] for row in rows}
            return known.get(site.jobs.default_queue) == 0 and (known.get("unserved") or 0) >= 1  # sent again and again

        wait_for(counted, "the broker's queues in the ledger")


def kept_without_its_broker(jobs: Any) -> str:
    """Its broker is away: a job is kept, and the error, whose text this gives, is clear. Closes it."""
    root = jobs.submit(work.total, count=10)
    assert jobs.ledger.status(root).state == "open"
    with pytest.raises(JobError, match="cannot be reached") as caught:
        jobs.send("{}", queue="default")
    assert jobs.statistics() == ()
    jobs.close()
    return str(caught.value)


class Machines:
    """Workers of two machines, as far as one machine can have two: folders of their own, and a ledger in a database."""

    def test_they_share_a_ledger_in_a_database_and_one_does_what_the_other_left(
        self, site_class: type[Site], one_broker: Broker, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        here, there = (str(tmp_path_factory.mktemp(name)) for name in ("here", "there"))
        with (
            SERVERS["postgresql"]() as ledger,
            site_class.on(one_broker.numbered(4), here, MEMWARDEN_TEST_LEDGER=ledger) as made,
        ):
            environment = {"MEMWARDEN_TEST_BROKER": made.line.url, **site_class.environment()}
            environment["MEMWARDEN_TEST_LEDGER"] = ledger
            with program([*site_class.command(made.line.url, there)], there, **environment) as second:
                second.until(site_class.ready)
                root = made.jobs.submit(work.splits_at_once, count=300)
                assert over(made.ledger, root, made).state == "done"
                assert made.ledger.result(root) == list(range(300))
                root = made.jobs.submit(work.splits_at_once, count=300)
                wait_for(lambda: len(made.ledger.attempts(root)) > 3, "some parts at work")
                os.killpg(second.process.pid, signal.SIGKILL)
                assert over(made.ledger, root, made).state == "done"
                assert made.ledger.result(root) == list(range(300))
                assert not os.path.exists(f"{here}/{FILE_NAME}")


class KernelKills:
    """A worker in a cgroup that is too small for one item."""

    @pytest.mark.kernel
    @pytest.mark.skipif(bool(no_cgroup_reason()), reason=no_cgroup_reason() or "-")
    def test_a_child_that_the_kernel_killed_is_told_from_others_with_its_peak(
        self, site_class: type[Site], one_broker: Broker, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The item is found and quarantined, and the rest is done."""
        folder = str(tmp_path_factory.mktemp("oom"))
        with site_class.on(one_broker.numbered(1), folder, *LIMITED, sys.executable) as made:
            path = f"{folder}/effects.db"
            root = made.jobs.submit(work.poisoned, count=24, poison=13, path=path, how="hog")
            status = over(made.ledger, root)
            assert (status.state, status.quarantined, status.endings.get("oom_kill")) == ("done", 1, 3)
            assert work.effects(path).keys() == set(range(24)) - {13}
            peaks = [each["peak_bytes"] for each in made.ledger.attempts(root) if each["ending"] == "oom_kill"]
            known = [each for each in peaks if each is not None]
            assert min(known) > 300 << 20
            assert len(known) == 3 or not made.each_peak
            self.survived(made)

    def survived(self, site: Site) -> None:
        """What else holds then."""

    def test_a_limit_above_what_the_fence_leaves_is_lowered_and_said_once(
        self, site_class: type[Site], one_broker: Broker, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Once for the worker, however many of its children have a part, and by the name of what bounds it."""
        folder = str(tmp_path_factory.mktemp("fenced"))
        fenced = ["-m", "memwarden", "run", "--limit", "900M", "--fence", "on", "--quiet", "--", sys.executable]
        with site_class.on(one_broker.numbered(3), folder, *fenced) as made:
            root = made.jobs.submit(work.splits_at_once, count=60)
            status = over(made.ledger, root)
            assert (status.state, made.ledger.result(root)) == ("done", list(range(60)))
            said = [line for line in made.worker.text().splitlines() if "its limit of 1 GiB" in line]
            assert len(said) == 1
            assert "process may have now" in said[0] or "container may have" in said[0]


class Pressure:
    """A worker that begins while memory is short, which a file says."""

    def test_work_waits_while_memory_is_short(
        self, site_class: type[Site], one_broker: Broker, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = str(tmp_path_factory.mktemp("short"))
        level = f"{folder}/level"
        with open(level, "w", encoding="ascii") as file:
            file.write("CRITICAL")
        forced = {"MEMWARDEN_TEST_PRESSURE": "1", "MEMWARDEN_PRESSURE_FILE": level}
        with site_class.on(one_broker.numbered(2), folder, **forced) as made:
            made.worker.until(made.shut)
            root = made.jobs.submit(work.total, count=10)
            with open(level, "w", encoding="ascii") as file:
                file.write("NORMAL")
            made.worker.until(made.open)
            assert over(made.ledger, root).state == "done"
