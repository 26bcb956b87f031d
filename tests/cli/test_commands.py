"""The command line as a user meets it: real processes, exit codes, one line for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import __version__, cli
from memwarden.blackbox import BlackBox, LeakState
from memwarden.cli import COMMANDS, main
from memwarden.config import SETTINGS
from memwarden.supervise.record import DEATH
from memwarden.testing import FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MACHINES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "machines")
WRITTEN = [name for name in COMMANDS if os.path.exists(os.path.join(os.path.dirname(cli.__file__), f"{name}.py"))]
NO_PID = 4_194_303  # the largest pid Linux hands out is 4,194,304; nothing gets near it here


def _run(*words: str, environ: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memwarden", *words],
        **{"capture_output": True, "text": True, "timeout": 60, **options},
        env={**os.environ, **(environ or {})},
    )


def _assert_one_line(done: subprocess.CompletedProcess[str], *expected: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("memwarden")
    for text in expected:
        assert text in done.stderr


# --- the top level -------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    done = _run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert all(len(line) < 100 for line in done.stdout.splitlines())


def test_no_command_is_wrong_usage_and_says_how_on_stderr() -> None:
    done = _run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: memwarden COMMAND")


def test_the_version_is_one_line() -> None:
    done = _run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"memwarden {__version__}\n", "")


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_explains_itself(name: str) -> None:
    done = _run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: memwarden {name}")


@pytest.mark.parametrize("name", [each for each in WRITTEN if each != "run"])
def test_an_unknown_option_is_one_line_that_names_it(name: str) -> None:
    needed = {"analyze": ["x.csv"], "simulate": ["leak"]}.get(name, [])
    _assert_one_line(_run(name, *needed, "--no-such-option"), "--no-such-option", f"see `memwarden {name} --help`")


def test_an_unknown_command_suggests_the_nearest() -> None:
    _assert_one_line(_run("docter"), "there is no command 'docter'; did you mean 'doctor'?")
    _assert_one_line(_run("xyzzy"), "`memwarden --help` lists them")
    _assert_one_line(_run("a\nb\x1b"), "there is no command")


@pytest.mark.parametrize(
    "words", [["--help"], ["config"], ["config", "--help"], ["doctor"], ["config", "--format", "json"]]
)
def test_a_reader_that_has_seen_enough_ends_it_quietly(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "memwarden", *words], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


@pytest.mark.parametrize("words", [["--help"], ["config"], ["doctor"], ["config", "--format", "json"]])
def test_a_full_disk_behind_the_output_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        done = _run(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == "memwarden: standard output: cannot be written: No space left on device\n"


def test_closed_outputs_are_no_traceback() -> None:
    for shape in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f'"{sys.executable}" -m memwarden config {shape}'], capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b""), shape


def test_names_that_the_terminal_cannot_show_are_written_out(tmp_path: Path) -> None:
    box = BlackBox(str(tmp_path / "run"), pid=NO_PID, unix_s=1.8e9, monotonic_s=1.0, argv="python café.py")
    box.close()
    done = _run("postmortem", "--dir", str(tmp_path), environ={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("python caf\\xe9.py (pid")


def test_main_gives_its_exit_code_and_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["nonsense"]) == 2
    assert main(["config", "--help"]) == 0
    assert main(["config", "--nonsense"]) == 2
    assert main(["doctor", "--pid", str(NO_PID)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_nothing_is_coloured() -> None:
    for words in (["--help"], ["config"], ["doctor"]):
        assert "\x1b" not in _run(*words, environ={"FORCE_COLOR": "1", "TERM": "xterm-256color"}).stdout


# --- config --------------------------------------------------------------------------------------------------------


def test_config_shows_each_value_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text('critical = "88%"\n')
    environ = {"MEMWARDEN_WARNING": "70", "MEMORY_MONITORING_INTERVAL": "12500", "MEMWARDEN_PRESET": "local"}
    table = _run("config", environ=environ, cwd=tmp_path)
    assert (table.returncode, table.stderr) == (0, "")
    rows = {line.split()[0]: line for line in table.stdout.splitlines()[2:]}
    assert set(rows) == {each.name for each in SETTINGS}
    for name, value, origin in (
        ("warning", "70 %", "MEMWARDEN_WARNING"),
        ("critical", "88 %", "memwarden.toml"),
        ("emergency", "95 %", "preset local"),
        ("interval", "12.5 s", "MEMORY_MONITORING_INTERVAL"),
        ("window", "30 min", "default"),
        ("limit", "-", "default"),
        ("relieve", "on", "default"),
        ("job_limit", "256 MiB", "default"),
    ):
        assert rows[name].split(value, 1)[1].lstrip().startswith(origin), rows[name]
    document = json.loads(_run("config", "--format", "json", environ=environ, cwd=tmp_path).stdout)
    assert document["preset"] == "local"
    assert document["settings"]["critical"]["value"] == 0.88
    assert document["settings"]["critical"]["origin"] == "memwarden.toml"
    assert document["settings"]["interval"]["aliases"] == ["MEMORY_MONITORING_INTERVAL"]


@pytest.mark.parametrize(
    ("environ", "file", "expected"),
    [
        ({"MEMWARDEN_WARNING": "1"}, "", "MEMWARDEN_WARNING: '1' is ambiguous"),
        ({"MEMWARDEN_LIMIT": "lots"}, "", "MEMWARDEN_LIMIT: 'lots' is not a size; write a size such as"),
        ({"MEMWARDEN_CONFIG": "/nowhere.toml"}, "", "/nowhere.toml: cannot be read: No such file"),
        ({"MEMWARDEN_PRESET": "huge"}, "", "MEMWARDEN_PRESET: 'huge' is no preset"),
        ({}, "warning = ", "memwarden.toml: is not TOML"),
        ({}, "wraning = 0.5", "did you mean 'warning'?"),
        ({}, "warning = 0.99", "warning 0.99 (memwarden.toml), critical 0.9 (preset local)"),
    ],
)
@pytest.mark.parametrize("command", ["config", "doctor", "status", "postmortem"])
def test_a_setting_that_cannot_be_used_is_one_line(
    command: str, environ: dict[str, str], file: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "memwarden.toml").write_text(file)
    environ = {"MEMWARDEN_PRESET": "local", **environ}
    _assert_one_line(_run(command, environ=environ, cwd=tmp_path), expected)


def test_a_variable_that_nothing_reads_is_mentioned() -> None:
    done = _run("config", environ={"MEMWARDEN_WARNNG": "0.5"})
    assert done.returncode == 0
    assert (
        done.stderr
        == "memwarden config: MEMWARDEN_WARNNG is set and nothing reads it; did you mean MEMWARDEN_WARNING?\n"
    )


def test_an_unknown_preset_option_is_one_line() -> None:
    _assert_one_line(_run("config", "--preset", "big"), "preset: 'big' is no preset; write one of render")


# --- doctor --------------------------------------------------------------------------------------------------------

SOME_MACHINES = [
    "docker-v2", "docker-v1", "hybrid-limited", "heroku", "lambda-vm", "fly-vm", "kubernetes-v2-guaranteed",
    "host-rlimit-as", "cgroup-folder-vanished", "no-final-newlines",
]  # fmt: skip


@pytest.mark.parametrize("name", SOME_MACHINES)
def test_doctor_reads_a_captured_machine(name: str) -> None:
    with open(os.path.join(MACHINES, f"{name}.json"), encoding="ascii") as file:
        told = json.load(file)
    environ = b"".join(f"{key}={value}\0".encode() for key, value in told["environ"].items())
    with FakeMachine({**told["files"], "/proc/self/environ": environ}) as machine:
        done = _run("doctor", "--root", machine.folder, "--format", "json")
        text = _run("doctor", "--root", machine.folder)
    assert (done.returncode, done.stderr) == (0, "")
    found, expect = json.loads(done.stdout), told["expect"]
    assert found["limit_bytes"] == expect["limit_bytes"]
    assert expect["limit_source"] in found["limit_source"]
    assert (found["used_bytes"], found["used_low_bytes"]) == (expect["used_bytes"], expect["used_low_bytes"])
    assert found["platform"] == expect["platform"]
    assert {"psi", "cgroup_limit", "swap"} <= set(found["capabilities"])
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith("limit     ")


def test_doctor_of_an_empty_machine_says_what_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    done = _run("doctor", "--root", str(tmp_path), "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["limit_bytes"], found["used_bytes"]) == (None, None)
    assert _run("doctor", "--root", str(tmp_path)).stdout.startswith(
        "limit     no limit could be read\nin use    unknown"
    )


def test_doctor_of_this_machine_measures_its_own_cost() -> None:
    found = json.loads(_run("doctor", "--format", "json").stdout)
    assert found["limit_bytes"] > 0
    assert set(found["cost_us"]) == {"rss", "tick", "read"}
    assert found["reading"]["rss_bytes"] > 0


def test_doctor_refuses_what_it_cannot_examine(tmp_path: Path) -> None:
    _assert_one_line(_run("doctor", "--root", str(tmp_path)), "holds no captured machine; name a folder with proc/")
    _assert_one_line(_run("doctor", "--root", "/nowhere"), "/nowhere: holds no captured machine")
    _assert_one_line(_run("doctor", "--pid", str(NO_PID)), f"no process with pid {NO_PID}")
    _assert_one_line(_run("doctor", "--pid", "-1"), "no process with pid -1")
    _assert_one_line(_run("doctor", "--pid", "x"), "invalid int value: 'x'")
    _assert_one_line(_run("doctor", "--pid", "1", "--capture", str(tmp_path / "x.tar")), "leave --pid out")


_SECRETS = {
    "AWS_LAMBDA_FUNCTION_NAME": "918273645",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
    "FLY_APP_NAME": "secret-shop",
    "DATABASE_URL": "postgres://user:hunter2@db/shop",
    "RENDER": "hunter2",
}


def test_a_capture_gives_the_same_limit_elsewhere_and_tells_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "machine.tar"
    done = _run("doctor", "--capture", str(path), environ=_SECRETS)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    with tarfile.open(path) as tar:
        if hasattr(tarfile, "data_filter"):  # Debian 12 has a Python 3.11 without it, where this is what it always was
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(tmp_path / "there")
        members = {each.name: each for each in tar.getmembers()}
    here = json.loads(_run("doctor", "--format", "json", environ=_SECRETS).stdout)
    there = json.loads(_run("doctor", "--format", "json", "--root", str(tmp_path / "there")).stdout)
    assert there["limit_bytes"] == here["limit_bytes"]
    assert there["limit_source"] == here["limit_source"]
    raw = path.read_bytes()
    for secret in (
        "hunter2",
        "secret-shop",
        "918273645",
        "DATABASE_URL",
        os.uname().nodename,
        "--capture",
        str(tmp_path),
    ):
        assert secret.encode() not in raw, secret
    assert b"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=512\0" in raw
    assert not [name for name in members if "cmdline" in name or any(each.isdigit() for each in name.split("/"))]
    assert (tmp_path / "there/proc/version").read_text().split() == ["Linux", "version", os.uname().release]
    assert {each.mtime for each in members.values()} == {0}


def test_a_capture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    _assert_one_line(_run("doctor", "--capture", str(tmp_path)), "is there, and is not a regular file")
    _assert_one_line(_run("doctor", "--capture", "/dev/full"), "/dev/full: is there, and is not a regular file")
    _assert_one_line(_run("doctor", "--capture", str(tmp_path / "no/x.tar")), "cannot be written: No such file")
    old = tmp_path / "old.tar"
    old.write_text("old")
    # A file may be 4 KiB long and no longer: the capture does not fit.
    script = f'ulimit -f 8; trap "" XFSZ; exec "{sys.executable}" -m memwarden doctor --capture "{old}"'
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=60)
    _assert_one_line(done, "old.tar: cannot be written: File too large; name another file")
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["old.tar"]


# --- status and postmortem -----------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the test."""
    with subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE) as run:
        yield run


def _start_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def _box(folder: Path, pid: int, **changes: Any) -> BlackBox:
    given = {"unix_s": time.time(), "monotonic_s": 1.0, "argv": f"python -m shop{pid}", **changes}
    return BlackBox(str(folder / "run"), pid=pid, **given)


@pytest.fixture
def folder(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> Path:
    """A living box, one whose pid is used by another, three dead ones, and a file that is no box."""
    living = _box(tmp_path, sleeper.pid, start_ticks=_start_ticks(sleeper.pid))
    living.place(512 << 20, "memory.max", cgroup=None, oom_kills=None)
    living.tick(time.time(), 2.0, 50 << 20, 256 << 20, 512 << 20, 1)
    living.begin(time.time(), 2.0, "GET /report", 1, 1)
    living.event(time.time(), 2.0, "action", "collected: freed 3 MiB")
    reused = _box(tmp_path, os.getpid(), start_ticks=3)
    killed = _box(tmp_path, NO_PID, kind="outside", unix_s=1.7e9)
    killed.event(1.7e9 + 5, 6.0, DEATH, "", before_bytes=500 << 20)
    killed.end_life("oom_kill", exit_status=137)
    clean = _box(tmp_path, NO_PID - 1, unix_s=1.6e9)
    clean.end_life("clean")
    for box in (living, reused, killed, clean):
        assert box.path is not None
        box.close()
    (tmp_path / "run" / "foreign.box").write_text("not mine")
    return tmp_path


_COMPLAINT = "foreign.box: is no black box (8 bytes); `memwarden postmortem` lists those there are\n"


def test_status_shows_the_living_and_no_other(folder: Path, sleeper: subprocess.Popen[bytes]) -> None:
    done = _run("status", "--dir", str(folder))
    assert done.returncode == 0
    assert done.stderr == f"memwarden status: {folder}/run/{_COMPLAINT}"
    head, row, action = done.stdout.splitlines()
    assert head.split()[:3] == ["PID", "WATCHED", "LEVEL"]
    assert row.split()[:3] == [str(sleeper.pid), "inside", "WARNING"]
    assert [cell.strip() for cell in row.split("  ") if cell.strip()][3:7] == ["256 MiB", "512 MiB", "50 %", "50 MiB"]
    assert action == f"{sleeper.pid}: last action: collected: freed 3 MiB"
    document = json.loads(_run("status", "--dir", str(folder), "--format", "json").stdout)
    (found,) = document["processes"]
    assert (found["pid"], found["level"], found["used_bytes"]) == (sleeper.pid, "WARNING", 256 << 20)
    assert found["in_flight"] == ["GET /report"]
    assert 0 <= found["seen_s"] < 60


def test_status_tells_a_leak_that_stands_and_none_that_is_over(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """However many events came after it was told: the ring keeps 256."""
    box = _box(tmp_path, sleeper.pid, start_ticks=_start_ticks(sleeper.pid))
    for number, (stage, told) in enumerate(
        (
            ("suspected", "suspected: it grows"),
            ("confirmed", "confirmed: it goes on"),
            ("quiet", "resolved: it stopped"),
        )
    ):
        state = LeakState(
            stage=stage, since_unix_s=1.6e9, unix_s=1.7e9 + number, text=told, cause="python", confidence=80,
            growth_bytes_per_minute=2.5e6, growing=("shop.Order +30,000 (+2.1 MiB)",),
        )  # fmt: skip
        box.put_leak(state)
        for _ in range(300):
            box.event(1.7e9 + number, 2.0, "spike", "seen: memory rose")
        (found,) = json.loads(_run("status", "--dir", str(tmp_path), "--format", "json").stdout)["processes"]
        stands = stage != "quiet"
        expected = {name: getattr(state, name) for name in LeakState._fields}
        assert found["leak"] == ({**expected, "growing": list(state.growing)} if stands else None)
        lines = _run("status", "--dir", str(tmp_path)).stdout.splitlines()
        assert (f"{sleeper.pid}: leak {told}" in lines) is stands
        assert (f"{sleeper.pid}: grows: shop.Order +30,000 (+2.1 MiB)" in lines) is stands


def test_the_folder_itself_may_be_named_too(folder: Path, sleeper: subprocess.Popen[bytes]) -> None:
    for where in (folder, folder / "run"):
        found = json.loads(_run("status", "--dir", str(where), "--format", "json").stdout)
        assert [each["pid"] for each in found["processes"]] == [sleeper.pid]


def test_status_finds_the_folder_of_the_settings(
    folder: Path, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "memwarden.toml").write_text(f'dir = "{folder}"\n')
    environ = {"MEMWARDEN_DIR": ""}
    found = json.loads(_run("status", "--format", "json", environ=environ, cwd=tmp_path).stdout)
    assert [each["pid"] for each in found["processes"]] == [sleeper.pid]
    assert _run("postmortem", environ=environ, cwd=tmp_path).stdout.startswith("python -m shop")


def test_status_with_nobody_there_is_fine_and_says_where_it_looked(tmp_path: Path) -> None:
    done = _run("status", "--dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"no guarded process of this user is running (looked in {tmp_path}/run)\n"
    assert json.loads(_run("status", "--dir", str(tmp_path), "--format", "json").stdout)["processes"] == []


def test_status_of_a_pid_that_is_not_there_or_not_ours_is_one_line(tmp_path: Path) -> None:
    _assert_one_line(_run("status", "--dir", str(tmp_path), "--pid", str(NO_PID)), f"no process with pid {NO_PID}")
    done = _run("status", "--dir", str(tmp_path), "--pid", str(os.getpid()), "--format", "json")
    _assert_one_line(done, f"pid {os.getpid()} is not guarded by memwarden; `memwarden status` lists who is")
    _assert_one_line(_run("status", "--dir", str(tmp_path / "none")), "/none: is no folder; name a MEMWARDEN_DIR")


def test_postmortem_tells_of_the_latest_death_that_was_none_of_its_own_will(folder: Path) -> None:
    done = _run("postmortem", "--dir", str(folder))
    assert done.returncode == 0
    assert done.stderr == f"memwarden postmortem: {folder}/run/{_COMPLAINT}"
    assert done.stdout.startswith(f"python -m shop{os.getpid()} (pid {os.getpid()}) is gone and left no goodbye")
    lines = _run("postmortem", "--dir", str(folder), "--list").stdout.splitlines()
    assert [f"pid {os.getpid()}" in lines[0], "OOM kill" in lines[1], len(lines)] == [True, True, 2]
    lines = _run("postmortem", "--dir", str(folder), "--list", "--all").stdout.splitlines()
    assert len(lines) == 3
    assert "ended by itself" in lines[2]


def test_postmortem_by_pid_file_and_as_json(folder: Path, sleeper: subprocess.Popen[bytes]) -> None:
    by_pid = _run("postmortem", "--dir", str(folder), "--pid", str(NO_PID)).stdout
    assert "was killed by the kernel for memory (OOM kill), exit code 137" in by_pid
    assert "  peak       500 MiB" in by_pid
    (name,) = (name for name in os.listdir(folder / "run") if f"-{NO_PID}-" in name)
    done = _run("postmortem", str(folder / "run" / name))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", by_pid)
    document = json.loads(_run("postmortem", "--dir", str(folder), "--pid", str(NO_PID), "--format", "json").stdout)
    assert (document["verdict"], document["certain"], document["peak_bytes"]) == ("oom_kill", True, 500 << 20)
    listed = json.loads(_run("postmortem", "--dir", str(folder), "--list", "--all", "--format", "json").stdout)
    assert [each["verdict"] for each in listed] == ["unknown", "oom_kill", "clean"]


def test_what_has_no_death_on_record_is_one_line(folder: Path, sleeper: subprocess.Popen[bytes]) -> None:
    living = next(name for name in os.listdir(folder / "run") if f"-{sleeper.pid}-" in name)
    where = ("--dir", str(folder))
    alive = f"pid {sleeper.pid} is alive; `memwarden status` shows it"
    _assert_one_line(_run("postmortem", str(folder / "run" / living)), alive)
    assert alive in _run("postmortem", *where, "--pid", str(sleeper.pid)).stderr
    done = _run("postmortem", *where, "--pid", "2147483")
    assert done.returncode == 2
    assert "no death of pid 2147483 on record; try --list --all" in done.stderr
    _assert_one_line(_run("postmortem", str(folder / "run" / "foreign.box")), "foreign.box: is no black box (8 bytes)")
    _assert_one_line(_run("postmortem", str(folder / "run" / "none.box")), "none.box: cannot be read: No such file")
    _assert_one_line(_run("postmortem", str(folder)), "cannot be read: Is a directory")
    _assert_one_line(_run("postmortem", "x.box", "--list"), "a file is one death already")


def test_no_death_at_all_is_fine(tmp_path: Path) -> None:
    done = _run("postmortem", "--dir", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no death on record\n")
    assert json.loads(_run("postmortem", "--dir", str(tmp_path), "--format", "json").stdout) is None
    assert json.loads(_run("postmortem", "--dir", str(tmp_path), "--list", "--format", "json").stdout) == []


_VICTIM = """
import os, signal, memwarden
with memwarden.Warden() as warden, warden.operation("the last one"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_real_process_that_was_killed_leaves_its_story(tmp_path: Path) -> None:
    environ = {**os.environ, "MEMWARDEN_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", _VICTIM], env=environ) as run:
        assert run.wait(timeout=60) == -9
    done = _run("postmortem", "--pid", str(run.pid), environ={"MEMWARDEN_DIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "is gone and left no goodbye" in done.stdout
    assert "  in flight  the last one, since " in done.stdout
