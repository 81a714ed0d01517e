"""A computed codebook (FVQ, Chang et al. 2025, arXiv 2509.10140) against a plain one, both trained by gradient."""

from typing import Any

from maskdit.config import spec
from maskdit.studies.description import Column, Study, Trial
from maskdit.studies.measures import Reconstruction
from maskdit.tokenizers.quantize.bridge import VQBridge
from maskdit.tokenizers.quantize.vq import VQ

CODES = 4096
SMALL: dict[str, Any] = {
    "task.perceptual": None,
    "task.tokenizer.channels": (32, 32),
    "task.tokenizer.latent_channels": 32,
    "steps": 300,
    "batch": 16,
    "ema": (0.95,),  # slower ones would still hold some of the first steps
    "checkpoints.every": 100,
    "log.tensorboard": False,
}
"""A run of about a minute on two cores."""

STUDY = Study(
    name="fvq",
    about=(
        "A codebook of 4,096 that a small transformer computes (FVQ) against plain vectors, both trained by gradient, "
        "in a VQ-f8 of 32 channels on the embedded emoji: 300 steps of 16 images, L1 + L2, no revival of codes."
    ),
    trials=(
        Trial("plain VQ", "vqgan_emoji", {"task.tokenizer.quantize": spec(VQ, codes=CODES, channels=8, l2=True)}),
        Trial(
            "FVQ",
            "vqgan_emoji",
            {
                "task.tokenizer.quantize": spec(
                    VQ, codes=CODES, channels=8, l2=True, bridge=spec(VQBridge, group=16, width=128, depth=2, heads=4)
                ),
                # the bridge moves all codes at once: it is given smaller steps, its input larger ones
                "task.groups.tokenizer.rates": (("quantize/bridge", 0.5), ("quantize/codebook", 2.0)),
            },
        ),
    ),
    seeds=(0, 1, 2),
    shared=SMALL,
    measure=Reconstruction(),
    columns=(
        Column("codes used, held-out %", "usage", 1, 100),
        Column("codes used, train %", "train_usage", 1, 100),
        Column("perplexity", "perplexity", 0),
        Column("PSNR", "psnr"),
        Column("SSIM", "ssim", 3),
        Column("seconds", "seconds", 0),
    ),
    notes=(
        "Measured on the 520 held-out pictures; PSNR is psnr_floored, SSIM ssim_torchmetrics. The bridge is folded "
        "away before: both tokenizers are of one size.",
    ),
)
