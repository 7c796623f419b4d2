"""Progress on stderr: bars on a terminal, and a line every ten seconds where it is piped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from domains.text import shown

EVERY = 10.0
"""Seconds between two lines."""


class Tick:
    """How far one task is; moves its bar if it has one."""

    def __init__(
        self, name: str = "", total: int | None = None, bars: Bars | None = None, task: TaskID | None = None
    ) -> None:
        self.name = name
        self._total, self._bars, self._task = total, bars, task
        self._done, self._note, self._began = 0, "", time.monotonic()

    def advance(self, count: int) -> None:
        """Advance by ``count``."""
        self._done += count
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, count)

    def losses(self, done: int, losses: Mapping[str, float]) -> None:
        """Set what is done, with the latest losses."""
        self._done, self._note = done, " ".join(f"{name} {value:.2f}" for name, value in losses.items())
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, note=self._note)

    def line(self) -> str:
        """Say in one line how far it is, how long it took, and how long the rest will take at that pace."""
        took = time.monotonic() - self._began
        facts = [f"{self._done} of {self._total}"] if self._total else []
        facts.append(f"{span(took)} so far")
        if self._total and 0 < self._done < self._total:
            facts.append(f"about {span(took * (self._total - self._done) / self._done)} left")
        return f"{self.name}: {', '.join([*facts, *([self._note] if self._note else [])])}"


class Reporter:
    """Says what is being done, in a line every few seconds, as long as anything is.

    It has its own thread, so that a task that reports nothing for minutes is not silent.
    """

    def __init__(self, console: Console, every: float = EVERY) -> None:
        self.console, self.every = console, every
        self._ticks: list[Tick] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @contextmanager
    def doing(self, tick: Tick) -> Iterator[Tick]:
        """Report this task until the block ends; of tasks within tasks, the innermost."""
        with self._lock:
            self._ticks.append(tick)
            if len(self._ticks) == 1:
                self._ended = threading.Event()
                threading.Thread(target=self._report, args=(self._ended,), name="progress", daemon=True).start()
        try:
            yield tick
        finally:
            with self._lock:
                self._ticks.remove(tick)
                if not self._ticks:
                    self._ended.set()

    def _report(self, ended: threading.Event) -> None:
        while not ended.wait(self.every):
            with self._lock:
                line = self._ticks[-1].line() if self._ticks else None
            if line is not None and not self.console.is_terminal:
                _say(self.console, line)


class Progress:
    """Bars on a console that is a terminal, lines on one that is not; without one, nothing is shown.

    Args:
        console: where to show it.
        reporter: says the lines; by default one of its own.
    """

    def __init__(self, console: Console | None = None, reporter: Reporter | None = None) -> None:
        self.console = console
        self._reporter = Reporter(console) if reporter is None and console is not None else reporter

    def say(self, line: str) -> None:
        """Show a line."""
        if self.console is not None:
            _say(self.console, line)

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Tick]:
        """Show how far the block is while it runs; ``total`` is None if its length is unknown."""
        if self.console is None or self._reporter is None:
            yield Tick()
            return
        name = shown(name)
        if not self.console.is_terminal:
            with self._reporter.doing(Tick(name, total)) as tick:
                yield tick
            return
        texts = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]"))
        columns = (next(texts), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), next(texts))
        with Bars(*columns, console=self.console) as bars:
            yield Tick(name, total, bars, bars.add_task(name, total=total, note=""))


def _say(console: Console, line: str) -> None:
    console.print(shown(line), markup=False, highlight=False, soft_wrap=True)


def span(seconds: float) -> str:
    """Say a length of time in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
