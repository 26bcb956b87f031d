"""The seam between memory-aware jobs and whatever carries them: one engine-neutral core, thin adapters.

**Who does what.** The *ledger* (`jobs.ledger`, in the store) holds every job: its arguments, its parts (ranges of
keys), each part's cursor, attempts, deaths, results. A *message* only says "look at part N of job X": it carries no
rows, no arguments, no state, and losing or doubling one does no harm. The *engine* brings messages to worker
processes. `perform` does what a message asks for. `sweep` sends again what was lost.

**What an adapter gives** (`Engine`):

- `name`, and `can`: its `Abilities`.
- `send(text, *, queue, delay_s, priority, message_id)`: put one message (at most `MOST_BYTES` bytes of ASCII) where a
  worker will get it. It may block for a moment. It raises `JobError` (or an `OSError`) where the broker is away: then
  whoever sent it does the work itself, or `sweep` sends it later. `delay_s` is 0 unless `can.delay`; `priority` (0 the
  least, 9 the most) is passed as it is and may be ignored. `message_id` is another one each time, also where the same
  message is sent again.
- `statistics()`: what is waiting in each queue of the broker, as far as it can be asked; () where it cannot.

**What an adapter does in the worker**, when a message arrives:

    ending = perform(text, engine=engine, ledger=ledger, stop=asked_to_stop)

and then acknowledges the message, whatever `ending` says (acknowledge late, after `perform`: a worker that dies in
between loses nothing either way). `perform` has written the ledger and has sent all messages that follow from it.
It returns an `Ending`; `what` is

- "done": the part is over. "split": so is this attempt: it became parts of its own, which were sent.
- "again": it stopped at a safe point, for memory or because `stop()` said so; its rest was sent.
- "later": the part failed or is not due yet; it was sent with a delay, or `sweep` sends it when it is due.
- "failed": the part is given up. Its job fails when its other parts are over.
- "cancelled": the job was cancelled.
- "dropped": there was nothing to do: an old or a doubled message, or another worker has the part.

Where `ending.fresh` is true this process holds memory that it will not give back: an adapter whose processes live on
must end this one after acknowledging (Celery: let the pool replace the child; Dramatiq: leave the worker process),
before it takes the next message.

`perform` raises only: `JobError`, for a message that cannot be read or a job that is not known in this worker (reject
it, without requeueing: the ledger still has the part); `StoreError`, where the ledger cannot be reached (let the
engine deliver it again); and KeyboardInterrupt and SystemExit, after the ledger was written. What a job's own code
raises never leaves it.

`stop` is asked at every safe point: return true when the worker was told to end (SIGTERM drain).

**Once per machine, every few seconds**: `sweep(engine, ledger, watch)`, with a `Watch` that lives as long as the
process that calls it. It sends what is due and unsent (a broker that was away), sends again what was sent and never
taken (a broker that lost it), and takes parts back from workers that died. Workers' clocks are never compared: a
worker is dead when its pid on this machine is gone, or when its heartbeat did not move for `LEASE_S` by the clock of
whoever watches (ten times as long where its process can be seen to live).

**When an adapter sees a worker die** (RQ's `handle_work_horse_killed`, Celery's WorkerLostError) it tells at once:

    for claimed, worker in ledger.claims_of(pid):
        ledger.died(claimed, kind=worker.death(status), peak_bytes=..., text=...)

`status` is the exit code, or the negated signal, None where it is not known; `death` gives a kind of `DEATHS`, and
tells a SIGKILL that cannot have been the kernel's from one that may. Then `sweep` has nothing to wait for.

**Submitting**: `submit(job, arguments, engine=engine, ledger=ledger, ...)` writes the ledger and sends the first
message. An adapter offers it under whatever name its users expect.

How the parent learns that all is done: a job is over when none of its parts is open; the ledger decides that in the
transaction that closes the last part. A job with a `reduce` function gets one more part then, which folds the parts'
results in the order of their keys, one by one, and writes the job's result. `ledger.status(root)` and
`ledger.result(root)` read it; whoever waits for it asks again.

Whoever writes an adapter runs the contract suite of `tests/jobs/contract.py` against it.
"""

from __future__ import annotations

import json

from memwarden.errors import JobError
from memwarden.facts import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

__all__ = ["DEATHS", "LEASE_S", "MOST_BYTES", "Abilities", "Ending", "Engine", "Message", "QueueCount"]

# A message is never longer. Brokers take more; a message that grows with the data would not stay below any bound.
MOST_BYTES = 1024
# Keys are in it as long as it is no longer than this: what brokers wrap around it is as much again, and a kilobyte is
# for all of it.
KEYS_BYTES = 256
KEYS = ("low", "high")
VERSION = 1
# A worker whose heartbeat stands still for so long, by the watcher's own monotonic clock, is taken for dead. It beats
# every quarter of it. Shorter brings parts back sooner; a machine that swaps or is suspended then loses them in vain.
LEASE_S = 60.0
# How a worker may end while it has a part. `killed` is a SIGKILL that is known not to be the kernel's; `lost` is a
# worker of which nothing more is known.
DEATHS = ("soft_stop", "memory_error", "oom_kill", "crash", "killed", "timeout", "lost")


class Abilities(Fact):
    """What an engine can do. `fresh`: every message gets a process of its own, so that memory ends with it."""

    delay: bool = False
    priority: bool = False
    fresh: bool = False
    counts: bool = False


class QueueCount(Fact):
    """One queue of the broker: messages that wait, and that workers have (None where it does not say)."""

    queue: str
    waiting: int | None
    taken: int | None = None


class Message(Fact):
    """One part of one job, to be looked at. `low` and `high` (JSON texts) are for people who look into queues."""

    job: str
    root: str
    part: int
    attempt: int
    low: str | None = None
    high: str | None = None

    @property
    def id(self) -> str:
        """The same for the same part and attempt."""
        return f"{self.root}-{self.part}-{self.attempt}"

    def encode(self) -> str:
        """ASCII, at most MOST_BYTES; keys that are long are left out (the ledger has them). Raises JobError."""
        whole = {"memwarden": VERSION, **self.as_dict()}
        text = json.dumps(whole, separators=(",", ":"))
        if len(text) > KEYS_BYTES:
            text = json.dumps({name: whole[name] for name in whole if name not in KEYS}, separators=(",", ":"))
        if len(text) > MOST_BYTES:
            raise JobError(
                f"its name makes a message of {len(text)} bytes", where=f"job {self.job[:60]!r}...",
                mend="give it a name of at most 200 characters",
            )  # fmt: skip
        return text

    @classmethod
    def decode(cls, text: str | bytes) -> Message:
        """What `encode` made. Raises JobError for everything else."""
        try:
            found = json.loads(text)
            if found["memwarden"] != VERSION:
                raise JobError(
                    f"is of version {found['memwarden']!r}, known is {VERSION}", where="message",
                    mend="update the workers",
                )  # fmt: skip
            message = cls(**{name: found[name] for name in cls._fields if name not in KEYS or name in found})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobError(
                f"is none of memwarden's ({type(error).__name__})", where="message",
                mend="keep the queues of memory-aware jobs for them",
            ) from error  # fmt: skip
        if not (
            isinstance(message.job, str) and isinstance(message.root, str)
            and type(message.part) is int and type(message.attempt) is int
        ):  # fmt: skip
            raise JobError("has fields of the wrong type", where="message", mend="send it by submit()")
        return message


class Ending(Fact):
    """What came of a message; see the module's text. `fresh`: this process should not take another message."""

    what: str
    fresh: bool = False
    delay_s: float = 0.0
    text: str = ""


class Engine(Protocol):
    """What carries messages to workers; see the module's text."""

    @property
    def name(self) -> str:
        """The same in every process."""

    @property
    def can(self) -> Abilities:
        """What it can do."""

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """Put one message into a queue. Raises JobError or OSError where it cannot be sent now."""

    def statistics(self) -> tuple[QueueCount, ...]:
        """What waits in the broker."""
