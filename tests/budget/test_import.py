"""What memwarden weighs in somebody's process: modules by count, resident memory by fresh isolated interpreters."""

from __future__ import annotations

import compileall
import json
import os
import pkgutil
import subprocess
import sys
from statistics import median

import pytest

import memwarden

PACKAGE = os.path.dirname(os.path.abspath(memwarden.__file__))
MIB = 1 << 20
ROUNDS = 5

# Too heavy for a guest in somebody's process, and nothing that watching needs (DESIGN 10, STYLE 4.3).
FORBIDDEN = frozenset(
    {
        "asyncio", "ctypes", "dataclasses", "email", "http", "inspect", "json", "multiprocessing", "pathlib", "psutil",
        "rich", "smtplib", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "tomllib", "typing", "unittest",
        "urllib", "uuid", "argparse", "logging", "concurrent",
    }
)  # fmt: skip
# What only a running Warden loads, at start(): a binding of malloc_trim, its log.
AT_START = frozenset({"ctypes", "logging"})
CORE = (
    "errors", "units", "facts", "clock", "ports", "config", "mounts", "blackbox", "leader", "budget",
    "sense", "judge", "act", "diagnose", "findings", "warden", "breaker", "monitor", "supervise",
)  # fmt: skip

_PROGRAM = f"""
import sys
sys.path.insert(0, {os.path.dirname(PACKAGE)!r})
def rss():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096
{{host}}
modules, before = set(sys.modules), rss()
{{program}}
after = rss()
came = sorted(set(sys.modules) - modules)
{{finish}}
import json
print(json.dumps([after - before, came]))
"""


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """As installed: with byte code, so that no compiler runs and no memory is its."""
    compileall.compile_dir(PACKAGE, quiet=2)


def weigh(program: str, *, host: str = "", finish: str = "", rounds: int = ROUNDS) -> tuple[float, list[str]]:
    """(median bytes of growth, modules that came)."""
    text = _PROGRAM.format(host=host, program=program, finish=finish)
    found = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, timeout=60, cwd="/")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    return median(grown for grown, _ in found), found[0][1]


def foreign(modules: list[str]) -> list[str]:
    roots = {name.partition(".")[0] for name in modules}
    return sorted(roots - sys.stdlib_module_names - {"memwarden"})


def test_the_import_stays_under_6_mib_and_70_modules_and_brings_no_third_party() -> None:
    grown, modules = weigh("import memwarden")
    print(f"import memwarden: {grown / MIB:.2f} MiB, {len(modules)} modules")
    assert grown <= 6 * MIB
    assert len(modules) <= 70
    assert foreign(modules) == []


def test_so_does_every_public_name() -> None:
    grown, modules = weigh("import memwarden\nfor name in memwarden.__all__: getattr(memwarden, name)")
    print(f"every public name: {grown / MIB:.2f} MiB, {len(modules)} modules")
    assert grown <= 6 * MIB
    assert len(modules) <= 70
    assert foreign(modules) == []


@pytest.mark.parametrize("name", CORE)
def test_no_part_of_the_core_loads_what_is_heavy(name: str) -> None:
    program = f"import memwarden.{name} as part\nfor each in getattr(part, '__all__', ()): getattr(part, each)"
    _, modules = weigh(program, rounds=1)
    assert {each.partition(".")[0] for each in modules} & FORBIDDEN == set()
    assert foreign(modules) == []


def test_nothing_on_the_path_of_the_core_is_forgotten_here() -> None:
    found = {each.name for each in pkgutil.iter_modules([PACKAGE])}
    assert found - set(CORE) == {
        "__main__",
        "_native",
        "cli",
        "flow",
        "integrations",
        "jobs",
        "store",
        "tell",
        "testing",
    }


# The growth is taken while it runs, after twenty ticks; the benchmark of the same name prints it too.
_RUNNING = """
import memwarden
warden = memwarden.Warden(interval="20ms", directory=folder)
warden.on_change(print)
warden.start()
while warden.ticks < 20:
    time.sleep(0.02)
"""
_STOP = "warden.stop()\nfolder_of.cleanup()"
_HOST = "import tempfile, time\nfolder_of = tempfile.TemporaryDirectory()\nfolder = folder_of.name\n"


@pytest.mark.parametrize(
    ("host", "bound"), [("", 8 * MIB), ("import asyncio, ssl\n", 5 * MIB)], ids=["bare", "asyncio and ssl"]
)
def test_a_running_warden_stays_under_8_mib_bare_and_5_in_a_host_with_asyncio_and_ssl(host: str, bound: int) -> None:
    grown, modules = weigh(_RUNNING, host=host + _HOST, finish=_STOP)
    print(f"a running Warden, {host.strip() or 'bare'}: {grown / MIB:.2f} MiB, {len(modules)} modules")
    assert grown <= bound
    assert {each.partition(".")[0] for each in modules} & (FORBIDDEN - AT_START) == set()
    assert foreign(modules) == []
