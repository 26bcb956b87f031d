"""Small real programs, leaking and healthy, to be recorded (see `benchmarks.leaks.record`).

A leaking program prepares itself and returns one operation; its mended twin does the same work and lets go. A
healthy program paces itself and returns nothing. `cause` is what a verdict with all columns ought to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[Any], Any]


class Family(dict[str, "Make"]):
    """Programs by name; used as a decorator that also notes the cause and the package needed."""

    def add(self, cause: str, *, needs: str = "") -> Callable[[Make], Make]:
        """Register the decorated program."""

        def register(make: Make) -> Make:
            make.cause, make.needs = cause, needs  # type: ignore[attr-defined]
            self[make.__name__] = make
            return make

        return register
