"""Who leads: real locks of real files; two candidates in one process are as two processes to the kernel."""

from __future__ import annotations

import os
import resource
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memwarden.leader import LINE_BYTES, NEWS_BYTES, Leader, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_one_leads_and_the_next_takes_over_when_it_resigns(tmp_path: Path) -> None:
    first, second = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert [first.leads(), second.leads(), first.leads()] == [True, False, True]
    first.resign()
    assert [second.leads(), first.leads()] == [True, False]
    second.resign()


def test_every_cgroup_has_its_own(tmp_path: Path) -> None:
    first, second = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "b")
    assert [first.leads(), second.leads()] == [True, True]
    first.resign()
    second.resign()


def test_the_files_are_private_and_no_program_inherits_them(tmp_path: Path) -> None:
    leader = Leader(str(tmp_path), "a")
    assert leader.leads()
    assert leader.take_turn()
    leader.pass_on("x")
    for name in os.listdir(tmp_path):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600
    assert not os.get_inheritable(leader._lead)
    assert not os.get_inheritable(leader._turn)
    leader.resign()


def test_a_forked_child_neither_leads_by_what_it_inherited_nor_takes_it_from_its_parent(tmp_path: Path) -> None:
    leader = Leader(str(tmp_path), "a")
    assert leader.leads()
    child = os.fork()
    if not child:
        os._exit(int(leader.leads()))
    assert os.waitpid(child, 0)[1] == 0
    assert leader.leads()
    assert not Leader(str(tmp_path), "a").leads()
    leader.resign()


def test_a_child_that_lives_on_does_not_keep_its_dead_parent_leading(tmp_path: Path) -> None:
    told, tell = os.pipe()
    hold, let_go = os.pipe()
    parent = os.fork()
    if not parent:
        leader = Leader(str(tmp_path), "a")
        assert leader.leads()
        if not os.fork():
            leader.leads()  # as its Warden does at its first look
            os.write(tell, b"x")
            os.close(let_go)
            os.read(hold, 1)
            os._exit(0)
        os.read(told, 1)
        os._exit(0)
    os.waitpid(parent, 0)
    mine = Leader(str(tmp_path), "a")
    assert mine.leads()
    mine.resign()
    for fd in (told, tell, hold, let_go):
        os.close(fd)


def test_a_file_that_was_removed_under_the_leader_binds_nobody(tmp_path: Path) -> None:
    """Who tidies the folder up splits the leadership until the next change: both must go on without an error."""
    first = Leader(str(tmp_path), "a")
    assert first.leads()
    (tmp_path / "leader-a.lock").unlink()
    second = Leader(str(tmp_path), "a")
    assert second.leads()
    assert first.leads()
    first.resign()
    second.resign()


def test_only_one_has_the_turn(tmp_path: Path) -> None:
    first, second = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert [first.take_turn(), second.take_turn()] == [True, False]
    first.end_turn()
    first.end_turn()
    assert [second.take_turn(), first.take_turn()] == [True, False]
    second.end_turn()


def test_news_reach_the_leader_once_and_in_order(tmp_path: Path) -> None:
    leader, follower = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert leader.leads()
    assert leader.news() == ()
    follower.pass_on("one\nline")
    follower.pass_on("two")
    assert list(leader.news()) == ["one line", "two"]
    assert list(leader.news()) == []
    leader.resign()


def test_news_that_cannot_be_written_now_are_written_later(tmp_path: Path) -> None:
    from fcntl import LOCK_EX, flock

    leader, follower = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert leader.leads()
    with open(tmp_path / "leader-a.news", "wb") as held:
        flock(held, LOCK_EX)
        follower.pass_on("later")
    assert list(leader.news()) == []
    follower.flush()
    assert list(leader.news()) == ["later"]
    leader.resign()


def test_news_that_nobody_reads_take_bounded_room(tmp_path: Path) -> None:
    follower = Leader(str(tmp_path), "a")
    for _ in range(200):
        follower.pass_on("x" * 5000)
    assert os.path.getsize(tmp_path / "leader-a.news") == NEWS_BYTES
    assert all(len(line) < LINE_BYTES for line in follower.news())


@contextmanager
def at_most(kind: int, amount: int) -> Iterator[None]:
    """Of that resource not more than this, for a moment."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_a_full_disk_delays_news_and_makes_nobody_lead(tmp_path: Path) -> None:
    leader, follower = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert leader.leads()
    follower.pass_on("first")
    with at_most(resource.RLIMIT_FSIZE, 10):  # half of a line would fit
        follower.pass_on("second")
        follower.pass_on("third")
    assert not follower.leads()
    follower.flush()
    assert list(leader.news()) == ["first", "second", "third"]
    leader.resign()


def test_what_there_is_no_room_for_waits_in_whole_lines(tmp_path: Path) -> None:
    leader, follower = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert leader.leads()
    told = [f"{number} " + "x" * 700 for number in range(130)]
    for line in told:
        follower.pass_on(line)
    heard = [*leader.news()]
    follower.flush()
    heard += leader.news()
    assert heard == told
    for number in range(3 * NEWS_BYTES // 700):  # what nobody hears for long: the oldest and the newest are kept
        follower.pass_on(f"{number} " + "y" * 700)
    assert len(follower._waiting) == NEWS_BYTES // LINE_BYTES
    leader.resign()


def test_without_a_descriptor_it_leads_for_that_moment_and_no_longer(tmp_path: Path) -> None:
    leader, follower = Leader(str(tmp_path), "a"), Leader(str(tmp_path), "a")
    assert leader.leads()
    assert not follower.leads()
    with at_most(resource.RLIMIT_NOFILE, 3):
        during = follower.leads(), follower.take_turn()
    assert (during, follower.leads(), follower.alone) == ((True, True), False, "")
    assert leader.take_turn()
    assert not follower.take_turn()
    leader.resign()


def test_where_no_lock_can_be_had_everybody_leads_and_says_why(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for _ in range(2):
        leader = Leader(gone, "a")
        assert leader.leads()
        assert leader.take_turn()
        assert "gone" in leader.alone
        leader.pass_on("nothing happens")
        assert leader.news() == ()
        leader.resign()
    assert Leader(str(tmp_path), "a", alone="it is on nfs").leads()
    assert os.listdir(tmp_path) == []


def test_a_link_that_somebody_put_there_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "leader-a.lock").symlink_to(tmp_path / "elsewhere")
    leader = Leader(str(tmp_path), "a")
    assert leader.leads()
    assert leader.alone
    assert not (tmp_path / "elsewhere").exists()


def test_a_cgroup_has_one_name_and_another_has_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = [name_of(str(tmp_path / each)) for each in ("a", "b", "link", "gone")]
    assert names[0] == names[2]
    assert len(set(names)) == 3
    assert name_of(None) == "machine"
    assert all(name.replace("-", "").isalnum() for name in names)


def test_every_process_waits_for_a_time_of_its_own(tmp_path: Path) -> None:
    seeds = set()
    for pid in range(1, 9):
        leader = Leader(str(tmp_path), "a")
        leader._pid = pid
        seeds.add(leader.seed)
    assert len(seeds) == 8
    assert all(0 <= each < 1 for each in seeds)
