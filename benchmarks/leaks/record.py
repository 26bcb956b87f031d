"""Record the zoo: many programs side by side, each mostly asleep, sampled from outside at 4 Hz.

`python -m benchmarks.leaks.record --python PATH --out FOLDER [--seed N] [--only TEXT] [--calibrate]`. Traces come out
as `NAME__MODE_RATE_sSEED.csv.gz` with the columns of the trace contract, and `labels.json` beside them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from typing import Any

from benchmarks.leaks.zoo.run import GROWTH, PAGE, UNITS, programs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADER = (
    "t_s,rss_bytes,anon_bytes,work_done,python_blocks,native_in_use_bytes,declared_cache_bytes,"
    "gc_collected,gc_uncollectable"
)
INTERVAL_S = 0.25


class Plan(dict[str, Any]):
    """One run to make: name, mode, rate, seed, seconds."""

    @property
    def file(self) -> str:
        """The name of its trace."""
        return f"{self['program']}__{self['mode']}_{self['rate']}_s{self['seed']}.csv.gz"


def plans(seed: int, only: str) -> list[Plan]:
    """Every program in every mode once, in an order that mixes them."""
    found = []
    for name, make in programs().items():
        if only not in name or (make.needs and find_spec(make.needs) is None):
            continue
        for mode, rate in _modes(make.cause, name):
            seconds = random.Random(f"{seed}{name}{mode}{rate}").choice((40.0, 40.0, 50.0, 60.0))
            leak = mode == "leaky"
            cause = make.cause if leak or mode == "healthy" else "none"
            plan = Plan(program=name, mode=mode, rate=rate, seed=seed, seconds=seconds, leak=leak, cause=cause)
            found.append(plan)
    random.Random(seed).shuffle(found)
    return found


def _modes(cause: str, name: str) -> list[tuple[str, str]]:
    if name.startswith("healthy.") or cause == "none":
        return [("healthy", "none")]
    return [*(("leaky", rate) for rate in GROWTH), ("fixed", "strong"), ("fixed", "medium")]


class Recording:
    """One running program: its process, and the samples so far."""

    def __init__(self, plan: Plan, *, python: str, folder: str) -> None:
        self.plan, self.rows = plan, []  # type: ignore[var-annotated]  # filled below
        self.probe = os.path.join(folder, plan.file + ".probe")
        words = ["--mode", plan["mode"], "--seed", str(plan["seed"]), "--seconds", str(plan["seconds"])]
        words += ["--rate", plan["rate"]] if plan["mode"] != "healthy" else []
        command = [python, "-m", "benchmarks.leaks.zoo.run", plan["program"], "--probe", self.probe, *words]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the recording
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.errors, stdout=subprocess.DEVNULL)
        self.start_s, self.start_unix_s = time.monotonic(), time.time()

    def sample(self) -> bool:
        """One look from outside; False when it has ended."""
        try:
            with open(f"/proc/{self.process.pid}/statm") as file:
                resident, shared = (int(word) * PAGE for word in file.read().split()[1:3])
        except OSError:
            return False
        if self.process.poll() is not None or resident == 0:
            return False
        self.rows.append((time.monotonic() - self.start_s, resident, resident - shared))
        return True

    def finish(self, out: str) -> None:
        """Join what was seen from outside with what the program knew, and write the trace."""
        self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode()
        if self.process.returncode or len(self.rows) < 60:
            print(f"failed: {self.plan.file}: {words.strip()[-200:]}", file=sys.stderr)
            return
        with open(self.probe) as file:
            known = [json.loads(line) for line in file if line.endswith("\n")]
        lines, at = [HEADER], -1
        for t_s, *outside in self.rows:
            while at + 1 < len(known) and known[at + 1][0] - self.start_unix_s <= t_s:
                at += 1
            inside = [str(round(value)) for value in known[at][1:]] if at >= 0 else [""] * 6
            lines.append(",".join([f"{t_s:.2f}", *map(str, outside), *inside]))
        with gzip.GzipFile(os.path.join(out, self.plan.file), "wb", mtime=0) as packed:
            packed.write(("\n".join(lines) + "\n").encode())


def record(todo: list[Plan], *, python: str, out: str, beside: int) -> None:
    """Keep `beside` programs running until all are recorded."""
    with tempfile.TemporaryDirectory() as folder:
        running: list[Recording] = []
        due_s, start_s = time.monotonic(), 0.0
        while todo or running:
            if todo and len(running) < beside and time.monotonic() - start_s > 0.6:
                running.append(Recording(todo.pop(0), python=python, folder=folder))
                start_s = time.monotonic()
            for one in [one for one in running if not one.sample()]:
                running.remove(one)
                one.finish(out)
            due_s = max(due_s + INTERVAL_S, time.monotonic() - 1)
            time.sleep(max(0.0, due_s - time.monotonic()))  # the rate of the recording


def calibrate(python: str) -> None:
    """Measure how many bytes one operation of each leaking program leaves behind, into zoo/units.json."""
    with open(UNITS) as file:
        units = json.load(file)
    for name, make in programs().items():
        if make.cause.split("|")[0] not in {"python", "native"}:
            continue
        command = [python, "-m", "benchmarks.leaks.zoo.run", name, "--calibrate"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"failed: {name}: {done.stderr.strip()[-300:]}", file=sys.stderr)
            continue
        units[name] = round(float(done.stdout), 1)
        print(name, units[name], flush=True)
    with open(UNITS, "w") as file:
        json.dump(dict(sorted(units.items())), file, indent=1)
        file.write("\n")


def main() -> None:
    """Record, or calibrate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--beside", type=int, default=30)
    parser.add_argument("--calibrate", action="store_true")
    args = parser.parse_args()
    if args.calibrate:
        calibrate(args.python)
    if args.out:
        os.makedirs(args.out, exist_ok=True)
        todo = plans(args.seed, args.only)
        labels = {plan.file: dict(plan) for plan in todo}
        record(todo, python=args.python, out=args.out, beside=args.beside)
        path = os.path.join(args.out, "labels.json")
        if os.path.exists(path):
            with open(path) as file:
                labels = json.load(file) | labels
        labels = {name: label for name, label in sorted(labels.items()) if os.path.exists(os.path.join(args.out, name))}
        with open(path, "w") as file:
            file.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in labels.items()) + "\n}\n")


if __name__ == "__main__":
    main()
