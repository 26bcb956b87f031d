"""Real HTTP traffic for the CRM on this machine: python traffic.py --port 8000 --seconds 30 --rate 60

Bounded in time, in requests and in connections. It talks to 127.0.0.1 and to nothing else.
"""

from __future__ import annotations

import argparse
import http.client
import random
import time
from collections import Counter
from threading import Event, Lock, Thread
from typing import Self

HOST = "127.0.0.1"
PATIENCE_S = 10.0  # an export takes about a second; a service under pressure is slower

# How often each kind of page is asked for, of 100.
MIX = {"contact": 60, "contacts": 12, "suggestions": 14, "search": 6, "dashboard": 8}
WORDS = ("renew", "invoice", "pallet", "training", "Thursday", "warehouse")


class Traffic:
    """Threads that ask for pages at a steady rate until told to stop, and count what came back.

    `rate` is in requests per second over all threads, `most` bounds the requests and `seconds` the time.
    """

    def __init__(
        self,
        port: int,
        *,
        contacts: int,
        rate: float = 60.0,
        seconds: float = 60.0,
        most: int = 100_000,
        threads: int = 4,
        seed: int = 1,
    ) -> None:
        self.port = port
        self.contacts = contacts
        self.answers: Counter[int] = Counter()  # by status; 0 counts those that got no answer
        self._pause_s = threads / rate
        self._ends_s = time.monotonic() + seconds
        self._numbers = iter(range(most))
        self._lock = Lock()
        self._stop = Event()
        self._threads = [
            Thread(target=self._drive, args=(random.Random(seed + n),), name=f"traffic-{n}", daemon=True)
            for n in range(threads)
        ]

    @property
    def ok(self) -> int:
        """Requests answered with 200 so far."""
        return self.answers[200]

    @property
    def failed(self) -> int:
        """Requests that got another answer, or none."""
        return self.answers.total() - self.ok

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Finish the requests in flight and come back."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until time or requests have run out."""
        for thread in self._threads:
            thread.join()

    def _drive(self, rng: random.Random) -> None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        due_s = time.monotonic() + rng.random() * self._pause_s
        while self._go_on(due_s):
            status = self._ask(connection, path_for(rng, self.contacts))
            with self._lock:
                self.answers[status] += 1
            due_s = max(due_s + self._pause_s, time.monotonic())  # late is late: no burst to catch up
        connection.close()

    def _go_on(self, due_s: float) -> bool:
        if self._stop.wait(max(0.0, min(due_s, self._ends_s) - time.monotonic())) or due_s >= self._ends_s:
            return False
        with self._lock:
            return next(self._numbers, None) is not None

    def _ask(self, connection: http.client.HTTPConnection, path: str) -> int:
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            return 0
        return answer.status


def path_for(rng: random.Random, contacts: int) -> str:
    """One page, chosen as the mix says."""
    kind = rng.choices(tuple(MIX), weights=tuple(MIX.values()))[0]
    contact_id = rng.randint(1, contacts)
    return {
        "contact": f"/contacts/{contact_id}",
        "contacts": f"/contacts?page={1 + contact_id // 50}",
        "suggestions": f"/contacts/{contact_id}/suggestions",
        "search": f"/calls/search?q={rng.choice(WORDS)}",
        "dashboard": "/",
    }[kind]


def main() -> None:
    """Drive and count from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--contacts", type=int, default=1200, help="ids to ask for, from 1 (default: 1200)")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=60.0, help="requests per second (default: 60)")
    given = parser.parse_args()
    with Traffic(given.port, contacts=given.contacts, rate=given.rate, seconds=given.seconds) as traffic:
        traffic.join()
    print(f"{traffic.ok} answered, {traffic.failed} not; by status: {dict(traffic.answers)}")


if __name__ == "__main__":
    main()
