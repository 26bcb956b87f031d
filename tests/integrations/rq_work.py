"""Ordinary functions for RQ's workers, which import them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time

PATIENCE_S = 5.0


def ends_a_program() -> int:
    """How a program ended that was told to."""
    with subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1) as made:
        assert made.stdout is not None
        made.stdout.readline()
        made.terminate()
        try:
            return made.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            made.kill()
            raise


def ends_a_fork() -> int | None:
    """How a forked process ended that was told to."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    made = fork.Process(target=_waits, args=(ready,))
    made.start()
    ready.wait(PATIENCE_S)
    made.terminate()
    made.join(PATIENCE_S)
    code = made.exitcode
    made.kill()
    return code


def _waits(ready: object) -> None:
    ready.set()  # type: ignore[attr-defined]  # an Event of multiprocessing's
    time.sleep(60)  # noqa: TID251  ended by a signal
