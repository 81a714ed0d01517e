"""RAR (Yu et al. 2024, arXiv 2411.00776) on ImageNet at 256 x 256: 256 codes of MaskGIT's VQGAN, one after the other.

    maskdit encode maskgit-vqgan-f16 --data rar_imagenet256:B --out LATENTS
    maskdit train --config rar_imagenet256:B --workdir DIR --config.data.latents=LATENTS

Variants: B, L, XL, XXL, and `smoke`. Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or
override `data.source`. Without `data.latents` images are encoded at every step.

Orders are random up to step 125,000 (200 epochs), in raster order from step 187,500 (300), and mixed in between.
Temperature and guidance of sampling are those of the published weights, which are no averages: `ema` is ours.

Paper: FID 1.95 (B), 1.70 (L), 1.50 (XL), 1.48 (XXL) after 250k steps (400 epochs) at a batch of 2048. Meant for 32
A100 or a TPU v4-64; hours not stated. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.networks.rar import RAR, SIZES
from maskdit.processes.autoregressive import Autoregressive
from maskdit.samplers.autoregressive import TokenByToken
from maskdit.samplers.guidance import ClassifierFree
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.training.optim import AdamW, Cosine, Group

SAMPLING = {  # temperature, guidance and the power of its cosine
    "B": (1.0, 16.0, 2.75),
    "L": (1.02, 15.5, 2.5),
    "XL": (1.02, 6.9, 1.5),
    "XXL": (1.02, 8.0, 1.2),
    "smoke": (1.0, 4.0, 1.2),
}
UNDECAYED = ("/embed$", "positions$", "/steps$", "/final_modulation/")


def get_config(variant: str = "B") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VQGAN with random weights on the embedded emoji."""
    temperature, weight, power = SAMPLING[variant]
    smoke = variant == "smoke"
    schedule = spec(Cosine, lr=4e-4, warmup=62_500, final=0.025)  # 100 epochs; down to 1e-5
    optimizer = spec(AdamW, schedule=schedule, b1=0.9, b2=0.96, weight_decay=0.03, clip=1.0, undecayed=UNDECAYED)
    # data, log, checkpoints and evaluation are those of the masked generators
    config = load("maskgit_imagenet256:smoke" if smoke else "maskgit_imagenet256")
    config.data.size = config.held_out.size = 16 if smoke else 256
    config.task = spec(
        Generator,
        network=_network(variant),
        process=spec(Autoregressive, anneal_start=1 if smoke else 125_000, anneal_end=3 if smoke else 187_500),
        tokenizer=_vqgan(smoke) if smoke else pretrained("maskgit-vqgan-f16", _vqgan(smoke)),
        groups={"generator": spec(Group, optimizer=optimizer)},
        label_drop=0.1,
    )
    config.steps = 4 if smoke else 250_000
    config.batch = 8 if smoke else 2048
    config.ema = (0.999,)
    config.sampler = spec(TokenByToken, temperature=temperature)
    config.guidance = spec(ClassifierFree, weight=weight, schedule="cosine", power=power)
    return config


def _network(variant: str) -> ConfigDict:
    drops: dict[str, Any] = {"dropout": 0.1, "attention_dropout": 0.1}
    if variant == "smoke":
        tiny = {"width": 32, "depth": 2, "heads": 2, "hidden": 64, "spare_positions": 2, "spare_steps": 2}
        return spec(RAR, vocabulary=16, grid=(2, 2), classes={"group": 8}, **drops, **tiny)
    size = SIZES[variant]
    return spec(RAR, vocabulary=1024, grid=(16, 16), classes={"label": 1000}, dtype="bfloat16", **drops, **size)


def _vqgan(smoke: bool) -> ConfigDict:
    """MaskGIT's VQGAN, sixteenfold with 1024 codes; or an eightfold one with 16."""
    if smoke:
        fields: dict[str, Any] = {"channels": (8, 8, 8, 8), "blocks": 1, "latent_channels": 8, "groups": 4}
        return spec(MaskGITVQGAN, quantize=spec(VQ, codes=16, channels=8), **fields)
    return spec(
        MaskGITVQGAN,
        quantize=spec(VQ, codes=1024, channels=256, commitment=1.0, codebook_weight=0.25),
        channels=(128, 128, 256, 256, 512),
        latent_channels=256,
        dtype="bfloat16",
    )
