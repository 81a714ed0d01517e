"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): channels are rounded to a few levels."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Draw, Quantized
from maskdit.tokenizers.quantize.distance import straight_through

EPSILON = 1e-3
"""By this share the bound stays inside the outermost levels, so that rounding never leaves them."""


class FSQ(nn.Module):
    """Bounds every channel by a tanh and rounds it; the codes are all combinations of levels, and nothing is trained.

    An id is the number whose digits are the levels, the first channel the fastest.

    Attributes:
      levels: number of levels of each channel.

    Raises:
      ValueError: for a channel with fewer than two levels, and for more codes than 32 bits count.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def setup(self) -> None:
        """Checks the levels."""
        if not self.levels or min(self.levels) < 2 or self.codes >= 2**31:
            raise ValueError(
                f"FSQ has levels={tuple(self.levels)}: give each channel 2 levels or more, and less than 2^31 in all"
            )

    @property
    def codes(self) -> int:
        """Size of the vocabulary."""
        return math.prod(self.levels)

    @property
    def channels(self) -> int:
        """Numbers per position."""
        return len(self.levels)

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features.

        Args:
          z: `[B, ..., channels]`.
          draw, train: part of the contract; not used.

        Returns:
          `values`: levels spread over [-1, 1]; an even number of them reaches -1 but not 1. `ids` `[B, ...]`; `aux`:
          `z`, the bounded features in the same units.
        """
        half = self._half()
        bounded = self.bound(z.astype(jnp.float32))
        rounded = jnp.round(bounded)
        digits = (rounded + half).astype(jnp.int32)
        ids = jnp.sum(digits * self._base(), axis=-1)
        return Quantized(values=straight_through(bounded, rounded) / half, ids=ids, aux={"z": bounded / half})

    def bound(self, z: Array) -> Array:
        """Features `[..., channels]` between the outermost levels, one apart; about zero at zero (listing 1)."""
        levels = np.asarray(self.levels)
        reach = (levels - 1) * (1 - EPSILON) / 2
        offset = np.where(levels % 2 == 1, 0.0, 0.5)  # an even number of levels lies half a level off centre
        shift = np.tan(offset / reach)
        return jnp.tanh(z + shift.astype(np.float32)) * reach.astype(np.float32) - offset.astype(np.float32)

    def look_up(self, ids: Array) -> Array:
        """The codes of `ids` `[...]`: `[..., channels]`."""
        digits = (ids[..., None] // self._base()) % jnp.asarray(self.levels, jnp.int32)
        half = self._half()
        return (digits - half) / half

    def codebook(self) -> Array:
        """All codes in the order of their ids, `[codes, channels]`."""
        return self.look_up(jnp.arange(self.codes, dtype=jnp.int32))

    def _half(self) -> Array:
        return jnp.asarray([level // 2 for level in self.levels], jnp.float32)

    def _base(self) -> Array:
        return jnp.asarray([math.prod(self.levels[:i]) for i in range(len(self.levels))], jnp.int32)
