"""`python -m tests.jobs.of_main FOLDER START`: a program with a job of its own and a thread.

Says how the job ended.
"""

from __future__ import annotations

import sys
import threading

from memwarden.jobs import Runner, job


@job(items=lambda: range(3))
def counts(chunk: list[int]) -> int:
    return len(chunk)


def main(folder: str, start: str) -> None:
    """One job, until it is over."""
    over = threading.Event()
    threading.Thread(target=over.wait, name="watcher", daemon=True).start()
    with Runner(folder, memory="1G", workers=1, cgroup=False, start=start) as runner:
        root = runner.submit(counts)
        runner.run(until_idle=True)
        status = runner.status(root)
    over.set()
    print(status.state, status.error)


if __name__ == "__main__":
    main(*sys.argv[1:])
