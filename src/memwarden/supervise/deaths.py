"""How the command died: a judgement on facts (`classify`), and the readers of those facts.

A SIGKILL alone proves nothing: the kernel's OOM killer and an operator send the same one. The proof is the
oom_kill counter of the cgroup. The kernel raises it before it sends the signal (mm/oom_kill.c, "task reaper
must see this"), so when a victim is reaped the counter has already moved, and a counter that did not move
acquits the kernel.

A kill that was seen while the command lived on is settled: it hit a descendant and says nothing about the
command's own end. What remains doubtful, because others vanished in the same moment and no kernel log names
the victim, is called probable and not certain.
"""

from __future__ import annotations

import os
import signal

from memwarden.facts import Fact
from memwarden.sense import parse
from memwarden.sense.source import KeptFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OOM_KILL = "oom_kill"
OOM_KILL_OF_DESCENDANT = "oom_kill_of_descendant"
KILLED = "killed"
CRASHED = "crashed"
FAILED = "failed"
CLEAN = "clean"

# A descendant's OOM kill longer ago than this does not explain how the command itself ended.
RECENT_S = 60.0


class DeathFacts(Fact):
    """What is known when the command has been reaped.

    `status`: its exit code, or the negated signal. `open_kills`: kernel kills not yet settled on a
    descendant; `settled_kills`: those that were, the last one `settled_ago_s` before. `others_gone`: other
    processes of the tree that vanished since the last look. `named_pids`: victims of this tree that the
    kernel log names, None where it cannot be read. `shared`: the counter is that of a cgroup in which others
    live. `counted`: there is a counter at all.
    """

    pid: int
    status: int
    counted: bool = True
    shared: bool = False
    counter_source: str = ""
    open_kills: int = 0
    settled_kills: int = 0
    settled_ago_s: float | None = None
    others_gone: int = 0
    named_pids: frozenset[int] | None = None


class Death(Fact):
    """The judgement: `verdict`, whether it is `certain`, the `exit_code` to hand on, and the evidence."""

    verdict: str
    exit_code: int
    signal: int | None = None
    certain: bool = True
    kernel_kills: int = 0
    evidence: tuple[str, ...] = ()


class Kill(Fact):
    """The kernel killed `count` processes of the tree at one look; `victims` as far as they are known, or suspected.

    `certain`: that it was in this tree at all. Whose kill it was is certain where there are no more victims than kills.
    """

    count: int
    victims: tuple[int, ...]
    certain: bool = True

    @property
    def text(self) -> str:
        """One line about it, which `kill_in` understands."""
        names = ", ".join(str(pid) for pid in self.victims[:_MOST_NAMED]) or "already gone"
        more = f" and {len(self.victims) - _MOST_NAMED} more" if len(self.victims) > _MOST_NAMED else ""
        doubt = "" if self.certain else "probably "
        return f"the kernel {doubt}killed {self.count} process(es) of the tree for memory: pid {names}{more}"


# Victims that are named in one line, which a record of the black box must hold.
_MOST_NAMED = 8


def kill_in(text: str) -> Kill | None:
    """The kill that a line is about, with the victims that it names; None for anything else."""
    head, found, tail = text.partition(" process(es) of the tree for memory: pid ")
    before, verb, count = head.rpartition("killed ")
    if not (found and verb and _is_number(count)):
        return None
    names = tail.partition(" and ")[0].split(", ")
    pids = tuple(int(name) for name in names if _is_number(name))
    return Kill(count=int(count), victims=pids, certain="probably" not in before)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def exit_code_of(status: int) -> int:
    """As shells give it: the code itself, or 128 + signal."""
    return status if status >= 0 else 128 - status


def classify(facts: DeathFacts) -> Death:
    """The verdict on one death."""
    if facts.status == -signal.SIGKILL:
        return _judge_sigkill(facts)
    return _judge_own_end(facts)


def _judge_sigkill(facts: DeathFacts) -> Death:
    named = facts.named_pids
    if named is not None and facts.pid in named:
        return _death(facts, OOM_KILL, f"the kernel log names pid {facts.pid} as its victim", _count(facts))
    if not facts.counted:
        return _death(facts, KILLED, "no OOM counter can be read here: a kernel kill is not ruled out", certain=False)
    if facts.open_kills == 0:
        return _death(facts, KILLED, f"a SIGKILL, and {facts.counter_source} did not move: not the kernel")
    if named and len(named) >= facts.open_kills:
        others = ", ".join(str(pid) for pid in sorted(named))
        return _death(facts, KILLED, f"a SIGKILL, while the kernel log names pid {others} as victim and not this one")
    if facts.shared:
        return _death(
            facts,
            OOM_KILL,
            _count(facts),
            "others live in that cgroup: it may have been one of them",
            certain=False,
        )
    if facts.others_gone >= facts.open_kills:
        text = f"{facts.others_gone} other process(es) vanished in the same moment: it may have been one of them"
        return _death(facts, OOM_KILL, _count(facts), text, certain=False)
    return _death(facts, OOM_KILL, _count(facts), "the command died of SIGKILL in the same moment")


def _judge_own_end(facts: DeathFacts) -> Death:
    """It exited, or died of another signal than SIGKILL: then the kernel's victims were its descendants."""
    recent = facts.settled_kills and (facts.settled_ago_s or 0.0) <= RECENT_S
    probable = facts.open_kills and (not facts.shared or facts.others_gone)
    if facts.status >= 0 and (recent or probable):
        certain = bool(recent) or not facts.shared
        return _death(facts, OOM_KILL_OF_DESCENDANT, _count(facts), _how(facts.status), certain=certain)
    evidence = [_how(facts.status)]
    if facts.settled_kills:
        evidence.append(_count(facts))
    verdict = CRASHED if facts.status < 0 else FAILED if facts.status else CLEAN
    return _death(facts, verdict, *evidence)


def _how(status: int) -> str:
    if status >= 0:
        return f"the command itself ended with exit code {status}"
    return f"it died of {signal_name(-status)}"


def signal_name(number: int) -> str:
    """SIGSEGV for 11; "signal 64" where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _count(facts: DeathFacts) -> str:
    kills = facts.open_kills + facts.settled_kills
    ago = f", last {facts.settled_ago_s:.1f} s before the end" if facts.settled_kills and facts.settled_ago_s else ""
    return f"{facts.counter_source} rose by {kills}{ago}"


def _death(facts: DeathFacts, verdict: str, *evidence: str, certain: bool = True) -> Death:
    return Death(
        verdict=verdict,
        exit_code=exit_code_of(facts.status),
        signal=-facts.status if facts.status < 0 else None,
        certain=certain,
        kernel_kills=facts.open_kills + facts.settled_kills,
        evidence=tuple(text for text in evidence if text),
    )


# Counts the kills of the whole machine, containers included: for where no cgroup has a counter (the v2 root).
MACHINE_COUNTER = "/proc/vmstat"


class KillCounter:
    """The oom_kill counter of memory.events (v2), memory.oom_control (v1) or vmstat, kept open."""

    def __init__(self, path: str) -> None:
        self.source = "oom_kill of " + "/".join(path.split("/")[-2:])
        self._file = KeptFile(path)

    def value(self) -> int | None:
        """Kills since the cgroup was made; None: unreadable. On v1, cgroups below count for themselves."""
        try:
            return parse.keyed(self._file.read(), (b"oom_kill",)).get(b"oom_kill")
        except OSError:
            return None


class KernelLog:
    """Victims by pid, from /dev/kmsg: where it may be read, and where pids are those of the kernel."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._descriptor = -1
        try:
            if os.readlink("/proc/self/ns/pid") == "pid:[4026531836]":  # PROC_PID_INIT_INO
                self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            self.close()

    def victims(self) -> frozenset[int] | None:
        """The pids of all OOM kills logged since the last call; None where the log cannot be read."""
        if self._descriptor < 0:
            return None
        return frozenset(pid for record in self._records() if (pid := victim_in(record)) is not None)

    def _records(self) -> list[bytes]:
        """New records. EPIPE says that some were overwritten: the next read goes on behind them."""
        records = []
        while True:
            try:
                records.append(os.read(self._descriptor, 8192))
            except BrokenPipeError:
                continue
            except OSError:
                return records

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def victim_in(record: bytes) -> int | None:
    """The pid in "oom-kill:constraint=...,task=python,pid=123,uid=0" or "...: Killed process 123 (python)
    ...".

    The first is written before the signal is sent, but rate-limited; the second after it, for each
    (mm/oom_kill.c).
    """
    mark = b",pid=" if b"oom-kill:" in record else b"ut of memory: Killed process "
    _, found, rest = record.rpartition(mark)
    words = rest.replace(b",", b" ").split(None, 1)
    digits = words[0] if found and words else b""
    return int(digits) if digits.isdigit() and len(digits) < 10 else None


class KillWatch:
    """Follows the counter through one life and settles each kill on the command or on a descendant."""

    def __init__(
        self,
        counter: KillCounter,
        *,
        log: KernelLog | None,
        shared: bool,
        is_doomed: Callable[[int], bool],
    ) -> None:
        self._counter = counter
        self._log = log
        self._shared = shared
        self._is_doomed = is_doomed
        self.begin()

    def own(self, pid: int) -> None:
        """The command of this life was started."""
        self._pid = pid

    def begin(self) -> None:
        """A new life, just before its start: what was counted before belongs to earlier ones."""
        self._pid = 0
        self._seen = self._counter.value()
        self._open = self._settled = 0
        self._settled_s: float | None = None
        self._named: set[int] = set()
        self._gone = frozenset[int]()
        self._known = self._known_others = frozenset[int]()
        if self._log is not None:
            self._log.victims()

    def look(self, pids: frozenset[int], *, now_s: float) -> str:
        """One tick while the command lives. Returns words about a kill that is now settled, or nothing."""
        value = self._counter.value()
        rose = value is not None and self._seen is not None and value > self._seen
        if rose:
            assert value is not None and self._seen is not None  # noqa: PT018  for the type checker
            self._open += value - self._seen
        self._seen = value if value is not None else self._seen
        text = self._settle(pids, now_s=now_s, first_look=rose) if self._open else ""
        if not self._open and pids is not self._known:
            self._known, self._known_others = pids, pids - {self._pid}
        return text

    def _settle(self, pids: frozenset[int], *, now_s: float, first_look: bool) -> str:
        """Whose kill was it? The command's own stays open until it is reaped, which follows at once."""
        self._read_log(pids)
        if self._pid in self._named or self._is_doomed(self._pid):
            return ""
        others = (self._known_others | pids) - {self._pid}
        victims = sorted(self._named) or sorted(pid for pid in others if self._is_doomed(pid))
        if first_look and not victims:
            return ""  # the signal may not have been sent yet: the counter rises some microseconds before it
        if self._shared and not set(victims) & set(others):
            self._open = 0  # somebody else's in the cgroup that we share
            return ""
        count, self._open = self._open, 0
        self._settled += count
        self._settled_s = now_s
        certain = not self._shared or bool(self._named)
        self._named.clear()
        return Kill(count=count, victims=tuple(victims), certain=certain).text

    def last_words(self, facts: DeathFacts, death: Death) -> str:
        """Words about kills of descendants so late that no look settled them, or nothing."""
        if death.verdict == OOM_KILL or not facts.open_kills:
            return ""
        named = self._named - {self._pid}
        victims = sorted(named or self._gone)
        if self._shared and not victims:
            return ""
        certain = not self._shared or bool(named)
        return Kill(count=facts.open_kills, victims=tuple(victims), certain=certain).text

    def _read_log(self, pids: frozenset[int]) -> bool:
        """Keep the victims that are of this tree: the log is the whole machine's. Whether there is a log."""
        victims = self._log.victims() if self._log is not None else None
        self._named |= (victims or frozenset()) & (self._known_others | pids | {self._pid})
        return victims is not None

    def facts(self, status: int, pids: frozenset[int], *, now_s: float) -> DeathFacts:
        """The facts of the end, once the command has been reaped and before anything else is killed by us."""
        value = self._counter.value()
        fresh = value - self._seen if value is not None and self._seen is not None else 0
        readable = self._read_log(pids)
        gone = [pid for pid in self._known_others if pid not in pids or self._is_doomed(pid)]
        self._gone = frozenset(gone)
        return DeathFacts(
            pid=self._pid,
            status=status,
            counted=value is not None,
            shared=self._shared,
            counter_source=self._counter.source,
            open_kills=self._open + fresh,
            settled_kills=self._settled,
            settled_ago_s=None if self._settled_s is None else now_s - self._settled_s,
            others_gone=len(gone),
            named_pids=frozenset(self._named) if readable else None,
        )
