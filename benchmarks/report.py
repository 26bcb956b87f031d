"""What a report costs over a history of a million rows of minutes: wall time, processor time, resident memory.

24 processes of 20 programs over 30 days, as the service folds them: 1,036,800 minutes and their 17,280 hours. Every
hour has a minute at WARNING, so that the minutes of each are looked into: the worst there is. The history of one
process, folded by the service's own code, says that rows written at once are read as those are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import Figure
from memwarden.supervise.service.fold import COLUMNS, fold
from memwarden.supervise.service.history import History
from memwarden.testing import FakeClock

MIB = 1 << 20
PROCESSES, PROGRAMS = 24, 20
MINUTES = 30 * 24 * 60
SPANS = ("24h", "7d", "30d", "60d")


def main() -> list[Figure]:
    """For each span; the small history is what starting and asking cost."""
    figures = []
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        _write(small, processes=1, minutes=60)
        rows = _write(large, processes=PROCESSES, minutes=MINUTES)
        wall_s, cpu_s, rss = _report(small, "24h")
        figures.append(Figure("report of 60 minutes: wall", wall_s, " s"))
        figures.append(Figure("report of 60 minutes: resident", rss / MIB, " MiB"))
        for span in SPANS:
            wall_s, cpu_s, more = _report(large, span)
            figures += [
                Figure(f"report over {span} of {rows:,} rows: wall", wall_s, " s", at_most=2.0),
                Figure(f"the same, {span}: processor", cpu_s, " s"),
                Figure(f"the same, {span}: resident above that", (more - rss) / MIB, " MiB", at_most=8.0),
            ]  # fmt: skip
    return figures


def _write(folder: str, *, processes: int, minutes: int) -> int:
    """So many minutes up to now of each, and their hours; how many rows."""
    end_s = time.time() // 3600 * 3600
    begin_s = int(end_s - minutes * 60)
    rows = 0
    with History(folder, clock=FakeClock(unix_s=end_s)) as history:
        lives = [
            history.life(
                f"inside-{n}-1.box", kind="inside", pid=5_000_000 + n, start_ticks=n + 1, start_unix_s=float(begin_s),
                argv=f"python app{n % PROGRAMS}.py",
            ).id
            for n in range(processes)
        ]  # fmt: skip
        ticks = [
            (n + 1, begin_s + n * 60.0, 100 * MIB, (100 + n % 300) * MIB, 512 * MIB, int(n % 60 == 7))
            for n in range(minutes)
        ]
        history.fold(lives[0], ticks[-1:])  # by its own code, so that it counts as seen
        for name, step_s in (("minutes", 60), ("hours", 3600)):
            marks = ",".join("?" * (len(COLUMNS) + 2))
            buckets = [(at, *bucket.values()) for at, bucket in fold(ticks, step_s).items()]
            with history._transaction() as db:
                db.execute(f"DELETE FROM {name}")
                for life in lives:
                    db.executemany(f"INSERT INTO {name} VALUES ({marks})", ((life, *each) for each in buckets))
                    rows += len(buckets)
                db.execute("UPDATE lives SET seen_unix_s = ?", (end_s,))
    return rows


# The kernel's own maximum (ru_maxrss) would count the process that started it, before exec.
_CODE = """
import sys, time
from memwarden.cli import main
assert main(sys.argv[1:]) == 0
with open("/proc/self/status") as file:
    peak_kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(time.process_time(), peak_kib * 1024)
"""


def _report(folder: str, span: str) -> tuple[float, float, int]:
    """(wall seconds, processor seconds, resident bytes at most) of one; the best of three, as others use the cores."""
    found = []
    for _ in range(3):
        out = Path(folder, "report.html")
        words = ["report", "--dir", folder, "--since", span, "--output", str(out)]
        start_s = time.monotonic()
        done = subprocess.run([sys.executable, "-c", _CODE, *words], capture_output=True, text=True, check=True)
        wall_s = time.monotonic() - start_s
        assert out.stat().st_size > 5_000
        cpu_s, peak = done.stdout.split()
        found.append((wall_s, float(cpu_s), int(peak)))
    return min(found)
