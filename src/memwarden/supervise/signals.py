"""Which signal is for whom.

The command stays in our process group and on our terminal, so what the terminal sends (Ctrl-C, Ctrl-Z, a
resize) it already has: only what was sent to us alone is handed on. The kernel says which is which: a signal
made by the terminal carries SI_KERNEL, one made by kill(2) carries SI_USER and the sender. What cannot be
told apart is a kill(2) of the whole group from outside it: the command then gets that signal twice.

All signals are blocked and taken one by one with sigtimedwait(2), the only place where the supervisor sleeps.
"""

from __future__ import annotations

import os
import signal

# include/uapi/asm-generic/siginfo.h
_SENT_BY_A_PROCESS = (0, -1, -6)  # SI_USER, SI_QUEUE, SI_TKILL

# Raised by our own bug or the hardware: blocking them would make an endless loop of the fault.
_OURS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}
TAKEN = frozenset(signal.valid_signals() - _OURS - {signal.SIGKILL, signal.SIGSTOP})

# What the terminal makes to end a program. Others of its signals (stops, resizes) ask for no end.
FROM_KEYBOARD = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

FORWARD, SEEN, IGNORE, REAP, CONTINUE = "forward", "seen", "ignore", "reap", "continue"


def route(number: int, code: int, *, from_tree: bool, same_group: bool, session_leader: bool) -> str:
    """What to do with a signal.

    `from_tree`: its sender is the command, one of its descendants or ourselves. `same_group`: the command is
    in our process group. `session_leader`: we are one, and then a hang-up comes to us alone.
    """
    if number == signal.SIGCHLD:
        return REAP
    if number == signal.SIGCONT:
        return CONTINUE
    if code in _SENT_BY_A_PROCESS:
        return IGNORE if from_tree else FORWARD
    if number == signal.SIGHUP and session_leader:
        return FORWARD
    return SEEN if same_group or number not in FROM_KEYBOARD else FORWARD


def block() -> set[int]:
    """Take all signals into our own hands; returns the mask that the command must get back."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would let children vanish unseen
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN))


def pause(seconds: float) -> None:
    """Wait without taking a signal."""
    signal.sigtimedwait((), seconds)


def stop_ourselves() -> None:
    """Stop, so that the shell sees its job stopped. Returns when we are continued.

    By SIGSTOP and not by the signal that stopped the command: that one would have to be unblocked for it, and a
    second one that came before it is blocked again would stop us alone. What the terminal sent us meanwhile goes
    away with the SIGCONT. A session leader has no shell above it that could ever continue it.
    """
    if os.getsid(0) != os.getpid():
        os.kill(os.getpid(), signal.SIGSTOP)
