"""TA-TiTok (Kim et al. 2025, arXiv 2501.07730) at 256 x 256: 32 to 128 tokens, decoded with a text beside them.

    maskdit train --config tatitok_imagenet256:BL-64-vae --workdir DIR --config.data.text=TRAIN.npy \\
        --config.held_out.text=VAL.npy

Variants: BL-32-vq, BL-64-vq, BL-128-vq (8192 codes), BL-32-vae, BL-64-vae, SL-128-vae (KL, 16 channels), and `smoke`,
which has no texts at hand and trains the same tokenizer without them. The files hold the texts' embeddings, one row
`[77, 768]` for each record in the source's order; published weights take the 77 token states of OpenCLIP's
ViT-L-14-336.

Paper: trained on 686 million images of DataComp with their captions, once through; reconstruction FID on ImageNet 1.53
(BL-64-vq) and 1.22 (BL-64-vae), as far as we know. Override `data.source` and `held_out.source` for such data: the one
here is ImageNet, for which captions have to be made, such as names of classes. Published crops are random, this
loader's in the middle. Codes that fall out of use come back by our revival in place of theirs (`clustering_vq`). Meant
for 32 A100 or a TPU v4-64; hours not stated. Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.encoders.convnext import ConvNeXt
from maskdit.encoders.lpips import LPIPS
from maskdit.networks.discriminators import BlurDiscriminator
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.autoencoder import Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import SIZES, TiTok
from maskdit.training.optim import AdamW, Cosine, Group

VARIANTS = {
    "BL-32-vq": ("base", 32, True),
    "BL-64-vq": ("base", 64, True),
    "BL-128-vq": ("base", 128, True),
    "BL-32-vae": ("base", 32, False),
    "BL-64-vae": ("base", 64, False),
    "SL-128-vae": ("small", 128, False),
}


def get_config(variant: str = "BL-64-vae") -> ConfigDict:
    """The config of a variant, or `smoke`: a tiny network without texts on the embedded emoji."""
    smoke = variant == "smoke"
    task = spec(
        Autoencoder,
        tokenizer=_tokenizer(variant),
        groups={"tokenizer": _group("^tokenizer/"), "discriminator": _group("^discriminator/")},
        reconstruction=spec(Reconstruction, l2=1.0, unit_range=True),
        perceptual=spec(
            Perceptual,
            lpips=None if smoke else pretrained("lpips", spec(LPIPS, dtype="bfloat16")),
            convnext=spec(ConvNeXt, channels=(8, 8), depths=(1, 1), classes=10)
            if smoke
            else pretrained("convnext-small", spec(ConvNeXt, dtype="bfloat16")),
            lpips_weight=1.0,
            convnext_weight=0.1,
            resize=32 if smoke else 224,
        ),
        perceptual_weight=1.1,
        adversarial=spec(
            Adversarial,
            discriminator=spec(BlurDiscriminator, channels=8, stages=1, groups=4)
            if smoke
            else spec(BlurDiscriminator, channels=128, stages=3, dtype="bfloat16"),
            loss="hinge",
            weight=0.1,
            start=0 if smoke else 200_000,
            lecam=0.001,
        ),
        quantizer_weight=1.0,
        kl_weight=1e-6,
    )
    # its data, mesh, log and evaluation
    config = load("vqgan_imagenet256:smoke" if smoke else "vqgan_imagenet256:llamagen-16")
    config.task, config.steps, config.batch = task, 2 if smoke else 650_000, 8 if smoke else 1024
    config.data.size = config.held_out.size = 32 if smoke else 256
    config.ema = (0.999,)
    return config


def _tokenizer(variant: str) -> ConfigDict:
    if variant == "smoke":
        return spec(TiTok, size=32, patch=8, tokens=4, channels=4, encoder=(16, 1, 2), decoder=(16, 1, 2))
    side, tokens, codes = VARIANTS[variant]
    return spec(
        TiTok,
        quantize=spec(VQ, codes=8192, channels=64, commitment=0.25, revive=100) if codes else None,
        channels=64 if codes else 16,
        tokens=tokens,
        encoder=SIZES[side],
        decoder=SIZES["large"],
        text=(77, 768),
        dtype="bfloat16",
    )


def _group(pattern: str) -> ConfigDict:
    schedule = spec(Cosine, lr=1e-4, warmup=10_000, final=0.1)
    return spec(
        Group,
        patterns=(pattern,),
        optimizer=spec(AdamW, schedule=schedule, b1=0.9, b2=0.999, weight_decay=1e-4, clip=1.0),
    )
