"""The face of the package: light, and each name from its home."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from os.path import dirname

import pytest

import memwarden
from memwarden import flow


def test_importing_memwarden_or_flow_loads_nothing_else() -> None:
    program = (
        "import sys, memwarden; assert 'memwarden.flow' not in sys.modules\n"
        "import memwarden.flow; print([m for m in sys.modules if m.startswith('memwarden.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "['memwarden.flow']"


@pytest.mark.parametrize("name", sorted(flow.__all__))
def test_each_name_comes_from_its_home(name: str) -> None:
    home = flow._HOMES[name]
    if find_spec(home) is None:
        pytest.skip(f"{home} is not here")
    assert callable(getattr(flow, name))
    assert name in dir(flow)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'memwarden.flow' has no attribute 'chunk'"):
        flow.chunk  # noqa: B018


_BLOCK = """
import sys
for name in ("_sizes", "_heap"):
    sys.modules["memwarden._native." + name] = None
"""
_RUN = """
from memwarden.flow import chunks
rows = [(number, "x" * (number * 37 % 5000), None, b"y" * 9) for number in range(3000)]
cuts = [(chunk.cut.rows, chunk.cut.bytes, chunk.cut.why) for chunk in chunks(rows, budget="1M", prefetch=1)]
from memwarden.flow import sizing
print(sizing.flat_sum.__module__ == sizing.__name__, cuts, sep="\\n")
"""


def test_without_the_c_parts_the_chunks_are_the_same() -> None:
    told = [
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout.split(
            "\n"
        )
        for program in (_BLOCK + _RUN, _RUN)
    ]
    assert told[0][0] == "True"
    assert told[0][1] == told[1][1]
    assert told[0][1].count("bytes") > 3


def test_chunks_load_little() -> None:
    program = (
        "import sys, memwarden; before = set(sys.modules)\n"
        "from memwarden.flow import chunks; list(chunks(range(10), prefetch=1)); chunks(range(10)).map(sum).run()\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", _PATH + program], stdout=subprocess.PIPE, text=True, check=True)
    names = done.stdout.split()
    assert len(names) <= 50
    assert not {"asyncio", "typing", "dataclasses", "inspect", "json", "concurrent", "logging"} & set(names)


_PATH = f"import sys; sys.path.insert(0, {dirname(dirname(memwarden.__file__))!r})\n"
