"""A process of its own tells people, for the supervisor must stay small and the dead cannot.

It is `memwarden alerts deliver`: it takes what the dead left in their black boxes, tells of kernel kills, delivers what
is waiting, and ends. It is started when the kernel killed a process of the tree, and after a death of the command.
Whatever becomes of it, nothing is lost: it is all in the store and in the boxes.
"""

from __future__ import annotations

import os
import signal
import sys

from memwarden.supervise import signals
from memwarden.supervise.deaths import OOM_KILL, OOM_KILL_OF_DESCENDANT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memwarden.blackbox import Box
    from memwarden.supervise.autopsy import Autopsy, KernelKill
    from memwarden.tell.rules import Draft
    from memwarden.tell.sender import Teller

# How long it may deliver; how long the next life, or our own end, waits for it; and how long where our end was asked
# for: the least grace that whoever stops containers gives, 10 s, less what the command may have taken of it.
WITHIN_S = 20
PATIENCE_S, HASTE_S = 25.0, 5.0
_STEP_S = 0.1
# While the command lives it is started at most so often: it takes a core for half a second, and the engine tells no
# channel twice within its throttle anyway.
REST_S = 5.0
# One that was killed is started again so often: it offers itself to the kernel before anything of the command.
_TRIES = 3
_FIRST_VICTIM = b"1000"  # OOM_SCORE_ADJ_MAX (include/uapi/linux/oom.h)
# A death that is older is no news.
DEATH_NEWS_S = 86_400.0


class Helper:
    """At most one such process at a time. What is asked for while it runs, or soon after, the next one tells."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._pid: int | None = None
        self._asked = False
        self._tries = 0
        self._rest_until_s = float("-inf")

    def pid(self) -> int | None:
        """Of the one that runs."""
        return self._pid

    def ask(self, *, at_once: bool = False) -> None:
        """There is something on record to be told; `at_once` though another one has just ended."""
        self._asked, self._tries = True, 0
        if at_once:
            self._rest_until_s = self._now_s()
        self.step()

    def step(self) -> None:
        """Start it where it was asked for and none runs."""
        if self._asked and self._pid is None and self._now_s() >= self._rest_until_s:
            self._start()

    def _start(self) -> None:
        self._asked = False
        self._tries += 1
        self._rest_until_s = self._now_s() + REST_S
        words = [sys.executable, "-m", "memwarden", "alerts", "deliver", "--within", f"{WITHIN_S}s"]
        nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
        try:
            # Its own signals are not blocked, as ours are.
            self._pid = os.posix_spawn(
                sys.executable, words, dict(os.environ), file_actions=[nowhere], setsigmask=[]
            )  # fmt: skip
            with open(f"/proc/{self._pid}/oom_score_adj", "wb", buffering=0) as file:
                file.write(_FIRST_VICTIM)
        except OSError:  # it cannot be started, or has the score that it has
            return

    def reaped(self, pid: int, status: int) -> None:
        """A child of ours changed its state."""
        if pid == self._pid and not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            self._pid = None
            self._asked |= os.WIFSIGNALED(status) and self._tries < _TRIES

    def end(self, *, in_haste: bool) -> bool:
        """Have what was asked for told, and end it after a while; false where somebody asked for our end meanwhile."""
        until_s = self._now_s() + (HASTE_S if in_haste else PATIENCE_S)
        while self._pid is not None or self._asked:
            if self._pid is None:
                self._start()
            if self._pid is not None and not self._wait_until(until_s):
                return False
        return True

    def _wait_until(self, until_s: float) -> bool:
        """Wait until the one that runs has ended, or end it; false where somebody asks for our end meanwhile."""
        while self._pid is not None:
            late = self._now_s() >= until_s
            if late:
                os.kill(self._pid, signal.SIGKILL)
                self._asked, self._tries = False, _TRIES
            try:
                self.reaped(*os.waitpid(self._pid, 0 if late else os.WNOHANG))
            except ChildProcessError:  # buried by somebody else here
                self._pid = None
            if self._pid is None:
                break
            info = signal.sigtimedwait({*signals.TAKEN}, _STEP_S)
            if info is not None and info.si_signo in (signal.SIGTERM, *signals.FROM_KEYBOARD):
                return False
        return True


def tell_of_deaths(teller: Teller, run_folder: str, *, now_unix_s: float) -> None:
    """Have the kernel kills of late told, each once, whoever finds it and how often; the newest last."""
    # Not at the top: the supervisor, which only starts a process, must not carry this.
    from memwarden.sense.machine import Machine
    from memwarden.supervise import autopsy

    machine = Machine()
    boxes, _ = autopsy.read_all(run_folder)
    kills = autopsy.kills_of(boxes)
    found = {_name_of(each): (each.ended_unix_s, each.argv, _of_death(each)) for each in autopsy.deaths(machine, boxes)}
    for each in kills:
        # Told as the deaths that they are, even of those who are just dying; and for itself what had no box of its own.
        victims = [autopsy.examine(machine, autopsy.same_life(box, boxes), kills=(each,)) for box in _hit(each, boxes)]
        found |= {_name_of(one): (one.ended_unix_s, one.argv, _of_death(one)) for one in victims}
        if len(victims) < each.kill.count:
            found[each.name] = each.unix_s, each.box.argv, _of_kill(each)
    for name, (unix_s, argv, draft) in sorted(found.items(), key=lambda item: item[1][0]):
        if draft is not None and now_unix_s - unix_s <= DEATH_NEWS_S:
            about = teller.settings.service or autopsy.command_name(argv)  # as the service calls it
            teller.tell(draft, target=about, name=name, member="autopsy")


def _hit(kill: KernelKill, boxes: Sequence[Box]) -> list[Box]:
    """The boxes of its victims; of a pid that came again the last one before it."""
    found: dict[int, Box] = {}
    for box in boxes:
        known = found.get(box.pid)
        if kill.is_of(box) and (known is None or known.start_unix_s < box.start_unix_s):
            found[box.pid] = box
    return list(found.values())


def _name_of(death: Autopsy) -> str:
    """As the service calls it."""
    return f"death-{death.pid}-{int(death.start_unix_s)}"


def _of_death(death: Autopsy) -> Draft | None:
    """None where it was not the kernel, or was told when it happened."""
    from memwarden.tell.rules import of_death

    if death.verdict not in (OOM_KILL, OOM_KILL_OF_DESCENDANT):
        return None
    return of_death(
        command=death.argv[:80], pid=death.pid, certain=death.certain, peak_bytes=death.peak_bytes,
        limit_bytes=death.limit_bytes, limit_source=death.limit_source, evidence=death.evidence,
        in_flight=[each.name for each in death.in_flight], descendant=death.verdict == OOM_KILL_OF_DESCENDANT,
    )  # fmt: skip


def _of_kill(each: KernelKill) -> Draft:
    """Of processes of which nothing else is known."""
    from memwarden.tell.rules import of_death
    from memwarden.units import format_bytes

    box, kill = each.box, each.kill
    peak = max((tick.used_bytes or 0 for tick in box.ticks), default=0) or None
    draft = of_death(
        command=box.argv[:80], pid=kill.victims[0] if len(kill.victims) == 1 else box.pid, certain=kill.certain,
        peak_bytes=peak, limit_bytes=box.limit_bytes, limit_source=box.limit_source, evidence=(kill.text,),
        descendant=True,
    )  # fmt: skip
    limit = f"; limit {format_bytes(box.limit_bytes)}" if box.limit_bytes is not None else ""
    return draft.replace(text=f"{box.argv[:80]} (pid {box.pid}): {kill.text}{limit}")
