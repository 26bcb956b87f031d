"""Calls as streams: each method reads the columns that its use needs, and holds one chunk of rows at a time.

The rest of the service opens SQLite by itself. This is loaded with the first request that needs it, because SQLAlchemy
weighs more than the whole service does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from memwarden import flow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from memwarden.flow.database import AsyncScan

COLUMNS = ("id", "contact_id", "at", "minutes", "topic", "transcript")
CALLS = sa.table("calls", *(sa.column(name) for name in COLUMNS))
BUDGET = "2M"


class Calls:
    """Every method is a generator: nothing is read before it is asked for, and nothing is kept behind it."""

    def __init__(self, database: Path) -> None:
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{database}")

    async def everything(self) -> AsyncIterator[dict[str, Any]]:
        """All calls with what was said, in the order of their ids."""
        async for row in self._scan(sa.select(CALLS)):
            yield row._asdict()

    async def minutes(self) -> AsyncIterator[tuple[str, int]]:
        """(topic, minutes) of all calls. No transcript leaves the database for it."""
        async for row in self._scan(sa.select(CALLS.c.id, CALLS.c.topic, CALLS.c.minutes)):
            yield row.topic, row.minutes

    def _scan(self, statement: sa.Select[Any]) -> AsyncScan:
        return flow.scan(statement, self._engine, key="id", budget=BUDGET)

    async def close(self) -> None:
        """Give the connections back."""
        await self._engine.dispose()
