"""Forked parts and what they inherit from their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.flow.database.servers import SERVERS
from tests.jobs.processes import PATIENCE_S, ROOT

if TYPE_CHECKING:
    from pathlib import Path


def forked(url: str, folder: Path) -> Any:
    """What `tests.jobs.forks` says of this database."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.jobs.forks", url, str(folder)], text=True, capture_output=True, cwd=ROOT,
        timeout=PATIENCE_S, env={**os.environ, "PYTHONPATH": os.path.join(ROOT, "src")}, check=True,
    )  # fmt: skip
    return json.loads(found.stdout)


def each_used_its_own(said: Any) -> bool:
    """Three parts in three processes, each with all its items over a connection that it made itself."""
    rows = said["written"]
    pids = {pid for pid, _, _ in rows}
    return (
        said["states"] == ["done"] * 3
        and len(rows) == len(pids) == 3
        and said["parent"] not in pids
        and all(pid == made_in and items == 20 for pid, made_in, items in rows)
    )


def test_a_forked_part_does_not_use_its_parents_connection(tmp_path: Path) -> None:
    said = forked(f"sqlite:///{tmp_path}/out.db?timeout=30", tmp_path)
    assert each_used_its_own(said), said


@pytest.mark.server
@pytest.mark.parametrize("kind", SERVERS)
def test_nor_does_it_on_a_server_where_answers_would_get_mixed_up(kind: str, tmp_path: Path) -> None:
    with SERVERS[kind]() as url:
        said = forked(url, tmp_path)
    assert each_used_its_own(said), said
