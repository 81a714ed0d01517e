"""ENAT's sampling: ids of each step, both passes taking over features of their own."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, bind
from maskdit.interop import enat as interop
from maskdit.processes.masked import BatchCounts, Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import guided_runs
from maskdit.samplers.temperature import Falling
from maskdit.samplers.tokens import Confidence

INPUTS = ("context", "u_*")
LEFT_OUT: dict[str, str] = {}


def run(case):
    settings, steps = case.config["args"], case.config["sample_steps"]
    labels = Cond(labels={interop.dit.LABEL: jnp.asarray(case.arrays["context"])[:, 0]})
    rows, side = len(case.arrays["context"]), case.config["input_size"]
    blank = jnp.full((rows, side**2), case.config["codebook_size"])
    net, params = case.model(interop, blank, jnp.ones(rows), labels, file="torch", counters=interop.UNUSED)
    forward = case.jit(lambda p, *inputs, **kw: bind(net, p)(*inputs, **kw), static_argnames=("masked", "fresh"))
    calls = []

    def call(*inputs, **kw):
        calls.append(forward(params, *inputs, **kw))
        return calls[-1]

    sampler = Confidence(
        steps=steps,
        schedule="cosine",
        least=0,
        temperature=Falling(settings["mask_temp"]),
        token_temperature=Falling(settings["samp_temp"], least=1e-3),
        confidence="log_probability",
        counted=True,
        reuse=True,
    )
    process = Masked(counts=BatchCounts())
    process = process.respace(sampler.grid(process, net.layout))
    guidance = ClassifierFree(weight=1 + settings["cfg_scale"], schedule="linear")
    predict = guidance.wrap(dataclasses.replace(bind(net, params), call=call))
    draw = case.draw(token=case.arrays["u_tokens"] / np.float32(4096), confidence=case.arrays["u_confidence"] / 2**16)
    state, ids = sampler.init(process, predict, draw, blank.shape, labels), []
    for part in guided_runs(sampler, process, net.layout, guidance):
        for i in range(part.start, part.stop):
            state = sampler.step(process, predict, state, i, part)
            ids.append(state.x)
    return {"ids": np.stack(ids), "cond_logits": np.stack([one.x[:rows] for one in calls])}
