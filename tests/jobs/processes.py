"""Real `memwarden jobs work` processes for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from memwarden.supervise.signals import pause

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATIENCE_S = 900.0 if os.environ.get("MEMWARDEN_SOAK") else 120.0


def start(folder: str, *words: str, **environ: str) -> subprocess.Popen[str]:
    """One worker command over this store."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "memwarden", "jobs", "work", "--dir", folder, "--import", "tests.jobs.work",
            "--memory", "1G", "--workers", "2", *words,
        ],
        env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "src"), **environ}, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(folder: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`memwarden jobs` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "memwarden", "jobs", *words, "--dir", folder], text=True, capture_output=True,
        timeout=PATIENCE_S, env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "src")}, cwd=ROOT,
    )  # fmt: skip


def outside(folder: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Another command of memwarden over this store."""
    environ = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "src"), "MEMWARDEN_DIR": folder}
    words = (sys.executable, "-m", "memwarden", *words)
    return subprocess.run(words, text=True, capture_output=True, timeout=PATIENCE_S, env=environ, cwd=ROOT)


def until(condition: Callable[[], bool], what: str) -> None:
    """Look again until it is so."""
    for _ in range(int(PATIENCE_S / 0.02)):
        if condition():
            return
        pause(0.02)
    raise AssertionError(f"never saw: {what}")


def end(process: subprocess.Popen[str]) -> str:
    """Kill it, and what it said."""
    process.kill()
    return process.communicate(timeout=PATIENCE_S)[1]
