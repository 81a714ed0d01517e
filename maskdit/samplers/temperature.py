"""How strong the noise of a token sampler is at each of its steps."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Falling:
    """`start * (1 - (i + 1) / steps)`: nothing is left in the last step (MaskGIT, arXiv 2202.04200).

    Attributes:
      start: what it falls from.
      least: it falls no further than this.

    Raises:
      ValueError: for negative or infinite ones.
    """

    start: float
    least: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.start < math.inf and 0 <= self.least < math.inf):
            raise ValueError(f"temperatures are 0 or more and finite, got {self.start:g} and {self.least:g}")

    def values(self, steps: int) -> np.ndarray:
        """The temperatures of a run, `[steps]`."""
        return np.maximum(self.start * (1 - np.arange(1, steps + 1) / steps), self.least)


@dataclasses.dataclass(frozen=True)
class Between:
    """In equal strides from `start` at the first step to `stop` at the last.

    Attributes:
      start, stop: both are taken; a single step has `start`.
    """

    start: float
    stop: float

    def values(self, steps: int) -> np.ndarray:
        """The temperatures of a run, `[steps]`."""
        return np.linspace(self.start, self.stop, steps)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same at each step.

    Attributes:
      start: the temperature.
    """

    start: float

    def values(self, steps: int) -> np.ndarray:
        """The temperatures of a run, `[steps]`."""
        return np.full(steps, self.start)


def temperatures(given: Any, steps: int) -> np.ndarray:
    """The temperatures of a run, float64 `[steps]`.

    Args:
      given: a number, which falls as `Falling` does; one number for each step; or one of the classes here.
      steps: of the run.

    Raises:
      ValueError: for another number of values than steps, and for negative ones.
    """
    if isinstance(given, int | float):
        given = Falling(float(given))
    values = np.asarray(given, float) if isinstance(given, Sequence) else np.asarray(given.values(steps), float)
    if values.shape != (steps,):
        raise ValueError(
            f"{values.size} temperatures were given for {steps} steps: give one for each step, or a number"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"temperatures are 0 or more, got {values.min():g}")
    return values


def started(given: Any, start: float) -> Any:
    """The same course of temperatures from another start; where there was one for each step, a falling one."""
    return dataclasses.replace(given, start=start) if hasattr(given, "start") else start
