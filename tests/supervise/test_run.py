"""`memwarden run` with real processes and no kernel kills: exit codes, signals, orphans, what the child sees."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from memwarden.blackbox import AGAIN, find_boxes, read_box
from memwarden.supervise import entry
from memwarden.supervise.allocator import find_jemalloc
from memwarden.supervise.settings import Settings
from tests.supervise.processes import environment, finish, is_alive, kill, python, run, start, state_of, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READY = "print('ready', flush=True)\n"
# Writes the name of each signal that it gets; ends by SIGTERM with 7 when told so.
LISTENER = """
import os, signal, sys
def hear(number, frame):
    os.write(1, (signal.Signals(number).name + "\\n").encode())
    if number == signal.SIGTERM: os._exit(7)
for name in ("TERM", "INT", "HUP", "USR1", "USR2", "QUIT", "WINCH"):
    signal.signal(getattr(signal, "SIG" + name), hear)
os.write(1, f"ready {os.getpid()}\\n".encode())
while True: signal.pause()
"""


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def started_listener(*options: str) -> tuple[subprocess.Popen[str], int]:
    process = start(*options, *python(LISTENER))
    return process, int(first_line(process).split()[1])


# --- exit codes and output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
    ],
)
def test_the_exit_code_is_the_commands_own(command: str, code: int) -> None:
    assert run("--", "sh", "-c", command).returncode == code


def test_a_command_that_does_not_exist_is_127_and_one_line() -> None:
    ended = run("--", "no-such-program-anywhere")
    assert (ended.returncode, ended.stdout) == (127, "")
    assert ended.stderr.splitlines() == [
        "memwarden: no-such-program-anywhere: command not found; give the path of a program or a name on PATH"
    ]


@pytest.mark.parametrize("content", ["", "no program at all\n"], ids=["not executable", "no program"])
def test_a_file_that_cannot_be_executed_is_126_and_one_line(tmp_path: Path, content: str) -> None:
    program = tmp_path / "program"
    program.write_text(content)
    program.chmod(0o755 if content else 0o644)
    ended = run("--", str(program))
    assert ended.returncode == 126
    assert len(ended.stderr.splitlines()) == 1


def test_a_missing_interpreter_is_said_to_be_that(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    ended = run("--", str(program))
    assert ended.returncode == 127
    assert "interpreter was not found" in ended.stderr


def test_streams_are_the_commands_alone() -> None:
    code = "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data[::-1]); sys.stderr.write('mine')"
    ended = run(*python(code), input="\0abc", text=True)
    assert (ended.stdout, ended.stderr) == ("cba\0", "mine")


def test_quiet_says_nothing_about_a_death() -> None:
    assert run("--quiet", "--", "sh", "-c", "exit 3").stderr == ""
    assert "exit code 3" in run("--", "sh", "-c", "exit 3").stderr


def test_every_word_of_ours_has_our_name_before_it() -> None:
    lines = run("--limit", "100M", "--", "sh", "-c", "kill -9 $$").stderr.splitlines()
    assert lines
    assert all(line.startswith("memwarden: ") for line in lines)


def test_words_behind_the_command_are_the_commands() -> None:
    ended = run("--quiet", "--", "echo", "--limit", "x", "--", "--quiet")
    assert ended.stdout == "--limit x -- --quiet\n"


def test_a_closed_stderr_loses_words_and_nothing_else() -> None:
    line = f"exec 2>&-; exec {sys.executable} -I -S {_script()} -- sh -c 'exit 5'"
    assert subprocess.run(["sh", "-c", line]).returncode == 5


def _script() -> str:
    import memwarden.supervise

    return os.path.join(os.path.dirname(str(memwarden.supervise.__file__)), "__main__.py")


# --- what the child sees -----------------------------------------------------------------------------------------


def test_the_child_has_the_signal_state_that_we_were_given() -> None:
    show = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    ours = subprocess.run(show, capture_output=True, text=True).stdout
    # 32 and 33 are glibc's own; its posix_spawn leaves them ignored, and who was started how differs with the Python
    glibc = 1 << 31 | 1 << 32
    assert _masks(run("--", *show).stdout, glibc) == _masks(ours, glibc)


def _masks(text: str, without: int) -> list[int]:
    return [int(line.split()[1], 16) & ~without for line in text.splitlines()]


def test_an_ignored_hangup_stays_ignored() -> None:
    """As under nohup."""
    show = "grep ^SigIgn /proc/self/status"
    ended = run("--", "sh", "-c", show, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert int(ended.stdout.split()[1], 16) & (1 << (signal.SIGHUP - 1))


def test_the_child_knows_its_supervisor_and_shares_its_group_and_session() -> None:
    code = "import os; print(os.environ['MEMWARDEN_SUPERVISOR'], os.getppid(), os.getpgrp(), os.getsid(0))"
    process = start(*python(code), start_new_session=True)
    out, _, _ = finish(process)
    assert out.split() == [str(process.pid)] * 4


def test_the_child_is_preferred_by_the_kernel() -> None:
    with open("/proc/self/oom_score_adj") as file:
        ours = int(file.read())
    assert int(run("--", "cat", "/proc/self/oom_score_adj").stdout) == min(1000, ours + 250)


def test_listening_sockets_and_the_watchdog_are_handed_on_to_the_childs_own_pid() -> None:
    code = (
        "import os, socket; own = str(os.getpid());"
        "assert os.environ['LISTEN_PID'] == own == os.environ['WATCHDOG_PID'];"
        "assert os.environ['NOTIFY_SOCKET'] == '@x';"
        "print(socket.socket(fileno=3).getsockname()[1])"
    )
    server = socket.create_server(("127.0.0.1", 0))
    words = [sys.executable, "-I", "-S", _script(), "--", sys.executable, "-c", code]
    pid = os.fork()
    if pid == 0:  # as systemd: descriptor 3, and the pid of the process that it starts
        try:
            os.dup2(server.fileno(), 3)
            own = str(os.getpid())
            more = {"LISTEN_PID": own, "LISTEN_FDS": "1", "WATCHDOG_PID": own, "NOTIFY_SOCKET": "@x"}
            os.execve(words[0], words, environment(**more))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    server.close()


def test_a_pid_variable_meant_for_another_process_is_left_alone() -> None:
    code = "import os; print(os.environ['LISTEN_PID'])"
    assert run(*python(code), env=environment(LISTEN_PID="1")).stdout == "1\n"


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("default", {}),
        ("lean", {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "65536"}),
        ("malloc", {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONMALLOC": "malloc"}),
    ],
)
def test_an_allocator_preset_reaches_the_child(preset: str, expected: dict[str, str]) -> None:
    names = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "PYTHONMALLOC")
    bare = {name: value for name, value in environment().items() if name not in names}
    lines = run("--allocator", preset, "--", "env", env=bare).stdout.splitlines()
    assert {k: v for k, v in (line.split("=", 1) for line in lines if "=" in line) if k in names} == expected


def test_jemalloc_is_really_loaded() -> None:
    if find_jemalloc() is None:
        pytest.skip("no libjemalloc on this machine")
    assert "libjemalloc" in run("--allocator", "jemalloc", "--", "cat", "/proc/self/maps").stdout


# --- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGWINCH"])
def test_a_signal_sent_to_us_reaches_the_command_once(name: str) -> None:
    process, _ = started_listener("--quiet")
    os.kill(process.pid, getattr(signal, name))
    assert first_line(process) == name
    os.kill(process.pid, signal.SIGTERM)
    out, _, code = finish(process)
    assert (out, code) == ("SIGTERM\n", 7)


def test_sigterm_is_the_end_even_with_a_restart_policy() -> None:
    process, _ = started_listener("--restart", "always")
    os.kill(process.pid, signal.SIGTERM)
    _, err, code = finish(process)
    assert code == 7
    assert "restart" not in err


def test_a_second_sigterm_kills_the_whole_tree_at_once() -> None:
    code = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'no\\n'))\n" + READY
    process = start("--stop-grace", "1h", *python(code + "while True: signal.pause()"))
    first_line(process)
    os.kill(process.pid, signal.SIGTERM)
    assert first_line(process) == "no"
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process)[2] == 137


def test_after_the_grace_time_comes_the_kill() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "while True: signal.pause()"
    process = start("--stop-grace", "200ms", *python(code))
    first_line(process)
    os.kill(process.pid, signal.SIGTERM)
    _, err, returncode = finish(process)
    assert returncode == 137
    assert "did not end in time" in err


def test_a_group_signal_sent_by_the_command_is_not_sent_back_to_it() -> None:
    code = """
import os, signal
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
os.killpg(0, signal.SIGUSR1)
signal.sigtimedwait([signal.SIGUSR2], 0.3)
print(len(heard))
"""
    process = start("--quiet", *python(code), start_new_session=True)
    assert finish(process)[0] == "1\n"


def test_a_stopped_command_is_continued_to_hear_sigterm() -> None:
    process, pid = started_listener("--quiet")
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T", what="the command stopped")
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process)[2] == 7


# --- the tree ----------------------------------------------------------------------------------------------------

ORPHAN = "import os, signal\nif os.fork() == 0:\n  signal.signal(signal.SIGTERM, {term}); "
ORPHAN += (
    "os.write(1, b'%d\\n' % os.getpid())\n  while True: signal.pause()\nsignal.sigtimedwait([signal.SIGUSR2], 0.2)"
)


@pytest.mark.parametrize("limit", [[], ["--limit", "100M"]], ids=["no cgroup", "own cgroup"])
@pytest.mark.parametrize("term", ["signal.SIG_DFL", "signal.SIG_IGN"], ids=["polite", "deaf"])
def test_what_the_command_leaves_running_is_ended(term: str, limit: list[str]) -> None:
    ended = run(*limit, "--stop-grace", "300ms", *python(ORPHAN.format(term=term)))
    assert ended.returncode == 0
    assert not is_alive(int(ended.stdout.split()[0]))


def test_orphans_are_reaped_while_the_command_runs() -> None:
    code = """
import os, signal, sys
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid()); os._exit(0)
    os._exit(0)
os.waitpid(child, 0)
signal.pause()
"""
    process = start("--quiet", *python(code))
    orphan = int(first_line(process))
    until(lambda: state_of(orphan) == "", what="the orphan buried")
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process)[2] == 143


def test_the_command_dies_with_its_supervisor() -> None:
    process, pid = started_listener()
    kill(process.pid)
    process.communicate()
    until(lambda: not is_alive(pid), what="the command dead")


def test_as_pid_1_it_reaps_forwards_and_ends_the_namespace() -> None:
    unshare = shutil.which("unshare")
    probe = [str(unshare), "-pf", "--mount-proc", "true"]
    if unshare is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no pid namespace can be made here")
    script = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
if os.fork() == 0:
    if os.fork() == 0: os._exit(0)
    os._exit(0)
os.wait()
print("ready", os.getppid(), flush=True)
while True: signal.pause()
"""
    words = [sys.executable, "-I", "-S", _script(), "--", sys.executable, "-c", script]
    process = subprocess.Popen(
        [*probe[:-1], *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert first_line(process) == "ready 1"
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    os.kill(int(children.split()[0]), signal.SIGTERM)
    assert finish(process)[2] == 9


# --- restart -----------------------------------------------------------------------------------------------------


def test_on_failure_restarts_until_it_succeeds(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"echo x >> {count}; test $(wc -l < {count}) -ge 3"
    ended = run("--restart", "on-failure", "--restart-delay", "10ms", "--", "sh", "-c", script)
    assert (ended.returncode, len(count.read_text().split())) == (0, 3)


def test_the_record_of_a_life_says_whether_another_one_follows(tmp_path: Path) -> None:
    words = ["--restart", "on-failure", "--restart-delay", "10ms", "--max-restarts", "1", "--", "sh", "-c", "exit 3"]
    run(*words, env=environment(MEMWARDEN_DIR=str(tmp_path)))
    last, first = (read_box(path) for path in find_boxes(str(tmp_path / "run")))
    said = [[event.text[:9] for event in box.events if event.kind == AGAIN] for box in (first, last)]
    assert said == [["restart 1"], []]


def test_a_crash_loop_is_stopped_with_the_commands_code() -> None:
    ended = run("--restart", "always", "--restart-delay", "1ms", "--", "sh", "-c", "echo life; exit 4")
    assert (ended.returncode, ended.stdout.count("life")) == (4, 5)
    assert "crash loop" in ended.stderr


def test_sigterm_while_waiting_for_a_restart_ends_it() -> None:
    process = start("--restart", "always", "--restart-delay", "1h", "--", "sh", "-c", "exit 6")
    assert process.stderr is not None
    while "next: restart 1" not in process.stderr.readline():
        pass
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process)[2] == 6


def test_by_default_nothing_is_restarted() -> None:
    assert run("--", "sh", "-c", "echo life; exit 1").stdout == "life\n"


# --- rlimit mode -------------------------------------------------------------------------------------------------


def test_without_a_cgroup_the_limit_is_a_memory_error_and_said_so() -> None:
    code = "try:\n b'x' * (200 << 20)\nexcept MemoryError: print('refused')"
    ended = run("--limit", "100M", "--cgroup", "off", *python(code))
    assert ended.stdout == "refused\n"
    assert "RLIMIT_DATA" in ended.stderr


def test_a_plain_user_is_told_why_there_is_no_cgroup() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")

    def become_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)

    command = ["/bin/sh", "-c", "ulimit -d"]
    # In a fork with all it needs loaded: nobody else may be allowed to read this interpreter's files.
    for name in ("ctypes", "resource", "memwarden.supervise.scope"):
        importlib.import_module(name)
    pid, ours = _forked(become_nobody, Settings(command=tuple(command), limit_bytes=64 << 20))
    with open(ours, encoding="utf-8") as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "no cgroup: " in said
    assert str((64 << 20) // 1024) in said


def _forked(prepare: Callable[[], None], settings: Settings) -> tuple[int, int]:
    """A supervisor without the exec in a fork of this process, and a pipe with all that is said there."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(theirs, 1)
            os.dup2(theirs, 2)
            prepare()
            code = entry.supervise(settings)
        finally:
            os._exit(code)
    os.close(theirs)
    return pid, ours


# --- wrong input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no command given"),
        (["--limit", "much", "--", "true"], "--limit: 'much' is not a size"),
        (["--limit", "512", "--", "true"], "did you mean 512M?"),
        (["--limit", "1", "--", "true"], "--limit"),
        (["--limit", "180%", "--", "true"], "--limit"),
        (["--stop-grace", "soon", "--", "true"], "--stop-grace"),
        (["--brake", "-1", "--", "true"], "--brake"),
        (["--max-restarts", "-1", "--", "true"], "--max-restarts"),
        (["--cgroup", "require", "--", "true"], "add --limit"),
        (["--swap", "x", "--", "true"], "--swap"),
    ],
)
def test_wrong_input_is_one_line_and_2(words: list[str], part: str) -> None:
    ended = run(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert part in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_supervisor_weighs_14_mib_at_most() -> None:
    code = "import os\nwith open(f'/proc/{os.getppid()}/status') as f: print(f.read())"
    run("--limit", "100M", *python(code))  # compiled files exist from here on
    fields = dict(
        line.split(":", 1) for line in run("--limit", "100M", *python(code)).stdout.splitlines() if ":" in line
    )
    assert int(fields["VmRSS"].split()[0]) <= 14 * 1024
    assert int(fields["Threads"]) == 1


def test_the_supervisor_imports_nothing_heavy() -> None:
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.dirname(_script())))!r})
import memwarden.supervise.entry
heavy = "argparse subprocess threading logging json typing dataclasses pathlib ctypes random shutil tempfile inspect"
print(*sorted(set(heavy.split()) & set(sys.modules)))
"""
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (loaded.returncode, loaded.stdout.split()) == (0, [])
