"""Who is to blame for a death, and how the part goes on: smaller at first, and in the end without the item.

Pure. A worker that dies had a chunk in hand. After the first death the items of that chunk are done one by one, with
the cursor written behind each, so that the next death names its item. An item with three deaths (that of the chunk it
was in counts) is quarantined. Behind the chunk the part goes on with half as many items at once.

A SIGKILL that is known not to be the kernel's (an operator, a runner that ended and took its children along) says
nothing against an item; but as nothing may go on for ever, so many of them in a row at one place count as well.
"""

from __future__ import annotations

from memwarden.facts import Fact

__all__ = ["MOST_DEATHS", "MOST_INNOCENT", "Blame", "after_death", "after_progress"]

MOST_DEATHS = 3
# A worker that is killed as often at one place without getting past it never will.
MOST_INNOCENT = 100
INNOCENT = frozenset({"killed"})


class Blame(Fact):
    """What is held against the items at a part's cursor.

    `chunk`: items to be done at once. `careful`: so many are done one by one first. `deaths`: of chunks that the
    careful ones were in. `blamed` and `blamed_deaths`: the cursor behind which a single item was in hand, and how
    often. `innocent`: deaths at one place that were nobody's fault. `quarantine`: the next item is to be left out.
    """

    chunk: int
    careful: int = 0
    deaths: int = 0
    blamed: str | None = None
    blamed_deaths: int = 0
    innocent: int = 0
    quarantine: bool = False


def after_death(before: Blame, kind: str, cursor: str | None) -> Blame:
    """After a death of this kind with the cursor (JSON text, "" at the start) there."""
    at = cursor or ""
    if kind in INNOCENT and before.innocent + 1 < MOST_INNOCENT:
        return before.replace(innocent=before.innocent + 1)
    if before.careful == 0 and before.chunk > 1:
        return before.replace(
            chunk=before.chunk // 2, careful=before.chunk, deaths=1, blamed=None, blamed_deaths=0, innocent=0
        )
    count = before.blamed_deaths + 1 if before.blamed == at else 1
    return before.replace(
        careful=max(1, before.careful), blamed=at, blamed_deaths=count, innocent=0,
        quarantine=before.deaths + count >= MOST_DEATHS,
    )  # fmt: skip


def after_progress(before: Blame, items: int) -> Blame:
    """So many items are behind it: nothing is held against those to come, once the careful ones are through."""
    careful = max(0, before.careful - items)
    return before.replace(
        careful=careful, deaths=before.deaths if careful else 0, blamed=None, blamed_deaths=0, innocent=0,
        quarantine=False,
    )  # fmt: skip
