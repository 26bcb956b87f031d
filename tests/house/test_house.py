"""The rules of this repository that no linter knows."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from tests import api_snapshot

import memwarden
from memwarden.cli import COMMANDS
from memwarden.config import SETTINGS, Setting

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCE = os.path.dirname(memwarden.__file__)


def _read(path: str) -> str:
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def _sources() -> list[str]:
    return sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(SOURCE) for name in names if name.endswith(".py")
    )


def _module(path: str) -> str:
    name = os.path.relpath(path, os.path.dirname(SOURCE)).removesuffix(".py").replace(os.sep, ".")
    return name.removesuffix(".__init__")


PROJECT: dict[str, Any] = tomllib.loads(_read("pyproject.toml"))
MODULES = [_module(path) for path in _sources()]
# The only files that may import a third party, and which: the features they are.
THIRD_PARTIES = {
    "memwarden.sense.portable": {"psutil"},
    "memwarden.cli._rich": {"rich"},
    "memwarden.flow.cache_store": {"cachebox"},
    "memwarden.flow.database._bar": {"rich"},
    "memwarden.flow.database.calls": {"sqlalchemy"},
    "memwarden.flow.database.checkpoints": {"sqlalchemy"},
    "memwarden.flow.database.faults": {"sqlalchemy"},
    "memwarden.flow.database.indexes": {"sqlalchemy"},
    "memwarden.flow.database.journal": {"sqlalchemy"},
    "memwarden.flow.database.processes": {"sqlalchemy"},
    "memwarden.flow.database.reader": {"sqlalchemy"},
    "memwarden.flow.database.run": {"sqlalchemy"},
    "memwarden.flow.database.statement": {"sqlalchemy"},
    "memwarden.jobs.shared": {"sqlalchemy"},
    "memwarden.jobs.statements": {"sqlalchemy"},
    "memwarden.flow.arrow": {"pyarrow"},
    "memwarden.tell.channels.apprise": {"apprise"},
    "memwarden.integrations.celery": {"celery", "kombu", "billiard"},
    "memwarden.integrations.rq": {"rq", "redis"},
    "memwarden.integrations.dramatiq": {"dramatiq"},
    "memwarden.integrations.dask": {"distributed"},
}


def test_the_public_names_are_those_of_the_snapshot() -> None:
    assert _read("api.txt") == api_snapshot.render(), "the public names changed: run `make api` and look at the diff"


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == memwarden.__version__
    assert f"## {memwarden.__version__}" in _read("CHANGELOG.md")


def test_the_face_has_at_most_twelve_names_and_each_can_be_touched() -> None:
    assert len(memwarden.__all__) <= 12
    assert sorted(memwarden.__all__) == list(memwarden.__all__)
    assert set(dir(memwarden)) == {*memwarden.__all__, "__version__"}
    for name in memwarden.__all__:
        assert getattr(memwarden, name).__name__ == name
        assert name in vars(memwarden)  # the second touch costs nothing
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        memwarden.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", "Makefile", "src/memwarden/py.typed"])
def test_a_stranger_finds_what_they_look_for(name: str) -> None:
    assert os.path.exists(os.path.join(ROOT, name))


def test_nothing_is_installed_with_the_core() -> None:
    assert PROJECT["project"]["dependencies"] == []


@pytest.mark.parametrize("path", _sources(), ids=_module)
def test_a_module_says_what_it_is_and_imports_no_stranger(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    name = _module(path)
    if not name.rpartition(".")[2].startswith("_"):
        assert ast.get_docstring(tree), f"{name} has no docstring"
    imported = {
        word.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for word in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    strangers = imported - set(sys.stdlib_module_names) - {"memwarden"}
    assert strangers <= THIRD_PARTIES.get(name, set())


def test_the_whole_package_imports_without_a_warning_and_without_an_extra() -> None:
    names = [name for name in MODULES if name not in THIRD_PARTIES and not name.endswith("__main__")]
    script = f"""
import importlib, sys, threading
for name in {names!r}:
    importlib.import_module(name)
assert threading.active_count() == 1
assert not {{"psutil", "rich", "starlette", "uvicorn", "sqlalchemy", "pytest", "hypothesis"}} & set(sys.modules)
"""
    # Site-packages of the test environment may warn by themselves; -S leaves them out, which also proves the point.
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-X", "dev", "-b", "-b", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.path.dirname(SOURCE)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_does_nothing() -> None:
    """No file is opened but code, no thread, no registration: by what the interpreter's own audit sees."""
    script = """
import sys
seen = []
def audit(event, args):
    if event in ("open", "os.listdir", "socket.__new__", "subprocess.Popen", "os.putenv") and seen is not None:
        name = str(args[0]) if args else ""
        if not name.endswith((".py", ".pyc", ".so", ".zip")) and event == "open":
            seen.append((event, name))
        elif event not in ("open", "os.listdir"):
            seen.append((event, name))
import gc
callbacks = len(gc.callbacks)
sys.addaudithook(audit)
import memwarden, memwarden.warden, memwarden.blackbox, memwarden.supervise, memwarden.testing
assert seen == [], seen
assert len(gc.callbacks) == callbacks
"""
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": os.path.dirname(SOURCE)})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_in_the_package_docstring_is_true() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "doctest", os.path.join(SOURCE, "__init__.py")],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.path.dirname(SOURCE), "MEMWARDEN_PRESET": "none"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_every_folder_of_code_is_a_package() -> None:
    packages = {found.name for found in pkgutil.walk_packages([os.path.dirname(SOURCE)]) if found.ispkg}
    assert {_module(os.path.dirname(path) + "/__init__.py") for path in _sources()} <= packages


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_the_reference_lists_every_setting_with_its_variables(setting: Setting) -> None:
    rows = [
        line for line in _read("docs/reference/settings.md").splitlines() if line.startswith(f"| `{setting.name}` ")
    ]
    assert len(rows) == 1
    for name in (setting.variable, *(alias for alias, _ in setting.aliases)):
        assert f"`{name}`" in rows[0]


def test_the_reference_names_every_command() -> None:
    text = _read("docs/reference/cli.md")
    assert [name for name in COMMANDS if name not in text] == []


# --- what may not stand in a tracked file --------------------------------------------------------------------------

# Places of one machine and addresses of one package index. "/home" alone, as in "/home directories", is language.
_FORBIDDEN = {
    "a home folder": r"/(?:home|Users)/[a-z][\w.-]*/\S",
    "root's folder": r"(?<![\w.])/[r]oot/[\w.]",
    "a file address": r"file:///\w",
    "an index address": r"--(?:extra-)?index-url[ =]\S|/simple/?(?=[\s\"']|$)|pypi\.org/simple",
    "a working folder": r"(?<![\w/])/(?:[w]ork|workspace|mnt/data)/\w",
}
# Text that is about such places and not of one: captured machines, and the tests that build hostile ones.
_EXEMPT = ("tests/house/", "tests/machines/", "tests/sense/")


def _tracked() -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this copy is no git repository")
    return [name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("what", sorted(_FORBIDDEN))
def test_no_tracked_file_names_a_machine_or_an_index(what: str) -> None:
    pattern, found = re.compile(_FORBIDDEN[what]), []
    for name in _tracked():
        path = os.path.join(ROOT, name)
        if name.startswith(_EXEMPT) or os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            found += [
                f"{name}:{number}: {line.strip()[:80]}" for number, line in enumerate(file, 1) if pattern.search(line)
            ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a home folder", "see /home/alice/project"),
        ("root's folder", "PATH={}root/.local/bin".format("/")),
        ("a file address", "file:{}tmp/x".format("///")),
        ("an index address", "--index-url https://x"),
        ("an index address", "https://mirror.example/simple"),
        ("a working folder", "cd {}work/project".format("/")),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, text: str) -> None:
    assert re.search(_FORBIDDEN[what], text)


@pytest.mark.parametrize("text", ["a /home folder", "as root", "its /rootless/", "a simple/plain case", "$HOME/work/x"])
def test_the_patterns_leave_language_alone(text: str) -> None:
    assert [what for what, pattern in _FORBIDDEN.items() if re.search(pattern, text)] == []


def test_locks_hold_hashes_and_no_addresses() -> None:
    for name in ("test", "docs", "bench"):
        lock = _read(f"requirements/{name}.txt")
        assert "--hash=sha256:" in lock
        assert "://" not in lock
        pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#", "-"))]
        assert pins
        assert all("==" in line for line in pins)
