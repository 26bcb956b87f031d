"""Real processes: a program is run with memwarden on its path and its black boxes in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import memwarden
from memwarden.blackbox import find_boxes, read_box

if TYPE_CHECKING:
    from memwarden.blackbox import Box

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(memwarden.__file__)))

PRELUDE = f"""
import sys
sys.path.insert(0, {SOURCE!r})
import os, json, time
from memwarden import Warden

def tell(**found):
    sys.stdout.write(json.dumps(found) + chr(10))
    sys.stdout.flush()

def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)
"""


class Ran(NamedTuple):
    code: int
    told: list[dict[str, Any]]
    stderr: str
    boxes: list[Box]

    def box_of(self, pid: int) -> Box:
        """The only box of this process."""
        (found,) = [box for box in self.boxes if box.pid == pid]
        return found


def run(program: str, folder: str, *, environ: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> Ran:
    """Run a program in a fresh interpreter and read what it told and which boxes it left."""
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + program],
        capture_output=True,
        text=True,
        timeout=3600 if os.environ.get("MEMWARDEN_SOAK") else 100,
        env={"PATH": os.environ["PATH"], "MEMWARDEN_DIR": folder, **(environ or {})},
        cwd=folder,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    boxes = [read_box(path) for path in find_boxes(os.path.join(folder, "run"))]
    return Ran(done.returncode, told, done.stderr, boxes)
