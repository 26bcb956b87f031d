"""`make demo`: a real service kept inside its memory limit, in about a minute.

Everything shown is real: the service, the traffic, the limit, the readings, the kernel's kill. Each step
checks what it claims, and the first that does not hold ends the demo with exit code 1 and is named. Where no
memory cgroup can be made, the limit is an rlimit and the kernel's answer a MemoryError: the demo shows that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import data
from show import Show, mib
from stage import Stage, end
from traffic import Traffic

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("CRM_DIR") or Path(__file__).resolve().parents[2] / ".demo")
TRACE, REPORT = FOLDER / "trace.csv", FOLDER / "report.html"

# The service needs about 30 MiB for itself; 96 leave the leak some twenty seconds of room at this rate.
LIMIT = "96M"
RATE = 200.0  # requests per second
# The plain job takes some 140 MiB for so many contacts, the memory-aware one 25.
JOB_LIMIT, JOB_CONTACTS = "96M", 20_000
# 3,000 contacts have 48 MB of calls, and the export holds them several times over: far more than the limit.
CONTACTS = 3000

CALM_S = 6
GO_ON_S = 4
START_S = 30.0
LEAK_S = 90.0
RECOVER_S = 30.0
PATIENCE_S = 30.0
RESTART_S = 30.0

WELCOME = """\
memwarden keeps a Python service inside its memory limit. You will see, on a real service with real requests:
its limit found, a leak driving memory up, the levels and what is done about them, one deliberate death by the
kernel with its post-mortem and the restart, a report, and a job that does not fit and finishes all the same.
It takes a minute and cleans up after itself."""
NO_CGROUP = """\
   No memory cgroup can be made here: that takes root, or a cgroup delegated to you. So the limit is an
   rlimit: the kernel will not kill the service but refuse it memory. Step 4 shows that instead of a kill.
   An rlimit also counts what malloc keeps of what was freed, so malloc is told here to keep little:
   MALLOC_MMAP_THRESHOLD_=4096 MALLOC_ARENA_MAX=1"""
EXPORT = """\
   GET /export builds every call as one JSON text in memory: past the limit within a moment, and most of it in
   calls into C that let no other Python thread run. No library inside the process can stop that."""
BURST = """\
   POST /burst/300 fills 300 MiB in a single call into C that lets no other Python thread run. No library inside
   the process can stop that."""

# Blocks above this size are mapped one by one and leave the count when they are freed, which trimming does not do;
# one arena, so that a thread finds what another has freed.
RETURNING_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_ARENA_MAX": "1"}
OWN_FAILURE = 125  # of `memwarden run`
KERNEL_KILL = 137  # 128 + SIGKILL
HIGH = ("CRITICAL", "EMERGENCY")


class StepFailedError(Exception):
    """A step did not show what it claims."""


def check(holds: object, otherwise: str) -> None:
    """End the demo unless it holds."""
    if not holds:
        raise StepFailedError(otherwise)


class Demo:
    """The six steps, in order. Each adds its line to the summary."""

    def __init__(self, show: Show, stage: Stage) -> None:
        self.show = show
        self.stage = stage
        self.traffic: Traffic | None = None
        self.summary: list[str] = []
        self.events: list[dict[str, Any]] = []  # what the service and its Warden did, as told by /health
        self.pid = 0
        self.most_bytes = 0
        self.in_cgroup = False

    def run(self) -> None:
        """All of it. Raises StepFailedError at the first step that does not hold."""
        with ExitStack() as processes:
            self.show.step(1, "A service starts under memwarden")
            self.look_around()
            supervisor = processes.enter_context(
                self.stage.service("--limit", LIMIT, "--fence", "off", "--restart", "on-oom")
            )
            self.start()
            monitor = processes.enter_context(self.stage.recorded(supervisor, LIMIT, TRACE))
            self.show.step(2, f"Real traffic arrives, {RATE:.0f} requests a second")
            driver = Traffic(self.stage.port, contacts=CONTACTS, rate=RATE, seconds=300)
            self.traffic = processes.enter_context(driver)
            self.calm(driver)
            self.show.step(3, "A leak is switched on")
            self.leak()
            self.recover()
            self.show.step(4, "Somebody asks for more than there is")
            (self.kill if self.in_cgroup else self.refuse)(driver)
            self.show.step(5, "What was recorded")
            driver.stop()
            self.report(monitor)
            self.finish(supervisor)
        self.show.step(6, "A job that does not fit")
        self.job()

    def look_around(self) -> None:
        """Find out whether a memory cgroup can be made here, and say what it means where none can."""
        probe = self.stage.memwarden("run", "--cgroup", "require", "--limit", LIMIT, "--", "true")
        check(probe.returncode in {0, OWN_FAILURE}, f"memwarden run does not work: {probe.stderr.strip()}")
        self.in_cgroup = probe.returncode == 0
        if not self.in_cgroup:
            self.show.say(NO_CGROUP)
            self.stage.environ |= RETURNING_MALLOC

    def start(self) -> None:
        """Wait for the service; say which limit was found, and which file said so."""
        self.show.say(f"   $ memwarden run --limit {LIMIT} --fence off --restart on-oom -- python serve.py")
        began_s = time.monotonic()
        first = self.stage.healthy(within_s=START_S)
        self.show.quote(self.stage.news())
        check(first, f"the service did not answer within {START_S:.0f} s")
        assert first
        self.pid, wanted = first["pid"], "cgroup" if self.in_cgroup else "rlimit"
        check(first["limit_kind"] == wanted, f"the limit is a {first['limit_kind']}, and not the {wanted}")
        self.seen_from_outside()
        limit, source = mib(first["limit_bytes"]), first["limit_source"]
        self.show.say(f"   The service answers after {time.monotonic() - began_s:.1f} s.")
        self.show.say(f"   Limit found: {limit}. Who said so: {source}")
        self.summary.append(f"limit    {limit}, found in {source}")

    def seen_from_outside(self) -> None:
        """`memwarden status` knows the service too, without asking it."""
        answer = self.stage.memwarden("status", "--pid", str(self.pid), "--format", "json")
        check(answer.returncode == 0, f"memwarden status failed: {answer.stderr.strip()}")
        known = {process["kind"] for process in json.loads(answer.stdout)["processes"]}
        check("inside" in known, f"memwarden status does not know pid {self.pid}")

    def calm(self, driver: Traffic) -> None:
        """Some seconds without the bug: everybody is answered, and memory stays where it is."""
        self.show.heads()
        self.some_rows(CALM_S)
        check(driver.ok, "no request was answered")
        check(not driver.failed, f"{driver.failed} requests failed before anything was wrong")

    def leak(self) -> None:
        """The levels rise one after the other, and memwarden and the service act."""
        self.show.say("   A cache now keeps every page it ever rendered. Nobody will ask for them again.")
        self.switch("slow")
        self.show.heads()
        self.rows(until=lambda _now: self.level_reached(*HIGH) and self.freed_bytes(), within_s=LEAK_S)
        # Not through WARNING in any case: where the limit is near in time it rises by two at once.
        check(self.level_reached(*HIGH), f"the level did not reach CRITICAL within {LEAK_S:.0f} s")
        check(self.freed_bytes(), "nothing that was done at CRITICAL freed anything")

    def recover(self) -> None:
        """Without the bug, what was freed stays free."""
        self.switch("off")
        self.show.say("   The leak is off again.")
        back = self.rows(until=lambda now: now and now["level"] == "NORMAL", within_s=RECOVER_S)
        check(back, f"the level did not come back to NORMAL within {RECOVER_S:.0f} s")
        assert back
        check(back["used_bytes"] < self.most_bytes, "memory did not fall")
        levels = [event["level"] for event in self.events if "level" in event]
        self.summary.append(f"levels   {' -> '.join(['NORMAL', *levels])}")
        actions = dict.fromkeys(event["what"] for event in self.events if "freed_bytes" in event)
        fell = f"used fell from {mib(self.most_bytes)} to {mib(back['used_bytes'])}"
        self.summary.append(f"actions  cache dropped, {', '.join(actions)}: {fell}")

    def kill(self, driver: Traffic) -> None:
        """One export needs more than the limit within a moment: the kernel kills, and memwarden knows why."""
        self.show.say(EXPORT)
        status, asked_s = self.ask_beside_the_table("GET", "/export")
        check(status == 0, f"the export was answered with {status}: the limit did not hold")
        again = self.stage.healthy(within_s=RESTART_S, not_pid=self.pid)
        took_s = time.monotonic() - asked_s
        self.show.quote(self.stage.news())
        check(again, f"the service was not healthy again within {RESTART_S:.0f} s")
        self.post_mortem()
        check(self.stage.ask("/contacts/1")[0] == 200, "the restarted service does not answer for a contact")
        self.show.say(f"   Killed, restarted, and healthy again {took_s:.1f} s after the request:")
        self.some_rows(GO_ON_S)
        self.summary.append(f"killed   by the kernel, recognised by its counter, healthy again in {took_s:.1f} s")
        self.summary.append(f"traffic  {driver.ok:,} requests answered, {driver.failed:,} lost in the restart")

    def ask_beside_the_table(self, method: str, path: str) -> tuple[int, float]:
        """Ask for too much while the table goes on; the answer's status, and when it was asked for."""
        answers: list[tuple[int, bytes]] = []
        asked_s = time.monotonic()
        asker = Thread(target=lambda: answers.append(self.stage.ask(path, method, timeout_s=PATIENCE_S)))
        asker.start()
        self.show.heads()
        self.rows(until=lambda _now: not asker.is_alive(), within_s=PATIENCE_S)
        asker.join()
        return answers[0][0], asked_s

    def post_mortem(self) -> None:
        """What memwarden knows about the death: read from the black box that survived it."""
        command = ("postmortem", "--pid", str(self.pid))
        answer = self.stage.memwarden(*command, "--format", "json")
        check(answer.returncode == 0, f"memwarden postmortem failed: {answer.stderr.strip()}")
        self.show.say(f"   $ memwarden {' '.join(command)}")
        self.show.quote(self.stage.memwarden(*command).stdout.splitlines())
        found = json.loads(answer.stdout)
        ended = (found["verdict"], found["exit_status"])
        check(ended == ("oom_kill", KERNEL_KILL), f"the post-mortem says {ended}, and not an OOM kill")
        check(any("rose by" in text for text in found["evidence"]), "the kernel's counter of OOM kills did not rise")

    def refuse(self, driver: Traffic) -> None:
        """One request needs more than the limit: the kernel refuses it, and only that request fails."""
        self.show.say(BURST)
        status, _ = self.ask_beside_the_table("POST", "/burst/300")
        check(status == 503, f"the answer was {status}, and not the 503 of a MemoryError")
        self.show.say("   The handler got a MemoryError, its client a 503. Everybody else goes on:")
        answered = driver.ok
        self.some_rows(GO_ON_S)
        now = self.stage.health()
        check(now and now["pid"] == self.pid, "the service did not survive the MemoryError")
        check(driver.ok > answered, "nobody was answered after the MemoryError")
        self.summary.append("refused  300 MiB: MemoryError in one request, answered with 503; the service went on")
        self.summary.append(f"traffic  {driver.ok:,} requests answered, {driver.failed:,} not")

    def report(self, monitor: subprocess.Popen[str]) -> None:
        """The trace that `memwarden monitor` recorded all along, as a page with plots."""
        check(end(monitor) in {0, -signal.SIGTERM, 128 + signal.SIGTERM}, "memwarden monitor failed")
        check(TRACE.is_file(), f"memwarden monitor recorded nothing in {TRACE}")
        self.show.say(f"   $ memwarden analyze {TRACE.name} --format html --output {REPORT.name}")
        answer = self.stage.memwarden("analyze", str(TRACE), "--format", "html", "--output", str(REPORT))
        check(answer.returncode == 0, f"memwarden analyze failed: {answer.stderr.strip()}")
        check("<svg" in REPORT.read_text(encoding="utf-8"), f"{REPORT} has no plot in it")
        figures = json.loads(self.stage.memwarden("analyze", str(TRACE), "--format", "json").stdout)
        self.show.say(f"   {figures['samples']} samples of service and supervisor, peak {mib(figures['peak_bytes'])}.")

    def finish(self, supervisor: subprocess.Popen[str]) -> None:
        """Everything ends, and leaves nothing behind."""
        now = self.stage.health()
        end(supervisor)
        check(not now or not Path(f"/proc/{now['pid']}").exists(), "the service outlived its supervisor")

    def job(self) -> None:
        """The plain job within the limit dies; the memory-aware one finishes, and writes what the plain one would."""
        self.show.say(f"   Suggestions for {JOB_CONTACTS:,} contacts, as one writes it first: it loads everything.")
        limited = ("run", "--limit", JOB_LIMIT, "--fence", "off", "--", sys.executable)
        work = (str(FOLDER), "--contacts", str(JOB_CONTACTS))
        plain = (str(HERE / "suggestions.py"), *work)
        free = self.stage.run(sys.executable, *plain)
        check(free.returncode == 0, f"without a limit it failed too: {free.stderr.strip()}")
        wanted = written_suggestions()
        self.show.say(f"   $ memwarden run --limit {JOB_LIMIT} -- python suggestions.py")
        dead = self.stage.memwarden(*limited, *plain)
        check(dead.returncode != 0, "the plain job finished within the limit")
        self.show.quote(line for line in dead.stderr.splitlines() if "killed by" in line or "MemoryError" in line)
        self.show.say("   The same as a memory-aware job, chunk by chunk, on the engine that memwarden brings:")
        self.show.say(f"   $ memwarden run --limit {JOB_LIMIT} -- python work.py suggest")
        done = self.stage.memwarden(*limited, str(HERE / "work.py"), "suggest", *work)
        self.show.quote(done.stdout.splitlines()[:1])
        check(done.returncode == 0, f"the job did not finish: {done.stderr.strip()}")
        check(written_suggestions() == wanted, "its results are other ones")
        how = "killed by the kernel" if dead.returncode == KERNEL_KILL else "ended by a MemoryError"
        self.summary.append(
            f"job      {JOB_CONTACTS:,} contacts: plain {how}; memory-aware done, with the same results"
        )

    def switch(self, leak: str) -> None:
        """Turn the bug on or off in the running service."""
        check(self.stage.ask(f"/leak/{leak}", "POST")[0] == 200, f"the leak could not be switched {leak}")

    def rows(self, *, until: Callable[[dict[str, Any] | None], object], within_s: float) -> dict[str, Any] | None:
        """A row each second until something holds; None where it did not within the time."""
        next_s = time.monotonic()
        ends_s = next_s + within_s
        while next_s < ends_s:
            now = self.row()
            if until(now):
                return now or {}
            next_s += 1.0
            time.sleep(max(0.0, next_s - time.monotonic()))  # the table's pace: a row each second
        return None

    def some_rows(self, seconds: int) -> None:
        """The table for a while."""
        self.rows(until=lambda _now: False, within_s=seconds)

    def row(self) -> dict[str, Any] | None:
        """Look once, and show it."""
        now = self.stage.health()
        seen = now or {"used_bytes": None, "limit_bytes": None, "level": "down", "events": []}
        known = self.events[-1]["unix_s"] if self.events else 0.0
        new = [event for event in seen["events"] if event["unix_s"] > known]
        self.most_bytes = max(self.most_bytes, seen["used_bytes"] or 0)
        self.events += new
        answered = self.traffic.ok if self.traffic else 0
        self.show.row(answered, seen, map(in_words, new))
        return now

    def level_reached(self, *levels: str) -> bool:
        """Whether the service's Warden told of one of these levels."""
        return any(event.get("level") in levels for event in self.events)

    def freed_bytes(self) -> int:
        """The most that one action gave back to the system."""
        return max((event.get("freed_bytes") or 0 for event in self.events), default=0)


def written_suggestions() -> str:
    """A digest of what a job wrote, which is taken away."""
    found = hashlib.sha256()
    with data.connect(data.database_in(FOLDER, contacts=JOB_CONTACTS, long_tail=True)) as db:
        for row in db.execute("SELECT * FROM suggestions ORDER BY contact_id, position"):
            found.update(repr(tuple(row)).encode())
        db.execute("DELETE FROM suggestions")
    return found.hexdigest()


def in_words(event: dict[str, Any]) -> str:
    """An event for the table."""
    if "freed_bytes" not in event:
        return str(event["what"])
    freed = event["freed_bytes"]
    return f"{event['what']}: {'nothing' if freed is not None and freed <= 0 else mib(freed)} freed"


def main() -> int:
    """Run the demo; 0 when every step held."""
    show = Show()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is ended
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        data.database_in(FOLDER, contacts=CONTACTS)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=FOLDER))
    except OSError as error:
        print(f"demo: {FOLDER}: {error.strerror}; set CRM_DIR to a writable folder", file=sys.stderr)
        return 2
    stage = Stage(folder, CRM_DIR=str(FOLDER), CRM_DEMO="1", CRM_CONTACTS=str(CONTACTS), CRM_LEAK="off")
    demo = Demo(show, stage)
    show.say(WELCOME)
    try:
        demo.run()
    except StepFailedError as error:
        show.quote(stage.said[-10:])
        print(f"\ndemo: step {show.current} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show.say(f"\nWhat you saw, in {show.clock_s():.0f} s:")
    for line in demo.summary:
        show.say(f"  {line}")
    show.say(f"The report with its plots: {REPORT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
