"""What to do next with each contact, from what was said in calls and what stands in the calendar.

    python suggestions.py [FOLDER] [--contacts N]

This is the job as one writes it first: it loads everything, and its memory grows with the CRM: 23 MiB for 1,300
contacts of the long tail, 620 MiB for 100,000. `jobs.py` has the same as a memory-aware job.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import data

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

NOW = data.TODAY.isoformat(" ", "minutes")
LONG_AGO = (data.TODAY - timedelta(days=90)).isoformat(" ", "minutes")
QUIET = "Get in touch: nobody called for three months"
MOST = 50  # suggestions per contact: nobody reads more

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


def suggest(calls: Iterable[tuple[str, str]], appointments: Iterable[tuple[str, str]]) -> list[str]:
    """At most fifty suggestions for one contact, the most urgent first.

    `calls` are (when, what was said), the newest first, and read no further than need be; `appointments` are
    (when, what for), the next one first.
    """
    return list(islice(_all(calls, appointments), MOST))


def _all(calls: Iterable[tuple[str, str]], appointments: Iterable[tuple[str, str]]) -> Iterator[str]:
    for at, purpose in appointments:
        if at >= NOW:
            yield f"Prepare the {purpose} of {at}"
    newest = None
    for at, said in calls:
        if newest is None and at < LONG_AGO:
            yield QUIET
        newest = newest or at
        for words, advice in HEARD.items():
            if words in said:
                yield f"{advice} ({at})"
    if newest is None:
        yield QUIET


def suggest_all(db: sqlite3.Connection) -> int:
    """Write the suggestions for every contact; returns how many there are. Loads the whole database."""
    calls, appointments = defaultdict(list), defaultdict(list)
    for call in db.execute("SELECT * FROM calls ORDER BY at DESC, id DESC").fetchall():
        calls[call["contact_id"]].append(call)
    for appointment in db.execute("SELECT * FROM appointments ORDER BY at, id").fetchall():
        appointments[appointment["contact_id"]].append(appointment)
    rows = []
    for contact in db.execute("SELECT * FROM contacts").fetchall():
        said = [(call["at"], call["transcript"]) for call in calls[contact["id"]]]
        ahead = [(each["at"], each["purpose"]) for each in appointments[contact["id"]]]
        rows += [(contact["id"], position, text) for position, text in enumerate(suggest(said, ahead))]
    db.execute("DELETE FROM suggestions")
    db.executemany("INSERT INTO suggestions VALUES (?, ?, ?)", rows)
    return len(rows)


def main() -> None:
    """Write them all, and say how many."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("CRM_DIR", ".demo"))
    parser.add_argument("--contacts", type=int, default=data.CONTACTS)
    given = parser.parse_args()
    with data.connect(data.database_in(given.folder, contacts=given.contacts, long_tail=True)) as database:
        print(f"{suggest_all(database)} suggestions written")


if __name__ == "__main__":
    main()
