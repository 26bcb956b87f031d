"""A process among the workers of its cgroup: who speaks for all, who acts first, whose turn it is to clean up."""

from __future__ import annotations

import os

from memwarden.facts import Level

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from memwarden.facts import Finding, Verdict
    from memwarden.leader import Leader
    from memwarden.ports import Machine

# How long a worker that does not lead leaves the first cleanup to the leader, at least, and how much more by its own
# share of it: a cleanup takes 10 to 500 ms, and what the leader frees may be enough. After the longest, in an
# emergency, none waits for its turn either.
FOLLOW_S = {Level.CRITICAL: (0.5, 4.5), Level.EMERGENCY: (0.05, 0.95)}
# A follower tries so often whether the leader is gone: opening and locking a file costs 5 us.
LEAD_S = 1.0


class Crew:
    """Made for each life of a process; until `stand` gives it a folder it is alone, and leads. `lock` guards it."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._leader: Leader | None = None
        self._said_alone = False
        self.due_s = float("-inf")

    def stand(self, folder: str, cgroup: str | None, machine: Machine) -> None:
        """Stand for leader in a private run folder, among the processes of this cgroup."""
        from memwarden.leader import Leader, name_of
        from memwarden.mounts import NETWORK, file_system

        self.resign()
        try:
            kind = file_system(machine.read("/proc/self/mountinfo"), os.path.realpath(folder))
        except OSError:
            kind = ""
        name = name_of(machine.path(cgroup) if cgroup else None)
        with self._lock:
            self._leader = Leader(folder, name, alone=f"{folder} is on {kind}" if kind in NETWORK else "")

    def resign(self) -> None:
        """Let the next one lead."""
        with self._lock:
            leader, self._leader = self._leader, None
            if leader is not None:
                leader.resign()

    def disown(self, lock: threading.RLock) -> None:
        """In a forked child: close what was inherited. The old lock may be held by a thread that did not come along."""
        self._lock = lock
        self.resign()

    def leads(self) -> bool:
        """Whether this process speaks and acts first; it does where it is alone, or where nobody does."""
        with self._lock:
            return self._leader is None or self._leader.leads()

    def why_alone(self) -> str:
        """Why there is no leader here and each speaks for itself; told once, "" from then on."""
        leader = self._leader
        if leader is None or not leader.alone or self._said_alone:
            return ""
        self._said_alone = True
        return leader.alone

    def pass_on(self, finding: Finding) -> bool:
        """Have the leader tell it; false where that is this process."""
        with self._lock:
            if self._leader is None or self._leader.leads():
                return False
            from memwarden.warden.notices import to_line

            self._leader.pass_on(to_line(finding))
            return True

    def news(self, now_s: float, unix_s: float) -> Sequence[Finding]:
        """What others passed on to this process, if it leads, and lead where nobody does; once a second."""
        leader = self._leader
        if leader is None or now_s < self.due_s:
            return ()
        self.due_s = now_s + LEAD_S
        with self._lock:
            if not leader.leads():
                leader.flush()
                return ()
            lines = leader.news() if not leader.alone else ()
        if not lines:
            return ()
        from memwarden.warden.notices import REST_S, from_line

        found = (from_line(line) for line in lines)
        return [each for each in found if each is not None and abs(unix_s - each.unix_s) < REST_S]

    def may_act(self, verdict: Verdict) -> bool:
        """Whether to clean up by itself now: the leader at once, the others when it has had its chance.

        Where true, the turn is taken: `end_turn`. A limit of this process's own is nobody else's business.
        """
        leader = self._leader
        if leader is None or verdict.reading.scope == "process":
            return True
        lasted_s = verdict.reading.monotonic_s - verdict.since_s
        least_s, more_s = FOLLOW_S[verdict.level]
        if not self.leads() and lasted_s < least_s + more_s * leader.seed:
            return False
        return self.take_turn() or (verdict.level is Level.EMERGENCY and lasted_s >= least_s + more_s)

    def take_turn(self) -> bool:
        """Whether it may clean up now, for no other worker does."""
        with self._lock:
            return self._leader is None or self._leader.take_turn()

    def end_turn(self) -> None:
        """The next one may."""
        with self._lock:
            if self._leader is not None:
                self._leader.end_turn()
