"""Starts a service beside a supervisor, and not below it: there it would be counted, and ended with the command.

It has a session of its own and its parent ends at once, so init (or a subreaper above us) adopts it. It ends by itself
when the supervisor is gone, nobody else is guarded and what there was to tell is told. Where a service runs for the
folder already, the new one finds that and ends.
"""

from __future__ import annotations

import os
import sys

# What the new service is started by; -m finds the package as this process did.
_WORDS = ("-m", "memwarden", "serve", "--quiet", "--beside", "--until")


def start(supervisor_pid: int) -> None:
    """Start it, and wait for nothing but the process between. Raises OSError where no process can be had."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        os.execv(sys.executable, [sys.executable, *_WORDS, str(supervisor_pid)])
    finally:
        os._exit(127)  # never back into the program that forked
