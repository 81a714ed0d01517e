"""Dropout (Srivastava et al. 2014, JMLR 15) whose masks come from a draw: each example's from its own row."""

import jax
import jax.numpy as jnp

from maskdit.draw import Draw

Array = jax.Array


def check_rate(name: str, rate: float) -> None:
    """Refuses a field that is no share of values to drop.

    Raises:
      ValueError: for a rate below 0, or of 1 and more.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is the share of values that are dropped in training, from 0 to below 1, got {rate}")


def factors(shape: tuple[int, ...], rate: float, draw: Draw | None, name: str) -> Array | None:
    """What dropout multiplies an array of this shape by: 0 with probability `rate`, else 1 / (1 - rate); float32.

    Args:
      shape: of the array, `[B, ...]`.
      rate: share of the values that are dropped, in [0, 1).
      draw: where it comes from; None outside of training.
      name: of the one thing that is drawn, uniform numbers of that shape.

    Returns:
      The factors, or None where nothing is dropped.
    """
    if draw is None or rate == 0:
        return None
    return jnp.where(draw.uniform(name, shape) < rate, 0.0, 1 / (1 - rate))


def drop_out(x: Array, rate: float, draw: Draw | None, name: str) -> Array:
    """`x` `[B, ...]` with values dropped and the others scaled so that the mean stays; arguments as in `factors`."""
    scales = factors(x.shape, rate, draw, name)
    return x if scales is None else x * scales.astype(x.dtype)


def block_draws(draw: Draw | None, depth: int) -> Draw | None:
    """A draw for each of `depth` blocks, block i's being `draw.at(i)`, as `run_stack` takes them; None for None."""
    return None if draw is None else jax.tree.map(lambda *keys: jnp.stack(keys), *(draw.at(i) for i in range(depth)))
