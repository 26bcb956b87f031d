"""Processes by pid: all of them, a tree, those whose name matches, and what they hold together.

Resident memory summed over workers lies: every page they share is counted once for each of them. So a sum is given
as anonymous bytes plus shared memory counted once, next to the summed RSS: program text and mapped files are out of
it. Where workers were forked from a parent that had loaded its data before, even that is an upper bound, because the
kernel counts an anonymous page in each process that maps it (measured, a 400 MB parent with four children: RSS 2016,
anonymous 2002, PSS 403 MiB). Only PSS splits these fairly. It is read on demand, because the kernel walks the page
tables for it, and needs the same user or root.

Processes come and go while they are read: one that vanishes is left out, one that may not be read is counted with
its reason. Off Linux psutil stands in (`portable`), which knows resident memory only.
"""

from __future__ import annotations

import sys

from memwarden.errors import ConfigError, NotPermittedError, ProcessNotFoundError
from memwarden.facts import Fact
from memwarden.sense import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from memwarden.ports import Machine

_SIZES = (b"VmRSS", b"RssAnon", b"RssShmem", b"VmSwap")
# A process in one of these states (proc(5)) has given its memory back and only waits to be reaped.
_OVER = frozenset("ZXx")


class Process(Fact):
    """One process: `name` is what the kernel calls it (15 bytes), `cmdline` its words joined by spaces.

    With `start_ticks` (clock ticks since boot) the pid names a process for ever.
    """

    pid: int
    ppid: int
    name: str
    cmdline: str
    start_ticks: int
    state: str = ""

    @property
    def is_over(self) -> bool:
        """A zombie: ended, and not yet reaped by its parent."""
        return self.state in _OVER

    @property
    def title(self) -> str:
        """The command line, or the name in brackets where there is none (a kernel thread)."""
        return self.cmdline or f"[{self.name}]"


class Usage(Fact):
    """What one process holds. None is unknown; `pss_bytes` is also None where it was not asked for."""

    pid: int
    rss_bytes: int
    anon_bytes: int | None = None
    shmem_bytes: int | None = None
    swap_bytes: int | None = None
    pss_bytes: int | None = None

    @property
    def held_bytes(self) -> int:
        """PSS where it is known, else anonymous and shared memory, else RSS; and what is swapped out."""
        if self.pss_bytes is not None:
            resident = self.pss_bytes
        elif self.anon_bytes is not None:
            resident = self.anon_bytes + (self.shmem_bytes or 0)
        else:
            resident = self.rss_bytes
        return resident + (self.swap_bytes or 0)


class Sum(Fact):
    """What several processes hold together. `shmem_bytes` is the largest mapping of one of them, counted once.

    `rss_bytes` is the plain sum, which counts shared pages many times. `unknown` says of how many processes, and
    why, nothing could be read: then everything here is a lower bound.
    """

    parts: tuple[Usage, ...]
    rss_bytes: int
    anon_bytes: int | None
    shmem_bytes: int | None
    swap_bytes: int | None
    pss_bytes: int | None
    unknown: tuple[tuple[str, int], ...] = ()

    @property
    def held_bytes(self) -> int:
        """The PSS of all where every one is known, else anonymous bytes and shared memory once, else summed RSS."""
        if self.pss_bytes is not None:
            resident = self.pss_bytes
        elif self.anon_bytes is not None:
            resident = self.anon_bytes + (self.shmem_bytes or 0)
        else:
            resident = self.rss_bytes
        return resident + (self.swap_bytes or 0)


# --- who is there ----------------------------------------------------------------------------------------------


def processes(machine: Machine) -> Iterator[Process]:
    """Every process that is there now, zombies and kernel threads included. Two small files for each."""
    if _elsewhere(machine):
        from memwarden.sense import portable

        yield from portable.processes()
        return
    for process in _stats(machine):
        yield _with_words(machine, process)


def find(machine: Machine, pid: int) -> Process:
    """One process. Raises ProcessNotFoundError, and NotPermittedError where it is there but hidden from us."""
    if _elsewhere(machine):
        from memwarden.sense import portable

        return portable.find(pid)
    try:
        found = _parse_stat(machine.read(f"/proc/{pid}/stat"))
    except PermissionError as error:
        raise _not_ours(pid, str(error.strerror)) from error
    except OSError:
        found = None
    if found is None:
        if machine.live and _is_hidden(pid):
            raise _not_ours(pid, "/proc hides it (hidepid)")
        raise ProcessNotFoundError(pid)
    return _with_words(machine, found)


def tree(machine: Machine, pid: int) -> list[int]:
    """A process and all its living descendants, itself first; from one scan of /proc. Empty where it ended."""
    if _elsewhere(machine):
        from memwarden.sense import portable

        everybody: Iterable[Process] = portable.processes()
    else:
        everybody = _stats(machine)
    children: dict[int, list[int]] = {}
    living = set()
    for each in everybody:
        if not each.is_over:
            living.add(each.pid)
            children.setdefault(each.ppid, []).append(each.pid)
    found = [pid] if pid in living else []
    seen = set(found)
    for parent in found:  # grows while it is walked: breadth first
        below = [child for child in children.get(parent, ()) if child not in seen]
        seen.update(below)
        found += below
    return found


def match(machine: Machine, pattern: str) -> list[Process]:
    """Living processes whose name or command line holds the regular expression, in order of pid.

    Upper and lower case differ, a plain word is found anywhere. Never matched: this process, any other
    `memwarden monitor --match` with what started it (a shell, sudo, timeout: their command lines spell the pattern),
    and kernel threads. Raises ConfigError for what is no regular expression.
    """
    fits = _matcher(pattern)
    me = machine.getpid()
    found = [
        each
        for each in processes(machine)
        if each.pid != me and each.cmdline and not each.is_over and fits(each.name, each.cmdline)
    ]
    return sorted(found, key=lambda each: each.pid)


def _matcher(pattern: str) -> Callable[[str, str], bool]:
    import re

    try:
        wanted = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{pattern!r} is no regular expression: {error}", where="--match", mend="a plain name will do"
        ) from error
    if not pattern:
        raise ConfigError("would match every process", where="--match ''", mend="give a part of a name")
    watcher = re.compile(r"memwarden\b.*\bmonitor\b.*--match")

    def fits(name: str, cmdline: str) -> bool:
        return bool(wanted.search(name) or wanted.search(cmdline)) and not watcher.search(cmdline)

    return fits


def _stats(machine: Machine) -> Iterator[Process]:
    for word in machine.listdir("/proc"):
        if word.isdigit():
            try:
                found = _parse_stat(machine.read(f"/proc/{word}/stat"))
            except OSError:
                continue  # it ended since the folder was listed
            if found is not None:
                yield found


def _with_words(machine: Machine, process: Process) -> Process:
    try:
        raw = machine.read(f"/proc/{process.pid}/cmdline")
    except OSError:
        return process
    words = raw.replace(b"\0", b" ").decode("utf-8", "replace").split()
    return process.replace(cmdline=" ".join(words))


def _parse_stat(raw: bytes) -> Process | None:
    """/proc/PID/stat. The name stands in brackets and may hold brackets and spaces itself."""
    head, _, rest = raw.rpartition(b")")
    number, _, name = head.partition(b"(")
    words = rest.split(None, 20)
    pid = parse.number(number)
    if pid is None or len(words) < 20:
        return None
    ppid, start = parse.number(words[1]), parse.number(words[19])
    if ppid is None or start is None:
        return None
    return Process(
        pid=pid,
        ppid=ppid,
        name=name.decode("utf-8", "replace"),
        cmdline="",
        start_ticks=start,
        state=words[0].decode("ascii", "replace"),
    )


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process though /proc does not show it: signal 0 asks without sending."""
    import os

    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _not_ours(pid: int, why: str) -> NotPermittedError:
    return NotPermittedError(f"process {pid} may not be read: {why}", mend="run memwarden as its user or as root")


def _elsewhere(machine: Machine) -> bool:
    """A running system without /proc."""
    return machine.live and not sys.platform.startswith(("linux", "android"))


# --- what they hold --------------------------------------------------------------------------------------------


def usage(machine: Machine, pid: int, *, pss: bool = False) -> Usage:
    """What one process holds; all zero for a zombie or a kernel thread. Raises as `find` does."""
    if _elsewhere(machine):
        from memwarden.sense import portable

        return portable.usage(pid)
    try:
        found = parse.sizes(machine.read(f"/proc/{pid}/status"), _SIZES)
        share = parse.sizes(machine.read(f"/proc/{pid}/smaps_rollup"), (b"Pss",)) if pss and found else {}
    except PermissionError as error:
        raise _not_ours(pid, f"{error.strerror} ({'smaps_rollup' if pss else 'status'})") from error
    except OSError as error:
        raise ProcessNotFoundError(pid) from error
    if not found:
        return Usage(pid=pid, rss_bytes=0, anon_bytes=0, shmem_bytes=0, swap_bytes=0, pss_bytes=0 if pss else None)
    return Usage(
        pid=pid,
        rss_bytes=found.get(b"VmRSS", 0),
        anon_bytes=found.get(b"RssAnon"),
        shmem_bytes=found.get(b"RssShmem"),
        swap_bytes=found.get(b"VmSwap"),
        pss_bytes=share.get(b"Pss"),
    )


def add_up(machine: Machine, pids: Iterable[int], *, pss: bool = False) -> Sum:
    """What they hold together. One small file per process.

    `pss` reads smaps_rollup too: the kernel walks every mapped page for it (measured: 2 ms per GiB on Linux 6.18;
    0.05 ms a process without it), and holds the process's mmap lock for reading meanwhile.
    """
    parts: list[Usage] = []
    unknown: dict[str, int] = {}
    for pid in pids:
        try:
            parts.append(usage(machine, pid, pss=pss))
        except ProcessNotFoundError:
            continue
        except NotPermittedError as error:
            reason = error.what.partition(": ")[2]
            unknown[reason] = unknown.get(reason, 0) + 1
            if pss:
                parts += _without_pss(machine, pid)
    shared = [each.shmem_bytes for each in parts]
    return Sum(
        parts=tuple(parts),
        rss_bytes=sum(each.rss_bytes for each in parts),
        anon_bytes=_total([each.anon_bytes for each in parts]),
        shmem_bytes=max((size for size in shared if size is not None), default=None if shared else 0),
        swap_bytes=_total([each.swap_bytes for each in parts]),
        pss_bytes=_total([each.pss_bytes for each in parts]) if pss else None,
        unknown=tuple(unknown.items()),
    )


def _without_pss(machine: Machine, pid: int) -> list[Usage]:
    """The rest of what is known of a process whose PSS is not ours to read."""
    try:
        return [usage(machine, pid)]
    except (ProcessNotFoundError, NotPermittedError):
        return []


def _total(sizes: list[int | None]) -> int | None:
    """The sum; unknown where one of them is."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
