"""A TiTok of the embedded emoji: 32 codes out of 1,024 for an image, 1.7 million parameters.

TiTok (Yu et al. 2024, arXiv 2406.07550) in its later form, which learns pixels in a single stage, as small transformers
on 8 x 8 patches, with a codebook of moving averages whose unused codes are replaced (van den Oord et al. 2017, arXiv
1711.00937).

    maskdit train --config titok_emoji --workdir runs/titok

Meant for 2 CPU cores. Ours: `maskdit study tokenizers`; at full length unverified. Variants: `demo`, and `smoke`,
which runs in seconds.
"""

from ml_collections import ConfigDict

from maskdit.config import load, spec
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.titok import TiTok


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of a variant: `demo` or `smoke`."""
    smoke = {"demo": False, "smoke": True}[variant]
    size = (32, 1, 2) if smoke else (128, 4, 4)
    tokenizer = spec(
        TiTok,
        quantize=spec(EMAVQ, codes=64 if smoke else 1024, channels=8, l2=True, decay=0.95, revive=20),
        size=64,
        patch=8,
        tokens=32,
        channels=8,
        encoder=size,
        decoder=size,
    )
    config = load(f"vqgan_emoji:{variant}")  # its data, losses and evaluation
    config.task.tokenizer = tokenizer
    config.task.groups.tokenizer.optimizer.schedule.lr = 1e-3
    config.steps, config.ema = config.steps if smoke else 4000, (0.999,)
    return config
