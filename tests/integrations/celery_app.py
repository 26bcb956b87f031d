"""The Celery app of the tests, for the test process and for `celery -A tests.integrations.celery_app worker`."""

from __future__ import annotations

import os

import sqlalchemy  # noqa: F401  as an app has what its jobs need: what is imported here no child imports again
from celery import Celery

from memwarden.integrations.celery import Jobs, MemoryTask, check, memory_aware

MIB = 1 << 20


def make(url: str, folder: str, **more: object) -> tuple[Celery, Jobs]:
    """An app on this broker, with its ledger in this folder."""
    app = Celery("memwarden-tests", broker=url, set_as_current=False)
    app.conf.update(
        worker_prefetch_multiplier=1, result_extended=True, broker_connection_retry_on_startup=True,
        result_backend=url if url.startswith("redis") else f"file://{folder}/results", worker_hijack_root_logger=False,
        worker_send_task_events=False, worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": 8} if "redis" in url else {},
    )  # fmt: skip
    os.makedirs(f"{folder}/results", exist_ok=True)
    pressure: object = more.pop("pressure", False)
    jobs = Jobs(app, folder=folder, sweep_s=0.5, resend_s=3.0, pressure=pressure, **more)  # type: ignore[arg-type]  # from the environment
    return app, jobs


held: list[bytes] = []


def ordinary(app: Celery) -> None:
    """Tasks that are no jobs."""

    @app.task(base=MemoryTask, memory_limit="2G", name="tests.grow", shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def grow(mib: int) -> int:
        block = b"x" * (mib * MIB)
        check("grown")
        return len(block)

    @app.task(name="tests.leak", max_retries=2, shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    @memory_aware(limit="160M")
    def leak(mib: int, pieces: int, path: str) -> int:
        """Keeps what it takes; in one process the limit is reached by several runs."""
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        for _ in range(pieces):
            held.append(b"x" * (mib * MIB))
            check("piece")
        return os.getpid()

    @app.task(name="tests.spike", shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def spike(mib: int, keep: bool = False) -> tuple[int, int]:
        """The child's pid, and its peak; what it keeps stays."""
        block = b"x" * (mib * MIB)
        if keep:
            held.append(block)
        return os.getpid(), len(block)

    @app.task(name="tests.refused", shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    @memory_aware(limit="512M")
    def refused() -> None:
        raise MemoryError

    @app.task(  # type: ignore[untyped-decorator]  # Celery has no types
        name="tests.insists", base=MemoryTask, memory_limit="512M", max_retries=2, autoretry_for=(Exception,),
        retry_kwargs={"countdown": 0}, shared=False,
    )  # fmt: skip
    def insists(path: str) -> None:
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        raise MemoryError


if os.environ.get("MEMWARDEN_TEST_BROKER"):
    app, jobs = make(
        os.environ["MEMWARDEN_TEST_BROKER"], os.environ["MEMWARDEN_DIR"],
        memory_per_child=os.environ.get("MEMWARDEN_TEST_PER_CHILD"), ledger=os.environ.get("MEMWARDEN_TEST_LEDGER"),
        pressure=None if os.environ.get("MEMWARDEN_TEST_PRESSURE") else False,
    )  # fmt: skip
    ordinary(app)
