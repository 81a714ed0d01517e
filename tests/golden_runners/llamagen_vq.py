"""LlamaGen's VQGAN."""

import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import llamagen_vq as interop

INPUTS = ("image",)
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image")
    vqgan, params = case.model(interop, images, file="torch/model", counters=("quantize.codebook_used",))
    height, width = images.shape[1] // vqgan.latent.downsample, images.shape[2] // vqgan.latent.downsample
    features = case.jit(lambda p, x: vqgan.apply({"params": p}, x, method="features"))
    encode = case.jit(lambda p, x: vqgan.apply({"params": p}, x, method="encode"))
    decode = case.jit(lambda p, ids: vqgan.apply({"params": p}, Latents(ids=ids), method="decode"))
    latents = encode(params, images)
    return {
        "features": case.stored(features(params, images)),
        "ids": latents.ids,
        "quantized": case.stored(latents.values),
        "reconstruction": case.stored(decode(params, latents.ids.reshape(-1, height, width))),
        "vq_loss": np.mean(latents.losses["codebook"]),
        "commit_loss": np.mean(latents.losses["commitment"]),
        "entropy_loss": latents.losses.get("entropy", np.float32(0)),
    }
