"""Chunk and cursor in one transaction, in every kind of database that a sink may be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from memwarden.errors import ConfigError, JobError
from memwarden.jobs import job
from memwarden.jobs.ledger import LostError, Part
from memwarden.jobs.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PART: dict[str, Any] = dict.fromkeys(Part._fields)
PART |= {"root": "r", "part": 0}


@pytest.fixture
def path(tmp_path: Path) -> str:
    where = str(tmp_path / "effects.db")
    with closing(sqlite3.connect(where)) as db, db:
        db.execute("CREATE TABLE done (item INTEGER)")
    return where


@pytest.fixture(params=["path", "connection", "engine"])
def opened(request: pytest.FixtureRequest, path: str) -> Iterator[Callable[..., Sink]]:
    """Open a sink for a part; all are closed at the end."""
    engine = sa.create_engine(f"sqlite:///{path}")
    kinds: dict[str, Callable[[], Any]] = {
        "path": lambda: path,
        "connection": lambda: sqlite3.connect(path, timeout=30, isolation_level="IMMEDIATE"),
        "engine": lambda: engine,
    }
    made: list[Sink] = []

    def open_one(part: int = 0) -> Sink:
        made.append(Sink(kinds[request.param](), Part(**{**PART, "part": part}), job="copies"))
        return made[-1]

    yield open_one
    for each in made:
        each.close()
    engine.dispose()


def write(sink: Sink, item: int) -> None:
    connection = sink.connection()
    if isinstance(connection, sqlite3.Connection):
        connection.execute("INSERT INTO done VALUES (?)", (item,))
    else:
        connection.exec_driver_sql("INSERT INTO done VALUES (?)", (item,))


def done(path: str) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT item FROM done ORDER BY item")]


def test_what_was_written_and_the_place_are_kept_together(opened: Callable[..., Sink], path: str) -> None:
    sink = opened()
    write(sink, 1)
    assert done(path) == []
    sink.commit("1", 1, '{"sum":1}')
    sink.close()
    assert done(path) == [1]
    again = opened()
    assert (again.position, again.items, again.result) == ("1", 1, '{"sum":1}')


def test_what_is_undone_leaves_nothing(opened: Callable[..., Sink], path: str) -> None:
    sink = opened()
    write(sink, 1)
    sink.undo()
    write(sink, 2)
    sink.commit("2", 1, None)
    assert done(path) == [2]


def test_an_earlier_attempt_that_still_lives_commits_nothing(opened: Callable[..., Sink], path: str) -> None:
    old = opened()
    new = opened()
    write(old, 1)
    with pytest.raises(LostError):
        old.commit("1", 1, None)
    write(new, 2)
    new.commit("2", 1, None)
    assert done(path) == [2]
    assert opened().position == "2"


def test_parts_do_not_see_each_other(opened: Callable[..., Sink], path: str) -> None:
    first, second = opened(0), opened(1)
    write(first, 1)
    first.commit("1", 1, None)
    write(second, 2)
    second.commit("9", 1, None)
    assert (first.position, second.position, done(path)) == ("1", "9", [1, 2])


def test_the_place_can_be_moved_past_an_item(opened: Callable[..., Sink]) -> None:
    sink = opened()
    sink.skip("5")
    assert opened().position == "5"


def rows(path: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT COUNT(*) FROM memwarden_checkpoints").fetchone()[0])


def test_an_earlier_attempt_commits_nothing_when_the_row_is_gone(opened: Callable[..., Sink], path: str) -> None:
    old = opened()
    new = opened()
    write(new, 1)
    new.commit("1", 1, None)
    new.forget()
    assert rows(path) == 0
    write(old, 2)
    with pytest.raises(LostError):
        old.commit("2", 1, None)
    with pytest.raises(LostError):
        old.fence()
    assert (done(path), rows(path)) == ([1], 0)


def test_a_row_that_a_later_attempt_has_stays(opened: Callable[..., Sink], path: str) -> None:
    old = opened()
    write(old, 1)
    old.commit("1", 1, None)
    later = opened()
    old.forget()
    assert (rows(path), later.position) == (1, "1")


def test_what_cannot_be_taken_away_stays_and_is_said(path: str, caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink(path, Part(**PART), job="copies")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE memwarden_checkpoints")
    sink.forget()
    sink.close()
    assert "a checkpoint of job r stays behind (no such table" in caplog.text


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(JobError, match="its sink is a list"):
        Sink([], Part(**PART), job="copies")


def test_a_connection_by_itself_is_refused_at_once() -> None:
    with closing(sqlite3.connect(":memory:")) as db, pytest.raises(ConfigError, match="one connection of one process"):
        job(sink=db)
