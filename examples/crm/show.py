"""How the demo talks: headed steps, plain words, and a table with one aligned row per second.

Rows are appended and never rewritten, so a terminal, a pipe and a log show the same. Colours only on a
terminal, and not where NO_COLOR is set (no-color.org).
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

COLOURS = {"NORMAL": "32", "WARNING": "33", "CRITICAL": "31", "EMERGENCY": "1;31", "down": "1;31"}
HEADS = f"{'time':>6}  {'answered':>8}  {'used':>9}  {'limit':>9}  {'full':>5}  {'level':<9}  what happened"


class Show:
    """Prints to one stream; `started_s` is when the clock of the table began."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.current = 0
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def step(self, number: int, title: str) -> None:
        """The heading of a step."""
        self.current = number
        self.say(f"\n{self._paint(f'{number}. {title}', '1')}")

    def say(self, text: str) -> None:
        """A line or a paragraph, at once and not when a buffer is full."""
        print(text, flush=True)

    def quote(self, lines: Iterable[str]) -> None:
        """What another program said, word for word."""
        for line in lines:
            self.say(f"   | {line.rstrip()}")

    def clock_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.started_s

    def heads(self) -> None:
        """The head of the table."""
        self.say(self._paint(HEADS, "4"))

    def row(self, answered: int, seen: Mapping[str, Any], happened: Iterable[str]) -> None:
        """One second of the table: requests answered, what was seen of memory, and what happened."""
        used, limit, level = seen["used_bytes"], seen["limit_bytes"], seen["level"]
        full = f"{used / limit:.0%}" if used is not None and limit else "?"
        clock = f"{self.clock_s():.0f} s"
        figures = f"{clock:>6}  {answered:>8,}  {mib(used):>9}  {mib(limit):>9}  {full:>5}  "
        words = [line for text in happened for line in textwrap.wrap(text, 60)] or [""]
        self.say(figures + self._paint(f"{level:<9}", COLOURS.get(level, "0")) + f"  {words[0]}".rstrip())
        for line in words[1:]:
            self.say(" " * (len(figures) + 11) + line)

    def _paint(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text


def mib(size_bytes: int | None) -> str:
    """Bytes in MiB, "?" where unknown."""
    return "?" if size_bytes is None else f"{size_bytes / 2**20:.1f} M"
