"""What to do next with each contact, from what was said in calls and what stands in the calendar.

    python suggestions.py [FOLDER]

This is the job as one writes it first: it loads everything, and its memory grows with the CRM. The
transcripts alone are 20 MB for 1,200 contacts; ten times the contacts are ten times the memory.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import data

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

QUIET = timedelta(days=90)
MOST = 5  # suggestions per contact: nobody reads a sixth

# What was said, and what to do about it.
HEARD = {
    "call you back": "Call back: a call was promised",
    "revised figures": "Send the revised figures",
    "split by cost centre": "Send the invoice split by cost centre",
    "renew early": "Prepare an early renewal",
    "shorter training": "Offer the short training",
    "one pallet was short": "Ask whether the missing pallet arrived",
    "new site in the north": "Make an offer for the new site",
}


def suggest(calls: Sequence[sqlite3.Row], appointments: Sequence[sqlite3.Row]) -> list[str]:
    """Suggestions for one contact, the most urgent first. Calls and appointments are in order of time."""
    now = data.TODAY.isoformat(" ", "minutes")
    found = [f"Prepare the {a['purpose']} of {a['at']}" for a in appointments if a["at"] >= now]
    if not calls or datetime.fromisoformat(calls[-1]["at"]) < data.TODAY - QUIET:
        found.append("Get in touch: nobody called for three months")
    for call in reversed(calls):
        said, at = call["transcript"], call["at"]
        found += [f"{advice} ({at})" for words, advice in HEARD.items() if words in said]
    return found[:MOST]


def suggest_all(db: sqlite3.Connection) -> int:
    """Write the suggestions for every contact; returns how many there are. Loads the whole database."""
    calls, appointments = defaultdict(list), defaultdict(list)
    for call in db.execute("SELECT * FROM calls ORDER BY at").fetchall():
        calls[call["contact_id"]].append(call)
    for appointment in db.execute("SELECT * FROM appointments ORDER BY at").fetchall():
        appointments[appointment["contact_id"]].append(appointment)
    rows = [
        (contact["id"], position, text)
        for contact in db.execute("SELECT id FROM contacts").fetchall()
        for position, text in enumerate(suggest(calls[contact["id"]], appointments[contact["id"]]))
    ]
    db.execute("DELETE FROM suggestions")
    db.executemany("INSERT INTO suggestions VALUES (?, ?, ?)", rows)
    return len(rows)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CRM_DIR", ".demo")
    with data.connect(data.database_in(folder)) as database:
        print(f"{suggest_all(database)} suggestions written")
