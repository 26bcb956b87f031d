"""A real program that leaks under a running Warden is told as a leak; the same one that lets go is left alone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from memwarden.blackbox import find_boxes, read_box

from .programs import PRELUDE

if TYPE_CHECKING:
    from pathlib import Path

# Four samples a second, as the recordings that the verdict was fitted on: the first look comes after ten seconds.
PROGRAM = """
keeps, longest_s = sys.argv[1] == "keeps", float(sys.argv[2])

class Row:
    def __init__(self, i):
        self.id, self.text = i, "x" * 50 + str(i)
history = [{"id": i, "text": "x" * 50 + str(i)} for i in range(100_000)]
kept, told, end_s = [], [], time.monotonic() + longest_s
warden = Warden(interval="250ms", leak_interval="250ms", gc_share=0.05)
warden.on_finding(lambda finding: told.append(finding.what))
with warden:
    while time.monotonic() < end_s and not ("confirmed" in told and warden.leak.growing):
        with warden.operation("request"):
            rows = [Row(i) for i in range(200)]
            if keeps:
                kept.append(rows)
        time.sleep(0.02)
    leak, errors = warden.leak, warden.errors
tell(told=told, stage=leak.stage, cause=leak.cause, errors=errors, growing=leak.growing)
"""


def test_a_program_that_leaks_is_confirmed_and_one_that_does_not_is_never_suspected(tmp_path: Path) -> None:
    running = {}
    for kind, longest_s in (("keeps", "90"), ("lets go", "15")):
        folder = tmp_path / kind
        folder.mkdir()
        running[kind] = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + PROGRAM, kind, longest_s],
            stdout=subprocess.PIPE, text=True, env={"PATH": "", "MEMWARDEN_DIR": str(folder)}, stderr=subprocess.PIPE,
        )  # fmt: skip
    found: dict[str, Any] = {}
    for kind, process in running.items():
        out, err = process.communicate(timeout=115)
        assert process.returncode == 0, err
        found[kind] = out
    assert '"told": ["suspected", "confirmed"]' in found["keeps"]
    assert '"cause": "python", "errors": 0' in found["keeps"]
    assert '"told": [], "stage": "quiet"' in found["lets go"]
    assert '"errors": 0' in found["lets go"]
    assert "__main__.Row +" in found["keeps"]
    assert '"growing": []' in found["lets go"]
    (box,) = [read_box(path) for path in find_boxes(str(tmp_path / "keeps" / "run"))]
    assert [e.text.partition(":")[0] for e in box.events if e.kind == "leak"] == ["suspected", "confirmed"]
    assert box.leak is not None
    assert (box.leak.stage, box.leak.cause) == ("confirmed", "python")
    assert any("__main__.Row +" in each for each in box.leak.growing)
