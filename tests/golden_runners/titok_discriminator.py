"""The discriminator of TiTok."""

import jax
import numpy as np

from maskdit.interop import discriminator as interop

INPUTS = ("image", "upstream")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image")
    network, params = case.model(interop, images, file="torch")

    def judge(images):
        # recorded as given; ours takes [-1, 1]
        logits, found = network.apply(
            {"params": params}, 2 * images - 1, capture_intermediates=lambda module, _: module.name == "stage_0"
        )
        return logits, found["intermediates"]["stage_0"]["__call__"][0]

    def probe(images, upstream):
        logits, back, first = jax.vjp(judge, images, has_aux=True)
        return logits, first, back(upstream)[0]

    logits, first, slope = case.jit(probe)(images, case.images("upstream"))
    shown = case.arrays["after_first_block"].shape[1]
    return {
        "logits": case.stored(logits),
        "after_first_block": np.asarray(case.stored(first))[:, :shown],
        "grad_image": case.stored(slope),
    }
