"""SIGKILL at random moments: with a sink in the same database every row is there once, elsewhere a chunk may repeat.

The long version is `make soak`: some five hundred kills.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.flow.database import kill_me

if TYPE_CHECKING:
    from pathlib import Path

    from tests.flow.database.conftest import Database

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
KILLS = {"sqlite": 3, "postgresql": 2, "mariadb": 2}  # each life of the program is most of a second
ROWS = 100_000 if SOAK else 10_000
NOTED_ROWS = 1_000_000 if SOAK else 10_000  # a chunk takes a fraction of a millisecond there


def _life(database: Database, kind: str, folder: Path, kill_after: int | None) -> bool:
    """Run the program; kill it a moment after so many chunks. Whether it was killed before it ended."""
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, kill_me.__file__, url, kind, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        if kill_after is not None:
            for _ in range(kill_after):
                if not process.stdout.readline():
                    break
            threading.Event().wait(random.random() * 0.005)
            process.kill()
        while process.stdout.read(65536):
            pass
    assert process.returncode in ((0, -9) if kill_after is not None else (0,))
    return process.returncode == -9


def _fill(database: Database, count: int = ROWS) -> None:
    for name in ("source", "sink"):
        table = sa.Table(
            name, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=name == "source", autoincrement=False)
        )
        database.fill(table, [{"id": n} for n in range(count)] if name == "source" else [])


def _kill_and_finish(
    database: Database, kind: str, folder: Path, lives: int = 40, count: int = ROWS
) -> tuple[int, int]:
    """Kill it again and again, then let it end. How often it was, and how many chunks came again in the file."""
    lives = lives if SOAK else KILLS[database.kind]
    most = count // 100 // lives // 2  # so few chunks in each life that most are killed and do not end
    sink, seen, kills, again = folder / "sink", set[str](), 0, 0
    sink.touch()  # the first may be killed before it is made
    for life in range(lives + 1):
        killed = _life(database, kind, folder, random.randrange(most) if life < lives else None)
        lines = sink.read_text().splitlines()
        new = lines[len(seen) + again :]
        came = [line for line in new if line in seen]
        assert came in ([], new[:1])  # the first of this life, which was in work when the last one was killed
        again += len(came)
        seen.update(new)
        kills += killed
    return kills, again


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_a_sink_in_the_same_database_every_row_is_there_exactly_once(database: Database, tmp_path: Path) -> None:
    _fill(database)
    kills, _ = _kill_and_finish(database, "table", tmp_path)
    assert database.all("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM sink") == [
        (ROWS, ROWS, 0, ROWS - 1)
    ]
    print(f"{database.kind}: {kills} kills, {ROWS} rows, each once")
    assert kills > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("kind", "lives"), [("file", 40), ("marks", 40), ("journal", 150)])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_with_a_sink_elsewhere_a_kill_repeats_at_most_one_chunk_under_its_id(
    database: Database, kind: str, lives: int, tmp_path: Path
) -> None:
    count = NOTED_ROWS if kind == "journal" else ROWS
    _fill(database, count)
    kills, again = _kill_and_finish(database, kind, tmp_path, lives, count)
    chunks = [line.split() for line in (tmp_path / "sink").read_text().splitlines()]
    handed = Counter((chunk, int(first), int(last)) for chunk, first, last in chunks)
    assert sum(handed.values()) - len(handed) == again <= kills
    print(f"{kind}: {kills} kills, {again} chunks handed out again")
    assert len({chunk for chunk, _, _ in handed}) == len(handed)  # one id, one range
    rows = [row for _, first, last in handed for row in range(first, last + 1)]
    assert sorted(rows) == list(range(count))
    assert kills > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_written_in_the_transaction_is_there_once_among_chunks_that_are_only_noted(
    database: Database, tmp_path: Path
) -> None:
    _fill(database)
    kills, again = _kill_and_finish(database, "mixed", tmp_path, 150)
    print(f"mixed: {kills} kills, {again} chunks of the file handed out again")
    inside = [row for row in range(ROWS) if row // 100 % 3 == 0]
    assert [row for (row,) in database.all("SELECT id FROM sink ORDER BY id")] == inside
    chunks = [line.split() for line in (tmp_path / "sink").read_text().splitlines()]
    ranges = {(int(first), int(last)) for _, first, last in chunks}
    outside = [row for first, last in ranges for row in range(first, last + 1)]
    assert sorted(outside + inside) == list(range(ROWS))
    assert kills > 0
