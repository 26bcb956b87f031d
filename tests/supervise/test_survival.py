"""A short version of `python -m benchmarks.survival`: programs that outgrow their limit live on, and do their work."""

from __future__ import annotations

import json
import os
import sys

import pytest
from benchmarks.survival import NAMES, run

from tests.uml.kernel import run_in_uml, uml_missing_reason

SOAK = bool(os.environ.get("MEMWARDEN_SOAK"))
SHORT = ("burst", "gil-held", "forked", "cycles-400")
# A page fault in user-mode Linux takes up to 0.2 ms: programs that touch 500 MiB and not 4 GiB.
SHORT_V2 = ("gil-held", "bytes-400")
_BOTH_ARMS = """
import json, sys
from benchmarks.survival import run
for name in sys.argv[1:]:
    for fence in ("on", "off"):
        print(json.dumps(run(name, 0, fence=fence, folder="/var/tmp")), flush=True)
"""


@pytest.mark.kernel
@pytest.mark.usefixtures("own_cgroup")
@pytest.mark.timeout(3600 if SOAK else 120)
@pytest.mark.parametrize("name", NAMES if SOAK else SHORT)
def test_behind_the_fence_a_program_lives_and_without_it_the_same_one_is_killed(name: str) -> None:
    for seed in range(10 if SOAK else 1):
        fenced = run(name, seed, fence="on", folder="/var/tmp")
        assert (fenced["killed"], fenced["code"]) == (False, 0), fenced["err"]
        assert fenced["done"] >= 0.6 * fenced["units"] > 0
        assert fenced["done"] < fenced["units"]
    assert run(name, 0, fence="off", folder="/var/tmp")["killed"]


@pytest.mark.uml
@pytest.mark.timeout(3600 if SOAK else 660)
def test_the_same_on_cgroup_v2() -> None:
    missing = uml_missing_reason()
    if missing is not None:
        pytest.skip(missing)
    words = [sys.executable, "-c", _BOTH_ARMS, *SHORT_V2]
    if SOAK:
        words = [sys.executable, "-m", "benchmarks.survival", "1", *NAMES]
    said = run_in_uml(words, timeout_s=3500 if SOAK else 600).checked().stdout
    seen = [json.loads(line) for line in said.splitlines()]
    assert {(each["fence"], each["killed"]) for each in seen if each["fence"] != "library"} == {
        ("on", False),
        ("off", True),
    }
