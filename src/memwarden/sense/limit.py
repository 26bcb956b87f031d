"""Which limit binds: every limit that somebody set on this process, and the tightest of them.

The order of the chain is the order of the search: explicit setting, cgroup with its ancestors, resource limits,
platform, machine. `memory.high` and v1's soft limit are no limits (a throttle and a hint) and are left out.
"""

from __future__ import annotations

from memwarden.facts import Candidate, Fact, Limit
from memwarden.sense import parse
from memwarden.sense.cgroup import LIMIT, Cgroup, find_cgroup
from memwarden.sense.platform import Platform, identify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Machine


class Place(Fact):
    """What discovery found: the limit, the cgroup, the platform, and where what counts against the limit is read.

    `binding` is the cgroup folder whose usage counts against the limit: the level that set it, which may be an
    ancestor shared with others. None where no cgroup set the limit.
    """

    limit: Limit
    cgroup: Cgroup | None
    cgroup_reason: str
    platform: Platform
    binding: str | None = None


def find_limit(
    machine: Machine, *, setting_bytes: int | None = None, setting_source: str = "setting", pid: int | str = "self"
) -> Limit:
    """The effective limit of a process, with the chain it won against."""
    return find_place(machine, setting_bytes=setting_bytes, setting_source=setting_source, pid=pid).limit


def find_place(
    machine: Machine, *, setting_bytes: int | None = None, setting_source: str = "setting", pid: int | str = "self"
) -> Place:
    """Discover everything about where a process stands. Reads about twenty files: at start and every 30 s."""
    cgroup, reason = find_cgroup(machine, pid)
    platform = identify(machine, cgroup)
    chain: list[Candidate] = []
    folders: list[str | None] = []
    if setting_bytes is not None:
        chain.append(Candidate(kind="setting", scope="process", bytes=setting_bytes, source=setting_source))
    folders += [None] * len(chain)
    for candidate, folder in _of_cgroup(machine, cgroup, reason):
        chain.append(candidate)
        folders.append(folder)
    container = any(each.bytes is not None for each in chain if each.kind == "cgroup")
    chain += _of_rlimits(machine, pid)
    chain += _of_platform(platform, container=container)
    chain.append(_of_machine(machine))
    folders += [None] * (len(chain) - len(folders))
    # Of equal ones the first; where nobody sets a limit the last, which is the machine.
    best = min(range(len(chain)), key=lambda i: (_or_endless(chain[i].bytes), i if chain[i].bytes else -i))
    won = chain[best]
    limit = Limit(bytes=won.bytes, source=won.source, kind=won.kind, scope=won.scope, chain=tuple(chain))
    return Place(limit=limit, cgroup=cgroup, cgroup_reason=reason, platform=platform, binding=folders[best])


def _or_endless(size: int | None) -> int:
    return parse.NO_LIMIT if size is None else size


def _of_cgroup(machine: Machine, cgroup: Cgroup | None, reason: str) -> list[tuple[Candidate, str | None]]:
    if cgroup is None:
        return [(Candidate(kind="cgroup", scope="container", bytes=None, source="cgroup", note=reason), None)]
    if cgroup.version == 1:
        return _of_v1(machine, cgroup)
    return [(_of_file(machine, f"{folder}/memory.max"), folder) for folder in cgroup.levels]


def _of_v1(machine: Machine, cgroup: Cgroup) -> list[tuple[Candidate, str | None]]:
    """Own limit, hierarchical_memory_limit (which knows ancestors that we cannot see), visible ancestors."""
    found: list[tuple[Candidate, str | None]] = []
    for depth, folder in enumerate(cgroup.levels):
        if depth and not _accounts_children(machine, folder):
            break  # without use_hierarchy an ancestor's limit does not bind its children
        found.append((_of_file(machine, f"{folder}/{LIMIT[1]}"), folder))
    stat = f"{cgroup.folder}/memory.stat"
    total = parse.keyed(_read(machine, stat), (b"hierarchical_memory_limit",)).get(b"hierarchical_memory_limit")
    if total and total < min((_or_endless(each.bytes) for each, _ in found), default=parse.NO_LIMIT):
        candidate = Candidate(
            kind="cgroup",
            scope="container",
            bytes=total,
            source=f"{stat} hierarchical_memory_limit",
            note="set by an ancestor outside of what is mounted here",
        )
        found.append((candidate, cgroup.folder))
    return found


def _accounts_children(machine: Machine, folder: str) -> bool:
    return parse.number(_read(machine, f"{folder}/memory.use_hierarchy")) != 0


def _of_file(machine: Machine, path: str) -> Candidate:
    try:
        raw = machine.read(path)
    except OSError as error:
        note = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        return Candidate(kind="cgroup", scope="container", bytes=None, source=path, note=note)
    size = parse.limit(raw)
    note = "" if size is not None else "no limit" if parse.says_no_limit(raw) else f"unreadable: {raw[:20]!r}"
    return Candidate(kind="cgroup", scope="container", bytes=size, source=path, note=note)


def _of_rlimits(machine: Machine, pid: int | str) -> list[Candidate]:
    """Soft limits on virtual memory: another quantity than resident memory, and judged against its own usage."""
    path = f"/proc/{pid}/limits"
    found = parse.rlimits(_read(machine, path))
    return [
        Candidate(
            kind="rlimit",
            scope="process",
            bytes=size,
            source=f"{name} in {path}",
            note="" if size is not None else "unlimited",
        )
        for name, size in found.items()
    ]


def _of_platform(platform: Platform, *, container: bool) -> list[Candidate]:
    if platform.limit_bytes is None:
        return []
    hidden = "a cgroup limit is visible and knows better" if container else ""
    size = None if container else platform.limit_bytes
    return [Candidate(kind="platform", scope="machine", bytes=size, source=platform.limit_source, note=hidden)]


def _of_machine(machine: Machine) -> Candidate:
    total = parse.sizes(_read(machine, "/proc/meminfo"), (b"MemTotal",)).get(b"MemTotal")
    note = "" if total else "MemTotal could not be read"
    return Candidate(
        kind="machine", scope="machine", bytes=total or None, source="MemTotal in /proc/meminfo", note=note
    )


def _read(machine: Machine, path: str) -> bytes:
    try:
        return machine.read(path)
    except OSError:
        return b""
