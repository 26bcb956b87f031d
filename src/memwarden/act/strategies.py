"""The cleanup strategies of row M6 beside trimming and collecting: records of ours, and what the application has.

Foreign code runs in a thread of its own with a time-out: a strategy that hangs must not take the watch with it. It
may be at work at the same time as the rest of the application, and has to be safe for that.
"""

from __future__ import annotations

import threading

from memwarden.act.ladder import Hung

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memwarden.act.ladder import Need
    from memwarden.ports import Clock, Machine, Sheddable

# Row M6. An application's strategy with one of these tags has its priority and its line.
METRICS, SNAPSHOTS = "metrics", "snapshots"
TAGS = {METRICS: (80, 0.80), SNAPSHOTS: (60, 0.85)}
OWN_PRIORITY, OWN_ABOVE = 50, 0.80
# Caches are shed before anything is collected: the safest order for servers with threads or an event loop.
SHED_PRIORITY, SHED_ABOVE = 105, 0.70
TIMEOUT_S = 5.0
# A slice of shedding holds the GIL: as long as the interpreter lets one thread hold it anyway (sys.getswitchinterval).
SLICE_S = 0.005
FIRST_SLICE_BYTES = 1 << 20
BREATH_S = 0.001  # between two slices, for the other threads


class Drop:
    """Let go of records of our own. `drop` returns how many went, `held` says how many there are."""

    foreign = False
    holds_gil = False
    fork_unsafe = False
    cooldown_s = 60.0

    def __init__(self, tag: str, *, drop: Callable[[], int], held: Callable[[], int]) -> None:
        self.name = tag
        self.priority, self.above = TAGS[tag]
        self._drop = drop
        self._held = held

    def idle(self) -> bool:
        """Nothing was recorded."""
        return not self._held()

    def apply(self, machine: Machine) -> int | None:
        """Drop them; how many."""
        return self._drop()


class Strategy:
    """A function of the application: it returns the bytes it freed as far as it knows, or None."""

    foreign = True
    holds_gil = False
    fork_unsafe = False
    cooldown_s = 15.0

    def __init__(
        self,
        name: str,
        function: Callable[[], object],
        *,
        priority: int = OWN_PRIORITY,
        above: float = OWN_ABOVE,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name = name
        self.priority = priority
        self.above = above
        self._function = function
        self._timeout_s = timeout_s

    def idle(self) -> bool:
        """Only the function knows."""
        return False

    def apply(self, machine: Machine) -> int | None:
        """Call it, and give what it freed back to the system. Raises what it raised, or Hung."""
        in_time(self._function, self._timeout_s)
        machine.trim()
        return None


class Shed:
    """A Sheddable, asked for what is too much in slices of 5 ms. It is held weakly: a dropped cache is not kept."""

    foreign = True
    holds_gil = False
    fork_unsafe = False
    cooldown_s = 1.0
    priority = SHED_PRIORITY
    above = SHED_ABOVE

    def __init__(self, sheddable: Sheddable, *, need: Need, clock: Clock, timeout_s: float = TIMEOUT_S) -> None:
        self.name = str(sheddable.name)
        self._reference = _reference(sheddable)
        self._need = need
        self._clock = clock
        self._timeout_s = timeout_s
        self.slice_bytes = FIRST_SLICE_BYTES

    def idle(self) -> bool:
        """It is gone."""
        return self._reference() is None

    def held_bytes(self) -> int:
        """What it holds now, in bytes; 0 when it is gone. Raises what its holder raises."""
        sheddable = self._reference()
        return 0 if sheddable is None else max(0, int(sheddable.held_bytes))

    def apply(self, machine: Machine) -> int | None:
        """Have it shed; nothing is counted. Raises what it raised, or Hung."""
        stop = threading.Event()
        try:
            in_time(lambda: self._shed(stop), self._timeout_s)
        finally:
            stop.set()
        machine.trim()
        return None

    def _shed(self, stop: threading.Event) -> None:
        """Slice after slice until it is enough or nothing more comes."""
        sheddable = self._reference()
        if sheddable is None:
            return
        missing = self._need.size_bytes
        if missing is None:
            missing = sheddable.held_bytes
        while missing > 0 and (freed := self._slice(sheddable, missing)) > 0:
            missing -= freed
            if stop.wait(BREATH_S):
                return

    def _slice(self, sheddable: Sheddable, missing: int) -> int:
        """One slice, and the size of the next: one that keeps its 5 ms whatever its holder thinks of them."""
        start_s = self._clock.monotonic()
        freed = sheddable.shed(min(missing, self.slice_bytes))
        lasted_s = self._clock.monotonic() - start_s
        if not isinstance(freed, int) or freed < 0:
            raise TypeError(f"it says that it freed {freed!r}")
        if lasted_s > SLICE_S:
            self.slice_bytes = max(1, self.slice_bytes // 2)
        elif lasted_s < SLICE_S / 4:
            self.slice_bytes = min(self.slice_bytes * 2, 1 << 40)
        return freed


def in_time(function: Callable[[], object], timeout_s: float) -> object:
    """What the function returns, from a thread of its own. Raises what it raised, or Hung."""
    found: list[object] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            found.append(function())
        except BaseException as error:  # noqa: BLE001  it is raised again where it is waited for
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="memwarden-strategy", daemon=True).start()
    if not done.wait(timeout_s):
        raise Hung(f"did not come back within {timeout_s:g} s")
    if raised:
        error = raised[0]
        raise error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
    return found[0]


def _reference(sheddable: Sheddable) -> Callable[[], Sheddable | None]:
    """A weak one; a strong one to what cannot have any."""
    import weakref

    try:
        return weakref.ref(sheddable)
    except TypeError:
        return lambda: sheddable
