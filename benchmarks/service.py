"""What the service costs: resident memory, CPU while twenty processes are calm, and how large its history grows.

The boxes are real ones, written by this process as fast as guarded processes write theirs: once a second (a calm
Warden that is looked at often) and eleven times (a supervisor under `memwarden run`). CPU is that of the whole
service process, by the kernel's count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import Figure
from memwarden.blackbox import BlackBox, directory
from memwarden.supervise.service.history import History
from memwarden.testing import FakeClock

BOXES = 20
WINDOW_S = 60.0 if not os.environ.get("MEMWARDEN_SOAK") else 600.0
MIB = 1 << 20
DAY_S = 86_400
_ALERTS = '[alerts]\ndeliver = "{deliver}"\n[alerts.channels.log]\nkind = "log"\n'
_TLS = """
[alerts.channels.hook]
kind = "webhook"
url = "https://localhost:9/x"
[alerts.channels.mail]
kind = "smtp"
host = "localhost"
from = "a@example.org"
to = "b@example.org"
"""


def main() -> list[Figure]:
    """Memory and CPU by arm, then the size of a day."""
    figures = []
    for name, hertz, settings in (
        ("a log channel, 1 tick/s", 1, _ALERTS.format(deliver="here")),
        ("a log channel, 11 ticks/s", 11, _ALERTS.format(deliver="here")),
        ("webhook and mail with TLS, 1 tick/s, slots looked at", 1, _ALERTS.format(deliver="service") + _TLS),
    ):
        resident, share = _run(hertz, settings)
        figures += [
            Figure(f"service with {BOXES} boxes, {name}: resident", resident / MIB, " MiB", at_most=35.0),
            Figure(f"service with {BOXES} boxes, {name}: CPU of one core", share * 100, " %", at_most=0.5),
        ]
    return [*figures, *_sizes()]


def _run(hertz: int, settings: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "memwarden.toml").write_text(settings, encoding="utf-8")
        environ = {**os.environ, "MEMWARDEN_DIR": folder, "MEMWARDEN_CONFIG": f"{folder}/memwarden.toml"}
        boxes = [
            BlackBox(
                directory(folder, {}, os.getuid()), pid=os.getpid(), unix_s=time.time() + number,
                monotonic_s=time.monotonic(), argv=f"app-{number}",
            )
            for number in range(BOXES)
        ]  # fmt: skip
        stop = threading.Event()
        writer = threading.Thread(target=_write, args=(boxes, hertz, stop))
        writer.start()
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "memwarden", "serve"], env=environ, cwd=folder,
                                       stdout=log, stderr=log)  # fmt: skip
            try:
                time.sleep(10.0)  # a benchmark waits for time to pass
                before, at_s = _cpu_s(process.pid), time.monotonic()
                time.sleep(WINDOW_S)  # what the service takes is counted over this window
                share = (_cpu_s(process.pid) - before) / (time.monotonic() - at_s)
                resident = _resident(process.pid)
            finally:
                process.terminate()
                process.wait(30)
        stop.set()
        writer.join()
        return resident, share


def _write(boxes: list[BlackBox], hertz: int, stop: threading.Event) -> None:
    number = 0
    while not stop.wait(1 / hertz):
        number += 1
        for box in boxes:
            box.tick(time.time(), time.monotonic(), 100 * MIB + number * 4096, 120 * MIB + number * 4096, 512 * MIB)


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sizes() -> list[Figure]:
    """A day of one process at a tick a second, folded every five seconds."""
    with tempfile.TemporaryDirectory() as folder:
        clock = FakeClock(unix_s=1.8e9)
        with History(folder, clock=clock) as history:
            life = history.life("a", kind="inside", pid=1, start_ticks=1, start_unix_s=1.8e9, argv="x").id
            cpu_s = time.process_time()
            for number in range(1, DAY_S, 60):
                history.fold(life, [
                    (n, 1.8e9 + n, 100 * MIB + n % 999 * 4096, 120 * MIB + n % 777 * 4096, 512 * MIB, 0)
                    for n in range(number, number + 60)
                ])  # fmt: skip
            cpu_s = time.process_time() - cpu_s
            size = history.size_bytes
    return [
        Figure("history of a day of one process at 1 tick/s", size / MIB, " MiB", at_most=256 / BOXES),
        Figure("CPU to fold one tick", cpu_s / DAY_S * 1e6, " us"),
    ]
