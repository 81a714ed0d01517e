"""The smallest run that has every part: the emoji demo with a network of a few thousand parameters."""

import functools
from typing import Any

import jax
import numpy as np
from flax.core import meta
from ml_collections import ConfigDict

from maskdit import config
from maskdit.draw import Draw
from maskdit.networks.model import GeneratorModel

SMALL = {
    "task.network.width": 16,
    "task.network.depth": 1,
    "task.network.decoder_width": 8,
    "task.tokenizer.patch": 16,
    "task.network.input_size": 4,
    "batch": 8,
    "data.source.split": "val",
    "checkpoints.every": 5,
    "log.every": 1,
    "log.tensorboard": False,
    "evaluation.every": 1000,
    "evaluation.images": 0,
    "evaluation.examples": 8,
    "evaluation.batch": 8,
}


def tiny(overrides: dict[str, Any] | None = None) -> ConfigDict:
    """The demo's config, cut down; two plans: 20 steps masked from 0 to 15, then unmasked."""
    return config.load("maskdit_emoji:smoke", {**SMALL, "steps": 20, **(overrides or {})})


@functools.cache
def _frozen() -> Any:
    chosen = tiny()
    task, source = config.build(chosen.task), config.build(chosen.data.source)
    return task.freeze(Draw(0), lambda: [np.stack([source[i]["image"] for i in range(0, 500, 20)])])


def untrained(seed: int = 0) -> GeneratorModel:
    """Its generator without training, as `maskdit.load` gives it."""
    chosen = tiny()
    task, source = config.build(chosen.task), config.build(chosen.data.source)
    params = meta.unbox(jax.jit(lambda: task.init(Draw(seed), {})[0])())
    sampler, guidance = config.build(chosen.sampler), config.build(chosen.guidance)
    return GeneratorModel(task, {"params": params, "frozen": _frozen()}, source.vocabulary, sampler, guidance, chosen)
