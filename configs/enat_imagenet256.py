"""ENAT (Ni et al. 2024, arXiv 2411.06959) on ImageNet at 256 x 256, on the 16 x 16 tokens of MAGE's VQGAN.

    maskdit encode mage-vqgan-f16 --data enat_imagenet256:L --out LATENTS
    maskdit train --config enat_imagenet256:L --workdir DIR --config.data.latents=LATENTS

Variants: L and `smoke`. L has 22 blocks that see visible tokens only and 2 for the masked ones, 574 million parameters.
Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or override `data.source`. Without
`data.latents` images are encoded at every step.

Paper: FID 2.79 with 8 steps. The recipe is that of the authors' code: 500k steps at a batch of 2048, on 16 A100; hours
not stated. What differs: masks are counted by six quantiles of the Beta distribution, as each count is a program of its
own; weights decay where they have two axes or more, not all; bfloat16 stands for float16. Sampling is that of the
published weights. Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import load, pretrained, spec
from maskdit.networks.enat import ENAT, SIZES
from maskdit.processes.masked import BatchCounts, Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.temperature import Falling
from maskdit.samplers.tokens import Confidence
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.training.optim import AdamW, Constant, Group


def get_config(variant: str = "L") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VQGAN with random weights on the embedded emoji."""
    smoke = variant == "smoke"
    counts = {"ratios": 1, "hidden": 1} if smoke else {"ratios": 6, "hidden": 4}
    optimizer = spec(AdamW, schedule=spec(Constant, lr=4e-4, warmup=5000), b1=0.99, b2=0.99, weight_decay=0.03)
    # data, log, checkpoints and evaluation are those of the masked generators
    config = load("maskgit_imagenet256:smoke" if smoke else "maskgit_imagenet256")
    config.data.size = config.held_out.size = 16 if smoke else 256
    config.task = spec(
        Generator,
        network=_network(variant),
        process=spec(
            Masked,
            label_smoothing=0.1,
            unmasked_weight=0.0,
            counts=spec(BatchCounts, alpha=12.0, beta=3.0, reuse=0.5, **counts),
        ),
        tokenizer=_tokenizer(smoke),
        groups={"generator": spec(Group, optimizer=optimizer)},
        label_drop=0.235,  # by the authors' data set (0.15), and of what is left by the network (0.1)
    )
    config.steps = 4 if smoke else 500_000
    config.batch = 8 if smoke else 2048
    config.ema = (0.9999,)
    config.sampler = spec(
        Confidence,
        steps=3 if smoke else 8,
        schedule="cosine",
        least=0,
        temperature=1.5,
        token_temperature=spec(Falling, start=6.0, least=1e-3),
        confidence="log_probability",
        counted=True,
        reuse=True,
    )
    config.guidance = spec(ClassifierFree, weight=3.5, schedule="linear")  # the authors' scale of 2.5 is added to 1
    return config


def _network(variant: str) -> ConfigDict:
    smoke = variant == "smoke"
    size = {"width": 32, "depth": 2, "decoder_depth": 1, "heads": 2} if smoke else SIZES[variant]
    return spec(
        ENAT,
        vocabulary=32 if smoke else 1024,
        grid=(4, 4) if smoke else (16, 16),
        classes={"group": 8} if smoke else {"label": 1000},
        dropout=0.1,
        dtype="float32" if smoke else "bfloat16",
        **size,
    )


def _tokenizer(smoke: bool) -> ConfigDict:
    if smoke:
        codes = spec(VQ, codes=32, channels=4)
        return spec(MaskGITVQGAN, quantize=codes, channels=(8, 8, 8), blocks=1, latent_channels=4, groups=4)
    codes = spec(VQ, codes=1024, channels=256, commitment=1.0, codebook_weight=0.25)
    return pretrained("mage-vqgan-f16", spec(MaskGITVQGAN, quantize=codes, middle_blocks=2, dtype="bfloat16"))
