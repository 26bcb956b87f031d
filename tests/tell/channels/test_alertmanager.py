"""Against a real Alertmanager: what is raised is active, what recovered is not, and it notifies a receiver of both."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.clock import SystemClock
from memwarden.errors import DeliveryError
from memwarden.facts import Level
from tests.tell.channels.conftest import notice
from tests.tell.channels.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from memwarden.ports import Channel
    from tests.tell.channels.receivers import Receiver

pytestmark = pytest.mark.server

# Read when this is imported: the fixture that keeps settings of the user's out of the tests takes them away.
GIVEN = os.environ.get("MEMWARDEN_TEST_ALERTMANAGER")
PATIENT_S = 30.0
_CONFIG = """
route:
  receiver: here
  group_by: [alertname, target, key]
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 4h
receivers:
  - name: here
    webhook_configs:
      - url: {url}
        send_resolved: true
"""


class Alertmanager:
    def __init__(self, folder: Path, url: str) -> None:
        program = GIVEN or shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        if program is None:
            pytest.skip("prometheus-alertmanager is not installed here")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        (folder / "am.yml").write_text(_CONFIG.format(url=url))
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, f"--config.file={folder}/am.yml", f"--storage.path={folder}/data", "--cluster.listen-address=",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        try:
            wait_for(self._is_ready)
        except BaseException:
            self.close()
            raise

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, "it ended"
        try:
            return self.get("/-/ready")[0] == 200
        except OSError:
            return False

    def get(self, target: str) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def active(self) -> list[dict[str, str]]:
        """The labels of every alert that is on."""
        return [each["labels"] for each in json.loads(self.get("/api/v2/alerts")[1])]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture
def told(receiver: Callable[..., Receiver]) -> Receiver:
    return receiver()


@pytest.fixture
def manager(told: Receiver, tmp_path: Path) -> Iterator[Alertmanager]:
    found = Alertmanager(tmp_path, f"{told.url}/hook")
    yield found
    found.close()


def test_raised_changed_and_recovered(manager: Alertmanager, told: Receiver, make: Callable[..., Channel]) -> None:
    channel = make("alertmanager", url=f"http://127.0.0.1:{manager.port}")
    channel.warm_up()
    now = SystemClock().wall()
    channel.send([notice(level=Level.WARNING, unix_s=now)], timeout_s=PATIENT_S)
    wait_for(lambda: [each["severity"] for each in manager.active()] == ["warning"])
    channel.send([notice(level=Level.EMERGENCY, what="changed", unix_s=now, title="caf\u00e9 <&> \ud800")],
                 timeout_s=PATIENT_S)  # fmt: skip
    wait_for(lambda: [each["severity"] for each in manager.active()] == ["emergency"])
    wait_for(lambda: "emergency" in severities(told))
    channel.send([notice(level=Level.NORMAL, what="recovered", unix_s=now)], timeout_s=PATIENT_S)
    wait_for(lambda: manager.active() == [])
    wait_for(lambda: any(each["status"] == "resolved" for each in bodies(told)))
    assert severities(told) == {"warning", "emergency"}  # and nobody reads of the end of what never was
    assert bodies(told)[0]["alerts"][0]["annotations"]["delivery_id"] == "delivery-1"


def severities(told: Receiver) -> set[str]:
    """Of all alerts that it told."""
    return {alert["labels"]["severity"] for each in bodies(told) for alert in each["alerts"]}


def bodies(told: Receiver) -> list[Any]:
    return [json.loads(each.body) for each in told.requests]


def test_the_same_again_is_one_alert(manager: Alertmanager, make: Callable[..., Channel]) -> None:
    channel = make("alertmanager", url=f"http://127.0.0.1:{manager.port}")
    for _ in range(3):
        channel.send([notice(unix_s=SystemClock().wall())], timeout_s=PATIENT_S)
    wait_for(lambda: len(manager.active()) == 1)


def test_it_takes_a_hostile_notice(manager: Alertmanager, make: Callable[..., Channel]) -> None:
    from tests.tell.channels.test_contract import HOSTILE

    channel = make("alertmanager", url=f"http://127.0.0.1:{manager.port}")
    channel.send([notice(unix_s=SystemClock().wall(), **HOSTILE)], timeout_s=PATIENT_S)
    wait_for(lambda: len(manager.active()) == 1)


def test_a_wrong_path_is_found_by_warming_up(manager: Alertmanager, make: Callable[..., Channel]) -> None:
    with pytest.raises(DeliveryError, match="404"):
        make("alertmanager", url=f"http://127.0.0.1:{manager.port}/nowhere").warm_up()
