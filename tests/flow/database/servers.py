"""PostgreSQL and MariaDB for the tests: those of MEMWARDEN_TEST_..._URL, or private ones on a free port."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Read when this is imported: the fixture that keeps settings of the user's out of the tests takes them away.
GIVEN = {
    "postgresql": os.environ.get("MEMWARDEN_TEST_POSTGRES_URL"),
    "mariadb": os.environ.get("MEMWARDEN_TEST_MARIADB_URL"),
}
START_S = 60.0


def _program(*names: str) -> str:
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found:
            return os.path.realpath(found) if name in ("postgres", "initdb") else found
        packaged = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
        if packaged:
            return packaged[-1]
    pytest.skip(f"{names[0]} is not installed here")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _user() -> str | None:
    """Neither server starts as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "mysql", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="memwarden-server-")
    user = _user()
    if user is not None:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _server(command: list[str], url: str, folder: str) -> Iterator[str]:
    with open(os.path.join(folder, "log"), "wb") as log:
        process = subprocess.Popen(
            command, user=_user(), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_plain()
        )
    try:
        _wait(url, process, os.path.join(folder, "log"))
        yield url
    finally:
        process.kill()  # nothing of it is kept
        process.wait()


def _plain() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _wait(url: str, process: subprocess.Popen[bytes], log: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    end, turn = time.monotonic() + START_S, threading.Event()
    while True:
        try:
            with engine.connect():
                return
        except sa.exc.DBAPIError:
            if process.poll() is not None or time.monotonic() > end:
                with open(log, encoding="utf-8", errors="replace") as file:
                    raise RuntimeError(f"the server did not start: {file.read()[-2000:]}") from None
            turn.wait(0.05)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    given = GIVEN["postgresql"]
    if given:
        yield sa.make_url(given).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        return
    postgres, initdb = _program("postgres"), _program("initdb")
    with _folder() as folder:
        data, port = os.path.join(folder, "data"), _free_port()
        subprocess.run(
            [initdb, "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            user=_user(), cwd=folder, check=True, stdout=subprocess.DEVNULL, env=_plain(),
        )  # fmt: skip
        settings = {"listen_addresses": "127.0.0.1", "fsync": "off", "max_connections": "50", "shared_buffers": "64MB"}
        command = [postgres, "-D", data, "-p", str(port), "-k", folder]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with _server(command, f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres", folder) as url:
            yield url


@contextlib.contextmanager
def mariadb() -> Iterator[str]:
    given = GIVEN["mariadb"]
    if given:
        yield sa.make_url(given).set(drivername="mysql+pymysql").render_as_string(hide_password=False)
        return
    server, install = _program("mariadbd", "mysqld"), _program("mariadb-install-db", "mysql_install_db")
    with _folder() as folder:
        data, port = os.path.join(folder, "data"), _free_port()
        subprocess.run(
            [install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal",
             "--skip-test-db", "--skip-name-resolve"],
            user=_user(), cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_plain(),
        )  # fmt: skip
        command = [
            server, "--no-defaults", f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1",
            f"--socket={folder}/s", f"--pid-file={folder}/pid", "--skip-name-resolve", "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin", "--character-set-server=utf8mb4",
            "--max-allowed-packet=64M",
        ]  # fmt: skip
        with _server(command, f"mysql+pymysql://root@127.0.0.1:{port}/mysql?charset=utf8mb4", folder) as url:
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            with engine.begin() as connection:
                connection.exec_driver_sql("CREATE DATABASE tests CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
            yield url.replace("/mysql?", "/tests?")


SERVERS: dict[str, Callable[[], contextlib.AbstractContextManager[str]]] = {
    "postgresql": postgresql,
    "mariadb": mariadb,
}
