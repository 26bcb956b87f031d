from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.cli import _burden, main, simulate
from memwarden.errors import MemwardenError, UnitError
from memwarden.sense import Machine, tree
from memwarden.testing import FakeMachine

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")
PATIENCE_S = 60.0
QUICK = ("--size", "40M", "--rate", "400M/s", "--hold", "0s")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "memwarden", "simulate", *words]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=PATIENCE_S, env=environment)


@contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A simulation and the pid of its child."""
    process = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = re.search(r"pid (\d+)", process.stdout.readline())
        assert said is not None
        yield process, int(said[1])
    finally:
        process.kill()
        process.wait(timeout=PATIENCE_S)
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("shape", simulate.SHAPES)
@pytest.mark.parametrize("what", ["pressure", "leak"])
def test_memory_of_every_shape_is_really_taken(what: str, shape: str) -> None:
    done = call(what, "--shape", shape, "--format", "json", *QUICK)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert (found["ended"], found["reached_bytes"], found["exit_status"]) == ("done", 40 * MIB, 0)
    assert 38 * MIB < found["peak_rss_bytes"] < 100 * MIB


@pytest.mark.parametrize("shape", simulate.SHAPES)
def test_at_its_limit_the_child_gets_a_memory_error_and_says_how_far_it_came(shape: str) -> None:
    done = call("pressure", "--shape", shape, "--size", "300M", "--rate", "2G/s", "--limit", "80M", "--force")
    assert done.returncode == 0
    assert done.stderr == ""
    last = done.stdout.splitlines()[-1]
    assert last.startswith("MemoryError: the child was refused more memory at its limit of 80 MiB")


def test_it_says_each_second_what_it_took_and_what_is_resident() -> None:
    done = call("pressure", "--size", "30M", "--rate", "20M/s", "--hold", "0.2s")
    lines = done.stdout.splitlines()
    assert "memwarden monitor --pid" in lines[0]
    assert re.search(r" s  growing  \d+(\.\d)? MiB taken, \d+(\.\d)? MiB resident", lines[1])
    assert [line.split()[2] for line in lines[2:-1]] == ["reached", "holding", "released,"]
    assert lines[-1].startswith("done: ")


def test_a_child_that_is_killed_is_told_from_one_that_is_done() -> None:
    with running("leak", "--size", "500M", "--rate", "1M/s") as (process, child):
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        last = process.stdout.read().splitlines()[-1]
        assert process.wait(timeout=PATIENCE_S) == 0
    assert last.startswith("killed: by SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent_however_that_ends(number: signal.Signals) -> None:
    with running("pressure", "--size", "20M", "--hold", "1h") as (process, child):
        end = os.pidfd_open(child)  # can be read from when it has ended
        try:
            process.send_signal(number)
            assert select.select([end], [], [], PATIENCE_S)[0]
        finally:
            os.close(end)


def test_ctrl_c_ends_both_without_a_traceback() -> None:
    with running("pressure", "--size", "20M", "--hold", "1h") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=PATIENCE_S) == 130


def test_the_kernel_is_told_to_choose_the_child_first() -> None:
    with running("pressure", "--size", "4M", "--hold", "1h") as (process, child):
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        with open(f"/proc/{child}/oom_score_adj") as file:
            assert int(file.read()) == 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pressure", "--size", "900T"), "more than half of the"),
        (("pressure", "--size", "5Q"), "--size: '5Q' is not a size"),
        (("pressure", "--rate", "fast"), "--rate: 'fast' is not a size"),
        (("pressure", "--rate", "0/s"), "--rate"),
        (("pressure", "--hold", "-1s"), "--hold"),
        (("leak", "--limit", "1M"), "too small for any Python"),
        (("leak", "--shape", "round"), "round"),
        (("flood",), "flood"),
        ((), "what"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["simulate", *words])
    except SystemExit as left:  # as argparse does
        code = left.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert said in told.err
    assert told.err.count("\n") == 1


def plan(**changes: Any) -> simulate.Plan:
    given = {
        "what": "pressure", "shape": "mmap", "size_bytes": 300 * MIB, "rate_bytes_per_s": MIB, "hold_s": 0.0,
        "limit_bytes": None,
    }  # fmt: skip
    return simulate.Plan(**{**given, **changes})


def test_half_of_what_is_left_in_the_container_is_the_most_without_force() -> None:
    with FakeMachine(limit_bytes=512 * MIB, used_bytes=112 * MIB) as machine:
        simulate.check_room(machine, plan(size_bytes=200 * MIB))
        simulate.check_room(machine, plan(limit_bytes=100 * MIB))  # it cannot take more than its limit
        with pytest.raises(MemwardenError, match=r"300 MiB is more than half of the 400 MiB .* --force"):
            simulate.check_room(machine, plan())


def test_a_rate_is_a_size_per_second() -> None:
    assert simulate.parse_rate("50M/s") == simulate.parse_rate(" 50M ") == 50 * MIB
    with pytest.raises(UnitError, match="--rate"):
        simulate.parse_rate("/s")


@pytest.mark.parametrize("shape", simulate.SHAPES)
def test_each_shape_takes_about_what_it_is_told(shape: str) -> None:
    machine = Machine()
    machine.trim()
    before = tree.usage(machine, os.getpid()).rss_bytes
    kept = _burden.take(shape, 96 * MIB)
    grown = tree.usage(machine, os.getpid()).rss_bytes - before
    assert 72 * MIB < grown < 110 * MIB  # some of it may have been free in this process before
    assert kept
