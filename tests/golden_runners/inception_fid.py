"""The FID's Inception-v3, its activities, and what torch-fidelity and pytorch-fid show it."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.interop import inception as interop

INPUTS = ("images",)
LEFT_OUT: dict[str, str] = {}
STRIDE = 23
"""Between the stored pixels of the network's input."""


def run(case):
    images = case.arrays["images"]
    example = jnp.zeros((1, case.config["network_input"], case.config["network_input"], 3))
    network, params = case.model(interop, example, file="torch")
    seen = {
        tool: jax.jit(network.PREPROCESSING[rule])(images)
        for tool, rule in (("tf", "tf1-bilinear"), ("pfid", "torch-bilinear"))
    }
    values = {}
    for tool, x in seen.items():
        name = f"{tool}_input_strided"
        step = _step(x.shape[1], case.arrays[name].shape[-1])
        values[name] = case.stored(x[:, ::step, ::step])
    # one program for both: compiling it is dear
    program = case.jit(lambda params, x: network.apply({"params": params}, x, method="activities"))
    found = program(params, jnp.concatenate(list(seen.values())))
    theirs, others = ({name: half[i] for name, half in _halves(found).items()} for i in (0, 1))
    values |= {f"tf_{name}": value for name, value in theirs.items() if name != "spatial"}
    return values | {f"pfid_{name}": others[name] for name in ("64", "2048")} | {"sfid_spatial": theirs["spatial"]}


def _halves(found):
    return {name: np.split(np.asarray(value), 2) for name, value in found.items()}


def _step(side, count):
    """The step at which `count` of `side` pixels are stored: the usual one, or the smallest that gives as many."""
    return STRIDE if -(-side // STRIDE) == count else -(-side // count)
