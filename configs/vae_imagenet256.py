"""KL autoencoders of latent diffusion (Rombach et al. 2022, arXiv 2112.10752) on ImageNet at 256 x 256.

    maskdit train --config vae_imagenet256:f8d4 --workdir DIR

Variants: f8d4, the structure of Stable Diffusion's; f16d16, that of MAR's KL-16 (Li et al. 2024, arXiv 2406.11838);
f16d32, and f16d32-aligned, VA-VAE's without and with its alignment (Yao et al. 2025, arXiv 2501.01423), here with the
last map of the VGG16 of LPIPS, not with DINOv2, which the library does not have; `smoke`. Prepare ImageNet with `tfds
build imagenet2012 --file_format=array_record`, or override `data.source`.

Papers: reconstruction FID of f8d4 on ImageNet 0.9 (OpenImages, latent diffusion's table 8), of f16d32 0.26 without and
0.28 with alignment by DINOv2. Learning rates: latent diffusion has 4.5e-6 for each image of the batch, VA-VAE 1e-4;
steps of the f8 and f16d16 ones are ours. Their likelihood has a learned variance, here it is 1; the batch norm of their
discriminator is a group norm here. Meant for 8 A100 or a TPU v4-16; hours not stated by the papers. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.encoders.lpips import LPIPS
from maskdit.networks.discriminators import PatchDiscriminator
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.alignment import FeatureAlignment
from maskdit.tasks.autoencoder import Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.vae import VAE
from maskdit.training.optim import AdamW, Constant, Group

DEEP: dict[str, Any] = {"channels": (128, 128, 256, 256, 512), "attention_levels": (4,)}
"""Sixteenfold, with attention at the deepest level."""
NETWORKS: dict[str, dict[str, Any]] = {
    "f8d4": {"channels": (128, 256, 512, 512), "latent_channels": 4, "scale": 0.18215},
    "f16d16": {**DEEP, "latent_channels": 16, "scale": 0.2325},
    "f16d32": {**DEEP, "latent_channels": 32, "scale": 1.0},
    "f16d32-aligned": {**DEEP, "latent_channels": 32, "scale": 1.0},
    "smoke": {"channels": (8, 8), "latent_channels": 4, "groups": 4, "layers_per_block": 1, "scale": 1.0},
}
RATES = {"f8d4": 4.5e-6 * 96, "f16d16": 4.5e-6 * 96, "f16d32": 1e-4, "f16d32-aligned": 1e-4, "smoke": 1e-4}
STEPS = {"f8d4": 500_000, "f16d16": 500_000, "f16d32": 250_000, "f16d32-aligned": 250_000, "smoke": 2}
BATCHES = {"f8d4": 96, "f16d16": 96, "f16d32": 256, "f16d32-aligned": 256, "smoke": 8}
STARTS = {"f8d4": 50_001, "f16d16": 50_001, "f16d32": 1, "f16d32-aligned": 1, "smoke": 0}


def get_config(variant: str = "f8d4") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny network with an alignment on the embedded emoji."""
    smoke = variant == "smoke"
    aligned = smoke or variant.endswith("-aligned")
    small = {} if smoke else {"dtype": "bfloat16"}
    patterns = ("^tokenizer/", "^alignment/") if aligned else ("^tokenizer/",)
    task = spec(
        Autoencoder,
        tokenizer=spec(VAE, **NETWORKS[variant], **small),
        groups={
            "tokenizer": _group(*patterns, lr=RATES[variant]),
            "discriminator": _group("^discriminator/", lr=RATES[variant]),
        },
        reconstruction=spec(Reconstruction, l1=1.0, l2=0.0),
        perceptual=None if smoke else spec(Perceptual, lpips=pretrained("lpips", spec(LPIPS, dtype="bfloat16"))),
        perceptual_weight=1.0,
        adversarial=spec(
            Adversarial,
            discriminator=spec(PatchDiscriminator, channels=8, layers=1, groups=4)
            if smoke
            else spec(PatchDiscriminator, channels=64, layers=3, dtype="bfloat16"),
            loss="hinge",
            weight=0.5,
            start=STARTS[variant],
            adaptive=True,
        ),
        kl_weight=1e-6,
        alignment=_alignment(smoke) if aligned else None,
    )
    # its data, mesh, log and evaluation
    config = load("vqgan_imagenet256:smoke" if smoke else "vqgan_imagenet256:llamagen-16")
    config.task, config.steps, config.batch = task, STEPS[variant], BATCHES[variant]
    return config


def _alignment(smoke: bool) -> ConfigDict:
    """To the last map of LPIPS's trunk: 16 x 16 places of an image of 256 pixels."""
    small = spec(LPIPS, trunk="alexnet", channels=(4, 4, 4, 4, 4))
    return spec(
        FeatureAlignment,
        encoder=small if smoke else pretrained("lpips", spec(LPIPS, dtype="bfloat16")),
        method="features",
        level=-1,
        size=64 if smoke else 0,
        cosine_margin=0.5,
        distance_margin=0.25,
        weight=0.1,
        adaptive=True,
    )


def _group(*patterns: str, lr: float) -> ConfigDict:
    return spec(
        Group, patterns=patterns, optimizer=spec(AdamW, schedule=spec(Constant, lr=lr), b1=0.5, b2=0.9, clip=None)
    )
