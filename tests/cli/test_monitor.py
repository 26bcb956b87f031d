from __future__ import annotations

import csv
import gzip
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from argparse import ArgumentParser
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.cli import _table, main, monitor
from memwarden.cli._export import COLUMNS, FileOutlet, Recorder, format_of, open_export
from memwarden.cli._targets import Ended, Group, OneProcess, Sample, Surroundings, lines_here
from memwarden.errors import ConfigError, MemwardenError
from memwarden.facts import Level
from memwarden.judge import Judge
from memwarden.sense import Machine
from memwarden.sense.trace import read_trace
from memwarden.testing import FakeClock, FakeMachine, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from memwarden.cli._targets import Target

MIB = 1 << 20
SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")
# Four samples, or fewer on a machine that is busy: how many there must be is proved with a clock of our own below.
SHORT = ("--interval", "0.1", "--duration", "0.3s")
MOST = 4
PATIENCE_S = 30.0


# --- real monitors ---------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": SOURCE, "TZ": "UTC", **more}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "memwarden", "monitor", *words]


def call(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    given = {"capture_output": True, "text": True, "timeout": PATIENCE_S, "env": environment()}
    return subprocess.run(command(*words), **{**given, **options})


@contextmanager
def running(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    process = subprocess.Popen(command(*words), **{**given, **options})
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=PATIENCE_S)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def victim(code: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """A Python that runs the code, says so, and lives until its standard input is closed."""
    script = f"{code}\nimport sys\nprint('ready', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=PATIENCE_S)
        process.stdout.close()


def the_rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it still writes, to its end: communicate() would lose what readline() has read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    found = process.stdout.read(), process.stderr.read()
    process.wait(timeout=PATIENCE_S)
    return found


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The complaint of a command that was used wrongly: one line, code 2, nothing on standard output."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_in_a_pipe_there_is_one_header_and_one_line_per_sample_without_escape_codes() -> None:
    done = call(*SHORT)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert 2 <= len(lines) <= 1 + MOST
    assert lines[0].split()[0] == "time"
    assert {"current", "peak", "growth/min", "limit", "level"} <= set(lines[0].split())
    assert all(re.match(r"[! ] \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d  ", line) for line in lines[1:])
    assert "\x1b" not in done.stdout
    assert f"{len(lines) - 1} samples in" in done.stderr


def test_samples_are_flushed_one_by_one_and_ctrl_c_ends_with_0_and_the_export_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with running("--format", "ndjson", "--interval", "0.05", "--export", str(target)) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, errors = the_rest(process)
    document = json.loads(target.read_text())
    assert process.returncode == 0
    assert errors == ""
    assert first == document["samples"][0]
    assert len(document["samples"]) == 1 + rest.count("\n")
    assert document["summary"]["ended"] == "stopped"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_a_clean_end(number: signal.Signals) -> None:
    with running("--format", "json", "--interval", "1h") as process:
        assert process.stdout is not None
        head = process.stdout.readline() + process.stdout.read(1)
        process.send_signal(number)
        rest, _ = the_rest(process)
    assert process.returncode == 0
    assert len(json.loads(head + rest)["samples"]) == 1


def test_another_signal_ends_no_wait_and_one_that_ends_it_needs_no_handler_to_have_run() -> None:
    """Python's own handler in C writes the byte; ours runs when the program goes on."""
    program = """
import os, signal, threading, time
from memwarden.cli._stop import stopped_by_signals
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append("usr1"))
with stopped_by_signals() as stop:
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    before = time.monotonic()
    assert not stop.wait(0.4)
    assert time.monotonic() - before >= 0.4 and seen == ["usr1"]
    again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP))
    again.start()
    assert stop.wait(60.0) and stop.is_set() and stop.wait(60.0)
    timer.join(), again.join()
assert signal.set_wakeup_fd(-1) == -1
print("ended")
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"ended\n"


def test_a_reader_that_goes_away_ends_it_quietly_and_the_export_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with running("--format", "csv", "--interval", "0.02", "--export", str(target)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=PATIENCE_S)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stdout = None
    assert process.returncode == 141
    assert json.loads(target.read_text())["samples"]


def test_a_process_is_watched_and_its_end_is_said_and_is_no_failure() -> None:
    with (
        victim("block = bytearray(b'x' * (40 << 20))") as process,
        running("--pid", str(process.pid), "--interval", "0.05", "--limit", "1G") as watcher,
    ):
        assert watcher.stdout is not None
        head, first = watcher.stdout.readline(), watcher.stdout.readline()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=PATIENCE_S)
        _, errors = the_rest(watcher)
    assert "machine" not in head.split()
    assert "container" not in head.split()
    assert re.search(r" (4|5|6)\d\.\d MiB ", first)
    assert watcher.returncode == 0
    assert f"pid {process.pid} ended" in errors


def test_a_process_that_ended_and_was_not_reaped_counts_as_ended() -> None:
    with victim() as process, running("--pid", str(process.pid), "--interval", "0.05") as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        process.send_signal(signal.SIGKILL)  # and nobody waits for it while the monitor looks
        _, errors = the_rest(watcher)
    assert watcher.returncode == 0
    assert f"pid {process.pid} ended" in errors


FORKS = """
import os
end, other = os.pipe()
for _ in range(2):
    if os.fork() == 0:
        os.close(other)
        block = bytearray(b'x' * (20 << 20))
        os.read(end, 1)
        os._exit(0)
os.close(end)
"""


def test_a_tree_is_summed_with_its_parts() -> None:
    with victim(FORKS) as process:
        done = call("--pid", str(process.pid), "--tree", "--pss", "--format", "json", *SHORT)
    document = json.loads(done.stdout)
    last = document["samples"][-1]
    assert last["processes"] == 3
    assert last["pss_bytes"] == sum(each["pss_bytes"] for each in last["parts"])
    assert 35 * MIB < last["current_bytes"] <= last["rss_bytes"]
    assert document["pid"] == process.pid


def test_all_that_match_a_name_are_summed_and_the_limit_is_judged_on_the_sum() -> None:
    code = "'the-name-to-be-matched'; block = bytearray(b'x' * (30 << 20))"
    with victim(code), victim(code):
        words = ("--match", "the-name-to-be-matched", "--limit", "64M", "--format", "ndjson", "--fail")
        done = call(*words, *SHORT)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["processes"] for row in rows} == {2}
    assert all(row["used_bytes"] == row["current_bytes"] > 60 * MIB for row in rows)
    assert all((row["limit_bytes"], row["limit_source"]) == (64 * MIB, "--limit") for row in rows)
    assert all(row["above_threshold"] and row["level"] == "EMERGENCY" for row in rows)
    assert done.returncode == 1


def test_the_threshold_marks_lines_and_fails_only_when_asked() -> None:
    marked = call("--threshold", "0.001%", *SHORT)
    unmarked = call("--threshold", "100%", "--fail", *SHORT)
    asked = call("--threshold", "0.001%", "--fail", "--quiet", *SHORT)
    marks = [line[0] for line in marked.stdout.splitlines()]
    assert (marks[0], set(marks[1:])) == (" ", {"!"})
    assert (marked.returncode, unmarked.returncode, asked.returncode) == (0, 0, 1)
    assert (asked.stdout, asked.stderr) == ("", "")


@pytest.mark.parametrize("ending", ["csv", "ndjson", "jsonl", "json", "csv.gz", "ndjson.gz", "json.gz", "txt"])
def test_every_export_is_a_trace_that_analyze_reads(ending: str, tmp_path: Path) -> None:
    target = tmp_path / f"a.{ending}"
    done = call("--export", str(target), "--quiet", *SHORT)
    trace = read_trace(str(target))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 1 <= len(trace) <= MOST
    assert trace.warning() == ""
    assert min(trace.rss_bytes) > MIB
    assert {"used_bytes", "limit_bytes"} <= set(trace.columns)
    assert trace.start_unix_s is not None


@pytest.mark.parametrize("ending", ["csv", "ndjson", "csv.gz"])
def test_an_export_survives_a_kill_of_the_monitor_with_every_sample_it_showed(ending: str, tmp_path: Path) -> None:
    target = tmp_path / f"a.{ending}"
    with running("--format", "csv", "--interval", "0.02", "--export", str(target)) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(9)]
        process.kill()
        process.wait(timeout=PATIENCE_S)
    trace = read_trace(str(target))
    assert len(trace) >= len(shown) - 1
    assert trace.warning() == ""


def test_the_output_file_option_of_older_scripts_is_the_same(tmp_path: Path) -> None:
    call("--output-file", str(tmp_path / "a.csv"), "--quiet", *SHORT)
    assert 1 <= len(read_trace(str(tmp_path / "a.csv"))) <= MOST


def test_csv_on_standard_output_has_the_columns_of_the_contract() -> None:
    rows = list(csv.DictReader(call("--format", "csv", *SHORT).stdout.splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[0]["t_s"]) == 0
    assert len(rows) <= MOST
    assert all(int(row["limit_bytes"]) > 0 and row["anon_bytes"] == "" for row in rows)


# --- wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pid", "4194305"), "no process with pid 4194305"),
        (("--pid", "0"), "0 is no pid"),
        (("--pid", "-4"), "-4 is no pid"),
        (("--pid", "a"), "--pid"),
        (("--pid", "1", "--match", "x"), "choose one"),
        (("--tree",), "add --pid PID"),
        (("--pss",), "add --tree or --match"),
        (("--match", "no-such-name-anywhere"), "no process matches"),
        (("--match", "("), "no regular expression"),
        (("--interval", "0"), "too short"),
        (("--interval", "soon"), "not a duration"),
        (("--duration", "0"), "0 is no duration"),
        (("--threshold", "1"), "ambiguous"),
        (("--threshold", "140%"), "not between"),
        (("--limit", "5Q"), "not a size"),
        (("--format", "xml"), "xml"),
        (("--rich", "--format", "csv"), "leave out --format csv"),
        (("--export", "/no/such/folder/a.csv"), "/no/such/folder/a.csv: cannot be written: No such file"),
        (("--export", "/no/such/folder/a.json"), "/no/such/folder/a.json: cannot be written"),
        (("--export", "/"), "/: is a folder"),
        (("--colour",), "--colour"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["monitor", *words])
    except SystemExit as left:  # as argparse does
        code = left.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert said in told.err
    assert told.err.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/proc/2/stat") or os.getuid() != 0, reason="no kernel threads to be seen here")
def test_a_kernel_thread_has_nothing_to_be_watched() -> None:
    assert "kernel thread" in one_line(call("--pid", "2"))


def test_a_zombie_is_named_as_such() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert "a zombie" in one_line(call("--pid", str(child)))
    finally:
        os.waitpid(child, 0)


def test_a_wrong_pid_leaves_an_earlier_recording_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("dear\n")
    one_line(call("--pid", "4194305", "--export", str(target)))
    assert target.read_text() == "dear\n"


@pytest.mark.parametrize("form", ["csv", "ndjson", "json"])
def test_a_full_disk_under_standard_output_is_one_line(form: str) -> None:
    with open("/dev/full", "w") as full:
        done = call("--format", form, *SHORT, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == ("memwarden: standard output: cannot be written: No space left on device; give it room\n")


@pytest.mark.parametrize("words", [("--format", "json"), ("--format", "csv"), ()])
def test_a_device_is_written_as_it_is_and_when_full_that_is_one_line(words: tuple[str, ...]) -> None:
    done = call("--export", "/dev/full", "--quiet", *words, *SHORT)
    assert done.returncode == 2
    assert "/dev/full: cannot be written: No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not os.path.isfile("/dev/full")


# --- a full disk under a file ------------------------------------------------------------------------------------

_ROW = {"t_s": 1, "unix_s": 2, "rss_bytes": 3, "level": "NORMAL", "limit_source": 'a "b", c'}


class _FullSoon(FileOutlet):
    """A disk with room for a file of so many bytes: what fits of a write is written, then ENOSPC."""

    room = 1 << 20

    def _put(self, data: bytes) -> None:
        fits = self.room - self._end
        super()._put(data[:fits])
        if len(data) > fits:
            raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("zipped", [False, True])
def test_what_a_full_disk_took_of_a_line_is_cut_off_again(zipped: bool, tmp_path: Path) -> None:
    target = tmp_path / ("a.csv.gz" if zipped else "a.csv")
    outlet = _FullSoon(str(target), whole=False, zipped=zipped)
    recorder = Recorder(outlet, "csv", {})
    recorder.add(_ROW)
    recorder.add(_ROW)
    outlet.room = target.stat().st_size + 3
    with pytest.raises(MemwardenError, match="No space left on device"):
        recorder.add(_ROW)
    recorder.finish({})
    text = gzip.decompress(target.read_bytes()).decode() if zipped else target.read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2
    assert rows[1]["limit_source"] == 'a "b", c'


def test_a_json_export_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    outlet = _FullSoon(str(target), whole=True, zipped=False)
    recorder = Recorder(outlet, "json", {"target": "x"})
    recorder.add(_ROW)
    outlet.room = outlet._end + 20
    with pytest.raises(MemwardenError, match="No space left"):
        recorder.add(_ROW)
    recorder.finish({})
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_json_export_keeps_the_mode_of_the_file_and_follows_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "a.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    recorder = open_export(str(link), "table", {})
    recorder.add(_ROW)
    recorder.finish({"samples": 1})
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert json.loads(target.read_text())["summary"] == {"samples": 1}


def test_a_recording_without_a_sample_is_still_a_document(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    open_export(str(target), "table", {"target": "x"}).finish({"samples": 0})
    assert json.loads(target.read_text()) == {"target": "x", "samples": [], "summary": {"samples": 0}}


@pytest.mark.parametrize(
    ("path", "fallback", "expected"),
    [
        ("a.CSV", "json", ("csv", False)),
        ("a.jsonl.gz", "table", ("ndjson", True)),
        ("a.dat", "ndjson", ("ndjson", False)),
        ("a.gz", "table", ("csv", True)),
        ("csv", "table", ("csv", False)),
    ],
)
def test_the_format_of_an_export_is_that_of_its_name(path: str, fallback: str, expected: tuple[str, bool]) -> None:
    assert format_of(path, fallback) == expected


# --- a terminal ------------------------------------------------------------------------------------------------


# A session without a terminal of its own gets the one that it opens first: then Ctrl-C typed there is a SIGINT.
OWN_TERMINAL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


def on_terminal(
    *words: str,
    argv: list[str] | None = None,
    lines: int = 24,
    columns: int = 120,
    keys: bytes = b"",
    **more: str,
) -> tuple[int, str]:
    """Exit code and output of a monitor on a terminal of that size; `keys` are typed once it has shown something."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *(argv or command(*words))],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=environment(**{"TERM": "xterm-256color", **more}),
    )  # fmt: skip
    os.close(theirs)
    found = b""
    try:
        while select.select([ours], [], [], PATIENCE_S)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # EIO: the last of them has closed it
                break
            if not part:
                break
            found += part
            if keys and b"level" in found:
                os.write(ours, keys)
                keys = b""
        return process.wait(timeout=PATIENCE_S), found.decode()
    finally:
        process.kill()
        process.wait(timeout=PATIENCE_S)
        os.close(ours)


def test_on_a_terminal_lines_scroll_and_the_header_comes_again_with_every_screen() -> None:
    code, text = on_terminal("--interval", "0.02", "--duration", "1", lines=12)
    lines = text.splitlines()
    heads = [at for at, line in enumerate(lines) if line.split()[:1] == ["time"]]
    assert code == 0
    assert len(heads) >= 2
    assert all(9 <= later - sooner <= 11 for sooner, later in pairwise(heads))
    assert "\x1b" not in text
    assert "T" not in lines[heads[0] + 1].split()[0]


def test_levels_and_marks_are_coloured_unless_no_color_says_otherwise() -> None:
    words = ("--threshold", "0.001%", *SHORT)
    assert "\x1b[1;31m! \x1b[0m" in on_terminal(*words)[1]
    plain = on_terminal(*words, NO_COLOR="1")[1]
    assert "\x1b" not in plain
    assert "! " in plain


def test_ctrl_c_on_the_terminal_ends_it_with_0_and_a_last_word() -> None:
    code, text = on_terminal("--interval", "1h", keys=b"\x03")
    assert code == 0
    assert re.search(r"\^C\r\n1 samples in", text)


def test_a_group_is_a_block_that_is_drawn_again_and_never_wider_or_higher_than_the_screen() -> None:
    with victim(FORKS) as process:
        words = ("--pid", str(process.pid), "--tree", "--quiet", *SHORT)
        assert on_terminal(*words)[1] == ""
        slower = ("--interval", "0.2", "--duration", "1")
        code, text = on_terminal(*words[:3], *slower, columns=60, lines=24, NO_COLOR="1")
    drawn = text.split("\x1b[0J")
    assert code == 0
    assert 2 <= len(drawn) <= 6
    assert all(f"{process.pid}" in each and "since seen" in each for each in drawn)
    rows = drawn[1].partition("samples in")[0].replace("\x1b[6A\r", "").split("\r\n")
    assert max(map(len, rows)) < 60
    assert "\x1b[6A" in text or "\x1b[7A" in text


def test_a_terminal_that_understands_nothing_gets_lines() -> None:
    with victim(FORKS) as process:
        code, text = on_terminal("--pid", str(process.pid), "--tree", *SHORT, TERM="dumb")
    assert code == 0
    assert "\x1b" not in text
    assert text.count("\n") == 1 + len(re.findall(r"^[! ] \d{4}-", text, re.MULTILINE)) + 5


@pytest.mark.parametrize("words", [(), ("--pid", "{pid}", "--tree")])
def test_rich_draws_on_a_terminal_and_only_there(words: tuple[str, ...]) -> None:
    with victim() as process:
        words = tuple(word.format(pid=process.pid) for word in words)
        code, text = on_terminal(*words, "--rich", *SHORT)
        piped = call(*words, "--rich", *SHORT)
    assert code == 0
    assert "┃" in text
    assert "Traceback" not in text
    assert text.rstrip().endswith("%")
    assert "┃" not in piped.stdout
    assert 1 <= len(re.findall(r"^[! ] \d{4}-", piped.stdout, re.MULTILINE)) <= MOST


def test_without_rich_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['rich.console'] = None; from memwarden.cli import main; "
        "sys.exit(main(['monitor', '--rich']))"
    )
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S,
            env=environment(TERM="xterm"),
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert done.stderr == "memwarden: --rich needs an extra; pip install 'memwarden[rich]'\n"


# --- its own memory --------------------------------------------------------------------------------------------


PEAK = """
import sys
from memwarden.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print("peak", *[line.split()[1] for line in file if line.startswith("VmHWM")])
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("words", "most_mib"), [((), 20), (("--match", "python"), 20), (("--rich",), 26)])
def test_a_monitor_is_small_itself(words: tuple[str, ...], most_mib: int) -> None:
    argv = [sys.executable, "-c", PEAK, "monitor", "--interval", "0.02", "--duration", "1", *words]
    code, text = on_terminal(argv=argv)
    peak = re.search(r"peak (\d+)", text)
    assert code == 0
    assert "level" in text
    assert peak is not None
    assert int(peak[1]) / 1024 <= most_mib


# --- the loop, with a clock and a machine of its own ---------------------------------------------------------------


def options(*words: str) -> Any:
    parser = ArgumentParser()
    monitor.add_arguments(parser)
    return parser.parse_args(words)


class _Scripted:
    """A target whose memory follows a script; taking the sample may take time of its own."""

    title, explain, is_group = "a script", "", False
    pid: int | None = None

    def __init__(self, clock: FakeClock, used: Callable[[float], int | None], *, costs_s: float = 0.0) -> None:
        self._clock, self._used, self._costs_s = clock, used, costs_s
        self._start_s = clock.monotonic()
        self.looked_s: list[float] = []

    def limit(self) -> Any:
        with FakeMachine() as machine:
            return Surroundings(machine, self._clock).limit()

    def look(self) -> Sample:
        now_s = self._clock.monotonic()
        self.looked_s.append(round(now_s - self._start_s, 6))
        used = self._used(now_s - self._start_s)
        if used is None:
            raise Ended("it is over")
        self._clock.advance(self._costs_s)
        found = reading(used, monotonic_s=now_s)
        return Sample(reading=found, current_bytes=used, peak_bytes=used)


def watch(target: _Scripted, clock: FakeClock, *words: str) -> monitor.Watch:
    asked: Target = target
    found = monitor.Watch(asked, Judge(), clock, monitor._Plan(options("--quiet", *words)))
    found.open(options("--quiet", *words))
    found.run(Event())
    found.finish()
    return found


def test_samples_are_taken_at_fixed_times_however_long_each_takes() -> None:
    clock = FakeClock()
    target = _Scripted(clock, lambda _: 100 * MIB, costs_s=0.3)
    watch(target, clock, "--interval", "1s", "--duration", "1h")
    assert target.looked_s == [float(at) for at in range(3601)]


def test_a_sample_that_takes_too_long_leaves_times_out_and_shifts_none() -> None:
    clock = FakeClock()
    target = _Scripted(clock, lambda _: 100 * MIB, costs_s=2.5)
    watch(target, clock, "--interval", "1s", "--duration", "10s")
    assert target.looked_s == [0, 3, 6, 9]


@pytest.mark.parametrize(("duration", "expected"), [("0.35s", 4), ("0.3s", 4), ("0.05s", 1)])
def test_the_end_of_the_duration_is_kept(duration: str, expected: int) -> None:
    clock = FakeClock()
    found = watch(_Scripted(clock, lambda _: MIB), clock, "--interval", "0.1", "--duration", duration)
    assert found.samples == expected
    assert found.ended == "duration"
    assert sum(clock.waited_s) == pytest.approx(float(duration[:-1]))


def test_growth_is_that_of_the_last_minute_and_nothing_is_said_of_the_first_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = FakeClock()
    target = _Scripted(clock, lambda at_s: int(100 * MIB + at_s * MIB))
    words = ("--interval", "1s", "--duration", "30s", "--format", "ndjson")
    watch(target, clock, *words)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["growth_bytes_per_minute"] for row in rows[:2]] == [None, None]
    assert rows[-1]["growth_bytes_per_minute"] == pytest.approx(60 * MIB, rel=0.05)


def test_the_summary_counts_what_there_was() -> None:
    clock = FakeClock()
    target = _Scripted(clock, lambda at_s: None if at_s >= 4 else int((100 + 120 * at_s) * MIB))
    found = watch(target, clock, "--interval", "1s", "--threshold", "80%")
    assert found.summary() == {
        "samples": 4, "duration_s": 3.0, "average_bytes": 280 * MIB, "peak_bytes": 460 * MIB,
        "above_threshold": 1, "ended": "it is over",
        "leak": {"stage": "quiet", "cause": None, "confidence": 0}, "findings": [],
    }  # fmt: skip


def _noise(at_s: float) -> float:
    """Between -1 and 1, the same for the same second."""
    return Random(int(at_s * 1000)).uniform(-1, 1)


def test_a_leak_is_told_once_in_every_output_and_fails_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    target = _Scripted(clock, lambda at_s: int((100 + 0.1 * at_s + 0.2 * _noise(at_s)) * MIB))
    found = watch(target, clock, "--interval", "1s", "--duration", "5m", "--format", "ndjson")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [each for row in rows for each in row.get("findings", ())]
    assert [(each["kind"], each["what"]) for each in told] == [("leak", "suspected"), ("leak", "confirmed")]
    assert told[1]["confidence"] >= 75
    assert found.summary()["findings"] == told
    assert found.summary()["leak"]["stage"] == "confirmed"
    assert found.found() == {"leak"}


def test_rapid_growth_and_a_spike_are_findings_of_the_monitor_too(capsys: pytest.CaptureFixture[str]) -> None:
    def used(at_s: float) -> int:
        high = 80 if 300 <= at_s < 310 else 0
        rapid = min(max(at_s - 500, 0), 150) * 1.5
        return int((100 + high + rapid + 0.2 * _noise(at_s)) * MIB)

    clock = FakeClock()
    found = watch(_Scripted(clock, used), clock, "--interval", "1s", "--duration", "20m", "--format", "csv")
    assert [(each.kind, each.what) for each in found.told if each.kind != "leak"] == [
        ("spike", "seen"), ("rapid growth", "began"), ("rapid growth", "ended"),
    ]  # fmt: skip
    assert found.found() >= {"growth", "spike"}
    capsys.readouterr()


def test_a_steady_process_has_no_findings() -> None:
    clock = FakeClock()
    target = _Scripted(clock, lambda at_s: int((100 + _noise(at_s)) * MIB))
    found = watch(target, clock, "--interval", "1s", "--duration", "30m")
    assert (list(found.told), found.found()) == ([], set())


def test_memory_of_the_monitor_does_not_grow_with_the_samples() -> None:
    import tracemalloc

    clock = FakeClock()
    target = _Scripted(clock, lambda at_s: int((100 + at_s % 7) * MIB))
    words = ("--interval", "1s", "--duration", "300s")
    watch(target, clock, *words)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = watch(target, clock, *words)
        target.looked_s.clear()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert found.samples == 301
    assert kept < 96 * 1024  # 68 KiB on CPython 3.13


# --- targets on machines of files ----------------------------------------------------------------------------------


def test_what_surrounds_us_is_the_container_and_not_this_process_nor_its_resource_limits() -> None:
    with FakeMachine(used_bytes=200 * MIB) as machine:
        machine.write("/proc/self/limits", "Max data size   1048576   1048576   bytes\n")
        machine.set_rss(7 * MIB)
        target = Surroundings(machine, FakeClock())
        sample = target.look()
        capped = Surroundings(machine, FakeClock(), cap_bytes=256 * MIB)
        assert target.title == "the container we are in"
        assert (sample.current_bytes, sample.reading.limit_bytes) == (200 * MIB, 512 * MIB)
        assert sample.reading.rss_bytes == 200 * MIB
        assert capped.look().reading.pressure_ratio == 200 / 256
        assert capped.limit().bytes == 256 * MIB
        assert Surroundings(machine, FakeClock(), cap_bytes=1 << 40).look().reading.limit_bytes == 512 * MIB


def test_a_container_has_a_column_of_its_own_beside_the_process() -> None:
    with FakeMachine(used_bytes=400 * MIB) as machine:
        for name in ("stat", "statm", "status", "cgroup", "mountinfo", "limits"):
            text = machine.read(f"/proc/self/{name}") if name != "stat" else b""
            machine.write(f"/proc/77/{name}", text or "77 (app) S 1 " + "0 " * 17 + "5 0\n")
        machine.write("/proc/77/cmdline", "app\0")
        machine.write("/proc/77/statm", f"90000 {30 * 256} 0 0 0 0 0\n")
        sample = OneProcess(machine, FakeClock(), 77).look()
    found = _table.cells(_table.Line(sample=sample, level=Level.NORMAL, growth_bytes_per_minute=0.0, above=False))
    assert found["current"] == "30.0 MiB"
    assert found["container"] == "400.0 MiB"
    assert found["used %"] == "78.1%"


def test_another_process_with_the_same_pid_is_not_taken_for_the_first() -> None:
    with FakeMachine() as machine:
        machine.write("/proc/77/stat", "77 (app) S 1 " + "0 " * 17 + "5 0\n")
        machine.write("/proc/77/cmdline", "app\0")
        for name in ("statm", "status", "cgroup", "mountinfo", "limits"):
            machine.write(f"/proc/77/{name}", machine.read(f"/proc/self/{name}"))
        target = OneProcess(machine, FakeClock(), 77)
        target.look()
        machine.write("/proc/77/stat", "77 (app) S 1 " + "0 " * 17 + "6 0\n")
        with pytest.raises(Ended, match="pid 77 ended"):
            target.look()


def test_a_name_that_nobody_has_any_more_is_a_sum_of_zero_until_somebody_has_it_again() -> None:
    clock = FakeClock()
    with victim("'comes-and-goes'"):
        group = Group(Machine(), clock, pattern="comes-and-goes")
        assert group.look().processes == 1
    gone = group.look()
    clock.advance(2)
    assert (gone.processes, gone.current_bytes) == (0, 0)
    assert group.look().processes == 0
    with victim("'comes-and-goes'"):
        clock.advance(2)
        assert group.look().processes == 1


def test_a_tree_ends_with_its_root() -> None:
    with victim() as process:
        group = Group(Machine(), FakeClock(), pid=process.pid)
        group.look()
    with pytest.raises(Ended, match="what it started may live on"):
        group.look()


def test_a_foreign_command_line_cannot_command_the_terminal() -> None:
    assert _table.printable("a\x1b[2Jb\r\nc\u202e") == "a?[2Jb??c?"


def test_thresholds_of_the_levels_come_from_the_configuration() -> None:
    with FakeMachine(environ={"MEMWARDEN_WARNING": "0.5", "MEMWARDEN_CRITICAL": "0.6"}) as machine:
        assert lines_here(machine).warning == 0.5
    with FakeMachine(environ={"MEMWARDEN_WARNING": "1"}) as machine, pytest.raises(ConfigError, match="ambiguous"):
        lines_here(machine)
