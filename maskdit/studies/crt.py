"""Codes held predictable while the tokenizer learns (CRT, Ramanujan et al. 2024, arXiv 2412.16326) against codes that
are not: what a raster autoregressive model makes of each.

At the regulariser's weight of 4 the tokenizer kept a sixteenth of its codes (seed 0: perplexity 6, PSNR 14.6 dB), which
are easy to tell and show little; hence the lower one.
"""

from typing import Any

from maskdit.config import spec
from maskdit.networks.rar import RAR
from maskdit.processes.autoregressive import Autoregressive
from maskdit.studies.description import Column, Study, Trial
from maskdit.studies.measures import Likelihood, Reconstruction
from maskdit.tasks.next_token import NextToken
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.training.optim import AdamW, Cosine

CODES = 512
TOKENIZER: dict[str, Any] = {
    "task.perceptual": None,
    "task.tokenizer.channels": (32, 32),
    "task.tokenizer.latent_channels": 32,
    "task.tokenizer.quantize": spec(VQ, codes=CODES, channels=8, l2=True),
    "steps": 200,
    "batch": 16,
}
GENERATOR: dict[str, Any] = {
    "task.network": spec(
        RAR, vocabulary=CODES, grid=(8, 8), classes={"group": 8}, width=96, depth=3, heads=4, hidden=384
    ),
    "task.process": spec(Autoregressive, anneal_start=0, anneal_end=0),  # raster order throughout
    "task.groups.generator.optimizer": spec(
        AdamW, schedule=spec(Cosine, lr=2e-3, warmup=30, final=0.05), b2=0.96, weight_decay=0.03, clip=1.0
    ),
    "data.size": 64,
    "held_out.size": 64,
    "log.every": 25,
    "evaluation.every": 1000,
    "evaluation.batch": 64,
    "evaluation.examples": None,
    "steps": 250,
    "batch": 32,
}


def _generator(tokenizer: str) -> Trial:
    """The run on the codes of a tokenizer's run."""
    return Trial(
        f"{tokenizer} generator",
        "rar_imagenet256:smoke",
        GENERATOR,
        after={"task.tokenizer": tokenizer},
        measure=Likelihood(),
        row=tokenizer,
    )


STUDY = Study(
    name="crt",
    about=(
        "CRT's regulariser (a causal transformer of 2 blocks of 64 channels, weight 0.5) against none, in a VQ-f8 of "
        "32 channels and 512 codes on the embedded emoji (200 steps of 16 images, L1 + L2); then on the codes of each "
        "a raster autoregressive model of 3 blocks of 96 channels, given the group (250 steps of 32 images)."
    ),
    trials=(
        Trial("plain VQ", "vqgan_emoji", TOKENIZER),
        Trial(
            "CRT",
            "vqgan_emoji",
            TOKENIZER | {"task.next_token": spec(NextToken, width=64, depth=2, heads=4, weight=0.5)},
        ),
        _generator("plain VQ"),
        _generator("CRT"),
    ),
    seeds=(0, 1, 2),
    shared={"ema": (0.95,), "checkpoints.every": 100, "log.tensorboard": False, "evaluation.images": 0},
    measure=Reconstruction(),
    columns=(
        Column("next-token loss, bits", "bits_per_token", 3),
        Column("codes used, held-out %", "usage", 1, 100),
        Column("perplexity", "perplexity", 0),
        Column("PSNR", "psnr"),
        Column("SSIM", "ssim", 3),
        Column("seconds", "seconds", 0),
    ),
    notes=(
        "Measured on the 520 held-out pictures. The loss is that of 64 codes in raster order, bits for each; without "
        "any context it would be the logarithm of the perplexity to base 2. PSNR is psnr_floored, SSIM "
        "ssim_torchmetrics. Seconds are of both stages.",
    ),
)
