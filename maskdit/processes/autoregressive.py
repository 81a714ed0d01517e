"""Tokens told one after the other, in an order that training shuffles less and less (RAR, Yu et al. 2024, arXiv
2411.00776).

The chain rule of probability holds in any order. A network that learns all orders first sees context on both sides of a
token; annealed to raster order, it is an ordinary autoregressive model, whose likelihood is exact.
"""

import dataclasses
import math

import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Loss, Plan, Predict
from maskdit.processes.masked import TokenProcess, cross_entropy


@dataclasses.dataclass(frozen=True)
class Autoregressive(TokenProcess):
    """Cross entropy of each token given those before it, in a random or in raster order (section 3.2).

    The network is called as `predict(ids, t, cond, orders=...)` on whole sequences, see `maskdit.networks.rar.RAR`.

    Attributes:
      anneal_start: training step until which every example has a random order.
      anneal_end: training step from which all have raster order; in between the share of random ones falls linearly.
        With 0 for both all training is in raster order.
      label_smoothing: share of the target that is spread over all codes.
      grid: the progress of a sampling run; set by `respace`.

    Raises:
      ValueError: for steps that do not follow each other, and a smoothing outside of [0, 1).
    """

    anneal_start: int = 125_000
    anneal_end: int = 187_500
    label_smoothing: float = 0.0
    grid: tuple[float, ...] = ()
    exact = True

    def __post_init__(self) -> None:
        if not 0 <= self.anneal_start <= self.anneal_end:
            raise ValueError(
                f"orders are annealed from step anneal_start={self.anneal_start} to anneal_end={self.anneal_end}: give "
                "steps from 0, the second not before the first"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1), got {self.label_smoothing:g}")

    def random_ratio(self, step: Array) -> Array:
        """The share of examples with a random order at a training step, float32."""
        span = max(self.anneal_end - self.anneal_start, 1)
        left = 1 - (jnp.asarray(step, jnp.float32) - self.anneal_start) / span
        return jnp.where(jnp.asarray(step) >= self.anneal_end, 0.0, jnp.clip(left, 0.0, 1.0))

    def orders(self, shape: tuple[int, ...], draw: Draw, step: Array) -> Array:
        """Which place is told j-th, `[B, K]` int32.

        Args:
          shape: B and K.
          draw: draws `random` (uniform `[B]`; the order is random where it is below the ratio) and `order` (uniform
            `[B, K]`; places follow each other by rising number).
          step: the training step.
        """
        rows, tokens = shape
        shuffled = jnp.argsort(draw.uniform("order", (rows, tokens)), axis=1)
        chosen = draw.uniform("random", (rows,)) < self.random_ratio(step)
        return jnp.where(chosen[:, None], shuffled, jnp.arange(tokens))

    def loss(self, predict: Predict, z: Array, cond: Cond, draw: Draw, *, step: Array, plan: Plan) -> Loss:
        """The mean over tokens, nats.

        Args:
          predict: the network.
          z: ids `[B, K]`, in raster order.
          cond: the condition.
          draw: draws `random`, `order`, see `orders`, and `network`.
          step: the training step, by which orders are annealed.
          plan: not used.
        """
        orders = self.orders(z.shape, draw, step)
        prediction = predict(z, _unmasked(z), cond, orders=orders, draw=draw.named("network"))
        target = jnp.take_along_axis(z, orders, axis=1)
        value = cross_entropy(prediction.x, target, self.label_smoothing).mean(1)
        accuracy = (prediction.x.argmax(-1) == target).mean(1)
        return Loss(value=value, weight=jnp.ones_like(value), metrics={"accuracy": accuracy}, prediction=prediction)

    def bits(self, predict: Predict, z: Array, cond: Cond, draw: Draw) -> Array:
        """Bits per token in raster order, `[B]`: exact, nothing is drawn."""
        del draw
        return cross_entropy(predict(z, _unmasked(z), cond).x, z).mean(1) / math.log(2)


def _unmasked(z: Array) -> Array:
    """The share of masked tokens that the network is told: nothing is masked, the order hides what is to come."""
    return jnp.zeros((z.shape[0],), jnp.float32)
