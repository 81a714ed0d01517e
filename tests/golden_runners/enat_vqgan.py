"""The VQGAN of MAGE and ENAT, in taming-transformers' names."""

import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import maskgit_vqgan as interop

INPUTS = ("image", "codes")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image") * 2 - 1
    vqgan, params = case.model(interop, images, file="torch/state_dict")
    encode = case.jit(lambda p, x: vqgan.apply({"params": p}, x, method="encode"))
    decode = case.jit(lambda p, z: vqgan.apply({"params": p}, z, method="decode"))
    latents = encode(params, images)
    return {
        "z": case.stored(latents.aux["z"]),
        "ids": np.ravel(latents.ids),
        "quantized": case.stored(latents.values),
        "loss": np.mean(sum(latents.losses.values())),
        "reconstruction": case.stored(decode(params, latents) + 1) / 2,
        "decoded_codes": case.stored(decode(params, Latents(ids=case.arrays["codes"])) + 1) / 2,
    }
