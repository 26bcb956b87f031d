"""From the black boxes that a dead process left to what happened, in words.

One death may have two witnesses: the box that the process wrote itself (operations in flight, actions, and how long
it was blind) and the box that its supervisor wrote from outside (the last memory it saw, how it ended and on what
evidence). Where only the process wrote, as the workers of a guarded command do, the box of that command says whom of
its tree the kernel killed. Where that says nothing either, how it ended is inferred from the OOM counter of its cgroup,
and said to be.
"""

from __future__ import annotations

import os
import time

from memwarden.blackbox import ASKED, Box, Event, InFlight, LeakState, Tick, TickReader, find_boxes, read_box
from memwarden.errors import BlackBoxError
from memwarden.facts import Fact
from memwarden.sense import parse
from memwarden.supervise.deaths import OOM_KILL, OOM_KILL_OF_DESCENDANT, Kill, kill_in
from memwarden.supervise.record import DEATH, EVIDENCE, KILL
from memwarden.units import format_bytes, format_duration, format_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from memwarden.ports import Machine

# What is told of the past: what an on-call engineer can take in at a glance.
TAIL_S = 10.0
GROWTH_S = 5.0
LAST_ACTIONS = 5
ROWS = 10

# It ended after kernel kills in its tree that are on record, and told, for themselves.
AFTER_OOM_KILL = "after_oom_kill"
# It was one of many, and went when all were to go.
WITH_COMMAND = "ended_with_command"
# How long before its death a process may have been heard of last, at least and at most.
LEAST_SLACK_S, LONGEST_LOOK_S = 2.0, 60.0
# The stages of a leak that stands.
_STANDING = ("suspected", "confirmed")

_HEADLINES = {
    "oom_kill": "was killed by the kernel for memory (OOM kill)",
    "oom_kill_of_descendant": "ended after the kernel killed a process of it for memory (OOM kill)",
    AFTER_OOM_KILL: "ended after the kernel killed a process of it for memory (OOM kill)",
    "killed": "was killed by a SIGKILL, not by the kernel for memory",
    "crashed": "crashed",
    "failed": "ended with an error",
    "clean": "ended by itself",
    "stopped": "stopped its Warden; how it ended after that nobody saw",
    WITH_COMMAND: "ended when its command did",
    "unknown": "is gone and left no goodbye: killed, crashed, or os._exit",
}


class KernelKill(Fact):
    """What the supervisor that wrote `box` saw the kernel do to the tree of its command."""

    box: Box
    unix_s: float
    kill: Kill

    @property
    def name(self) -> str:
        """The same whoever reads it."""
        return f"kill-{self.box.pid}-{int(self.box.start_unix_s)}-{int(self.unix_s * 1000)}"

    def is_around(self, box: Box) -> bool:
        """Whether the process that wrote this box was of that tree."""
        return box.kind == "inside" and 0 < box.supervisor_pid == self.box.supervisor_pid

    def is_of(self, box: Box) -> bool:
        """Whether that process was the victim: it lived until then and no longer."""
        named = box.pid in self.kill.victims and self.is_around(box)
        return named and not box.ended and _last_sign(box) <= self.unix_s


class Autopsy(Fact):
    """What is known about one death. `ended_unix_s` is the death where a supervisor saw it, else the last sign of life.

    `blind_s`: how long before its end the process itself had last looked (C code held the GIL, or it slept calmly).
    """

    pid: int
    argv: str
    verdict: str
    certain: bool
    exit_status: int | None
    start_unix_s: float
    ended_unix_s: float
    limit_bytes: int | None
    limit_source: str
    peak_bytes: int | None
    last_bytes: int | None
    last_ago_s: float | None
    growth_bytes: int | None
    growth_s: float | None
    blind_s: float | None
    longest_late_s: float
    evidence: tuple[str, ...]
    in_flight: tuple[InFlight, ...]
    actions: tuple[Event, ...]
    levels: tuple[Event, ...]
    ticks: tuple[Tick, ...]
    boxes: tuple[str, ...]
    damaged: int = 0
    leak: LeakState | None = None


def is_alive(machine: Machine, box: Box) -> bool:
    """Whether the very process of this box still lives: the same pid that started at the same time."""
    try:
        words = machine.read(f"/proc/{box.pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return False
    if not words or words[0] in (b"Z", b"X"):
        return False
    started = parse.number(words[19]) if len(words) > 19 else None
    return not box.start_ticks or started in (None, box.start_ticks)


def read_all(folder: str) -> tuple[list[Box], list[str]]:
    """Every readable box of a folder, newest first, and a line for each that is not."""
    boxes: list[Box] = []
    try:
        paths = find_boxes(folder)
    except OSError as error:
        return boxes, [f"{folder}: cannot be looked into: {error.strerror}"]
    complaints = []
    for path in paths:
        try:
            boxes.append(read_box(path))
        except BlackBoxError as error:
            complaints.append(str(error))
    return boxes, complaints


def deaths(machine: Machine, boxes: Sequence[Box], *, pid: int | None = None) -> list[Autopsy]:
    """One autopsy per dead process, the latest first; a clean end is one too."""
    dead = [box for box in boxes if (pid is None or box.pid == pid) and not is_alive(machine, box)]
    lives: dict[tuple[int, int], list[Box]] = {}
    for box in dead:
        lives.setdefault(_life(box), []).append(box)
    kills = kills_of(boxes)
    found = [examine(machine, tuple(each), kills=kills) for each in lives.values()]
    return sorted(found, key=lambda autopsy: autopsy.ended_unix_s, reverse=True)


def kills_of(boxes: Iterable[Box]) -> tuple[KernelKill, ...]:
    """The kernel kills that supervisors put on record."""
    return tuple(
        KernelKill(box=box, unix_s=event.unix_s, kill=kill)
        for box in boxes
        if box.kind == "outside"
        for event in box.events
        if event.kind == KILL and (kill := kill_in(event.text)) is not None
    )


def _kills_around(box: Box) -> tuple[KernelKill, ...]:
    """Those of the supervisor that this process lived under, whose boxes are in the same folder."""
    return kills_of(_of_its_supervisor(box))


def _of_its_supervisor(box: Box) -> list[Box]:
    """The boxes of the lives that the supervisor of this process watched."""
    found = []
    try:
        paths = find_boxes(os.path.dirname(box.path)) if box.supervisor_pid else []
    except OSError:
        paths = []
    for path in paths:
        try:
            reader = TickReader(path)
            reader.close()
            if (reader.kind, reader.supervisor_pid) == ("outside", box.supervisor_pid):
                found.append(read_box(path))
        except BlackBoxError:
            continue
    return found


def _ended_with_its_command(box: Box) -> bool:
    """Whether it was last heard of when its command was told to end, or had ended: then its supervisor ends the rest.

    Of a process that looks every 30 s the last sign may be as old.
    """
    times = [tick.unix_s for tick in box.ticks[-2:]]
    slack_s = min(LONGEST_LOOK_S, max(LEAST_SLACK_S, 2 * (times[-1] - times[0]))) if times else LEAST_SLACK_S
    heard_s = _last_sign(box) + slack_s
    for each in _of_its_supervisor(box):
        asked = [event.unix_s for event in each.events if event.kind == ASKED or (each.ended and event.kind == DEATH)]
        if asked and each.start_unix_s <= box.start_unix_s + 1.0 and heard_s >= min(asked):
            return True
    return False


def same_life(box: Box, others: Iterable[Box]) -> tuple[Box, ...]:
    """The box, and those of the others that tell of the same process: its second witness."""
    name = os.path.basename(box.path)
    return (box, *(each for each in others if _life(each) == _life(box) and os.path.basename(each.path) != name))


def _life(box: Box) -> tuple[int, int]:
    """What tells one life from another: a pid comes again, its start time does not."""
    return box.pid, box.start_ticks or int(box.start_unix_s)


def examine(machine: Machine, boxes: tuple[Box, ...], *, kills: tuple[KernelKill, ...] | None = None) -> Autopsy:
    """The autopsy of one dead process from the boxes of that one life.

    `kills` are those on record, where they are known already.
    """
    outside = next((box for box in boxes if box.kind == "outside"), None)
    inside = next((box for box in boxes if box.kind == "inside"), None)
    best = outside or inside or boxes[0]
    own = inside or best
    death = next((event for event in reversed(best.events) if event.kind == DEATH), None)
    ended_s = death.unix_s if death is not None else max(_last_sign(box) for box in boxes)
    if outside is not None and outside.ended:
        verdict, certain, evidence = _read_verdict(outside, death)
    else:
        verdict, certain, evidence = _judge(machine, inside, kills)
        if verdict == "unknown" and inside is not None and _ended_with_its_command(inside):
            verdict, evidence = WITH_COMMAND, ("its command was told to end then, or had ended",)
    ticks = best.ticks or own.ticks
    looks = (*best.ticks, *own.ticks)
    last = max(looks, key=lambda tick: tick.unix_s, default=None)  # whoever looked last
    growth = _growth(ticks)
    blind = own.ticks[-1] if inside is not None and own.ticks else None
    return Autopsy(
        pid=best.pid,
        argv=best.argv or own.argv,
        verdict=verdict,
        certain=certain,
        exit_status=best.exit_status,
        start_unix_s=best.start_unix_s,
        ended_unix_s=ended_s,
        limit_bytes=best.limit_bytes or own.limit_bytes,
        limit_source=best.limit_source or own.limit_source,
        peak_bytes=_peak(death, looks),
        last_bytes=last.used_bytes if last is not None else None,
        last_ago_s=max(0.0, ended_s - last.unix_s) if last is not None else None,
        growth_bytes=growth[0],
        growth_s=growth[1],
        blind_s=max(0.0, ended_s - blind.unix_s) if blind is not None else None,
        longest_late_s=max((tick.late_s for tick in own.ticks), default=0.0),
        evidence=evidence,
        in_flight=own.in_flight,
        actions=tuple(event for event in own.events if event.kind == "action")[-LAST_ACTIONS:],
        levels=tuple(event for event in own.events if event.kind == "level")[-LAST_ACTIONS:],
        ticks=tuple(tick for tick in ticks if tick.unix_s >= ended_s - TAIL_S),
        boxes=tuple(box.path for box in boxes),
        damaged=sum(box.damaged for box in boxes),
        leak=own.leak if own.leak is not None and own.leak.stage in _STANDING else None,
    )


def _last_sign(box: Box) -> float:
    times = [box.start_unix_s, *(tick.unix_s for tick in box.ticks[-1:]), *(event.unix_s for event in box.events[-1:])]
    return max(times)


def _peak(death: Event | None, ticks: tuple[Tick, ...]) -> int | None:
    known = [tick.used_bytes for tick in ticks if tick.used_bytes is not None]
    if death is not None and death.before_bytes is not None:
        known.append(death.before_bytes)
    return max(known, default=None)


def _growth(ticks: tuple[Tick, ...]) -> tuple[int | None, float | None]:
    """How much the last seconds took, by the box's own monotonic clock."""
    known = [tick for tick in ticks if tick.used_bytes is not None]
    if len(known) < 2:
        return None, None
    last = known[-1]
    first = next(tick for tick in known if tick.monotonic_s >= last.monotonic_s - GROWTH_S)
    if first is last:
        first = known[-2]
    return (last.used_bytes or 0) - (first.used_bytes or 0), last.monotonic_s - first.monotonic_s


def _read_verdict(outside: Box, death: Event | None) -> tuple[str, bool, tuple[str, ...]]:
    """What its supervisor said: (verdict, whether it is certain, the evidence)."""
    evidence = tuple(event.text for event in outside.events if event.kind == EVIDENCE)
    told_before = outside.verdict == OOM_KILL_OF_DESCENDANT and any(event.kind == KILL for event in outside.events)
    return AFTER_OOM_KILL if told_before else outside.verdict, death is not None and not death.text, evidence


def _judge(
    machine: Machine, inside: Box | None, kills: tuple[KernelKill, ...] | None
) -> tuple[str, bool, tuple[str, ...]]:
    """The same where no supervisor saw the end."""
    if inside is None:
        return "unknown", False, ("no supervisor saw the end",)
    if inside.ended:
        return inside.verdict, True, ("it closed its black box itself",)
    around = [each for each in (_kills_around(inside) if kills is None else kills) if each.is_around(inside)]
    own = next((each for each in around if each.is_of(inside)), None)
    if own is not None:
        kill = own.kill
        return OOM_KILL, kill.certain and len(kill.victims) <= kill.count, (f"its supervisor saw it: {kill.text}",)
    before = inside.oom_kills
    counted = _oom_kills(machine, inside.cgroup) if inside.cgroup and before is not None else None
    if counted is None or before is None or counted <= before:
        return "unknown", False, ("no supervisor saw the end",)
    text = f"oom_kill of {inside.cgroup} rose from {before} to {counted} since it was last seen"
    others = sum(each.kill.count for each in around if each.kill.count <= len(each.kill.victims))
    if others >= counted:  # all that were ever counted there
        return "unknown", False, (text, "its supervisor saw whom the kernel killed, and this was none of them")
    return OOM_KILL, False, (text, "no supervisor saw the end")


def _oom_kills(machine: Machine, folder: str) -> int | None:
    for name in ("memory.events", "memory.oom_control"):
        try:
            return parse.keyed(machine.read(f"{folder}/{name}"), (b"oom_kill",)).get(b"oom_kill")
        except OSError:
            continue
    return None


# --- in words ------------------------------------------------------------------------------------------------------

_INTERPRETERS = ("python", "pypy", "env", "sh", "bash", "nice", "ionice", "timeout")


def command_name(argv: str) -> str:
    """The program that a command line is about: the script behind an interpreter and its options."""
    words = argv.split()
    for number, word in enumerate(words):
        name = os.path.basename(word)
        if word == "-m" and number + 1 < len(words):
            return words[number + 1]
        if word == "-c":
            return "python"
        plain = name.rstrip("0123456789.")
        if word.startswith("-") or plain in _INTERPRETERS or "=" in word:
            continue
        return name
    return os.path.basename(words[0]) if words else "unknown"


def headline(autopsy: Autopsy) -> str:
    """What happened, when, in one line."""
    command = autopsy.argv if len(autopsy.argv) <= 70 else autopsy.argv[:67] + "..."
    doubt = "" if autopsy.certain or autopsy.verdict == "unknown" else "probably "
    what = _HEADLINES.get(autopsy.verdict, autopsy.verdict)
    status = f", exit code {autopsy.exit_status}" if autopsy.exit_status is not None else ""
    lived = format_duration(autopsy.ended_unix_s - autopsy.start_unix_s)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(autopsy.ended_unix_s))
    return f"{command} (pid {autopsy.pid}) {doubt}{what}{status}, at {at}, {lived} after its start"


def tell(autopsy: Autopsy) -> list[str]:
    """The whole story, one line per fact, the most telling first."""
    lines = [headline(autopsy)]
    lines += [f"  evidence   {text}" for text in autopsy.evidence]
    source = f"  ({autopsy.limit_source})" if autopsy.limit_source else ""
    lines.append(f"  limit      {format_bytes(autopsy.limit_bytes)}{source}")
    lines.append(f"  peak       {format_bytes(autopsy.peak_bytes)}{_of_limit(autopsy.peak_bytes, autopsy.limit_bytes)}")
    if autopsy.last_ago_s is not None:
        lines.append(
            f"  last seen  {format_bytes(autopsy.last_bytes)}, {format_duration(autopsy.last_ago_s)} before the end"
        )
    if autopsy.growth_bytes is not None and autopsy.growth_s:
        rate = autopsy.growth_bytes / autopsy.growth_s
        taken = f"{autopsy.growth_bytes / 2**20:+.1f} MiB in the last {format_duration(autopsy.growth_s)}"
        lines.append(f"  growth     {taken} ({format_bytes(rate)}/s)")
    if autopsy.blind_s is not None:
        late = f"; its latest tick ever came {format_duration(autopsy.longest_late_s)} late"
        lines.append(f"  blind      it had last looked itself {format_duration(autopsy.blind_s)} before the end{late}")
    lines += [_say_flight(each, autopsy.ended_unix_s) for each in autopsy.in_flight]
    lines += _say_leak(autopsy)
    lines += [f"  level      {_ago(event, autopsy)}: {event.text}" for event in autopsy.levels]
    lines += [f"  action     {_ago(event, autopsy)}: {event.text}" for event in autopsy.actions]
    lines += _table(autopsy)
    if autopsy.damaged:
        lines.append(f"  {autopsy.damaged} record(s) were being written or are damaged, and left out")
    return lines


def _of_limit(size: int | None, limit: int | None) -> str:
    return f"  ({format_ratio(size / limit)} of the limit)" if size is not None and limit else ""


def _say_flight(operation: InFlight, ended_s: float) -> str:
    lasted = format_duration(max(0.0, ended_s - operation.unix_s))
    return f"  in flight  {operation.name}, since {lasted}, begun at {format_bytes(operation.before_bytes)} resident"


def _say_leak(autopsy: Autopsy) -> list[str]:
    """The leak that stood at the end."""
    leak = autopsy.leak
    if leak is None:
        return []
    ago = format_duration(max(0.0, autopsy.ended_unix_s - leak.unix_s))
    return [f"  leak       {ago} before: {leak.text}", *(f"  grows      {text}" for text in leak.growing)]


def _ago(event: Event, autopsy: Autopsy) -> str:
    return f"{format_duration(max(0.0, autopsy.ended_unix_s - event.unix_s))} before"


def _table(autopsy: Autopsy) -> list[str]:
    """The last ten seconds in at most ten rows; the last tick is always one of them."""
    ticks = autopsy.ticks
    if not ticks:
        return []
    step = max(1, -(-len(ticks) // ROWS))
    rows = ticks[(len(ticks) - 1) % step :: step]
    lines = ["  before     in use       resident     level"]
    for tick in rows:
        ago = format_duration(max(0.0, autopsy.ended_unix_s - tick.unix_s))
        used, rss = format_bytes(tick.used_bytes), format_bytes(tick.rss_bytes)
        share = format_ratio(tick.used_bytes / tick.limit_bytes) if tick.used_bytes and tick.limit_bytes else ""
        lines.append(f"  {ago:<9}  {used:<11}  {rss:<11}  {share}")
    return lines
