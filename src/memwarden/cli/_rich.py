"""The table of `monitor` drawn with rich, when asked for: the last lines in a frame, and the processes of a group."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from memwarden.cli._table import cells, clock_text, growth, notes, printable, size
from memwarden.errors import MissingExtraError
from memwarden.facts import Level

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise MissingExtraError("--rich", "rich") from error

if TYPE_CHECKING:
    from memwarden.cli._table import Line

_STYLES = {Level.WARNING: "yellow", Level.CRITICAL: "red", Level.EMERGENCY: "bold white on red"}
_FRAME_LINES = 6


class RichTable:
    """Draws over itself. rich draws in no thread of its own here, and honours NO_COLOR."""

    def __init__(self, *, title: str, fine: bool) -> None:
        self._console = Console()
        self._title, self._fine = title, fine
        self._lines: deque[Line] = deque(maxlen=200)
        self._first: dict[int, int] = {}
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def add(self, line: Line) -> None:
        """Show one sample."""
        self._lines.append(line)
        parts = self._parts(line) if line.sample.processes is not None else None
        room = self._console.height - _FRAME_LINES - (parts.row_count + 4 if parts is not None else 0)
        table = self._history(max(room, 1))
        self._live.update(Group(table, parts) if parts is not None else table, refresh=True)

    def end(self) -> None:
        """Leave the last picture and give the cursor back."""
        self._live.stop()

    def _history(self, room: int) -> Table:
        shown = list(self._lines)[-room:]
        heads = list(cells(shown[-1]))
        table = Table(title=Text(printable(self._title)), title_justify="left", header_style="bold")
        table.add_column("time", no_wrap=True)
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        marked = any(_marked(line) for line in shown)
        if marked:
            table.add_column("")
        for line in shown:
            found = cells(line)
            when = clock_text(line.sample.reading.unix_s, dated=False, fine=self._fine)
            row = [Text(found.get(head, "-"), style=_style(line, head)) for head in heads]
            note = [Text(_marked(line))] if marked else []
            table.add_row(Text(when, style="bold red" if line.above else ""), *row, *note)
        return table

    def _parts(self, line: Line) -> Table:
        sample = line.sample
        self._first = {each.pid: self._first.get(each.pid, each.held_bytes) for each in sample.parts}
        table = Table(header_style="bold")
        for head in ("pid", "current", "rss", "since seen"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("command", no_wrap=True, overflow="ellipsis")
        for each in sample.parts[: max(self._console.height // 2, 1)]:
            change = growth(each.held_bytes - self._first[each.pid])
            name = Text(printable(sample.names.get(each.pid, "")))
            table.add_row(str(each.pid), size(each.held_bytes), size(each.rss_bytes), change, name)
        return table


def _style(line: Line, head: str) -> str:
    return _STYLES.get(line.level, "") if head == "level" else ""


def _marked(line: Line) -> str:
    return "; ".join(word for word in ("above the threshold" if line.above else "", notes(line)) if word)
