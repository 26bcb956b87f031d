"""Plots as inline SVG text: no script, no font, no address; colours come from the page's style sheet."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from memwarden.units import GIB, KIB, MIB, format_bytes, format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Point = tuple[float, float]

WIDTH, HEIGHT = 960.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 118.0, 18.0, 34.0
LABEL_APART = 13.0  # two labels nearer than that would touch

_TIME_STEPS_S = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
    2 * 86400, 7 * 86400, 14 * 86400, 28 * 86400,
)  # fmt: skip


def round_step(span: float, most: int, steps: Iterable[float]) -> float:
    """The smallest of the steps that cuts the span into at most so many parts; the last one doubled on."""
    step = 1.0
    for candidate in steps:
        step = candidate
        if span / step <= most:
            return step
    while span / step > most:
        step *= 2
    return step


def size_step(span_bytes: float) -> float:
    """A step of an axis of sizes: 1, 2, 2.5 or 5 times a power of ten of the unit that fits."""
    unit = GIB if span_bytes >= 4 * GIB else MIB if span_bytes >= 2 * MIB else KIB if span_bytes >= 2 * KIB else 1
    return round_step(span_bytes, 6, (unit * m * 10**p for p in range(6) for m in (1, 2, 2.5, 5)))


def time_step(span_s: float) -> float:
    """A step of an axis of time: a length that people count in."""
    return round_step(span_s, 8, _TIME_STEPS_S)


class Plot:
    """One chart under construction: two scales, and the parts drawn so far."""

    def __init__(self, name: str, *, x: tuple[float, float], y: tuple[float, float], height: float = HEIGHT) -> None:
        self.name = name
        self.height = height
        self._x0, self._x1 = x
        self._y0, self._y1 = y
        self._parts: list[str] = []
        self._labels: list[tuple[float, str, str]] = []

    def x(self, value: float) -> float:
        """Data to picture, across."""
        return LEFT + (value - self._x0) / ((self._x1 - self._x0) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Data to picture, down."""
        room = self.height - TOP - BOTTOM
        return self.height - BOTTOM - (value - self._y0) / ((self._y1 - self._y0) or 1.0) * room

    def grid_y(self, step: float, text: Callable[[float], str]) -> None:
        """Horizontal lines with their values to the left."""
        for value in _multiples(self._y0, self._y1, step):
            y = self.y(value)
            self._add(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._add(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text(value)}</text>')

    def grid_x(self, step: float, text: Callable[[float], str]) -> None:
        """Ticks below, with their values."""
        base = self.height - BOTTOM
        self._add(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        for value in _multiples(self._x0, self._x1, step):
            x = self.x(value)
            self._add(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>')
            self._add(f'<text class="tick" x="{x:.1f}" y="{base + 19}" text-anchor="middle">{text(value)}</text>')

    def line(self, style: str, points: Sequence[Point]) -> None:
        """Points joined by a line."""
        if len(points) == 1:
            self.dot(style, *points[0], radius=1.5)
        else:
            self._add(f'<polyline class="{style}" points="{self._points(points)}"/>')

    def area(self, style: str, points: Sequence[Point]) -> None:
        """A filled shape."""
        self._add(f'<polygon class="{style}" points="{self._points(points)}"/>')

    def dot(self, style: str, x: float, y: float, *, radius: float = 4) -> None:
        """A point."""
        self._add(f'<circle class="{style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}"/>')

    def triangle(self, style: str, x: float, y: float) -> None:
        """A small mark that points down at a value."""
        px, py = self.x(x), self.y(y) - 5
        self._add(f'<path class="{style}" d="M{px:.1f} {py:.1f}l-5 -8h10z"/>')

    def text(self, style: str, x: float, y: float, words: str, *, anchor: str = "middle", rise: float = 9) -> None:
        """Words above a point."""
        px = min(max(self.x(x), LEFT + 4), WIDTH - RIGHT)
        at = f'x="{px:.1f}" y="{self.y(y) - rise:.1f}" text-anchor="{anchor}"'
        self._add(f'<text class="{style}" {at}>{escape(words)}</text>')

    def across(self, style: str, y: float, words: str) -> None:
        """A line from side to side, named at its right end."""
        py = self.y(y)
        self._add(f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        self._labels.append((py, style, words))

    def upright(self, style: str, x: float, words: str, *, level: int = 0) -> None:
        """A line from top to bottom, named beside its top."""
        px, top = self.x(x), TOP - 4
        self._add(f'<line class="{style}" x1="{px:.1f}" x2="{px:.1f}" y1="{top}" y2="{self.height - BOTTOM}"/>')
        self._add(f'<text class="{style}" x="{px + 5:.1f}" y="{top + 9 + level * LABEL_APART}">{escape(words)}</text>')

    def bar(self, style: str, x: Point, y: float) -> None:
        """A column from the ground up to a value, between two places across."""
        left, right, top = self.x(x[0]), self.x(x[1]), self.y(y)
        self._add(
            f'<rect class="{style}" x="{left + 0.5:.1f}" y="{top:.1f}" '
            f'width="{max(right - left - 1, 0.5):.1f}" height="{max(self.height - BOTTOM - top, 0):.1f}"/>'
        )

    def svg(self) -> str:
        """The whole picture."""
        return (
            f'<svg viewBox="0 0 {WIDTH:g} {self.height:g}" role="img" aria-label="{escape(self.name)}">'
            f"<title>{escape(self.name)}</title>{''.join(self._parts)}{''.join(self._placed())}</svg>"
        )

    def _placed(self) -> Iterable[str]:
        """The names at the right end, pushed apart where they would touch."""
        last = float("-inf")
        for y, style, words in sorted(self._labels):
            last = max(y, last + LABEL_APART)
            yield f'<text class="{style}" x="{WIDTH - RIGHT + 6}" y="{last + 4:.1f}">{escape(words)}</text>'

    def _add(self, part: str) -> None:
        self._parts.append(part)

    def _points(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _multiples(low: float, high: float, step: float) -> Iterable[float]:
    count = int(low // step)
    while count * step <= high * 1.0001:
        if count * step >= low:
            yield count * step
        count += 1


def size_text(value: float) -> str:
    """A size at an axis."""
    return "0" if value == 0 else format_bytes(value)


def time_text(value_s: float) -> str:
    """A time at an axis."""
    return "0" if value_s == 0 else format_duration(value_s)
