"""The tree of errors is the one its docstring draws, and every error is one line."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from typing import Any

import pytest

from memwarden import errors
from memwarden.errors import (
    AsyncServiceError,
    BlackBoxError,
    CheckpointError,
    ChunkError,
    ChunkTimeoutError,
    CircularDependencyError,
    ConfigError,
    ContainerClosedError,
    DeliveryError,
    FactoryError,
    FlowError,
    HandlerError,
    JobError,
    KeyOrderError,
    MemoryPressureError,
    MemoryRefused,
    MemwardenError,
    MissingExtraError,
    NotBorrowedError,
    NotPermittedError,
    OversizeError,
    PoolClosedError,
    PoolError,
    PoolTimeoutError,
    ProcessNotFoundError,
    ReleasedError,
    ServiceError,
    ServiceFactoryError,
    ServiceNotFoundError,
    SourceError,
    StatementError,
    StoreError,
    SuperviseError,
    TraceError,
    UnitError,
)


def _classes() -> dict[str, type[MemwardenError]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, MemwardenError)
    }


def _drawn() -> dict[str, tuple[str, set[str]]]:
    """name -> (parent as drawn, other bases in brackets)."""
    found: dict[str, tuple[str, set[str]]] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│ ├└─]*)(\w+Error|MemoryRefused)(?: \((\w+)\))?", line)
        if match is None or (not match[1] and match[2] != "MemwardenError"):
            continue
        depth = len(match[1]) // 4
        del parents[depth:]
        found[match[2]] = (parents[-1] if parents else "Exception", {match[3]} if match[3] else set())
        parents.append(match[2])
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {
        name: (found.__bases__[0].__name__, {base.__name__ for base in found.__bases__[1:]})
        for name, found in _classes().items()
    }
    assert len(real) > 5
    assert _drawn() == real


_ONE_OF_EACH = (
    MemwardenError("broke", where="here", mend="mend it"),
    ConfigError("broke"),
    MemoryPressureError("refused", usage_bytes=9, threshold=0.8, limit_bytes=10, holders=(("cache", 5),)),
    UnitError("broke", mend="mend it"),
    MissingExtraError("the table", "rich"),
    ProcessNotFoundError(99),
    NotPermittedError("belongs to root", where="/proc/1"),
    TraceError("broke", where="a.csv:3"),
    BlackBoxError("broke", where="x.box"),
    FlowError("broke"),
    SourceError("broke", rows=5),
    HandlerError("broke", first=1, last=2, chunk=3),
    OversizeError("broke", index=1, size_bytes=2, target_bytes=1),
    ReleasedError("broke"),
    PoolError("broke", pool="p"),
    PoolTimeoutError("none came", pool="p", sites=(("a.py:3, in f", 2),), mend="wait"),
    PoolClosedError("it is closed", pool="p"),
    FactoryError("its factory f hung", pool="p", factory="f", hung=True),
    NotBorrowedError("returned twice", pool="p", again=True),
    ServiceError("broke", key="k"),
    ServiceNotFoundError("nothing is there", key="k"),
    ServiceFactoryError("raised", key="k", path=("a", "k")),
    AsyncServiceError("can only be awaited", key="k"),
    ContainerClosedError("it is closed", key="k"),
    CircularDependencyError(("a", "b", "a")),
    MemoryRefused("MemoryError", soft_bytes=1, limit_bytes=2),
    SuperviseError("broke"),
    StoreError("broke"),
    DeliveryError("answered 503", where="alerts.ops", retry_after_s=2.0),
    JobError("broke"),
    StatementError("broke"),
    KeyOrderError("broke"),
    CheckpointError.taken("copy"),
    ChunkTimeoutError("broke"),
    ChunkError("broke", chunk="ab", low=(1,), high=(2,), rows=1),
)


def test_one_of_each_is_tried_here() -> None:
    assert {type(each) for each in _ONE_OF_EACH} == set(_classes().values())


@pytest.mark.parametrize("error", _ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_an_error_is_one_line_and_has_an_exit_code(error: MemwardenError) -> None:
    assert str(error).isprintable()
    expected = 125 if isinstance(error, SuperviseError) else 1 if isinstance(error, FlowError) else 2
    assert error.exit_code == expected


def test_what_where_and_how_to_mend_stand_in_that_order() -> None:
    assert str(_ONE_OF_EACH[0]) == "here: broke; mend it"
    assert str(MissingExtraError("the table", "rich")) == "the table needs an extra; pip install 'memwarden[rich]'"


def test_foreign_text_cannot_break_the_line_or_move_the_cursor() -> None:
    hostile = MemwardenError("bro\nke", where="a\rb\x1b[2J\u2028c\ud800", mend="m\0")
    assert str(hostile) == "a\\rb\\x1b[2J\\u2028c\\ud800: bro\\nke; m\\x00"


def test_the_bases_from_the_language_are_caught_as_such() -> None:
    assert isinstance(UnitError("x"), ValueError)
    assert isinstance(MissingExtraError("x", "y"), ImportError)


@pytest.mark.parametrize("error", _ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error: MemwardenError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.args == error.args


@pytest.mark.parametrize("error", _ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_an_error_is_made_again_from_its_class_and_arguments(error: MemwardenError) -> None:
    """So Celery's results carry errors, as JSON: an error that cannot be made so reaches nobody who catches it."""
    made_of: tuple[type[MemwardenError], tuple[Any, ...]] = type(error), error.args
    back = made_of[0](*made_of[1])
    assert (str(back), vars(back), back.args) == (str(error), vars(error), error.args)
    of_json = made_of[0](*json.loads(json.dumps(made_of[1])))
    assert str(of_json) == str(error)
    assert json.dumps(vars(of_json)) == json.dumps(vars(error))


@pytest.mark.parametrize("error", _ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_a_copy_of_an_error_has_all_of_it(error: MemwardenError) -> None:
    back = copy.copy(error)
    assert (type(back), str(back), vars(back), back.args) == (type(error), str(error), vars(error), error.args)


def test_what_comes_out_of_json_as_lists_are_tuples_again() -> None:
    refused = MemoryPressureError(*json.loads('["refused", 9, 0.8, 10, true, null, [["cache", 5]], null]'))
    assert refused.holders == (("cache", 5),)
    assert PoolTimeoutError(*json.loads('["none", "p", "wait", [["a.py:3", 2]]]')).sites == (("a.py:3", 2),)
    assert ServiceFactoryError(*json.loads('["raised", "k", ["a", "k"], null]')).path == ("a", "k")
    assert CircularDependencyError(*json.loads('[["a", "b", "a"]]')).path == ("a", "b", "a")


def test_an_error_that_is_a_languages_own_has_no_number_of_it() -> None:
    timeout = ChunkTimeoutError("took too long", where="here", mend="wait")
    assert (timeout.errno, timeout.strerror) == (None, None)
    assert MissingExtraError("the table", "rich").msg == "the table needs an extra"
