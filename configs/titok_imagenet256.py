"""TiTok (Yu et al. 2024, arXiv 2406.07550) on ImageNet at 256 x 256: an image as 32 to 256 tokens.

    maskdit train --config titok_imagenet256:L-32 --workdir STAGE1
    maskdit train --config titok_imagenet256:L-32-decoder --workdir STAGE2 --config.init_from=STAGE1

Variants: L-32, B-64, S-128, the first stage, which predicts the codes of MaskGIT's VQGAN; L-32-decoder, B-64-decoder,
S-128-decoder, the second, which tunes the decoder of such a run; BL-64-vq8k, BL-128-vq8k, SL-256-vq8k, LL-32-vae,
BL-64-vae, BL-128-vae, which learn pixels in one stage (recipe of TA-TiTok, arXiv 2501.07730); `smoke`, `smoke-decoder`
and `smoke-pixels`. Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or override
`data.source`.

Paper: reconstruction FID 2.21 (L-32), 1.70 (B-64), 1.71 (S-128) after both stages. Published weights in one stage:
2.06, 1.49 and 1.03 (codes, in the order above), 1.61, 1.25 and 0.84 (KL); steps and batch of that training are not
told, those here are the first stage's. The papers crop at random places, this loader in the middle. Meant for 8 A100 or
a TPU v4-32; hours not stated by the paper. Ours: unverified.
"""

from typing import Any

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.encoders.convnext import ConvNeXt
from maskdit.encoders.lpips import LPIPS
from maskdit.networks.discriminators import BlurDiscriminator
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.autoencoder import Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.proxy import ProxyCodes
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import SIZES, TiTok
from maskdit.training.optim import AdamW, Cosine, Group

TWO_STAGES = {"L-32": ("large", 32), "B-64": ("base", 64), "S-128": ("small", 128)}
CODES = {"BL-64-vq8k": ("base", 64), "BL-128-vq8k": ("base", 128), "SL-256-vq8k": ("small", 256)}
KL = {"LL-32-vae": ("large", 32), "BL-64-vae": ("base", 64), "BL-128-vae": ("base", 128)}
VARIANTS = (
    *(name + stage for name in (*TWO_STAGES, "smoke") for stage in ("", "-decoder")),
    *CODES,
    *KL,
    "smoke-pixels",
)
TINY = {"size": 32, "patch": 8, "tokens": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2)}


def get_config(variant: str = "L-32") -> ConfigDict:
    """The config of a variant; `smoke` ones are tiny networks with random weights on the embedded emoji."""
    if variant not in VARIANTS:
        raise KeyError(variant)
    name, smoke, tuned = variant.removesuffix("-decoder"), variant.startswith("smoke"), variant.endswith("-decoder")
    first = name in ("smoke", *TWO_STAGES)
    tokenizer = _legacy(name, tuned) if first else _pixels(name)
    if first and not tuned:
        task = spec(
            Autoencoder,
            tokenizer=tokenizer,
            groups={"tokenizer": _group("^tokenizer/", b2=0.99, warmup=10_000)},
            proxy=spec(
                ProxyCodes, tokenizer=_vqgan(smoke) if smoke else pretrained("maskgit-vqgan-f16", _vqgan(smoke))
            ),
        )
    elif first:
        task = spec(
            Autoencoder,
            tokenizer=tokenizer,
            groups={
                "tokenizer": _group("^tokenizer/decoder", "^tokenizer/pixel", b2=0.999, warmup=5_000),
                "discriminator": _group("^discriminator/", b2=0.999, warmup=5_000),
            },
            reconstruction=spec(Reconstruction, l2=1.0, unit_range=True),
            perceptual=spec(Perceptual, convnext=_convnext(smoke), resize=32 if smoke else 224),
            perceptual_weight=0.1,
            adversarial=_adversarial(smoke, weight=0.01, start=20_000),
            quantizer_weight=0.0,
        )
    else:
        task = spec(
            Autoencoder,
            tokenizer=tokenizer,
            groups={
                "tokenizer": _group("^tokenizer/", b2=0.999, warmup=10_000),
                "discriminator": _group("^discriminator/", b2=0.999, warmup=10_000),
            },
            reconstruction=spec(Reconstruction, l2=1.0, unit_range=True),
            perceptual=spec(
                Perceptual,
                lpips=None if smoke else pretrained("lpips", spec(LPIPS, dtype="bfloat16")),
                convnext=_convnext(smoke),
                lpips_weight=1.0,
                convnext_weight=0.1,
                resize=32 if smoke else 224,
            ),
            perceptual_weight=1.1,
            adversarial=_adversarial(smoke, weight=0.1, start=200_000),
            quantizer_weight=1.0,
            kl_weight=1e-6,
        )
    # its data, mesh, log and evaluation
    config = load("vqgan_imagenet256:smoke" if smoke else "vqgan_imagenet256:llamagen-16")
    config.task, config.steps = task, 2 if smoke else 500_000 if tuned else 1_000_000
    config.batch = 8 if smoke else 256
    config.data.size = config.held_out.size = 32 if smoke else 256
    config.checkpoints.keep_every = None if smoke else 100_000
    config.ema = (0.999,)
    if tuned:
        config.init_from.allow = ("^discriminator/",)
    return config


def _legacy(name: str, tuned: bool) -> ConfigDict:
    """The first version: 4096 normalised codes of 12 channels; in stage 2 with the decoder of the proxy codes."""
    if name == "smoke":
        fields: dict[str, Any] = {"quantize": spec(VQ, codes=32, channels=4, l2=True), "channels": 4, **TINY}
    else:
        side, tokens = TWO_STAGES[name]
        fields = {
            "quantize": spec(VQ, codes=4096, channels=12, l2=True, commitment=0.25),
            "channels": 12,
            "tokens": tokens,
            "encoder": SIZES[side],
            "decoder": SIZES[side],
            "dtype": "bfloat16",
        }
    smoke = name == "smoke"
    return spec(TiTok, legacy=True, proxy_codes=16 if smoke else 1024, pixel=_vqgan(smoke) if tuned else None, **fields)


def _pixels(name: str) -> ConfigDict:
    """The second version: 8192 codes of 64 channels, or 16 channels of a posterior."""
    if name == "smoke-pixels":
        return spec(TiTok, quantize=spec(VQ, codes=32, channels=4), channels=4, **TINY)
    side, tokens = {**CODES, **KL}[name]
    return spec(
        TiTok,
        quantize=spec(VQ, codes=8192, channels=64, commitment=0.25) if name in CODES else None,
        channels=64 if name in CODES else 16,
        tokens=tokens,
        encoder=SIZES[side],
        decoder=SIZES["large"],
        dtype="bfloat16",
    )


def _vqgan(smoke: bool) -> ConfigDict:
    """MaskGIT's VQGAN, sixteenfold with 1024 codes; or an eightfold one with 16."""
    if smoke:
        return spec(
            MaskGITVQGAN,
            quantize=spec(VQ, codes=16, channels=8),
            channels=(8, 8, 8, 8),
            blocks=1,
            latent_channels=8,
            groups=4,
        )
    return spec(
        MaskGITVQGAN,
        quantize=spec(VQ, codes=1024, channels=256, commitment=1.0, codebook_weight=0.25),
        channels=(128, 128, 256, 256, 512),
        latent_channels=256,
        dtype="bfloat16",
    )


def _convnext(smoke: bool) -> ConfigDict:
    if smoke:
        return spec(ConvNeXt, channels=(8, 8), depths=(1, 1), classes=10)
    return pretrained("convnext-small", spec(ConvNeXt, dtype="bfloat16"))


def _adversarial(smoke: bool, weight: float, start: int) -> ConfigDict:
    discriminator = (
        spec(BlurDiscriminator, channels=8, stages=1, groups=4)
        if smoke
        else spec(BlurDiscriminator, channels=128, stages=3, dtype="bfloat16")
    )
    return spec(
        Adversarial, discriminator=discriminator, loss="hinge", weight=weight, start=0 if smoke else start, lecam=0.001
    )


def _group(*patterns: str, b2: float, warmup: int) -> ConfigDict:
    schedule = spec(Cosine, lr=1e-4, warmup=warmup, final=0.1)
    return spec(
        Group,
        patterns=patterns,
        optimizer=spec(AdamW, schedule=schedule, b1=0.9, b2=b2, weight_decay=1e-4, clip=1.0),
    )
