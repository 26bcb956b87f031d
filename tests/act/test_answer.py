"""What a process answers fits the slot of a black box, whatever happened, and is JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from memwarden.act.answer import answer, complaint
from memwarden.blackbox import BlackBox, read_answer
from memwarden.facts import Level, Outcome
from memwarden.testing import pressure

if TYPE_CHECKING:
    from pathlib import Path


def outcome(text: str) -> Outcome:
    return Outcome(
        action=text, reason=text, before_bytes=2**50, after_bytes=2**49, duration_s=1 / 3, unix_s=1.8e9,
        objects=2**40, error=text,
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 5, 200])
@pytest.mark.parametrize("text", ["trim", "x" * 5000, "\u20ac\0\n\u2028" * 500, '"\\' * 300])
def test_an_answer_survives_the_slot(count: int, text: str, tmp_path: Path) -> None:
    verdict = pressure(Level.EMERGENCY).verdict
    assert verdict is not None
    box = BlackBox(str(tmp_path), pid=1, unix_s=1.0, monotonic_s=1.0)
    assert box.path is not None
    box.answer(7, answer("cleanup --all", [outcome(text)] * count, verdict))
    found = json.loads(read_answer(box.path, 7) or "")
    assert (found["verb"], found["level"]) == ("cleanup --all", "EMERGENCY")
    assert len(found["outcomes"]) + found["left_out"] == count
    if text == "trim" and count:
        assert found["outcomes"][0] == {
            "action": "trim", "before_bytes": 2**50, "freed_bytes": 2**49, "duration_s": 0.333333, "objects": 2**40,
            "error": "trim",
        }  # fmt: skip


def test_a_complaint_fits_too() -> None:
    assert json.loads(complaint("x", "why"))["error"] == "why"
    assert len(complaint('"' * 9000, "\U0001f600\0" * 9000)) <= 940
