"""The loop, on a fake clock and a fake machine: what is told, when, how often, and what goes on while others fail."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.blackbox import BlackBox, directory
from memwarden.config import Config
from memwarden.errors import DeliveryError, StoreError
from memwarden.facts import Level
from memwarden.sense import Machine
from memwarden.supervise.autopsy import command_name
from memwarden.supervise.service.history import FILE_NAME, History
from memwarden.supervise.service.service import Lock, Service
from memwarden.tell.sender import build_channels
from memwarden.tell.settings import parse
from memwarden.testing import FakeClock, RecordingChannel
from tests.tell.channels.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_S = 1_800_000_000.0
GIB = 1 << 30


class Scene:
    """A service whose clock, machine and channel are the test's."""

    def __init__(self, folder: Path, **alerts: Any) -> None:
        self.folder = folder
        self.run_folder = str(folder / "run")
        self.root = folder / "machine"
        (self.root / "proc").mkdir(parents=True, exist_ok=True)
        self.memory(available=12 * GIB)
        self.clock = FakeClock(unix_s=START_S)
        self.channel = RecordingChannel("ops")
        self.alerts = alerts
        self.service: Service | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def memory(self, *, available: int) -> None:
        """What the machine has."""
        text = f"MemTotal: {16 * GIB >> 10} kB\nMemAvailable: {available >> 10} kB\n"
        (self.root / "proc" / "meminfo").write_text(text)

    def start(self) -> Service:
        """A service as after a start of the process."""
        table = {"channels": {"ops": self.channel}, "group_wait": 0, "raise_for": 0, "clear_for": 0, **self.alerts}
        settings = parse(table, "alerts")
        assert settings is not None
        self.service = Service(
            str(self.folder), self.run_folder, config=Config(), alerts=build_channels(settings, {}), environ={},
            clock=self.clock, machine=Machine(str(self.root)),
        )  # fmt: skip
        assert self.service._teller is not None
        self.service._teller.start()
        self.service._wait_for_outbox(threading.Event())
        wait_for(lambda: self.service is not None and self.service._teller.outbox is not None)  # type: ignore[union-attr]  # it is there by then
        return self.service

    def rounds(self, seconds: float) -> None:
        """Let so much time pass, a round for each second."""
        assert self.service is not None
        for _ in range(int(seconds)):
            self.service.round()
            self.clock.advance(1.0)

    def stop(self) -> None:
        """As SIGTERM."""
        service, self.service = self.service, None
        if service is not None:
            service._end()
            service._boxes.close()
            if service._history is not None:
                service._history.close()

    def box(self, *, pid: int, kind: str = "inside", start_ticks: int = 1, posts: bool = False) -> BlackBox:
        found = BlackBox(
            self.run_folder, pid=pid, unix_s=self.clock.wall(), monotonic_s=self.clock.monotonic(), kind=kind,
            supervisor_pid=1 << 22, start_ticks=start_ticks, argv="python /srv/app.py --fast", posts=posts,
        )  # fmt: skip
        found.place(GIB, "setting", cgroup=None, oom_kills=None)
        return found

    def write(self, box: BlackBox, count: int) -> None:
        for number in range(count):
            box.tick(self.clock.wall() + number / 10, self.clock.monotonic() + number / 10, 5, 7, GIB, 0)

    def sums(self) -> dict[str, int]:
        """Ticks on record by tier."""
        with closing(sqlite3.connect(self.folder / FILE_NAME)) as db:
            return {name: db.execute(f"SELECT coalesce(sum(count), 0) FROM {name}").fetchone()[0]
                    for name in ("seconds", "minutes", "hours")}  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.stop()


def a_dead_pid() -> int:
    """A pid that was somebody's and is nobody's."""
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    return done.pid


def test_ticks_of_the_living_are_folded_and_a_restart_loses_and_doubles_none(scene: Scene) -> None:
    box = scene.box(pid=os.getpid(), start_ticks=0)
    scene.start()
    scene.write(box, 100)
    scene.rounds(6)
    scene.write(box, 50)
    scene.stop()
    scene.write(box, 30)  # while nobody serves
    scene.start()
    scene.rounds(6)
    assert scene.sums() == {"seconds": 180, "minutes": 180, "hours": 180}
    box.close()


def test_a_kernel_kill_is_told_once_with_the_verdict_of_the_supervisor(scene: Scene) -> None:
    pid = a_dead_pid()
    inside, outside = scene.box(pid=pid), scene.box(pid=pid, kind="outside")
    scene.write(inside, 5)
    inside.begin(scene.clock.wall(), 1.0, "POST /orders", 3, 1)
    scene.write(outside, 5)
    outside.event(scene.clock.wall(), 1.0, "evidence", "memory.events says so")
    outside.event(scene.clock.wall(), 1.0, "death", "", before_bytes=GIB)
    outside.end_life("oom_kill", exit_status=137)
    inside.close()
    outside.close()
    scene.start()
    scene.rounds(3)
    (told,) = scene.channel.wait_for(1)
    assert (told.kind, told.level, told.what, told.target) == ("oom_kill", Level.EMERGENCY, "raised", "app.py")
    assert "POST /orders" in told.text
    assert told.details["evidence"] == ["memory.events says so"]
    scene.rounds(30)
    scene.stop()
    scene.start()
    scene.rounds(30)
    scene.stop()
    assert len(scene.channel.notices) == 1
    assert scene.sums()["hours"] == 10


def test_a_verdict_that_is_not_there_yet_is_waited_for(scene: Scene) -> None:
    """The supervisor lives (here it is the test) and has not said its word; then it does."""
    pid = a_dead_pid()
    box = BlackBox(scene.run_folder, pid=pid, unix_s=START_S, monotonic_s=1.0, kind="outside",
                   supervisor_pid=os.getpid(), start_ticks=1, argv="app.py")  # fmt: skip
    scene.start()
    scene.rounds(4)
    assert scene.service is not None
    assert scene.service._boxes.is_waiting
    box.event(scene.clock.wall(), 1.0, "death", "")
    box.end_life("oom_kill", exit_status=137)
    scene.rounds(3)
    assert [each.kind for each in scene.channel.wait_for(1)] == ["oom_kill"]
    box.close()


@pytest.mark.parametrize(
    ("verdict", "told"),
    [("killed", "app.py was killed (SIGKILL)"), ("crashed", "app.py crashed"), ("clean", None), ("failed", None)],
)
def test_other_ends_are_told_as_what_they_are(verdict: str, told: str | None, scene: Scene) -> None:
    box = scene.box(pid=a_dead_pid(), kind="outside")
    box.event(scene.clock.wall(), 1.0, "death", "")
    box.end_life(verdict, exit_status=1)
    box.close()
    scene.start()
    scene.rounds(5)
    if told is not None:
        assert [(each.title, each.level) for each in scene.channel.wait_for(1)] == [(told, Level.WARNING)]
    scene.stop()
    assert len(scene.channel.notices) == (told is not None)


def test_who_is_gone_without_a_word_is_told(scene: Scene) -> None:
    box = scene.box(pid=a_dead_pid())
    scene.write(box, 5)
    box.close()
    scene.start()
    scene.rounds(5)
    assert [each.title for each in scene.channel.wait_for(1)] == ["app.py is gone without a word"]
    assert scene.channel.notices[0].details["happened_once"] is True


def test_a_death_in_trouble_is_told_beside_the_alert_of_that_trouble(scene: Scene) -> None:
    """Which holds back warnings about the same target."""
    from memwarden.tell.signals import Signal

    service = scene.start()
    burning = Signal(
        id="s1", key="high_usage:app.py", kind="high_usage", what="raised", level=Level.EMERGENCY, title="it burns",
        text="now", unix_s=scene.clock.wall(), target="app.py", host="h", member="m",
    )  # fmt: skip
    assert service._teller is not None
    assert service._teller.outbox is not None
    service._teller.outbox.take([burning])
    box = scene.box(pid=a_dead_pid())
    box.event(scene.clock.wall(), 1.0, "level", "NORMAL -> EMERGENCY: full")
    box.tick(scene.clock.wall(), 1.0, 5, 7, GIB, int(Level.EMERGENCY))
    box.close()
    scene.rounds(5)
    told = {each.title: each.level for each in scene.channel.wait_for(2)}
    assert told == {"it burns": Level.EMERGENCY, "app.py is gone without a word": Level.CRITICAL}


def test_old_deaths_are_not_news(scene: Scene) -> None:
    box = scene.box(pid=a_dead_pid())
    scene.write(box, 5)
    box.close()
    scene.clock.advance(7200.0)
    scene.start()
    scene.rounds(5)
    scene.stop()
    assert scene.channel.notices == ()
    assert scene.sums()["hours"] == 5


def test_the_machine_is_judged_and_its_recovery_told(scene: Scene) -> None:
    scene.start()
    scene.rounds(10)
    scene.memory(available=GIB // 8)
    scene.rounds(3)
    (raised,) = scene.channel.wait_for(1)
    assert (raised.kind, raised.level, raised.what) == ("high_usage", Level.EMERGENCY, "raised")
    assert raised.target == f"machine {os.uname().nodename}"
    scene.memory(available=12 * GIB)
    scene.rounds(60)
    assert scene.channel.wait_for(2)[-1].what == "recovered"


def test_a_machine_that_cannot_be_read_is_no_alarm(scene: Scene) -> None:
    scene.start()
    (scene.root / "proc" / "meminfo").unlink()
    scene.rounds(5)
    scene.stop()
    assert scene.channel.notices == ()


@pytest.mark.parametrize(("deliver", "taken"), [("service", True), ("here", False)])
def test_what_living_processes_leave_is_taken_where_they_say_so(deliver: str, taken: bool, tmp_path: Path) -> None:
    from memwarden.tell.members import own_member
    from memwarden.tell.signals import Signal, to_text

    scene = Scene(tmp_path, deliver=deliver)
    box = scene.box(pid=os.getpid(), start_ticks=0, posts=True)
    scene.start()
    scene.rounds(2)
    posted = Signal(
        id="s1", key="high_usage:app", kind="high_usage", what="raised", level=Level.EMERGENCY, title="it burns",
        text="now", unix_s=scene.clock.wall(), target="app", host="h", member=own_member(),
    )  # fmt: skip
    assert box.post(scene.clock.wall(), 1.0, to_text(posted), urgent=True)
    scene.rounds(2)
    if taken:
        assert [each.title for each in scene.channel.wait_for(1)] == ["it burns"]
        assert box.posts() == ()
    scene.stop()
    assert len(scene.channel.notices) == taken
    box.close()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_history_that_is_locked_stops_no_alert_and_loses_no_tick(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    box = scene.box(pid=os.getpid(), start_ticks=0)
    dead = scene.box(pid=a_dead_pid())
    dead.close()
    service = scene.start()
    service.round()
    assert service._history is not None
    service._history._db.execute("PRAGMA busy_timeout = 1").fetchall()
    with closing(sqlite3.connect(scene.folder / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        scene.write(box, 100)
        scene.memory(available=GIB // 8)
        scene.rounds(20)
        assert {each.kind for each in scene.channel.wait_for(2)} == {"high_usage", "custom"}
        assert caplog.text.count("database is locked; it is tried again") == 1 or "locked" in caplog.text
        other.execute("ROLLBACK")
    scene.rounds(10)
    assert scene.sums() == {"seconds": 100, "minutes": 100, "hours": 100}
    box.close()


def test_a_history_that_breaks_is_begun_anew_and_said(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    box = scene.box(pid=os.getpid(), start_ticks=0)
    (scene.folder / FILE_NAME).write_bytes(b"this is no database" * 1000)
    scene.start()
    scene.write(box, 40)
    scene.rounds(6)
    assert scene.sums()["hours"] == 40
    assert "is damaged" in caplog.text
    box.close()


def test_a_history_that_must_not_be_used_leaves_the_alerts(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    History(str(scene.folder), clock=scene.clock).close()
    with closing(sqlite3.connect(scene.folder / FILE_NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    dead = scene.box(pid=a_dead_pid())
    dead.close()
    scene.start()
    scene.rounds(60)
    assert len(scene.channel.wait_for(1)) == 1
    assert caplog.text.count("newer memwarden") == 1  # said once, tried on


def test_a_box_that_is_none_is_said_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    os.makedirs(scene.run_folder)
    with open(os.path.join(scene.run_folder, "inside-7-1.box"), "wb") as file:
        file.write(b"nothing of ours")
    scene.start()
    scene.rounds(30)
    assert caplog.text.count("is no black box") == 1


def test_a_channel_that_fails_does_not_keep_the_history(scene: Scene) -> None:
    scene.channel.fail_with = DeliveryError("down", recoverable=True)
    box = scene.box(pid=os.getpid(), start_ticks=0)
    scene.box(pid=a_dead_pid()).close()
    scene.start()
    scene.write(box, 10)
    scene.rounds(10)
    assert scene.sums()["hours"] == 10
    scene.channel.fail_with = None
    scene.rounds(30)
    assert len(scene.channel.wait_for(1)) == 1
    box.close()


def test_one_service_per_folder(tmp_path: Path) -> None:
    lock = Lock(str(tmp_path))
    with pytest.raises(StoreError, match=rf"a service runs already \(pid {os.getpid()}\)"):
        Lock(str(tmp_path))
    assert stat.S_IMODE(os.stat(tmp_path / "service.lock").st_mode) == 0o600
    lock.close()
    Lock(str(tmp_path)).close()


def test_a_full_disk_keeps_no_service_from_its_lock(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # as a full disk: nothing more can be written
    try:
        lock = Lock(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(StoreError, match=r"a service runs already \(pid unknown\)"):
        Lock(str(tmp_path))
    lock.close()


def test_it_waits_between_rounds_and_knows_no_haste(scene: Scene) -> None:
    """A calm hour: about one round a second."""
    service = scene.start()
    box = scene.box(pid=os.getpid(), start_ticks=0)
    rounds, end_s = 0, scene.clock.monotonic() + 3600.0
    while scene.clock.monotonic() < end_s:
        rounds += 1
        scene.clock.advance(service.round())
    assert rounds <= 2 * 3600
    box.close()


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("python /srv/app.py --fast", "app.py"), ("/usr/bin/python3.11 -m shop.web", "shop.web"),
        ("gunicorn x", "gunicorn"),
        ("env A=1 python3 -X dev app.py", "dev"), ("-c", "python"), ("", "unknown"), ("python", "python"),
    ],
)  # fmt: skip
def test_the_program_of_a_command_line(argv: str, name: str) -> None:
    assert command_name(argv) == name


# --- the real thing --------------------------------------------------------------------------------------------------

ALERTS = '[alerts]\ngroup_wait = 0\n[alerts.channels.page]\nkind = "command"\ncommand = ["{}", "-S", "{}"]\n'
PAGE = "import json, sys; open({!r}, 'a').write(json.dumps(json.load(sys.stdin)['summary']) + '\\n')"
# It lives for some ticks before it grows, and grows slowly enough for ticks of that.
LEAK = "import time\nx = []\ntime.sleep(1.5)\nwhile True:\n    x.append(bytearray(2 << 20))\n    time.sleep(0.01)\n"


class Real:
    """A folder with settings, and real processes in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paged = folder / "paged"
        (folder / "page.py").write_text(PAGE.format(str(self.paged)))
        (folder / "memwarden.toml").write_text(ALERTS.format(sys.executable, folder / "page.py"))
        self.state = folder / "state"
        self.environ = {
            **os.environ,
            "MEMWARDEN_DIR": str(self.state),
            "MEMWARDEN_CONFIG": str(folder / "memwarden.toml"),
        }
        self._log = (folder / "log").open("ab")

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "memwarden", *words], env=self.environ, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def close(self) -> None:
        self._log.close()

    def said(self) -> str:
        return self.paged.read_text() if self.paged.exists() else ""

    def count(self, tier: str = "hours") -> int:
        try:
            with closing(sqlite3.connect(f"file:{self.state / FILE_NAME}?mode=ro", uri=True)) as db:
                found: int = db.execute(f"SELECT coalesce(sum(count), 0) FROM {tier}").fetchone()[0]
                return found
        except sqlite3.Error:
            return 0


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    found = Real(tmp_path)
    yield found
    found.close()


def end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(60)


@pytest.mark.kernel
@pytest.mark.usefixtures("own_cgroup")
def test_a_served_folder_from_start_to_sigterm(real: Real) -> None:
    service = real.spawn("serve")
    try:
        second = real.spawn("serve")
        wait_for((real.state / "service.lock").exists)
        wait_for(lambda: second.poll() is not None or service.poll() is not None)
        code = second.poll() if second.poll() is not None else service.poll()
        assert code == 2  # one of the two was first
        if service.poll() is not None:
            service, second = second, service
        guarded = real.spawn("run", "--limit", "100M", "--quiet", "--fence", "off", "--", sys.executable, "-c", LEAK)
        assert guarded.wait(60) == 137
        wait_for(lambda: "for memory" in real.said() or "killed" in real.said())
        wait_for(lambda: real.count() > 5)
        for name in os.listdir(real.state):
            if os.path.isfile(real.state / name):
                assert stat.S_IMODE(os.stat(real.state / name).st_mode) == 0o600, name
    finally:
        assert end(service) == 0
        if second.poll() is None:
            end(second)
    assert real.said().count("\n") == 1


@pytest.mark.kernel
@pytest.mark.usefixtures("own_cgroup")
def test_a_service_beside_a_supervisor_tells_of_the_kill_and_ends(real: Real) -> None:
    guarded = real.spawn(
        "run", "--serve", "--limit", "100M", "--quiet", "--fence", "off", "--", sys.executable, "-c", LEAK
    )
    assert guarded.wait(60) == 137
    wait_for(lambda: "killed" in real.said())
    wait_for(lambda: _is_free(str(real.state)))
    assert real.count() > 5


def _is_free(folder: str) -> bool:
    """Whether no service runs for it."""
    try:
        Lock(folder).close()
    except StoreError:
        return False
    return True


def test_a_service_that_is_killed_again_and_again_counts_every_tick_once(real: Real) -> None:
    run_folder = directory(str(real.state), {}, os.getuid())
    box = BlackBox(run_folder, pid=os.getpid(), unix_s=START_S, monotonic_s=0.0, start_ticks=0, argv="test")
    written, rounds = 0, 40 if os.environ.get("MEMWARDEN_SOAK") else 4
    for number in range(rounds):
        service = real.spawn("serve", "--quiet")
        try:
            for _ in range(60):
                written += 1
                box.tick(START_S + written, float(written), written, 2 * written, None, 0)
            least = written - 60 + number % 2  # some of them die with all of this round folded, some with none
            wait_for(lambda least=least: real.count() >= least)  # type: ignore[misc]  # mypy knows no lambda with a default
        finally:
            service.send_signal(signal.SIGKILL if number < rounds - 1 else signal.SIGTERM)
            service.wait(60)
    assert (real.count("seconds"), real.count("minutes"), real.count("hours")) == (written, written, written)
    with closing(sqlite3.connect(real.state / FILE_NAME)) as db:
        assert db.execute("SELECT sum(used_sum) FROM hours").fetchone()[0] == written * (written + 1)
    box.close()


def test_without_alerts_it_keeps_the_history(real: Real) -> None:
    (real.folder / "memwarden.toml").write_text("")
    lives = (sys.executable, "-c", "import time; time.sleep(2)")  # for two of the supervisor's ticks at least
    guarded = real.spawn("run", "--serve", "--quiet", "--", *lives)
    assert guarded.wait(60) == 0
    wait_for(lambda: real.count() > 1)
    wait_for(lambda: _is_free(str(real.state)))
    listed = subprocess.run([sys.executable, "-m", "memwarden", "history", "--format", "json"], env=real.environ,
                            cwd=real.folder, capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    assert '"verdict": "clean"' in listed.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "--history-size", "1K"), "--history-size: is too small"),
        (("serve", "--history-size", "x"), "--history-size: "),
        (("history", "--last", "x"), "--last: "),
        (("history",), "there is no history"),
    ],
)
def test_wrong_input_is_one_line(words: tuple[str, ...], said: str, real: Real) -> None:
    done = subprocess.run([sys.executable, "-m", "memwarden", *words], env=real.environ, cwd=real.folder,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
