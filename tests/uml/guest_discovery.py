"""Runs in the guest: what a live Sensor says while limits and memory of every kind change under it. Prints JSON."""

from __future__ import annotations

import json
import os
import sys

from memwarden.sense import Machine, Sensor
from memwarden.testing import FakeClock

MIB = 1 << 20


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def make_group(top: str, name: str, *, limit_file: str, limit_bytes: int, last: bool) -> str:
    """A cgroup with a limit; on v2 the controller is handed down to what comes below it."""
    folder = f"{top}/{name}"
    os.mkdir(folder)
    write(f"{folder}/{limit_file}", str(limit_bytes))
    if not last and os.path.exists(f"{folder}/cgroup.subtree_control"):
        write(f"{folder}/cgroup.subtree_control", "+memory")
    return folder


class Story:
    """One sensor and its clock, and what it said at each step."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.sensor = Sensor(Machine(), clock=self.clock)
        self.told: dict[str, dict[str, object]] = {}

    def tell(self, step: str, *, later_s: float = 2.0) -> None:
        """Let that much time pass by the clock, and read."""
        self.clock.advance(later_s)
        reading = self.sensor.read()
        self.told[step] = {
            "limit_bytes": reading.limit_bytes,
            "limit_source": reading.limit_source,
            "usage_bytes": reading.usage_bytes,
            "used_bytes": reading.used_bytes,
            "used_low_bytes": reading.used_low_bytes,
            "oom_kills": reading.around.oom_kills,
            "platform": self.sensor.place.platform.name,
        }


def fill_cache(size_bytes: int) -> int:
    """Clean page cache of that size, charged to our cgroup; the descriptor keeps it."""
    path = f"{os.environ['MEMWARDEN_UML_OUT']}/cache"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(size_bytes))
    os.fsync(fd)
    os.unlink(path)
    return fd


def fill_shared(size_bytes: int) -> None:
    with open("/dev/shm/held", "wb") as file:
        file.write(bytes(size_bytes))


def die_of_memory() -> int:
    """A child that grows until the kernel kills it; its wait status."""
    pid = os.fork()
    if pid == 0:
        held = []
        while True:
            held.append(bytearray(b"x") * MIB)
    return os.waitpid(pid, 0)[1]


def kills_counted(folder: str) -> int:
    """The kernel's own counter there, read plainly."""
    name = "memory.events" if os.path.exists(f"{folder}/memory.events") else "memory.oom_control"
    with open(f"{folder}/{name}") as file:
        return int(dict(line.split() for line in file)["oom_kill"])


def main(top: str, limit_file: str) -> None:
    outer = make_group(top, "outer", limit_file=limit_file, limit_bytes=400 * MIB, last=False)
    inner = make_group(outer, "inner", limit_file=limit_file, limit_bytes=200 * MIB, last=True)
    write(f"{inner}/cgroup.procs", "0")
    story = Story()
    story.tell("start")
    held = bytearray(b"x") * (40 * MIB)
    story.tell("anonymous")
    cache = fill_cache(30 * MIB)
    story.tell("cache")
    fill_shared(20 * MIB)
    story.tell("shared")
    write(f"{outer}/{limit_file}", str(180 * MIB))
    story.tell("soon after the ancestor shrank", later_s=5)
    story.tell("half a minute after", later_s=31)
    status = die_of_memory()
    story.tell("a child was killed")
    os.close(cache)
    counters = {folder: kills_counted(folder) for folder in (outer, inner)}
    print(json.dumps({"told": story.told, "status": status, "held": len(held), "counters": counters}))


if __name__ == "__main__":
    main(*sys.argv[1:])
