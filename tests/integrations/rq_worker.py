"""An RQ worker for the tests: `python -m tests.integrations.rq_worker URL FOLDER`; two make a site."""

from __future__ import annotations

import os
import sys

import sqlalchemy  # noqa: F401  as an app has what its jobs need: what is imported here no horse imports again
from redis import Redis

from memwarden.integrations.rq import Jobs, MemoryWorker

if __name__ == "__main__":
    url, folder = sys.argv[1:]
    connection = Redis.from_url(url)
    jobs = Jobs(connection, folder=folder, resend_s=3.0, ledger=os.environ.get("MEMWARDEN_TEST_LEDGER"))
    pressure = None if os.environ.get("MEMWARDEN_TEST_PRESSURE") else False
    MemoryWorker(["default"], connection=connection, jobs=jobs, sweep_s=1.0, pressure=pressure).work()
