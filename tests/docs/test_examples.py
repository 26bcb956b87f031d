"""Every Python example of the README and the documentation runs, in the order in which a reader meets it.

The blocks of one file are run one after the other in one fresh process, as somebody would who types them. A block
that cannot run is marked ```python no-run, and the line above it is a comment (<!-- ... -->) that says why.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"<!-- .{10,} -->\s*$")


def _pages() -> list[str]:
    found = ["README.md"]
    for folder, _, names in os.walk(os.path.join(ROOT, "docs")):
        if "_build" not in folder:
            found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names if name.endswith(".md")]
    return sorted(found)


def _text(page: str) -> str:
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


def blocks(text: str) -> list[str]:
    """The runnable blocks, each with empty lines above it so that a traceback names the line of the page."""
    found = []
    for match in _FENCE.finditer(text):
        words = match["info"].split()
        if words[:1] != ["python"]:
            continue
        if "no-run" in words:
            assert _REASON.search(text[: match.start()]), "no-run needs a comment above it that says why"
            continue
        lines = match["code"].splitlines()
        code = "\n".join(line.removeprefix(match["indent"]) for line in lines)
        found.append("\n" * (text[: match.start("code")].count("\n")) + code)
    return found


_RUNNER = """
import sys
scope = {"__name__": "__main__"}
for number, block in enumerate(sys.stdin.read().split("\\x00")):
    exec(compile(block, sys.argv[1], "exec"), scope)
"""


@pytest.mark.parametrize("page", [page for page in _pages() if blocks(_text(page))])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path) -> None:
    environ = {**os.environ, "MEMWARDEN_DIR": str(tmp_path / "state")}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", _RUNNER, page],
        input="\0".join(blocks(_text(page))),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_tutorial_has_examples() -> None:
    assert [page for page in _pages() if "tutorial" in page and blocks(_text(page))]


def test_blocks_are_found_with_their_line_and_without_their_indent() -> None:
    text = "a\n\n```python\nx = 1\n```\n\n```sh\nno\n```\n1. item\n\n   ```python\n   if x:\n       y = 2\n   ```\n"
    assert blocks(text) == ["\n" * 3 + "x = 1", "\n" * 12 + "if x:\n    y = 2"]


def test_a_block_that_is_not_run_needs_a_reason() -> None:
    assert blocks("<!-- needs a server of its own -->\n```python no-run\nx\n```\n") == []
    with pytest.raises(AssertionError, match="says why"):
        blocks("text\n```python no-run\nx\n```\n")
