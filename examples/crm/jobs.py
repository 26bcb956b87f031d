"""The CRM's jobs, as memory-aware ones: each says where its items are and what to do with a few of them.

    python work.py suggest [FOLDER]

memwarden owns the loop: it cuts by bytes, stops before the limit, goes on in a fresh process, splits what grows, and
commits each chunk together with its place. `suggestions.py` has the first of them as one writes it first.
"""

from __future__ import annotations

import csv
import json
import operator
import os
import sqlite3
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

import data
from suggestions import NOW
from suggestions import suggest as suggest_for

from memwarden.jobs import job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from memwarden.jobs import Run


def contacts(database: str) -> range:
    """All ids: the smallest projection there is, of a job that looks up the rest itself. Gaps do no harm."""
    with data.connect(database) as db:
        return range(1, 1 + (db.execute("SELECT max(id) FROM contacts").fetchone()[0] or 0))


def sink(database: str) -> sqlite3.Connection:
    """Where each chunk's rows are committed together with the job's place.

    In WAL mode readers and the writer do not wait for each other; a commit waits for no disk, and outlives any kill.
    """
    db = sqlite3.connect(database, timeout=30, isolation_level="IMMEDIATE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    return db


# --- suggestions ------------------------------------------------------------------------------------------------

AHEAD = """
SELECT contact_id, at, purpose FROM appointments WHERE contact_id BETWEEN ? AND ? AND at >= ?
ORDER BY contact_id, at, id
"""
# Newest first, as they are read; the index on (contact_id, at) is walked backwards and nothing is sorted.
SAID = """
SELECT contact_id, at, transcript FROM calls WHERE contact_id BETWEEN ? AND ?
ORDER BY contact_id DESC, at DESC, id DESC
"""


@job(type="bulk", items=contacts, sink=sink)
def suggest(chunk: Sequence[int], run: Run) -> None:
    """Suggestions for some contacts, the most urgent first, at most fifty each (row B4)."""
    found = suggestions(run.connection, chunk)
    rows = [(who, position, text) for who, texts in found for position, text in enumerate(texts)]
    bounds = (chunk[0], chunk[-1])
    run.connection.execute("DELETE FROM suggestions WHERE contact_id BETWEEN ? AND ?", bounds)
    run.connection.executemany("INSERT INTO suggestions VALUES (?, ?, ?)", rows)


def suggestions(connection: sqlite3.Connection, chunk: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
    """(contact, suggestions) for these. One transcript is in memory at a time, whatever a contact has of them."""
    bounds = (chunk[0], chunk[-1])
    ahead: dict[int, list[tuple[str, str]]] = {who: [] for who in chunk}
    for who, at, purpose in connection.execute(AHEAD, (*bounds, NOW)):
        ahead[who].append((at, purpose))
    for who, calls in groupby(connection.execute(SAID, bounds), key=operator.itemgetter(0)):
        yield who, suggest_for(((at, said) for _, at, said in calls), ahead.pop(who))
    for who, appointments in ahead.items():  # nobody ever called them
        yield who, suggest_for((), appointments)


# --- syncs: files of another system, line by line ---------------------------------------------------------------


def lines_of(path: str) -> str:
    """A file is taken line by line; its path is its source."""
    return path


CONTACT = """
INSERT INTO contacts (id, name, company, email, city) VALUES (:id, :name, :company, :email, :city)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, company = excluded.company, email = excluded.email,
    city = excluded.city
"""
APPOINTMENT = """
INSERT INTO appointments (id, contact_id, at, purpose) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET contact_id = excluded.contact_id, at = excluded.at, purpose = excluded.purpose
"""


@job(type="bulk", items=lines_of, sink=sink, reduce=operator.add)
def sync_contacts(chunk: Sequence[bytes], run: Run) -> int:
    """Contacts from NDJSON, one object a line; how many were new or changed."""
    rows = [json.loads(line) for line in chunk]
    return run.connection.executemany(CONTACT, rows).rowcount


@job(type="bulk", items=lines_of, sink=sink, reduce=operator.add)
def sync_calendar(chunk: Sequence[bytes], run: Run) -> int:
    """Appointments from CSV lines without a heading: id, contact, when, what for."""
    rows = [tuple(row) for row in csv.reader(line.decode() for line in chunk)]
    return run.connection.executemany(APPOINTMENT, rows).rowcount


# --- the other profiles of row J2 -------------------------------------------------------------------------------


@job(type="campaign", items=contacts, sink=sink, reduce=operator.add)
def plan_campaign(chunk: Sequence[int], run: Run, topic: str, name: str) -> int:
    """Choose for a campaign whoever called about a topic; how many they are."""
    query = """INSERT OR IGNORE INTO campaigns SELECT DISTINCT ?, contact_id FROM calls
               WHERE contact_id BETWEEN ? AND ? AND topic = ?"""
    return run.connection.execute(query, (name, chunk[0], chunk[-1], topic)).rowcount


@job(type="notification", items=contacts, reduce=operator.add)
def notify(chunk: Sequence[int], database: str, folder: str) -> int:
    """One mail a contact with suggestions, into a drop folder; the name of the file keeps it from being sent twice."""
    query = """SELECT c.id, c.email, s.text FROM contacts c JOIN suggestions s ON s.contact_id = c.id
               WHERE c.id BETWEEN ? AND ? AND s.position = 0"""
    with data.connect(database) as connection:
        found = connection.execute(query, (chunk[0], chunk[-1])).fetchall()
    for who, email, text in found:
        part = os.path.join(folder, f".{who}.part")
        with open(part, "w", encoding="utf-8") as file:
            file.write(f"To: {email}\nSubject: To do\n\n{text}\n")
        os.replace(part, os.path.join(folder, f"{who}.eml"))
    return len(found)


@job(type="analysis", items=contacts, reduce=lambda so_far, more: dict(Counter(so_far) + Counter(more)))
def minutes_by_topic(chunk: Sequence[int], database: str) -> dict[str, int]:
    """Minutes on the phone for each topic."""
    query = "SELECT topic, sum(minutes) AS minutes FROM calls WHERE contact_id BETWEEN ? AND ? GROUP BY topic"
    with data.connect(database) as connection:
        return {row["topic"]: row["minutes"] for row in connection.execute(query, (chunk[0], chunk[-1]))}
