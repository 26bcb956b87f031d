"""The alerts in the store: each step of the engine, its event and its deliveries are one transaction.

A delivery is pending, then sent or dead. Who delivers claims some by a lease, sends them, and marks them; one that died
in between is known to be dead (or its lease runs out), and the next one sends again, with the same delivery id. Of one
channel only one batch is under way at a time, whoever sends it, so that a recovery does not overtake what it ends; what
is urgent does not wait for that. A notice is dead as soon as a later one of its state says as much: nobody reads first
that it is CRITICAL and then that it is WARNING.

A channel that fails rests for longer each time, with jitter, or as long as the receiver says; everything for it waits.
After its `attempts` failures running it counts as down, which is said once, and is probed with one batch at a time
until it takes it. What still fails after `give_up_s`, or the channel's own `give_up_after`, is dead, and at once what
is refused for good, which is a failure as well; both stay in the history.

While somebody else has the file locked, what is urgent goes past it: `hand_out` runs the same steps on what can be
read, and writes nothing. The signal stays where it came from; when the file takes it in, the same deliveries come of
it, and those that went out are put down as sent in that very transaction. A death in between costs each a second
telling, with the same delivery id.

Where the file cannot be written for long it lives in memory, with the states, silences and urgent deliveries of the
file as far as that can be read; what is in memory goes there later.

Everything is capped: events, states, pending deliveries, texts. What goes over is dropped from the oldest, and counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from binascii import hexlify
from typing import NamedTuple
from urllib.parse import quote

from memwarden.errors import StoreError
from memwarden.facts import Alert, Fact, Level, Notice
from memwarden.store import FILE_NAME, Store, state_directory
from memwarden.tell.engine import (
    MOST_MEMBERS,
    Incident,
    Other,
    Scene,
    Silence,
    Step,
    acknowledge,
    end_left,
    forget_member,
    merge,
    note_action,
    resolve,
    take,
    wake,
)
from memwarden.tell.members import is_foreign, is_gone, own_member
from memwarden.tell.settings import LONGEST_TIMEOUT_S
from memwarden.tell.signals import MOMENTS, ONCE, Signal, key_of
from memwarden.tell.transfer import TABLES, copy, copy_readable, put, rows_of, salvage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from memwarden.leader import Leader
    from memwarden.ports import Clock
    from memwarden.tell.engine import Tell
    from memwarden.tell.settings import AlertSettings, ChannelUse

# Thirty days at one event every four minutes. An event has 1 to 7 KiB: 70 MiB at the very worst, 10 in practice.
MOST_EVENTS = 10_000
MOST_STATES = 2_000
MOST_PENDING = 1_000
# Signals that were taken, so that one that comes again (its process died before it was marked) is known.
MOST_TAKEN = 4_096
PRUNE_EVERY = 256
PRUNE_ROWS = 500
# Closed states are kept for so long, for their throttles and cool-downs.
STATE_S = 7 * 86_400.0
MOST_TITLE, MOST_TEXT, MOST_DETAILS = 200, 2_000, 4_096
# Notices in one message: what a person reads, and what mail, chats and webhooks take.
BATCH = 20
# A lease lasts longer than a send may take, which the channel keeps by itself.
LEASE_MARGIN_S = 15.0
LONGEST_LEASE_S = LONGEST_TIMEOUT_S + LEASE_MARGIN_S
# The rests of a channel that fails: 1 s, doubled up to 5 min, of which a random half is waited.
FIRST_REST_S, LONGEST_REST_S = 1.0, 300.0
LONGEST_RETRY_AFTER_S = 3600.0
_WAKES = 200
# More than what a page of the file, or a block of the disk, has left by chance.
PROBE_BYTES = 64 << 10
# Later notices of a state that are looked through for one that takes the place of what waits.
_MOST_LATER = 200
# Deliveries that went out past the file and wait to be put down there: below SQLite's least number of variables (999).
MOST_PAST = 900
# What is for a channel that nobody has any more is kept for so many times `give_up_s`.
UNTRIED = 7
# What is given up after a time must have been tried for so long: longer than a network takes to come up again.
LEAST_TRIED_S = 3600.0
TOO_MANY, OVERTAKEN = "too many were waiting", "a later notice of the same state took its place"
# What says that a state is on: the latest of these says all that those before it said.
_SAYS_ON = frozenset({"raised", "changed", "reminded", "escalated"})
# Whoever is in a state says so every ten minutes (`sender.ASSERT_S`).
SILENT_S = 3600.0

_log = "memwarden.tell"


class Claim(Fact):
    """Some deliveries that are ours to send, until the lease is over."""

    channel: str
    notices: tuple[Notice, ...]
    attempts: int
    made_unix_s: float


class Told(Alert):
    """One event of the history, and how its deliveries went: (channel, state, attempts, error).

    `delivered` is how many of them went out in the time that was asked for.
    """

    id: str
    details: Mapping[str, Any]
    why: Mapping[str, str]
    deliveries: tuple[tuple[str, str, int, str], ...] = ()
    delivered: int = 0


class ChannelState(Fact):
    """How a channel does: failures running, since when, until when it rests, and what it delivered."""

    name: str
    failures: int
    not_before_unix_s: float
    since_unix_s: float | None
    sent: int
    dead: int
    error: str
    pending: int = 0
    origin: str = ""


class Failure(Fact):
    """What came of a delivery that failed: how often running the channel failed, and what is dead by it."""

    failures: int
    not_before_unix_s: float
    dead: int
    down_now: bool


class Outbox:
    """`folder` is that of the store (None: the usual place). Raises StoreError for one that must not be used.

    A damaged store is moved aside and a new one begun: `moved` names where the old one is. Where none can be written it
    lives in memory: `degraded` says why, and `recover` tries again; with `or_memory` false that is a StoreError.
    With `stays` what is in memory, for the reason that `memory` gives, never goes anywhere else.
    `hurry` is asked while the file is locked by somebody else: true ends the waiting, which else is 5 s.
    `store`, where given, is an open one that is used as it is, for whoever only asks.
    """

    def __init__(
        self,
        settings: AlertSettings,
        *,
        folder: str | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Clock,
        random: Callable[[], float] | None = None,
        memory: str = "",
        stays: bool = False,
        store: Store | None = None,
        or_memory: bool = True,
        hurry: Callable[[], bool] | None = None,
    ) -> None:
        self._hurry, self._stays = hurry, stays
        self._settings, self._folder, self._environ, self._clock = settings, folder, environ, clock
        self._policy, self.origin = settings.policy, settings.origin
        self._random = random if random is not None else _random
        self._me = f"{own_member()}/{hexlify(os.urandom(4)).decode()}"  # two of one process are two deliverers
        self._count = self._claims = 0
        self.moved: list[str] = []
        self.dropped = 0
        self._turn: Leader | None = None
        self._seeded: dict[tuple[str, str], str] = {}  # states as they were when memory took over
        self._past: dict[str, float | None] = {}  # deliveries that went past the file, and when; None: on their way
        self._store = store or (self._in_memory(memory) if memory else self._open(or_memory=or_memory))

    # --- the file ------------------------------------------------------------------------------------------------

    def _open(self, *, or_memory: bool = True) -> Store:
        try:
            store = self._store_of(or_memory=or_memory)
        except StoreError as error:
            if not _is_damage(error):
                raise
            return self._anew(error, or_memory=or_memory)
        self._salvage_left(store)
        return store

    def _anew(self, error: StoreError, *, or_memory: bool) -> Store:
        """A new file in place of the damaged one, with what can be read of the alerts in that."""
        moved = self._move_aside(error)
        store = self._store_of(or_memory=or_memory)
        if moved:
            self._salvage(moved, store)
        return store

    def _salvage_left(self, store: Store) -> None:
        """Take over from a file that was moved aside by one that was killed before it could."""
        note = f"{store.path}{_UNREAD}"
        if store.path is None or not os.path.exists(note):
            return
        with contextlib.suppress(OSError, ValueError):
            with open(note, encoding="utf-8") as file:
                moved = os.path.join(os.path.dirname(note), os.path.basename(file.read()))
            self._salvage(moved, store)

    def _salvage(self, moved: str, store: Store) -> None:
        try:
            waiting = salvage(moved, store, self._put_state)
        except StoreError as failed:
            logging.getLogger(_log).warning("what waits in %s could not be taken over: %s", moved, failed)
            return
        logging.getLogger(_log).warning("%d notice(s) that waited in it go out", waiting)
        with contextlib.suppress(OSError):
            os.unlink(f"{store.path}{_UNREAD}")

    def _store_of(self, *, or_memory: bool) -> Store:
        return Store(
            self._folder, environ=self._environ, clock=self._clock, or_memory=or_memory, hurry=self._hurry
        )  # fmt: skip

    def _move_aside(self, error: StoreError) -> str:
        """Keep what is damaged under another name, which this gives; "" where another process was quicker. A note of it
        stays until it is read, whoever does.
        """
        folder = state_directory(self._folder, self._environ)
        assert folder is not None  # it was opened there
        from memwarden.leader import Leader

        turn = Leader(folder, "store")
        if not turn.take_turn():
            raise error
        try:
            path = os.path.join(folder, FILE_NAME)
            if not os.path.exists(path) or _is_sound(path):
                return ""
            to = f"{path}.damaged-{int(self._clock.wall() * 1000)}"
            with contextlib.suppress(OSError), open(path + _UNREAD, "w", encoding="utf-8") as note:
                note.write(os.path.basename(to))
            for end in ("-wal", "-shm", ""):
                if os.path.exists(path + end):
                    os.replace(path + end, to + end)
        finally:
            turn.end_turn()
        self.moved.append(to)
        logging.getLogger(_log).error("%s: %s; it was moved to %s and a new one begun", path, error.what, to)
        return to

    @property
    def degraded(self) -> str:
        """Why it is in memory only; "" where it is not."""
        return self._store.degraded

    @property
    def path(self) -> str | None:
        """The file; None where it is in memory."""
        return self._store.path

    def recover(self) -> bool:
        """Try the file again where it is in memory only, or damaged; what is in memory goes there. Whether it did."""
        if not self._store.degraded or self._stays:
            return False
        try:
            fresh = self._open(or_memory=False)
        except StoreError:
            return False
        old = self._store
        try:
            with old.transaction() as db:  # until the end of it nobody changes what is copied
                sent = _sent_alone(db, fresh)
                rows = {name: rows_of(db, name) for name in TABLES}
                copy(rows, fresh, self._put_state, lambda new: self._put_down(new, sent))
                self._store = fresh
                old.retire()
        except StoreError:
            fresh.close()
            return False
        self._seeded.clear()
        self._end_turn()
        old.close()
        return True

    def _put_state(self, db: sqlite3.Connection, columns: Sequence[str], row: Sequence[Any]) -> None:
        """One of another store: what did not change there since it came from here says nothing; else both count."""
        values = dict(zip(columns, row, strict=True))
        origin, key, text = (values[name] for name in ("origin", "key", "state"))
        before = self._seeded.get((origin, key))
        if text == before:
            return
        if origin:
            db.execute("DELETE FROM alert_states WHERE origin = '' AND key = ?", (key,))  # it was taken over
        found = db.execute("SELECT state FROM alert_states WHERE origin = ? AND key = ?", (origin, key)).fetchone()
        if found is None or found[0] == before:
            put(db, "alert_states", columns, tuple(row), or_what="REPLACE")
        elif found[0] != text:
            known = _incident(before) if before is not None else None
            _save(db, merge(_incident(text), _incident(found[0]), known, self._clock.wall()))

    def _put_down(self, db: sqlite3.Connection, sent: Mapping[str, int] = {}) -> None:
        """What went out while the file could not be told, in the file; `sent` are those that it never heard of."""
        for name, count in sent.items():
            state = self._channel(db, name)
            self._put_channel(db, state.replace(sent=state.sent + count))
        for each, at in tuple(self._past.items()):
            row = db.execute("SELECT channel FROM alert_deliveries WHERE id = ?", (each,)).fetchone()
            if at is not None and row is not None:
                self._count_sent(db, row[0], (each,))

    def reopen(self, error: StoreError) -> bool:
        """After an error within: a new file where this one is damaged. Whether anything was done about it."""
        if not _is_damage(error):
            return False
        self._store.close()
        self._store = self._anew(error, or_memory=True)
        return True

    def _follow(self) -> None:
        """Where another process moved the file aside: what we wrote there since goes into the one in its place."""
        old = self._store
        if old.degraded or not old.is_moved:
            return
        fresh = self._open(or_memory=False)
        try:
            copy_readable(old.reading, fresh, self._put_state)
        except StoreError:
            fresh.close()
            raise
        self._store = fresh
        old.retire()
        old.close()
        logging.getLogger(_log).warning("%s was moved by another process; alerts go on in the new one", fresh.path)

    def into_memory(self) -> None:
        """Go on in memory while the file cannot be written: what is told meanwhile is in the file later.

        What is known goes along where it can be read, so that nobody is told again what stands. Of what waits to be
        delivered only the urgent does: the rest must be told once, and other processes may see to it.
        """
        old, memory = self._store, self._in_memory("the store cannot be written for now")
        try:
            with old.reading() as db:
                self._seed(db, memory)
                self._store = memory
                old.retire()
        except StoreError as error:
            logging.getLogger(_log).info("what is in the store is not known meanwhile: %s", error)
            self._store = memory
        old.close()

    def _seed(self, db: sqlite3.Connection, memory: Store) -> None:
        rows = {name: rows_of(db, name) for name in ("alert_taken", "alert_silences", "alert_states", "alert_channels")}
        urgent = "state = 'pending' AND urgent = 1"
        waiting = db.execute(f"SELECT id, owner FROM alert_deliveries WHERE {urgent} LIMIT {MOST_PAST}")  # noqa: S608  our words
        ids = [name for name, owner in waiting.fetchall() if self._has_turn() and not self._is_others(owner)]
        marks = ", ".join("?" * len(ids))
        rows["alert_deliveries"] = rows_of(db, "alert_deliveries", f"id IN ({marks})", ids)
        theirs = f"seq IN (SELECT event FROM alert_deliveries WHERE id IN ({marks}))"  # noqa: S608  question marks
        rows["alert_events"] = rows_of(db, "alert_events", theirs, ids)
        columns, values = rows["alert_states"]
        at = [columns.index(name) for name in ("origin", "key", "state")]
        self._seeded = {(row[at[0]], row[at[1]]): row[at[2]] for row in values}
        with memory.transaction() as fresh:
            for name, (columns, values) in rows.items():
                for row in values:
                    put(fresh, name, columns, row)
            self._put_down(fresh)

    def _has_turn(self) -> bool:
        """Whether we send what waits in a file that nobody can write; of all who share it one does."""
        if self._turn is None:
            folder = state_directory(self._folder, self._environ)
            assert folder is not None  # it was opened there
            from memwarden.leader import Leader

            self._turn = Leader(folder, "memory")
        return self._turn.take_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end_turn()

    def _in_memory(self, why: str) -> Store:
        return Store(self._folder, environ=self._environ, clock=self._clock, memory=why)

    def close(self) -> None:
        """Close the file."""
        self._end_turn()
        self._store.close()

    # --- past the file ---------------------------------------------------------------------------------------------

    def hand_out(self, signals: Sequence[Signal]) -> list[tuple[str, Notice]]:
        """What of these is urgent, by channel, for going out while the file is locked: the deliveries that `take` of
        the same signals will make, less those that went out already. Whoever sends one calls `went_out` or `came_back`.

        Nothing is written. Raises StoreError where the file cannot even be read.
        """
        found: list[tuple[str, Notice]] = []
        incidents: dict[str, Incident] = {}
        with self._store.reading() as db:
            now = self._clock.wall()
            rests = {name for name in self._policy.channels if _rests(self._channel(db, name), now)}
            for signal in signals:
                taken = db.execute("SELECT 1 FROM alert_taken WHERE id = ?", (signal.id,)).fetchone()
                if taken or signal.kind in self._settings.mute or not self.is_ours(signal.origin):
                    continue
                known = incidents.get(signal.key) or self._load(db, signal.key)
                step = take(known, signal, self._scene(db, signal.key, signal.target))
                if step is None:
                    continue
                incidents[signal.key] = step.incident
                found += [
                    (channel, self._notice_of(signal, step.incident, told, f"{signal.id}.{number}.{channel}"))
                    for number, told in enumerate(step.tells)
                    for channel in told.channels
                    if told.urgent and channel not in rests
                ]
        found = [each for each in found if each[1].delivery_id not in self._past]
        for _, notice in found:
            self._note_past(notice.delivery_id, None)
        return found

    def _note_past(self, delivery_id: str, unix_s: float | None) -> None:
        self._past[delivery_id] = unix_s
        if len(self._past) > MOST_PAST:
            for each in tuple(self._past)[:-MOST_PAST]:
                self._past.pop(each, None)

    def _notice_of(self, signal: Signal, incident: Incident, told: Tell, name: str) -> Notice:
        """As it will be read from the file."""
        return Notice(
            delivery_id=name, key=incident.key, kind=incident.kind, what=told.what, level=told.level,
            title=told.title[:MOST_TITLE], text=told.text[:MOST_TEXT], unix_s=signal.unix_s, target=incident.target,
            host=incident.host, details=json.loads(_details(self._with_runbook(told.details))),
        )  # fmt: skip

    def is_settled(self, signal_id: str) -> bool:
        """Whether nothing that came of this signal waits to be delivered."""
        query = (
            "SELECT 1 FROM alert_deliveries JOIN alert_events ON seq = event "
            "WHERE state = 'pending' AND (alert_events.id = ? OR alert_events.id GLOB ?) LIMIT 1"
        )
        with self._store.reading() as db:
            return db.execute(query, (signal_id, f"{signal_id}.*")).fetchone() is None

    def went_out(self, delivery_id: str) -> None:
        """It is delivered; the file will say so."""
        self._note_past(delivery_id, self._clock.wall())

    def came_back(self, delivery_id: str) -> None:
        """It could not be delivered: the next `hand_out` has it again, or the file."""
        self._past.pop(delivery_id, None)

    # --- steps of the engine ---------------------------------------------------------------------------------------

    def take(self, signals: Sequence[Signal], *, patient: bool = True) -> int:
        """Step by these signals, in one transaction; how many deliveries came of it. Each signal counts once.

        Where it is not `patient` a locked file is a StoreError at once, for an outbox that may be hurried.
        """
        made = 0
        self._follow()
        with self._store.transaction(patient=patient) as db:
            for signal in signals:
                done = db.execute("INSERT OR IGNORE INTO alert_taken (id) VALUES (?)", (signal.id,)).rowcount
                if done:
                    made += self._take(db, signal)
                    self._count += 1
            if signals and self._count % PRUNE_EVERY < len(signals):
                self._prune(db)
        return made

    def _take(self, db: sqlite3.Connection, signal: Signal) -> int:
        incident = self._load(db, signal.key)
        if incident is None and not self._has_room(db):
            self.dropped += 1
            return 0
        if signal.kind == "action":
            self._note_action(db, signal)
        if signal.kind in self._settings.mute:
            return 0
        step = take(incident, signal, self._scene(db, signal.key, signal.target))
        return self._write(db, step, signal.id, signal.unix_s) if step is not None else 0

    def _note_action(self, db: sqlite3.Connection, signal: Signal) -> None:
        """What memwarden did belongs to the states that are on, of that target and of whoever did it."""
        for incident in self._open_ones(db):
            if incident.target == signal.target or signal.member in incident.members:
                self._save(db, note_action(incident, signal.text))

    def _open_ones(self, db: sqlite3.Connection) -> list[Incident]:
        query = f"SELECT state FROM alert_states WHERE open = 1 AND {_OURS}"  # noqa: S608  our words
        return [_incident(text) for (text,) in db.execute(query, (self.origin,)).fetchall()]

    def wake(self) -> float | None:
        """Step every state of ours whose time has come; when the next one's will, in Unix seconds."""
        now = self._clock.wall()
        due = f"SELECT key FROM alert_states WHERE wake_unix_s <= ? AND {_OURS} ORDER BY wake_unix_s LIMIT ?"  # noqa: S608  our words
        later = f"SELECT min(wake_unix_s) FROM alert_states WHERE wake_unix_s IS NOT NULL AND {_OURS}"  # noqa: S608  likewise
        with self._store.transaction() as db:
            for (key,) in db.execute(due, (now, self.origin, _WAKES)).fetchall():
                incident = self._load(db, key)
                if incident is not None:
                    self._write(db, wake(incident, self._scene(db, key, incident.target)), "", now)
            found = db.execute(later, (self.origin,)).fetchone()[0]
        return None if found is None else max(float(found), now + 0.001)

    def sweep(self, watched: Callable[[], bool] = lambda: True) -> int:
        """Whoever was in a state and is gone without a word is in it no more; how many those were.

        `watched` says whether others are there who may see what all of a container see.
        Of a process of another pid namespace nothing is known: it is gone when nobody said for an hour that it lasts.
        """
        found, now = 0, self._clock.wall()
        self._follow()
        with self._store.transaction() as db:
            for each in self._open_ones(db):
                gone = [member for member in each.members if _is_silent(member, each, now)]
                incident = each
                for member in gone:
                    scene = self._scene(db, incident.key, incident.target)
                    why = f"the process that had it is gone (pid {member.split(':')[1]})"
                    step = forget_member(incident, member, why, scene, watched=watched())
                    if step is not None:
                        self._write(db, step, "", now)
                        incident = step.incident
                        found += 1
                if incident.open and incident.left_unix_s is not None and not watched():
                    self._write(db, end_left(incident, self._scene(db, incident.key, incident.target)), "", now)
                if each.kind == "custom" and "channel" in each.details:  # also of one that is no channel any more
                    self._weigh_channel(db, str(each.details["channel"]))
            for name in self._policy.channels:
                self._weigh_channel(db, name)
        return found

    def probe(self) -> None:
        """Write something of a size, and delete it again. Raises StoreError where there is no room for it."""
        with self._store.transaction() as db:
            db.execute("INSERT INTO alert_taken (id) VALUES (?)", (f"probe {_new_id()} {'x' * PROBE_BYTES}",))
        with self._store.transaction() as db:
            db.execute("DELETE FROM alert_taken WHERE id GLOB 'probe *'")

    def strange(self, ids: Iterable[str]) -> set[str]:
        """Which of these signals were never taken in here, as far as that is remembered."""
        query = "SELECT 1 FROM alert_taken WHERE id = ?"
        with self._store.reading() as db:
            return {each for each in ids if db.execute(query, (each,)).fetchone() is None}

    def lacking(self, keys: Iterable[str], member: str) -> list[str]:
        """Which of these states are known without this member in them: somebody resolved them meanwhile."""
        found = []
        with self._store.reading() as db:
            for key in keys:
                known = self._load(db, key)
                if known is not None and member not in known.members and len(known.members) < MOST_MEMBERS:
                    found.append(key)
        return found

    def acknowledge(self, key: str, by: str) -> tuple[Incident, ...]:
        """Somebody deals with it; the states then, of whomever they are, none where none is on."""
        return self._by_hand(key, lambda incident, scene: acknowledge(incident, by, scene))

    def resolve(self, key: str, by: str) -> tuple[Incident, ...]:
        """Somebody says that it is over; the states then, of whomever they are, none where none is on.

        Of others', whose channels are not known here, those tell who have them, at their next look.
        """

        def step(incident: Incident, scene: Scene) -> Step:
            return resolve(incident, by, scene, here=self.is_ours(incident.origin))

        return self._by_hand(key, step)

    def _by_hand(self, key: str, step: Callable[[Incident, Scene], Step]) -> tuple[Incident, ...]:
        found = []
        with self._store.transaction() as db:
            query = "SELECT state FROM alert_states WHERE key = ? AND open = 1 ORDER BY origin"
            for (text,) in db.execute(query, (key,)).fetchall():
                incident = _incident(text)
                done = step(incident, self._scene(db, key, incident.target))
                self._write(db, done, "", self._clock.wall())
                found.append(done.incident)
        return tuple(found)

    def is_ours(self, origin: str) -> bool:
        """Whether we step and deliver what is of this origin: our own, and what nobody's is."""
        return origin in (self.origin, "")

    def _load(self, db: sqlite3.Connection, key: str) -> Incident | None:
        """Our state of this key; else one that nobody's is, which becomes ours when it is written."""
        query = f"SELECT state FROM alert_states WHERE key = ? AND {_OURS} ORDER BY origin DESC LIMIT 1"  # noqa: S608  our words
        row = db.execute(query, (key, self.origin)).fetchone()
        return _incident(row[0]) if row is not None else None

    def _save(self, db: sqlite3.Connection, incident: Incident) -> Incident:
        """As it is written: with whose it is."""
        if not incident.origin and self.origin:
            db.execute("DELETE FROM alert_states WHERE origin = '' AND key = ?", (incident.key,))
            incident = incident.replace(origin=self.origin)
        _save(db, incident)
        return incident

    def _channel(self, db: sqlite3.Connection, name: str) -> ChannelState:
        """Ours of this name; else what is known of it since before there were origins."""
        columns = ", ".join(_CHANNEL)
        query = f"SELECT {columns} FROM alert_channels WHERE name = ? AND {_OURS} ORDER BY origin DESC LIMIT 1"  # noqa: S608  our names
        row = db.execute(query, (name, self.origin)).fetchone()
        return ChannelState(**dict(zip(_CHANNEL, row, strict=True))) if row else _new_channel(name, self.origin)

    def _put_channel(self, db: sqlite3.Connection, state: ChannelState) -> None:
        if not state.origin and self.origin:
            db.execute("DELETE FROM alert_channels WHERE origin = '' AND name = ?", (state.name,))
            state = state.replace(origin=self.origin)
        values = [getattr(state, name) for name in _CHANNEL]
        db.execute("INSERT OR REPLACE INTO alert_channels VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _scene(self, db: sqlite3.Connection, key: str, target: str) -> Scene:
        now = self._clock.wall()
        others = db.execute(
            "SELECT key, kind, target, scope, level FROM alert_states WHERE open = 1 AND level >= 2 AND key != ? "
            "AND ((target = ? AND origin IN (?, '')) OR scope = 'machine') ORDER BY level DESC LIMIT 50",
            (key, target, self.origin),
        ).fetchall()
        return Scene(
            now=now,
            policy=self._policy,
            silences=_silences(db, now),
            others=tuple(Other(key=k, kind=kind, target=t, scope=s, level=Level(n)) for k, kind, t, s, n in others),
        )

    def _write(self, db: sqlite3.Connection, step: Step, signal: str, unix_s: float) -> int:
        """The state, and an event with its deliveries for everything that is told; how many deliveries."""
        incident = self._save(db, step.incident)
        why = {each.channel or "*": each.reason for each in step.decisions}
        if why:
            logging.getLogger(_log).debug("%s %s: %s", incident.key, step.news or "still", why)
        made = 0
        for number, told in enumerate(step.tells):
            name = f"{signal or _new_id()}.{number}" if signal or number else _new_id()
            made += self._write_event(db, name, incident, told, why=why, unix_s=unix_s)
        if not step.tells and step.news in _WORTH:
            is_over = step.news == "over"
            text, level = (incident.over_text, incident.top) if is_over else (incident.text, incident.level)
            self._insert(
                db, signal or _new_id(), incident, what=_WORTH[step.news], title=incident.title, text=text, level=level,
                details=incident.details, why=why, unix_s=unix_s,
            )  # fmt: skip
        return made

    def _write_event(
        self,
        db: sqlite3.Connection,
        name: str,
        incident: Incident,
        told: Tell,
        *,
        why: Mapping[str, str],
        unix_s: float,
    ) -> int:
        event = self._insert(
            db, name, incident, what=told.what, title=told.title, text=told.text, level=told.level,
            details=told.details, why=why, unix_s=unix_s,
        )  # fmt: skip
        now = self._clock.wall()
        due = now if told.urgent else now + self._policy.group_s
        if event is None:  # it is in there already
            return 0
        rows = [
            (f"{name}.{channel}", event, channel, int(told.urgent), due, now, self.origin)
            for channel in told.channels
        ]  # fmt: skip
        db.executemany(_NEW_DELIVERY, rows)
        for row in rows:
            if row[0] in self._past:
                self._join(db, row[0], row[2])
        return len(rows)

    def _join(self, db: sqlite3.Connection, delivery: str, channel: str) -> None:
        """One that went past the file is sent, or ours for as long as a send may take: nobody else must send it."""
        if self._past.get(delivery) is not None:
            self._count_sent(db, channel, (delivery,))
            return
        lease = self._clock.wall() + self._policy.channels[channel].timeout_s + LEASE_MARGIN_S
        db.execute(
            "UPDATE alert_deliveries SET owner = ?, lease_unix_s = ?, attempts = attempts + 1 WHERE id = ?",
            (f"{self._me}/past", lease, delivery),
        )

    def _insert(
        self, db: sqlite3.Connection, name: str, incident: Incident, *, what: str, title: str, text: str, level: Level,
        details: Mapping[str, Any], why: Mapping[str, str], unix_s: float,
    ) -> int | None:  # fmt: skip
        done = db.execute(
            "INSERT OR IGNORE INTO alert_events (id, key, kind, what, level, title, text, unix_s, target, host, "
            "details, why, origin) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                name, incident.key, incident.kind, what, int(level), title[:MOST_TITLE], text[:MOST_TEXT], unix_s,
                incident.target, incident.host, _details(self._with_runbook(details)), json.dumps(why),
                incident.origin or self.origin,
            ),
        )  # fmt: skip
        return done.lastrowid if done.rowcount else None

    def _with_runbook(self, details: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**details, "runbook": self._settings.runbook} if self._settings.runbook else details

    def test(self, notice: Notice, channels: Iterable[str]) -> None:
        """Queue a notice that is about no state for these channels."""
        about = Incident(
            key=notice.key, kind=notice.kind, target=notice.target, host=notice.host, scope="process",
            level=notice.level, title=notice.title, text=notice.text,
        )  # fmt: skip
        with self._store.transaction() as db:
            event = self._insert(
                db, notice.delivery_id, about, what=notice.what, title=notice.title, text=notice.text,
                level=notice.level, details=notice.details, why={}, unix_s=notice.unix_s,
            )  # fmt: skip
            now = self._clock.wall()
            rows = [
                (f"{notice.delivery_id}.{channel}", event, channel, 1, now, now, self.origin) for channel in channels
            ]  # fmt: skip
            db.executemany(_NEW_DELIVERY, rows)

    # --- deliveries ------------------------------------------------------------------------------------------------

    def claim(self, use: ChannelUse, *, most: int = BATCH, waits: bool = True) -> Claim | None:
        """The next batch of a channel, ours until its lease is over; None where there is nothing to send now.

        With `waits` false nothing waits for others that may come together with it.
        """
        now = self._clock.wall()
        with self._store.transaction() as db:
            state = self._channel(db, use.name)
            self._bury_old(db, use.name, now)
            if _rests(state, now):
                return None
            leased, free = self._free(db, use.name, most * 4, now)
            due = [row for row in free if row.is_due(now, self._policy.group_s) or not waits]
            if leased:
                due = [row for row in due if row.urgent]
            if not due:
                return None
            batch = _batch(free, due, state.failures, use.attempts, most, alone=not leased)
            self._claims += 1
            owner = f"{self._me}/{self._claims}"
            self._lease(db, owner, batch, now, now + use.timeout_s + LEASE_MARGIN_S)
            return Claim(
                channel=use.name,
                notices=tuple(_notice(row) for row in batch),
                attempts=max(row.attempts for row in batch) + 1,
                made_unix_s=min(row.made_unix_s for row in batch),
            )

    def renew(self, use: ChannelUse, ids: Sequence[str]) -> set[str]:
        """Have those that are ours still for as long as another try may take; which those are."""
        until, found = self._clock.wall() + use.timeout_s + LEASE_MARGIN_S, set()
        query = "UPDATE alert_deliveries SET lease_unix_s = ? WHERE id = ? AND state = 'pending' AND owner GLOB ?"
        with self._store.transaction() as db:
            for each in ids:
                if db.execute(query, (until, each, f"{self._me}/*")).rowcount:
                    found.add(each)
        return found

    def _waiting(self, db: sqlite3.Connection, channel: str, most: int) -> list[_Waiting]:
        """What is to be delivered by a channel, the urgent first, in order."""
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM alert_deliveries d JOIN alert_events e ON e.seq = d.event "  # noqa: S608  our names
            "WHERE d.state = 'pending' AND d.channel = ? AND d.origin IN (?, '') "
            "ORDER BY d.urgent DESC, d.event LIMIT ?"
        )
        return [_Waiting(*row) for row in db.execute(query, (channel, self.origin, most))]

    @staticmethod
    def _lease(db: sqlite3.Connection, owner: str, batch: Sequence[_Waiting], now: float, until: float) -> None:
        for row in batch:
            db.execute(
                "UPDATE alert_deliveries SET owner = ?, lease_unix_s = ?, attempts = attempts + 1, "
                "tried_unix_s = coalesce(tried_unix_s, ?) WHERE id = ?",
                (owner, until, now, row.id),
            )

    def _free(self, db: sqlite3.Connection, channel: str, most: int, now: float) -> tuple[list[_Waiting], ...]:
        """What others are at, and what is free to be sent."""
        while True:
            rows = self._waiting(db, channel, most)
            leased = [row for row in rows if row.is_leased(now) and self._is_others(row.owner)]
            free = [row for row in rows if row not in leased]
            if not sum([self._overtake(db, row, now) for row in free]):
                return leased, free

    def _overtake(self, db: sqlite3.Connection, row: _Waiting, now: float) -> bool:
        """Whether a later notice of its state takes its place: then it is dead.

        One that arrived does where it says as much. One that waits as well does where both say that the state is on and
        no end is between them; it waits no longer than what it is instead of.
        """
        if row.is_moment:
            return False
        ends = False
        for name, what, level, state in self._later(db, row):
            waits = state == "pending"
            ends = ends or (waits and what == "recovered")
            if not _takes_place(row, what, level) or (waits and not _may_skip(row, what, ends=ends)):
                continue
            if waits:
                sooner = "urgent = max(urgent, ?), due_unix_s = min(due_unix_s, ?)"
                query = f"UPDATE alert_deliveries SET {sooner} WHERE id = ?"  # noqa: S608  our words
                db.execute(query, (row.urgent, row.due_unix_s, name))
            return bool(self._bury(db, [row.id], OVERTAKEN, now))
        return False

    def _later(self, db: sqlite3.Connection, row: _Waiting) -> list[tuple[str, str, int, str]]:
        """What came after it for the same channel, of the same state, in order: (id, what, level, sent or pending)."""
        query = (
            "SELECT d.id, e.what, e.level, d.state FROM alert_events e JOIN alert_deliveries d ON d.event = e.seq "
            "WHERE e.key = ? AND e.seq > ? AND d.channel = ? AND d.origin IN (?, '') "
            "AND d.state IN ('sent', 'pending') ORDER BY e.seq LIMIT ?"
        )
        return db.execute(query, (row.key, row.event, row.channel, self.origin, _MOST_LATER)).fetchall()

    def _is_others(self, owner: str) -> bool:
        """Whether a lease is that of somebody else who may still be at it; one of our own was cut short."""
        return bool(owner) and not owner.startswith(f"{self._me}/") and not is_gone(owner.partition("/")[0])

    def sent(self, channel: str, ids: Sequence[str]) -> bool:
        """They are delivered. Whether the channel had been failing."""
        with self._store.transaction() as db:
            state = self._count_sent(db, channel, ids)
            self._put_channel(db, state.replace(failures=0, not_before_unix_s=0.0, since_unix_s=None, error=""))
            if state.failures:
                self._weigh_channel(db, channel)
        return state.failures > 0

    def _count_sent(self, db: sqlite3.Connection, channel: str, ids: Sequence[str]) -> ChannelState:
        """Put them down as sent; the channel's state, in which nothing else changes: its courier does that."""
        now, found = self._clock.wall(), 0
        for each in ids:
            done = db.execute(
                "UPDATE alert_deliveries SET state = 'sent', done_unix_s = ?, owner = '', lease_unix_s = 0, "
                "error = '' WHERE id = ? AND state = 'pending'",
                (now, each),
            ).rowcount
            found += done
            if self._store.degraded:
                self._note_past(each, now)  # the file, where it may be too, is told later
        state = self._channel(db, channel)
        state = state.replace(sent=state.sent + found)
        self._put_channel(db, state)
        return state

    def failed(
        self, use: ChannelUse, ids: Sequence[str], error: str, *, recoverable: bool, retry_after_s: float | None = None
    ) -> Failure:
        """They were not delivered: for now, then the channel rests; or for good, then they are dead."""
        now, error = self._clock.wall(), error[:500]
        with self._store.transaction() as db:
            state = self._channel(db, use.name)
            failures = state.failures + 1
            if recoverable:
                until = now + self._rest_s(failures, retry_after_s)
                dead = self._put_back(db, use, ids, error, now)
            else:
                until, dead = state.not_before_unix_s, self._bury(db, ids, error, now)
            since = state.since_unix_s if state.since_unix_s is not None else now
            self._put_channel(db, state.replace(
                failures=failures, not_before_unix_s=until, error=error, dead=state.dead + dead, since_unix_s=since
            ))  # fmt: skip
            if failures >= use.attempts:
                self._weigh_channel(db, use.name)
        return Failure(failures=failures, not_before_unix_s=until, dead=dead, down_now=failures == use.attempts)

    def _rest_s(self, failures: int, retry_after_s: float | None) -> float:
        most_s: float = min(LONGEST_REST_S, FIRST_REST_S * 2 ** min(failures - 1, 20))
        rest_s = most_s * (0.5 + self._random() / 2)
        return rest_s if retry_after_s is None else min(max(retry_after_s, rest_s), LONGEST_RETRY_AFTER_S)

    def _put_back(self, db: sqlite3.Connection, use: ChannelUse, ids: Sequence[str], error: str, now: float) -> int:
        """They wait again; what waited for too long is dead: how many that were.

        Only now, when it was tried once more: a machine that slept for days must not wake up to dead alerts.
        """
        query = "UPDATE alert_deliveries SET lease_unix_s = 0, error = ? WHERE id = ? AND state = 'pending'"
        for each in ids:
            db.execute(query, (error, each))
        return self._bury(db, [each for each in ids if self._is_old(db, use, each, now)], "", now)

    def _weigh_channel(self, db: sqlite3.Connection, name: str) -> None:
        """Whether a channel delivers is a state, stepped in the transaction that learns of it."""
        use, channel = self._policy.channels.get(name), self._channel(db, name)
        target = f"channel {name}"
        known = self._load(db, key_of("custom", target))
        is_on = known is not None and known.open and known.over_unix_s is None
        if use is not None and channel.failures >= use.attempts and not is_on:
            what, level, title, text = "raised", Level.WARNING, "does not deliver", channel.error
        elif is_on and (use is None or not channel.failures):
            text = "it delivers again" if use is not None else "it is no channel any more"
            what, level, title = "cleared", Level.NORMAL, "delivers again"
        else:
            return
        signal = Signal(
            id=_new_id(), key=key_of("custom", target), kind="custom", what=what, level=level,
            title=f"alert channel {name} {title}", text=text, unix_s=self._clock.wall(), target=target,
            host=os.uname().nodename, member="courier", scope="process", details={"channel": name},
        )  # fmt: skip
        self._take(db, signal)

    def next_due(self, channel: str) -> float | None:
        """When there will be something to send for it, in Unix seconds; None where there is nothing."""
        with self._store.transaction() as db:
            now = self._clock.wall()
            found = db.execute(
                "SELECT min(max(CASE WHEN due_unix_s > ? THEN 0 ELSE due_unix_s END, "
                "CASE WHEN owner GLOB ? OR lease_unix_s > ? THEN 0 ELSE lease_unix_s END)) "
                "FROM alert_deliveries WHERE state = 'pending' AND channel = ? AND origin IN (?, '')",
                (now + self._policy.group_s, f"{self._me}/*", now + LONGEST_LEASE_S, channel, self.origin),
            ).fetchone()[0]
            if found is None:
                return None
            state = self._channel(db, channel)
            return max(float(found), state.not_before_unix_s if _rests(state, now) else 0.0)

    def _is_old(self, db: sqlite3.Connection, use: ChannelUse, name: str, now: float) -> bool:
        """Whether it waited for too long, and not only because nobody was there to try: a machine may have slept."""
        row = db.execute(
            "SELECT made_unix_s, attempts, tried_unix_s FROM alert_deliveries WHERE id = ? AND state = 'pending'",
            (name,),
        ).fetchone()
        if row is None:
            return False
        made, attempts, tried = row
        after = use.give_up_after if use.give_up_after is not None else self._settings.give_up_s
        if isinstance(after, int):
            return bool(attempts >= after)
        return bool(made < now - after and (tried is None or tried < now - min(after, LEAST_TRIED_S)))

    def _bury_old(self, db: sqlite3.Connection, channel: str, now: float) -> None:
        """What nobody even tried to deliver for far too long, and the oldest of what is far too much, is dead."""
        old = db.execute(
            "SELECT id FROM alert_deliveries WHERE state = 'pending' AND channel = ? AND origin IN (?, '') "
            "AND made_unix_s < ? LIMIT 100",
            (channel, self.origin, now - UNTRIED * self._settings.give_up_s),
        ).fetchall()
        dead = self._bury(db, [each for (each,) in old], "", now) if old else 0
        count = db.execute(
            "SELECT count(*) FROM alert_deliveries WHERE state = 'pending' AND channel = ? AND origin IN (?, '')",
            (channel, self.origin),
        ).fetchone()[0]
        if count > MOST_PENDING:
            over = db.execute(
                "SELECT id FROM alert_deliveries WHERE state = 'pending' AND channel = ? AND origin IN (?, '') "
                "AND lease_unix_s <= ? ORDER BY urgent, event LIMIT ?",
                (channel, self.origin, now, count - MOST_PENDING),
            ).fetchall()
            dead += self._bury(db, [each for (each,) in over], TOO_MANY, now)
        if dead:
            state = self._channel(db, channel)
            self._put_channel(db, state.replace(dead=state.dead + dead))
            why = state.error or (TOO_MANY if count > MOST_PENDING else "nobody delivered them in time")
            logging.getLogger(_log).error("channel %s: %d notice(s) were given up: %s", channel, dead, why)

    @staticmethod
    def _bury(db: sqlite3.Connection, ids: Sequence[str], error: str, now: float) -> int:
        """They are dead, if they still wait; how many that were."""
        found = 0
        for each in ids:
            found += db.execute(
                "UPDATE alert_deliveries SET state = 'dead', done_unix_s = ?, owner = '', lease_unix_s = 0, "
                "error = CASE WHEN ? = '' THEN 'given up: ' || error ELSE ? END WHERE id = ? AND state = 'pending'",
                (now, error, error, each),
            ).rowcount
        return found

    # --- what a person asks ------------------------------------------------------------------------------------------

    def incidents(self, *, all_of_them: bool = False) -> list[Incident]:
        """The states that are on, the worst first; or all that are remembered."""
        query = "SELECT state FROM alert_states WHERE open = 1 OR ? ORDER BY open DESC, level DESC, changed_unix_s DESC"
        with self._store.transaction() as db:
            return [_incident(text) for (text,) in db.execute(query, (all_of_them,))]

    def channels(self) -> list[ChannelState]:
        """Every channel that ever delivered or has something to deliver, of whomever it is."""
        query = "SELECT channel, origin, count(*) FROM alert_deliveries WHERE state = 'pending' GROUP BY 1, 2"
        with self._store.transaction() as db:
            rows = db.execute(f"SELECT {', '.join(_CHANNEL)} FROM alert_channels")  # noqa: S608  our names
            states = [ChannelState(**dict(zip(_CHANNEL, row, strict=True))) for row in rows]
            known = {(each.name, each.origin): each for each in states}
            for name, origin, pending in db.execute(query):
                state = known.get((name, origin)) or _new_channel(name, origin)
                known[name, origin] = state.replace(pending=pending)
        return [known[each] for each in sorted(known)]

    def silence(self, matcher: tuple[tuple[str, str], ...], until_unix_s: float, author: str, comment: str) -> int:
        """Have nobody told of what matches until then; its number."""
        values = (json.dumps(matcher), until_unix_s, author[:MOST_TITLE], comment[:MOST_TEXT], self._clock.wall())
        query = (
            "INSERT INTO alert_silences (matcher, until_unix_s, author, comment, made_unix_s) VALUES (?, ?, ?, ?, ?)"
        )
        with self._store.transaction() as db:
            return int(db.execute(query, values).lastrowid or 0)

    def end_silence(self, number: int) -> bool:
        """End it now; what it held and still lasts is told. Whether there was one."""
        now = self._clock.wall()
        with self._store.transaction() as db:
            query = "UPDATE alert_silences SET until_unix_s = ? WHERE number = ? AND until_unix_s > ?"
            done = db.execute(query, (now, number, now)).rowcount
            db.execute("UPDATE alert_states SET wake_unix_s = ? WHERE open = 1 OR wake_unix_s IS NOT NULL", (now,))
        return bool(done)

    def silences(self) -> tuple[Silence, ...]:
        """Those in force."""
        with self._store.transaction() as db:
            return _silences(db, self._clock.wall())

    def history(
        self, *, since_unix_s: float = 0.0, kind: str | None = None, target: str | None = None, key: str | None = None,
        most: int = 100, touched_since_unix_s: float | None = None, until_unix_s: float = 1e11,
    ) -> list[Told]:  # fmt: skip
        """The newest events first, of [since, until). `target` may be a pattern (`shop*`).

        With `touched_since_unix_s` those of ours alone of which something was delivered, or given up, since then, or
        waits.
        """
        query = (
            "SELECT seq, id, key, kind, what, level, title, text, unix_s, target, host, details, why FROM alert_events "
            "WHERE unix_s >= ? AND unix_s < ? AND (? IS NULL OR kind = ?) AND (? IS NULL OR target GLOB ?) "
            "AND (? IS NULL OR key = ?) AND (? IS NULL OR (origin IN (?, '') AND EXISTS (SELECT 1 FROM "
            "alert_deliveries WHERE event = seq AND (done_unix_s >= ? OR state = 'pending')))) ORDER BY seq DESC "
            "LIMIT ?"
        )
        touched = touched_since_unix_s
        values = (
            since_unix_s, until_unix_s, kind, kind, target, target, key, key, touched, self.origin, touched, most
        )  # fmt: skip
        with self._store.transaction() as db:
            rows = db.execute(query, values).fetchall()
            found = []
            for row in rows:
                went = db.execute(
                    "SELECT channel, state, attempts, error, done_unix_s FROM alert_deliveries WHERE event = ? "
                    "ORDER BY channel",
                    row[:1],
                ).fetchall()
                sent = [at for _, state, _, _, at in went if state == "sent" and (touched is None or at >= touched)]
                event = dict(zip(_EVENT, row[1:], strict=True))
                event |= {"level": Level(event["level"]), "details": json.loads(event["details"])}
                event |= {"why": json.loads(event["why"]), "deliveries": tuple(tuple(each[:4]) for each in went)}
                event["delivered"] = len(sent)
                found.append(Told(**event))
        return found

    def prune(self) -> None:
        """Drop what is older than the history and over the caps, in small batches."""
        with self._store.transaction() as db:
            self._prune(db)

    def _prune(self, db: sqlite3.Connection) -> None:
        now = self._clock.wall()
        newest = db.execute("SELECT max(seq) FROM alert_events").fetchone()[0] or 0
        kept = db.execute("SELECT count(*) FROM alert_events").fetchone()[0]
        rows = db.execute(
            "SELECT seq FROM alert_events WHERE (unix_s < ? OR seq <= ?) AND NOT EXISTS (SELECT 1 FROM "
            "alert_deliveries WHERE event = seq AND state = 'pending') ORDER BY seq LIMIT ?",
            (now - self._settings.history_s, newest - MOST_EVENTS if kept > MOST_EVENTS else -1, PRUNE_ROWS),
        ).fetchall()
        for row in rows:
            db.execute("DELETE FROM alert_deliveries WHERE event = ?", row)
            db.execute("DELETE FROM alert_events WHERE seq = ?", row)
        last = db.execute("SELECT max(seq) FROM alert_taken").fetchone()[0] or 0
        db.execute("DELETE FROM alert_taken WHERE seq <= ?", (last - MOST_TAKEN,))
        db.execute("DELETE FROM alert_silences WHERE until_unix_s < ?", (now - self._settings.history_s,))
        db.execute(
            "DELETE FROM alert_states WHERE (origin, key) IN (SELECT origin, key FROM alert_states WHERE open = 0 "
            "AND wake_unix_s IS NULL AND changed_unix_s < ? LIMIT ?)",
            (now - STATE_S, PRUNE_ROWS),
        )
        self._forget_orphans(db, now)
        query = f"SELECT DISTINCT channel FROM alert_deliveries WHERE state = 'pending' AND {_OURS}"  # noqa: S608  our words
        waiting = {name for (name,) in db.execute(query, (self.origin,))}  # also for channels that are no more
        for channel in waiting.union(self._policy.channels):
            self._bury_old(db, channel, now)

    def _forget_orphans(self, db: sqlite3.Connection, now: float) -> None:
        """What is of others who said and delivered nothing for a week: they are no more, and would never step it."""
        query = f"SELECT state FROM alert_states WHERE NOT ({_OURS}) AND changed_unix_s < ?"  # noqa: S608  our words
        for (text,) in db.execute(query, (self.origin, now - STATE_S)).fetchall():
            incident = _incident(text)
            if incident.heard_unix_s < now - STATE_S:
                db.execute("DELETE FROM alert_states WHERE origin = ? AND key = ?", (incident.origin, incident.key))
        query = f"SELECT id FROM alert_deliveries WHERE state = 'pending' AND NOT ({_OURS}) AND made_unix_s < ? LIMIT ?"  # noqa: S608  likewise
        old = db.execute(query, (self.origin, now - STATE_S, PRUNE_ROWS)).fetchall()
        self._bury(db, [each for (each,) in old], "", now)

    def _has_room(self, db: sqlite3.Connection) -> bool:
        """Whether one more state may be remembered; the oldest that is over makes room."""
        if db.execute("SELECT count(*) FROM alert_states").fetchone()[0] < MOST_STATES:
            return True
        return bool(
            db.execute(
                "DELETE FROM alert_states WHERE (origin, key) IN (SELECT origin, key FROM alert_states WHERE open = 0 "
                "ORDER BY changed_unix_s LIMIT 100)"
            ).rowcount
        )


_EVENT = ("id", "key", "kind", "what", "level", "title", "text", "unix_s", "target", "host", "details", "why")
# What changed about a state and nobody was told of stands in the history all the same.
_WORTH = {
    "began": "raised", "rose": "changed", "over": "recovered", "acknowledged": "acknowledged", "seen": "raised",
}  # fmt: skip


def _is_silent(member: str, incident: Incident, now: float) -> bool:
    """Whether it is gone; of one that cannot be seen, whether nobody said for long that the state lasts."""
    return is_gone(member) or (is_foreign(member) and now - incident.heard_unix_s > SILENT_S)


def _sent_alone(db: sqlite3.Connection, other: Store) -> dict[str, int]:
    """How many deliveries each channel made that are known here and not in the other store."""
    found: dict[str, int] = {}
    with other.reading() as theirs:
        for name, channel in db.execute("SELECT id, channel FROM alert_deliveries WHERE state = 'sent'"):
            if theirs.execute("SELECT 1 FROM alert_deliveries WHERE id = ?", (name,)).fetchone() is None:
                found[channel] = found.get(channel, 0) + 1
    return found


def _new_id() -> str:
    return hexlify(os.urandom(10)).decode()


def _random() -> float:
    return int.from_bytes(os.urandom(4), "little") / 2**32


def _save(db: sqlite3.Connection, incident: Incident) -> None:
    values = incident.as_dict()
    values["level"], values["top"] = int(incident.level), int(incident.top)
    values["title"], values["text"] = incident.title[:MOST_TITLE], incident.text[:MOST_TEXT]
    values["details"] = json.loads(_details(incident.details))
    db.execute(
        "INSERT INTO alert_states VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (origin, key) DO UPDATE SET "
        "scope = excluded.scope, level = excluded.level, open = excluded.open, wake_unix_s = excluded.wake_unix_s, "
        "changed_unix_s = excluded.changed_unix_s, state = excluded.state",
        (
            incident.origin, incident.key, incident.kind, incident.target, incident.scope, _counts_as(incident),
            int(incident.open), incident.wake_unix_s, incident.changed_unix_s,
            json.dumps(values, separators=(",", ":")),
        ),
    )  # fmt: skip


def _counts_as(incident: Incident) -> int:
    """The level at which it holds back others: one that is over, and only watched, is none."""
    is_on = incident.over_unix_s is None or incident.left_unix_s is not None
    return int(incident.level if is_on else Level.NORMAL)


def _incident(text: str) -> Incident:
    values = {name: value for name, value in json.loads(text).items() if name in Incident._fields}
    values["level"], values["top"] = Level(values["level"]), Level(values["top"])
    values["channels"] = {name: tuple(each) for name, each in values["channels"].items()}
    for name in ("actions", "acked_to"):
        values[name] = tuple(values.get(name, ()))
    if not isinstance(values.get("untold"), dict):  # one number for all channels, once
        values["untold"] = {}
    return Incident(**values)


def _details(details: Mapping[str, Any]) -> str:
    """As JSON of at most MOST_DETAILS bytes; the last go first."""
    kept = dict(details)
    text = json.dumps(kept, default=str)
    while len(text) > MOST_DETAILS:
        kept.popitem()
        text = json.dumps(kept, default=str)
    return text


class _Waiting(NamedTuple):
    """A delivery that waits, with what its event says."""

    id: str
    event: int
    channel: str
    urgent: int
    attempts: int
    due_unix_s: float
    made_unix_s: float
    owner: str
    lease_unix_s: float
    error: str
    key: str
    kind: str
    what: str
    level: int
    title: str
    text: str
    unix_s: float
    target: str
    host: str
    details: str

    def is_leased(self, now: float) -> bool:
        """Whether somebody has it, and for no longer than anybody may: the clock may have been set back since."""
        return now < self.lease_unix_s <= now + LONGEST_LEASE_S

    @property
    def refused(self) -> int:
        """How often it was tried and refused; who was killed at it, or only slow, refused nothing."""
        return self.attempts if self.error else 0

    @property
    def is_moment(self) -> bool:
        """Whether it is about what happened, of which each one counts, and no state."""
        return self.kind in MOMENTS or json.loads(self.details).get(ONCE) is True

    def is_due(self, now: float, group_s: float) -> bool:
        """Whether it need not wait, or would have to for longer than anything does: likewise."""
        return not now < self.due_unix_s <= now + group_s


_OF_DELIVERY = 10
_COLUMNS = tuple(
    f"{'d' if at < _OF_DELIVERY else 'e'}.{name}" for at, name in enumerate(_Waiting._fields)
)  # fmt: skip


def _takes_place(row: _Waiting, what: str, level: int) -> bool:
    """Whether a later notice says as much as this one: of an end, any that says that it is on again."""
    return (what in _SAYS_ON or what == "recovered") and (row.what == "recovered" or level >= row.level)


def _may_skip(row: _Waiting, what: str, *, ends: bool) -> bool:
    """Whether this one need not arrive before a later one that waits too."""
    return row.what in _SAYS_ON and what in _SAYS_ON and not ends


def _batch(
    free: Sequence[_Waiting], due: Sequence[_Waiting], failures: int, attempts: int, most: int, *, alone: bool
) -> list[_Waiting]:
    """What is to be sent now, in order: what was tried together is tried together again, so that the receiver knows
    the whole message again; what is not due yet goes along with what is, for they came together.

    What the receiver refused `attempts` times running lets others pass; when one of those got through it is no fault of
    the channel, and those of that message are tried one by one. What is urgent takes along an end of the same state
    that came before it, which must not arrive after it. `alone` is whether nothing of the channel is under way.
    """
    head = min(due, key=lambda row: (max(0, row.refused - attempts + 1), not row.urgent, row.event))
    if head.owner and attempts <= head.refused and failures < head.refused:
        batch = [head]
    else:
        together = [row for row in free if row.owner == head.owner and (head.owner or row.urgent == head.urgent)]
        batch = [row for row in together if row.urgent or alone][:most]
    newest = {row.key: row.event for row in batch}
    before = [row for row in free if row not in batch and row.event < newest.get(row.key, 0)]
    ends = {row.key for row in before if row.what == "recovered"}
    before = [row for row in before if row.key in ends]
    return sorted((batch + before)[:most], key=lambda row: row.event)


def _notice(row: _Waiting) -> Notice:
    return Notice(
        delivery_id=row.id, key=row.key, kind=row.kind, what=row.what, level=Level(row.level), title=row.title,
        text=row.text, unix_s=row.unix_s, target=row.target, host=row.host, details=json.loads(row.details),
    )  # fmt: skip


def _silences(db: sqlite3.Connection, now: float) -> tuple[Silence, ...]:
    rows = db.execute(
        "SELECT number, matcher, until_unix_s, author, comment, made_unix_s FROM alert_silences WHERE until_unix_s > ? "
        "ORDER BY number DESC LIMIT 200",
        (now,),
    ).fetchall()
    return tuple(
        Silence(
            number=number, matcher=tuple((name, pattern) for name, pattern in json.loads(matcher)), until_unix_s=until,
            author=author, comment=comment, made_unix_s=made,
        )
        for number, matcher, until, author, comment, made in rows
    )  # fmt: skip


_CHANNEL = ("origin", "name", "failures", "not_before_unix_s", "since_unix_s", "sent", "dead", "error")
_NEW_DELIVERY = (
    "INSERT OR IGNORE INTO alert_deliveries (id, event, channel, state, urgent, attempts, due_unix_s, made_unix_s, "
    "owner, lease_unix_s, error, origin) VALUES (?, ?, ?, 'pending', ?, 0, ?, ?, '', 0, '', ?)"
)
# What we step and deliver: our own, and what is of before there were origins.
_OURS = "origin IN (?, '')"


def _new_channel(name: str, origin: str) -> ChannelState:
    return ChannelState(
        origin=origin, name=name, failures=0, not_before_unix_s=0.0, since_unix_s=None, sent=0, dead=0, error=""
    )  # fmt: skip


def _rests(state: ChannelState, now: float) -> bool:
    """Whether it is not to be tried yet; not for longer than any rest is: the clock may have been set back since."""
    return now < state.not_before_unix_s <= now + LONGEST_RETRY_AFTER_S


# --- damage ----------------------------------------------------------------------------------------------------------

# Beside the store: the name of the file that was moved aside and not yet read.
_UNREAD = ".unread"
# What SQLite says of a file that is none of its, or is broken: SQLITE_CORRUPT and SQLITE_NOTADB.
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def _is_damage(error: BaseException) -> bool:
    cause = error.__cause__
    return isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _is_sound(path: str) -> bool:
    try:
        db = sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=1.0)  # it must not make one
        try:
            return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
        finally:
            db.close()
    except sqlite3.Error:
        return False
