"""What every adapter writes and says of messages that a worker can do nothing with, without any broker."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwarden.integrations.submitting import Submitting, Tally
from memwarden.jobs import Abilities, Ledger, Message, QueueCount
from memwarden.store import FILE_NAME, Store
from memwarden.testing import FakeClock


class Silent(Submitting):
    """An engine that sends nothing."""

    name, can = "silent", Abilities()

    def send(self, text: str, **options: Any) -> None:
        pass

    def statistics(self) -> tuple[QueueCount, ...]:
        return ()


def text_of(root: str, attempt: int = 0) -> str:
    return Message(job="a job", root=root, part=0, attempt=attempt).encode()


def test_a_part_whose_job_is_not_known_comes_again_ever_later_and_has_the_reason(tmp_path: Any) -> None:
    clock = FakeClock()
    with Store(os.fspath(tmp_path)) as store:
        ledger = Ledger(store, clock=clock)
        jobs = Silent(ledger=ledger)
        root, _ = ledger.submit("a job", {}, engine="silent")
        pauses = []
        for _ in range(8):
            (message,) = ledger.unsent("silent")
            ledger.mark_sent(message)
            jobs.refused(text_of(root), "is not known here")
            pauses.append(ledger.next_due_s("silent"))
            assert ledger.unsent("silent") == []
            clock.advance(pauses[-1] or 0.0)
        assert pauses == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60])
        ((part, _),) = ledger.due("silent")
        assert part.error == "is not known here"


def test_a_message_of_another_ledger_is_said_once_and_one_of_this_never(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Silent(folder=os.fspath(tmp_path))
    known, _ = jobs.ledger.submit("a job", {}, engine="silent")
    with caplog.at_level(logging.WARNING, logger="memwarden.jobs"):
        for root in (known, "b" * 24, known, "b" * 24):
            jobs.dropped(text_of(root))
    (record,) = caplog.records
    line = record.getMessage()
    assert f"job '{'b' * 24}' is not in the ledger of this worker ({tmp_path}/{FILE_NAME})" in line
    assert "MEMWARDEN_DIR or MEMWARDEN_LEDGER" in line
    jobs.close()


@given(st.lists(st.sampled_from([f"name {number}" for number in range(20)]), max_size=60))
def test_a_tally_never_counts_too_much(names: list[str]) -> None:
    """And misses only what another name pushed out of its place."""
    tally = Tally()
    for index, name in enumerate(names):
        assert 1 <= tally.add(name) <= names[: index + 1].count(name)


def test_a_tally_ends_counting_and_not_working() -> None:
    tally = Tally()
    assert [tally.add("name") for _ in range(300)][-2:] == [Tally.MOST, Tally.MOST]
