"""The smallest run that has every part: the emoji demo with a network of a few thousand parameters."""

from typing import Any

from ml_collections import ConfigDict

from maskdit import config

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
