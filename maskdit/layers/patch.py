"""Images as rows of patches, and parts of a row of tokens.

Token ids are row-major over the grid of patches; inside a patch the order is (row, column, channel), channel fastest.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def patchify(x: Array, patch: int) -> Array:
    """Cuts `[B, H, W, C]` into patches `[B, N, patch * patch * C]`."""
    batch, height, width, channels = x.shape
    rows, columns = height // patch, width // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(tokens: Array, grid: tuple[int, ...], patch: int) -> Array:
    """The inverse of `patchify`: `[B, rows * columns, patch * patch * C]` to `[B, H, W, C]`."""
    batch, (rows, columns) = tokens.shape[0], grid
    tokens = tokens.reshape(batch, rows, columns, patch, patch, -1)
    return tokens.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, -1)


def gather_tokens(tokens: Array, keep: Array) -> Array:
    """The tokens `keep` `[B, k]` of `[B, N, D]`, in that order: `[B, k, D]`."""
    return jnp.take_along_axis(tokens, keep[..., None], axis=1, mode="clip")


def scatter_tokens(values: Array, keep: Array, fill: Array) -> Array:
    """Puts the tokens `values` `[B, k, D]` at the places `keep` `[B, k]` of `fill` `[B, N, D]`."""
    rows = jnp.arange(values.shape[0])[:, None]
    return fill.at[rows, keep].set(values, unique_indices=True, mode="promise_in_bounds")


def removed(keep: Array, tokens: int) -> Array:
    """1 where a token is not in `keep` `[B, k]`, else 0: `[B, tokens]` float32."""
    ones = jnp.ones((keep.shape[0], tokens, 1), jnp.float32)
    return scatter_tokens(jnp.zeros((*keep.shape, 1), jnp.float32), keep, ones)[..., 0]
