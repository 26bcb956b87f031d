"""Real cgroups where this machine lets us make one, else a skip with the reason."""

from __future__ import annotations

import pytest

from tests.supervise.processes import no_cgroup_reason


@pytest.fixture
def own_cgroup() -> None:
    """A memory cgroup can be made here."""
    reason = no_cgroup_reason()
    if reason:
        pytest.skip(reason)
