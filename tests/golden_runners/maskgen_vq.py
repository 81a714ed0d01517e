"""MaskGen with codes: one forward pass, and whole sampling runs with guidance that rises from step to step."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, bind
from maskdit.interop import maskgen as interop
from maskdit.networks.maskgen import SCORE
from maskdit.processes.masked import Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import Stretch
from maskdit.samplers.tokens import Confidence

INPUTS = ("ids", "text", "pooled", "aesthetic_score", "null_text", "null_pooled", "*_u_tokens", "*_u_confidence")
LEFT_OUT: dict[str, str] = {}
SCHEDULES = {"cosine": "cosine", "flippedcosine": "flipped-cosine", "linear": "linear", "none": "constant"}


def run(case):
    arrays = case.arrays
    texts = {
        "text": arrays["text"],
        "pooled": arrays["pooled"][:, 0],
        "null_text": np.broadcast_to(arrays["null_text"], arrays["text"].shape),
        "null_pooled": np.broadcast_to(arrays["null_pooled"][:, 0], arrays["pooled"][:, 0].shape),
    }
    cond = Cond(**{name: jnp.asarray(array) for name, array in texts.items()})
    scored = {SCORE: jnp.asarray(arrays["aesthetic_score"])} if case.config["maskgen"]["micro_condition"] else {}
    ids, t = jnp.asarray(arrays["ids"]), jnp.zeros(len(arrays["ids"]))
    net, params = case.model(interop, ids, t, cond, file="torch")
    logits = case.jit(lambda p, x, c: bind(net, p)(x, t, c).x)(params, ids, cond.replace(scalars=scored))
    values = {"logits": logits}
    for one in case.config["runs"]:
        # the published sampler asks for the model's own score, whatever it is given
        values |= sampled(case, one, bind(net, params), cond)
    return values


def sampled(case, one, predict, cond):
    name, steps = one["name"], one["num_sample_steps"]
    assert one["softmax_temperature_annealing"], "the published sampler divides by zero without it"
    sampler = Confidence(
        steps=steps,
        schedule=case.config["maskgen"].get("mask_schedule_strategy", "arccos"),
        temperature=one["randomize_temperature"] if one["prob_sorting"] else 0.0,
        token_temperature=one["randomize_temperature"],
        softmax_annealing=True,
    )
    guidance = ClassifierFree(
        weight=1 + one["guidance_scale"],
        schedule=SCHEDULES[one["guidance_decay"]],
        power=one["guidance_decay_scale_pow"],
        start=2.0,
        ahead=True,
    )
    process = Masked()
    process = process.respace(sampler.grid(process, predict.layout))
    draw = case.draw(
        token=case.arrays[f"{name}_u_tokens"] / np.float32(2**12),
        confidence=case.arrays[f"{name}_u_confidence"] / np.float32(2**16),
    )

    @case.jit
    def decode(cond):
        guided, run = guidance.wrap(predict), Stretch(0, steps, guided=True)

        def step(state, i):
            state = sampler.step(process, guided, state, i, run)
            return state, state.x

        start = sampler.init(process, guided, draw, (len(cond.text), *predict.layout.shape), cond)
        return jax.lax.scan(step, start, jnp.arange(steps))[1]

    ids = np.asarray(decode(cond))  # [S, B, K]
    masks = (ids[:, 0] == predict.layout.vocabulary).sum(1)
    masks[-1] = sampler.least  # it counts these in the last step too, and keeps all tokens
    return {f"{name}_ids": ids, f"{name}_mask_len": masks, f"{name}_cfg_scale": guidance.weights(steps) - 1}
