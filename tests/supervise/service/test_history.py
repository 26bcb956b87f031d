"""The history: exact whatever the order, the gaps and the deaths of whoever folds; bounded; and loud when it cannot."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
from collections import defaultdict
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memwarden.errors import StoreError
from memwarden.facts import Level
from memwarden.supervise.service.fold import DAY_S, TIERS, fold
from memwarden.supervise.service.history import FILE_NAME, History
from memwarden.testing import FakeClock
from memwarden.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from memwarden.supervise.service.history import Point

Tick = tuple[int, float, int | None, int | None, int | None, int]
START_S = 1_800_000_000.0


def opened(folder: Path, clock: FakeClock | None = None, **options: Any) -> History:
    return History(str(folder), clock=clock or FakeClock(unix_s=START_S), **options)


def a_life(history: History, name: str = "outside-7-1.box", pid: int = 7) -> int:
    return history.life(name, kind="outside", pid=pid, start_ticks=5, start_unix_s=START_S, argv="app.py").id


def computed(ticks: Iterable[Tick], step_s: int) -> list[tuple[Any, ...]]:
    """What the points must be, from all ticks at once and in the plainest way."""
    by: dict[int, list[Tick]] = defaultdict(list)
    for tick in ticks:
        by[int(tick[1] // step_s) * step_s].append(tick)
    found = []
    for at, some in sorted(by.items()):
        row: list[Any] = [at, len(some)]
        for index in (3, 2):  # used, rss
            known = [int(tick[index]) for tick in some if tick[index] is not None]  # type: ignore[arg-type]  # None is filtered
            row += [min(known), sum(known) / len(known), max(known)] if known else [None, None, None]
        limits = [tick[4] for tick in some if tick[4] is not None]
        found.append((*row, max(limits) if limits else None, Level(max(tick[5] for tick in some))))
    return found


def rows(points: Iterable[Point]) -> list[tuple[Any, ...]]:
    return [tuple(point.as_dict().values()) for point in points]


SIZES = st.none() | st.integers(min_value=0, max_value=1 << 44)
TICKS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.01, 0.5, 1.0, 7.25, 59.9, 61.0, 3600.0, 90_000.0]), SIZES, SIZES,
        st.none() | st.integers(min_value=1, max_value=1 << 44), st.integers(min_value=0, max_value=3),
    ),
    max_size=60,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TICKS, st.randoms(use_true_random=False))
def test_fold_then_ask_is_what_is_computed_from_all_at_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], chance: random.Random
) -> None:
    """For any ticks and gaps, clocks that are set back, any division into folds, repeats, and reopening between."""
    folder = tmp_path_factory.mktemp("history")
    at_s, ticks = START_S, []
    for number, (gap_s, rss, used, limit, level) in enumerate(steps, 1):
        at_s += gap_s if chance.random() < 0.9 else -gap_s
        ticks.append((number, at_s, rss, used, limit, level))
    done = 0
    while done < len(ticks):
        with opened(folder) as history:
            life = a_life(history)
            for _ in range(chance.randint(1, 4)):
                count = min(chance.randint(1, 20), len(ticks) - done)
                # From a little before: some were folded already when whoever folds died before it knew.
                history.fold(life, ticks[max(0, done - 3) : done + count])
                done += count
    with opened(folder) as history:
        life = a_life(history)
        for tier in TIERS:
            assert rows(history.points(life, tier, 0, 1e11)) == computed(ticks, tier.step_s)


@given(TICKS)
def test_the_hour_is_the_sum_of_its_minutes(steps: list[Any]) -> None:
    ticks = [(n, START_S + n * 13.7, rss, used, limit, level) for n, (_, rss, used, limit, level) in enumerate(steps)]
    minutes, hours = fold(ticks, 60), fold(ticks, 3600)
    for at, hour in hours.items():
        inside = [bucket for start, bucket in minutes.items() if start // 3600 * 3600 == at]
        assert hour.count == sum(each.count for each in inside)
        assert hour.used_sum == sum(each.used_sum for each in inside)
        assert hour.used_max == max((each.used_max for each in inside if each.used_max is not None), default=None)
        assert hour.rss_min == min((each.rss_min for each in inside if each.rss_min is not None), default=None)


def test_gaps_are_gaps(tmp_path: Path) -> None:
    with opened(tmp_path) as history:
        life = a_life(history)
        history.fold(life, [(1, START_S, 1, 1, None, 0), (2, START_S + 600, 1, 1, None, 0)])
        assert [point.unix_s - START_S for point in history.points(life, TIERS[1], 0, 1e11)] == [0, 600]


def test_figures_that_cannot_be_are_unknown_and_nothing_overflows(tmp_path: Path) -> None:
    with opened(tmp_path) as history:
        life = a_life(history)
        for number in range(1, 40, 2):
            history.fold(
                life, [(number, START_S, 1 << 63, 1 << 60, (1 << 64) - 2, 3), (number + 1, START_S, 1, 1, 1, 0)]
            )
        (point,) = history.points(life, TIERS[2], 0, 1e11)
        assert (point.count, point.used_max, point.rss_max, point.limit_bytes) == (40, 1 << 60, 1, 1)


def test_a_month_of_a_process(tmp_path: Path) -> None:
    """A tick every two minutes for a month, folded hourly and tidied, then compared with what must be left."""
    clock, chance = FakeClock(unix_s=START_S), random.Random(7)
    ticks: list[Tick] = []
    with opened(tmp_path, clock) as history:
        life = a_life(history)
        for hour in range(31 * 24):
            fresh: list[Tick] = []
            for number in range(30):
                if chance.random() < 0.9:
                    at_s = clock.wall() + number * 120 + chance.random()
                    used = chance.randrange(1 << 30)
                    fresh.append((len(ticks) + len(fresh) + 1, at_s, used // 2, used, 1 << 30, used >> 29))
            ticks += fresh
            clock.advance(3600.0)
            history.fold(life, fresh)
            if hour % 24 == 23:
                while history.expire():
                    pass
                history.give_back()
        while history.expire():
            pass
        for tier in TIERS:
            left = rows(history.points(life, tier, 0, 1e11, most=100_000))
            kept = [row for row in computed(ticks, tier.step_s) if row[0] >= clock.wall() - tier.keep_s]
            assert left == kept
        assert len(history.points(life, TIERS[0], 0, 1e11)) <= DAY_S
        assert history.size_bytes < 8 * MIB


def test_the_file_keeps_its_cap_and_the_coarse_tiers_their_past(tmp_path: Path) -> None:
    clock = FakeClock(unix_s=START_S)
    with opened(tmp_path, clock, most_bytes=MIB) as history:
        life, number, largest = a_life(history), 0, 0
        for _ in range(100):
            fresh = []
            for _ in range(300):
                number += 1
                clock.advance(1.0)
                fresh.append((number, clock.wall(), number << 12, number << 13, 1 << 40, 0))
            history.fold(life, fresh)
            for _ in range(20):
                if not history.expire():
                    break
            history.give_back()
            largest = max(largest, os.path.getsize(history.path))
        assert largest <= 2 * MIB
        assert history.size_bytes <= MIB
        seconds = history.points(life, TIERS[0], 0, 1e11, most=100_000)
        assert 1000 < len(seconds) < number  # the newest are there, the oldest gave way
        assert seconds[-1].unix_s == int(clock.wall())
        assert sum(point.count for point in history.points(life, TIERS[2], 0, 1e11)) == number


def test_lives_of_long_ago_are_forgotten(tmp_path: Path) -> None:
    clock = FakeClock(unix_s=START_S)
    with opened(tmp_path, clock) as history:
        life = a_life(history)
        history.fold(life, [(1, clock.wall(), 1, 1, None, 0)])
        clock.advance(731 * DAY_S)
        other = a_life(history, "outside-8-1.box", 8)
        while history.expire():
            pass
        assert [each.id for each in history.lives()] == [other]


def test_a_life_is_one_whoever_asks(tmp_path: Path) -> None:
    with opened(tmp_path) as history:
        assert a_life(history) == a_life(history)
        history.fold(a_life(history), [(1, START_S, 1, 1, None, 0)], lost=4)
        history.end(a_life(history), "oom_kill", told=True)
        (life,) = history.lives(pid=7)
        assert (life.last, life.lost, life.verdict, life.told) == (1, 4, "oom_kill", True)
        assert history.lives(pid=8) == ()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    with opened(tmp_path / "new") as history:
        a_life(history)
        for name in os.listdir(tmp_path / "new"):
            assert stat.S_IMODE(os.stat(tmp_path / "new" / name).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o700


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_damaged_one_is_moved_aside_loudly(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(StoreError):
        opened(tmp_path, repair=False)
    assert (tmp_path / FILE_NAME).read_bytes() == content
    with opened(tmp_path) as history:
        history.fold(a_life(history), [(1, START_S, 1, 1, None, 0)])
    (aside,) = (name for name in os.listdir(tmp_path) if "damaged" in name)
    assert (tmp_path / aside).read_bytes() == content
    assert "is damaged" in caplog.text
    assert aside in caplog.text


def test_damaged_ones_do_not_pile_up(tmp_path: Path) -> None:
    clock = FakeClock(unix_s=START_S)
    for _ in range(6):
        (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
        opened(tmp_path, clock).close()
        clock.advance(60.0)
    assert len([name for name in os.listdir(tmp_path) if "damaged" in name]) == 2


def test_one_that_is_damaged_while_it_is_open_is_begun_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as history:
        life = a_life(history)
        history.fold(life, [(n, START_S + n, 1, 1, None, 0) for n in range(1, 2000)])
        history._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with open(history.path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 200_000)
        with closing(sqlite3.connect(history.path)) as other, pytest.raises(sqlite3.DatabaseError):
            other.execute("SELECT sum(count) FROM seconds").fetchone()
        history._db.execute("PRAGMA shrink_memory").fetchall()
        failed = None
        for number in range(2000, 2100):
            try:
                history.fold(a_life(history), [(number, START_S + number * 61, 1, 1, None, 0)])
            except StoreError as error:
                failed = error
                break
        assert failed is not None
        assert history.reopen(failed)
        history.fold(a_life(history), [(1, START_S, 1, 1, None, 0)])
        assert len(history.points(a_life(history), TIERS[0], 0, 1e11)) == 1


def test_a_locked_one_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    with opened(tmp_path) as history:
        life = a_life(history)
        history._db.execute("PRAGMA busy_timeout = 1").fetchall()
        with closing(sqlite3.connect(history.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked") as caught:
                history.fold(life, [(1, START_S, 5, 5, None, 0)])
            assert not history.reopen(caught.value)
            other.execute("ROLLBACK")
        history.fold(life, [(1, START_S, 5, 5, None, 0)])
        assert [point.count for point in history.points(life, TIERS[0], 0, 1e11)] == [1]


def test_a_full_disk_is_an_error_and_nothing_is_half_written(tmp_path: Path) -> None:
    """`max_page_count` makes SQLite say what a full disk makes it say."""
    with opened(tmp_path) as history:
        life = a_life(history)
        history._db.execute("PRAGMA max_page_count = 12").fetchall()
        ticks: list[Tick] = [(n, START_S + n, n, n, None, 0) for n in range(1, 5001)]
        with pytest.raises(StoreError, match="full"):
            history.fold(life, ticks)
        assert history.points(life, TIERS[2], 0, 1e11) == ()
        history._db.execute("PRAGMA max_page_count = 100000").fetchall()
        history.fold(life, ticks)
        assert sum(point.count for point in history.points(life, TIERS[2], 0, 1e11)) == 5000


def test_a_newer_one_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer memwarden"):
        opened(tmp_path)
    assert [name for name in os.listdir(tmp_path) if "damaged" in name] == []


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"36 35 0:1 / {os.path.realpath(tmp_path)} rw - nfs4 server:/x rw\n")
    with pytest.raises(StoreError, match=r"network file system \(nfs4\)"):
        opened(tmp_path, mounts=str(mounts))
