"""What every engine must hold, as one suite: give it a `bench` fixture and inherit from `EngineContract`.

A bench is one engine with its workers and a ledger in a folder of its own. Its workers import `tests.jobs.work`.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from memwarden.jobs import Engine, Job, Ledger, submit
from memwarden.jobs.port import MOST_BYTES
from memwarden.supervise.signals import pause
from tests.jobs import work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from memwarden.jobs.ledger import Status

KILLS = 100 if os.environ.get("MEMWARDEN_SOAK") else 10
PATIENCE_S = 300.0 if os.environ.get("MEMWARDEN_SOAK") else 60.0


class Bench(Protocol):
    """One engine at work. Whoever makes it ends all its processes after the test."""

    ledger: Ledger
    engine: Engine
    folder: str
    sent: list[str]  # every message that was sent from this process
    has_processes: bool  # workers are processes of their own, which can be killed

    def start(self, workers: int = 2) -> None:
        """Start the workers, and whatever sweeps."""

    def work(self) -> None:
        """Called while a test waits: an engine without processes of its own works here."""

    def kill_one(self) -> bool:
        """SIGKILL a worker process that has a part in hand; false where none has. Workers come back by themselves."""


def over(bench: Bench, root: str) -> Status:
    """Wait until the job is over."""
    for _ in range(int(PATIENCE_S / 0.02)):
        status = bench.ledger.status(root)
        assert status is not None
        if status.state != "open":
            return status
        bench.work()
        pause(0.02)
    raise AssertionError(f"not over: {status}, {bench.ledger.attempts(root, most=9)}")


def until(bench: Bench, condition: Callable[[], bool], what: str) -> None:
    """Wait for it."""
    for _ in range(int(PATIENCE_S / 0.02)):
        if condition():
            return
        bench.work()
        pause(0.02)
    raise AssertionError(f"never saw: {what}")


class EngineContract:
    """The same tests for each engine."""

    forks_are_plain = True  # a process that a part forks has nobody's signal handlers

    def send(self, bench: Bench, job: Job | type, /, **arguments: Any) -> str:
        return submit(job, arguments, engine=bench.engine, ledger=bench.ledger)

    def path(self, bench: Bench) -> str:
        return f"{bench.folder}/effects.db"

    def test_a_job_runs_and_its_result_comes_back(self, bench: Bench) -> None:
        bench.start()
        root = self.send(bench, work.total, count=1000)
        status = over(bench, root)
        assert (status.state, status.items, bench.ledger.result(root)) == ("done", 1000, sum(range(1000)))
        assert status.peak_bytes is not None
        assert status.growth_bytes is not None
        assert 0 <= status.growth_bytes <= status.peak_bytes

    def test_what_a_job_starts_can_be_told_to_end(self, bench: Bench) -> None:
        bench.start()
        root = self.send(bench, work.starts_others, forks=self.forks_are_plain)
        assert over(bench, root).state == "done"
        assert set(bench.ledger.result(root)) == {-15}

    def test_a_coroutine_function_runs(self, bench: Bench) -> None:
        bench.start()
        root = self.send(bench, work.waits, count=7)
        assert (over(bench, root).state, bench.ledger.result(root)) == ("done", 7)

    def test_a_class_is_a_job(self, bench: Bench) -> None:
        bench.start()
        path = self.path(bench)
        assert work.effects(path) == {}
        root = self.send(bench, work.Notes, count=200, path=path)
        status = over(bench, root)
        assert (status.state, status.type, bench.ledger.result(root)) == ("done", "bulk", list(range(200)))
        assert work.effects(path) == dict.fromkeys(range(200), 1)
        assert status.parts["done"] > 4
        root = self.send(bench, work.Body)
        assert (over(bench, root).state, bench.ledger.result(root)) == ("done", 6)

    def test_a_split_job_is_complete_disjoint_and_in_order(self, bench: Bench) -> None:
        """So many items of 64 MiB each do not fit into 1 GiB; parts do. More parts than are open at once, if cheap."""
        bench.start()
        count = getattr(bench, "most_items", 200)
        root = self.send(bench, work.splits_at_once, count=count)
        status = over(bench, root)
        assert (status.state, bench.ledger.result(root)) == ("done", list(range(count)))
        assert status.parts["done"] > count // 20

    def test_messages_are_small_and_hold_no_rows(self, bench: Bench) -> None:
        bench.start()
        over(bench, self.send(bench, work.splits_at_once, count=60))
        assert bench.sent
        assert max(len(text) for text in bench.sent) <= MOST_BYTES
        assert {"job", "root", "part", "attempt", "low", "high", "memwarden"} == set(json.loads(bench.sent[0]))

    def grown(self, bench: Bench, job: Job) -> Mapping[str, int]:
        """How the attempts at a job ended that keeps 480 MiB where 160 are allowed; each item was done once."""
        if not bench.has_processes:
            pytest.skip("this bench has no processes of its own")
        bench.start()
        root = self.send(bench, job, count=60, mib=8, path=self.path(bench))
        status = over(bench, root)
        told = status, bench.ledger.attempts(root)
        assert (status.state, bench.ledger.result(root)) == ("done", 60), told
        assert work.effects(self.path(bench)) == dict.fromkeys(range(60), 1), told
        return status.endings

    def test_what_reaches_its_limit_goes_on_in_fresh_processes(self, bench: Bench) -> None:
        assert self.grown(bench, work.leaks)["soft_stop"] >= 3

    def test_what_grows_is_split_and_done_once(self, bench: Bench) -> None:
        assert self.grown(bench, work.grows)["split"] >= 1

    def test_a_failing_job_is_tried_again(self, bench: Bench) -> None:
        bench.start()
        root = self.send(bench, work.fails, count=30, path=self.path(bench), times=2)
        status = over(bench, root)
        assert (status.state, status.endings["error"]) == ("done", 2)

    def test_a_job_that_fails_too_often_has_failed(self, bench: Bench) -> None:
        bench.start()
        status = over(bench, self.send(bench, work.fails, count=30, path=self.path(bench), times=99))
        assert (status.state, status.endings) == ("failed", {"error": 3})
        assert "ValueError: not yet" in str(status.error)

    def test_a_result_that_is_no_json_fails_with_a_clear_line(self, bench: Bench) -> None:
        bench.start()
        status = over(bench, self.send(bench, work.no_json))
        assert status.state == "failed"
        assert "its result cannot be written as JSON" in str(status.error)

    def test_a_body_that_keeps_its_place_goes_on_there(self, bench: Bench) -> None:
        bench.start()
        root = self.send(bench, work.keeps_its_place, count=20, path=self.path(bench))
        assert (over(bench, root).state, bench.ledger.result(root)) == ("done", 11)
        assert work.effects(self.path(bench)) == dict.fromkeys(range(20), 1)

    @pytest.mark.parametrize("how", ["kill", "memory", "exit"])
    def test_a_poison_item_is_quarantined_and_the_rest_is_done(self, bench: Bench, how: str) -> None:
        if how != "memory" and not bench.has_processes:
            pytest.skip("this bench has no processes of its own")
        bench.start()
        root = self.send(bench, work.poisoned, count=40, poison=13, path=self.path(bench), how=how)
        status = over(bench, root)
        assert (status.state, status.quarantined) == ("done", 1)
        assert work.effects(self.path(bench)).keys() == set(range(40)) - {13}
        deaths = sum(count for kind, count in status.endings.items() if kind not in ("done", "split"))
        assert deaths <= 3

    def test_a_cancelled_job_ends(self, bench: Bench) -> None:
        bench.start()
        root = self.send(bench, work.slow, count=10_000, path=self.path(bench))
        until(bench, lambda: bool(work.effects(self.path(bench))), "its first effects") if bench.has_processes else None
        assert bench.ledger.cancel(root)
        status = over(bench, root)
        assert (status.state, status.endings.get("running", 0)) == ("cancelled", 0)

    def test_killed_workers_lose_nothing(self, bench: Bench) -> None:
        """At most one chunk is done again for each kill, and none is lost."""
        if not bench.has_processes:
            pytest.skip("this bench has no processes of its own")
        bench.start()
        count = 40 * KILLS
        root = self.send(bench, work.slow, count=count, path=self.path(bench))
        kills = 0
        while kills < KILLS and bench.ledger.status(root).state == "open":  # type: ignore[union-attr]  # it is there
            kills += bench.kill_one()
            pause(0.15)
        status = over(bench, root)
        done = work.effects(self.path(bench))
        assert status.state == "done"
        assert set(done) == set(range(count))
        assert sum(done.values()) - count <= 5 * kills
