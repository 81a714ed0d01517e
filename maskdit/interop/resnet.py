"""Published ResNet-50 classifiers, in the names of Keras (`keras_applications/resnet50.py`).

A stage counts from 2 and its blocks are letters: `res3b_branch2a` is the first convolution of the second block of the
second stage, `bn3b_branch2a` its norm, and `branch1` stands beside the others.
"""

import string
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.encoders.resnet import ResNet50
from maskdit.interop.rules import LayoutError, Row, Table

_PARTS = {"branch2a": "0", "branch2b": "1", "branch2c": "2"}
_SHORTCUT = {"branch1": "shortcut"}
_NORM = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "variance"}


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published facts describe; what is left out is as in the paper's ResNet-50.

    Args:
      config: `classes`, `filters` of the first convolution, `blocks` of each stage, `epsilon` of the norms, and
        `image_size`.

    Raises:
      LayoutError: for more blocks in a stage than there are letters.
    """
    blocks = tuple(config.get("blocks", (3, 4, 6, 3)))
    _check(blocks)
    return spec(
        ResNet50,
        width=config.get("filters", 64),
        blocks=blocks,
        classes=config.get("classes", 1000),
        epsilon=config.get("epsilon", 1e-3),
        size=config.get("image_size", 224),
    )


def to_reference(network: ResNet50) -> dict[str, Any]:
    """The published facts of one of ours: the inverse of `from_reference`.

    Raises:
      LayoutError: for more blocks in a stage than there are letters.
    """
    _check(network.blocks)
    return {
        "classes": network.classes,
        "filters": network.width,
        "blocks": list(network.blocks),
        "epsilon": network.epsilon,
        "image_size": network.size,
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for Keras's names; its kernels have the axes of ours."""
    rows = [*_conv("conv1", "conv"), *_norm("bn_conv1", "norm"), *_conv("fc1000", "head")]
    for i, count in enumerate(config["blocks"]):
        for j in range(count):
            place, target = f"{i + 2}{string.ascii_lowercase[j]}_", f"stage_{i}_{j}"
            for branch, part in (_PARTS | ({} if j else _SHORTCUT)).items():
                rows += _conv(f"res{place}{branch}", f"{target}/conv_{part}")
                rows += _norm(f"bn{place}{branch}", f"{target}/norm_{part}")
    return rows


def _conv(source: str, target: str) -> list[Row]:
    return [Row(f"{source}/{kind}", f"{target}/{kind}") for kind in ("kernel", "bias")]


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}/{theirs}", f"{target}/{ours}") for theirs, ours in _NORM.items()]


def _check(blocks: tuple[int, ...]) -> None:
    if max(blocks, default=0) > len(string.ascii_lowercase):
        raise LayoutError(
            f"blocks={blocks!r}: Keras's names have a letter for each block of a stage, and so 26 blocks at most"
        )
