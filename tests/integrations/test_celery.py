"""Celery for real: the contract on Redis and on RabbitMQ, what must be survived, then what is Celery's own."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import ConfigError, MemoryPressureError, StoreError
from tests.integrations.brokers import BROKERS, Broker
from tests.integrations.sites import Site
from tests.integrations.survival import KernelKills, Machines, Survival, kept_without_its_broker, over
from tests.integrations.workers import program, wait_for
from tests.jobs import work
from tests.jobs.contract import EngineContract
from tests.jobs.toll import at_work

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("celery")
from celery import Celery
from celery.concurrency import get_implementation

from memwarden.integrations.celery import Jobs, MemoryPool, memory_aware, memory_of
from tests.integrations import celery_app

pytestmark = pytest.mark.server
COMMAND = ["-m", "celery", "-A", "tests.integrations.celery_app", "worker", "-c", "2", "-l", "INFO"]
COMMAND += ["--without-gossip", "--without-mingle", "--without-heartbeat"]


class CelerySite(Site):
    """A worker with two children."""

    ready = "ready."
    each_peak = False  # the kernel keeps the highest of all children
    app: Celery

    @classmethod
    def command(cls, url: str, folder: str) -> list[str]:
        return COMMAND

    def make(self, url: str, folder: str, ledger: str | None) -> Jobs:
        self.app, jobs = celery_app.make(url, folder, ledger=ledger)
        celery_app.ordinary(self.app)
        return jobs

    def texts(self, queue: str) -> list[bytes]:
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            if "redis" in self.broker.url:
                return list(channel.client.lrange(queue, 0, -1))
            found = []
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(f"{message.body}{json.dumps(message.headers, default=str)}".encode())
            return found


SITE, ON = CelerySite, sorted(BROKERS)


class TestCelery(EngineContract):
    """The contract."""

    forks_are_plain = False  # they have those of Celery's pool


class TestCelerySurvives(Survival):
    """The survival suite."""


class TestCeleryOnTwoMachines(Machines):
    pass


class TestCeleryAndTheKernel(KernelKills):
    """Kernel kills."""


@pytest.fixture(scope="module")
def careful(one_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CelerySite]:
    """A worker that replaces children above 200 MiB and watches memory, whose level a file can force."""
    folder = str(tmp_path_factory.mktemp("careful"))
    forced = {"MEMWARDEN_TEST_PRESSURE": "1", "MEMWARDEN_PRESSURE_FILE": f"{folder}/level"}
    with CelerySite.on(one_broker, folder, MEMWARDEN_TEST_PER_CHILD="200M", **forced) as made:
        yield made


def run(site: CelerySite, name: str, *args: Any) -> Any:
    """An ordinary task, and its result."""
    return site.app.tasks[name].apply_async(args).get(timeout=60, disable_sync_subtasks=False)


def test_a_child_is_replaced_for_what_it_holds_and_not_for_what_it_held(careful: CelerySite) -> None:
    """Celery's own worker_max_memory_per_child compares a peak, and replaces a child for one spike."""
    spikes = [run(careful, "tests.spike", 300)[0] for _ in range(6)]
    children = set(spikes)
    assert len(children) <= 2
    pid = run(careful, "tests.spike", 300, True)[0]
    careful_pids = {run(careful, "tests.spike", 1)[0] for _ in range(12)}
    assert pid not in careful_pids


def test_a_memory_aware_task_stops_at_its_limit_and_goes_on_in_a_fresh_child(
    careful: CelerySite, tmp_path: Any
) -> None:
    """Each run keeps 45 MiB: some run meets what the ones before it left, and is tried again where nothing is."""
    path = os.fspath(tmp_path / "pids")
    pids = [run(careful, "tests.leak", 15, 3, path) for _ in range(8)]
    with open(path, encoding="ascii") as file:
        attempts = [int(line) for line in file]
    assert len(attempts) > len(pids)
    assert len(set(pids)) >= 3


def test_what_never_fits_fails_after_its_retries_with_a_clear_line(careful: CelerySite, tmp_path: Any) -> None:
    path = os.fspath(tmp_path / "pids")
    with pytest.raises(MemoryPressureError, match=r"at its limit .*; split its work, or raise its limit") as told:
        run(careful, "tests.leak", 64, 3, path)
    assert (told.value.limit_bytes, told.value.transient) == (160 << 20, True)
    with open(path, encoding="ascii") as file:
        attempts = file.read().split()
    assert (len(attempts), len(set(attempts))) == (3, 3)


def test_a_memory_error_is_a_stop_too(careful: CelerySite) -> None:
    with pytest.raises(MemoryPressureError, match="stopped at its limit"):
        run(careful, "tests.refused")


def test_what_celery_itself_tries_again_for_a_memory_error_is_tried_in_a_fresh_child(
    careful: CelerySite, tmp_path: Any
) -> None:
    path = os.fspath(tmp_path / "pids")
    with pytest.raises(MemoryPressureError):
        run(careful, "tests.insists", path)
    with open(path, encoding="ascii") as file:
        attempts = file.read().split()
    assert (len(attempts), len(set(attempts))) == (3, 3)


def test_peak_and_growth_are_in_the_results_meta_data(careful: CelerySite) -> None:
    result = careful.app.tasks["tests.grow"].apply_async((64,))
    assert result.get(timeout=60) == 64 << 20
    figures = memory_of(result)
    assert figures is not None
    peak, base, growth = (figures[f"{name}_bytes"] or 0 for name in ("peak", "base", "growth"))
    assert base
    assert peak - base >= 60 << 20
    assert growth < 32 << 20
    assert figures["limit_bytes"] == 2 << 30


def test_consumption_pauses_while_memory_is_short(careful: CelerySite) -> None:
    """At CRITICAL nothing more is taken; it waits in the broker, and is taken again at NORMAL."""
    level = f"{careful.folder}/level"
    with open(level, "w", encoding="ascii") as file:
        file.write("CRITICAL")
    careful.worker.until("no more messages are taken")
    root = careful.jobs.submit(work.total, count=10)
    queue = careful.app.conf.task_default_queue
    wait_for(lambda: bool(careful.texts(queue)), "the waiting message")
    assert careful.ledger.status(root).attempts == 0
    with open(level, "w", encoding="ascii") as file:
        file.write("NORMAL")
    careful.worker.until("messages are taken again")
    assert over(careful.ledger, root).state == "done"
    os.remove(level)


def test_the_worker_says_how_soon_things_come_back(careful: CelerySite) -> None:
    assert "3 s (visibility_timeout 8 s, ledger 3 s)" in careful.worker.text()


# --- wrong settings --------------------------------------------------------------------------------------------


def app_with(folder: str, **settings: Any) -> Jobs:
    app = Celery("wrong", broker="memory://", set_as_current=False)
    jobs = Jobs(app, folder=folder, pressure=False)
    app.conf.update(settings)
    return jobs


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"task_annotations": {"memwarden.part": {"acks_late": False}}}, "task_annotations"),
        ({"task_annotations": {"*": {"acks_late": False}}}, "task_annotations"),
        ({"accept_content": ["pickle"]}, "accept_content"),
        ({"task_always_eager": True}, "task_always_eager"),
    ],
)
def test_wrong_settings_are_said_at_start(tmp_path: Any, settings: dict[str, Any], where: str) -> None:
    jobs = app_with(os.fspath(tmp_path), **settings)
    with pytest.raises(ConfigError, match=where):
        jobs.check(MemoryPool)
    jobs.close()


@pytest.mark.parametrize("name", ["solo", "threads", "prefork"])
def test_another_pool_is_refused_by_its_name_but_for_queues_without_jobs(tmp_path: Any, name: str) -> None:
    pool = get_implementation(name)
    jobs = app_with(os.fspath(tmp_path), task_default_queue="mine")
    for queues in (None, {"mine"}, {"mine", "others"}):
        with pytest.raises(
            ConfigError, match=f"need the prefork pool, and this worker has '{name}'.*than 'mine', by -Q"
        ):
            jobs.check(pool, queues)
    jobs.check(pool, {"others"})
    assert not jobs.are_done_here
    jobs.check(MemoryPool, {"mine"})
    assert jobs.are_done_here
    jobs.close()


def test_a_worker_with_another_pool_does_other_queues_and_refuses_a_part(one_broker: Broker, tmp_path: Any) -> None:
    folder = os.fspath(tmp_path)
    with program(
        [*COMMAND, "--pool", "threads", "-Q", "others"], folder, MEMWARDEN_TEST_BROKER=one_broker.url
    ) as worker:
        worker.until("ready.")
        app, jobs = celery_app.make(one_broker.url, folder)
        celery_app.ordinary(app)
        assert app.tasks["tests.spike"].apply_async((1,), queue="others").get(timeout=60)[1] == celery_app.MIB
        root = jobs.submit(work.total, count=1, queue="others")
        worker.until("was sent to a queue of a worker with the pool 'threads'")
        status = jobs.ledger.status(root)
        assert status is not None
        assert (status.state, status.attempts) == ("open", 0)
        assert worker.ask_to_end() == 0
        jobs.close()


def test_arguments_of_a_memory_aware_task_are_checked_where_it_is_sent() -> None:
    app = Celery("checked", broker="memory://", set_as_current=False)

    @app.task(shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    @memory_aware(limit="1G")
    def plain(one: int, two: int = 2, *, three: int = 3) -> int:
        return one + two + three

    @app.task(bind=True, shared=False)  # type: ignore[untyped-decorator]  # as above
    @memory_aware(limit="1G")
    def bound(self: Any, one: int) -> int:
        return one

    for task, wrong in ((plain, ()), (plain, (1, 2, 3)), (bound, ()), (bound, (1, 2))):
        with pytest.raises(TypeError, match="argument"):
            task.apply_async(wrong)
    assert plain(1, two=1, three=1) == 3
    assert plain.apply_async((1, 2), {"three": 3}).id
    assert bound.apply_async((1,)).id


def test_a_child_that_dies_while_its_worker_ends_is_written_down(one_broker: Broker, tmp_path: Any) -> None:
    folder = os.fspath(tmp_path)
    with CelerySite.on(one_broker.numbered(5), folder) as made:
        root = made.jobs.submit(work.slow, count=1, path=f"{folder}/effects.db", pause_s=60)
        wait_for(lambda: bool(at_work(made.ledger, "celery")), "the part at work")
        (pid,) = at_work(made.ledger, "celery")
        made.worker.process.send_signal(signal.SIGTERM)
        made.worker.until("Warm shutdown")
        os.kill(pid, signal.SIGKILL)
        assert made.worker.process.wait(30) == 0
        (attempt,) = made.ledger.attempts(root)
        assert (attempt["ending"], f"worker {pid}: SIGKILL" in attempt["text"]) == ("killed", True)
        assert "could not be written" not in made.worker.text()


def test_a_worker_with_the_wrong_pool_does_not_start(one_broker: Broker, tmp_path: Any) -> None:
    folder = os.fspath(tmp_path)
    command = [*COMMAND, "--pool", "solo"]
    with program(command, folder, MEMWARDEN_TEST_BROKER=one_broker.url) as worker:
        assert worker.process.wait(60) == 1
        assert "memwarden: worker_pool: memory-aware jobs need the prefork pool" in worker.text()


def test_a_ledger_that_would_not_survive_is_refused(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    jobs = app_with(os.fspath(tmp_path / "file" / "folder"))
    with pytest.raises(StoreError, match="a place that survives"):
        jobs.check(MemoryPool)


def test_what_could_be_better_is_remarked(tmp_path: Any) -> None:
    jobs = app_with(os.fspath(tmp_path), worker_max_memory_per_child=100_000, task_time_limit=60)
    found = "\n".join(jobs.remarks())
    for words in ("worker_prefetch_multiplier is 4", "one spike ends it", "after 60 s"):
        assert words in found
    jobs.close()


def test_without_its_broker_a_job_is_kept_and_the_error_is_clear(tmp_path: Any) -> None:
    """Nobody listens there: submitting works, for the sweep sends it later; no password is in the error."""
    app = Celery("away", broker="amqp://someone:secret@127.0.0.1:9//", set_as_current=False)
    assert "secret" not in kept_without_its_broker(Jobs(app, folder=os.fspath(tmp_path), pressure=False))


@pytest.mark.parametrize("given", [{"memory_per_child": "much"}, {"memory_per_child": -1}])
def test_figures_that_cannot_be_used_are_refused(tmp_path: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Jobs(Celery("wrong", broker="memory://", set_as_current=False), folder=os.fspath(tmp_path), **given)
