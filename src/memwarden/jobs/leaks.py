"""Leaks from run to run of one job in a worker that lives on (row J7): the verdict of `judge`, on runs and not on time.

Where each part has a process of its own nothing can leak from run to run, and nothing is watched. Elsewhere what is
resident after each run is one sample, and the number of runs is the axis: a quarter of a minute stands for each, so
that a growth "per minute" is one per four runs, and an idle hour between two runs is none.
"""

from __future__ import annotations

import os

from memwarden.judge.leakwatch import LeakWatch
from memwarden.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.judge.leakwatch import Told

__all__ = ["Runs"]

# The usual distance of two samples (Config.leak_interval_s), which the model was fitted on.
RUN_S = 15.0
# Less growth than that in all is no leak that anybody would look for (findings.LEAST_BYTES).
LEAST_BYTES = 8 << 20


class Runs:
    """What is resident after each run, job by job, in this process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._watches: dict[str, LeakWatch] = {}
        self._runs: dict[str, int] = {}
        self._first_bytes: dict[str, int] = {}

    def over(self, job: str, resident_bytes: int, *, limit_bytes: int) -> str:
        """One more run is over: what is to be said about it, "" for nothing."""
        if self._pid != os.getpid():  # a forked child has runs of its own
            self.__init__()  # type: ignore[misc]  # anew
        watch = self._watches.setdefault(job, LeakWatch())
        runs = self._runs[job] = self._runs.get(job, 0) + 1
        first = self._first_bytes.setdefault(job, resident_bytes)
        watch.add(runs * RUN_S, rss_bytes=float(resident_bytes), work_done=float(runs))
        if not watch.is_due():
            return ""
        _look, told = watch.look(limit_bytes=float(limit_bytes))
        if not told or resident_bytes - first < LEAST_BYTES:
            return ""
        return self._words(told[-1], runs, resident_bytes - first)

    @staticmethod
    def _words(told: Told, runs: int, grown_bytes: int) -> str:
        if told.what not in ("suspected", "confirmed"):
            return ""
        each = format_bytes(grown_bytes / runs)
        return f"a leak is {told.what}: {format_bytes(grown_bytes)} in {runs} runs, {each} a run; {told.text}"
