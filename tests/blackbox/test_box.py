"""The black box: what was written is read, what was damaged is left out and counted, and nothing is made up."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
import sys
import tempfile
from binascii import crc32
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwarden import blackbox
from memwarden.blackbox import (
    SIZE,
    STILL,
    BlackBox,
    Box,
    LeakState,
    directory,
    find_boxes,
    forget_old,
    read_answer,
    read_box,
    send_command,
)
from memwarden.errors import BlackBoxError
from memwarden.facts import Level

if TYPE_CHECKING:
    from collections.abc import Iterator

RING = 2880
EVENTS = 256
SLOTS = 64
T0 = 1_800_000_000.0


def _open(folder: Path | str, **changes: Any) -> BlackBox:
    return BlackBox(str(folder), **{"pid": 4321, "unix_s": T0, "monotonic_s": 1000.0, **changes})


def _write_ticks(box: BlackBox, count: int) -> None:
    for n in range(1, count + 1):
        box.tick(T0 + n, 1000.0 + n, n * 3, n * 5, n * 7, 0, n / 1000)


def _path(box: BlackBox) -> str:
    assert box.path is not None, box.reason
    return box.path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    box = _open(folder, kind="outside", supervisor_pid=7, start_ticks=99, argv="python -m shop")
    box.place(512 << 20, "/sys/fs/cgroup/memory.max", cgroup="/sys/fs/cgroup/x", oom_kills=3)
    box.tick(T0 + 1, 1001.0, 10, 20, 30, 2, 0.5)
    box.tick(T0 + 2, 1002.0, None, None, None)
    box.event(T0 + 1, 1001.0, "action", "collected", before_bytes=9, after_bytes=4, duration_s=0.25)
    box.event(T0 + 2, 1002.0, "level", "NORMAL -> WARNING")
    kept, ended = box.begin(T0, 1000.0, "import", 5, 77), box.begin(T0, 1000.0, "gone", 5, 77)
    box.end(ended)
    box.end_life("oom_kill", exit_status=137, oom_kills=4)
    box.close()
    found = read_box(_path(box))
    assert kept is not None
    assert (found.kind, found.pid, found.supervisor_pid, found.start_ticks) == ("outside", 4321, 7, 99)
    assert (found.start_unix_s, found.argv) == (T0, "python -m shop")
    assert (found.limit_bytes, found.limit_source) == (512 << 20, "/sys/fs/cgroup/memory.max")
    assert (found.cgroup, found.oom_kills, found.level) == ("/sys/fs/cgroup/x", 4, Level.NORMAL)
    assert (found.ended, found.verdict, found.exit_status, found.damaged) == (True, "oom_kill", 137, 0)
    first, second = found.ticks
    assert (first.unix_s, first.monotonic_s, first.level, first.late_s) == (T0 + 1, 1001.0, Level.CRITICAL, 0.5)
    assert (first.rss_bytes, first.used_bytes, first.limit_bytes) == (10, 20, 30)
    assert (second.rss_bytes, second.used_bytes, second.limit_bytes) == (None, None, None)
    action, level = found.events
    assert (action.kind, action.text, action.before_bytes, action.after_bytes) == ("action", "collected", 9, 4)
    assert action.duration_s == 0.25
    assert (level.text, level.before_bytes, level.duration_s) == ("NORMAL -> WARNING", None, None)
    (flying,) = found.in_flight
    assert (flying.name, flying.before_bytes, flying.thread) == ("import", 5, 77)


def test_what_the_watch_for_leaks_says_has_a_place_of_its_own(folder: Path) -> None:
    box = _open(folder)
    assert read_box(_path(box)).leak is None
    first = LeakState(stage="suspected", since_unix_s=None, unix_s=T0, text="suspected: it grows")
    second = LeakState(
        stage="confirmed", since_unix_s=T0, unix_s=T0 + 5, text="confirmed: " + "x" * 300, cause="fragmentation",
        confidence=97, growth_bytes_per_minute=-1.5, growing=("dict +1 (+2 B)", "caf\u00e9.Order +3 (+4 B)"),
    )  # fmt: skip
    for state in (first, second):
        box.put_leak(state)
        for n in range(EVENTS + 1):
            box.event(T0, 1000.0, "event", f"event {n}")
        assert (read_box(_path(box)).leak, read_box(_path(box)).damaged) == (state, 0)


@given(st.lists(st.text(), max_size=9), st.text(), st.integers(-5, 500), st.floats())
def test_any_words_about_a_leak_fit_their_place(growing: list[str], text: str, confidence: int, growth: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = _open(folder)
        box.begin(T0, 1000.0, "in the slots behind it", 1, 1)
        box.put_leak(
            LeakState(
                stage=text, since_unix_s=growth, unix_s=growth, text=text, cause=text, confidence=confidence,
                growth_bytes_per_minute=growth, growing=tuple(growing),
            )
        )  # fmt: skip
        found = read_box(_path(box))
    assert found.leak is not None
    assert 0 <= found.leak.confidence <= 100
    assert all(each.isprintable() for each in (found.leak.text, found.leak.stage, *found.leak.growing))
    assert (len(found.in_flight), found.damaged) == (1, 0)


def test_a_torn_word_about_a_leak_is_left_out_and_counted(folder: Path) -> None:
    box = _open(folder)
    box.put_leak(LeakState(stage="suspected", since_unix_s=T0, unix_s=T0, text="suspected: it grows"))
    with open(_path(box), "r+b") as file:
        file.seek(blackbox._LEAK_AT + 40)
        file.write(b"?")
    assert (read_box(_path(box)).leak, read_box(_path(box)).damaged) == (None, 1)


def _stand(box: BlackBox, monotonic_s: float, used: int) -> None:
    """As a supervisor's glance writes it."""
    buffer, at, number = box.still_place()
    body = STILL.pack(number, monotonic_s, used)
    buffer[at : at + 32] = body + crc32(body).to_bytes(8, "little")


def test_a_tick_lasts_until_the_last_glance_that_saw_nothing_move(folder: Path) -> None:
    box = _open(folder)
    _write_ticks(box, 2)
    _stand(box, 1002.5, 11)
    _stand(box, 1002.75, 12)
    last, more = read_box(_path(box)).ticks[-2:]
    assert (last.monotonic_s, last.used_bytes) == (1002.0, 10)
    assert (more.monotonic_s, more.unix_s, more.used_bytes, more.rss_bytes) == (1002.75, T0 + 2.75, 12, 6)
    box.tick(T0 + 3, 1003.0, 9, 15, 21)
    assert [tick.used_bytes for tick in read_box(_path(box)).ticks] == [5, 10, 15]


def test_a_glance_that_was_torn_or_goes_on_from_a_torn_tick_is_left_out_and_counted(folder: Path) -> None:
    box = _open(folder)
    _stand(box, 1000.5, 1)
    assert (read_box(_path(box)).ticks, read_box(_path(box)).damaged) == ((), 0)
    _write_ticks(box, 3)
    _stand(box, 1003.5, 11)
    buffer, at, _ = box.still_place()
    for place, left in ((at + 9, [5, 10, 15]), (SIZE - RING * 64 + 3 * 64, [5, 10])):
        buffer[place] ^= 1
        found = read_box(_path(box))
        assert ([tick.used_bytes for tick in found.ticks], found.damaged > 0) == (left, True)
        buffer[place] ^= 1


def test_the_rings_keep_the_newest_in_order(folder: Path) -> None:
    box = _open(folder)
    _write_ticks(box, RING * 2 + 100)
    for n in range(EVENTS + 10):
        box.event(T0 + n, 1000.0 + n, "event", str(n))
    found = read_box(_path(box))
    assert [tick.rss_bytes for tick in found.ticks] == [n * 3 for n in range(RING + 101, RING * 2 + 101)]
    assert [event.text for event in found.events] == [str(n) for n in range(10, EVENTS + 10)]
    assert found.damaged == 0
    box.close()


def test_a_tick_past_every_bound_is_still_one_tick(folder: Path) -> None:
    box = _open(folder)
    box.tick(T0, 1.0, 0, -5, 1 << 63, 3, 1e9)
    box.tick(T0, 1.0, 0, 0, 0, 0, -1.0)
    first, second = read_box(_path(box)).ticks
    assert (first.used_bytes, first.limit_bytes, first.level) == (0, 1 << 63, Level.EMERGENCY)
    assert first.late_s == pytest.approx(4294.967295)
    assert second.late_s == 0
    box.close()


def test_a_sixty_fifth_operation_has_no_slot_and_takes_none_away(folder: Path) -> None:
    box = _open(folder)
    slots = [box.begin(T0, 1.0, f"operation {n}", None, n) for n in range(SLOTS)]
    assert sorted(each for each in slots if each is not None) == list(range(SLOTS))
    assert box.begin(T0, 1.0, "one too many", None, 1) is None
    box.end(None)
    assert len(read_box(_path(box)).in_flight) == SLOTS
    box.end(slots[5])
    assert box.begin(T0, 1.0, "again", None, 1) == slots[5]
    assert "again" in {each.name for each in read_box(_path(box)).in_flight}
    box.close()


@given(text=st.text(max_size=200), pad=st.integers(0, 12))
def test_texts_are_cut_between_characters_and_fit_one_line(text: str, pad: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = _open(folder, argv="x" * (505 + pad) + "äöü€😀")
        box.event(T0, 1.0, "kind" + "€" * 10, "y" * pad + text * 4)
        found = read_box(_path(box))
        box.close()
    assert found.argv.startswith("x" * 505)
    assert "\ufffd" not in found.argv
    assert len(found.argv.encode()) <= 512
    assert found.events[0].text.isprintable()
    if "\ufffd" not in text and "\0" not in text:
        assert "\ufffd" not in found.events[0].text
    assert found.damaged == 0


def test_a_command_is_taken_once_and_answered(folder: Path) -> None:
    box = _open(folder)
    assert box.command() is None
    send_command(_path(box), 5, "gc")
    assert box.command() == (5, "gc")
    assert box.command() is None
    assert read_answer(_path(box), 5) is None
    box.answer(5, "freed 3 MiB")
    assert read_answer(_path(box), 5) == "freed 3 MiB"
    assert read_answer(_path(box), 6) is None
    box.close()


def test_a_half_written_command_is_not_obeyed(folder: Path) -> None:
    box = _open(folder)
    with open(_path(box), "r+b") as file:
        file.seek(2048)
        file.write(struct.pack("<Q16s", 9, b"emergency"))
    assert box.command() is None
    box.close()


def test_a_command_is_written_into_nothing_but_a_black_box(tmp_path: Path) -> None:
    path = tmp_path / "diary.txt"
    path.write_bytes(b"dear diary" * 1000)
    with pytest.raises(BlackBoxError, match="is no black box, and was not written to"):
        send_command(str(path), 1, "gc")
    assert path.read_bytes() == b"dear diary" * 1000
    with pytest.raises(BlackBoxError, match="cannot be written: Is a directory"):
        send_command(str(tmp_path), 1, "gc")
    with pytest.raises(BlackBoxError, match="is no black box"):
        read_answer(str(path), 1)


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Box]:
    """A full box, and what it says."""
    box = _open(tmp_path_factory.mktemp("specimen"), argv="python -m shop", start_ticks=5)
    box.place(1 << 30, "memory.max", cgroup="/x", oom_kills=0)
    _write_ticks(box, RING + 50)
    for n in range(EVENTS + 5):
        box.event(T0 + n, 1000.0 + n, "event", f"event {n}", before_bytes=n)
    for n in range(10):
        box.begin(T0, 1000.0, f"operation {n}", n, n)
    box.close()
    with open(_path(box), "rb") as file:
        return file.read(), read_box(_path(box))


def _read_bytes(raw: bytes) -> Box | None:
    with tempfile.NamedTemporaryFile(suffix=".box") as file:
        file.write(raw)
        file.flush()
        try:
            return read_box(file.name)
        except BlackBoxError as error:
            line = str(error)
            assert line.isprintable()
            return None


def _assert_nothing_is_made_up(found: Box, whole: Box, *, damaged: int = 1) -> None:
    assert set(found.ticks) <= set(whole.ticks)
    assert set(found.events) <= set(whole.events)
    assert set(found.in_flight) <= set(whole.in_flight)
    assert (found.pid, found.argv, found.start_ticks) == (whole.pid, whole.argv, whole.start_ticks)
    assert found.limit_source in (whole.limit_source, "")
    assert found.damaged >= damaged


@given(at=st.integers(0, SIZE * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_never_read_as_a_record(specimen: tuple[bytes, Box], at: int) -> None:
    raw, whole = specimen
    changed = bytearray(raw)
    changed[at // 8] ^= 1 << (at % 8)
    found = _read_bytes(bytes(changed))
    if found is not None:
        _assert_nothing_is_made_up(found, whole, damaged=0)
        lost = len(whole.ticks) - len(found.ticks) + len(whole.events) - len(found.events)
        assert found.damaged >= lost


def test_every_bit_of_a_tick_and_of_the_header_is_guarded(specimen: tuple[bytes, Box]) -> None:
    raw, whole = specimen
    first_tick = SIZE - RING * 64
    for at in range(64 * 8):
        changed = bytearray(raw)
        changed[first_tick + at // 8] ^= 1 << (at % 8)
        ticks, torn = blackbox._read_ring(bytes(changed), first_tick, blackbox._TICK, 64, RING)
        assert (len(ticks), torn) == (len(whole.ticks) - 1, 1), at
    for at in range(568 * 8):
        changed = bytearray(raw[:1000])
        changed[at // 8] ^= 1 << (at % 8)
        assert not blackbox._is_whole(bytes(changed), 0, blackbox._HEADER), at


@given(size=st.integers(0, SIZE + 5))
@settings(max_examples=100, deadline=None)
def test_a_file_cut_short_or_too_long_says_so(specimen: tuple[bytes, Box], size: int) -> None:
    raw, whole = specimen
    found = _read_bytes((raw + b"\0" * 10)[:size])
    if size < SIZE - RING * 64:
        assert found is None
        return
    assert found is not None
    _assert_nothing_is_made_up(found, whole, damaged=int(size != SIZE))
    assert len(found.events) == len(whole.events)


@given(start=st.integers(0, SIZE), junk=st.binary(min_size=1, max_size=300), repeat=st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_junk_written_anywhere_is_never_read_as_a_record(
    specimen: tuple[bytes, Box], start: int, junk: bytes, repeat: int
) -> None:
    raw, whole = specimen
    found = _read_bytes((raw[:start] + junk * repeat + raw[start + len(junk) * repeat :])[:SIZE])
    if found is not None:
        _assert_nothing_is_made_up(found, whole, damaged=0)


@given(raw=st.binary(max_size=2000), magic=st.booleans(), size=st.sampled_from([0, 3000, SIZE // 2, SIZE]))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_no_black_box(raw: bytes, magic: bool, size: int) -> None:
    filled = (b"MEMWRDN2" if magic else b"") + raw
    assert _read_bytes(filled + bytes(max(0, size - len(filled)))) is None


def test_a_stale_record_in_a_foreign_place_is_left_out(specimen: tuple[bytes, Box]) -> None:
    raw, whole = specimen
    first = SIZE - RING * 64
    changed = bytearray(raw)
    changed[first : first + 64] = raw[first + 640 : first + 704]  # whole, but it belongs ten places further
    found = _read_bytes(bytes(changed))
    assert found is not None
    assert (len(found.ticks), found.damaged) == (len(whole.ticks) - 1, 1)


@pytest.mark.parametrize(
    "record", [blackbox._TICK, blackbox._EVENT, blackbox._SLOT, blackbox._STATE], ids=["tick", "event", "slot", "state"]
)
def test_a_record_overtaken_at_any_byte_while_it_was_copied_is_not_whole(record: struct.Struct) -> None:
    """Both ends may even be those of one version: what a number at each end cannot see."""

    def sealed(number: int) -> bytes:
        fields = [bytes([64 + number]) * 8 if c == "s" else number for c in _codes(record)]
        box = BlackBox(None, pid=1, unix_s=1.0, monotonic_s=1.0)
        box._put(0, record.pack(*fields))
        return box._map[: record.size + 8]

    def whole(raw: bytes) -> bool:
        return blackbox._is_whole(raw, 0, record)

    old, new = sealed(1), sealed(2)
    assert whole(old)
    assert whole(new)
    for start in range(0, len(old), max(1, len(old) // 64)):
        for end in range(start, len(old) + 1, max(1, len(old) // 64)):
            mixed = old[:start] + new[start:end] + old[end:]
            assert whole(mixed) is (mixed in (old, new)), (start, end)


def _codes(record: struct.Struct) -> list[str]:
    """One letter for each field."""
    return [letter for letter in record.format if letter in "QIids"]


@pytest.mark.parametrize("raw", [b"", b"MEMWRDN1" + bytes(SIZE - 8), b"MEMWRDN2", b"\0" * SIZE])
def test_what_is_no_box_is_one_line_with_its_name(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.box"
    path.write_bytes(raw)
    with pytest.raises(BlackBoxError) as caught:
        read_box(str(path))
    assert str(caught.value).startswith(f"{path}: is ")
    assert "; " in str(caught.value)


def test_a_folder_a_pipe_a_device_and_nothing_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.box")
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe.box", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "none.box", "No such file"),
        (tmp_path / "a\0b.box", "null byte"),
    ):
        with pytest.raises(BlackBoxError, match=why):
            read_box(str(path))


def test_reading_leaves_no_descriptor_behind(tmp_path: Path, folder: Path) -> None:
    box = _open(folder)
    os.mkfifo(tmp_path / "pipe.box")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        read_box(_path(box))
        for bad in (tmp_path, tmp_path / "pipe.box", tmp_path / "none"):
            with pytest.raises(BlackBoxError):
                read_box(str(bad))
    assert len(os.listdir("/proc/self/fd")) == before
    box.close()


# --- places --------------------------------------------------------------------------------------------------------


def test_a_box_is_private_and_takes_its_blocks_at_once(folder: Path) -> None:
    box = _open(folder)
    found = os.stat(_path(box))
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert found.st_size == SIZE
    assert found.st_blocks * 512 >= SIZE
    box.close()


def test_a_folder_open_to_others_is_closed_to_them(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    _open(folder).close()
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def _degraded(folder: Path | str) -> str:
    """Everything still works, in plain memory; why."""
    box = _open(folder)
    _write_ticks(box, 10)
    box.event(T0, 1.0, "event", "x")
    box.end(box.begin(T0, 1.0, "x", None, 1))
    box.end_life("clean")
    assert box.path is None
    box.close(remove=True)
    return box.reason


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "victim")
    assert _degraded(tmp_path / "run") == f"{tmp_path}/run: is not a folder of this user"
    assert os.listdir(tmp_path / "victim") == []


def test_a_file_in_place_of_the_folder_degrades_to_memory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert _degraded(tmp_path / "run") == f"{tmp_path}/run: File exists"
    assert _degraded(tmp_path / "run" / "below") == f"{tmp_path}/run/below: Not a directory"


def test_a_link_or_file_laid_in_the_way_is_neither_followed_nor_overwritten(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / f"inside-4321-{int(T0 * 1000)}.box").symlink_to(victim)
    (folder / f"inside-4321-{int(T0 * 1000) + 1}.box").write_text("mine")
    box = _open(folder)
    assert _path(box).endswith(f"-{int(T0 * 1000) + 2}.box")
    assert victim.read_text() == "precious"
    assert (folder / f"inside-4321-{int(T0 * 1000) + 1}.box").read_text() == "mine"
    box.close()


def test_the_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
    else:
        folder = Path("/")
    assert _degraded(folder) == f"{folder}: is not a folder of this user"


def test_a_folder_that_cannot_be_written_degrades_to_memory() -> None:
    assert _degraded("/proc/self/fdinfo/run").startswith("/proc/self/fdinfo/run: ")


def test_switched_off_is_a_reason_too() -> None:
    box = BlackBox(None, pid=1, unix_s=0.0, monotonic_s=0.0)
    assert (box.path, box.reason) == (None, "switched off")
    box.close()


_FULL = """
import sys
from memwarden.blackbox import BlackBox
kept, full = [], None
for n in range(9):
    box = BlackBox(sys.argv[1], pid=1, unix_s=1.8e9 + n, monotonic_s=0.0)
    for m in range(3000):
        box.tick(1.8e9, 1.0, 1, 2, 3)
    kept.append(box)
    if box.reason:
        print(box.reason)
print(sum(box.path is not None for box in kept))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs: needs root")
def test_a_full_disk_degrades_to_memory_and_never_to_a_bus_error(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        run = str(tmp_path / "run")
        done = subprocess.run([sys.executable, "-c", _FULL, run], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        *reasons, kept = done.stdout.splitlines()
        assert kept == "2"
        assert len(reasons) == 7
        assert all(each.endswith(": No space left on device") for each in reasons)
        assert len(find_boxes(run)) == 2  # none half made
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("setting", "environ", "where"),
    [
        ("/a", {"MEMWARDEN_DIR": "/b"}, "/a/run"),
        (None, {"MEMWARDEN_DIR": "/b", "XDG_RUNTIME_DIR": "/c"}, "/b/run"),
        (None, {"XDG_RUNTIME_DIR": "/c", "HOME": "/d"}, "/c/memwarden"),
        (None, {"XDG_STATE_HOME": "/dev/shm/s", "HOME": "/d"}, "/dev/shm/s/memwarden/run"),
        (None, {"HOME": ""}, "/tmp/memwarden-77"),
        (None, {}, "/tmp/memwarden-77"),
    ],
)
def test_where_boxes_live(setting: str | None, environ: dict[str, str], where: str) -> None:
    assert directory(setting, environ, 77) == where


# --- forgetting ----------------------------------------------------------------------------------------------------


def test_only_old_boxes_of_the_dead_are_forgotten(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    dead = 4_000_000  # beyond pid_max of 4,194,304 is not needed: no such pid runs on a test machine
    assert not os.path.exists(f"/proc/{dead}")
    for n in range(10):
        (folder / f"inside-{dead}-{1000 + n}.box").touch()
    (folder / f"inside-{os.getpid()}-1.box").touch()
    foreign = ["note.txt", ".box", "a.box", "x-y-z.box", "inside-12.box", "inside--5.box", f"other-{dead}-2.box"]
    for name in foreign:
        (folder / name).touch()
    forget_old(str(folder), keep=3)
    left = set(os.listdir(folder))
    assert left >= {*foreign, f"inside-{os.getpid()}-1.box"}
    assert {name for name in left if name.startswith(f"inside-{dead}")} == {
        f"inside-{dead}-{n}.box" for n in (1007, 1008, 1009)
    }


def test_the_folder_stays_small_however_often_a_service_restarts(folder: Path) -> None:
    for n in range(blackbox.KEEP + 20):
        BlackBox(str(folder), pid=4_000_000, unix_s=T0 + n, monotonic_s=0.0).close()
    paths = find_boxes(str(folder))
    assert len(paths) == blackbox.KEEP + 1
    assert paths[0].endswith(f"-{int((T0 + blackbox.KEEP + 19) * 1000)}.box")


def test_of_a_living_process_the_ended_lives_are_forgotten_and_no_other(folder: Path) -> None:
    running = BlackBox(str(folder), pid=os.getpid(), unix_s=T0, monotonic_s=0.0)
    for _ in range(blackbox.KEEP + 400):  # the clock stands still: every name is taken already
        box = BlackBox(str(folder), pid=os.getpid(), unix_s=T0, monotonic_s=0.0)
        assert box.path is not None, box.reason
        box.end_life("stopped")
        box.close()
    left = find_boxes(str(folder))
    assert running.path in left
    assert len(left) <= blackbox.KEEP + 2
    running.close()


def test_a_box_whose_end_cannot_be_read_stays(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    paths = [folder / f"inside-{os.getpid()}-{n}.box" for n in range(4)]
    paths[0].touch()
    paths[1].write_bytes(bytes(blackbox.SIZE))
    os.mkfifo(paths[2])
    paths[3].symlink_to(paths[1])
    forget_old(str(folder), keep=0)
    assert len(find_boxes(str(folder))) == 4


def test_boxes_are_listed_newest_first_whatever_else_lies_there(folder: Path) -> None:
    folder.mkdir()
    names = [
        "inside-9-5.box",
        "outside-1-40.box",
        "inside-2-300.box",
        "z.box",
        "inside-3-x.box",
        "inside-1-" + "9" * 5000,
    ]
    for name in names[:-1]:
        (folder / name).touch()
    listed = [os.path.basename(path) for path in find_boxes(str(folder))]
    assert listed[:3] == ["inside-2-300.box", "outside-1-40.box", "inside-9-5.box"]
    assert set(listed) == set(names[:-1])
    assert find_boxes(str(folder / "none")) == []
    assert find_boxes(str(folder / "z.box")) == []


# --- at once -------------------------------------------------------------------------------------------------------

_CREATOR = """
import sys
from memwarden.blackbox import BlackBox, read_box
sys.stdin.read(1)
boxes = [BlackBox(sys.argv[1], pid=int(sys.argv[2]), unix_s=1.8e9, monotonic_s=0.0) for n in range(40)]
assert all(box.path for box in boxes), [box.reason for box in boxes]
assert len({box.path for box in boxes}) == 40
"""


def test_processes_that_create_boxes_at_once_do_not_disturb_each_other(folder: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _CREATOR, str(folder), str(pid)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for pid in (1, 1, os.getpid())
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write(b"x")
        run.stdin.flush()
    for run in runs:
        _, complaints = run.communicate(timeout=60)
        assert (run.returncode, complaints) == (0, b"")
    assert len(find_boxes(str(folder))) == 120


_HAMMER = """
import os, sys
from memwarden.blackbox import BlackBox
box = BlackBox(sys.argv[1], pid=os.getpid(), unix_s=1.8e9, monotonic_s=0.0)
n = 0
os.write(1, b"x")
while True:
    n = (n + 1) & 0xFFFFFFFF
    box.event(1.8e9 + n, float(n), str(n), str(n) * 8, before_bytes=n, after_bytes=n)
    box.end(box.begin(1.8e9 + n, float(n), str(n) * 4, n, n))
    if n % 4 == 0:
        box.tick(1.8e9 + n, float(n), n, n, n, 0, 0.0)
"""


def test_a_reader_beside_a_busy_writer_accepts_no_torn_record(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", _HAMMER, str(folder)], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.read(1) == b"x"
            (path,) = find_boxes(str(folder))
            seen = 0
            for _ in range(200):
                found = read_box(path)
                for tick in found.ticks:
                    assert tick.rss_bytes == tick.used_bytes == tick.limit_bytes == tick.monotonic_s
                for event in found.events:
                    assert event.text == event.kind * 8
                    assert str(event.before_bytes) == str(event.after_bytes) == event.kind
                for each in found.in_flight:
                    assert each.name == str(each.thread) * 4
                numbers = [tick.rss_bytes or 0 for tick in found.ticks]
                assert numbers == sorted(numbers)
                seen += len(found.events)
            assert seen > 200 * EVENTS * 0.9
        finally:
            writer.kill()


# --- killed --------------------------------------------------------------------------------------------------------

_WRITER = """
import os, sys, time
from memwarden.blackbox import BlackBox
box = BlackBox(sys.argv[1], pid=os.getpid(), unix_s=time.time(), monotonic_s=time.monotonic(), argv="writer")
box.place(1 << 30, "test", cgroup=None, oom_kills=0)
box.begin(1.8e9, 1.0, "hot loop", 1, 1)
n = 0
while True:
    n += 1
    box.tick(1.8e9 + n, float(n), n, n, n)
    os.write(1, n.to_bytes(8, "little"))
"""


def _kill_a_writer(folder: Path, moments: random.Random) -> tuple[Box, int]:
    """Start one, let it write for a while, SIGKILL it; its box, and the last tick it told of."""
    run = subprocess.Popen([sys.executable, "-S", "-c", _WRITER, str(folder)], stdout=subprocess.PIPE)
    assert run.stdout is not None
    pipe = run.stdout.fileno()
    raw = b""
    enough = moments.randrange(8, 40_000)
    while len(raw) < enough:
        got = os.read(pipe, 65536)
        assert got, "the writer ended by itself"
        raw += got
    run.kill()
    while got := os.read(pipe, 65536):
        raw += got
    run.stdout.close()
    assert run.wait(timeout=10) == -9
    (path,) = (path for path in find_boxes(str(folder)) if f"-{run.pid}-" in path)
    whole = len(raw) // 8 * 8
    return read_box(path), int.from_bytes(raw[whole - 8 : whole], "little")


@pytest.mark.slow
def test_a_hundred_kills_in_a_hot_loop_leave_a_hundred_whole_records(folder: Path) -> None:
    moments = random.Random(20)
    for _ in range(100):
        found, told = _kill_a_writer(folder, moments)
        numbers = [tick.rss_bytes or 0 for tick in found.ticks]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[0] == max(1, numbers[-1] - RING + 1 + found.damaged)
        assert told <= numbers[-1] + found.damaged <= told + 2
        assert found.damaged <= 1
        assert (found.argv, found.limit_bytes, found.ended) == ("writer", 1 << 30, False)
        assert [each.name for each in found.in_flight] == ["hot loop"]


@pytest.fixture(autouse=True)
def no_file_left_mapped() -> Iterator[None]:
    yield
    with open("/proc/self/maps", encoding="utf-8") as file:
        assert [line for line in file if line.rstrip().endswith(".box")] == []
