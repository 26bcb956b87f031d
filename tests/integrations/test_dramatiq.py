"""Dramatiq for real: the contract and the survival suite on Redis, a job on RabbitMQ, then what is Dramatiq's own."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from memwarden.errors import ConfigError, JobError
from tests.integrations.brokers import BROKERS
from tests.integrations.sites import Site
from tests.integrations.survival import (
    KernelKills,
    Machines,
    Pressure,
    Survival,
    fresh_rows,
    kept_without_its_broker,
    over,
    revive,
)
from tests.integrations.workers import wait_for
from tests.jobs import work
from tests.jobs.contract import EngineContract
from tests.jobs.toll import SOAK

pytest.importorskip("dramatiq")
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from memwarden.integrations.dramatiq import Jobs
from tests.integrations import dramatiq_app

pytestmark = pytest.mark.server
COMMAND = ["-m", "dramatiq", "tests.integrations.dramatiq_app", "--processes", "1", "--threads", "2"]
COMMAND += ["--worker-shutdown-timeout", "20000"]


class DramatiqSite(Site):
    """A worker process with two threads."""

    ready = "Worker process is ready"
    shut, open = "no more parts are begun", "parts are begun again"

    @classmethod
    def command(cls, url: str, folder: str) -> list[str]:
        return COMMAND

    @classmethod
    def environment(cls) -> dict[str, str]:
        return {"dramatiq_restart_delay": "300", "dramatiq_queue_prefetch": "2"}

    def make(self, url: str, folder: str, ledger: str | None) -> Jobs:
        return dramatiq_app.make(url, folder, ledger=ledger)

    def texts(self, queue: str) -> list[bytes]:
        broker: Any = self.jobs.broker
        if "redis" in self.broker.url:
            return list(broker.client.hvals(f"dramatiq:{queue}.msgs"))
        found = []
        while (message := broker.channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(message[2])
        return found

    def close(self) -> None:
        super().close()
        self.jobs.broker.close()


# The whole suite on RabbitMQ too where there is time for it.
SITE, ON = DramatiqSite, sorted(BROKERS) if SOAK else ["redis"]


class TestDramatiq(EngineContract):
    """The contract."""


class TestDramatiqSurvives(Survival):
    """The survival suite."""


class TestDramatiqOnTwoMachines(Machines):
    pass


class TestDramatiqAndTheKernel(KernelKills):
    """Kernel kills."""

    def survived(self, site: Site) -> None:
        """The worker process lives on: Dramatiq would end all of them with it."""
        assert "exited unexpectedly" not in site.worker.text()


class TestDramatiqUnderPressure(Pressure):
    """Work that waits."""


def test_the_same_on_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A job in parts, once every row."""
    folder = str(tmp_path_factory.mktemp("amqp"))
    with BROKERS["amqp"]() as broker, DramatiqSite.on(broker, folder) as made:
        path = fresh_rows(made, 200)
        root = made.jobs.submit(work.copies_in_parts, count=200)
        assert over(made.ledger, root).state == "done"
        assert work.rows_done(path) == work.rows_there(path)
        TestDramatiqSurvives().test_what_waits_is_counted(made)
        TestDramatiqSurvives().test_messages_in_the_broker_are_small(made)


def test_another_encoder_is_refused() -> None:
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        with pytest.raises(ConfigError, match="messages of memory-aware jobs are JSON"):
            Jobs(RedisBroker(url="redis://127.0.0.1:9/0"))  # type: ignore[no-untyped-call]  # Dramatiq's
    finally:
        dramatiq.set_encoder(dramatiq.JSONEncoder())


def test_a_broker_that_is_away_is_a_clear_error_and_the_job_is_kept(tmp_path: Any) -> None:
    jobs = dramatiq_app.make("redis://127.0.0.1:9/0?socket_connect_timeout=1", os.fspath(tmp_path))
    kept_without_its_broker(jobs)
    jobs.broker.close()


def test_a_job_that_names_no_queue_goes_to_the_first_that_workers_take_from(tmp_path: Any) -> None:
    jobs = dramatiq_app.make("redis://127.0.0.1:9/0?socket_connect_timeout=1", os.fspath(tmp_path), queues=("own", "b"))
    (unnamed, named) = (jobs.ledger.status(jobs.submit(work.total, count=1, queue=each)) for each in (None, "b"))
    assert unnamed is not None
    assert named is not None
    assert (unnamed.queue, named.queue) == ("own", "b")
    jobs.close()
    jobs.broker.close()


def test_on_a_broker_in_memory_a_job_fails_with_a_hint_and_ordinary_actors_work(tmp_path: Any) -> None:
    """As in an app's tests. No process is forked there."""
    broker, done = StubBroker(), []
    jobs = Jobs(broker, folder=os.fspath(tmp_path), pressure=False)

    def ordinary(number: int) -> None:
        done.append(number)

    actor: Any = dramatiq.actor(broker=broker)(ordinary)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        assert jobs._forge is None
        root = jobs.submit(work.total, count=100)
        actor.send(1)
        with pytest.raises(JobError, match="run them on the local engine"):
            broker.join("default", fail_fast=True, timeout=10_000)
        worker.join()
        status = jobs.ledger.status(root)
        assert status is not None
        assert (status.state, done) == ("failed", [1])
        assert "StubBroker" in (status.error or "")
    finally:
        worker.stop()
        jobs.close()


def test_the_forge_is_forked_before_the_worker_process_has_threads(site: DramatiqSite) -> None:
    assert site.worker.text().count(site.ready) >= 1
    assert "has threads already" not in site.worker.text()


def test_a_worker_process_whose_forge_was_killed_ends_and_takes_no_more_messages(site: DramatiqSite) -> None:
    """It could not work any more; what it was given goes to the one that is started for it, and not after an age."""
    path = f"{site.folder}/forgeless.db"
    root = site.jobs.submit(work.slow, count=60, path=path)
    wait_for(lambda: bool(work.effects(path)), "the first effects")
    forges = {json.loads(part.holder)["parent"] for part in site.ledger.running("dramatiq") if part.holder}
    for forge in forges:
        os.kill(forge, signal.SIGKILL)
    assert over(site.ledger, root, site).state == "done"
    assert work.effects(path).keys() == set(range(60))
    wait_for(lambda: "this worker process ends" in site.worker.text(), "its last words")
    wait_for(lambda: site.worker.process.poll() is not None or site.worker.text().count(site.ready) > 1, "its end")
    revive(site)


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
