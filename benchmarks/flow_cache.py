"""Cache: looking up and storing beside bare cachebox and cachetools, and how fast and how much memory it gives back."""

from __future__ import annotations

import statistics
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

from benchmarks import Figure
from benchmarks.arms import fresh, race
from benchmarks.peers import peer
from memwarden.flow.cache import Cache, _sizing

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5
KEYS, FULL_BYTES = 1000, 200_000
VALUE = b"x" * 100
MIB = 1 << 20

# 100 MiB of values of 4 to 64 KB, shed slice by slice as a budget does it, then trimmed as a Warden does it.
_SHED = """
import random, time
from memwarden.flow import Cache
from memwarden.sense import Machine
machine, rng = Machine(), random.Random({seed})
cache = Cache("256M", plain={plain})
machine.trim()
start = rss_bytes()
number = 0
while cache.held_bytes < 100 << 20:
    cache.set(number, bytes(rng.randrange(4096, 65536)))
    number += 1
full, held = rss_bytes(), cache.held_bytes
began, slowest = time.perf_counter(), 0.0
freed = 0
while freed < held:
    at = time.perf_counter()
    found = cache.shed(held - freed)
    slowest = max(slowest, time.perf_counter() - at)
    if not found:
        break
    freed += found
shed_s = time.perf_counter() - began
machine.trim()
both_s = time.perf_counter() - began
tell(shed_s=shed_s, both_s=both_s, slowest_s=slowest, freed=freed, back=full - rss_bytes(), rose=full - start,
     grown_to=cache.max_bytes)
"""


def main() -> list[Figure]:
    """Costs, then shedding."""
    return [*_costs(), *_shedding()]


def _costs() -> list[Figure]:
    ours: Cache[Any, Any] = Cache("1G", plain=None)
    size: Callable[[Any, Any], int] = _sizing(None, 1 << 40)  # the very function that measures our entries
    arms: dict[str, Callable[[], object]] = {}

    def add(name: str, get: Callable[[Any], object], put: Callable[[Any, Any], object], full: Any) -> None:
        put("key", VALUE)
        arms[f"{name} get"] = lambda: get("key")
        arms[f"{name} set"] = lambda: put("key", VALUE)
        arms[f"{name} set, full"] = _churn(full)

    small: Cache[Any, Any] = Cache(FULL_BYTES, plain=None)
    add("ours", ours.get, ours.set, small.set)
    plain: Cache[Any, Any] = Cache("1G", plain=True)
    add("plain", plain.get, plain.set, Cache(FULL_BYTES, plain=True).set)
    cachebox, cachetools = peer("cachebox"), peer("cachetools")
    if cachebox is not None:
        boxed, tight = (cachebox.LRUCache(most, getsizeof=size) for most in (1 << 30, FULL_BYTES))
        add("cachebox", boxed.get, boxed.insert, tight.insert)
    if cachetools is not None:
        for name, locked in (("cachetools", False), ("cachetools, locked", True)):
            sized = [
                cachetools.LRUCache(most, getsizeof=lambda value: size("key", value)) for most in (1 << 30, FULL_BYTES)
            ]
            get, put, full = (_locked if locked else _bare)(*sized)
            add(name, get, put, full)
    seen = race(arms, repeats=80)
    rows = []
    for what, bound in (("get", 3.0), ("set", 2.0), ("set, full", 2.0)):
        if cachebox is not None and ours.statistics.store == "cachebox":
            names = (f"ours {what}", f"cachebox {what}")
            rows.append(Figure(f"Cache {what}, of bare cachebox with the same sizer", seen.ratio(*names), at_most=bound,
                               beside=seen.beside(*names)))  # fmt: skip
    for what in ("get", "set", "set, full") if cachetools is not None else ():
        names = (f"plain {what}", f"cachetools, locked {what}", f"cachetools {what}")
        rows.append(Figure(f"plain Cache {what}, of cachetools with the lock that threads need", seen.ratio(*names[:2]),
                           at_most=1.0, beside=seen.beside(*names)))  # fmt: skip
        rows.append(
            Figure(f"plain Cache {what}, of cachetools without (one thread only)", seen.ratio(names[0], names[2]))
        )
    return rows


def _churn(put: Callable[[Any, Any], object]) -> Callable[[], object]:
    """Keys in turn, more than fit: each call evicts."""
    numbers = count()
    return lambda: put(next(numbers) % KEYS, VALUE)


def _bare(large: Any, small: Any) -> tuple[Any, Any, Any]:
    return large.get, large.__setitem__, small.__setitem__


def _locked(large: Any, small: Any) -> tuple[Any, Any, Any]:
    """As its documentation has it for threads: a lock around each access."""
    lock = threading.RLock()

    def get(key: Any) -> Any:
        with lock:
            return large.get(key)

    def put(key: Any, value: Any) -> None:
        with lock:
            large[key] = value

    def full(key: Any, value: Any) -> None:
        with lock:
            small[key] = value

    return get, put, full


def _shedding() -> list[Figure]:
    rows = []
    stores = [("cachebox", False), ("plain", True)] if peer("cachebox") is not None else [("plain", True)]
    for name, plain in stores:
        rounds = [fresh(_SHED.format(seed=seed, plain=plain)) for seed in range(ROUNDS)]
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        beside = f"{middle['freed'] / MIB:.0f} MiB, longest slice {middle['slowest_s'] * 1000:.1f} ms"
        rows += [
            Figure(f"100 MiB of 4-64 KB values shed ({name})", middle["shed_s"] * 1000, "ms", at_most=50,
                   beside=beside),
            Figure("the same and trimmed", middle["both_s"] * 1000, "ms"),
            Figure("of it back at the system", middle["back"] / middle["freed"] * 100, "%", at_least=80,
                   beside=f"worst of {ROUNDS}: {min(each['back'] / each['freed'] for each in rounds) * 100:.0f} %"),
        ]  # fmt: skip
    return rows
