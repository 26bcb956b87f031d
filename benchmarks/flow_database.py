"""Tables through small memory: peak RSS and rows per CPU second beside SQLAlchemy's partitions(), on three databases.

Each arm runs in a fresh process over the same table: base RSS after connecting and one small query, then the highest
resident size (VmHWM, reset before) while every row is read once. Arms take turns; CPU is the process's own, the least
of the rounds; the peak is the median. What is resumable is `flow.process` with a name, on a handler that only reads.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT
from tests.flow.database.servers import SERVERS

from benchmarks import Figure
from benchmarks.arms import fresh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
ROWS = 60_000
NARROW = 6_000_000
ROUNDS = int(os.environ.get("MEMWARDEN_BENCH_ROUNDS", "3"))
_META = sa.MetaData()
WIDE = sa.Table(
    "wide",
    _META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(40), nullable=False),
    sa.Column("amount", sa.Integer),
    sa.Column("body", sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb"), nullable=False),
)

_PROGRAM = """
import time
import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT
from memwarden import flow
import memwarden.flow.database, memwarden.flow.sizing
engine = sa.create_engine({url!r})
table = sa.Table({table!r}, sa.MetaData(), autoload_with=engine)
statement = sa.select(table)
def high():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
def take(chunk):
    global rows
    for row in chunk:
        row[0]
    rows += len(chunk)
rows = 0
with engine.connect() as connection:
    connection.execute(statement.limit(1)).fetchall()
{warm}
rows = 0
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
base, cpu = rss_bytes(), time.process_time()
{work}
tell(peak=high() - base, cpu=time.process_time() - cpu, rows=rows)
"""
_PARTITIONS = """
with engine.connect() as connection:
    result = connection.execution_options(yield_per=1000).execute(statement)
    for chunk in result.partitions():
        take(chunk)
"""
_STREAM = """
for chunk in flow.scan(statement, engine, resumable=False, budget={budget!r}).chunks():
    take(chunk)
"""
# By its key, as a scan that is taken up again with `after=`; without the commit and the checkpoint of `process`.
_BY_KEY = _STREAM.replace("resumable=False, ", "")
_RESUMABLE = "flow.process(statement, take, engine, name='bench', restart=True, budget={budget!r}, timeout_s=None)"
_COMMITS = _RESUMABLE.replace("timeout_s=None", "timeout_s=None, checkpoint_s=0")
# The modules, the tables of checkpoints and what is compiled once are there before: a long run pays for them once.
_WARM = """
list(flow.scan(statement.where(table.c.id < 10), engine))
list(flow.scan(statement.where(table.c.id < 10), engine, resumable=False))
flow.process(statement.where(table.c.id < 10), lambda chunk: None, engine, name="warm", restart=True)
"""
_SAFE = "flow.process(statement, take, engine, name='bench', restart=True, budget={budget!r})"


def _arm(url: str, table: str, work: str, budget: str = "32M") -> dict[str, Any]:
    warm = _WARM if "flow" in work else "pass"
    work = work.format(budget=budget)
    return fresh(_PROGRAM.format(url=url, table=table, work=work, warm=warm))


def race(url: str, table: str, arms: dict[str, str], budget: str = "32M") -> dict[str, dict[str, float]]:
    """The arms in turns: median peak, least CPU. The first runs twice, its second name is `again`."""
    first = next(iter(arms))
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in (*arms, "again")}
    for _ in range(ROUNDS):
        for name in (*arms, "again"):
            seen[name].append(_arm(url, table, arms.get(name, arms[first]), budget))
    return {
        name: {
            "peak": statistics.median(each["peak"] for each in found) / MIB,
            "speed": found[0]["rows"] / min(each["cpu"] for each in found),
            "rows": found[0]["rows"],
        }
        for name, found in seen.items()
    }


# --- tables --------------------------------------------------------------------------------------------------------


def _mixed(number: int, chance: random.Random) -> int:
    """1-2 KB, and two regions of 1250 rows of 100-200 KB."""
    wide = 20_000 <= number < 21_250 or 45_000 <= number < 46_250
    return chance.randint(100_000, 200_000) if wide else chance.randint(1000, 2000)


def _alternating(number: int, _chance: random.Random) -> int:
    return 100_000 if number % 16 == 0 else 1000


def _sorted(number: int, _chance: random.Random) -> int:
    return 100 + 200_000 * number**3 // ROWS**3


def _zipf(_number: int, chance: random.Random) -> int:
    return min(2_000_000, int(500 / (1.0 - chance.random())))


def _tiny(_number: int, _chance: random.Random) -> int:
    return 10


def _giant(number: int, _chance: random.Random) -> int:
    return 60 * MIB if number == 500 else 1000


def _fill(engine: sa.Engine, width: Callable[[int, random.Random], int], count: int = ROWS) -> None:
    chance = random.Random(7)
    block = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=4096)) * 500
    WIDE.drop(engine, checkfirst=True)
    WIDE.create(engine)
    with engine.begin() as connection:
        batch: list[dict[str, Any]] = []
        size = 0
        for number in range(count):
            wanted = width(number, chance)
            body = (block * (wanted // len(block) + 1))[:wanted]
            batch.append({"id": number, "name": f"name {number}", "amount": number % 97, "body": body})
            size += wanted
            if size > MIB or len(batch) >= 1000 or number == count - 1:
                connection.execute(WIDE.insert(), batch)
                batch, size = [], 0


def _fill_narrow(engine: sa.Engine, name: str, count: int) -> None:
    text = f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, a INTEGER, b REAL, c VARCHAR(20))"
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    with engine.begin() as connection:
        connection.exec_driver_sql(text)
        connection.exec_driver_sql(f"INSERT INTO {name} {numbers} SELECT i, i % 97, i * 0.5, 'n' || i FROM n")


@contextlib.contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="memwarden-bench-") as folder:
        yield f"sqlite:///{folder}/data.db"


# --- figures -------------------------------------------------------------------------------------------------------

_ARMS = {"partitions": _PARTITIONS, "stream": _STREAM, "resumable": _RESUMABLE}


def _mixed_figures(kind: str, url: str, most: tuple[float, float]) -> Iterator[Figure]:
    engine = sa.create_engine(url)
    _fill(engine, _mixed)
    engine.dispose()
    found = race(url, "wide", _ARMS)
    partitions, control = found["partitions"], found["again"]["speed"] / found["partitions"]["speed"]
    for name, bound in zip(("stream", "resumable"), most, strict=True):
        peak = found[name]["peak"]
        yield Figure(
            f"{kind}: {name}, budget 32 MiB: peak over the budget", peak / 32, "x", at_most=bound,
            beside=f"{peak:.1f} MiB; partitions(1000) {partitions['peak']:.1f} MiB",
        )  # fmt: skip
    ratio = partitions["peak"] / found["stream"]["peak"]
    yield Figure(f"{kind}: stream: peak below partitions(1000)", ratio, "x", at_least=4.5)
    for name, least in (("stream", 0.95), ("resumable", 0.80)):
        yield Figure(
            f"{kind}: {name}: rows per CPU second beside partitions(1000)",
            found[name]["speed"] / partitions["speed"], "x", at_least=least,
            beside=f"{found[name]['speed']:,.0f} and {partitions['speed']:,.0f}; A/A {control:.3f}",
        )  # fmt: skip


def _widths(url: str) -> Iterator[Figure]:
    engine = sa.create_engine(url)
    small = statistics.median(_arm(url, "wide", _STREAM, "8M")["peak"] for _ in range(ROUNDS)) / MIB
    yield Figure("sqlite: stream, budget 8 MiB: peak", small, " MiB", at_most=16)
    for width, count in ((_alternating, 20_000), (_sorted, 20_000), (_zipf, 20_000), (_tiny, ROWS)):
        _fill(engine, width, count)
        for name, work, bound in (("stream", _STREAM, 1.4), ("resumable", _RESUMABLE, 1.6)):
            peak = statistics.median(_arm(url, "wide", work)["peak"] for _ in range(ROUNDS)) / MIB
            yield Figure(
                f"sqlite: {name}, {width.__name__[1:]} widths: peak over the budget", peak / 32, "x", at_most=bound
            )
    _fill(engine, _giant, 1000)
    peak = statistics.median(_arm(url, "wide", _STREAM)["peak"] for _ in range(ROUNDS)) / MIB
    yield Figure("sqlite: stream, one row of 60 MiB: peak", peak, " MiB", at_most=max(1.4 * 32, 2.5 * 60))
    engine.dispose()


# SQLite's own cache of pages (2 MiB) is not full after 60,000 narrow rows (1.5 MiB), and would pass for growth of ours:
# so it is kept small for these, and as it is for 600,000, which fill it.
_SMALL_CACHE = """
engine.dispose()
sa.event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA cache_size = -64"))
"""


def _narrow(url: str) -> Iterator[Figure]:
    engine = sa.create_engine(url)
    _fill_narrow(engine, "few", ROWS)
    _fill_narrow(engine, "some", ROWS * 10)
    _fill_narrow(engine, "many", NARROW)
    engine.dispose()
    for name, work in (("stream", _STREAM), ("resumable", _RESUMABLE)):
        for table, rows, setting in (("few", ROWS, _SMALL_CACHE), ("some", ROWS * 10, "")):
            few = statistics.median(_arm(url, table, setting + work)["peak"] for _ in range(ROUNDS))
            many = _arm(url, "many", setting + work)["peak"]
            yield Figure(
                f"sqlite: {name}, {NARROW:,} narrow rows: peak over that of {rows:,}", many / few, "x", at_most=1.1,
                beside=f"{many / MIB:.2f} and {few / MIB:.2f} MiB; {'a small' if setting else 'its own'} page cache",
            )  # fmt: skip
    arms = {**_ARMS, "by key": _BY_KEY, "with a time-out": _SAFE, "checkpoint_s=0": _COMMITS}
    yield from _speeds("sqlite", "narrow rows", race(url, "some", arms))


def _narrow_on_server(kind: str, url: str) -> Iterator[Figure]:
    """Where every column has a bound, and where a text has none."""
    engine = sa.create_engine(url)
    for rows, of_text in (("narrow rows", sa.String(20)), ("narrow rows with a TEXT", sa.Text())):
        table = sa.Table(
            "few", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("a", sa.Integer), sa.Column("b", sa.Float), sa.Column("c", of_text),
        )  # fmt: skip
        table.drop(engine, checkfirst=True)
        table.create(engine)
        with engine.begin() as connection:
            for start in range(0, ROWS * 4, 5000):
                some = [{"id": i, "a": i % 97, "b": i * 0.5, "c": f"n{i}"} for i in range(start, start + 5000)]
                connection.execute(table.insert(), some)
        yield from _speeds(kind, rows, race(url, "few", {**_ARMS, "by key": _BY_KEY}))
    engine.dispose()


_LEAST = {"stream": 0.85, "by key": 0.80, "resumable": 0.80, "with a time-out": 0.80}


def _speeds(kind: str, rows: str, found: dict[str, dict[str, float]]) -> Iterator[Figure]:
    theirs = found["partitions"]["speed"]
    for name in sorted(found.keys() - {"partitions", "again"}):
        yield Figure(
            f"{kind}: {name}, {rows}: rows per CPU second beside partitions(1000)",
            found[name]["speed"] / theirs, "x", at_least=_LEAST.get(name),
            beside=f"{found[name]['speed']:,.0f} and {theirs:,.0f}; A/A {found['again']['speed'] / theirs:.3f}",
        )  # fmt: skip


_CHECKPOINTS = """
import tempfile
from memwarden.store import Store
write = sa.text("INSERT INTO kept (id) VALUES (1)")
with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    flow.process(statement, lambda chunk: chunk.connection.execute(write), engine, rows=100, {options})
"""


def _checkpoint(kind: str, url: str) -> Iterator[Figure]:
    """Over a handler that writes one row of its own, so that each chunk is a transaction with and without."""
    engine = sa.create_engine(url)
    _fill(engine, _tiny, ROWS)
    kept = sa.Table("kept", sa.MetaData(), sa.Column("id", sa.Integer))
    kept.drop(engine, checkfirst=True)
    kept.create(engine)
    engine.dispose()
    arms = {
        "nothing": "timeout_s=None",
        "again": "timeout_s=None",
        "transaction": "timeout_s=None, name='c', restart=True",
        "store": "timeout_s=None, name='c', checkpoint=store",
    }
    seen: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, options in arms.items():
            seen[name].append(_arm(url, "wide", _CHECKPOINTS.replace("{options}", options))["cpu"])
    least = {name: min(times) / (ROWS / 100) * 1000 for name, times in seen.items()}
    beside = f"a chunk without {least['nothing']:.2f} ms; A/A {least['again'] / least['nothing']:.3f}"
    for name in ("transaction", "store"):
        what = f"{kind}: checkpoint in {'the ' if name == 'transaction' else 'a '}{name}: CPU per chunk"
        yield Figure(what, least[name] - least["nothing"], " ms", at_most=0.5, beside=beside)


_WAITING = """
import threading
never = threading.Event()
start = time.monotonic()
flow.process(statement, lambda chunk: never.wait(0.02), engine, rows=300, parallel={workers}, timeout_s=None)

rows = time.monotonic() - start
"""


def _parallel(url: str) -> Iterator[Figure]:
    walls: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(ROUNDS):
        for workers, times in walls.items():
            times.append(_arm(url, "few", _WAITING.replace("{workers}", str(workers)))["rows"])
    one, four = (min(each) for each in walls.values())
    yield Figure(
        "sqlite: 4 parallel ranges on a handler that waits 20 ms a chunk: speed-up", one / four, "x", at_least=1.5,
        beside=f"{one:.2f} s and {four:.2f} s",
    )  # fmt: skip


def compute(chunk: list[Any]) -> None:
    """Some 30 ms of pure Python for a chunk of 300 rows; at the top, where processes find it."""
    for row in chunk:
        sum(number * number % 7 for number in range(row[0] % 2 + 1000))


_COMPUTING = """
from benchmarks.flow_database import compute
start = time.monotonic()
flow.process(statement, compute, engine, rows=300, timeout_s=None, {options})

rows = time.monotonic() - start
"""


def _processes(url: str) -> Iterator[Figure]:
    """Two workers on a handler that computes; on two cores, the start of the processes included."""
    arms = {"one": "", "threads": "parallel=2", "processes": "parallel=2, processes=True"}
    walls: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, options in arms.items():
            walls[name].append(_arm(url, "few", _COMPUTING.replace("{options}", options))["rows"])
    least = {name: min(times) for name, times in walls.items()}
    beside = "; ".join(f"{name} {each:.2f} s" for name, each in least.items())
    for name in ("threads", "processes"):
        yield Figure(
            f"sqlite: 2 {name} on a handler that computes: speed-up", least["one"] / least[name], "x",
            at_least=1.3 if name == "processes" else None, beside=beside,
        )  # fmt: skip


def main() -> Iterator[Figure]:
    """SQLite in full; PostgreSQL and MariaDB where there are such servers."""
    only = os.environ.get("MEMWARDEN_BENCH_DATABASES", "sqlite,postgresql,mariadb").split(",")
    if "sqlite" in only:
        with _sqlite() as url:
            yield from _mixed_figures("sqlite", url, (1.4, 1.6))
            yield from _widths(url)
            yield from _checkpoint("sqlite", url)
            yield from _narrow(url)
            yield from _parallel(url)
            yield from _processes(url)
    for kind, server in SERVERS.items():
        if kind not in only:
            continue
        with contextlib.ExitStack() as stack:
            try:
                url = stack.enter_context(server())
            except BaseException as error:
                if type(error).__name__ != "Skipped":
                    raise
                print(f"{kind}: {error}", file=sys.stderr)
                continue
            yield from _mixed_figures(kind, url, (1.8, 2.0))
            yield from _narrow_on_server(kind, url)
            yield from _checkpoint(kind, url)
