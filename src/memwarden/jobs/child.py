"""One part in a process of its own: dies with its runner, lives in its own memory cgroup, behind its own fence.

The runner forks it, or starts it anew (`python -m memwarden.jobs.child`, the order as its one argument) where it has
threads, which a fork would not bring along but whose locks it would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

from memwarden.errors import JobError, MissingExtraError, StoreError
from memwarden.facts import Fact
from memwarden.jobs.signals import handle_here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from memwarden.jobs.ledger import Ledger
    from memwarden.store import Store

__all__ = ["EXIT_NO_STORE", "EXIT_UNKNOWN", "Order"]

# Exit codes by which the runner knows that the part itself is not to blame; sysexits.h has none in this range.
EXIT_UNKNOWN = 113
EXIT_NO_STORE = 114
# What a fence leaves for stacks of threads and for pages that were mapped before and are touched now.
_FENCE_SLACK = 16 << 20
# The kernel takes the part before its runner; as `memwarden run` does with its command.
_OOM_SCORE_RAISE = 250


class Order(Fact):
    """What the runner asks of one child. `group` is the folder of its cgroup, "" for none; `hard_bytes` its limit."""

    text: str
    folder: str
    runner: int
    limit_bytes: int
    hard_bytes: int
    fence: str
    group: str = ""
    modules: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


_told_to_stop: list[int] = []


def enter(order: Order) -> None:
    """Make this process what the order says. Raises OSError where it cannot be held by its cgroup."""
    from memwarden.supervise.spawn import prctl

    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != order.runner:
        os._exit(1)  # it died before the kernel knew that we want to die with it
    os.setpgid(0, 0)  # what the terminal sends is for the runner, which drains; and all of it can be killed at once
    handle_here(signal.SIGTERM, lambda number, _frame: _told_to_stop.append(number))
    handle_here(signal.SIGINT)
    _raise_oom_score()
    if order.group:
        with open(f"{order.group}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))


def _raise_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            file.write(str(min(1000, int(file.read()) + _OOM_SCORE_RAISE)).encode())
    except (OSError, ValueError):
        return


def raise_fence(order: Order) -> None:
    """Refuse what would pass the hard limit: a MemoryError in the code that asks, before the kernel kills.

    By the difference to what is mapped and resident now; in `auto` not where an extension is loaded that aborts then.
    """
    import resource

    from memwarden.act.extensions import why_not_imported

    if order.fence == "off" or (order.fence == "auto" and why_not_imported(sys.modules)):
        return
    with open("/proc/self/statm", "rb") as file:
        words = file.read().split()
    page = os.sysconf("SC_PAGE_SIZE")
    resident, data = int(words[1]) * page, int(words[5]) * page
    soft = data + max(_FENCE_SLACK, order.hard_bytes - resident)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def work(order: Order, ledger: Ledger) -> int:
    """Do the part; the exit code."""
    from memwarden.jobs.definition import find
    from memwarden.jobs.local import LocalEngine
    from memwarden.jobs.port import Message
    from memwarden.jobs.worker import perform

    try:
        find(Message.decode(order.text).job)  # imports what it needs before the fence is measured
        raise_fence(order)
        perform(
            order.text, engine=LocalEngine(ledger), ledger=ledger, limit_bytes=order.limit_bytes,
            stop=lambda: bool(_told_to_stop),
        )  # fmt: skip
    except (JobError, MissingExtraError) as error:
        print(f"memwarden jobs: {error}", file=sys.stderr)
        return EXIT_UNKNOWN
    except StoreError as error:
        print(f"memwarden jobs: {error}", file=sys.stderr)
        return EXIT_NO_STORE
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # The job's own sys.exit(): it is in the ledger how it ended.
    return 0


def run_forked(order: Order, ledger: Ledger) -> NoReturn:
    """In a forked child: never returns and never raises, or a second runner would run on."""
    code = 1
    try:
        enter(order)
        code = work(order, ledger)
    except BaseException:  # noqa: BLE001  whatever it is, it ends here
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def main(words: list[str]) -> int:
    """In a child that was started anew."""
    from importlib import import_module

    from memwarden.jobs.ledger import Ledger
    from memwarden.store import Store

    found = json.loads(words[0])
    order = Order(**{**found, "modules": tuple(found["modules"]), "path": tuple(found["path"])})
    enter(order)
    sys.path[:] = [*order.path, *(each for each in sys.path if each not in order.path)]
    for module in order.modules:
        import_module(module)
    store: Store = Store(order.folder)
    if store.path is None:
        print(f"memwarden jobs: {store.degraded}", file=sys.stderr)
        return EXIT_NO_STORE
    return work(order, Ledger(store))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
