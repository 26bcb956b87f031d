"""Pages in, chunks out: what the sync, the async and the prefetching loop have in common. It reads nothing itself."""

from __future__ import annotations

from collections import deque

from memwarden.flow.cutter import MOST_PAGE_ROWS, PAGE_ROWS, PAGE_SHARE, Cutter, Pager, page_cap
from memwarden.flow.sizing import Sizer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from memwarden.flow.cutter import Chunk

__all__ = ["Filler"]

# A page may take this part of the chunk's seconds before the next one is smaller.
_PAGE_SECONDS = 1 / 8

# Where each page is to be a chunk: half, so that one twice as wide still is one.
_WHOLE_SHARE = 1 / 2


class Filler:
    """Sizes the rows of each page, cuts them into chunks, and says how many rows the next page should have."""

    def __init__(
        self,
        *,
        rows: int | None,
        seconds: float | None,
        oversize: str,
        page_rows: int | None = None,
        whole_pages: bool = False,
    ) -> None:
        self.cutter = Cutter(1, rows=rows, seconds=seconds, oversize=oversize)
        self.ready: deque[Chunk[Any]] = deque()
        self._fixed = page_rows is not None
        self._pager = Pager(
            1,
            most_rows=MOST_PAGE_ROWS if page_rows is None else page_rows,
            seconds=None if seconds is None else seconds * _PAGE_SECONDS,
            share=_WHOLE_SHARE if whole_pages else PAGE_SHARE,
        )
        if whole_pages and page_rows is not None:
            self._pager.rows = page_rows
        self._sizer = Sizer()

    def aim(self, target_bytes: int) -> None:
        """The target of the chunk that is filled now."""
        self.cutter.target_bytes = self._pager.target_bytes = target_bytes

    def wanted_rows(self) -> int:
        """How many rows the next page should have."""
        cutter = self.cutter
        rows, room = self._pager.rows, cutter.room_rows
        rows = min(rows, room)
        return rows if rows <= PAGE_ROWS or self._fixed else min(rows, page_cap(cutter.room_bytes))

    def feed(self, page: list[Any], *, batches: bool, now: float, took_s: float) -> None:
        """A page came. Its list is emptied: the chunks hold the rows now. Raises OversizeError."""
        if batches:
            for batch in page:
                self.ready += self.cutter.push(batch, int(batch.nbytes), now, rows=batch.num_rows)
            page.clear()
            return
        size = self._sizer.page(page)
        self._pager.saw(len(page), size, took_s)
        if self.cutter.take(page, size, now):
            full = self.cutter.complete(now)
            if full is not None:
                self.ready.append(full)
        else:
            for row in page:
                self.ready += self.cutter.push(row, self._sizer(row), now)
        page.clear()

    def end(self, why: str) -> None:
        """Nothing more comes: what there is becomes the last chunk."""
        last = self.cutter.flush(why)
        if last is not None:
            self.ready.append(last)
