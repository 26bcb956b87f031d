"""Under CI=true a skip fails the run unless tests/skips.txt names its reason: a test that never runs proves nothing."""

from __future__ import annotations

import os
import signal
import threading

import pytest

_SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
_LIST = os.path.join(os.path.dirname(__file__), "skips.txt")


def _accepted() -> list[str]:
    with open(_LIST, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def pytest_configure() -> None:
    """What a shell runs in the background, or under nohup, has these ignored, and so would all that the tests start."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return
    accepted = _accepted()
    reasons = {str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])}
    unknown = sorted(reason for reason in reasons if not any(each in reason for each in accepted))
    if unknown and exitstatus == 0:
        reporter.write_line(f"\nskips that tests/skips.txt does not name: {'; '.join(unknown)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def own_state_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black boxes of a test go into a folder of its own, not into the user's; no setting of the user's leaks in."""
    for name in [name for name in os.environ if name.startswith(("MEMWARDEN_", "MEMORY_"))]:
        if name not in ("MEMWARDEN_SOAK", "MEMWARDEN_UML"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MEMWARDEN_DIR", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("PYTHONPATH", _SOURCE)  # for the programs that tests start without site-packages
