"""The resizing rules behind published scores, and ADM's crop."""

import re

import numpy as np

from maskdit.data.transforms import centre_crop
from maskdit.encoders.resize import RULES

INPUTS = ("small", "big")
LEFT_OUT: dict[str, str] = {}
SHORT = {
    "tf1": "tf1-bilinear",
    "torch": "torch-bilinear",
    "pil_uint8": "pil-bicubic",
    "clean": "clean",
    "edm2": "edm2",
}
"""What the arrays' names call the rules."""
NAME = re.compile(rf"(?:dino_)?({'|'.join(SHORT)})_({'|'.join(INPUTS)})(?:_to_(\d+)(?:x\d+)?)?(_strided)?")
DINO = 224
"""The side that is meant where the name states none."""
STEPS = {299: 13, 224: 9}
"""Steps between the stored pixels."""
UNIT = {"torch": 1 / 255}
"""The reference of this rule takes pixels in [0, 1]."""


def run(case):
    def resized(stored, short, source, side, strided):
        size, step = stored, 1  # one name has its two sides the other way round
        if strided:
            size = (int(side or DINO),) * 2
            step = _step(size[0], stored[0])
        images = RULES[SHORT[short]](case.arrays[source][None], size)[0, ::step, ::step]  # [h, w, 3]
        return np.asarray(images * UNIT.get(short, 1))

    found = {name: NAME.fullmatch(name) for name in case.arrays}
    values = {name: resized(case.arrays[name].shape[:2], *match.groups()) for name, match in found.items() if match}
    return values | {
        "adm_center_crop_big": centre_crop(case.arrays["big"], case.config["center_crop"]),
        "adm_center_crop_small_up": centre_crop(case.arrays["small"], case.config["center_crop_up"]),
    }


def _step(side, count):
    """The step at which `count` of `side` pixels are stored: the usual one, or the smallest that gives as many."""
    usual = STEPS.get(side, 1)
    return usual if -(-side // usual) == count else -(-side // count)
