import pathlib

import numpy as np
import pytest

import maskdit
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.evals.reconstruction import codes_used, reconstruction
from maskdit.tokenizers import shipped

HELD_OUT = Loader(source=Emoji(split="val", labels=()), flip=False, shuffle=False)


@pytest.fixture(scope="module")
def models():
    return {name: maskdit.load(name) for name in shipped.NAMES}


@pytest.mark.parametrize("name, psnr, ssim", [("emoji-vae", 25.0, 0.85), ("emoji-vqgan", 21.0, 0.7)])
def test_held_out_emoji_come_back(models, name, psnr, ssim):
    found = reconstruction(models[name], HELD_OUT, examples=64)
    assert found["psnr"] > psnr and found["ssim"] > ssim


def test_latents_have_the_scale_that_generators_expect(models):
    images = np.stack([HELD_OUT.source[i]["image"] for i in range(0, 512, 8)])
    latents = models["emoji-vae"].encode(images)
    assert latents.shape == (64, 8, 8, 8)
    assert 0.4 < latents.std() < 0.6 and abs(latents.mean()) < 0.1


def test_the_codes_are_used(models):
    assert codes_used(models["emoji-vqgan"], HELD_OUT).usage > 0.9


def test_they_are_small():
    assert sum(pathlib.Path(shipped.path(name)).stat().st_size for name in shipped.NAMES) < 4 << 20
