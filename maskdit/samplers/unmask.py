"""Which of the tokens just drawn stay: the policies of masked decoding.

A policy is a function of a `Draft` to priorities `[B, K]`: of the tokens drawn in a step those with the least priority
become masks again. A new policy is one such function, `Confidence(policy=it)`; in a config, `spec(it)`.
"""

import functools

import jax.numpy as jnp
import numpy as np
from flax import struct

from maskdit.contracts import Array, Draw, Layout


@struct.dataclass
class Draft:
    """What a policy sees of a step.

    Attributes:
      ids: drawn tokens, and those fixed before, `[B, K]`.
      masked: where tokens were drawn in this step, `[B, K]`, bool.
      scores: of each token under the network, `[B, K]`: its guided logit, or the logarithm of its probability.
      temperature: of the step, a scalar.
      draw: the step's draw.
      layout: the network's tokens.
    """

    ids: Array
    masked: Array
    scores: Array
    temperature: Array
    draw: Draw
    layout: Layout = struct.field(pytree_node=False)


def most_confident(draft: Draft) -> Array:
    """The score with Gumbel noise that is annealed away (MaskGIT, arXiv 2202.04200, section 3.2; noise as in its code).

    Draws: `confidence` (uniform `[B, K]`).
    """
    return draft.scores + draft.temperature * gumbel(draft.draw.uniform("confidence", draft.scores.shape))


def halton(draft: Draft) -> Array:
    """A fixed order that spreads over the image: the low-discrepancy sequence of Halton with bases 2 and 3
    (Halton-MaskGIT, Besnier et al. 2025, arXiv 2503.17076). Scores do not matter."""
    order = jnp.asarray(halton_order(draft.layout.grid), jnp.float32)
    return jnp.broadcast_to(-order, draft.scores.shape)


def gumbel(uniform: Array) -> Array:
    """Gumbel noise of uniform numbers, finite at 0 too."""
    least = 1e-20
    return -jnp.log(jnp.maximum(-jnp.log(jnp.maximum(uniform, least)), least))


@functools.lru_cache
def halton_order(grid: tuple[int, ...]) -> np.ndarray:
    """When each place of a grid, row by row, first comes in the Halton sequence: a permutation of `0 .. K - 1`."""
    count, bases = int(np.prod(grid)), (2, 3, 5)[: len(grid)]
    if len(bases) != len(grid):
        raise ValueError(f"Halton order is for grids of 1 to 3 axes, got {list(grid)}")
    order: dict[int, int] = {}
    number = 0
    while len(order) < count:
        number += 1
        # the first axis with the last base: rows by 3, columns by 2, as in the paper
        place = [int(_radical_inverse(number, base) * side) for base, side in zip(bases[::-1], grid, strict=True)]
        order.setdefault(int(np.ravel_multi_index(place, grid)), len(order))
    return np.array([order[place] for place in range(count)])


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number behind the point, in reverse."""
    value, share = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value, share = value + digit * share, share / base
    return value
