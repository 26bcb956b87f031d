"""The seams: what a stage asks of the world, so that a test or another platform can stand in for it.

`Machine` is the only door to /proc, /sys, limits, libc and signals; `Clock` is the only door to time. Both are
constructor parameters with real defaults. `memwarden.testing` has a fake of each.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from threading import Event
    from typing import Protocol

    from memwarden.facts import Limit, Notice, Reading, Verdict
else:
    Protocol = object  # typing costs the supervisor 0.5 MiB, and a Protocol does nothing at run time


class Clock(Protocol):
    """Time. `monotonic` never jumps back; `wall` is Unix time and may."""

    def monotonic(self) -> float:
        """Seconds since some fixed point."""

    def wall(self) -> float:
        """Seconds since 1970."""

    def wait(self, event: Event, seconds: float) -> bool:
        """Wait for the event at most so long; true when it was set."""


class Source(Protocol):
    """One kept-open file of /proc or /sys, re-read in place and re-opened after a fork."""

    def read(self) -> bytes:
        """The whole text as it is now. Raises OSError."""

    def close(self) -> None:
        """Give the descriptor back; a later read opens it again."""


class NumberSource(Protocol):
    """One kept-open number of /proc or /sys."""

    def value(self) -> int | None:
        """The number as it is now; None where it cannot be read."""

    def close(self) -> None:
        """Give the descriptor back; a later read opens it again."""


class Machine(Protocol):
    """The door to one machine: a real one, or a folder that looks like one."""

    root: str
    live: bool  # false: a folder, where nothing of this process may leak in
    environ: Mapping[str, str]
    page_size: int

    def read(self, path: str) -> bytes:
        """The whole of an absolute path below the root. Raises OSError."""

    def open(self, path: str) -> Source:
        """The same file kept open for many readings; opened at the first one."""

    def number(self, path: str, *, index: int = 0, scale: int = 1) -> NumberSource:
        """The `index`-th whole number of a file, times `scale`, kept open."""

    def path(self, path: str) -> str:
        """The absolute path as the file system here knows it."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""

    def listdir(self, path: str) -> list[str]:
        """The names in a folder. Raises OSError."""

    def getpid(self) -> int:
        """The pid that /proc/self stands for; 0 where it cannot be told."""

    def forked(self) -> bool:
        """Whether the process was forked and never executed a program: it shares pages with its parent."""

    def has_forked_children(self) -> bool:
        """Whether a living child was forked from here and never executed a program: it shares pages with us."""

    def start_ticks(self) -> int:
        """When the process started, in clock ticks since boot; 0 where unknown."""

    def trim(self) -> bool | None:
        """Return freed memory to the system (glibc malloc_trim); None where the allocator is another."""

    def native_in_use_bytes(self) -> int | None:
        """Bytes handed out by malloc and not freed (glibc mallinfo2); None where unknown."""

    def python_blocks(self) -> int | None:
        """Blocks handed out by Python's own allocator. Cost grows with the heap: 1-3 ms at 900 MB."""


class MemorySensor(Protocol):
    """Reads memory. `memwarden.sense.Sensor` on Linux; the psutil one elsewhere."""

    def read(self) -> Reading:
        """A whole reading."""

    def limit(self) -> Limit:
        """The effective limit as last discovered."""


class Pressure(Protocol):
    """What a stream or a job asks before it takes more memory. A Warden is one; so is a constant."""

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict, replaced whole; reading it takes no lock."""


class Watch(Pressure, Protocol):
    """A Pressure that can be told to look now. A Warden is one."""

    def check(self) -> Verdict:
        """Read and weigh now."""


class Sheddable(Protocol):
    """Something that holds memory which it can do without: a cache, a pool, a container."""

    @property
    def name(self) -> str:
        """Who it is, for people."""

    @property
    def held_bytes(self) -> int:
        """What it holds now."""

    def shed(self, size_bytes: int) -> int:
        """Free up to so much within 5 ms; the bytes freed. It is called again for more until it returns 0."""


class Action(Protocol):
    """Something that gives memory back. It says what it costs and measures what it did."""

    name: str
    priority: int  # the highest is tried first
    above: float  # not below this share of the limit, 0-1
    foreign: bool  # code of the application: it is let go for good where it raises, hangs or makes memory worse
    holds_gil: bool  # other threads stand still while it works
    fork_unsafe: bool  # harmful in a forked child whose parent did not freeze its heap
    cooldown_s: float

    def idle(self) -> bool:
        """Whether there is nothing that it could do now: then it is passed over in silence."""

    def apply(self, machine: Machine) -> int | None:
        """Do it. Returns the number of objects it dealt with, or None."""


class Channel(Protocol):
    """A way to tell somebody: mail, a chat, a webhook, a log. Built from configuration; one thread at a time."""

    name: str  # as the configuration has it; unique
    kind: str  # smtp, slack, webhook, ...

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings, one clear line each; nothing is sent."""

    def warm_up(self) -> None:
        """Import and connect as `send` will: one real handshake where the protocol has one. Raises DeliveryError."""

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """Deliver them, together where the channel can. Back within `timeout_s`. Raises DeliveryError."""

    def close(self) -> None:
        """Give connections back."""
