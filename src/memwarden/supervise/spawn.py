"""Start the command: fork, prepare, exec; by hand, because `subprocess` costs 3 MiB.

The child is as if memwarden were not there (same terminal, process group, descriptors, signal mask and
dispositions), but for what is asked: its cgroup, a raised oom_score_adj so that the kernel prefers it to its
supervisor, death with its parent, and a handful of variables.
"""

from __future__ import annotations

import errno
import os
import signal

from memwarden.errors import SuperviseError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36

# Enough that the kernel takes the smallest child before a supervisor of 14 MiB in a container of 64 MiB
# (14 / 64 = 219 of 1000), and no more: the figure also counts when the whole machine is out of memory.
OOM_SCORE_RAISE = 250


class NotStartedError(SuperviseError):
    """The command could not be started; `exit_code` is 127 (not found), 126 (not executable) or 125."""

    def __init__(self, what: str, *, exit_code: int, where: str, mend: str | None = None) -> None:
        super().__init__(what, where=where, mend=mend)
        self.exit_code = exit_code


def prctl(option: int, value: int) -> None:
    """Set one process option, through ctypes: loaded here, in the child, its 0.8 MiB are gone at the exec."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")


def become_subreaper() -> None:
    """Orphans of the command become our children, not those of init. Survives an exec. Raises OSError."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Launch:
    """How to start the command, each time the same."""

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        environment: Mapping[str, str],
        mask: set[int],
        join: Callable[[], None] | None = None,
        data_limit_bytes: int | None = None,
    ) -> None:
        self.command = command
        self._environment = environment
        self._mask = mask
        self._join = join
        self._data_limit_bytes = data_limit_bytes
        self._supervisor = os.getpid()

    def start(self, *, fence_bytes: int | None = None) -> int:
        """The pid of the running command; `fence_bytes` is its first soft RLIMIT_DATA. Raises NotStartedError."""
        limits = [size for size in (self._data_limit_bytes, fence_bytes) if size is not None]
        report_end, child_end = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            raise NotStartedError(f"cannot fork ({error.strerror})", exit_code=125, where="memwarden run") from error
        if pid == 0:
            self._become(child_end, min(limits, default=None))
        os.close(child_end)
        report = _read_all(report_end)
        if report:
            os.waitpid(pid, 0)
            raise _failure(self.command[0], report)
        return pid

    def _become(self, report: int, data_limit_bytes: int | None) -> NoReturn:
        """In the child: never returns and never raises, or a second supervisor would run on."""
        stage, number = "set-up", 0
        try:
            self._prepare(data_limit_bytes)
            stage = "exec"
            os.execvpe(self.command[0], self.command, self._own_environment())
        except OSError as error:
            number = error.errno or errno.EIO
            os.write(report, f"{stage}:{number}:{error.filename or ''}".encode(errors="surrogateescape"))
        except BaseException as error:  # noqa: BLE001  whatever it is, it is told and ends here
            os.write(report, f"{stage}:0:{type(error).__name__}: {error}".encode(errors="replace"))
        finally:
            os._exit(125)

    def _prepare(self, data_limit_bytes: int | None) -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._supervisor:
            os._exit(125)  # it died before the kernel knew that we want to die with it
        _raise_oom_score()
        if self._join is not None:
            self._join()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them for itself
            signal.signal(number, signal.SIG_DFL)
        if data_limit_bytes is not None:
            _limit_data(data_limit_bytes)  # last: what comes before may need more than it leaves
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _own_environment(self) -> dict[str, str]:
        """With the pid that systemd's protocols compare (sd_listen_fds(3), sd_watchdog_enabled(3))."""
        environment = dict(self._environment)
        environment["MEMWARDEN_SUPERVISOR"] = str(self._supervisor)
        for name in ("LISTEN_PID", "WATCHDOG_PID"):
            if environment.get(name) == str(self._supervisor):
                environment[name] = str(os.getpid())
        return environment


def _raise_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            file.write(str(min(1000, int(file.read()) + OOM_SCORE_RAISE)).encode())
    except (OSError, ValueError):
        return  # a read-only /proc: the kernel then chooses by size, and the command is the larger


def _limit_data(size_bytes: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _read_all(descriptor: int) -> bytes:
    """Until the exec closes the other end. An empty text is success."""
    text = b""
    while part := os.read(descriptor, 4096):
        text += part
    os.close(descriptor)
    return text


def _failure(program: str, report: bytes) -> NotStartedError:
    stage, number_text, detail = report.decode(errors="replace").split(":", 2)
    number = int(number_text)
    reason = os.strerror(number) if number else detail
    if stage != "exec":
        place = f" at {detail}" if number and detail else ""
        return NotStartedError(
            f"the command could not be prepared: {reason}{place}", exit_code=125, where="memwarden run"
        )
    if number in (errno.ENOENT, errno.ENOTDIR):
        missing = "its interpreter was not found" if os.path.exists(program) else "command not found"
        return NotStartedError(
            missing, exit_code=127, where=program, mend="give the path of a program or a name on PATH"
        )
    mend = "start the file with a #! line" if number == errno.ENOEXEC else "give a file that you may execute"
    return NotStartedError(f"cannot be executed ({reason})", exit_code=126, where=program, mend=mend)
