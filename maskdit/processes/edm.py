"""EDM: x = x0 + sigma * eps, with preconditioning (Karras et al. 2022, arXiv 2206.00364), and MaskDiT's masked loss."""

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Loss, Plan, Predict, Prediction
from maskdit.layers.patch import patchify
from maskdit.processes.masking import draw_kept, mean_where, reconstruction
from maskdit.processes.times import LogNormal


@dataclasses.dataclass(frozen=True)
class EDM:
    """The EDM process. Its time is the noise level sigma.

    Attributes:
      sigma_data: standard deviation of the data.
      noise_levels: distribution of sigma in training.
      sigma_min, sigma_max, rho: the levels visited by a sampler (eq. 5).
      reconstruction_weight: weight of MaskDiT's reconstruction term in masked steps (arXiv 2306.09305, eq. 5).
      grid: the levels of a sampling run, the last one 0; set by `respace`.
    """

    sigma_data: float = 0.5
    noise_levels: LogNormal = LogNormal()
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    reconstruction_weight: float = 0.1
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def scalings(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """c_skip, c_out, c_in and c_noise (table 1), shaped like `sigma`."""
        total = sigma**2 + self.sigma_data**2
        return (
            self.sigma_data**2 / total,
            sigma * self.sigma_data / jnp.sqrt(total),
            1 / jnp.sqrt(total),
            jnp.log(sigma) / 4,
        )

    def weight(self, sigma: Array) -> Array:
        """lambda(sigma), which makes the effective weight of the network's error 1 (table 1)."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def denoise(self, predict: Predict, xt: Array, sigma: Array, cond: Cond, **kw: Any) -> tuple[Array, Prediction]:
        """D(x; sigma), the estimate of x0 (eq. 7), and the network's prediction.

        Args:
          predict: the network, called at c_noise.
          xt: noisy input `[B, H, W, C]`.
          sigma: noise level of each example, `[B]`.
          cond: the condition.
          **kw: passed on to the network.
        """
        skip, out, scale, noise = self.scalings(sigma)
        prediction = predict(_rows(scale, xt) * xt, noise, cond, **kw)
        return _rows(skip, xt) * xt + _rows(out, xt) * prediction.x.astype(xt.dtype), prediction

    def loss(self, predict: Predict, z: Array, cond: Cond, draw: Draw, *, step: Array, plan: Plan) -> Loss:
        """Denoising loss (eq. 8); in a masked step the mean over kept patches plus the reconstruction term.

        Draws: `sigma` (normal `[B]`), `noise` (normal, shaped like `z`), `mask` (uniform `[B, N]`, masked steps only).
        """
        rows, layout = z.shape[0], predict.layout
        sigma = self.noise_levels.sample(draw, rows)
        xt = z + _rows(sigma, z) * draw.normal("noise", z.shape)
        keep = None if plan.keep is None else draw_kept(draw, rows, layout.tokens, plan.keep)
        x0, prediction = self.denoise(predict, xt, sigma, cond, keep=keep)
        chex.assert_equal_shape([x0, z])
        error = _rows(self.weight(sigma), z) * jnp.square(x0 - z)
        metrics = {}
        if keep is None:
            value = error.mean(tuple(range(1, z.ndim)))
        else:
            mask = prediction.aux["mask"]  # [B, N], 1 = masked
            value = metrics["denoising"] = mean_where(patchify(error, layout.patch).mean(-1), 1 - mask)
            if self.reconstruction_weight:
                metrics["reconstruction"] = reconstruction(x0, xt, mask, layout)
                value = value + self.reconstruction_weight * metrics["reconstruction"]
        return Loss(
            value=value, weight=jnp.ones_like(value), metrics=metrics, bins=self._bins(sigma), prediction=prediction
        )

    def _bins(self, sigma: Array) -> dict[str, Array]:
        edges = (0.0, *self.noise_levels.levels(), float("inf"))
        return {
            f"sigma_{low:.2g}-{high:.2g}": ((sigma >= low) & (sigma < high)).astype(jnp.float32)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        }

    def prior(self, draw: Draw, shape: tuple[int, ...]) -> Array:
        """The noisiest state of a sampling run. Draws: `prior` (normal)."""
        return draw.normal("prior", shape) * self.grid[0]

    def times(self, steps: int, spacing: str | None = None) -> tuple[float, ...]:
        """The noise levels of a run of so many steps, falling, with 0 at the end (eq. 5).

        Raises:
          ValueError: for fewer than one step, or any `spacing`: EDM has one rule.
        """
        if steps < 1:
            raise ValueError(f"a sampling run takes at least 1 step, got {steps}")
        if spacing is not None:
            raise ValueError(f"the EDM process spaces its levels by rho; it has no spacing '{spacing}'")
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = np.arange(steps) / max(steps - 1, 1)
        return (*((high + ramp * (low - high)) ** self.rho).tolist(), 0.0)

    def respace(self, times: tuple[float, ...]) -> "EDM":
        """The process with the levels of a sampling run."""
        return dataclasses.replace(self, grid=tuple(times))

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """x_t = alpha x0 + sigma eps at a time: (1, sigma)."""
        return jnp.ones_like(t), t

    def hold(self, z: Array, i: Any, draw: Draw) -> Array:
        """Clean latents `z` noised to place i of the grid. Draws: `noise` (normal)."""
        return z + jnp.asarray(self.grid, z.dtype)[i] * draw.normal("noise", z.shape)

    def time_of(self, ratio: Array) -> Array:
        """The time at which sigma / alpha has a value."""
        return ratio


def _rows(values: Array, like: Array) -> Array:
    return jnp.asarray(values, like.dtype).reshape((-1,) + (1,) * (like.ndim - 1))
