"""Row A7: look at memory once and tell people, without a loop: from code, or from cron by `memwarden alerts check`.

It has no past of its own; the store has. Called every few minutes it raises a state once, escalates it, and says when
it is over, as a running Warden does; what took less than the time between two calls nobody sees.
"""

from __future__ import annotations

import os

from memwarden.errors import ConfigError
from memwarden.facts import Fact, Level
from memwarden.units import parse_duration
from memwarden.warden import Warden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from memwarden.facts import Verdict
    from memwarden.ports import Clock, Machine
    from memwarden.tell.outbox import Told

__all__ = ["Checked", "check_and_alert"]


class Checked(Fact):
    """What was seen, and what was told of it: each with how its deliveries went."""

    verdict: Verdict
    told: tuple[Told, ...]


def check_and_alert(
    limit: str | float | None = None,
    *,
    alerts: Mapping[str, Any] | None = None,
    within: str | float = 30.0,
    machine: Machine | None = None,
    clock: Clock | None = None,
    **config: Any,
) -> Checked:
    """Read and weigh once, and tell whom the table `[alerts]` (or `alerts`) names; deliver for at most `within`.

    The other arguments are those of a Warden. It never acts on memory. A store that cannot be written keeps nobody from
    being told; then it is not known the next time. Raises ConfigError, also where nobody is to be told, and StoreError.
    """
    within_s = parse_duration(within, where="within")
    config = {**config, "relieve": False, "blackbox": False, "leak_detection": False}
    warden = Warden(limit, machine=machine, clock=clock, alerts=alerts, **config)
    if warden.alerts is None:
        raise ConfigError("nobody is to be told", where="alerts", mend="add a table [alerts.channels.NAME]")
    from memwarden.tell.rules import Change, of_change
    from memwarden.tell.sender import Teller
    from memwarden.warden.telling import target_of

    settings, channels = warden.alerts
    verdict = warden.check()
    teller = Teller(
        settings, channels, target=target_of(settings), host=os.uname().nodename, clock=warden.clock,
        store_folder=warden.config.directory,
    )  # fmt: skip
    ratio = verdict.reading.pressure_ratio
    exceeded = Level.EMERGENCY if ratio is not None and ratio >= 1.0 else Level.NORMAL
    for kind, level in (("high_usage", verdict.level), ("limit_exceeded", exceeded)):
        what = "raised" if level else "cleared"
        draft = of_change(Change(kind=kind, what=what, level=level), verdict, {})
        teller.tell(draft, member=f"check {teller.target}")
    return Checked(verdict=verdict, told=tuple(teller.once(within_s=within_s)))
