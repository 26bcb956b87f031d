from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.facts import Level, Notice
from memwarden.tell.channels import build
from tests.tell.channels.receivers import Authority, MailServer, Receiver, authority_in, closing_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from memwarden.ports import Channel, Clock

WHERE = "memwarden.toml: alerts.channels"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def keep() -> Iterator[Callable[[Any], Any]]:
    """Closes at the end what it is given."""
    with closing_all() as found:
        yield found


@pytest.fixture
def receiver(keep: Callable[[Any], Any]) -> Callable[..., Receiver]:
    return lambda *answers, **options: keep(Receiver(*answers, **options))


@pytest.fixture
def mail_server(keep: Callable[[Any], Any]) -> Callable[..., MailServer]:
    return lambda **options: keep(MailServer(**options))


@pytest.fixture
def make(keep: Callable[[Any], Any], tmp_path: Path) -> Callable[..., Channel]:
    """A channel from its table; secrets by name go through environment variables."""

    def of(kind: str, *, secrets: dict[str, str] | None = None, clock: Clock | None = None, **table: Any) -> Channel:
        environ = {"PATH": os.environ["PATH"]}
        for name, value in (secrets or {}).items():
            table[f"{name}_env"] = f"SECRET_{name.upper()}"
            environ[f"SECRET_{name.upper()}"] = value
        own = {"kind": kind, **table}
        (found,) = build({"ops": own}, where=WHERE, environ=environ, folder=str(tmp_path), clock=clock)
        channel: Channel = keep(found.channel)
        return channel

    return of


def notice(number: int = 1, **changes: Any) -> Notice:
    """One notice; the number makes its ids."""
    fields: dict[str, Any] = {
        "delivery_id": f"delivery-{number}",
        "key": f"api/high_usage/{number}",
        "kind": "high_usage",
        "what": "raised",
        "level": Level.CRITICAL,
        "title": f"api uses 91 % of its memory ({number})",
        "text": "466 MiB of 512 MiB in use",
        "unix_s": 1_800_000_000.0,
        "target": "api",
        "host": "node-7",
        "details": {"used_bytes": 466 << 20, "limit_bytes": 512 << 20, "holders": ["cache 200 MiB", "pool 90 MiB"]},
    }
    return Notice(**{**fields, **changes})
