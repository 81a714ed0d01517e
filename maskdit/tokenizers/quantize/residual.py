"""Residual quantization (Lee et al. 2022, arXiv 2203.01941): each level codes what the levels before it left over."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Draw, Quantized
from maskdit.tokenizers.quantize.distance import mean_square, squared_distances, straight_through


class ResidualVQ(nn.Module):
    """Sums of one code per level.

    Its parameter is `codebook`, `[codes, channels]` where the levels share it, else `[levels, codes, channels]`.

    Attributes:
      codes: size of the vocabulary of each level.
      channels: numbers per position.
      levels: codes of one position.
      shared: whether all levels have one codebook.
      commitment: weight of `|sg(sum) - z|^2`, the mean over the sums of the first 1, 2, ... levels.
      codebook_weight: weight of the same with the gradient to the code that was added last.
    """

    codes: int = 1024
    channels: int = 8
    levels: int = 4
    shared: bool = True
    commitment: float = 0.25
    codebook_weight: float = 1.0

    def setup(self) -> None:
        """Makes the codebooks."""
        shape = (self.codes, self.channels) if self.shared else (self.levels, self.codes, self.channels)
        self.raw = self.param("codebook", nn.initializers.normal(0.1), shape, jnp.float32)

    @property
    def codes_per_position(self) -> int:
        """Ids of one position."""
        return self.levels

    def codebook(self) -> Array:
        """The codes `[codes, channels]`, or `[levels, codes, channels]`."""
        return jnp.asarray(self.raw, jnp.float32)

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features.

        Args:
          z: `[B, ..., channels]`.
          draw, train: part of the contract; not used.

        Returns:
          `values` `[B, ..., channels]`; `ids` `[B, positions * levels]`, all levels of a position side by side, coarse
          first; `losses`: `commitment` and `codebook` `[B]`; `aux`: `z`.
        """
        z, codebook, held = z.astype(jnp.float32), self.codebook(), jax.lax.stop_gradient
        total, ids = jnp.zeros_like(z), []
        losses = {"commitment": jnp.zeros(z.shape[0]), "codebook": jnp.zeros(z.shape[0])}
        for level in range(self.levels):
            codes = codebook if self.shared else codebook[level]
            left = held(z - total).reshape(-1, z.shape[-1])  # [N, c]
            ids.append(jnp.argmin(squared_distances(left, held(codes)), axis=1).astype(jnp.int32))
            total = held(total) + codes[ids[-1]].reshape(z.shape)
            losses["commitment"] += self.commitment / self.levels * mean_square(held(total), z)
            losses["codebook"] += self.codebook_weight / self.levels * mean_square(total, held(z))
        flat = jnp.stack(ids, axis=-1).reshape(z.shape[0], -1)  # [B, P * levels]
        return Quantized(values=straight_through(z, total), ids=flat, losses=losses, aux={"z": z})

    def look_up(self, ids: Array) -> Array:
        """The sums of codes of `ids` `[B, positions * levels]`: `[B, positions, channels]`."""
        split, codebook = ids.reshape(ids.shape[0], -1, self.levels), self.codebook()  # [B, P, levels]
        codes = codebook[split] if self.shared else codebook[jnp.arange(self.levels), split]
        return codes.sum(axis=2)
