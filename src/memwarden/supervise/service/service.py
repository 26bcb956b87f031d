"""The loop of the service: follow the boxes, judge the machine, deliver, keep the history small. Then wait.

What fails is said and tried again: a history that cannot be written (locked, full, damaged) leaves the ticks in the
rings of their boxes and stops neither alerts nor deaths from being told, and the other way round.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress

from memwarden.clock import SystemClock
from memwarden.errors import MemwardenError, StoreError
from memwarden.facts import Level
from memwarden.judge import Judge, Lines
from memwarden.sense import Machine as RealMachine
from memwarden.store import BUSY_S, FILE_NAME, is_failing, is_locked
from memwarden.supervise.autopsy import command_name, headline
from memwarden.supervise.service.boxes import Boxes
from memwarden.supervise.service.history import MOST_BYTES, History
from memwarden.supervise.service.machine import read_machine
from memwarden.tell.members import is_gone, member_with
from memwarden.tell.rules import Draft, LevelRules, of_change, of_death
from memwarden.tell.sender import Teller, adopt, posted
from memwarden.tell.signals import Signal, key_of, settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from threading import Event

    from memwarden.config import Config
    from memwarden.ports import Channel, Clock, Machine
    from memwarden.supervise.autopsy import Autopsy
    from memwarden.tell.settings import AlertSettings

__all__ = ["Lock", "Service"]

LOCK_NAME = "service.lock"
# What is left in the slots of living processes is looked for so often: an EMERGENCY is on its way within a second.
LOOK_S = 0.5
MACHINE_S = 1.0
# Who came, who is gone: a death is told within two seconds.
SCAN_S = 1.0
# A box holds 2,880 ticks: 29 s of the fastest ones, and three minutes of a supervisor's.
FOLD_S = 5.0
TIDY_S = 60.0
# Rounds of tidying in a row: 40,000 rows a minute is 30 times what twenty processes make.
_TIDY_ROUNDS = 20
RETRY_S = 30.0
# Whatever is due, it does not spin.
_LEAST_S = 0.01
# A complaint that stays the same is repeated so often.
REPEAT_S = 600.0
STOP_S = 10.0
_OPEN_LOOK_S, _OPEN_LOOKS = 0.05, 100

# Verdicts (supervise.deaths, autopsy) that are told, and how. An OOM kill has a kind of its own.
_ENDS = {
    "killed": "was killed (SIGKILL)",
    "crashed": "crashed",
    "unknown": "is gone without a word",
}
_OOM = ("oom_kill", "oom_kill_of_descendant")


class Lock:
    """One service per folder: whoever holds the lock of its file. The kernel lets it go with the process.

    Raises StoreError where another one has it, or the file cannot be made.
    """

    def __init__(self, folder: str) -> None:
        path = os.path.join(folder, LOCK_NAME)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"cannot be made: {error.strerror}", where=path, mend="set MEMWARDEN_DIR") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self._holder()
            os.close(self._fd)
            mend = "one is enough for a folder; set MEMWARDEN_DIR for another"
            raise StoreError(f"a service runs already (pid {holder})", where=folder, mend=mend) from error
        except OSError as error:
            os.close(self._fd)
            raise StoreError(f"cannot be locked: {error.strerror}", where=path, mend="set MEMWARDEN_DIR") from error
        with suppress(OSError):  # a full disk: the pid is for whoever asks who has it, the lock holds without
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _holder(self) -> str:
        try:
            return os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)


class Service:
    """One service. `folder` is that of the store and the history, `run_folder` that of the black boxes.

    `alerts` are the settings and channels of the `[alerts]` table, None where there is none: then it only keeps the
    history. `until` is a process that it serves: when that is gone and nobody else is guarded, it ends by itself.
    """

    def __init__(
        self,
        folder: str,
        run_folder: str,
        *,
        config: Config,
        alerts: tuple[AlertSettings, Sequence[Channel]] | None,
        environ: Mapping[str, str] = os.environ,
        clock: Clock | None = None,
        machine: Machine | None = None,
        most_bytes: int = MOST_BYTES,
        until: int | None = None,
        waits: Clock | None = None,
    ) -> None:
        self._folder, self._run_folder, self._most_bytes = folder, run_folder, most_bytes
        self._clock: Clock = clock or SystemClock()
        self._machine: Machine = machine or RealMachine()
        self._log = logging.getLogger("memwarden.service")
        self._host = os.uname().nodename
        self._due: dict[str, float] = {}
        self._said: dict[str, tuple[str, float]] = {}
        self._history: History | None = None
        self._boxes = Boxes(run_folder, machine=self._machine, clock=self._clock, on_end=self._tell_end)
        self._until = member_with(until) if until is not None else None
        self._teller: Teller | None = None
        self._takes_all = False
        self._locked_s: float | None = None  # since when somebody has the store locked
        self._rules: LevelRules | None = None
        self._judge = Judge(Lines.of(config))
        if alerts is not None:
            settings, channels = alerts
            self._takes_all = settings.deliver == "service"
            self._rules = LevelRules(
                raise_for_s=settings.raise_for_s, clear_for_s=settings.clear_for_s,
                clear_below=config.warning - max(config.leave_gap, settings.clear_gap), clear_gap=settings.clear_gap,
            )  # fmt: skip
            self._teller = Teller(
                settings.replace(deliver="here"), channels, target=settings.service or "memwarden service",
                host=self._host, store_folder=folder, run_folder=run_folder, environ=environ, clock=self._clock,
                waits=waits,
            )  # fmt: skip

    # --- life ------------------------------------------------------------------------------------------------------

    def run(self, stop: Event) -> None:
        """Until it is told to stop, or nobody is left to serve. Raises StoreError where another one serves it."""
        lock = Lock(self._folder)
        try:
            if self._teller is not None:
                self._teller.start()
                self._wait_for_outbox(stop)
            while not stop.is_set() and not self._is_over():
                self._clock.wait(stop, self.round())
            self._end()
        finally:
            self._boxes.close()
            if self._history is not None:
                self._history.close()
            lock.close()

    def _wait_for_outbox(self, stop: Event) -> None:
        """Its thread opens it, after it imported what that needs."""
        for _ in range(_OPEN_LOOKS):
            if self._teller is None or self._teller.outbox is not None or self._clock.wait(stop, _OPEN_LOOK_S):
                return

    def _is_over(self) -> bool:
        return self._until is not None and is_gone(self._until) and not self._boxes.living

    def _end(self) -> None:
        """Once more, so that what there is is kept and told; then deliver for some seconds."""
        self._due.clear()
        self.round()
        if self._teller is not None:
            self._teller.stop(patience_s=STOP_S)

    # --- one round ---------------------------------------------------------------------------------------------------

    def round(self) -> float:
        """Do what is due; seconds until the next."""
        if self._is_due("scan", SCAN_S):
            self._guard("boxes", self._boxes.scan)
            if self._boxes.is_waiting:
                self._due.pop("fold", None)
        if self._is_due("fold", FOLD_S):
            if self._history is None and self._is_due("open", RETRY_S):
                self._guard("opening", self._open_history)
            self._guard("history", self._fold)
            self._guard("deaths", self._see_to_ends)
        if self._teller is not None:
            if self._takes_all:
                self._guard("slots", self._take_posts)
            if self._is_due("machine", MACHINE_S):
                self._guard("machine", self._judge_machine)
        if self._is_due("tidy", TIDY_S):
            self._guard("history", self._tidy)
        now_s = self._clock.monotonic()
        next_s = min(self._due[each] for each in ("scan", "fold", "tidy", "machine") if each in self._due) - now_s
        return min(max(_LEAST_S, next_s), LOOK_S if self._takes_all else SCAN_S)

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = self._clock.monotonic()
        if now_s < self._due.get(what, float("-inf")):
            return False
        self._due[what] = now_s + every_s
        return True

    def _guard(self, what: str, step: Callable[[], None]) -> None:
        """A step that fails is said, and is tried again: it must not take the others with it."""
        try:
            step()
        except StoreError as error:
            self._store_failed(what, error)
        except MemwardenError as error:
            self._say(what, str(error))
        except Exception:  # noqa: BLE001  whatever is wrong with one step, the others go on
            if self._is_new(what, "failed"):
                self._log.exception("%s: a step of the service failed; it goes on", what)
        else:
            self._said.pop(what, None)

    def _say(self, what: str, words: str) -> None:
        if self._is_new(what, words):
            self._log.error("%s; it is tried again", words)

    def _is_new(self, what: str, words: str) -> bool:
        """Whether it was not said just so within the last ten minutes."""
        now_s = self._clock.monotonic()
        before, at_s = self._said.get(what, ("", float("-inf")))
        if words == before and now_s - at_s < REPEAT_S:
            return False
        self._said[what] = (words, now_s)
        return True

    # --- history -----------------------------------------------------------------------------------------------------

    def _open_history(self) -> None:
        self._history = History(self._folder, clock=self._clock, most_bytes=self._most_bytes)

    def _fold(self) -> None:
        self._boxes.fold(self._history)

    def _see_to_ends(self) -> None:
        self._boxes.see_to_ends(self._history)

    def _tidy(self) -> None:
        history = self._history
        if history is None:
            return
        for _ in range(_TIDY_ROUNDS):
            if not history.expire():
                break
        history.give_back()

    def _store_failed(self, what: str, error: StoreError) -> None:
        if self._teller is not None and is_failing(error) and error.where == os.path.join(self._folder, FILE_NAME):
            self._teller.worry(error)  # which says so, and goes on from memory
            return
        self._say(what, str(error))
        history = self._history
        if history is None or not str(error.where or "").startswith(history.path):
            return
        try:
            history.reopen(error)
        except StoreError as again:
            self._say(what, str(again))
            history.close()
            self._history = None

    # --- telling -----------------------------------------------------------------------------------------------------

    def _take_posts(self) -> None:
        """What living processes left to be told: they leave the delivery to us."""
        teller = self._teller
        outbox = teller.outbox if teller is not None else None
        if teller is None or outbox is None or not self._boxes.has_posts():
            return
        now = self._clock.wall()
        try:
            if adopt(outbox, self._run_folder, own=None, now_unix_s=now, living=True, patient=False):
                teller.look()
            self._locked_s = None
        except StoreError as error:
            if not is_locked(error):
                raise
            signals = [signal for _, _, signal in posted(self._run_folder) if signal is not None]
            teller.go_past(outbox, signals)
            now_s = self._clock.monotonic()
            self._locked_s = now_s if self._locked_s is None else self._locked_s
            if now_s - self._locked_s > BUSY_S:
                raise

    def _judge_machine(self) -> None:
        reading = read_machine(self._machine, self._clock)
        if reading is None or self._rules is None or self._teller is None:
            return
        verdict = self._judge.weigh(reading)
        for change in self._rules.weigh(verdict.level, reading.pressure_ratio, reading.monotonic_s):
            if change.kind == "high_usage":  # a machine does not exceed its memory
                self._teller.tell(of_change(change, verdict, {}))

    def _tell_end(self, autopsy: Autopsy) -> None:
        """Have a death told, in the outbox before anything says that it was. Raises StoreError."""
        draft = draft_of(autopsy)
        self._log.info("%s", headline(autopsy))
        if draft is None or self._teller is None:
            return
        outbox = self._teller.outbox
        if outbox is None:
            raise MemwardenError("a death waits to be told until the outbox is open", where=self._folder)
        target = self._teller.settings.service or command_name(autopsy.argv)
        # `memwarden alerts deliver`, which a supervisor starts, calls it the same: whoever comes first tells it.
        name = f"death-{autopsy.pid}-{int(autopsy.start_unix_s)}"
        signal = settled(Signal(
            id=name, key=key_of(draft.kind, target),
            kind=draft.kind, what=draft.what, level=draft.level, title=draft.title, text=draft.text,
            unix_s=autopsy.ended_unix_s, target=target, host=self._host, member="autopsy",
            scope=draft.scope, details=draft.details,
        ))  # fmt: skip
        try:
            made = outbox.take([signal], patient=False)
        except StoreError as error:
            if is_locked(error):
                self._teller.go_past(outbox, [signal])
            raise
        if made:
            self._teller.look()


def draft_of(autopsy: Autopsy) -> Draft | None:
    """What there is to tell of a death; None for one that nobody needs to hear of."""
    in_flight = tuple(each.name for each in autopsy.in_flight)
    if autopsy.verdict in _OOM:
        return of_death(
            command=autopsy.argv[:100], pid=autopsy.pid, certain=autopsy.certain, peak_bytes=autopsy.peak_bytes,
            limit_bytes=autopsy.limit_bytes, limit_source=autopsy.limit_source, in_flight=in_flight,
            descendant=autopsy.verdict == "oom_kill_of_descendant", evidence=autopsy.evidence,
        )  # fmt: skip
    if autopsy.verdict not in _ENDS:
        return None
    how = _ENDS[autopsy.verdict]
    # One that was in trouble when it went is worse news, and must not be held back by the very alert of that trouble.
    level = Level.CRITICAL if _was_in_trouble(autopsy) else Level.WARNING
    details = {
        "pid": autopsy.pid, "exit_status": autopsy.exit_status, "peak_bytes": autopsy.peak_bytes,
        "limit_bytes": autopsy.limit_bytes, "in_flight": list(in_flight[:5]), "evidence": list(autopsy.evidence[:3]),
    }  # fmt: skip
    title = f"{command_name(autopsy.argv)} {how}"
    return Draft(kind="custom", what="seen", level=level, title=title, text=headline(autopsy), scope="process",
                 details=details)  # fmt: skip


def _was_in_trouble(autopsy: Autopsy) -> bool:
    """Whether it was above NORMAL when it was last heard of; the text is "NORMAL -> EMERGENCY: why"."""
    change = autopsy.levels[-1].text.partition(":")[0] if autopsy.levels else ""
    return any(tick.level for tick in autopsy.ticks[-1:]) or ("->" in change and not change.endswith("NORMAL"))
