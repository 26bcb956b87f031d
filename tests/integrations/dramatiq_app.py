"""The Dramatiq broker of the tests: for the test process, and for `dramatiq tests.integrations.dramatiq_app`."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
import sqlalchemy  # noqa: F401  as an app has what its jobs need: what is imported here no child imports again
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from memwarden.integrations.dramatiq import Jobs


def pika_url(url: str) -> str:
    """Kombu writes the virtual host "/" as it is, pika quoted."""
    return url.removesuffix("//") + "/%2F" if url.endswith("//") else url


def make(url: str, folder: str, **more: Any) -> Jobs:
    """A broker of that URL, with its ledger in this folder."""
    broker: dramatiq.Broker
    if url.startswith("redis"):
        broker = RedisBroker(url=url)  # type: ignore[no-untyped-call]  # Dramatiq's
    else:
        broker = RabbitmqBroker(url=pika_url(url), confirm_delivery=True)
    more.setdefault("pressure", False)
    return Jobs(broker, folder=folder, sweep_s=0.5, resend_s=3.0, **more)


if os.environ.get("MEMWARDEN_TEST_BROKER"):
    pressure = None if os.environ.get("MEMWARDEN_TEST_PRESSURE") else False
    ledger = os.environ.get("MEMWARDEN_TEST_LEDGER")
    jobs = make(os.environ["MEMWARDEN_TEST_BROKER"], os.environ["MEMWARDEN_DIR"], pressure=pressure, ledger=ledger)
    dramatiq.set_broker(jobs.broker)
