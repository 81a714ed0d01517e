"""The resizing rules behind published scores, and ADM's crop."""

import numpy as np

from maskdit.data.transforms import centre_crop
from maskdit.encoders.resize import RULES

INPUTS = ("small", "big")
LEFT_OUT: dict[str, str] = {}
FID, DINO = ((299, 299), 13), ((224, 224), 9)
"""The networks' image sizes, and the steps between the stored pixels."""
UNIT = {"torch-bilinear": 1 / 255}
"""The reference of this rule takes pixels in [0, 1]."""


def run(case):
    pictures = {name: case.arrays[name] for name in INPUTS}

    def resized(rule, name, size, step=1):
        images = RULES[rule](pictures[name][None], size)[0, ::step, ::step]  # [h, w, 3]
        return np.asarray(images * UNIT.get(rule, 1))

    values = {}
    for rule, short in (("tf1-bilinear", "tf1"), ("torch-bilinear", "torch")):
        values[f"{short}_small_to_299_strided"] = resized(rule, "small", *FID)
        values[f"{short}_big_to_48x40"] = resized(rule, "big", (48, 40))
    for rule, short in (("pil-bicubic", "pil_uint8"), ("clean", "clean"), ("edm2", "edm2")):
        for name in pictures:
            values[f"dino_{short}_{name}_strided"] = resized(rule, name, *DINO)
        # the name of one of them has its sides the other way round
        target = "40x48" if rule == "clean" else "48x40"
        values[f"{short}_big_to_{target}"] = resized(rule, "big", (48, 40))
    return values | {
        "adm_center_crop_big": centre_crop(pictures["big"], case.config["center_crop"]),
        "adm_center_crop_small_up": centre_crop(pictures["small"], case.config["center_crop_up"]),
    }
