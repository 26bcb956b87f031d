"""What a memory-aware Celery task costs a worker: the tracer of an empty task, without and with the guard.

The tracer is what a child runs for each message: it decodes the message's body, makes the request, calls the task and
tells the signals; no result is kept, and nothing is logged. Broker, pool and pipes come on top of it in a worker, in
both arms alike.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from benchmarks import Figure
from benchmarks.arms import race

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> list[Figure]:
    """The guard as decorator and as base class, its log level off, beside the plain task."""
    from celery import Celery
    from celery.app import trace

    from memwarden.integrations.celery import MemoryTask, memory_aware

    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)
    logging.getLogger("memwarden.jobs").setLevel(logging.WARNING)

    def empty() -> None:
        pass

    tasks = {
        "plain": app.task(empty, name="plain"),
        "decorated": app.task(memory_aware(limit="4G")(empty), name="decorated"),
        "base class": app.task(empty, name="base", base=MemoryTask, memory_limit="4G"),
    }
    app.finalize()

    trace.setup_worker_optimizations(app, "here")
    for task in tasks.values():
        task.__trace__ = trace.build_tracer(task.name, task, app.loader, "here", app=app)

    def arm(task: Any) -> Callable[[], None]:
        request = {"id": "1", "is_eager": False, "hostname": "here", "delivery_info": {"routing_key": "celery"}}
        body = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

        def once() -> None:
            failed, *_ = trace.fast_trace_task(task.name, "1", request, body, "application/json", "utf-8")
            assert not failed

        once()
        return once

    found = race({name: arm(task) for name, task in tasks.items()}, repeats=200)
    return [
        Figure(
            f"an empty Celery task, memory-aware by {name}: its tracer's CPU",
            100 * (found.ratio(name, "plain") - 1), " %", at_most=10, beside=found.beside("plain", name),
        )
        for name in ("decorated", "base class")
    ]  # fmt: skip
