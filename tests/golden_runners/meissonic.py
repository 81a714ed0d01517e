"""Meissonic: one forward pass over ids, a text and micro-conditions."""

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, bind
from maskdit.interop import meissonic as interop
from maskdit.networks.meissonic import MICRO

INPUTS = ("ids", "text", "pooled", "micro_conds", "timestep", "img_ids")
LEFT_OUT: dict[str, str] = {}


def run(case):
    arrays, model = case.arrays, {**interop.DEFAULTS, **case.config["transformer"]}
    grid = np.asarray(case.config["grid"]) // (2 if model["downsample"] else 1)
    rows = [(0, row, column) for row in range(grid[0]) for column in range(grid[1])]
    np.testing.assert_array_equal(arrays["img_ids"], rows)  # the network's own places
    ids = arrays["ids"].reshape(len(arrays["ids"]), -1)
    ids = np.where(ids == model["vocab_size"] - 1, model["codebook_size"], ids)
    scalars = dict(zip(MICRO, arrays["micro_conds"].T, strict=True))
    cond = Cond(text=jnp.asarray(arrays["text"]), pooled=jnp.asarray(arrays["pooled"]), scalars=scalars)
    net, params = case.model(interop, ids, arrays["timestep"], cond, file="safetensors")
    logits = case.jit(lambda p, x, t, c: bind(net, p)(x, t, c).x)(params, ids, arrays["timestep"], cond)
    return {"logits": np.moveaxis(np.asarray(logits), 2, 1).reshape(arrays["logits"].shape)}
