"""The CRM's suggestions, as one writes them first and as a memory-aware job, under a kernel limit of 256 MiB.

Three arms for each number of contacts, each a process of its own that starts from nothing: the plain one without a
limit (what it takes, and what is right), the plain one within the limit, the job within the limit. Runner, parts and
all are in the one limited cgroup. JOBS_CRM_SIZES="1300 10000" measures fewer.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (1_300, 10_000, 100_000, 1_000_000)
# What takes less than a minute is measured so often, and the median arm counts.
ROUNDS, ROUNDS_BELOW = 5, 200_000
MIB = 1 << 20
LIMIT_BYTES = 256 * MIB
V1 = Path("/sys/fs/cgroup/memory")
ROOT = Path(__file__).parents[1]
CRM = ROOT / "examples" / "crm"
LOOK_S = 0.01

PLAIN = """
import sys, data, suggestions
with data.connect(sys.argv[1]) as db: suggestions.suggest_all(db)
"""
JOB = """
import json, sys, jobs
from memwarden.jobs import Runner
with Runner(sys.argv[2], modules=["jobs"]) as runner:
    root = runner.submit(jobs.suggest, {"database": sys.argv[1]})
    runner.run(until_idle=True)
    status = runner.status(root)
    print(json.dumps({"state": status.state, "endings": dict(status.endings), "parts": dict(status.parts)}))
"""


class Run(NamedTuple):
    """One arm: `anon_bytes` is the highest that was seen of what cannot be dropped, of the whole cgroup."""

    code: int
    took_s: float
    cpu_s: float
    anon_bytes: int
    kills: int
    said: dict[str, Any]
    digest: str


def main() -> list[Figure]:
    """All sizes."""
    if not (V1 / "memory.limit_in_bytes").parent.is_dir() or os.geteuid() != 0:
        print("needs root and a v1 memory controller, to limit for real", file=sys.stderr)
        return []
    sizes = tuple(map(int, os.environ.get("JOBS_CRM_SIZES", "").split())) or SIZES
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # a disk: a file on tmpfs would count as memory
        return [row for size in sizes for row in _size(Path(folder), size)]


def _size(folder: Path, contacts: int) -> list[Figure]:
    make = f"import data; print(data.database_in({str(folder)!r}, contacts={contacts}, long_tail=True))"
    database = subprocess.run([sys.executable, "-c", make], cwd=CRM, capture_output=True, text=True, check=True).stdout
    path = database.strip()
    rounds = ROUNDS if contacts < ROUNDS_BELOW else 1
    free, jobs = [], []
    for number in range(rounds):
        free.append(_run(PLAIN, path))
        jobs.append(_run(JOB, path, str(folder / f"store-{contacts}-{number}"), limit=LIMIT_BYTES))
    tight = _run(PLAIN, path, limit=LIMIT_BYTES)
    os.unlink(path)
    return _figures(contacts, free, tight, jobs)


def _figures(contacts: int, free: list[Run], tight: Run, jobs: list[Run]) -> list[Figure]:
    name, best = f"{contacts:,} contacts", _middle(free)
    same = sum(each.digest == best.digest and each.said.get("state") == "done" for each in jobs)
    extra_s = 1.5 if contacts < 10_000 else 0.0
    took_s, plain_s = _middle(jobs).took_s, best.took_s
    again = max(each.took_s for each in free) / min(each.took_s for each in free)
    tight_said = "killed" if tight.kills else f"finished in {tight.took_s:.1f} s"
    kills = sum(each.kills + each.said.get("endings", {}).get("oom_kill", 0) for each in jobs)
    peak = max(each.anon_bytes for each in jobs)
    return [
        Figure(f"{name}: runs of {len(jobs)} done, with the plain one's results", same, at_least=len(jobs),
               beside=f"the plain one within the limit: {tight_said}; {_middle(jobs).said}"),
        Figure(f"{name}: kernel OOM kills", kills, at_most=0),
        Figure(f"{name}: highest anonymous memory over the limit", peak / LIMIT_BYTES, "x", at_most=0.9,
               beside=f"{peak / MIB:.0f} MiB; plain, no limit {best.anon_bytes / MIB:.0f} MiB"),
        Figure(f"{name}: saved of the plain one's peak", 100 * (1 - peak / best.anon_bytes), " %",
               at_least=80 if contacts == 100_000 else None),
        Figure(f"{name}: time over the plain one's" + (" (+ 1.5 s)" if extra_s else ""),
               (took_s - extra_s) / plain_s, "x", at_most=1.15,
               beside=f"{took_s:.2f} s, CPU {_middle(jobs).cpu_s:.2f}; plain {plain_s:.2f} s, CPU {best.cpu_s:.2f}; "
                      f"slowest over fastest plain {again:.2f}"),
    ]  # fmt: skip


def _middle(runs: list[Run]) -> Run:
    return sorted(runs, key=lambda each: each.took_s)[len(runs) // 2]


def _run(code: str, database: str, *args: str, limit: int | None = None) -> Run:
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("DELETE FROM suggestions")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{CRM}"}
    with _group(limit) as group, tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        start, before_s = time.monotonic(), _children_cpu_s()
        enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        started = subprocess.Popen(
            ["/bin/sh", "-c", enter, "sh", sys.executable, "-c", code, database, *args],
            cwd=CRM, env=environ, stdout=said, stderr=errors,
        )  # fmt: skip
        peak, kills = 0, 0
        while started.poll() is None:
            peak = max(peak, _anon(group))
            time.sleep(LOOK_S)  # the arm is sampled
        took_s = time.monotonic() - start
        kills = _kills(group)
        cpu_s = _children_cpu_s() - before_s
        said.seek(0)
        text = said.read().strip()
        errors.seek(0)
        if started.returncode not in (0, -9):
            print(errors.read(), file=sys.stderr)
        return Run(started.returncode, took_s, cpu_s, peak, kills, json.loads(text) if text else {}, _digest(database))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _anon(group: Path) -> int:
    """What is anonymous of the cgroup and of those below it."""
    with suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "total_rss":
                return int(value)
    return 0


def _kills(group: Path) -> int:
    return int((group / "memory.oom_control").read_text().split()[-1])


@contextmanager
def _group(limit: int | None) -> Iterator[Path]:
    group = V1 / f"memwarden-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.use_hierarchy").write_text("1")
        if limit is not None:
            (group / "memory.limit_in_bytes").write_text(str(limit))
        yield group
    finally:
        for each in sorted(group.rglob("*/"), reverse=True):
            with suppress(OSError):
                each.rmdir()
        group.rmdir()


def _digest(database: str) -> str:
    """Of everything that was written, in order."""
    found = hashlib.sha256()
    with closing(sqlite3.connect(database)) as db:
        for row in db.execute("SELECT * FROM suggestions ORDER BY contact_id, position"):
            found.update(repr(row).encode())
    return found.hexdigest()
