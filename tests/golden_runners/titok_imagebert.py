"""TiTok's generator as a BERT: logits with the class, and with every class dropped."""

import jax.numpy as jnp

from maskdit.contracts import Cond, bind
from maskdit.interop import titok_generator as interop

INPUTS = ("ids", "labels")
LEFT_OUT: dict[str, str] = {}


def run(case):
    return run_as(case, file="safetensors")


def run_as(case, file):
    ids, labels = (jnp.asarray(case.arrays[name]) for name in INPUTS)
    cond = Cond(labels={interop.LABEL: labels})
    t = jnp.mean(ids == case.config["codebook_size"], axis=-1)
    net, params = case.model(interop, ids, t, cond, file=file)
    predict = case.jit(lambda params, cond: bind(net, params)(ids, t, cond).x)
    return {"logits": predict(params, cond), "logits_dropped": predict(params, net.null(cond))}
