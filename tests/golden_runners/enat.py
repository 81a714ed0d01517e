"""ENAT: forward passes without reuse, and three steps that take over features."""

import jax.numpy as jnp

from maskdit.contracts import Cond, bind
from maskdit.interop import enat as interop

INPUTS = ("context", "ids_*")
LEFT_OUT: dict[str, str] = {}


def cond(case):
    return Cond(labels={interop.dit.LABEL: jnp.asarray(case.arrays["context"])[:, 0]})


def run(case):
    labels, t = cond(case), jnp.ones(len(case.arrays["context"]))
    net, params = case.model(interop, case.arrays["ids_1"], t, labels, file="torch", counters=interop.UNUSED)
    call = case.jit(
        lambda p, ids, masked, fresh=None, cache=None: bind(net, p)(
            ids, t, labels, masked=masked, fresh=fresh, cache=cache
        ),
        static_argnums=(2, 3),
    )
    count = net.layout.tokens
    blank = jnp.full((len(t), count), net.vocabulary)
    out = {"empty": call(params, blank, count)}
    last, before = out["empty"], count
    for step, masked in enumerate(case.config["masked"], 1):
        ids = case.arrays[f"ids_{step}"]
        last = out[f"reuse_{step}"] = call(params, ids, masked, before - masked, last.cache)
        before = masked
    out["plain"] = call(params, case.arrays["ids_2"], case.config["masked"][1])
    return {
        f"{name}_{kind}": value
        for name, one in out.items()
        for kind, value in (("logits", one.x), ("feat", one.cache["features"]))
    }
