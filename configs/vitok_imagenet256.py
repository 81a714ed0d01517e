"""ViTok (Hansen-Estruch et al. 2025, arXiv 2501.09755) on ImageNet at 256 x 256: a transformer as KL autoencoder.

    maskdit train --config vitok_imagenet256:S-B/16 --workdir STAGE1
    maskdit train --config vitok_imagenet256:S-B/16-decoder --workdir STAGE2 --config.init_from=STAGE1

Variants: `S-B/16` and `B-B/16`, `S-L/16`, `S-S/16` (encoder, decoder, side of a patch; 256 positions of 16 numbers),
the first stage, without a discriminator; the same with `-decoder`, the second, which tunes the decoder with one;
`smoke`. Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or override `data.source`.

Paper: reconstruction FID 0.50 (S-B/16 after both stages), trained on hundreds of millions of its own images; steps,
batch and weights here follow our reading of it and are unverified, and so is the discriminator, a patch one here in
place of StyleGAN's. Meant for 32 A100 or a TPU v4-64; hours not stated. Ours: unverified.
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
from maskdit.tokenizers.vitok import ViTok, size
from maskdit.training.optim import AdamW, Cosine, Group


def get_config(variant: str = "S-B/16") -> ConfigDict:
    """The config of a size and stage, or `smoke`: a tiny first stage on the embedded emoji."""
    name, smoke, tuned = variant.removesuffix("-decoder"), variant == "smoke", variant.endswith("-decoder")
    if smoke:
        sides: dict[str, Any] = {"patch": 4, "channels": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2)}
    else:
        sides = {"channels": 16, "dtype": "bfloat16", **size(name)}
    if tuned:
        groups = {"tokenizer": _group("^tokenizer/decoder"), "discriminator": _group("^discriminator/")}
    else:
        groups = {"tokenizer": _group("^tokenizer/")}
    discriminator = spec(PatchDiscriminator, channels=64, layers=3, dtype="bfloat16")
    task = spec(
        Autoencoder,
        tokenizer=spec(ViTok, **sides),
        groups=groups,
        reconstruction=spec(Reconstruction, l2=1.0),
        perceptual=None if smoke else spec(Perceptual, lpips=pretrained("lpips", spec(LPIPS, dtype="bfloat16"))),
        perceptual_weight=1.0,
        adversarial=spec(Adversarial, discriminator=discriminator, weight=1.0, adaptive=True) if tuned else None,
        kl_weight=1e-3 / (256 * 16),  # the paper's weight is of the mean over an image's latents
    )
    # its data, mesh, log and evaluation
    config = load("vqgan_imagenet256:smoke" if smoke else "vqgan_imagenet256:llamagen-16")
    config.task, config.steps = task, 2 if smoke else 100_000
    config.batch = 8 if smoke else 256 if tuned else 1024
    if tuned:
        config.init_from.allow = ("^discriminator/",)
    return config


def _group(pattern: str) -> ConfigDict:
    optimizer = spec(AdamW, schedule=spec(Cosine, lr=1e-4, warmup=5_000), b1=0.9, b2=0.95, weight_decay=1e-4)
    return spec(Group, patterns=(pattern,), optimizer=optimizer)
