"""A cache bounded by bytes that gives memory back when it is short, and takes it again when it is not.

The least recently used entry goes first. It keeps its entries in cachebox where that is installed (the extra `cache`)
and in a plain store with the same meaning where not (`cache_store`). Values that are changed after they were stored are
not measured again. What is not here: caches shared between processes.
"""

from __future__ import annotations

from sys import getsizeof

from memwarden.budget import Gate
from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, MemoryPressureError
from memwarden.facts import Fact, Level
from memwarden.flow.cache_store import store_for
from memwarden.flow.flight import MISSING, Flights
from memwarden.flow.generic import Generic, K, P, T, V
from memwarden.flow.sizing import size_of
from memwarden.units import format_bytes, parse_bytes, parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from memwarden.budget import Account, Budget
    from memwarden.facts import Verdict
    from memwarden.ports import Clock, Pressure

__all__ = ["Cache", "CacheStatistics"]

# What an entry costs beside its key and value: its slot in the table, its links and its size. By resident memory over
# 10^5 to 10^6 entries cachebox 6.2 takes 76 to 83 bytes and the plain store 160 to 193 (CPython 3.11); one figure for
# both, so that both keep the same entries, and the larger one, so that the bound holds.
ENTRY_BYTES = 180
# sys.getsizeof of bytes and of ASCII text is that of an empty one and a byte for each character.
_EMPTY_BYTES, _EMPTY_TEXT = getsizeof(b""), getsizeof("")
_EMPTY_ENTRY = _EMPTY_TEXT + ENTRY_BYTES
# From nothing back to the whole in so long, while memory is not short: slower than pressure rises, so that a cache
# does not take back at once what was just freed for others.
REGROW_S = 60.0
# What is left of the whole at a level; at WARNING it does not grow, which stops most rises.
SHARES = {Level.CRITICAL: 0.5, Level.EMERGENCY: 0.1}
# One slice of shedding (ports.Sheddable), and after how many entries the clock is looked at.
SLICE_S, ENTRIES_A_LOOK = 0.005, 16
# Bytes are taken from a budget in parts of this share of the whole, so that most entries do not ask it.
GRANT_SHARE, LEAST_GRANT = 64, 1 << 16
_NEVER = float("inf")


class CacheStatistics(Fact):
    """What a cache did since it was made, and what it holds. `hit_rate` is 0-1, None before the first look-up.

    `evicted` made room for others or was shed, `expired` was found past its time, `oversize` was never kept because it
    is larger than the whole cache may be. `max_bytes` is the bound now, `limit_bytes` the bound in calm. `store` is
    "cachebox" or "python".
    """

    hits: int
    misses: int
    hit_rate: float | None
    entries: int
    held_bytes: int
    max_bytes: int
    limit_bytes: int
    evicted: int
    expired: int
    oversize: int
    store: str


class _Timed:
    """A value with an end. None is kept in one too, so that no stored value is None."""

    __slots__ = ("until_s", "value")

    def __init__(self, value: Any, until_s: float) -> None:
        self.value = value
        self.until_s = until_s


class _TooLargeError(Exception):
    """A value is larger than the whole cache may be."""


class Cache(Generic[K, V]):
    """Keeps values up to `max_bytes` ("64M"), for threads and coroutines.

    `sizer(value)` gives the bytes of an entry; without it key, value and the cost of an entry are measured. `ttl` ends
    entries so long after they were stored ("5m", seconds; None: never). `budget` is charged what the cache holds, and
    asks it to `shed`; `pressure` (a Warden; the budget's own where not given) has it stop growing at WARNING, keep half
    at CRITICAL and a tenth at EMERGENCY. It grows back within a minute of calm. `plain` chooses the store: None takes
    cachebox where installed, True never, False always (MissingExtraError without it).
    """

    __slots__ = (
        "__weakref__", "_account", "_behind", "_box", "_ceiling", "_clock", "_default_ttl_s", "_expired", "_flights",
        "_gate", "_granted", "_grown_s", "_hits", "_level", "_limit", "_misses", "_new", "_oversize", "_pressure",
        "_removed", "_soft", "_store", "_verdict", "name",
    )  # fmt: skip

    def __init__(
        self,
        max_bytes: str | int,
        *,
        name: str = "cache",
        sizer: Callable[[Any], int] | None = None,
        ttl: str | float | None = None,
        budget: Budget | None = None,
        pressure: Pressure | None = None,
        plain: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._limit = self._soft = self._ceiling = parse_bytes(max_bytes, where="max_bytes")
        self._box, self._store = store_for(_sizing(sizer, self._limit), plain=plain)
        self._default_ttl_s = _ttl(ttl)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._hits = self._misses = self._new = self._removed = self._expired = self._oversize = 0
        self._pressure = pressure if pressure is not None or budget is None else budget.pressure
        self._verdict: Verdict | None = None
        self._behind = False  # the bound fell, and not everything above it has gone yet
        self._level = Level.NORMAL
        self._grown_s = self._clock.monotonic()
        self._gate = Gate(lambda _: None)
        self._flights = Flights(str)
        self._account: Account | None = None
        self._granted = self._limit
        if budget is not None:
            self._account = budget.account(name)
            self._granted = self._ceiling = 0
            budget.register(self)

    def __repr__(self) -> str:
        held, most = format_bytes(self.held_bytes), format_bytes(self.max_bytes)
        return f"<Cache {self.name!r}: {len(self)} entries, {held} of {most}>"

    # --- looking up --------------------------------------------------------------------------------------------

    def get(self, key: K, default: V | None = None) -> Any:
        """Its value, which is now the most recent one; the default where there is none."""
        try:
            found = self._box[key]
        except KeyError:
            self._misses += 1
            return default
        if found.__class__ is _Timed:
            found = self._in_time(key, found)
            if found is MISSING:
                self._misses += 1
                return default
        self._hits += 1
        return found

    def __getitem__(self, key: K) -> V:
        """Its value. Raises KeyError."""
        found: V = self.get(key, MISSING)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __contains__(self, key: K) -> bool:
        """Whether a look-up would find it; nothing changes."""
        found = self._box.peek(key, MISSING)
        return found is not MISSING and (found.__class__ is not _Timed or self._clock.monotonic() < found.until_s)

    def __len__(self) -> int:
        """How many entries there are, with those past their time that nobody looked for since."""
        return len(self._box)

    def _in_time(self, key: K, timed: _Timed) -> Any:
        if timed.until_s == _NEVER or self._clock.monotonic() < timed.until_s:
            return timed.value
        if self._box.peek(key, None) is timed and self._box.pop(key, None) is not None:
            self._removed += 1
            self._expired += 1
        return MISSING

    # --- changing ----------------------------------------------------------------------------------------------

    def set(self, key: K, value: V, *, ttl: str | float | None = None) -> bool:
        """Keep it as the most recent one, for `ttl` where given. False where it is too large to be kept at all."""
        until_s = self._default_ttl_s if ttl is None else _ttl(ttl)
        kept: Any = value
        if until_s != _NEVER:
            kept = _Timed(value, self._clock.monotonic() + until_s)
        elif value is None:
            kept = _Timed(value, _NEVER)
        box = self._box
        try:
            if box.insert(key, kept) is None:
                self._new += 1
        except _TooLargeError:
            self._refuse(key)
            return False
        if self._pressure is not None and self._pressure.verdict is not self._verdict:
            self._follow(self._pressure.verdict)
        if box.current_size() <= self._ceiling:
            return True
        if self._ceiling == self._limit:  # full, as it mostly is: one goes, and that is mostly enough
            try:  # noqa: SIM105  contextlib is not loaded, and slower
                box.popitem()
            except KeyError:  # another thread emptied it
                pass
            if box.current_size() <= self._ceiling:
                return True
        return self._fit(key)

    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    def pop(self, key: K, default: V | None = None) -> Any:
        """Take it out and return it; the default where there is none."""
        found = self._box.pop(key, MISSING)
        if found is MISSING:
            return default
        self._removed += 1
        if found.__class__ is _Timed:
            if self._clock.monotonic() >= found.until_s:
                self._expired += 1
                return default
            return found.value
        return found

    def delete(self, key: K) -> bool:
        """Drop it; whether it was there."""
        return self.pop(key, MISSING) is not MISSING

    def __delitem__(self, key: K) -> None:
        """Drop it. Raises KeyError."""
        if not self.delete(key):
            raise KeyError(key)

    def clear(self) -> None:
        """Drop everything. The bound and the counts stay."""
        for _ in range(len(self._box)):
            try:
                self._box.popitem()
            except KeyError:
                break
            self._removed += 1
        self._give_back()

    def _refuse(self, key: K) -> None:
        """A value too large came: the old one under its key is not its value any more."""
        self._oversize += 1
        if self._box.pop(key, MISSING) is not MISSING:
            self._removed += 1

    # --- the bound ---------------------------------------------------------------------------------------------

    @property
    def limit_bytes(self) -> int:
        """The bound in calm, as given."""
        return self._limit

    @property
    def max_bytes(self) -> int:
        """The bound as it is now: less than `limit_bytes` while memory is short and for a while afterwards."""
        if self._pressure is not None and self._pressure.verdict is not self._verdict:
            self._follow(self._pressure.verdict)
        with self._gate:
            return self._grown()

    @property
    def held_bytes(self) -> int:
        """What its entries take, by the sizer."""
        return int(self._box.current_size())

    @property
    def statistics(self) -> CacheStatistics:
        """What it did and holds."""
        looked, entries = self._hits + self._misses, len(self._box)
        return CacheStatistics(
            hits=self._hits, misses=self._misses, hit_rate=self._hits / looked if looked else None, entries=entries,
            held_bytes=self.held_bytes, max_bytes=self.max_bytes, limit_bytes=self._limit,
            evicted=max(0, self._new - self._removed - entries), expired=self._expired, oversize=self._oversize,
            store=self._store,
        )  # fmt: skip

    def _grown(self) -> int:
        """The soft bound, after what calm since the last look lets it grow. With the gate held, like all below."""
        now = self._clock.monotonic()
        if self._soft < self._limit and self._level < Level.WARNING:
            self._soft = min(self._limit, self._soft + int(self._limit * max(0.0, now - self._grown_s) / REGROW_S))
        self._grown_s = now
        self._ceiling = min(self._soft, self._granted)
        return self._soft

    def _lower(self, most_bytes: float) -> None:
        self._soft = min(self._grown(), int(most_bytes))
        self._ceiling = min(self._soft, self._granted)

    def _follow(self, verdict: Verdict | None) -> None:
        """Memory was judged anew."""
        self._verdict = verdict
        level = Level.NORMAL if verdict is None else verdict.level
        with self._gate:
            if level in SHARES:
                self._lower(self._limit * SHARES[level])
            elif level >= Level.WARNING:
                self._lower(max(self.held_bytes, self._limit * SHARES[Level.EMERGENCY]))
            else:
                self._grown()
            self._level = level
        if self.held_bytes > self._ceiling:
            self._evict(self._ceiling)
            self._give_back()

    def _fit(self, key: K) -> bool:
        """More is held than the bound allows: raise the bound if it may rise, else evict. Whether the key is kept."""
        with self._gate:
            self._grown()
            if self._account is not None and self._granted < self._soft:
                self._ask(self._account, self.held_bytes)
        if self.held_bytes > self._ceiling:  # the bound holds, whatever must go; a bound that fell is reached in slices
            self._evict(self._ceiling, SLICE_S if self._behind else _NEVER)
        return bool(self._box.contains(key))

    def _ask(self, account: Account, held_bytes: int) -> None:
        """Have the budget grant what is missing, in parts; it may refuse."""
        missing, most = held_bytes - self._granted, self._soft - self._granted
        if missing <= 0:
            return
        for size in (max(missing, self._limit // GRANT_SHARE, LEAST_GRANT), missing):
            try:
                account.commit(min(size, most))
            except MemoryPressureError:
                continue
            self._granted += min(size, most)
            break
        self._ceiling = min(self._soft, self._granted)

    def _give_back(self) -> None:
        """What was granted and is not needed goes back to the budget."""
        with self._gate:
            if self._account is None:
                return
            spare = self._granted - self.held_bytes
            if spare > 0:
                self._account.release(spare)
                self._granted -= spare
                self._ceiling = min(self._soft, self._granted)

    def _evict(self, most_bytes: int, within_s: float = SLICE_S) -> int:
        """Drop the least recent entries until so much is left, or the time is over; the bytes. It holds no lock."""
        box, freed, until_s = self._box, 0, self._clock.monotonic() + within_s
        before = box.current_size()
        while before > most_bytes:
            for _ in range(ENTRIES_A_LOOK):
                try:
                    box.popitem()
                except KeyError:
                    return int(freed + before)
                left = box.current_size()
                freed += before - left
                before = left
                if left <= most_bytes:
                    break
            if self._clock.monotonic() >= until_s:
                break
        self._behind = before > most_bytes
        return int(freed)

    def shed(self, size_bytes: int) -> int:
        """Drop the least recent entries, so many bytes of them, within 5 ms; the bytes. It grows back in calm."""
        freed = self._evict(max(0, self.held_bytes - size_bytes))
        if freed > 0:
            with self._gate:
                self._lower(self.held_bytes)
            self._give_back()
        return max(0, freed)

    def close(self) -> None:
        """Drop everything and give everything back to the budget. It may be used again without one."""
        self.clear()
        with self._gate:
            account, self._account = self._account, None
            self._granted = self._limit
            self._grown()
        if account is not None:
            account.close()

    # --- keeping what functions compute ------------------------------------------------------------------------

    def memoize(
        self, *, ttl: str | float | None = None, key: Callable[..., Any] | None = None
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """A decorator: what a function or coroutine function returned for the same arguments is not computed again.

        Of concurrent callers one computes, the others wait for its value or for what it raised; errors are not kept,
        and where the one is cancelled another computes. `key(*args, **kwargs)` gives the key, else the arguments must
        be hashable. The function gets `forget(*args, **kwargs)`. Raises CircularDependencyError where it needs itself.
        """
        until = None if ttl is None else _ttl(ttl)

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            wrapped: Callable[P, T] = _memoized(self, function, until, key)
            return wrapped

        return decorate

    def look(self, key: Any) -> Any:
        """Its value or MISSING, uncounted: for whoever has looked before."""
        found = self._box.peek(key, MISSING)
        return self._in_time(key, found) if found.__class__ is _Timed else found


def _memoized(cache: Cache[Any, Any], function: Any, ttl_s: float | None, key: Callable[..., Any] | None) -> Any:
    from functools import update_wrapper

    key_of, flights = _key_of(function, key), cache._flights  # noqa: SLF001  of this file

    def keep(full: Any, value: Any) -> Any:
        cache.set(full, value, ttl=ttl_s)
        return value

    def compute(*args: Any, **kwargs: Any) -> Any:
        full = key_of(args, kwargs)
        found = cache.get(full, MISSING)
        if found is not MISSING:
            return found
        return flights.run(full, lambda: cache.look(full), lambda: keep(full, function(*args, **kwargs)))

    async def compute_async(*args: Any, **kwargs: Any) -> Any:
        full = key_of(args, kwargs)
        found = cache.get(full, MISSING)
        if found is not MISSING:
            return found

        async def make() -> Any:
            return keep(full, await function(*args, **kwargs))

        return await flights.run_async(full, lambda: cache.look(full), make)

    def forget(*args: Any, **kwargs: Any) -> bool:
        """Drop what was computed for these arguments; whether there was something."""
        return cache.delete(key_of(args, kwargs))

    wrapper: Any = update_wrapper(compute_async if _is_coroutine_function(function) else compute, function)
    wrapper.forget = forget
    return wrapper


class _Key(tuple):  # type: ignore[type-arg]
    """The arguments of one call: hashed once, and read as the call in errors."""

    __slots__ = ()

    def __str__(self) -> str:
        name, arguments, *_ = self
        return f"{getattr(name, '__qualname__', name)}({', '.join(map(repr, arguments))})"


def _key_of(function: Any, key: Callable[..., Any] | None) -> Callable[[Any, Any], Any]:
    """The key of a call: the function is part of it, so that several share a cache."""
    if key is not None:
        return lambda args, kwargs: _Key((function, (key(*args, **kwargs),)))
    return lambda args, kwargs: _Key((function, args, *sorted(kwargs.items())) if kwargs else (function, args))


def _is_coroutine_function(function: Any) -> bool:
    from inspect import iscoroutinefunction

    return iscoroutinefunction(function)


def _sizing(sizer: Callable[[Any], int] | None, limit: int) -> Callable[[Any, Any], int]:
    """What the store asks for the size of an entry."""
    if sizer is not None and not callable(sizer):
        raise ConfigError(f"{sizer!r} cannot be called", where="sizer", mend="give a function of the value")

    def measured(key: Any, value: Any) -> int:
        if value.__class__ is _Timed:
            value = value.value
        # What most keys and values are is sized without a call of getsizeof, each a tenth of what storing one costs.
        kind = value.__class__
        if kind is bytes:
            size = len(value) + _EMPTY_BYTES
        else:
            size = len(value) + _EMPTY_TEXT if kind is str and value.isascii() else size_of(value)
        if key.__class__ is str and key.isascii():
            size += len(key) + _EMPTY_ENTRY
        else:
            size += getsizeof(key) + ENTRY_BYTES
        if size > limit:
            raise _TooLargeError
        return size

    def given(_key: Any, value: Any) -> int:
        size = sizer(value.value if value.__class__ is _Timed else value) if sizer is not None else 0
        if not isinstance(size, int) or size < 0:
            raise ConfigError(f"it gave {size!r} for a {type(value).__name__}", where="sizer", mend="give whole bytes")
        if size > limit:
            raise _TooLargeError
        return size

    return measured if sizer is None else given


def _ttl(ttl: str | float | None) -> float:
    """Seconds until the end; infinity where there is none."""
    return _NEVER if ttl is None or ttl == _NEVER else parse_duration(ttl, where="ttl")
