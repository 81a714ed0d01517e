"""Embeddings of places, times and labels."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maskdit.layers.linear import Linear

Array = jax.Array


def sincos_2d(width: int, grid: tuple[int, ...], span: int | None = None) -> np.ndarray:
    """The fixed table of places, `[rows * columns, width]` float32 (MAE, He et al. 2022; as DiT uses it).

    The first half of the channels encodes the column of a token, the second half its row. Each half is the sine, then
    the cosine, of the index times 10000^(-k / (width / 4)), k = 0 ... width / 4 - 1.

    Args:
      width: channels.
      grid: rows and columns.
      span: indices run over [0, span) along each side whatever the grid is, as a table of that many rows and columns
        is stretched over another grid (PixArt-alpha, Chen et al. 2023, arXiv 2310.00426); None for integer indices.

    Raises:
      ValueError: where the width does not divide by four.
    """
    if width % 4:
        raise ValueError(f"a table of places needs a width that divides by 4, not {width}: change the width")
    frequency = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    axes = [np.arange(side) * (1 if span is None else span / side) for side in grid]
    row, column = np.meshgrid(*axes, indexing="ij")

    def half(index: np.ndarray) -> np.ndarray:
        angle = index.reshape(-1, 1) * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    return np.concatenate([half(column), half(row)], axis=1).astype(np.float32)


def time_features(t: Array, size: int = 256) -> Array:
    """Cosines, then sines, of `t` `[B]` at `size / 2` frequencies from 1 down to nearly 1e-4: `[B, size]` float32."""
    half = size // 2
    frequency = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbed(nn.Module):
    """`fc2(silu(fc1(time_features(t))))`, in float32: `[B]` to `[B, width]`.

    Attributes:
      width: width of the embedding.
      features: number of cosines and sines.
    """

    width: int
    features: int = 256

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """Embeds times `[B]`, which enter unscaled."""
        init = nn.initializers.normal(0.02)
        hidden = Linear(self.width, axes=(None, "time"), kernel_init=init, name="fc1")(time_features(t, self.features))
        return Linear(self.width, axes=("time", "embed"), kernel_init=init, name="fc2")(nn.silu(hidden))


class LabelEmbed(nn.Module):
    """Sum of one table look-up per named label: `[B, width]` float32.

    The id equal to the number of classes is the null label. With `null_row` it has a learned row of its own (DiT); else
    its embedding is exactly zero, as of an all-zero one-hot vector in a bias-free layer (MaskDiT).

    Attributes:
      classes: label name -> number of classes.
      width: width of the embedding.
      null_row: whether the tables have a row for the null label.
    """

    classes: Mapping[str, int]
    width: int
    null_row: bool

    @nn.compact
    def __call__(self, labels: Mapping[str, Array]) -> Array:
        """Embeds class ids, `[B]` by label name.

        Raises:
          ValueError: where the names are not those of `classes`.
        """
        if set(labels) != set(self.classes):
            raise ValueError(
                f"the network is conditioned on the labels {sorted(self.classes)} but was given {sorted(labels)}: "
                "pass exactly these"
            )
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        parts = []
        for name, count in self.classes.items():
            table = self.param(name, init, (count + self.null_row, self.width), jnp.float32)
            row = jnp.take(table, labels[name], axis=0, mode="clip")  # [B, width]
            parts.append(row if self.null_row else jnp.where((labels[name] < count)[:, None], row, 0.0))
        return sum(parts[1:], parts[0])
