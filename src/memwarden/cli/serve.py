"""`memwarden serve`: the service of a folder: history of every guarded process, alerts delivered, deaths told."""

from __future__ import annotations

import logging
import os
import sys

from memwarden.blackbox import directory
from memwarden.cli._stop import stopped_by_signals
from memwarden.config import settle, table
from memwarden.errors import ConfigError, StoreError
from memwarden.store import state_directory
from memwarden.units import parse_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

# Below it not even the coarsest tier of one process fits.
_SMALLEST = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--dir", help="the MEMWARDEN_DIR to serve (default: this user's)")
    parser.add_argument("--history-size", metavar="SIZE", default="256M", help="cap of the history (default: 256M)")
    parser.add_argument("--until", metavar="PID", type=int, help="end when this process is gone and nobody is guarded")
    parser.add_argument("--beside", action="store_true", help="fine where a service runs for the folder already")
    parser.add_argument("--quiet", action="store_true", help="say nothing but what goes wrong")


def run(args: Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP. Raises ConfigError, and StoreError where one serves that folder."""
    with stopped_by_signals() as stop:
        return _serve(args, stop)


def _serve(args: Namespace, stop: Any) -> int:
    most_bytes = parse_bytes(args.history_size, where="--history-size")
    if most_bytes < _SMALLEST:
        raise ConfigError("is too small for any history", where="--history-size", mend="give 1M or more")
    config = settle(environ=os.environ).config
    named = args.dir or config.directory
    folder = state_directory(named, os.environ)
    if folder is None:
        raise StoreError("no folder is known", where="memwarden serve", mend="set MEMWARDEN_DIR")
    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="memwarden serve: %(levelname)s %(message)s")
    found, where = table("alerts", environ=os.environ)
    from memwarden.supervise.service.service import Service
    from memwarden.warden.telling import settings_of

    service = Service(
        folder,
        directory(named, os.environ, os.getuid()),
        config=config,
        alerts=settings_of(found, where, os.environ) if found else None,
        most_bytes=most_bytes,
        until=args.until,
    )
    logging.getLogger("memwarden.service").info("serves %s (pid %d)", folder, os.getpid())
    try:
        service.run(stop)
    except StoreError:
        if not args.beside:
            raise
    return 0
