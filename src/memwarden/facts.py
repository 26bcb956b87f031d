"""The facts that pass from stage to stage: frozen, keyword-only, with units in their names.

One way only: a Reading is weighed into a Verdict, a Verdict is climbed into an Outcome, an Outcome is told as a
Notice, and each holds the one before it. Nothing here reads a machine or a clock. Durations are float seconds,
sizes are int bytes, ratios are 0-1. What could not be read is None, with its reason in `Reading.unknown`.

Facts are made by a small base class and not by `dataclasses`: that module alone costs 1.4 MiB and 17 modules, which
is half of what the supervisor may weigh (docs/decisions/001-facts-without-dataclasses.md).
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):  # noqa: ANN201  the real one lives in typing, which the supervisor does not import
        return lambda cls: cls


def _init_of(cls: Any) -> Any:
    """Write `__init__` as source, as dataclasses does, but through the slots' own setters (2x faster)."""
    fields, defaults = cls._fields, cls._defaults
    scope: dict[str, Any] = {f"_set_{name}": getattr(cls, name).__set__ for name in fields}
    scope |= {f"_default_{name}": value for name, value in defaults.items()}
    words = ", ".join(f"{name}=_default_{name}" if name in defaults else name for name in fields)
    body = "\n".join(f"    _set_{name}(self, {name})" for name in fields) or "    pass"
    exec(f"def __init__(self, *, {words}):\n{body}" if words else f"def __init__(self):\n{body}", scope)  # noqa: S102  our names
    scope["__init__"].__qualname__ = f"{cls.__name__}.__init__"
    return scope["__init__"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _FactType(type):
    """Turns the annotations of a class body into slots, an `__init__`, equality and a repr."""

    def __new__(mcls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> _FactType:
        own = tuple(key for key in body.get("__annotations__", ()) if not key.startswith("_"))
        inherited = tuple(key for base in bases for key in getattr(base, "_fields", ()))
        again = [key for key in own if key in inherited]
        if again:
            raise TypeError(f"{name}.{again[0]} is a field of its base already")
        defaults = {key: value for base in bases for key, value in getattr(base, "_defaults", {}).items()}
        defaults |= {key: body.pop(key) for key in own if key in body}
        body |= {"__slots__": own, "_fields": (*inherited, *own), "_defaults": defaults}
        cls = super().__new__(mcls, name, bases, body)
        if cls._fields:  # type: ignore[attr-defined]  # set by the metaclass
            cls.__init__ = _init_of(cls)  # type: ignore[misc]  # made for these fields
        return cls


class Fact(metaclass=_FactType):
    """A frozen record: keyword-only, compared by value, no attribute can be set or added."""

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: use .replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __hash__(self) -> int:
        values = (getattr(self, name) for name in self._fields)
        return hash(tuple(frozenset(each.items()) if isinstance(each, dict) else each for each in values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, one level deep."""
        return {name: getattr(self, name) for name in self._fields}

    def replace(self, **changes: object) -> Self:
        """The same fact with some fields changed."""
        return type(self)(**{**self.as_dict(), **changes})


def _rebuild(cls: type[Fact], values: dict[str, Any]) -> Fact:
    return cls(**values)


class Level(IntEnum):
    """How near the end is. Ordered, so that levels can be compared."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3
    HEALTHY = 0  # the older systems' name for NORMAL


class Candidate(Fact):
    """One limit that somebody set on us, whether or not it is the tightest.

    `kind` is one of setting, cgroup, rlimit, platform, machine; `scope` says what counts against it: process,
    container or machine. `bytes` is None where that place sets no limit, and `note` says why.
    """

    kind: str
    scope: str
    bytes: int | None
    source: str
    note: str = ""


class Limit(Fact):
    """The effective limit: the tightest candidate, and the chain it won against.

    `bytes` is None only where not even the machine's memory could be read.
    """

    bytes: int | None
    source: str
    kind: str
    scope: str
    chain: tuple[Candidate, ...] = ()

    def explain(self) -> str:
        """The choice in one line, with the file or setting that said so."""
        from memwarden.units import format_bytes

        if self.bytes is None:
            return "no limit could be read"
        others = sum(1 for c in self.chain if c.bytes is not None) - 1
        beaten = f", the tightest of {others + 1}" if others > 0 else ""
        return f"{format_bytes(self.bytes)} from {self.source}{beaten}"


class Surroundings(Fact):
    """What moves slowly or costs more to read, as it was at `monotonic_s`: at most a second before its reading.

    The heap figures are older still, at `heap_monotonic_s`: their cost grows with the heap. `sources` says for each
    figure of a reading which file it came from, `unknown` why a figure is None.
    """

    monotonic_s: float
    anon_bytes: int | None = None
    shmem_bytes: int | None = None
    swap_bytes: int | None = None
    rss_peak_bytes: int | None = None
    container_peak_bytes: int | None = None
    container_high_bytes: int | None = None
    container_swap_bytes: int | None = None
    container_swap_limit_bytes: int | None = None
    oom_kills: int | None = None
    machine_total_bytes: int | None = None
    machine_available_bytes: int | None = None
    machine_reclaimable_bytes: int | None = None
    machine_shmem_bytes: int | None = None
    machine_swap_total_bytes: int | None = None
    machine_swap_free_bytes: int | None = None
    psi_some_avg10_percent: float | None = None
    psi_full_avg10_percent: float | None = None
    python_blocks: int | None = None
    native_in_use_bytes: int | None = None
    heap_monotonic_s: float | None = None
    sources: Mapping[str, str] = {}
    unknown: tuple[tuple[str, str], ...] = ()


class Reading(Fact):
    """One truthful look at memory. Bytes unless the name says otherwise; None is unknown, with a reason.

    `used_bytes` is the upper bound of what counts against `limit_bytes` (usage minus inactive file cache) and
    `used_low_bytes` the lower bound (what cannot be reclaimed). Both are of the limit's own `scope`: process,
    container or machine. `usage_bytes` is the container's raw usage, cache included. `headroom_bytes`,
    `pressure_ratio` and `pressure_low_ratio` (upper and lower bound of used over limit) look at every limited ancestor
    too: a full parent kills a half-empty child.
    """

    monotonic_s: float
    unix_s: float
    pid: int
    rss_bytes: int | None
    used_bytes: int | None
    used_low_bytes: int | None
    limit_bytes: int | None
    limit_source: str
    scope: str = "machine"
    headroom_bytes: int | None = None
    pressure_ratio: float | None = None
    pressure_low_ratio: float | None = None
    usage_bytes: int | None = None
    psi_some_total_us: int | None = None
    psi_full_total_us: int | None = None
    around: Surroundings = Surroundings(monotonic_s=0.0)

    @property
    def usage_ratio(self) -> float | None:
        """Upper bound of used over limit, 0-1 and beyond."""
        if self.used_bytes is None or not self.limit_bytes:
            return None
        return self.used_bytes / self.limit_bytes

    @property
    def usage_low_ratio(self) -> float | None:
        """Lower bound of used over limit: what cannot be reclaimed."""
        if self.used_low_bytes is None or not self.limit_bytes:
            return None
        return self.used_low_bytes / self.limit_bytes

    def flat(self) -> dict[str, Any]:
        """Every figure by name in one flat dictionary, as the machine-readable outputs print it."""
        found = {**self.around.as_dict(), **self.as_dict()}
        del found["around"]
        return {**found, "sources": dict(self.around.sources), "unknown": dict(self.around.unknown)}


class Reason(Fact):
    """Why a verdict is what it is: `code` for machines, `text` for people, and the figure behind it."""

    code: str
    text: str
    value: float | None = None


class Trend(Fact):
    """How memory moved over a window (row M7). Needs at least two samples; `None` where it cannot be said."""

    window_s: float
    samples: int
    average_bytes: float | None = None
    peak_bytes: int | None = None
    growth_bytes_per_minute: float | None = None
    increasing: bool = False
    spikes: int = 0


class Forecast(Fact):
    """Time until the limit: the median and the 10-90 % interval in seconds, or the `reason` of a refusal."""

    seconds_to_limit: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    reason: str = ""


class Verdict(Fact):
    """What a reading means: the level, since when (monotonic seconds), and why."""

    level: Level
    since_s: float
    reading: Reading
    reasons: tuple[Reason, ...] = ()


class Outcome(Fact):
    """What one action did: bytes in use before and after by the same sensor, and how long it took."""

    action: str
    reason: str
    before_bytes: int | None
    after_bytes: int | None
    duration_s: float
    unix_s: float
    objects: int | None = None
    skipped: str = ""
    error: str = ""

    @property
    def freed_bytes(self) -> int | None:
        """Bytes that went back; negative where the process grew meanwhile."""
        if self.before_bytes is None or self.after_bytes is None:
            return None
        return self.before_bytes - self.after_bytes


class Leak(Fact):
    """What the watch for leaks says now: `stage` is off, quiet, suspected or confirmed, and since when.

    `cause`, `confidence` (0-100) and `evidence` are those of the last look, whatever the stage; `advice` fits them.
    `samples` is how many the next look has before it; `reason` says why there is no verdict yet. `growing` names the
    types that there are more and more of, where two censuses were taken since it was suspected.
    """

    stage: str
    since_unix_s: float | None = None
    cause: str = ""
    confidence: int = 0
    growth_bytes_per_minute: float | None = None
    evidence: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    samples: int = 0
    reason: str = ""
    growing: tuple[str, ...] = ()


class Finding(Fact):
    """Something about this process that is worth telling, told once.

    `kind` is leak, rapid growth or spike. A leak is suspected, confirmed, withdrawn or resolved; rapid growth began or
    ended; a spike was seen: that is `what`. `leak` is the verdict at that moment where it is about one.
    """

    kind: str
    what: str
    text: str
    monotonic_s: float
    unix_s: float
    pid: int
    leak: Leak | None = None


class Alert(Fact):
    """What an alert says wherever it stands: as a signal, in the history, as a notice.

    `key` names the state that it is about (target and kind), so that raised, escalated and recovered belong together.
    `kind` is the alert type (high_usage, limit_exceeded, leak, rapid_growth, collections, job_split, spike, oom_kill,
    action, custom, test).
    """

    key: str
    kind: str
    what: str
    level: Level
    title: str
    text: str
    unix_s: float
    target: str
    host: str


class Notice(Alert):
    """One thing to tell one channel. `details` holds JSON values only, and no secret.

    `delivery_id` is the same at every attempt to deliver it: receivers take it for the one thing that it is. `what` is
    raised, changed, escalated, reminded, recovered or test.
    """

    delivery_id: str
    details: Mapping[str, Any] = {}


class Operation(Fact):
    """One finished operation (row M11). `peak_bytes` is sampled: `samples` says how often it was looked at.

    `overlapped` is true where others ran in this process meanwhile, so that the difference is not theirs alone.
    """

    name: str
    before_bytes: int | None
    after_bytes: int | None
    peak_bytes: int | None
    duration_s: float
    samples: int
    overlapped: bool
    failed: bool = False

    @property
    def difference_bytes(self) -> int | None:
        """Resident bytes after minus before."""
        if self.before_bytes is None or self.after_bytes is None:
            return None
        return self.after_bytes - self.before_bytes
