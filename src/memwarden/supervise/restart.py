"""Whether and when to start again: a pure policy over deaths and times.

Delays double from 1 s to 60 s, each made up to a fifth longer or shorter so that a fleet does not come back
in one beat; a life longer than the longest delay starts the doubling anew. Five deaths in ten minutes end it:
a program that dies at once for the fifth time will not live the sixth time, and an endless loop hides the
fault.
"""

from __future__ import annotations

import os

from memwarden.facts import Fact
from memwarden.supervise import deaths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.supervise.settings import Settings

_JITTER = 0.2


def chance() -> float:
    """A number from 0 to 1. The module `random` would cost 1 MiB."""
    return int.from_bytes(os.urandom(4), "little") / 0xFFFFFFFF


class Decision(Fact):
    """Start again after `delay_s`, or stop where that is None; `why` in words."""

    delay_s: float | None
    why: str


class RestartPolicy:
    """Counts deaths and answers each with a Decision."""

    def __init__(self, settings: Settings, *, chance: Callable[[], float] = chance) -> None:
        self._settings = settings
        self._chance = chance
        self._deaths_s: list[float] = []
        self._in_a_row = 0
        self.restarts = 0

    def after(self, death: deaths.Death, *, lived_s: float, now_s: float) -> Decision:
        """What to do after a death at `now_s` (monotonic) of a life that lasted `lived_s`."""
        settings = self._settings
        self._deaths_s = [at for at in self._deaths_s if now_s - at < settings.crash_loop_window_s]
        self._deaths_s.append(now_s)
        if not is_wanted(settings.restart, death):
            return Decision(delay_s=None, why=f"no restart (--restart {settings.restart})")
        if settings.max_restarts is not None and self.restarts >= settings.max_restarts:
            return Decision(delay_s=None, why=f"no restart: all {settings.max_restarts} of --max-restarts are used up")
        if len(self._deaths_s) >= settings.crash_loop_deaths:
            passed = _minutes(now_s - self._deaths_s[0])
            text = f"no restart: {len(self._deaths_s)} deaths in {passed} are a crash loop"
            return Decision(delay_s=None, why=f"{text}; mend the cause or raise the limit, then start it again")
        return self._again(lived_s)

    def _again(self, lived_s: float) -> Decision:
        settings = self._settings
        if lived_s > settings.restart_delay_max_s:
            self._in_a_row = 0
        # 2**30 s is longer than any cap: the exponent stops there, or a float would overflow after years of
        # deaths.
        plain = min(settings.restart_delay_max_s, settings.restart_delay_s * 2.0 ** min(self._in_a_row, 30))
        delay_s = plain * (1 - _JITTER + 2 * _JITTER * self._chance())
        self._in_a_row += 1
        self.restarts += 1
        return Decision(delay_s=delay_s, why=f"restart {self.restarts} in {delay_s:.1f} s")


def is_wanted(policy: str, death: deaths.Death) -> bool:
    """Whether the policy asks for a restart after such a death.

    on-oom: the kernel killed the command, or killed one of its processes and the command then failed of
    itself.
    """
    if policy == "on-oom":
        hit = death.verdict == deaths.OOM_KILL_OF_DESCENDANT and death.exit_code != 0
        return death.verdict == deaths.OOM_KILL or hit
    return policy == "always" or (policy == "on-failure" and death.exit_code != 0)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
