"""SoftVQ-VAE: tokens that are softmax-weighted means of codes."""

import dataclasses

import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import softvq as interop

INPUTS = ("image", "z")
LEFT_OUT: dict[str, str] = {}
NEVER_READ = "decoder.model.patch_embed."
"""Of the published state dict, which holds it though its decoder takes no patches: it is not written again."""


def run(case):
    kept = {name: shape for name, shape in case.parameters.items() if not name.startswith(NEVER_READ)}
    images = case.images("image")
    tokenizer, params = dataclasses.replace(case, parameters=kept).model(interop, images, file="safetensors")

    @case.jit
    def forward(params, images, z):
        def call(method, *inputs, **options):
            return tokenizer.apply({"params": params}, *inputs, method=method, **options)

        latents = call("encode", images, train=True)
        decoded = [call("decode", given) for given in (latents, Latents(values=z))]
        return call("features", images), latents, decoded

    raw = (case.arrays["z"] - tokenizer.shift) * tokenizer.scale
    features, latents, (reconstruction, decoded) = forward(params, images, raw)
    books = tokenizer.quantize.codebooks
    ids = np.asarray(latents.aux["ids"]) % tokenizer.quantize.codes  # published: counted in each codebook
    return {
        "pre_quant": features,
        "latents": latents.values / tokenizer.scale + tokenizer.shift,
        "indices": np.moveaxis(ids.reshape(len(ids), books, -1), 1, 0),
        "mean_max_prob": latents.aux["confidence"],
        "zq_z_cos": latents.aux["cosine"],
        "entropy_loss": latents.losses.get("entropy", np.float32(0)),
        "reconstruction": case.stored(reconstruction),
        "decoded": case.stored(decoded),
    }
