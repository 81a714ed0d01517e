"""Convolutional tokenizers with codes (VQGAN, Esser et al. 2021, arXiv 2012.09841) on ImageNet at 256 x 256.

    maskdit train --config vqgan_imagenet256:llamagen-16 --workdir DIR

Variants: llamagen-16 and llamagen-8 (Sun et al. 2024, arXiv 2406.06525); maskgit (Chang et al. 2022, arXiv 2202.04200);
var (Tian et al. 2024, arXiv 2404.02905), scale by scale; fvq-16 (Chang et al. 2025, arXiv 2509.10140), codes from a
network; robusttok (Qiu et al. 2025, arXiv 2503.08354), codes swapped in training; crt (Ramanujan et al. 2024, arXiv
2412.16326), codes held predictable; fsq (Mentzer et al. 2023, arXiv 2309.15505) and bsq (Zhao et al. 2024, arXiv
2406.07548), no codebook; `smoke`. Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or
override `data.source`.

Papers, reconstruction FID: llamagen-16 2.19, llamagen-8 0.59, maskgit 2.28, robusttok 1.02 (its networks are DINOv2's
ViT-B, with a semantic loss); crt tells FID 2.18 of its generator. The recipe is LlamaGen's (40 epochs, batch 128);
robusttok has its own (200 epochs, batch 1024). All others take LlamaGen's in place of their own, and those of fvq-16,
crt, fsq and bsq its network too: compare them with each other, not with their papers. Batch norms of the discriminator
are group norms here. Meant for 8 A100 or a TPU v4-16; hours not stated by the papers. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.data.tfds import TFDS
from maskdit.encoders.lpips import LPIPS
from maskdit.networks.discriminators import PatchDiscriminator, StyleDiscriminator
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.autoencoder import Autoencoder
from maskdit.tasks.next_token import NextToken
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.perturbation import LatentPerturbation
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.bridge import VQBridge
from maskdit.tokenizers.quantize.fsq import FSQ
from maskdit.tokenizers.quantize.lfq import BSQ
from maskdit.tokenizers.quantize.multiscale import MultiScaleVQ
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.vqgan import VQGAN
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Constant, Cosine, Group
from maskdit.training.run import Run

IMAGES = 1_281_167


def get_config(variant: str = "llamagen-16") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny one of fvq-16, robusttok and crt at once, on the embedded emoji."""
    smoke, robust = variant == "smoke", variant == "robusttok"
    batch = 8 if smoke else 1024 if robust else 128
    steps = 2 if smoke else IMAGES * (200 if robust else 40) // batch
    predicted = variant in ("crt", "smoke")
    patterns = ("^tokenizer/", "^next_token/") if predicted else ("^tokenizer/",)
    task = spec(
        Autoencoder,
        tokenizer=_tokenizer(variant),
        groups={
            "tokenizer": _group(*patterns, robust=robust, bridged=variant in ("fvq-16", "smoke")),
            "discriminator": _group("^discriminator/", robust=robust, weight_decay=5e-4 if robust else 0.0),
        },
        reconstruction=spec(Reconstruction, l2=1.0),
        perceptual=None if smoke else spec(Perceptual, lpips=pretrained("lpips", spec(LPIPS, dtype="bfloat16"))),
        perceptual_weight=1.0,
        adversarial=_adversarial(variant),
        perturbation=_perturbation(smoke) if robust or smoke else None,
        next_token=spec(NextToken, width=16 if smoke else 512, depth=2, heads=2 if smoke else 8, weight=1.0)
        if predicted
        else None,
    )
    train = spec(Emoji, labels=()) if smoke else spec(TFDS, name="imagenet2012", split="train", labels=())
    held_out = (
        spec(Emoji, split="val", labels=()) if smoke else spec(TFDS, name="imagenet2012", split="validation", labels=())
    )
    pixels = 16 if smoke else 256
    return spec(
        Run,
        task=task,
        data=spec(Loader, source=train, size=pixels, threads=2 if smoke else 16, prefetch=4 if smoke else 16),
        held_out=spec(Loader, source=held_out, size=pixels, flip=False, shuffle=False),
        steps=steps,
        batch=batch,
        ema=(0.9999,),
        mesh=spec(MeshShape, data=1, fsdp=-1),
        checkpoints=spec(Checkpoints, every=2 if smoke else 10_000, keep_every=None if smoke else 50_000),
        log=spec(Log, every=1 if smoke else 100),
        evaluation=spec(
            Evaluation,
            every=2 if smoke else 10_000,
            batch=8 if smoke else 64,
            examples=8 if smoke else 4096,
            images=8 if smoke else 32,
        ),
    )


def _tokenizer(variant: str) -> ConfigDict:
    if variant == "maskgit":
        quantize = spec(VQ, codes=1024, channels=256, commitment=1.0, codebook_weight=0.25)
        return spec(MaskGITVQGAN, quantize=quantize, channels=(128, 128, 256, 256, 512), dtype="bfloat16")
    normalised = {"codes": 16384, "channels": 8, "l2": True, "commitment": 0.25}
    quantizers: dict[str, Any] = {
        "llamagen-16": spec(VQ, **normalised),
        "llamagen-8": spec(VQ, **normalised),
        "var": spec(MultiScaleVQ, codes=4096, channels=32, scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), commitment=0.25),
        "fvq-16": spec(VQ, **normalised, bridge=spec(VQBridge, group=16, width=256, depth=2, heads=4)),
        "robusttok": spec(VQ, codes=4096, channels=64, l2=True, commitment=0.25),
        "crt": spec(VQ, **normalised),
        "fsq": spec(FSQ, levels=(8, 5, 5, 5)),
        "bsq": spec(BSQ, channels=18, entropy=0.1, groups=18),
        "smoke": spec(VQ, codes=32, channels=4, l2=True, bridge=spec(VQBridge, group=4, width=16, depth=1, heads=2)),
    }
    network: dict[str, Any] = {"channels": (128, 128, 256, 256, 512), "attention_levels": (4,), "latent_channels": 256}
    if variant == "llamagen-8":
        network |= {"channels": (128, 256, 256, 512), "attention_levels": (3,)}
    if variant == "var":
        network |= {"channels": (160, 160, 320, 320, 640), "latent_channels": 32, "quant_kernel": 3}
    if variant == "smoke":
        network = {"channels": (8, 8), "layers_per_block": 1, "latent_channels": 8, "groups": 4, "attention_levels": ()}
    return spec(VQGAN, quantize=quantizers[variant], **network, dtype="float32" if variant == "smoke" else "bfloat16")


def _adversarial(variant: str) -> ConfigDict:
    if variant == "maskgit":
        return spec(
            Adversarial,
            discriminator=spec(StyleDiscriminator, size=256, dtype="bfloat16"),
            loss="non-saturating",
            weight=0.1,
            start=20_000,
            r1=10.0,
        )
    smoke, robust = variant == "smoke", variant == "robusttok"
    return spec(
        Adversarial,
        discriminator=spec(PatchDiscriminator, channels=8, layers=1, groups=4)
        if smoke
        else spec(PatchDiscriminator, channels=64, layers=3, dtype="bfloat16"),
        loss="hinge",
        weight=0.5,
        start=0 if smoke else 56 * IMAGES // 1024 if robust else 20_000,
        adaptive=True,
        lecam=0.001 if robust else 0.0,
    )


def _perturbation(smoke: bool) -> ConfigDict:
    """Annealed from epoch 40 to epoch 120 of 200."""
    return spec(
        LatentPerturbation,
        alpha=1.0,
        beta=0.5 if smoke else 0.1,
        delta=8 if smoke else 100,
        anneal_start=0.2,
        anneal_end=0.6,
    )


def _group(*patterns: str, robust: bool, weight_decay: float = 0.0, bridged: bool = False) -> ConfigDict:
    schedule = spec(Cosine, lr=3e-5) if robust else spec(Constant, lr=1e-4)
    optimizer = spec(AdamW, schedule=schedule, b1=0.9, b2=0.95, weight_decay=weight_decay, clip=1.0)
    # a bridge moves all codes at once: it is given smaller steps, its input larger ones; both factors are ours
    rates = (("quantize/bridge", 0.5), ("quantize/codebook", 2.0)) if bridged else ()
    return spec(Group, patterns=patterns, optimizer=optimizer, rates=rates)
