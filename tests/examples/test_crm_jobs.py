"""The CRM's jobs, run by the engine that memwarden brings, against what a plain loop over everything gives."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

CRM = Path(__file__).parents[2] / "examples" / "crm"
CONTACTS = 1300

# In a process of its own: the example's modules have names such as `data`, and the runner forks.
RUN = """
import json, sys
import jobs
from memwarden.jobs import Runner
name, arguments, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
with Runner(folder, workers=2, modules=["jobs"]) as runner:
    root = runner.submit(getattr(jobs, name), arguments)
    runner.run(until_idle=True)
    status = runner.status(root)
    print(json.dumps([status.state, status.items, runner.result(root)]))
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    made = run("-c", f"import data; print(data.database_in({str(tmp_path)!r}, contacts={CONTACTS}, long_tail=True))")
    return Path(made.strip())


def run(*args: str) -> str:
    """Its output; its errors are shown where it fails."""
    done = subprocess.run([sys.executable, *args], cwd=CRM, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def job(name: str, folder: Path, /, **arguments: object) -> Any:
    """(state, items, result) of a job."""
    return json.loads(run("-c", RUN, name, json.dumps(arguments), str(folder / "store")))


def rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as db:
        return db.execute(query).fetchall()


SUGGESTIONS = "SELECT * FROM suggestions ORDER BY contact_id, position"


def test_the_job_writes_what_the_plain_loop_writes(database: Path, tmp_path: Path) -> None:
    code = "import data, suggestions, sys\nwith data.connect(sys.argv[1]) as db: suggestions.suggest_all(db)"
    run("-c", code, str(database))
    plain = rows(database, SUGGESTIONS)
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("DELETE FROM suggestions")
    assert job("suggest", tmp_path, database=str(database)) == ["done", CONTACTS, None]
    assert len(plain) > CONTACTS
    assert rows(database, SUGGESTIONS) == plain


def test_nobody_gets_more_than_fifty(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        said = [("2025-05-01 09:00", 3, "renewal", "I will call you back about the revised figures")] * 400
        db.executemany("INSERT INTO calls (contact_id, at, minutes, topic, transcript) VALUES (7, ?, ?, ?, ?)", said)
    job("suggest", tmp_path, database=str(database))
    assert rows(database, "SELECT count(*) FROM suggestions WHERE contact_id = 7") == [(50,)]


def test_contacts_are_synced_once_however_often(database: Path, tmp_path: Path) -> None:
    lines = [
        {"id": number, "name": f"N {number}", "company": "Fir", "email": f"{number}@fir.example", "city": "Cork"}
        for number in range(CONTACTS - 99, CONTACTS + 101)
    ]
    path = tmp_path / "contacts.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):
        done = job("sync_contacts", tmp_path, path=str(path), database=str(database))
        assert done == ["done", 200, 200]
    assert rows(database, "SELECT count(*), sum(city = 'Cork' AND company = 'Fir') >= 200 FROM contacts") == [
        (CONTACTS + 100, 1)
    ]


def test_appointments_are_synced(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "calendar.csv"
    path.write_text("".join(f'{10**6 + n},{n},2025-07-01 10:00,"lunch, long"\n' for n in range(1, 301)))
    assert job("sync_calendar", tmp_path, path=str(path), database=str(database)) == ["done", 300, 300]
    assert rows(database, "SELECT count(*), min(purpose) FROM appointments WHERE id > 1000000") == [
        (300, "lunch, long")
    ]


def test_the_other_profiles(database: Path, tmp_path: Path) -> None:
    by_topic = dict(rows(database, "SELECT topic, sum(minutes) FROM calls GROUP BY topic"))
    assert job("minutes_by_topic", tmp_path, database=str(database)) == ["done", CONTACTS, by_topic]
    called = rows(database, "SELECT count(DISTINCT contact_id) FROM calls WHERE topic = 'renewal'")[0][0]
    campaign = {"database": str(database), "topic": "renewal", "name": "autumn"}
    assert job("plan_campaign", tmp_path, **campaign) == ["done", CONTACTS, called]
    job("suggest", tmp_path, database=str(database))
    folder = tmp_path / "mails"
    folder.mkdir()
    count = rows(database, "SELECT count(DISTINCT contact_id) FROM suggestions")[0][0]
    assert job("notify", tmp_path, database=str(database), folder=str(folder)) == ["done", CONTACTS, count]
    assert len(list(folder.iterdir())) == count
