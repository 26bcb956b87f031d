"""Dramatiq for real: the contract and the survival suite on Redis, a job on RabbitMQ, then what is Dramatiq's own."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import ConfigError, JobError
from tests.integrations.brokers import BROKERS, Broker
from tests.integrations.proxy import Proxy, proxy
from tests.integrations.survival import SOAK, Survival, fresh_rows, over
from tests.integrations.workers import Bench, Program, program, wait_for
from tests.jobs import work
from tests.jobs.contract import EngineContract
from tests.supervise.processes import no_cgroup_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("dramatiq")
import dramatiq
from dramatiq.brokers.redis import RedisBroker

from memwarden.integrations.dramatiq import Jobs
from tests.integrations import dramatiq_app

pytestmark = pytest.mark.server
COMMAND = ["-m", "dramatiq", "tests.integrations.dramatiq_app", "--processes", "1", "--threads", "2"]
COMMAND += ["--worker-shutdown-timeout", "20000"]


class Site:
    """A worker process with two threads behind a line to its broker, and the engine of this process."""

    ready = "Worker process is ready"

    def __init__(self, broker: Broker, line: Proxy, worker: Program, folder: str) -> None:
        self.line, self.worker, self.folder = line, worker, folder
        self.jobs = dramatiq_app.make(broker.url, folder)
        self.ledger = self.jobs.ledger

    def texts(self, queue: str) -> list[bytes]:
        broker: Any = self.jobs.broker
        return list(broker.client.hvals(f"dramatiq:{queue}.msgs"))

    def put(self, text: str) -> None:
        self.jobs.send(text, queue="default")

    def close(self) -> None:
        self.jobs.close()
        self.jobs.broker.close()


@contextlib.contextmanager
def site_on(broker: Broker, folder: str, *words: str, **environment: str) -> Iterator[Site]:
    with proxy(broker.url) as line:
        environment |= {
            "MEMWARDEN_TEST_BROKER": line.url, "MEMWARDEN_TEST_DATABASE": f"{folder}/data.db",
            "dramatiq_restart_delay": "300", "dramatiq_queue_prefetch": "1",
        }  # fmt: skip
        with program([*words, *COMMAND], folder, **environment) as worker:
            worker.until(Site.ready)
            made = Site(broker, line, worker, folder)
            try:
                yield made
            finally:
                made.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with BROKERS["redis"]() as made:
        yield made


@pytest.fixture(scope="module")
def site(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_on(broker, str(tmp_path_factory.mktemp("site"))) as made:
        yield made


@pytest.fixture
def bench(site: Site, tmp_path: Any) -> Bench:
    return Bench(site.jobs, site.ledger, os.fspath(tmp_path))


class TestDramatiq(EngineContract):
    """The contract."""


class TestDramatiqSurvives(Survival):
    """The survival suite."""


def test_the_same_on_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A job in parts, once every row; the whole suite of deaths where there is time for it."""
    folder = str(tmp_path_factory.mktemp("amqp"))
    with BROKERS["amqp"]() as broker, site_on(broker, folder) as made:
        if SOAK:
            TestDramatiqSurvives().test_every_row_once_though_children_workers_and_lines_die(made, work.copies_in_parts)
        path = fresh_rows(made, 200)
        root = made.jobs.submit(work.copies_in_parts, count=200)
        assert over(made.ledger, root).state == "done"
        assert work.rows_done(path) == work.rows_there(path)
        TestDramatiqSurvives().test_what_waits_is_counted(made)


@pytest.mark.kernel
@pytest.mark.skipif(bool(no_cgroup_reason()), reason=no_cgroup_reason() or "-")
def test_a_child_that_the_kernel_killed_is_told_from_others_with_its_peak(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And the worker process lives on: Dramatiq would end all of them with it."""
    folder = str(tmp_path_factory.mktemp("oom"))
    limited = ["-m", "memwarden", "run", "--limit", "500M", "--cgroup", "require", "--fence", "off", "--quiet", "--"]
    other = Broker(broker.url.replace("/0", "/1"), None, None)  # queues of its own
    with site_on(other, folder, *limited, sys.executable) as made:
        path = f"{folder}/effects.db"
        root = made.jobs.submit(work.poisoned, count=24, poison=13, path=path, how="hog")
        status = over(made.ledger, root)
        assert (status.state, status.quarantined, status.endings.get("oom_kill")) == ("done", 1, 3)
        assert work.effects(path).keys() == set(range(24)) - {13}
        peaks = [each["peak_bytes"] for each in made.ledger.attempts(root) if each["ending"] == "oom_kill"]
        assert min(peaks) > 300 << 20
        assert "exited unexpectedly" not in made.worker.text()


def test_parts_wait_while_memory_is_short(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("short"))
    other = Broker(broker.url.replace("/0", "/2"), None, None)
    level = f"{folder}/level"
    with open(level, "w", encoding="ascii") as file:
        file.write("CRITICAL")
    forced = {"MEMWARDEN_TEST_PRESSURE": "1", "MEMWARDEN_PRESSURE_FILE": level}
    with site_on(other, folder, **forced) as made:
        made.worker.until("no more parts are begun")
        root = made.jobs.submit(work.total, count=10)
        with open(level, "w", encoding="ascii") as file:
            file.write("NORMAL")
        made.worker.until("parts are begun again")
        assert over(made.ledger, root).state == "done"


def test_another_encoder_is_refused() -> None:
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        with pytest.raises(ConfigError, match="messages of memory-aware jobs are JSON"):
            Jobs(RedisBroker(url="redis://127.0.0.1:9/0"))  # type: ignore[no-untyped-call]  # Dramatiq's
    finally:
        dramatiq.set_encoder(dramatiq.JSONEncoder())


def test_a_broker_that_is_away_is_a_clear_error_and_the_job_is_kept(tmp_path: Any) -> None:
    jobs = dramatiq_app.make("redis://127.0.0.1:9/0?socket_connect_timeout=1", os.fspath(tmp_path))
    root = jobs.submit(work.total, count=10)
    status = jobs.ledger.status(root)
    assert status is not None
    assert status.state == "open"
    with pytest.raises(JobError, match="cannot be reached"):
        jobs.send("{}", queue="default")
    assert jobs.statistics() == ()
    jobs.close()
    jobs.broker.close()


def test_the_forge_goes_with_its_worker_process(site: Site) -> None:
    """And what it had in hand stops at a safe point, or dies and comes back."""
    path = f"{site.folder}/orphans.db"
    root = site.jobs.submit(work.slow, count=200, path=path)
    wait_for(lambda: bool(work.effects(path)), "the first effects")
    started = site.worker.text().count(site.ready)
    site.worker.kill()
    site.worker.again()
    site.worker.until(site.ready, times=started + 1)
    assert over(site.ledger, root, site).state == "done"
    assert work.effects(path).keys() == set(range(200))
