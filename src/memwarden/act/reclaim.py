"""The reclaim that every Python process has: give memory that was freed back to the system.

Measured (CPython 3.11-3.13, glibc): trimming returned 685-741 of 776 MB after 4-64 KB blocks were freed and blocked
other threads for 10 ms at most. So it comes before all others; each of them is followed by a trim of its own, so that
what it let go is measured, and not what the allocator still keeps.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memwarden.ports import Machine


class Trim:
    """Return freed malloc memory to the system (glibc malloc_trim)."""

    name = "trim"
    priority = 110
    above = 0.0
    foreign = False
    holds_gil = False
    fork_unsafe = False
    cooldown_s = 15.0  # the delay that oomd leaves between two actions, so that the first can take effect

    def idle(self) -> bool:
        """There may always be something."""
        return False

    def apply(self, machine: Machine) -> int | None:
        """Trim; nothing is counted."""
        machine.trim()
        return None
