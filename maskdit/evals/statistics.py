"""Mean and covariance of features, streamed: memory does not depend on the number of images.

Sums and outer products are taken on the devices that have the rows, in float32, and reduced over the mesh. They are
accumulated there as pairs of float32 numbers, of which the second holds what rounding takes off the first (Knuth's
two-sum, The Art of Computer Programming 4.2.2), and become float64 at the end.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from maskdit.contracts import Array
from maskdit.evals.frechet import Gaussian


@struct.dataclass
class Pair:
    """A sum in two parts of float32.

    Attributes:
      value: the sum, rounded.
      rest: what rounding took off.
    """

    value: Array
    rest: Array

    def __add__(self, term: Array) -> "Pair":
        """The sum with another term, whose rounding error goes to the rest."""
        total = self.value + term
        taken = total - self.value
        error = (self.value - (total - taken)) + (term - taken)
        return Pair(total, self.rest + error)

    def in_double(self) -> np.ndarray:
        """The sum in float64, on the host."""
        value, rest = jax.device_get((self.value, self.rest))
        return value.astype(np.float64) + rest.astype(np.float64)


@struct.dataclass
class Moments:
    """Sums over features less a fixed point near their mean, so that little is lost where the mean is large.

    Attributes:
      count: rows that counted, int32.
      centre: the point `[D]`.
      first: sum of the differences `[D]`.
      second: sum of their outer products `[D, D]`.
    """

    count: Array
    centre: Array
    first: Pair
    second: Pair

    def add(self, features: Array, weight: Array) -> "Moments":
        """The sums with more rows; traced.

        Args:
          features: `[B, D]`, cut over the mesh or not.
          weight: `[B]`, 1 for rows that count and 0 for others.
        """
        rows = jnp.where(weight[:, None] > 0, features - self.centre, 0)  # [B, D]
        outer = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)  # [D, D]
        count = self.count + jnp.sum(weight > 0, dtype=jnp.int32)
        return Moments(count, self.centre, self.first + rows.sum(0), self.second + outer)

    def gaussian(self) -> Gaussian:
        """Mean and covariance (divisor: rows less one) in float64.

        Raises:
          ValueError: after fewer than 2 rows, of which there is no covariance.
        """
        count = int(jax.device_get(self.count))
        if count < 2:
            raise ValueError(f"a covariance takes 2 or more images, got {count}")
        difference = self.first.in_double() / count  # [D]
        outer = self.second.in_double() - count * np.outer(difference, difference)
        centre = np.asarray(jax.device_get(self.centre), np.float64)
        return Gaussian(mean=centre + difference, cov=outer / (count - 1), count=count)


def empty(centre: ArrayLike) -> Moments:
    """Sums of nothing.

    Args:
      centre: `[D]`, near the mean of what is to come.
    """
    centre = jnp.asarray(centre, jnp.float32)
    wide = len(centre)
    zeros = [Pair(jnp.zeros(shape), jnp.zeros(shape)) for shape in ((wide,), (wide, wide))]
    return Moments(jnp.zeros((), jnp.int32), centre, *zeros)
