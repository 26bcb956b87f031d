"""Programs without a leak, most of which look guilty for a while."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

from benchmarks.leaks.zoo import Family

if TYPE_CHECKING:
    from benchmarks.leaks.zoo.run import Run

PROGRAMS = Family()
healthy = PROGRAMS.add


def record(run: Run, size: int = 300) -> dict[str, object]:
    """A small object as a request leaves behind."""
    return {"id": run.serial, "body": run.text(size), "tags": ["a", str(run.serial)]}


@healthy("none")
def idle(run: Run) -> None:
    for _ in run.ticks():
        pass


@healthy("none")
def steady_requests(run: Run) -> None:
    for _, weight in run.ticks():
        rows = [record(run) for _ in range(int(30 * weight))]
        run.work_done += len(rows)


@healthy("cache")
def lru_fills(run: Run) -> None:
    """A bounded cache that is full after a third to three quarters of the run."""
    size, cache = run.rng.choice((6000, 12000, 25000)), {}
    per_tick = size / (run.rng.uniform(0.25, 0.75) * run.seconds / 0.05)
    due = 0.0
    for _, weight in run.ticks():
        due += per_tick * weight
        for _ in range(int(due)):
            cache[run.serial] = record(run, 400)
            if len(cache) > size:
                del cache[next(iter(cache))]
        run.work_done += int(due)
        due -= int(due)


@healthy("cache")
def declared_cache(run: Run) -> None:
    """The same, and the program says how large its cache is."""
    size, cache = run.rng.choice((6000, 12000)), {}
    run.declared_bytes = lambda: 900 * len(cache)
    per_tick = size / (run.rng.uniform(0.3, 0.9) * run.seconds / 0.05)
    due = 0.0
    for _, weight in run.ticks():
        due += per_tick * weight
        for _ in range(int(due)):
            cache[run.serial] = record(run, 400)
            if len(cache) > size:
                del cache[next(iter(cache))]
        run.work_done += int(due)
        due -= int(due)


@healthy("cache")
def dict_cache_stops(run: Run) -> None:
    """A plain dictionary over a set of keys that is used up."""
    keys, cache = run.rng.choice((4000, 9000)), {}
    rate = keys / (run.rng.uniform(0.25, 0.7) * run.seconds / 0.05)
    for _, weight in run.ticks():
        for _ in range(max(1, int(rate * weight))):
            key = min(run.work_done, keys + run.work_done % 100) % (keys + 100)
            if key not in cache:
                cache[key] = record(run, 350)
            run.work_done += 1


@healthy("cache")
def keys_by_popularity(run: Run) -> None:
    """A cache whose misses become rarer: it saturates."""
    cache: dict[int, object] = {}
    keys = run.rng.choice((3000, 8000))
    for _, weight in run.ticks():
        for _ in range(int(keys / run.seconds / 0.05 / 60 * weight * 0.35) + 1):
            key = run.rng.randrange(keys)
            if key not in cache:
                cache[key] = record(run, 450)
            run.work_done += 1


@healthy("cache")
def lru_by_popularity(run: Run) -> None:
    import functools

    @functools.lru_cache(maxsize=3000)
    def load(_: int) -> object:
        return record(run, 700)

    for _, weight in run.ticks():
        for _ in range(int(25 * weight)):
            load(int(run.rng.paretovariate(0.6)) % 20000)
            run.work_done += 1


@healthy("cache")
def sessions_with_expiry(run: Run) -> None:
    """Each lives for a fixed time: a ramp, and then a level."""
    import collections

    life_s = run.rng.uniform(0.15, 0.5) * run.seconds
    sessions: Any = collections.deque()
    for _, weight in run.ticks():
        now_s = run.elapsed_s()
        for _ in range(int(15 * weight)):
            sessions.append((now_s + life_s, record(run, 400)))
            run.work_done += 1
        while sessions and sessions[0][0] < now_s:
            sessions.popleft()


@healthy("none")
def random_lifetimes(run: Run) -> None:
    import heapq

    mean_s = run.rng.uniform(0.03, 0.12) * run.seconds
    heap: list[Any] = []
    for _, weight in run.ticks():
        now_s = run.elapsed_s()
        for _ in range(int(20 * weight)):
            heapq.heappush(heap, (now_s + run.rng.expovariate(1 / mean_s), run.serial, record(run)))
            run.work_done += 1
        while heap and heap[0][0] < now_s:
            heapq.heappop(heap)


@healthy("none")
def imports_in_waves(run: Run) -> None:
    waves = [
        ("json", "decimal"), ("email.mime.text", "email.parser"), ("http.server", "urllib.request"), ("sqlite3",),
        ("asyncio",), ("xml.dom.minidom", "xmlrpc.client"), ("unittest", "doctest"), ("multiprocessing.pool",),
        ("ctypes.util", "difflib"), ("zoneinfo", "fractions", "statistics"), ("logging.config", "pdb"),
    ]  # fmt: skip
    run.rng.shuffle(waves)
    last = run.rng.uniform(0.1, 0.7)
    times = sorted(run.rng.uniform(0, last) for _ in waves)
    for over, weight in run.ticks():
        while times and over > times[0]:
            times.pop(0)
            for name in waves.pop():
                __import__(name)
        run.work_done += int(weight * 5)


@healthy("none")
def sawtooth_batches(run: Run) -> None:
    buffer: list[Any] = []
    limit = int(run.rng.uniform(1500, 14000))
    for _, weight in run.ticks():
        buffer += [record(run, 500) for _ in range(int(60 * weight))]
        run.work_done += int(60 * weight)
        if len(buffer) > limit:
            buffer = []


@healthy("none")
def long_sawtooth(run: Run) -> None:
    """A batch takes a quarter to a half of the run; the last one is not over at the end."""
    buffer: list[Any] = []
    per_tick, phase = 12000 / (run.rng.uniform(0.22, 0.45) * run.seconds / 0.05), run.rng.random()
    buffer = [record(run, 300) for _ in range(int(12000 * phase))]
    for _, weight in run.ticks():
        count = int(per_tick * weight + run.rng.random())
        buffer += [record(run, 300) for _ in range(count)]
        run.work_done += count
        if len(buffer) > 12000:
            buffer = []


@healthy("none")
def cycles_for_the_collector(run: Run) -> None:
    """Garbage in cycles: memory falls only when the oldest generation is collected."""
    gc.set_threshold(run.rng.choice((700, 5000, 20000)), 10, run.rng.choice((5, 10, 20)))
    every_s, last_s = run.rng.uniform(4, 14), 0.0
    for _, weight in run.ticks():
        for _ in range(int(40 * weight)):
            node: dict[str, object] = record(run, 200)
            node["me"] = node
            run.work_done += 1
        if run.elapsed_s() - last_s > every_s:
            last_s = run.elapsed_s()
            gc.collect()


@healthy("step")
def one_huge_request(run: Run) -> None:
    at, keep = run.rng.uniform(0.15, 0.85), []
    for over, weight in run.ticks():
        if not keep and over > at:
            rows = [[i, f"row-{i}" * 3, {"v": i}] for i in range(run.rng.choice((40000, 90000, 150000)))]
            keep = rows[:: run.rng.choice((300, 900, 5000))]
            del rows
        run.work_done += len([record(run) for _ in range(int(15 * weight))])


@healthy("step")
def several_huge_requests(run: Run) -> None:
    times = sorted(run.rng.uniform(0.05, 0.9) for _ in range(4))
    for over, weight in run.ticks():
        if times and over > times[0]:
            times.pop(0)
            rows = [[i, f"row-{i}" * 3] for i in range(run.rng.randrange(10000, 80000))]
            del rows
        run.work_done += len([record(run) for _ in range(int(15 * weight))])


@healthy("step")
def model_loaded_late(run: Run) -> None:
    model, at = None, run.rng.uniform(0.3, 0.8)
    for over, weight in run.ticks():
        if model is None and over > at:
            model = [bytearray(100_000) for _ in range(150)] + [str(i) * 3 for i in range(40000)]
        run.work_done += int(20 * weight)


@healthy("step")
def two_deployments(run: Run) -> None:
    times = sorted((run.rng.uniform(0.1, 0.45), run.rng.uniform(0.5, 0.8)))
    kept: list[Any] = []
    for over, weight in run.ticks():
        if times and over > times[0]:
            times.pop(0)
            kept.append([record(run, 100) for _ in range(7000)])
        run.work_done += int(20 * weight)


@healthy("none")
def worker_threads(run: Run) -> None:
    """A pool that grows to its size, each thread with an arena of its own."""
    import threading
    import time

    def work() -> None:
        while True:
            rows = [bytes(run.rng.randrange(600, 4000)) for _ in range(40)]
            time.sleep(0.2 + 0.2 * len(rows) / 40)

    most, every = run.rng.choice((4, 8, 12)), run.rng.uniform(0.02, 0.05)
    started = 0
    for over, weight in run.ticks():
        if started < most and over > started * every:
            started += 1
            threading.Thread(target=work, daemon=True).start()
        run.work_done += int(10 * weight)


@healthy("fragmentation")
def survivors(run: Run) -> None:
    """Short batches of which a few small objects stay, and the oldest of those go."""
    import collections

    kept: Any = collections.deque(maxlen=run.rng.choice((200, 800)))
    for n, (_, weight) in enumerate(run.ticks()):
        if n % 10 == 0:
            batch = [bytes(run.rng.randrange(520, 3000)) for _ in range(int(2000 * weight))]
            kept.extend(batch[::97])
            del batch
        run.work_done += int(10 * weight)


@healthy("traffic")
def rising_traffic(run: Run) -> None:
    """What is in flight follows the requests per second, which rise all the time."""
    import collections

    flight: Any = collections.deque()
    hold_s, factor = run.rng.uniform(1.0, 3.0), run.rng.uniform(2, 6)
    for over, weight in run.ticks():
        now_s = run.elapsed_s()
        for _ in range(int(12 * (1 + factor * over) * weight)):
            flight.append((now_s + hold_s, record(run, 800)))
            run.work_done += 1
        while flight and flight[0][0] < now_s:
            flight.popleft()


@healthy("traffic")
def traffic_of_a_day(run: Run) -> None:
    import collections

    flight: Any = collections.deque()
    phase, turns = run.rng.random() * 6.28, run.rng.uniform(0.4, 2.5)
    for over, weight in run.ticks():
        now_s = run.elapsed_s()
        for _ in range(int(40 * (1.05 + math.sin(6.28 * turns * over + phase)) * weight)):
            flight.append((now_s + 1.5, record(run, 700)))
            run.work_done += 1
        while flight and flight[0][0] < now_s:
            flight.popleft()


@healthy("traffic")
def traffic_jumps(run: Run) -> None:
    import collections

    flight: Any = collections.deque()
    at, factor = run.rng.uniform(0.3, 0.8), run.rng.uniform(2, 5)
    for over, weight in run.ticks():
        now_s = run.elapsed_s()
        for _ in range(int(15 * weight * (factor if over > at else 1))):
            flight.append((now_s + 2, record(run, 800)))
            run.work_done += 1
        while flight and flight[0][0] < now_s:
            flight.popleft()


@healthy("none")
def largest_request_so_far(run: Run) -> None:
    """Sizes with a heavy tail: the process keeps the mark of the largest one."""
    for n, (_, weight) in enumerate(run.ticks()):
        if n % 4 == 0:
            size = min(int(3000 * run.rng.paretovariate(1.1)), 60000)
            rows = [f"{i}" * 9 for i in range(size)]
            run.work_done += len(rows) > 0
        run.work_done += int(2 * weight)


@healthy("none")
def last_events(run: Run) -> None:
    import collections

    events: Any = collections.deque(maxlen=run.rng.choice((500, 4000, 10000)))
    for _, weight in run.ticks():
        for _ in range(int(20 * weight)):
            events.append(record(run, 250))
            run.work_done += 1


@healthy("none")
def periodic_report(run: Run) -> None:
    every_s, last_s = run.rng.uniform(4, 12), 0.0
    for _, weight in run.ticks():
        if run.elapsed_s() - last_s > every_s:
            last_s = run.elapsed_s()
            rows = [record(run, 60) for _ in range(run.rng.randrange(6000, 15000))]
            run.work_done += len(sorted(rows, key=lambda row: str(row["body"]))[:1])
            del rows
        run.work_done += int(10 * weight)


@healthy("none")
def tables_swapped(run: Run) -> None:
    """A new table is built beside the old one, and takes its place."""
    table: list[Any] = [record(run, 200) for _ in range(9000)]
    coming: list[Any] = []
    per_tick = 9000 / (run.rng.uniform(0.15, 0.4) * run.seconds / 0.05)
    for _, weight in run.ticks():
        coming += [record(run, 200) for _ in range(int(per_tick * weight + run.rng.random()))]
        run.work_done += int(10 * weight)
        if len(coming) > 9000:
            table, coming = coming, []
    assert table


@healthy("none")
def connection_pool(run: Run) -> None:
    import sqlite3

    pool: list[Any] = []
    most, every = run.rng.choice((5, 10, 20)), run.rng.uniform(0.01, 0.05)
    for over, weight in run.ticks():
        if len(pool) < most and over > len(pool) * every:
            pool.append(sqlite3.connect(":memory:"))
            pool[-1].execute("create table t (a, b)")
        for connection in pool[: int(3 * weight)]:
            connection.execute("insert into t values (1, ?)", ("x" * 500,))
            connection.execute("delete from t where rowid < (select max(rowid) from t) - 100")
            run.work_done += 1


@healthy("none")
def json_traffic(run: Run) -> None:
    import json

    for _, weight in run.ticks():
        for _ in range(int(4 * weight)):
            rows = [{"id": i, "v": "v" * run.rng.randrange(40)} for i in range(run.rng.randrange(5, 120))]
            json.loads(json.dumps(rows))
            run.work_done += 1


@healthy("none")
def asyncio_workers(run: Run) -> None:
    import asyncio

    async def serve() -> None:
        jobs: asyncio.Queue[int] = asyncio.Queue(maxsize=200)

        async def worker() -> None:
            while True:
                size = await jobs.get()
                rows = [record(run, 100) for _ in range(size)]
                await asyncio.sleep(run.rng.uniform(0, 0.3))
                run.work_done += len(rows) > 0

        workers = [asyncio.ensure_future(worker()) for _ in range(20)]
        for _, weight in run.ticks():
            for _ in range(int(4 * weight)):
                if not jobs.full():
                    jobs.put_nowait(run.rng.randrange(1, 60))
            await asyncio.sleep(0.001)
        for each in workers:
            each.cancel()

    asyncio.run(serve())


@healthy("cache")
def patterns(run: Run) -> None:
    """The cache of `re` fills to 512 patterns and is then emptied piece by piece."""
    import re

    for n, (_, weight) in enumerate(run.ticks()):
        if n % 2 == 0:
            re.compile(f"user-{run.rng.randrange(1500)}-(a|b)+")
        run.work_done += int(6 * weight)


@healthy("none")
def children(run: Run) -> None:
    import subprocess

    for n, (_, weight) in enumerate(run.ticks()):
        if n % 60 == 0:
            subprocess.run(["/bin/true"], check=False)
        run.work_done += int(6 * weight)


@healthy("none")
def malloc_of_all_sizes(run: Run) -> None:
    """Live memory is constant, its pieces are not: the allocator creeps."""
    slots: list[Any] = [None] * run.rng.choice((500, 2000))
    sizes = [16, 100, 520, 2000, 9000, 40000]
    for _, weight in run.ticks():
        for _ in range(int(30 * weight)):
            slots[run.rng.randrange(len(slots))] = bytes(int(run.rng.choice(sizes) * run.rng.uniform(0.5, 1.5)))
            run.work_done += 1


@healthy("none")
def data_set_read_slowly(run: Run) -> None:
    end = run.rng.uniform(0.15, 0.5)
    kept: list[Any] = []
    for over, weight in run.ticks():
        if over < end:
            kept += [record(run, 250) for _ in range(int(40 * weight))]
        run.work_done += int(10 * weight)


@healthy("none")
def pickles(run: Run) -> None:
    import pickle

    for n, (_, weight) in enumerate(run.ticks()):
        if n % 3 == 0:
            rows = [record(run, 60) for _ in range(min(int(run.rng.lognormvariate(5, 1)), 5000))]
            pickle.loads(pickle.dumps(rows))
        run.work_done += int(5 * weight)


@healthy("none")
def free_lists(run: Run) -> None:
    """A pool of objects that grows to the largest need and is then reused."""
    pool: list[Any] = []
    for _, weight in run.ticks():
        taken = [
            pool.pop() if pool else record(run, 300) for _ in range(int(run.rng.lognormvariate(3.5, 0.8) * weight))
        ]
        pool += taken
        run.work_done += len(taken)
