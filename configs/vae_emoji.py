"""A KL autoencoder of the embedded emoji: eightfold, 8 channels, 0.9 million parameters.

The structure of latent diffusion's (Rombach et al. 2022, arXiv 2112.10752) on 4 x 4 patches of pixels, which cost a CPU
far less than full-size maps.

    maskdit train --config vae_emoji --workdir runs/vae

Meant for 2 CPU cores and half an hour. Ours: on the held-out emoji PSNR 26.0 dB, SSIM 0.879, LPIPS (AlexNet) 0.031; it
ships as `emoji-vae`. Variants: `demo`, and `smoke`, which runs in seconds.
"""

from ml_collections import ConfigDict

from maskdit.config import pretrained, spec
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.encoders.lpips import LPIPS
from maskdit.tasks.autoencoder import TRAINED, Autoencoder
from maskdit.tasks.perceptual import Perceptual
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.vae import VAE
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
        VAE,
        channels=(16, 16) if smoke else (64, 64),
        layers_per_block=1,
        latent_channels=8,
        groups=8,
        quant_conv=False,
        scale=0.61,  # gives latents the standard deviation of 0.5 that EDM expects
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
        kl_weight=5e-6,
    )
    return spec(
        Run,
        task=task,
        data=spec(Loader, source=spec(Emoji, split="train", labels=()), size=64),
        held_out=spec(Loader, source=spec(Emoji, split="val", labels=()), size=64, flip=False, shuffle=False),
        steps=6 if smoke else 4000,
        batch=8 if smoke else 32,
        ema=(0.999,),
        mesh=spec(MeshShape),
        checkpoints=spec(Checkpoints, every=3 if smoke else 500),
        log=spec(Log, every=3 if smoke else 25),
        evaluation=spec(Evaluation, every=6 if smoke else 1000, examples=16 if smoke else None, images=16),
    )
