"""SoftVQ-VAE (Chen et al. 2024, arXiv 2412.10958) on ImageNet at 256 x 256: an image as 64 means of codes.

    maskdit train --config softvq_imagenet256:L-64 --workdir DIR

Variants: S-64, B-64, L-64 (size of both transformers, number of tokens), L-32, and `smoke`. Prepare ImageNet with `tfds
build imagenet2012 --file_format=array_record`, or override `data.source`.

Paper: reconstruction FID 0.61 (L-64). It starts from DINOv2's weights, aligns the latents with DINOv2's features and
has a discriminator on DINO's; here networks start from random weights, there is no alignment, and the discriminator is
a patch one: expect another number. Steps, batch and rates follow our reading of it, unverified. Meant for 8 A100 or a
TPU v4-32; hours not stated. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.encoders.lpips import LPIPS
from maskdit.networks.discriminators import PatchDiscriminator
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.autoencoder import Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.quantize.softvq import SoftVQ
from maskdit.tokenizers.softvq import SIZES, SoftVQVAE
from maskdit.training.optim import AdamW, Cosine, Group

VARIANTS = {"S-64": ("small", 64), "B-64": ("base", 64), "L-64": ("large", 64), "L-32": ("large", 32)}


def get_config(variant: str = "L-64") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny network on the embedded emoji."""
    smoke = variant == "smoke"
    task = spec(
        Autoencoder,
        tokenizer=_tokenizer(variant),
        groups={"tokenizer": _group("^tokenizer/"), "discriminator": _group("^discriminator/")},
        reconstruction=spec(Reconstruction, l2=1.0),
        perceptual=None if smoke else spec(Perceptual, lpips=pretrained("lpips", spec(LPIPS, dtype="bfloat16"))),
        perceptual_weight=1.0,
        adversarial=spec(
            Adversarial,
            discriminator=spec(PatchDiscriminator, channels=8, layers=1, groups=4)
            if smoke
            else spec(PatchDiscriminator, channels=64, layers=3, dtype="bfloat16"),
            loss="hinge",
            weight=0.5,
            start=0 if smoke else 20_000,
            adaptive=True,
            lecam=0.001,
        ),
    )
    # its data, mesh, log and evaluation
    config = load("vqgan_imagenet256:smoke" if smoke else "vqgan_imagenet256:llamagen-16")
    config.task, config.steps, config.batch = task, 2 if smoke else 250_000, 8 if smoke else 256
    return config


def _tokenizer(variant: str) -> ConfigDict:
    if variant == "smoke":
        quantize = spec(SoftVQ, codes=16, channels=4, codebooks=2)
        sides: dict[str, Any] = {"size": 16, "patch": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2)}
        return spec(SoftVQVAE, quantize=quantize, tokens=4, channels=4, **sides)
    side, tokens = VARIANTS[variant]
    return spec(
        SoftVQVAE,
        quantize=spec(SoftVQ, codes=8192, channels=32, codebooks=4, l2=True, tau=0.07, entropy=0.01),
        tokens=tokens,
        channels=32,
        encoder=SIZES[side],
        decoder=SIZES[side],
        dtype="bfloat16",
    )


def _group(pattern: str) -> ConfigDict:
    schedule = spec(Cosine, lr=1e-4, warmup=5_000, final=0.1)
    return spec(
        Group,
        patterns=(pattern,),
        optimizer=spec(AdamW, schedule=schedule, b1=0.9, b2=0.95, weight_decay=1e-4, clip=1.0),
    )
