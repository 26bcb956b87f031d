"""Libraries that are measured beside: `python -m pip install -r requirements/bench.txt`. A missing one is left out."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def peer(name: str) -> Any | None:
    """The module, or None with a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: not measured beside", file=sys.stderr)
        return None
