"""Leaks that no Python container explains: lost references, and native memory. Each with its mended twin.

Where each lost piece of native memory hangs on one Python object, both causes are right.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from benchmarks.leaks.zoo import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.leaks.zoo.run import Run

PROGRAMS = Family()
leak = PROGRAMS.add

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.strdup.restype = ctypes.c_void_p
libc.strdup.argtypes = [ctypes.c_char_p]


def lose(run: Run, thing: object) -> None:
    """Take a reference that is never given back, as a bug in an extension does."""
    if run.leaky:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@leak("python")
def lost_dict(run: Run) -> Callable[[], object]:
    return lambda: lose(run, {"headers": run.text(60), "ids": [run.serial, 2, 3]})


@leak("python")
def lost_exception(run: Run) -> Callable[[], object]:
    def parse(text: str) -> float:
        parts = text.split("x")
        return float(parts[0] + "!")

    def op() -> None:
        try:
            parse(run.text(90))
        except ValueError as exc:
            lose(run, exc)

    return op


@leak("python")
def lost_string(run: Run) -> Callable[[], object]:
    return lambda: lose(run, run.text(150))


@leak("python")
def lost_tuple_with_bytes(run: Run) -> Callable[[], object]:
    return lambda: lose(run, (run.text(20), bytes(900)))


@leak("python")
def lost_closure(run: Run) -> Callable[[], object]:
    def op() -> None:
        body = {"a": run.text(50)}

        def default(_: object) -> dict[str, str]:
            return body

        lose(run, default)

    return op


@leak("native")
def lost_bytes(run: Run) -> Callable[[], object]:
    return lambda: lose(run, bytes(3000))


def _native(run: Run, sizes: tuple[int, int]) -> Callable[[], object]:
    def op() -> None:
        size = run.rng.randint(*sizes)
        block = libc.malloc(size)
        libc.memset(block, 1, size)
        if not run.leaky:
            libc.free(block)

    return op


@leak("native")
def malloc_small(run: Run) -> Callable[[], object]:
    return _native(run, (24, 400))


@leak("native")
def malloc_pages(run: Run) -> Callable[[], object]:
    return _native(run, (2000, 12000))


@leak("native")
def malloc_large(run: Run) -> Callable[[], object]:
    return _native(run, (140_000, 180_000))


@leak("native")
def strdup(run: Run) -> Callable[[], object]:
    def op() -> None:
        block = libc.strdup(run.text(180).encode())
        if not run.leaky:
            libc.free(block)

    return op


@leak("native")
def malloc_in_thread(run: Run) -> Callable[[], object]:
    from concurrent.futures import ThreadPoolExecutor

    pool, work = ThreadPoolExecutor(2), _native(run, (500, 3000))

    def several() -> None:
        for _ in range(20):
            work()

    return lambda: pool.submit(several).result()


@leak("native")
def anonymous_maps(run: Run) -> Callable[[], object]:
    import mmap

    kept: list[Any] = []

    def op() -> None:
        block = mmap.mmap(-1, 16384)
        for at in range(0, 16384, 4096):
            block[at] = 1
        if run.leaky:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(block)) if run.serial % 2 else kept.append(block)
        else:
            block.close()

    return op


@leak("native")
def mapped_frames(run: Run) -> Callable[[], object]:
    import mmap

    frames: list[Any] = []

    def op() -> None:
        frame = mmap.mmap(-1, 300_000)
        frame.write(bytes(300_000))
        frames.append(frame)
        if not run.leaky and len(frames) > 3:
            frames.pop(0).close()

    return op


@leak("native")
def own_allocator(run: Run) -> Callable[[], object]:
    """Small blocks out of slabs of its own, as extensions do that bring their allocator: malloc knows nothing."""
    import mmap

    slabs: list[Any] = []
    room = 0

    def op() -> None:
        nonlocal room
        if room < 500:
            slabs.append(mmap.mmap(-1, 65536))
            room = 65536
        slabs[-1][65536 - room : 65536 - room + 500] = bytes(500)
        room -= 500
        if not run.leaky and len(slabs) > 2:
            slabs.pop(0).close()

    return op


@leak("native")
def bytearray_log(run: Run) -> Callable[[], object]:
    log = bytearray()

    def op() -> None:
        log.extend(run.text(400).encode())
        if not run.leaky and len(log) > 50_000:
            log.clear()

    return op


@leak("native")
def array_of_figures(run: Run) -> Callable[[], object]:
    import array

    figures = array.array("d")

    def op() -> None:
        figures.extend([0.5] * 50)
        if not run.leaky and len(figures) > 10_000:
            del figures[:]

    return op


@leak("native")
def string_io(run: Run) -> Callable[[], object]:
    import io

    files = [io.StringIO() for _ in range(8)]

    def op() -> None:
        run.serial += 1
        file = files[run.serial % 8]
        file.write(run.text(160))
        if not run.leaky and file.tell() > 20_000:
            file.seek(0)
            file.truncate()

    return op


@leak("python|native")
def decompressors(run: Run) -> Callable[[], object]:
    import zlib

    packed = zlib.compress(b"hello " * 400)
    kept: list[Any] = []

    def op() -> None:
        stream = zlib.decompressobj()
        stream.decompress(packed, 10)
        kept.append(stream)
        if not run.leaky:
            kept.clear()

    return op


@leak("python|native")
def sqlite_connections(run: Run) -> Callable[[], object]:
    import sqlite3

    kept: list[Any] = []

    def op() -> None:
        connection = sqlite3.connect(":memory:")
        connection.execute("create table t (a, b)")
        connection.execute("insert into t values (?, ?)", (run.serial, run.text(300)))
        kept.append(connection)
        if not run.leaky:
            kept.pop().close()

    return op


@leak("native")
def sqlite_table(run: Run) -> Callable[[], object]:
    import sqlite3

    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("create table log (id integer primary key, text)")

    def op() -> None:
        connection.execute("insert into log (text) values (?)", (run.text(220),))
        if not run.leaky:
            connection.execute("delete from log where id < ?", (run.serial - 500,))

    return op


@leak("python|native")
def threads_that_wait(run: Run) -> Callable[[], object]:
    import threading

    threading.stack_size(256 * 1024)
    gate = threading.Event()

    def wait() -> None:
        local = threading.local()
        local.buffer = bytearray(20_000)
        if run.leaky:
            gate.wait()

    def op() -> None:
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        if not run.leaky:
            thread.join()

    return op


@leak("python|native")
def hash_states(run: Run) -> Callable[[], object]:
    import hashlib

    kept: list[Any] = []

    def op() -> None:
        kept.append(hashlib.sha256(run.text(30).encode()))
        if not run.leaky:
            kept.clear()

    return op


@leak("python|native")
def ctypes_buffers(run: Run) -> Callable[[], object]:
    kept: list[Any] = []

    def op() -> None:
        kept.append(ctypes.create_string_buffer(4000))
        ctypes.memset(kept[-1], 1, 4000)
        if not run.leaky:
            del kept[:-4]

    return op
