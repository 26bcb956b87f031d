"""A real program that leaks under a running Warden, and the same one that does not: what is told, and when.

Three arms side by side, each a process of its own with a Warden that samples at 4 Hz, as the recordings were made that
the verdict was fitted on: a list that keeps every request (CONFIRMED is expected, and the cause `python`), the same
requests let go (nothing is to be said), and cycles with the collector off (the probe frees them: no leak stands).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from benchmarks import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_S = 30.0
EVERY_S = 0.02  # from request to request
LEAK_BYTES = 40_000  # kept of each: 2 MB a second, in objects of some hundred bytes
SEEDS = (1, 2, 3)

PROGRAM = """
import gc, json, random, sys, time
from memwarden import Warden
kind, seed, longest_s, every_s, leak_bytes, folder = json.loads(sys.argv[1])
rng, kept, told = random.Random(seed), [], []
began_s = time.monotonic()

def listen(finding):
    told.append((finding.what, round(time.monotonic() - began_s, 1), finding.leak.cause, finding.leak.confidence))

class Node:
    pass

def request():
    body = [{"id": i, "text": f"row {i} {rng.random()}"} for i in range(rng.randint(100, 400))]
    if kind == "leaks":
        kept.append([{"id": i, "text": "x" * 50 + str(i)} for i in range(leak_bytes // 300)])
    elif kind == "cycles":
        node = Node(); node.me = node; node.held = [f"{'x' * 50}{i}" for i in range(leak_bytes // 100)]
    return len(body)

if kind == "cycles":
    gc.disable()
history = [{"id": i, "text": "x" * 50 + str(i)} for i in range(100_000)]  # a service has some megabytes already
warden = Warden(interval="250ms", leak_interval="250ms", gc_share=0.05, directory=folder)
warden.on_leak(listen)
with warden:
    while time.monotonic() - began_s < longest_s and not any(each[0] == "confirmed" for each in told):
        with warden.operation("request"):
            request()
        time.sleep(every_s)  # the rate of the workload
    leak = warden.leak
    print(json.dumps({"told": told, "stage": leak.stage, "cause": leak.cause, "errors": warden.errors,
                      "lasted_s": round(time.monotonic() - began_s, 1), "evidence": leak.evidence}))
"""


def main() -> list[Figure]:
    """Each kind with each seed; the three of a seed side by side."""
    found = [each for seed in SEEDS for each in _three(seed)]
    leaks, healthy, cycles = ([each for each in found if each["kind"] == kind] for kind in KINDS)
    confirmed = [told for each in leaks for told in each["told"] if told[0] == "confirmed"]
    beside = "; ".join(f"{told[1]:.0f} s, {told[2]}, {told[3]} of 100" for told in confirmed)
    of = len(SEEDS)
    withdrawn = ", ".join(told[0] for each in cycles for told in each["told"]) or "nothing said"
    return [
        Figure(f"leaking programs confirmed, of {of}", len(confirmed), at_least=of, beside=beside),
        Figure("with the right cause", sum(told[2] == "python" for told in confirmed), at_least=of),
        Figure(f"healthy programs suspected, of {of}", sum(bool(each["told"]) for each in healthy), at_most=0),
        Figure(
            f"programs whose cycles a collection frees, of {of}: those with a leak that stands",
            sum(each["stage"] == "confirmed" for each in cycles), at_most=0, beside=withdrawn,
        ),
        Figure("ticks that failed", sum(each["errors"] for each in found), at_most=0),
    ]  # fmt: skip


KINDS = ("leaks", "healthy", "cycles")


def _three(seed: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for kind in KINDS:
            words = json.dumps([kind, seed, LONGEST_S, EVERY_S, LEAK_BYTES, os.path.join(folder, kind)])
            running[kind] = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        for kind, process in running.items():
            out, _ = process.communicate(timeout=LONGEST_S * 4)
            yield {"kind": kind, **json.loads(out)}
