"""The CRM's database: its schema, and a generator that makes the same data for the same seed.

The database is made at first start. It grows under another name and gets its own by one rename, so that a
start that was killed half way leaves nothing behind that a later start could mistake for the whole.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTACTS = 1200  # about 12,000 calls and 20 MB of transcripts, made in about a second
SEED = 7
VERSION = 2  # of the schema and of what the generator writes: part of the file's name

SCHEMA = """
CREATE TABLE contacts (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, company TEXT NOT NULL, email TEXT NOT NULL, city TEXT NOT NULL
);
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts, at TEXT NOT NULL,
    minutes INTEGER NOT NULL, topic TEXT NOT NULL, transcript TEXT NOT NULL
);
CREATE TABLE appointments (
    id INTEGER PRIMARY KEY, contact_id INTEGER NOT NULL REFERENCES contacts, at TEXT NOT NULL,
    purpose TEXT NOT NULL
);
CREATE TABLE suggestions (
    contact_id INTEGER NOT NULL REFERENCES contacts, position INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (contact_id, position)
);
CREATE TABLE campaigns (
    name TEXT NOT NULL, contact_id INTEGER NOT NULL REFERENCES contacts, PRIMARY KEY (name, contact_id)
);
"""
INDEXES = """
CREATE INDEX calls_of_contact ON calls (contact_id, at);
CREATE INDEX calls_by_time ON calls (at);
CREATE INDEX appointments_of_contact ON appointments (contact_id, at);
CREATE INDEX appointments_by_time ON appointments (at);
"""

TODAY = datetime(2025, 6, 2, 9, 0)  # noqa: DTZ001  the CRM's own calendar: the data must not depend on the day
TRANSCRIPT_BYTES = (200, 16_384)
# The exponent of a Pareto law: most calls are short, a few fill the column (mean 1.6 KB, median 0.5 KB).
TAIL = 0.8

# The other shape, for jobs that go over many contacts. Pareto laws again: calls of a contact (mean 9, median 4.8; one
# in ten thousand has over a thousand) and the length of what is kept of a call (mean 110 bytes).
TAIL_CALLS, TAIL_CALLS_EXPONENT = (3, 5000), 1.5
TAIL_TRANSCRIPT_BYTES, TAIL_TRANSCRIPT = (20, 4096), 1.3
DRAWN = 8192

FIRST = ("Ada", "Björn", "Chloé", "Dana", "Emre", "Farah", "Goran", "Hana", "Iris", "Jonas", "Olga", "Zoë")
LAST = ("Abel", "Brandt", "Costa", "Dvořák", "Ekström", "Fischer", "Horváth", "Ito", "Jansen", "Okoye")
COMPANIES = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Juniper", "Larch", "Oak")
KINDS = ("Foods", "Freight", "Optics", "Paper", "Tools", "Travel", "Energy", "Textiles")
CITIES = (
    "Aarhus",
    "Bilbao",
    "Cork",
    "Dresden",
    "Espoo",
    "Faro",
    "Ghent",
    "Haarlem",
    "Izmir",
    "Jena",
    "Kraków",
)
TOPICS = ("renewal", "invoice", "delivery", "complaint", "new order", "training", "upgrade")
PURPOSES = ("contract review", "site visit", "product demonstration", "quarterly call", "handover")
LINES = (
    "Thank you for taking the time, I hope this is a good moment.",
    "We looked at the offer again and the price per seat is still the open question.",
    "The last delivery came two days late and one pallet was short.",
    "Could you send the revised figures before the end of the week?",
    "Our finance team needs the invoice split by cost centre.",
    "The pilot group likes it, but they ask for a shorter training.",
    "I will talk to my manager and call you back on Thursday.",
    "We are happy with the support, the answer came within the hour.",
    "Let us put a date in the calendar so that it does not slip.",
    "There is a new site in the north that will need the same setup.",
    "The contract ends in the autumn and we would like to renew early.",
    "Nobody told us that the old connector would be switched off.",
    "Is there a way to export everything as one file?",
    "Please note that the contact for the warehouse has changed.",
)


def database_in(folder: str | Path, *, contacts: int = CONTACTS, seed: int = SEED, long_tail: bool = False) -> Path:
    """The database for this size and seed, made if it is not there yet; a start beside us waits for us.

    With `long_tail` it is wide rather than deep: about ten rows and 1 KB of text for a contact on average, most have
    four and a few have thousands. A million contacts take about 2 GB and a minute.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = "-long-tail" if long_tail else ""
    path = folder / f"crm-v{VERSION}-{contacts}-{seed}{kind}.db"
    with _alone(folder / "crm.lock"):
        if not path.exists():
            _make(path, contacts, seed, _fill_long_tail if long_tail else _fill)
    return path


@contextmanager
def connect(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A connection whose rows can be read by name; it commits on the way out and is closed then."""
    with closing(sqlite3.connect(path, timeout=10)) as db, db:
        db.row_factory = sqlite3.Row
        yield db


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock that the kernel gives back when its holder is killed."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(path: Path, contacts: int, seed: int, fill: Callable[[sqlite3.Connection, int, random.Random], None]) -> None:
    part = path.with_suffix(".part")  # left over from a killed start if it is there: we hold the lock
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as db:
        db.execute("PRAGMA journal_mode = OFF")  # a half-made file is thrown away, not rolled back
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(SCHEMA)
        fill(db, contacts, random.Random(seed))
        db.commit()
        db.executescript(INDEXES)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _fill(db: sqlite3.Connection, contacts: int, rng: random.Random) -> None:
    for contact_id in range(1, contacts + 1):
        db.execute("INSERT INTO contacts VALUES (?, ?, ?, ?, ?)", (contact_id, *_contact(rng)))
        db.executemany(
            "INSERT INTO calls (contact_id, at, minutes, topic, transcript) VALUES (?, ?, ?, ?, ?)",
            [(contact_id, *_call(rng)) for _ in range(rng.randint(2, 18))],
        )
        db.executemany(
            "INSERT INTO appointments (contact_id, at, purpose) VALUES (?, ?, ?)",
            [(contact_id, _at(rng, -60, 30), rng.choice(PURPOSES)) for _ in range(rng.randint(0, 3))],
        )


def _fill_long_tail(db: sqlite3.Connection, contacts: int, rng: random.Random) -> None:
    """Rows drawn from a few thousand ready ones: ten million are too many to be written one by one."""
    calls = [_call(rng, TAIL_TRANSCRIPT_BYTES, TAIL_TRANSCRIPT) for _ in range(DRAWN)]
    appointments = [(_at(rng, -60, 30), rng.choice(PURPOSES)) for _ in range(DRAWN)]
    draw = rng.random
    for contact_id in range(1, contacts + 1):
        db.execute("INSERT INTO contacts VALUES (?, ?, ?, ?, ?)", (contact_id, *_contact(rng)))
        number = min(TAIL_CALLS[1], int(TAIL_CALLS[0] * rng.paretovariate(TAIL_CALLS_EXPONENT)))
        db.executemany(
            "INSERT INTO calls (contact_id, at, minutes, topic, transcript) VALUES (?, ?, ?, ?, ?)",
            ((contact_id, *calls[int(draw() * DRAWN)]) for _ in range(number)),
        )
        db.executemany(
            "INSERT INTO appointments (contact_id, at, purpose) VALUES (?, ?, ?)",
            ((contact_id, *appointments[int(draw() * DRAWN)]) for _ in range(int(draw() * 3))),
        )


def _contact(rng: random.Random) -> tuple[str, str, str, str]:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    company = f"{rng.choice(COMPANIES)} {rng.choice(KINDS)}"
    email = f"{first}.{last}@{company.replace(' ', '-')}.example".lower()
    return f"{first} {last}", company, email, rng.choice(CITIES)


def _call(
    rng: random.Random, length: tuple[int, int] = TRANSCRIPT_BYTES, tail: float = TAIL
) -> tuple[str, int, str, str]:
    transcript = _transcript(rng, length, tail)
    return _at(rng, -365, -1), 1 + len(transcript) // 400, rng.choice(TOPICS), transcript


def _at(rng: random.Random, first_day: int, last_day: int) -> str:
    """A quarter of an hour in office hours, so many days from today."""
    day = TODAY.replace(hour=8) + timedelta(days=rng.randint(first_day, last_day))
    return (day + timedelta(minutes=15 * rng.randrange(40))).isoformat(" ", "minutes")


def _transcript(rng: random.Random, length: tuple[int, int], tail: float) -> str:
    shortest, longest = length
    wanted = min(longest, int(shortest * rng.paretovariate(tail)))
    lines: list[str] = []
    size = 0
    while size < wanted:
        lines.append(f"{'Caller' if len(lines) % 2 else 'Agent'}: {rng.choice(LINES)}")
        size += len(lines[-1]) + 1
    return "\n".join(lines)[:longest]
