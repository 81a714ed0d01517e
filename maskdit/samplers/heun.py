"""Deterministic and churned solvers of the probability flow (Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2).

They work on x / alpha against sigma / alpha, so that processes which shrink the data are solved as well.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Layout, Predict
from maskdit.samplers.sampling import At, State, Stretch, check_gaussian, first_state


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's second-order solver; the last step, onto sigma = 0, is Euler's.

    Attributes:
      steps: number of steps; 2 * steps - 1 network calls.
      churn: S_churn; with 0 the solver is deterministic.
      churn_min, churn_max: levels between which noise is added.
      churn_noise: S_noise, the added noise's standard deviation.
    """

    steps: int = 18
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The times that a run visits."""
        check_gaussian(self, process)
        return process.times(self.steps)

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """All steps but the last with a correction, the last without.

        Raises:
          ValueError: for churn in a process whose times are discrete.
        """
        if self.churn and not hasattr(process, "time_of"):
            raise ValueError(f"churn moves between noise levels, which {type(process).__name__} cannot: set churn=0")
        steps = len(process.grid) - 1
        return (*((Stretch(0, steps - 1, calls=2),) if steps > 1 else ()), Stretch(steps - 1, steps, calls=1))

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state. Draws: `prior` (normal)."""
        return first_state(process, draw, shape, cond)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step. Draws, from `draw.at(i)`: `churn` (normal), with churn only."""
        if not self.churn:
            return _solve(process, predict, state, i, run)
        grid = np.asarray(process.grid)
        gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)
        inside = (grid[:-1] >= self.churn_min) & (grid[:-1] <= self.churn_max)
        sigma, raised = grid[:-1], grid[:-1] * (1 + gamma * inside)
        scale = jnp.asarray(np.sqrt(raised**2 - sigma**2) * self.churn_noise, state.x.dtype)[i]
        noise = state.draw.at(i).normal("churn", state.x.shape)
        return _solve(process, predict, dataclasses.replace(state, x=state.x + scale * noise), i, run, raised)


@dataclasses.dataclass(frozen=True)
class Euler:
    """Euler's first-order solver.

    Attributes:
      steps: number of steps and of network calls.
    """

    steps: int = 50

    def grid(self, process: Any, layout: Layout) -> tuple:
        """The times that a run visits."""
        check_gaussian(self, process)
        return process.times(self.steps)

    def runs(self, process: Any, layout: Layout, known: int = 0) -> tuple[Stretch, ...]:
        """One run."""
        return (Stretch(0, len(process.grid) - 1, calls=1),)

    def init(self, process: Any, predict: Predict, draw: Draw, shape: tuple[int, ...], cond: Cond) -> State:
        """The first state. Draws: `prior` (normal)."""
        return first_state(process, draw, shape, cond)

    def step(self, process: Any, predict: Predict, state: State, i: Any, run: Stretch) -> State:
        """One step."""
        return _solve(process, predict, state, i, run)


def _solve(
    process: Any, predict: Predict, state: State, i: Any, run: Stretch, raised: np.ndarray | None = None
) -> State:
    """From time i (or the level that churn raised it to) to time i + 1; corrected where a step makes two calls."""
    grid = np.asarray(process.grid)
    alphas, levels = _levels(process, grid, state.x.dtype)
    start = levels if raised is None else jnp.asarray(raised, state.x.dtype)
    times = jnp.asarray(grid) if raised is None else process.time_of(jnp.asarray(raised))
    steps, rows = len(grid) - 1, state.x.shape[0]

    def slope(x: Array, t: Any, level: Array, alpha: Array, place: Any) -> tuple[Array, Array]:
        at = At(t, place, steps)
        x0, _ = process.denoise(predict, alpha * x, jnp.full((rows,), t), state.cond, at=at)
        return (x - x0) / level, x0

    x, delta = state.x / alphas[i], levels[i + 1] - start[i]
    d, x0 = slope(x, times[i], start[i], alphas[i], i)
    moved = x + delta * d
    if run.calls == 2:
        corrected, x0 = slope(moved, jnp.asarray(grid)[i + 1], levels[i + 1], alphas[i + 1], i)
        moved = x + delta * (d + corrected) / 2
    return dataclasses.replace(state, x=alphas[i + 1] * moved, x0=x0)


def _levels(process: Any, grid: np.ndarray, dtype: Any) -> tuple[Array, Array]:
    """alpha and sigma / alpha at the grid's times."""
    alpha, sigma = process.alpha_sigma(jnp.asarray(grid))
    return alpha.astype(dtype), (sigma / alpha).astype(dtype)
