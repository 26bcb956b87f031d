"""Runs one of the CRM's jobs on the engine that memwarden brings: no server, a process for each part.

python work.py suggest [FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import data

import jobs
from memwarden.jobs import Runner
from memwarden.units import format_bytes


def main() -> int:
    """Submit, run, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job", choices=["suggest", "minutes_by_topic"])
    parser.add_argument("folder", nargs="?", default=os.environ.get("CRM_DIR", ".demo"))
    parser.add_argument("--contacts", type=int, default=data.CONTACTS)
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    database = data.database_in(given.folder, contacts=given.contacts, long_tail=True)
    with Runner(str(Path(given.folder) / "memwarden"), workers=given.workers, modules=["jobs"]) as runner:
        root = runner.submit(getattr(jobs, given.job), {"database": str(database)})
        runner.run(until_idle=True)
        status = runner.status(root)
        print(f"{status.state}: {status.items} contacts, peak {format_bytes(status.peak_bytes)}, {status.endings}")
        print(runner.result(root))
    return 0 if status.state == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
