"""The plain table of `monitor`: the same columns on a terminal and in a pipe.

On a terminal lines scroll, as vmstat's do, so that what was stays readable and can be copied; the header comes again
with every screen. A group of processes is a block that is drawn again in place. In a pipe: the header once, one line
per sample, full dates, no escape codes.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from memwarden.facts import Fact, Level
from memwarden.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from memwarden.cli._export import Outlet
    from memwarden.cli._targets import Sample
    from memwarden.sense.tree import Usage

# Column heads and widths; the limit's own scope is a column of its own where it is not the target's.
_SIZE = 10
_HEADS = {
    "procs": 5, "current": _SIZE, "rss sum": _SIZE, "peak": _SIZE, "growth/min": 11, "used": _SIZE,
    "limit": _SIZE, "used %": 6, "level": 9,
}  # fmt: skip
# What a narrow terminal does without, in this order; 80 columns hold a process with a limit of its own.
_DROPPED = ("rss sum", "limit", "peak", "growth/min")
_COLOURS = {Level.WARNING: "33", Level.CRITICAL: "31", Level.EMERGENCY: "1;37;41"}
_SMALLEST_PAGE = 10


class Line(Fact):
    """One sample as it is shown: judged, with its growth, and whether it is above the threshold."""

    sample: Sample
    level: Level
    growth_bytes_per_minute: float | None
    above: bool
    reasons: str = ""


def size(number: float | None) -> str:
    """A size with one decimal always, so that the points stand below one another; "-" for unknown."""
    if number is None:
        return "-"
    value, _, unit = format_bytes(number).partition(" ")
    return f"{value} {unit}" if "." in value or unit == "B" else f"{value}.0 {unit}"


def growth(number: float | None) -> str:
    """A rate with its sign."""
    if number is None:
        return "-"
    return size(0) if abs(number) < 1 else ("+" if number > 0 else "") + size(number)


def scope_head(line: Line) -> str:
    """Whose memory counts against the limit, where that is not the target's own: a column's name, else nothing."""
    sample = line.sample
    if sample.reading.scope in ("container", "machine"):
        return sample.reading.scope if sample.usage is not None else ""
    return "virtual" if "RLIMIT" in sample.reading.limit_source else ""


def cells(line: Line) -> dict[str, str]:
    """The cells of one line by their heads, without the time."""
    sample, reading = line.sample, line.sample.reading
    found = {}
    if sample.processes is not None:
        found["procs"] = str(sample.processes)
    found["current"] = size(sample.current_bytes)
    if sample.processes is not None:
        found["rss sum"] = size(reading.rss_bytes)
    found["peak"] = size(sample.peak_bytes)
    found["growth/min"] = growth(line.growth_bytes_per_minute)
    if head := scope_head(line):
        found[head] = size(reading.used_bytes)
    found["limit"] = size(reading.limit_bytes)
    ratio = reading.pressure_ratio
    found["used %"] = "-" if ratio is None else f"{ratio * 100:.1f}%"
    found["level"] = line.level.name
    return found


def notes(line: Line) -> str:
    """What is to be said beside the figures: what is not as it seems."""
    said = list(line.sample.notes)
    ratio, own = line.sample.reading.pressure_ratio, line.sample.reading.usage_ratio
    if ratio is not None and own is not None and ratio > own + 0.001:
        said.append("a limit above this one is nearer")
    if line.reasons:
        said.append(line.reasons)
    return "; ".join(said)


def clock_text(unix_s: float, *, dated: bool, fine: bool) -> str:
    """Local time, with the date where the line may be read another day, with tenths where samples are that close."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S" if dated else "%H:%M:%S", time.localtime(unix_s))
    return f"{text}.{int(unix_s * 10 % 10)}" if fine else text


class Table:
    """Writes lines to an outlet. `terminal` and `colour` are found out by `on_terminal` and `wants_colour`."""

    def __init__(self, outlet: Outlet, *, terminal: bool, colour: bool, fine: bool, block: bool) -> None:
        self._outlet = outlet
        self._terminal = terminal
        self._colour = colour
        self._fine = fine
        self._block = block and terminal
        self._heads: tuple[str, ...] = ()
        self._since_head = 0
        self._drawn = 0
        self._first: dict[int, int] = {}

    def add(self, line: Line) -> None:
        """Show one sample."""
        when = clock_text(line.sample.reading.unix_s, dated=not self._terminal, fine=self._fine)
        found = cells(line)
        if self._terminal:
            found = _fitting(found, _screen().columns - len(when) - 2)
        heads = tuple(found)
        text = self._join(line, when, found)
        header = self._header(heads, len(when))
        if self._block:
            self._redraw([header, text, "", *self._parts(line)])
            return
        needed = heads != self._heads or (self._terminal and self._since_head >= _page())
        self._outlet.write((header + "\n" if needed else "") + text + "\n")
        self._since_head = 2 if needed else self._since_head + 1
        self._heads = heads

    def end(self) -> None:
        """Nothing is left open on a plain terminal."""

    def _header(self, heads: Iterable[str], width: int) -> str:
        return "  ".join(["  " + "time".ljust(width), *(_right(head, head) for head in heads)]).rstrip()

    def _join(self, line: Line, when: str, found: Mapping[str, str]) -> str:
        shown = [self._mark(line) + when]
        for head, cell in found.items():
            text = _right(head, cell)
            shown.append(self._paint(text, _COLOURS.get(line.level, "")) if head == "level" else text)
        return "  ".join([*shown, notes(line)]).rstrip()

    def _mark(self, line: Line) -> str:
        return self._paint("! ", "1;31") if line.above else "  "

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text

    # --- the block of a group ------------------------------------------------------------------------------------

    def _parts(self, line: Line) -> list[str]:
        """The processes, the largest first, as many as fit on the screen."""
        sample = line.sample
        self._first = {each.pid: self._first.get(each.pid, each.held_bytes) for each in sample.parts}
        room = max(_page() - 5, 1)
        rows = [f"  {'pid':>8}  {'current':>{_SIZE}}  {'rss':>{_SIZE}}  {'since seen':>11}  command"]
        rows += [self._part(each, sample.names) for each in sample.parts[:room]]
        if len(sample.parts) > room:
            rows.append(f"  and {len(sample.parts) - room} more")
        return rows

    def _part(self, usage: Usage, names: Mapping[int, str]) -> str:
        change = growth(usage.held_bytes - self._first[usage.pid])
        figures = f"{size(usage.held_bytes):>{_SIZE}}  {size(usage.rss_bytes):>{_SIZE}}  {change:>11}"
        return f"  {usage.pid:>8}  {figures}  {printable(names.get(usage.pid, ''))}"

    def _redraw(self, rows: list[str]) -> None:
        """Draw over the last block. A line that wrapped would count twice, so each is cut to the screen."""
        width = _screen().columns
        up = f"\x1b[{self._drawn}A\r\x1b[0J" if self._drawn else ""
        self._outlet.write(up + "".join(_cut(row, width) + "\n" for row in rows))
        self._drawn = len(rows)


def printable(text: str) -> str:
    """A foreign command line without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _fitting(found: dict[str, str], width: int) -> dict[str, str]:
    for head in _DROPPED:
        if sum(_HEADS.get(each, _SIZE) + 2 for each in found) <= width:
            break
        found.pop(head, None)
    return found


def _right(head: str, cell: str) -> str:
    return cell.rjust(_HEADS.get(head, _SIZE))


def _cut(row: str, width: int) -> str:
    """At most so many columns; escape codes take none, and a cut row is closed with a reset."""
    if "\x1b" not in row:
        return row[: width - 1]
    kept, columns, at = [], 0, 0
    while at < len(row) and columns < width - 1:
        if row[at] == "\x1b":
            end = row.index("m", at) + 1
            kept.append(row[at:end])
            at = end
        else:
            kept.append(row[at])
            columns, at = columns + 1, at + 1
    return "".join([*kept, "\x1b[0m"])


def _screen() -> os.terminal_size:
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return os.terminal_size((80, 24))
    return found if found.columns and found.lines else os.terminal_size((80, 24))


def _page() -> int:
    """Lines of a screen that may pass before the header scrolls away."""
    return max(_screen().lines - 2, _SMALLEST_PAGE)


def on_terminal() -> bool:
    """Whether standard output is a terminal that understands cursor movement."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def wants_colour() -> bool:
    """On a terminal, unless NO_COLOR says otherwise (no-color.org: any text that is not empty)."""
    return on_terminal() and not os.environ.get("NO_COLOR")
