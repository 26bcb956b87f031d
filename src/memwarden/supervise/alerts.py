"""After a death: a process of its own tells people, for the supervisor must stay small and the dead cannot.

It is `memwarden alerts deliver`: it takes what the dead left in their black boxes, tells of kernel kills, delivers what
is waiting, and ends. Whatever becomes of it, nothing is lost: it is all in the store and in the boxes.
"""

from __future__ import annotations

import os
import signal
import sys

from memwarden.supervise import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.tell.sender import Teller

# How long it may deliver, and how long the next life, or our own end, waits for it.
WITHIN_S = 20
PATIENCE_S = 25.0
_STEP_S = 0.1
# A death that is older is no news.
DEATH_NEWS_S = 86_400.0


def start() -> int | None:
    """Start it; its pid, None where it cannot be started."""
    words = [sys.executable, "-m", "memwarden", "alerts", "deliver", "--within", f"{WITHIN_S}s"]
    nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    try:
        # Its own signals are not blocked, as ours are.
        return os.posix_spawn(sys.executable, words, dict(os.environ), file_actions=[nowhere], setsigmask=[])
    except OSError:
        return None


def wait_for(pid: int, now_s: Callable[[], float]) -> bool:
    """Wait until it has ended, or end it; false where somebody asked for our end meanwhile, and it was left alone."""
    until_s = now_s() + PATIENCE_S
    while now_s() < until_s:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:  # buried by somebody else here
            return True
        info = signal.sigtimedwait({*signals.TAKEN}, _STEP_S)
        if info is not None and info.si_signo in (signal.SIGTERM, *signals.FROM_KEYBOARD):
            return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def tell_of_deaths(teller: Teller, run_folder: str, *, now_unix_s: float) -> None:
    """Have the kernel kills of late told, each once, whoever finds it and how often."""
    # Not at the top: the supervisor, which only starts a process, must not carry this.
    from memwarden.sense.machine import Machine
    from memwarden.supervise.autopsy import command_name, deaths, read_all
    from memwarden.tell.rules import of_death

    boxes, _ = read_all(run_folder)
    for death in deaths(Machine(), boxes):
        kernel = death.verdict in {"oom_kill", "oom_kill_of_descendant"}
        if not kernel or now_unix_s - death.ended_unix_s > DEATH_NEWS_S:
            continue
        draft = of_death(
            command=death.argv[:80], pid=death.pid, certain=death.certain, peak_bytes=death.peak_bytes,
            limit_bytes=death.limit_bytes, limit_source=death.limit_source, evidence=death.evidence,
            in_flight=[each.name for each in death.in_flight], descendant=death.verdict.endswith("descendant"),
        )  # fmt: skip
        about = teller.settings.service or command_name(death.argv)  # as the service calls it
        teller.tell(draft, target=about, name=f"death-{death.pid}-{int(death.start_unix_s)}", member="autopsy")
