"""The second kernel as a fixture. Elsewhere: import `run_in_uml` and `uml_missing_reason` themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.uml.kernel import run_in_uml, uml_missing_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.uml.kernel import Result


@pytest.fixture(scope="session")
def uml() -> Callable[..., Result]:
    """`run_in_uml`, or a skip with the reason."""
    reason = uml_missing_reason()
    if reason is not None:
        pytest.skip(reason)
    return run_in_uml
