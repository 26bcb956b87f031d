"""Chunks by bytes beside SQLAlchemy's `yield_per(1000).partitions()`: peak memory, rows per CPU second, sizes."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from benchmarks import Figure
from benchmarks.arms import fresh, fresh_medians, no_collection, race
from benchmarks.peers import peer
from memwarden import flow
from memwarden.flow.sizing import Sizer, pure_flat_sum, table_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MIB = 1 << 20
BUDGET_MIB = 32
GIANT_MIB = 60


def _widths(shape: str, seed: int = 1) -> Iterator[int]:
    """Widths of the text column, in characters."""
    some = random.Random(seed)
    if shape == "two wide regions":
        for row in range(60_000):
            wide = 15_000 <= row < 16_250 or 40_000 <= row < 41_250
            yield some.randint(100_000, 200_000) if wide else some.randint(1000, 2000)
    elif shape == "alternating":
        yield from (some.randint(100_000, 200_000) if row % 2 else 1000 for row in range(3000))
    elif shape == "sorted":
        yield from (100 + 50 * row for row in range(4000))
    elif shape == "random Zipf":
        yield from (min(200_000, int(500 * some.paretovariate(0.8))) for row in range(40_000))
    elif shape == "all tiny":
        yield from (some.randint(5, 30) for row in range(300_000))
    elif shape == "one giant row":
        yield from (GIANT_MIB * MIB if row == 5000 else 1500 for row in range(10_000))


def _table(path: str, widths: Iterable[int]) -> str:
    connection = sqlite3.connect(path)
    connection.execute("create table t (id integer primary key, a integer, b text, body text)")
    rows = ((number, number * 7, f"name {number}", "x" * width) for number, width in enumerate(widths))
    connection.executemany("insert into t values (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


_READ = """
import sqlalchemy as sa
import memwarden.flow.chunked
from memwarden import flow
def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) << 10
engine = sa.create_engine("sqlite:///" + PATH)
with engine.connect() as connection:
    connection.execute(sa.text("select * from t limit 100")).fetchall()
    query = sa.text("select id, a, b, body from t")
    total = sum(len(chunk) for chunk in flow.chunks([(1, "a")], budget="1M"))
    base = rss_bytes()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    if HOW == "partitions":
        chunks = connection.execute(query, execution_options={"yield_per": 1000}).partitions(1000)
    else:
        result = connection.execute(query, execution_options={"stream_results": True})
        chunks = flow.chunks(result, budget=f"{BUDGET}M")
    for chunk in chunks:
        for row in chunk:
            total += len(row.body)
    tell(peak=(peak() - base) / (1 << 20))
"""


def _peak(path: str, how: str, budget_mib: int = BUDGET_MIB) -> float:
    """MiB above what the process had before it began to read."""
    return float(fresh(f"PATH, HOW, BUDGET = {path!r}, {how!r}, {budget_mib}\n{_READ}")["peak"])


def _peaks(folder: str) -> Iterator[Figure]:
    if peer("sqlalchemy") is None:
        return
    path = _table(os.path.join(folder, "regions.db"), _widths("two wide regions"))
    ours, theirs = _peak(path, "chunks"), _peak(path, "partitions")
    beside = f"budget {BUDGET_MIB} MiB, ours {ours:.1f}, partitions(1000) {theirs:.1f} MiB"
    yield Figure("peak RSS above base, two wide regions, over the budget", ours / BUDGET_MIB, "x", 1.4, None, beside)
    yield Figure("  how many times below partitions(1000)", theirs / ours, "x", None, 4.5, beside)
    yield Figure("  at a budget of 8 MiB", _peak(path, "chunks", 8), " MiB", 16.0)
    os.remove(path)
    for shape in ("alternating", "sorted", "random Zipf", "all tiny", "one giant row"):
        path = _table(os.path.join(folder, "shape.db"), _widths(shape))
        ours, theirs = _peak(path, "chunks"), _peak(path, "partitions")
        bound = max(1.4, 2.5 * GIANT_MIB / BUDGET_MIB) if shape == "one giant row" else 1.4
        beside = f"ours {ours:.1f}, partitions(1000) {theirs:.1f} MiB"
        yield Figure(f"  {shape}, over the budget", ours / BUDGET_MIB, "x", bound, None, beside)
        os.remove(path)


def _turns(arms: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], float]:
    """CPU seconds of each arm, the least of so many turns, and the ratio of two equal arms."""
    running = [*arms.items(), ("", next(iter(arms.values())))]
    seen: dict[str, list[float]] = {name: [] for name, _ in running}
    with no_collection():
        for turn in range(rounds):
            for name, arm in running if turn % 2 else reversed(running):
                start = time.process_time()
                arm()
                seen[name].append(time.process_time() - start)
    least = {name: min(times) for name, times in seen.items()}
    return least, least.pop("") / least[next(iter(arms))]


def _speed(folder: str) -> Iterator[Figure]:
    sa = peer("sqlalchemy")
    if sa is None:
        return
    mixed = [150_000 if 1000 <= row < 1250 else 1500 for row in range(6000)]
    for name, widths, bound in (("mixed widths", mixed, 0.95), ("narrow rows", [20] * 40_000, 0.85)):
        engine = sa.create_engine("sqlite:///" + _table(os.path.join(folder, f"{name}.db"), widths))
        with engine.connect() as connection:
            least, control = _turns(_readers(connection, sa.text(_QUERY)), 25)
        engine.dispose()
        rate = {arm: len(widths) / seconds for arm, seconds in least.items()}
        beside = "; ".join(f"{arm} {each:,.0f} rows/CPU s" for arm, each in rate.items()) + f"; A/A {control:.3f}"
        yield Figure(f"rows per CPU second, {name}, over partitions(1000)", rate["ours"] / rate["theirs"], "x", None,
                     bound, beside)  # fmt: skip


_QUERY = "select id, a, b, body from t"


def _readers(connection: Any, query: Any) -> dict[str, Callable[[], object]]:
    def handle(chunks: Iterable[Any]) -> int:
        return sum(len(row.body) for chunk in chunks for row in chunk)

    def ours() -> int:
        result = connection.execute(query, execution_options={"stream_results": True})
        return handle(flow.chunks(result, budget=f"{BUDGET_MIB}M"))

    def theirs() -> int:
        return handle(connection.execute(query, execution_options={"yield_per": 1000}).partitions(1000))

    return {"theirs": theirs, "ours": ours}


def _plain() -> Iterator[Figure]:
    rows = [(number, f"name {number}", "x" * (number % 60)) for number in range(60_000)]

    def loop() -> int:
        total = 0
        for at in range(0, len(rows), 1000):
            total += len(rows[at : at + 1000])
        return total

    def batched() -> int:
        from itertools import islice

        source, total = iter(rows), 0
        while chunk := list(islice(source, 1000)):
            total += len(chunk)
        return total

    def ours() -> int:
        return sum(len(chunk) for chunk in flow.chunks(rows))

    least, control = _turns({"list(islice(rows, 1000))": batched, "slices": loop, "ours": ours}, 25)
    beside = "; ".join(f"{arm} {1e9 * each / len(rows):.0f} ns/row" for arm, each in least.items())
    yield Figure("what chunks over a list of tuples costs", 1e9 * least["ours"] / len(rows), " ns/row", None, None,
                 f"{beside}; A/A {control:.3f}")  # fmt: skip


WAIT_S = 0.004


def _waiting() -> Iterator[Figure]:
    def handler(chunk: list[int]) -> int:
        time.sleep(WAIT_S)  # stands for a network
        return len(chunk)

    def slow() -> Iterator[int]:
        for number in range(4000):
            if number % 100 == 0:
                time.sleep(WAIT_S)  # the handler waits
            yield number

    def wall(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    arms: dict[str, Callable[[], object]] = {
        "one by one": lambda: flow.chunks(slow(), rows=100).map(handler).run(),
        "prefetch=1": lambda: flow.chunks(slow(), rows=100, prefetch=1).map(handler).run(),
        "again": lambda: flow.chunks(slow(), rows=100).map(handler).run(),
        "one by one, fast source": lambda: flow.chunks(range(4000), rows=100).map(handler).run(),
        "parallel=4": lambda: flow.chunks(range(4000), rows=100, parallel=4).map(handler).run(),
    }
    seen: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(5):
        for name, run in arms.items():
            seen[name].append(wall(run))
    median = {name: statistics.median(times) for name, times in seen.items()}
    beside = "; ".join(f"{name} {each * 1000:.0f} ms" for name, each in median.items())
    pairs = (
        ("prefetch=1, source and handler that wait", "prefetch=1", "one by one"),
        ("parallel=4, handler that waits", "parallel=4", "one by one, fast source"),
    )
    for what, name, base in pairs:
        yield Figure(f"{what}, times faster", median[base] / median[name], "x", None, 1.5, beside)


def _sizes() -> Iterator[Figure]:
    rows = [(n + 10**6, f"name {n}", "text " * (n % 70), n * 1.5, None, f"{n}@example.org") for n in range(1000)]
    size = Sizer()
    pympler = peer("pympler.asizeof")
    page = rows[:32]
    native = table_sum.__module__ != "memwarden.flow.sizing"
    found = race({
        **({} if pympler is None else {"asizeof of a row": lambda: pympler.asizeof(rows[7])}),
        "row": lambda: size(rows[7]),
        "page of 32": lambda: size.page(page),
        "pure": lambda: pure_flat_sum(rows[7], {type(None), int, float, str}),
    }, repeats=40)  # fmt: skip
    beside = found.beside(*found.costs) + ("" if native else "; no C part")
    yield Figure(
        "size estimate of a flat row of 6 fields", found.costs["row"].minimum_ns / 1000, " us", 2.0, None, beside
    )
    yield Figure("  in a page", found.costs["page of 32"].minimum_ns / 32_000, " us", 2.0)
    if pympler is not None:
        mine, truth = sum(map(size, rows)), pympler.asizeof(*rows)
        beside = f"{mine} and {truth} bytes"
        yield Figure("  its error beside pympler", abs(mine / truth - 1) * 100, " %", 10.0, None, beside)


def _imports() -> Iterator[Figure]:
    program = """
import memwarden
before, modules = rss_bytes(), len(sys.modules)
{what}
tell(mib=(rss_bytes() - before) / (1 << 20), modules=len(sys.modules) - modules)
"""
    found = fresh_medians({
        "chunks": program.format(what="from memwarden.flow import chunks"),
        "asyncio": program.format(what="import asyncio"),
    })  # fmt: skip
    ours, theirs = found["chunks"], found["asyncio"]
    beside = f"{ours['modules']:.0f} modules; asyncio {theirs['mib']:.1f} MiB, {theirs['modules']:.0f} modules"
    yield Figure("import of flow.chunks, over import memwarden", ours["mib"], " MiB", None, None, beside)


def main() -> list[Figure]:
    """Peaks first: they need a quiet allocator, each in a process of its own."""
    folder = tempfile.mkdtemp(prefix="memwarden-")
    try:
        figures = [*_peaks(folder), *_speed(folder), *_plain(), *_waiting(), *_sizes(), *_imports()]
        gc.collect()
    finally:
        shutil.rmtree(folder)
    return figures
