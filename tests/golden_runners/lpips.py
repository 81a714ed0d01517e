"""LPIPS over the published trunks, in torchvision's names, with the published linear layers."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.interop import lpips as interop
from maskdit.tokenizers.pixels import to_float

INPUTS = ("images_*", "*_lin[0-9]")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images, others = (to_float(case.images(f"images_{which}")) for which in "ab")
    values = {}
    for net in case.config["nets"]:
        lpips, params = _part(case, net).model(interop, images, file="safetensors")
        found = case.jit(lambda p, a, b, lpips=lpips: _measured(lpips, p, a, b))(params, images, others)
        values |= {f"{net}_{name}": value for name, value in found.items()}
    return values


def _part(case, net):
    """The case of one trunk: its names have the trunk before them, and its linear layers are arrays."""
    prefix, lin = f"{net}.", f"{net}_lin"
    state = {name.removeprefix(prefix): value for name, value in case.state().items() if name.startswith(prefix)}
    for name, array in case.arrays.items():
        if name.startswith(lin):
            state[f"lin{name.removeprefix(lin)}.model.1.weight"] = np.asarray(array).reshape(1, -1, 1, 1)

    class Part(type(case)):
        def state(self):
            return state

    config = {**case.config, "net": net, "chns": case.config["chns"][net]}
    return Part(case.reference, config, {}, [], {}, {})


def _measured(lpips, params, images, others):
    def apply(params, *inputs, method=None):
        return lpips.apply({"params": params}, *inputs, method=method)

    features, maps = apply(params, images, method="features"), apply(params, images, others, method="maps")
    even = {
        name: jax.tree.map(jnp.ones_like, part) if name.startswith("lin") else part for name, part in params.items()
    }
    spatial = sum(jax.image.resize(layer, images.shape[:3], "bilinear") for layer in maps)
    return {
        "distance": apply(params, images, others),
        "per_layer": jnp.stack([layer.mean((1, 2)) for layer in maps], -1),
        "spatial_strided": spatial[:, ::5, ::5],
        "baseline_no_lin": apply(even, images, others),
        "feature_means": jnp.stack([tap.mean((1, 2, 3)) for tap in features], -1),
        "feature_last_strided": jnp.moveaxis(features[-1][..., ::16], -1, 1),
    }
