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

from maskdit.contracts import Array, Cond, Draw, Layout, Predict, PyTree


@struct.dataclass
class State:
    """What a sampler carries from step to step.

    Attributes:
      x: the noisy state, `[B, ...]`; of ids those known so far, `[B, K]`, int32.
      x0: the last estimate of the clean data.
      cond: the condition.
      draw: the draw of the run; step i draws from `draw.at(i)`.
      cache: the memory of a network that has one.
      free: how many tokens of each row were unknown at the start, `[B]`; of ids only.
    """

    x: Array
    x0: Array
    cond: Cond
    draw: Draw
    cache: PyTree = None
    free: Array | None = None


@struct.dataclass
class Known:
    """What editing keeps of an image.

    Attributes:
      x: its latents or ids, shaped like the state.
      mask: where they are kept, bool; broadcasts against `x`.
    """

    x: Array
    mask: Array


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
      masked: number of masks in each row, where the network is told; None where it is not.
      fresh: how many tokens came since the call before, where its features are used again; None where they are not.
    """

    start: int
    stop: int
    calls: int = 1
    guided: bool = False
    masked: int | None = None
    fresh: int | None = None


class Process(Protocol):
    """What samplers need of a process; Gaussian ones have `alpha_sigma` and `denoise` besides, see
    `maskdit.processes.edm.EDM`, discrete ones `logits`, see `maskdit.processes.masked.Masked`."""

    grid: Any

    def times(self, steps: Any, spacing: str | None = None) -> tuple:
        """The times of a run, from noise to data."""
        ...

    def respace(self, times: Any) -> Any:
        """The process with the times of a run as its grid."""
        ...

    def hold(self, z: Array, i: Any, draw: Draw) -> Array:
        """Clean data as they are at place i of the grid: what editing holds a run to."""
        ...


class Sampler(Protocol):
    """A frozen dataclass of settings that walks a process back.

    One whose network has a memory has `paired`: guidance that is on anywhere then makes both passes at every step, as
    the memory of the second one must be filled too.
    """

    @property
    def steps(self) -> Any:
        """Number of steps."""
        ...

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The times that a run visits."""
        ...

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """The run's stretches, for a process that was respaced to `grid`, where so many tokens are known before."""
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


def check_gaussian(sampler: Any, process: Any) -> None:
    """Refuses a process of tokens.

    Raises:
      ValueError: with the samplers that there are for one.
    """
    if not hasattr(process, "alpha_sigma"):
        raise ValueError(
            f"{type(sampler).__name__} works on continuous latents, and this model makes tokens: use a sampler of "
            "them, such as Confidence, or TokenByToken for an autoregressive one"
        )


def guided_runs(
    sampler: Sampler, process: Any, layout: Layout, guidance: Any = None, known: int = 0
) -> tuple[Stretch, ...]:
    """A sampler's runs, cut where guidance goes on or off, so that no second pass is made where its weight is nil."""
    runs: list[Stretch] = []
    steps, given = len(process.grid) - 1, sampler.runs(process, layout, known)

    def active(run: Stretch, i: int) -> bool:
        times = [process.grid[i + k] for k in range(run.calls)]
        return guidance is not None and any(guidance.active(At(t, i, steps)) for t in times)

    if getattr(sampler, "paired", False):
        guided = any(active(run, i) for run in given for i in range(run.start, run.stop))
        return tuple(dataclasses.replace(run, guided=guided) for run in given)
    for run in given:
        for i in range(run.start, run.stop):
            guided = active(run, i)
            last = runs[-1] if runs else None
            if last and last.stop == i and i > run.start and last.guided == guided:
                runs[-1] = dataclasses.replace(last, stop=i + 1)
            else:
                runs.append(dataclasses.replace(run, start=i, stop=i + 1, guided=guided))
    return tuple(runs)


def sample(process: Any, sampler: Sampler, predict: Predict, *args: Any, **settings: Any) -> Array:
    """Draws samples: the last state of `walk`, which takes the same arguments.

    Returns:
      Latents or ids of the given shape, as the tokenizer's `decode` takes them.
    """
    return walk(process, sampler, predict, *args, **settings)[0].x


def walk(
    process: Any,
    sampler: Sampler,
    predict: Predict,
    draw: Draw,
    shape: tuple[int, ...],
    cond: Cond,
    *,
    guidance: Any = None,
    weak: Predict | None = None,
    known: Known | None = None,
    fixed: int = 0,
    watch: bool = False,
) -> tuple[State, Array | None]:
    """A whole run.

    Args:
      process: the process that the network was trained with.
      sampler: how it is walked back.
      predict: the bound network.
      draw: a draw with one row per sample.
      shape: shape of the result, `(B, ...)`.
      cond: the condition, one row per sample.
      guidance: see `maskdit.samplers.guidance`; None for none.
      weak: the weak network of a guidance that needs one.
      known: what to keep of an image: it is put, as noisy as the state, into the state after each step, and as it is
        into the estimates. Draws: what the process's `hold` draws, from `draw.named("known").at(i)`.
      fixed: how many tokens of each row are known, for a sampler that counts them.
      watch: whether the estimates of the clean data after each step are returned too.

    Returns:
      The last state; the estimates `[steps, B, ...]`, or None.
    """
    process = process.respace(sampler.grid(process, predict.layout))
    runs = guided_runs(sampler, process, predict.layout, guidance, fixed)
    guided = guidance.wrap(predict, weak) if any(run.guided for run in runs) else predict
    state = sampler.init(process, guided if getattr(sampler, "paired", False) else predict, draw, shape, cond)
    keep = _keeper(process, known, draw)
    state = keep(state, 0)
    seen: list[Array] = []
    for run in runs:
        state, x0 = _scan(sampler, process, guided if run.guided else predict, state, run, keep)
        seen += [x0] if watch else []  # what nobody returns is never stored
    chex.assert_shape(state.x, shape)
    return state, jnp.concatenate(seen) if watch else None


def network_calls(sampler: Sampler, process: Any, layout: Layout, guidance: Any = None) -> int:
    """Forward passes per sample of a whole run; a guided call is two."""
    process = process.respace(sampler.grid(process, layout))
    runs = guided_runs(sampler, process, layout, guidance)
    return sum((run.stop - run.start) * run.calls * (1 + run.guided) for run in runs)


def _keeper(process: Any, known: Known | None, draw: Draw) -> Callable[[State, Any], State]:
    """Puts what is known into the state before step i."""
    if known is None:
        return lambda state, i: state
    noise = draw.named("known")

    def keep(state: State, i: Any) -> State:
        held = process.hold(known.x, i, noise.at(i))
        return dataclasses.replace(
            state, x=jnp.where(known.mask, held, state.x), x0=jnp.where(known.mask, known.x, state.x0)
        )

    return keep


def _scan(
    sampler: Sampler,
    process: Any,
    predict: Callable[..., Any],
    state: State,
    run: Stretch,
    keep: Callable[[State, Any], State],
) -> tuple[State, Array]:
    def body(state: State, i: Array) -> tuple[State, Array]:
        state = keep(sampler.step(process, predict, state, i, run), i + 1)  # type: ignore[arg-type]
        return state, state.x0

    return jax.lax.scan(body, state, jnp.arange(run.start, run.stop))
