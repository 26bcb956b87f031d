"""What may go away by itself: lost connections, lock time-outs, deadlocks; and how long to wait before trying again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patience", "is_transient"]

# SQLSTATE: connection (08), serialisation and deadlock (40), out of connections (53300), shutdown (57P), lock not
# available (55P03), idle in transaction time-out (25P03); postgresql.org/docs/15/errcodes-appendix.html.
_STATES = ("08", "40", "53300", "57P", "55P03", "25P03")
# MariaDB and MySQL: too many connections, shutdown, packets lost (115x, 116x), lock time-out, deadlock, interrupted,
# NOWAIT, gone away, lost, out of sync; mariadb.com/kb/en/mariadb-error-code-reference.
_CODES = frozenset(
    {1040, 1053, 1158, 1159, 1160, 1161, 1205, 1213, 1317, 1927, 3572, 4031, 2002, 2003, 2006, 2013, 2014, 2055}
)
# SQLITE_BUSY, SQLITE_LOCKED, SQLITE_IOERR_LOCK among others: the low byte says.
_SQLITE = frozenset({5, 6})

_WORDS = ("connection", "server closed", "locked")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 30.0


def is_transient(error: BaseException) -> bool:
    """Whether the same may work a moment later."""
    if isinstance(error, exc.TimeoutError):  # no connection of the pool was free
        return True
    if not isinstance(error, exc.DBAPIError):
        return isinstance(error, (ConnectionError, exc.InvalidatePoolError))
    if error.connection_invalidated:
        return True
    origin: Any = error.orig
    arguments = getattr(origin, "args", ())
    if arguments and isinstance(arguments[0], int):  # MariaDB's and MySQL's own; its SQLSTATE says only "general"
        return arguments[0] in _CODES
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    if state:
        return str(state).startswith(_STATES)
    if getattr(origin, "sqlite_errorcode", None) is not None:
        return origin.sqlite_errorcode & 0xFF in _SQLITE
    # No code at all: the driver could not even ask (connection refused, closed in the middle).
    text = str(origin).lower()
    return isinstance(error, (exc.OperationalError, exc.InterfaceError)) and any(word in text for word in _WORDS)


class Patience:
    """So many further tries, each after a wait: 0.1 s doubled each time, at most 30 s, of which a random part is taken.

    The random part keeps many processes that lost the same server from coming back at once (Brooker, "Exponential
    backoff and jitter", 2015: full jitter).
    """

    def __init__(
        self, retries: int, pause: Callable[[float], None], *, chance: Callable[[], float] = random.random
    ) -> None:
        self.retries = retries
        self._pause = pause
        self._chance = chance

    def wait(self, attempt: int) -> None:
        """Wait after this attempt, the first is 1."""
        self._pause(self._chance() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 20)))
