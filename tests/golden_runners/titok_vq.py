"""TiTok with a codebook and a decoder of pixels."""

import numpy as np

from maskdit.contracts import Cond, Latents
from maskdit.interop import titok as interop

INPUTS = ("image", "tokens")
LEFT_OUT: dict[str, str] = {}
COUNTERS = ("quantize.embed_prob",)
"""Shares of use, which `clustering_vq` counts in training."""


def run(case):
    return run_with(case, Cond(), file="safetensors")


def run_with(case, cond, file):
    images = case.images("image") * 2 - 1
    titok, params = case.model(interop, images, cond, file=file, counters=COUNTERS)

    @case.jit
    def forward(params, images, cond, ids):
        def call(method, *inputs):
            return titok.apply({"params": params}, *inputs, method=method)

        latents = call("encode", images)
        decoded = [call("decode", given, cond) for given in (latents, Latents(ids=ids))]
        return call("features", images), latents, decoded

    z, latents, (reconstruction, decoded) = forward(params, images, cond, case.arrays["tokens"])
    commitment, codebook = (latents.losses[name].mean() for name in ("commitment", "codebook"))
    return {
        "z": stored(z),
        "min_encoding_indices": np.asarray(latents.ids)[:, None],
        "z_quantized": stored(latents.values),
        "quantizer_loss": commitment + codebook,
        "commitment_loss": commitment,
        "codebook_loss": codebook,
        "reconstruction": case.stored(reconstruction + 1) / 2,
        "decoded_tokens": case.stored(decoded + 1) / 2,
    }


def stored(z):
    """Tokens `[B, K, c]` as `[B, c, 1, K]`."""
    return np.swapaxes(np.asarray(z), 1, 2)[:, :, None]
