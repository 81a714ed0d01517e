"""MaskGIT's decoding as TiTok's generator does it: ids, logits and counts of every step."""

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Predict, bind
from maskdit.interop import titok_generator as interop
from maskdit.processes.masked import Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import guided_runs
from maskdit.samplers.tokens import Confidence

INPUTS = ("labels", "*_u_tokens", "*_u_confidence")
LEFT_OUT: dict[str, str] = {}


def run(case):
    labels = Cond(labels={interop.LABEL: jnp.asarray(case.arrays["labels"])})
    rows, tokens = len(case.arrays["labels"]), case.config["generator"]["image_seq_len"]
    ids = jnp.zeros((rows, tokens), jnp.int32)
    net, params = case.model(interop, ids, jnp.ones(rows), labels, file="safetensors")
    values = {}
    for one in case.config["runs"]:
        values |= decoded(case, net, params, labels, one)
    return values


def guidance(one):
    """The published guidance in our convention: conditional + s (conditional - unconditional) has the weight 1 + s."""
    scale, kind = one["guidance_scale"], one["guidance_decay"]
    if kind == "power-cosine":
        return ClassifierFree(weight=scale, schedule="cosine", power=one["guidance_scale_pow"]), 0
    return ClassifierFree(weight=1 + scale, schedule=kind), 1


def decoded(case, net, params, cond, one):
    name, steps = one["name"], one["num_sample_steps"]
    sampler = Confidence(
        steps=steps, temperature=one["randomize_temperature"], softmax_annealing=one["softmax_temperature_annealing"]
    )
    guide, extra = guidance(one)
    shape = (len(case.arrays["labels"]), *net.layout.shape)
    process = Masked()
    process = process.respace(sampler.grid(process, net.layout))
    draw = case.draw(
        token=case.arrays[f"{name}_u_tokens"] / np.float32(2**12),
        confidence=case.arrays[f"{name}_u_confidence"] / np.float32(2**16),
    )

    @case.jit
    def decode(params):
        seen = []
        bound = bind(net, params)

        def call(*args, **kw):
            made = bound.call(*args, **kw)
            seen.append(made.x[: shape[0]])
            return made

        predict = Predict(call=call, null=net.null, layout=net.layout)
        state = sampler.init(process, predict, draw, shape, cond)
        ids = []
        for part in guided_runs(sampler, process, net.layout, guide):
            chosen = guide.wrap(predict) if part.guided else predict
            for i in range(part.start, part.stop):
                state = sampler.step(process, chosen, state, i, part)
                ids.append(state.x)
        return jnp.stack(ids), seen[0], seen[-1]

    ids, first, last = decode(params)
    left = np.array((ids == net.layout.vocabulary).sum(-1)[:, 0])
    left[-1] = 1  # the reference counts one in its last step, and does not use it
    weights = guide.weights(steps) - extra
    return {
        f"{name}_ids": ids,
        f"{name}_first_logits": first,
        f"{name}_last_cond_logits": last,
        f"{name}_mask_len": left,
        f"{name}_cfg_scale": weights,
    }
