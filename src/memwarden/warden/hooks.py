"""Hooks of the process for every Warden that runs: a forked child begins anew, and at exit each says goodbye."""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.warden import Warden

_running: weakref.WeakSet[Warden] = weakref.WeakSet()
_hooked = False


def follow(warden: Warden) -> None:
    """A forked child gets a loop of its own (gunicorn --preload, multiprocessing): threads do not survive a fork.

    And at interpreter exit every running one says goodbye. One pair of hooks per process, for all of them.
    """
    global _hooked  # noqa: PLW0603  a hook of os.register_at_fork cannot be taken back
    _running.add(warden)
    if not _hooked:
        import atexit

        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=_restart_in_child)
        atexit.register(_say_goodbye)
        _hooked = True


def unfollow(warden: Warden) -> None:
    """It does not run any more."""
    _running.discard(warden)


def _restart_in_child() -> None:
    for warden in tuple(_running):
        warden._after_fork()  # noqa: SLF001


def _say_goodbye() -> None:
    for warden in tuple(_running):
        warden._goodbye()  # noqa: SLF001
