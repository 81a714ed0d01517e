"""ENAT (Ni et al. 2024, arXiv 2411.06959) on ImageNet at 512 x 512, on the 32 x 32 tokens of MAGE's VQGAN.

    maskdit encode mage-vqgan-f16 --data enat_imagenet512:L --out LATENTS
    maskdit train --config enat_imagenet512:L --workdir DIR --config.data.latents=LATENTS

As `enat_imagenet256`, with twice the side and so four times the tokens. Variants: L and `smoke`.

The recipe is that of the authors' code: 500k steps at a batch of 512, on 16 A100; hours not stated. Sampling is that of
the published weights. Ours, and the paper's FID: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import load


def get_config(variant: str = "L") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VQGAN with random weights on the embedded emoji."""
    config = load(f"enat_imagenet256:{variant}")
    config.task.network.grid = tuple(2 * side for side in config.task.network.grid)
    config.data.size *= 2
    config.held_out.size *= 2
    config.task.groups.generator.optimizer.schedule.lr = 1e-4
    config.sampler.token_temperature.start = 4.0
    config.guidance.weight = 4.5
    if variant != "smoke":
        config.batch = 512
    return config
