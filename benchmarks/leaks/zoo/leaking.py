"""Leaks whose holder is Python: caches, registries, closures, tasks, cycles. Each with its mended twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.leaks.zoo import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.leaks.zoo.run import Run

PROGRAMS = Family()
leak = PROGRAMS.add


@leak("python")
def dict_cache(run: Run) -> Callable[[], object]:
    cache: dict[str, dict[str, Any]] = {}

    def op() -> None:
        key = run.text(40)
        cache[key] = {"user": key[:8], "body": "b" * 200 + key, "n": run.serial}
        if not run.leaky and len(cache) > 300:
            cache.pop(next(iter(cache)))

    return op


@leak("python")
def listener_list(run: Run) -> Callable[[], object]:
    listeners: list[Any] = []

    class Screen:
        def __init__(self) -> None:
            self.rows = [run.text(60) for _ in range(6)]

        def changed(self) -> int:
            return len(self.rows)

    def op() -> None:
        screen = Screen()
        listeners.append(screen.changed)
        if not run.leaky:
            listeners.remove(screen.changed)

    return op


@leak("python")
def cycles_without_collector(run: Run) -> Callable[[], object]:
    import gc

    gc.disable()

    class Node:
        def __init__(self) -> None:
            self.children: list[Node] = []
            self.parent: Node | None = None
            self.text = run.text(120)

    def op() -> None:
        root, child = Node(), Node()
        root.children.append(child)
        child.parent = root
        if not run.leaky:
            child.parent = None

    return op


@leak("python")
def pending_tasks(run: Run) -> Callable[[], object]:
    import asyncio

    loop = asyncio.new_event_loop()
    tasks: set[Any] = set()

    async def wait_for_reply(body: str) -> str:
        await asyncio.Event().wait()
        return body

    async def handle() -> None:
        task = asyncio.ensure_future(wait_for_reply(run.text(300)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(0)
        if not run.leaky:
            task.cancel()
            await asyncio.sleep(0)

    return lambda: loop.run_until_complete(handle())


@leak("python")
def far_timers(run: Run) -> Callable[[], object]:
    import asyncio

    loop = asyncio.new_event_loop()

    async def handle() -> None:
        body = {"text": run.text(200), "ids": list(range(10))}
        timer = loop.call_later(3600, body.clear)
        await asyncio.sleep(0)
        if not run.leaky:
            timer.cancel()

    return lambda: loop.run_until_complete(handle())


@leak("python")
def chunks_appended(run: Run) -> Callable[[], object]:
    chunks: list[tuple[str, bytes]] = []

    def op() -> None:
        chunks.append((run.text(30), bytes(1500)))
        if not run.leaky and len(chunks) > 64:
            chunks.clear()

    return op


@leak("python")
def handler_per_request(run: Run) -> Callable[[], object]:
    import io
    import logging

    log = logging.getLogger("request")
    log.propagate = False

    def op() -> None:
        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(logging.Formatter(f"%(message)s {run.text(20)}"))
        log.addHandler(handler)
        if not run.leaky:
            log.removeHandler(handler)
            handler.close()

    return op


@leak("python")
def logger_per_session(run: Run) -> Callable[[], object]:
    import logging

    def op() -> None:
        name = f"session.{run.text(20)}" if run.leaky else f"session.{run.serial % 50}"
        run.serial += 1
        logging.getLogger(name).debug("hello %s", name)

    return op


@leak("python")
def tracebacks_kept(run: Run) -> Callable[[], object]:
    errors: list[BaseException] = []

    def inner(payload: str, rows: list[int]) -> int:
        return int(payload) + len(rows)

    def op() -> None:
        try:
            inner(run.text(250), list(range(300, 312)))
        except ValueError as exc:
            errors.append(exc)
        if not run.leaky:
            del errors[:-20]

    return op


@leak("python")
def finalizers(run: Run) -> Callable[[], object]:
    import weakref

    class Connection:
        def __init__(self) -> None:
            self.buffer = run.text(200)

    def op() -> None:
        connection = Connection()
        end = weakref.finalize(connection, print, connection if run.leaky else None)
        end.atexit = False
        if not run.leaky:
            end.detach()

    return op


@leak("python")
def cached_method(run: Run) -> Callable[[], object]:
    import functools

    class Repository:
        @functools.lru_cache(maxsize=None if run.leaky else 256)  # noqa: B019  the leak
        def find(self, key: str) -> dict[str, object]:
            return {"key": key, "rows": [key[:4]] * 8}

    repository = Repository()
    return lambda: repository.find(run.text(60))


@leak("python")
def cached_arguments(run: Run) -> Callable[[], object]:
    import functools

    @functools.cache
    def price(amount: float, currency: str, *, day: int) -> tuple[float, str]:
        return amount * 1.1, currency + str(day)

    def op() -> None:
        run.serial += 1
        price(run.serial + 0.5 if run.leaky else run.serial % 100, "EUR", day=run.serial % 365)

    return op


@leak("python")
def context_chain(run: Run) -> Callable[[], object]:
    import contextvars

    variable: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("request")
    contexts: list[contextvars.Context] = []

    def op() -> None:
        context = contextvars.copy_context()
        context.run(variable.set, tuple(run.text(50) for _ in range(4)))
        contexts.append(context)
        if not run.leaky:
            contexts.pop()

    return op


@leak("python")
def names_seen(run: Run) -> Callable[[], object]:
    seen: set[str] = set()

    def op() -> None:
        seen.add(run.text(48))  # not interned: CPython 3.12 makes interned strings immortal, mended or not
        if not run.leaky and len(seen) >= 1000:
            seen.clear()

    return op


@leak("python")
def spooled_files(run: Run) -> Callable[[], object]:
    import tempfile

    uploads: list[Any] = []

    def op() -> None:
        file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115  the leak
        file.write(run.text(1200).encode())
        uploads.append(file)
        if not run.leaky:
            uploads.pop().close()

    return op


@leak("python")
def suspended_generators(run: Run) -> Callable[[], object]:
    streams: list[Any] = []

    def lines(text: str) -> Any:
        parts = [text[i : i + 20] for i in range(0, 200, 20)]
        yield from parts

    def op() -> None:
        stream = lines(run.text(200))
        next(stream)
        streams.append(stream)
        if not run.leaky:
            streams.pop().close()

    return op


@leak("python")
def metric_labels(run: Run) -> Callable[[], object]:
    class Histogram:
        __slots__ = ("buckets", "count", "labels", "total")

        def __init__(self, labels: tuple[str, str]) -> None:
            self.labels, self.buckets, self.total, self.count = labels, [0.0] * 15, 0.0, 0

    metrics: dict[tuple[str, str], Histogram] = {}

    def op() -> None:
        run.serial += 1
        labels = ("/orders", f"user-{run.serial}" if run.leaky else f"user-{run.serial % 40}")
        found = metrics.get(labels) or metrics.setdefault(labels, Histogram(labels))
        found.total += run.serial * 0.7
        found.count += 1

    return op


@leak("python")
def identity_map(run: Run) -> Callable[[], object]:
    class Row:
        def __init__(self, key: int) -> None:
            self.key, self.name, self.tags = key, run.text(30), ["a", "b", str(key)]

    session: dict[int, Row] = {}

    def op() -> None:
        row = Row(run.serial)
        session[row.key] = row
        if not run.leaky and len(session) >= 100:
            session.clear()

    return op


@leak("python")
def class_per_request(run: Run) -> Callable[[], object]:
    kinds: list[type] = []

    def op() -> None:
        kinds.append(type("Form", (), {"name": run.text(30), "fields": ("a", "b")}))
        if not run.leaky:
            kinds.clear()

    return op


@leak("python")
def event_log(run: Run) -> Callable[[], object]:
    import collections

    events: collections.deque[Any] = collections.deque(maxlen=None if run.leaky else 500)
    return lambda: events.append((run.text(90), run.serial, {"level": "info", "at": run.serial / 7}))


@leak("python")
def defaultdict_reads(run: Run) -> Callable[[], object]:
    import collections

    carts: collections.defaultdict[str, list[int]] = collections.defaultdict(list)

    def op() -> None:
        key = run.text(36)
        if (carts[key] if run.leaky else carts.get(key)) == [1]:
            raise AssertionError

    return op


@leak("python")
def queue_nobody_reads(run: Run) -> Callable[[], object]:
    import queue

    jobs: queue.Queue[Any] = queue.Queue()

    def op() -> None:
        jobs.put({"kind": "mail", "to": run.text(24), "text": "t" * 150})
        if not run.leaky:
            jobs.get()

    return op


@leak("python")
def json_documents(run: Run) -> Callable[[], object]:
    import json

    text = json.dumps({"items": [{"id": i, "name": f"n{i}", "price": i / 3} for i in range(12)], "next": None})
    documents: list[Any] = []

    def op() -> None:
        documents.append(json.loads(text))
        if not run.leaky and len(documents) > 20:
            documents.pop(0)

    return op


@leak("python")
def sessions_never_expire(run: Run) -> Callable[[], object]:
    from http import cookies

    sessions: dict[str, Any] = {}

    def op() -> None:
        key = run.text(32)
        jar = cookies.SimpleCookie()
        jar["id"], jar["theme"] = key, "dark"
        sessions[key] = jar
        if not run.leaky and len(sessions) > 50:
            sessions.pop(next(iter(sessions)))

    return op


@leak("python")
def future_callbacks(run: Run) -> Callable[[], object]:
    from concurrent.futures import Future

    shutdown: Future[None] = Future()

    def op() -> None:
        body = {"text": run.text(100), "parts": [run.serial, "x", "y"]}
        future = shutdown if run.leaky else Future[None]()
        future.add_done_callback(lambda _: body.clear())

    return op


@leak("python")
def atexit_per_request(run: Run) -> Callable[[], object]:
    import atexit

    class Scratch:
        def __init__(self) -> None:
            self.path, self.data = run.text(70), bytearray(300)

        def remove(self) -> None:
            self.data.clear()

    def op() -> None:
        scratch = Scratch()
        atexit.register(scratch.remove)
        if not run.leaky:
            atexit.unregister(scratch.remove)
            atexit._clear()

    return op


@leak("python")
def tree_of_log(run: Run) -> Callable[[], object]:
    from xml.etree import ElementTree as ET

    root = ET.Element("log")

    def op() -> None:
        entry = ET.SubElement(root, "entry", at=run.text(20), level="info")
        ET.SubElement(entry, "text").text = "t" * 80
        if not run.leaky and len(root) > 100:
            root.clear()

    return op


@leak("python")
def warning_registry(run: Run) -> Callable[[], object]:
    import warnings

    warnings.simplefilter("default")
    warnings.showwarning = lambda *_args, **_kw: None

    def op() -> None:
        run.serial += 1
        warnings.warn(f"slow query {run.text(60) if run.leaky else ''}", stacklevel=1)

    return op


@leak("python")
def compiled_templates(run: Run) -> Callable[[], object]:
    compiled: dict[str, Any] = {}

    def op() -> None:
        source = f"def render(user, rows):\n    return '- {run.text(20)}' + user + str(len(rows))\n"
        compiled[source] = compile(source, f"<template {run.serial}>", "exec")
        if not run.leaky and len(compiled) > 40:
            compiled.clear()

    return op


@leak("python")
def open_spans(run: Run) -> Callable[[], object]:
    import time

    class Span:
        def __init__(self, parent: Span | None) -> None:
            self.parent, self.at, self.tags = parent, time.monotonic(), {"route": run.text(24), "user": run.serial}

    spans: list[Span | None] = [None]

    def op() -> None:
        spans[0] = Span(spans[0] if run.leaky else None)

    return op


@leak("python")
def retry_closures(run: Run) -> Callable[[], object]:
    import functools

    retries: list[Any] = []

    def op() -> None:
        payload = [run.text(40) for _ in range(5)]
        retries.append(functools.partial(lambda rows, n: (rows, n), payload, run.serial))
        if not run.leaky and len(retries) > 30:
            retries.pop(0)

    return op


@leak("python")
def weak_cycle_with_del(run: Run) -> Callable[[], object]:
    import gc

    gc.set_threshold(10_000_000, 1000, 1000)

    class Plugin:
        def __init__(self) -> None:
            self.me, self.state = self, [run.text(80), {}]

        def __del__(self) -> None:
            self.state = None  # type: ignore[assignment]

    def op() -> None:
        plugin = Plugin()
        if not run.leaky:
            del plugin.me

    return op
