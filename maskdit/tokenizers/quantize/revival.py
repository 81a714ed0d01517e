"""Codes that nothing is nearest to: for how long, and which features of a batch they are brought back to."""

import jax.numpy as jnp

from maskdit.contracts import Array
from maskdit.draw import Draw

SHARE = 0.125
"""Share of the features of a batch that one unused code may be pulled to."""
_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, lie evenly


def next_idle(idle: Array, ids: Array) -> Array:
    """Updates since each code was used, `[V]` int32, after one with the ids of a batch (of any shape)."""
    used = jnp.zeros(idle.shape, jnp.bool_).at[ids.reshape(-1)].set(True)
    return jnp.where(used, 0, idle + 1)


def dealt(dead: Array, z: Array, draw: Draw) -> Array:
    """One random feature of the batch for each dead code, all different as long as there are enough: `[V, c]`.

    The rows of codes that are not dead mean nothing.

    Args:
      dead: `[V]`, bool.
      z: features `[B, P, c]`.
      draw: of the batch. Draws: `revival` (uniform `[B, P]`): features are dealt in the order of these numbers.
    """
    order = jnp.argsort(draw.uniform("revival", z.shape[:2]).reshape(-1))  # [B*P]
    place = jnp.maximum(jnp.cumsum(dead) - 1, 0) % order.size  # the how manieth dead code it is
    return z.reshape(-1, z.shape[-1])[order[place]]


def targets(z: Array, distances: Array, draw: Draw) -> Array:
    """For each code the nearest of its own random eighth of the batch's features: `[V, c]`.

    A code that moves by small steps needs a goal that stays about where it is: towards features taken anew from
    everywhere all codes would go to the mean. The shares of codes differ, so that close codes part.

    Args:
      z: features `[B, P, c]`.
      distances: of all features to all codes, `[B*P, V]`.
      draw: of the batch. Draws: `revival` (uniform `[B, P]`), the place of each feature among the shares.
    """
    place = draw.uniform("revival", z.shape[:2]).reshape(-1, 1)  # [N, 1]
    shift = jnp.mod(jnp.arange(distances.shape[1]) * _GOLDEN, 1.0)  # [V]
    share = jnp.mod(place + shift, 1.0) < SHARE  # [N, V]
    share |= ~share.any(axis=0)  # a small batch may have none: then all
    return z.reshape(-1, z.shape[-1])[jnp.argmin(jnp.where(share, distances, jnp.inf), axis=0)]


def anchored(codes: Array, z: Array, distances: Array, share: Array, decay: float) -> Array:
    """Codes `[V, c]` moved to their nearest features, the more the less they are used (CVQ-VAE, Zheng and Vedaldi 2023,
    arXiv 2307.15139).

    Args:
      codes: `[V, c]`.
      z: features `[N, c]`.
      distances: of features to codes, `[N, V]`.
      share: decayed share of the features that chose each code, `[V]`.
      decay: by which it decays.
    """
    pull = jnp.exp(-share * (share.size * 10 / (1 - decay)) - 1e-3)[:, None]  # [V, 1]
    return codes * (1 - pull) + z[jnp.argmin(distances, axis=0)] * pull
