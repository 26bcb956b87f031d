"""A process that forks a child for each part: for engines whose own processes live on, and have threads.

A fork takes along the one thread that calls it and the locks of all others, so a process with threads must not fork
what then works on. The forge is forked before there are any, has none itself, and touches no broker. A thread hands it
a message's text with one end of a socket; the forge forks a child, which performs it and says on that socket what came
of it. When the child died the forge says so, and writes its death into the ledger, with its peak. So memory ends with
every part, and a kill of one hits nobody else. Beside that it keeps the ledger (`keeper`).

When its parent is gone, or says so, the children stop at their next safe point and then it ends. Linux only.
"""

from __future__ import annotations

import gc
import json
import logging
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING

from memwarden.errors import JobError, StoreError
from memwarden.jobs import perform
from memwarden.jobs.port import Message, QueueCount
from memwarden.jobs.signals import handle_here
from memwarden.supervise.spawn import prctl

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from memwarden.integrations.keeper import Gate, Keeper
    from memwarden.jobs.ledger import Ledger
    from memwarden.jobs.port import Engine

__all__ = ["Forge", "ForkedEngine"]

_log = logging.getLogger("memwarden.jobs")
# The worker is told by them, and tells the forge and its children in its own way.
_NOT_FOR_US = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PDEATHSIG = 1  # PR_SET_PDEATHSIG, include/uapi/linux/prctl.h
TICK_S = 0.5
SEND_S = 15  # a broker that does not answer for so long is away
PUT_OFF_S = 1.0  # a part for which there was no process
COUNTING_S = 3  # what waits in it is only counted, so it is not waited for
MOST_COUNTED = 40  # names of 100 characters, 12 bytes each at worst: within the 64 KiB of a pipe
_MOST_BYTES = 8192  # a message is at most a kilobyte, what is said of it 500 characters of up to 12 as JSON


class ForkedEngine:
    """An engine that sends from a child: whoever forks must not hold a connection that its children would share."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    name = property(lambda self: self._engine.name)
    can = property(lambda self: self._engine.can)

    def statistics(self) -> tuple[QueueCount, ...]:
        """What waits in the broker; () where it cannot be asked."""
        said, its = os.pipe()
        try:
            done = self._in_child(lambda: os.write(its, _as_text(self._engine.statistics())), COUNTING_S)
        finally:
            os.close(its)
            with open(said, "rb") as file:
                text = file.read()
        return tuple(QueueCount(queue=row[0], waiting=row[1], taken=row[2]) for row in json.loads(text)) if done else ()

    def send(self, text: str, *, queue: str, delay_s: float = 0.0, priority: int = 0, message_id: str = "") -> None:
        """Send one message. Raises JobError."""
        words: dict[str, Any] = {"queue": queue, "delay_s": delay_s, "priority": priority, "message_id": message_id}
        if not self._in_child(lambda: self._engine.send(text, **words), SEND_S):
            raise JobError("could not be sent", where=f"queue {queue!r}", mend="see that the broker runs")

    def _in_child(self, work: Callable[[], object], most_s: int) -> bool:
        """Whether it was done within that time."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(most_s)
                work()
                code = 0
            except (JobError, OSError) as error:
                _log.warning("%s: %s", self._engine.name, error)
            except BaseException:  # noqa: BLE001  this child ends here, whatever it was, and says what
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Forge:
    """One for each worker process. `make` makes, in the forge, what keeps the ledger."""

    def __init__(
        self, engine: Engine, ledger: Callable[[], Ledger], make: Callable[[Engine], tuple[Keeper, Gate | None]]
    ) -> None:
        self._engine, self._ledger_of, self._make = engine, ledger, make
        self._word = mmap.mmap(-1, mmap.PAGESIZE)  # anonymous and shared: the parent writes, the children read
        self._ours: socket.socket | None = None
        self.pid = 0

    # --- in the worker process -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Fork it. Only where the process has no other thread yet."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._be(its, worker)
        its.close()
        self.pid, self._ours = pid, ours

    def run(self, text: str) -> dict[str, str]:
        """Have a part performed; what came of it. Waits for it. Raises JobError where the forge is gone."""
        one, other = socket.socketpair()
        with one:
            try:
                with other:
                    if self._ours is None:
                        raise OSError("not started")  # noqa: TRY301  one way out for all that fails here
                    socket.send_fds(self._ours, [text.encode()], [other.fileno()])
                said = one.recv(_MOST_BYTES)
            except OSError as error:
                raise JobError(f"the forge is gone ({error})", where="worker", mend="restart it") from error
        if not said:
            if self._lives():
                return self._put_off(text, "the forge did not get it: too many files are open")
            raise JobError("the forge is gone", where="worker", mend="restart it")
        found: dict[str, str] = json.loads(said)
        return found

    def _lives(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _put_off(self, text: str, why: str) -> dict[str, str]:
        """It cannot be begun now, through no fault of its own: a sweep sends it again in a moment."""
        _log.warning("a part cannot be begun and is sent again: %s", why)
        try:
            self._ledger_of().postpone(Message.decode(text), PUT_OFF_S, why)
        except JobError as error:
            return {"refused": str(error)[:500]}
        except StoreError as error:
            return {"unreachable": str(error)[:500]}
        return {"what": "later", "text": why}

    def drain(self) -> None:
        """What runs stops at its next safe point."""
        self._word[0] = 1

    def close(self) -> None:
        """End it, once its children have stopped."""
        self.drain()
        if self._ours is not None:
            self._ours.close()
            self._ours = None
            os.waitpid(self.pid, 0)

    # --- in the forge --------------------------------------------------------------------------------------------

    def _be(self, requests: socket.socket, worker: int) -> NoReturn:
        """Never returns: behind it is the program that forked it."""
        try:
            for number in _NOT_FOR_US:
                signal.signal(number, signal.SIG_IGN)
            gc.freeze()  # what is there now stays shared with the children
            self._serve(requests, worker)
        except BaseException:  # noqa: BLE001  whatever it is, it ends here
            traceback.print_exc()
        finally:
            os._exit(0)

    def _serve(self, requests: socket.socket, worker: int) -> None:
        keeper, gate = self._make(ForkedEngine(self._engine))
        children: dict[int, tuple[int, socket.socket]] = {}  # a pidfd: the pid, and where to say what came of it
        open_, shut = True, False
        while open_ or children:
            waiting = [*children]
            if open_ and (not shut or self._word[0]):
                waiting.append(requests.fileno())
            for ready in _ready(waiting):
                if ready != requests.fileno():
                    self._reap(ready, *children.pop(ready), keeper)
                elif (request := _next(requests)) is None:
                    open_ = False
                else:
                    children.update(self._begin(*request, requests, keeper))
            keeper.tick()
            if gate is not None:
                was, shut = shut, gate.look()
                if shut != was:
                    words = "no more parts are begun until it is NORMAL" if shut else "parts are begun again"
                    _log.warning("%s (%s)", words, gate.words)
            if os.getppid() != worker:  # also where it was gone before this loop began
                self._word[0], open_ = 1, False
        keeper.close()

    def _begin(
        self, text: str, reply: socket.socket | None, requests: socket.socket, keeper: Keeper
    ) -> dict[int, tuple[int, socket.socket]]:
        """The child that has it, as `_serve` keeps them; none where none can be had, which its worker is told."""
        if reply is None:  # this process has no number left for it; its worker sees that nobody has the other end
            return {}
        pid = 0
        try:
            pid = self._fork(text, reply, requests)
            return {os.pidfd_open(pid): (pid, reply)}
        except OSError as error:  # there may be one when others have ended
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                keeper.gone(pid, -signal.SIGKILL)
            _say(reply, self._put_off(text, f"no process can be had ({error.strerror})"))
            reply.close()
            return {}

    def _fork(self, text: str, reply: socket.socket, requests: socket.socket) -> int:
        forge = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                prctl(_PDEATHSIG, signal.SIGKILL)
                for number in _NOT_FOR_US:
                    handle_here(number)
                if os.getppid() == forge:
                    requests.close()
                    code = self._perform(text, reply)
            except BaseException:  # noqa: BLE001  a child that fails ends, whatever it was, and never goes on as its parent
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return pid

    def _perform(self, text: str, reply: socket.socket) -> int:
        try:
            ending = perform(text, engine=self._engine, ledger=self._ledger_of(), stop=lambda: self._word[0] != 0)
            said = {"what": ending.what, "text": ending.text[:500]}
        except JobError as error:
            said = {"refused": str(error)[:500]}
        except StoreError as error:
            said = {"unreachable": str(error)[:500]}
        reply.send(json.dumps(said).encode())
        return 0

    def _reap(self, pidfd: int, pid: int, reply: socket.socket, keeper: Keeper) -> None:
        _, status, usage = os.wait4(pid, 0)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            keeper.gone(pid, code, peak_bytes=usage.ru_maxrss * 1024)
            _say(reply, {"died": str(code)})
        reply.close()


def _say(reply: socket.socket, said: dict[str, str]) -> None:
    try:
        reply.send(json.dumps(said).encode(), socket.MSG_NOSIGNAL)
    except OSError as error:
        _log.debug("nobody waits for it any more: %s", error)


def _ready(descriptors: list[int]) -> list[int]:
    """Those that have something, after TICK_S at most. poll(2), since select(2) ends at descriptor 1023."""
    poll = select.poll()
    for each in descriptors:
        poll.register(each, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(TICK_S * 1000)]


def _as_text(counts: tuple[QueueCount, ...]) -> bytes:
    """Short enough for a pipe to take it at once."""
    return json.dumps([(each.queue[:100], each.waiting, each.taken) for each in counts[:MOST_COUNTED]]).encode()


def _next(requests: socket.socket) -> tuple[str, socket.socket | None] | None:
    """A text and where to answer (None where that did not come through); None when the worker has closed its end."""
    text, descriptors, _, _ = socket.recv_fds(requests, _MOST_BYTES, 1)
    if not text:
        return None
    return text.decode(), socket.socket(fileno=descriptors[0]) if descriptors else None
