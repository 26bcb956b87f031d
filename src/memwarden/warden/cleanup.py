"""The ladder of one Warden: its own actions, and what the application registered beside them.

What is not here: when it is climbed, and what is said of it; that is the loop's.
"""

from __future__ import annotations

from memwarden.act import Collect, Drop, Ladder, Shed, Strategy, Trim
from memwarden.act.ladder import Need
from memwarden.act.strategies import METRICS, OWN_ABOVE, OWN_PRIORITY, SNAPSHOTS, TAGS, in_time
from memwarden.errors import ConfigError
from memwarden.units import parse_ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections import deque
    from collections.abc import Callable

    from memwarden.config import Config
    from memwarden.facts import Operation
    from memwarden.judge import History, Judge
    from memwarden.ports import Action, Clock, Machine, Sheddable

# How long a cache may take to say how much it holds: it is asked every few seconds, and waited for.
HELD_S = 1.0


class Cleanup:
    """Made once for a Warden; `begin_life` makes the ladder, anew in a forked child. What was registered stays."""

    def __init__(self, config: Config, *, machine: Machine, clock: Clock, rss_bytes: Callable[[], int | None]) -> None:
        self._config, self._machine, self._clock, self._rss_bytes = config, machine, clock, rss_bytes
        self._need = Need()
        self._registered: list[Action] = []
        self.held_bytes: dict[str, int] = {}
        self._mute: set[str] = set()

    def begin_life(self, lock: threading.RLock, operations: deque[Operation], history: History, judge: Judge) -> Ladder:
        """A ladder on which every action is fresh. `lock` guards the history."""
        self._lock = lock
        self.trim, self.collector = Trim(), Collect()
        machine, keep_s = self._machine, self._config.window_s / 2

        def drop_operations() -> int:
            held = len(operations)
            operations.clear()
            return held

        def drop_snapshots() -> int:
            with lock:
                return history.forget_older(keep_s)

        own: list[Action] = [
            self.trim,
            Drop(METRICS, drop=drop_operations, held=operations.__len__),
            Drop(SNAPSHOTS, drop=drop_snapshots, held=lambda: history.older(keep_s)),
        ]
        if self._config.proactive_gc:
            own.append(self.collector)
        self.ladder = Ladder(
            [*own, *self._registered],
            machine=machine,
            clock=self._clock,
            resident_bytes=self._rss_bytes,
            gil_share=self._config.gc_share,
            forked=lambda: machine.forked() or machine.has_forked_children(),
            growth=lambda: judge.growth.bytes_per_s,
            need=self._need,
        )
        return self.ladder

    def add_strategy(
        self,
        name: str,
        function: Callable[[], object],
        *,
        priority: int | None,
        above: str | float | None,
        tag: str | None,
    ) -> Callable[[], None]:
        """See `Warden.add_strategy`."""
        if not callable(function) or not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{name!r} is no strategy", where="add_strategy", mend="give a name and a function")
        if tag is not None and tag not in TAGS:
            raise ConfigError(f"there is no tag {tag!r}", where="tag", mend=f"write one of {', '.join(TAGS)}")
        usual_priority, usual_above = TAGS[tag] if tag is not None else (OWN_PRIORITY, OWN_ABOVE)
        return self._register(
            Strategy(
                name.strip(),
                function,
                priority=usual_priority if priority is None else int(priority),
                above=usual_above if above is None else parse_ratio(above, where="above"),
            )
        )

    def add_sheddable(self, sheddable: Sheddable) -> Callable[[], None]:
        """See `Warden.add_sheddable`."""
        if not callable(getattr(sheddable, "shed", None)) or not hasattr(sheddable, "held_bytes"):
            what = f"a {type(sheddable).__name__} cannot shed"
            raise ConfigError(what, where="add_sheddable", mend="it needs name, held_bytes and shed(size_bytes)")
        return self._register(Shed(sheddable, need=self._need, clock=self._clock))

    def declared_bytes(self) -> int | None:
        """What all sheddables hold together; None where there are none.

        One that raises or hangs is asked no more, and said once; what it held last goes on counting.
        """
        declared = [each for each in tuple(self._registered) if isinstance(each, Shed)]
        for each in declared:
            if each.name in self._mute:
                continue
            try:
                in_time(lambda each=each: self.held_bytes.__setitem__(each.name, each.held_bytes()), HELD_S)  # type: ignore[misc]  # mypy knows no lambda with a default
            except Exception as error:  # noqa: BLE001  code of the application may raise anything
                self._mute.add(each.name)
                import logging

                logging.getLogger("memwarden.warden").warning("%s does not say what it holds: %s", each.name, error)
        return sum(self.held_bytes.get(each.name, 0) for each in declared) if declared else None

    def _register(self, action: Action) -> Callable[[], None]:
        with self._lock:
            self.ladder.add(action)
            self._registered.append(action)

        def take_back() -> None:
            with self._lock:
                if action in self._registered:
                    self._registered.remove(action)
                    self.ladder.remove(action)

        return take_back
