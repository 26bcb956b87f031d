"""A store, a history and black boxes of some hours, written by whoever writes them for real, on clocks that jump."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tests.tell.conftest import settings_of

from memwarden.blackbox import BlackBox, LeakState
from memwarden.facts import Level
from memwarden.jobs.ledger import Ledger, Worker
from memwarden.store import Store
from memwarden.supervise.cgroup import start_time
from memwarden.supervise.record import DEATH
from memwarden.supervise.service.history import History
from memwarden.tell.outbox import Outbox
from memwarden.tell.signals import Signal, key_of
from memwarden.testing import FakeClock
from memwarden.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from memwarden.tell.settings import AlertSettings

Tick = tuple[int, float, int | None, int | None, int | None, int]

# 2025-06-15 12:00 UTC: long over, so that no test reads into the future.
NOON = 1_749_988_800.0
HOUR = 3600.0
# Beyond the kernel's largest pid (PID_MAX_LIMIT, 4,194,304): never anybody's.
FIRST_PID = 5_000_000


class Season:
    """Writes into a folder as the service, the guarded processes, their supervisors and the job workers would."""

    def __init__(self, folder: Path, *, end_s: float = NOON) -> None:
        self.folder, self.end_s = str(folder), end_s
        self.run_folder = os.path.join(self.folder, "run")
        self._pid = FIRST_PID
        self._signals = 0

    def process(
        self, argv: str, hours: tuple[float, float], size: Callable[[float], float], *, limit_mib: int | None = 512,
        verdict: str | None = "clean", kind: str = "inside", leak: LeakState | None = None, box: bool = True,
        history: bool = True, step_s: float = 60.0, peak_mib: float | None = None, pid: int | None = None,
        alive: bool = False,
    ) -> int:  # fmt: skip
        """One life, `hours` before the end of the season; `size(hour)` is in MiB. Its pid: ours where it is `alive`."""
        self._pid += 1
        pid = os.getpid() if alive else pid or self._pid
        start = int(start_time(pid) or 0) if alive else pid
        begin_s, end_s = (self.end_s - hour * HOUR for hour in hours)
        limit = None if limit_mib is None else limit_mib * MIB
        ticks = self._ticks(begin_s, end_s, size, limit, step_s, levels=kind == "inside")
        name = f"{kind}-{pid}-{int(begin_s * 1000)}.box"
        if box:
            made = BlackBox(
                self.run_folder, pid=pid, unix_s=begin_s, monotonic_s=1.0, kind=kind, start_ticks=start, argv=argv
            )
            assert made.path is not None, made.reason
            name = os.path.basename(made.path)
            self._fill(made, ticks, limit, leak)
            if verdict is not None and not alive:
                if kind == "outside":
                    made.event(end_s, 1.0, DEATH, "", before_bytes=None if peak_mib is None else int(peak_mib * MIB))
                made.end_life(verdict)
            made.close()
        if history:
            with History(self.folder, clock=FakeClock(unix_s=end_s)) as kept:
                life = kept.life(name, kind=kind, pid=pid, start_ticks=start, start_unix_s=begin_s, argv=argv).id
                kept.fold(life, ticks)
                if verdict is not None and not alive:
                    kept.end(life, verdict, told=True)
        return pid

    def _ticks(
        self, begin_s: float, end_s: float, size: Callable[[float], float], limit: int | None, step_s: float, *,
        levels: bool,
    ) -> list[Tick]:  # fmt: skip
        found: list[Tick] = []
        at_s = begin_s
        while at_s < end_s:
            used = int(size((self.end_s - at_s) / HOUR) * MIB)
            share = used / limit if limit else 0.0
            level = (2 if share >= 0.9 else 1 if share >= 0.75 else 0) if levels else 0
            found.append((len(found) + 1, at_s, used, used, limit, level))
            at_s += step_s
        return found

    @staticmethod
    def _fill(box: BlackBox, ticks: Sequence[Tick], limit: int | None, leak: LeakState | None) -> None:
        box.place(limit, "memory.max of /app", cgroup=None, oom_kills=None)
        for number, at_s, rss, used, top, level in ticks[-500:]:
            box.tick(at_s, float(number), rss, used, top, level)
        if leak is not None:
            box.put_leak(leak)

    # --- alerts ------------------------------------------------------------------------------------------------------

    def alert(self, hour: float, what: str, level: int = 1, *, ends: dict[str, str] | None = None, **more: Any) -> None:
        """A signal so many hours before the end; `ends` says of a channel why it fails, "" where it delivers.

        A channel that is not named delivers nothing: what is for it waits.
        """
        self._signals += 1
        clock = FakeClock(unix_s=self.end_s - hour * HOUR)
        values: dict[str, Any] = {
            "id": f"signal-{self._signals}", "kind": "high_usage", "target": "shop", "member": "m1", "text": "text",
            "title": "memory is high", "host": "host", "unix_s": clock.wall(), **more,
        }  # fmt: skip
        values.setdefault("key", key_of(values["kind"], values["target"]))
        settings = settings_of()
        outbox = Outbox(settings, folder=self.folder, clock=clock, random=lambda: 0.5)
        outbox.take([Signal(what=what, level=Level(level), **values)])
        for channel, error in (ends or {}).items():
            _deliver(outbox, settings, channel, error)
        outbox.close()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def ledger(self, hour: float) -> tuple[Ledger, FakeClock, Store]:
        """The ledger, so many hours before the end; the store is to be closed."""
        clock = FakeClock(unix_s=self.end_s - hour * HOUR)
        store = Store(self.folder, clock=clock)
        return Ledger(store, clock=clock, random=lambda: 0.5), clock, store

    def job(self, hour: float, ending: str, *, kind: str = "bulk", peak_mib: int = 100, limit_mib: int = 256) -> str:
        """One that was submitted then and, a minute later, is done, failed, split, running, waiting or quarantined."""
        ledger, clock, store = self.ledger(hour)
        with store:
            options = {"retries": 0, "backoff_s": 0.0, "limit_bytes": limit_mib * MIB}
            root, _ = ledger.submit("app.tasks:sync", {}, type=kind, queue="sync", options=options)
            if ending == "waiting":
                return root
            figures = {"peak_bytes": peak_mib * MIB}
            claim = ledger.claim(ledger.outbox(root)[0], Worker.here())
            assert not isinstance(claim, str)
            clock.advance(60)
            if ending == "done":
                ledger.finish(claim, None, figures)
            elif ending == "failed":
                ledger.fail(claim, "ValueError: no such <customer>", figures=figures)
            elif ending == "split":
                self._split(ledger, claim, root, figures)
            elif ending == "quarantined":
                self._poison(ledger, clock, claim, root)
        return root

    @staticmethod
    def _split(ledger: Ledger, claim: Any, root: str, figures: dict[str, int]) -> None:
        ledger.cut(claim, ["3", "6"], share=4, over=True, ended=True, figures=figures, text="too large for its limit")
        while messages := ledger.outbox(root):
            again = ledger.claim(messages[0], Worker.here())
            assert not isinstance(again, str)
            ledger.finish(again, None, figures)

    @staticmethod
    def _poison(ledger: Ledger, clock: FakeClock, claim: Any, root: str) -> None:
        for _ in range(6):
            ledger.announce(claim, "7")
            part = claim.part
            ledger.died((part.root, part.part, part.attempt), kind="oom_kill", peak_bytes=300 * MIB, text="killed")
            clock.advance(3600)
            messages = ledger.outbox(root)
            if not messages:
                break
            claim = ledger.claim(messages[0], Worker.here())
            if claim.part.is_condemned:
                ledger.finish(ledger.leave_out(claim), None)
                break


def _deliver(outbox: Outbox, settings: AlertSettings, channel: str, error: str) -> None:
    use = settings.policy.channels[channel]
    while (claim := outbox.claim(use, waits=False)) is not None:
        ids = [notice.delivery_id for notice in claim.notices]
        if not error:
            outbox.sent(channel, ids)
        else:
            outbox.failed(use, ids, error, recoverable=False)
