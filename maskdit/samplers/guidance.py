"""Guidance: a prediction function around a prediction function.

Both kinds move the prediction away from a second one: `second + weight * (first - second)`. With weight 1 nothing is
guided, and no second pass is made.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Predict, Prediction
from maskdit.samplers.sampling import At

_SHARES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "constant": lambda progress, power: np.ones_like(progress),
    "linear": lambda progress, power: progress,
    "cosine": lambda progress, power: (1 - np.cos(np.pi * progress**power)) / 2,
    "flipped-cosine": lambda progress, power: np.cos(np.pi * progress**power) / 2,
}


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): the second prediction is the network's own
    with the condition dropped. Both are made in one pass over a doubled batch.

    The weight may change over a run: at step i of S it is `start + (weight - start) * share(progress)`, with `progress`
    i / S. Published token samplers that add `s * (conditional - unconditional)` to the conditional logits have the
    weight 1 + s here.

    Attributes:
      weight: 1 is no guidance.
      channels: how many of the first channels are guided; None for all. Published DiT results guide three.
      interval: times (of the process; noise levels for EDM) within which guidance is on (Kynkaanniemi et al. 2024,
        arXiv 2404.07724); None for always.
      schedule: `constant`; or the share grows: `linear`, as progress; `cosine`, as (1 - cos(pi progress^power)) / 2,
        which with a power other than 1 is known as power-cosine; `flipped-cosine` is cos(pi progress^power) / 2.
      power: of the cosines; with 0 the share of `cosine` is 1 throughout.
      start: what the weight grows from.
      ahead: whether progress is (i + 1) / S.

    Raises:
      ValueError: for a weight that is not finite, an unknown schedule, or a negative power.
    """

    weight: float = 1.0
    channels: int | None = None
    interval: tuple[float, float] | None = None
    schedule: str = "constant"
    power: float = 1.0
    start: float = 1.0
    ahead: bool = False

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if self.schedule not in _SHARES:
            raise ValueError(f"guidance schedule '{self.schedule}' is none of {', '.join(_SHARES)}")
        if self.power < 0:
            raise ValueError(f"the power of a guidance schedule is 0 or more, got {self.power:g}")

    def weights(self, steps: int) -> np.ndarray:
        """The weight at each step of a run, float64 `[steps]`."""
        progress = (np.arange(steps) + self.ahead) / steps
        return self.start + (self.weight - self.start) * _SHARES[self.schedule](progress, self.power)

    def active(self, at: At) -> bool:
        """Whether a call at this place of a run is guided; known before the run."""
        return bool(self.weights(at.steps)[at.step] != 1) and _inside(at.t, self.interval)

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
            weight = jnp.asarray(self.weights(at.steps), jnp.float32)[at.step]
            guided = _guide(first, second, _weight(weight, self.interval, at), self.channels)
            return Prediction(x=guided, aux=aux, cache=both.cache)

        memory = predict.init_cache
        doubled = None if memory is None else lambda rows: memory(2 * rows)
        return _Guided(call=call, null=predict.null, layout=predict.layout, init_cache=doubled)


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

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def active(self, at: At) -> bool:
        """Whether a call at this place of a run is guided; known before the run."""
        return self.weight != 1 and _inside(at.t, self.interval)

    def wrap(self, predict: Predict, weak: Predict | None = None) -> Predict:
        """The guided prediction.

        Raises:
          ValueError: where no weak network is given, and where only one of the two has a memory.
        """
        if weak is None:
            raise ValueError("this guidance needs a weak network: pass weak=")

        if (predict.init_cache is None) != (weak.init_cache is None):
            raise ValueError("one of the two networks has a memory and the other none: guide with one of the same kind")

        def call(x: Array, t: Array, cond: Cond, *, at: At, cache: Any = None, **kw: Any) -> Prediction:
            own, other = ({}, {}) if cache is None else ({"cache": cache[0]}, {"cache": cache[1]})
            first, second = predict(x, t, cond, **own, **kw), weak(x, t, cond, **other, **kw)
            weight = _weight(jnp.asarray(self.weight, jnp.float32), self.interval, at)
            caches = None if cache is None else (first.cache, second.cache)
            return Prediction(x=_guide(first.x, second.x, weight, None), aux=first.aux, cache=caches)

        memories = predict.init_cache, weak.init_cache
        paired = None if None in memories else lambda rows: tuple(memory(rows) for memory in memories)  # type: ignore
        return _Guided(call=call, null=predict.null, layout=predict.layout, init_cache=paired)


class _Guided(Predict):
    """A `Predict` that hands on where in the run it is called."""

    def __call__(self, x: Array, t: Array, cond: Cond, **kw: Any) -> Prediction:
        return self.call(x, t, cond, **kw)


def _check_weight(weight: float) -> None:
    if not math.isfinite(weight):
        raise ValueError(f"the weight of guidance is a finite number, got {weight}")


def _inside(t: float, interval: tuple[float, float] | None) -> bool:
    return interval is None or interval[0] <= t <= interval[1]


def _weight(weight: Array, interval: tuple[float, float] | None, at: At) -> Array:
    """The weight at a place of a run: 1 outside the interval."""
    if interval is None:
        return weight
    return jnp.where((at.t >= interval[0]) & (at.t <= interval[1]), weight, 1.0)


def _guide(first: Array, second: Array, weight: Array, channels: int | None) -> Array:
    guided = second + weight.astype(first.dtype) * (first - second)
    if channels is None:
        return guided
    return jnp.concatenate([guided[..., :channels], first[..., channels:]], axis=-1)
