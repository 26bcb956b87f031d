"""Tables through small memory: `scan` reads a statement in chunks cut by bytes, `process` works on them and resumes.

Both take SQLAlchemy 2 statements (Core and ORM) and SQL text, with sync and async engines, over SQLite, PostgreSQL,
MariaDB and MySQL. What a scan sees of rows that come or change meanwhile: each chunk is read in a transaction of its
own, so a row inserted behind the position is seen, one inserted before it is not, and each row is as it was when its
chunk was read. With `snapshot=True` all is as it was at the start. See docs/how-to/process-a-database.md.

`statement` says what a statement can be read by, `reader` reads chunks, `run` has them worked on, `checkpoints` keeps
the place; `calls` puts them together. SQLAlchemy (the extra `sqlalchemy`) is imported with the first name.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.flow.database.calls import AsyncScan, Scan, process, scan
    from memwarden.flow.database.progress import Progress
    from memwarden.flow.database.reader import Batch
    from memwarden.flow.database.run import Processed

_HOMES = {
    "AsyncScan": "calls",
    "Batch": "reader",
    "Processed": "run",
    "Progress": "progress",
    "Scan": "calls",
    "process": "calls",
    "scan": "calls",
}

__all__ = ["AsyncScan", "Batch", "Processed", "Progress", "Scan", "process", "scan"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        import_module(f"{__name__}.statement")  # says which extra is missing, where SQLAlchemy is
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # the next touch finds it without us
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
