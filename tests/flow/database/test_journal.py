"""The journal between two checkpoints: what counts on top of which row, and what a run does with it and without it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from memwarden import flow
from memwarden.errors import CheckpointError, ChunkError
from memwarden.flow.database.journal import MOST_POSITION_BYTES, Journal, beside, forget
from memwarden.store import Checkpoint
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from memwarden.flow.database import Batch
    from tests.flow.database.conftest import Database

ROW = Checkpoint(name="n", part=0, plan="{}", position="[0]", rows=1, bytes=8, version=3, updated_unix_s=1234.567)
SOURCE = sa.Table("source", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
STATEMENT = sa.select(SOURCE)
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
needs_boot = pytest.mark.skipif(not os.path.exists("/proc/sys/kernel/random/boot_id"), reason="needs Linux's boot id")
pytestmark = needs_boot


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "data.db").write_bytes(b"it is only looked at")
    return str(tmp_path / "data.db")


@pytest.fixture
def journal(file: str) -> Iterator[Journal]:
    journal = Journal(file, ROW)
    yield journal
    journal.remove()
    assert os.listdir(os.path.dirname(file)) == ["data.db"]


def note(journal: Journal, *positions: int) -> None:
    for position in positions:
        assert journal.write(ROW, f"[{position}]", position, position * 8)


def found(file: str, row: Checkpoint = ROW, **options: Any) -> int:
    """How far the part is, as a process that comes later sees it."""
    further = Journal(file, row, **options).further(row)
    assert further.replace(position=row.position, rows=row.rows, bytes=row.bytes) == row
    assert further == row or (further.position, further.bytes) == (f"[{further.rows}]", further.rows * 8)
    return further.rows


def test_the_newest_note_is_how_far_the_row_is(file: str, journal: Journal) -> None:
    assert found(file) == 1
    for position in range(2, 7):
        note(journal, position)
        assert found(file) == position
    journal.close()
    other = Journal(file, ROW)  # of a process that goes on
    note(other, 7)
    assert found(file) == 7
    note(other, 8, 9)
    assert found(file) == 9
    other.close()


def _flip(path: str, at: int) -> None:
    """Change one bit of the file."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)
    os.close(fd)


def test_a_write_that_was_cut_off_leaves_the_one_before_and_two_leave_the_row(file: str, journal: Journal) -> None:
    note(journal, 50, 51, 52)
    slots = [start for start in (0, 4096) for _ in range(16 + 42 + len("[50]"))]
    places = [start + at % 62 for at, start in enumerate(slots)]
    seen = set()
    for at in places:
        _flip(journal.path, at)
        seen.add((at // 4096, found(file)))
        _flip(journal.path, at)
    assert seen == {(0, 52), (1, 51)}
    _flip(journal.path, 20)
    _flip(journal.path, 4096 + 20)
    assert found(file) == 1
    note(journal, 60)
    assert found(file) == 60
    os.truncate(journal.path, 30)
    assert found(file) == 1


def test_a_note_counts_on_top_of_its_own_row_only(file: str, journal: Journal) -> None:
    note(journal, 5)
    assert found(file) == 5
    assert found(file, ROW.replace(version=4)) == 1
    assert found(file, ROW.replace(updated_unix_s=1234.5670001)) == 1
    assert found(file, ROW.replace(part=1)) == 1
    assert found(file, ROW.replace(name="m")) == 1
    assert journal.write(ROW.replace(version=4), "[6]", 6, 48)
    assert found(file) == 1
    assert found(file, ROW.replace(version=4)) == 6


def test_a_note_of_another_boot_does_not_count(file: str, journal: Journal) -> None:
    """What a power cut left of either file is not known."""
    note(journal, 5)
    assert found(file, boot="another") == 1
    other = Journal(file, ROW, boot="another")
    note(other, 2)
    assert found(file, boot="another") == 2
    other.close()


def test_a_copy_of_either_file_has_no_notes(file: str, journal: Journal, tmp_path: Path) -> None:
    note(journal, 5)
    (tmp_path / "elsewhere").mkdir()
    for path in (file, journal.path):
        shutil.copy(path, tmp_path / "elsewhere")
    assert found(str(tmp_path / "elsewhere" / "data.db")) == 1
    shutil.rmtree(tmp_path / "elsewhere")
    shutil.copy(journal.path, tmp_path / "copy")
    os.rename(tmp_path / "copy", journal.path)
    assert found(file) == 1


def test_a_database_that_was_put_back_has_no_notes(file: str, journal: Journal, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "backup")
    note(journal, 5)
    os.rename(tmp_path / "backup", file)
    assert found(file) == 1


def test_a_key_that_does_not_fit_is_not_noted(file: str, journal: Journal) -> None:
    note(journal, 5)
    longest = f'["{"x" * (MOST_POSITION_BYTES - 4)}"]'
    assert journal.write(ROW, longest, 6, 48)
    assert Journal(file, ROW).further(ROW).position == longest
    assert not journal.write(ROW, f"{longest} ", 7, 56)
    assert Journal(file, ROW).further(ROW).position == longest


def test_what_cannot_be_written_is_said_once(file: str) -> None:
    told: list[OSError] = []
    journal = Journal(file, ROW, told.append)
    os.symlink("/etc/hostname", journal.path)  # never followed
    assert not journal.write(ROW, "[5]", 5, 40)
    assert not journal.write(ROW, "[6]", 6, 48)
    assert len(told) == 1
    assert found(file) == 1
    os.unlink(journal.path)
    journal.close()


def test_it_can_be_read_by_whoever_may_read_the_database(file: str, journal: Journal) -> None:
    os.chmod(file, 0o600)
    note(journal, 5)
    assert os.stat(journal.path).st_mode & 0o777 == 0o600


def test_forget_takes_those_of_its_name(file: str) -> None:
    for name, part in (("n", 0), ("n", 11), ("m", 0)):
        journal = Journal(file, ROW.replace(name=name, part=part))
        note(journal, 5)
        journal.close()
    forget(file, "n")
    left = [journal.path for journal in [Journal(file, ROW.replace(name="m"))]]
    assert sorted(os.listdir(os.path.dirname(file))) == sorted(["data.db", *map(os.path.basename, left)])
    forget(file, "m")
    forget("", "m")


def test_where_there_is_none(tmp_path: Path) -> None:
    for url in ("sqlite://", "sqlite:///file:x?mode=memory&cache=shared&uri=true"):
        engine = sa.create_engine(url, poolclass=sa.StaticPool)
        assert beside(engine) == ""
        engine.dispose()
    engine = sa.create_engine(f"sqlite:///file:{tmp_path}/data.db?mode=rwc&uri=true")
    assert beside(engine) == f"{tmp_path}/data.db"
    engine.dispose()


# --- runs ----------------------------------------------------------------------------------------------------------


class Marks(list[str]):
    """Every checkpoint that is committed from now on."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__()
        sa.event.listen(engine, "before_cursor_execute", self._look)

    def _look(self, _connection: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        if text.startswith("UPDATE memwarden_checkpoints"):
            self.append(text)


@pytest.fixture
def source(database: Database) -> Database:
    database.fill(SOURCE, [{"id": n} for n in range(1000)])
    return database


def copy(database: Database, seen: list[int], **options: Any) -> Any:
    def handle(chunk: Batch) -> None:
        seen.append(chunk[0].id)

    return flow.process(STATEMENT, handle, database.engine, name="n", rows=100, clock=FakeClock(), **options)


def test_one_commit_for_many_chunks_where_there_is_a_journal_and_one_for_each_elsewhere(source: Database) -> None:
    marks, seen = Marks(source.engine), list[int]()
    assert copy(source, seen).rows == 1000
    assert len(marks) == (1 if source.kind == "sqlite" else 10 + 1)
    assert seen == list(range(0, 1000, 100))
    del marks[:]
    assert copy(source, [], checkpoint_s=0, restart=True).rows == 1000
    assert len(marks) == 10 + 1


@SQLITE
def test_the_table_is_written_each_half_second(source: Database) -> None:
    clock, marks = FakeClock(), Marks(source.engine)

    def handle(chunk: Batch) -> None:
        clock.advance(0.12)

    flow.process(STATEMENT, handle, source.engine, name="n", rows=100, clock=clock)
    # Chunk 6 ends 0.6 s behind the first that was kept back, chunk 5 ended 0.48 s behind it; and at the end.
    assert len(marks) == 1 + 1


@SQLITE
def test_no_file_is_left_by_a_run_that_ended_or_failed(source: Database, tmp_path: Path) -> None:
    files: list[set[str]] = []

    def handle(chunk: Batch) -> None:
        files.append({name for name in os.listdir(tmp_path) if "-memwarden-" in name})
        if chunk[0].id == 500 and len(files) == 6:
            raise ValueError("not yet")

    options: dict[str, Any] = {"name": "n", "rows": 100, "clock": FakeClock(), "on_error": "stop"}
    with pytest.raises(ChunkError, match="not yet"):
        flow.process(STATEMENT, handle, source.engine, **options)
    assert [len(each) for each in files] == [0, 1, 1, 1, 1, 1]
    assert os.listdir(tmp_path) == ["data.db"]
    assert flow.process(STATEMENT, handle, source.engine, **options).rows == 500
    assert os.listdir(tmp_path) == ["data.db"]


@SQLITE
def test_a_folder_that_cannot_be_written_is_said_and_each_chunk_is_committed(
    source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    row = Checkpoint(name="n", part=0, plan="")
    os.mkdir(Journal(beside(source.engine), row).path)  # nothing can be written there, whoever runs the test
    marks = Marks(source.engine)
    with caplog.at_level(logging.WARNING, "memwarden.flow"):
        assert copy(source, []).rows == 1000
    assert len(marks) == 10 + 1
    assert [record.getMessage() for record in caplog.records if "no journal beside" in record.getMessage()] != []
    assert len(caplog.records) == 1


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from memwarden import flow
from memwarden.testing import FakeClock
url, chunks, writes = sys.argv[1], int(sys.argv[2]), sys.argv[3]
engine = sa.create_engine(url)
source = sa.Table("source", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
def handle(chunk):
    if str(chunk[0].id) in writes.split(","):
        insert = "INSERT INTO sink SELECT id FROM source WHERE id BETWEEN ? AND ?"
        chunk.connection.exec_driver_sql(insert, (chunk[0].id, chunk[-1].id))
    if chunk[0].id == chunks * 100:
        os.kill(os.getpid(), signal.SIGKILL)
flow.process(sa.select(source), handle, engine, name="n", rows=100, clock=FakeClock())
"""


def kill(database: Database, chunks: int, writes: str = "") -> None:
    """Have a process killed while it handles this chunk, its clock standing still."""
    url = database.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", KILLED, url, str(chunks), writes], check=False, timeout=50)
    assert done.returncode == -signal.SIGKILL


@SQLITE
@pytest.mark.parametrize("options", [{}, {"checkpoint_s": 0}, {"checkpoint_s": "1h"}])
def test_after_a_kill_the_chunk_that_was_in_work_comes_again_and_no_other(
    source: Database, options: dict[str, Any], tmp_path: Path
) -> None:
    kill(source, 6)
    assert source.all("SELECT position, rows FROM memwarden_checkpoints") == [(None, 0)]
    kill(source, 8)  # a second life goes on on top of the same row
    seen: list[int] = []
    done = copy(source, seen, **options)
    assert seen == [800, 900]
    assert (done.rows, done.processed) == (200, 1000)
    assert os.listdir(tmp_path) == ["data.db"]


@SQLITE
def test_what_was_committed_inside_is_not_done_again(source: Database) -> None:
    source.fill(sa.Table("sink", sa.MetaData(), sa.Column("id", sa.Integer)), [])
    kill(source, 6, "300,600")
    assert source.all("SELECT count(*) FROM sink") == [(100,)]
    seen: list[int] = []
    copy(source, seen)
    assert seen == [600, 700, 800, 900]


@SQLITE
def test_what_was_killed_can_begin_anew_and_is_refused_to_another_statement(source: Database) -> None:
    kill(source, 6)
    with pytest.raises(CheckpointError, match="the statement changed since this run began"):
        flow.process(STATEMENT.where(SOURCE.c.id > 5), print, source.engine, name="n")
    seen: list[int] = []
    copy(source, seen, restart=True)
    assert seen == list(range(0, 1000, 100))


@SQLITE
def test_a_copy_of_what_was_killed_goes_on_where_the_table_says(source: Database, tmp_path: Path) -> None:
    kill(source, 6)
    (tmp_path / "elsewhere").mkdir()
    for name in os.listdir(tmp_path):
        if name.startswith("data.db"):
            shutil.copy(tmp_path / name, tmp_path / "elsewhere")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/elsewhere/data.db")
    seen: list[int] = []
    flow.process(STATEMENT, lambda chunk: seen.append(chunk[0].id), engine, name="n", rows=100)
    engine.dispose()
    assert seen == list(range(0, 1000, 100))


@SQLITE
def test_a_row_that_somebody_else_wrote_meanwhile_counts(source: Database) -> None:
    kill(source, 6)
    with source.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE memwarden_checkpoints SET version = version + 1, position = '[199]'")
    seen: list[int] = []
    copy(source, seen)
    assert seen == list(range(200, 1000, 100))


@SQLITE
def test_parallel_parts_have_a_journal_each(source: Database, tmp_path: Path) -> None:
    files: set[str] = set()

    def handle(chunk: Batch) -> None:
        files.update(name for name in os.listdir(tmp_path) if "-memwarden-" in name)

    engine = sa.create_engine(source.url, connect_args={"timeout": 60})
    done = flow.process(STATEMENT, handle, engine, name="n", rows=10, parallel=2, clock=FakeClock())
    engine.dispose()
    assert done.rows == 1000
    assert len(files) == 8
    assert os.listdir(tmp_path) == ["data.db"]
