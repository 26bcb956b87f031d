"""What every engine must survive, with real workers behind a line that can be cut: a suite to inherit from.

Its fixture `site` has: `jobs` (the engine, which submits), `ledger`, `worker` (a Program), `line` (a Proxy between the
worker and the broker), `folder` (the worker's), and `ready` (what the worker says when it has started).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from memwarden.jobs.port import MOST_BYTES, Message
from memwarden.supervise.signals import pause
from tests.integrations.workers import Program, wait_for
from tests.jobs import work

if TYPE_CHECKING:
    from memwarden.jobs import Ledger
    from memwarden.jobs.ledger import Status
    from tests.integrations.proxy import Proxy

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
KILLS = 100 if SOAK else 10
JOBS = [work.copies_in_parts, work.copies] if SOAK else [work.copies_in_parts]
PATIENCE_S = 1800.0 if SOAK else 90.0


class Site(Protocol):
    """See the module's text."""

    jobs: Any
    ledger: Ledger
    worker: Program
    line: Proxy
    folder: str
    ready: str

    def texts(self, queue: str) -> list[bytes]:
        """The messages of a queue that nobody takes, whole, as the broker has them."""

    def put(self, text: str) -> None:
        """Put a message with this text into the worker's queue, past `send`."""


def revive(site: Site) -> None:
    """Start the worker anew where it has ended: RQ's does so when it loses its broker at the wrong moment."""
    if site.worker.process.poll() is not None:
        started = site.worker.text().count(site.ready)
        site.worker.again()
        site.worker.until(site.ready, times=started + 1)


def over(ledger: Ledger, root: str, site: Site | None = None) -> Status:
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
        wait_for(is_over, "the end of the job", patience_s=PATIENCE_S)
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


def pids(ledger: Ledger, engine: str) -> list[int]:
    return [part.pid for part in ledger.running(engine) if part.pid is not None]


def kill_child(site: Site) -> bool:
    """SIGKILL who has a part in hand."""
    for pid in pids(site.ledger, site.jobs.name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def kill_worker(site: Site) -> bool:
    """SIGKILL the worker's whole session, and start it anew. What left that session must not go on alone."""
    children = pids(site.ledger, site.jobs.name)
    started = site.worker.text().count(site.ready)
    site.worker.kill()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    site.worker.again()
    site.worker.until(site.ready, times=started + 1)
    return True


def cut(site: Site) -> bool:
    """Break the line to the broker."""
    site.line.cut()
    return True


class Survival:
    """The same tests for each engine."""

    @pytest.mark.slow
    @pytest.mark.timeout(PATIENCE_S * 2)
    @pytest.mark.parametrize("job", JOBS, ids=["parts", "whole"][: len(JOBS)])
    def test_every_row_once_though_children_workers_and_lines_die(self, site: Site, job: Any) -> None:
        """Chunk and cursor share a database: whatever dies when, each row's effect is there once."""
        chance = random.Random(11)
        count = 60 * KILLS
        path = fresh_rows(site, count)
        root = site.jobs.submit(job, count=count, pause_s=0.004)
        deaths, kinds = 0, [kill_child, kill_child, kill_child, kill_child, cut, kill_worker]
        chance.shuffle(kinds)
        while deaths < KILLS and site.ledger.status(root).state == "open":  # type: ignore[union-attr]  # it is there
            done = kinds[deaths % len(kinds)](site)
            deaths += done
            revive(site)
            pause(chance.uniform(0.05, 0.4) if done else 0.02)
        status = over(site.ledger, root, site)
        assert (status.state, site.ledger.result(root)) == ("done", count)
        assert work.rows_done(path) == work.rows_there(path)
        assert deaths >= KILLS // 2

    def test_a_broker_that_goes_away_costs_time_and_no_item(self, site: Site) -> None:
        """Parts are cut and submitted meanwhile; the work goes on when it is back, or goes on in place."""
        path = fresh_rows(site, 300)
        site.line.away()
        root = site.jobs.submit(work.copies_in_parts, count=300)  # by its own line, which holds
        pause(0.3)
        site.line.back()
        assert over(site.ledger, root, site).state == "done"
        assert work.rows_done(path) == work.rows_there(path)

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
        """Our text is a kilobyte at most, whatever the engine wraps around it; a usual one is far below."""
        for name in ("tests.jobs.work:total", "x" * 200):
            text = Message(job=name, root="a" * 24, part=123456, attempt=12, low="x" * 2000, high="9").encode()
            assert len(text) <= MOST_BYTES
            site.jobs.send(text, queue="parked", message_id=f"{'a' * 24}-123456-12")
        site.jobs.submit(work.total, count=10, queue="parked") if hasattr(site.jobs, "submit") else None
        found = site.texts("parked")
        assert len(found) == 3
        assert max(map(len, found)) <= 2.5 * MOST_BYTES  # with the engine's own headers, and base64
        assert min(map(len, found)) <= 1.25 * MOST_BYTES

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

    def test_what_waits_is_counted(self, site: Site) -> None:
        for _ in range(3):
            site.jobs.submit(work.total, count=1, queue="counted")
        counts = {each.queue: each.waiting for each in site.jobs.statistics()}
        assert counts.get("counted") == 3
