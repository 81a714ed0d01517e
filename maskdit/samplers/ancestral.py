"""Samplers of discrete diffusion: DDPM's ancestral steps (Ho et al. 2020, arXiv 2006.11239, algorithm 2) and DDIM (Song
et al. 2021, arXiv 2010.02502, eq. 12)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Layout, Predict
from maskdit.samplers.sampling import At, State, Stretch, check_gaussian, first_state


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """DDPM's sampler: each step draws from the learned reverse distribution.

    Attributes:
      steps: number of steps, or one number for each of several equal stretches of the process.
      spacing: see `maskdit.processes.ddpm.spaced`.
      clip: clips each estimate of x0 to [-1, 1], as is usual for pixels.
    """

    steps: int | tuple[int, ...] = 250
    spacing: str | None = None
    clip: bool = False

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The timesteps that a run visits."""
        check_gaussian(self, process)
        return process.times(self.steps, self.spacing)

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """One run.

        Raises:
          ValueError: for a process that has no reverse distribution.
        """
        if not hasattr(process, "step_distribution"):
            raise ValueError(f"ancestral sampling needs a DDPM process, got {type(process).__name__}: use Heun or DDIM")
        return (Stretch(0, len(process.grid) - 1, calls=1),)

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state. Draws: `prior` (normal)."""
        return first_state(process, draw, shape, cond)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step. Draws, from `draw.at(i)`: `noise` (normal), not added in the last step."""
        steps, rows = len(process.grid) - 1, state.x.shape[0]
        t = jnp.asarray(process.grid)[i]
        x0, prediction = process.denoise(predict, state.x, jnp.full((rows,), t), state.cond, at=At(t, i, steps))
        x0 = jnp.clip(x0, -1, 1) if self.clip else x0
        index = jnp.full((rows,), steps - 1 - i)
        mean, log = process.step_distribution(x0, state.x, index, prediction.aux.get("variance"))
        noise = state.draw.at(i).normal("noise", state.x.shape)
        return dataclasses.replace(state, x=mean + (i < steps - 1) * jnp.exp(0.5 * log) * noise, x0=x0)


@dataclasses.dataclass(frozen=True)
class DDIM:
    """DDIM; with eta = 0 deterministic.

    Attributes:
      steps: number of steps.
      eta: share of the ancestral noise that each step adds.
      spacing: see `maskdit.processes.ddpm.spaced`.
      clip: clips each estimate of x0 to [-1, 1].
    """

    steps: int = 50
    eta: float = 0.0
    spacing: str | None = None
    clip: bool = False

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The times that a run visits."""
        check_gaussian(self, process)
        return process.times(self.steps, self.spacing)

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """One run."""
        return (Stretch(0, len(process.grid) - 1, calls=1),)

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state. Draws: `prior` (normal)."""
        return first_state(process, draw, shape, cond)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step. Draws, from `draw.at(i)`: `noise` (normal), with eta only."""
        grid, rows = np.asarray(process.grid), state.x.shape[0]
        t, following = jnp.asarray(grid)[i], jnp.asarray(grid)[i + 1]
        at = At(t, i, len(grid) - 1)
        x0, _ = process.denoise(predict, state.x, jnp.full((rows,), t), state.cond, at=at)
        x0 = jnp.clip(x0, -1, 1) if self.clip else x0
        noise = state.draw.at(i).normal("noise", state.x.shape) if self.eta else None
        return dataclasses.replace(state, x=move(process, state.x, x0, t, following, self.eta, noise), x0=x0)


def move(
    process: Any, xt: Array, x0: Array, t: Array, following: Array, eta: float = 0.0, noise: Array | None = None
) -> Array:
    """DDIM's move from one time to another, towards data or (eta = 0) towards noise, as in inversion.

    Args:
      process: a Gaussian process.
      xt: the state at `t`.
      x0: the estimate of the clean data.
      t, following: the times, scalars.
      eta: share of the ancestral noise.
      noise: standard normal, shaped like `xt`; with `eta` only.
    """
    (alpha, sigma), (alpha_next, sigma_next) = process.alpha_sigma(t), process.alpha_sigma(following)
    eps = (xt - alpha * x0) / sigma
    if not eta or noise is None:
        return alpha_next * x0 + sigma_next * eps
    added = eta * sigma_next / sigma * jnp.sqrt(jnp.maximum(sigma**2 - (alpha / alpha_next * sigma_next) ** 2, 0))
    kept = jnp.sqrt(jnp.maximum(sigma_next**2 - added**2, 0))
    return alpha_next * x0 + kept * eps + added * noise
