"""Errors of the pixels of reconstructions."""

import dataclasses
import math

import jax.numpy as jnp

from maskdit.contracts import Array


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """`(l1 * |x - y| + l2 * (x - y)^2) / exp(logvar)`, the mean over pixels and channels.

    `exp(logvar)` is the variance of a Gaussian likelihood, fixed here; its constants are left out (Rombach et al.
    2022, arXiv 2112.10752, learn it).

    Attributes:
      l1, l2: weights of the absolute and of the squared error.
      logvar: log variance of the likelihood.
      unit_range: whether errors are those of images in [0, 1], half as large: published weights of TiTok are for those.

    Raises:
      ValueError: for a negative weight.
    """

    l1: float = 0.0
    l2: float = 1.0
    logvar: float = 0.0
    unit_range: bool = False

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def value(self, images: Array, reconstructions: Array) -> Array:
        """The weighted error of each example.

        Args:
          images, reconstructions: `[B, H, W, C]` in [-1, 1].

        Returns:
          `[B]`, float32.
        """
        gap = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
        gap = gap / 2 if self.unit_range else gap
        axes = tuple(range(1, gap.ndim))
        value = jnp.zeros(len(gap), jnp.float32)
        if self.l1:
            value = value + self.l1 * jnp.abs(gap).mean(axes)
        if self.l2:
            value = value + self.l2 * jnp.square(gap).mean(axes)
        return value * math.exp(-self.logvar)
