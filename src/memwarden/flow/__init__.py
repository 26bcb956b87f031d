"""Big data through small memory: chunks by bytes, lazy and filtered reading, databases, pools, caches, containers.

>>> from memwarden import flow
>>> [len(chunk) for chunk in flow.chunks(range(2500), budget="32M", rows=1000)]
[1000, 1000, 500]

Whatever here holds bytes holds an account in one `Budget` and follows a `Pressure` where one is given (a Warden is
one). Importing this loads nothing but this file: each name comes with its first use. What is not here: splitting work
over processes and machines with a ledger (`memwarden.jobs`), and judging memory (`sense`, `judge`).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.budget import Budget
    from memwarden.flow.cache import Cache
    from memwarden.flow.chunked import chunks
    from memwarden.flow.container import Container
    from memwarden.flow.database import process, scan
    from memwarden.flow.filtering import filtered
    from memwarden.flow.paging import lazy
    from memwarden.flow.pool import Pool
    from memwarden.flow.pool_async import AsyncPool

_HOMES = {
    "AsyncPool": "memwarden.flow.pool_async",
    "Budget": "memwarden.budget",
    "Cache": "memwarden.flow.cache",
    "Container": "memwarden.flow.container",
    "Pool": "memwarden.flow.pool",
    "chunks": "memwarden.flow.chunked",
    "filtered": "memwarden.flow.filtering",
    "lazy": "memwarden.flow.paging",
    "process": "memwarden.flow.database",
    "scan": "memwarden.flow.database",
}

__all__ = ["AsyncPool", "Budget", "Cache", "Container", "Pool", "chunks", "filtered", "lazy", "process", "scan"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the next touch finds it without us
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
