"""The FID's Inception-v3, its activities, and what torch-fidelity and pytorch-fid show it."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.interop import inception as interop

INPUTS = ("images",)
LEFT_OUT: dict[str, str] = {}
STRIDE = 23


def run(case):
    images = case.arrays["images"]
    example = jnp.zeros((1, case.config["network_input"], case.config["network_input"], 3))
    network, params = case.model(interop, example, file="torch")
    seen = {
        tool: jax.jit(network.PREPROCESSING[rule])(images)
        for tool, rule in (("tf", "tf1-bilinear"), ("pfid", "torch-bilinear"))
    }
    values = {f"{tool}_input_strided": case.stored(x[:, ::STRIDE, ::STRIDE]) for tool, x in seen.items()}
    # one program for both: compiling it is dear
    program = case.jit(lambda params, x: network.apply({"params": params}, x, method="activities"))
    found = program(params, jnp.concatenate(list(seen.values())))
    theirs, others = ({name: half[i] for name, half in _halves(found).items()} for i in (0, 1))
    values |= {f"tf_{name}": value for name, value in theirs.items() if name != "spatial"}
    return values | {f"pfid_{name}": others[name] for name in ("64", "2048")} | {"sfid_spatial": theirs["spatial"]}


def _halves(found):
    return {name: np.split(np.asarray(value), 2) for name, value in found.items()}
