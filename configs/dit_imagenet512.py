"""DiT (Peebles and Xie 2023, arXiv 2212.09748) on ImageNet at 512 x 512, in the latents of the SD VAE.

    maskdit train --config dit_imagenet512:XL/2 --workdir DIR

As `dit_imagenet256`, with twice the side and so four times the tokens. Variants: S, B, L, XL with patch 2, 4 or 8
(`XL/2`), and `smoke`. Prepare ImageNet with `tfds build imagenet2012 --file_format=array_record`, or override
`data.source`.

Paper: XL/2 after 3M steps, FID 3.04 with guidance 1.5 (250 steps, three channels guided). Meant for a TPU v3-256, as
there. Ours: unverified.
"""

from ml_collections import ConfigDict

from maskdit.config import load

STEPS = 3_000_000


def get_config(variant: str = "XL/2") -> ConfigDict:
    """The config of a size, or `smoke`: a tiny network and VAE on the embedded emoji."""
    config = load(f"dit_imagenet256:{variant}")
    config.task.network.input_size *= 2
    config.data.size *= 2
    config.held_out.size *= 2
    if variant != "smoke":
        config.steps = STEPS
    return config
