"""Pool: taking an object and giving it back, with leak tracking and statistics on, beside the pools of connections.

The peers' connections are empty objects, so that only the pools are measured: no server, no protocol.
"""

from __future__ import annotations

import asyncio
import time
import types
from typing import TYPE_CHECKING, Any

from benchmarks import Figure
from benchmarks.arms import no_collection, race
from benchmarks.peers import peer
from memwarden.flow.pool import Pool
from memwarden.flow.pool_async import AsyncPool

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND = 0.35
ROUNDS, CALLS = 40, 500


class Connection:
    """As much of a DB-API connection as the pools call."""

    closed = False
    pgconn: Any = None

    @classmethod
    def connect(cls, *_args: object, **_options: object) -> Connection:
        """A new one."""
        return cls()

    def cursor(self, *_args: object) -> Connection:
        """Itself."""
        return self

    def commit(self) -> None:
        """Nothing."""

    rollback = close = commit


def main() -> list[Figure]:
    """Threads, then coroutines."""
    pool: Pool[Connection] = Pool(Connection)
    pool.release(pool.acquire())

    def ours() -> None:
        pool.release(pool.acquire())

    def leased() -> None:
        with pool.lease():
            pass

    arms: dict[str, Callable[[], object]] = {"ours": ours, "ours, with lease()": leased, **_peers()}
    seen = race(arms)
    found = pool.statistics
    if found is None or not found.acquired or not found.hit_rate:
        raise RuntimeError("the pool kept no statistics")
    pool.close()
    rows = []
    if "psycopg_pool" in arms:
        ratio = seen.ratio("ours", "psycopg_pool")
        rows.append(Figure("Pool acquire + release, of psycopg_pool getconn + putconn", ratio, at_most=BOUND,
                           beside=seen.beside(*arms)))  # fmt: skip
        ratio = seen.ratio("ours, with lease()", "psycopg_pool")
        rows.append(Figure("Pool lease(), of the same", ratio, beside=f"A/A {seen.control:.3f}"))
    rows += [
        Figure(f"Pool acquire + release, of {name}", seen.ratio("ours", name), beside=f"A/A {seen.control:.3f}")
        for name in arms
        if name not in ("ours", "ours, with lease()", "psycopg_pool")
    ]
    return [*rows, *_async()]


def _peers() -> dict[str, Callable[[], object]]:
    arms: dict[str, Callable[[], object]] = {}
    psycopg_pool, pq = peer("psycopg_pool"), peer("psycopg.pq")
    if psycopg_pool is not None and pq is not None:
        Connection.pgconn = types.SimpleNamespace(transaction_status=pq.TransactionStatus.IDLE)
        theirs = psycopg_pool.ConnectionPool("", connection_class=Connection, min_size=2, max_size=10, open=True)
        theirs.wait()
        arms["psycopg_pool"] = lambda: theirs.putconn(theirs.getconn())
    sqlalchemy_pool = peer("sqlalchemy.pool")
    if sqlalchemy_pool is not None:
        queue = sqlalchemy_pool.QueuePool(Connection, pool_size=10)
        arms["SQLAlchemy QueuePool"] = lambda: queue.connect().close()
    dbutils = peer("dbutils.pooled_db")
    if dbutils is not None:
        errors = dict.fromkeys(("Error", "OperationalError", "InterfaceError", "InternalError"), OSError)
        module = types.SimpleNamespace(connect=Connection, threadsafety=1, **errors)
        pooled = dbutils.PooledDB(module, mincached=2, maxcached=10, maxconnections=10, ping=0, reset=False)
        arms["DBUtils PooledDB"] = lambda: pooled.connection().close()
    return arms


def _async() -> list[Figure]:
    """The asynchronous twins, in turns in one loop; psycopg_pool's with the same empty connections."""
    psycopg_pool = peer("psycopg_pool")
    return asyncio.run(_measured(psycopg_pool))


class _AsyncConnection(Connection):
    @classmethod
    async def connect(cls, *_args: object, **_options: object) -> Connection:  # type: ignore[override]  # only what the pool calls
        return cls()

    async def close(self) -> None:  # type: ignore[override]  # the pool awaits it
        pass


async def _measured(psycopg_pool: Any) -> list[Figure]:
    pool: AsyncPool[Connection] = AsyncPool(Connection)

    async def ours() -> None:
        await pool.release(await pool.acquire())

    arms = {"ours": ours, "ours again": ours}
    theirs = None
    if psycopg_pool is not None:
        theirs = psycopg_pool.AsyncConnectionPool(
            "", connection_class=_AsyncConnection, min_size=2, max_size=10, open=False
        )
        await theirs.open(wait=True)

        async def other() -> None:
            await theirs.putconn(await theirs.getconn())

        arms["psycopg_pool"] = other
    best = dict.fromkeys(arms, float("inf"))
    with no_collection():
        for turn in range(ROUNDS):
            for name, arm in list(arms.items())[:: 1 if turn % 2 else -1]:
                start = time.thread_time_ns()
                for _ in range(CALLS):
                    await arm()
                best[name] = min(best[name], (time.thread_time_ns() - start) / CALLS)
    await pool.aclose()
    if theirs is None:
        return []
    await theirs.close()
    return [
        Figure("AsyncPool acquire + release, of psycopg_pool's asynchronous one", best["ours"] / best["psycopg_pool"],
               beside=f"ours {best['ours']:.0f} ns; psycopg_pool {best['psycopg_pool']:.0f} ns; "
               f"A/A {best['ours again'] / best['ours']:.3f}"),
    ]  # fmt: skip
