"""What reclaiming returns and what it costs: trim after blocks were freed, and the share of wall time of collections.

Trim: 776 MB of 4 to 64 KB blocks, of which one in twenty survives, in a fresh process per round, while another thread
measures the longest time that it could not run. Collections: a program that makes cycles with its collector off and
stands at 85 % of its limit for 45 s, so that every check finds evidence. Neither chance nor the cool-down of
a minute holds it back here: only the budget does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks import Figure

ROUNDS = 5
_TRIM = """
import json, os, random, sys, threading, time
from memwarden.act import Trim
from memwarden.sense import Machine
machine, rng = Machine(), random.Random(int(sys.argv[1]))
machine.trim()
def rss():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * machine.page_size
start = rss()
blocks = [bytes(rng.randrange(4096, 65536)) for _ in range(22_800)]
full = rss()
kept = blocks[::20]
del blocks
freed = rss()
worst, end = [0.0], threading.Event()
def feel():
    last = time.perf_counter()
    while not end.is_set():
        time.sleep(0.0005)  # the other thread, whose lateness is measured
        now = time.perf_counter()
        worst[0] = max(worst[0], now - last)
        last = now
def stall(work):
    worst[0] = 0.0
    began = time.perf_counter()
    work()
    lasted = time.perf_counter() - began
    time.sleep(0.01)  # until it runs
    return worst[0], lasted
thread = threading.Thread(target=feel)
thread.start()
time.sleep(0.1)  # until it runs evenly
idle, _ = stall(lambda: time.sleep(0.1))
trim, lasted = stall(lambda: Trim().apply(machine))
end.set()
thread.join()
held = sum(map(len, kept))
print(json.dumps([(freed - rss()) / max(1, freed - start - held), trim, idle, lasted, full - start]))
"""
_COLLECT = """
import gc, json, time
from memwarden import Warden
gc.disable()
live = [[n] for n in range(400_000)]
def rss():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096
class Ring:
    def __init__(self):
        self.me = self
warden = Warden(int(rss() / 0.85), preset=None, blackbox=False, critical="97%", emergency="99%")
warden._collector._chance = lambda: 0.0
warden._collector.cooldown_s = 0.1
warden.start()
began = time.monotonic()
while time.monotonic() - began < 45:
    for _ in range(2_000):
        Ring()
    warden.limit = int(rss() / 0.85)
    time.sleep(0.1)  # between two rounds, so that each starts alike
found = warden.collections
warden.stop()
print(json.dumps([found.total, found.total_s / (time.monotonic() - began), found.average_s or 0.0, found.efficiency]))
"""


def main() -> list[Figure]:
    """Trim, then collections."""
    return [*_trim(), *_collect()]


def _run(program: str, *words: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def _trim() -> list[Figure]:
    rounds = [_run(_TRIM, str(number)) for number in range(ROUNDS)]
    returned, stalled, idle, lasted, size = (statistics.median(each) for each in zip(*rounds, strict=True))
    worst = max(each[1] for each in rounds)
    return [
        Figure("trim returned of what 4-64 KB blocks left behind", returned * 100, "%", at_least=90,
               beside=f"{size / 1e6:.0f} MB in blocks, trimmed in {lasted * 1000:.0f} ms"),
        Figure("other threads stalled by a trim, median of the worst gaps", stalled * 1000, "ms", at_most=15,
               beside=f"worst of {ROUNDS} rounds {worst * 1000:.1f} ms; idle {idle * 1000:.1f} ms"),
    ]  # fmt: skip


def _collect() -> list[Figure]:
    total, share, average_s, efficiency = _run(_COLLECT)
    return [
        Figure("collections by itself, share of wall time, held by nothing but the budget", share * 100, "%", at_most=1,
               beside=f"{total:.0f} of {average_s * 1000:.0f} ms each; efficiency {efficiency or 0:.0%}"),
    ]  # fmt: skip
