"""Masked generation (MaskGIT, Chang et al. 2022, arXiv 2202.04200) on ImageNet at 256 x 256, of TiTok's tokens (Yu et
al. 2024, arXiv 2406.07550) or of a grid.

    maskdit encode titok-l-32 --data maskgit_imagenet256:titok-L-32 --out LATENTS
    maskdit train --config maskgit_imagenet256:titok-L-32 --workdir DIR --config.data.latents=LATENTS

Variants: titok-L-32 and titok-B-64, a BERT of 768 x 24; titok-S-128, the blocks of U-ViT, 1024 x 21; grid, MaskGIT's
own 16 x 16 tokens of its VQGAN; and `smoke`.
Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or override `data.source`. Without
`data.latents` images are encoded at every step.

Paper: FID 2.77 (L-32) and 2.48 (B-64) with 8 steps, 1.97 (S-128) with 64; 500k steps at a batch of 2048, on 32 A100 of
40 GB; hours not stated. Temperature and guidance of sampling are those of the published weights. The blocks of U-ViT
have no dropout, as in the authors' code. MaskGIT: FID 6.18 with 8 steps and no guidance, 300 epochs at a batch of 256;
`grid` trains TiTok's form of the network with MaskGIT's schedule. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.data.tfds import TFDS
from maskdit.networks import uvit_bert
from maskdit.networks.maskgit import SIZES, MaskGIT
from maskdit.networks.uvit_bert import UViTBert
from maskdit.processes.masked import Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.tokens import Confidence
from maskdit.tasks.generator import Generator
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Cosine, Group
from maskdit.training.run import Run

TOKENS = {"titok-L-32": (32,), "titok-B-64": (64,), "titok-S-128": (128,), "grid": (16, 16)}
SAMPLING = {  # steps, temperature, guidance; the authors' scale s of the linear schedule is a weight of 1 + s
    "titok-L-32": (8, 9.5, {"weight": 5.5, "schedule": "linear"}),
    "titok-B-64": (8, 11.0, {"weight": 4.0, "schedule": "linear"}),
    "titok-S-128": (64, 2.8, {"weight": 6.9, "schedule": "cosine", "power": 3.0}),
    "grid": (8, 4.5, {}),
    "smoke": (3, 4.5, {"weight": 3.0, "schedule": "linear"}),
}


def get_config(variant: str = "titok-L-32") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny network and TiTok with random weights on the embedded emoji."""
    steps, temperature, guidance = SAMPLING[variant]
    smoke, grid, labels = variant == "smoke", variant == "grid", ("group",)
    tokenizer = _tokenizer(variant)
    train = spec(Emoji, labels=labels) if smoke else spec(TFDS, name="imagenet2012", split="train")
    held_out = spec(Emoji, split="val", labels=labels) if smoke else spec(TFDS, name="imagenet2012", split="validation")
    pixels = 32 if smoke else 256
    masks, confidence = ("cosine", "log_probability") if grid else ("arccos", "logit")
    schedule = spec(Cosine, lr=1e-4 if grid else 2e-4, warmup=10_000, final=0.05)  # down to 1e-5 for TiTok's
    optimizer = spec(
        AdamW, schedule=schedule, b1=0.9, b2=0.96, weight_decay=0.03, clip=1.0, undecayed=("/embed/", "/segments")
    )
    return spec(
        Run,
        task=spec(
            Generator,
            network=_network(variant),
            process=spec(Masked, schedule=masks, label_smoothing=0.1, unmasked_weight=0.0 if grid else 0.1),
            tokenizer=tokenizer,
            groups={"generator": spec(Group, optimizer=optimizer)},
            label_drop=0.1,
        ),
        data=spec(Loader, source=train, size=pixels, threads=2 if smoke else 16, prefetch=4 if smoke else 16),
        held_out=spec(Loader, source=held_out, size=pixels, flip=False, shuffle=False),
        steps=4 if smoke else 1_500_000 if grid else 500_000,
        batch=8 if smoke else 256 if grid else 2048,
        ema=(0.999,),
        sampler=spec(Confidence, steps=steps, schedule=masks, temperature=temperature, confidence=confidence),
        guidance=spec(ClassifierFree, **guidance),
        mesh=spec(MeshShape, data=1, fsdp=-1),
        checkpoints=spec(Checkpoints, every=4 if smoke else 10_000, keep_every=None if smoke else 50_000),
        log=spec(Log, every=2 if smoke else 50),
        evaluation=spec(
            Evaluation,
            every=4 if smoke else 10_000,
            batch=8 if smoke else 64,
            examples=8 if smoke else 4096,
            images=8 if smoke else 32,
        ),
    )


def _tokenizer(variant: str) -> ConfigDict:
    """TiTok's first version with the decoder of MaskGIT's VQGAN, or that VQGAN; for `smoke` a tiny TiTok."""
    if variant == "smoke":
        return load("titok_imagenet256:smoke-pixels").task.tokenizer
    if variant == "grid":
        return load("rar_imagenet256:B").task.tokenizer
    spec_of = load(f"titok_imagenet256:{variant.removeprefix('titok-')}-decoder").task.tokenizer
    return pretrained(variant.lower(), spec_of)


def _network(variant: str) -> ConfigDict:
    if variant == "smoke":
        size = {"width": 32, "depth": 2, "heads": 2, "hidden": 64}
        return spec(MaskGIT, vocabulary=32, grid=(4,), classes={"group": 8}, dropout=0.1, attention_dropout=0.1, **size)
    codes = 1024 if variant == "grid" else 4096
    fields: dict[str, Any] = {"vocabulary": codes, "grid": TOKENS[variant], "classes": {"label": 1000}}
    if variant == "titok-S-128":
        return spec(UViTBert, dtype="bfloat16", **fields, **uvit_bert.SIZES["titok"])
    size = SIZES["maskgit" if variant == "grid" else "titok"]
    return spec(MaskGIT, dropout=0.1, attention_dropout=0.1, dtype="bfloat16", **fields, **size)
