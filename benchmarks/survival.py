"""Programs that outgrow 200 MiB: killed without the fence, going on with it; how many units of work get done.

Each run is a real program in a real cgroup (v1 here, v2 in user-mode Linux). It does units of work, some of which
need more than there is, and catches MemoryError for each unit. The control arm is the same program under the same
limit without the fence. `python -m benchmarks.survival ROUNDS [NAME ...]` prints one JSON line per run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 8
CONTROL_ROUNDS = 3
LIMIT_MIB = 200
_SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
_PROGRAM = "import sys; from memwarden.cli import main; sys.exit(main())"
NAMES = (
    "bytes-100",
    "bytes-400",
    "blocks-100",
    "blocks-400",
    "objects-100",
    "objects-400",
    "cycles-100",
    "cycles-400",
    "burst",
    "gil-held",
    "forked",
    "threads",
    "page-cache",
)
# Runs in the child: one seeded program. Of five units four fit (20-110 MiB) and one (260 MiB) does not.
LIBRARY = f"""
import sys
sys.path.append({_SOURCE!r})
from memwarden import Warden
Warden(fence="on", blackbox=False).start()
"""
WORK = r"""
import gc, json, os, random, sys, tempfile, threading, time
name, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
MIB = 1 << 20
SIZES = [chance.randint(20, 110) for _ in range(4)] + [260]
chance.shuffle(SIZES)

def one_bytes(size): return b"x" * size
def one_blocks(size):  # 4 to 64 KiB, their mean is 25395
    return [b"x" * (4096 << chance.randrange(5)) for _ in range(size // 25395)]
def one_objects(size): return [{"k": n} for n in range(size // 232)]
def one_cycles(size):
    found = []
    for n in range(size // 512):
        node = [None] * 20; node[0] = node; node.append({"n": n}); found.append(node)
    return found
STEP = {"bytes": one_bytes, "blocks": one_blocks, "objects": one_objects, "cycles": one_cycles}

def paced(shape, mib, rate_mib_s):
    held, start = [], time.monotonic()
    for done in range(0, mib, 4):
        held.append(STEP[shape](4 * MIB))
        ahead = done / rate_mib_s - (time.monotonic() - start)
        if ahead > 0: time.sleep(ahead)  # the rate of the workload

def unit(work, *args):
    try:
        work(*args)
        return True
    except MemoryError:
        return False
    finally:
        gc.collect()

def burst(mib):
    held = [b"x" * (mib * MIB // 4) for _ in range(4)]

def gil_held(mib):  # the text is a sixth of what it becomes
    json.loads("[" + ",".join(["[1.5]"] * (mib * MIB // 104)) + "]")

def write_file(mib):
    with tempfile.TemporaryFile(dir=os.environ["WORK_DIR"]) as file:
        for _ in range(mib): file.write(os.urandom(1024) * 1024)
        file.flush(); os.fsync(file.fileno()); file.seek(0)
        while file.read(MIB): pass
        return burst(mib)

def forked():
    ends = []
    for number in range(4):
        r, w = os.pipe()
        if os.fork() == 0:
            done = [unit(paced, "bytes", size // 3, 200) for size in SIZES * 2]
            os.write(w, json.dumps(done).encode()); os._exit(0)
        os.close(w); ends.append(r)
    return [d for r in ends for d in json.loads(os.read(r, 65536) or b"[]")]

def threads():
    done, sizes = [], ([size // 3 for size in sorted(SIZES)[:4]] * 3 + [260]) * 6  # one thread's hog is everybody's
    def work():
        while sizes:
            try: size = sizes.pop()
            except IndexError: return
            done.append(unit(paced, "blocks", size, 200))
    all_threads = [threading.Thread(target=work) for _ in range(6)]
    for each in all_threads: each.start()
    for each in all_threads: each.join()
    return done

if name in ("forked", "threads"):
    done = globals()[name]()
elif name == "burst":
    done = [unit(burst, size) for size in SIZES * 10]
elif name == "gil-held":
    done = [unit(gil_held, size) for size in SIZES]
elif name == "page-cache":
    done = [unit(write_file, size) for size in SIZES]
else:
    shape, rate = name.split("-")
    done = [unit(paced, shape, size, int(rate)) for size in SIZES]
print(json.dumps({"units": len(done), "done": sum(done)}))
"""


def run(name: str, seed: int, *, fence: str, folder: str) -> dict[str, Any]:
    """One program to its end: whether the kernel killed anything, the code, units done of units.

    `fence`: on or off of `memwarden run`, or library: only the one that the program moves for itself.
    """
    mode, work = ("off", LIBRARY + WORK) if fence == "library" else (fence, WORK)
    words = ["run", "--limit", f"{LIMIT_MIB}M", "--fence", mode, "--brake", "300ms", "--"]
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words, sys.executable, "-I", "-c", work, name, str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": _SOURCE, "WORK_DIR": folder, "MEMWARDEN_DIR": folder},
    )
    killed = "(OOM kill)" in ended.stderr or "killed a process of it for memory" in ended.stderr
    killed = killed or "the kernel killed" in ended.stderr
    said = json.loads(ended.stdout) if ended.stdout.strip() else {"units": 0, "done": 0}
    return {"name": name, "fence": fence, "killed": killed, "code": ended.returncode, **said, "err": ended.stderr}


def campaign(
    rounds: int, names: tuple[str, ...] = NAMES, *, control_rounds: int = CONTROL_ROUNDS
) -> Iterator[dict[str, Any]]:
    """All programs, both arms, with a new seed each round."""
    folder = os.environ.get("SURVIVAL_DIR") or "/var/tmp"  # a disk: tmpfs is no page cache
    for name in names:
        for round_ in range(rounds):
            arms = ["on", "off", "library"] if round_ < control_rounds else ["on"]
            for arm in arms:
                yield run(name, 1000 * round_ + int(time.time()) % 1000, fence=arm, folder=folder)


def figures(kernel: str, found: list[dict[str, Any]]) -> list[Figure]:
    """The rows of one kernel."""
    rows = []
    fenced = [each for each in found if each["fence"] == "on"]
    control = [each for each in found if each["fence"] == "off"]
    for name in dict.fromkeys(each["name"] for each in fenced):
        mine = [each for each in fenced if each["name"] == name]
        alive = sum(not each["killed"] and each["code"] == 0 for each in mine)
        units = sum(each["units"] for each in mine)
        died = [each["killed"] for each in control if each["name"] == name]
        share = 100 * sum(each["done"] for each in mine) / max(1, units)
        beside = f"{alive} of {len(mine)} runs lived; without the fence {sum(died)} of {len(died)} were killed"
        rows.append(Figure(f"{kernel}: {name}: units done with the fence", share, " %", at_least=60, beside=beside))
    alive = sum(not each["killed"] and each["code"] == 0 for each in fenced)
    rows.append(
        Figure(f"{kernel}: runs of {len(fenced)} without an OOM kill", 100 * alive / len(fenced), " %", at_least=99)
    )
    if control:
        died_share = 100 * sum(each["killed"] for each in control) / len(control)
        rows.append(Figure(f"{kernel}: control runs of {len(control)} killed", died_share, " %", at_least=95))
    return rows + envelope(kernel, [each for each in found if each["fence"] == "library"])


def envelope(kernel: str, found: list[dict[str, Any]]) -> list[Figure]:
    """What the library achieves alone, without `memwarden run`: no bound, it is the measured envelope."""
    rows = []
    for name in dict.fromkeys(each["name"] for each in found):
        mine = [each for each in found if each["name"] == name]
        alive = sum(not each["killed"] and each["code"] == 0 for each in mine)
        done = 100 * sum(each["done"] for each in mine) / max(1, sum(each["units"] for each in mine))
        beside = f"{done:.0f} % of the units done"
        rows.append(Figure(f"{kernel}: {name}: library alone, runs of {len(mine)} that lived", alive, beside=beside))
    return rows


def main() -> Iterator[Figure]:
    """The cgroups of this machine, and v2 in user-mode Linux where it is installed."""
    yield from figures("here", list(campaign(ROUNDS)))
    sys.path.insert(0, os.path.dirname(_SOURCE))
    from tests.uml.kernel import run_in_uml, uml_missing_reason

    reason = uml_missing_reason()
    if reason is not None:
        print(f"not measured on cgroup v2: {reason}", file=sys.stderr)
        return
    guest = run_in_uml([sys.executable, "-m", "benchmarks.survival", "3"], timeout_s=3600)
    if guest.exit_code != 0:
        print(f"cgroup v2: {guest.failure or 'failed'}: only what was done by then counts", file=sys.stderr)
    lines = [line for line in guest.stdout.splitlines() if line.endswith("}")]
    yield from figures("v2", [json.loads(line) for line in lines])


if __name__ == "__main__":
    for _each in campaign(int(sys.argv[1]), tuple(sys.argv[2:]) or NAMES):
        print(json.dumps(_each), flush=True)
