"""What must be new in a forked child: locks that a thread of the parent may hold, and objects that are the parent's."""

from __future__ import annotations

import os
from _weakrefset import WeakSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Renewable(Protocol):
        """Whatever has something to renew."""

        def after_fork(self) -> None:
            """Called in the child, where no other thread runs."""


_watched: WeakSet[Renewable] = WeakSet()
_hooked = False


def renew_in_child(what: Renewable) -> None:
    """Have its `after_fork` called in every forked child, as long as it lives."""
    global _hooked  # noqa: PLW0603  a hook of os.register_at_fork cannot be taken back: once
    if not _hooked and hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_renew)
        _hooked = True
    _watched.add(what)


def _renew() -> None:
    for each in list(_watched):
        each.after_fork()
