"""The forge where the kernel gives it nothing more: it says so, and what is at work goes on."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.integrations.forge import Forge
from memwarden.integrations.keeper import Keeper
from memwarden.jobs import Abilities, Engine, Ledger, Message, submit
from memwarden.store import Store
from tests.jobs import work
from tests.jobs.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Silent:
    """An engine whose messages the test brings itself."""

    name = "silent"
    can = Abilities(fresh=True)

    def send(self, text: str, **_options: Any) -> None:
        """Nowhere."""

    def statistics(self) -> tuple[()]:
        return ()


class Tight:
    """In the forge: as long as there is a file `tight`, so many descriptors more can be had; `is_tight` says it is."""

    words = ""

    def __init__(self, folder: str, room: int) -> None:
        self._folder, self._room = folder, room

    def look(self) -> bool:
        told, said = os.path.exists(f"{self._folder}/tight"), os.path.exists(f"{self._folder}/is_tight")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if told and not said:
            free = [os.open("/dev/null", os.O_RDONLY) for _ in range(self._room + 1)]
            os.close(os.open(f"{self._folder}/is_tight", os.O_CREAT | os.O_WRONLY))
            for each in free:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
        elif said and not told:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
            os.remove(f"{self._folder}/is_tight")
        return False


@pytest.fixture(params=[0, 1], ids=["no descriptor for the request", "no descriptor for the child"])
def forge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Forge]:
    def make(engine: Engine) -> tuple[Keeper, Any]:
        return Keeper(engine, ledger, folder=str(tmp_path)), Tight(str(tmp_path), request.param)

    with Store(str(tmp_path)) as store:
        ledger = Ledger(store)
        made = Forge(Silent(), lambda: ledger, make)
        made.start()
        try:
            yield made
        finally:
            made.close()


def test_without_a_descriptor_a_part_waits_and_those_at_work_are_done(forge: Forge, tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store, ThreadPoolExecutor(1) as pool:
        ledger = Ledger(store)
        slow = {"count": 20, "path": f"{tmp_path}/effects.db", "pause_s": 0.1}
        jobs: list[tuple[Any, dict[str, Any]]] = [(work.slow, slow), (work.total, {"count": 3})]
        roots = [submit(made, given, engine=Silent(), ledger=ledger) for made, given in jobs]
        texts = [
            Message(job=made.name, root=root, part=0, attempt=0).encode()
            for root, (made, _) in zip(roots, jobs, strict=True)
        ]
        first = pool.submit(forge.run, texts[0])
        until(lambda: bool(ledger.running()), "the first part at work")
        (tmp_path / "tight").touch()
        until((tmp_path / "is_tight").exists, "that nothing more can be had")
        said = forge.run(texts[1])
        (tmp_path / "tight").unlink()
        assert said["what"] == "later"
        assert first.result() == {"what": "done", "text": ""}
        until(lambda: not (tmp_path / "is_tight").exists(), "that there is room again")
        until(lambda: forge.run(texts[1])["what"] == "done", "the second part")
        status = ledger.status(roots[1])
        assert status is not None
        assert (status.items, status.endings) == (3, {"done": 1})
