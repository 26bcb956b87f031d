"""`memwarden report`: every figure is what was written down, what is missing is said to be, and nothing is made up."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.season import HOUR, NOON, Season

from memwarden.blackbox import LeakState
from memwarden.cli import main
from memwarden.cli._document import Document, Heading, Items, Picture, Table, Text, as_html, as_markdown, as_text
from memwarden.cli._queues import Queues
from memwarden.cli._report import MOST_DRAWN, MOST_PROGRAMS, Report, Span, collect
from memwarden.cli._report_words import zone
from memwarden.cli.report import render, span_of
from memwarden.errors import ConfigError, StoreError
from memwarden.facts import Level
from memwarden.judge.advise import OOM_RATIO
from memwarden.sense import Machine
from memwarden.store import FILE_NAME as STORE_NAME
from memwarden.store import Store
from memwarden.supervise.service.fold import TIERS
from memwarden.supervise.service.history import FILE_NAME, History
from memwarden.testing import FakeClock
from memwarden.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = (0.75, 0.9)
DAY = Span(from_s=NOON - 24 * HOUR, to_s=NOON, now_s=NOON + 30)
OUT = ("mail", "chat")
FINE = dict.fromkeys(OUT, "")
LEAK = LeakState(
    stage="confirmed", since_unix_s=NOON - 9 * HOUR, unix_s=NOON - 6 * HOUR, cause="python", confidence=86,
    text="2.1 MiB a minute on the floors", growth_bytes_per_minute=2.1 * MIB,
)  # fmt: skip


@pytest.fixture
def season(tmp_path: Path) -> Season:
    return Season(tmp_path / "state")


def of(season: Season, span: Span = DAY) -> Report:
    clock = FakeClock(unix_s=span.now_s)
    return collect(season.folder, season.run_folder, span, machine=Machine(), clock=clock, lines=LINES, host="web-1")


def as_data(report: Report) -> Any:
    return json.loads(render(report, "json"))


def flat(mib: float) -> Any:
    return lambda _hour: mib


# --- processes -------------------------------------------------------------------------------------------------------


def test_average_peak_and_time_at_a_level_are_those_of_all_that_was_written(season: Season) -> None:
    season.process("python app.py", (30, 0), lambda hour: 500 if 3 <= hour < 3.5 else 400 if hour < 6 else 200)
    (it,) = of(season).programs
    # 24 h: 17.5 + 0.5 + 6 of which half an hour at 500 of 512 MiB, 5.5 h at 400.
    assert it.average_bytes == pytest.approx((18 * 200 + 5.5 * 400 + 0.5 * 500) / 24 * MIB, rel=0.002)
    assert (it.peak_bytes, it.limit_bytes) == (500 * MIB, 512 * MIB)
    assert it.peak_ratio == pytest.approx(500 / 512)
    assert it.warning_s == pytest.approx(6 * HOUR, abs=60)
    assert it.critical_s == pytest.approx(0.5 * HOUR, abs=60)
    assert it.limit_source == "memory.max of /app"
    assert (it.kills, it.restarts, it.lives) == (0, 0, 1)


@pytest.mark.parametrize("hours", [24, 72, 40 * 24])
def test_minutes_and_hours_tell_the_same_of_any_span(season: Season, hours: int) -> None:
    """A day is read from minutes, three days from hours with minutes of the troubled ones, forty days from hours."""
    season.process(
        "python app.py", (41 * 24, 0), lambda hour: 490.0 if 5 < hour <= 6 else 100.0 + hour % 24, step_s=600
    )
    span = Span(from_s=NOON - hours * HOUR, to_s=NOON, now_s=NOON)
    report = of(season, span)
    (it,) = report.programs
    assert (report.step_s, report.fine_s) == {24: (60, 60), 72: (3600, 60), 960: (3600, 3600)}[hours]
    count = hours * 6
    sizes = [490.0 if 5 < n / 6 <= 6 else 100.0 + n / 6 % 24 for n in range(1, count + 1)]
    assert it.average_bytes == pytest.approx(sum(sizes) / count * MIB, rel=0.001)
    assert it.peak_bytes == 490 * MIB
    # Six looks, each in a minute of its own; an hour with one of them is an hour.
    assert it.critical_s == {60: 6 * 60.0, 3600: 3600.0}[report.fine_s]


def test_a_supervisor_knows_no_levels_and_its_figures_are_judged_by_the_lines(season: Season) -> None:
    season.process("python app.py", (10, 0), lambda hour: 480 if hour < 1 else 100, kind="outside")
    (it,) = of(season).programs
    assert it.critical_s == pytest.approx(HOUR, abs=60)
    assert not it.judged
    assert "not judged" in render(of(season), "text")


def test_without_a_limit_there_is_no_share_and_none_is_made_up(season: Season) -> None:
    season.process("python app.py", (10, 0), flat(100), kind="outside", limit_mib=None)
    report = of(season)
    (it,) = report.programs
    assert (it.limit_bytes, it.peak_ratio, it.warning_s) == (None, None, None)
    assert "not known: no limit is on record" in as_data(report)["sentences"][0]


def test_two_witnesses_of_one_life_are_one_process(season: Season) -> None:
    pid = season.process("python app.py", (5, 1), flat(300), kind="outside", verdict="oom_kill", peak_mib=511)
    season.process("app.py", (4.9, 1), flat(200), kind="inside", verdict=None, pid=pid)
    (it,) = of(season).programs
    assert (it.lives, it.pids, it.kills, it.argv) == (1, (pid,), 1, "python app.py")
    assert it.peak_bytes == 511 * MIB  # the kernel's own, at the death
    assert it.judged


def test_lives_that_follow_each_other_are_restarts_and_workers_at_once_are_none(season: Season) -> None:
    for hours in ((20, 15), (14.9, 8), (7.9, 0)):
        verdict = None if hours[1] == 0 else "oom_kill"
        season.process("python app.py", hours, flat(300), kind="outside", verdict=verdict, alive=verdict is None)
    for _ in range(3):
        season.process("worker", (20, 1), flat(100))
    season.process("worker", (0.9, 0.1), flat(100))
    found = {each.argv: each for each in of(season).programs}
    assert (found["python app.py"].restarts, found["python app.py"].kills) == (2, 2)
    assert (found["worker"].restarts, found["worker"].lives) == (1, 4)


def test_kills_and_restarts_of_other_times_are_not_of_this_one(season: Season) -> None:
    season.process("python app.py", (60, 50), flat(300), kind="outside", verdict="oom_kill")
    season.process("python app.py", (49, 0), flat(300), alive=True)
    (it,) = of(season).programs
    assert (it.lives, it.kills, it.restarts) == (1, 0, 0)
    earlier = Span(from_s=NOON - 72 * HOUR, to_s=NOON - 48 * HOUR, now_s=NOON)
    (it,) = of(season, earlier).programs
    assert (it.lives, it.kills, it.restarts) == (2, 1, 1)


def test_an_end_that_is_no_kill_is_told_as_what_it_is_known_to_be(season: Season) -> None:
    season.process("python a.py", (9, 5), flat(100), kind="outside", verdict="crashed")
    season.process("python b.py", (9, 5), flat(100), verdict=None)  # without a word: os._exit, or a SIGKILL
    season.process("python c.py", (9, 5), flat(100), kind="outside", verdict="failed")
    killed = as_data(of(season))["sentences"][0]
    assert "no guarded process is known to have been killed for memory" in killed.lower()
    assert "2 processes did not end in order (" in killed
    assert "crashed" in killed
    assert "gone without a word" in killed


def test_a_limit_that_changed_is_said_to_have(season: Season) -> None:
    season.process("python app.py", (10, 5), flat(200), limit_mib=256)
    season.process("python app.py", (5, 0.1), flat(300), limit_mib=512)
    report = of(season)
    (it,) = report.programs
    assert (it.least_limit_bytes, it.most_limit_bytes, it.limit_bytes) == (256 * MIB, 512 * MIB, 512 * MIB)
    assert it.peak_ratio == pytest.approx(200 / 256)  # of the limit of its time
    assert "512 MiB (from 256 MiB to 512 MiB)" in render(report, "text")


def test_the_limit_that_would_fit_is_that_of_analyze_and_larger_after_a_kill(season: Season, tmp_path: Path) -> None:
    season.process("python a.py", (10, 0.1), lambda hour: 200 + hour, verdict="clean")
    (it,) = of(season).programs
    trace = tmp_path / "trace.csv"
    points = [(n * 60, int((200 + 10 - n / 60) * MIB)) for n in range(594)]
    trace.write_text("t_s,rss_bytes\n" + "".join(f"{at_s},{size}\n" for at_s, size in points))
    out = tmp_path / "a.json"
    assert main(["analyze", str(trace), "--format", "json", "--output", str(out)]) == 0
    assert it.recommended_bytes == json.loads(out.read_text())["recommended_limit_bytes"]
    killed = Season(tmp_path / "killed")
    killed.process("python a.py", (10, 0.1), lambda hour: 200 + hour, kind="outside", verdict="oom_kill", peak_mib=500)
    (it,) = of(killed).programs
    assert it.recommended_bytes is not None
    assert it.recommended_bytes >= OOM_RATIO * 500 * MIB


def test_of_very_many_processes_the_worst_are_shown_and_the_rest_is_counted(season: Season) -> None:
    with History(season.folder, clock=FakeClock(unix_s=NOON)) as history:
        for n in range(MOST_PROGRAMS + 30):
            life = history.life(
                f"inside-{n}-1.box", kind="inside", pid=6_000_000 + n, start_ticks=n + 1, start_unix_s=NOON - HOUR,
                argv=f"python job{n}.py",
            ).id  # fmt: skip
            history.fold(life, [(k, NOON - HOUR + k * 60, None, (100 + n) * MIB, 512 * MIB, 0) for k in range(1, 30)])
    report = of(season)
    assert (len(report.programs), report.unlisted) == (MOST_PROGRAMS, 30)
    assert report.programs[0].name == f"job{MOST_PROGRAMS + 29}.py"
    page = render(report, "html")
    assert page.count("<svg") == MOST_DRAWN
    assert "30 more are not listed" in page


# --- what was missing ------------------------------------------------------------------------------------------------


def test_of_an_empty_place_nothing_is_known_and_nothing_is_made(season: Season) -> None:
    os.makedirs(season.folder)
    report = of(season)
    assert set(report.missing) == {"history", "boxes", "alerts", "jobs"}
    killed, leaking, told = as_data(report)["sentences"]
    assert "not known: no history was kept" in killed
    assert "not known" in leaking
    assert told.count("not known") == 2
    assert as_data(report)["alerts"] is as_data(report)["queues"] is None
    for form in ("text", "markdown", "html"):
        assert "No alert is on record" not in render(report, form)
    assert os.listdir(season.folder) == []


def test_of_a_time_without_data_nothing_is_said_but_that(season: Season) -> None:
    season.process("python app.py", (10, 0.1), flat(100))
    season.alert(5, "raised", 2, ends=FINE)
    season.job(5, "done")
    before = Span(from_s=NOON - 240 * HOUR, to_s=NOON - 200 * HOUR, now_s=NOON)
    report = of(season, before)
    assert (report.programs, report.alerts, report.seasons, dict(report.missing)) == ((), (), (), {})
    killed, leaking, told = as_data(report)["sentences"]
    assert "not known" in killed
    assert "not known" in leaking
    assert "No alert is on record" in told
    assert "0 jobs got done" in told


def test_boxes_without_a_history_tell_what_they_have(season: Season) -> None:
    season.process("python app.py", (5, 1), flat(300), kind="outside", verdict="oom_kill", peak_mib=510, history=False)
    report = of(season)
    (it,) = report.programs
    assert (it.kept, it.average_bytes, it.warning_s, it.peak_bytes) == (False, None, None, 510 * MIB)
    killed = as_data(report)["sentences"][0]
    assert "The kernel killed app.py once" in killed
    assert "more is not known: no history was kept" in killed
    assert "not known" in render(report, "text")


def test_a_death_that_only_an_alert_knows_of_is_told_once(season: Season) -> None:
    pid = season.process("python app.py", (5, 1), flat(300), kind="outside", verdict="oom_kill")
    for number, start_s in ((pid, NOON - 5 * HOUR), (77, NOON - 9 * HOUR)):
        season.alert(
            1, "seen", 3, id=f"death-{number}-{int(start_s)}", kind="oom_kill", key=f"oom_kill:{number}",
            title="killed by the kernel for memory", details={"pid": number, "peak_bytes": 5}, ends=FINE,
        )  # fmt: skip
    assert sorted(each.pid for each in of(season).deaths) == [77, pid]


def test_a_history_that_ended_hours_ago_is_no_peace(season: Season) -> None:
    season.process("python app.py", (20, 8), flat(100), alive=True)
    report = of(season)
    assert "the last figure is of" in as_data(report)["sentences"][0]
    assert "before" in as_data(report)["sentences"][0]
    assert any("Start the service again" in each for each in as_data(report)["recommendations"])


def test_nobody_is_missed_who_ended(season: Season) -> None:
    season.process("python nightly.py", (26, 0.1), flat(300), limit_mib=400)
    season.process("python app.py", (26, 8), flat(300), limit_mib=400)
    report = of(season)
    assert report.newest_s is None
    assert as_data(report)["recommendations"] == []


def test_an_end_after_the_time_is_not_the_end_of_another_episode(season: Season) -> None:
    season.alert(30, "raised", 2, ends=FINE)
    season.alert(10, "cleared", 0, ends=FINE)
    season.alert(2, "raised", 2, ends=FINE)
    before = Span(from_s=NOON - 40 * HOUR, to_s=NOON - 20 * HOUR, now_s=NOON)
    (it,) = of(season, before).alerts
    assert (it.state, it.lasted_s, it.raised_unix_s) == ("unknown", None, NOON - 30 * HOUR)


def test_no_kind_of_advice_takes_all_the_room(season: Season) -> None:
    for number in range(7):
        season.process(f"python app{number}.py", (5, 1), flat(300), kind="outside", verdict="oom_kill", peak_mib=512)
    season.job(5, "failed")
    words = as_data(of(season))["recommendations"]
    assert [each.startswith("app") for each in words] == [True] * 4 + [False]
    assert words[-1].startswith("1 job failed")


def spoil_by_version(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def spoil_by_text(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"this is no database " * 400)


def spoil_a_page(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    with open(path, "r+b") as file:
        for page in range(1, pages):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)


@pytest.mark.parametrize("name", [STORE_NAME, FILE_NAME])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(spoil_by_version, "newer memwarden"), (spoil_by_text, "not a database"), (spoil_a_page, "malformed")],
)
def test_a_damaged_or_newer_file_is_said_to_be_so_left_alone_and_the_rest_is_told(
    season: Season, name: str, spoil: Any, words: str
) -> None:
    season.process("python app.py", (10, 0.1), flat(100))
    season.alert(5, "raised", 2, ends=FINE)
    season.job(5, "done")
    path = os.path.join(season.folder, name)
    spoil(path)
    with open(path, "rb") as file:
        before = file.read()
    report = of(season)
    told = {"history"} if name == FILE_NAME else {"alerts", "jobs"}
    assert set(report.missing) == told
    assert all(words in report.missing[each] for each in told)
    assert "not known" in " ".join(as_data(report)["sentences"])
    assert words in render(report, "text")
    with open(path, "rb") as file:
        assert file.read() == before
    assert not [each for each in os.listdir(season.folder) if "damaged" in each]


def test_a_history_that_is_being_written_is_read_and_one_that_is_locked_is_not_waited_for_long(season: Season) -> None:
    season.process("python app.py", (10, 0.1), flat(100))
    path = os.path.join(season.folder, FILE_NAME)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert "history" not in of(season).missing
        db.execute("ROLLBACK")
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        start_s = time.monotonic()
        report = of(season)
        assert time.monotonic() - start_s < 10
        db.execute("ROLLBACK")
    assert "locked" in report.missing["history"]
    assert report.programs[0].kept is False


def test_an_empty_history_file_is_no_history(season: Season) -> None:
    os.makedirs(season.folder)
    path = os.path.join(season.folder, FILE_NAME)
    open(path, "wb").close()
    assert "there is nothing in it" in of(season).missing["history"]
    assert os.path.getsize(path) == 0


def test_a_report_holds_up_nobody_who_writes(season: Season) -> None:
    season.job(5, "done")
    with Store(season.folder, reading=True) as reader, Store(season.folder) as writer:
        with reader.transaction() as db:
            before = db.execute("SELECT count(*) FROM jobs").fetchone()
            with writer.transaction() as other:
                other.execute("DELETE FROM jobs")
            assert db.execute("SELECT count(*) FROM jobs").fetchone() == before == (1,)
        with reader.transaction() as db:
            assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_whoever_only_reads_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is none yet"):
        Store(str(tmp_path / "nothing"), reading=True)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_box_is_counted_and_the_others_are_read(season: Season) -> None:
    season.process("python app.py", (10, 0.1), flat(100))
    with open(os.path.join(season.run_folder, "inside-1-1.box"), "wb") as file:
        file.write(b"no box")
    report = of(season)
    assert report.missing["boxes"].startswith("1 of 2 cannot be read")
    assert len(report.programs) == 1


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_a_leak_is_told_in_the_words_of_its_verdict_with_what_to_do(season: Season) -> None:
    season.process("python app.py", (10, 0), lambda hour: 400 - 20 * hour, leak=LEAK, alive=True)
    report = of(season)
    data = as_data(report)
    assert data["sentences"][1] == "Memory leaks: app.py (confirmed, confidence 86 of 100)."
    assert any(LEAK.text in each and "census" in each for each in data["recommendations"])
    assert LEAK.text in render(report, "html")


def test_a_program_that_leaks_in_each_of_its_lives_is_named_once_by_its_surest_verdict(season: Season) -> None:
    for number in range(3):
        stage = "suspected" if number else "confirmed"
        begin = 20 - 5 * number
        season.process(
            "python app.py", (begin, begin - 4.9), flat(300), leak=LEAK.replace(stage=stage), verdict="crashed"
        )
    data = as_data(of(season))
    assert data["sentences"][1] == "Memory leaks: app.py (confirmed, confidence 86 of 100)."
    assert sum("leak confirmed" in each or "leak suspected" in each for each in data["recommendations"]) == 1
    assert len(data["leaks"]) == 3


def test_a_leak_that_was_withdrawn_does_not_stand(season: Season) -> None:
    pid = season.process("python app.py", (10, 0.1), flat(100))
    about = {"kind": "leak", "target": "app.py", "title": "memory leak suspected", "details": {"pid": pid}}
    season.alert(8, "raised", 1, ends=FINE, **about)
    (leak,) = of(season).leaks
    assert (leak.stands, leak.stage) == (True, "suspected")
    season.alert(4, "cleared", 0, ends=FINE, **about)
    (leak,) = of(season).leaks
    assert not leak.stands
    assert as_data(of(season))["sentences"][1].startswith("Nothing leaks now; 1 leak")


def test_no_leak_is_claimed_only_of_those_that_were_judged(season: Season) -> None:
    season.process("python app.py", (10, 0.1), flat(100))
    assert as_data(of(season))["sentences"][1] == "Nothing was found to leak."
    season.process("other", (10, 0.1), flat(100), kind="outside")
    assert "no verdict is kept of 1 process" in as_data(of(season))["sentences"][1]


# --- alerts ----------------------------------------------------------------------------------------------------------


def test_alerts_have_their_time_their_end_and_who_heard_of_them_the_undelivered_first(season: Season) -> None:
    season.alert(20, "raised", 2, ends=FINE)
    season.alert(19, "cleared", 0, ends=FINE)
    season.alert(10, "raised", 3, target="billing", ends={"mail": "", "chat": "HTTP 410 gone"})
    season.alert(4, "seen", 1, kind="spike", target="seen", title="spike seen", ends=FINE)
    season.alert(3, "raised", 1, kind="rapid_growth", target="late")
    late, billing, *rest = of(season).alerts
    assert (late.target, late.waiting, late.sent) == ("late", ("chat", "mail"), ())
    assert (billing.target, billing.lost, billing.sent) == ("billing", ("chat",), ("mail",))
    assert billing.errors == ("HTTP 410 gone",)
    found = {each.target: each for each in (late, billing, *rest)}
    assert found["shop"].raised_unix_s == NOON - 20 * HOUR
    assert found["shop"].lasted_s == pytest.approx(HOUR)
    assert (found["shop"].state, found["shop"].level, found["shop"].sent) == ("over", Level.CRITICAL, ("chat", "mail"))
    assert (found["billing"].state, found["billing"].lasted_s) == ("on", 10 * HOUR + 30)
    assert (found["seen"].state, found["seen"].lasted_s) == ("once", None)
    told = as_data(of(season))["sentences"][2]
    assert told.startswith("4 alerts, of which 3 reached somebody (chat, mail did not deliver everything)")
    words = as_data(of(season))["recommendations"]
    assert words[0].startswith("Mend the channel chat (HTTP 410 gone)")
    assert "mail (1 alert)" in words[1]


def test_what_began_before_the_time_is_there_while_it_lasts_and_where_it_ends(season: Season) -> None:
    season.alert(40, "raised", 2, ends=FINE)
    season.alert(39, "raised", 2, target="long", ends={"mail": "", "chat": "HTTP 410 gone"})
    season.alert(5, "cleared", 0, ends=FINE)
    found = {each.target: each for each in of(season).alerts}
    assert (found["long"].state, found["long"].lasted_s) == ("on", 39 * HOUR + 30)
    assert (found["long"].sent, found["long"].lost) == (
        ("mail",),
        ("chat",),
    )  # as it was delivered, not as it was meant
    assert (found["shop"].state, found["shop"].raised_unix_s) == ("over", NOON - 40 * HOUR)
    assert found["shop"].lasted_s == pytest.approx(35 * HOUR)


def test_an_alert_that_nobody_was_to_hear_of_says_why(season: Season) -> None:
    ledger_alert = {"kind": "leak", "target": "quiet"}
    season.alert(5, "raised", 1, **ledger_alert, ends=FINE)
    season.alert(4.9, "cleared", 0, **ledger_alert, ends=FINE)
    season.alert(4.8, "raised", 1, **ledger_alert, ends=FINE)
    newest = max(of(season).alerts, key=lambda each: each.raised_unix_s or 0)
    assert (newest.reached, newest.why_nobody) == (False, ("cooling", "tier"))
    assert "to nobody: the channel heard of it within the cool-down" in render(of(season), "text")


def test_a_test_notice_is_no_alert(season: Season) -> None:
    season.alert(5, "seen", 1, kind="test", ends=FINE)
    assert of(season).alerts == ()


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_jobs_are_counted_per_queue_and_type_with_their_peaks_and_what_was_left_out(season: Season) -> None:
    for hour in (40, 20, 16):  # the first is of another day
        season.job(hour, "done", peak_mib=200)
    season.job(11, "split", peak_mib=240)
    season.job(9, "failed", kind="campaign", peak_mib=300, limit_mib=512)
    poisoned = season.job(13, "quarantined")
    season.job(1, "waiting")
    season.job(0.5, "running")
    report = of(season)
    found = {each.type: each for each in report.seasons}
    bulk, campaign = found["bulk"], found["campaign"]
    assert (bulk.submitted, bulk.done, bulk.failed, bulk.splits, bulk.quarantined) == (6, 4, 0, 1, 1)
    assert bulk.endings["oom_kill"] == 3
    assert (bulk.peak_bytes, bulk.limit_bytes) == (300 * MIB, 256 * MIB)  # that of a killed attempt
    assert campaign.failed == 1
    assert campaign.peak_ratio == pytest.approx(300 / 512)
    now = {row["type"]: row for row in report.queues}
    assert (now["bulk"]["waiting"], now["bulk"]["running"], now["campaign"]["failed"]) == (1, 1, 1)
    assert [each.root for each in report.quarantine] == [poisoned]
    told = as_data(report)["sentences"][2]
    assert "4 jobs got done, 1 failed, 2 are open now, 1 item or range of items in quarantine" in told
    assert "kernel killed 3 attempts at jobs" in as_data(report)["sentences"][0]
    words = " ".join(as_data(report)["recommendations"])
    assert f"memwarden jobs retry {poisoned}" in words
    assert "no such <customer>" in words


def test_peaks_of_jobs_with_different_limits_are_each_held_against_their_own(season: Season) -> None:
    season.job(5, "done", peak_mib=200, limit_mib=1024)
    season.job(4, "done", peak_mib=120, limit_mib=128)
    (it,) = of(season).seasons
    assert (it.peak_bytes, it.limit_bytes) == (200 * MIB, None)
    assert it.peak_ratio == pytest.approx(120 / 128)


def test_monitor_goes_on_where_there_is_no_store_and_finds_one_that_comes(season: Season) -> None:
    queues = Queues(season.folder)
    assert queues.look() == []
    assert queues.news([]).startswith("queues are not known")
    assert queues.news([]) == ""
    season.job(1, "waiting")
    rows = queues.look()
    assert queues.news(rows) == "queue sync (bulk): 1 waiting, 0 running"
    season.job(1, "running")
    assert queues.news(queues.look()) == "queue sync (bulk): 1 waiting, 1 running"
    queues.close()
    with Store(season.folder) as store, store.transaction() as db:
        db.execute("DELETE FROM jobs")
    assert queues.news(queues.look()) == "no job is on record"
    queues.close()


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag closed in its order; what text and attributes there are."""

    ALONE = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag not in self.ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "ol", "ul", "li", "div", "table",
    "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary", "footer", "code",
    "svg", "line", "text", "polyline", "polygon", "circle",
}  # fmt: skip


def full(season: Season, name: str = "app.py") -> Report:
    season.process(f"python {name}", (20, 10), lambda hour: 700 - 30 * hour, kind="outside", verdict="oom_kill")
    season.process(f"python {name}", (9.9, 0), flat(200), leak=LEAK, alive=True)
    season.alert(10, "raised", 3, target=name, title=name, ends={"mail": "", "chat": name})
    season.job(9, "failed")
    season.job(8, "quarantined")
    return of(season)


def test_the_page_is_whole_needs_nothing_else_and_has_its_figures_as_tables(season: Season) -> None:
    page = render(full(season), "html")
    found = Page(page)
    assert found.tags <= TAGS
    assert "script" not in page
    assert "http" not in page.replace("HTTP", "")
    assert not {name for name, _ in found.attributes} & {"href", "src", "style", "onload", "onclick"}
    assert ("role", "img") in found.attributes
    assert page.count("<svg") == page.count("The figures of this picture")
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    assert ET.fromstring(svg).get("aria-label") == "Memory of app.py over the span"
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "</title></style><b>",
        "a|b`c*d",
        "\x1b[2J\r\n\u202e",
        "&amp;<",
        "'\"><svg>",
    ],
)
def test_a_foreign_name_is_text_in_every_form(season: Season, name: str) -> None:
    report = full(season, name)
    page = render(report, "html")
    assert Page(page).tags <= TAGS
    for form in ("text", "markdown", "html", "json"):
        text = render(report, form)
        text.encode("utf-8")
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    table = [line for line in render(report, "markdown").splitlines() if line.startswith("| ")]
    bars = {line.replace("\\|", "").count("|") for line in table}
    assert bars <= {7, 10, 11, 13}  # the columns of its tables, whatever is in them


WORDS = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates too


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=6, max_size=6))
def test_whatever_the_texts_the_page_stays_one_and_says_them(words: list[str]) -> None:
    a, b, c, d, e, f = words
    table = Table(heads=(a, b), rows=((c, d), (e, f)), caption=a)
    blocks = (
        Heading(text=a), Text(text=b, mood="bad"), Items(items=(c, d), ordered=True), table,
        Picture(svg="<svg></svg>", caption=e, figures=table),
    )  # fmt: skip
    document = Document(title=f, under=e, blocks=blocks, footer=d)
    found = Page(as_html(document))
    assert found.tags <= TAGS
    said = "".join(found.text)
    for each in words:
        plain = "".join(letter if letter.isprintable() else " " for letter in each)
        assert plain.replace("`", "") in said.replace("`", "")
    for text in (as_text(document), as_markdown(document)):
        text.encode("utf-8")
        assert all(letter.isprintable() or letter == "\n" for letter in text)
    lines = as_markdown(document).splitlines()
    assert all(line.replace("\\\\", "").replace("\\|", "").count("|") == 3 for line in lines if line.startswith("| "))


def test_there_are_at_most_five_recommendations_and_each_is_of_a_finding(season: Season) -> None:
    data = as_data(full(season))
    assert 3 <= len(data["recommendations"]) <= 5
    calm = Season(season_folder(season, "calm"))
    calm.process("python app.py", (26, 0), flat(300), alive=True)
    calm.alert(5, "raised", 1, ends=FINE)
    calm.alert(4, "cleared", 0, ends=FINE)
    calm.job(5, "done")
    data = as_data(of(calm))
    assert data["recommendations"] == []
    assert data["sentences"] == [
        "Nothing was killed or near its limit; the highest was app.py with 58.6 % of 512 MiB.",
        "Nothing was found to leak.",
        "1 alert, of which 1 reached somebody; 1 job got done, 0 failed, 0 are open now.",
    ]


def season_folder(season: Season, name: str) -> Any:
    from pathlib import Path

    return Path(season.folder).parent / name


# --- time and the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_times_are_of_the_machine_and_say_so_also_when_the_clocks_change(season: Season) -> None:
    season.process("python app.py", (5, 1), flat(300), kind="outside", verdict="oom_kill")
    text = render(of(season), "text")
    assert "times are CEST (UTC+02:00)" in text
    assert "from 2025-06-14 14:00 to 2025-06-15 14:00" in text.replace("\n", " ")
    assert "last at 2025-06-15 13:00" in text.replace("\n", " ")
    march = 1_743_292_800.0  # 2025-03-30 00:00 UTC, an hour before the change
    assert zone(march, march + 7200) == "CET (UTC+01:00) and CEST (UTC+02:00)"
    found = span_of("2025-06-15T08:00", "2025-06-15T14:00", NOON + 60)
    assert (found.from_s, found.to_s) == (NOON - 6 * HOUR, NOON)


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [
        ("tomorrow", None, "'tomorrow' is no time"),
        ("", None, "'' is no time"),
        ("-3h", None, "'-3h' is no time"),
        ("0", None, "less than a minute"),
        ("10s", None, "less than a minute"),
        ("900d", None, "more than two years"),
        ("2026-13-01", None, "is no time"),
        ("24h", "never", "'never' is no time"),
        ("24h", "2999-01-01", "is not over yet"),
        ("2025-06-15", "2025-06-14", "less than a minute before '2025-06-14'"),
        ("9" * 5000, None, "is no time"),
    ],
)
def test_a_wrong_time_is_one_clear_line(
    since: str, until: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        span_of(since, until, NOON)
    more = [] if until is None else ["--until", until]
    assert main(["report", f"--since={since}", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("memwarden: --")
    assert error.count("\n") == 1


def test_spans_are_whole_minutes() -> None:
    found = span_of("24h", None, NOON + 31.5)
    assert (found.from_s, found.to_s) == (NOON + 60 - 24 * HOUR, NOON + 60)
    assert span_of("1h", "2h", NOON) == Span(from_s=NOON - 3 * HOUR, to_s=NOON - 2 * HOUR, now_s=NOON)


@pytest.fixture
def whole(tmp_path: Path) -> Season:
    """A season that ends now."""
    made = Season(tmp_path / "state", end_s=time.time() // 60 * 60)
    full(made)
    return made


@pytest.mark.parametrize(
    ("name", "begins"),
    [("a.html", "<!doctype html>"), ("a.md", "# Memory report"), ("a.json", "{"), ("a.txt", "Memory report\n")],
)
def test_the_form_is_that_of_the_name_and_the_file_is_whole_and_readable(
    whole: Season, tmp_path: Path, name: str, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    before = os.umask(0o027)
    try:
        assert main(["report", "--dir", whole.folder, "--output", str(path)]) == 0
    finally:
        os.umask(before)
    assert path.read_text(encoding="utf-8").startswith(begins)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert capsys.readouterr().out == ""
    # Again, over it, as `analyze` does; and a form that was asked for comes before the name.
    assert main(["report", "--dir", whole.folder, "--output", str(path), "--format", "markdown"]) == 0
    assert path.read_text(encoding="utf-8").startswith("# Memory report")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [name]


def test_a_dash_is_standard_output_and_a_place_that_cannot_be_written_is_one_line(
    whole: Season, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--dir", whole.folder, "--output", "-"]) == 0
    assert capsys.readouterr().out.startswith("Memory report\n")
    assert main(["report", "--dir", whole.folder, "--output", "/proc/nothing/a.html"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1
    assert main(["report", "--dir", "/nonexistent"]) == 2


def test_a_reader_that_left_is_no_complaint(whole: Season) -> None:
    command = f"{sys.executable} -m memwarden report --dir {whole.folder} --format json; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "141"


def test_reading_is_by_life_and_time_and_never_of_seconds(whole: Season) -> None:
    """The plans of the statements that read rows: a search by key, whatever the size."""
    seen: list[str] = []
    with History(whole.folder, clock=FakeClock()) as history:
        history._db.set_trace_callback(seen.append)
        lives = [each.id for each in history.seen(0, 1e11)]
        for tier in TIERS[1:]:
            history.summary(lives, tier, 0, 1e11, lines=LINES, fine=TIERS[1])
            history.course(lives, tier, 0, 1e11, step_s=tier.step_s)
            history.begin(tier)
        history._db.set_trace_callback(None)
        reads = [each for each in seen if each.lstrip().startswith("SELECT")]
        assert len(reads) >= 8
        assert not [each for each in reads if "seconds" in each]
        plans = [row[3] for each in reads for row in history._db.execute(f"EXPLAIN QUERY PLAN {each}")]
    assert any("USING PRIMARY KEY (life=?" in each for each in plans)
    assert not [each for each in plans if each.startswith(("SCAN h", "SCAN m"))]
