"""A VQGAN of the embedded emoji: 64 codes out of 1,024 for an image, 0.9 million parameters.

VQGAN (Esser et al. 2021, arXiv 2012.09841) in the structure of LlamaGen on 4 x 4 patches of pixels, with a codebook of
moving averages whose unused codes are replaced (van den Oord et al. 2017, arXiv 1711.00937).

    maskdit train --config vqgan_emoji --workdir runs/vqgan

Meant for 2 CPU cores and half an hour. Ours: on the held-out emoji PSNR 22.1 dB, SSIM 0.788, LPIPS (AlexNet) 0.071, all
codes in use; it ships as `emoji-vqgan`. Variants: `demo`, and `smoke`, which runs in seconds.
"""

from ml_collections import ConfigDict

from maskdit.config import pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.encoders.lpips import LPIPS
from maskdit.tasks.autoencoder import TRAINED, Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.vqgan import VQGAN
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape
from maskdit.training.optim import AdamW, Cosine, Group
from maskdit.training.run import Run


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of a variant: `demo` or `smoke`."""
    smoke = {"demo": False, "smoke": True}[variant]
    tokenizer = spec(
        VQGAN,
        quantize=spec(EMAVQ, codes=64 if smoke else 1024, channels=8, l2=True, decay=0.95, revive=20),
        channels=(16, 16) if smoke else (64, 64),
        layers_per_block=1,
        latent_channels=64,
        groups=8,
        attention_levels=(),
        patch=4,
    )
    lpips = spec(LPIPS, trunk="alexnet")
    task = spec(
        Autoencoder,
        tokenizer=tokenizer,
        groups={
            "tokenizer": spec(
                Group,
                patterns=(TRAINED,),
                optimizer=spec(AdamW, schedule=spec(Cosine, lr=2e-3, warmup=100, final=0.05), b2=0.99, clip=1.0),
            )
        },
        reconstruction=spec(Reconstruction, l1=1.0, l2=1.0),
        perceptual=spec(Perceptual, lpips=lpips if smoke else pretrained("lpips-alexnet", lpips)),
        perceptual_weight=0.5,
    )
    return spec(
        Run,
        task=task,
        data=spec(Loader, source=spec(Emoji, split="train", labels=()), size=64),
        held_out=spec(Loader, source=spec(Emoji, split="val", labels=()), size=64, flip=False, shuffle=False),
        steps=6 if smoke else 2500,
        batch=8 if smoke else 32,
        ema=(0.99,),
        mesh=spec(MeshShape),
        checkpoints=spec(Checkpoints, every=3 if smoke else 500),
        log=spec(Log, every=3 if smoke else 25),
        evaluation=spec(Evaluation, every=6 if smoke else 1000, examples=16 if smoke else None, images=16),
    )
