"""MaskGIT's VQGAN, in the names of TiTok's repository."""

import jax
import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import maskgit_vqgan as interop
from maskdit.tokenizers.quantize.distance import squared_distances

INPUTS = ("image", "tokens")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image") * 2 - 1
    vqgan, params = case.model(interop, images, file="torch")
    encode = case.jit(lambda p, x: vqgan.apply({"params": p}, x, method="encode"))
    decode = case.jit(lambda p, z: vqgan.apply({"params": p}, z, method="decode"))
    latents = encode(params, images)
    z = latents.aux["z"]  # [B, h, w, c]
    distances = squared_distances(z.reshape(-1, z.shape[-1]), vqgan.apply({"params": params}, method="codebook"))
    shares = jax.nn.softmax(-distances / case.config["soft_temp"])
    return {
        "z": case.stored(z),
        "ids": latents.ids,
        "z_quantized": case.stored(latents.values),
        "loss": np.mean(sum(latents.losses.values())),
        "reconstruction": case.stored(decode(params, latents) + 1) / 2,
        "soft_code": shares.reshape(*latents.ids.shape, -1),
        "decoded_tokens": case.stored(decode(params, Latents(ids=case.arrays["tokens"])) + 1) / 2,
    }
