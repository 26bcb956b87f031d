"""An outbox on a clock that jumps, and signals by the handful."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from memwarden.facts import Level
from memwarden.tell.outbox import Outbox
from memwarden.tell.settings import parse
from memwarden.tell.signals import Signal, key_of
from memwarden.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from memwarden.facts import Notice
    from memwarden.tell.settings import AlertSettings

CHANNELS = {"mail": {"kind": "smtp"}, "chat": {"kind": "slack"}, "lead": {"kind": "slack", "tier": 1}}


def settings_of(**table: Any) -> AlertSettings:
    """The settings of an [alerts] table with a mail, a chat, and a chat of the first level of the escalation."""
    found = parse({"channels": CHANNELS, "group_wait": "0s", **table}, "test: alerts")
    assert found is not None
    return found


class Desk:
    """An outbox with a clock of its own; what each channel would have got, and when."""

    def __init__(self, folder: str, settings: AlertSettings) -> None:
        self.clock = FakeClock()
        self.folder, self.settings = folder, settings
        self.outbox = Outbox(settings, folder=folder, clock=self.clock, random=lambda: 0.5)
        self.got: dict[str, list[tuple[float, Notice]]] = {name: [] for name in settings.policy.channels}
        self._number = 0
        self.start = self.clock.wall()

    def signal(self, what: str, level: int = 1, **more: Any) -> Signal:
        self._number += 1
        values = {"kind": "high_usage", "target": "shop", "member": "m1", "text": "text", "title": "title", **more}
        values.setdefault("key", key_of(values["kind"], values["target"]))
        values = {"id": f"signal-{self._number}", "host": "host", "unix_s": self.clock.wall(), **values}
        return Signal(what=what, level=Level(level), **values)

    def say(self, what: str, level: int = 1, **more: Any) -> int:
        """Take a signal in, and deliver what is due; how many deliveries it made."""
        made = self.outbox.take([self.signal(what, level, **more)])
        self.deliver()
        return made

    def pass_s(self, seconds: float, *, step_s: float = 30.0) -> None:
        """Let time pass, in steps, as a teller would live through it."""
        end = self.clock.wall() + seconds
        while self.clock.wall() < end - 1e-6:
            self.clock.advance(min(step_s, end - self.clock.wall()))
            self.outbox.wake()
            self.deliver()

    def deliver(self) -> None:
        for name, use in self.settings.policy.channels.items():
            while (claim := self.outbox.claim(use)) is not None:
                self.got[name] += [(self.clock.wall() - self.start, notice) for notice in claim.notices]
                self.outbox.sent(name, [notice.delivery_id for notice in claim.notices])

    def whats(self, channel: str) -> list[str]:
        return [notice.what for _, notice in self.got[channel]]

    def times(self, channel: str) -> list[tuple[float, str]]:
        return [(round(at, 3), notice.what) for at, notice in self.got[channel]]

    def restart(self) -> None:
        """As another process would find it."""
        self.outbox.close()
        self.outbox = Outbox(self.settings, folder=self.folder, clock=self.clock, random=lambda: 0.5)


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(**table: Any) -> Desk:
        desk = Desk(str(tmp_path / f"store{len(made)}"), settings_of(**table))
        made.append(desk)
        return desk

    yield make
    for desk in made:
        desk.outbox.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()
