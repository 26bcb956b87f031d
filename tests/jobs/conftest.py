from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from memwarden.store import Store
from tests.jobs.inline import Inline

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inline]:
    """The plainest engine over a store of its own; where a module has another engine it says so itself."""
    folder = str(tmp_path_factory.mktemp("bench"))
    with Store(folder) as store:
        yield Inline(folder, store)
