"""Chips: their peak rates and memories, and how a rate of images becomes a share of a peak."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax calls one device.

    Attributes:
      name: as people say it.
      flops: peak FLOP/s of dense bfloat16 products, a multiply-add counting two; from the data sheet.
      memory: GiB that a program may use: for a TPU what its compiler allows, for a GPU what it has.
    """

    name: str
    flops: float
    memory: float


_V5E, _V5P = Chip("TPU v5e", 197e12, 15.75), Chip("TPU v5p", 459e12, 95.73)
_V6E, _H200 = Chip("TPU v6e", 918e12, 31.24), Chip("H200", 989e12, 141.0)

CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("TPU v4", 275e12, 30.75),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip("TPU7x, one of a chip's two cores", 1155e12, 94.74),
    "NVIDIA A100-SXM4-40GB": Chip("A100", 312e12, 40.0),
    "NVIDIA A100-PCIE-40GB": Chip("A100", 312e12, 40.0),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 80.0),
    "NVIDIA A100 80GB PCIe": Chip("A100", 312e12, 80.0),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80.0),
    "NVIDIA H200": _H200,
}
"""By `device_kind`, as jax reports it."""


def chip(device_kind: str) -> Chip | None:
    """The chip that jax reports under this name; None for CPUs and for chips that are not in `CHIPS`."""
    return CHIPS.get(device_kind)


def training_flops(macs: float) -> float:
    """FLOPs of one image in a training step: three forward passes of `macs` multiply-adds, nothing recomputed."""
    return 6.0 * macs


def mfu(images_per_second: float, macs: float, peak: float) -> float:
    """Model FLOPs utilisation: the share of `peak` (FLOP/s of all devices together) that training images need.

    Args:
      images_per_second: of the whole machine.
      macs: multiply-adds of one image's forward pass.
      peak: above 0.
    """
    return images_per_second * training_flops(macs) / peak
