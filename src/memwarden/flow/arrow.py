"""Parquet files through pyarrow. No other file of `flow` imports it: batches are told by what they can do."""

from __future__ import annotations

from memwarden.errors import MissingExtraError, SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile
except ImportError as error:
    raise MissingExtraError("reading Parquet", "arrow") from error

__all__ = ["open_parquet"]


def open_parquet(path: str) -> Any:
    """The file, opened so that no more than one row group is buffered. Raises SourceError."""
    try:
        return ParquetFile(path, pre_buffer=False)
    except (OSError, ArrowException) as error:
        raise SourceError(str(error), where=path) from error
