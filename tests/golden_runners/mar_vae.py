"""The KL autoencoder of MAR, in CompVis names."""

from maskdit.contracts import Latents
from maskdit.interop import vae as interop

INPUTS = ("image", "noise")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image")
    vae, params = case.model(interop, images, file="torch/model")
    draw = case.draw(posterior=case.images("noise"))
    encode = case.jit(lambda p, x: vae.apply({"params": p}, x, draw=draw, method="encode"))
    decode = case.jit(lambda p, z: vae.apply({"params": p}, Latents(values=z), method="decode"))
    latents = encode(params, images)
    return {
        "moments": case.stored(latents.aux["moments"]),
        "kl": latents.aux["kl"],
        "latent": case.stored(latents.values),
        "reconstruction": case.stored(decode(params, latents.values)),
    }
