"""Real kernel OOM kills in real memory cgroups: recognised, told from plain SIGKILLs, never left behind."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from memwarden.blackbox import directory, find_boxes, read_box
from memwarden.errors import BlackBoxError
from memwarden.sense.machine import Machine
from memwarden.supervise import cgroup
from memwarden.supervise.autopsy import deaths, read_all
from memwarden.supervise.cgroup import MemoryGroup
from memwarden.supervise.service.service import draft_of
from tests.supervise.processes import (
    HOG,
    MIB,
    SOURCE,
    cgroup_folder,
    command_line,
    environment,
    finish,
    is_alive,
    kill,
    left_over,
    python,
    run,
    start,
    state_of,
    until,
)
from tests.tell.test_kills import Receiver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("own_cgroup")]

ROUNDS = 50 if os.environ.get("MEMWARDEN_SOAK") else 10
LIMIT = ["--limit", "64M", "--fence", "off"]
# A grandchild is killed; the command itself lives on and ends as it likes.
PARENT = f"""
import subprocess, sys
code = subprocess.run([sys.executable, "-c", {HOG!r}]).returncode
print(code, flush=True)
"""


def verdict_of(text: str) -> str:
    """What the post-mortem says."""
    if "OOM kill" in text:
        return "oom"
    if "killed a process of it for memory" in text:
        return "descendant"
    return "killed" if "not by the kernel" in text else "other"


def test_control_arm_the_same_hog_without_us_just_dies() -> None:
    """The kernel kills it all the same: exit by SIGKILL, no word about why."""
    made = cgroup.confine(64 << 20)
    assert made.cgroup is not None
    try:
        bare = subprocess.run([sys.executable, "-c", HOG], capture_output=True, preexec_fn=made.cgroup.join)
        assert (bare.returncode, bare.stdout, bare.stderr) == (-9, b"", b"")
    finally:
        assert made.release()


def test_every_kernel_kill_is_recognised() -> None:
    endings = [run(*LIMIT, *python(HOG)) for _ in range(ROUNDS)]
    assert [(ended.returncode, verdict_of(ended.stderr)) for ended in endings] == [(137, "oom")] * ROUNDS


def test_no_plain_sigkill_is_mistaken() -> None:
    """Killed by itself, by its parent, or from outside with memory near the limit."""
    full = "held = b'x' * (40 << 20); import os; os.kill(os.getpid(), 9)"
    endings = [run(*LIMIT, *python(full)) for _ in range(ROUNDS)]
    assert [(ended.returncode, verdict_of(ended.stderr)) for ended in endings] == [(137, "killed")] * ROUNDS


def test_a_grandchilds_kill_is_recognised_though_the_command_ends_with_0() -> None:
    endings = [run(*LIMIT, *python(PARENT)) for _ in range(ROUNDS)]
    assert [(ended.returncode, ended.stdout, verdict_of(ended.stderr)) for ended in endings] == [
        (0, "-9\n", "descendant")
    ] * ROUNDS


def test_every_death_is_told_right_where_the_kernel_log_is_out_of_reach() -> None:
    """As in any container: in a pid namespace the pids of the log mean nothing, and the counter has to do."""
    prefix = ["unshare", "-pf", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no pid namespace can be made here")
    words = [*prefix, sys.executable, "-m", "benchmarks.oom_attribution", str(ROUNDS)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=os.path.dirname(SOURCE), env=environment())
    seen = json.loads(ended.stdout)
    assert (len(seen["kills_s"]), len(seen["below_s"]), seen["mistaken"]) == (ROUNDS, ROUNDS, 0)
    assert max(seen["kills_s"] + seen["below_s"]) < 1.0
    assert max(seen["ages_s"]) <= 0.1


def test_a_plain_sigkill_after_a_grandchilds_oom_kill_is_a_plain_one() -> None:
    process = start(*LIMIT, *python(PARENT + "import os, signal; print(os.getpid(), flush=True); signal.pause()"))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "-9\n"
    victim = int(process.stdout.readline())
    told = ""
    while "kernel killed 1 process" not in told:
        told = process.stderr.readline()
    kill(victim)
    _, err, code = finish(process)
    assert (code, verdict_of(err)) == (137, "killed")


def test_a_grandchilds_kill_is_told_within_a_second() -> None:
    process = start(*LIMIT, *python(PARENT + "import signal; signal.pause()"))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    died_s = time.monotonic()
    told = ""
    while "kernel killed 1 process" not in told:
        told = process.stderr.readline()
    assert time.monotonic() - died_s < 1.0
    os.kill(process.pid, signal.SIGTERM)
    finish(process)


def test_the_last_look_is_fresh_and_the_growth_is_told() -> None:
    slower = HOG.replace("held = []", "import signal; held = []") + "; signal.sigtimedwait([], 0.02)"
    ended = run(*LIMIT, *python(slower))
    seen = re.search(r"last seen [\d.]+ MiB (\d+) ms before the end, \+[\d.]+ MiB in its last", ended.stderr)
    assert seen is not None, ended.stderr
    assert int(seen[1]) <= 100
    assert "peak 64 MiB" in ended.stderr


# Nothing at all for a while, and then everything in a quarter of a second: a supervisor that has to wait for a core
# gets its look in. At full speed `benchmarks.oom_attribution` does it.
BURST = """
import signal, sys
signal.sigtimedwait([], float(sys.argv[1]))
held = []
while True: held.append(bytearray(b"x") * (16 << 20)); signal.sigtimedwait([], 0.005)
"""


@pytest.mark.parametrize("calm_s", [1.35, 1.6, 1.85, 2.1])
def test_a_burst_out_of_a_calm_is_on_record_where_looks_alone_would_have_missed_it(
    tmp_path: Path, calm_s: float
) -> None:
    """The control is in the same record: in the calm the looks were up to a second apart, and the burst was shorter.

    How old the last record is at the kill `benchmarks.oom_attribution` measures.
    """
    command = ["--limit", "512M", "--fence", "off", "--swap", "0", *python(BURST), str(calm_s)]
    ended = run(*command, env=environment(MEMWARDEN_DIR=str(tmp_path)))
    assert (ended.returncode, verdict_of(ended.stderr)) == (137, "oom")
    (path,) = find_boxes(str(tmp_path / "run"))
    ticks = read_box(path).ticks
    pairs = list(itertools.pairwise(ticks))
    calm = max(b.monotonic_s - a.monotonic_s for a, b in pairs)
    assert calm > 0.5
    rest_bytes = ticks[0].used_bytes or 0
    burst = [(a, b) for a, b in pairs if (b.used_bytes or 0) > rest_bytes + 32 * MIB]
    assert burst, ended.stderr
    # What grew has grown since a glance, and not since the last look: the rate of the burst can be told.
    assert burst[0][1].monotonic_s - burst[0][0].monotonic_s < calm


def test_a_supervisor_that_is_killed_in_a_calm_leaves_what_its_glances_saw(tmp_path: Path) -> None:
    words = ["--limit", "512M", "--fence", "off", *python("import signal; signal.pause()")]
    process = subprocess.Popen(command_line(*words), env=environment(MEMWARDEN_DIR=str(tmp_path)))
    try:
        until(lambda: bool(find_boxes(str(tmp_path / "run"))), what="its black box")
        (path,) = find_boxes(str(tmp_path / "run"))

        def stood_s() -> float:
            """How long the last look has lasted; looks are not written while it does."""
            try:
                ticks = read_box(path).ticks
            except BlackBoxError:
                return 0.0  # it is being made
            return ticks[-1].monotonic_s - ticks[-2].monotonic_s if len(ticks) > 1 else 0.0

        def is_caught() -> bool:
            """Whether it was stopped while a look lasts, before the next one was written."""
            if stood_s() <= 0.5:
                return False
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: state_of(process.pid) == "T", what="the supervisor stopped")
            if stood_s() > 0.5:
                return True
            os.kill(process.pid, signal.SIGCONT)
            return False

        until(is_caught, what="a look that lasts")
    finally:
        kill(process.pid)
        process.wait()
    found = read_box(path)
    assert (found.ended, found.damaged) == (False, 0)
    assert stood_s() > 0.5


def test_on_oom_restarts_with_a_fresh_count_each_life() -> None:
    ended = run(*LIMIT, "--restart", "on-oom", "--restart-delay", "1ms", "--max-restarts", "2", *python(HOG))
    assert ended.returncode == 137
    assert ended.stderr.count("rose by 1") == 3


def test_on_oom_does_not_restart_after_a_plain_sigkill() -> None:
    ended = run(*LIMIT, "--restart", "on-oom", "--", "sh", "-c", "echo life; kill -9 $$")
    assert ended.stdout == "life\n"


def test_a_limit_above_the_containers_own_is_said_so() -> None:
    outer = cgroup.confine(64 << 20)
    assert outer.cgroup is not None
    try:
        ended = run("--limit", "128M", "--fence", "off", *python(HOG), preexec_fn=outer.cgroup.join)
        inside = [entry.name for entry in os.scandir(outer.cgroup.path) if entry.is_dir()]
    finally:
        outer.release()
    if outer.cgroup.version == 1:
        assert "a limit of 64 MiB is set on this container" in ended.stderr
        assert verdict_of(ended.stderr) == "oom"
        assert inside == []


def test_no_limit_makes_no_cgroup_and_watches_the_one_we_are_in() -> None:
    ended = run("--", "cat", "/proc/self/cgroup")
    assert "memwarden-" not in ended.stdout
    assert ended.stderr == ""


def test_the_commands_cgroup_is_gone_after_it() -> None:
    process = start(*LIMIT, "--", "cat", "/proc/self/cgroup")
    out, _, _ = finish(process)
    assert f"memwarden-{process.pid}-" in out
    assert left_over(process.pid) == []


def test_cgroups_that_the_command_made_below_are_removed_too() -> None:
    process = start(*LIMIT, *python("import os; print(input()); os.mkdir(input())"))
    assert process.stdin is not None
    until(lambda: left_over(process.pid) != [], what="its cgroup")
    process.stdin.write(f"\n{cgroup_folder()}/{left_over(process.pid)[0]}/inner\n")
    process.stdin.flush()
    assert finish(process)[2] == 0
    assert left_over(process.pid) == []


def test_what_a_killed_supervisor_left_is_removed_by_the_next() -> None:
    process = start(*LIMIT, *python("import os, signal; print(os.getpid(), flush=True); signal.pause()"))
    assert process.stdout is not None
    command = int(process.stdout.readline())
    kill(process.pid)
    process.communicate()
    until(lambda: not is_alive(command), what="the command dead")
    assert left_over(process.pid) != []
    run(*LIMIT, "--", "true")
    assert left_over(process.pid) == []


def test_a_living_supervisors_empty_cgroup_is_not_removed() -> None:
    folder = f"{cgroup_folder()}/{cgroup.own_name()}"
    os.mkdir(folder)
    try:
        run(*LIMIT, "--", "true")
        assert os.path.isdir(folder)
    finally:
        assert MemoryGroup(folder, version=1, own=True).remove()


def test_a_limit_is_one_for_the_whole_tree() -> None:
    """Two processes of 40 MiB each fit their rlimits and not the 64 MiB of the tree."""
    code = "import os; os.fork(); held = b'x' * (40 << 20); import signal; signal.sigtimedwait([signal.SIGUSR1], 1)"
    ended = run(*LIMIT, "--swap", "0", *python(code), env=environment())
    assert verdict_of(ended.stderr) in ("oom", "descendant")


# A master as pre-fork servers are: it puts a new worker in the place of one that died, until its input ends.
PREFORK = """
import os, select, sys
from memwarden import Warden

def work(grows):
    warden = Warden(relieve=False) if sys.argv[1] == "guarded" else None
    if warden is not None:
        warden.start()
    select.select([], [], [], 0.5)
    held = []
    while grows:
        held.append(bytearray(b"x") * (4 << 20))
    select.select([], [], [])

def fork(grows):
    pid = os.fork()
    if pid == 0:
        work(grows)
    return pid

for grows in (True, True, False):
    worker = fork(grows)
    if grows:
        print(os.waitpid(worker, 0), flush=True)
sys.stdin.read()
os.kill(worker, 15)
"""


@pytest.mark.parametrize("workers", ["guarded", "plain"])
def test_a_workers_kill_is_told_to_people_while_the_command_lives_and_once(tmp_path: Path, workers: str) -> None:
    receiver = Receiver()
    host, port = receiver.server.server_address[:2]
    (tmp_path / "memwarden.toml").write_text(
        f'[alerts]\nservice = "web"\n[alerts.channels.hook]\nkind = "webhook"\nurl = "http://{host!s}:{port}/"\n'
    )

    def kills() -> list[dict[str, object]]:
        return [each for each in receiver.got if each["kind"] == "oom_kill"]

    process = start(*LIMIT, *python(PREFORK), workers, cwd=tmp_path)
    try:
        until(lambda: len(kills()) == 1, what="somebody told of the worker")
        assert process.poll() is None
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline().endswith(", 9)\n")
        _, err, code = finish(process)  # which closes its input
    finally:
        kill(process.pid)
        process.communicate()
        receiver.close()
    assert (code, verdict_of(err)) == (0, "descendant")
    asked = subprocess.run(
        [sys.executable, "-m", "memwarden", "alerts", "history", "--kind", "oom_kill", "--format", "json"],
        capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    told = json.loads(asked.stdout)
    names = [each["id"].split("-")[0] for each in told]
    # Two kills, two on record, of which the second is within the throttle of the first; nothing more for the end.
    assert names == (["death", "death"] if workers == "guarded" else ["kill", "kill"])
    assert len(kills()) == 1
    assert [each["title"] for each in told] == ["killed by the kernel for memory"] * 2
    assert ended_as(directory(None, os.environ, os.getuid())) == ["oom_kill"] * (2 * (workers == "guarded"))


def ended_as(run_folder: str) -> list[str]:
    """What a service would tell of who died for memory there, when the cgroup is gone with its counter."""
    found = deaths(Machine(), read_all(run_folder)[0])
    return [draft.kind for each in found if (draft := draft_of(each)) is not None and draft.kind == "oom_kill"]
