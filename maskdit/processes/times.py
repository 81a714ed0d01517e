"""Distributions of times and noise levels in training."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from maskdit.contracts import Draw


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """Noise levels with ln(sigma) normal (Karras et al. 2022, arXiv 2206.00364, table 1).

    Attributes:
      mean: P_mean.
      std: P_std.
    """

    mean: float = -1.2
    std: float = 1.2

    def sample(self, draw: Draw, rows: int) -> jax.Array:
        """Noise levels `[rows]`. Draws: `sigma` (normal)."""
        return jnp.exp(self.std * draw.normal("sigma", (rows,)) + self.mean)

    def levels(self) -> tuple[float, ...]:
        """Three noise levels that cut the distribution into four bins, at -1, 0 and 1 standard deviations."""
        return tuple(math.exp(self.mean + self.std * k) for k in (-1, 0, 1))
