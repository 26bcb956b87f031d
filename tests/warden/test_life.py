"""Start, stop, exit, and what is left: nothing."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING

import pytest

from memwarden import Level, Warden
from memwarden.blackbox import KEEP, find_boxes, read_box
from memwarden.testing import FakeClock, FakeMachine
from tests.warden.conftest import MIB, PATIENCE_S
from tests.warden.programs import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.warden.conftest import Stage

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    with open("/proc/self/maps", "rb") as file:
        return sum(1 for line in file if b"memwarden" in line or line.rstrip().endswith(b".box"))


def test_two_hundred_lives_leave_no_thread_no_descriptor_no_mapping_and_no_handler(tmp_path: Path) -> None:
    warden = Warden(directory=str(tmp_path), interval=60)
    warden.on_change(lambda *_: None)

    def live() -> None:
        with warden, warden.operation("work"):
            warden.check()

    for _ in range(20):
        live()
    gc.collect()
    before = (threading.active_count(), descriptors(), maps())
    handlers = _exit_handlers()
    for _ in range(200):
        live()
    gc.collect()
    assert (threading.active_count(), descriptors(), maps()) == before
    assert _exit_handlers() == handlers
    boxes = find_boxes(str(tmp_path / "run"))
    assert len(boxes) == KEEP + 1  # of lives that ended: the newest are kept
    assert read_box(boxes[0]).ended


def _exit_handlers() -> int:
    import atexit

    return atexit._ncallbacks()


def test_two_hundred_wardens_that_are_dropped_leave_nothing(tmp_path: Path) -> None:
    def live() -> None:
        warden = Warden(directory=str(tmp_path))
        warden.on_change(lambda *_: None)
        warden._need_messenger()
        warden.check()

    live()
    gc.collect()
    before = descriptors()
    for _ in range(200):
        live()
    gc.collect()
    assert descriptors() == before
    for each in threading.enumerate():
        if each.name == "memwarden-callbacks":
            each.join(PATIENCE_S)
            assert not each.is_alive()


def test_a_stopped_warden_starts_again_with_a_new_box(tmp_path: Path, stage: Stage) -> None:
    warden = Warden(directory=str(tmp_path), interval="20ms")
    for _ in range(3):
        warden.start()
        assert warden.running
        warden.stop()
        assert not warden.running
    boxes = [read_box(path) for path in find_boxes(str(tmp_path / "run"))]
    assert [(box.verdict, box.ended) for box in boxes] == [("stopped", True)] * 3
    assert all(box.ticks for box in boxes)


def test_a_second_start_and_a_second_stop_are_no_ops(stage: Stage) -> None:
    warden = stage.warden(interval=60)
    before = threading.active_count()
    assert warden.start() is warden.start()
    assert threading.active_count() == before + 1
    warden.stop()
    warden.stop()
    assert threading.active_count() == before


def test_eight_threads_that_start_it_get_one_loop(tmp_path: Path) -> None:
    warden = Warden(directory=str(tmp_path), interval=60)
    together = threading.Barrier(8)

    def start() -> None:
        together.wait(PATIENCE_S)
        warden.start()

    before = threading.active_count()
    threads = [threading.Thread(target=start) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE_S)
    assert threading.active_count() == before + 1
    warden.stop()
    assert len(find_boxes(str(tmp_path / "run"))) == 1


def test_stopping_from_within_the_loop_ends_it(stage: Stage) -> None:
    warden = stage.warden()
    stopped = threading.Event()

    def stop(_seconds: float) -> None:
        warden.stop()
        stopped.set()

    stage.clock = warden._clock = FakeClock(on_wait=stop)
    warden.start()
    (loop,) = [each for each in threading.enumerate() if each.name == "memwarden"] or [threading.current_thread()]
    assert stopped.wait(PATIENCE_S)
    if loop is not threading.current_thread():
        loop.join(PATIENCE_S)
        assert not loop.is_alive()
    assert warden._box is None


def test_stopping_while_others_work_breaks_none_of_them(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    warden = Warden(directory=str(tmp_path), interval="10ms")
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                with warden.operation("work"):
                    warden.check()
                    warden.collect()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    gc.freeze()  # a collection walks what this test makes, and not the million objects of those before it
    try:
        for each in threads:
            each.start()
        for _ in range(60):
            with warden:
                pass
    finally:
        done.set()
        for each in threads:
            each.join(PATIENCE_S)
        gc.unfreeze()
    assert failures == []
    assert all(read_box(path).damaged == 0 for path in find_boxes(str(tmp_path / "run")))


def test_the_black_box_gets_everything(tmp_path: Path) -> None:
    with FakeMachine() as machine:
        machine.live = True  # a machine of files with a real black box
        machine.set_usage(100 * MIB)
        clock = FakeClock()
        warden = Warden(machine=machine, clock=clock, directory=str(tmp_path), preset=None, dwell=0)
        warden._open_box()
        warden.check()
        machine.set_usage(480 * MIB)
        machine.set_rss(480 * MIB)
        machine.write("/sys/fs/cgroup/memory.events", "oom 1\noom_kill 3\n")
        clock.advance(5.0)
        operation = warden.operation("import")
        operation.__enter__()
        warden.check()
        (path,) = find_boxes(str(tmp_path / "run"))
        box = read_box(path)
    assert [tick.used_bytes for tick in box.ticks] == [100 * MIB, 480 * MIB]
    assert [tick.level for tick in box.ticks] == [Level.NORMAL, Level.CRITICAL]
    assert [event.kind for event in box.events] == ["level", "action", "action"]
    assert box.events[0].text.startswith("NORMAL -> CRITICAL")
    assert box.events[1].text.startswith("trim (CRITICAL by itself)")
    assert [each.name for each in box.in_flight] == ["import"]
    assert (box.limit_bytes, box.level, box.oom_kills) == (512 * MIB, Level.CRITICAL, 3)
    assert box.limit_source.endswith("memory.max")


def test_where_no_box_can_be_made_it_watches_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file, where the folder should be")
    with Warden(directory=str(tmp_path), interval=60) as warden:
        assert warden.check().reading.rss_bytes
    assert "no black box" in caplog.text


# --- memory over many ticks ----------------------------------------------------------------------------------------


def test_ticks_retain_nothing(tmp_path: Path) -> None:
    """A hundred thousand with a changing level (a million in a soak): the same blocks, the same resident memory."""
    ticks = 1_000_000 if SOAK else 100_000
    ran = run(
        f"""
import gc
from memwarden.testing import FakeClock, FakeMachine
machine, clock = FakeMachine(), FakeClock()
machine.live = True  # a machine of files with a real black box
warden = Warden(machine=machine, clock=clock, preset=None, relieve=False, directory=os.environ["MEMWARDEN_DIR"])
warden._open_box()
warden.on_change(lambda *_: None)

def many(count):
    for i in range(count):
        if i % 500 == 0:
            machine.set_usage((100, 450)[i // 500 % 2] << 20)
        clock.advance(1.0)
        warden.check()
        if i % 10 == 0:
            with warden.operation("request"):
                pass
    gc.collect()
    with open("/proc/self/statm") as file:
        return sys.getallocatedblocks(), int(file.read().split()[1]) * 4

before = many(5000)  # every window is full: half an hour of buckets, the rings of results
after = many({ticks})
tell(blocks=after[0] - before[0], rss_kib=after[1] - before[1], ticks=warden.ticks, level=warden.level.name)
machine.remove()
""",
        str(tmp_path),
    )
    (told,) = ran.told
    assert told["blocks"] < 100
    assert told["rss_kib"] < 256
    assert told["ticks"] >= ticks + 5000


# --- how processes end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "code", "verdict"),
    [
        ("", 0, "clean"),
        ("sys.exit(3)", 3, "clean"),
        ("raise ValueError('no')", 1, "failed"),
        ("os._exit(0)", 0, ""),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("warden.stop(); os._exit(0)", 0, "stopped"),
    ],
)
def test_the_box_says_how_it_ended(tmp_path: Path, ending: str, code: int, verdict: str) -> None:
    ran = run(f"warden = Warden(interval='10ms').start()\n{ending}", str(tmp_path))
    assert ran.code == code
    (box,) = ran.boxes
    assert (box.verdict, box.ended, box.damaged) == (verdict, bool(verdict), 0)


def test_no_second_box_appears_while_the_interpreter_ends(tmp_path: Path) -> None:
    ran = run(
        """
import atexit
atexit.register(lambda: time.sleep(0.5))  # runs after the goodbye: registered before it
warden = Warden(interval="10ms").start()
""",
        str(tmp_path),
    )
    assert [box.verdict for box in ran.boxes] == ["clean"]
    assert ran.stderr == ""


def test_fifty_interpreters_end_without_a_word(tmp_path: Path) -> None:
    """The loop is a daemon thread that ticks as fast as it can while the interpreter is taken down."""
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        ran = run(
            """
warden = Warden(interval="1ms", min_interval="1ms").start()
warden.on_change(lambda *_: None)
warden.limit = "1M"
""",
            str(folder),
            environ={"MEMWARDEN_RELIEVE": "off"},
        )
        assert (ran.code, _errors(ran.stderr)) == (0, [])


def _errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("memory NORMAL -> ")]


def test_a_signal_handler_may_look_in_the_middle_of_anything(tmp_path: Path) -> None:
    ran = run(
        """
import signal
warden = Warden(interval="10ms").start()
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(warden.check("alarm").level.name))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for _ in range(3000):
    warden.check()
    with warden.operation("work"):
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
tell(seen=len(seen), errors=warden.errors)
warden.stop()
""",
        str(tmp_path),
    )
    assert ran.stderr == ""
    assert ran.told[0]["seen"] > 20
    assert ran.told[0]["errors"] == 0
    assert [box.damaged for box in ran.boxes] == [0]
