"""MaskDiT (Zheng et al. 2023, arXiv 2306.09305) on ImageNet at 512 x 512, in the latents of the SD VAE.

    maskdit train --config maskdit_imagenet512:XL/2 --workdir DIR

As `maskdit_imagenet256`, with twice the side and so four times the tokens: half of the patches masked for 1M steps,
then 80k steps unmasked. (The authors lower the learning rate to 5e-5 for these; their file for samples without guidance
is that after 50k of them.) The batch goes through in 16 parts, each of as many tokens as at 256 x 256.

Variants: S, B, L, XL with patch 2, 4 or 8 (`XL/2`), and `smoke`. Prepare ImageNet with `tfds build imagenet2012
--file_format=array_record`, or override `data.source`.

Paper: XL/2, FID 2.50 with guidance 1.5 and 40 steps, 10.79 without guidance; about 210 A100 days for the 1M steps.
Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import load

MASKED, UNMASKED = 1_000_000, 80_000


def get_config(variant: str = "XL/2") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VAE on the embedded emoji."""
    config = load(f"maskdit_imagenet256:{variant}")
    config.task.network.input_size *= 2
    config.data.size *= 2
    config.held_out.size *= 2
    if variant != "smoke":
        config.steps = MASKED + UNMASKED
        config.task.masking.unmasked_from = MASKED / (MASKED + UNMASKED)
        config.microbatches *= 4
    return config
