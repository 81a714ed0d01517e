"""Meissonic's decoding of given logits, known tokens' probabilities and all."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Layout, Predict, Prediction, null_condition
from maskdit.processes.masked import Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import Stretch
from maskdit.samplers.temperature import Between, temperatures
from maskdit.samplers.tokens import Confidence

INPUTS = ("*_uncond_logits", "*_cond_logits", "*_u_tokens", "*_u_confidence")
LEFT_OUT: dict[str, str] = {}
WHICH = "which"
"""A label that tells the two passes apart: 0 is the conditional one, 1 the null."""


def run(case):
    values = {}
    for one in case.config["runs"]:
        values |= decoded(case, one)
    return values


def decoded(case, one):
    config, name, steps = case.config, one["name"], one["num_inference_steps"]
    rows, codes, grid = config["batch"], config["codebook_size"], tuple(config["grid"])
    given = one["temperature"]
    temperature = Between(*given) if isinstance(given, list) else Between(given, 0.01)
    sampler = Confidence(
        steps=steps,
        schedule=one["masking_schedule"],
        temperature=temperature,
        token_temperature=(1.0,) * steps,
        confidence="log_probability",
        countdown=True,
        count_dtype="float32",
    )
    # [S, 2, B, K, V]: conditional, unconditional
    logits = np.stack([case.arrays[f"{name}_{which}_logits"] for which in ("cond", "uncond")], axis=1)
    logits = jnp.asarray(np.moveaxis(logits.reshape(steps, 2, rows, codes, -1), 3, 4))
    draw = case.draw(
        token=case.arrays[f"{name}_u_tokens"].reshape(steps, rows, -1, codes) / np.float32(2**12),
        confidence=case.arrays[f"{name}_u_confidence"] / np.float32(2**16),
    )
    process, layout = Masked(), Layout(grid=grid, vocabulary=codes)
    process = process.respace(sampler.grid(process, layout))

    @case.jit
    def decode(logits):
        def call(x, t, cond):
            step = steps - 1 - t[0].astype(int)
            return Prediction(x=logits[step].reshape(2 * rows, -1, codes))

        predict = Predict(call=call, null=lambda cond: null_condition(cond, {WHICH: 1}), layout=layout)
        guided = ClassifierFree(weight=one["guidance_scale"]).wrap(predict)
        told = Stretch(0, steps, guided=True)

        def step(state, i):
            state = sampler.step(process, guided, state, i, told)
            return state, (state.x, state.x0)

        cond = Cond(labels={WHICH: jnp.zeros(rows, jnp.int32)})
        start = sampler.init(process, guided, draw, (rows, *layout.shape), cond)
        return jax.lax.scan(step, start, jnp.arange(steps))[1]

    ids, drawn = (np.asarray(array).reshape(steps, rows, *grid) for array in decode(logits))
    return {
        f"{name}_ids": np.where(ids == codes, config["mask_token_id"], ids),
        f"{name}_pred_original": drawn,
        f"{name}_temperatures": temperatures(temperature, steps),
        f"{name}_timesteps": np.arange(steps)[::-1],
    }
