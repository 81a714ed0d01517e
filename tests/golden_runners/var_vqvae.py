"""VAR's multi-scale VQVAE."""

import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import var_vqvae as interop

INPUTS = ("image",)
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image")
    named = case if case.config.get("share_quant_resi", 4) else _unshared(case)
    vqgan, params = named.model(interop, images, file="torch", counters=("quantize.ema_vocab_hit_SV",))
    features = case.jit(lambda p, x: vqgan.apply({"params": p}, x, method="features"))
    encode = case.jit(lambda p, x: vqgan.apply({"params": p}, x, method="encode"))
    decode = case.jit(lambda p, ids: vqgan.apply({"params": p}, Latents(ids=ids), method="decode"))
    sums = case.jit(lambda p, ids: vqgan.apply({"params": p}, ids, method=lambda m, ids: m.quantize.sums(ids)))
    inputs = case.jit(lambda p, ids: vqgan.apply({"params": p}, ids, method=lambda m, ids: m.quantize.next_inputs(ids)))
    latents = encode(params, images)
    return {
        "features": case.stored(features(params, images)),
        "ids": latents.ids,
        "f_hat_per_scale": case.stored(sums(params, latents.ids)),
        "reconstruction_unclamped": case.stored(decode(params, latents.ids)),
        "var_input": inputs(params, latents.ids),
        "vq_loss": np.mean(sum(latents.losses.values())),
    }


def _unshared(case):
    """The case of a model with a convolution of its own for each scale: it is written as one that shares as many."""
    prefix = "quantize.quant_resi."

    class Unshared(type(case)):
        def check_export(self, back, counters=()):
            names = {name: name.replace(f"{prefix}qresi_ls.", prefix) for name in back}
            names = {name: own.replace(f"{prefix}qresi.", f"{prefix}0.") for name, own in names.items()}
            super().check_export({names[name]: tensor for name, tensor in back.items()}, counters)

    return Unshared(**vars(case))
