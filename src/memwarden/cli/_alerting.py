"""`monitor --email --webhook --slack`: whoever is named hears what the monitor sees, as of a guarded process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from memwarden import config
from memwarden.errors import ConfigError
from memwarden.facts import Level

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from memwarden.facts import Finding, Verdict
    from memwarden.tell.sender import Teller

# A secret on a command line is in the list of processes: `env:NAME` names a variable that holds it.
FROM_ENVIRONMENT = "env:"
PATIENCE_S = 10.0


def add_arguments(parser: ArgumentParser) -> None:
    """The options of alerts."""
    group = parser.add_argument_group("alerts", "told at the threshold and at each level, of leaks, growth and spikes")
    group.add_argument("--email", metavar="ADDRESS", help="by mail; the server is that of [alerts], else localhost")
    group.add_argument("--webhook", metavar="URL", help="to any HTTP receiver, as JSON; env:NAME for a secret one")
    group.add_argument("--slack", metavar="URL", help="to a Slack webhook; env:NAME for a secret one")


class Alerting:
    """Made by `of`; `sample` with each look, `found` with findings, `end` at the end."""

    def __init__(self, teller: Teller, *, clear_below: float) -> None:
        from memwarden.tell.rules import LevelRules

        found = teller.settings
        self._teller = teller
        self._rules = LevelRules(
            raise_for_s=found.raise_for_s, clear_for_s=found.clear_for_s, clear_below=clear_below,
            clear_gap=found.clear_gap,
        )  # fmt: skip
        self._last: Verdict | None = None

    @classmethod
    def of(cls, args: Namespace, *, target: str, threshold: float) -> Alerting | None:
        """What the command line asks for; None where it names nobody. Raises ConfigError."""
        asked = {"email": args.email, "webhook": args.webhook, "slack": args.slack}
        if not any(asked.values()):
            return None
        from memwarden.tell.sender import Teller, build_channels, complaints
        from memwarden.tell.settings import parse

        table, _ = config.table("alerts", environ=os.environ)
        named = table.get("channels")
        channels = {name: _channel(name, value, named) for name, value in asked.items() if value is not None}
        # What is asked for here is wanted at once; a table may say otherwise.
        whole = {"raise_for": "0s", "group_wait": "1s", **table, "channels": channels, "enabled": True}
        found = parse(whole, "monitor")
        assert found is not None  # it has channels and is enabled
        settings, made = build_channels(found, os.environ)
        for line in complaints(made):
            raise ConfigError(line.replace("monitor.channels.", "--"))
        # Who is named here hears what this monitor sees, and nothing of what others have in the store.
        memory = "a monitor tells whom its command line names"
        teller = Teller(settings, made, target=target, host=os.uname().nodename, memory=memory)
        teller.start()
        return cls(teller, clear_below=threshold - settings.clear_gap)

    def sample(self, verdict: Verdict, *, above: bool) -> None:
        """One look; the threshold is a WARNING of its own."""
        from memwarden.tell.rules import of_change

        self._last = verdict
        level = max(verdict.level, Level.WARNING) if above else verdict.level
        reading = verdict.reading
        used_bytes = reading.used_bytes
        for change in self._rules.weigh(level, reading.pressure_ratio, reading.monotonic_s, used_bytes=used_bytes):
            self._teller.tell(of_change(change, verdict, {}).replace(scope="process"))

    def found(self, findings: Iterable[Finding]) -> None:
        """Leaks, growth, spikes."""
        from memwarden.tell.rules import of_finding

        for finding in findings:
            draft = of_finding(finding, {})
            if draft is not None:
                self._teller.tell(draft)

    def end(self) -> None:
        """Say of what stands that nobody watches it any more, and deliver what is there."""
        from memwarden.tell.rules import of_change

        for change in self._rules.standing() if self._last is not None else ():
            assert self._last is not None  # for the type checker
            draft = of_change(change.replace(what="cleared"), self._last, {})
            said = draft.replace(what="cleared", level=Level.NORMAL, text="the monitor ended", scope="process")
            self._teller.tell(said)
        self._teller.stop(patience_s=PATIENCE_S)
        for each in self._teller.undelivered():
            why = each.error or "the receiver did not answer in time"
            words = f"{each.pending + each.dead} alert(s) by {each.name} were not delivered: {why}"
            print(f"memwarden monitor: {words}", file=sys.stderr, flush=True)


def _channel(name: str, value: str, named: Any) -> dict[str, Any]:
    """The table of a channel that the command line names."""
    if name == "email":
        known = named.values() if isinstance(named, dict) else ()
        mail = next((each for each in known if isinstance(each, dict) and each.get("kind") == "smtp"), None)
        if mail is None:
            sender = f"memwarden@{os.uname().nodename}"
            mail = {"kind": "smtp", "host": "localhost", "port": 25, "security": "none", "from": sender}
        return {**mail, "to": value, "enabled": True, "tier": 0}
    if value.startswith(FROM_ENVIRONMENT):
        return {"kind": name, "url_env": value.removeprefix(FROM_ENVIRONMENT)}
    return {"kind": name, "url": value}
