"""Rotary embeddings of places (RoPE, Su et al. 2021, arXiv 2104.09864), for tokens on a grid."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array


def axial_angles(grid: tuple[int, int], channels: int, theta: float = 10000.0) -> np.ndarray:
    """The angles of tokens on a grid, `[rows * columns, channels / 2]` float32, row-major.

    The first half of the pairs of channels turns with the row of a token, the second with its column; pair k of the n
    of an axis turns by `theta ** (-k / n)` per place.

    Args:
      grid: rows and columns.
      channels: of a head.
      theta: base of the frequencies.

    Raises:
      ValueError: where the channels do not divide by four.
    """
    if channels % 4:
        raise ValueError(f"places on a grid need heads whose channels divide by 4, not {channels}: change the heads")
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return place_angles(np.stack([row.ravel(), column.ravel()], axis=1), (channels // 2, channels // 2), theta)


def place_angles(places: np.ndarray, channels: Sequence[int], theta: float = 10000.0) -> np.ndarray:
    """The angles of tokens at any places, `[N, sum(channels) / 2]` float32.

    Pair k of the n pairs of an axis turns by `theta ** (-k / n)` per place; the axes' pairs stand one after the other.

    Args:
      places: of each token along each axis, `[N, axes]`.
      channels: of a head, for each axis: two for each pair.
      theta: base of the frequencies.
    """
    pairs = [count // 2 for count in channels]
    frequencies = [theta ** (-np.arange(count, dtype=np.float64) / count) for count in pairs]
    parts = [places[:, axis, None] * frequency for axis, frequency in enumerate(frequencies)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def rotate(x: Array, angles: Array) -> Array:
    """Turns neighbouring channels (2j, 2j + 1) as the plane by angle j, in float32; the dtype stays.

    Args:
      x: queries or keys `[B, N, H, d]`.
      angles: `[N, d / 2]`, or of each head `[N, H, d / 2]`.
    """
    turn = angles[:, None] if angles.ndim == 2 else angles  # [N, 1 or H, d / 2]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    wide = x.astype(jnp.float32)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)
