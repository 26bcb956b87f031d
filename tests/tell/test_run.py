"""`memwarden run` with alerts: a killed command is told by a process of its own, with its last words, once."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.supervise.processes import HOG, no_cgroup_reason, run

from .test_kills import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def configure(folder: Path, receiver: Receiver, service: str = 'service = "shop"') -> None:
    host, port = receiver.server.server_address[:2]
    (folder / "memwarden.toml").write_text(
        f'[alerts]\n{service}\n[alerts.channels.hook]\nkind = "webhook"\nurl = "http://{host!s}:{port}/"\n'
    )


LAST_WORDS = """
import os
from memwarden import Warden
with open("valve", "w") as file:
    file.write("EMERGENCY")
warden = Warden(pressure_file="valve", relieve=False, interval="20ms")
warden.start()
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_command_left_is_delivered_after_its_death(tmp_path: Path, receiver: Receiver) -> None:
    configure(tmp_path, receiver)
    done = run("--quiet", "--", sys.executable, "-c", LAST_WORDS, cwd=tmp_path)
    assert done.returncode == 137, done.stderr
    whats = [(each["kind"], each["what"], each["level"]) for each in receiver.got]
    assert whats == [("high_usage", "raised", "emergency"), ("high_usage", "recovered", "emergency")]
    assert "is gone" in receiver.got[1]["text"]


LIVES = """
import os, time
from memwarden import Warden
with open("valve", "w") as file:
    file.write("CRITICAL")
warden = Warden(pressure_file="valve", relieve=False, interval="20ms")
warden.start()
end = time.monotonic() + 2.5
while time.monotonic() < end:
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_state_that_outlasts_the_lives_of_a_command_is_one_and_escalates(tmp_path: Path, receiver: Receiver) -> None:
    configure(tmp_path, receiver, 'service = "shop"\nraise_for = "0s"\ngroup_wait = "0s"\nescalation = ["4s"]')
    host, port = receiver.server.server_address[:2]
    with (tmp_path / "memwarden.toml").open("a") as file:
        file.write(f'[alerts.channels.lead]\nkind = "webhook"\ntier = 1\nurl = "http://{host!s}:{port}/lead"\n')
    words = ("--quiet", "--restart", "on-failure", "--max-restarts", "3", "--restart-delay", "10ms")
    done = run(*words, "--", sys.executable, "-c", LIVES, cwd=tmp_path)
    assert done.returncode == 137, done.stderr
    told = [each["what"] for each in receiver.got if each["kind"] == "high_usage"]
    assert told[:2] == ["raised", "escalated"]
    assert told.count("raised") == 1
    assert sorted(told[2:]) == ["recovered", "recovered"]  # of the one and of the other channel, when no life follows


@pytest.mark.kernel
@pytest.mark.parametrize(("service", "target"), [('service = "shop"', "shop"), ("", "hog.py")])
def test_a_kernel_kill_is_told_once_with_limit_and_peak(
    tmp_path: Path, receiver: Receiver, service: str, target: str
) -> None:
    if no_cgroup_reason():
        pytest.skip(no_cgroup_reason())
    configure(tmp_path, receiver, service)
    (tmp_path / "hog.py").write_text(HOG)
    words = (
        "--limit",
        "64M",
        "--fence",
        "off",
        "--restart",
        "on-oom",
        "--max-restarts",
        "1",
        "--restart-delay",
        "10ms",
    )
    done = run(*words, "--", sys.executable, "hog.py", cwd=tmp_path)
    assert done.returncode == 137, done.stderr
    first, *_ = receiver.got
    assert (first["kind"], first["level"], first["target"]) == ("oom_kill", "emergency", target)
    assert first["details"]["limit_bytes"] == 64 << 20
    assert len({each["delivery_id"] for each in receiver.got}) == len(receiver.got)
    # The second death is within the throttle of the first: it waits to be told with how many there were.
    assert len(receiver.got) == 1


def test_a_table_that_cannot_be_used_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "memwarden.toml").write_text('[alerts]\nchanels = "x"\n')
    done = run("--", "touch", "started", cwd=tmp_path)
    assert (done.returncode, done.stdout, os.path.exists(tmp_path / "started")) == (2, "", False)
    assert done.stderr == (
        "memwarden: memwarden.toml: alerts: there is no setting 'chanels'; did you mean 'channels'?\n"
    )


def test_without_alerts_nothing_is_started(tmp_path: Path) -> None:
    done = run("--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)", cwd=tmp_path)
    assert done.returncode == 137
    state = os.environ["MEMWARDEN_DIR"]
    assert not os.path.exists(os.path.join(state, "memwarden.db"))
