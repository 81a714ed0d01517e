"""How well a generator of tokens predicts images that it was not trained on: bits per token.

Only models of one tokenizer can be compared: its tokens are what is predicted.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit import config as configs
from maskdit.contracts import Array, Cond, PyTree, bind
from maskdit.draw import Draw
from maskdit.networks.model import GeneratorModel
from maskdit.training import placement
from maskdit.training.mesh import MeshShape

DRAWS = 8
"""Estimates for each image and seed, where the likelihood is estimated."""


class LikelihoodError(ValueError):
    """A model whose likelihood cannot be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """Bits per token of held-out images.

    Attributes:
      means: over the images, one for each seed.
      error: the standard error of the mean of `means`: by how much it would vary with other images and other draws.
      uniform: bits of a token where all codes are equally likely.
      images: how many there were.
      kind: what was computed, in words.
    """

    means: tuple[float, ...]
    error: float
    uniform: float
    images: int
    kind: str


def bits_per_token(
    model: Any, num: int = 256, seeds: Sequence[int] = (0,), batch: int = 64, trust: Iterable[str] = ()
) -> Bits:
    """Bits per token, or an upper bound of them; see the `bits` of the model's process.

    Args:
      model: a `GeneratorModel` whose config says what its held-out data are.
      num: number of images, spread over the held-out ones.
      seeds: of the draws.
      batch: images at once.
      trust: packages besides `maskdit` whose classes the config may name.

    Raises:
      LikelihoodError: for a model that makes no tokens, or has no held-out data, and for less than two images.
    """
    loader = _held_out(model, trust)
    if num < 2:
        raise LikelihoodError(f"a standard error takes 2 or more images, got num={num}")
    process, devices = model.task.process, MeshShape().make() if model.devices is None else model.devices
    draws = 1 if process.exact else DRAWS
    program = functools.partial(_bits, network=model.task.network, process=process, seeds=tuple(seeds), draws=draws)
    found: list[np.ndarray] = []
    with loader.ordered(min(batch, num), num) as batches:
        for rows in batches:
            ids = np.asarray(rows["ids"] if "ids" in rows else model.encode(rows["image"]), np.int32)
            cond = jax.tree.map(np.asarray, model.task.condition(rows))
            numbers = (len(found) * len(ids) + np.arange(len(ids))).astype(np.uint32)
            bits = placement.by_rows(program, devices, model.variables["params"]["network"], (ids, cond, numbers))
            found.append(bits[rows["weight"] > 0])  # [b, seeds]
    each = np.concatenate(found).astype(np.float64)  # [images, seeds]
    if len(each) < 2:
        raise LikelihoodError(f"a standard error takes 2 or more held-out images, of which {len(each)} could be read")
    return Bits(
        means=tuple(each.mean(0).tolist()),
        error=float(each.mean(1).std(ddof=1) / math.sqrt(len(each))),
        uniform=math.log2(model.task.layout.vocabulary),
        images=len(each),
        kind="exact" if process.exact else f"a bound from {DRAWS} draws each",
    )


def _held_out(model: Any, trust: Iterable[str]) -> Any:
    """The loader of a model's held-out data."""
    if not isinstance(model, GeneratorModel) or not hasattr(model.task.process, "bits"):
        name = type(model.task.process).__name__ if isinstance(model, GeneratorModel) else type(model).__name__
        raise LikelihoodError(f"bits per token are those of a generator of tokens; this is a model of kind {name}")
    if getattr(model.task.process, "counts", None) is not None:
        raise LikelihoodError(
            "bits per token take masks of any number in one batch, and this network is told how many there are"
        )
    config = None if model.config is None else model.config.get("held_out")
    if config is None:
        raise LikelihoodError("this model's config names no held-out data (held_out), on which bits are measured")
    loader = configs.build(config, trust)
    loader.check_tokenizer(model.task.tokenizer, model.coder.own)  # of images encoded beforehand
    return loader


@functools.partial(jax.jit, static_argnames=("network", "process", "seeds", "draws"))
def _bits(
    params: PyTree, rows: tuple[Array, Cond, Array], *, network: Any, process: Any, seeds: tuple[int, ...], draws: int
) -> Array:
    """The mean over draws for each image and seed, `[B, seeds]`."""
    ids, cond, numbers = rows
    predict = bind(network, params)

    def one(seed: Array, number: Array) -> Array:
        draw = Draw(jax.random.key(seed)).named("bits").at(number).at(numbers)
        return process.bits(predict, ids, cond, draw)

    def mean(seed: Array) -> Array:
        return jax.lax.map(functools.partial(one, seed), jnp.arange(draws)).mean(0)

    return jax.lax.map(mean, jnp.asarray(seeds, jnp.uint32)).T
