"""Forked workers that share their parent's pages: an emergency must not copy them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.warden.programs import run

if TYPE_CHECKING:
    from pathlib import Path

# Four workers idle on a heap of 600,000 containers and of buffers that were freed again; then either all of them see an
# EMERGENCY and act, or, as the control, each collects by hand. What the four hold together is told before and after.
WORKERS = """
mode, valve = MODE, os.path.join(os.getcwd(), "valve")
heap = [[index] for index in range(600_000)]
blocks = [bytes(20_000) for _ in range(1000)]
del blocks[::2]
warden = Warden(pressure_file=valve, interval="50ms", preset=None).start()

def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))

workers = []
for _ in range(4):
    (up_read, up), (down, down_write) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        ticks = warden.ticks
        wait_until(lambda: warden.ticks > ticks + 2)
        os.write(up, b"r")
        os.read(down, 1)
        if mode == "control":
            import gc
            gc.collect()
        else:
            wait_until(lambda: warden.level.name == "EMERGENCY" and warden.outcomes)
            ticks = warden.ticks
            wait_until(lambda: warden.ticks > ticks + 3)
        os.write(up, b"d")
        os.read(down, 1)
        tell(acted=[each.action for each in warden.outcomes if not each.skipped])
        os._exit(0)
    workers.append((pid, up_read, down_write))
for _, up, _ in workers:
    os.read(up, 1)
before = sum(pss(pid) for pid, _, _ in workers)
if mode != "control":
    with open(valve, "w") as file:
        file.write("EMERGENCY")
for _, up, down in workers:
    os.write(down, b"g")
for _, up, _ in workers:
    os.read(up, 1)
after = sum(pss(pid) for pid, _, _ in workers)
for pid, _, down in workers:
    os.write(down, b"e")
    os.waitpid(pid, 0)
tell(acted=[each.action for each in warden.outcomes if not each.skipped])
warden.stop()
tell(ratio=after / before, before_kib=before, after_kib=after)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/PID/smaps_rollup")
@pytest.mark.parametrize(("mode", "low", "high"), [("emergency", 0.0, 1.05), ("control", 1.2, 10.0)])
def test_an_emergency_in_four_forked_workers_copies_no_shared_pages_where_a_collection_would(
    mode: str, low: float, high: float, tmp_path: Path
) -> None:
    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("needs /proc/PID/smaps_rollup")
    ran = run(WORKERS.replace("MODE", repr(mode)), str(tmp_path))
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    *acted, found = ran.told
    assert low < found["ratio"] <= high, found
    if mode == "emergency":
        assert len(acted) == 5  # the parent too: what it touches the workers no longer share
        assert all("trim" in each["acted"] and "collect" not in each["acted"] for each in acted)
