"""The face of the package: light, and each name from its home."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

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
