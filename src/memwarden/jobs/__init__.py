"""Memory-aware jobs: they stop before their limit, go on in a fresh process, split themselves, and lose nothing.

>>> from memwarden.jobs import job
>>> @job(limit="256M", chunk=50, items=lambda count: range(count))
... def total(numbers, count):
...     return sum(numbers)

`guard` watches one job, `plan` and `blame` decide (pure), `ledger` keeps the truth, `worker` does what a message asks
for, `runner` is the local engine; `port` is what other engines are made to fit (`memwarden.integrations`). What is
not here: a broker, or a scheduler for clusters. Importing this loads nothing but this file.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.jobs.chunking import process_in_chunks, should_split, split
    from memwarden.jobs.definition import Job, job
    from memwarden.jobs.ledger import Ledger, Watch
    from memwarden.jobs.port import Abilities, Ending, Engine, Message, QueueCount
    from memwarden.jobs.run import Run, current
    from memwarden.jobs.runner import Runner
    from memwarden.jobs.statements import Rows
    from memwarden.jobs.worker import perform, submit, sweep

_HOMES = {
    "Abilities": "port",
    "Ending": "port",
    "Engine": "port",
    "Job": "definition",
    "Ledger": "ledger",
    "Message": "port",
    "QueueCount": "port",
    "Rows": "statements",
    "Run": "run",
    "Runner": "runner",
    "Watch": "ledger",
    "current": "run",
    "job": "definition",
    "perform": "worker",
    "process_in_chunks": "chunking",
    "should_split": "chunking",
    "split": "chunking",
    "submit": "worker",
    "sweep": "worker",
}

__all__ = [
    "Abilities", "Ending", "Engine", "Job", "Ledger", "Message", "QueueCount", "Rows", "Run", "Runner", "Watch",
    "current", "job", "perform", "process_in_chunks", "should_split", "split", "submit", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # the next touch finds it without us
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
