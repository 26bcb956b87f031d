"""The black box: one 256 KiB file per process, mapped into memory, that survives SIGKILL.

A kernel OOM kill leaves no time for last words, so the words are written all along: the kernel keeps the pages of a
mapped file when the process is gone. Whoever comes next (the supervisor, the command line, the dashboard) reads how
memory moved in the last seconds, which operations were in flight, what was done about it, and whether it ended well.

Layout, little-endian, fixed offsets: a header; the state (replaced whole); a command slot; 64 slots for operations in
flight; a ring of 256 events; a ring of 2,880 ticks of 64 bytes. Every record ends in a CRC-32 of itself. One that does
not fit was being written when it was read or when the process died, or was damaged since: the reader leaves it out and
counts it. (Numbers at both ends, as a seqlock has them, miss a record that was overtaken while it was copied, and miss
a flipped bit; the check sum costs a tick 0.2 us more.) Texts are cut to their field. Nothing of a request's content is
ever written.

Between the state and the command slot stands until when nothing moved (`still_place`), behind the answer to a command
what the watch for leaks says (`put_leak`).

A process that tells of its alerts has 16 KiB more behind all that: sixteen slots for what is to be told (`post`).
Whoever tells it (its own sender, the service, or the next one to come when it is dead) says so in the slot
(`mark_taken`): a slot is free again when that is the number of its record.

What is not here: when to write (`warden`, `supervise`) and what a death means (`supervise.autopsy`).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from binascii import crc32  # the smaller of the two modules that have it: 128 KiB of RSS, zlib 160

from memwarden.errors import BlackBoxError
from memwarden.facts import Fact, Level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SIZE = 256 * 1024
_MAGIC = b"MEMWRDN2"
_UNKNOWN = (1 << 64) - 1
_SEAL = 8  # bytes behind each record: its CRC-32, padded with zeros

# magic, pid, parent (supervisor) pid, kind, start unix, start monotonic, kernel start time in ticks, argv
_HEADER = struct.Struct("<8sIII4xddQ512s")
_STATE_AT = 640
# limit, oom kills, level, ended, exit status, limit source, cgroup folder, verdict
_STATE = struct.Struct("<QQIIi4x256s256s64s")
_STILL_AT = 1536
STILL = struct.Struct("<QdQ")  # number of the tick that it goes on from, monotonic, used
_COMMAND_AT = 2048
_COMMAND = struct.Struct("<Q16s")  # id, verb
_ANSWER_AT = 2112
_ANSWER = struct.Struct("<Q960s")  # id, text
_LEAK_AT = 3088
# since when unix, told unix, bytes a minute, confidence, stage, cause, text, growing types one to a line
_LEAK = struct.Struct("<dddI4x16s24s320s600s")
_SLOTS_AT = 4096
_SLOT = struct.Struct("<QddQQ80s")  # 1 while in flight, unix, monotonic, before, thread, name
_SLOT_SIZE = 128
_SLOTS = 64
_EVENTS_AT = _SLOTS_AT + _SLOT_SIZE * _SLOTS
_EVENT = struct.Struct("<QddQQd16s176s")  # number, unix, monotonic, before, after, duration, kind, text
_EVENT_SIZE = 256
_EVENTS = 256
_TICKS_AT = _EVENTS_AT + _EVENT_SIZE * _EVENTS
_TICK = struct.Struct("<QddQQQII")  # number, unix, monotonic, rss, used, limit, level, late in us
_TICK_SIZE = 64
_TICKS = (SIZE - _TICKS_AT) // _TICK_SIZE
_TICKS_AT_ONCE = 64

# Behind the ring, where the box was asked for them: what was taken of the slot, number, unix, monotonic, text.
_POSTS_AT = SIZE
_POST = struct.Struct("<Qdd984s")
_POST_SIZE = 1024
_POSTS = 16
SIZE_WITH_POSTS = SIZE + _POST_SIZE * _POSTS
# The first slots are for the most urgent alone: a crowd of the others must not be in their way. One of the rest stays
# free for what takes the place of another.
_RESERVED = 2
POST_BYTES = 984

_FREE = bytes(8)
_NAN, _MOST_BYTES = float("nan"), 2.0**63
KINDS = ("inside", "outside")
# The kind of the event by which a supervisor says, at the end of a life, that it starts the command again.
AGAIN = "again"
# And that by which it says that the command was told to end.
ASKED = "asked"
# How many black boxes of the dead are kept: two days of a process that restarts every hour, in 16 MiB.
KEEP = 64
# Names to try for a new one: far beyond what is kept, so only that many living ones of one process could take them.
_NAMES = 1000


class Tick(Fact):
    """One tick: when, how much, and by how much it came too late (how long the process was blind before it)."""

    unix_s: float
    monotonic_s: float
    rss_bytes: int | None
    used_bytes: int | None
    limit_bytes: int | None
    level: Level
    late_s: float


class Event(Fact):
    """Something that happened: an action with what it freed, a change of level, a death."""

    unix_s: float
    monotonic_s: float
    kind: str
    text: str
    before_bytes: int | None = None
    after_bytes: int | None = None
    duration_s: float | None = None


class InFlight(Fact):
    """An operation that had begun and not ended."""

    name: str
    unix_s: float
    monotonic_s: float
    before_bytes: int | None
    thread: int


class LeakState(Fact):
    """What the watch for leaks said last: its `stage`, since when, when and how that was told, and what grows.

    It has a place of its own: the event that told it is lost after 256 others.
    """

    stage: str
    since_unix_s: float | None
    unix_s: float
    text: str
    cause: str = ""
    confidence: int = 0
    growth_bytes_per_minute: float | None = None
    growing: tuple[str, ...] = ()


class Post(Fact):
    """What is to be told and was not yet taken; `slot` and `number` are for `mark_taken`."""

    slot: int
    number: int
    unix_s: float
    monotonic_s: float
    text: str


class Box(Fact):
    """A black box as read: `kind` is inside (written by the process) or outside (by its supervisor)."""

    path: str
    kind: str
    pid: int
    supervisor_pid: int
    start_unix_s: float
    start_ticks: int
    argv: str
    limit_bytes: int | None
    limit_source: str
    cgroup: str
    oom_kills: int | None
    level: Level
    ended: bool
    exit_status: int | None
    verdict: str
    ticks: tuple[Tick, ...]
    events: tuple[Event, ...]
    in_flight: tuple[InFlight, ...]
    damaged: int = 0
    leak: LeakState | None = None
    posts: tuple[Post, ...] = ()


def directory(setting: str | None, environ: Mapping[str, str], uid: int) -> str:
    """Where black boxes live: MEMWARDEN_DIR (or the setting), else the user's runtime or state directory."""
    if setting or environ.get("MEMWARDEN_DIR"):
        return os.path.join(setting or environ["MEMWARDEN_DIR"], "run")
    if environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(environ["XDG_RUNTIME_DIR"], "memwarden")
    home = environ.get("XDG_STATE_HOME") or (f"{environ['HOME']}/.local/state" if environ.get("HOME") else "")
    if home and _writable(home):
        return os.path.join(home, "memwarden", "run")
    return f"/tmp/memwarden-{uid}"  # noqa: S108  made 0700 and checked to be ours before use


def _writable(path: str) -> bool:
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return bool(path) and os.access(path, os.W_OK)


def _make_private(path: str) -> None:
    """The folder, 0700 and ours. Raises OSError where somebody else owns it or could write there."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "is not a folder of this user")
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)


class BlackBox:
    """The writing side. One writer per box; every write is a few hundred nanoseconds and takes no memory.

    Where no file can be made (a full disk, a read-only place), it writes to plain memory and `reason` says why: the
    command line cannot see it then, and it does not survive.
    """

    def __init__(
        self,
        folder: str | None,
        *,
        pid: int,
        unix_s: float,
        monotonic_s: float,
        kind: str = "inside",
        supervisor_pid: int = 0,
        start_ticks: int = 0,
        argv: str = "",
        posts: bool = False,
    ) -> None:
        self.reason = ""
        self.path: str | None = None
        self._size = SIZE_WITH_POSTS if posts else SIZE
        self._posted = 0
        self._map = self._open(folder, f"{kind}-{pid}-", int(unix_s * 1000))
        words = _cut(argv, 512)
        self._put(
            0, _HEADER.pack(_MAGIC, pid, supervisor_pid, KINDS.index(kind), unix_s, monotonic_s, start_ticks, words)
        )
        self._ticks = self._events = self._answered = 0
        self._limit = self._kills = _UNKNOWN
        self._level = 0
        self._source = self._cgroup = self._verdict = b""
        self._ended, self._status = 0, 0
        self._free = list(range(_SLOTS - 1, -1, -1))
        self._write_state()

    def _open(self, folder: str | None, name: str, born_ms: int) -> mmap.mmap:
        if folder is None:
            self.reason = "switched off"
            return mmap.mmap(-1, self._size)
        try:
            _make_private(folder)
            forget_old(folder)
            fd, self.path = _create(os.path.join(folder, name), born_ms)
            try:
                # The blocks are taken now: a write to a mapped hole on a full disk would be a SIGBUS, and our fault.
                _take_blocks(fd, self._size)
                return mmap.mmap(fd, self._size)
            finally:
                os.close(fd)
        except OSError as error:
            self.reason = f"{self.path or folder}: {error.strerror or error}"
            if self.path is not None:
                forget(self.path)
                self.path = None
            return mmap.mmap(-1, self._size)

    def _put(self, at: int, body: bytes) -> None:
        self._map[at : at + len(body) + _SEAL] = body + crc32(body).to_bytes(_SEAL, "little")

    def _write_state(self) -> None:
        words = (self._source, self._cgroup, self._verdict)
        self._put(_STATE_AT, _STATE.pack(self._limit, self._kills, self._level, self._ended, self._status, *words))

    def place(self, limit_bytes: int | None, source: str, *, cgroup: str | None, oom_kills: int | None) -> None:
        """The limit, who says so, the cgroup that binds and its OOM kills so far."""
        self._limit, self._kills = _known(limit_bytes), _known(oom_kills)
        self._source, self._cgroup = _cut(source, 256), _cut(cgroup or "", 256)
        self._write_state()

    def tick(  # noqa: PLR0917  ten times a second: positional arguments are half the cost of the call
        self,
        unix_s: float,
        monotonic_s: float,
        rss_bytes: int | None,
        used_bytes: int | None,
        limit_bytes: int | None,
        level: int = 0,
        late_s: float = 0.0,
    ) -> None:
        """One tick into the ring."""
        self._ticks = number = self._ticks + 1
        late_us = min(int(late_s * 1e6), 0xFFFFFFFF) if late_s > 0 else 0
        body = _TICK.pack(
            number, unix_s, monotonic_s,
            _UNKNOWN if rss_bytes is None else rss_bytes,
            _UNKNOWN if used_bytes is None else max(0, used_bytes),
            _UNKNOWN if limit_bytes is None else limit_bytes,
            level, late_us,
        )  # fmt: skip
        at = _TICKS_AT + (number % _TICKS) * _TICK_SIZE
        self._map[at : at + _TICK_SIZE] = body + crc32(body).to_bytes(_SEAL, "little")
        if level != self._level:
            self._level = level
            self._write_state()

    def put_leak(self, state: LeakState) -> None:
        """What the watch for leaks says now, in place of what it said before."""
        since_s, growth = state.since_unix_s, state.growth_bytes_per_minute
        self._put(
            _LEAK_AT,
            _LEAK.pack(
                _NAN if since_s is None else since_s, state.unix_s, _NAN if growth is None else growth,
                max(0, min(state.confidence, 100)), _cut(state.stage, 16), _cut(state.cause, 24), _cut(state.text, 320),
                _cut("\n".join(state.growing), 600),
            ),
        )  # fmt: skip

    def still_place(self) -> tuple[mmap.mmap, int, int]:
        """Where a glance is written that saw nothing move: until then the last tick lasts, whose number comes along."""
        return self._map, _STILL_AT, self._ticks

    def event(
        self,
        unix_s: float,
        monotonic_s: float,
        kind: str,
        text: str,
        *,
        before_bytes: int | None = None,
        after_bytes: int | None = None,
        duration_s: float | None = None,
    ) -> None:
        """Something that happened, into the ring."""
        self._events = number = self._events + 1
        self._put(
            _EVENTS_AT + (number % _EVENTS) * _EVENT_SIZE,
            _EVENT.pack(
                number, unix_s, monotonic_s, _known(before_bytes), _known(after_bytes),
                -1.0 if duration_s is None else duration_s, _cut(kind, 16), _cut(text, 176),
            ),
        )  # fmt: skip

    def begin(self, unix_s: float, monotonic_s: float, name: str, before_bytes: int | None, thread: int) -> int | None:
        """An operation begins; its slot, or None where 64 are in flight already."""
        try:
            slot = self._free.pop()
        except IndexError:
            return None
        body = _SLOT.pack(1, unix_s, monotonic_s, _known(before_bytes), thread, _cut(name, 80))
        self._put(_SLOTS_AT + slot * _SLOT_SIZE, body)
        return slot

    def end(self, slot: int | None) -> None:
        """It ended."""
        if slot is not None:
            at = _SLOTS_AT + slot * _SLOT_SIZE
            self._map[at : at + 8] = _FREE
            self._free.append(slot)

    def command(self) -> tuple[int, str] | None:
        """A command that somebody of the same user left in the slot since the last one: (id, verb)."""
        identity, verb = _COMMAND.unpack_from(self._map, _COMMAND_AT)
        if identity == self._answered or not identity or not _is_whole(self._map, _COMMAND_AT, _COMMAND):
            return None
        self._answered = identity
        return identity, _text(verb)

    def answer(self, identity: int, text: str) -> None:
        """The answer to a command."""
        self._put(_ANSWER_AT, _ANSWER.pack(identity, _cut(text, 960)))

    def post(self, unix_s: float, monotonic_s: float, text: str, *, urgent: bool = False) -> int:
        """Leave something to be told in a free slot, of at most POST_BYTES as UTF-8; its number, 0 where none is free.

        From then on it survives a SIGKILL. A box without slots has none free. What is not urgent leaves two slots to
        what is, and one for `replace`.
        """
        free = self._free_posts(0 if urgent else _RESERVED)
        return self._write_post(free[0], unix_s, monotonic_s, text) if len(free) > (0 if urgent else 1) else 0

    def replace(self, number: int, unix_s: float, monotonic_s: float, text: str) -> int:
        """Leave it instead of the post of this number, which it makes out of date; its own number.

        0 where that one was taken, or no slot is free. Whenever it is killed, one of the two is there, or both.
        """
        was = number.to_bytes(8, "little")
        places = range(_POSTS_AT, _POSTS_AT + _POST_SIZE * _POSTS, _POST_SIZE) if self._size != SIZE else ()
        old = next((at for at in places if self._map[at + 8 : at + 16] == was != self._map[at : at + 8]), None)
        free = self._free_posts(_RESERVED)
        if old is None or not free:
            return 0
        found = self._write_post(free[0], unix_s, monotonic_s, text)
        self._map[old : old + 8] = was
        return found

    def _free_posts(self, first: int) -> list[int]:
        """Where a record would be free to be written, from that slot on."""
        # The number stands for the record: while it differs from what was taken, nobody has told it yet.
        places = (_POSTS_AT + slot * _POST_SIZE for slot in range(first, _POSTS)) if self._size != SIZE else ()
        return [at for at in places if self._map[at : at + 8] == self._map[at + 8 : at + 16]]

    def _write_post(self, at: int, unix_s: float, monotonic_s: float, text: str) -> int:
        self._posted = number = self._posted + 1
        # Sealed before its number is there: until then, and in one instant, it is free, and after it whole.
        body = _POST.pack(number, unix_s, monotonic_s, _cut(text, POST_BYTES))
        self._map[at + 16 : at + 8 + len(body) + _SEAL] = body[8:] + crc32(body).to_bytes(_SEAL, "little")
        self._map[at + 8 : at + 16] = body[:8]
        return number

    def posts(self) -> tuple[Post, ...]:
        """What is left to be told, in the order in which it was posted."""
        return _read_posts(self._map)[0] if self._size != SIZE else ()

    def take(self, post: Post) -> None:
        """It is told, or kept where nothing is lost: its slot is free."""
        at = _POSTS_AT + post.slot * _POST_SIZE
        if self._map[at + 8 : at + 16] == post.number.to_bytes(8, "little"):
            self._map[at : at + 8] = post.number.to_bytes(8, "little")

    def end_life(self, verdict: str, *, exit_status: int | None = None, oom_kills: int | None = None) -> None:
        """The last word: "clean" at its exit or "stopped" by the process itself, or what its supervisor saw."""
        self._verdict, self._ended = _cut(verdict, 64), 1
        self._status = -1 if exit_status is None else exit_status
        if oom_kills is not None:
            self._kills = oom_kills
        self._write_state()

    def close(self, *, remove: bool = False) -> None:
        """Unmap; the file stays for whoever comes next unless it is to be removed."""
        self._map.close()
        if remove and self.path is not None:
            forget(self.path)


def _create(prefix: str, born_ms: int) -> tuple[int, str]:
    """A new file with the first free name: one process may open two boxes within a millisecond, and a wall clock may
    be set back to where there are many. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    for number in range(_NAMES):
        path = f"{prefix}{born_ms + number}.box"
        try:
            return os.open(path, flags, 0o600), path
        except FileExistsError:
            continue
    raise OSError(errno.EEXIST, f"{_NAMES} boxes of this very moment exist already")


def _take_blocks(fd: int, size: int) -> None:
    """Have the file's blocks for good. Raises OSError on a full disk. macOS has no posix_fallocate."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.write(fd, bytes(size))


def _known(value: int | None) -> int:
    return _UNKNOWN if value is None else min(max(0, value), _UNKNOWN - 1)


def _cut(text: str, size: int) -> bytes:
    """The text in at most `size` bytes, never ending in half a character."""
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) <= size else raw[:size].decode("utf-8", "ignore").encode()


def _text(raw: bytes) -> str:
    """The text of a field, fit for one line of a terminal: what cannot be printed is written out."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _is_whole(raw: bytes | mmap.mmap, at: int, record: struct.Struct) -> bool:
    """Whether the record there is as it was written."""
    end = at + record.size
    return raw[end : end + _SEAL] == crc32(raw[at:end]).to_bytes(_SEAL, "little")


def forget_old(folder: str, *, keep: int = KEEP) -> None:
    """Remove the oldest boxes that are at their end, or whose process is gone, beyond the newest `keep`.

    One with something in it that nobody told yet stays until it is beyond four times as many. Raises OSError.
    """
    for number, path in enumerate(find_boxes(folder)[keep:], keep):
        pid = _pid_of(os.path.basename(path))
        if pid and (not os.path.exists(f"/proc/{pid}") or _is_ended(path)):
            if number < keep * 4 and _has_posts(path):
                continue
            forget(path)


def _has_posts(path: str) -> bool:
    try:
        return os.path.getsize(path) != SIZE and bool(read_posts(path))
    except (OSError, BlackBoxError):
        return False


def _is_ended(path: str) -> bool:
    """Whether its writer has said its last word: one process can live many lives, each with a box of its own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        raw = os.pread(fd, _STATE.size + _SEAL, _STATE_AT)
    except OSError:
        return False  # no file that can be read at a place: none of ours
    finally:
        os.close(fd)
    return len(raw) == _STATE.size + _SEAL and _is_whole(raw, 0, _STATE) and bool(_STATE.unpack_from(raw)[3])


def _pid_of(name: str) -> str:
    """The pid in a name of ours; "" for a file that somebody else put there, which is none of our business."""
    kind, _, rest = name.partition("-")
    pid, _, born = rest.removesuffix(".box").partition("-")
    return pid if kind in KINDS and pid.isdigit() and born.isdigit() else ""


def forget(path: str) -> None:
    """Remove a box; another process may have been quicker. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


# --- the reading side ----------------------------------------------------------------------------------------------


def find_boxes(folder: str) -> list[str]:
    """The paths of all black boxes in a folder, newest first; empty where there is no folder. Raises OSError."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".box")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    names.sort(key=_born, reverse=True)
    return [os.path.join(folder, name) for name in names]


def _born(name: str) -> tuple[int, str]:
    """When a box was made, in ms, from its name; its name where two are of the same moment."""
    born = name.removesuffix(".box").rpartition("-")[2]
    return int(born) if born.isascii() and born.isdigit() and len(born) < 20 else 0, name


def read_box(path: str) -> Box:
    """Read a black box, living or dead, whole or damaged. Raises BlackBoxError where it is none.

    Records that were being written, or make no sense, are left out and counted in `damaged`.
    """
    raw = _read_file(path, SIZE_WITH_POSTS + 1)
    if not raw.startswith(_MAGIC):
        raise BlackBoxError(
            f"is no black box ({len(raw)} bytes)",
            where=path,
            mend="`memwarden postmortem` lists those there are",
        )
    if len(raw) < _TICKS_AT or not _is_whole(raw, 0, _HEADER):
        raise BlackBoxError(
            "is cut short" if len(raw) < _TICKS_AT else "its header is damaged", where=path, mend="nothing can be saved"
        )
    _, pid, supervisor, kind, unix_s, _, start_ticks, argv = _HEADER.unpack_from(raw, 0)
    state = _read_state(raw)
    known = state if state is not None else _NO_STATE
    ticks, broken_ticks = _read_ring(raw, _TICKS_AT, _TICK, _TICK_SIZE, _TICKS)
    told, broken_still = _read_still(raw, ticks)
    leak, broken_leak = _read_leak(raw)
    events, broken_events = _read_ring(raw, _EVENTS_AT, _EVENT, _EVENT_SIZE, _EVENTS)
    in_flight, broken_slots = _read_slots(raw)
    posts, broken_posts = _read_posts(raw)
    broken_places = broken_still + broken_leak + broken_posts
    wrong_size = len(raw) not in (SIZE, SIZE_WITH_POSTS)
    return Box(
        path=path,
        kind=KINDS[kind] if kind < len(KINDS) else "inside",
        pid=pid,
        supervisor_pid=supervisor,
        start_unix_s=_time(unix_s),
        start_ticks=start_ticks,
        argv=_text(argv),
        ticks=told,
        events=tuple(_event(each) for each in events),
        in_flight=tuple(in_flight),
        leak=leak,
        posts=posts,
        damaged=broken_ticks + broken_events + broken_slots + broken_places + (state is None) + wrong_size,
        limit_bytes=known.limit_bytes,
        limit_source=known.limit_source,
        cgroup=known.cgroup,
        oom_kills=known.oom_kills,
        level=known.level,
        ended=known.ended,
        exit_status=known.exit_status,
        verdict=known.verdict,
    )


def _read_file(path: str, size: int) -> bytes:
    """The beginning of a regular file. Raises BlackBoxError; a pipe or a device is not waited for."""
    try:
        with open(path, "rb", opener=_open_now) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BlackBoxError("is no black box (not a regular file)", where=path, mend="name a .box file")
            return file.read(size)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise BlackBoxError(f"cannot be read: {_why(error)}", where=path, mend="name a readable file") from error


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


class _State(Fact):
    limit_bytes: int | None = None
    limit_source: str = ""
    cgroup: str = ""
    oom_kills: int | None = None
    level: Level = Level.NORMAL
    ended: bool = False
    exit_status: int | None = None
    verdict: str = ""


_NO_STATE = _State()


def _read_state(raw: bytes) -> _State | None:
    if not _is_whole(raw, _STATE_AT, _STATE):
        return None
    limit, kills, level, ended, status, source, cgroup, verdict = _STATE.unpack_from(raw, _STATE_AT)
    return _State(
        limit_bytes=_value(limit),
        limit_source=_text(source),
        cgroup=_text(cgroup),
        oom_kills=_value(kills),
        level=Level(min(level, Level.EMERGENCY)),
        ended=bool(ended),
        exit_status=status if ended and status != -1 else None,
        verdict=_text(verdict),
    )


def _read_ring(raw: bytes, at: int, record: struct.Struct, size: int, count: int) -> tuple[list[tuple[Any, ...]], int]:
    """The whole records of a ring in the order they were written, and how many were torn."""
    found, torn = [], 0
    for index in range(count):
        offset = at + index * size
        if offset + size > len(raw):
            break
        if not any(raw[offset : offset + size]):
            continue
        fields = record.unpack_from(raw, offset)
        if _is_whole(raw, offset, record) and fields[0] % count == index and _sane(fields[1]):
            found.append(fields)
        else:
            torn += 1
    found.sort()
    newest = found[-1][0] if found else 0
    return [fields for fields in found if fields[0] > newest - count], torn


def _read_still(raw: bytes, ticks: list[tuple[Any, ...]]) -> tuple[tuple[Tick, ...], bool]:
    """The ticks, one more where nothing moved for a while after the last one; and whether that record was torn."""
    told = tuple(_tick(each) for each in ticks)
    if not any(raw[_STILL_AT : _STILL_AT + STILL.size + _SEAL]):
        return told, False
    if not _is_whole(raw, _STILL_AT, STILL):
        return told, True
    number, monotonic_s, used = STILL.unpack_from(raw, _STILL_AT)
    newest = ticks[-1][0] if ticks else 0
    if number != newest or not told:
        return told, number > newest  # of a tick before that one; or that which it goes on from was torn
    last = told[-1]
    lasted_s = _float(monotonic_s) - last.monotonic_s
    if lasted_s <= 0:
        return told, False
    more = last.replace(unix_s=last.unix_s + lasted_s, monotonic_s=monotonic_s, used_bytes=used, late_s=0.0)
    return (*told, more), False


def _read_leak(raw: bytes) -> tuple[LeakState | None, bool]:
    """What the watch for leaks said; and whether the record was torn."""
    if not any(raw[_LEAK_AT : _LEAK_AT + _LEAK.size + _SEAL]):
        return None, False
    if not _is_whole(raw, _LEAK_AT, _LEAK):
        return None, True
    since_s, unix_s, growth, confidence, stage, cause, text, growing = _LEAK.unpack_from(raw, _LEAK_AT)
    state = LeakState(
        stage=_text(stage),
        since_unix_s=since_s if _sane(since_s) else None,
        unix_s=_time(unix_s),
        text=_text(text),
        cause=_text(cause),
        confidence=min(confidence, 100),
        growth_bytes_per_minute=growth if abs(growth) < _MOST_BYTES else None,
        growing=tuple(_text(line) for line in growing.rstrip(b"\0").split(b"\n") if line),
    )
    return state, False


def _sane(unix_s: float) -> bool:
    return 0 <= unix_s < 1e11  # false for NaN too


def _time(value: float) -> float:
    return value if _sane(value) else 0.0


def _value(raw: object) -> int | None:
    return raw if isinstance(raw, int) and raw != _UNKNOWN else None


def _tick(fields: tuple[object, ...]) -> Tick:
    _, unix_s, monotonic_s, rss, used, limit, level, late_us = fields
    return Tick(
        unix_s=_float(unix_s),
        monotonic_s=_float(monotonic_s),
        rss_bytes=_value(rss),
        used_bytes=_value(used),
        limit_bytes=_value(limit),
        level=Level(min(_value(level) or 0, Level.EMERGENCY)),
        late_s=(_value(late_us) or 0) / 1e6,
    )


def _event(fields: tuple[object, ...]) -> Event:
    _, unix_s, monotonic_s, before, after, duration_s, kind, text = fields
    lasted = _float(duration_s)
    return Event(
        unix_s=_float(unix_s),
        monotonic_s=_float(monotonic_s),
        kind=_text(kind) if isinstance(kind, bytes) else "",
        text=_text(text) if isinstance(text, bytes) else "",
        before_bytes=_value(before),
        after_bytes=_value(after),
        duration_s=lasted if lasted >= 0 else None,
    )


def _float(value: object) -> float:
    return value if isinstance(value, float) and abs(value) < 1e11 else 0.0


def _read_slots(raw: bytes) -> tuple[list[InFlight], int]:
    """The operations in flight, and how many slots were torn."""
    found, torn = [], 0
    for index in range(_SLOTS):
        at = _SLOTS_AT + index * _SLOT_SIZE
        taken, unix_s, monotonic_s, before, thread, name = _SLOT.unpack_from(raw, at)
        if not taken:
            continue
        if not _is_whole(raw, at, _SLOT) or not _sane(unix_s):
            torn += 1
            continue
        found.append(
            InFlight(
                name=_text(name),
                unix_s=unix_s,
                monotonic_s=_float(monotonic_s),
                before_bytes=_value(before),
                thread=thread,
            )
        )
    return found, torn


def _read_posts(raw: bytes | mmap.mmap) -> tuple[tuple[Post, ...], int]:
    """What is left to be told, the oldest first, and how many slots were torn."""
    found, torn = [], 0
    for slot in range(_POSTS):
        at = _POSTS_AT + slot * _POST_SIZE
        if at + _POST_SIZE > len(raw):
            break
        if raw[at : at + 8] == raw[at + 8 : at + 16]:
            continue
        number, unix_s, monotonic_s, text = _POST.unpack_from(raw, at + 8)
        if not _is_whole(raw, at + 8, _POST) or not _sane(unix_s):
            torn += 1
            continue
        found.append(Post(slot=slot, number=number, unix_s=unix_s, monotonic_s=_float(monotonic_s), text=_text(text)))
    return tuple(sorted(found, key=lambda post: post.number)), torn


def read_posts(path: str) -> tuple[Post, ...]:
    """What is left to be told in a box, living or dead. Raises BlackBoxError where it is none."""
    raw = _read_file(path, SIZE_WITH_POSTS + 1)
    if not raw.startswith(_MAGIC):
        raise BlackBoxError("is no black box", where=path)
    return _read_posts(raw)[0]


def mark_taken(path: str, post: Post) -> None:
    """Say in somebody else's box that a post of it is told, or kept where nothing is lost. Raises BlackBoxError."""
    at, number = _POSTS_AT + post.slot * _POST_SIZE, post.number.to_bytes(8, "little")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise BlackBoxError(f"cannot be written: {_why(error)}", where=path) from error
    try:
        if os.pread(fd, len(_MAGIC), 0) == _MAGIC and os.pread(fd, 8, at + 8) == number:
            os.pwrite(fd, number, at)
    except OSError as error:
        raise BlackBoxError(f"cannot be written: {_why(error)}", where=path) from error
    finally:
        os.close(fd)


class TickReader:
    """Follows the ticks of one box: what is new is read, and nothing else. For whoever keeps them longer.

    `last` is the number of the newest tick that was handed out, 0 at first; a reader that continues where another one
    stopped is given it. Ticks that were overwritten before they were read, or are damaged, are counted in `lost`.
    Raises BlackBoxError where the file is no box.
    """

    def __init__(self, path: str, *, last: int = 0) -> None:
        self.path, self.last, self.lost = path, last, 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise BlackBoxError(f"cannot be read: {_why(error)}", where=path) from error
        try:
            raw = os.pread(self._fd, _STATE_AT, 0)
            is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        except OSError as error:
            os.close(self._fd)
            raise BlackBoxError(f"cannot be read: {_why(error)}", where=path) from error
        if not is_file or not raw.startswith(_MAGIC) or len(raw) < _STATE_AT or not _is_whole(raw, 0, _HEADER):
            os.close(self._fd)
            raise BlackBoxError("is no black box, or its header is damaged", where=path)
        _, self.pid, self.supervisor_pid, kind, unix_s, _, self.start_ticks, argv = _HEADER.unpack_from(raw, 0)
        self.kind = KINDS[kind] if kind < len(KINDS) else "inside"
        self.start_unix_s = _time(unix_s)
        self.argv = _text(argv)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def state(self) -> tuple[bool, str]:
        """Whether its writer said its last word, and which."""
        found = _read_state(os.pread(self._fd, _COMMAND_AT, 0))
        return (found.ended, found.verdict) if found is not None else (False, "")

    def has_posts(self) -> bool:
        """Whether something is left to be told in its slots."""
        raw = os.pread(self._fd, SIZE_WITH_POSTS - SIZE, _POSTS_AT)
        return any(raw[at : at + 8] != raw[at + 8 : at + 16] for at in range(0, len(raw) - _POST_SIZE + 1, _POST_SIZE))

    def read(self) -> list[tuple[int, float, int | None, int | None, int | None, int]]:
        """What came since, at most a ring full: (number, unix, rss, used, limit, level) each, in their order.

        Raises OSError.
        """
        found: list[tuple[int, float, int | None, int | None, int | None, int]] = []
        while len(found) < _TICKS and (self._take_some(found) or self._catch_up()):
            pass
        return found

    def _take_some(self, found: list[tuple[int, float, int | None, int | None, int | None, int]]) -> bool:
        """Some of them; whether there may be more."""
        start = (self.last + 1) % _TICKS
        count = min(_TICKS_AT_ONCE, _TICKS - start)
        raw = os.pread(self._fd, count * _TICK_SIZE, _TICKS_AT + start * _TICK_SIZE)
        for at in range(0, len(raw) - _TICK_SIZE + 1, _TICK_SIZE):
            number = int.from_bytes(raw[at : at + 8], "little")
            if number != self.last + 1 or not _is_whole(raw[at : at + _TICK_SIZE], 0, _TICK):
                return False
            _, unix_s, _, rss, used, limit, level, _ = _TICK.unpack_from(raw, at)
            self.last = number
            if _sane(unix_s):
                found.append((number, unix_s, _value(rss), _value(used), _value(limit), min(level, Level.EMERGENCY)))
            else:
                self.lost += 1
        return len(raw) == count * _TICK_SIZE

    def _catch_up(self) -> bool:
        """Where the tick that is due is lost, go on before the next that is there; whether there is one.

        A writer goes in order, so it is lost when a later one is there: it was overwritten, or damaged. Raises OSError.
        """
        if not self._later(self.last + 1, _TICKS_AT_ONCE):
            return False
        later = self._later(0, _TICKS)
        if not later:
            return False
        self.lost += min(later) - self.last - 1
        self.last = min(later) - 1
        return True

    def _later(self, first: int, count: int) -> list[int]:
        """Numbers above the one that is due, of the whole ones of so many places from that of `first` on."""
        start = first % _TICKS
        raw = os.pread(self._fd, min(count, _TICKS - start) * _TICK_SIZE, _TICKS_AT + start * _TICK_SIZE)
        return [
            number
            for at in range(0, len(raw) - _TICK_SIZE + 1, _TICK_SIZE)
            if (number := int.from_bytes(raw[at : at + 8], "little")) > self.last + 1
            and _is_whole(raw[at : at + _TICK_SIZE], 0, _TICK)
        ]


def send_command(path: str, identity: int, verb: str) -> None:
    """Leave a command in a living box of the same user. Raises BlackBoxError."""
    body = _COMMAND.pack(identity, _cut(verb, 16))
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise BlackBoxError(f"cannot be written: {_why(error)}", where=path) from error
    try:
        if os.pread(fd, len(_MAGIC), 0) != _MAGIC:
            raise BlackBoxError("is no black box, and was not written to", where=path)
        os.pwrite(fd, body + crc32(body).to_bytes(_SEAL, "little"), _COMMAND_AT)
    except OSError as error:
        raise BlackBoxError(f"cannot be written: {_why(error)}", where=path) from error
    finally:
        os.close(fd)


def read_answer(path: str, identity: int) -> str | None:
    """The answer to that command, once it is there. Raises BlackBoxError."""
    raw = _read_file(path, _SLOTS_AT)
    if len(raw) < _SLOTS_AT or not raw.startswith(_MAGIC):
        raise BlackBoxError("is no black box, or is cut short", where=path)
    answered, text = _ANSWER.unpack_from(raw, _ANSWER_AT)
    return _text(text) if answered == identity and _is_whole(raw, _ANSWER_AT, _ANSWER) else None
