"""The fence of this process: its arithmetic, and what it does to a real one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.act.extensions import CRASHES, server_in, why_not_imported, why_not_mapped
from memwarden.act.fence import (
    MINIMUM_BYTES,
    RESERVE_LEAST,
    RESERVE_MOST,
    SHARE_OF_ALL,
    STACK_BYTES,
    Promise,
    allowances,
    is_possible,
    is_refusal,
    refusal,
    relabelled,
    reserve_bytes,
    soft_limit,
)
from memwarden.config import settle
from memwarden.errors import ConfigError, MemoryRefused, MemwardenError

MIB = 1 << 20
SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")
SIZES = st.integers(0, 1 << 45)
needs_linux = pytest.mark.skipif(not is_possible(), reason="RLIMIT_DATA refuses on Linux only")


# --- arithmetic ----------------------------------------------------------------------------------------------------


@given(limit=SIZES)
def test_the_reserve_is_small_and_never_nothing(limit: int) -> None:
    assert RESERVE_LEAST <= reserve_bytes(limit) <= RESERVE_MOST


@given(headroom=st.integers(-(1 << 40), 1 << 45), limit=SIZES, active=st.lists(st.booleans(), min_size=1, max_size=64))
def test_all_allowances_together_fit_the_headroom(headroom: int, limit: int, active: list[bool]) -> None:
    given_out = allowances(headroom, reserve=reserve_bytes(limit), active=active)
    assert len(given_out) == len(active)
    assert min(given_out) >= 0
    assert sum(given_out) <= max(0, headroom)


@given(headroom=SIZES, limit=SIZES, active=st.lists(st.booleans(), min_size=1, max_size=64))
def test_far_from_the_line_the_reserve_stays_free(headroom: int, limit: int, active: list[bool]) -> None:
    reserve = reserve_bytes(limit)
    free = headroom - sum(allowances(headroom, reserve=reserve, active=active))
    assert free >= min(reserve, headroom) // 2 - len(active)


@given(headroom=SIZES, more=SIZES, limit=SIZES, active=st.lists(st.booleans(), min_size=1, max_size=16))
def test_more_headroom_never_means_less_for_anybody(headroom: int, more: int, limit: int, active: list[bool]) -> None:
    reserve = reserve_bytes(limit)
    low = allowances(headroom, reserve=reserve, active=active)
    high = allowances(headroom + more, reserve=reserve, active=active)
    assert all(b >= a for a, b in zip(low, high, strict=True))


@given(headroom=st.integers(4 * MIB, 1 << 45), limit=SIZES)
def test_a_process_alone_gets_everything_but_the_reserve(headroom: int, limit: int) -> None:
    reserve = reserve_bytes(limit)
    (alone,) = allowances(headroom, reserve=reserve)
    assert alone >= headroom - reserve - 1
    assert alone >= min(MINIMUM_BYTES, reserve // 2, headroom // 2)


def test_at_the_line_error_handling_still_gets_an_arena_and_the_line_is_never_reached() -> None:
    headroom, rounds = 4 * MIB, 0
    while headroom > 4096:
        (allowed,) = allowances(headroom, reserve=4 * MIB)
        assert 0 < allowed < headroom
        headroom, rounds = headroom - allowed, rounds + 1
    assert rounds > 8


def test_sleeping_processes_leave_most_of_the_headroom_to_those_that_run() -> None:
    running, *asleep = allowances(1004 * MIB, reserve=4 * MIB, active=(True, False, False, False))
    assert running == pytest.approx(1000 * MIB * (1 - SHARE_OF_ALL * 3 / 4), rel=1e-6)
    assert asleep == [int(1000 * MIB * SHARE_OF_ALL / 4)] * 3


@given(data=SIZES, allowance=st.integers(-(1 << 40), 1 << 45), cap=st.none() | SIZES)
def test_a_soft_limit_is_never_below_what_is_mapped_nor_above_somebody_elses_limit(
    data: int, allowance: int, cap: int | None
) -> None:
    soft = soft_limit(data, allowance, cap_bytes=cap)
    assert soft == (cap if cap is not None and cap < data + max(0, allowance) else data + max(0, allowance))


# --- promises ------------------------------------------------------------------------------------------------------


def test_what_is_mapped_and_not_touched_yet_is_promised() -> None:
    promise = Promise(5 * MIB)
    assert promise.step(5 * MIB, 0.02) == 0
    assert promise.step(105 * MIB, 0.02) == 100 * MIB
    assert promise.step(55 * MIB, 0.02) == 50 * MIB
    assert promise.step(5 * MIB, 0.02) == 0


def test_a_promise_that_is_being_kept_is_not_written_off() -> None:
    """Touched at 50 MiB/s for two seconds: what is left of it counts to the end."""
    promise = Promise(0)
    promised = [promise.step((100 - done) * MIB, 0.02) for done in range(100)]
    assert promised == [(100 - done) * MIB for done in range(100)]


def test_what_stays_untouched_is_written_off() -> None:
    promise = Promise(0)
    promise.step(100 * MIB, 0.02)
    for _ in range(100):
        left = promise.step(100 * MIB, 0.1)
    assert left < 5 * MIB


def test_stacks_of_new_threads_are_not_promised() -> None:
    promise = Promise(0)
    assert promise.step(50 * STACK_BYTES, 0.02, stacks_bytes=50 * STACK_BYTES) == 0
    assert promise.step(51 * STACK_BYTES, 0.02) == STACK_BYTES


@given(steps=st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(-1, 100), st.integers(0, 1 << 40))))
def test_a_promise_is_never_negative_nor_more_than_what_is_untouched(steps: list[tuple[int, float, int]]) -> None:
    promise = Promise(0)
    for untouched, passed_s, stacks in steps:
        assert 0 <= promise.step(untouched, passed_s, stacks_bytes=stacks) <= untouched


# --- who is left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRASHES)
def test_what_crashes_is_known_by_its_mapping_and_by_its_import(name: str) -> None:
    line = f"7f00-7f01 r-xp 00000000 08:01 12   /venv/lib/python3.11/site-packages{CRASHES[name]}x.so\n".encode()
    assert name in why_not_mapped(b"7e00-7e01 r--p 0 0:0 0 /usr/lib/libc.so.6\n" + line)
    assert name in why_not_imported({name: None})


def test_others_are_not_left_alone() -> None:
    assert why_not_mapped(b"7f00-7f01 r-xp 0 08:01 12 /site-packages/numpy/core/x.so\n") == ""
    assert why_not_imported({"numpy": None, "json": None}) == ""


@pytest.mark.parametrize(
    ("words", "server"),
    [
        (("python", "/venv/bin/gunicorn", "app:app"), "gunicorn"),
        (("python", "-m", "uvicorn", "app:app"), "uvicorn"),
        (("python", "manage.py", "runserver"), "runserver"),
        (("python", "job.py", "--to", "x", "gunicorn"), ""),
        (("celery", "-A", "app", "worker"), ""),
        ((), ""),
    ],
)
def test_servers_are_known_by_name(words: tuple[str, ...], server: str) -> None:
    assert server_in(words) == server


# --- refusals by their right name ----------------------------------------------------------------------------------


def test_memory_refused_is_caught_as_either_and_survives_pickling() -> None:
    error = MemoryRefused("x", soft_bytes=5, room_bytes=1, limit_bytes=9, headroom_bytes=2)
    assert isinstance(error, MemoryError)
    assert isinstance(error, MemwardenError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.soft_bytes, again.headroom_bytes, str(again)) == (5, 2, str(error))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        ValueError("Not enough memory to allocate buffer for parsing"),
        SystemError("<class 'collections.deque'> returned NULL without setting an exception"),
        ValueError("[digital envelope routines] malloc failure"),
    ],
    ids=repr,
)
def test_a_disguised_refusal_is_recognised(error: Exception) -> None:
    assert is_refusal(error)


def test_one_that_was_caused_by_a_refusal_is_recognised() -> None:
    error = ValueError("cannot decode")
    error.__cause__ = MemoryError()
    assert is_refusal(error)


@pytest.mark.parametrize(
    "error", [ValueError("bad value"), OSError(2, "No such file"), KeyError("memory"), KeyboardInterrupt()], ids=repr
)
def test_another_error_is_left_as_it_is(error: BaseException) -> None:
    assert not is_refusal(error)


def test_without_a_limit_nothing_is_relabelled() -> None:
    with pytest.raises(RuntimeError, match="new thread"), relabelled():
        raise RuntimeError("can't start new thread")
    assert refusal(MemoryError()) is None


@pytest.mark.parametrize("word", ["perhaps", 3, ""])
def test_a_mode_that_is_none_is_refused(word: Any) -> None:
    with pytest.raises(ConfigError, match="no mode of the fence"):
        settle({"fence": word}, environ={}, folder=None)


# --- a real process ------------------------------------------------------------------------------------------------

PRELUDE = """
import json, os, resource, subprocess, sys, threading
from memwarden.act.fence import Fence, relabelled, unfenced, refusal
from memwarden.errors import MemoryRefused
from memwarden.sense.machine import Machine
MIB = 1 << 20
def soft(): return resource.getrlimit(resource.RLIMIT_DATA)[0]
def up(headroom_mib=60, limit_mib=200, **how):
    fence = Fence(Machine(), **how)
    fence.move(headroom_mib * MIB, limit_mib * MIB, before=fence.look(), now_s=0.0)
    return fence
def refused(mib):
    try: bytearray(mib * MIB)
    except MemoryError: return True
    return False
"""


def in_a_process(code: str, *, args: tuple[str, ...] = ()) -> Any:
    """What the code, which may use the above, prints as JSON."""
    words = [sys.executable, "-c", PRELUDE + code, *args]
    ended = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SOURCE}, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@needs_linux
def test_what_does_not_fit_is_refused_and_what_fits_is_not() -> None:
    seen = in_a_process("""
control = refused(100)
fence = up()
out = [control, refused(100), refused(20), fence.is_up]
fence.lift()
print(json.dumps(out + [refused(100), soft() == -1, fence.is_up]))
""")
    assert seen == [False, True, False, True, False, True, False]


@needs_linux
def test_it_moves_with_what_the_process_frees() -> None:
    seen = in_a_process("""
held = b'x' * (80 * MIB)
fence = up(headroom_mib=30)
before = soft(); del held
fence.move(110 * MIB, 200 * MIB, before=fence.look(), now_s=0.02)
print(json.dumps([before, soft()]))
""")
    assert abs(seen[1] - seen[0]) < 2 * MIB  # 80 MiB less mapped and 80 MiB more headroom


@needs_linux
def test_a_limit_of_the_programs_own_is_kept_and_put_back() -> None:
    seen = in_a_process("""
resource.setrlimit(resource.RLIMIT_DATA, (500 * MIB, resource.RLIM_INFINITY))
fence = up(headroom_mib=5000, limit_mib=9000)
first = soft()
resource.setrlimit(resource.RLIMIT_DATA, (300 * MIB, resource.RLIM_INFINITY))
fence.move(5000 * MIB, 9000 * MIB, before=fence.look(), now_s=0.02)
second = soft(); fence.lift()
print(json.dumps([first, second, soft()]))
""")
    assert seen == [500 * MIB, 300 * MIB, 300 * MIB]


@needs_linux
def test_a_program_started_unfenced_inherits_no_fence() -> None:
    """Control arm: the same program started without it inherits the fence and fails."""
    seen = in_a_process("""
words = [sys.executable, "-S", "-c", "x = b'x' * (150 << 20)"]
fence = up(headroom_mib=20)
fenced = subprocess.run(words, capture_output=True).returncode
with unfenced(): started = subprocess.Popen(words)
print(json.dumps([fenced, started.wait(), refused(100)]))
""")
    assert seen == [1, 0, True]


@needs_linux
def test_a_refusal_is_named_with_its_figures() -> None:
    seen = in_a_process("""
fence = up(headroom_mib=6)
hold, out = threading.Event(), []
try:
    with relabelled(fence=fence):
        threads = []
        try:
            for _ in range(3):
                threads.append(threading.Thread(target=hold.wait)); threads[-1].start()
        finally: hold.set()
except MemoryRefused as error:
    out = [str(error), type(error.__cause__).__name__, error.limit_bytes, error.headroom_bytes, error.soft_bytes > 0]

@relabelled(fence=fence)
def work(): return bytearray(100 * MIB)
try: work()
except MemoryRefused as error: out.append(type(error.__cause__).__name__)
print(json.dumps(out))
""")
    assert seen == [
        "fence: memory was refused (RuntimeError: can't start new thread); take less at once, or raise the limit",
        "RuntimeError",
        200 * MIB,
        6 * MIB,
        True,
        "MemoryError",
    ]


@needs_linux
def test_auto_steps_back_when_something_that_crashes_is_imported() -> None:
    seen = in_a_process("""
fence = up(mode="auto")
before = fence.is_up
sys.modules["orjson"] = sys
fence.move(60 * MIB, 200 * MIB, before=fence.look(), now_s=0.02)
print(json.dumps([before, fence.is_up, soft() == -1, fence.reason]))
""")
    assert seen == [True, False, True, "orjson is loaded: it ends the process when an allocation is refused"]


WARDEN = """
from memwarden import Warden
def beyond(warden): return refused((warden.reading.headroom_bytes >> 20) + 50)
"""


@needs_linux
def test_a_warden_with_a_fence_refuses_until_it_is_stopped_also_in_a_forked_child() -> None:
    seen = in_a_process(
        WARDEN
        + """
control = bytearray(700 * MIB); del control
with Warden("200M", fence="on", blackbox=False, preset=None) as warden:
    out = [warden.fence.is_up, refused(700)]
    r, w = os.pipe()
    if not os.fork():
        free = not refused(700)   # put back in the child; its own loop has not looked yet
        warden.check()
        os.write(w, json.dumps([free, refused(700)]).encode()); os._exit(0)
    out += json.loads(os.read(r, 99))
print(json.dumps(out + [refused(700), soft() == -1]))
"""
    )
    assert seen == [True, True, True, True, False, True]


@needs_linux
def test_a_warden_moves_none_where_memwarden_run_does_or_nobody_asked() -> None:
    seen = in_a_process(
        WARDEN
        + """
quiet = Warden("200M", blackbox=False).start()
os.environ["MEMWARDEN_FENCED"] = "outside"
other = Warden("200M", fence="on", blackbox=False).start()
print(json.dumps([quiet.fence is None, other.fence is None, soft() == -1]))
"""
    )
    assert seen == [True, True, True]
