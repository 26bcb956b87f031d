"""A program of yours gets the notices as JSON on its standard input. No shell is involved.

The document is `{"version": 1, "summary": TEXT, "notices": [...]}`, as a webhook gets it. The program ends with 0
when it has told somebody; 64-78 except 75 (sysexits.h: its usage, its data, its configuration), 126 and 127 are for
good, anything else may work later. It runs in a process group of its own, which is killed when the time is up. It gets
PATH, HOME, LANG, TZ and the variables that `environment` names, and nothing else.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess

from memwarden.clock import SystemClock
from memwarden.errors import ConfigError, DeliveryError
from memwarden.tell.channels.posting import as_json
from memwarden.tell.channels.settings import Option, parse_texts
from memwarden.tell.channels.template import clean_line, document, subject
from memwarden.tell.channels.wire import Deadline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from memwarden.facts import Notice
    from memwarden.ports import Clock
    from memwarden.tell.channels.settings import Settings

__all__ = ["OPTIONS", "CommandChannel"]

_ALWAYS = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
# sysexits.h: 64 usage to 78 configuration; of them only 75 (EX_TEMPFAIL) asks to try again. 126 and 127 as the shell.
_FOR_GOOD = frozenset(range(64, 79)) - {75} | {126, 127}
_KEPT_BYTES = 4096
_SHOWN = 200
# How often it is looked whether the program ended: nobody waits for an alert to the hundredth of a second.
_LOOK_S = 0.05


def _parse_command(value: Any, *, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        mend = 'write a list: ["/usr/local/bin/page", "--urgent"]'
        raise ConfigError("is no list of a program and its arguments", where=where, mend=mend)
    return parse_texts(value, where=where)


OPTIONS = (
    Option(name="command", parse=_parse_command, about="the program and its arguments, as a list", required=True),
    Option(name="environment", parse=parse_texts, about="names of further variables that it gets", default=()),
)


class CommandChannel:
    """See the module."""

    kind = "command"

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.name = settings.name
        self._settings = settings
        self._clock: Clock = clock or SystemClock()
        names = (*_ALWAYS, *settings["environment"])
        self._environ = {name: settings.environ[name] for name in names if name in settings.environ}
        name = settings["command"][0]
        # It runs in another folder, and whoever made us may go to another one.
        self._name = os.path.abspath(os.path.join(settings.folder, name)) if os.sep in name else name

    @property
    def destination(self) -> tuple[object, ...]:
        """The program with its arguments."""
        return (self.kind, self._settings["command"])

    def check(self) -> tuple[str, ...]:
        """What is wrong with its settings, a program that is not there among it."""
        if self._program() is not None:
            return ()
        what = f"{self._settings['command'][0]} is no program that can be run"
        return (str(ConfigError(what, where=self._settings.where, mend="name one by its path")),)

    def _program(self) -> str | None:
        found: str | None = shutil.which(self._name, path=self._environ.get("PATH"))
        return found and os.path.abspath(found)

    def warm_up(self) -> None:
        """See that the program is there; it is not run. Raises DeliveryError."""
        for problem in self.check():
            raise DeliveryError(f"not sent, its settings are wrong: {problem}", recoverable=False)

    def close(self) -> None:
        """Nothing is kept."""

    def send(self, notices: Sequence[Notice], *, timeout_s: float) -> None:
        """Run it once for all of them. Raises DeliveryError."""
        self.warm_up()
        deadline = Deadline(self._clock, timeout_s)
        body = as_json({"version": 1, "summary": subject(notices), "notices": [document(each) for each in notices]})
        with _as_file(body) as stdin:
            try:
                process = subprocess.Popen(
                    [str(self._program()), *self._settings["command"][1:]],
                    stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    env=self._environ, process_group=0, cwd="/",
                )  # fmt: skip
            except OSError as error:
                raise self._failed(f"cannot be started: {error.strerror}", recoverable=True) from None
        said = self._wait(process, deadline)
        if process.returncode:
            words = clean_line(said.decode("utf-8", "replace"))[:_SHOWN]
            how = _how(process.returncode)
            raise self._failed(f"{how}: {words}" if words else how, recoverable=process.returncode not in _FOR_GOOD)

    def _wait(self, process: subprocess.Popen[bytes], deadline: Deadline) -> bytes:
        """Wait for its end; the last of what it said on stderr. Raises DeliveryError when the time is up.

        Not for the end of stderr: what it left running in the background may hold that open.
        """
        said = b""
        stderr = process.stderr
        assert stderr is not None
        try:
            poll = select.poll()
            poll.register(stderr, select.POLLIN)
            while True:
                ended = process.poll() is not None
                wait_s = 0.0 if ended else min(_LOOK_S, deadline.left())
                ready = poll.poll(wait_s * 1000)
                got = os.read(stderr.fileno(), _KEPT_BYTES) if ready else b""
                said = (said + got)[-_KEPT_BYTES:]
                if ended and not got:
                    return said
                if ready and not got:  # it closed its stderr: only its end is waited for
                    poll.unregister(stderr)
        except TimeoutError:
            raise self._failed("did not end in time and was killed", recoverable=True) from None
        finally:
            _kill(process)
            stderr.close()

    def _failed(self, what: str, *, recoverable: bool) -> DeliveryError:
        what = f"{self._settings['command'][0]} {self._settings.redact(what)}"
        return DeliveryError(what, where=self._settings.where, recoverable=recoverable)


def _as_file(body: bytes) -> Any:
    """The text as an open file without a name: a program that does not read cannot block us, as with a pipe."""
    if hasattr(os, "memfd_create"):
        file: Any = os.fdopen(os.memfd_create("memwarden-notice", os.MFD_CLOEXEC), "w+b")
    else:
        import tempfile

        file = tempfile.TemporaryFile()  # noqa: SIM115  whoever asked closes it
    file.write(body)
    file.flush()
    file.seek(0)
    return file


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started in its group, where it has not ended by itself; and bury it."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _how(code: int) -> str:
    return f"ended with {code}" if code >= 0 else f"was killed by signal {-code}"
