"""Every test of this folder runs on each database that it names: SQLite always, servers where there are any."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.flow.database.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mysql+asyncmy"}


@pytest.fixture(scope="session")
def _postgresql() -> Iterator[str]:
    with SERVERS["postgresql"]() as url:
        yield url


@pytest.fixture(scope="session")
def _mariadb() -> Iterator[str]:
    with SERVERS["mariadb"]() as url:
        yield url


class Database:
    """One database of one kind, empty at the start of a test."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = sa.make_url(url)
        self.engine = sa.create_engine(self.url)
        self._opened: list[sa.Connection] = []

    def fill(self, table: sa.Table, rows: list[dict[str, Any]]) -> sa.Table:
        """Make the table with these rows."""
        table.create(self.engine)
        with self.engine.begin() as connection:
            for start in range(0, len(rows), 1000):
                connection.execute(table.insert(), rows[start : start + 1000])
        return table

    def all(self, query: str) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def connect(self) -> sa.Connection:
        """A connection that is closed at the end, however the test ends: what it locks would keep tables from going."""
        self._opened.append(self.engine.connect())
        return self._opened[-1]

    @property
    def async_url(self) -> sa.URL:
        return self.url.set(drivername=ASYNC_DRIVERS[self.kind])

    def run(self, work: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
        """Run a coroutine function with an async engine in a loop of its own."""

        async def main() -> Any:
            engine = create_async_engine(self.async_url)
            try:
                return await work(engine)
            finally:
                await engine.dispose()

        return asyncio.run(main())

    def close(self) -> None:
        for connection in self._opened:
            connection.close()
        found = sa.MetaData()
        with contextlib.suppress(sa.exc.DBAPIError):
            found.reflect(self.engine)
            found.drop_all(self.engine)
        self.engine.dispose()


KINDS = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.server),
    pytest.param("mariadb", marks=pytest.mark.server),
]


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    kind = request.param
    url = f"sqlite:///{tmp_path}/data.db" if kind == "sqlite" else request.getfixturevalue(f"_{kind}")
    database = Database(kind, url)
    try:
        yield database
    finally:
        database.close()
