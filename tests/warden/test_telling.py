"""A Warden that tells people: what of it is told, by whom among workers, and what one without alerts pays: nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import ConfigError, Warden, check_and_alert
from memwarden.budget import Budget
from memwarden.facts import Finding, Level
from memwarden.testing import FakeClock, RecordingChannel

from .conftest import MIB, Stage
from .programs import run
from .test_findings import Leaking

if TYPE_CHECKING:
    from pathlib import Path

# A cool-down is real time in the outbox's clock, which here stands still between looks.
NOW = {"group_wait": "0s", "raise_for": "0s", "clear_for": "0s", "service": "shop"}


def telling(stage: Stage, ops: RecordingChannel, folder: Path, **more: Any) -> Warden:
    alerts = {**NOW, "channels": {"ops": ops}, **more.pop("alerts", {})}
    return stage.warden(alerts=alerts, directory=str(folder), relieve=False, **more)


def test_a_level_is_told_with_its_details_and_its_end_with_what_was_done(stage: Stage, tmp_path: Path) -> None:
    ops, budget = RecordingChannel("ops"), Budget("400M")
    warden = telling(stage, ops, tmp_path)
    warden.add_alert_detail("queue", lambda: 12)
    take_back = warden.add_budget(budget)
    rows = budget.account("rows")
    rows.reserve(7 * MIB)
    warden.start()
    with warden.operation("import"):
        stage.look(warden, 0.92)
        (raised,) = ops.wait_for(1)
    warden.collect("by hand")
    stage.look(warden, 0.30)
    over = ops.wait_for(2)[1]
    assert (raised.what, raised.level, raised.key) == ("raised", Level.CRITICAL, "high_usage:shop")
    assert raised.details["limit_bytes"] == 512 * MIB
    assert raised.details["in_flight"] == ["import"]
    assert raised.details["holders"] == [["rows", 7 * MIB]]
    assert raised.details["queue"] == 12
    assert "memory.max" in raised.details["limit_source"]
    assert (over.what, over.details["peak_ratio"]) == ("recovered", pytest.approx(0.92, abs=0.001))
    take_back()
    assert rows.held_bytes == 7 * MIB


def test_a_leak_is_told_with_cause_and_advice_and_what_was_done_about_it(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    warden = stage.warden(alerts={**NOW, "channels": {"ops": ops}}, directory=str(tmp_path))
    stage.run(warden, 130, Leaking(stage, 0.5))
    notices = ops.wait_for(1)
    while notices[-1].level < Level.CRITICAL:  # what is suspected, and waits until it is confirmed, is not told
        notices = ops.wait_for(len(notices) + 1)
    told = [(each.kind, each.what, each.level.name) for each in notices if each.kind == "leak"]
    assert told[-1] == ("leak", "changed", "CRITICAL")
    assert told[:-1] in ([], [("leak", "raised", "WARNING")])
    first = next(each for each in notices if each.kind == "leak")
    assert first.details["confidence"] > 0
    assert first.details["advice"]
    assert "cause: " in first.text


def test_what_stands_is_said_to_be_unwatched_when_it_stops(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    warden = telling(stage, ops, tmp_path)
    warden.start()
    stage.look(warden, 0.92)
    warden.stop()
    assert [each.what for each in ops.notices] == ["raised", "recovered"]
    assert "its Warden was stopped" in ops.notices[1].text
    warden.stop()
    assert warden.errors == 0


def test_a_leak_is_over_for_those_who_were_told_when_nobody_watches_it_any_more(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    warden = stage.warden(alerts={**NOW, "channels": {"ops": ops}}, directory=str(tmp_path))
    stage.run(warden, 130, Leaking(stage, 0.5))
    ops.wait_for(1)
    warden.stop()
    over = [each for each in ops.notices if each.what == "recovered"]
    assert [(each.key, each.text.endswith("its Warden was stopped")) for each in over] == [("leak:shop", True)]


def test_what_the_leader_told_of_a_worker_is_over_when_nobody_watches_that_worker(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    warden = telling(stage, ops, tmp_path)
    warden.start()
    stage.look(warden, 0.30)
    assert warden._telling is not None
    leak = Finding(kind="leak", what="confirmed", text="it leaks", pid=os.getpid(), unix_s=1.0, monotonic_s=1.0)
    warden._telling.finding(leak)  # as the leader
    ops.wait_for(1)
    warden._telling.teller._standing.clear()  # which is another process
    for each in (
        leak,
        leak.replace(kind="rapid growth", what="began"),
        leak.replace(kind="rapid growth", what="ended"),
    ):
        warden._telling.passed_on(each)
    warden.stop()
    assert [(each.what, each.key) for each in ops.notices] == [("raised", "leak:shop"), ("recovered", "leak:shop")]


def test_a_second_worker_whose_end_is_no_news_is_in_its_leak_no_longer(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    warden = telling(stage, ops, tmp_path)
    warden.start()
    leak = Finding(kind="leak", what="confirmed", text="it leaks", pid=os.getpid(), unix_s=1.0, monotonic_s=1.0)
    said: list[Finding] = []
    warden.on_finding(said.append)
    for what in ("confirmed", "withdrawn"):
        for pid in (os.getpid(), os.getppid()):
            warden._speak(leak.replace(what=what, pid=pid))
    assert [each.what for each in ops.wait_for(2)] == ["raised", "recovered"]
    assert [each.what for each in said] == ["confirmed", "withdrawn"]


def test_splits_and_frequent_collections_are_told(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    warden = telling(stage, ops, tmp_path)
    warden.tell_job_split("import", 8, "before it runs nobody hears")
    warden.start()
    warden.tell_job_split("import", 8, "it did not fit")
    for _ in range(10):
        warden.collect()
    found = {each.kind: each for each in ops.wait_for(2)}
    assert found["job_split"].details["parts"] == 8
    assert "5 collections in a row returned less" in found["collections"].text  # that they are frequent comes later


def test_an_empty_table_and_a_switched_off_one_tell_nobody(stage: Stage, tmp_path: Path) -> None:
    for alerts in ({}, {"enabled": False, "channels": {"ops": RecordingChannel("ops")}}):
        warden = stage.warden(alerts=alerts, directory=str(tmp_path))
        assert warden.alerts is None
        warden.start()
        assert warden._telling is None
        warden.tell_job_split("x", 1, "nobody hears")
        warden.stop()


def test_what_is_wrong_in_the_table_is_one_line(stage: Stage) -> None:
    for table, words in (
        ({"chanels": {}}, "there is no setting 'chanels'; did you mean 'channels'?"),
        ({"channels": {}}, "no channel is configured"),
        ({"channels": {"a": 3}, "raise_for": "soon"}, "'soon' is not a duration"),
        ({"channels": {"a": {"kind": "log", "tier": 9}}}, "the escalation has 3 levels"),
        ({"channels": {"a": {"kind": "log"}}, "mute": ["spikes"]}, "'spikes' is no alert type; did you mean 'spike'?"),
    ):
        with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
            stage.warden(alerts=table)
    with pytest.raises(ConfigError, match="is no detail"):
        stage.warden().add_alert_detail("", print)


# --- one look ------------------------------------------------------------------------------------------------------


def test_one_look_tells_once_however_often_it_is_taken_and_says_when_it_is_over(stage: Stage, tmp_path: Path) -> None:
    ops = RecordingChannel("ops")
    told: list[list[str]] = []
    for ratio in (0.5, 0.92, 0.93, 0.97, 0.4, 0.4):
        stage.used(ratio)
        stage.clock.advance(300)
        found = check_and_alert(
            machine=stage.machine, clock=stage.clock, directory=str(tmp_path), preset=None,
            alerts={**NOW, "channels": {"ops": ops}},
        )  # fmt: skip
        told.append([each.what for each in found.told])
    assert told == [[], ["raised"], [], ["changed"], ["recovered"], []]
    assert [each.what for each in ops.notices] == ["raised", "changed", "recovered"]
    assert found.verdict.level is Level.NORMAL


def test_one_look_that_would_tell_nobody_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="nobody is to be told"):
        check_and_alert(machine=stage.machine, clock=FakeClock())


# --- real processes --------------------------------------------------------------------------------------------------

RECORDS = """
class Files:
    kind = "file"
    def __init__(self, name): self.name = name
    def check(self): return ()
    def warm_up(self): pass
    def close(self): pass
    def send(self, notices, *, timeout_s):
        with open("told", "a") as file:
            for each in notices:
                file.write(json.dumps([each.kind, each.what, each.level.name, each.delivery_id]) + chr(10))
        wait_until(lambda: not os.path.exists("linger"))

alerts = {"service": "shop", "group_wait": "0s", "raise_for": "0s", "clear_for": "0s"}
alerts["channels"] = {"ops": Files("ops")}
def say(word):
    with open("valve.new", "w") as file:
        file.write(word)
    os.replace("valve.new", "valve")
def told():
    try:
        with open("told") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        return []
def of(kind):
    return [each[1] for each in told() if each[0] == kind]
options = dict(alerts=alerts, pressure_file="valve", interval="20ms", preset=None, dwell=0, relieve=False)
"""

WORKERS = (
    RECORDS
    + """
say("NORMAL")
warden = Warden(**options)
pids = []
for _ in range(8):
    pid = os.fork()
    if not pid:
        warden.start()
        wait_until(lambda: os.path.exists("end"), 60)
        warden.stop()
        os._exit(0)
    pids.append(pid)
def boxes():
    return [name for name in os.listdir("run") if name.endswith(".box")] if os.path.isdir("run") else []
wait_until(lambda: len(boxes()) == 8)
time.sleep(0.3)  # so that all of them tick, and one leads, before it burns
say("EMERGENCY")
wait_until(lambda: of("high_usage") == ["raised"])
time.sleep(1.0)  # in which a second notice would come: of nothing there is no event
say("NORMAL")
wait_until(lambda: "recovered" in of("high_usage"))
time.sleep(0.5)  # likewise a second recovery
open("end", "w").close()
for pid in pids:
    os.waitpid(pid, 0)
tell(told=of("high_usage"))
"""
)


def test_eight_workers_are_one_notice_and_one_recovery(tmp_path: Path) -> None:
    ran = run(WORKERS, str(tmp_path))
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert ran.told[-1] == {"told": ["raised", "recovered"]}


LEADER_DIES = (
    RECORDS
    + """
import signal, sqlite3
def marked():
    db = sqlite3.connect("memwarden.db", timeout=20)
    try:
        return [state for (state,) in db.execute("SELECT state FROM alert_deliveries")]
    finally:
        db.close()
if LINGERS:
    open("linger", "w").close()
say("NORMAL")
def worker():
    pid = os.fork()
    if not pid:
        Warden(**options).start()
        signal.pause()  # until it is killed
    return pid
first = worker()
wait_until(lambda: os.path.isdir("run") and any(n.startswith("leader-") for n in os.listdir("run")))
time.sleep(0.5)  # so that the first has ticked as the leader before there is another
second = worker()
wait_until(lambda: sum(name.endswith(".box") for name in os.listdir("run")) == 2)
say("CRITICAL")
wait_until(lambda: of("high_usage") == ["raised"])
wait_until(lambda: marked() == ["pending" if LINGERS else "sent"])
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
if LINGERS:
    os.unlink("linger")
time.sleep(8.0)  # the next one leads within that; in the rest of it a second notice would come
say("NORMAL")
wait_until(lambda: "recovered" in of("high_usage"))
os.kill(second, signal.SIGKILL)
os.waitpid(second, 0)
tell(told=[each[1] for each in told()], ids=[each[3] for each in told()])
"""
)


@pytest.mark.slow
def test_when_the_leader_dies_the_next_one_goes_on_with_the_same_alert(tmp_path: Path) -> None:
    ran = run(f"LINGERS = False{LEADER_DIES}", str(tmp_path))
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert ran.told[-1]["told"] == ["raised", "recovered"]


@pytest.mark.slow
def test_what_a_leader_had_sent_and_not_marked_comes_once_more_with_the_same_id(tmp_path: Path) -> None:
    ran = run(f"LINGERS = True{LEADER_DIES}", str(tmp_path))
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert ran.told[-1]["told"] == ["raised", "raised", "recovered"]
    first, again, over = ran.told[-1]["ids"]
    assert first == again != over


LEADER_STOPS = (
    RECORDS
    + """
say("NORMAL")
def worker(name):
    pid = os.fork()
    if not pid:
        warden = Warden(**options).start()
        wait_until(lambda: os.path.exists(name), 60)
        warden.stop()
        os._exit(0)
    return pid
first = worker("stop first")
wait_until(lambda: os.path.isdir("run") and any(n.startswith("leader-") for n in os.listdir("run")))
time.sleep(0.5)  # so that the first has ticked as the leader before there is another
second = worker("stop second")
wait_until(lambda: sum(name.endswith(".box") for name in os.listdir("run")) == 2)
time.sleep(0.5)  # likewise
say("EMERGENCY")
wait_until(lambda: of("high_usage") == ["raised"])
open("stop first", "w").close()
os.waitpid(first, 0)
time.sleep(3.0)  # the next one leads within that; in the rest of it a second notice would come
before = of("high_usage")
open("stop second", "w").close()
os.waitpid(second, 0)
tell(before=before, after=of("high_usage"))
"""
)


@pytest.mark.slow
def test_when_the_leader_stops_the_next_one_goes_on_and_the_last_says_that_nobody_watches(tmp_path: Path) -> None:
    ran = run(LEADER_STOPS, str(tmp_path))
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert ran.told[-1] == {"before": ["raised"], "after": ["raised", "recovered"]}


FORKS = (
    RECORDS
    + """
say("NORMAL")
warden = Warden(**options, limit="200G", leader=False).start()
wait_until(lambda: warden._telling is not None and warden._telling.teller.outbox is not None)
pid = os.fork()
if not pid:
    wait_until(lambda: warden._telling is not None and warden._telling.teller.outbox is not None)
    warden.tell_job_split("in the child", 2, "why")
    warden.stop()
    os._exit(0)
os.waitpid(pid, 0)
warden.tell_job_split("in the parent", 2, "why")
warden.stop()
tell(told=len(told()), errors=warden.errors)
"""
)


def test_a_forked_child_tells_by_itself_and_the_parent_goes_on(tmp_path: Path) -> None:
    ran = run(FORKS, str(tmp_path))
    assert (ran.code, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert ran.told[-1] == {"told": 1, "errors": 0}  # the second is within the throttle of the first


AT_THE_END = (
    RECORDS
    + """
say("EMERGENCY")
warden = Warden(**options).start()
wait_until(lambda: of("high_usage") == ["raised"])
"""
)


def test_a_process_that_ends_by_itself_says_so(tmp_path: Path) -> None:
    ran = run(AT_THE_END, str(tmp_path))
    assert ran.code == 0, ran.stderr
    with open(tmp_path / "told", encoding="ascii") as file:
        assert [line.split('"')[3] for line in file if "high_usage" in line] == ["raised", "recovered"]


PAYS_NOTHING = """
warden = Warden(interval="20ms").start()
wait_until(lambda: warden.ticks > 5)
heavy = ("memwarden.tell", "memwarden.store", "sqlite3", "ssl")
tell(loaded=sorted(name for name in sys.modules if name.startswith(heavy)),
     threads=sorted(t.name for t in __import__("threading").enumerate()),
     size=os.path.getsize(warden._own_box().path))
warden.stop()
"""


def test_without_alerts_nothing_of_it_is_loaded_started_or_stored(tmp_path: Path) -> None:
    ran = run(PAYS_NOTHING, str(tmp_path))
    assert ran.told == [{"loaded": [], "threads": ["MainThread", "memwarden"], "size": 256 * 1024}]
    assert not os.path.exists(tmp_path / "memwarden.db")
