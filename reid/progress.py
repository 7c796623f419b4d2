"""Progress bars on a terminal, and silence when piped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Tick:
    """Moves one bar; does nothing where there is none."""

    def __init__(self, bars: Bars | None = None, task: TaskID | None = None) -> None:
        self._bars, self._task = bars, task

    def advance(self, count: int) -> None:
        """Advance the bar by ``count``."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, count)

    def losses(self, done: int, losses: Mapping[str, float]) -> None:
        """Set the bar to ``done``, with the latest losses."""
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, completed=done, note=" ".join(f"{name} {value:.2f}" for name, value in losses.items())
            )


class Progress:
    """Bars and lines on a console; without one, nothing is shown."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def say(self, line: str) -> None:
        """Show a line."""
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False)

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Tick]:
        """Show a bar while the block runs, if this is a terminal; ``total`` is None if its length is unknown."""
        if self.console is None or not self.console.is_terminal:
            yield Tick()
            return
        texts = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
        columns = (next(texts), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), next(texts))
        with Bars(*columns, console=self.console) as bars:
            yield Tick(bars, bars.add_task(name, total=total, note=""))
