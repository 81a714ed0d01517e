"""The KL autoencoder of Stable Diffusion, in the names of diffusers."""

import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import vae as interop
from maskdit.tokenizers.posterior import LOGVAR_RANGE

INPUTS = ("image", "noise")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image")
    vae, params = case.model(interop, images, file="safetensors")
    draw = case.draw(posterior=case.images("noise"))
    encode = case.jit(lambda p, x: vae.apply({"params": p}, x, draw=draw, method="encode"))
    decode = case.jit(lambda p, z: vae.apply({"params": p}, Latents(values=z), method="decode"))
    latents = encode(params, images)
    at_mean = vae.posterior(latents.aux["moments"])
    _, logvar = np.split(np.asarray(latents.aux["moments"]), 2, axis=-1)
    return {
        "moments": case.stored(latents.aux["moments"]),
        "mean": case.stored(at_mean.values / vae.scale + vae.shift),
        "logvar": case.stored(np.clip(logvar, *LOGVAR_RANGE)),
        "kl": latents.aux["kl"],
        "latent": case.stored(latents.values),
        "reconstruction": case.stored(decode(params, latents.values)),
        "reconstruction_from_mean": case.stored(decode(params, at_mean.values)),
    }
