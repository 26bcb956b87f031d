"""A real program in a real memory cgroup: killed without the breaker, a partial result with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.supervise.processes import environment, no_cgroup_reason

from memwarden.supervise import cgroup

pytestmark = pytest.mark.kernel

LIMIT_MIB = 128
ROUNDS = 20 if os.environ.get("MEMWARDEN_SOAK") else 3
# Each report is kept, as a batch that builds its answer does: 1 MiB each, far more than there is room for.
WORK = """
import asyncio, json
def report(number):
    return bytearray(b"x") * (1 << 20)
def tell(partial):
    print(json.dumps([partial.done, len(partial.results), partial.left_count, type(partial.why).__name__]))
"""
PROGRAMS = {
    "alone": "from memwarden import Breaker\ntell(Breaker().guard(range(1000), report))",
    "with a warden": """
from memwarden import Breaker, Warden
with Warden() as warden:
    tell(Breaker(warden).guard(range(1000), report))""",
    "asynchronous": """
from memwarden import Breaker
tell(asyncio.run(Breaker().guard_async(range(1000), report)))""",
    "in a loop of its own": """
from memwarden import Breaker, MemoryPressureError
breaker, done = Breaker(), []
try:
    for number in range(1000):
        breaker.check()
        done.append(report(number))
except MemoryPressureError as error:
    print(json.dumps([len(done), len(done), 1000 - len(done), type(error).__name__]))""",
}
BARE = "print(len([report(number) for number in range(1000)]))"


@pytest.fixture(autouse=True)
def own_cgroup() -> None:
    reason = no_cgroup_reason()
    if reason:
        pytest.skip(reason)


def _run(program: str) -> subprocess.CompletedProcess[str]:
    made = cgroup.confine(LIMIT_MIB << 20)
    assert made.cgroup is not None
    try:
        return subprocess.run(
            [sys.executable, "-c", WORK + program],
            capture_output=True, text=True, timeout=60, env=environment(), preexec_fn=made.cgroup.join,
        )  # fmt: skip
    finally:
        assert made.release()


def test_control_arm_the_same_work_without_the_breaker_is_killed() -> None:
    endings = [_run(BARE) for _ in range(ROUNDS)]
    assert [(ended.returncode, ended.stdout) for ended in endings] == [(-9, "")] * ROUNDS


@pytest.mark.parametrize("form", PROGRAMS)
def test_with_the_breaker_it_ends_by_itself_with_what_is_done(form: str) -> None:
    """Most of the room is used: what stops at the first item would be no help."""
    for _ in range(ROUNDS):
        ended = _run(PROGRAMS[form])
        assert ended.returncode == 0, ended.stderr
        done, results, left, why = json.loads(ended.stdout)
        assert done == results
        assert done + left == 1000
        assert why == "MemoryPressureError"
        assert 30 <= done <= LIMIT_MIB
