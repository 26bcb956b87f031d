"""Parsers for what the kernel writes: bytes in, numbers out, never an exception.

Text from a kernel, a container runtime or a captured folder is foreign text: it can be cut short, be from a newer
kernel, or not be what its name says. Every function here returns what it could read and leaves out the rest; a
number that is not there is None or a missing key, never zero. No limit is ever reported lower than the file's own.

Formats: proc(5), Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst and accounting/psi.rst of the kernel.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Limits from here on mean "none": v1 writes 2**63 rounded down to a page for it, and 2**60 is more memory than
# any machine has.
NO_LIMIT = 1 << 60
# More digits than 2**64 has; int() itself refuses more than 4300.
_MAX_DIGITS = 20
_TOO_LARGE = 10**_MAX_DIGITS


def number(raw: bytes) -> int | None:
    """A file that holds one whole number, such as memory.current."""
    text = raw.strip()
    if text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    return None


def limit(raw: bytes) -> int | None:
    """A file that holds a limit in bytes; None for "max", for the v1 way of saying so, and for anything unreadable.

    A limit of 0 is None too: no process lives under one, so it is not ours.
    """
    value = number(raw)
    if not value or value >= NO_LIMIT:
        return None
    return value


def says_no_limit(raw: bytes) -> bool:
    """Whether the file says "no limit" in so many words, as opposed to being unreadable."""
    text = raw.strip()
    return text == b"max" or (text.isdigit() and (len(text) > _MAX_DIGITS or int(text) >= NO_LIMIT))


def needles(names: Iterable[bytes]) -> tuple[bytes, ...]:
    """The names as `values` wants them: made once, where `values` runs ten times a second."""
    return tuple(b"\n%b " % name for name in names)


def values(raw: bytes, wanted: tuple[bytes, ...]) -> list[int]:
    """The numbers of a file of `key number` lines, in the order of the `needles`; -1 for each that is not there.

    Looks each key up in the text instead of splitting it all: 4x cheaper for the five that we need of sixty. The
    first line of the file cannot be asked for: no line break stands before it.
    """
    found = []
    for needle in wanted:
        start = raw.find(needle)
        try:
            number = int(raw[start + len(needle) : raw.index(b"\n", start + 2)]) if start >= 0 else -1
        except ValueError:
            number = -1
        found.append(number if 0 <= number < _TOO_LARGE else -1)
    return found


def keyed(raw: bytes, wanted: Iterable[bytes]) -> dict[bytes, int]:
    """The wanted keys of a file of `key number` lines, such as memory.events; what is not there is left out."""
    names = tuple(wanted)
    numbers = values(b"\n" + raw + b"\n", needles(names))
    return {name: found for name, found in zip(names, numbers, strict=True) if found >= 0}


def events(raw: bytes) -> dict[bytes, int]:
    """All counters of memory.events or memory.oom_control."""
    found = {}
    for line in raw.split(b"\n"):
        words = line.split()
        if len(words) == 2 and words[1].isdigit() and len(words[1]) <= _MAX_DIGITS:
            found[words[0]] = int(words[1])
    return found


def cgroup_paths(raw: bytes) -> list[tuple[int, tuple[str, ...], str]]:
    """/proc/PID/cgroup as (hierarchy, controllers, path). A path may itself hold colons (containerd's do)."""
    found = []
    for line in raw.split(b"\n"):
        parts = line.rstrip(b"\r").split(b":", 2)
        if len(parts) == 3 and parts[0].isdigit() and len(parts[0]) <= _MAX_DIGITS and parts[2].startswith(b"/"):
            controllers = tuple(os.fsdecode(name) for name in parts[1].split(b",") if name)
            found.append((int(parts[0]), controllers, os.fsdecode(parts[2])))
    return found


class Mount:
    """One line of mountinfo, unescaped: `root` inside the file system, mount `point`, type and super options."""

    __slots__ = ("fstype", "options", "point", "root")

    def __init__(self, root: str, point: str, fstype: str, options: tuple[str, ...]) -> None:
        self.root = root
        self.point = point
        self.fstype = fstype
        self.options = options


def mounts(raw: bytes) -> Iterator[Mount]:
    """/proc/PID/mountinfo. Optional fields end at a lone `-`; space, tab, newline and backslash are octal."""
    for line in raw.split(b"\n"):
        words = line.rstrip(b"\r").split(b" ")  # only these: a form feed may stand in a path unescaped
        try:
            dash = words.index(b"-", 6)
            root, point, fstype = words[3], words[4], words[dash + 1]
            options = words[dash + 3]
        except (ValueError, IndexError):
            continue
        yield Mount(_unescape(root), _unescape(point), os.fsdecode(fstype), tuple(os.fsdecode(options).split(",")))


def _unescape(word: bytes) -> str:
    if b"\\" in word:
        for octal, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
            word = word.replace(octal, char)
    return os.fsdecode(word)


def pressure(raw: bytes) -> dict[str, tuple[float | None, int | None]]:
    """A PSI file as {"some"|"full": (avg10 in percent, total stall in microseconds)}."""
    found: dict[str, tuple[float | None, int | None]] = {}
    for line in raw.split(b"\n"):
        kind, _, rest = line.partition(b" ")
        if kind in (b"some", b"full"):
            pairs = dict(word.partition(b"=")[::2] for word in rest.split())
            found[kind.decode()] = (_percent(pairs.get(b"avg10", b"")), number(pairs.get(b"total", b"")))
    return found


def _percent(raw: bytes) -> float | None:
    whole, _, part = raw.partition(b".")
    if whole.isdigit() and (part.isdigit() or not part) and len(raw) <= _MAX_DIGITS:
        return float(raw)
    return None


def stall_totals(raw: bytes) -> tuple[int | None, int | None]:
    """Only the (some, full) totals of a PSI file, in microseconds: a third of the cost of `pressure`."""
    parts = raw.split(b"total=")
    try:
        some = int(parts[1].split(None, 1)[0])
        full = int(parts[2]) if len(parts) == 3 else None
    except (ValueError, IndexError):
        return None, None
    if some < 0 or (full is not None and full < 0):
        return None, None
    return some, full


def memory_head(raw: bytes) -> tuple[int | None, int | None, int | None, int]:
    """(MemTotal, MemFree, MemAvailable, Buffers + Cached) of /proc/meminfo in bytes, from its first lines.

    These stand first on every kernel since 3.14, and splitting only them is 5x cheaper than looking each one up;
    where they do not, they are looked up.
    """
    words = raw.split(None, 15)
    if words[0:15:3] == _HEAD and words[2:15:3] == _KIB:
        try:
            total, free, available, buffers, cached = numbers = [int(word) for word in words[1:15:3]]
        except ValueError:
            return None, None, None, 0
        if min(numbers) < 0:
            return None, None, None, 0
        return total << 10, free << 10, available << 10, (buffers + cached) << 10
    found = sizes(raw, (b"MemTotal", b"MemFree", b"MemAvailable", b"Buffers", b"Cached"))
    cache = found.get(b"Buffers", 0) + found.get(b"Cached", 0)
    return found.get(b"MemTotal"), found.get(b"MemFree"), found.get(b"MemAvailable"), cache


_KIB = [b"kB"] * 5
_HEAD = [b"MemTotal:", b"MemFree:", b"MemAvailable:", b"Buffers:", b"Cached:"]


def sizes(raw: bytes, wanted: Iterable[bytes]) -> dict[bytes, int]:
    """Lines such as `VmRSS:   1234 kB` of /proc/PID/status or /proc/meminfo, in bytes."""
    text = b"\n" + raw
    found = {}
    for key in wanted:
        start = text.find(b"\n" + key + b":")
        if start < 0:
            continue
        start += len(key) + 2
        end = text.find(b"\n", start)
        words = (text[start:] if end < 0 else text[start:end]).split()
        if len(words) == 2 and words[1] == b"kB" and words[0].isdigit() and len(words[0]) <= _MAX_DIGITS:
            found[key] = int(words[0]) << 10
    return found


def status(raw: bytes) -> dict[bytes, bytes]:
    """/proc/PID/status as text by name, for the fields that are no sizes (State, PPid, ShdPnd)."""
    found = {}
    for line in raw.split(b"\n"):
        key, colon, value = line.partition(b":")
        if colon:
            found[key] = value.strip()
    return found


_RLIMITS = {b"Max data size": "RLIMIT_DATA", b"Max address space": "RLIMIT_AS"}


def rlimits(raw: bytes) -> dict[str, int | None]:
    """The soft memory limits of /proc/PID/limits by name; None for unlimited. Unreadable ones are left out."""
    found: dict[str, int | None] = {}
    for line in raw.split(b"\n"):
        for title, name in _RLIMITS.items():
            if line.startswith(title + b" "):
                words = line[len(title) :].split()
                if words and words[0] == b"unlimited":
                    found[name] = None
                elif words and (words[0].isdigit()):
                    found[name] = limit(words[0])
    return found


def statm(raw: bytes) -> tuple[int, int, int] | None:
    """/proc/PID/statm as (size, resident, shared) in pages."""
    words = raw.split(None, 3)[:3]
    try:
        size, resident, shared = map(int, words)
    except ValueError:
        return None
    if min(size, resident, shared) < 0 or len(raw) > 200:
        return None
    return size, resident, shared


def environ(raw: bytes) -> dict[str, str]:
    """/proc/PID/environ: NUL-separated NAME=value."""
    pairs = (os.fsdecode(word).partition("=") for word in raw.split(b"\0"))
    return {name: value for name, equals, value in pairs if name and equals}
