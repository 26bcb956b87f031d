"""The checks. Each makes its own throw-away process and answers with a Finding; one that claims a rescue has a control.

A line that a check must hold stands beside it with where it comes from.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from memwarden.cli._selftest.bench import Bench, ChildError, Finding, found, kill, not_here
from memwarden.facts import Level
from memwarden.judge import Lines
from memwarden.supervise import deaths
from memwarden.units import MIB, format_bytes, format_duration, format_ratio

if TYPE_CHECKING:
    from subprocess import CompletedProcess

# A bare child has 12-16 MiB in use and 8 MiB of data.
LIMIT = 96 * MIB
DATA_LIMIT = 192 * MIB
KILL_LIMIT = 48 * MIB
# Rows M1 and M2: what is taken shows in both readings, to a twentieth.
TRUTH_RATIO = 0.05
# At ten whole readings a second this is half a percent of one core.
READING_S = 500e-6
GLANCE_S = 50e-6
# What the first allocation of a step may add above the line: one step of the child, 2 MiB, and one of the kernel's.
LATE_BYTES = 4 * MIB
EARLY_RATIO = 0.005
# Measured: 90-100 % of large dropped blocks, 88-96 % of blocks of 4-64 KB (issue lines: most, and 90 %).
COLLECTED_RATIO = 0.9
TRIMMED_RATIO = 0.8


def limit(bench: Bench) -> Finding:
    """A cgroup's limit and a resource limit, made for it, found and named; without them the child sees others."""
    control = bench.ask("limit")
    said, good, values = [], True, {"control": control}
    with bench.cgroup(LIMIT) as (group, why):
        if group is None:
            said.append(f"no cgroup could be made ({why})")
        else:
            seen = bench.ask("limit", None if bench.broken else group.join)
            good = seen["bytes"] == min(LIMIT, control["bytes"] or LIMIT) and _is_other(seen, control)
            said.append(_limit_words(seen))
            values["cgroup"] = seen
    seen = bench.ask("limit", None if bench.broken else _limit_data)
    good = good and seen["bytes"] == min(DATA_LIMIT, control["bytes"] or DATA_LIMIT) and _is_other(seen, control)
    values["rlimit"] = seen
    return found(good, "; ".join([*said, _limit_words(seen), f"control {_limit_words(control)}"]), **values)


def _is_other(seen: dict[str, Any], control: dict[str, Any]) -> bool:
    return bool(seen["bytes"] != control["bytes"] and seen["source"] != control["source"])


def _limit_words(seen: dict[str, Any]) -> str:
    """Who said so, without the folders: "96 MiB by memory.max"."""
    source = seen["source"].partition(" in /")[0]
    return f"{format_bytes(seen['bytes'])} by {source.rpartition('/')[2]}"


def _limit_data() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    size = DATA_LIMIT if hard == resource.RLIM_INFINITY else min(DATA_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


def reading(bench: Bench) -> Finding:
    """N MiB are taken: resident memory and the cgroup's usage rise by N."""
    size = (32 if bench.quick else 128) * MIB
    with bench.cgroup(size + LIMIT) as (group, why):
        seen = bench.ask("reading", group.join if group is not None else None, size=size, broken=bench.broken)
    rises = [None if a is None or b is None else b - a for a, b in zip(seen["before"], seen["after"], strict=True)]
    words = [f"{format_bytes(size)} taken: resident {_off(rises[0], size)}"]
    words.append(f"cgroup {_off(rises[1], size)}" if group is not None else f"no cgroup could be made ({why})")
    needed = rises if group is not None else rises[:1]
    good = all(rise is not None and abs(rise - size) <= TRUTH_RATIO * size for rise in needed)
    return found(good, ", ".join(words), size_bytes=size, rss_rise_bytes=rises[0], cgroup_rise_bytes=rises[1])


def _off(rise: int | None, size: int) -> str:
    return "unknown" if rise is None else f"{(rise - size) / size * 100:+.1f} %"


def cost(bench: Bench) -> Finding:
    """What a reading costs here."""
    least_ms = 25 if bench.quick else 100
    with bench.cgroup(LIMIT) as (group, _):  # a container's files are a part of what a guarded process pays
        seen = bench.ask("cost", group.join if group is not None else None, least_ms=least_ms, broken=bench.broken)
    glance_s, read_s = seen["glance_s"], seen["read_s"]
    figure = (
        f"a glance {glance_s * 1e6:.1f} us, a whole reading {read_s * 1e6:.0f} us: "
        f"ten a second take {read_s * 1000:.2g} % of one core"
    )
    return found(glance_s <= GLANCE_S and read_s <= READING_S, figure, **seen)


def levels(bench: Bench) -> Finding:
    """A child that grows under a limit goes through every level, each at its line; one that holds still does not."""
    with bench.cgroup(LIMIT) as (group, _):
        prepare, setting = (group.join, 0) if group is not None else (None, LIMIT)
        still = bench.ask("levels", prepare, size=2 * MIB, setting=setting)
        seen = bench.ask("levels", prepare, size=2 * LIMIT, setting=setting, broken=bench.broken)
    shares = {name: _judged(name, low, high) for name, low, high in seen["changes"]}
    late = [(share - Lines().enter(Level[name])) * seen["limit_bytes"] for name, share in shares.items()]
    at_its_line = all(-EARLY_RATIO * seen["limit_bytes"] <= each <= LATE_BYTES for each in late)
    good = list(shares) == ["WARNING", "CRITICAL", "EMERGENCY"] and at_its_line and not still["changes"]
    path = ", ".join(f"{name} at {format_ratio(share)}" for name, share in shares.items())
    figure = f"{path or 'no change of level'}; control {'moved' if still['changes'] else still['start']}"
    return found(good, figure, limit_bytes=seen["limit_bytes"], changes=seen["changes"])


def _judged(name: str, low: float, high: float) -> float:
    """The share that a level is judged by: WARNING the upper bound, EMERGENCY the lower, CRITICAL halfway."""
    return {"WARNING": high, "CRITICAL": (low + high) / 2, "EMERGENCY": low}.get(name, high)


def collection(bench: Bench) -> Finding:
    """Cycles with the collector off: dropping them gives nothing back, collecting gives back what they held."""
    size = (32 if bench.quick else 128) * MIB
    seen = bench.ask("collect", size=size, broken=bench.broken)
    control, back = seen["full"] - seen["dropped"], seen["dropped"] - seen["after"]
    figure = (
        f"{format_bytes(back)} of {format_bytes(size)} back in {_ms(seen['seconds'])}; "
        f"control, only dropped: {format_bytes(control)}"
    )
    good = back >= COLLECTED_RATIO * size and control < (1 - COLLECTED_RATIO) * size
    return found(good and seen["objects"] >= seen["rings"], figure, back_bytes=back, control_bytes=control, **seen)


def trim(bench: Bench) -> Finding:
    """Freed blocks of 4-64 KB: freeing alone gives little back, trimming most."""
    size = (32 if bench.quick else 128) * MIB
    seen = bench.ask("trim", size=size, broken=bench.broken)
    if seen["trimmed"] is None and not bench.broken:
        return not_here(f"the allocator is {seen['allocator']}: only glibc's can be told to trim")
    control, back, taken = seen["full"] - seen["freed"], seen["freed"] - seen["after"], seen["full"] - seen["empty"]
    figure = (
        f"{format_bytes(back)} of {format_bytes(taken)} back in {_ms(seen['seconds'])}; "
        f"control, only freed: {format_bytes(control)}"
    )
    good = back >= TRIMMED_RATIO * taken and control < (1 - TRIMMED_RATIO) * taken
    return found(good, figure, back_bytes=back, control_bytes=control, **seen)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def blackbox(bench: Bench) -> Finding:
    """A process is killed with SIGKILL in an operation: its box says when it last looked and what was going on."""
    process = bench.start(bench.words("blackbox", broken=bench.broken))
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
        killed_s = time.time()
        if not line or not json.loads(line).get("ready"):
            raise ChildError("it did not start", where="the process of 'blackbox'")
    finally:
        kill(process)
    boxes = [box for box in bench.boxes() if box.pid == process.pid]
    if not boxes:
        return found(good=False, figure="no black box was left by the killed process")
    box = boxes[0]
    names = [each.name for each in box.in_flight]
    good = not box.ended and bool(box.ticks) and names == ["selftest operation"] and not box.damaged
    age_s = killed_s - box.ticks[-1].unix_s if box.ticks else None
    figure = (
        f"{len(box.ticks)} ticks, the last {format_duration(age_s)} before the kill, "
        f"{len(names)} operation in flight, {box.damaged} records damaged"
    )
    return found(good, figure, ticks=len(box.ticks), last_s=age_s, in_flight=names, damaged=box.damaged)


def oom(bench: Bench) -> Finding:
    """A real kernel kill is recognised, and a plain SIGKILL of a process as large is not mistaken for one."""
    with bench.cgroup(KILL_LIMIT) as (group, why):
        if group is None:
            return not_here(f"no memory cgroup can be made: {why}")
        bare = bench.end(bench.words("hog"), group.join)
    killed = bench.words("killed", size=KILL_LIMIT // 4)
    kernel = _end_under_watch(bench, killed if bench.broken else bench.words("hog"))
    plain = _end_under_watch(bench, killed)
    good = bare.returncode == -9 and kernel == (137, deaths.OOM_KILL) and plain == (137, deaths.KILLED)
    figure = (
        f"kernel kill: {kernel[1]}, plain SIGKILL: {plain[1]}; "
        f"control without memwarden: killed, {len(bare.stderr)} bytes of explanation"
    )
    return found(good, figure, kernel=kernel, plain=plain, control=bare.returncode)


def _end_under_watch(bench: Bench, words: list[str]) -> tuple[int, str]:
    """The exit code of `memwarden run` with these words, and the verdict in the black box that it wrote."""
    before = {box.path for box in bench.boxes()}
    done = _run(bench, words, fence="off")  # the fence would refuse what the kernel shall kill for
    verdicts = [box.verdict for box in bench.boxes() if box.kind == "outside" and box.path not in before]
    return done.returncode, verdicts[0] if verdicts else "no black box"


def _run(bench: Bench, words: list[str], *, fence: str) -> CompletedProcess[str]:
    fenced = ["--fence", fence] if _has("memwarden.supervise.fence") else []
    command = [sys.executable, "-m", "memwarden", "run", "--limit", str(KILL_LIMIT), *fenced, "--", *words]
    return bench.end(command)


def _has(module: str) -> bool:
    return find_spec(module) is not None


def detection(bench: Bench) -> Finding:
    """Two processes do the same work: the one that keeps it is said to leak, the other is not."""
    if not _has("memwarden.judge.leak"):
        return not_here("not in this version")
    pace = {"samples": 45, "every_ms": 70} if bench.quick else {"samples": 80, "every_ms": 100}
    leaking, healthy = bench.ask_all("detection", {**pace, "leaking": not bench.broken}, {**pace, "leaking": 0})
    seconds = pace["samples"] * pace["every_ms"] / 1000
    figure = (
        f"leaking ({leaking['growth_ratio'] * 100:+.0f} % in {seconds:.0f} s): {_accusation(leaking)}; "
        f"healthy ({healthy['growth_ratio'] * 100:+.0f} %): {_accusation(healthy)}"
    )
    return found(leaking["accused"] and not healthy["accused"], figure, leaking=leaking, healthy=healthy)


def _accusation(seen: dict[str, Any]) -> str:
    return f"leak, cause {seen['cause']}, confidence {seen['confidence']}" if seen["accused"] else "no leak"


def breaker(bench: Bench) -> Finding:
    """A guarded loop stops before the limit and keeps what is done; the same loop without it is killed."""
    if not _has("memwarden.breaker"):
        return not_here("not in this version")
    items = 2 * LIMIT // MIB
    with bench.cgroup(LIMIT) as (group, why):
        if group is None:
            return not_here(f"no memory cgroup can be made: {why}")
        bare = bench.end(bench.words("breaker", items=items, guarded=0), group.join)
        seen = bench.end(bench.words("breaker", items=items, guarded=not bench.broken), group.join)
    answer = json.loads(seen.stdout) if seen.returncode == 0 else {"done": 0, "left": items}
    figure = (
        f"guarded: {_ending(seen.returncode)}, {answer['done']} of {items} items done, {answer['left']} left; "
        f"control: {_ending(bare.returncode)}"
    )
    good = bare.returncode == -9 and seen.returncode == 0 and answer["done"] > 0
    return found(good and answer["done"] + answer["left"] == items, figure, control=bare.returncode, **answer)


def _ending(status: int) -> str:
    return "ended by itself" if status == 0 else f"killed, {deaths.signal_name(-status)}" if status < 0 else "failed"


def fence(bench: Bench) -> Finding:
    """What does not fit is refused with a MemoryError that can be caught; without the fence the kernel kills."""
    if not _has("memwarden.supervise.fence"):
        return not_here("not in this version")
    with bench.cgroup(KILL_LIMIT) as (group, why):
        if group is None:
            return not_here(f"no memory cgroup can be made: {why}")
    words = bench.words("fence", size=4 * KILL_LIMIT)
    bare, seen = _run(bench, words, fence="off"), _run(bench, words, fence="off" if bench.broken else "on")
    answer = json.loads(seen.stdout) if seen.returncode == 0 else {"refused": False, "taken": 0}
    told = f"refused after {format_bytes(answer['taken'])}" if answer["refused"] else f"exit code {seen.returncode}"
    good = bare.returncode == 137 and seen.returncode == 0 and bool(answer["refused"])
    return found(good, f"fenced: {told}; control: exit code {bare.returncode}", control=bare.returncode, **answer)
