"""EMERGENCY: the record first, then the action; little memory; at 98 % of a real limit it is on the wire."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import Warden
from memwarden.blackbox import POST_BYTES, SIZE, BlackBox
from memwarden.store import FILE_NAME
from memwarden.supervise import cgroup
from memwarden.tell.signals import from_text
from memwarden.testing import FakeClock, FakeMachine, RecordingChannel
from tests.supervise.processes import no_cgroup_reason, until

from .test_kills import ROOT, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memwarden.tell.signals import Signal

MIB = 1 << 20
ALLOWED_BYTES = 256 * 1024


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def warden_of(machine: FakeMachine, clock: FakeClock, ops: RecordingChannel, **more: Any) -> Warden:
    alerts = {"service": "shop", "group_wait": "0s", "raise_for": "0s", "channels": {"ops": ops}}
    return Warden(machine=machine, clock=clock, alerts=alerts, preset=None, dwell=0, **more)


def test_the_record_is_written_before_anything_is_done(tmp_path: Path) -> None:
    """What the first action finds in the slots of the black box is the alert."""
    seen: list[Signal | None] = []
    with FakeMachine(used_bytes=50 * MIB) as machine:
        machine.live = True  # so that there is a box on disk
        machine.environ = {"MEMWARDEN_DIR": str(tmp_path)}
        clock = FakeClock(waits=0)
        warden = warden_of(machine, clock, RecordingChannel("ops"), leader=False)

        def action() -> None:
            box = warden._own_box()
            assert box is not None
            at = SIZE + 2 * 1024 + 32  # the first slot that is not kept for a crowd, whether it is taken already or not
            first = box._map[at : at + POST_BYTES]
            seen.append(from_text(first.rstrip(b"\0").decode()))

        warden.add_strategy("look", action, priority=1000, above=0.5)
        full = int(0.98 * 512 * MIB)
        clock.__init__(clock.monotonic(), waits=40, on_wait=lambda _s: machine.set_usage(full))  # type: ignore[misc]  # begun anew
        warden.start()
        assert clock.rested.wait(20)
        warden.stop()
    assert seen[0] is not None
    assert (seen[0].kind, seen[0].level.name, seen[0].what) == ("high_usage", "EMERGENCY", "raised")


@pytest.mark.parametrize("locked", [False, True])
def test_it_takes_less_than_256_kib_of_python_memory_up_to_the_channel(locked: bool, tmp_path: Path) -> None:
    """Also where somebody else has the store locked."""
    with FakeMachine(used_bytes=50 * MIB) as machine:
        machine.live = True
        machine.environ = {"MEMWARDEN_DIR": str(tmp_path)}
        clock, ops = FakeClock(waits=0), RecordingChannel("ops")
        warden = warden_of(machine, clock, ops, relieve=False)
        warden.start()
        assert warden._telling is not None
        teller = warden._telling.teller
        until(lambda: teller.outbox is not None and ops.warmed > 0, what="a warm channel")
        machine.set_usage(int(0.98 * 512 * MIB))
        clock.advance(20)
        other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        if locked:
            other.execute("BEGIN EXCLUSIVE")
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            warden.check()
            ops.wait_for(1)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
            other.close()
        warden.stop()
    (raised, *_) = ops.notices
    print(f"peak of the emergency path{', the store locked' if locked else ''}: {peak / 1024:.0f} KiB")
    assert (raised.level.name, raised.details["used_ratio"]) == ("EMERGENCY", pytest.approx(0.98, abs=0.001))
    assert peak <= ALLOWED_BYTES


def test_a_box_without_slots_is_as_large_as_ever_and_one_with_them_has_sixteen(tmp_path: Path) -> None:
    plain = BlackBox(str(tmp_path), pid=1, unix_s=1.0, monotonic_s=1.0)
    assert (plain.post(1.0, 1.0, "text"), plain.replace(1, 1.0, 1.0, "text"), plain.posts()) == (0, 0, ())
    box = BlackBox(str(tmp_path), pid=1, unix_s=2.0, monotonic_s=1.0, posts=True)
    assert [box.post(1.0, 1.0, str(number)) for number in range(20)] == [*range(1, 14), *[0] * 7]
    assert box.replace(1, 2.0, 2.0, "newer") == 14  # in the slot that is kept free for it
    assert box.replace(1, 2.0, 2.0, "newer") == 0  # which is out of date
    assert box.replace(14, 2.0, 2.0, "newest") == 15  # where the first one was
    assert box.replace(99, 2.0, 2.0, "of nothing") == 0
    assert [box.post(1.0, 1.0, "!", urgent=True) for _ in range(4)] == [16, 17, 18, 0]
    assert box.replace(2, 2.0, 2.0, "no room") == 0
    assert [post.text for post in box.posts()] == [*(str(number) for number in range(1, 13)), "newest", "!", "!", "!"]
    for post in box.posts():
        box.take(post)
        box.take(post)
    assert box.posts() == ()
    assert box.post(1.0, 1.0, "again")
    assert (plain.path, box.path) != (None, None)
    assert os.path.getsize(str(box.path)) - os.path.getsize(str(plain.path)) == 16 * 1024


FILLS = """
import json, os, sys, time
from memwarden import Warden

alerts, folder = json.loads(sys.argv[1]), sys.argv[2]
warden = Warden(alerts=alerts, directory=folder, preset=None, dwell=0, interval="500ms", relieve=False)
warden.start()
teller = warden._telling.teller
end = time.monotonic() + 20
while time.monotonic() < end and not (teller._workers and teller._workers[0]._courier._warm):
    time.sleep(0.01)  # for the handshake, in a thread of a program that has no event for it
def usage():
    return warden._sensor.read()
def anon():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("RssAnon")).split()[1]) * 1024
time.sleep(0.2)  # so that the first ticks are over: what they allocate is not what is measured
held = []
reading = usage()
while reading.headroom_bytes > reading.limit_bytes * 0.02 + 100_000:  # in strides of at most 8 MiB
    held.append(b"x" * min(8 << 20, int(reading.headroom_bytes - reading.limit_bytes * 0.02)))
    reading = usage()
before, at = anon(), reading.pressure_ratio
print(json.dumps({"ratio": at, "limit": reading.limit_bytes, "pid": os.getpid()}), flush=True)
sys.stdin.readline()
print(json.dumps({"grew": anon() - before, "ratio": usage().pressure_ratio}), flush=True)
held.clear()
warden.stop()
"""


@pytest.mark.kernel
def test_at_98_percent_of_a_real_limit_it_is_told_and_the_process_lives(tmp_path: Path, receiver: Receiver) -> None:
    if no_cgroup_reason():
        pytest.skip(no_cgroup_reason())
    made = cgroup.confine(96 * MIB)
    assert made.cgroup is not None
    host, port = receiver.server.server_address[:2]
    alerts = {"service": "shop", "channels": {"hook": {"kind": "webhook", "url": f"http://{host!s}:{port}/"}}}
    words = [sys.executable, "-c", FILLS, json.dumps(alerts), str(tmp_path)]
    try:
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "src"}, preexec_fn=made.cgroup.join,  # noqa: PLW1509  it only writes a file
        )  # fmt: skip
        assert child.stdout is not None
        filled = json.loads(child.stdout.readline())
        for _ in range(2000):
            if receiver.got:
                break
            receiver.more.wait(0.01)
        out, _ = child.communicate("go on\n", timeout=60)
        after = json.loads(out.splitlines()[0])
    finally:
        made.release()
    raised = receiver.got[0]
    print(
        f"filled to {filled['ratio']:.3f}, told at {raised['details']['used_ratio']}, grew by {after['grew'] >> 10} KiB"
    )
    assert child.returncode == 0
    assert filled["ratio"] >= 0.97
    assert (raised["level"], raised["what"], raised["target"]) == ("emergency", "raised", "shop")
    assert raised["details"]["limit_bytes"] == 96 * MIB
    assert receiver.got[-1]["what"] == "recovered"
