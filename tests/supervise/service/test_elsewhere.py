"""Where it is not at home: on a disk that is really full, and as another user."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import memwarden
from memwarden.blackbox import BlackBox, find_boxes, read_posts
from memwarden.clock import SystemClock
from memwarden.config import Config
from memwarden.store import FILE_NAME
from memwarden.supervise.service.history import FILE_NAME as HISTORY
from memwarden.supervise.service.service import Service
from memwarden.tell.outbox import Outbox
from memwarden.tell.sender import build_channels
from memwarden.tell.settings import parse
from memwarden.testing import FakeClock, RecordingChannel
from tests.tell.channels.waiting import wait_for
from tests.tell.test_sender import Rig, draft

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

NOBODY = 65534


# --- a full disk -----------------------------------------------------------------------------------------------------


class Disk:
    """A small file system, and a file that fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Until not another block can be had."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (65536, 4096):
                with pytest.raises(OSError, match="No space left"):
                    self._write(file, bytes(size))

    @staticmethod
    def _write(file: io.FileIO, some: bytes) -> None:
        while True:
            file.write(some)

    def empty(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounts a small tmpfs: needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # lazy: a test that fails leaves files open


def told_by(rig: Rig, settings: Any) -> dict[str, tuple[str, ...]]:
    """By key what the store says was told, and how it went."""
    outbox = Outbox(settings, folder=rig.folder, clock=SystemClock())
    found: dict[str, tuple[str, ...]] = {}
    for told in reversed(outbox.history(most=1000)):
        found[told.key] = (*found.get(told.key, ()), f"{told.what} {told.deliveries[0][1]}")
    outbox.close()
    return found


@pytest.mark.kernel
def test_on_a_full_disk_alerts_go_on_which_is_said_once_and_all_is_kept_when_there_is_space_again(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(disk.folder)
    ops = RecordingChannel("ops")
    teller = rig.teller(ops)
    try:
        teller.tell(draft("raised", 2, text="x" * 200), target="before")
        ops.wait_for(1)
        outbox = teller.outbox
        assert outbox is not None
        disk.fill()
        told = 1
        while not outbox.degraded:  # the log of the store has some room left in what it has on disk
            told += 1
            teller.tell(draft("raised", 2, text="x" * 200), target=f"t{told}")
            ops.wait_for(told)
            assert told < 300
        emergency = teller.tell(draft("raised", 3), target="urgent")
        teller.tell(draft("cleared", 0), target="before")
        notices = ops.wait_for(told + 2)
        assert f"{emergency}.0.ops" in {notice.delivery_id for notice in notices}
        assert [notice.what for notice in notices if notice.target == "before"] == ["raised", "recovered"]
        for _ in range(3):
            assert not outbox.recover()  # it is tried again, and still full
        assert caplog.text.count("disk is full") == len(caplog.records) == 1, caplog.text
        (path,) = find_boxes(rig.run_folder)
        assert {"urgent"} <= {json.loads(post.text)["target"] for post in read_posts(path)}  # a kill would lose nothing
        disk.empty()
        teller._due["recover"] = 0.0
        teller.look()
        wait_for(lambda: not outbox.degraded)
        wait_for(lambda: read_posts(path) == ())
        teller.tell(draft("cleared", 0), target="urgent")
        ops.wait_for(told + 3)
    finally:
        rig.close()
    assert "the store can be written again" in caplog.text
    kept = told_by(rig, teller.settings)
    assert kept["high_usage:urgent"] == ("raised sent", "recovered sent")
    assert kept["high_usage:before"] == ("raised sent", "recovered sent")
    assert len(kept) == told + 1
    assert len({notice.delivery_id for notice in ops.notices}) == len(ops.notices) == told + 3  # none twice


@pytest.mark.kernel
def test_a_service_on_a_full_disk_tells_of_deaths_and_folds_what_it_could_not_later(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memwarden")
    run_folder, clock, channel = str(disk.folder / "run"), FakeClock(), RecordingChannel("ops")
    living = BlackBox(run_folder, pid=os.getpid(), unix_s=clock.wall(), monotonic_s=1.0, argv="python app.py")
    settings = parse({"channels": {"ops": channel}, "group_wait": 0}, "alerts")
    assert settings is not None
    service = Service(
        str(disk.folder), run_folder, config=Config(), alerts=build_channels(settings, {}), environ={}, clock=clock
    )
    assert service._teller is not None
    service._teller.start()
    wait_for(lambda: service._teller is not None and service._teller.outbox is not None)

    def rounds(seconds: int) -> None:
        for _ in range(seconds):
            service.round()
            clock.advance(1.0)

    def ticks(first: int, count: int) -> None:
        for number in range(first, first + count):
            living.tick(clock.wall() + number, number, 5, 7, 1 << 30)

    ticks(0, 10)
    rounds(6)
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    box = BlackBox(run_folder, pid=dead.pid, unix_s=clock.wall(), monotonic_s=1.0, start_ticks=1, argv="python dies.py")
    disk.fill()
    box.close()
    ticks(10, 2000)  # into the ring, whose blocks it has: more buckets than the history's log has room for
    rounds(30)
    assert [each.title for each in channel.wait_for(1)] == ["dies.py is gone without a word"]
    full = [record.getMessage() for record in caplog.records if "disk is full" in record.getMessage()]
    assert sorted(words.partition(": ")[0].rpartition("/")[2].split()[0] for words in full) == ["alerts", "history.db"]
    disk.empty()
    rounds(30)
    service._end()
    service._boxes.close()
    assert service._history is not None
    service._history.close()
    living.close()
    assert len(channel.notices) == 1
    with closing(sqlite3.connect(disk.folder / HISTORY)) as db:
        assert db.execute("SELECT sum(count) FROM hours").fetchone() == (2010,)


# --- another user ----------------------------------------------------------------------------------------------------


class Somebody:
    """Another user with a home of its own, and a Python that it may run."""

    def __init__(self, home: Path, python: str) -> None:
        self.home, self._python = home, python
        source = os.path.dirname(os.path.dirname(os.path.abspath(memwarden.__file__)))
        self.environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": source}

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._python, *words], env={**self.environ, **environ}, cwd=self.home, text=True, user=NOBODY,
            group=NOBODY, extra_groups=[], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, **environ: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `memwarden WORDS`."""
        done = self.start("-m", "memwarden", *words, **environ)
        out, err = done.communicate(timeout=60)
        return done.returncode, out, err


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    folder = Path(tempfile.mkdtemp())  # that of the tests is closed to others
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    try:
        for python in (sys.executable, "/usr/bin/python3"):
            found = Somebody(home, python)
            try:
                if found.run("--version")[0] == 0:
                    break
            except OSError:  # its folder is closed to others too
                continue
        else:
            pytest.skip("nobody else may run a Python that has all it needs")
        yield found
    finally:
        shutil.rmtree(folder)


def test_another_user_has_private_files_of_its_own_and_sees_its_own_processes_alone(somebody: Somebody) -> None:
    state = somebody.home / ".local/state/memwarden"
    config = somebody.home / "memwarden.toml"
    config.write_text('[alerts]\n[alerts.channels.log]\nkind = "log"\n')
    theirs = BlackBox(
        str(somebody.home.parent / "root" / "run"), pid=os.getpid(), unix_s=time.time(), monotonic_s=1.0, argv="root's"
    )
    service = somebody.start("-m", "memwarden", "serve", MEMWARDEN_CONFIG=str(config))
    guarded = somebody.start("-c", "import memwarden, sys; memwarden.Warden().start(); sys.stdin.read(); input()")
    try:
        wait_for((state / "history.db").exists)
        code, out, err = somebody.run("run", "--quiet", "--", "/bin/sh", "-c", "sleep 1.5")
        assert (code, out, err) == (0, "", "")
        wait_for(lambda: "sleep 1.5" in somebody.run("history")[1])
        names = [Path(at) / name for at, folders, files in os.walk(state) for name in (*folders, *files)]
        assert {"memwarden.db", "history.db", "service.lock", "run"} <= {path.name for path in names}
        for path in (state, *names):
            found = path.lstat()
            expected = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (NOBODY, expected), path
        assert "root's" not in somebody.run("history")[1] + somebody.run("status")[1]
        assert somebody.run("alerts", "list", MEMWARDEN_CONFIG=str(config))[::2] == (0, "")
    finally:
        for each in (service, guarded):
            each.terminate()
            each.communicate(timeout=60)
        theirs.close()
    assert service.returncode == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [(("serve", "--quiet"), 2), (("history",), 2), (("alerts", "list"), 2), (("alerts", "history"), 2),
     (("alerts", "test"), 1), (("status",), 0)],
)  # fmt: skip
def test_another_user_is_told_what_it_may_not_read(words: tuple[str, ...], code: int, somebody: Somebody) -> None:
    """Root's folder: one line that names it, and never that there is nothing."""
    theirs = somebody.home.parent / "root"
    theirs.mkdir(mode=0o700)
    (theirs / FILE_NAME).touch()
    (theirs / HISTORY).touch()
    (theirs / "run").mkdir()
    config = somebody.home / "memwarden.toml"
    config.write_text('[alerts]\n[alerts.channels.c]\nkind = "command"\ncommand = "/bin/true"\n')
    found, out, err = somebody.run(*words, MEMWARDEN_DIR=str(theirs), MEMWARDEN_CONFIG=str(config))
    lines = [line for line in (out + err).splitlines() if str(theirs) in line and "Permission denied" in line]
    assert found == code
    assert len(lines) == 1, out + err
    assert "Traceback" not in err
    assert "nothing is on" not in out
