"""`memwarden selftest` on a kernel with cgroup v2: the same proofs, in cgroups of the other version."""

from __future__ import annotations

import json
import sys

import pytest

from tests.uml.kernel import run_in_uml, uml_missing_reason

MISSING = uml_missing_reason()
pytestmark = [
    pytest.mark.uml,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.timeout(240),
]


def test_nothing_fails_on_v2_and_what_needs_a_cgroup_is_tried() -> None:
    words = [sys.executable, "-m", "memwarden", "selftest", "--quick", "--format", "json"]
    printed = run_in_uml(words, timeout_s=200).stdout
    found = json.loads(printed[printed.index("{") :])
    print(
        "\n".join(f"{row['name']}: {row['verdict']}: {row['figure']} ({row['seconds']} s)" for row in found["checks"])
    )
    verdicts = {row["name"]: row["verdict"] for row in found["checks"]}
    assert [row for row in found["checks"] if row["verdict"] == "FAILED" and row["name"] != "cost"] == []
    assert [verdicts[name] for name in ("limit", "reading", "levels", "oom")] == ["ok"] * 4
    assert [row["values"]["glance_s"] > 0 for row in found["checks"] if row["name"] == "cost"] == [True]
    values = {row["name"]: row["values"] for row in found["checks"]}
    assert values["limit"]["cgroup"]["source"].endswith("memory.max")
