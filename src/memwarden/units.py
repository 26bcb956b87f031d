"""Sizes, ratios and durations to text and back: the only parser of "512M", "80%" and "15s".

Sizes are binary whatever their suffix (1 MB is 2**20 bytes, as the kernel and every container platform count).
Ratios: up to but not including 1 they are fractions, above 1 they are percent; exactly 1 could be either and is
refused. Durations are float seconds. Nothing else in memwarden turns text into a quantity.
"""

from __future__ import annotations

import re

from memwarden.errors import UnitError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Larger than any address space: text above it is a mistake, not a size (2**60 is an exbibyte).
MAX_BYTES = 1 << 60

# Longer text is refused before it is looked at: no quantity needs it, and Python's own int() refuses 4,300 digits.
_LONGEST = 100
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgtp]?)(i?)(b?)\s*", re.IGNORECASE | re.ASCII)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)\s*", re.ASCII)
_DURATION_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|min|m|h|d|w)", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

SIZE_HELP = "write a size such as 512M, 1.5G or 536870912"
RATIO_HELP = "write a fraction such as 0.8 or a percentage such as 80%"
DURATION_HELP = "write a duration such as 500ms, 15s, 5m or 1h30m"


def _number(value: object) -> float | None:
    """A plain number as a float, NaN where it does not fit into one; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("nan")


def _match(pattern: re.Pattern[str], value: object) -> re.Match[str] | None:
    return pattern.fullmatch(value) if isinstance(value, str) and len(value) <= _LONGEST else None


def _show(value: object) -> str:
    """The value as it is quoted in a complaint: short, and of any type."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  an int of 5,000 digits has no repr, and a foreign object may have none
        return f"this {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def parse_bytes(value: str | float, *, where: str | None = None) -> int:
    """A size in bytes, from 1 to 2**60: "512M", "512MB" and "512MiB" are all 512 * 2**20.

    Raises UnitError, naming `where`, for anything else: negative, zero, not finite, unknown suffix.
    """
    number = _number(value)
    if number is not None:
        size: float = value if isinstance(value, int) else number  # a float would round a large int
    else:
        match = _match(_SIZE, value)
        if match is None or (match[3] and not match[2]):
            raise UnitError(f"{_show(value)} is not a size", where=where, mend=SIZE_HELP)
        size = (float(match[1]) if "." in match[1] else int(match[1])) * 1024 ** _POWER[match[2].lower()]
    if not 1 <= size <= MAX_BYTES:
        raise UnitError(f"{_show(value)} is not a usable size", where=where, mend=SIZE_HELP)
    return int(size)


def parse_ratio(value: str | float, *, where: str | None = None) -> float:
    """A threshold as a fraction: 0.8, "0.8", 80, "80" and "80%" are all 0.8; "100%" is 1.0.

    Exactly 1 without a percent sign is refused: it could mean 1 % or 100 %. So is anything outside 0-100 %.
    """
    number, percent = _number(value), False
    if number is None:
        match = _match(_NUMBER, value)
        if match is None:
            raise UnitError(f"{_show(value)} is not a ratio", where=where, mend=RATIO_HELP)
        number, percent = float(match[1]), bool(match[2])
    if number == 1 and not percent:
        raise UnitError(f"{_show(value)} is ambiguous: 1 % or 100 %?", where=where, mend='write "1%" or "100%"')
    if percent or number > 1:
        number /= 100
    if not 0 <= number <= 1:
        raise UnitError(f"{_show(value)} is not between 0 and 100 %", where=where, mend=RATIO_HELP)
    return number


def parse_probability(value: str | float, *, where: str | None = None) -> float:
    """A rate or probability, always 0-1: 1 means always. A percent sign is understood."""
    number = _number(value)
    if number is None:
        match = _match(_NUMBER, value)
        number = -1.0 if match is None else float(match[1]) / (100 if match[2] else 1)
    if not 0 <= number <= 1:
        raise UnitError(f"{_show(value)} is not between 0 and 1", where=where, mend="write a number from 0 to 1")
    return number


def parse_duration(value: str | float, *, where: str | None = None) -> float:
    """A duration in seconds, zero or more: 15, "15", "15s", "500ms", "1h30m", "2 min 5 s"."""
    seconds = _number(value)
    if seconds is None:
        plain = _match(_NUMBER, value)
        if plain is not None and not plain[2]:
            seconds = float(plain[1])
        else:
            seconds = _sum_of_parts(value) if isinstance(value, str) and len(value) <= _LONGEST else -1.0
    # Three hundred years: past it a float of seconds loses what sleeping needs, and it is a mistake anyway.
    if not 0 <= seconds < 1e10:
        raise UnitError(f"{_show(value)} is not a duration", where=where, mend=DURATION_HELP)
    return seconds


def _sum_of_parts(text: str) -> float:
    total, end = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != end:
            return -1.0
        total += float(part[1]) * _SECONDS[part[2].lower()]
        end = part.end()
    return total if end and not text[end:].strip() else -1.0


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


def parse_bool(value: object, *, where: str | None = None) -> bool:
    """A switch: true/false, yes/no, on/off, 1/0, in any case."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return value == 1
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise UnitError(f"{_show(value)} is not a switch", where=where, mend="write true or false")


# Past it, and for NaN and infinity, a number says nothing to people.
_HUGE = 1e300


def format_bytes(size: float | None) -> str:
    """A size for people: "512 MiB", "1.5 GiB", "-3.2 KiB", "unknown"."""
    if size is None or not abs(size) < _HUGE:
        return "unknown"
    if abs(size) < KIB:
        return f"{int(size)} B"
    number = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        number /= 1024
        if abs(number) < 1023.95 or unit == "TiB":
            break
    text = f"{number:.1f}".removesuffix(".0")
    return f"{text} {unit}"


def format_ratio(ratio: float | None) -> str:
    """A fraction for people: "87.3 %", "unknown"."""
    if ratio is None or not abs(ratio) < _HUGE:
        return "unknown"
    return f"{ratio * 100:.1f}".removesuffix(".0") + " %"


def format_duration(seconds: float | None) -> str:
    """A duration for people: "12 ms", "3.4 s", "2 min 5 s", "1 h 30 min", "3 d 4 h", "unknown"."""
    if seconds is None or not abs(seconds) < _HUGE:
        return "unknown"
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for big, name, small, small_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"
