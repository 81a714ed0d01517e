"""The smallest generator of tokens that has every part: the tokenizer that ships, and a network that is not trained."""

import dataclasses
from typing import Any

import jax
from flax.core import meta

import maskdit
from maskdit import config
from maskdit.draw import Draw
from maskdit.networks.model import GeneratorModel

SMALL = {
    "task.network.width": 16,
    "task.network.depth": 1,
    "task.network.hidden": 16,
    "evaluation.images": 0,
    "log.tensorboard": False,
}


def tiny_tokens(overrides: dict[str, Any] | None = None) -> GeneratorModel:
    """A MaskGIT of the 8 x 8 tokens of an emoji by style and group, with its config, as `maskdit.load` gives it."""
    chosen = config.load("maskgit_emoji:smoke", {**SMALL, **(overrides or {})})
    chosen.task.tokenizer = config.load("vqgan_emoji").task.tokenizer
    task, vqgan = config.build(chosen.task), maskdit.load("emoji-vqgan")
    params = meta.unbox(jax.jit(lambda: task.init(Draw(0), {})[0])())
    variables = {"params": params, "frozen": {"tokenizer": vqgan.own}}
    model = task.model(variables, config.build(chosen.data).vocabulary)
    parts = {name: config.build(chosen[name]) for name in ("sampler", "guidance")}
    return dataclasses.replace(model, config=chosen, **parts)
