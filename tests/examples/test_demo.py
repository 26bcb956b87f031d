"""`make demo`, from its first line to its last."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "crm" / "demo.py"


@pytest.mark.kernel
@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_step_of_the_demo_holds_and_nothing_is_left_behind(tmp_path: Path) -> None:
    environ = {**os.environ, "CRM_DIR": str(tmp_path)}
    shown = subprocess.run([sys.executable, str(DEMO)], env=environ, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert [line[:2] for line in shown.stdout.splitlines() if re.match(r"\d\. ", line)] == [
        "1.",
        "2.",
        "3.",
        "4.",
        "5.",
        "6.",
    ]
    assert "20000 contacts" in shown.stdout
    assert "\033" not in shown.stdout  # no colours into a pipe
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert not list(tmp_path.glob("run-*"))
    assert not any(Path(cgroup).exists() for cgroup in re.findall(r"held by (/\S+)", shown.stdout))


def test_a_folder_that_cannot_be_written_gets_one_line_and_exit_code_two() -> None:
    environ = {**os.environ, "CRM_DIR": "/dev/null/x"}
    refused = subprocess.run([sys.executable, str(DEMO)], env=environ, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "demo: /dev/null/x: Not a directory; set CRM_DIR to a writable folder\n"
