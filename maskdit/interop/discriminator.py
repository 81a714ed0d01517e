"""TiTok's discriminator, in the names of the authors' code.

Source: bytedance/1d-tokenizer `modeling/modules/discriminator.py` (`NLayerDiscriminator`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import CONV, Fixed, LayoutError, Row, Table, linear
from maskdit.networks.discriminators import KERNELS, BlurDiscriminator

GROUPS = 32
"""Groups of the norms, which are no argument."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the discriminator that published arguments describe.

    Args:
      config: has in `discriminator` arguments of `NLayerDiscriminator` (`hidden_channels`, ...), with its defaults.

    Raises:
      LayoutError: for a blur kernel that the published code does not have.
    """
    given = config["discriminator"]
    blurred, size = given.get("blur_resample", True), given.get("blur_kernel_size", 4)
    if blurred and size not in KERNELS:
        raise LayoutError(
            f"blur_kernel_size={size} in the published configuration: there are kernels of "
            f"{', '.join(map(str, KERNELS))}"
        )
    return spec(
        BlurDiscriminator,
        channels=given.get("hidden_channels", 128),
        stages=given.get("num_stages", 3),
        blur=size if blurred else 0,
        groups=GROUPS,
        in_channels=given.get("num_channels", 3),
    )


def to_reference(network: BlurDiscriminator) -> dict[str, Any]:
    """The published arguments of a discriminator: the inverse of `from_reference`.

    Raises:
      LayoutError: where the published discriminator has no such variant.
    """
    if network.groups != GROUPS:
        raise LayoutError(
            f"this discriminator has {network.groups} groups in its norms: the published one has {GROUPS}"
        )
    if not network.unit_range:
        raise LayoutError(
            "this discriminator takes images as they are: the published one was trained on [0, 1]; set unit_range"
        )
    return {
        "discriminator": {
            "num_channels": network.in_channels,
            "hidden_channels": network.channels,
            "num_stages": network.stages,
            "blur_resample": network.blur > 0,
            "blur_kernel_size": network.blur or 4,
        }
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the names of `NLayerDiscriminator`; blur kernels are fixed tables."""
    network = from_reference(config)
    rows = linear("block_in.0", "conv_in", CONV)
    rows += linear("blocks.{i}.0", "stage_{i}/conv", CONV)
    rows += [Row("blocks.{i}.2.weight", "stage_{i}/norm/scale"), Row("blocks.{i}.2.bias", "stage_{i}/norm/bias")]
    rows += linear("to_logits.0", "conv_mix", CONV) + linear("to_logits.2", "conv_out", CONV)
    if not network.blur:
        return rows
    return [*rows, *(Fixed(f"blocks.{i}.1.kernel", lambda: _kernel(network.blur)) for i in range(network.stages))]


def _kernel(size: int) -> np.ndarray:
    """The blur as published files keep it, `[1, 1, size, size]`, of sum 1."""
    row = np.asarray(KERNELS[size], np.float32)
    return (np.outer(row, row) / row.sum() ** 2)[None, None]
