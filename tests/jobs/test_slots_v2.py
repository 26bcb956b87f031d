"""The local runner's cgroups on a kernel with cgroup v2, in user-mode Linux."""

from __future__ import annotations

import textwrap

import pytest

from tests.uml.kernel import run_in_uml, uml_missing_reason

MISSING = uml_missing_reason()
pytestmark = [
    pytest.mark.uml, pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(240),
]  # fmt: skip

# Eight items at once take 128 MiB and an interpreter, where the slot has 120: the kernel kills. Four, or one, fit.
_PROGRAM = textwrap.dedent(
    """
    import json, os
    from memwarden.jobs import Runner
    from tests.jobs import work

    def read(path):
        with open(path) as file: return file.read()

    def groups():
        return sorted(path for path, _, _ in os.walk("/sys/fs/cgroup") if "memwarden" in path)

    given = {"count": 24, "mib": 16}
    anew = {"start": "spawn", "modules": ("tests.jobs.work",)}
    with Runner("/run/jobs", memory="400M", workers=2, fence="off", **anew) as runner:
        runner.begin()
        root = runner.submit(work.wide, given)
        runner.turn()
        (slot,) = [path for path in groups() if "/part-" in path]
        limits = [read(f"{slot}/{name}").strip() for name in ("memory.max", "memory.swap.max")]
        runner.run(until_idle=True)
        events = dict(line.split() for line in read(f"{slot}/memory.events").splitlines())
        status, attempts = runner.status(root), runner.ledger.attempts(root)
        seen = {"state": status.state, "endings": dict(status.endings), "quarantined": status.quarantined,
                "result": runner.result(root), "notes": [note for note in runner.notes if "cgroup" in note],
                "text": [each["text"] for each in attempts if each["ending"] == "oom_kill"],
                "killed": int(events["oom_kill"]), "limits": limits}
    whole = [item * (given["mib"] << 20) for item in range(given["count"])]
    print(json.dumps({**seen, "whole": whole, "left": groups()}))
    """
)


def test_a_part_that_its_slot_kills_goes_on_smaller_with_the_same_result() -> None:
    """Really killed by memory.max of its own cgroup, and told from a plain SIGKILL by its counter."""
    seen = run_in_uml(_PROGRAM, timeout_s=200).checked().json()
    assert seen["notes"] == []
    assert seen["limits"] == [str(120 << 20), "0"]
    assert (seen["state"], seen["quarantined"]) == ("done", 0)
    assert seen["endings"] == {"oom_kill": 1, "done": 2}  # with the one that folds the results
    assert seen["killed"] == 1
    assert "memory.events" in seen["text"][0]
    assert seen["result"] == seen["whole"]
    assert seen["left"] == []
