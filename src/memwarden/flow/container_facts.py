"""What a container tells of itself; loaded when it is asked."""

from __future__ import annotations

from memwarden.facts import Fact

__all__ = ["ContainerStatistics", "Event", "ServiceStatistics"]


class ServiceStatistics(Fact):
    """One service: how often it was made and found made, the mean time of making it without what it wants in turn.

    `bytes` is what making it left in memory, measured the last time; None where nobody asked for measuring. `live` is
    whether it is made now.
    """

    name: str
    kind: str
    live: bool
    created: int
    cached: int
    mean_creation_s: float | None
    bytes: int | None


class ContainerStatistics(Fact):
    """What a container did. `created` services were made, `cached` look-ups found one made.

    `bytes` is what making those left in memory that are made now, and `not_spent_bytes` what those that are not made
    took in an earlier run; None where nothing was measured, or no profile of an earlier run was given.
    """

    registered: int
    live: int
    created: int
    cached: int
    released: int
    mean_creation_s: float | None
    bytes: int | None
    not_spent_bytes: int | None
    services: tuple[ServiceStatistics, ...]


class Event(Fact):
    """What the debug mode saw: `what` (made, released, closed, failed) of which service, at the end of `path`."""

    monotonic_s: float
    what: str
    name: str
    path: tuple[str, ...] = ()
    duration_s: float | None = None
