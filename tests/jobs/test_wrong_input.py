"""Wrong input: one clear line that says what, where and how to mend it; nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import ConfigError, JobError, UnitError
from memwarden.jobs import Ledger, Message, Runner, current, job, perform, should_split, submit
from memwarden.jobs.definition import job_of
from memwarden.jobs.ledger import Claim, Worker
from memwarden.store import Store
from tests.jobs import work
from tests.jobs.contract import over
from tests.jobs.inline import Inline
from tests.jobs.processes import PATIENCE_S, ROOT, outside, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": "much"}, "limit: 'much' is not a size"),
        ({"chunk": 0}, "chunk: 0 is no such number"),
        ({"chunk": True}, "chunk: True is no such number"),
        ({"retries": -1}, "retries: -1 is no such number"),
        ({"timeout": "soon"}, "timeout: 'soon' is not a duration"),
        ({"items": [1, 2]}, "items: [1, 2] is no function"),
        ({"name": "x" * 300}, "is no name"),
        ({"name": "ж" * 200}, "is too long for a message"),
        ({"sink": "effects.db"}, "has a sink and no items"),
        ({"sink": 5, "items": range}, "sink: 5 is no database; give a SQLAlchemy engine"),
        ({"name": 5}, "name: 5... is no name"),
        ({"name": ""}, "is no name"),
        ({"type": 5}, "type: 5 is no name; give a text of 0 to 100 printable characters"),
        ({"type": "t" * 101}, "is no name"),
        ({"timeout": 0}, "timeout: 0 leaves no time at all; give more, or leave it out"),
        ({"retries": 10**5000}, "retries: this int is no such number"),
    ],
)
def test_options_of_the_decorator(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, UnitError)) as caught:
        job(**options)(lambda chunk: None)
    assert said in str(caught.value)


def values() -> Iterator[int]:
    yield 1


async def values_in_time() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (5, "job: 5 is no function or class; decorate one with @job"),
        (partial(len), "job: a partial has no name of its own; give name="),
        (values, "test_wrong_input:values': is a generator: called, it does nothing"),
        (values_in_time, "values_in_time': is a generator"),
        (type("Yields", (), {"handle": values}), "Yields': is a generator"),
        (Inline.work, "Inline.work': is a method: nobody would give it its object; decorate the class, whose method"),
    ],
)
def test_what_would_be_called_and_never_do_its_work(function: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(function)
    assert said in str(caught.value)


def test_functions_in_a_class_that_need_no_object_are_jobs() -> None:
    class Group:
        @staticmethod
        @job
        def alone(count: int) -> int:
            return count

        @job
        def plain(count: int) -> int:  # noqa: N805  it is no method
            return count

    assert (Group.alone(3), Group.plain.arguments((3,), {})) == (3, {"count": 3})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queue": None}, "queue: None is no name; give a text of 1 to 100 printable characters"),
        ({"queue": ""}, "queue: '' is no name"),
        ({"queue": "a\nb"}, "is no name"),
        ({"queue": "q" * 101}, "is no name"),
        ({"priority": "x"}, "priority: 'x' is no such number"),
        ({"priority": 1.5}, "priority: 1.5 is no such number"),
        ({"priority": 10**30}, "is no such number; give a whole number from -1000000000 to 1000000000"),
        ({"unique": "u" * 250}, "is no name; give a text of 1 to 228 printable characters"),
        ({"unique": 7}, "unique: 7 is no name"),
        ({"delay_s": float("nan")}, "delay_s: nan is not a duration"),
        ({"delay_s": "soon"}, "delay_s: 'soon' is not a duration"),
    ],
)
def test_where_a_job_goes_is_checked_before_it_is_written_down(bench: Inline, given: Any, said: str) -> None:
    with pytest.raises((ConfigError, UnitError)) as caught:
        submit(work.total, {"count": 1}, engine=bench.engine, ledger=bench.ledger, **given)
    assert said in str(caught.value)
    assert bench.ledger.jobs() == []


@pytest.mark.parametrize("arguments", [[1], [], "", {"count": 1, 2: 3}])
def test_arguments_are_a_dictionary_by_name(bench: Inline, arguments: Any) -> None:
    with Runner(bench.folder, memory="1G") as runner, pytest.raises(JobError, match=r"its arguments are a|no argument"):
        runner.submit(work.total, arguments)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queues": "abc"}, "queues: 'abc' is no list of texts; give a list such as"),
        ({"queues": [5]}, "queues: [5] is no list of texts"),
        ({"queues": ["q" * 101]}, "is no name"),
        ({"modules": "myapp"}, "modules: 'myapp' is no list of texts"),
        ({"memory": "1K"}, "memory: 1 KiB are too little for the process of any part; give at least 64 MiB"),
    ],
)
def test_options_of_a_runner(bench: Inline, given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Runner(bench.folder, **given)
    assert said in str(caught.value)


def test_a_class_without_the_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no method `handle`; give it handle"):
        job(type("Empty", (), {}))


def test_a_class_stays_usable_and_its_arguments_are_those_of_its_constructor() -> None:
    assert isinstance(work.Notes(3, "nowhere"), work.Notes)
    notes, body = job_of(work.Notes), job_of(work.Body)
    assert notes.arguments((3,), {"path": "x"}) == {"count": 3, "path": "x"}
    with pytest.raises(JobError, match="needs the argument 'path'"):
        notes.arguments((3,), {})
    assert (body.arguments((), {}), body.options()["reduce"], notes.options()["reduce"]) == ({}, False, True)


def test_what_is_no_job_is_not_submitted(bench: Inline) -> None:
    below = type("Below", (work.Body,), {})
    for each, name in ((below, "Below"), (len, "len"), ("work:total", "'work:total'")):
        with pytest.raises(JobError, match=f"{name}: is no job; decorate it with @job"):
            submit(each, {}, engine=bench.engine, ledger=bench.ledger)  # type: ignore[arg-type]  # the point of it


def test_arguments_that_the_function_does_not_take(bench: Inline) -> None:
    for arguments, said in (({}, "needs the argument 'count'"), ({"count": 1, "b": 2}, "takes no argument 'b'")):
        with pytest.raises(JobError, match=said):
            work.total.arguments((), arguments)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (work.has_bad_items, "its items are a list_iterator, which cannot be taken up in the middle"),
        (work.splits_nothing, "has no items to cut"),
        (work.no_json, "its result cannot be written as JSON"),
        (work.HasItemsThatAreNoMethod, "its `items` is a tuple; make it a method"),
        (work.HasASinkAndNoItems, "has a sink and no items"),
    ],
)
def test_a_job_that_cannot_work_fails_at_once_with_the_reason(bench: Inline, made: Any, said: str) -> None:
    root = submit(made, {}, engine=bench.engine, ledger=bench.ledger)
    status = over(bench, root)
    assert (status.state, status.attempts) == ("failed", 1)
    assert said in str(status.error)


def test_a_process_that_is_too_full_to_begin_asks_for_a_fresh_one(bench: Inline) -> None:
    """Other jobs may have filled it; where each part has its own process that cannot be, and it fails at once."""
    root = submit(work.has_a_tiny_limit, {"count": 3}, engine=bench.engine, ledger=bench.ledger)
    ending = perform(bench.queue.popleft(), engine=bench.engine, ledger=bench.ledger)
    assert (ending.what, ending.fresh) == ("later", True)
    assert "before the job has begun, and its limit is 1 MiB" in ending.text
    with Runner(bench.folder, memory="1G", workers=1) as runner:
        root = runner.submit(work.has_a_tiny_limit, {"count": 3})
        runner.run(until_idle=True)
        status = runner.status(root)
    assert (status.state, status.attempts) == ("failed", 1)


def test_an_unknown_type_is_named_where_it_is_submitted(bench: Inline) -> None:
    with pytest.raises(ConfigError, match=r"there is no job type 'nightly'; known are analysis, bulk, campaign"):
        submit(work.has_no_type, {"count": 1}, engine=bench.engine, ledger=bench.ledger)


def test_a_profile_above_the_machine_is_lowered_and_said(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    with Runner(str(tmp_path_factory.mktemp("jobs")), memory="200M", workers=1) as runner:
        root = runner.submit(work.total, {"count": 5})
        runner.run(until_idle=True)
        assert runner.result(root) == 10
    assert "its limit of 1 GiB (and a quarter above for the kernel's) is more than the budget of 200 MiB" in caplog.text


def test_a_budget_above_the_machine_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match=r"are more than the .* there are"):
        Runner(str(tmp_path_factory.mktemp("jobs")), memory="1000T")


def test_a_store_in_memory_cannot_hold_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    with Store("/proc/nowhere") as store, pytest.raises(JobError, match="its store is in memory only"):
        Runner(store)


def test_outside_of_a_job_there_is_no_run() -> None:
    with pytest.raises(JobError, match="no job is at work here"):
        current()


def test_whether_to_split_is_said_by_hand_too() -> None:
    assert should_split(257, 1 << 20)
    assert not should_split(256, 1 << 20)
    assert not should_split(257, 1 << 20, limit="1G")
    assert (should_split(257, "1M"), should_split(256, "1M")) == (True, False)
    with pytest.raises(UnitError, match="bytes_per_item: 'much' is not a size"):
        should_split(1, "much")


def test_asked_to_split_it_does_unless_it_must_not(bench: Inline) -> None:
    root = submit(work.asks_to_split, {"count": 40}, engine=bench.engine, ledger=bench.ledger)
    assert (over(bench, root).parts["done"], bench.ledger.result(root)) == (7, list(range(40)))
    root = submit(work.never_splits, {"count": 40}, engine=bench.engine, ledger=bench.ledger)
    assert (over(bench, root).parts["done"], bench.ledger.result(root)) == (2, 0)


def test_a_split_is_an_event_for_alerts(bench: Inline) -> None:
    over(bench, submit(work.splits_at_once, {"count": 40}, engine=bench.engine, ledger=bench.ledger))
    (found,) = [each for each in bench.ledger.events() if each["kind"] == "job_split"]
    assert "40 items of 64 MiB do not fit into 1 GiB" in found["text"]


class Away(Inline):
    """An engine whose broker is away for the first so many messages."""

    def __init__(self, folder: str, store: Store, refuse: int) -> None:
        super().__init__(folder, store)
        self.refuse = refuse

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        if self.refuse > 0:
            self.refuse -= 1
            raise ConnectionRefusedError(111, "Connection refused")
        super().send(text, queue=queue, delay_s=delay_s, priority=priority, message_id=message_id)


def test_a_broker_that_is_away_at_the_submission_gets_it_later(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("bench"))
    with Store(folder) as store:
        bench = Away(folder, store, refuse=1)
        root = submit(work.total, {"count": 100}, engine=bench, ledger=bench.ledger)
        assert bench.sent == []
        assert (over(bench, root).state, bench.ledger.result(root)) == ("done", sum(range(100)))


def test_where_the_children_cannot_be_sent_they_are_done_in_place(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The broker takes the first message and no other one: the worker that has it does all parts by itself."""
    folder = str(tmp_path_factory.mktemp("bench"))
    with Store(folder) as store:
        bench = Away(folder, store, refuse=0)
        root = submit(work.splits_at_once, {"count": 200}, engine=bench, ledger=bench.ledger)
        bench.refuse = 10**9
        perform(bench.queue.popleft(), engine=bench, ledger=bench.ledger)
        status = bench.ledger.status(root)
        assert status is not None
        assert (status.state, bench.ledger.result(root)) == ("done", list(range(200)))
        assert len(bench.sent) == 1


def test_a_leak_from_run_to_run_asks_for_a_fresh_process(bench: Inline) -> None:
    fresh = []
    for _ in range(60):
        submit(work.leaks_a_little, {"mib": 1}, engine=bench.engine, ledger=bench.ledger)
        fresh.append(perform(bench.queue.popleft(), engine=bench.engine, ledger=bench.ledger).fresh)
    work.leaked.clear()
    assert any(fresh)
    assert any(each["kind"] == "job_leak" for each in bench.ledger.events())


def put_off(runner: Runner, root: str) -> str:
    """Why a part could not be begun in the first turn, after which nothing is held for it."""
    runner.begin()
    runner.turn()
    status = runner.status(root)
    assert (status.state, status.attempts, runner.pids, runner.budget.reserved_bytes) == ("open", 0, (), 0)
    assert (runner.ledger.next_due_s("local") or 0) > 0
    with runner.store.transaction() as db:
        (error,) = db.execute("SELECT error FROM job_parts").fetchone()
    return str(error)


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("nowhere.to.be.found", "ModuleNotFoundError: No module named"),
        ("tests.jobs.raises_at_import", "ValueError: a setting"),
    ],
    ids=["none", "raises"],
)
def test_a_job_that_a_worker_does_not_know_waits_for_one_that_does(
    tmp_path_factory: pytest.TempPathFactory, module: str, error: str
) -> None:
    with Runner(str(tmp_path_factory.mktemp("jobs")), memory="1G") as runner:
        root, _ = runner.ledger.submit(f"{module}:job", {})
        assert f"its module cannot be imported here ({error}" in put_off(runner, root)


def test_where_no_process_can_be_had_a_part_waits_and_the_runner_lives_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """No kernel starts a program with words as long as these (E2BIG)."""
    folder = str(tmp_path_factory.mktemp("jobs"))
    with Runner(folder, memory="1G", start="spawn", modules=("m" * 200_000,)) as runner:
        root = runner.submit(work.total, {"count": 3})
        assert "no process can be had" in put_off(runner, root)


def test_who_dies_behind_its_work_is_not_said_not_to_have_begun_it(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    with Runner(str(tmp_path_factory.mktemp("jobs")), memory="1G", workers=1, start="spawn") as runner:
        root = runner.submit(work.dies_behind_its_work)
        runner.run(until_idle=True)
        assert runner.result(root) == "done"
    assert "cannot be begun" not in caplog.text


def test_who_is_told_to_end_before_it_begins_has_nothing_held_against_it(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A signal that comes before anybody listens to it, in an interpreter that only starts."""
    with Runner(str(tmp_path_factory.mktemp("jobs")), memory="1G", workers=1, start="spawn") as runner:
        root = runner.submit(work.total, {"count": 3})
        runner.begin()
        runner.turn()
        assert len(runner.pids) == 1
        runner.stop()
        runner.run()
        assert (runner.status(root).state, runner.ledger.next_due_s("local")) == ("open", 0)
    assert "cannot be begun" not in caplog.text


def test_a_line_for_which_there_is_no_memory_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("jobs"))
    with open(f"{folder}/lines.txt", "wb") as file:
        file.write(b"one\n")
        file.truncate(60 * work.MIB)  # no byte of it is a line's end
    with Runner(folder, memory="1G", workers=1, start="spawn", fence="on", cgroup=False) as runner:
        root = runner.submit(work.reads_lines, {"path": f"{folder}/lines.txt"})
        runner.run(until_idle=True)
        error = runner.status(root).error
    said = f"memory_error (MemoryError: the line at byte 4 of {folder}/lines.txt does not fit into memory)"
    assert error == f"three deaths at one place, the last: {said}"


def test_a_memory_error_without_words_is_called_by_its_name(bench: Inline) -> None:
    def refused() -> None:
        raise MemoryError

    root = submit(job(limit="1G", name="tests:refused")(refused), {}, engine=bench.engine, ledger=bench.ledger)
    assert over(bench, root).error == "three deaths at one place, the last: memory_error (MemoryError)"


def test_a_name_that_makes_no_message_is_given_up_and_the_runner_lives_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """From a ledger that an earlier version wrote; `job` refuses it now."""
    with Runner(str(tmp_path_factory.mktemp("jobs")), memory="1G", workers=1) as runner:
        root, _ = runner.ledger.submit("ж" * 200, {})
        other = runner.submit(work.total, {"count": 3})
        runner.run(until_idle=True)
        assert "its name makes too long a message" in str(runner.status(root).error)
        assert runner.result(other) == 3


def test_a_runner_of_some_queues_is_idle_when_nothing_waits_in_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Runner(str(tmp_path_factory.mktemp("jobs")), memory="1G", workers=1, queues=["ours"]) as runner:
        root, other = runner.submit(work.total, {"count": 3}, queue="ours"), runner.submit(work.total, {"count": 3})
        runner.run(until_idle=True)
        assert (runner.status(root).state, runner.status(other).state) == ("done", "open")


def test_a_runner_is_not_idle_while_another_one_has_a_part_at_work(bench: Inline) -> None:
    """It may come back, or be cut into more."""

    claim: Claim | str

    class Second(Runner):
        turns = 0

        def turn(self) -> None:
            super().turn()
            self.turns += 1
            if self.turns == 3:
                assert not isinstance(claim, str)
                self.ledger.finish(claim, "7")

    with Second(bench.folder, memory="1G", workers=1) as runner:
        root = runner.submit(work.waits, {"count": 3})
        claim = runner.ledger.claim(Message(job="", root=root, part=0, attempt=0), Worker.here())
        runner.run(until_idle=True)
        assert (runner.turns, runner.result(root)) == (3, 7)


@pytest.mark.parametrize(
    ("start", "said"),
    [("auto", "this one has other threads (watcher)"), ("spawn", "by start='spawn'"), ("fork", "")],
)
def test_a_job_of_the_program_itself_says_that_no_process_can_have_it(
    tmp_path_factory: pytest.TempPathFactory, start: str, said: str
) -> None:
    words = [sys.executable, "-m", "tests.jobs.of_main", str(tmp_path_factory.mktemp("jobs")), start]
    ended = subprocess.run(words, text=True, capture_output=True, timeout=PATIENCE_S, cwd=ROOT, check=True)
    if said:
        assert f"failed 5 times its process is started anew ({said}), and so would not have __main__" in ended.stdout
    else:
        assert ended.stdout == "done None\n"


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = str(tmp_path_factory.mktemp("jobs"))
    with Runner(made, memory="1G", workers=1) as runner:
        runner.submit(work.total, {"count": 100})
        runner.submit(work.poisoned, {"count": 20, "poison": 3, "path": f"{made}/effects.db", "how": "memory"})
        runner.run(until_idle=True)
        runner.submit(work.total, {"count": 100}, delay="1h")
    return made


def asked(folder: str, *words: str) -> Any:
    ended = run(folder, *words, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_command_line_shows_what_there_is(folder: str) -> None:
    jobs = asked(folder, "list")
    assert asked(folder) == jobs
    assert sorted(each["state"] for each in jobs) == ["done", "done", "open"]
    (sick,) = [each for each in jobs if "poisoned" in each["name"]]
    assert asked(folder, "status", sick["id"])["result"] == 19
    assert {row["ending"] for row in asked(folder, "ledger", sick["id"])} == {"memory_error", "done"}
    (left,) = asked(folder, "quarantine")
    assert (left["low"], left["high"], left["kind"]) == ("2", "3", "memory_error")
    (row,) = asked(folder, "stats")
    assert (row["queue"], row["delayed"], row["jobs_open"]) == ("default", 1, 1)
    for words in (["list"], ["stats"], ["quarantine"], ["status", sick["id"]], ["ledger", sick["id"]]):
        shown = run(folder, *words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert len(shown.stdout.splitlines()) >= 2


def test_the_monitor_shows_the_queues(folder: str) -> None:
    words = ["monitor", "--jobs", "--interval", "50ms", "--duration", "100ms"]
    ended = outside(folder, *words, "--format", "ndjson")
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    found = [row["jobs"] for row in rows if "jobs" in row]
    assert found
    assert {"queue", "type", "waiting", "running", "failed"} <= set(found[0][0])
    assert "queue default: 0 waiting" in outside(folder, *words).stdout


def test_a_folder_that_only_the_settings_name_is_the_same_for_all(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMWARDEN_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "memwarden.toml").write_text(f"dir = {json.dumps(folder)}\n")
    monkeypatch.chdir(tmp_path)
    with Runner(memory="1G", workers=1) as runner:
        assert os.path.dirname(str(runner.store.path)) == folder
    for words in (["jobs", "list"], ["monitor", "--jobs", "--interval", "50ms", "--duration", "100ms"]):
        shown = subprocess.run(
            [sys.executable, "-m", "memwarden", *words], text=True, capture_output=True, check=True, timeout=60
        )
        assert "total" in shown.stdout or "queue default: 0 waiting" in shown.stdout
    assert not (tmp_path / "state").exists()


def test_the_command_line_cancels_and_retries(folder: str) -> None:
    jobs = asked(folder, "list")
    (waiting,) = [each["id"] for each in jobs if each["state"] == "open"]
    assert asked(folder, "cancel", waiting)["cancelled"]
    assert not asked(folder, "cancel", waiting)["cancelled"]
    (sick,) = [each["id"] for each in jobs if "poisoned" in each["name"]]
    assert asked(folder, "retry", sick)["parts"] == 1
    assert asked(folder, "status", sick)["state"] == "open"
    with Store(folder) as store:
        Ledger(store).cancel(sick)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "nothing"], "job nothing: is not known here"),
        (["retry", "nothing"], "job nothing: is not known here"),
        (["cancel", "nothing"], "job nothing: is not known here"),
        (["quarantine", "nothing"], "job nothing: is not known here"),
        (["work", "--import", "no.such.module", "--until-idle"], "--import no.such.module: cannot be imported"),
        (["work", "--memory", "much"], "memory: 'much' is not a size"),
        (["work", "--workers", "0"], "workers: 0 is no such number"),
        (["list", "--most", "-3"], "--most: -3 is no such number"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_the_command_line_refuses_in_one_line(folder: str, words: list[str], said: str) -> None:
    ended = run(folder, *words) if words != ["dance"] else run(folder, "dance")
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["list"], ["status", "a"], ["stats"], ["ledger", "a"], ["quarantine"], ["retry", "a"], ["cancel", "a"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_store_that_is_only_looked_for_is_not_made(tmp_path: Path, words: list[str]) -> None:
    ended = run(str(tmp_path / "typo"), *words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"memwarden: {tmp_path}/typo/memwarden.db: there is none yet\n"
    assert not (tmp_path / "typo").exists()


def test_the_heads_of_the_statistics_say_what_they_count(folder: str) -> None:
    head = run(folder, "stats").stdout.splitlines()[0]
    for words in ("PARTS DONE", "PARTS FAILED", "JOBS OPEN", "JOBS DONE", "JOBS FAILED", "JOBS CANCELLED"):
        assert words in head


def test_a_job_that_is_not_known_cannot_be_cancelled(bench: Inline) -> None:
    with Runner(bench.folder, memory="1G") as runner, pytest.raises(JobError, match="job nosuch: is not known here"):
        runner.cancel("nosuch")


def test_a_worker_of_the_local_engine_says_that_the_shared_ledger_is_not_its(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`memwarden jobs list` looks there, and the worker would seem to do nothing."""
    monkeypatch.setenv("MEMWARDEN_LEDGER", "postgresql://nowhere/jobs")
    ended = outside(folder, "jobs", "work", "--memory", "1G", "--until-idle", "--queue", "none")
    assert ended.returncode == 0
    assert "MEMWARDEN_LEDGER is for workers of a broker and not used here" in ended.stderr
    assert "MEMWARDEN_LEDGER" not in run(folder, "work", "--memory", "1G", "--until-idle", "--queue", "none").stderr


def test_a_message_for_nobody_is_dropped(bench: Inline) -> None:
    text = Message(job="tests.jobs.work:total", root="gone", part=0, attempt=0).encode()
    assert perform(text, engine=bench.engine, ledger=bench.ledger).what == "dropped"
