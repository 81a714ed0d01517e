"""The FID Inception-v3 in the names of pytorch-fid (`pytorch_fid/inception.py`), which torch-fidelity shares."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.encoders import inception
from maskdit.encoders.inception import InceptionV3
from maskdit.interop.rules import CONV, LayoutError, Row, Table, Unused, linear

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published arguments describe.

    Args:
      config: `num_classes`, `bn_eps` and `network_input`, the side of its images, where they are others than the
        published ones.

    Raises:
      LayoutError: for batch norms without running statistics, and for torchvision's network in its place.
    """
    if not config.get("use_fid_inception", True):
        raise LayoutError(
            "use_fid_inception=False in the published configuration: that is torchvision's Inception, another network"
        )
    if not config.get("running_stats", True):
        raise LayoutError(
            "running_stats=False in the published configuration: this InceptionV3 norms by running statistics only"
        )
    return spec(
        InceptionV3,
        num_classes=config.get("num_classes", 1008),
        epsilon=config.get("bn_eps", 1e-3),
        size=config.get("network_input", 299),
    )


def to_reference(network: InceptionV3) -> dict[str, Any]:
    """The published arguments of one of ours: the inverse of `from_reference`."""
    return {
        "num_classes": network.num_classes,
        "bn_eps": network.epsilon,
        "network_input": network.size,
        "running_stats": True,
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the flat state dict; they are the same for every configuration."""
    del config
    names = [layer.name for steps in inception.STEM.values() for layer in inception.layers(steps)]
    for block, branches in inception.BLOCKS.items():
        names += [f"{block}.{layer.name}" for branch in branches for layer in inception.layers(branch)]
    rows: list[Row | Unused] = [Unused(r".*\.bn\.num_batches_tracked")]
    for name in names:
        target = name.lower().replace(".", "/")
        rows.append(Row(f"{name}.conv.weight", f"{target}/kernel", CONV))
        rows += [Row(f"{name}.bn.{theirs}", f"{target}/{ours}") for theirs, ours in _NORM.items()]
    weight, _ = linear("fc", "fc")
    return [*rows, weight, Row("fc.bias", "fc_bias")]
