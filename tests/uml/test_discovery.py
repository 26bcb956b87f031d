"""A live sensor on a live kernel: the limit it finds, and the two bounds while memory of each kind is taken."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.uml.kernel import Result

pytestmark = pytest.mark.uml

MIB = 1 << 20
_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest_discovery.py")
_SLACK_BYTES = 6 * MIB  # what the interpreter and the kernel take meanwhile

_KINDS = {
    "v1": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    "v2": ("/sys/fs/cgroup", "memory.max"),
    "hybrid": ("/sys/fs/cgroup/unified", "memory.max"),
}


@pytest.fixture(scope="module", params=sorted(_KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def story(uml: Callable[..., Result], kind: str) -> dict[str, Any]:
    top, limit_file = _KINDS[kind]
    found: dict[str, Any] = uml([sys.executable, _PROGRAM, top, limit_file], cgroups=kind).json()
    return found


def _grown(story: dict[str, Any], name: str, *, before: str, after: str) -> int:
    return int(story["told"][after][name]) - int(story["told"][before][name])


def test_the_tighter_of_two_nested_limits_is_found(story: dict[str, Any], kind: str) -> None:
    top, limit_file = _KINDS[kind]
    start = story["told"]["start"]
    assert start["limit_bytes"] == 200 * MIB
    assert start["limit_source"] == f"{top}/outer/inner/{limit_file}"


def test_anonymous_memory_moves_both_bounds(story: dict[str, Any]) -> None:
    for bound in ("used_bytes", "used_low_bytes"):
        grown = _grown(story, bound, before="start", after="anonymous")
        assert abs(grown - 40 * MIB) < _SLACK_BYTES


def test_file_cache_moves_the_usage_and_not_what_is_used(story: dict[str, Any]) -> None:
    assert _grown(story, "usage_bytes", before="anonymous", after="cache") > 30 * MIB - _SLACK_BYTES
    for bound in ("used_bytes", "used_low_bytes"):
        assert abs(_grown(story, bound, before="anonymous", after="cache")) < _SLACK_BYTES


def test_files_in_memory_move_both_bounds(story: dict[str, Any]) -> None:
    for bound in ("used_bytes", "used_low_bytes"):
        grown = _grown(story, bound, before="cache", after="shared")
        assert abs(grown - 20 * MIB) < _SLACK_BYTES


def test_an_ancestor_that_shrinks_binds_within_half_a_minute(story: dict[str, Any], kind: str) -> None:
    top, limit_file = _KINDS[kind]
    assert story["told"]["soon after the ancestor shrank"]["limit_bytes"] == 200 * MIB
    later = story["told"]["half a minute after"]
    assert later["limit_bytes"] == 180 * MIB
    assert later["limit_source"] == f"{top}/outer/{limit_file}"


def test_where_the_kernel_counts_a_kill_that_an_ancestors_limit_caused(story: dict[str, Any], kind: str) -> None:
    """v2 counts at the victim and at every ancestor, v1 at the victim's own cgroup alone (memcg_memory_event)."""
    outer, inner = (story["counters"][f"{_KINDS[kind][0]}/{name}"] for name in ("outer", "outer/inner"))
    assert (outer, inner) == ((0, 1) if kind == "v1" else (1, 1))


def test_a_kernel_kill_below_the_binding_group_is_counted(story: dict[str, Any], kind: str) -> None:
    assert os.WTERMSIG(story["status"]) == signal.SIGKILL
    before, after = (story["told"][step]["oom_kills"] for step in ("half a minute after", "a child was killed"))
    assert before == 0
    assert after == 1
