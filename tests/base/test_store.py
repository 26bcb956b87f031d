"""The one SQLite file: private, versioned, shared by threads, processes and forks, refused where it would lose data."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from memwarden.errors import CheckpointError, StoreError
from memwarden.store import FILE_NAME, Checkpoint, DeadLetter, Store, is_locked, state_directory
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from pathlib import Path


def _mounts(path: Path, folder: Path, kind: str) -> str:
    file = path / "mountinfo"
    file.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / {folder} rw,noatime shared:1 - {kind} host:/x rw\nbad\n"
    )
    return str(file)


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    clock = FakeClock(unix_s=1000.0)
    with Store(str(tmp_path), clock=clock) as store:
        first = store.write(Checkpoint(name="a", part=0, plan="{}", position="[1]", rows=1))
        assert (first.version, first.updated_unix_s) == (1, 1000.0)
        second = store.write(first.replace(position="[2]", rows=2, done=True))
        store.write(Checkpoint(name="a", part=1, plan="{}"))
        store.write(Checkpoint(name="b", part=0, plan="{}"))
    with Store(str(tmp_path)) as store:
        assert store.checkpoints("a")[0] == second
        assert [each.part for each in store.checkpoints("a")] == [0, 1]
        store.forget("a")
        assert store.checkpoints("a") == ()
        assert len(store.checkpoints("b")) == 1


def test_two_writers_cannot_both_write_the_next_version(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as one, Store(str(tmp_path)) as other:
        first = one.write(Checkpoint(name="a", part=0, plan="{}"))
        other.write(first.replace(rows=5))
        for stale in (first.replace(rows=6), Checkpoint(name="a", part=0, plan="{}")):
            with pytest.raises(CheckpointError, match="checkpoint 'a': another run of this name is going on"):
                one.write(stale)
        both = (Checkpoint(name="new", part=0, plan="{}"), Checkpoint(name="a", part=0, plan="{}"))
        with pytest.raises(CheckpointError):
            one.write_all(both)
        assert one.checkpoints("new") == ()
        assert one.checkpoints("a")[0].rows == 5


def test_dead_letters_come_newest_first_and_bounded(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        for n in range(5):
            store.bury(
                DeadLetter(name="a", chunk=str(n), low=None, high="[1]", rows=n, error="x", attempts=1, unix_s=n)
            )
        assert [each.rows for each in store.dead_letters("a", most=3)] == [4, 3, 2]
        store.forget("a")
        assert store.dead_letters("a") == ()


def test_the_folder_and_every_file_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Store(str(folder)) as store:
        store.write(Checkpoint(name="a", part=0, plan="{}"))
        assert store.path == str(folder / FILE_NAME)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(list(folder.iterdir())) == 3
        assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}
    database = sqlite3.connect(folder / FILE_NAME)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    Store(str(folder)).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MEMWARDEN_DIR": "/a", "HOME": "/h"}, "/a"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/memwarden"),
        ({"HOME": "/h"}, "/h/.local/state/memwarden"),
        ({}, None),
    ],
)
def test_where_it_lives(environ: dict[str, str], expected: str | None) -> None:
    assert state_directory(None, environ) == expected
    assert state_directory("/given", environ) == "/given"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "far"
    with pytest.raises(StoreError, match=rf"far: is on a network file system \({kind}\).*set MEMWARDEN_DIR"):
        Store(str(folder), mounts=_mounts(tmp_path, folder, kind))
    assert list(folder.iterdir()) == []


def test_tmpfs_is_allowed_and_said(tmp_path: Path) -> None:
    with Store(str(tmp_path / "t"), mounts=_mounts(tmp_path, tmp_path / "t", "tmpfs")) as store:
        assert "counts towards the memory limit" in store.notes[0]
        assert not store.degraded
    with Store(str(tmp_path / "t2"), mounts=_mounts(tmp_path, tmp_path / "t", "tmpfs")) as store:
        assert store.notes == ()  # its name only begins the same


def test_where_nothing_can_be_written_it_lives_in_memory_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for store in (Store(str(tmp_path / "file" / "below")), Store(environ={})):
        assert store.path is None
        assert "kept in memory, nothing survives this process" in store.degraded
        store.write(Checkpoint(name="a", part=0, plan="{}"))
        assert len(store.checkpoints("a")) == 1
        store.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_newer_schema_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    database = sqlite3.connect(tmp_path / FILE_NAME)
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    with pytest.raises(StoreError, match=r"made by a newer memwarden \(schema 99, known are \d\)"):
        Store(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / FILE_NAME).write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="is no usable database"):
        Store(str(other))
    assert (other / FILE_NAME).read_bytes().startswith(b"no database")


def test_a_file_that_is_damaged_in_its_middle_is_to_be_moved_away_too(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        store.write(Checkpoint(name="run", part=0, plan="x"))
        with store.reading() as db:
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'checkpoints'").fetchone()
    with (tmp_path / FILE_NAME).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with Store(str(tmp_path)) as store, pytest.raises(StoreError, match="malformed; move it away"):
        store.checkpoints("run")


def test_threads_share_it(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:

        def count(name: str) -> None:
            now = store.write(Checkpoint(name=name, part=0, plan="{}"))
            for rows in range(50):
                now = store.write(now.replace(rows=rows))

        threads = [threading.Thread(target=count, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [store.checkpoints(f"t{n}")[0].version for n in range(4)] == [51] * 4


def test_a_forked_child_opens_it_anew(tmp_path: Path) -> None:
    program = """
import os, sys
from memwarden.store import Checkpoint, Store
store = Store(sys.argv[1])
first = store.write(Checkpoint(name="a", part=0, plan="{}"))
pid = os.fork()
if not pid:
    store.write(first.replace(rows=7))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert store.checkpoints("a")[0].rows == 7
store.close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_closes_it_though_a_thread_of_its_parent_was_writing(tmp_path: Path) -> None:
    program = """
import os, signal, sys, threading
from memwarden.store import Store
store = Store(sys.argv[1])
inside, go = threading.Event(), threading.Event()

def write():
    with store.transaction():
        inside.set()
        go.wait()

writer = threading.Thread(target=write)
writer.start()
inside.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    store.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
go.set()
writer.join()
assert store.checkpoints("a") == ()
store.close()
"""
    words = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(tmp_path)]  # it is the point of it
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_threads_of_a_forked_child_open_it_once(tmp_path: Path) -> None:
    program = """
import os, sys, threading
from memwarden.store import Checkpoint, Store

class Slow(Store):
    opened = 0

    def _open(self, path):
        self.opened += 1
        found = super()._open(path)
        both.wait(0.5) if self.opened > 1 else None  # the other one comes meanwhile
        return found

both = threading.Event()
store = Slow(sys.argv[1])
child = os.fork()
if not child:
    names = ["a", "b", "c"]
    threads = [threading.Thread(target=store.write, args=(Checkpoint(name=n, part=0, plan="{}"),)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.opened == 2, store.opened
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert all(store.checkpoints(name) for name in "abc")
store.close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_that_cannot_open_it_now_says_so_and_never_uses_its_parents(tmp_path: Path) -> None:
    """Somebody else writes for longer than a writer waits: a StoreError, and it is opened at the next call."""
    program = """
import os, sqlite3, sys
from memwarden.errors import StoreError
from memwarden.store import Checkpoint, Store
store = Store(sys.argv[1])
first = store.write(Checkpoint(name="a", part=0, plan="{}"))
asked, answered = os.pipe(), os.pipe()
pid = os.fork()
if not pid:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    os.write(answered[1], b".")
    os.read(asked[0], 1)
    os._exit(0)
os.read(answered[0], 1)
child = os.fork()
if not child:
    try:
        store.checkpoints("a")
    except StoreError as error:
        assert "locked" in str(error), error
        os.write(asked[1], b".")
        os.read(answered[0], 1)
        store.write(first.replace(rows=7))
        os._exit(0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
os.write(answered[1], b".")
assert os.waitpid(child, 0)[1] == 0
assert store.checkpoints("a")[0].rows == 7
store.close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_many_processes_may_start_at_once(tmp_path: Path) -> None:
    program = "import sys\nfrom memwarden.store import Checkpoint, Store\n"
    program += "with Store(sys.argv[1]) as s: s.write(Checkpoint(name=sys.argv[2], part=0, plan=''))"
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)], env={**os.environ}) for n in range(4)
    ]
    assert [process.wait(60) for process in running] == [0] * 4
    with Store(str(tmp_path)) as store:
        assert all(store.checkpoints(str(n)) for n in range(4))


@pytest.mark.parametrize("hurry", ["lambda: True", "lambda: False", "None"])
def test_forks_that_make_one_file_at_once_all_end_up_in_it(tmp_path: Path, hurry: str) -> None:
    """A master and its workers in an emergency: none of them goes on in memory, where it would be alone."""
    program = f"""
import os, sys
from memwarden.store import Checkpoint, Store
for number in range(10):
    folder = os.path.join(sys.argv[1], str(number))
    start, go = os.pipe()
    children = []
    for each in range(9):
        children.append(os.fork())
        if not children[-1]:
            os.close(go)
            os.read(start, 1)
            store = Store(folder, hurry={hurry})
            store.write(Checkpoint(name=str(each), part=0, plan=""))
            os._exit(1 if store.degraded else 0)
    os.close(start), os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
    with Store(folder) as store:
        kept = [len(store.checkpoints(str(each))) for each in range(9)]
    assert (codes, kept) == ([0] * 9, [1] * 9), (codes, kept)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_locked_when_it_is_opened_is_opened_later_and_never_left_for_memory(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with Store(str(tmp_path), hurry=lambda: True) as store:
        assert (store.degraded, store.path) == ("", str(tmp_path / FILE_NAME))
        with pytest.raises(StoreError, match="locked by another process") as caught:
            store.checkpoints("a")
        assert is_locked(caught.value)
        holder.execute("ROLLBACK")
        assert store.write(Checkpoint(name="a", part=0, plan="{}")).version == 1
    holder.close()
    with Store(str(tmp_path)) as store:
        assert len(store.checkpoints("a")) == 1


def test_a_second_store_of_one_process_takes_nothing_from_the_first(tmp_path: Path) -> None:
    """Its opening and closing must not drop the first one's locks: another process would then delete the log."""
    program = (
        "import sys; from memwarden.store import Checkpoint, Store\n"
        "with Store(sys.argv[1]) as store: store.write(Checkpoint(name=sys.argv[2], part=0, plan=''))"
    )
    with Store(str(tmp_path)) as first:
        with Store(str(tmp_path)) as second:
            second.write(Checkpoint(name="mine", part=0, plan=""))
        for name in ("one", "other"):
            subprocess.run([sys.executable, "-c", program, str(tmp_path), name], check=True)
            assert [each.name for each in first.checkpoints(name)] == [name]
