"""Where the ledger is: the store of this machine, or a database that several machines share."""

from __future__ import annotations

import os

from memwarden.errors import StoreError
from memwarden.jobs.definition import store_folder
from memwarden.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from memwarden.jobs.shared import SharedPlace

__all__ = ["LEDGER_VARIABLE", "open_place"]

# A URL has a password in it more often than not: so it is no setting, which `memwarden config` would show.
LEDGER_VARIABLE = "MEMWARDEN_LEDGER"


def open_place(
    folder: str | None = None, *, url: str | None = None, reading: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Store | SharedPlace:  # fmt: skip
    """The database of this URL; else the store in this folder; else what MEMWARDEN_LEDGER names; else the user's store.

    `reading` keeps no writer waiting, and makes no tables. To be closed. Raises StoreError where it would not survive
    this process.
    """
    url = url or (environ.get(LEDGER_VARIABLE) if folder is None else None)
    if url:
        from memwarden.jobs.shared import SharedPlace

        return SharedPlace(url, reading=reading)
    store = Store(store_folder(folder), reading=reading)
    if store.degraded:
        store.close()
        raise StoreError(f"jobs need a place that survives: {store.degraded}", mend="set MEMWARDEN_DIR to a folder")
    return store
