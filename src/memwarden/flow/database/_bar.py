"""A run drawn as a bar with rich, on a terminal and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memwarden.errors import MissingExtraError
from memwarden.units import format_bytes

try:
    from rich import progress as rich_progress
    from rich.console import Console
except ImportError as error:
    raise MissingExtraError('progress="bar"', "rich") from error

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from memwarden.flow.database.progress import Progress


class Bar:
    """Draws on stderr. Into a pipe it draws nothing. rich honours NO_COLOR."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.percentage:>3.0f}%"),
            rich_progress.TextColumn("{task.fields[memory]}"),
            rich_progress.TextColumn("{task.fields[rest]}"),
            console=self._console,
            auto_refresh=False,
            disable=not self._console.is_terminal,
        )
        self._task: rich_progress.TaskID | None = None

    def __call__(self, now: Progress) -> None:
        """Show where the run is."""
        memory = format_bytes(now.memory_bytes if now.memory_bytes is not None else now.held_bytes)
        rest = "" if now.eta_s is None else f"{now.eta_s:.0f} s left"
        fields = {"completed": now.processed, "total": now.total, "memory": memory, "rest": rest}
        if self._task is None:
            self._task = self._bar.add_task(now.name or "rows", **fields)  # type: ignore[arg-type]
        else:
            self._bar.update(self._task, **fields)  # type: ignore[arg-type]
        self._bar.refresh()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
