"""RQ for real: the contract and the survival suite on Redis, then what is RQ's own."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import ConfigError, JobError
from tests.integrations.brokers import Broker, redis
from tests.integrations.proxy import Proxy, proxy
from tests.integrations.survival import Survival, over
from tests.integrations.workers import Bench, Program, program, wait_for
from tests.jobs import work
from tests.jobs.contract import EngineContract
from tests.supervise.processes import no_cgroup_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("rq")
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq.serializers import PickleSerializer

from memwarden.integrations.rq import Jobs, MemoryWorker

pytestmark = pytest.mark.server


class Site:
    """A worker behind a line to Redis, and the engine of this process, over one ledger."""

    ready = "what dies comes back"

    def __init__(self, broker: Broker, line: Proxy, worker: Program, folder: str) -> None:
        self.line, self.worker, self.folder = line, worker, folder
        self.redis = Redis.from_url(broker.url)
        self.jobs = Jobs(self.redis, folder=folder, resend_s=3.0)
        self.ledger = self.jobs.ledger

    def texts(self, queue: str) -> list[bytes]:
        """What Redis holds of a message: the hash of its job."""
        redis: Any = self.redis
        found = []
        for key in redis.lrange(f"rq:queue:{queue}", 0, -1):
            fields = redis.hgetall(b"rq:job:" + key)
            found.append(b"".join(name + value for name, value in fields.items()))
        return found

    def put(self, text: str) -> None:
        self.jobs.send(text, queue="default")


@contextlib.contextmanager
def site_on(broker: Broker, folder: str, *words: str, **environment: str) -> Iterator[Site]:
    with proxy(broker.url) as line:
        environment |= {"MEMWARDEN_TEST_DATABASE": f"{folder}/data.db"}
        command = [*words, "-m", "tests.integrations.rq_worker", line.url, folder]
        with program(command, folder, **environment) as worker:
            worker.until(Site.ready)
            made = Site(broker, line, worker, folder)
            try:
                yield made
            finally:
                made.jobs.close()
                made.redis.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with redis() as made:
        yield made


@pytest.fixture(scope="module")
def site(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_on(broker, str(tmp_path_factory.mktemp("site"))) as made:
        yield made


@pytest.fixture
def bench(site: Site, tmp_path: Any) -> Bench:
    return Bench(site.jobs, site.ledger, os.fspath(tmp_path))


class TestRQ(EngineContract):
    """The contract."""


class TestRQSurvives(Survival):
    """The survival suite."""


@pytest.mark.kernel
@pytest.mark.skipif(bool(no_cgroup_reason()), reason=no_cgroup_reason() or "-")
def test_a_horse_that_the_kernel_killed_is_told_from_others_with_its_peak(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> None:
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


def test_messages_wait_while_memory_is_short(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("short"))
    other = Broker(broker.url.replace("/0", "/2"), None, None)
    level = f"{folder}/level"
    forced = {"MEMWARDEN_TEST_PRESSURE": "1", "MEMWARDEN_PRESSURE_FILE": level}
    with open(level, "w", encoding="ascii") as file:
        file.write("CRITICAL")
    with (
        proxy(other.url) as line,
        program(["-m", "tests.integrations.rq_worker", line.url, folder], folder, **forced) as worker,
    ):
        worker.until("no more messages are taken")
        made = Site(other, line, worker, folder)
        root = made.jobs.submit(work.total, count=10)
        with open(level, "w", encoding="ascii") as file:
            file.write("NORMAL")
        worker.until("messages are taken again")
        assert over(made.ledger, root).state == "done"
        made.jobs.close()
        made.redis.close()


def test_another_serializer_is_refused(broker: Broker) -> None:
    with Redis.from_url(broker.url) as connection, pytest.raises(ConfigError, match="messages of memory-aware jobs"):
        MemoryWorker(["default"], connection=connection, serializer=PickleSerializer)


def test_a_broker_that_is_away_is_a_clear_error_and_the_job_is_kept(tmp_path: Any) -> None:
    with Redis(port=9, retry=Retry(NoBackoff(), 0)) as connection:
        jobs = Jobs(connection, folder=os.fspath(tmp_path))
        root = jobs.submit(work.total, count=10)
        status = jobs.ledger.status(root)
        assert status is not None
        assert status.state == "open"
        with pytest.raises(JobError, match="cannot be reached"):
            jobs.send("{}", queue="default")
        assert jobs.statistics() == ()
        jobs.close()


def test_nothing_of_a_done_message_stays_in_redis(site: Site) -> None:
    root = site.jobs.submit(work.total, count=20)
    assert over(site.ledger, root).state == "done"
    wait_for(lambda: not site.redis.keys(f"rq:job:{root}*"), "the message gone")
