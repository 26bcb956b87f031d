"""Which errors may pass by themselves, by the codes of each database; and how long is waited."""

from __future__ import annotations

import sqlite3
from typing import Any

import pymysql
import pytest
from sqlalchemy import exc

from memwarden.flow.database.faults import Patience, is_transient


class _CodedError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("from the server")
        self.sqlstate = sqlstate


def _sqlite(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("from the library")
    error.sqlite_errorcode = code
    return error


def _wrapped(origin: Any, *, lost: bool = False) -> exc.DBAPIError:
    return exc.OperationalError("SELECT 1", {}, origin, connection_invalidated=lost)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_wrapped(_CodedError("40P01")), True),
        (_wrapped(_CodedError("08006")), True),
        (_wrapped(_CodedError("57P01")), True),
        (_wrapped(_CodedError("55P03")), True),
        (_wrapped(_CodedError("42703")), False),
        (_wrapped(_CodedError("23505")), False),
        (_wrapped(_sqlite(5)), True),
        (_wrapped(_sqlite(6 | 1 << 8)), True),
        (_wrapped(_sqlite(1)), False),
        (_wrapped(pymysql.err.OperationalError(1205, "lock")), True),
        (_wrapped(pymysql.err.OperationalError(1213, "deadlock")), True),
        (_wrapped(pymysql.err.OperationalError(1054, "no column")), False),
        (_wrapped(pymysql.err.OperationalError(1054, "no column"), lost=True), True),
        (_wrapped(Exception("connection refused")), True),
        (_wrapped(Exception("syntax error")), False),
        (exc.TimeoutError("the pool has none"), True),
        (ConnectionResetError(), True),
        (ValueError("connection"), False),
    ],
)
def test_what_may_pass_by_itself(error: BaseException, expected: bool) -> None:
    assert is_transient(error) is expected


def test_waits_double_up_to_half_a_minute_and_take_a_random_part() -> None:
    waited: list[float] = []
    patience = Patience(20, waited.append, chance=lambda: 1.0)
    for attempt in range(1, 13):
        patience.wait(attempt)
    assert waited[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waited[-1] == 30.0
    Patience(1, waited.append, chance=lambda: 0.25).wait(3)
    assert waited[-1] == 0.1
