"""Following the ticks of a box: each comes once and in order, whatever is written while they are read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.blackbox import _TICK_SIZE, _TICKS, _TICKS_AT, SIZE, BlackBox, TickReader
from memwarden.errors import BlackBoxError

if TYPE_CHECKING:
    from pathlib import Path


def a_box(folder: Path, *, pid: int = 7, posts: bool = False) -> BlackBox:
    return BlackBox(
        str(folder / "run"), pid=pid, unix_s=1000.0, monotonic_s=0.0, start_ticks=5, argv="app.py", posts=posts
    )


def write(box: BlackBox, first: int, count: int) -> None:
    for number in range(first, first + count):
        box.tick(1000.0 + number, float(number), number, 2 * number, None, 0)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(min_value=0, max_value=900), max_size=12))
def test_every_tick_comes_once_in_order_with_its_figures(tmp_path: Path, counts: list[int]) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    reader, written, got = TickReader(box.path), 0, []
    for count in counts:
        write(box, written + 1, count)
        written += count
        got += reader.read()
    assert got == [(n, 1000.0 + n, n, 2 * n, None, 0) for n in range(1, written + 1)]
    assert (reader.lost, reader.read()) == (0, [])
    reader.close()
    box.close(remove=True)


def test_another_reader_goes_on_where_one_stopped(tmp_path: Path) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    write(box, 1, 5000)  # more than the ring holds
    reader = TickReader(box.path, last=4990)
    assert [tick[0] for tick in reader.read()] == list(range(4991, 5001))
    reader.close()
    box.close()


@pytest.mark.parametrize("count", [_TICKS + 1, _TICKS + 100, 3 * _TICKS + 7])
def test_what_was_overwritten_is_counted_and_the_rest_comes(count: int, tmp_path: Path) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    reader = TickReader(box.path)
    write(box, 1, count)
    got = reader.read()
    assert [tick[0] for tick in got] == list(range(count - _TICKS + 1, count + 1))
    assert reader.lost == count - _TICKS
    reader.close()
    box.close()


def test_one_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    write(box, 1, 3)
    at = _TICKS_AT + 3 * _TICK_SIZE
    with open(box.path, "r+b") as file:
        whole = file.seek(at) and file.read(_TICK_SIZE)
        file.seek(at + 20)
        file.write(b"\xff\xff")
    reader = TickReader(box.path)
    assert [tick[0] for tick in reader.read()] == [1, 2]
    assert reader.lost == 0
    with open(box.path, "r+b") as file:
        file.seek(at)
        file.write(whole or b"")
    assert [tick[0] for tick in reader.read()] == [3]
    reader.close()
    box.close()


def test_a_damaged_one_is_left_out_once_others_follow(tmp_path: Path) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    write(box, 1, 9)
    with open(box.path, "r+b") as file:
        for number in (3, 4, 7):
            file.seek(_TICKS_AT + number * _TICK_SIZE + 20)
            file.write(b"\xff\xff")
    reader = TickReader(box.path)
    assert [tick[0] for tick in reader.read()] == [1, 2, 5, 6, 8, 9]
    assert reader.lost == 3
    reader.close()
    box.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(min_value=0, max_value=SIZE - 1), st.binary(min_size=1, max_size=80)), max_size=30)
)
def test_a_damaged_box_is_read_as_far_as_it_goes(tmp_path: Path, wounds: list[tuple[int, bytes]]) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    write(box, 1, 4000)
    box.close()
    with open(box.path, "r+b") as file:
        for at, content in wounds:
            file.seek(at)
            file.write(content)
    try:
        reader = TickReader(box.path)
    except BlackBoxError:
        os.unlink(box.path)
        return
    for _ in range(3):
        for number, unix_s, rss, used, _, _ in reader.read():
            assert (unix_s, rss, used) == (1000.0 + number, number, 2 * number)
    reader.state()
    reader.has_posts()
    reader.close()
    os.unlink(box.path)


@pytest.mark.parametrize("content", [b"", b"MEMWRDN2", b"x" * SIZE, b"MEMWRDN2" + b"\xff" * SIZE])
def test_what_is_no_box_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.box").write_bytes(content)
    with pytest.raises(BlackBoxError):
        TickReader(str(tmp_path / "x.box"))
    os.mkfifo(tmp_path / "pipe.box")
    with pytest.raises(BlackBoxError):
        TickReader(str(tmp_path / "pipe.box"))


def test_a_box_that_is_cut_short_is_no_endless_loop(tmp_path: Path) -> None:
    box = a_box(tmp_path)
    assert box.path is not None
    write(box, 1, 500)
    box.close()
    for size in (_TICKS_AT + 100 * _TICK_SIZE + 13, _TICKS_AT, 4096):
        os.truncate(box.path, size)
        reader = TickReader(box.path)
        reader.read()
        reader.state()
        assert not reader.has_posts()
        reader.close()


def test_it_says_who_and_how_it_ended_and_what_is_left_to_tell(tmp_path: Path) -> None:
    box = a_box(tmp_path, posts=True)
    assert box.path is not None
    reader = TickReader(box.path)
    assert (reader.kind, reader.pid, reader.start_ticks, reader.argv) == ("inside", 7, 5, "app.py")
    assert reader.state() == (False, "")
    assert not reader.has_posts()
    assert box.post(1.0, 1.0, "{}")
    assert reader.has_posts()
    for post in box.posts():
        box.take(post)
    assert not reader.has_posts()
    box.end_life("clean")
    assert reader.state() == (True, "clean")
    reader.close()
    box.close()
