"""A whole sampling run: a list of stretches of equal steps, each one `lax.scan`.

Code that watches or edits a run (trajectories, inpainting, streaming) uses `init`, `runs` and `step` of a sampler
itself; `sample` is their plain composition.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct

from maskdit.contracts import Array, Cond, Draw, Predict, Prediction


@struct.dataclass
class State:
    """What a sampler carries from step to step.

    Attributes:
      x: the noisy state, `[B, ...]`.
      x0: the last estimate of the clean data.
      cond: the condition.
      draw: the draw of the run; step i draws from `draw.at(i)`.
    """

    x: Array
    x0: Array
    cond: Cond
    draw: Draw


class At(NamedTuple):
    """Where in a run the network is called: the process's time (scalar), the step, and the number of steps."""

    t: Any
    step: Any
    steps: int


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A stretch of steps with equal shapes and static choices.

    Attributes:
      start, stop: its steps, `start <= i < stop`.
      calls: network calls in each step; the k-th call of step i is at time `grid[i + k]`.
      guided: whether guidance is on.
    """

    start: int
    stop: int
    calls: int
    guided: bool = False


class Process(Protocol):
    """What samplers need of a Gaussian process; see `maskdit.processes.edm.EDM`."""

    grid: Any

    def times(self, steps: Any, spacing: str | None = None) -> tuple:
        """The times of a run, from noise to data."""
        ...

    def respace(self, times: Any) -> Any:
        """The process with the times of a run as its grid."""
        ...

    def prior(self, draw: Draw, shape: tuple[int, ...]) -> Array:
        """The first state of a run."""
        ...

    def alpha_sigma(self, t: Any) -> tuple[Array, Array]:
        """Coefficients of x_t = alpha x0 + sigma eps."""
        ...

    def denoise(self, predict: Predict, xt: Array, t: Array, cond: Cond, **kw: Any) -> tuple[Array, Prediction]:
        """The estimate of x0."""
        ...


class Sampler(Protocol):
    """A frozen dataclass of settings that walks a process back."""

    @property
    def steps(self) -> Any:
        """Number of steps."""
        ...

    def grid(self, process: Any) -> tuple:
        """The times that a run visits."""
        ...

    def runs(self, process: Any) -> tuple[Stretch, ...]:
        """The run's stretches, for a process that was respaced to `grid`."""
        ...

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state."""
        ...

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """The state after step i, which belongs to `run`."""
        ...


def first_state(process: Any, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
    """The state that every Gaussian sampler starts from. Draws: `prior` (normal)."""
    x = process.prior(draw, shape)
    return State(x=x, x0=jnp.zeros_like(x), cond=cond, draw=draw)


def guided_runs(sampler: Sampler, process: Any, guidance: Any) -> tuple[Stretch, ...]:
    """A sampler's runs, cut where guidance goes on or off, so that no second pass is made where its weight is nil."""
    runs: list[Stretch] = []
    steps = len(process.grid) - 1
    for run in sampler.runs(process):
        for i in range(run.start, run.stop):
            times = [process.grid[i + k] for k in range(run.calls)]
            guided = guidance is not None and any(guidance.active(At(t, i, steps)) for t in times)
            last = runs[-1] if runs else None
            if last and last.stop == i and i > run.start and last.guided == guided:
                runs[-1] = dataclasses.replace(last, stop=i + 1)
            else:
                runs.append(dataclasses.replace(run, start=i, stop=i + 1, guided=guided))
    return tuple(runs)


def sample(
    process: Any,
    sampler: Sampler,
    predict: Predict,
    draw: Draw,
    shape: tuple[int, ...],
    cond: Cond,
    *,
    guidance: Any = None,
    weak: Predict | None = None,
) -> Array:
    """Draws samples.

    Args:
      process: the process that the network was trained with.
      sampler: how it is walked back.
      predict: the bound network.
      draw: a draw with one row per sample.
      shape: shape of the result, `(B, ...)`.
      cond: the condition, one row per sample.
      guidance: see `maskdit.samplers.guidance`; None for none.
      weak: the weak network of a guidance that needs one.

    Returns:
      Latents of the given shape, as the tokenizer's `decode` takes them.
    """
    process = process.respace(sampler.grid(process))
    state = sampler.init(process, predict, draw, shape, cond)
    for run in guided_runs(sampler, process, guidance):
        chosen = guidance.wrap(predict, weak) if run.guided else predict
        state = _scan(sampler, process, chosen, state, run)
    chex.assert_shape(state.x, shape)
    return state.x


def network_calls(sampler: Sampler, process: Any, guidance: Any = None) -> int:
    """Forward passes per sample of a whole run; a guided call is two."""
    process = process.respace(sampler.grid(process))
    return sum((run.stop - run.start) * run.calls * (1 + run.guided) for run in guided_runs(sampler, process, guidance))


def _scan(sampler: Sampler, process: Any, predict: Callable[..., Any], state: State, run: Stretch) -> State:
    def body(state: State, i: Array) -> tuple[State, None]:
        return sampler.step(process, predict, state, i, run), None  # type: ignore[arg-type]

    return jax.lax.scan(body, state, jnp.arange(run.start, run.stop))[0]
