"""Hostile texts for every parser of `memwarden.sense.parse`, seeded, with what must hold of each.

A generator yields `Case(text, truth, exact)`. Where `exact`, the text is what a kernel could write (perhaps
with CRLF or without its last newline) and the parser must answer `truth`. Where not, the text was damaged,
and `truth` is a bound found by a slow and simple reading of the damaged text itself: what the parser may
answer at least, or nothing.
"""

from __future__ import annotations

import os
import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DIGITS = re.compile(rb"[0-9]+")
_LARGE = (0, 1, 4095, 209715200, (1 << 31) - 1, 1 << 32, (1 << 60) - 1, 1 << 60, (1 << 63) - 4096, 1 << 63)
_HUGE = ((1 << 64) - 1, 1 << 64, 10**20, 10**40, int("9" * 400))


class Case(NamedTuple):
    """One text, what holds of it, and whether that is the exact answer or a bound."""

    text: bytes
    truth: Any
    exact: bool


def _cases(
    seed: int,
    count: int,
    whole: Callable[[random.Random], tuple[bytes, Any]],
    bound: Callable[[bytes], Any],
) -> Iterator[Case]:
    """A third of them as a kernel writes them, the others damaged once or more."""
    rng = random.Random(seed)
    for _ in range(count):
        text, truth = whole(rng)
        if rng.random() < 1 / 3:
            yield Case(_disguised(rng, text), truth, exact=True)
            continue
        for _again in range(1 + (rng.random() < 0.3)):
            text = rng.choice(_DAMAGES)(rng, text)
        yield Case(text, bound(text), exact=False)


# --- what may be done to a text --------------------------------------------------------------------


def _disguised(rng: random.Random, text: bytes) -> bytes:
    """Changes nothing that is said: line ends of another system, a missing last one."""
    choice = rng.randrange(4)
    if choice == 0:
        return text.replace(b"\n", b"\r\n")
    return text.removesuffix(b"\n") if choice == 1 else text


def _place(rng: random.Random, text: bytes) -> int:
    return rng.randrange(len(text) + 1)


def _cut(rng: random.Random, text: bytes) -> bytes:
    return text[: _place(rng, text)]


def _headless(rng: random.Random, text: bytes) -> bytes:
    return text[_place(rng, text) :]


def _with(rng: random.Random, text: bytes, more: bytes) -> bytes:
    at = _place(rng, text)
    return text[:at] + more + text[at:]


def _nul(rng: random.Random, text: bytes) -> bytes:
    return _with(rng, text, b"\0" * rng.choice((1, 2, 4096)))


def _binary(rng: random.Random, text: bytes) -> bytes:
    return _with(rng, text, rng.randbytes(rng.randrange(1, 12)))


def _flipped(rng: random.Random, text: bytes) -> bytes:
    if not text:
        return text
    changed = bytearray(text)
    changed[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(changed)


def _unicode(rng: random.Random, text: bytes) -> bytes:
    """Digits and spaces that are none to the kernel, and a byte order mark."""
    return _with(rng, text, rng.choice(("٣", "\uff15", "²", "\u00a0", "\u2028", "\ufeff", "é", "💾")).encode())


def _punctuation(rng: random.Random, text: bytes) -> bytes:
    signs = (
        b"-",
        b"+",
        b"_",
        b".",
        b" ",
        b"\t",
        b":",
        b"=",
        b"\\",
        b"\\040",
        b"\n",
        b"\r",
        b"\x0b",
        b"\x0c",
        b" - ",
    )
    return _with(rng, text, rng.choice(signs))


def _other_number(rng: random.Random, text: bytes) -> bytes:
    """A number replaced by a negative, an enormous, a fractional or no number."""
    found = list(_DIGITS.finditer(text))
    if not found:
        return text
    start, end = rng.choice(found).span()
    word = rng.choice((b"-1", b"-209715200", b"max", b"", b"1e9", b"0x10", b"1_000", b"nan", b"inf", b"4096.0"))
    if rng.random() < 0.3:
        word = str(rng.choice(_HUGE)).encode()
    elif rng.random() < 0.02:
        word = b"7" * 5000  # more digits than int() takes
    return text[:start] + word + text[end:]


def _line_again(rng: random.Random, text: bytes) -> bytes:
    """A line twice, the second time with other figures."""
    lines = text.split(b"\n")
    again = _other_number(rng, rng.choice(lines))
    lines.insert(rng.randrange(len(lines) + 1), again)
    return b"\n".join(lines)


def _lines_joined(_rng: random.Random, text: bytes) -> bytes:
    return text.replace(b"\n", b"", 1)


def _lines_mixed(rng: random.Random, text: bytes) -> bytes:
    lines = text.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def _nothing(_rng: random.Random, _text: bytes) -> bytes:
    return b""


def _noise(rng: random.Random, _text: bytes) -> bytes:
    return rng.randbytes(rng.randrange(200))


_DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut, _cut, _headless, _nul, _binary, _flipped, _flipped, _unicode, _punctuation, _punctuation,
    _other_number, _other_number, _line_again, _lines_joined, _lines_mixed, _nothing, _noise,
)  # fmt: skip


# --- slow and simple readings ----------------------------------------------------------------------


def _first_numbers(values: list[bytes]) -> list[int]:
    """The first run of digits in each: no sane reading of such a value is smaller."""
    found = []
    for value in values:
        digits = _DIGITS.search(value)
        if digits:
            found.append(int(digits[0][:30]))  # int() takes 4300 digits at most, and 2**64 has 20
    return found


def _of_key(text: bytes, key: bytes) -> list[int]:
    return _first_numbers(re.findall(rb"^[ \t\r\f\v]*" + re.escape(key) + rb"[\s:](.*)$", text, re.MULTILINE))


# --- one number per file ---------------------------------------------------------------------------


def _any_number(rng: random.Random) -> int:
    return rng.choice(_LARGE) if rng.random() < 0.2 else rng.randrange(1 << rng.randrange(1, 50))


def single_numbers(seed: int, count: int) -> Iterator[Case]:
    """memory.current and the like: truth is the number, or [the first digits] of a damaged text."""

    def whole(rng: random.Random) -> tuple[bytes, int]:
        value = _any_number(rng)
        return b"%d\n" % value, value

    return _cases(seed, count, whole, lambda text: _first_numbers([text]))


def single_limits(seed: int, count: int) -> Iterator[Case]:
    """memory.max or limit_in_bytes: truth is the limit, None for `max` and for 2**60 and more."""

    def whole(rng: random.Random) -> tuple[bytes, int | None]:
        if rng.random() < 0.2:
            return b"max\n", None
        value = _any_number(rng) or 1
        return b"%d\n" % value, value if value < 1 << 60 else None

    return _cases(seed, count, whole, lambda text: _first_numbers([text]))


# --- key and number in each line -------------------------------------------------------------------

STAT_KEYS = (
    b"anon", b"file", b"file_dirty", b"file_writeback", b"inactive_file", b"active_file", b"slab_reclaimable",
    b"total_inactive_file", b"total_active_file", b"total_dirty", b"hierarchical_memory_limit",
)  # fmt: skip
EVENT_KEYS = (b"low", b"high", b"max", b"oom", b"oom_kill", b"oom_group_kill", b"under_oom")


def _keyed(keys: tuple[bytes, ...]) -> Callable[[random.Random], tuple[bytes, dict[bytes, int]]]:
    def whole(rng: random.Random) -> tuple[bytes, dict[bytes, int]]:
        present = rng.sample(keys, rng.randrange(1, len(keys) + 1))
        truth = {key: _any_number(rng) for key in present}
        return b"".join(b"%b %d\n" % pair for pair in truth.items()), truth

    return whole


def _keyed_bound(keys: tuple[bytes, ...]) -> Callable[[bytes], dict[bytes, list[int]]]:
    return lambda text: {key: _of_key(text, key) for key in keys}


def stats(seed: int, count: int) -> Iterator[Case]:
    """memory.stat: truth by key."""
    return _cases(seed, count, _keyed(STAT_KEYS), _keyed_bound(STAT_KEYS))


def event_counters(seed: int, count: int) -> Iterator[Case]:
    """memory.events and memory.oom_control: truth by key."""
    return _cases(seed, count, _keyed(EVENT_KEYS), _keyed_bound(EVENT_KEYS))


SIZE_KEYS = (
    b"VmSize",
    b"VmRSS",
    b"VmData",
    b"RssAnon",
    b"MemTotal",
    b"MemFree",
    b"MemAvailable",
    b"Buffers",
    b"Cached",
)


def size_lines(seed: int, count: int) -> Iterator[Case]:
    """Lines of /proc/meminfo and /proc/PID/status in kB: truth in bytes by key, bounds in kB."""

    def whole(rng: random.Random) -> tuple[bytes, dict[bytes, int]]:
        present = rng.sample(SIZE_KEYS, rng.randrange(1, len(SIZE_KEYS) + 1))
        kib = {key: rng.randrange(1 << rng.randrange(1, 40)) for key in present}
        text = b"Name:\tpython\n" + b"".join(b"%b:\t%8d kB\n" % pair for pair in kib.items()) + b"Threads:\t3\n"
        return text, {key: value << 10 for key, value in kib.items()}

    return _cases(seed, count, whole, _keyed_bound(SIZE_KEYS))


HEAD_KEYS = (b"MemTotal", b"MemFree", b"MemAvailable")


def meminfo(seed: int, count: int) -> Iterator[Case]:
    """/proc/meminfo from its beginning: truth is (total, free, available, buffers + cached) in bytes."""

    def whole(rng: random.Random) -> tuple[bytes, tuple[int | None, ...]]:
        names = [b"MemTotal", b"MemFree", b"MemAvailable", b"Buffers", b"Cached"]
        if rng.random() < 0.2:
            names.remove(b"MemAvailable")  # kernels before 3.14
        kib = {name: rng.randrange(1 << rng.randrange(1, 36)) for name in names}
        lines = [b"%-16b%8d kB\n" % (name + b":", kib[name]) for name in names] + [b"SwapCached: 0 kB\n"]
        heads = [kib[key] << 10 if key in kib else None for key in HEAD_KEYS]
        return b"".join(lines), (*heads, (kib[b"Buffers"] + kib[b"Cached"]) << 10)

    def bound(text: bytes) -> dict[bytes, list[int]]:
        return {key: _first_numbers(re.findall(key + rb":([^0-9]*[0-9]+)", text)) for key in HEAD_KEYS}

    return _cases(seed, count, whole, bound)


def statuses(seed: int, count: int) -> Iterator[Case]:
    """/proc/PID/status as text by name; of a damaged one nothing is promised."""

    def whole(rng: random.Random) -> tuple[bytes, dict[bytes, bytes]]:
        name = rng.choice((b"python", b"a b", b"x:y", b"(sd-pam)", b"\xc3\xbc", b"\xff\xfe", b"a\\nb"))
        truth = {
            b"Name": name,
            b"State": b"S (sleeping)",
            b"Pid": b"%d" % rng.randrange(1 << 22),
            b"VmRSS": b"12 kB",
        }
        return b"".join(b"%b:\t%b\n" % pair for pair in truth.items()), truth

    return _cases(seed, count, whole, lambda _text: None)


# --- lines of their own kind -----------------------------------------------------------------------

_NAMES = (
    b"web", b"a:b", b"pod1.slice:cri-containerd:0a", b"my app", b"x (deleted)", b"back\\slash", b"tab\there",
    b"\xc3\xbcmlaut", b"\xff\xfe", b"..", b"a,b", b"-", b"#", b"\\040", b"user@1000.service", b"a=b",
)  # fmt: skip


def _path(rng: random.Random) -> bytes:
    parts = [rng.choice(_NAMES) for _ in range(rng.randrange(4))]
    return b"/" + b"/".join(parts) + (b" (deleted)" if parts and rng.random() < 0.1 else b"")


def cgroup_lines(seed: int, count: int) -> Iterator[Case]:
    """/proc/PID/cgroup: truth is the list of (hierarchy, controllers, path); a bound is every path said."""

    def whole(rng: random.Random) -> tuple[bytes, list[tuple[int, tuple[str, ...], str]]]:
        kinds = [(9, b"name=systemd"), (8, b"pids"), (4, b"memory"), (1, b"cpu,cpuacct"), (0, b"")]
        chosen = rng.sample(kinds, rng.randrange(1, len(kinds) + 1))
        lines = [(number, names, _path(rng)) for number, names in chosen]
        text = b"".join(b"%d:%b:%b\n" % line for line in lines)
        return text, [
            (number, tuple(names.decode().split(",")) if names else (), os.fsdecode(path))
            for number, names, path in lines
        ]

    def bound(text: bytes) -> set[str]:
        return {os.fsdecode(line.split(b":", 2)[2].rstrip(b"\r")) for line in text.split(b"\n") if line.count(b":") > 1}

    return _cases(seed, count, whole, bound)


def _escaped(path: bytes) -> bytes:
    """As seq_path() of the kernel with " \\t\\n\\\\" does."""
    for char in (b"\\", b" ", b"\t", b"\n"):
        path = path.replace(char, b"\\%03o" % ord(char))
    return path


def mount_lines(seed: int, count: int) -> Iterator[Case]:
    """/proc/PID/mountinfo: truth is a list of (root, point, type, options), a bound the number of lines."""

    def whole(rng: random.Random) -> tuple[bytes, list[tuple[str, str, str, tuple[str, ...]]]]:
        lines, truth = [], []
        for number in range(rng.randrange(1, 5)):
            root, point = _path(rng), _path(rng)
            if rng.random() < 0.02:  # the kernel does not escape these
                point += rng.choice((b"a\rb", b"a\x0bb", b"a\x0cb"))
            kind, options = rng.choice(((b"cgroup2", b"rw,nsdelegate"), (b"cgroup", b"rw,memory"), (b"ext4", b"rw")))
            optional = rng.choice((b"", b"shared:4 ", b"master:1 propagate_from:2 "))
            source = rng.choice((b"cgroup", b"none", b"my\\040disk", b""))
            fields = (20 + number, _escaped(root), _escaped(point), optional, kind, source, options)
            lines.append(b"%d 1 0:26 %b %b rw,nosuid %b- %b %b %b\n" % fields)
            words = tuple(options.decode().split(","))
            truth.append((os.fsdecode(root), os.fsdecode(point), kind.decode(), words))
        return b"".join(lines), truth

    return _cases(seed, count, whole, lambda text: text.count(b"\n") + 1)


def pressures(seed: int, count: int) -> Iterator[Case]:
    """A PSI file: truth is {kind: (avg10 in percent, total in us)}; a bound is the totals said anywhere."""

    def whole(rng: random.Random) -> tuple[bytes, dict[str, tuple[float, int]]]:
        truth, lines = {}, []
        for kind in ("some", "full"):
            avg10, total = rng.randrange(10001), rng.randrange(1 << 50)
            words = (kind.encode(), avg10 // 100, avg10 % 100, total)
            lines.append(b"%b avg10=%d.%02d avg60=0.10 avg300=0.00 total=%d\n" % words)
            truth[kind] = (float(f"{avg10 // 100}.{avg10 % 100:02d}"), total)
        return b"".join(lines), truth

    return _cases(seed, count, whole, lambda text: _first_numbers(re.findall(rb"total=(\s*[^0-9\n]*[0-9]+)", text)))


LIMIT_TITLES = {"RLIMIT_DATA": b"Max data size", "RLIMIT_AS": b"Max address space"}


def limit_tables(seed: int, count: int) -> Iterator[Case]:
    """/proc/PID/limits: truth is the soft limit by name, None for unlimited."""

    def whole(rng: random.Random) -> tuple[bytes, dict[str, int | None]]:
        truth: dict[str, int | None] = {}
        lines = [b"%-25b %-20b %-20b %-10b\n" % (b"Limit", b"Soft Limit", b"Hard Limit", b"Units")]
        lines.append(b"%-25b %-20b %-20b %-10b\n" % (b"Max stack size", b"8388608", b"unlimited", b"bytes"))
        for name, title in LIMIT_TITLES.items():
            value = None if rng.random() < 0.3 else rng.randrange(1, 1 << 50)
            truth[name] = value
            soft = b"unlimited" if value is None else b"%d" % value
            lines.append(b"%-25b %-20b %-20b %-10b\n" % (title, soft, b"unlimited", b"bytes"))
        return b"".join(lines), truth

    def bound(text: bytes) -> dict[str, list[int]]:
        return {name: _of_key(text, title) for name, title in LIMIT_TITLES.items()}

    return _cases(seed, count, whole, bound)


def statms(seed: int, count: int) -> Iterator[Case]:
    """/proc/PID/statm: truth is (size, resident, shared) in pages."""

    def whole(rng: random.Random) -> tuple[bytes, tuple[int, ...]]:
        pages = tuple(rng.randrange(1 << rng.randrange(1, 40)) for _ in range(3))
        return b"%d %d %d 1 0 99 0\n" % pages, pages

    return _cases(seed, count, whole, lambda _text: None)


def environs(seed: int, count: int) -> Iterator[Case]:
    """/proc/PID/environ: truth is the dict of it."""

    def whole(rng: random.Random) -> tuple[bytes, dict[str, str]]:
        values = (b"", b"a=b", b"512", b"\xff", b"x y", b"\xc3\xbc", b"a\nb")
        truth = {name: rng.choice(values) for name in rng.sample((b"PATH", b"RENDER", b"DYNO", b"K_SERVICE"), 3)}
        text = b"".join(b"%b=%b\0" % pair for pair in truth.items())
        return text, {os.fsdecode(name): os.fsdecode(value) for name, value in truth.items()}

    rng = random.Random(seed)
    for _ in range(count):
        text, truth = whole(rng)
        if rng.random() < 0.5:
            yield Case(text, truth, exact=True)
        else:
            yield Case(rng.choice(_DAMAGES)(rng, text), None, exact=False)
