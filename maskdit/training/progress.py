"""How far a long piece of work has come: a bar where somebody watches, else a line now and then."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0
"""Seconds between two lines."""


class Counter:
    """Counts what is done and shows it, with its rate; a context manager.

    Args:
      total: how much there is to do.
      unit: what is counted, such as `images`.
      show: whether to print; off on all processes but the first.
      console: where to print; standard output by default.
    """

    def __init__(self, total: int, unit: str, show: bool = True, console: Console | None = None):
        self._total, self._unit, self._show = total, unit, show
        self._console = console or Console()
        self._done, self._begin = 0, time.perf_counter()
        self._told = self._begin
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._show and self._console.is_interactive:
            rate = TextColumn("{task.description}", markup=False)
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), rate, TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2, expand=True)
            self._task = self._bar.add_task(self._unit, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, count: int) -> None:
        """Adds what has been done; the rate counts from the first call on, without what came before it."""
        now = time.perf_counter()
        if not self._done:
            self._begin, self._before = now, count
        self._done += count
        rate = (self._done - self._before) / max(now - self._begin, 1e-9)
        words = f"{rate:.{0 if rate >= 10 else 1}f} {self._unit}/s" if self._done > self._before else self._unit
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=words)
        elif self._show and (now - self._told > _EVERY or self._done == self._total):
            self._told = now
            line = f"{self._done}/{self._total} {self._unit}" + f"  {words}" * (words != self._unit)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
