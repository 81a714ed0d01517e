"""Guidance: a prediction function around a prediction function.

Both kinds move the prediction away from a second one: `second + weight * (first - second)`. With weight 1 nothing is
guided, and no second pass is made.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Predict, Prediction
from maskdit.samplers.sampling import At


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): the second prediction is the network's own
    with the condition dropped. Both are made in one pass over a doubled batch.

    Attributes:
      weight: 1 is no guidance.
      channels: how many of the first channels are guided; None for all. Published DiT results guide three.
      interval: times (of the process; noise levels for EDM) within which guidance is on (Kynkaanniemi et al. 2024,
        arXiv 2404.07724); None for always.
    """

    weight: float = 1.0
    channels: int | None = None
    interval: tuple[float, float] | None = None

    def active(self, at: At) -> bool:
        """Whether a call at this place of a run is guided; known before the run."""
        return self.weight != 1 and _inside(at.t, self.interval)

    def wrap(self, predict: Predict, weak: Predict | None = None) -> Predict:
        """The guided prediction.

        Raises:
          ValueError: where a weak network is given, which this guidance does not use.
        """
        if weak is not None:
            raise ValueError("classifier-free guidance takes no weak network: use WeakNetwork guidance")

        def call(x: Array, t: Array, cond: Cond, *, at: At, **kw: Any) -> Prediction:
            double = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x, t, cond), (x, t, predict.null(cond)))
            both = predict(*double, **kw)
            first, second = jnp.split(both.x, 2)
            aux = jax.tree.map(lambda a: jnp.split(a, 2)[0], both.aux)
            return Prediction(x=_guide(first, second, _weight(self, at), self.channels), aux=aux)

        return _Guided(call=call, null=predict.null, layout=predict.layout)


@dataclasses.dataclass(frozen=True)
class WeakNetwork:
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): the second prediction is a weaker network's, with the same
    condition.

    Attributes:
      weight: 1 is no guidance.
      interval: times within which guidance is on; None for always.
    """

    weight: float = 1.0
    interval: tuple[float, float] | None = None

    def active(self, at: At) -> bool:
        """Whether a call at this place of a run is guided; known before the run."""
        return self.weight != 1 and _inside(at.t, self.interval)

    def wrap(self, predict: Predict, weak: Predict | None = None) -> Predict:
        """The guided prediction.

        Raises:
          ValueError: where no weak network is given.
        """
        if weak is None:
            raise ValueError("this guidance needs a weak network: pass weak=")

        def call(x: Array, t: Array, cond: Cond, *, at: At, **kw: Any) -> Prediction:
            first, second = predict(x, t, cond, **kw), weak(x, t, cond, **kw)
            return Prediction(x=_guide(first.x, second.x, _weight(self, at), None), aux=first.aux)

        return _Guided(call=call, null=predict.null, layout=predict.layout)


class _Guided(Predict):
    """A `Predict` that hands on where in the run it is called."""

    def __call__(self, x: Array, t: Array, cond: Cond, **kw: Any) -> Prediction:
        return self.call(x, t, cond, **kw)


def _inside(t: float, interval: tuple[float, float] | None) -> bool:
    return interval is None or interval[0] <= t <= interval[1]


def _weight(guidance: Any, at: At) -> Array:
    """The weight at a place of a run: 1 outside the interval."""
    if guidance.interval is None:
        return jnp.asarray(guidance.weight, jnp.float32)
    inside = (at.t >= guidance.interval[0]) & (at.t <= guidance.interval[1])
    return jnp.where(inside, guidance.weight, 1.0).astype(jnp.float32)


def _guide(first: Array, second: Array, weight: Array, channels: int | None) -> Array:
    guided = second + weight.astype(first.dtype) * (first - second)
    if channels is None:
        return guided
    return jnp.concatenate([guided[..., :channels], first[..., channels:]], axis=-1)
