"""RQ for real: the contract and the survival suite on Redis, then what is RQ's own."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import ConfigError
from tests.integrations.sites import Site
from tests.integrations.survival import KernelKills, Machines, Pressure, Survival, kept_without_its_broker, over
from tests.integrations.workers import wait_for
from tests.jobs import work
from tests.jobs.contract import EngineContract
from tests.jobs.toll import at_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integrations.brokers import Broker

pytest.importorskip("rq")
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer, PickleSerializer

from memwarden.integrations.rq import Jobs, MemoryWorker
from tests.integrations import rq_work

pytestmark = pytest.mark.server


class RQSite(Site):
    """A worker, with one horse at a time."""

    ready = "what dies comes back"
    redis: Any

    @classmethod
    def command(cls, url: str, folder: str) -> list[str]:
        return ["-m", "tests.integrations.rq_worker", url, folder]

    def make(self, url: str, folder: str, ledger: str | None) -> Jobs:
        self.redis = Redis.from_url(url)
        return Jobs(self.redis, folder=folder, resend_s=3.0, ledger=ledger)

    def texts(self, queue: str) -> list[bytes]:
        """What Redis holds of a message: the hash of its job."""
        found = []
        for key in self.redis.lrange(f"rq:queue:{queue}", 0, -1):
            fields = self.redis.hgetall(b"rq:job:" + key)
            found.append(b"".join(name + value for name, value in fields.items()))
        return found

    def close(self) -> None:
        super().close()
        self.redis.close()


SITE, ON = RQSite, ["redis"]


class TestRQ(EngineContract):
    """The contract."""


class TestRQSurvives(Survival):
    """The survival suite."""


class TestRQOnTwoMachines(Machines):
    pass


class TestRQAndTheKernel(KernelKills):
    """Kernel kills."""


class TestRQUnderPressure(Pressure):
    """Work that waits."""


def test_another_serializer_is_refused(broker: Broker) -> None:
    with Redis.from_url(broker.url) as connection, pytest.raises(ConfigError, match="messages of memory-aware jobs"):
        MemoryWorker(["default"], connection=connection, serializer=PickleSerializer)


def test_a_broker_that_is_away_is_a_clear_error_and_the_job_is_kept(tmp_path: Any) -> None:
    with Redis(port=9, retry=Retry(NoBackoff(), 0)) as connection:
        kept_without_its_broker(Jobs(connection, folder=os.fspath(tmp_path)))


def test_nothing_of_a_done_message_stays_in_redis(site: RQSite) -> None:
    root = site.jobs.submit(work.total, count=20)
    assert over(site.ledger, root).state == "done"
    wait_for(lambda: not site.redis.keys(f"rq:job:{root}*"), "the message gone")


@pytest.mark.parametrize("function", [rq_work.ends_a_program, rq_work.ends_a_fork])
def test_what_an_ordinary_job_starts_can_be_told_to_end(site: RQSite, function: Callable[[], int | None]) -> None:
    queue = Queue("default", connection=site.redis, serializer=JSONSerializer)
    made = queue.enqueue(function)
    wait_for(lambda: made.get_status(refresh=True) in ("finished", "failed"), "the end of the job")
    assert made.return_value() == -signal.SIGTERM


def test_a_part_that_is_stopped_by_rqs_command_is_given_up_and_no_item_is_blamed(site: RQSite) -> None:
    root = site.jobs.submit(work.slow, count=1, path=f"{site.folder}/stopped.db", pause_s=60)
    wait_for(lambda: bool(at_work(site.ledger, "rq")), "the part at work")
    at_hand = Queue("default", connection=site.redis).started_job_registry.get_job_ids()
    # the root's own RQ job may still be on its way out of the registry
    (started,) = [each for each in at_hand if each.startswith(f"{root}-0-0")]
    send_stop_job_command(site.redis, started)
    status = over(site.ledger, root)
    assert (status.state, status.attempts, status.quarantined) == ("failed", 1, 0)
    assert "stopped by RQ's stop command" in (status.error or "")
