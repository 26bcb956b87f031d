"""The loop from outside: `memwarden run -- COMMAND`.

A small process beside the command: it makes the cgroup (`cgroup`, `scope`), starts the command (`spawn`),
hands on signals (`signals`), watches memory (`watch`), says how it died (`deaths`, `postmortem`) and starts
it again (`restart`). `supervisor` is the loop that joins them. It runs in an interpreter of its own that
imported almost nothing (`entry`), because its 14 MiB come out of the memory that it guards.

Not here: reading what is inside the command (that is the library), and any action on it but signals and
limits.
"""

from __future__ import annotations
