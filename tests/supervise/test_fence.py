"""The fence that `memwarden run` moves: real processes in real cgroups, forks, programs, threads, cache."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from memwarden.supervise import cgroup
from memwarden.supervise.fence import Meter, TreeFence, why_not
from tests.supervise.processes import finish, is_alive, kill, python, run, start, until

MIB = 1 << 20
LIMIT = ["--limit", "160M"]
# Tells its own soft limit, and whether a block of so many MiB is refused.
PRELUDE = """
import json, os, resource, signal, subprocess, sys, time
MIB = 1 << 20
def soft(): return resource.getrlimit(resource.RLIMIT_DATA)[0]
def wait(): signal.sigtimedwait([signal.SIGUSR1], 0.3)
def spin():
    end_s = time.monotonic() + 0.2
    while time.monotonic() < end_s: pass
def refused(mib):
    try: held = b"x" * (mib * MIB)
    except MemoryError: return True
    return False
def tell(*what): print(json.dumps(what), flush=True)
"""
CRASHING = """
import mmap, tempfile
kept = tempfile.TemporaryDirectory(); folder = kept.name + "/orjson"; os.mkdir(folder)
with open(folder + "/orjson.so", "w+b") as file:
    file.truncate(4096); held = mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ)
"""


def told(code: str, *options: str) -> Any:
    """What the program, which may use the above, says when it runs behind the fence."""
    ended = run(*LIMIT, *(options or ("--fence", "on")), *python(PRELUDE + code))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# --- without a process ---------------------------------------------------------------------------------------------


def meter(folder: Any, *, usage: int, limit: int, stated: int, **stat: int) -> Meter:
    """A captured v2 cgroup."""
    (folder / "usage").write_text(f"{usage}\n")
    (folder / "limit").write_text(f"{limit}\n" if limit else "max\n")
    (folder / "memory.stat").write_text("anon 1\n" + "".join(f"{key} {value}\n" for key, value in stat.items()))
    how = {"usage": str(folder / "usage"), "limit": str(folder / "limit"), "limit_bytes": stated}
    return Meter(str(folder), version=2, **how)  # type: ignore[arg-type]  # three texts and a number


def test_file_cache_that_can_go_at_once_is_headroom(tmp_path: Any) -> None:
    stat = {"inactive_file": 60, "active_file": 30, "file_mapped": 10, "file_dirty": 5, "file_writeback": 1}
    assert meter(tmp_path, usage=95, limit=100, stated=100, **stat).read() == (5 + 74, 100)


def test_cache_that_cannot_be_read_is_none(tmp_path: Any) -> None:
    found = meter(tmp_path, usage=95, limit=100, stated=100, inactive_file=60, active_file=0)
    (tmp_path / "memory.stat").unlink()
    assert found.read() == (5, 100)


def test_a_limit_that_was_lowered_while_it_runs_counts(tmp_path: Any) -> None:
    assert meter(tmp_path, usage=50, limit=80, stated=100).read() == (30, 80)
    assert meter(tmp_path, usage=50, limit=0, stated=100).read() == (50, 100)


def test_a_cgroup_that_is_gone_moves_nothing(tmp_path: Any) -> None:
    gone = meter(tmp_path, usage=50, limit=80, stated=100)
    (tmp_path / "usage").unlink()
    assert gone.read() is None
    fence = TreeFence([gone], mode="on")
    fence.move([os.getpid()], 0.0)
    assert not fence.exempts_all


def test_what_has_loaded_cannot_be_known_of_a_process_that_is_gone() -> None:
    assert why_not(2**22 + 1).startswith("what it has loaded cannot be read")


# --- real ones -----------------------------------------------------------------------------------------------------

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("own_cgroup")]


def test_a_burst_is_refused_and_the_next_one_fits() -> None:
    assert told("wait(); tell(refused(300), refused(60), refused(158), refused(100))") == [True, False, True, False]


def test_control_arm_without_the_fence_the_same_burst_is_killed() -> None:
    ended = run(*LIMIT, "--fence", "off", *python(PRELUDE + "tell(refused(300))"))
    assert ended.returncode == 137
    assert "(OOM kill)" in ended.stderr


def test_the_program_inside_is_told_that_it_is_fenced_from_outside() -> None:
    assert told("tell(os.environ.get('MEMWARDEN_FENCED'))") == ["outside"]
    assert told("tell(os.environ.get('MEMWARDEN_FENCED'), soft())", "--fence", "off") == [None, -1]


def test_a_forked_child_gets_a_fence_of_its_own() -> None:
    code = """
r, w = os.pipe()
if not os.fork():
    wait(); os.write(w, json.dumps([soft() > 0, refused(300), refused(50)]).encode()); os._exit(0)
tell(*json.loads(os.read(r, 100)))
"""
    assert told(code) == [True, True, False]


def test_a_program_that_is_started_gets_a_fence_by_what_it_has_itself_and_not_its_parents() -> None:
    code = """
held = b"x" * (100 * MIB); wait()
work = "import resource, signal; signal.sigtimedwait([signal.SIGUSR1], 0.3); print(resource.getrlimit(2)[0])"
child = subprocess.run([sys.executable, "-S", "-c", work], capture_output=True, text=True)
tell(soft() >> 20, int(child.stdout) >> 20)
"""
    parent, child = told(code)
    assert 100 < parent < 160
    assert 0 < child < 60


def test_threads_can_be_started_while_there_is_room() -> None:
    code = """
import threading
hold = threading.Event()
held = b"x" * (80 * MIB); wait()
threads = [threading.Thread(target=hold.wait) for _ in range(6)]
for each in threads: each.start()
wait(); more = refused(40); hold.set()
tell(len(threads), more)
"""
    assert told(code) == [6, False]


def test_a_limit_of_the_programs_own_is_respected() -> None:
    code = """
wait(); resource.setrlimit(resource.RLIMIT_DATA, (60 * MIB, resource.RLIM_INFINITY))
held = b"x" * (10 * MIB); wait(); del held; wait()
tell(soft() <= 60 * MIB, refused(80))
"""
    assert told(code) == [True, True]


def test_a_container_full_of_cache_refuses_nobody() -> None:
    code = """
import tempfile
with tempfile.TemporaryFile(dir="/var/tmp") as file:
    for _ in range(200): file.write(os.urandom(MIB))
    file.flush(); os.fsync(file.fileno()); file.seek(0)
    while file.read(MIB): pass
    wait(); tell(refused(90), refused(300))
"""
    assert told(code) == [False, True]


def test_auto_fences_a_python_program() -> None:
    assert told("wait(); tell(soft() > 0, refused(300))", "--fence", "auto") == [True, True]


def test_auto_lets_go_of_a_program_when_it_loads_what_crashes() -> None:
    """A file mapped from a folder of that name is all that can be seen from outside."""
    code = "wait(); first = soft() > 0\n" + CRASHING + "wait(); wait(); tell(first, soft())"
    ended = run(*LIMIT, *python(PRELUDE + code))
    assert json.loads(ended.stdout) == [True, -1]
    assert re.search(r"no fence for pid \d+: orjson is loaded", ended.stderr)
    assert told(code, "--fence", "on")[1] > 0


def test_a_crash_near_the_line_says_that_the_fence_may_be_the_cause() -> None:
    code = "held = b'x' * (110 * MIB)\nspin(); os.abort()"
    ended = run(*LIMIT, "--fence", "on", *python(PRELUDE + code))
    assert ended.returncode == 134
    assert "refused by the fence" in ended.stderr
    assert "refused by the fence" not in run(*LIMIT, *python(PRELUDE + "spin(); os.abort()")).stderr


def test_auto_does_not_fence_a_server_nor_what_is_no_python() -> None:
    words = ["--", "bash", "-c", "sleep 0.4; ulimit -Sd"]
    assert run(*LIMIT, *words).stdout == "unlimited\n"
    assert run(*LIMIT, "--fence", "on", *words).stdout != "unlimited\n"
    code = "spin(); tell(soft() > 0); subprocess.run(['bash', '-c', 'sleep 0.4; ulimit -Sd'])"
    assert run(*LIMIT, *python(PRELUDE + code)).stdout == "[true]\nunlimited\n"


@pytest.mark.parametrize("how", ["", "exec "], ids=["a child", "in place of the shell"])
def test_auto_fences_what_a_shell_starts_after_a_while_with_nobody_to_fence(how: str) -> None:
    code = PRELUDE + "wait(); tell(soft() > 0, refused(300))"
    ended = run(*LIMIT, "--fence", "auto", "--", "bash", "-c", f'sleep 0.6; {how}"$@"', "bash", *python(code)[1:])
    assert json.loads(ended.stdout) == [True, True], ended.stderr


def test_what_outlives_the_command_is_let_go_and_then_ended() -> None:
    code = """
if not os.fork():
    signal.signal(signal.SIGTERM, lambda *_: (open(PATH, "w").write(str(soft())), os._exit(0)))
    while True: signal.pause()
wait()
"""
    path = f"/var/tmp/memwarden-fence-{os.getpid()}"
    try:
        run(*LIMIT, "--fence", "on", *python(PRELUDE + f"PATH = {path!r}\n" + code))
        with open(path) as file:
            assert file.read() == "-1"
    finally:
        os.unlink(path)


def test_a_killed_supervisor_takes_the_command_with_it_so_that_no_fence_stands_still_around_it() -> None:
    code = PRELUDE + "tell(os.getpid())\nwhile True: wait()"
    process = start(*LIMIT, "--fence", "on", *python(code))
    assert process.stdout is not None
    (command,) = json.loads(process.stdout.readline())
    kill(process.pid)
    process.communicate()
    until(lambda: not is_alive(command), what="the command dead")
    run(*LIMIT, "--", "true")  # removes the cgroup that was left


def test_in_a_container_that_lets_us_make_no_cgroup_its_own_limit_is_the_line() -> None:
    """And the fence never exceeds the rlimit that stands for --limit there."""
    outer = cgroup.confine(160 * MIB)
    assert outer.cgroup is not None
    code = """
pid = os.fork()
if not pid: wait(); wait(); spin(); os._exit(refused(105))
spin(); tell(soft() <= 120 * MIB, refused(300)); held = b'x' * (45 * MIB)
tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    options = ["--limit", "120M", "--cgroup", "off", "--fence"]
    try:
        fenced = run(*options, "on", *python(PRELUDE + code), preexec_fn=outer.cgroup.join)
        control = run(*options, "off", *python(PRELUDE + code), preexec_fn=outer.cgroup.join)
    finally:
        outer.release()
    assert fenced.stdout.split("\n")[:2] == ["[true, true]", "[1]"], fenced.stderr
    assert "[1]" not in control.stdout  # the kernel took one of them


def test_on_without_a_cgroup_says_that_there_is_no_fence() -> None:
    ended = run("--limit", "160M", "--cgroup", "off", "--fence", "on", *python("print(1)"))
    assert (ended.returncode, ended.stdout) == (0, "1\n")
    outer = cgroup.living_in()
    if outer is None or outer.limit_bytes() is None:
        assert "no fence: there is no cgroup with a limit" in ended.stderr


def test_no_descriptor_and_no_member_of_a_dead_process_is_kept() -> None:
    code = "for _ in range(150): os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\ntell(os.getpid())\ninput()"
    process = start(*LIMIT, "--fence", "on", *python(PRELUDE + code))
    assert process.stdout is not None
    process.stdout.readline()
    until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) < 40, what="few descriptors")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert finish(process)[2] == 0
