"""`python -m tests.jobs.forks URL FOLDER`: forked parts that write to an engine of which their parent has used a copy.

A process of its own, since what counts is which modules are loaded before the fork: none of those about statements is.
Says as JSON how the jobs ended, and for each process that wrote in which process its connections were made.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import sqlalchemy as sa

from memwarden.jobs import Run, Runner, job

engine: sa.Engine


@job(items=lambda base: range(base, base + 20), chunk=2, sink=lambda: engine)
def writes(chunk: list[int], run: Run, base: int) -> None:
    made_in = run.connection.info["made_in"]
    rows = [{"item": item, "pid": os.getpid(), "made_in": made_in} for item in chunk]
    run.connection.execute(sa.text("INSERT INTO forked VALUES (:item, :pid, :made_in)"), rows)


def main(url: str, folder: str) -> None:
    """Three jobs, two at once."""
    global engine
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def note(_connection: Any, record: Any) -> None:
        record.info["made_in"] = os.getpid()

    with engine.begin() as connection:  # it is in the pool when the children are forked
        connection.execute(sa.text("DROP TABLE IF EXISTS forked"))
        connection.execute(sa.text("CREATE TABLE forked (item INTEGER, pid INTEGER, made_in INTEGER)"))
    assert "memwarden.jobs.statements" not in sys.modules
    with Runner(folder, workers=2, memory="1G", start="fork", cgroup=False) as runner:
        roots = [runner.submit(writes, {"base": 100 * number}) for number in range(3)]
        runner.run(until_idle=True)
        states = [runner.status(root).state for root in roots]
    with engine.connect() as connection:
        query = "SELECT pid, made_in, COUNT(DISTINCT item) FROM forked GROUP BY pid, made_in"
        found = [list(row) for row in connection.execute(sa.text(query))]
    print(json.dumps({"states": states, "parent": os.getpid(), "written": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
