"""Learning-rate schedules, optimizers, and the groups of parameters that they train."""

import dataclasses
import re
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from maskdit.config import ConfigError
from maskdit.contracts import Array, PyTree


class Schedule(Protocol):
    """A learning rate as a function of the update's number, counted from 1."""

    def rate(self, update: Any, horizon: int) -> Array:
        """The learning rate of an update; `horizon` is the number of updates that the schedule spans."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant rate after a linear warmup.

    Attributes:
      lr: the rate.
      warmup: updates over which it rises from 0.
    """

    lr: float = 1e-4
    warmup: float = 0

    def rate(self, update: Any, horizon: int) -> Array:
        """The rate of an update."""
        return self.lr * _ramp(update, self.warmup)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warmup, then half a cosine down to a share of the rate at the horizon (Loshchilov and Hutter 2017, arXiv
    1608.03983).

    Attributes:
      lr: the highest rate.
      warmup: updates over which it rises from 0.
      final: share of `lr` that is left at the horizon.
    """

    lr: float = 1e-4
    warmup: float = 0
    final: float = 0.0

    def rate(self, update: Any, horizon: int) -> Array:
        """The rate of an update."""
        progress = jnp.clip((update - self.warmup) / max(horizon - self.warmup, 1), 0, 1)
        shape = self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return self.lr * _ramp(update, self.warmup) * shape


@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    """Linear warmup, constant, then falling with the root of the update's number (EDM2, arXiv 2312.02696, eq. 67).

    Attributes:
      lr: the highest rate.
      warmup: updates over which it rises from 0.
      decay_from: update from which it falls.
    """

    lr: float = 1e-2
    warmup: float = 0
    decay_from: float = 70000.0

    def rate(self, update: Any, horizon: int) -> Array:
        """The rate of an update."""
        return self.lr * _ramp(update, self.warmup) / jnp.sqrt(jnp.maximum(update / self.decay_from, 1))


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); with `weight_decay` 0, Adam.

    Attributes:
      schedule: the learning rate.
      b1, b2, eps: Adam's numbers.
      weight_decay: decoupled decay, of arrays with two or more axes only.
      undecayed: regular expressions; a leaf with one in its path, such as `network/embed/tokens`, is not decayed.
      clip: largest global norm of the gradient; None for no clipping.
      moment_dtype: dtype in which the first moment is stored, `float32` or `bfloat16`, which halves it; None for that
        of the parameters. The second moment keeps the parameters' dtype: at a `b2` of 0.999 it changes by less per
        update than bfloat16 resolves (a 256th), and would stand still.
    """

    schedule: Schedule = Constant()
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    moment_dtype: str | None = None
    undecayed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.moment_dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"moment_dtype is 'float32', 'bfloat16' or None, got '{self.moment_dtype}'")

    def transform(self, horizon: int) -> optax.GradientTransformation:
        """The optax transformation, for schedules that span `horizon` updates."""
        adamw = optax.adamw(
            lambda count: self.schedule.rate(count + 1, horizon),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=self._decayed,
        )
        if self.moment_dtype is not None:
            adamw = _first_moment_in(adamw, self.moment_dtype)
        return adamw if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), adamw)

    def _decayed(self, params: PyTree) -> PyTree:
        """Whether a leaf is decayed, for a tree of them."""

        def decayed(path: Any, leaf: Array) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return leaf.ndim > 1 and not any(re.search(pattern, name) for pattern in self.undecayed)

        return jax.tree_util.tree_map_with_path(decayed, params)


def _first_moment_in(adamw: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Stores Adam's first moment in a dtype and computes with it in float32.

    Optax's own `mu_dtype` computes in that dtype too, where `b1` = 0.9 becomes 0.8984 and updates 1.5 % smaller.
    """

    def cast(state: PyTree, to: str) -> PyTree:
        return jax.tree.map(
            lambda node: node._replace(mu=optax.tree.cast(node.mu, to)) if _adam(node) else node, state, is_leaf=_adam
        )

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        updates, state = adamw.update(grads, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(adamw.init(params), dtype), update)


def _adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that are trained together.

    Attributes:
      optimizer: how.
      patterns: regular expressions; a leaf belongs to the group if one of them is found in its path, such as
        `network/blocks_0/attn/qkv/kernel`.
      frozen: regular expressions of leaves that are left out all the same: no gradient, moments or averages.
      rates: pairs of a regular expression and a factor of the learning rate; the first that is found in a leaf's path
        holds for it, as in `(("label_embed", 10.0),)`.
      every: the group is updated in every so-many-th step.
      start: the first step in which it is updated.
    """

    optimizer: AdamW = AdamW()
    patterns: tuple[str, ...] = ("",)
    frozen: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    every: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.start < 0:
            raise ConfigError(
                f"a group's every is 1 or more and its start 0 or more, got {self.every} and {self.start}"
            )
        if not all(_is_rate(pair) for pair in self.rates):
            raise ConfigError(f"a group's rates are pairs (pattern, factor of 0 or more), got {self.rates!r}")
        for pattern in (*self.patterns, *self.frozen, *(pattern for pattern, _ in self.rates)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"a group's pattern '{pattern}' is no regular expression: {error}") from error

    def select(self, params: PyTree) -> PyTree:
        """The part of a tree of parameters that the group trains.

        Raises:
          ConfigError: where nothing matches `patterns`, nothing is left, or a pattern of `frozen` or `rates` is found
            in no path.
        """
        leaves = traverse_util.flatten_dict(select(params, self.patterns), sep="/")
        for pattern in (*self.frozen, *(pattern for pattern, _ in self.rates)):
            if not any(re.search(pattern, path) for path in leaves):
                raise ConfigError(
                    f"no parameter of the group matches '{pattern}'; paths look like '{next(iter(leaves))}'"
                )
        left = {path: leaf for path, leaf in leaves.items() if not any(re.search(p, path) for p in self.frozen)}
        if not left:
            raise ConfigError(f"frozen={self.frozen} leaves nothing to train")
        return traverse_util.unflatten_dict(left, sep="/")

    def transform(self, horizon: int) -> optax.GradientTransformation:
        """The optax transformation of the selected leaves, for schedules that span `horizon` updates."""
        transform = self.optimizer.transform(horizon)
        return optax.chain(transform, _factors(self.rates)) if self.rates else transform

    def active(self, step: int) -> bool:
        """Whether the group is updated in a step."""
        return step >= self.start and (step - self.start) % self.every == 0


def _is_rate(pair: Any) -> bool:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    return isinstance(pair[1], int | float) and pair[1] >= 0


def _factors(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies each leaf's update by the factor of the first pattern that is found in its path."""

    def factor(path: str) -> float:
        return next((number for pattern, number in rates if re.search(pattern, path)), 1.0)

    def scaled(updates: PyTree) -> PyTree:
        leaves = traverse_util.flatten_dict(updates, sep="/")
        return traverse_util.unflatten_dict({path: factor(path) * leaf for path, leaf in leaves.items()}, sep="/")

    return optax.stateless(lambda updates, _: scaled(updates))


def select(params: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """The part of a tree of parameters whose leaves' paths match.

    Raises:
      ConfigError: where nothing matches.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    chosen = {path: leaf for path, leaf in leaves.items() if any(re.search(p, path) for p in patterns)}
    if not chosen:
        raise ConfigError(f"no parameter matches {patterns}; paths look like '{next(iter(leaves))}'")
    return traverse_util.unflatten_dict(chosen, sep="/")


def merge(params: PyTree, part: PyTree) -> PyTree:
    """A tree of parameters with the leaves of a part of it replaced."""
    leaves = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({**leaves, **traverse_util.flatten_dict(part)})


def _ramp(update: Any, warmup: float) -> Array:
    return jnp.minimum(jnp.asarray(update, jnp.float32) / max(warmup, 1e-9), 1.0)
