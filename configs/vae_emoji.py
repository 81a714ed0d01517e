"""A KL autoencoder of the embedded emoji: eightfold, 8 channels, 0.9 million parameters.

The structure of latent diffusion's (Rombach et al. 2022, arXiv 2112.10752) on 4 x 4 patches of pixels, which cost a CPU
far less than full-size maps.

    maskdit train --config vae_emoji --workdir runs/vae

Meant for 2 CPU cores and half an hour. Ours: on the held-out emoji PSNR 26.0 dB, SSIM 0.879, LPIPS (AlexNet) 0.031; it
ships as `emoji-vae`. Variants: `demo`, and `smoke`, which runs in seconds.
"""

from ml_collections import ConfigDict

from maskdit.config import load, spec
from maskdit.tokenizers.vae import VAE


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
    config = load(f"vqgan_emoji:{variant}")  # its data, losses and evaluation
    config.task.tokenizer, config.task.kl_weight = tokenizer, 5e-6
    config.steps, config.ema = config.steps if smoke else 4000, (0.999,)
    return config
