"""A Warden that tells people: which of its verdicts, findings and outcomes are told, and what is said of the moment.

Made only where there is an `[alerts]` table. The loop calls in here; nothing that it calls waits, and what is told
stands in a slot of the black box first. Delivering is `tell.sender`'s, in threads of its own. Among the workers of a
cgroup the leader tells what all see; the others start no threads until they have something of their own to tell.
"""

from __future__ import annotations

import logging
import os
import sys

from memwarden.facts import Level
from memwarden.tell.members import member_with
from memwarden.tell.rules import (
    CollectionRule,
    LevelRules,
    of_actions,
    of_change,
    of_collections,
    of_finding,
    of_job_split,
)
from memwarden.tell.sender import Teller, build_channels, complaints
from memwarden.tell.settings import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from memwarden.blackbox import BlackBox
    from memwarden.budget import Budget
    from memwarden.config import Config
    from memwarden.facts import Finding, Outcome, Trend, Verdict
    from memwarden.ports import Channel, Clock
    from memwarden.tell.rules import Draft
    from memwarden.tell.settings import AlertSettings

# In-flight operations and holders that an alert names.
MOST_NAMED = 3


def settings_of(
    table: Mapping[str, Any], where: str, environ: Mapping[str, str]
) -> tuple[AlertSettings, tuple[Channel, ...]] | None:
    """The settings in an `[alerts]` table and their channels, None where it switches alerts off. Raises ConfigError.

    What is wrong with a channel is in the log, and stops nobody: the others go on.
    """
    found = parse(table, where or "alerts")
    if found is None:
        return None
    settings, channels = build_channels(found, environ)
    for line in complaints(channels):
        logging.getLogger("memwarden.tell").error("%s", line)
    return settings, channels


def target_of(settings: AlertSettings) -> str:
    """Who the alerts are about: the service's name, else the program's."""
    return settings.service or os.path.basename(sys.argv[0] if sys.argv else "") or "python"


class Telling:
    """For one life of a process. Every method but `stop` is quick, and none raises for what goes wrong in telling."""

    def __init__(
        self,
        settings: AlertSettings,
        channels: Sequence[Channel],
        *,
        config: Config,
        clock: Clock,
        environ: Mapping[str, str],
        run_folder: str | None,
        leads: Callable[[], bool],
        in_flight: Callable[[], Sequence[str]],
        held: Callable[[], Mapping[str, int]],
        trend: Callable[[], Trend],
    ) -> None:
        self._clock, self._leads, self._in_flight, self._held = clock, leads, in_flight, held
        self._trend = trend
        self._rules = LevelRules(
            raise_for_s=settings.raise_for_s,
            clear_for_s=settings.clear_for_s,
            clear_below=config.warning - max(config.leave_gap, settings.clear_gap),
            clear_gap=settings.clear_gap,
        )
        self._collections = CollectionRule()
        self.teller = Teller(
            settings, channels, target=target_of(settings), host=os.uname().nodename, clock=clock, environ=environ,
            store_folder=config.directory, run_folder=run_folder,
        )  # fmt: skip
        self.teller.describe = self._describe
        self.budgets: list[Budget] = []
        self._verdict: Verdict | None = None
        self._unsaid = False
        self._holders: list[tuple[str, int]] = []
        self._failed = False
        self._passed_on: dict[str, Draft] = {}
        self.active = False

    # --- life -----------------------------------------------------------------------------------------------------

    def attach(self, box: BlackBox | None) -> None:
        """What is told stands there first."""
        self.teller.attach(box)
        self.active = True

    def tick(self) -> None:
        """Once a second: whoever leads has its threads ready, and says what stands and was not said."""
        if not self.active:
            return
        if not self.teller.running and self._leads():
            self.start()
        if self._unsaid and self._leads():
            self._unsaid = False
            self._say_standing()
        self.teller.tick()

    def start(self) -> None:
        """The threads. Where none can be had it is said once; slots keep what is told for whoever comes next."""
        try:
            self.teller.start()
        except RuntimeError as error:
            if not self._failed:
                self._failed = True
                logging.getLogger("memwarden.tell").warning("alerts are not delivered from here: %s", error)

    def stop(self, why: str, *, patience_s: float) -> None:
        """Say of what stands that it is not watched any more, deliver for at most so long, and end.

        What others see as well they go on with; whoever of them is the last says it.
        """
        if not self.active:
            return
        for draft in tuple(self._passed_on.values()):
            self._tell(draft.replace(what="cleared", level=Level.NORMAL, text=why))
        standing, verdict = self._rules.standing(), self._verdict
        if standing and verdict is not None:
            alone = verdict.reading.scope == "process" or self.teller.is_alone()
            for change in standing if alone or not self._unsaid else ():
                what = "cleared" if alone else "left"
                draft = of_change(change.replace(what="cleared"), verdict, {})
                self._tell(draft.replace(what=what, level=Level.NORMAL, text=why))
        if self.teller.end_standing(why) and not self.teller.running:
            self.start()
        self.active = False
        self.teller.stop(patience_s=patience_s)

    # --- what there is to tell --------------------------------------------------------------------------------------

    def weigh(self, verdict: Verdict) -> None:
        """Every tick. A change of the level is told here, before anything is done about it."""
        if not self.active:
            return
        self._verdict = verdict
        reading = verdict.reading
        changes = self._rules.weigh(
            verdict.level, reading.pressure_ratio, reading.monotonic_s, used_bytes=reading.used_bytes
        )
        if not changes:
            return
        if reading.scope != "process" and not self._leads():
            self._unsaid = True
            return
        for change in changes:
            self._tell(of_change(change, verdict, self._moment()))

    def _say_standing(self) -> None:
        if self._verdict is not None:
            for change in self._rules.standing():
                self._tell(of_change(change, self._verdict, self._moment()))

    def finding(self, finding: Finding) -> None:
        """A finding that the leader tells; it is about the process that found it."""
        if not self.active:
            return
        draft = of_finding(finding, {})
        if draft is not None:
            whose = None if finding.pid == os.getpid() else member_with(finding.pid)
            if whose is None:
                self._passed_on.pop(draft.kind, None)
            self._tell(draft, member=whose)

    def passed_on(self, finding: Finding) -> None:
        """A finding about this process that another one tells; that it is over is ours to say when we are stopped."""
        draft = of_finding(finding, {})
        if draft is not None and draft.what == "raised":
            self._passed_on[draft.kind] = draft
        elif draft is not None:
            self._passed_on.pop(draft.kind, None)

    def acted(self, outcomes: Sequence[Outcome], level: Level) -> None:
        """What was done by itself."""
        if self.active:
            draft = of_actions(outcomes, level, self._moment())
            if draft is not None:
                self._tell(draft)

    def collected(self) -> None:
        """One more full collection that was made here."""
        if self.active:
            draft = self._collections.collected(self._clock.monotonic())
            if draft is not None:
                self._tell(draft)

    def fruitless(self, words: str) -> None:
        """Collections that returned nothing."""
        if self.active:
            self._tell(of_collections("fruitless", words))

    def job_split(self, job: str, parts: int, why: str) -> None:
        """A job was cut into parts because of memory."""
        if self.active:
            self._tell(of_job_split(job, parts, why))

    def _tell(self, draft: Draft, *, member: str | None = None) -> None:
        self.teller.tell(draft, member=member)
        if not self.teller.running and self.active:
            self.start()

    # --- what is said of the moment ---------------------------------------------------------------------------------

    def _moment(self) -> dict[str, Any]:
        """What is known without asking anybody: this is the path of an emergency."""
        found: dict[str, Any] = {}
        names = self._in_flight()[:MOST_NAMED]
        if names:
            found["in_flight"] = names
        held = self._holders or sorted(self._held().items(), key=lambda pair: -pair[1])[:MOST_NAMED]
        if held:
            found["holders"] = [[name[:40], size] for name, size in held if size > 0]
        return found

    def _describe(self) -> dict[str, Any]:
        """What is asked in the teller's thread: the trend, and who holds the most of the budgets."""
        trend = self._trend()
        found: dict[str, Any] = {}
        if trend.growth_bytes_per_minute is not None:
            found["growth_bytes_per_minute"] = round(trend.growth_bytes_per_minute)
        if trend.peak_bytes is not None:
            found["peak_bytes"] = trend.peak_bytes
        held: dict[str, int] = dict(self._held())
        for budget in tuple(self.budgets):
            for name, size in budget.top(MOST_NAMED):
                held[name] = max(size, held.get(name, 0))
        self._holders = sorted(held.items(), key=lambda pair: -pair[1])[:MOST_NAMED]
        if self._holders:
            found["holders"] = [[name[:40], size] for name, size in self._holders if size > 0]
        return found
