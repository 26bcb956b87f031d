"""What else an alert says about its moment: CPU, disk, connections, any callable; each within its own time.

Each runs in a thread of its own. One that is not done in time is left out of this alert, and asked no more until it is
done. None is ever asked for an EMERGENCY.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

# A figure is good for all alerts of one moment.
FRESH_S = 5.0
MOST_WORDS = 200
# Whether there is hurry is looked at so often.
STEP_S = 0.05
# What the integers of SQLite and of most readers of JSON hold.
_LARGEST = (1 << 63) - 1


class Collectors:
    """`built_in` are pairs of a name and its argument; `limit_s` is for each that has no time of its own."""

    def __init__(self, built_in: Sequence[tuple[str, str]] = (), *, limit_s: float = 1.0) -> None:
        self._limit_s = limit_s
        self._all: dict[str, tuple[Callable[[], Any], float]] = {
            name: (_bind(name, argument), limit_s) for name, argument in built_in
        }
        self._busy: set[str] = set()
        self._lock = threading.RLock()  # a signal handler may add one too
        self._fresh: tuple[float, dict[str, Any]] | None = None

    def add(self, name: str, function: Callable[[], Any], *, limit_s: float | None = None) -> None:
        """Ask this one too."""
        with self._lock:
            self._all[name] = (function, self._limit_s if limit_s is None else limit_s)

    def remove(self, name: str) -> None:
        """Ask it no more."""
        with self._lock:
            self._all.pop(name, None)

    def collect(self, now_s: float, *, hurry: Callable[[], bool] = lambda: False) -> Mapping[str, Any]:
        """What they say now, or said a moment ago. What fails or hangs says so in words.

        Nobody is waited for any longer once `hurry` is true.
        """
        if self._fresh is not None and 0 <= now_s - self._fresh[0] < FRESH_S:
            return self._fresh[1]
        with self._lock:
            asked = [(name, *pair) for name, pair in self._all.items() if name not in self._busy]
            found: dict[str, Any] = dict.fromkeys(self._busy & set(self._all), "still not done from the last time")
        tasks = [(name, limit_s, *self._ask(name, function)) for name, function, limit_s in asked]
        for name, limit_s, done, box in tasks:
            left_s = limit_s
            while not done.wait(min(STEP_S, left_s)) and left_s > STEP_S and not hurry():
                left_s -= STEP_S
            found[name] = box[0] if done.is_set() and box else f"not done within {limit_s:g} s"
        self._fresh = (now_s, found)
        return found

    def _ask(self, name: str, function: Callable[[], Any]) -> tuple[threading.Event, list[Any]]:
        done, box = threading.Event(), []
        self._busy.add(name)

        def run() -> None:
            try:
                box.append(_plain(function()))  # here, for what a value says of itself may fail or hang too
            except Exception as error:  # noqa: BLE001  code of the application may raise anything
                box.append(f"failed: {type(error).__name__}")
            finally:
                self._busy.discard(name)
                done.set()

        try:
            threading.Thread(target=run, name=f"memwarden-collect-{name}", daemon=True).start()
        except RuntimeError:  # no thread can be had
            self._busy.discard(name)
        return done, box


def _plain(value: Any) -> Any:
    """A value that JSON knows, and not a large one."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST else "too large"
    if isinstance(value, float):
        return round(value, 6) if abs(value) < 1e300 else str(value)
    if isinstance(value, dict) and len(value) <= 20:
        return {str(key)[:50]: _plain(each) for key, each in value.items()}
    return str(value)[:MOST_WORDS]


def _bind(name: str, argument: str) -> Callable[[], Any]:
    return lambda: BUILT_IN[name](argument)


def cpu(_: str = "") -> dict[str, Any]:
    """The load of the machine over one minute, and its processors."""
    return {"load_1min": round(os.getloadavg()[0], 2), "processors": os.cpu_count()}


def disk(path: str) -> dict[str, Any]:
    """Free and whole bytes of the file system there."""
    found = os.statvfs(path)
    return {"path": path, "free_bytes": found.f_bavail * found.f_frsize, "total_bytes": found.f_blocks * found.f_frsize}


def connections(_: str = "") -> int:
    """The open sockets of this process."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue
    return count


BUILT_IN: Mapping[str, Callable[[str], Any]] = {"cpu": cpu, "disk": disk, "connections": connections}
