"""Memory cgroups for a runner's children: one around all of them for the budget, one inside it for each.

Made once and used again, part after part, so that a part costs no cgroup. Where none can be made the reason is kept,
and the fence and the guard are what holds.
"""

from __future__ import annotations

import os

from memwarden.supervise.cgroup import Confinement, MemoryGroup, confine, write_control
from memwarden.supervise.deaths import CRASHED, FAILED, KILLED, OOM_KILL, DeathFacts, KillCounter, classify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Slot", "Slots", "kind_of"]


class Slot:
    """One child's cgroup; without one where `group` is None."""

    def __init__(self, group: MemoryGroup | None) -> None:
        self.group = group
        self._holds = False
        self._limit_bytes = 0
        self._counter = None if group is None else KillCounter(group.file("events"))
        self._before = 0

    @property
    def folder(self) -> str:
        """Its folder; empty where it has none, or where none could be limited for the present child."""
        return self.group.path if self.group is not None and self._holds else ""

    def begin(self, limit_bytes: int) -> bool:
        """Set the limit for the next child. False where that fails: then it goes without."""
        self._holds = False
        if self.group is None:
            return False
        if limit_bytes != self._limit_bytes:
            try:
                _set_limit(self.group, limit_bytes, lower=limit_bytes < self._limit_bytes)
            except OSError:
                return False
            self._limit_bytes = limit_bytes
        self._before = self._kills() or 0
        self._holds = True
        return True

    def _kills(self) -> int | None:
        return None if self._counter is None else self._counter.value()

    def death(self, pid: int, status: int) -> tuple[str, tuple[str, ...]]:
        """How the child in it died: the verdict of `supervise.deaths` and its evidence."""
        now = self._kills()
        facts = DeathFacts(
            pid=pid, status=status, counted=now is not None, open_kills=max(0, (now or 0) - self._before),
            counter_source=self._counter.source if self._counter is not None else "",
        )  # fmt: skip
        found = classify(facts)
        return found.verdict if found.certain else f"{found.verdict}?", found.evidence

    def empty(self) -> None:
        """Kill what its child left behind."""
        if self.group is not None and not self.group.kill_all():
            for pid in self.group.pids():
                try:
                    os.kill(pid, 9)
                except OSError:
                    continue


class Slots:
    """All of them. `why` says why there is no cgroup; empty where there is one."""

    def __init__(self, budget_bytes: int, *, wanted: bool = True) -> None:
        self._confinement = confine(budget_bytes) if wanted else Confinement(None, reasons=("switched off",))
        self.why = "; ".join(self._confinement.reasons)
        self._free: list[Slot] = []
        self._made = 0
        outer = self._confinement.cgroup
        if self._confinement.own and outer is not None and outer.version == 2:
            try:
                write_control(f"{outer.path}/cgroup.subtree_control", "+memory")
            except OSError as error:
                self.why = f"{outer.path}: {error.strerror}"

    def take(self) -> Slot:
        """A free one, or a new one."""
        if self._free:
            return self._free.pop()
        outer = self._confinement.cgroup
        if not self._confinement.own or outer is None or self.why:
            return Slot(None)
        self._made += 1
        group = MemoryGroup(f"{outer.path}/part-{self._made}", version=outer.version, own=True)
        try:
            os.mkdir(group.path)
        except OSError as error:
            self.why = f"{group.path}: {error.strerror}"
            return Slot(None)
        return Slot(group)

    def give_back(self, slot: Slot) -> None:
        """Its child is gone."""
        self._free.append(slot)

    def close(self) -> bool:
        """Remove them all; whether they are gone."""
        for slot in self._emptied():
            slot.empty()
        return self._confinement.release()

    def _emptied(self) -> Iterator[Slot]:
        while self._free:
            yield self._free.pop()


def _set_limit(group: MemoryGroup, limit_bytes: int, *, lower: bool) -> None:
    """Limit it, and with it swap; on v1 the sum of both must never be below the limit."""
    if group.version == 2:
        write_control(group.file("limit"), str(limit_bytes))
        names = [f"{group.path}/memory.swap.max"]
        values = ["0"]
    else:
        both = [group.file("limit"), f"{group.path}/memory.memsw.limit_in_bytes"]
        names = both if lower else both[::-1]
        values = [str(limit_bytes)] * 2
    for name, value in zip(names, values, strict=True):
        try:
            write_control(name, value)
        except FileNotFoundError:  # no swap accounting in this kernel
            continue
        except OSError:
            # A new group has no limit of both yet, so on v1 its sum cannot be set first.
            if name.endswith("memsw.limit_in_bytes") and not lower:
                write_control(group.file("limit"), value)
                write_control(name, value)
                return
            raise


_KINDS = {OOM_KILL: "oom_kill", f"{OOM_KILL}?": "oom_kill", KILLED: "killed", CRASHED: "crash", FAILED: "crash"}


def kind_of(verdict: str) -> str:
    """A verdict as a kind of port.DEATHS: a kill that may have been the kernel's is not taken for an operator's."""
    if verdict.startswith("oom_kill"):
        return "oom_kill"
    return _KINDS.get(verdict, "lost")
