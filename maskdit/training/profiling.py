"""A trace of some steps, for XProf and TensorBoard."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any, Self

import jax
from etils import epath

_LOG = logging.getLogger(__name__)
STEP = "train"
"""The name under which steps stand in a trace."""


class ProfileError(ValueError):
    """A window that cannot be traced; the message says which can."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps `first` to `first + count - 1`, counted from 1 as the log does."""

    first: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `FIRST:COUNT`.

        Raises:
          ProfileError: for anything else.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found or min(map(int, found.groups())) < 1:
            raise ProfileError(f"--profile takes FIRST:COUNT, such as 10:5 for the steps 10 to 14; got '{text}'")
        return cls(*map(int, found.groups()))

    @property
    def last(self) -> int:
        """The last step."""
        return self.first + self.count - 1

    def check(self, done: int, total: int) -> None:
        """Refuses a window outside of a run.

        Args:
          done: steps done when the run goes on.
          total: its last step.

        Raises:
          ProfileError: where some of the window's steps are not steps to come.
        """
        if not done < self.first <= self.last <= total:
            left = f"does the steps {done + 1} to {total}" if done < total else f"is at its last step, {total}"
            raise ProfileError(f"--profile asks for the steps {self.first} to {self.last}; the run {left}")


class Profiler(contextlib.AbstractContextManager):
    """Runs steps, each under its number, and traces those of a window; the first process writes.

    Attributes:
      folder: where traces go, `plugins/profile/TIME/HOST.xplane.pb` inside, as XProf and TensorBoard expect.
    """

    def __init__(self, window: Window | None, folder: epath.Path):
        self.folder = folder
        self._window = window if jax.process_index() == 0 else None
        self._local: tempfile.TemporaryDirectory | None = None

    def __call__(self, number: int, step: Callable[..., Any], *args: Any) -> Any:
        """Calls `step(*args)` as step `number`; waits for it where it is the window's last."""
        window = self._window
        if window is not None and number == window.first:
            self._begin()
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            made = step(*args)
        if window is not None and number == window.last:
            jax.block_until_ready(made)
            self._end()
        return made

    def __exit__(self, *_: object) -> None:
        if self._local is not None:  # the run stopped inside the window: what there is
            self._end()

    def _begin(self) -> None:
        # written here first: the profiler knows no gs://
        self._local = tempfile.TemporaryDirectory()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a million events a step, which hide the rest
        jax.profiler.start_trace(self._local.name, profiler_options=options)

    def _end(self) -> None:
        assert self._local is not None
        jax.profiler.stop_trace()
        for path in sorted(pathlib.Path(self._local.name).rglob("*")):
            if path.is_file():
                target = self.folder / os.fspath(path.relative_to(self._local.name))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        self._local.cleanup()
        self._local = None
        _LOG.info("wrote a trace: tensorboard --logdir %s (with pip install xprof)", self.folder)
