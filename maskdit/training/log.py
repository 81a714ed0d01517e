"""What a run says while it trains: means over intervals of steps, written to files, services and the terminal.

Names of scalars: `loss`, `lr`, `grad_norm`, `loss/LEVEL` and a task's own (below `GROUP/` where a task has several
groups), `held_out/loss`, `score/NAME`, `images_per_second`, `data_wait` (share of the time that steps waited for
batches) and `replaced` (unreadable records that others stood in for).
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from maskdit.training.writers import Jsonl, LogError, TensorBoard, Wandb, import_wandb

_MUST_BE_FINITE = ("loss", "grad_norm")


class NotFiniteError(RuntimeError):
    """A loss or gradient that is not finite; the step must not be saved."""


class Writer(Protocol):
    """Where scalars and images of a step go."""

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Writes what belongs to a step; steps never go back, and one step may come more than once.

        Args:
          step: updates done.
          scalars: numbers by name.
          images: uint8 `[H, W, 3]` by name.
        """
        ...

    def close(self) -> None:
        """Writes what is left and frees what was opened."""
        ...


@dataclasses.dataclass(frozen=True)
class Log:
    """Where a run logs, and how often. `metrics.jsonl` in the work directory is always written.

    Attributes:
      every: steps that one record covers.
      tensorboard: whether to write TensorBoard events, into `tensorboard/` of the work directory.
      wandb: whether to log to Weights & Biases (`pip install maskdit[wandb]`), to the project `WANDB_PROJECT`, default
        `maskdit`.
      progress: whether to show a progress bar where the terminal is interactive; else a line for each record.
    """

    every: int = 50
    tensorboard: bool = True
    wandb: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise LogError(f"log.every must be 1 or more, got {self.every}")

    def open(self, workdir: str | os.PathLike[str], *, total: int, batch: int, resume_step: int = 0) -> "RunLog":
        """Opens the log of a run. Processes other than the first write nothing.

        Args:
          workdir: the run's directory, local or `gs://`.
          total: steps of the whole run.
          batch: images of a step.
          resume_step: the step that the run goes on from; records of later ones, left by a run that was killed, go.

        Raises:
          LogError: where wandb is asked for and not installed.
        """
        root = epath.Path(workdir)
        wandb = import_wandb() if self.wandb else None
        if jax.process_index() != 0:
            return RunLog(self, total, batch, [], None)
        root.mkdir(parents=True, exist_ok=True)
        writers: list[Writer] = [Jsonl(root / "metrics.jsonl", resume_step)]
        if self.tensorboard:
            writers.append(TensorBoard(root / "tensorboard", resume_step))
        if wandb is not None:
            writers.append(Wandb(wandb, root, resume_step))
        terminal = Terminal(total, batch, resume_step, self.progress)
        return RunLog(self, total, batch, [*writers, terminal], terminal)


class RunLog:
    """The open log of a run, a context manager.

    A step's metrics are fetched when the next one has been started: the device never waits for the host.
    """

    def __init__(self, settings: Log, total: int, batch: int, writers: list[Writer], terminal: "Terminal | None"):
        self._settings, self._total, self._batch = settings, total, batch
        self._writers, self._terminal = writers, terminal
        self._pending: tuple[int, dict[str, tuple[Any, Any]]] | None = None
        self._mark: float | None = None
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int, metrics: Mapping[str, tuple[Any, Any]], waited: float = 0.0, replaced: int = 0) -> None:
        """Takes the metrics of a step that has just been started, and looks at those of the step before.

        Args:
          step: updates done after this step.
          metrics: name -> (weighted sum, sum of weights), still on the device.
          waited: seconds for which the step waited for its batch.
          replaced: unreadable records of its batch.

        Raises:
          NotFiniteError: where loss or gradient of the step before were not finite.
        """
        if self._mark is None:
            self._mark = time.perf_counter() - waited
        self._fetch()
        self._waited += waited
        self._replaced += replaced
        self._pending = (step, dict(metrics))

    def flush(self) -> None:
        """Looks at the last step's metrics now. Time from here to the next step counts for no rate.

        Raises:
          NotFiniteError: where loss or gradient were not finite.
        """
        self._fetch()
        self._mark = None

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray] | None = None) -> None:
        """Writes scalars and images (uint8 `[H, W, 3]`) of a step to all writers, after what is pending.

        Raises:
          LogError: for an image of another type or shape.
          OSError: where the disk is full, with what to do.
        """
        self.flush()
        for name, image in (images or {}).items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise LogError(f"image '{name}' must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        self._write(step, {name: float(value) for name, value in scalars.items()}, images or {})

    def say(self, text: str) -> None:
        """Prints a line to the terminal, above the progress bar where there is one; nothing on other processes."""
        if self._terminal is not None:
            self._terminal.say(text)

    def close(self) -> None:
        """Closes all writers. What is pending is not looked at: `flush` comes before whatever relies on it."""
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)
            self._writers = []

    def _fetch(self) -> None:
        """Adds the pending step to the interval, and writes the interval where it ends."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        for name, (value, weight) in jax.device_get(metrics).items():
            if name.rpartition("/")[2] in _MUST_BE_FINITE and not math.isfinite(_ratio(value, weight)):
                raise NotFiniteError(
                    f"{name} of step {step} is {_ratio(value, weight)}; training stopped, the last checkpoint is from "
                    "before. Lower the learning rate or the gradient clipping, or compute in float32, then start again"
                )
            total = self._sums.setdefault(name, np.zeros(2))
            total += (value, weight)
        now = time.perf_counter()
        self._seconds += now - (self._mark or now)
        self._mark = now
        self._steps += 1
        if self._terminal is not None:
            self._terminal.advance(step)
        if step % self._settings.every == 0 or step == self._total:
            self._write(step, self._record(), {})
            self._clear()

    def _record(self) -> dict[str, float]:
        means = {name: _ratio(*total) for name, total in self._sums.items() if total[1]}
        seconds = max(self._seconds, 1e-9)
        return means | {
            "images_per_second": self._batch * self._steps / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
            "replaced": self._replaced,
        }

    def _clear(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._steps, self._replaced = 0, 0
        self._seconds, self._waited = 0.0, 0.0

    def _write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        for writer in self._writers:
            writer.write(step, scalars, images)


class Terminal:
    """A progress bar with step, loss, images/s and time left; a line for each record where nobody watches."""

    def __init__(self, total: int, batch: int, start: int = 0, progress: bool = True, console: Console | None = None):
        self._total, self._batch = total, batch
        self._console = console or Console()
        self._words: dict[str, str] = {"state": "the first step compiles"}
        self._bar: Progress | None = None
        if progress and self._console.is_interactive:
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2, expand=True)
            self._task = self._bar.add_task(self._words["state"], total=total, completed=start)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._words.pop("state", None)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description="  ".join(self._words.values()))

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Shows losses and scores, and the rate where it is given."""
        shown = {name: v for name, v in scalars.items() if is_loss(name) or name.startswith("score/")}
        words = {name: f"{name.replace('_', '-')} {v:.4f}" for name, v in shown.items()}
        if rate := scalars.get("images_per_second"):
            words["rate"] = f"{rate:.{0 if rate >= 10 else 1}f} images/s"
            words["left"] = f"{_clock((self._total - step) * self._batch / rate)} left"
        self._words |= words
        if self._bar is not None:
            self.advance(step)
        elif words:
            self.say("  ".join([f"step {step}/{self._total}", *words.values()]))

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar as it stands and gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()


def is_loss(name: str) -> bool:
    """Whether a scalar is a whole loss (`loss`, `held_out/loss`, `GROUP/loss`) and not a part or a level of one."""
    return name.rpartition("/")[2] == "loss"


def _ratio(value: Any, weight: Any) -> float:
    return float(value) / float(weight) if weight else math.nan


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
