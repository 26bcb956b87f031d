"""Forks of every kind with real processes: a child watches itself, writes its own black box, and spoils nobody's."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.warden.programs import run

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
# Python 3.12 says that a fork in a process with threads may deadlock. It is so for every process with a Warden.
QUIET = ("-W", "ignore::DeprecationWarning")


def test_a_forked_child_watches_itself_with_its_own_numbers_and_its_own_box(tmp_path: Path) -> None:
    ran = run(
        """
warden = Warden(interval="50ms").start()
with warden.operation("before"):
    pass
with warden.operation("across"):
    child = os.fork()
if not child:
    first = warden.reading  # a fresh one at once: not what the parent saw last
    assert first.pid == os.getpid(), first
    ballast = bytearray(80 << 20)
    wait_until(lambda: warden.ticks >= 3)
    names = [each.name for each in warden.operations]
    seen = warden.check().reading
    tell(child=os.getpid(), rss=seen.rss_bytes, pid=seen.pid, operations=names)
    warden.stop()
    os._exit(0)
os.waitpid(child, 0)
before = warden.ticks
wait_until(lambda: warden.ticks >= before + 3)
tell(parent=os.getpid(), rss=warden.reading.rss_bytes, pid=warden.reading.pid, errors=warden.errors)
warden.stop()
""",
        str(tmp_path),
        options=QUIET,
    )
    child, parent = ran.told
    assert ran.stderr == ""
    assert (child["pid"], parent["pid"]) == (child["child"], parent["parent"])
    assert child["rss"] > parent["rss"] + 60 * MIB
    assert (child["operations"], parent["errors"]) == (["across"], 0)
    for pid in (child["pid"], parent["pid"]):
        box = ran.box_of(pid)
        assert (box.verdict, box.damaged) == ("stopped", 0)
        assert box.ticks
    assert max(tick.rss_bytes or 0 for tick in ran.box_of(parent["pid"]).ticks) < child["rss"]


def test_a_child_forked_in_the_middle_of_ticks_and_operations_is_whole(tmp_path: Path) -> None:
    """A hundred forks while four threads tick as fast as they can: no child inherits a lock or half a history."""
    ran = run(
        """
import faulthandler, signal, threading
faulthandler.enable()
def ended_well(child):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.002)  # waitpid has no time-out of its own
    os.kill(child, signal.SIGABRT)  # it hangs: it says on standard error where
    return os.waitpid(child, 0)[1] == 0
warden = Warden(interval="10ms", blackbox=False).start()
stopping = False
def busy():
    while not stopping:
        with warden.operation("busy"):
            warden.check()
threads = [threading.Thread(target=busy) for _ in range(4)]
for each in threads: each.start()
good = 0
for number in range(100):
    child = os.fork()
    if not child:
        try:
            warden.check(); warden.trend()
            wait_until(lambda: warden.ticks >= 3, 30)
        finally:  # whatever happens: a child that went on would fork children of its own
            os._exit(0 if warden.ticks >= 3 and warden.errors == 0 and not warden._in_flight else 1)
    good += ended_well(child)
    if good <= number:
        break
stopping = True
for each in threads: each.join()
tell(good=good, errors=warden.errors)
warden.stop()
""",
        str(tmp_path),
        options=QUIET,
    )
    assert ran.stderr == ""
    assert ran.told == [{"good": 100, "errors": 0}]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing(tmp_path: Path, method: str) -> None:
    (tmp_path / "app.py").write_text(
        """
import os, sys, time, multiprocessing
from memwarden import Warden
warden = Warden(interval="50ms")

def work(ballast_mib):
    ballast = bytearray(ballast_mib << 20)
    warden.start()  # a no-op where it came along with the fork
    end = time.monotonic() + 20
    while warden.ticks < 3 and time.monotonic() < end:
        time.sleep(0.005)  # for ticks of its thread, which have no event
    found = warden.reading
    warden.stop()
    return os.getpid(), found.pid, found.rss_bytes, warden.errors

def main(method):
    if method == "fork":
        warden.start()
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(work, [30, 120], chunksize=1)
"""
    )
    ran = run(
        f"""
sys.path.insert(0, {str(tmp_path)!r})
import app
if __name__ == "__main__":
    tell(found=app.main({method!r}), here=os.getpid())
    app.warden.stop()
""",
        str(tmp_path),
        options=QUIET,
        environ={"PYTHONPATH": os.pathsep.join((str(tmp_path), os.path.dirname(os.path.dirname(_package()))))},
    )
    assert ran.stderr == ""
    (told,) = ran.told
    for pid, seen, rss, errors in told["found"]:
        assert pid == seen != told["here"]
        assert rss > 30 * MIB
        assert errors == 0
        assert [box.verdict for box in ran.boxes if box.pid == pid] == ["stopped"] * len(
            [box for box in ran.boxes if box.pid == pid]
        )
    assert {box.damaged for box in ran.boxes} == {0}


def _package() -> str:
    import memwarden

    return os.path.abspath(memwarden.__file__)


def test_a_child_that_executes_another_program_leaves_no_trace(tmp_path: Path) -> None:
    ran = run(
        """
import subprocess
warden = Warden(interval="50ms").start()
for _ in range(20):
    subprocess.run(["/bin/true"], preexec_fn=lambda: None, check=True)
tell(here=os.getpid(), ticks=warden.ticks)
warden.stop()
""",
        str(tmp_path),
        options=QUIET,
    )
    assert ran.stderr == ""
    assert [box.pid for box in ran.boxes] == [ran.told[0]["here"]]


def test_a_fork_in_c_that_runs_no_hook_does_not_touch_its_parents_box(tmp_path: Path) -> None:
    ran = run(
        """
import ctypes
libc = ctypes.PyDLL(None)
warden = Warden(interval="5s").start()
operation = warden.operation("of the parent")
operation.__enter__()
child = libc.fork()
if not child:
    warden.check()
    with warden.operation("of the child"):
        pass
    warden._report(warden.collect())
    operation.__exit__(None, None, None)
    sys.exit(0)  # with its exit handlers
os.waitpid(child, 0)
tell(here=os.getpid(), ticks=warden.ticks)
os.kill(os.getpid(), 9)
""",
        str(tmp_path),
    )
    assert ran.stderr == ""
    (box,) = ran.boxes
    assert box.pid == ran.told[0]["here"]
    assert (box.ended, box.damaged) == (False, 0)
    assert [each.name for each in box.in_flight] == ["of the parent"]
    assert box.events == ()
    assert len(box.ticks) == ran.told[0]["ticks"]


def test_a_prefork_server_watches_each_worker(tmp_path: Path) -> None:
    """The shape of gunicorn --preload: the master imports and starts the Warden, then forks its workers."""
    ran = run(
        """
import signal
warden = Warden(interval="50ms").start()

def serve(number):
    ballast = bytearray((20 + 40 * number) << 20)
    wait_until(lambda: warden.ticks >= 4)
    with warden.operation("request"):
        tell(number=number, pid=os.getpid(), seen=warden.reading.pid, rss=warden.reading.rss_bytes)
        os.write(told[1], b".")
        signal.pause()

workers, told = [], os.pipe()
for number in range(3):
    pid = os.fork()
    if not pid:
        serve(number)
    workers.append(pid)
for _ in workers:
    os.read(told[0], 1)
wait_until(lambda: len(__import__("glob").glob(os.environ["MEMWARDEN_DIR"] + "/run/*.box")) == 4)
for pid in workers:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
tell(master=os.getpid(), seen=warden.reading.pid)
warden.stop()
""",
        str(tmp_path),
        options=QUIET,
    )
    assert ran.stderr == ""
    master = ran.told.pop()
    assert master["seen"] == master["master"]
    workers = sorted(ran.told, key=lambda each: each["number"])
    assert [each["seen"] for each in workers] == [each["pid"] for each in workers]
    for small, large in pairwise(workers):
        assert 30 * MIB < large["rss"] - small["rss"] < 50 * MIB
    for each in workers:
        box = ran.box_of(each["pid"])
        assert not box.ended
        assert [found.name for found in box.in_flight] == ["request"]
    assert ran.box_of(master["master"]).verdict == "stopped"


def test_in_a_forked_worker_whose_heap_is_not_frozen_it_does_not_collect(tmp_path: Path) -> None:
    ran = run(
        """
import gc
warden = Warden(interval="50ms").start()
for frozen in (False, True):
    child = os.fork()
    if not child:
        if frozen:
            gc.freeze()
        tell(frozen=frozen, skipped=[each.action for each in warden.emergency_cleanup() if each.skipped])
        os._exit(0)
    os.waitpid(child, 0)
warden.stop()
""",
        str(tmp_path),
        options=QUIET,
    )
    assert ran.told == [{"frozen": False, "skipped": ["collect"]}, {"frozen": True, "skipped": []}]


def test_a_coroutine_callback_of_the_parents_loop_runs_in_the_child_too(tmp_path: Path) -> None:
    ran = run(
        """
import asyncio
warden = Warden(interval="50ms", relieve=False)

async def callback(old, new, reading):
    tell(pid=os.getpid(), new=new.name)

async def main():
    warden.on_change(callback)
    warden.start()
    child = os.fork()
    if not child:
        warden.limit = "1M"
        warden.stop()  # delivers what is due
        tell(child=os.getpid())
        os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    warden.stop()

asyncio.run(main())
""",
        str(tmp_path),
        options=QUIET,
    )
    assert ran.stderr.count("Error") == 0
    changed, child = ran.told
    assert changed == {"pid": child["child"], "new": "EMERGENCY"}
