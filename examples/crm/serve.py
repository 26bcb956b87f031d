"""Run the CRM with uvicorn: python serve.py [--port 8000]. Port 0 takes a free one; it says which."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading

import uvicorn

# The whole stack of a thread counts against RLIMIT_DATA the moment it starts: 8 MiB each by default.
STACK_BYTES = 512 * 1024


def main() -> None:
    """Listen, say where, and serve until told to stop."""
    parser = argparse.ArgumentParser(description="A small CRM, guarded by memwarden.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    port = parser.parse_args().port
    threading.stack_size(STACK_BYTES)
    try:
        door = listen(port)
    except (OSError, OverflowError) as error:
        refuse(f"--port {port}: {getattr(error, 'strerror', error)}; give another port, or 0 for a free one")
    from app import app, settings

    try:
        settings(os.environ)
    except ValueError as error:
        refuse(str(error))
    print(f"crm: http://127.0.0.1:{door.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])


def listen(port: int) -> socket.socket:
    """A socket on this machine only. It listens at once, so that who comes early waits and is not refused."""
    # asyncio turns Nagle's delay off (40 ms per answer) only where the socket says that it speaks TCP.
    door = socket.socket(proto=socket.IPPROTO_TCP)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", port))
    door.listen()
    return door


def refuse(line: str) -> None:
    """One clear line, and exit code 2."""
    print(f"crm: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
