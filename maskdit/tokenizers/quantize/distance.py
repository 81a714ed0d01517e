"""What quantizers with a codebook share: distances to codes, look-up, losses, the straight-through estimator."""

from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array

NORM_EPSILON = 1e-12
"""Least length that a vector is divided by, as in the published quantizers."""


def normalised(x: Array) -> Array:
    """`x / max(|x|, 1e-12)` over the last axis, float32; the gradient at zero is that of `x / 1e-12`."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    small = square <= NORM_EPSILON**2
    return x / jnp.where(small, NORM_EPSILON, jnp.sqrt(jnp.where(small, 1.0, square)))


def squared_distances(z: Array, codebook: Array) -> Array:
    """`|z|^2 + |e|^2 - 2 z.e` of features `[N, c]` and codes `[V, c]`: `[N, V]`, float32."""
    product = jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)  # [N, V]; 16 bits would swap codes
    return jnp.sum(jnp.square(z), axis=1, keepdims=True) + jnp.sum(jnp.square(codebook), axis=1) - 2 * product


def straight_through(z: Array, quantized: Array) -> Array:
    """The values of `quantized` with the gradient of `z` (van den Oord et al. 2017, arXiv 1711.00937, section 3.2)."""
    return z + jax.lax.stop_gradient(quantized - z)


def mean_square(a: Array, b: Array) -> Array:
    """Mean squared difference of each example, `[B]`, for `[B, ..., c]`."""
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def entropies(logits: Array, epsilon: float = 1e-5) -> tuple[Array, Array]:
    """The mean entropy of `softmax(logits)` over rows, and the entropy of the mean row: scalars, in nats.

    Codes are chosen surely where the first is low, and all of them are used where the second is high (MaskGIT's VQGAN;
    LlamaGen's `vq_model.py`).

    Args:
      logits: `[N, V]`.
      epsilon: added to the mean inside its logarithm.
    """
    logs = jax.nn.log_softmax(logits)
    rows = jnp.exp(logs)
    mean = rows.mean(axis=0)
    return -jnp.mean(jnp.sum(rows * logs, axis=1)), -jnp.sum(mean * jnp.log(mean + epsilon))


def uniform_codes(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Codes `[V, c]` uniform within `1 / V` of zero, as published codebooks start."""
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])
