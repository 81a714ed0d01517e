"""RAR's sampling: codes, guided probabilities and weights of every step, with and without the memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, bind
from maskdit.interop import rar as interop
from maskdit.processes.autoregressive import Autoregressive
from maskdit.samplers.autoregressive import TokenByToken
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import sample

INPUTS = ("labels_class", "*_u")
LEFT_OUT: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Watched(Autoregressive):
    """The process, writing down the logits of each step."""

    def logits(self, predict, xt, t, cond, **kw):
        logits, prediction = super().logits(predict, xt, t, cond, **kw)
        jax.debug.callback(lambda step, new: SEEN.append((int(step), np.asarray(new[:, 0]))), kw["at"].step, logits)
        return logits, prediction


SEEN: list[tuple[int, np.ndarray]] = []


def run(case):
    labels = Cond(labels={interop.LABEL: jnp.asarray(case.arrays["labels_class"])})
    rows = len(case.arrays["labels_class"])
    count = case.config["generator"]["image_seq_len"]
    net, params = case.model(interop, jnp.zeros((rows, count), int), jnp.zeros(rows), labels, file="torch")
    out = {}
    for one in case.config["runs"]:
        weight, name = one["guidance_scale"], one["name"]
        guidance = ClassifierFree(weight=weight, schedule="cosine", power=one["guidance_scale_pow"])
        draw = case.draw(token=case.arrays[f"{name}_u"].astype(np.float32) / 4096)

        def walked(process, cache, one=one, guidance=guidance if weight else None, draw=draw):
            sampler = TokenByToken(temperature=one["randomize_temperature"], cache=cache)

            @case.jit
            def go(params):
                return sample(process, sampler, bind(net, params), draw, (rows, count), labels, guidance=guidance)

            return jax.block_until_ready(go(params))

        SEEN.clear()
        ids = walked(Watched(), cache=True)
        jax.effects_barrier()
        if not out:  # compiling takes long: once
            np.testing.assert_array_equal(ids, walked(Autoregressive(), cache=False))
        logits = np.stack([new for _, new in sorted(SEEN, key=lambda pair: pair[0])])  # [K, B, V]
        out[f"{name}_ids"] = ids
        out[f"{name}_probabilities"] = jax.nn.softmax(logits / one["randomize_temperature"])
        out[f"{name}_cfg_scale"] = guidance.weights(count)
    return out
