"""The example service: its data, its pages, its bug; and a MemoryError in one request is not its end."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

CRM = Path(__file__).parents[2] / "examples" / "crm"
CONTACTS = 80
MIB = 1 << 20


def load(name: str) -> ModuleType:
    """A module of the example, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"crm_{name}", CRM / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data = load("data")
transcripts = load("transcripts")
traffic = load("traffic")


def rows(path: Path) -> list[str]:
    with data.connect(path) as db:
        return list(db.iterdump())


def test_the_same_seed_makes_the_same_data(tmp_path: Path) -> None:
    first, again, other = (
        rows(data.database_in(tmp_path / name, contacts=30, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = data.database_in(tmp_path, contacts=5)
    before = path.stat()
    assert data.database_in(tmp_path, contacts=5) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_transcripts_are_heavy_tailed_within_their_bounds(tmp_path: Path) -> None:
    with data.connect(data.database_in(tmp_path, contacts=200)) as db:
        sizes = sorted(row[0] for row in db.execute("SELECT length(transcript) FROM calls"))
    assert sizes[0] >= 190
    assert sizes[-1] == 16_384
    assert sum(sizes) / len(sizes) > 2 * sizes[len(sizes) // 2]  # the mean is far above the median


# The kernel kills a process that grows a file past RLIMIT_FSIZE, in the middle of the write.
KILLED_HALF_WAY = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
import data
data.database_in(sys.argv[1], contacts=400)
"""
MADE = "import data, sys; print(data.database_in(sys.argv[1], contacts=400).stat().st_ino)"


def test_a_generation_that_was_killed_is_done_again(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, tmp_path], cwd=CRM, check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert [path.suffix for path in tmp_path.iterdir() if path.stat().st_size] == [".part"]
    whole = rows(data.database_in(tmp_path, contacts=400))
    assert whole == rows(data.database_in(tmp_path / "never killed", contacts=400))
    assert not list(tmp_path.glob("*.part"))


def test_two_first_starts_at_once_make_one_database(tmp_path: Path) -> None:
    starts = [
        subprocess.Popen([sys.executable, "-c", MADE, tmp_path], cwd=CRM, stdout=subprocess.PIPE) for _ in range(2)
    ]
    inodes = {start.communicate()[0] for start in starts}
    assert [start.returncode for start in starts] == [0, 0]
    assert len(inodes) == 1


def call(words: str) -> dict[str, Any]:
    return {"at": "2025-05-02 10:00", "topic": "renewal", "minutes": 3, "transcript": f"Agent: {words}"}


def test_the_cache_without_the_bug_hits_and_stays_bounded() -> None:
    cache = transcripts.TranscriptCache()
    for contact_id in range(transcripts.KEPT * 2):
        cache.rendered(contact_id, [call("first")], request_id="r1")
    assert len(cache) == transcripts.KEPT
    last = transcripts.KEPT * 2 - 1
    assert "first" in cache.rendered(last, [call("second")], request_id="r2")


@pytest.mark.parametrize("leak", ["slow", "fast"])
def test_the_leaking_cache_never_hits_and_grows_by_one_per_request(leak: str) -> None:
    cache = transcripts.TranscriptCache(leak)
    for n in range(200):
        cache.rendered(1, [call(f"words {n}")], request_id=f"r{n}")
    assert len(cache) == 200


def test_dropping_the_cache_says_what_it_held() -> None:
    cache = transcripts.TranscriptCache("fast")
    page = cache.rendered(1, [call("one two")], request_id="r1")
    entries, freed_bytes = cache.drop()
    assert entries == 1
    assert freed_bytes > sys.getsizeof(page) + 3 * sys.getsizeof("one")
    assert cache.drop() == (0, 0)


def test_what_was_said_cannot_become_markup() -> None:
    assert "<script>" not in transcripts.render(call("<script>alert(1)</script>"))


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[tuple[int, int]]:
    """A running service on a free port: (port, pid)."""
    environ = {**os.environ, "CRM_DIR": str(folder), "CRM_CONTACTS": str(CONTACTS), **settings}
    command = [sys.executable, str(CRM / "serve.py"), "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout
        try:
            yield int(service.stdout.readline().rpartition(":")[2]), service.pid
        finally:
            service.terminate()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    with serving(tmp_path_factory.mktemp("crm"), CRM_DEMO="1") as running:
        yield running


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def cached(port: int) -> int:
    return int(json.loads(ask(port, "/health")[1])["cached"])


PAGES = {
    "/": b"Recent calls",
    "/contacts": b"/contacts/50",
    "/contacts?page=2": b"/contacts/51",
    "/contacts/1": b"<details>",
    "/contacts/1/suggestions": b"<li>",
    "/calls/search?q=PALLET": b"pallet",
    "/health": b'"status":"ok"',
}


@pytest.mark.server
@pytest.mark.parametrize("path", PAGES)
def test_a_page_answers_with_what_it_is_for(service: tuple[int, int], path: str) -> None:
    status, body = ask(service[0], path)
    assert status == 200
    assert PAGES[path] in body


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "status"),
    [("/contacts/999999", 404), ("/contacts?page=x", 400), ("/contacts?page=0", 400), ("/no", 404)],
)
def test_a_wrong_address_gets_one_clear_line(service: tuple[int, int], path: str, status: int) -> None:
    answered, body = ask(service[0], path)
    assert answered == status
    assert json.loads(body)["error"]


@pytest.mark.server
def test_the_export_holds_every_call(service: tuple[int, int], tmp_path: Path) -> None:
    with data.connect(data.database_in(tmp_path, contacts=CONTACTS)) as db:
        expected = [dict(row) for row in db.execute("SELECT * FROM calls ORDER BY id")]
    assert json.loads(ask(service[0], "/export")[1])["calls"] == expected
    lines = ask(service[0], "/export/stream")[1].splitlines()
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.server
def test_the_leak_is_switched_while_the_service_runs(service: tuple[int, int]) -> None:
    port = service[0]
    assert ask(port, "/leak/slow", "POST")[0] == 200
    before = cached(port)
    for _ in range(100):
        ask(port, "/contacts/1")
    assert cached(port) == before + 100
    assert ask(port, "/leak/off", "POST")[0] == 200
    ask(port, "/contacts/2")
    ask(port, "/contacts/2")
    assert cached(port) <= transcripts.KEPT
    assert ask(port, "/leak/sideways", "POST")[0] == 404


@pytest.mark.server
def test_a_memory_error_fails_one_request_and_not_the_service(service: tuple[int, int]) -> None:
    port, pid = service
    before = resource.prlimit(pid, resource.RLIMIT_DATA)
    resource.prlimit(pid, resource.RLIMIT_DATA, (400 * MIB, before[1]))
    try:
        status, body = ask(port, "/burst/500", "POST")
        assert (status, json.loads(body)) == (503, {"error": "not enough memory for this request"})
        assert ask(port, "/contacts/1")[0] == 200
    finally:
        resource.prlimit(pid, resource.RLIMIT_DATA, before)
    assert ask(port, "/burst/1", "POST")[0] == 200


@pytest.mark.server
def test_the_cache_is_dropped_when_memory_gets_critical(tmp_path: Path) -> None:
    pressure = tmp_path / "pressure"
    forced = {"MEMWARDEN_PRESSURE_FILE": str(pressure), "MEMWARDEN_INTERVAL": "20ms"}
    with serving(tmp_path, CRM_LEAK="slow", **forced) as (port, _):
        for _ in range(70):
            ask(port, "/contacts/1")
        assert cached(port) == 70
        pressure.write_text("CRITICAL", encoding="ascii")
        told = wait_for(port, "cached pages dropped")
        assert cached(port) == 0
        assert any(event["what"].startswith("NORMAL -> CRITICAL") for event in told)
        assert {"trim", "collect"} <= {event["what"] for event in told}


def wait_for(port: int, words: str) -> list[dict[str, Any]]:
    """The service's events up to an action of memwarden after these words; each look is one request."""
    ends_s = time.monotonic() + 30
    while time.monotonic() < ends_s:
        events: list[dict[str, Any]] = json.loads(ask(port, "/health")[1])["events"]
        said = [event["what"] for event in events]
        at = next((n for n, what in enumerate(said) if words in what), None)
        if at is not None and "collect" in said[at:]:
            return events
    raise AssertionError(f"never heard of {words!r}")


@pytest.mark.server
def test_traffic_is_bounded_and_every_request_is_answered(service: tuple[int, int]) -> None:
    with traffic.Traffic(service[0], contacts=CONTACTS, rate=500, seconds=60, most=120) as driver:
        driver.join()
    assert driver.answers == {200: 120}


@pytest.mark.server
def test_the_switches_are_not_there_without_the_demo(tmp_path: Path) -> None:
    with serving(tmp_path, CRM_DEMO="", CRM_LEAK="fast") as (port, _):
        assert [ask(port, path, "POST")[0] for path in ("/leak/off", "/burst/1")] == [404, 404]
        assert json.loads(ask(port, "/health")[1])["leak"] == "fast"


@pytest.mark.parametrize(
    ("name", "value"),
    [("CRM_LEAK", "sideways"), ("CRM_CONTACTS", "-3"), ("CRM_CONTACTS", ""), ("CRM_DIR", "/dev/null/x")],
)
def test_a_wrong_setting_gets_one_line_and_exit_code_two(tmp_path: Path, name: str, value: str) -> None:
    environ = {**os.environ, "CRM_DIR": str(tmp_path), name: value}
    command = [sys.executable, str(CRM / "serve.py"), "--port", "0"]
    refused = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"crm: {name}: ")
    assert refused.stderr.count("\n") == 1
